//! Pods of the chart, run with the commands, variables, users, rights and mounts that their manifests have.

mod node;

use crate::chart::{Manifests, render};
use crate::engine::{Container, Network, image, next_image, standin};
use crate::kit::{HostArchive, get, wait_until};
use node::{Node, Running};
use std::net::SocketAddr;
use std::time::Duration;

/// What the Service is called, as the ConfigMap for clients has it.
const CACHE: &str = "http://aptmesh.apt.svc:9977";
const SERVICE: [&str; 2] = ["aptmesh", "aptmesh.apt.svc"];

/// A release of which nothing has to be there before: database, migration, replica, its node, `helm test`.
#[test]
fn the_example_to_try_out_runs() {
    let release = release("try", image(), &[]);
    let node = Node::new(&release.0);
    let database =
        node.start(pod(&release, "postgresql"), "aptmesh-postgresql-0", &["aptmesh-postgresql"]);
    database.wait_until_ready();
    let name = "aptmesh-0";
    let own = format!("{name}.aptmesh-headless.apt.svc");
    let replica = node.start(release.replica(), name, &[SERVICE[0], SERVICE[1], &own]);
    replica.wait_until_ready();

    // It has no rights, and nothing else went wrong unnoticed.
    for container in ["proxy", "dht"] {
        let rights = replica.container(container).must(&["cat", "/proc/1/status"]);
        for right in ["Uid:\t9977\t9977", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(rights.contains(right), "{container}: {right} in {rights}");
        }
        assert_eq!(String::from_utf8(get(replica.at(9978), "/readyz").body).unwrap(), "ready\n");
    }
    let client = client_of(&node.network, CACHE);
    install(&client);
    let settings = replica.container("proxy").must(&["aptmesh", "config"]);
    assert!(settings.contains(&format!("http://{own}:9979")), "{settings}");
    // Another replica, with a volume of its own, has it from the first one, by that name.
    let other = node.start(release.replica(), "aptmesh-1", &["aptmesh-1.aptmesh-headless.apt.svc"]);
    other.wait_until_ready();
    install(&client_of(&node.network, "http://aptmesh-1:9977"));
    let from = |source| {
        value(&other, &format!("aptmesh_swarm_received_bytes_total{{from=\"{source}\"}}")).unwrap()
    };
    assert!(from("replica") > 1e6, "{}", other.container("proxy").logs());
    drop(other);
    // The node is of the swarm whose key the release made, and the proxy asks it.
    assert!(value(&replica, "aptmesh_swarm_sidecar_away") == Some(0.0));

    let tested = node.start(pod(&release, "test"), "aptmesh-test", &[]);
    let said = tested.wait_until_done();
    assert!(said.contains("HTTP/1.1 406 ") && said.contains("HTTP/1.1 200 "), "{said}");

    for (container, code) in replica.terminate() {
        assert_eq!(code, 0, "{container} ended by itself, and well");
    }
    assert!(database.terminate().iter().all(|(_, code)| *code == 0));
}

/// Others' nodes are for savings: a swarm that can not be reached takes no replica out of the Service.
#[test]
fn a_replica_without_its_swarm_is_ready() {
    let dead = r#"settings.swarm.bootstrap="node.invalid:9980""#;
    let release = release("try", image(), &[dead]);
    let node = Node::new(&release.0);
    let database =
        node.start(pod(&release, "postgresql"), "aptmesh-postgresql-0", &["aptmesh-postgresql"]);
    database.wait_until_ready();
    let replica = node.start(release.replica(), "aptmesh-0", &SERVICE);
    replica.wait_until_ready();
    assert_eq!(get(replica.at(9982), "/readyz").status, 503, "its node is alone");
    install(&client_of(&node.network, CACHE));
}

