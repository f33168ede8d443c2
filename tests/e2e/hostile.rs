//! Peers that lie, break off or dawdle: no wrong byte reaches a client, who did it is left alone, who did
//! not is not, and the file comes all the same.

use crate::failure::Client;
use crate::kit::node::Node;
use crate::kit::site::Site;
use crate::kit::*;
use crate::swarm::{FROM_PEERS, PATIENCE, Swarm, TO_PEERS};
use serde_json::json;
use std::time::Duration;

const MB: usize = 1024 * 1024;
const WRONG: &str = "aptmesh_engine_verify_failures_total{source=\"peer\"}";
const FALSE_CLAIMS: &str = "aptmesh_swarm_false_claims_total";

/// A site of the swarm in name only: its node is real, and what gives its blobs can be told to lie.
pub struct Liar {
    _node: Node,
    door: Mirror,
}

impl Liar {
    /// Says that it has these packages, and gives `file` for each.
    pub fn of(swarm: &Swarm, seed: &Site, names: &[&str], file: impl Fn(&[u8]) -> File) -> Self {
        let node = Node::build(&swarm.key);
        let door = Mirror::start_at(&node.ip);
        let node = node
            .env("SWARM_ADVERTISE", format!("http://{}", door.addr()))
            .env("SWARM_BOOTSTRAP", seed.dht().to_string())
            .start();
        for name in names {
            let blob = swarm.blob(name);
            door.put(&format!("/blob/sha256/{blob}"), file(swarm.archive.deb(name)));
            node.announce(&[blob]);
        }
        Self { _node: node, door }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.door.addr())
    }

    /// Until others are told by a look-up that it has the package.
    pub fn wait_found(&self, swarm: &Swarm, at: &Site, name: &str) {
        wait_until(PATIENCE, "the liar is found", || {
            at.node().look_up(&swarm.blob(name)).contains(&self.url())
        });
    }

    fn asked(&self, swarm: &Swarm, name: &str) -> usize {
        self.door.requests(&format!("/blob/sha256/{}", swarm.blob(name))).len()
    }
}

fn right(bytes: &[u8]) -> File {
    File::new(bytes.to_vec())
}

/// With one bit of its middle wrong.
pub fn wrong(bytes: &[u8]) -> File {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    File::new(bytes)
}

#[test]
fn wrong_bytes_of_one_peer_reach_nobody_and_it_is_not_asked_again() {
    let swarm = Swarm::of(&[("tool", 3 * MB), ("next", 2 * MB)]);
    let site = swarm.site(&[]);
    let liar = Liar::of(&swarm, &site, &["tool", "next"], wrong);
    for name in ["tool", "next"] {
        liar.wait_found(&swarm, &site, name);
    }
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));
    swarm.fetch(&site, "tool");
    assert!(liar.asked(&swarm, "tool") > 0);
    assert_eq!(site.count(WRONG), 1);
    swarm.fetch(&site, "next");
    assert_eq!(liar.asked(&swarm, "next"), 0, "it is asked again");
    site.check_blobs();
}

#[test]
fn the_liar_among_honest_peers_is_found_and_they_are_not_blamed() {
    let swarm = Swarm::of(&[("large", 24 * MB), ("next", 8 * MB)]);
    let one = swarm.stocked(&[], &["large", "next"]);
    let site = swarm.site(&[&one]);
    let liar = Liar::of(&swarm, &site, &["large"], |bytes| {
        File::new(bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>())
    });
    liar.wait_found(&swarm, &site, "large");
    swarm.wait_found(&site, "next", &[&one]);
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));
    swarm.fetch(&site, "large");
    assert!(liar.asked(&swarm, "large") > 0);
    assert_eq!(site.count(WRONG), 1);
    // The honest one is asked as before.
    let before = one.count(TO_PEERS);
    swarm.fetch(&site, "next");
    assert!(one.count(TO_PEERS) - before > swarm.size("next") / 2);
    site.check_blobs();
}

