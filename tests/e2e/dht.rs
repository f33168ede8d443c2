//! The swarm's DHT: nodes find each other, announce, look up, and keep strangers out; each a process on
//! a loopback address of its own.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::kit::node::{on_a_network_of_its_own, swarm_key, urls};
use crate::kit::{self, Node, sha256_hex, wait_until};

const LONG: Duration = Duration::from_secs(40);

fn blob(number: usize) -> String {
    sha256_hex(format!("blob {number}").as_bytes())
}

fn blobs(count: usize) -> Vec<String> {
    (0..count).map(blob).collect()
}

/// So many nodes that know each other.
fn swarm(key: &str, count: usize) -> Vec<Node> {
    let mut nodes = vec![Node::start(key, &[])];
    while nodes.len() < count {
        nodes.push(Node::start(key, &[&nodes[0]]));
    }
    for node in &nodes {
        node.wait_connected(count - 1);
    }
    nodes
}

#[test]
fn what_one_node_announces_the_others_find_until_it_is_withdrawn() {
    let key = swarm_key();
    let nodes = swarm(&key, 3);
    let (one, other, third) = (&nodes[0], &nodes[1], &nodes[2]);
    let wanted = blobs(20);
    assert_eq!(one.announce(&wanted)["new"], 20);
    assert_eq!(one.announce(&wanted)["known"], 20);
    for blob in &wanted {
        other.wait_found(blob, &[one]);
    }
    assert_eq!(third.announce(&wanted[..1])["new"], 1);
    other.wait_found(&wanted[0], &[one, third]);
    third.wait_found(&wanted[0], &[one]);
    assert_eq!(other.look_up(&blob(99)), [""; 0]);

    assert_eq!(one.withdraw(&wanted)["withdrawn"], 20);
    other.wait_found(&wanted[0], &[third]);
    other.wait_found(&wanted[7], &[]);
    assert_eq!(one.count("announced"), 0);
}

#[test]
fn what_a_node_does_is_counted() {
    let key = swarm_key();
    let alone = Node::start(&key, &[]);
    alone.announce(&blobs(5));
    wait_until(LONG, "it to be late: there is nobody to tell", || {
        alone.metric("aptmesh_dht_announce_lag_seconds") >= 1.0
    });
    let other = Node::start(&key, &[&alone]);
    assert_eq!([&alone, &other].map(|node| node.metric("aptmesh_dht_seeds")), [0.0, 1.0]);
    let counts = |node: &Node, metric: &str, least: f64| {
        wait_until(LONG, metric, || node.metric(metric) >= least);
    };
    counts(&other, "aptmesh_dht_records", 5.0);
    counts(&alone, "aptmesh_dht_announced_blobs", 5.0);
    wait_until(LONG, "it to be late no more", || {
        alone.metric("aptmesh_dht_announce_lag_seconds") < 1.0
    });
    for node in [&alone, &other] {
        counts(node, "aptmesh_dht_connected_nodes", 1.0);
        counts(node, "aptmesh_dht_table_nodes", 1.0);
    }
    other.look_up(&blob(0));
    counts(&other, "aptmesh_dht_look_up_seconds_count", 1.0);
}

#[test]
fn small_blobs_are_not_announced() {
    let key = swarm_key();
    let nodes = swarm(&key, 2);
    let order = json!({ "blobs": [
        { "sha256": blob(1), "size": 1024 * 1024 - 1 },
        { "sha256": blob(2), "size": 1024 * 1024 },
    ] });
    let done = nodes[0].post("/announce", &order);
    assert_eq!((&done["new"], &done["too_small"]), (&json!(1), &json!(1)));
    nodes[1].wait_found(&blob(2), &[&nodes[0]]);
    assert_eq!(nodes[1].look_up(&blob(1)), [""; 0]);
    assert_eq!(nodes[1].count("records"), 1);
}