/// `helm test` fails where the Service leads to nobody, or the cache can not fetch.
#[test]
fn the_releases_own_test_fails_where_nothing_is_served() {
    let release = release("try", image(), &[]);
    let node = Node::new(&release.0);
    let tested = node.start(pod(&release, "test"), "aptmesh-test", &[]);
    assert_ne!(tested.exit_code("test"), 0);
    drop(tested);

    let cache = ["--network", node.network.name(), "--network-alias", "aptmesh"];
    let offline = ["--env", "APTMESH_MIRROR_OFFLINE=true"];
    let cache = Container::start("cache", &[&cache[..], &offline].concat(), image(), &[]);
    cache.wait_until_healthy();
    let tested = node.start(pod(&release, "test"), "aptmesh-test", &[]);
    assert_ne!(tested.exit_code("test"), 0);
    let said = tested.container("test").logs();
    assert!(said.contains("HTTP/1.1 406 ") && said.contains("HTTP/1.1 504 "), "{said}");
}

/// A site with a database and a shared volume that are there: the Job first, then replicas; an upgrade, and back.
#[test]
fn a_site_is_installed_upgraded_and_rolled_back() {
    let secrets = [r#"swarm.existingSecret="swarm-key""#];
    let first = release("deployment", image(), &secrets);
    let next = release("deployment", next_image(), &secrets);
    let bundled = release("try", image(), &[]);
    let mut node = Node::new(&[&first.0[..], &bundled.0].concat());
    let url = node.secret("aptmesh-postgresql", "url");
    node.give_secret("aptmesh-index", "url", &url);
    node.give_secret("swarm-key", "key", &"5a".repeat(32));
    let node = node;
    let database = node.start(pod(&bundled, "postgresql"), "database", &["aptmesh-postgresql"]);
    database.wait_until_ready();

    let said = node.start(pod(&first, "migrate"), "migrate", &[]).wait_until_done();
    assert!(said.contains("migrated: "), "{said}");
    let one = node.start(first.replica(), "one", &SERVICE);
    one.wait_until_ready();
    install(&client_of(&node.network, CACHE));
    assert!(value(&one, "aptmesh_mirror_received_bytes_total") > Some(0.0));

    // The hook of the upgrade runs beside the old replicas; a new one comes before an old one goes.
    let said = node.start(pod(&next, "migrate"), "migrate", &[]).wait_until_done();
    assert!(said.contains("up to date") && !said.contains("migrated: "), "{said}");
    let two = node.start(next.replica(), "two", &SERVICE);
    two.wait_until_ready();
    assert!(one.terminate().iter().all(|(_, code)| *code == 0));
    drop(one);
    install(&client_of(&node.network, CACHE));
    let fetched = value(&two, "aptmesh_mirror_received_bytes_total").unwrap();
    assert!(fetched < 1e6, "{fetched} bytes were fetched again: the volume is not shared");

    // And back, with the older program's migration first.
    let said = node.start(pod(&first, "migrate"), "migrate", &[]).wait_until_done();
    assert!(said.contains("up to date"), "{said}");
    let three = node.start(first.replica(), "three", &SERVICE);
    three.wait_until_ready();
    assert!(two.terminate().iter().all(|(_, code)| *code == 0));
    drop(two);
    install(&client_of(&node.network, CACHE));
}

/// What a node's own apt is told, and that it is on its own again when the release goes.
#[test]
fn a_nodes_apt_is_pointed_at_the_cache_and_back() {
    let on = [
        format!("client.url={CACHE:?}"),
        "client.configMap.enabled=true".to_owned(),
        "client.daemonSet.enabled=true".to_owned(),
    ];
    let release = release("try", image(), &on.each_ref().map(String::as_str));
    // For pods, a file with the same address.
    let file = release.get("ConfigMap", "aptmesh-client")["data"]["30aptmesh"].as_str().unwrap();
    assert_eq!(file, format!("Acquire::http::Proxy \"{CACHE}\";\n"));

    let node = Node::new(&release.0);
    let hosts = format!("APTMESH_MIRROR_ALLOW_PRIVATE={}", HostArchive::read().hosts().join(","));
    let options = ["--network", node.network.name(), "--env", &hosts];
    let names = SERVICE.map(|name| format!("--network-alias={name}"));
    let options = [&options[..], &names.each_ref().map(String::as_str)].concat();
    let cache = Container::start("cache", &options, image(), &[]);
    cache.wait_until_healthy();

    let folders = ["/etc/apt/apt.conf.d", "/usr/local/lib/aptmesh"];
    let mounts = folders.map(|path| format!("--volume={}:{path}:nocopy", node.folder(path)));
    let options = ["--network", node.network.name(), "--init", &mounts[0], &mounts[1]];
    let machine = standin("debian:trixie-slim");
    let machine = Container::start("machine", &options, &machine, &["sleep", "infinity"]);
    let setting = "/etc/apt/apt.conf.d/30aptmesh";
    let writer = node.start(pod(&release, "client"), "writer", &[]);
    let is_there = || machine.exec(&["test", "-e", setting]).ok;
    wait_until(Duration::from_secs(60), "the setting", is_there);
    install(&machine);
    let told = String::from_utf8(get(metrics_of(&cache), "/metrics").body).unwrap();
    assert!(number(&told, "aptmesh_mirror_received_bytes_total") > Some(1e6), "{told}");

    assert_eq!(writer.terminate(), [("client".to_owned(), 0)]);
    assert!(!is_there() && machine.must(&["ls", folders[1]]).is_empty());
    machine.must(&["apt-get", "update"]);
}

/// A URL that nodes' apt can not use ends the container, which is seen, and writes nothing.
#[test]
fn a_nodes_apt_that_can_not_be_pointed_at_the_cache_is_noticed() {
    let on = [r#"client.url="http://cache~1:9977""#, "client.daemonSet.enabled=true"];
    let release = release("try", image(), &on);
    let node = Node::new(&release.0);
    let writer = node.start(pod(&release, "client"), "writer", &[]);
    assert_ne!(writer.exit_code("client"), 0);
    let said = writer.container("client").logs();
    assert!(said.contains("the URL of a cache is http://HOST:PORT"), "{said}");
}

/// An example, with this image, that may ask this machine's archive.
fn release(example: &str, image: &str, values: &[&str]) -> Manifests {
    standin("postgres:17-trixie");
    let archive = HostArchive::read();
    let (repository, tag) = image.split_once(':').unwrap();
    let entry = &archive.entries[0];
    let path = entry.uri.trim_start_matches("http://").trim_end_matches('/');
    let hosts = serde_json::json!(archive.hosts());
    let own = [
        format!("image.repository={repository:?}"),
        format!("image.tag={tag:?}"),
        format!("settings.mirror.allow_private={hosts}"),
        // Whoever runs the tests may have little room left.
        r#"settings.store.min_free="100MiB""#.to_owned(),
        format!("test.path=\"{path}/dists/{}/InRelease\"", entry.suite),
    ];
    let all: Vec<&str> = own.iter().map(String::as_str).chain(values.iter().copied()).collect();
    render(example, &all)
}

fn pod<'a>(release: &'a Manifests, component: &str) -> crate::chart::Pod<'a> {
    let found = release.pods().into_iter().find(|pod| pod.component() == component);
    found.unwrap_or_else(|| panic!("no pod for {component}"))
}

/// A machine whose apt knows a cache, and no way around it.
fn client_of(network: &Network, cache: &str) -> Container {
    let image = standin("debian:trixie-slim");
    let options = ["--network", network.name(), "--init"];
    let client = Container::start("client", &options, &image, &["sleep", "infinity"]);
    let setting = format!("Acquire::http::Proxy \"{cache}\";");
    client.must(&["sh", "-c", "printf '%s\\n' \"$0\" > /etc/apt/apt.conf.d/30aptmesh", &setting]);
    client
}

fn install(client: &Container) {
    client.must(&["apt-get", "update"]);
    client.must(&["apt-get", "install", "-y", "hello"]);
    client.must(&["hello"]);
}

/// A metric of a replica's proxy.
fn value(replica: &Running<'_>, name: &str) -> Option<f64> {
    let told = String::from_utf8(get(replica.at(9978), "/metrics").body).unwrap();
    number(&told, name)
}

fn metrics_of(container: &Container) -> SocketAddr {
    SocketAddr::new(container.ip().parse().unwrap(), 9978)
}

fn number(told: &str, name: &str) -> Option<f64> {
    told.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
