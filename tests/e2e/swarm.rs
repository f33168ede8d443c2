//! Sites fetch from each other what one of them has, or is fetching, and from the mirror what none has.

use crate::announce;
use crate::kit::site::Site;
use crate::kit::*;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(60);
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
pub const FROM_PEERS: &str = "aptmesh_swarm_received_bytes_total{from=\"peer\"}";
pub const TO_PEERS: &str = "aptmesh_engine_given_bytes_total";
/// What the mirror may bring of a file so that its clients do not wait for a first byte.
pub const MORSELS: u64 = 256 * 1024;
const MB: usize = 1024 * 1024;

/// Sites with one archive.
pub struct Swarm {
    pub key: String,
    pub mirror: Mirror,
    pub archive: LocalArchive,
}

impl Swarm {
    /// With packages of these names and sizes.
    pub fn of(packages: &[(&str, usize)]) -> Self {
        Self::at("127.0.0.1", packages)
    }

    /// With a mirror at this address.
    pub fn at(ip: &str, packages: &[(&str, usize)]) -> Self {
        let archive = LocalArchive::new("demo");
        let add = |archive: LocalArchive, (name, size): &(&str, usize)| {
            archive.package(name, "1.0", *size)
        };
        let archive = packages.iter().fold(archive, add);
        let swarm = Self { key: node::swarm_key(), mirror: Mirror::start_at(ip), archive };
        swarm.publish(|file| file);
        swarm
    }

    /// Has the mirror give the packages in another manner.
    pub fn publish(&self, alter: impl Fn(File) -> File) {
        self.archive.publish_with(&self.mirror, "/debian", |path, file| {
            if path.ends_with(".deb") { alter(file) } else { file }
        });
    }

    /// A site that knows the archive's lists.
    pub fn site(&self, seeds: &[&Site]) -> Site {
        self.site_with(seeds, &[])
    }

    pub fn site_with(&self, seeds: &[&Site], settings: &[(&str, &str)]) -> Site {
        let build = Site::build(&self.key).seeds(seeds);
        let build = settings.iter().fold(build, |build, (name, value)| build.env(name, *value));
        let site = build.start();
        self.learn(&site);
        site
    }

    pub fn learn(&self, site: &Proxy) {
        for path in ["dists/demo/Release".to_owned(), self.archive.index_path()] {
            let reply = get(site.addr(), &site.url_for(&self.mirror, &format!("/debian/{path}")));
            assert_eq!(reply.status, 200, "{path}: {}", reply.reason);
        }
        wait_until(PATIENCE, "both lists are learnt", || site.count(LEARNT) >= 2);
    }

    pub fn path(&self, name: &str) -> String {
        format!("/debian/{}", self.archive.deb_path(name))
    }

    /// A package through a site.
    pub fn fetch(&self, site: &Proxy, name: &str) -> Reply {
        let reply = get(site.addr(), &site.url_for(&self.mirror, &self.path(name)));
        assert_eq!(reply.status, 200, "{}", reply.reason);
        assert!(reply.body == self.archive.deb(name), "other bytes of {name}");
        site.wait_landed();
        reply
    }

    pub fn blob(&self, name: &str) -> String {
        sha256_hex(self.archive.deb(name))
    }

    pub fn size(&self, name: &str) -> u64 {
        self.archive.deb(name).len() as u64
    }

    /// Bytes of it that the mirror has sent.
    pub fn by_mirror(&self, name: &str) -> u64 {
        self.mirror.bytes(&self.path(name))
    }

    /// A site that has these; the others are told so.
    pub fn stocked(&self, seeds: &[&Site], names: &[&str]) -> Site {
        let site = self.site(seeds);
        for name in names {
            self.fetch(&site, name);
        }
        site
    }

    /// Until a look-up at one finds just these sites.
    pub fn wait_found(&self, at: &Site, name: &str, sites: &[&Site]) {
        let mut wanted: Vec<String> = sites.iter().map(|site| site.peer_url()).collect();
        wanted.sort();
        let blob = self.blob(name);
        wait_until(PATIENCE, "the others are found", || at.node().look_up(&blob) == wanted);
    }
}

