//! Sites of a swarm: those that give and take, and those that lie.

use super::ledger::Ledger;
use super::{assert_well_formed, wait_at_rest};
use crate::find::{Fake, entry, filter, proxy_of, wait_fetches};
use crate::give::Giver;
use crate::hostile::{Liar, wrong};
use crate::kit::member::Member;
use crate::kit::node::swarm_key;
use crate::kit::*;
use crate::swarm::Swarm;
use aptmesh::content::swarm_key::DhtKey;
use std::io::Write as _;

const MB: usize = 1024 * 1024;
/// What a node keeps for the swarm, and for one other node.
const RECORDS: u32 = 500_000;
const OF_A_NODE: u32 = 131_072;
/// Keys in one message.
const AT_ONCE: u32 = 4_096;
const HOUR: u64 = 60 * 60 * 1000;

/// Two sites: one gives, one takes.
pub fn run(ledger: &Ledger) {
    let swarm = Swarm::of(&[("large", 5 * MB), ("larger", 4 * MB), ("small", 9_000), ("tool", MB)]);
    // What it announces nobody hears.
    let alone = Node::start(&swarm_key(), &[]);
    alone.announce(&[swarm.blob("large")]);
    ledger.look(alone.admin());
    let one = swarm.stocked(&[], &["large", "small"]);
    ledger.look(one.admin());
    swarm.publish(|file| file.rate(2 * MB as u64));
    let two = swarm.site(&[&one]);
    ledger.look(two.admin());
    swarm.wait_found(&two, "large", &[&one]);
    for name in ["large", "small"] {
        swarm.fetch(&two, name);
    }
    for metric in ["aptmesh_swarm_received_bytes_total", "aptmesh_swarm_filters"] {
        ledger.sees(two.admin(), metric);
    }
    for metric in
        ["aptmesh_dht_connected_nodes", "aptmesh_dht_connected_others", "aptmesh_dht_cards"]
    {
        ledger.sees(one.admin(), metric);
    }
    drop(std::net::TcpStream::connect(two.dht()).map(|mut socket| socket.write_all(b"hello?\n")));
    ledger.sees(two.admin(), "aptmesh_dht_strangers_total");
    let liar = Liar::of(&swarm, &two, &["larger"], wrong);
    liar.wait_found(&swarm, &two, "larger");
    swarm.fetch(&two, "larger");
    ledger.sees(two.admin(), "aptmesh_swarm_benched_peers");
    let mut node = Node::start(&swarm.key, &[]);
    let orphan =
        Site::build(&swarm.key).env("PROXY_SIDECAR", format!("http://{}", node.api())).start();
    ledger.look(orphan.admin());
    node.kill9();
    swarm.learn(&orphan);
    swarm.fetch(&orphan, "tool");
    ledger.sees(orphan.admin(), "aptmesh_swarm_sidecar_away");
    for site in [&one, &two, &orphan] {
        wait_at_rest(site);
    }
    ledger.sees(alone.admin(), "aptmesh_dht_announcements_late");
    assert_well_formed(alone.admin());
    // That there is nobody is no news.
    assert!(!alone.log().contains("WARN"), "{}", alone.log());
}

/// Who takes more than a share, who claims what is not so, and who floods.
pub fn run_hostile(ledger: &Ledger) {
    crowd(ledger);
    false_filter(ledger);
    flood(ledger);
}

fn crowd(ledger: &Ledger) {
    let limit = [("SWARM_UPLOAD_LIMIT", "100kB/s")];
    let (site, bytes) = Giver::with(&limit).with_package(5_000_000);
    let blob = sha256_hex(&bytes);
    ledger.look(site.admin());
    let crowd: Vec<Connection> = (0..17)
        .map(|_| {
            let mut connection = Connection::open(site.peer());
            site.ask_on(&mut connection, "GET", &blob, &[]);
            connection.read_head();
            connection
        })
        .collect();
    assert_eq!(get(site.peer(), &format!("/blob/sha256/{blob}")).status, 403);
    for metric in [
        "aptmesh_web_peer_busy_total",
        "aptmesh_web_peer_limit_waits_total",
        "aptmesh_web_peer_refused_total",
        "aptmesh_web_peer_slots_used",
    ] {
        ledger.sees(site.admin(), metric);
    }
    drop(crowd);
    wait_at_rest(&site);
}

/// A site says that it has all packages, and has none.
fn false_filter(ledger: &Ledger) {
    let names: Vec<String> = (0..24).map(|number| format!("tool{number}")).collect();
    let packages: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 50_000)).collect();
    let swarm = Swarm::of(&packages);
    let node = Node::start(&swarm.key, &[]);
    let liar = Fake::start(&swarm.key, &[&node]);
    let mut entries: Vec<u64> =
        names.iter().map(|name| entry(&swarm.key, swarm.archive.deb(name))).collect();
    entries.sort_unstable();
    liar.put(1, filter(1, &entries));
    liar.tell(1);
    let proxy = proxy_of(&swarm.key, &node);
    swarm.learn(&proxy);
    ledger.look(proxy.admin());
    wait_fetches(&proxy, "whole", 1);
    for name in &names {
        swarm.fetch(&proxy, name);
    }
    for metric in ["aptmesh_swarm_false_claims_total", "aptmesh_swarm_doubted_sites"] {
        ledger.sees(proxy.admin(), metric);
    }
    // Another one, which is none: what is kept gets older.
    liar.put(2, noise(1, 1_000));
    liar.tell(2);
    ledger.sees(proxy.admin(), "aptmesh_swarm_filter_oldest_seconds");
    wait_at_rest(&proxy);
}

/// Four nodes announce as much as there is room for, and a fifth wants some, too; one comes with an old card.
fn flood(ledger: &Ledger) {
    let key = swarm_key();
    let node = Node::start(&key, &[]);
    ledger.look(node.admin());
    let mut late = Member::of(&key, node.dht());
    late.show_card(3 * HOUR);
    ledger.sees(node.admin(), "aptmesh_dht_cards_refused_total");
    let mut next = 0_u32;
    let mut keys = |count: u32| -> Vec<DhtKey> {
        next += count;
        let numbers = next - count..next;
        let key = |number: u32| [number.to_be_bytes().to_vec(), vec![0; 16]].concat();
        numbers.map(|number| DhtKey::from_bytes(&key(number)).unwrap()).collect()
    };
    let mut left = RECORDS;
    while left > 0 {
        let mut member = Member::of(&key, node.dht());
        assert!(member.show_card(0).is_some());
        let mut own = OF_A_NODE.min(left);
        while own > 0 {
            let taken = member.announce(keys(AT_ONCE.min(own)));
            assert!(taken > 0);
            own -= taken.min(own);
            left -= taken.min(left);
        }
    }
    let mut modest = Member::of(&key, node.dht());
    assert!(modest.show_card(0).is_some());
    assert_eq!(modest.announce(keys(100)), 100);
    ledger.sees(node.admin(), "aptmesh_dht_records_evicted_total");
    assert_well_formed(node.admin());
}
