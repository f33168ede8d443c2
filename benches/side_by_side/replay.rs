//! The setting in which apt-p2p was measured (INFOCOM 2009), replayed: fifty sites of which half are on at
//! a time and more than half can not be reached by others, and packages that hardly anybody else installs.
//! Beside each site one that has only the mirror gets the same requests.
//!
//! All that chance decides comes of one seed: who is on when, and who asks for what. An hour of then takes
//! ten seconds. Fifty volumes on one disk wait for each other: `TMPDIR=/dev/shm` has them in memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use crate::kit::lan::{Host, Lan};
use crate::kit::node::swarm_key;
use crate::kit::site::{Build, Site};
use crate::kit::{Connection, LocalArchive, Mirror, Node, get, wait_until};
use crate::swarm::size_at;
use crate::table::Table;

const SEED: u64 = 2009;
const SITES: usize = 50;
/// Those who can not be reached: 54 %.
const HIDDEN: usize = 27;
const HOUR: f64 = 10.0;
/// A day.
const RUN: f64 = 24.0 * HOUR;
/// How long a site is on, or off, on average. Then half are on for more than 5 hours and 20 % for more
/// than 10, as it was.
const STAY: f64 = 6.5 * HOUR;
/// A site that goes off stays so for a moment at least.
const STAY_MIN: f64 = 0.5 * HOUR;
/// Packages of the archive. The n-th is asked for 1/n as often as the first.
const PACKAGES: usize = 3_000;
/// The largest, in bytes: fifty volumes are to fit on one disk.
const LARGEST: f64 = 8e6;
/// Seconds between the packages that a site which is on asks for, on average.
const EVERY: f64 = 2.5;
/// What each of the two mirrors sends in all, in bytes per second.
const LINE: u64 = 50_000_000;
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes that sites had from peers, by their own word.
const FROM_PEERS: &str = "aptmesh_swarm_received_bytes_total{from=\"peer\"}";
/// What is counted at the sites of the swarm: name, label.
const COUNTED: [(&str, &str); 5] = [
    ("aptmesh_swarm_look_ups_total", "outcome"),
    ("aptmesh_swarm_peer_requests_total", "answer"),
    ("aptmesh_swarm_filter_fetches_total", "outcome"),
    ("aptmesh_swarm_false_claims_total", ""),
    ("aptmesh_engine_verify_failures_total", ""),
];

/// Chance (SplitMix64), the same in each run.
struct Dice(u64);

impl Dice {
    /// From 0 to 1.
    fn throw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A waiting time for what comes by chance, in units of the mean.
    fn wait(&mut self) -> f64 {
        -(1.0 - self.throw()).ln()
    }
}

/// What one site does.
struct Life {
    /// When it is on, in seconds.
    on: Vec<(f64, f64)>,
    /// When it asks for which package.
    asks: Vec<(f64, usize)>,
    is_hidden: bool,
}

impl Life {
    fn is_on(&self, at: f64) -> bool {
        self.on.iter().any(|(from, to)| (*from..*to).contains(&at))
    }
}

/// All that happens.
struct Script {
    lives: Vec<Life>,
    /// Bytes of each package.
    sizes: Vec<usize>,
}

/// Where a package could be had when a site asked for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Had {
    Nowhere,
    /// By sites that are off, or can not be reached.
    OutOfReach,
    ByPeers,
}

impl Script {
    fn write() -> Self {
        let mut dice = Dice(SEED);
        let sizes = sizes(&mut dice);
        let mut up_to = 0.0;
        let shares: Vec<f64> = (1..=PACKAGES)
            .map(|rank| {
                up_to += 1.0 / rank as f64;
                up_to
            })
            .collect();
        let lives = (0..SITES).map(|number| life(&mut dice, &shares, is_hidden(number))).collect();
        Self { lives, sizes }
    }

    /// All requests in their order: when, by whom, what.
    fn asks(&self) -> Vec<(f64, usize, usize)> {
        let of = |(site, life): (usize, &Life)| {
            life.asks.iter().map(move |(at, package)| (*at, site, *package)).collect::<Vec<_>>()
        };
        let mut asks: Vec<_> = self.lives.iter().enumerate().flat_map(of).collect();
        asks.sort_by(|(one, ..), (other, ..)| one.total_cmp(other));
        asks
    }