#[test]
fn cards_reach_nodes_that_have_not_met() {
    let key = swarm_key();
    let nodes = swarm(&key, 3);
    nodes[1].post("/filter/17", &json!({}));
    let told = |node: &Node, of: &Node| {
        let peers = node.get("/peers")["peers"].clone();
        let peers = peers.as_array().unwrap().clone();
        peers.into_iter().find(|peer| urls(&json!([peer])) == [of.url()])
    };
    wait_until(LONG, "the card of the third", || {
        told(&nodes[2], &nodes[1]).is_some_and(|card| card["filter"] == 17)
    });
    let card = told(&nodes[2], &nodes[1]).unwrap();
    assert_eq!(card["node"], nodes[1].status("node"));
    assert_eq!(card["addresses"], json!([nodes[1].dht().to_string()]));
}

#[test]
fn nobody_is_sent_to_a_site_that_said_goodbye() {
    let key = swarm_key();
    let mut nodes = swarm(&key, 3);
    nodes[1].announce(&blobs(1));
    nodes[2].wait_found(&blob(0), &[&nodes[1]]);
    nodes[1].stop();
    // Its records are still there; its card says that there is nothing to be had.
    assert_eq!(nodes[2].look_up(&blob(0)), [""; 0]);
    assert_eq!(nodes[2].count("records"), 1);
    nodes[1].restart();
    nodes[2].wait_found(&blob(0), &[&nodes[1]]);
}

#[test]
fn who_comes_back_is_given_its_records_at_once() {
    let key = swarm_key();
    let mut nodes = swarm(&key, 2);
    nodes[0].announce(&blobs(30));
    wait_until(LONG, "the records", || nodes[1].count("records") == 30);
    // Nothing is to be renewed for long. After a goodbye, and after a crash:
    for ends in [Node::stop, Node::kill9] {
        ends(&mut nodes[1]);
        nodes[1].restart();
        wait_until(LONG, "the records again", || nodes[1].count("records") == 30);
    }
}

#[test]
fn a_restart_keeps_the_identity_and_resumes() {
    let key = swarm_key();
    let first = Node::start(&key, &[]);
    let forgetful = || Node::build(&key).seeds(&[&first]).env("SWARM_ANNOUNCE_TTL", "6s");
    let mut announcer = forgetful().start();
    announcer.wait_connected(1);
    announcer.announce(&blobs(30));
    announcer.withdraw(&blobs(10));
    first.wait_found(&blob(29), &[&announcer]);
    let name = announcer.status("node");
    announcer.kill9();
    wait_until(LONG, "others to forget", || first.count("records") == 0);
    announcer.restart();
    assert_eq!(announcer.status("node"), name);
    assert_eq!(announcer.count("announced"), 20);
    for number in 10..30 {
        first.wait_found(&blob(number), &[&announcer]);
    }
    first.wait_found(&blob(3), &[]);
}

#[test]
fn what_nobody_could_fetch_any_more_is_not_renewed_after_a_restart() {
    let key = swarm_key();
    let first = Node::start(&key, &[]);
    let mut announcer = Node::start(&key, &[&first]);
    announcer.wait_connected(1);
    announcer.announce(&blobs(10));
    first.wait_found(&blob(9), &[&announcer]);
    let name = announcer.status("node");
    announcer.kill9();
    let resumed = || Node::build(&key).seeds(&[&first]).data_of(&announcer);
    let mut mute = resumed().env("SWARM_ADVERTISE", "").start();
    mute.wait_connected(1);
    assert_eq!(mute.status("node"), name);
    assert_eq!((mute.count("announced"), &mute.announce(&blobs(1))["refused"]), (0, &json!(1)));
    mute.kill9();
    let again = resumed().start();
    assert_eq!(again.count("announced"), 10);
    first.wait_found(&blob(9), &[&again]);
}

