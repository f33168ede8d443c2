//! Replicas of one site, on one database and one volume: whatever one of them is fetching, the others
//! follow, and when it dies one of them goes on where its bytes end.

use crate::kit::*;
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const MEGABYTE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(90);
/// A file of which nobody checks how it begins.
const TOOL: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";
const FOLLOWED: &str = "aptmesh_engine_followed_total";
const TAKEN_OVER: &str = "aptmesh_engine_taken_over_total";
const MISSES: &str = "aptmesh_engine_served_total{outcome=\"miss\"}";

/// A mirror with `file` at [`TOOL`], and replicas of a site.
struct Site {
    replicas: Vec<Proxy>,
    mirror: Mirror,
    database: Postgres,
    url: String,
    _volume: TempDir,
}

fn site(count: usize, file: File, settings: &[(&str, &str)]) -> Site {
    let (mirror, database) = (Mirror::start(), Postgres::start());
    mirror.put(TOOL, file);
    let (url, volume) = (fleet::migrated(&database), tempfile::tempdir().unwrap());
    let replica = |_| {
        // How fast this machine is, is no matter here.
        let build = Proxy::build().env("APTMESH_INDEX_PATIENCE", "20s");
        let build = build.data(volume.path()).env("APTMESH_INDEX_URL", &url);
        settings.iter().fold(build, |build, (name, value)| build.env(name, *value)).start()
    };
    let replicas = (0..count).map(replica).collect();
    Site { replicas, mirror, database, url, _volume: volume }
}

impl Site {
    /// A client of a replica who has asked for [`TOOL`] and read the head of the answer.
    fn begin(&self, replica: usize) -> (Connection, Head) {
        let proxy = &self.replicas[replica];
        let mut client = Connection::open(proxy.addr());
        client.set_read_timeout(PATIENCE);
        client.send("GET", &proxy.url_for(&self.mirror, TOOL), &[]);
        let head = client.read_head();
        assert_eq!(head.status, 200, "{head:?}");
        (client, head)
    }

    fn download(&self, replica: usize) -> (Reply, String, u64) {
        let proxy = &self.replicas[replica];
        download_hash(proxy.addr(), &proxy.url_for(&self.mirror, TOOL), &[])
    }

    fn get(&self, replica: usize, path: &str) -> Reply {
        let proxy = &self.replicas[replica];
        get(proxy.addr(), &proxy.url_for(&self.mirror, path))
    }

    fn sum(&self, metric: &str) -> u64 {
        self.replicas.iter().map(|proxy| proxy.count(metric)).sum()
    }

    /// What the index says of [`TOOL`]: digests, in hex.
    fn recorded(&self) -> String {
        let query = format!("SELECT encode(blob, 'hex') FROM resources WHERE key LIKE '%{TOOL}'");
        self.database.sql(postgres::database_of(&self.url), &query)
    }

    /// Every answer had all bytes in common, and each was asked of the mirror once.
    fn assert_continued_once(&self, size: usize) {
        let seen = self.mirror.requests(TOOL);
        assert_eq!(seen.len(), 2, "{seen:#?}");
        let from = seen[1].header("range").expect("the rest alone is asked for");
        let from: usize =
            from.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
        assert!(from > 0 && from < size, "{from}");
        assert_eq!(seen[1].status, 206);
    }
}

/// Than all files of the kit.
fn a_day_later() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_704_240_000)
}

/// The rest of a body that must go on like `expected` and end there.
fn assert_rest(client: &mut Connection, expected: &[u8]) {
    let body = client.read_body_some(expected.len());
    assert!(body == expected, "{} of {} bytes came, or wrong ones", body.len(), expected.len());
}