/// Until a site has the filters of so many others, and they tell what these have now.
fn wait_filters(site: &Site, sites: u64) {
    wait_until(PATIENCE, "filters are there", || site.count("aptmesh_swarm_filters") >= sites);
}

#[test]
fn a_large_package_comes_from_the_site_that_has_it() {
    let swarm = Swarm::of(&[("tool", 5 * MB)]);
    let one = swarm.stocked(&[], &["tool"]);
    let two = swarm.site(&[&one]);
    swarm.wait_found(&two, "tool", &[&one]);
    let before = swarm.by_mirror("tool");
    assert_eq!(before, swarm.size("tool"));
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));
    let reply = swarm.fetch(&two, "tool");
    assert!(swarm.by_mirror("tool") - before <= MORSELS, "the mirror gave it again");
    assert!(two.count(FROM_PEERS) + MORSELS >= swarm.size("tool"));
    assert!(one.count(TO_PEERS) + MORSELS >= swarm.size("tool"));
    assert!(two.count("aptmesh_swarm_peer_requests_total{answer=\"given\"}") > 0);
    assert_eq!(reply.header("last-modified"), Some("Tue, 02 Jan 2024 00:00:00 GMT"));
    // It is stored, and is served like anything that is.
    let again = swarm.fetch(&two, "tool");
    assert_eq!(again.header("x-aptmesh-source"), Some("store"));
}

#[test]
fn sites_without_certificate_authorities_share_too() {
    let swarm = Swarm::of(&[("tool", 5 * MB)]);
    let start = |seeds: &[&Site]| {
        let site = Site::build(&swarm.key).seeds(seeds).authorities(Path::new("/nowhere")).start();
        swarm.learn(&site);
        site
    };
    let one = start(&[]);
    swarm.fetch(&one, "tool");
    let two = start(&[&one]);
    swarm.wait_found(&two, "tool", &[&one]);
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));
    swarm.fetch(&two, "tool");
    assert!(two.count(FROM_PEERS) + MORSELS >= swarm.size("tool"));
}

#[test]
fn a_small_package_is_found_in_the_filter() {
    let names = ["tool", "other", "third", "fourth"];
    let swarm = Swarm::of(&names.map(|name| (name, 10_000 * name.len())));
    let one = swarm.stocked(&[], &names);
    let two = swarm.site(&[&one]);
    wait_filters(&two, 1);
    // On a busy machine the mirror may be the sooner one now and then.
    let from_peers = names.iter().filter(|name| {
        let reply = swarm.fetch(&two, name);
        let is_by_peer = reply.header("x-aptmesh-source") == Some("peer");
        is_by_peer && swarm.by_mirror(name) == swarm.size(name)
    });
    assert!(from_peers.count() > 0, "the mirror gave all of them again");
}

#[test]
fn a_site_of_another_swarm_gets_nothing() {
    let swarm = Swarm::of(&[("tool", 2 * MB)]);
    let one = swarm.stocked(&[], &["tool"]);
    let stranger = Swarm { key: node::swarm_key(), ..swarm };
    let other = stranger.site(&[&one]);
    stranger.fetch(&other, "tool");
    assert_eq!(other.count(FROM_PEERS), 0);
    assert_eq!(stranger.by_mirror("tool"), 2 * stranger.size("tool"));
}

#[test]
fn several_sites_bring_one_file() {
    let swarm = Swarm::of(&[("large", 40 * MB)]);
    let first = swarm.stocked(&[], &["large"]);
    // They know nothing of each other yet, so the mirror brings what it can.
    swarm.publish(|file| file.rate(1_000_000));
    let mut sites = vec![first];
    for _ in 0..2 {
        let site = swarm.site_with(&[&sites[0]], &[]);
        swarm.wait_found(&site, "large", &sites.iter().collect::<Vec<_>>());
        swarm.fetch(&site, "large");
        sites.push(site);
    }
    let last = swarm.site(&[&sites[0]]);
    swarm.wait_found(&last, "large", &sites.iter().collect::<Vec<_>>());
    let given: Vec<u64> = sites.iter().map(|site| site.count(TO_PEERS)).collect();
    swarm.fetch(&last, "large");
    for (site, before) in sites.iter().zip(given) {
        assert!(site.count(TO_PEERS) > before, "one of them brought nothing");
    }
    assert!(swarm.by_mirror("large") < swarm.size("large") * 2, "the mirror gave it again");
}