#[test]
fn two_nodes_with_one_data_folder_are_not_the_same() {
    let key = swarm_key();
    let first = Node::start(&key, &[]);
    let second = Node::build(&key).seeds(&[&first]).data_of(&first).start();
    second.wait_connected(1);
    assert_ne!(first.status("node"), second.status("node"));
}

#[test]
fn a_node_remembers_others_when_its_seeds_are_gone() {
    let key = swarm_key();
    let mut nodes = swarm(&key, 3);
    // It writes down where others are when it is asked to end.
    nodes[2].stop();
    nodes[0].kill9();
    nodes[2].restart();
    nodes[2].wait_connected(1);
    nodes[1].announce(&blobs(1));
    nodes[2].wait_found(&blob(0), &[&nodes[1]]);
}

#[test]
fn records_are_renewed_while_their_node_lives_and_expire_after() {
    let key = swarm_key();
    let first = Node::start(&key, &[]);
    let mut announcer = Node::build(&key).seeds(&[&first]).env("SWARM_ANNOUNCE_TTL", "6s").start();
    announcer.wait_connected(1);
    announcer.announce(&blobs(5));
    first.wait_found(&blob(0), &[&announcer]);
    let taken = "aptmesh_dht_announces_total{result=\"taken\"}";
    wait_until(LONG, "four renewals", || announcer.metric(taken) >= 25.0);
    assert_eq!(first.count("records"), 5);
    assert_eq!(first.look_up(&blob(0)), [announcer.url()]);
    announcer.kill9();
    wait_until(LONG, "the end of the records", || first.count("records") == 0);
    assert_eq!(first.look_up(&blob(0)), [""; 0]);
}

#[test]
fn another_key_does_not_get_in() {
    let (key, other_key) = (swarm_key(), swarm_key());
    assert_ne!(key, other_key);
    let nodes = swarm(&key, 2);
    let stranger = Node::start(&other_key, &[&nodes[0], &nodes[1]]);
    // As a seed, it is of no use either.
    let misled = Node::start(&key, &[&stranger]);
    wait_until(LONG, "the stranger at the door", || {
        nodes[0].metric("aptmesh_dht_strangers_total") >= 1.0
            && stranger.metric("aptmesh_dht_strangers_total") >= 1.0
    });
    nodes[0].announce(&blobs(1));
    nodes[1].wait_found(&blob(0), &[&nodes[0]]);
    for node in [&stranger, &misled] {
        assert_eq!((node.count("connected"), node.count("cards"), node.count("table")), (0, 0, 0));
        assert_eq!(node.look_up(&blob(0)), [""; 0]);
        assert_eq!(kit::get(node.admin(), "/readyz").status, 503);
    }
    assert_eq!((nodes[0].count("connected"), nodes[0].count("cards")), (1, 1));
    assert_eq!(kit::get(nodes[0].admin(), "/readyz").status, 200);
}

#[test]
fn other_networks_hear_nothing() {
    let key = swarm_key();
    let nodes = swarm(&key, 2);
    let torrent = [&b"\x13BitTorrent protocol"[..], &[0; 48]].concat();
    let ipfs = b"\x13/multistream/1.0.0\n\x07/noise\n".to_vec();
    let web = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    for says in [torrent, ipfs, web, vec![0; 100_000], Vec::new()] {
        let heard = nodes[0].hears(&says);
        // A nonce, and what it enciphers.
        assert!(heard.len() <= 200, "{} bytes", heard.len());
        for word in ["multistream", "noise", "BitTorrent", "HTTP", "aptmesh"] {
            assert!(!String::from_utf8_lossy(&heard).contains(word), "{word}");
        }
    }
    assert_eq!((nodes[0].count("connected"), nodes[0].count("table")), (1, 1));
    nodes[1].announce(&blobs(1));
    nodes[0].wait_found(&blob(0), &[&nodes[1]]);
}