    /// Where each package could be had when it was asked for, by site and package.
    fn had(&self) -> HashMap<(usize, usize), Had> {
        let mut holders: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut had = HashMap::new();
        for (at, site, package) in self.asks() {
            let holders = holders.entry(package).or_default();
            let gives = |holder: &&usize| {
                let life = &self.lives[**holder];
                !life.is_hidden && life.is_on(at)
            };
            let best = match holders.iter().find(gives) {
                Some(_) => Had::ByPeers,
                None if !holders.is_empty() => Had::OutOfReach,
                None => Had::Nowhere,
            };
            had.insert((site, package), best);
            holders.push(site);
        }
        had
    }

    /// What it is like, for comparison with what was measured then.
    fn describe(&self) -> String {
        let asks = self.asks();
        let mut times: BTreeMap<usize, usize> = BTreeMap::new();
        asks.iter().for_each(|(.., package)| *times.entry(*package).or_default() += 1);
        let top: usize = times.range(..PACKAGES / 100).map(|(_, times)| times).sum();
        let rare = PACKAGES - times.values().filter(|times| **times > 1).count();
        let seconds = self.lives.iter().flat_map(|life| &life.on).map(|(from, to)| to - from);
        let stops = self.lives.iter().flat_map(|life| &life.on).filter(|(_, to)| *to < RUN);
        format!(
            "{SITES} sites, {:.0} % of them out of reach, {:.1} on at a time, {} stops; {} requests for {} of {PACKAGES} packages, {:.0} MB: {:.0} % of them for the first 1 % of the packages, {:.0} % of the packages installed by one site or none",
            100.0 * HIDDEN as f64 / SITES as f64,
            seconds.sum::<f64>() / RUN,
            stops.count(),
            asks.len(),
            times.len(),
            asks.iter().map(|(.., package)| self.sizes[*package] as f64).sum::<f64>() / 1e6,
            100.0 * top as f64 / asks.len() as f64,
            100.0 * rare as f64 / PACKAGES as f64,
        )
    }
}

/// Every other one, and some more.
fn is_hidden(site: usize) -> bool {
    site * HIDDEN % SITES < HIDDEN
}

/// As in Debian, in no order.
fn sizes(dice: &mut Dice) -> Vec<usize> {
    (0..PACKAGES).map(|_| size_at(dice.throw()).min(LARGEST) as usize).collect()
}

/// `shares`: how many requests go to each package and those before it.
fn life(dice: &mut Dice, shares: &[f64], is_hidden: bool) -> Life {
    let mut life = Life { on: Vec::new(), asks: Vec::new(), is_hidden };
    let (mut at, mut is_on) = (0.0, dice.throw() < 0.5);
    while at < RUN {
        let end = (at + (STAY * dice.wait()).max(STAY_MIN)).min(RUN);
        if is_on {
            life.on.push((at, end));
        }
        (at, is_on) = (end, !is_on);
    }
    let all = shares.last().unwrap();
    for (from, to) in &life.on {
        let mut at = from + EVERY * dice.wait();
        while at < *to {
            let share = dice.throw() * all;
            let package = shares.partition_point(|up_to| *up_to < share);
            // What is installed is not installed again.
            if life.asks.iter().all(|(_, had)| *had != package) {
                life.asks.push((at, package));
            }
            at += EVERY * dice.wait();
        }
    }
    life
}

/// What is measured of one request.
struct Took {
    had: Had,
    bytes: usize,
    alone: Times,
    together: Times,
}

/// Milliseconds until the first byte and the last.
#[derive(Clone, Copy)]
struct Times(f64, f64);

/// What sites counted, by name and label.
type Counts = BTreeMap<String, u64>;

/// Both processes of a site, on one host.
struct Pair {
    alone: Site,
    together: Site,
    counts: Counts,
}

