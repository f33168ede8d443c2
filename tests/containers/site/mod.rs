//! The site of `compose.yaml`, with real machines: what it does for them, and what may happen to it while
//! they notice nothing.

mod compose;
mod files;
mod machine;

use crate::engine::{Container, Image, Network, docker, image, next_image};
use crate::kit::{HostArchive, wait_until};
use compose::{PATIENCE, Part, Site};
use machine::{Load, Machine};
use serde_json::Value;
use std::fs;
use std::thread;

const FROM_MIRRORS: &str = "aptmesh_mirror_received_bytes_total";
const SERVED: &str = "aptmesh_engine_served_bytes_total";
/// A swarm's key, as `aptmesh key` makes them.
const OTHER_KEY: &str = "d6f8ace2735adba9792b2e0af28678a174d2825007bd08a070dbc26be65692ad";
/// Programs that people install, with some forty packages that they need.
const PROGRAMS: [&str; 3] = ["git", "jq", "curl"];
/// One package of some fifty megabytes.
const LARGE: &str = "fonts-noto-cjk";
/// Others, which only come into play when there are two sites.
const LATER: [&str; 3] = ["fonts-noto-core", "emacs-common", "vim-runtime"];

#[test]
fn a_site_serves_on_through_all_that_happens_to_it() {
    let mut site = Site::new("site", image()).with_grafana();
    site.up();
    runs_without_any_rights(&site);
    tells_no_secret(&site);
    machines_share_what_the_mirror_gives_once(&site);
    prometheus_sees_all_of_it(&site);
    grafana_has_the_dashboards(&site);
    a_replica_that_dies_costs_no_download(&site);
    the_database_may_go_away(&site);
    a_third_replica_is_found_by_all(&site);
    survives_an_image_that_does_not_run(&mut site);
    is_upgraded_under_load(&mut site);
    another_site_takes_from_it(&site);
    nobody_may_be_away_unnoticed(&site);
    ends_in_good_order(&site);
}

/// Another site's key is used; a name of no file is no key.
#[test]
fn a_site_takes_the_key_that_it_is_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("swarm.key");
    let mut site = Site::new("key", image());
    site.set("SITE_SWARM_KEY_FILE", file.to_str().expect("UTF-8"));
    let refused = site.run_alone("secrets", &[], &[]);
    assert!(!refused.ok && refused.output.contains("names no file"), "{}", refused.output);

    fs::remove_dir(&file).expect("the engine makes a folder of it");
    for (content, is_key) in [("", false), (OTHER_KEY, true)] {
        fs::write(&file, content).expect("a key");
        let run = site.run_alone("secrets", &[], &[]);
        assert_eq!(run.ok, is_key, "{content:?}: {}", run.output);
    }
    let read = ["--entrypoint", "cat"];
    let key = site.run_alone("secrets", &read, &["/run/secrets/aptmesh/swarm.key"]);
    assert!(key.output.contains(OTHER_KEY), "{}", key.output);
}

fn runs_without_any_rights(site: &Site) {
    for service in ["proxy", "dht", "gateway", "postgres", "prometheus"] {
        for part in site.parts(service) {
            let rights = part.exec(&["cat", "/proc/1/status"]).output;
            for right in
                ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"]
            {
                assert!(rights.contains(right), "{service}: {right} in {rights}");
            }
            assert!(!rights.contains("Uid:\t0"), "{service}: {rights}");
            let is_ours = ["proxy", "dht"].contains(&service);
            assert_eq!(
                rights.contains("Uid:\t9977\t9977\t9977\t9977"),
                is_ours,
                "{service}: {rights}"
            );
            assert!(!part.exec(&["touch", "/file"]).ok, "{service} can write its root");
            let limits = part.inspect(
                "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}",
            );
            assert!(
                limits.split(' ').all(|limit| limit.parse::<u64>().unwrap() > 0),
                "{service}: {limits}"
            );
            assert_eq!(part.inspect("{{.HostConfig.RestartPolicy.Name}}"), "unless-stopped");
        }
    }
}