#[test]
fn what_nodes_tell_of_private_addresses_is_believed_only_where_allowed() {
    let key = swarm_key();
    let nodes = swarm(&key, 2);
    let settings = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(settings.path(), "[swarm]\nallow_private = []\n").unwrap();
    let wary = Node::build(&key).seeds(&[&nodes[0]]).env("SWARM_ALLOW_PRIVATE", "");
    let wary = wary.config(settings.path()).start();
    // It has heard of both, and both have dialled it; it would itself dial its seed's address only.
    wait_until(LONG, "two connections", || wary.count("connected") == 2);
    wait_until(LONG, "two cards", || wary.count("cards") == 2);
    wary.wait_connected(1);
    nodes[1].wait_connected(2);
    nodes[1].announce(&blobs(1));
    wary.wait_found(&blob(0), &[&nodes[1]]);
    assert_eq!(wary.count("table"), 1);
}

#[test]
fn a_look_up_tells_what_it_did() {
    let key = swarm_key();
    let nodes = swarm(&key, 3);
    nodes[0].announce(&blobs(1));
    nodes[1].wait_found(&blob(0), &[&nodes[0]]);
    let told = |number| nodes[1].get(&format!("/lookup/{}?trace=true", blob(number)));
    let found = told(0);
    assert_eq!(found["trace"]["ended"], "found");
    assert_eq!(found["trace"]["steps"][0]["holders"], json!([nodes[0].status("node")]));
    let none = told(1)["trace"].clone();
    assert_eq!(
        (&none["ended"], &none["asked"], &none["failed"]),
        (&json!("none"), &json!(2), &json!(0))
    );
    assert_eq!(none["closest"].as_array().unwrap().len(), 2);
    assert!(none["took_ms"].as_f64().unwrap() > 0.0);
    assert!(nodes[1].metric("aptmesh_dht_look_ups_total{result=\"none\"}") >= 1.0);
}

#[test]
fn an_open_swarm_needs_no_key() {
    let open = || Node::build("").env("SWARM_OPEN", "true");
    let first = open().start();
    let second = open().seeds(&[&first]).start();
    second.wait_connected(1);
    second.announce(&blobs(1));
    first.wait_found(&blob(0), &[&second]);
    let closed = kit::aptmesh().args(["dht", "--data", "/nonexistent"]).output().unwrap();
    assert!(String::from_utf8_lossy(&closed.stderr).contains("aptmesh key"));
    assert!(!closed.status.success());
}

#[test]
fn nothing_is_announced_where_that_is_switched_off() {
    let key = swarm_key();
    let first = Node::start(&key, &[]);
    let silent = Node::build(&key).seeds(&[&first]).env("SWARM_ANNOUNCE", "false").start();
    silent.wait_connected(1);
    assert_eq!(silent.announce(&blobs(10))["refused"], 10);
    first.announce(&blobs(1)[..]);
    silent.wait_found(&blob(0), &[&first]);
    assert_eq!(first.metric("aptmesh_dht_offered_total"), 0.0);
    assert_eq!(first.look_up(&blob(5)), [""; 0]);
    let told = first.get("/peers")["peers"].clone();
    assert_eq!((told.as_array().unwrap().len(), urls(&told).len()), (1, 0));
}

#[test]
fn names_of_seeds_are_resolved_to_all_their_addresses_and_again() {
    let key = swarm_key();
    let (first, second) = (Node::start(&key, &[]), Node::start(&key, &[]));
    let hosts = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hosts.path(), "127.0.0.1 localhost\n").unwrap();
    let node = Node::build(&key).hosts(hosts.path()).env("SWARM_BOOTSTRAP", "nodes.test").start();
    assert_eq!(kit::get(node.admin(), "/readyz").status, 503);
    let names = format!("{} nodes.test\n{} nodes.test\n", first.ip, second.ip);
    std::fs::write(hosts.path(), names).unwrap();
    node.wait_connected(2);
    // It has made one swarm of two.
    first.wait_connected(2);
    assert_eq!(kit::get(node.admin(), "/readyz").status, 200);
}