#[test]
fn what_another_site_is_fetching_is_taken_from_there() {
    let swarm = Swarm::of(&[("large", 12 * MB), ("first", 2 * MB)]);
    swarm.publish(|file| file.rate(2_000_000));
    let one = swarm.stocked(&[], &["first"]);
    let two = swarm.site(&[&one]);
    // By this they know each other.
    swarm.wait_found(&two, "first", &[&one]);
    swarm.fetch(&two, "first");
    let before = two.count(FROM_PEERS);
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| swarm.fetch(&one, "large"));
        swarm.wait_found(&two, "large", &[&one]);
        swarm.fetch(&two, "large");
        fetching.join().unwrap();
    });
    assert!(two.count(FROM_PEERS) - before > swarm.size("large") / 2);
    let bytes = swarm.by_mirror("large");
    assert!(bytes < swarm.size("large") * 3 / 2, "the mirror gave {bytes}");
}

#[test]
fn peers_have_what_no_mirror_has_any_more() {
    let swarm = Swarm::of(&[("tool", 3 * MB)]);
    let one = swarm.stocked(&[], &["tool"]);
    let two = swarm.site(&[&one]);
    swarm.wait_found(&two, "tool", &[&one]);
    swarm.mirror.remove(&swarm.path("tool"));
    swarm.fetch(&two, "tool");
    assert!(two.count(FROM_PEERS) >= swarm.size("tool"));
}

#[test]
fn real_apt_is_served_by_another_site() {
    let packages: Vec<(String, usize)> =
        (0..12).map(|number| (format!("tool{number}"), 60_000 << (number % 7))).collect();
    let named: Vec<(&str, usize)> = packages.iter().map(|(name, size)| (&**name, *size)).collect();
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let swarm = Swarm::of(&named);
    let one = swarm.stocked(&[], &names);
    let two = swarm.site(&[&one]);
    wait_filters(&two, 1);
    swarm.wait_found(&two, "tool6", &[&one]);
    let all: u64 = names.iter().map(|name| swarm.size(name)).sum();
    let by_mirror = || names.iter().map(|name| swarm.by_mirror(name)).sum::<u64>();
    assert_eq!(by_mirror(), all);
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));
    let apt = Apt::new(None);
    let base = format!("http://{}/{}/debian", two.addr(), swarm.mirror.host());
    apt.sources(&swarm.archive.source_line(&base));
    for run in [apt.update(), apt.download(&names)] {
        assert!(run.ok, "{}", run.output);
    }
    two.wait_landed();
    assert!(by_mirror() - all <= all / 10, "the mirror gave {} of {all}", by_mirror() - all);
    assert!(two.count(FROM_PEERS) >= all * 9 / 10);
}

#[test]
fn a_list_under_its_hash_comes_from_the_other_site() {
    let swarm = Swarm::of(&[("tool", 10_000)]);
    let path = format!("/debian/{}", swarm.archive.by_hash_path());
    let (release, list) = ("/debian/dists/demo/Release", swarm.archive.index());
    let one = swarm.site(&[]);
    let entry = announce::entry(&swarm.key, &sha256_hex(list.as_bytes()));
    wait_until(PATIENCE, "the list in the filter", || {
        announce::filter(&swarm.key, &one).is_some_and(|filter| filter.has(entry))
    });
    let before = swarm.mirror.bodies(&path);
    // A mirror that is not slow may be the sooner one.
    let slow = File::new(list.as_bytes()).head_delay(Duration::from_secs(10));
    swarm.mirror.put(&path, slow);
    let two = Site::start(&swarm.key, &[&one]);
    assert_eq!(get(two.addr(), &two.url_for(&swarm.mirror, release)).status, 200);
    wait_until(PATIENCE, "the release file is learnt", || two.count(LEARNT) >= 1);
    wait_filters(&two, 1);
    let reply = get(two.addr(), &two.url_for(&swarm.mirror, &path));
    assert_eq!(reply.body, list.as_bytes());
    assert_eq!(reply.header("x-aptmesh-source"), Some("peer"));
    assert_eq!(swarm.mirror.bodies(&path), before);
}

