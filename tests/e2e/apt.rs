//! The whole main job with the real apt: the archive that this machine itself uses, through the
//! cache in both forms, and a client that `client-config` set up and that no dead cache stops.

use crate::kit::{Apt, HostArchive, LocalArchive, Mirror, Proxy, Seen, aptmesh};
use std::fs;
use std::process::Command;

/// Packages at least, and the size that one of them has at least.
const PACKAGES: usize = 50;
const BIG: u64 = 30 << 20;

fn proxy_for(archive: &HostArchive) -> Proxy {
    // The machine's archive may be inside its own network.
    let mut allowed = archive.hosts();
    allowed.push("127.0.0.0/8".to_owned());
    Proxy::build()
        .env("APTMESH_MIRROR_ALLOW_PRIVATE", allowed.join(","))
        .env("APTMESH_MIRROR_RECHECK_AFTER", "0s")
        .start()
}

/// The smallest of the packages that are on every system, and the smallest big one.
fn choose(apt: &Apt) -> Vec<String> {
    let listed = apt.run("apt-cache", &["dumpavail"]);
    let mut known: Vec<_> = listed.output.split("\n\n").filter_map(size_and_name).collect();
    known.sort_unstable();
    let common = known.iter().filter(|(_, _, is_common)| *is_common).take(PACKAGES);
    let big = known.iter().find(|(size, _, _)| *size > BIG);
    common.chain(big).map(|(_, name, _)| (*name).to_owned()).collect()
}

fn size_and_name(paragraph: &str) -> Option<(u64, &str, bool)> {
    let field = |name| paragraph.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_common = matches!(field("Priority:")?, "required" | "important" | "standard");
    Some((field("Size:")?.parse().ok()?, field("Package:")?, is_common))
}

/// Begins with nothing: indexes, then packages, which apt checks against the indexes.
fn update_and_download(apt: &Apt) {
    apt.clean_state();
    let update = apt.update();
    assert!(update.ok, "apt-get update of this machine's archive: {}", update.output);
    let chosen = choose(apt);
    let chosen: Vec<&str> = chosen.iter().map(String::as_str).collect();
    let download = apt.download(&chosen);
    assert!(download.ok, "apt-get download of {chosen:?}: {}", download.output);
    let sizes: Vec<u64> =
        apt.archives().iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    assert!(sizes.len() > PACKAGES, "only {} packages: {chosen:?}", sizes.len());
    assert!(sizes.iter().any(|size| *size > BIG), "no big one: {chosen:?}");
}

/// What the proxy counted: answers of files that never change and of release files, and what it
/// asked mirrors for. A file that read-ahead fetched is a hit too, so both sides are looked at.
#[derive(Debug)]
struct Counts {
    hits: f64,
    others: f64,
    releases: f64,
    asked: f64,
    received: f64,
}

impl Counts {
    fn of(proxy: &Proxy) -> Self {
        let served =
            |labels: &str| proxy.metric(&format!("aptmesh_engine_served_total{{{labels}}}"));
        let lasting = |labels: &str| {
            served(&format!("resource=\"package\"{labels}"))
                + served(&format!("resource=\"by_hash\"{labels}"))
        };
        let hits = lasting(",outcome=\"hit\"");
        Self {
            hits,
            others: lasting("") - hits,
            releases: served("resource=\"release\""),
            asked: proxy.metric("aptmesh_mirror_requests_total"),
            received: proxy.metric("aptmesh_mirror_received_bytes_total"),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            hits: self.hits - before.hits,
            others: self.others - before.others,
            releases: self.releases - before.releases,
            asked: self.asked - before.asked,
            received: self.received - before.received,
        }
    }
}