#[test]
fn sixty_clients_of_three_replicas_cost_one_upstream_body() {
    let bytes = noise(1, 100 * MEGABYTE);
    let expected = sha256_hex(&bytes);
    let site = site(3, File::new(bytes).rate(25 << 20), &[]);
    let barrier = Barrier::new(60);
    let replies: Vec<_> = thread::scope(|scope| {
        let visit = |number: usize| {
            barrier.wait();
            site.download(number % 3)
        };
        let clients: Vec<_> = (0..60).map(|number| scope.spawn(move || visit(number))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });

    for (reply, hash, _) in &replies {
        assert!(reply.status == 200 && reply.complete, "{reply:?}");
        assert_eq!(hash, &expected);
    }
    assert_eq!((site.mirror.bodies(TOOL), site.mirror.bytes(TOOL)), (1, 100 << 20));
    assert_eq!(site.mirror.requests(TOOL).len(), 1);
    assert_eq!(site.sum(MISSES), 1, "one fetched");
    assert!(site.sum(FOLLOWED) >= 2, "two followed");
    for replica in &site.replicas {
        replica.wait_landed();
        assert!(replica.peak_resident_bytes() < 150 << 20, "{}", replica.peak_resident_bytes());
    }
    let replica = &site.replicas[0];
    assert_eq!(replica.blobs().len(), 1);
    assert!(replica.staged().is_empty(), "{:?}", replica.staged());
    replica.check_blobs();
    assert_eq!(site.recorded(), expected);
}

#[test]
fn a_replica_that_is_killed_is_taken_over_where_its_bytes_end() {
    let bytes = noise(2, 24 * MEGABYTE);
    let site = site(3, File::new(bytes.clone()).rate(3 << 20), &[]);
    let (mut first, _) = site.begin(0);
    assert_rest(&mut first, &bytes[..MEGABYTE]);
    let followers = [site.begin(1), site.begin(2), site.begin(1)];
    let mut followers = followers.map(|(client, head)| {
        assert_eq!(head.header("cache-status"), Some("aptmesh; fwd=miss; collapsed; stored"));
        assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
        client
    });
    for client in &mut followers {
        assert_rest(client, &bytes[..4 * MEGABYTE]);
    }
    site.replicas[0].kill9();

    thread::scope(|scope| {
        for client in &mut followers {
            scope.spawn(|| assert_rest(client, &bytes[4 * MEGABYTE..]));
        }
    });
    site.assert_continued_once(bytes.len());
    let alive = &site.replicas[1..];
    assert_eq!(alive.iter().map(|proxy| proxy.count(TAKEN_OVER)).sum::<u64>(), 1);
    alive.iter().for_each(Proxy::wait_landed);
    assert_eq!(site.recorded(), sha256_hex(&bytes));
    let (again, hash, _) = site.download(1);
    assert_eq!(again.header("cache-status"), Some("aptmesh; hit"));
    assert_eq!(hash, sha256_hex(&bytes));
}

/// Nobody followed it: what it told is found where it left it.
#[test]
fn what_a_dead_replica_left_is_gone_on_with_by_who_comes_later() {
    let bytes = noise(3, 24 * MEGABYTE);
    let site = site(2, File::new(bytes.clone()).rate(3 << 20), &[]);
    let (mut first, _) = site.begin(0);
    assert_rest(&mut first, &bytes[..4 * MEGABYTE]);
    site.replicas[0].kill9();

    let (reply, hash, _) = site.download(1);
    assert!(reply.complete, "{reply:?}");
    assert_eq!(hash, sha256_hex(&bytes));
    site.assert_continued_once(bytes.len());
}

/// Asleep for a minute, in which another replica takes over, finishes, and hears that there is a newer
/// version: the sleeper's clients get what they began with, and nobody gets it after that.
#[test]
fn a_replica_that_sleeps_does_not_write_over_its_successor() {
    let (old, new) = (noise(4, 12 * MEGABYTE), noise(5, 12 * MEGABYTE));
    let site = site(2, File::new(old.clone()).rate(2 << 20), &[]);
    let (mut asleep, _) = site.begin(0);
    assert_rest(&mut asleep, &old[..MEGABYTE]);
    let (mut awake, _) = site.begin(1);
    site.replicas[0].signal("STOP");
    assert_rest(&mut awake, &old);
    site.assert_continued_once(old.len());
    site.replicas[1].wait_landed();
    assert_eq!(site.recorded(), sha256_hex(&old));
    // Another version, which is fetched when a client insists.
    site.mirror.replace(TOOL, File::new(new.clone()).last_modified(a_day_later()));
    let insisting = [("cache-control", "no-cache")];
    let successor = &site.replicas[1];
    let target = successor.url_for(&site.mirror, TOOL);
    let reply = request(successor.addr(), "GET", &target, &insisting);
    assert!(reply.body == new, "{} {:?}", reply.status, reply.header("cache-status"));
    successor.wait_landed();
    assert_eq!(site.recorded(), sha256_hex(&new));

    thread::sleep(Duration::from_secs(60));
    site.replicas[0].signal("CONT");
    // What it has itself of the old version is no longer to be had in full: it may break off there,
    // but not go on with other bytes.
    let rest = asleep.read_body_some(old.len() - MEGABYTE);
    assert!(old[MEGABYTE..].starts_with(&rest), "bytes of another version");
    site.replicas[0].wait_landed();
    assert_eq!(site.recorded(), sha256_hex(&new));
    for replica in 0..2 {
        let (reply, hash, _) = site.download(replica);
        assert_eq!((reply.status, hash), (200, sha256_hex(&new)));
        site.replicas[replica].check_blobs();
    }
    assert!(site.replicas[0].staged().is_empty(), "{:?}", site.replicas[0].staged());
}

#[test]
fn the_clients_of_a_replica_that_slept_get_the_rest_from_its_successor() {
    let bytes = noise(6, 16 * MEGABYTE);
    let site = site(2, File::new(bytes.clone()).rate(2 << 20), &[]);
    let (mut asleep, _) = site.begin(0);
    assert_rest(&mut asleep, &bytes[..MEGABYTE]);
    let (mut awake, _) = site.begin(1);
    assert_rest(&mut awake, &bytes[..2 * MEGABYTE]);
    site.replicas[0].signal("STOP");
    wait_until(PATIENCE, "the other takes over", || site.replicas[1].count(TAKEN_OVER) == 1);
    site.replicas[0].signal("CONT");
    assert_rest(&mut asleep, &bytes[MEGABYTE..]);
    assert_rest(&mut awake, &bytes[2 * MEGABYTE..]);
    site.assert_continued_once(bytes.len());
}

#[test]
fn a_download_goes_on_for_clients_of_other_replicas_alone() {
    let bytes = noise(7, 20 * MEGABYTE);
    let site = site(2, File::new(bytes.clone()).rate(2 << 20), &[]);
    let (mut first, _) = site.begin(0);
    assert_rest(&mut first, &bytes[..MEGABYTE]);
    let (mut other, _) = site.begin(1);
    assert_rest(&mut other, &bytes[..2 * MEGABYTE]);
    drop(first);
    assert_rest(&mut other, &bytes[2 * MEGABYTE..]);
    assert_eq!((site.mirror.bodies(TOOL), site.sum(TAKEN_OVER)), (1, 0));
}

#[test]
fn what_one_replica_had_confirmed_the_others_do_not_ask_again() {
    let site = site(2, File::new(*b"x"), &[("APTMESH_MIRROR_RECHECK_AFTER", "1h")]);
    let release = "/debian/dists/demo/Release";
    site.mirror.put(release, File::new(*b"Suite: demo\n"));
    for round in 0..3 {
        for replica in 0..2 {
            let reply = site.get(replica, release);
            assert_eq!((reply.status, reply.body.len()), (200, 12), "{round} {replica}");
            site.replicas[replica].wait_landed();
        }
    }
    let whole = |seen: &Seen| seen.status == 200;
    let asked = site.mirror.requests(release);
    assert_eq!(asked.iter().filter(|seen| whole(seen)).count(), 1, "{asked:#?}");
}

/// What a replica has in memory may be old: another had a newer one confirmed.
#[test]
fn what_one_replica_fetched_anew_the_others_ask_for_no_more() {
    let settings = [("APTMESH_MIRROR_RECHECK_AFTER", "2s")];
    let site = site(2, File::new(*b"x"), &settings);
    let release = "/debian/dists/demo/Release";
    site.mirror.put(release, File::new(*b"Suite: demo\nDate: 1\n"));
    for replica in 0..2 {
        assert_eq!(site.get(replica, release).status, 200);
        site.replicas[replica].wait_landed();
    }
    thread::sleep(Duration::from_secs(3));
    let newer = File::new(*b"Suite: demo\nDate: 2\n").last_modified(a_day_later());
    site.mirror.replace(release, newer);
    site.mirror.clear_log();
    for replica in [0, 1, 0, 1] {
        assert_eq!(site.get(replica, release).body, b"Suite: demo\nDate: 2\n", "{replica}");
        site.replicas[replica].wait_landed();
    }
    thread::sleep(Duration::from_secs(3));
    assert_eq!(site.get(1, release).body, b"Suite: demo\nDate: 2\n");
    let whole = site.mirror.requests(release).into_iter().filter(|seen| seen.status == 200);
    assert_eq!(whole.count(), 1, "the newer one came once");
}

/// Real apt on every replica at the same moment: what one is fetching, none of the others fetches.
#[test]
fn apt_on_three_replicas_at_once_fetches_everything_once() {
    let names: Vec<String> = (0..30).map(|number| format!("tool{number}")).collect();
    let archive = names
        .iter()
        .fold(LocalArchive::new("demo"), |archive, name| archive.package(name, "1.0", 40_000));
    let site = site(3, File::new(*b"x"), &[("APTMESH_MIRROR_RECHECK_AFTER", "1h")]);
    archive.publish(&site.mirror, "/debian");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    thread::scope(|scope| {
        for proxy in &site.replicas {
            let (site, archive, names) = (&site, &archive, &names);
            scope.spawn(move || {
                let apt = Apt::new(None);
                let base = format!("http://{}/{}/debian", proxy.addr(), site.mirror.host());
                apt.sources(&archive.source_line(&base));
                let update = apt.update();
                assert!(update.ok, "{}", update.output);
                let download = apt.download(names);
                assert!(download.ok, "{}", download.output);
            });
        }
    });
    let log = site.mirror.log();
    let whole: Vec<&str> =
        log.iter().filter(|seen| seen.status == 200).map(|seen| seen.path.as_str()).collect();
    let once: BTreeSet<&str> = whole.iter().copied().collect();
    assert_eq!(whole.len(), once.len(), "twice: {whole:#?}");
    assert!(once.len() > 30, "{once:?}");
}

/// A replica that can not be asked and one that never was give nobody anything to wait for.
#[test]
fn without_their_database_replicas_fetch_alone() {
    let bytes = noise(8, 12 * MEGABYTE);
    let settings = [("APTMESH_INDEX_PATIENCE", "200ms")];
    let site = site(2, File::new(bytes.clone()).rate(2 << 20), &settings);
    let (mut first, _) = site.begin(0);
    let (mut second, _) = site.begin(1);
    assert_rest(&mut second, &bytes[..MEGABYTE]);
    site.database.stop();
    assert_rest(&mut first, &bytes);
    assert_rest(&mut second, &bytes[MEGABYTE..]);
    let (reply, hash, _) = site.download(1);
    assert_eq!((reply.status, hash), (200, sha256_hex(&bytes)));
    for replica in &site.replicas {
        replica.check_blobs();
    }
}

/// Whoever died before its first byte left nothing.
#[test]
fn a_replica_that_dies_before_its_first_byte_is_followed_by_another() {
    let site = site(2, File::new(*b"x"), &[]);
    let slow = "/debian/pool/main/s/slow/slow_1.orig.tar.xz";
    site.mirror.put(slow, File::new(noise(9, MEGABYTE)));
    site.mirror.script(slow, vec![Fault::StallHead(Duration::from_secs(60))]);
    let dying = &site.replicas[0];
    let mut lost = Connection::open(dying.addr());
    lost.send("GET", &dying.url_for(&site.mirror, slow), &[]);
    wait_until(PATIENCE, "the mirror is asked", || !site.mirror.requests(slow).is_empty());
    let reply = thread::scope(|scope| {
        let waiting = scope.spawn(|| site.get(1, slow));
        wait_until(PATIENCE, "it is waited for", || site.replicas[1].count(FOLLOWED) == 1);
        dying.kill9();
        waiting.join().unwrap()
    });
    assert!(reply.status == 200 && reply.body == noise(9, MEGABYTE), "{reply:?}");
    assert_eq!(site.mirror.requests(slow).len(), 2);
}