#[test]
fn a_mirror_without_ranges_is_held_and_brings_the_rest_if_need_be() {
    let swarm = Swarm::of(&[("first", 2 * MB), ("large", 12 * MB)]);
    let one = swarm.stocked(&[], &["first", "large"]);
    let two = swarm.site(&[&one]);
    swarm.wait_found(&two, "first", &[&one]);
    swarm.mirror.remove(&swarm.path("first"));
    swarm.fetch(&two, "first");
    swarm.wait_found(&two, "large", &[&one]);
    swarm.publish(|file| file.ignore_range().rate(2_000_000));
    swarm.fetch(&two, "large");
    assert!(two.count(FROM_PEERS) > swarm.size("large") / 2);
    // Now with nobody else to ask.
    let three = swarm.site(&[&two]);
    drop(one);
    swarm.wait_found(&three, "large", &[&two]);
    drop(two);
    swarm.fetch(&three, "large");
}

/// The README's lines, as they stand there, on two machines.
#[test]
fn two_machines_share_by_three_lines() {
    let readme = fs::read_to_string("README.md").expect("the README");
    let (_, lines) = readme.split_once("    aptmesh key\n").expect("the three lines");
    let lines: Vec<&str> = lines.lines().take(2).map(str::trim).collect();
    let key = String::from_utf8(aptmesh().arg("key").output().unwrap().stdout).unwrap();
    let lan = lan::Lan::new();
    let hosts = [lan.host(), lan.host()];
    let mirror = Mirror::start_at(&lan.own_ip());
    let archive = LocalArchive::new("demo").package("tool", "1.0", 3 * MB);
    archive.publish(&mirror, "/debian");
    let program = env!("CARGO_BIN_EXE_aptmesh");
    let data = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mut machines = Vec::new();
    for ((line, host), data) in lines.iter().zip(&hosts).zip(&data) {
        let line = line.replace("KEY=KEY", &format!("KEY={}", key.trim()));
        let line = line.replace("ONE:", &format!("{}:", hosts[0].ip));
        let (names, command) = line.split_once("aptmesh ").expect("a command");
        let command = format!("{names} exec {program} {command}");
        let run = host.prefix();
        let started = Command::new(&run[0])
            .args(&run[1..])
            .args(["sh", "-c", &command])
            .env("APTMESH_DATA_DIR", data.path())
            // The mirror of this test is no public one.
            .env("APTMESH_MIRROR_ALLOW_PRIVATE", lan.network())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        machines.push(Reaped(started.expect("sh")));
        let proxy = (host.ip.as_str(), 9977);
        wait_until(PATIENCE, "it is there", || TcpStream::connect(proxy).is_ok());
    }
    let updated = |host: &lan::Host| {
        let apt = Apt::new(None);
        let base = format!("http://{}:9977/{}/debian", host.ip, mirror.host());
        apt.sources(&archive.source_line(&base));
        let run = apt.update();
        assert!(run.ok, "{}", run.output);
        apt
    };
    let download = |apt: &Apt| {
        let run = apt.download(&["tool"]);
        assert!(run.ok, "{}", run.output);
    };
    let path = format!("/debian/{}", archive.deb_path("tool"));
    download(&updated(&hosts[0]));
    let size = archive.deb("tool").len() as u64;
    assert_eq!(mirror.bytes(&path), size);
    let second = updated(&hosts[1]);
    let url = format!("http://{}{path}", mirror.host());
    wait_until(PATIENCE, "the second one has heard of it", || {
        let run = hosts[1].prefix();
        let asked = Command::new(&run[0]).args(&run[1..]).args([program, "explain", &url]).output();
        String::from_utf8_lossy(&asked.expect("ip").stdout).contains("Claimed by")
    });
    download(&second);
    let again = mirror.bytes(&path) - size;
    assert!(again <= MORSELS, "the mirror gave {again} bytes of it again");
}

/// A process that ends with the test.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