#[test]
fn honest_peers_bring_it_without_the_mirror_though_one_lies() {
    let swarm = Swarm::of(&[("large", 12 * MB)]);
    let one = swarm.stocked(&[], &["large"]);
    let site = swarm.site(&[&one]);
    let liar = Liar::of(&swarm, &site, &["large"], |bytes| {
        File::new(bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>())
    });
    liar.wait_found(&swarm, &site, "large");
    wait_until(PATIENCE, "both are found", || site.node().look_up(&swarm.blob("large")).len() == 2);
    swarm.mirror.remove(&swarm.path("large"));
    swarm.fetch(&site, "large");
    assert!(site.count(FROM_PEERS) >= swarm.size("large"));
    site.check_blobs();
}

#[test]
fn what_peers_break_off_or_never_end_comes_from_elsewhere() {
    let swarm =
        Swarm::of(&[("cut", 3 * MB), ("short", 3 * MB), ("endless", 3 * MB), ("mute", 3 * MB)]);
    let site = swarm.site(&[]);
    let path = |name: &str| format!("/blob/sha256/{}", swarm.blob(name));
    let liars = [
        Liar::of(&swarm, &site, &["cut"], right),
        Liar::of(&swarm, &site, &["short"], |bytes| right(&bytes[..bytes.len() / 2])),
        Liar::of(&swarm, &site, &["endless"], |bytes| {
            File::new([bytes, &noise(7, 8 * MB)].concat()).ignore_range()
        }),
        Liar::of(&swarm, &site, &["mute"], right),
    ];
    liars[0].door.script(&path("cut"), vec![Fault::Cut { after: 300_000 }; 20]);
    let stall = Fault::Stall { after: 1000, for_: Duration::from_secs(20) };
    liars[3].door.script(&path("mute"), vec![stall; 20]);
    for (liar, name) in liars.iter().zip(["cut", "short", "endless", "mute"]) {
        liar.wait_found(&swarm, &site, name);
        swarm.fetch(&site, name);
        assert!(liar.asked(&swarm, name) > 0, "{name}");
    }
    site.check_blobs();
    assert_eq!(site.count(WRONG), 0, "these gave too little, not something else");
}

#[test]
fn a_peer_that_dawdles_holds_nobody_up() {
    let swarm = Swarm::of(&[("tool", 6 * MB)]);
    let one = swarm.stocked(&[], &["tool"]);
    let site = swarm.site(&[&one]);
    let dawdler = Liar::of(&swarm, &site, &["tool"], |bytes| right(bytes).rate(60_000));
    dawdler.wait_found(&swarm, &site, "tool");
    let begun = std::time::Instant::now();
    swarm.fetch(&site, "tool");
    // By itself it would have taken a hundred seconds, and half a minute for a third of it.
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    assert!(dawdler.asked(&swarm, "tool") > 0);
}

#[test]
fn who_claims_what_it_does_not_have_costs_nothing_but_a_question() {
    let swarm = Swarm::of(&[("tool", 2 * MB)]);
    let site = swarm.site(&[]);
    let liars: Vec<Liar> = (0..6).map(|_| Liar::of(&swarm, &site, &["tool"], right)).collect();
    for liar in &liars {
        liar.door.remove(&format!("/blob/sha256/{}", swarm.blob("tool")));
        liar.wait_found(&swarm, &site, "tool");
    }
    swarm.fetch(&site, "tool");
    assert!(liars.iter().any(|liar| liar.asked(&swarm, "tool") > 0));
    assert_eq!(swarm.by_mirror("tool"), swarm.size("tool"));
    assert_eq!(site.count(FALSE_CLAIMS), 0, "no filter said so");
}