/// They are in files, and each container sees those that it needs.
fn tells_no_secret(site: &Site) {
    let read = |service: &str, file: &str| {
        site.parts(service)[0].exec(&["cat", &format!("/run/secrets/aptmesh/{file}")])
    };
    let password = read("postgres", "postgres.password").output;
    let [url, key] = ["index.url", "swarm.key"].map(|file| read("proxy", file).output);
    assert!(password.len() == 48 && url.contains(&password) && key.len() >= 32, "{url}");
    for file in ["index.url", "swarm.key"] {
        assert!(!read("postgres", file).ok, "PostgreSQL reads {file}");
    }
    let of_grafana = site.secret_of_grafana();
    assert_eq!(of_grafana.len(), 48);
    for service in ["proxy", "dht"] {
        let found = site.parts(service)[0].exec(&["find", "/run/secrets", "-name", "*password*"]);
        assert_eq!(found.output.trim(), "/run/secrets/aptmesh/postgres.password", "{service}");
    }

    let mut told = site.compose(&["config"]);
    for part in site.all() {
        told += &docker(&["inspect", &part.id]);
        told += &docker(&["logs", &part.id]);
    }
    for secret in [password, key, of_grafana] {
        assert!(!told.contains(secret.trim()), "a secret is told");
    }
}

/// Three new machines at once: what each package weighs comes from the mirror once. Machines with a cache of
/// their own, however good, fetch it once each.
fn machines_share_what_the_mirror_gives_once(site: &Site) {
    let machines: Vec<_> = (0..3).map(|_| Machine::with_cache(&site.url())).collect();
    thread::scope(|scope| {
        for machine in &machines {
            scope.spawn(|| {
                machine.update();
                machine.install(&PROGRAMS);
                machine.must(&["git", "--version"]);
            });
        }
    });
    let (fetched, served) = (site.count(FROM_MIRRORS, ""), site.count(SERVED, ""));
    println!("three machines were served {served} bytes, of which mirrors gave {fetched}");
    assert!(fetched > 10_000_000, "{fetched}");
    assert!(fetched * 3 <= served + served / 50, "{fetched} of {served} bytes came from mirrors");
    assert!(site.replicas().iter().all(|replica| replica.count(SERVED, "") > 0), "one serves all");

    let network = Network::new("alone");
    let alone = thread::scope(|scope| {
        let caches: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let cache = Alone::new(&network);
                    let machine = Machine::with_cache(&cache.url());
                    machine.update();
                    assert!(machine.download(&PROGRAMS).ok);
                    cache.part().count(FROM_MIRRORS, "")
                })
            })
            .collect();
        caches.into_iter().map(|cache| cache.join().expect("a cache alone")).sum::<u64>()
    });
    assert!(
        alone * 10 > fetched * 19,
        "two that share nothing fetched {alone}, the site {fetched}"
    );
}