#[test]
fn nodes_meet_over_ipv6() {
    let key = swarm_key();
    let first = Node::build(&key).listen("[::1]:0").start();
    let second = Node::build(&key).listen("[::1]:0").seeds(&[&first]).start();
    second.wait_connected(1);
    assert!(first.dht().is_ipv6());
    first.announce(&blobs(1));
    second.wait_found(&blob(0), &[&first]);
}

#[test]
fn nodes_on_one_network_find_each_other_by_multicast_where_that_is_switched_on() {
    on_a_network_of_its_own(|| {
        let (key, other_key) = (swarm_key(), swarm_key());
        let lan = |key: &str, on: &str| {
            let node = Node::build(key).listen("0.0.0.0:0").env("SWARM_LAN", on);
            node.env("SWARM_ALLOW_PRIVATE", "10.0.0.0/8").start()
        };
        let (one, other) = (lan(&key, "true"), lan(&key, "true"));
        let (stranger, hermit) = (lan(&other_key, "true"), lan(&key, "false"));
        one.wait_connected(1);
        one.announce(&blobs(1));
        other.wait_found(&blob(0), &[&one]);
        assert_eq!((stranger.count("connected"), hermit.count("connected")), (0, 0));
    });
}

#[test]
fn look_ups_go_on_when_half_of_the_nodes_are_gone() {
    let key = swarm_key();
    let mut nodes = swarm(&key, 12);
    let wanted = blobs(40);
    nodes[0].announce(&wanted);
    let everywhere = |node: &Node| wanted.iter().all(|blob| !node.look_up(blob).is_empty());
    wait_until(LONG, "all to be found", || everywhere(&nodes[1]));
    for node in &mut nodes[6..] {
        node.kill9();
    }
    // At once, though who asks may not have heard of the dead yet. One key in a thousand is lost.
    let found = wanted.iter().filter(|blob| nodes[1].look_up(blob) == [nodes[0].url()]).count();
    assert!(found >= 38, "{found} of 40 found");
    wait_until(LONG, "all to be found again", || everywhere(&nodes[5]));
}

#[test]
fn parts_of_a_swarm_find_each_other_again() {
    let key = swarm_key();
    let nodes = swarm(&key, 4);
    let (here, there) = nodes.split_at(2);
    // To the others, a process that is stopped is a network that is cut.
    for node in there {
        node.signal("STOP");
    }
    wait_until(LONG, "the loss to be noticed", || here.iter().all(|node| node.count("table") == 1));
    here[0].announce(&blobs(1));
    here[1].wait_found(&blob(0), &[&here[0]]);
    for node in there {
        node.signal("CONT");
    }
    there[1].announce(&[blob(1)]);
    for node in &nodes {
        node.wait_connected(3);
    }
    there[0].wait_found(&blob(0), &[&here[0]]);
    here[1].wait_found(&blob(1), &[&there[1]]);
}

#[test]
fn two_swarms_become_one_when_somebody_knows_both() {
    let key = swarm_key();
    let (one, other) = (swarm(&key, 2), swarm(&key, 2));
    one[0].announce(&blobs(1));
    one[1].wait_found(&blob(0), &[&one[0]]);
    assert_eq!(other[1].look_up(&blob(0)), [""; 0]);
    let bridge = Node::start(&key, &[&one[0], &other[0]]);
    bridge.wait_connected(4);
    other[1].wait_found(&blob(0), &[&one[0]]);
}

