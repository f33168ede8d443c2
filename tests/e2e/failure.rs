//! Parts of the swarm fail: half of the sites, the network between them, or the way to all of them, a site
//! amidst a file, the own node. What is left serves, and apt never fails.

use crate::kit::lan::{Host, Lan};
use crate::kit::node::Api;
use crate::kit::*;
use crate::swarm::{FROM_PEERS, MORSELS, PATIENCE, Swarm, TO_PEERS};
use std::thread;
use std::time::{Duration, Instant};

const MB: usize = 1024 * 1024;
const BENCHED: &str = "aptmesh_swarm_benched_peers";
const AWAY: &str = "aptmesh_swarm_sidecar_away";
/// Longer than it takes to hear of a new filter and to fetch it.
const AT_REST: Duration = Duration::from_secs(12);
/// Far more than what apt may wait for a file on top of what the mirror takes.
const NOT_LONG: Duration = Duration::from_secs(30);

/// What the mirror gives from then on, in bytes per second: less than sites do, however busy the machine is.
const SLOW: u64 = 1_500_000;

/// An apt whose archive is the swarm's, by way of that site.
pub struct Client<'a> {
    swarm: &'a Swarm,
    apt: Apt,
}

impl<'a> Client<'a> {
    pub fn of(swarm: &'a Swarm, proxy: &Proxy) -> Self {
        let apt = Apt::new(None);
        let url = format!("http://{}/{}/debian", proxy.addr(), swarm.mirror.host());
        apt.sources(&swarm.archive.source_line(&url));
        let update = apt.update();
        assert!(update.ok, "{}", update.output);
        Self { swarm, apt }
    }

    /// Gets these packages, before long; bytes that the mirror gave of them.
    pub fn gets(&self, names: &[&str]) -> u64 {
        let before = self.by_mirror(names);
        let run = self.apt.download(names);
        assert!(run.ok, "{}", run.output);
        assert!(run.took < NOT_LONG, "apt took {:?}", run.took);
        self.by_mirror(names) - before
    }

    /// Gets these packages, which nobody but the mirror has.
    pub fn gets_of_mirror(&self, names: &[&str]) {
        let (by_mirror, size) = (self.gets(names), size_of(self.swarm, names));
        let once = size..=size + size / 10 + MORSELS;
        assert!(once.contains(&by_mirror), "the mirror gave {by_mirror} of {size}: {names:?}");
    }

    /// Gets these packages, which other sites have.
    fn gets_of_peers(&self, names: &[&str]) {
        let (by_mirror, size) = (self.gets(names), size_of(self.swarm, names));
        assert!(by_mirror <= size / 2, "the mirror gave {by_mirror} of {size}: {names:?}");
    }

    fn by_mirror(&self, names: &[&str]) -> u64 {
        names.iter().map(|name| self.swarm.by_mirror(name)).sum()
    }
}

fn size_of(swarm: &Swarm, names: &[&str]) -> u64 {
    names.iter().map(|name| swarm.size(name)).sum()
}

/// Until a node knows so many sites, and has heard of no new filter of theirs for a while.
fn wait_at_rest(node: &Api, sites: usize) {
    let generations = || {
        let peers = node.get("/peers")["peers"].clone();
        let peers = peers.as_array().expect("a list").iter();
        peers.map(|peer| peer["filter"].as_u64().unwrap()).collect::<Vec<u64>>()
    };
    let (mut told, mut since) = (generations(), Instant::now());
    wait_until(2 * PATIENCE, "filters that stay as they are", || {
        let now = generations();
        if now != told || now.len() < sites || now.contains(&0) {
            (told, since) = (now, Instant::now());
        }
        since.elapsed() >= AT_REST
    });
}

#[test]
fn half_of_the_sites_are_gone_at_once() {
    let kept = ["kept0", "kept1", "kept2", "kept3", "kept4"];
    let lost = ["lost0", "lost1", "lost2", "lost3", "lost4"];
    let sizes = [60_000, 200_000, 700_000, 2 * MB, 3 * MB];
    let packages: Vec<(&str, usize)> =
        kept.into_iter().zip(sizes).chain(lost.into_iter().zip(sizes)).collect();
    let swarm = Swarm::of(&packages);
    // What the dead had alone, and what one of the others has, too.
    let mut dead = vec![swarm.stocked(&[], &[kept[0], lost[0]])];
    for number in 1..5 {
        dead.push(swarm.stocked(&[&dead[0]], &[kept[number], lost[number]]));
    }
    let mut left: Vec<Site> = kept[..4].iter().map(|_| swarm.site(&[&dead[0]])).collect();
    for (number, name) in kept.iter().enumerate() {
        swarm.fetch(&left[number % 4], name);
    }
    left.push(swarm.site(&[&dead[0]]));
    let last = &left[4];
    wait_at_rest(last.node(), 9);
    swarm.wait_found(last, kept[4], &[&dead[4], &left[0]]);
    let client = Client::of(&swarm, last);

    swarm.mirror.limit(SLOW);
    dead.iter().for_each(|site| site.kill9());
    let by_mirror = client.gets(&[&kept[..], &lost[..]].concat());
    last.wait_landed();
    let (of_peers, of_mirror) = (size_of(&swarm, &kept), size_of(&swarm, &lost));
    let most = of_mirror + of_peers / 2;
    assert!(by_mirror <= most, "the mirror gave {by_mirror}, more than {most}");
    let received = last.count(FROM_PEERS);
    assert!(received >= of_peers / 2, "{received} bytes of {of_peers} from peers");
    last.check_blobs();
    // All that are left share on.
    let other = Client::of(&swarm, &left[1]);
    wait_at_rest(left[1].node(), 4);
    other.gets_of_peers(&lost);
}