fn prometheus_sees_all_of_it(site: &Site) {
    wait_until(PATIENCE, "all targets up", || {
        site.ask("count(up)") == Some(5.0) && site.ask("sum(up)") == Some(5.0)
    });
    // Its own processes are one site to dashboards and alerts.
    assert_eq!(site.ask(r#"count(up{site="aptmesh"})"#), Some(4.0));
    let hits = r#"sum(aptmesh_engine_served_bytes_total{source="store"})"#;
    let served = site.count(SERVED, r#"source="store""#) as f64;
    wait_until(PATIENCE, "Prometheus to know what was served", || site.ask(hits) >= Some(served));
    let machine = Machine::with_cache(&site.url());
    machine.update();
    assert!(machine.download(&PROGRAMS).ok);
    wait_until(PATIENCE, "the hits to be counted", || {
        site.ask(hits) >= Some(served + 10_000_000.0)
    });

    let told = site.prometheus("/api/v1/rules");
    let groups = told["groups"].as_array().expect("groups of rules");
    let rules: Vec<&Value> =
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert!(rules.len() > 5, "{told}");
    wait_until(PATIENCE, "all rules to be evaluated", || {
        let told = site.prometheus("/api/v1/rules").to_string();
        assert!(!told.contains(r#""health":"err""#), "{told}");
        !told.contains(r#""health":"unknown""#)
    });
    let firing = site.ask(r#"count(ALERTS{alertstate="firing"})"#);
    assert_eq!(
        firing,
        None,
        "alerts of a site that is well: {}",
        site.prometheus("/api/v1/alerts")
    );
}

fn grafana_has_the_dashboards(site: &Site) {
    if site.grafana("/api/health").is_none() {
        return;
    }
    for (path, count) in [("/api/search?type=dash-db", 4), ("/api/datasources", 1)] {
        wait_until(PATIENCE, &format!("{count} at Grafana's {path}"), || {
            let told = site.grafana(path).unwrap_or_default();
            told.as_array().is_some_and(|found| found.len() == count)
        });
    }
}

/// A machine behind the gateway goes on with another replica; one that has only this one can not.
fn a_replica_that_dies_costs_no_download(site: &Site) {
    let [behind, straight] = [0, 1].map(|_| {
        let machine = Machine::with_cache(&site.url());
        machine.update();
        // Kilobytes a second.
        machine.set_apt("Acquire::http::Dl-Limit", "3000");
        machine
    });
    wait_until(PATIENCE, "connections to end", || {
        site.replicas().iter().all(|replica| replica.clients() == 0)
    });
    thread::scope(|scope| {
        let download = scope.spawn(|| behind.download(&[LARGE]));
        wait_until(PATIENCE, "a download", || behind.downloaded() > 2_000_000);
        let mut replicas = site.replicas().into_iter();
        let replica = replicas.find(|replica| replica.clients() > 0).expect("one serves it");
        let ip = replica.ip().expect("an address");
        straight.set_apt("Acquire::http::Proxy", &format!("http://{ip}:9977"));
        let without_gateway = scope.spawn(|| straight.download(&[LARGE]));
        wait_until(PATIENCE, "another", || straight.downloaded() > 2_000_000);

        docker(&["kill", &replica.id]);
        let so_far = behind.downloaded();
        assert!(!download.is_finished() && so_far < 40_000_000, "{so_far} bytes were there");
        let finished = download.join().expect("a machine");
        assert!(finished.ok, "{}", finished.output);
        let failed = without_gateway.join().expect("a machine");
        assert!(!failed.ok, "nobody was there to serve it: {}", failed.output);
        assert_eq!(replica.inspect("{{.State.Running}}"), "false");
        wait_until(PATIENCE, "Prometheus to miss it", || {
            site.ask(r#"count(up{job="aptmesh-proxy"} == 1)"#) == Some(1.0)
        });
        docker(&["start", &replica.id]);
    });
    behind.must(&["apt-get", "install", "--yes", LARGE]);
    site.wait_for_replicas(2);
}

fn load(site: &Site) -> Vec<Machine> {
    (0..3).map(|_| Machine::impatient(&site.url())).collect()
}

fn the_database_may_go_away(site: &Site) {
    let machines = load(site);
    let load = Load { machines: &machines, packages: "git" };
    let database = site.part("postgres");
    let all_say = |what: &str| site.replicas().iter().all(|replica| replica.readiness() == what);
    let failures = load.during(|rounds| {
        rounds.wait_for_whole();
        docker(&["restart", "--time", "40", &database.id]);
        wait_until(PATIENCE, "replicas to have it back", || all_say("ready\n"));
        rounds.wait_for_whole();

        docker(&["stop", "--time", "40", &database.id]);
        wait_until(PATIENCE, "replicas to miss it", || {
            site.replicas()
                .iter()
                .all(|it| it.readiness().starts_with("ready, but without its index"))
        });
        rounds.wait_for_whole();
        docker(&["start", &database.id]);
        wait_until(PATIENCE, "replicas to have it back", || all_say("ready\n"));
        rounds.wait_for_whole();
    });
    assert!(failures.is_empty(), "{failures:#?}");
}

fn a_third_replica_is_found_by_all(site: &Site) {
    site.compose(&["up", "-d", "--no-recreate", "--scale", "proxy=3"]);
    assert_eq!(site.replicas().len(), 3);
    site.wait_for_replicas(3);
    wait_until(PATIENCE, "Prometheus to ask three", || {
        site.ask(r#"sum(up{job="aptmesh-proxy"})"#) == Some(3.0)
    });
    let machines = load(site);
    let load = Load { machines: &machines, packages: "git" };
    let failures = load.during(|_| {
        wait_until(PATIENCE, "all three to serve", || {
            site.replicas().iter().all(|replica| replica.count(SERVED, r#"source="store""#) > 0)
        });
    });
    assert!(failures.is_empty(), "{failures:#?}");
    for count in [1, 2] {
        let scale = format!("proxy={count}");
        site.compose(&["up", "-d", "--no-recreate", "--scale", &scale]);
        site.wait_for_replicas(count);
    }
}

/// A new replica that ends at once takes no old one's place, be these well or sick, and is no hindrance later.
fn survives_an_image_that_does_not_run(site: &mut Site) {
    let broken = Image::changed("broken", image(), r#"ENTRYPOINT ["/bin/true"]"#);
    let old = site.replicas();
    docker(&["kill", "--signal", "STOP", &old[0].id]);
    wait_until(PATIENCE, "a replica to be sick", || {
        old[0].inspect("{{.State.Health.Status}}") == "unhealthy"
    });
    site.set("SITE_IMAGE", broken.name());
    let failed = site.upgrade();
    assert!(!failed.ok && failed.output.contains("no new replica got ready"), "{}", failed.output);
    assert!(site.replicas() == old, "{}", site.compose(&["ps"]));

    site.set("SITE_IMAGE", image());
    let upgraded = site.upgrade();
    assert!(upgraded.ok, "{}", upgraded.output);
    let new = site.replicas();
    assert!(new.len() == 2 && new.iter().all(|replica| !old.contains(replica)));
    site.wait_for_replicas(2);
}

/// One by one, no machine fails, though none tries twice. All at once, some do.
fn is_upgraded_under_load(site: &mut Site) {
    let machines = load(site);
    let load = Load { machines: &machines, packages: "git" };
    let version = r#"{{index .Config.Labels "org.opencontainers.image.version"}}"#;
    let old: Vec<Part> = ["proxy", "dht", "migrate"].iter().flat_map(|it| site.parts(it)).collect();
    assert!(old.iter().all(|part| part.inspect(version) == "0.1.0"));

    site.set("SITE_IMAGE", next_image());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("swarm.key");
    fs::write(&file, OTHER_KEY).expect("a key");
    site.set("SITE_SWARM_KEY_FILE", file.to_str().expect("UTF-8"));
    let swarm = site.part("dht").swarm();
    let failures = load.during(|rounds| {
        rounds.wait_for_whole();
        let upgraded = site.upgrade();
        assert!(upgraded.ok, "{}", upgraded.output);
        rounds.wait_for_whole();
    });
    wait_until(PATIENCE, "the node to be in the other key's swarm", || {
        ![None, swarm.as_ref()].contains(&site.part("dht").swarm().as_ref())
    });
    assert!(failures.is_empty(), "{failures:#?}");
    let new: Vec<Part> = ["proxy", "dht", "migrate"].iter().flat_map(|it| site.parts(it)).collect();
    assert_eq!(new.len(), old.len());
    assert!(new.iter().all(|part| part.inspect(version) == "0.1.1" && !old.contains(part)));
    site.wait_for_replicas(2);
    // Nothing is left to be done.
    let all = site.all();
    site.up();
    assert!(site.all() == all, "{}", site.compose(&["ps"]));

    let failures = load.during(|rounds| {
        site.compose(&["stop", "proxy"]);
        rounds.wait_for_whole();
        site.compose(&["up", "-d", "proxy"]);
        site.wait_for_replicas(2);
    });
    assert!(!failures.is_empty(), "all replicas were away, and nobody noticed");
}

/// Before it joins it has all from mirrors, after that from the first site.
fn another_site_takes_from_it(first: &Site) {
    let machine = Machine::with_cache(&first.url());
    machine.update();
    assert!(machine.download(&LATER).ok);
    let mut second = Site::new("second", next_image());
    second.set("FIRST_PROJECT", first.project());
    second.set_options(&["--env-file", "second.env"]);
    second.up();
    second.wait_for_replicas(2);
    let machine = Machine::with_cache(&second.url());
    machine.update();
    assert!(machine.download(&PROGRAMS).ok);
    let (from_mirrors, from_first) = received(&second);
    assert!(from_mirrors > 10_000_000 && from_first == 0, "{from_mirrors} {from_first}");

    second.set_options(&[
        "--env-file",
        "second.env",
        "-f",
        "compose.yaml",
        "-f",
        "compose.second.yaml",
    ]);
    let allowed = second.addresses_of_clients(first);
    second.set("APTMESH_CLIENTS_ALLOW", &allowed.join(","));
    second.up();
    second.wait_for_replicas(2);
    knows_its_clients(&second);
    for site in [first, &second] {
        wait_until(PATIENCE, "sites to know each other", || {
            site.replicas().iter().all(|replica| replica.count("aptmesh_swarm_filters", "") > 0)
        });
    }
    let given = || first.count("aptmesh_engine_given_bytes_total", r#"to="peer""#);
    let (given_before, before) = (given(), received(&second));
    let wanted = [&LATER[..], &[LARGE]].concat();
    let fetched = machine.download(&wanted);
    assert!(fetched.ok, "{}", fetched.output);
    let after = received(&second);
    let (from_mirrors, from_first) = (after.0 - before.0, after.1 - before.1);
    let given = given() - given_before;
    println!("the second site had {from_first} bytes from the first, {from_mirrors} from mirrors");
    assert!(
        from_first > 60_000_000 && from_first >= from_mirrors * 9,
        "{from_first} {from_mirrors}"
    );
    assert!(given >= from_first, "the first site knows of {given} bytes of {from_first}");
    machine.must(&[&["apt-get", "install", "--yes", "--no-download"], &wanted[..]].concat());
}

/// The gateway is no client, nor is who comes around it: whom it carries is.
fn knows_its_clients(site: &Site) {
    for replica in site.replicas() {
        let around = replica.get(9977, "/");
        assert!(around.contains("is not in clients.allow"), "{around}");
    }
    Machine::impatient(&site.url()).update();
}

/// Bytes that a site had from mirrors and from other sites since its replicas began.
fn received(site: &Site) -> (u64, u64) {
    let from_peers = site.count("aptmesh_swarm_received_bytes_total", r#"from="peer""#);
    (site.count(FROM_MIRRORS, ""), from_peers)
}

/// All replicas have an alert, and so has the gateway.
fn nobody_may_be_away_unnoticed(site: &Site) {
    let alert = r#"ALERTS{alertname="AptmeshDown",job="aptmesh-gateway"}"#;
    assert_eq!(site.ask(alert), None);
    site.compose(&["stop", "proxy"]);
    wait_until(PATIENCE, "an alert as no replica is there", || site.ask(alert).is_some());
    site.compose(&["start", "proxy"]);
    wait_until(PATIENCE, "its end", || site.ask(alert).is_none());
    site.compose(&["stop", "gateway"]);
    wait_until(PATIENCE, "an alert of the gateway", || site.ask(alert).is_some());
}

/// Each by itself, within its grace time.
fn ends_in_good_order(site: &Site) {
    site.compose(&["stop"]);
    for part in site.all() {
        let end = part.inspect("{{.Name}} {{.State.ExitCode}} {{.State.OOMKilled}}");
        assert!(end.ends_with(" 0 false"), "{end}");
    }
}

/// A cache that shares with nobody.
struct Alone {
    container: Container,
}

impl Alone {
    fn new(network: &Network) -> Self {
        let allowed =
            format!("APTMESH_MIRROR_ALLOW_PRIVATE={}", HostArchive::read().hosts().join(","));
        let options = ["--network", network.name(), "--env", &allowed];
        let container = Container::start("alone", &options, image(), &[]);
        container.wait_until_healthy();
        Self { container }
    }

    fn part(&self) -> Part {
        Part { id: self.container.name().to_owned() }
    }

    fn url(&self) -> String {
        format!("http://{}:9977", self.container.ip())
    }
}