/// The bytes of all release files that apt has.
fn release_bytes(apt: &Apt) -> u64 {
    let lists = fs::read_dir(apt.root().join("var/lib/apt/lists")).unwrap();
    lists
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("Release"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum()
}

fn all_comes_from_the_mirror(proxy: &Proxy, apt: &Apt) {
    update_and_download(apt);
    let counts = Counts::of(proxy);
    assert!(counts.asked > 50.0 && counts.received > 30e6, "{counts:?}");
}

fn only_release_files_come_from_the_mirror(proxy: &Proxy, apt: &Apt) {
    let before = Counts::of(proxy);
    update_and_download(apt);
    let counts = Counts::of(proxy).since(&before);
    assert!(counts.hits > 50.0 && counts.others < 1.0, "{counts:?}");
    assert!(counts.asked > 0.0 && counts.asked <= counts.releases, "{counts:?}");
    // A mirror that gives neither ETag nor Last-Modified sends those again.
    let bound = release_bytes(apt);
    assert!(counts.received <= bound as f64, "release files are {bound} bytes: {counts:?}");
}

#[test]
fn the_machines_archive_is_fetched_once_in_prefix_form() {
    let archive = HostArchive::read();
    let proxy = proxy_for(&archive);
    let apt = Apt::new(None);
    apt.sources(&archive.lines_prefix(proxy.addr()));

    all_comes_from_the_mirror(&proxy, &apt);
    only_release_files_come_from_the_mirror(&proxy, &apt);
    proxy.check_blobs();
}

#[test]
fn the_machines_archive_is_fetched_once_in_proxy_form() {
    let archive = HostArchive::read();
    let proxy = proxy_for(&archive);
    let apt = Apt::new(Some(format!("http://{}", proxy.addr())));
    apt.sources(&archive.lines_direct());

    all_comes_from_the_mirror(&proxy, &apt);
    only_release_files_come_from_the_mirror(&proxy, &apt);
    proxy.check_blobs();

    let other = Apt::new(None);
    other.sources(&archive.lines_prefix(proxy.addr()));
    only_release_files_come_from_the_mirror(&proxy, &other);
}

/// Runs the script of `aptmesh client-config` for the private tree of an apt.
fn configure(apt: &Apt, cache: &str) {
    let printed = aptmesh().args(["client-config", "--url", cache]).output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let script = String::from_utf8(printed.stdout).unwrap();
    let run = Command::new("sh").args(["-c", &script]).env("DESTDIR", apt.root()).status().unwrap();
    assert!(run.success(), "the script failed:\n{script}");
    // Where the private apt reads it by itself, as the machine's does.
    assert!(apt.root().join("etc/apt/apt.conf.d/30aptmesh").is_file(), "{script}");
}

/// What the mirror sees of an update and a download, and the package.
fn asked_of(mirror: &Mirror, apt: &Apt, package: &str) -> Vec<Seen> {
    mirror.clear_log();
    apt.clean_state();
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let download = apt.download(&[package]);
    assert!(download.ok, "{}", download.output);
    assert_eq!(apt.archives().len(), 1, "{}", download.output);
    mirror.log()
}

fn is_apts_own(seen: &Seen) -> bool {
    seen.header("user-agent").is_some_and(|agent| agent.contains("APT-HTTP"))
}

#[test]
fn a_configured_client_uses_the_cache_whenever_it_answers() {
    let mirror = Mirror::start();
    let archive = LocalArchive::new("demo").package("hello-mesh", "1.0", 100_000);
    archive.publish(&mirror, "/debian");
    let deb = format!("/debian/{}", archive.deb_path("hello-mesh"));
    let proxy = Proxy::start();
    let apt = Apt::new(None);
    apt.sources(&archive.source_line(&format!("http://{}/debian", mirror.host())));
    configure(&apt, &format!("http://{}", proxy.addr()));
    let ask = || asked_of(&mirror, &apt, "hello-mesh");
    let passed_by = |asked: &[Seen]| {
        assert!(asked.iter().all(is_apts_own), "{asked:#?}");
        assert_eq!(mirror.bodies(&deb), 1, "{asked:#?}");
    };

    let cold = ask();
    assert!(!cold.is_empty() && !cold.iter().any(is_apts_own), "{cold:#?}");
    let warm = ask();
    assert!(!warm.iter().any(is_apts_own), "{warm:#?}");
    assert_eq!(mirror.bodies(&deb), 0, "{warm:#?}");

    // A process that hangs: the kernel still accepts connections for it.
    proxy.signal("STOP");
    passed_by(&ask());
    proxy.signal("CONT");
    let back = ask();
    assert!(!back.iter().any(is_apts_own), "{back:#?}");
    assert_eq!(mirror.bodies(&deb), 0, "{back:#?}");

    proxy.kill9();
    passed_by(&ask());
}