#[test]
fn a_flood_stays_within_bounds_and_harms_nobody() {
    let key = swarm_key();
    let nodes = swarm(&key, 3);
    let (flood, modest, victim) = (&nodes[0], &nodes[1], &nodes[2]);
    let many: Vec<String> = (1_000..132_072).map(blob).collect();
    for part in many.chunks(16_384) {
        assert_eq!(flood.announce(part)["new"], 16_384);
    }
    assert_eq!(flood.announce(&blobs(1))["refused"], 1);
    wait_until(Duration::from_secs(120), "all to be taken", || victim.count("records") == 131_072);
    // What is promised comes on top.
    let more: Vec<_> = (200_000..200_100)
        .map(|number| json!({ "sha256": blob(number), "size": 2_000_000 }))
        .collect();
    flood.post("/announce?provisional=true", &json!({ "blobs": more }));
    let refused = "aptmesh_dht_offered_total{result=\"refused\"}";
    wait_until(LONG, "the bound to be reached", || victim.metric(refused) >= 1.0);
    assert_eq!(victim.count("records"), 131_072);
    assert!(victim.resident_bytes() < 150_000_000, "{} bytes", victim.resident_bytes());
    modest.announce(&blobs(5));
    victim.wait_found(&blob(4), &[modest]);
    // All of it goes at once, in more messages than one connection has room for.
    for part in many.chunks(16_384) {
        flood.withdraw(part);
    }
    wait_until(LONG, "the end of the flood", || victim.count("records") == 5);
    assert_eq!(victim.count("connected"), 2);
}

#[test]
fn who_announces_too_fast_is_held_up_and_nobody_else() {
    let key = swarm_key();
    let victim = Node::start(&key, &[]);
    let modest = Node::start(&key, &[&victim]);
    // All of it again each second.
    let flood = Node::build(&key).seeds(&[&victim]).env("SWARM_ANNOUNCE_TTL", "3s").start();
    let many: Vec<String> = (1_000..61_000).map(blob).collect();
    for part in many.chunks(20_000) {
        flood.announce(part);
    }
    let too_fast = "aptmesh_dht_offered_total{result=\"too_fast\"}";
    wait_until(Duration::from_secs(120), "the flood to be held up", || {
        victim.metric(too_fast) >= 10_000.0
    });
    modest.announce(&blobs(5));
    victim.wait_found(&blob(4), &[&modest]);
    assert_eq!(modest.metric("aptmesh_dht_announces_total{result=\"refused\"}"), 0.0);
    assert!(victim.resident_bytes() < 150_000_000, "{} bytes", victim.resident_bytes());
}

