//! What a site tells the swarm of itself.

use crate::kit::node::swarm_key;
use crate::kit::{Site, aptmesh, get, wait_until};
use std::net::TcpStream;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn two_sites_find_each_other() {
    let key = swarm_key();
    let one = Site::start(&key, &[]);
    let mut other = Site::start(&key, &[&one]);
    let know_each_other = |one: &Site, other: &Site| {
        one.node().peers() == [[other.peer_url()]] && other.node().peers() == [[one.peer_url()]]
    };
    wait_until(LONG, "both to know each other", || know_each_other(&one, &other));
    let status = get(one.admin(), "/status.json");
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    assert_eq!(status["swarm"]["cards"], 1);
    wait_until(LONG, "the metrics of the node", || one.metric("aptmesh_dht_cards") == 1.0);

    // Who stops says so: nobody is sent there any more.
    other.signal("TERM");
    other.wait_exit(LONG);
    wait_until(LONG, "the site to have left", || one.node().peers() == [[""; 0]]);
    other.restart();
    wait_until(LONG, "both to know each other again", || know_each_other(&one, &other));
}

#[test]
fn without_a_key_there_is_no_node() {
    let site = Site::start("", &[]);
    for closed in [site.dht(), site.api(), site.peer()] {
        assert!(TcpStream::connect(closed).is_err(), "{closed}");
    }
    let status = get(site.admin(), "/status.json");
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    assert!(status["swarm"].is_null());
}

#[test]
fn a_node_that_can_not_listen_is_an_error_that_names_the_setting() {
    let site = Site::start(&swarm_key(), &[]);
    for (setting, taken) in [("LISTEN_DHT", site.dht()), ("LISTEN_SIDECAR", site.api())] {
        let data = tempfile::tempdir().unwrap();
        let run = aptmesh()
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .env("APTMESH_LISTEN_PEER", "127.0.0.1:0")
            .env("APTMESH_LISTEN_DHT", "127.0.0.1:0")
            .env("APTMESH_LISTEN_SIDECAR", "127.0.0.1:0")
            .env(format!("APTMESH_{setting}"), taken.to_string())
            .env("APTMESH_SWARM_KEY", swarm_key())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr).to_string();
        let name = setting.to_lowercase().replacen('_', ".", 1);
        assert!(!run.status.success() && said.contains(&name), "{said}");
    }
}
