//! The parts of a cache in processes of their own, as containers have them: a replica, a node, and the
//! check of either.

use crate::kit::node::swarm_key;
use crate::kit::{Node, Postgres, Proxy, aptmesh, fleet, get, wait_until};
use crate::swarm::Swarm;
use std::net::{SocketAddr, TcpListener};
use std::process::Output;
use std::time::Duration;

const MB: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);
/// Nobody is there.
const NOWHERE: &str = "127.0.0.1:9";

/// What a command says of these settings.
fn told(verb: &str, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let ended = aptmesh().arg(verb).envs(settings.iter().copied()).output();
    let ended = ended.expect("the aptmesh binary");
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[test]
fn a_replica_serves_on_the_site_s_index_and_its_node_announces() {
    let server = Postgres::start();
    let url = fleet::migrated(&server);
    let swarm = Swarm::of(&[("large", 2 * MB)]);
    let node = Node::build(&swarm.key).env("INDEX_URL", &url).start();
    let replica = Proxy::build()
        .verb("proxy")
        .env("APTMESH_INDEX_URL", &url)
        .env("APTMESH_SWARM_KEY", &swarm.key)
        .env("APTMESH_PROXY_SIDECAR", format!("http://{}", node.api()))
        .env("APTMESH_LISTEN_PEER", "127.0.0.1:0")
        // A node of its own would find these taken.
        .env("APTMESH_LISTEN_DHT", node.dht().to_string())
        .env("APTMESH_LISTEN_SIDECAR", node.api().to_string())
        .start();
    for path in ["dists/demo/Release".to_owned(), swarm.archive.index_path()] {
        get(replica.addr(), &replica.url_for(&swarm.mirror, &format!("/debian/{path}")));
    }
    assert!(get(replica.addr(), &replica.url_for(&swarm.mirror, &swarm.path("large"))).complete);
    replica.wait_landed();

    let stranger = Node::start(&swarm.key, &[&node]);
    stranger.wait_found(&swarm.blob("large"), &[&node]);
}

#[test]
fn a_replica_needs_a_database_and_a_node_beside_it() {
    let key = swarm_key();
    let (code, said) = told("proxy", &[("APTMESH_SWARM_KEY", &key)]);
    assert_eq!(code, Some(78), "{said}");
    for part in ["index.url", "postgres://", "aptmesh serve", "proxy.sidecar", "aptmesh dht"] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    let (_, said) = told("proxy", &[("APTMESH_SWARM_OPEN", "true")]);
    assert!(said.contains("proxy.sidecar"), "{said}");
    let (_, said) = told("proxy", &[]);
    assert!(!said.contains("proxy.sidecar"), "{said}");
}

#[test]
fn a_node_needs_a_swarm() {
    for key in [&[][..], &[("APTMESH_SWARM_KEY", "")]] {
        let (code, said) = told("dht", key);
        assert_eq!(code, Some(78), "{said}");
        for part in ["swarm.key", "aptmesh key", "swarm.open"] {
            assert!(said.contains(part), "{part:?} is not in:\n{said}");
        }
    }
}

/// Checks whoever has this admin address.
fn health(admin: SocketAddr, args: &[&str]) -> Output {
    let admin = admin.to_string();
    let checked = aptmesh().arg("health").args(args).env("APTMESH_LISTEN_ADMIN", admin).output();
    checked.expect("the aptmesh binary")
}

/// Why it is not well.
fn complaint(admin: SocketAddr, args: &[&str]) -> String {
    let checked = health(admin, args);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    String::from_utf8_lossy(&checked.stderr).into_owned()
}

#[test]
fn health_says_whether_a_cache_is_ready() {
    let proxy = Proxy::build().env("APTMESH_LISTEN_DRAIN_DELAY", "1h").start();
    assert_eq!(health(proxy.admin(), &[]).status.code(), Some(0));
    assert_eq!(get(proxy.admin(), "/readyz").status, 200);
    proxy.signal("TERM");
    wait_until(PATIENCE, "it to be leaving", || get(proxy.admin(), "/readyz").status == 503);
    assert!(complaint(proxy.admin(), &[]).contains("not ready: stopping"));
    assert_eq!(health(proxy.admin(), &["--live"]).status.code(), Some(0));
    proxy.kill9();
    assert!(complaint(proxy.admin(), &[]).contains("no aptmesh answers"));
}

#[test]
fn health_says_whether_a_node_is_ready() {
    let alone = Node::start(&swarm_key(), &[]);
    assert_eq!(health(alone.admin(), &[]).status.code(), Some(0));
    let lost = Node::build(&swarm_key()).env("SWARM_BOOTSTRAP", NOWHERE).start();
    assert!(complaint(lost.admin(), &[]).contains("no other node found yet"));
    assert_eq!(health(lost.admin(), &["--live"]).status.code(), Some(0));
}

#[test]
fn health_does_not_wait_for_ever() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let said = complaint(silent.local_addr().unwrap(), &[]);
    assert!(said.contains("silent"), "{said}");
}

#[test]
fn a_stop_is_not_delayed_for_the_process_s_own_health_check() {
    let proxy = Proxy::build().env("APTMESH_LISTEN_DRAIN_DELAY", "1h").start();
    assert_eq!(health(proxy.admin(), &[]).status.code(), Some(0));
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn health_reaches_what_listens_everywhere() {
    for everywhere in ["0.0.0.0", "[::]"] {
        let all = |port| format!("{everywhere}:{port}").parse::<SocketAddr>().unwrap();
        let proxy = Proxy::build().at(all(0).ip()).start();
        assert_eq!(health(all(proxy.admin().port()), &[]).status.code(), Some(0), "{everywhere}");
    }
}