pub fn run() {
    let script = Script::write();
    println!("\n{}", script.describe());
    let lan = Lan::new();
    lan.make_room(SITES as u32);
    let archive = archive(&script);
    let mirrors = [(); 2].map(|()| Mirror::start_at(&lan.own_ip()));
    for (path, file) in archive.files() {
        mirrors.iter().for_each(|mirror| mirror.put(&format!("/debian/{path}"), file.clone()));
    }
    let key = swarm_key();
    let mut seed = Node::build(&key);
    seed.ip = lan.own_ip();
    let seed = seed
        .env("SWARM_ALLOW_PRIVATE", lan.network())
        .env("SWARM_ANNOUNCE", "false")
        .env("SWARM_ADVERTISE", "")
        .start();
    let hosts: Vec<Host> = (0..SITES).map(|_| lan.host()).collect();
    let mut pairs: Vec<Pair> = Vec::new();
    for (host, life) in hosts.iter().zip(&script.lives) {
        let build = |key: &str| Site::build_on(&lan, host, key);
        let alone = build("").start();
        let together = build(&key).bootstrap(&[seed.dht()]);
        let hide = |build: Build| build.hidden_at(&host.hide());
        let together = if life.is_hidden { hide(together) } else { together }.start();
        for (site, mirror) in [&alone, &together].into_iter().zip(&mirrors) {
            learn(site, mirror, &archive);
        }
        pairs.push(Pair { alone, together, counts: Counts::new() });
    }
    let cards = || seed.count("cards") as usize >= SITES;
    wait_until(PATIENCE, "all to have come", cards);
    for mirror in &mirrors {
        mirror.clear_log();
        mirror.limit(LINE);
    }
    let load = crate::conditions();
    let had = script.had();
    let begun = Instant::now();
    let played = thread::scope(|scope| {
        let all = pairs.into_iter().zip(&script.lives).enumerate().map(|(number, (pair, life))| {
            let (archive, mirrors, had, script) = (&archive, &mirrors, &had, &script);
            scope.spawn(move || {
                let had = |package| had[&(number, package)];
                play(pair, life, begun, |pair, package, is_first| {
                    let path = format!("/debian/{}", archive.deb_path(&name(package)));
                    let bytes = archive.deb(&name(package));
                    let alone = || fetch(&pair.alone, &mirrors[0], &path, bytes);
                    let together = || fetch(&pair.together, &mirrors[1], &path, bytes);
                    let (alone, together) = in_turn(is_first, alone, together);
                    let bytes = script.sizes[package];
                    Ok(Took { had: had(package), bytes, alone: alone?, together: together? })
                })
            })
        });
        let all: Vec<_> = all.collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    println!("{load}; when it ended: {}", crate::conditions());
    let sent: Vec<f64> = mirrors
        .iter()
        .map(|mirror| mirror.log().iter().map(|seen| seen.body_bytes as f64).sum())
        .collect();
    tell(&script, &played, &sent);
}

/// What both come to, the one or the other before.
fn in_turn<T>(is_first: bool, one: impl Fn() -> T, other: impl Fn() -> T) -> (T, T) {
    if is_first {
        let one = one();
        return (one, other());
    }
    let other = other();
    (one(), other)
}

fn name(package: usize) -> String {
    format!("tool{package}")
}

/// What nobody asks for need not be there.
fn archive(script: &Script) -> LocalArchive {
    let mut asked: Vec<usize> = script.asks().iter().map(|(.., package)| *package).collect();
    asked.sort_unstable();
    asked.dedup();
    let add = |archive: LocalArchive, package: usize| {
        archive.package(&name(package), "1.0", script.sizes[package])
    };
    asked.into_iter().fold(LocalArchive::new("demo"), add)
}

fn learn(site: &Site, mirror: &Mirror, archive: &LocalArchive) {
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        let reply = get(site.addr(), &site.url_for(mirror, &format!("/debian/{path}")));
        assert_eq!(reply.status, 200, "{path}");
    }
    let learnt = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
    wait_until(PATIENCE, "the lists to be learnt", || site.count(learnt) >= 2);
}

/// A site's day: what its requests took, the errors, and what it counted.
fn play(
    mut pair: Pair,
    life: &Life,
    begun: Instant,
    mut ask: impl FnMut(&Pair, usize, bool) -> Result<Took, String>,
) -> (Vec<Result<Took, String>>, Counts) {
    let until = |at: f64| {
        let due = begun + Duration::from_secs_f64(at);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    };
    let mut took = Vec::new();
    if !life.is_on(0.0) {
        pair.stop();
    }
    for (from, to) in &life.on {
        if *from > 0.0 {
            until(*from);
            pair.alone.restart();
            pair.together.restart();
        }
        for (at, package) in life.asks.iter().filter(|(at, _)| (*from..*to).contains(at)) {
            until(*at);
            took.push(ask(&pair, *package, took.len() % 2 == 0));
        }
        until(*to);
        pair.stop();
    }
    (took, pair.counts)
}

impl Pair {
    /// As when the power is cut.
    fn stop(&mut self) {
        let reply = get(self.together.admin(), "/metrics");
        let text = String::from_utf8_lossy(&reply.body);
        for line in text.lines() {
            let Some((sample, value)) = line.rsplit_once(' ') else { continue };
            let is_counted = |(name, _): &(&str, &str)| sample.split('{').next() == Some(*name);
            if sample == FROM_PEERS || COUNTED.iter().any(is_counted) {
                let count = value.parse::<f64>().unwrap_or_default() as u64;
                *self.counts.entry(sample.to_owned()).or_default() += count;
            }
        }
        self.alone.kill9();
        self.together.kill9();
    }
}

fn fetch(site: &Site, mirror: &Mirror, path: &str, expected: &[u8]) -> Result<Times, String> {
    let mut connection = Connection::open(site.addr());
    let begun = Instant::now();
    let ms = || begun.elapsed().as_secs_f64() * 1e3;
    connection.send("GET", &site.url_for(mirror, path), &[]);
    let head = connection.read_head();
    let mut bytes = connection.read_body_some(1);
    let first = ms();
    bytes.extend(connection.read_body_some(expected.len()));
    let last = ms();
    if head.status != 200 || bytes != expected {
        return Err(format!("{path}: {} {}, {} bytes", head.status, head.reason, bytes.len()));
    }
    Ok(Times(first, last))
}

fn tell(script: &Script, played: &[(Vec<Result<Took, String>>, Counts)], sent: &[f64]) {
    let all: Vec<&Took> = played.iter().flat_map(|(took, _)| took).flatten().collect();
    let errors: Vec<&String> =
        played.iter().flat_map(|(took, _)| took).filter_map(|took| took.as_ref().err()).collect();
    let mut counts = Counts::new();
    for (sample, count) in played.iter().flat_map(|(_, counts)| counts) {
        *counts.entry(sample.clone()).or_default() += count;
    }
    let head =
        ["", "requests", "MB", "first byte ms, mirror only", "swarm", "last byte ms", "swarm"];
    let mut table = Table::new("Times to bytes, p50 / p99", &head);
    for (name, class) in [
        ("all", None),
        ("nobody has it", Some(Had::Nowhere)),
        ("who has it is out of reach", Some(Had::OutOfReach)),
        ("peers have it", Some(Had::ByPeers)),
    ] {
        let some: Vec<&&Took> =
            all.iter().filter(|took| class.is_none_or(|class| took.had == class)).collect();
        let both = |which: fn(&Took) -> f64| {
            let mut values: Vec<f64> = some.iter().map(|took| which(took)).collect();
            values.sort_by(f64::total_cmp);
            let part = |part| values.get((values.len() as f64 * part) as usize).unwrap_or(&0.0);
            format!("{:.1} / {:.1}", part(0.5), part(0.99))
        };
        table.row(&[
            name.to_owned(),
            some.len().to_string(),
            format!("{:.0}", megabytes(&some)),
            both(|took| took.alone.0),
            both(|took| took.together.0),
            both(|took| took.alone.1),
            both(|took| took.together.1),
        ]);
    }
    table.print();
    let wanted = megabytes(&all.iter().collect::<Vec<_>>());
    let share = |class: Had| {
        let some: Vec<&&Took> = all.iter().filter(|took| took.had >= class).collect();
        100.0 * megabytes(&some) / wanted
    };
    println!(
        "  from the mirror {:.1} MB of {wanted:.1} ({:.1} MB without the swarm): {:.1} % from peers, who sent {:.1} MB",
        sent[1] / 1e6,
        sent[0] / 1e6,
        100.0 * (1.0 - sent[1] / 1e6 / wanted),
        counts.get(FROM_PEERS).copied().unwrap_or_default() as f64 / 1e6
    );
    println!(
        "  some site had had {:.1} % of the bytes before, one that is on and in reach {:.1} %",
        share(Had::OutOfReach),
        share(Had::ByPeers)
    );
    for (name, label) in COUNTED {
        let mut line = format!("  {name}:");
        for (sample, count) in &counts {
            if sample.split('{').next() == Some(name) {
                let which = sample.split(&format!("{label}=\"")).nth(1).unwrap_or_default();
                let which = which.split('"').next().unwrap_or_default();
                let _ = write!(line, " {which} {count}");
            }
        }
        println!("{line}");
    }
    println!("  errors: {}, of {} requests", errors.len(), script.asks().len());
    errors.iter().take(10).for_each(|error| println!("    {error}"));
}

fn megabytes(some: &[&&Took]) -> f64 {
    some.iter().map(|took| took.bytes as f64).sum::<f64>() / 1e6
}
