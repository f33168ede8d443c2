//! The swarm's DHT: how long look-ups take, also right after a fifth of the nodes died, and what
//! announcing costs; each node a process.

use std::time::Duration;

use crate::kit::node::swarm_key;
use crate::kit::{Connection, Node, sha256_hex, wait_until};
use crate::table::Table;

const NODES: usize = 100;
/// Nodes that announce, keys of each, and look-ups at each of the others.
const ANNOUNCERS: usize = 10;
const KEYS: usize = 200;
const LOOK_UPS: usize = 2_000;
/// Sites among which one announces many.
const SITES: usize = 20;
/// As many as are larger than 1 MiB, of 100,000 blobs.
const MANY: usize = 12_600;
const TTL: Duration = Duration::from_mins(45);
const PATIENCE: Duration = Duration::from_mins(5);

pub fn run() {
    look_ups();
    announcing();
}

fn blob(of: usize, number: usize) -> String {
    sha256_hex(format!("{of} {number}").as_bytes())
}

fn swarm(count: usize) -> Vec<Node> {
    let key = swarm_key();
    let mut nodes = vec![Node::start(&key, &[])];
    while nodes.len() < count {
        nodes.push(Node::start(&key, &[&nodes[0]]));
    }
    let known = |node: &Node| node.count("cards") as usize == count - 1;
    wait_until(PATIENCE, "all to know all", || nodes.iter().all(known));
    nodes
}

fn look_ups() {
    let mut nodes = swarm(NODES);
    for (of, node) in nodes[..ANNOUNCERS].iter().enumerate() {
        node.announce(&(0..KEYS).map(|number| blob(of, number)).collect::<Vec<_>>());
    }
    let taken = |node: &Node| node.metric("aptmesh_dht_announces_total{result=\"taken\"}");
    wait_until(PATIENCE, "all to be announced", || {
        nodes[..ANNOUNCERS].iter().all(|node| taken(node) >= (KEYS * 7) as f64)
    });
    let head = ["", "p50 ms", "p99 ms", "of which without HTTP", "found"];
    let mut table = Table::new(&format!("Look-ups among {NODES} nodes"), &head);
    table.row(&measured("all alive", &nodes[ANNOUNCERS..]));
    for node in nodes.iter_mut().skip(1).step_by(5) {
        node.kill9();
    }
    let alive: Vec<Node> =
        nodes.into_iter().enumerate().filter(|(at, _)| at % 5 != 1).map(|(_, node)| node).collect();
    table.row(&measured("a fifth just killed", &alive[ANNOUNCERS..]));
    table.print();
}

fn measured(name: &str, nodes: &[Node]) -> [String; 5] {
    let (mut outer, mut inner, mut found) = (Vec::new(), Vec::new(), 0);
    let mut doors: Vec<Connection> =
        nodes.iter().map(|node| Connection::open(node.api())).collect();
    for number in 0..LOOK_UPS {
        // Those of the dead are not asked for: they have nothing to give.
        let of = [0, 2, 3, 4, 5, 7, 8, 9][number % 8];
        let at = number % doors.len();
        let target = format!("/lookup/{}?trace=true&budget_ms=2000", blob(of, number % KEYS));
        let reply = doors[at].get(&target);
        let told: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        outer.push(reply.total.as_secs_f64() * 1e3);
        inner.push(told["trace"]["took_ms"].as_f64().unwrap());
        found += usize::from(!told["peers"].as_array().unwrap().is_empty());
    }
    let part = |values: &mut Vec<f64>, part: f64| {
        values.sort_by(f64::total_cmp);
        values[(values.len() as f64 * part) as usize]
    };
    [
        name.to_owned(),
        format!("{:.1}", part(&mut outer, 0.5)),
        format!("{:.1}", part(&mut outer, 0.99)),
        format!("{:.1} / {:.1}", part(&mut inner, 0.5), part(&mut inner, 0.99)),
        format!("{:.2} %", 100.0 * found as f64 / LOOK_UPS as f64),
    ]
}

fn announcing() {
    let nodes = swarm(SITES);
    let cpu = |nodes: &[Node]| nodes.iter().map(Node::cpu_seconds).collect::<Vec<_>>();
    let before = cpu(&nodes);
    let start = std::time::Instant::now();
    nodes[0].announce(&(0..MANY).map(|number| blob(0, number)).collect::<Vec<_>>());
    let sent = || nodes[0].metric("aptmesh_dht_announces_total");
    wait_until(PATIENCE, "all to be announced", || sent() >= (MANY * 7) as f64);
    let wall = start.elapsed().as_secs_f64();
    let spent: Vec<f64> = cpu(&nodes).iter().zip(&before).map(|(now, then)| now - then).collect();
    let found = (0..MANY).step_by(MANY / 500).filter(|number| {
        nodes[1 + number % (SITES - 1)].look_up(&blob(0, *number)) == [nodes[0].url()]
    });
    let found = found.count() as f64 / (0..MANY).step_by(MANY / 500).count() as f64;
    let bytes = sent() * 20.0;
    let others = spent[1..].iter().sum::<f64>() / (SITES - 1) as f64;
    let memory = nodes.iter().map(Node::resident_bytes).max().unwrap() as f64 / 1e6;
    let renewal = TTL.as_secs_f64() / 3.0;
    let head = ["", "wall s", "CPU s, announcer", "CPU s, each other", "memory MB", "found"];
    let title = format!("Announcing {MANY} blobs among {SITES} sites");
    let mut table = Table::new(&title, &head);
    table.row(&[
        format!("{:.1} MB of keys", bytes / 1e6),
        format!("{wall:.1}"),
        format!("{:.2} ({:.2} % of a core)", spent[0], 100.0 * spent[0] / renewal),
        format!("{others:.2}"),
        format!("{memory:.0}"),
        format!("{:.1} %", 100.0 * found),
    ]);
    table.print();
    println!("  {:.1} kbit/s averaged over a renewal", bytes * 8.0 / 1e3 / renewal);
}