/// Sites on machines of a network of their own, with one archive.
struct Machines {
    // Before the network that they are on.
    sites: Vec<Site>,
    hosts: Vec<Host>,
    swarm: Swarm,
    _lan: Lan,
}

impl Machines {
    fn start(count: usize, packages: &[(&str, usize)]) -> Self {
        let lan = Lan::new();
        let swarm = Swarm::at(&lan.own_ip(), packages);
        let hosts: Vec<Host> = (0..count).map(|_| lan.host()).collect();
        let mut sites: Vec<Site> = Vec::new();
        for host in &hosts {
            let seeds: Vec<&Site> = sites.iter().take(1).collect();
            let site = Site::build_on(&lan, host, &swarm.key).seeds(&seeds).start();
            swarm.learn(&site);
            sites.push(site);
        }
        Self { sites, hosts, swarm, _lan: lan }
    }

    /// Nothing passes between the first half and the second.
    fn part(&self) {
        self.each_pair(Host::lose);
    }

    fn heal(&self) {
        self.each_pair(Host::find);
    }

    fn each_pair(&self, change: impl Fn(&Host, &Host)) {
        let (here, there) = self.hosts.split_at(self.hosts.len() / 2);
        for one in here {
            for other in there {
                change(one, other);
                change(other, one);
            }
        }
    }
}

#[test]
fn parts_serve_while_they_are_cut_apart_and_share_again_when_they_are_not() {
    let names = ["first", "here", "there", "later"];
    let machines = Machines::start(4, &names.map(|name| (name, 2 * MB)));
    let (swarm, sites) = (&machines.swarm, &machines.sites);
    swarm.fetch(&sites[0], "first");
    swarm.wait_found(&sites[3], "first", &[&sites[0]]);

    swarm.mirror.limit(SLOW);
    machines.part();
    wait_until(2 * PATIENCE, "the loss to be noticed", || {
        sites.iter().all(|site| site.node().count("connected") == 1)
    });
    let clients: Vec<Client> = sites.iter().map(|site| Client::of(swarm, site)).collect();
    // Each half fetches what nobody of it has from the mirror, and shares it.
    for (number, name) in [(0, "here"), (2, "there")] {
        clients[number].gets_of_mirror(&[name]);
        swarm.wait_found(&sites[number + 1], name, &[&sites[number]]);
        clients[number + 1].gets_of_peers(&[name]);
    }
    // Who has it is out of reach.
    clients[3].gets_of_mirror(&["first"]);
    for (site, name) in [(&sites[1], "there"), (&sites[3], "here")] {
        assert_eq!(site.node().look_up(&swarm.blob(name)), [""; 0], "it was told across the cut");
    }

    machines.heal();
    for site in sites {
        wait_until(2 * PATIENCE, "all to know each other again", || {
            site.node().count("table") == 3 && site.node().peers().len() == 3
        });
    }
    swarm.wait_found(&sites[1], "there", &[&sites[2], &sites[3]]);
    swarm.wait_found(&sites[3], "here", &[&sites[0], &sites[1]]);
    for (number, name) in [(1, "there"), (3, "here")] {
        wait_until(2 * PATIENCE, "nobody to be benched", || sites[number].count(BENCHED) == 0);
        clients[number].gets_of_peers(&[name]);
    }
}

