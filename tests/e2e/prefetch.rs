//! New versions of what a site uses are there before anybody asks; offline, and without prefetching,
//! nothing is fetched.

use crate::kit::*;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const FETCHED: &str = "aptmesh_engine_prefetched_bytes_total{fate=\"fetched\"}";
const USED: &str = "aptmesh_engine_prefetched_bytes_total{fate=\"used\"}";
const WASTED: &str = "aptmesh_engine_prefetched_bytes_total{fate=\"wasted\"}";

/// The newer the versions, the later it is made.
fn archive(version: &str, size: usize) -> LocalArchive {
    let minutes = u64::from(version.bytes().last().unwrap());
    LocalArchive::new("demo")
        .package("tool", version, size)
        .package("other", version, size)
        .later(minutes)
}

fn proxy(settings: &[(&str, &str)]) -> Proxy {
    let build = Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s");
    settings.iter().fold(build, |build, (name, value)| build.env(name, value)).start()
}

/// A client that updates, until what the archive has now is learnt.
fn update(proxy: &Proxy, mirror: &Mirror, archive: &LocalArchive) {
    archive.publish(mirror, "/debian");
    let before = proxy.count("aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}");
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        let reply = get(proxy.addr(), &proxy.url_for(mirror, &format!("/debian/{path}")));
        assert_eq!(reply.status, 200, "{path}: {}", reply.reason);
    }
    wait_until(PATIENCE, "both lists are learnt", || {
        proxy.count("aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}") >= before + 2
    });
}

fn fetch(proxy: &Proxy, mirror: &Mirror, archive: &LocalArchive, name: &str) -> Reply {
    let path = format!("/debian/{}", archive.deb_path(name));
    let reply = get(proxy.addr(), &proxy.url_for(mirror, &path));
    assert_eq!(reply.body, archive.deb(name), "{}", reply.reason);
    proxy.wait_landed();
    reply
}

fn bodies(mirror: &Mirror, archive: &LocalArchive, name: &str) -> usize {
    mirror.bodies(&format!("/debian/{}", archive.deb_path(name)))
}

#[test]
fn the_new_version_of_what_was_used_is_there_before_anybody_asks() {
    let (mirror, proxy) = (Mirror::start(), proxy(&[("APTMESH_PREFETCH_BUDGET", "10MiB")]));
    let states = ["1.0", "1.1", "1.2"].map(|version| archive(version, 100_000));
    update(&proxy, &mirror, &states[0]);
    fetch(&proxy, &mirror, &states[0], "tool");
    for (number, state) in states.iter().enumerate().skip(1) {
        // What was used is known to the index some seconds later.
        std::thread::sleep(Duration::from_secs(1));
        update(&proxy, &mirror, state);
        wait_until(PATIENCE, "it is fetched", || bodies(&mirror, state, "tool") == 1);
        let wanted = u64::try_from(number * states[0].deb("tool").len()).unwrap();
        wait_until(PATIENCE, "it is counted", || proxy.count(FETCHED) == wanted);
        proxy.wait_landed();
    }
    assert_eq!(bodies(&mirror, &states[1], "other"), 0, "nobody used it");
    // The version between was never asked for.
    assert_eq!(proxy.count(WASTED), states[1].deb("tool").len() as u64);
    assert_eq!(proxy.count(USED), 0);
    let reply = fetch(&proxy, &mirror, &states[2], "tool");
    assert_eq!(reply.header("cache-status"), Some("aptmesh; hit"));
    assert_eq!(bodies(&mirror, &states[2], "tool"), 1);
    assert_eq!(proxy.count(USED), states[2].deb("tool").len() as u64);
}