#[test]
fn a_peer_that_is_busy_is_asked_later_and_not_blamed() {
    let swarm = Swarm::of(&[("tool", 2 * MB), ("next", 2 * MB)]);
    let site = swarm.site(&[]);
    let busy = Liar::of(&swarm, &site, &["tool", "next"], right);
    let path = format!("/blob/sha256/{}", swarm.blob("tool"));
    busy.door.script(&path, vec![Fault::Status(503); 30]);
    for name in ["tool", "next"] {
        busy.wait_found(&swarm, &site, name);
    }
    swarm.fetch(&site, "tool");
    assert_eq!(swarm.by_mirror("tool"), swarm.size("tool"));
    std::thread::sleep(Duration::from_secs(2));
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));
    let before = site.count(FROM_PEERS);
    swarm.fetch(&site, "next");
    assert!(site.count(FROM_PEERS) > before, "it is not asked any more");
    assert_eq!(site.count("aptmesh_swarm_benched_peers"), 0);
}

/// A peer's redirects lead nowhere, whatever they lead to.
#[test]
fn a_peer_can_not_send_us_elsewhere() {
    let swarm = Swarm::of(&[("tool", 2 * MB)]);
    let site = swarm.site(&[]);
    let victim = Mirror::start();
    victim.put("/x", File::new(swarm.archive.deb("tool")));
    let liar = Liar::of(&swarm, &site, &["tool"], right);
    let path = format!("/blob/sha256/{}", swarm.blob("tool"));
    let away = Fault::Redirect(format!("http://{}/x", victim.addr()));
    liar.door.script(&path, vec![away; 20]);
    liar.wait_found(&swarm, &site, "tool");
    swarm.fetch(&site, "tool");
    assert!(liar.asked(&swarm, "tool") > 0);
    assert_eq!(victim.log().len(), 0);
}

/// Names of so many packages.
fn tools(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("tool{number}")).collect()
}

#[test]
fn who_never_answers_is_not_asked_for_each_file() {
    let names = tools(20);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let packages: Vec<(&str, usize)> = names.iter().map(|name| (*name, 3 * MB / 2)).collect();
    let swarm = Swarm::of(&packages);
    let site = swarm.site(&[]);
    let mute: Vec<Liar> = (0..3).map(|_| Liar::of(&swarm, &site, &names, right)).collect();
    for liar in &mute {
        for name in &names {
            let path = format!("/blob/sha256/{}", swarm.blob(name));
            liar.door.script(&path, vec![Fault::StallHead(Duration::from_mins(2)); 9]);
        }
        liar.wait_found(&swarm, &site, names[0]);
        liar.wait_found(&swarm, &site, names[19]);
    }
    let client = Client::of(&swarm, &site);
    for name in &names {
        client.gets_of_mirror(&[name]);
    }
    let asked = |name: &&str| mute.iter().map(|liar| liar.asked(&swarm, name)).sum::<usize>();
    assert!(asked(&names[0]) > 0);
    // Two at a time would be forty.
    let in_all: usize = names.iter().map(asked).sum();
    assert!(in_all <= 24, "asked {in_all} times");
}

/// Nodes that claim everything, and whose addresses are a hole.
#[test]
fn a_crowd_that_claims_everything_and_is_nowhere_costs_little() {
    let names = tools(30);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let packages: Vec<(&str, usize)> = names.iter().map(|name| (*name, 3 * MB / 2)).collect();
    let swarm = Swarm::of(&packages);
    let site = swarm.site(&[]);
    let hole = Abyss::open();
    let mut claims: Vec<String> = names.iter().map(|name| swarm.blob(name)).collect();
    claims.extend((0..2_000).map(|number| sha256_hex(format!("claim {number}").as_bytes())));
    let crowd: Vec<Node> = (0..8)
        .map(|_| {
            let node = Node::build(&swarm.key)
                .env("SWARM_ADVERTISE", format!("http://{}", hole.addr()))
                .env("SWARM_BOOTSTRAP", site.dht().to_string())
                .start();
            node.announce(&claims);
            node
        })
        .collect();
    wait_until(PATIENCE, "many to claim all", || {
        let found = |blob: &String| site.node().look_up(blob).len() >= crowd.len() / 2;
        claims[..names.len()].iter().all(found)
    });
    Client::of(&swarm, &site).gets_of_mirror(&names);
    assert!(site.peak_resident_bytes() < 250_000_000, "{} bytes", site.peak_resident_bytes());
    site.check_blobs();
}