#[test]
fn apt_is_served_by_the_mirror_when_the_way_to_all_peers_is_dead() {
    let large: Vec<String> = (0..10).map(|number| format!("large{number}")).collect();
    let small: Vec<String> = (0..20).map(|number| format!("small{number}")).collect();
    let large: Vec<&str> = large.iter().map(String::as_str).collect();
    let small: Vec<&str> = small.iter().map(String::as_str).collect();
    let mut packages: Vec<(&str, usize)> = small.iter().map(|name| (*name, 50_000)).collect();
    packages.extend(large.iter().map(|name| (*name, 2 * MB)));
    let machines = Machines::start(3, &packages);
    let (swarm, sites) = (&machines.swarm, &machines.sites);
    for name in small.iter().chain(&large) {
        swarm.fetch(&sites[1], name);
        swarm.fetch(&sites[2], name);
    }
    wait_at_rest(sites[0].node(), 2);
    swarm.wait_found(&sites[0], large[9], &[&sites[1], &sites[2]]);
    let client = Client::of(swarm, &sites[0]);

    machines.hosts[1..].iter().for_each(Host::cut);
    client.gets_of_mirror(&[&small[..], &large[..1]].concat());
    let are_benched = large[1..].iter().any(|name| {
        client.gets_of_mirror(&[name]);
        sites[0].count(BENCHED) == 2
    });
    assert!(are_benched, "they are asked for each file");
    assert_eq!(sites[0].count(FROM_PEERS), 0);
}

/// With a node in another process, and another site that gives.
struct Apart {
    swarm: Swarm,
    giver: Site,
    node: Node,
    proxy: Proxy,
}

impl Apart {
    fn start(packages: &[(&str, usize)]) -> Self {
        let swarm = Swarm::of(packages);
        let names: Vec<&str> = packages.iter().map(|(name, _)| *name).collect();
        let giver = swarm.site_with(&[], &[("SWARM_UPLOAD_LIMIT", "2MB/s")]);
        for name in names {
            swarm.fetch(&giver, name);
        }
        let seed = giver.dht().to_string();
        let node = Node::build(&swarm.key).env("SWARM_BOOTSTRAP", seed).start();
        let proxy = Proxy::build().beside(&swarm.key, format!("http://{}", node.api())).start();
        swarm.learn(&proxy);
        node.wait_connected(1);
        wait_at_rest(&node, 1);
        Self { swarm, giver, node, proxy }
    }

    /// What only the giver has is fetched, while something happens to the node.
    fn fetches_while(&mut self, name: &str, happens: impl FnOnce(&mut Node)) {
        let Self { swarm, giver, node, proxy } = self;
        swarm.mirror.remove(&swarm.path(name));
        let before = giver.count(TO_PEERS);
        thread::scope(|scope| {
            let fetching = scope.spawn(|| swarm.fetch(proxy, name));
            wait_until(PATIENCE, "a beginning", || giver.count(TO_PEERS) - before > 256 * 1024);
            assert!(!fetching.is_finished(), "{name}: it is too fast for this test");
            happens(node);
            fetching.join().expect("a file");
        });
    }

    fn wait_away(&self, away: u64) {
        wait_until(PATIENCE, "that it is noticed", || self.proxy.count(AWAY) == away);
    }
}

#[test]
fn downloads_from_peers_go_on_whatever_happens_to_the_own_node() {
    let size = 6 * MB;
    let names = ["killed", "away", "back", "stopped", "hung", "last"];
    let mut apart = Apart::start(&names.map(|name| (name, size)));
    apart.fetches_while("killed", Node::kill9);
    apart.wait_away(1);
    // Its filter still says who has it.
    apart.fetches_while("away", Node::restart);
    apart.wait_away(0);
    apart.fetches_while("back", |node| node.signal("STOP"));
    apart.wait_away(1);
    apart.fetches_while("stopped", |_| {});
    apart.fetches_while("hung", |node| node.signal("CONT"));
    apart.wait_away(0);
    apart.fetches_while("last", |_| {});
    let received = apart.proxy.count(FROM_PEERS);
    assert!(received <= 6 * (size + MB) as u64, "{received} bytes, of 6 files of {size}");
}

#[test]
fn another_peer_goes_on_where_one_was_killed() {
    let swarm = Swarm::of(&[("large", 32 * MB)]);
    let slow = [("SWARM_UPLOAD_LIMIT", "4MB/s")];
    let one = swarm.site_with(&[], &slow);
    let other = swarm.site_with(&[&one], &slow);
    for site in [&one, &other] {
        swarm.fetch(site, "large");
    }
    let last = swarm.site(&[&one, &other]);
    swarm.wait_found(&last, "large", &[&one, &other]);
    wait_at_rest(last.node(), 2);
    // Nobody else can bring what is missing then.
    swarm.mirror.remove(&swarm.path("large"));
    let size = swarm.size("large");
    let given = one.count(TO_PEERS);
    thread::scope(|scope| {
        let fetching = scope.spawn(|| swarm.fetch(&last, "large"));
        wait_until(PATIENCE, "much of it", || one.count(TO_PEERS) - given > 4 * MB as u64);
        let brought = last.count(FROM_PEERS);
        assert!(brought < size * 3 / 4, "{brought} bytes: it is too fast for this test");
        one.kill9();
        fetching.join().expect("a file");
    });
    let received = last.count(FROM_PEERS);
    assert!((size..size + 2 * MB as u64).contains(&received), "{received} bytes came, of {size}");
    last.check_blobs();
}