#[test]
fn a_flood_of_look_ups_stays_within_bounds_and_harms_nobody() {
    let key = swarm_key();
    let nodes = swarm(&key, 3);
    let (flood, modest, victim) = (&nodes[0], &nodes[1], &nodes[2]);
    victim.announce(&blobs(5));
    modest.wait_found(&blob(4), &[victim]);
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // Each is passed on to all others, as nobody has any of it.
        for part in 0..16 {
            let asked = &asked;
            scope.spawn(move || {
                for number in 0..200 {
                    let wanted = blob(10_000 + 200 * part + number);
                    assert_eq!(flood.look_up(&wanted), [""; 0]);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut found = 0;
        while found < 20 || asked.load(Ordering::Relaxed) < 3_200 {
            assert_eq!(modest.look_up(&blob(found % 5)), [victim.url()], "amidst the flood");
            found += 1;
        }
    });
    for node in [flood, victim] {
        assert!(node.resident_bytes() < 150_000_000, "{} bytes", node.resident_bytes());
        assert_eq!(node.count("connected"), 2);
    }
    modest.announce(&blobs(6)[5..]);
    victim.wait_found(&blob(5), &[modest]);
}

#[test]
fn a_conversation_that_was_overheard_opens_no_door() {
    let key = swarm_key();
    let node = Node::start(&key, &[]);
    // All that another node says, in its own time.
    let heard = Arc::new(Mutex::new(Vec::new()));
    let wire = kit::door::Door::open(([127, 0, 0, 1], 0).into(), {
        let (heard, node) = (heard.clone(), node.dht());
        move |near| overhear(near, node, &heard)
    });
    let other = Node::build(&key).env("SWARM_BOOTSTRAP", wire.addr().to_string()).start();
    other.wait_connected(1);
    other.announce(&blobs(1));
    node.wait_found(&blob(0), &[&other]);
    drop((other, wire));
    wait_until(LONG, "the end of it", || node.count("connected") == 0);
    let said = heard.lock().unwrap().clone();
    assert!(said.len() > 500, "{} bytes were overheard", said.len());
    let again = node.hears(&said);
    // Who it is, to somebody who can not read it.
    assert!(again.len() <= 500, "{} bytes", again.len());
    assert_eq!(node.count("connected"), 0);
}

/// Passes on what is said on both sides, and keeps what this one says.
fn overhear(mut near: TcpStream, far: SocketAddr, heard: &Mutex<Vec<u8>>) {
    let Ok(mut far) = TcpStream::connect(far) else { return };
    let (mut back, mut answers) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let answering = std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = near.read(&mut buffer) {
        heard.lock().unwrap().extend_from_slice(&buffer[..count]);
        if far.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = far.shutdown(Shutdown::Both);
    let _ = answering.join();
}

#[test]
fn a_hang_up_has_the_settings_read_again_and_ends_nothing() {
    let (key, file) = (swarm_key(), tempfile::NamedTempFile::new().unwrap());
    let write = |text: &str| std::fs::write(file.path(), text).unwrap();
    let node = Node::build(&key).config(file.path()).start();
    let says = |what: &str| {
        node.signal("HUP");
        wait_until(LONG, what, || node.log().contains(what));
    };
    write("[swarm]\nannounce_ttl = \"2h\"\n");
    says("swarm.announce_ttl");
    assert!(node.log().contains("takes effect at the next start"));
    write("[swarm]\nanounce = true\n");
    says("swarm.anounce");
    assert_eq!(node.announce(&blobs(1))["new"], 1, "it goes on");
}

#[test]
fn what_is_no_order_is_refused() {
    let key = swarm_key();
    let node = Node::start(&key, &[]);
    assert_eq!(kit::get(node.api(), "/lookup/abc").status, 400);
    for (target, body) in [
        ("/announce", "{"),
        ("/announce", r#"{"blobs": [{"sha256": "12", "size": 1}]}"#),
        ("/announce", r#"{"blobs": [], "more": 1}"#),
        ("/withdraw", r#"{"blobs": [1]}"#),
    ] {
        assert_eq!(node.try_post(target, body).status, 400, "{target} {body}");
    }
    let huge = format!("{{\"blobs\": [{}]}}", " ".repeat(5_000_000));
    assert_ne!(node.try_post("/withdraw", &huge).status, 200);
    assert_eq!(node.count("announced"), 0);
}

#[test]
fn a_key_is_as_good_as_it_looks() {
    let keys: std::collections::HashSet<String> = (0..5).map(|_| swarm_key()).collect();
    assert_eq!(keys.len(), 5);
    assert!(keys.iter().all(|key| key.len() == 64));
    for (name, value) in [
        ("APTMESH_SWARM_KEY", "secret"),
        ("APTMESH_SWARM_BOOTSTRAP", "http://x"),
        ("APTMESH_SWARM_ADVERTISE", "ftp://x"),
        ("APTMESH_LISTEN_DHT", ","),
        ("APTMESH_SWARM_ANNOUNCE_TTL", "4h"),
    ] {
        let run = kit::aptmesh().arg("dht").env(name, value).output().unwrap();
        assert_eq!(run.status.code(), Some(78), "{name}");
        let said = String::from_utf8_lossy(&run.stderr).to_string();
        let setting = name.trim_start_matches("APTMESH_").to_lowercase().replacen('_', ".", 1);
        assert!(said.contains(&setting) && !said.contains("secret"), "{said}");
    }
}
