//! Sites that fetch from each other: twenty that install the same packages within a minute from a mirror on
//! a slow line, beside twenty that have only the mirror. Each site is a process on a network of its own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::kit::lan::{Host, Lan};
use crate::kit::node::swarm_key;
use crate::kit::site::Site;
use crate::kit::{Connection, LocalArchive, Mirror, get, wait_until};
use crate::table::Table;

const SITES: usize = 20;
/// What all of them install, in bytes.
const BYTES: u64 = 200_000_000;
const PACKAGES: usize = 105;
/// The mirror's line, in bytes per second.
const LINE: u64 = 10_000_000;
/// Within which time all sites begin.
const WITHIN: Duration = Duration::from_secs(60);
/// Requests of apt on their way at a time.
const DEPTH: usize = 10;
const PATIENCE: Duration = Duration::from_mins(2);
const FROM_PEERS: &str = "aptmesh_swarm_received_bytes_total{from=\"peer\"}";

/// Sizes in Debian 12, amd64: (share of the packages that are smaller, bytes).
const SIZES: [(f64, f64); 9] = [
    (0.0, 1e3),
    (0.05, 5e3),
    (0.518, 65e3),
    (0.812, 524e3),
    (0.874, 1.05e6),
    (0.969, 8.4e6),
    (0.985, 16.8e6),
    (0.996, 67e6),
    (1.0, 200e6),
];

pub fn run() {
    let archive = archive();
    let together = install(&archive, true);
    println!(
        "  swarm: {:.1} MB from the mirror in {:.1?}",
        together.by_mirror / 1e6,
        together.wall
    );
    let alone = install(&archive, false);
    let title = format!(
        "{SITES} sites install the same {:.0} MB in {PACKAGES} packages within {WITHIN:?}, the mirror \
         sends {} MB/s",
        alone.wanted / SITES as f64 / 1e6,
        LINE / 1_000_000
    );
    let head =
        ["", "wall s", "from the mirror MB", "copies", "from peers", "first byte ms p50 / p99"];
    let mut table = Table::new(&title, &head);
    for (name, run) in [("mirror only", &alone), ("swarm", &together)] {
        table.row(&[
            name.to_owned(),
            format!("{:.1}", run.wall.as_secs_f64()),
            format!("{:.1}", run.by_mirror / 1e6),
            format!("{:.2}", run.by_mirror / (run.wanted / SITES as f64)),
            format!("{:.1} %", 100.0 * (1.0 - run.by_mirror / run.wanted)),
            format!("{:.0} / {:.0}", run.first_byte(0.5), run.first_byte(0.99)),
        ]);
    }
    table.print();
    println!(
        "  wall {:.2} of mirror-only; peers gave {:.1} MB",
        together.wall.as_secs_f64() / alone.wall.as_secs_f64(),
        together.by_peers / 1e6
    );
}

/// Bytes of a package than which this share of all packages is smaller.
pub fn size_at(share: f64) -> f64 {
    let above = SIZES.iter().position(|(up_to, _)| *up_to >= share).unwrap().max(1);
    let ((from, small), (to, large)) = (SIZES[above - 1], SIZES[above]);
    small * (large / small).powf((share - from) / (to - from))
}

/// Packages of such sizes, scaled so that they are so many bytes together.
fn archive() -> LocalArchive {
    let size = |number: usize| size_at((number as f64 + 0.5) / PACKAGES as f64);
    let sizes: Vec<f64> = (0..PACKAGES).map(size).collect();
    let scale = BYTES as f64 / sizes.iter().sum::<f64>();
    // Not in the order of their sizes.
    let order = (0..PACKAGES).map(|number| number * 37 % PACKAGES);
    order.fold(LocalArchive::new("demo"), |archive, number| {
        archive.package(&format!("tool{number}"), "1.0", (sizes[number] * scale) as usize)
    })
}

struct Run {
    wall: Duration,
    wanted: f64,
    by_mirror: f64,
    by_peers: f64,
    first_bytes: Vec<f64>,
}