/// More than a node would tell of: this one is in the hands of somebody else.
#[test]
fn of_a_thousand_false_providers_few_are_asked() {
    let swarm = Swarm::of(&[("tool", 2 * MB), ("next", 2 * MB)]);
    // What has nothing answers fastest, and so is asked most.
    let (node, nothing) = (Mirror::start(), Mirror::start());
    let url = format!("http://{}", nothing.addr());
    let provider = |number| json!({ "node": format!("n{number}"), "urls": [url], "filter": 0 });
    let crowd: Vec<_> = (0..1_000).map(provider).collect();
    let told = json!({ "node": "own", "peers": crowd }).to_string();
    for blob in ["tool", "next"].map(|name| swarm.blob(name)) {
        node.put(&format!("/lookup/{blob}"), File::new(told.as_bytes()));
    }
    node.put("/peers", File::new(told.as_bytes()));
    let proxy = Proxy::build().beside(&swarm.key, format!("http://{}", node.addr())).start();
    swarm.learn(&proxy);
    let client = Client::of(&swarm, &proxy);
    // Nobody is so busy that the mirror has given all before anybody is asked.
    swarm.mirror.limit(1_000_000);
    for name in ["tool", "next"] {
        client.gets_of_mirror(&[name]);
        let asked = nothing.requests(&format!("/blob/sha256/{}", swarm.blob(name))).len();
        assert!((1..=64).contains(&asked), "{name}: {asked} were asked");
    }
    assert!(proxy.peak_resident_bytes() < 200_000_000);
}

/// apt gives up after half a minute of silence.
#[test]
fn a_client_hears_the_mirror_while_slow_peers_bring_the_rest() {
    let swarm = Swarm::of(&[("first", 2 * MB), ("tool", 9 * MB)]);
    swarm.publish(|file| file.rate(1_000_000));
    let site = swarm.site(&[]);
    let peer = Liar::of(&swarm, &site, &["first", "tool"], |bytes| right(bytes).rate(1_300_000));
    for name in ["first", "tool"] {
        peer.wait_found(&swarm, &site, name);
    }
    // By this it is known that it gives what it says.
    swarm.fetch(&site, "first");
    let path = format!("/blob/sha256/{}", swarm.blob("tool"));
    let mut client = Connection::open(site.addr());
    client.send("GET", &site.url_for(&swarm.mirror, &swarm.path("tool")), &[]);
    assert_eq!(client.read_head().status, 200);
    let beginning = client.read_body_some(1000);
    let by_peer: u64 = peer.door.requests(&path).iter().map(|seen| seen.body_bytes).sum();
    assert!(by_peer < swarm.size("tool") / 2, "the peer had brought {by_peer} bytes by then");
    let rest = client.read_body_some(9 * MB + MB);
    assert!([beginning, rest].concat() == swarm.archive.deb("tool"));
    let by_mirror = swarm.by_mirror("tool");
    assert!(by_mirror < swarm.size("tool") / 2, "the mirror brought {by_mirror}");
}

/// What clients were promised is not all that there is of it: so nobody takes it for the whole.
#[test]
fn a_mirror_that_sends_more_than_the_list_says_completes_no_answer() {
    let swarm = Swarm::of(&[("tool", 2 * MB)]);
    let site = swarm.site(&[]);
    let wrong = noise(11, swarm.archive.deb("tool").len() + 64 * 1024);
    let wrong = [b"!<arch>\n", &wrong[8..]].concat();
    swarm.mirror.put(&swarm.path("tool"), File::new(wrong).chunked());
    let reply = get(site.addr(), &site.url_for(&swarm.mirror, &swarm.path("tool")));
    let is_whole =
        reply.status == 200 && reply.complete && reply.body.len() as u64 == swarm.size("tool");
    assert!(!is_whole, "{} bytes of something else", reply.body.len());
}