#[test]
fn nothing_is_fetched_beyond_the_budget_or_the_hours_or_without_being_told() {
    let now = std::process::Command::new("date").arg("+%H").output().unwrap();
    let now: u32 = String::from_utf8_lossy(&now.stdout).trim().parse().unwrap();
    let later = format!("{}-{}", (now + 3) % 24, (now + 4) % 24);
    let settings: [&[(&str, &str)]; 3] = [
        &[],
        &[("APTMESH_PREFETCH_BUDGET", "50kB")],
        &[("APTMESH_PREFETCH_BUDGET", "10MiB"), ("APTMESH_PREFETCH_HOURS", &later)],
    ];
    for settings in settings {
        let (mirror, proxy) = (Mirror::start(), proxy(settings));
        let (old, new) = (archive("1.0", 100_000), archive("1.1", 100_000));
        update(&proxy, &mirror, &old);
        fetch(&proxy, &mirror, &old, "tool");
        update(&proxy, &mirror, &new);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(bodies(&mirror, &new, "tool"), 0, "{settings:?}");
        assert_eq!(proxy.count(FETCHED), 0);
    }
}

#[test]
fn a_client_does_not_wait_for_what_is_fetched_slowly() {
    let settings = [("APTMESH_PREFETCH_BUDGET", "10MiB"), ("APTMESH_PREFETCH_RATE", "1kB")];
    let (mirror, proxy) = (Mirror::start(), proxy(&settings));
    let (old, new) = (archive("1.0", 1_000_000), archive("1.1", 1_000_000));
    update(&proxy, &mirror, &old);
    fetch(&proxy, &mirror, &old, "tool");
    update(&proxy, &mirror, &new);
    wait_until(PATIENCE, "it is begun", || bodies(&mirror, &new, "tool") == 1);
    // At a kilobyte a second it would take a quarter of an hour.
    assert_eq!(proxy.metric("aptmesh_engine_flights"), 1.0);
    let reply = fetch(&proxy, &mirror, &new, "tool");
    assert!(reply.header("cache-status").unwrap().contains("collapsed"), "{:?}", reply.headers);
    assert_eq!(bodies(&mirror, &new, "tool"), 1);
}

#[test]
fn what_could_not_be_fetched_is_tried_once_more() {
    let (mirror, proxy) = (Mirror::start(), proxy(&[("APTMESH_PREFETCH_BUDGET", "250kB")]));
    let (old, new) = (archive("1.0", 100_000), archive("1.1", 100_000));
    update(&proxy, &mirror, &old);
    fetch(&proxy, &mirror, &old, "tool");
    mirror.script(&format!("/debian/{}", new.deb_path("tool")), vec![Fault::Status(503); 4]);
    update(&proxy, &mirror, &new);
    wait_until(PATIENCE, "it is fetched", || proxy.count(FETCHED) > 0);
    assert_eq!(bodies(&mirror, &new, "tool"), 1);
}

#[test]
fn what_came_in_under_another_name_is_used_here_too() {
    let (one, other) = (Mirror::start(), Mirror::start_at("127.0.0.2"));
    let proxy = proxy(&[("APTMESH_PREFETCH_BUDGET", "10MiB")]);
    let (old, new) = (archive("1.0", 100_000), archive("1.1", 100_000));
    update(&proxy, &one, &old);
    fetch(&proxy, &one, &old, "tool");
    update(&proxy, &other, &old);
    assert_eq!(fetch(&proxy, &other, &old, "tool").header("cache-status"), Some("aptmesh; hit"));
    update(&proxy, &other, &new);
    wait_until(PATIENCE, "it is fetched from there", || bodies(&other, &new, "tool") == 1);
}

#[test]
fn bad_hours_and_sizes_end_the_start() {
    for (name, value) in [
        ("APTMESH_PREFETCH_HOURS", "25-3"),
        ("APTMESH_PREFETCH_BUDGET", "much"),
        ("APTMESH_PREFETCH_RATE", "-1"),
    ] {
        let run = aptmesh().arg("config").env(name, value).output().unwrap();
        assert_eq!(run.status.code(), Some(78), "{name}");
        assert!(String::from_utf8_lossy(&run.stderr).contains("prefetch."), "{name}");
    }
}