impl Run {
    /// Milliseconds until the first byte of a package, which all requests before it had to come before.
    fn first_byte(&self, part: f64) -> f64 {
        self.first_bytes[(self.first_bytes.len() as f64 * part) as usize]
    }
}

fn install(archive: &LocalArchive, in_a_swarm: bool) -> Run {
    let lan = Lan::new();
    let mirror = Mirror::start_at(&lan.own_ip());
    archive.publish(&mirror, "/debian");
    let hosts: Vec<Host> = (0..SITES).map(|_| lan.host()).collect();
    let key = swarm_key();
    let mut sites: Vec<Site> = Vec::new();
    for host in &hosts {
        let key = if in_a_swarm { &key } else { "" };
        let seeds: Vec<&Site> = sites.iter().take(2).collect();
        sites.push(Site::build_on(&lan, host, key).seeds(&seeds).start());
    }
    for site in &sites {
        learn(site, &mirror, archive);
    }
    if in_a_swarm {
        let filters = |site: &Site| site.count("aptmesh_swarm_filters") as usize >= SITES - 1;
        wait_until(PATIENCE, "all to know all", || sites.iter().all(filters));
    }
    let names: Vec<String> = (0..PACKAGES).map(|number| format!("tool{number}")).collect();
    let wanted: u64 = names.iter().map(|name| archive.deb(name).len() as u64).sum();
    let sent = || -> u64 { mirror.log().iter().map(|seen| seen.body_bytes).sum() };
    let before = sent();
    mirror.limit(LINE);
    let begun = Instant::now();
    let mut first_bytes: Vec<f64> = thread::scope(|scope| {
        let clients = sites.iter().enumerate().map(|(number, site)| {
            let targets: Vec<(String, usize)> = names
                .iter()
                .map(|name| {
                    let path = format!("/debian/{}", archive.deb_path(name));
                    (site.url_for(&mirror, &path), archive.deb(name).len())
                })
                .collect();
            let address = site.addr();
            scope.spawn(move || {
                thread::sleep(WITHIN * u32::try_from(number).unwrap() / SITES as u32);
                fetch(address, &targets)
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let wall = begun.elapsed();
    first_bytes.sort_by(f64::total_cmp);
    thread::sleep(Duration::from_secs(1));
    Run {
        wall,
        wanted: (wanted * SITES as u64) as f64,
        by_mirror: (sent() - before) as f64,
        by_peers: sites.iter().map(|site| site.count(FROM_PEERS)).sum::<u64>() as f64,
        first_bytes,
    }
}

fn learn(site: &Site, mirror: &Mirror, archive: &LocalArchive) {
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        let reply = get(site.addr(), &site.url_for(mirror, &format!("/debian/{path}")));
        assert_eq!(reply.status, 200, "{path}");
    }
    let learnt = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
    wait_until(PATIENCE, "the lists to be learnt", || site.count(learnt) >= 2);
}

/// All of them over one connection, as apt does; how long each first byte took, in milliseconds.
fn fetch(address: SocketAddr, targets: &[(String, usize)]) -> Vec<f64> {
    let mut connection = Connection::open(address);
    connection.set_read_timeout(Duration::from_mins(15));
    let (mut asked, mut first_bytes) = (VecDeque::new(), Vec::new());
    let mut waiting = targets.iter();
    let mut free_at = Instant::now();
    loop {
        while asked.len() < DEPTH
            && let Some((target, size)) = waiting.next()
        {
            connection.send("GET", target, &[]);
            asked.push_back((Instant::now(), *size));
        }
        let Some((at, size)) = asked.pop_front() else { return first_bytes };
        let head = connection.read_head();
        assert_eq!(head.status, 200, "{}", head.reason);
        connection.read_body_some(1);
        // Its turn came when the one before it had ended.
        first_bytes.push(at.max(free_at).elapsed().as_secs_f64() * 1e3);
        let mut left = size - 1;
        while left > 0 {
            left -= connection.read_body_some(left.min(1 << 20)).len();
        }
        free_at = Instant::now();
    }
}
