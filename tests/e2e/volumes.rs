//! Replicas with a volume each: what one of them has, the others fetch from it before any mirror; and
//! whatever it does, no client gets a wrong byte for it.

use crate::kit::postgres::database_of;
use crate::kit::*;
use aptmesh::content::digest::Sha256;
use aptmesh::swarm::token::Secret;
use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(60);
const FROM_FELLOWS: &str = "aptmesh_engine_served_total{source=\"replica\"}";
const GIVEN: &str = "aptmesh_engine_given_bytes_total";
const ASKED: &str = "aptmesh_swarm_replica_requests_total";
/// How often a test is begun.
const ATTEMPTS: usize = 4;
const LARGE: usize = 5_000_000;
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";

thread_local! {
    static WAS_LATE: Cell<bool> = const { Cell::new(false) };
}

/// A replica that tells in the end whether the machine was too busy for it.
pub struct Replica(Proxy);

impl Deref for Replica {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.0
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let log = self.log();
        let late = ["PostgreSQL did not answer within", "no answer in time", "too slow"];
        if late.iter().any(|words| log.contains(words)) {
            WAS_LATE.set(true);
        }
    }
}

/// On a busy machine a fellow is late at times; that the mirror is asked then is right, and
/// not what a test is about, which is begun anew.
pub fn on_time(test: impl Fn()) {
    for _ in 1..ATTEMPTS {
        WAS_LATE.set(false);
        match catch_unwind(AssertUnwindSafe(&test)) {
            Err(_) if WAS_LATE.get() => {}
            Err(failed) => resume_unwind(failed),
            Ok(()) => return,
        }
    }
    test();
}

/// A database, and a mirror with files.
pub struct Site {
    server: Postgres,
    url: String,
    mirror: Mirror,
}

impl Site {
    pub fn new() -> Self {
        let server = Postgres::start();
        let url = fleet::migrated(&server);
        Self { server, url, mirror: Mirror::start() }
    }

    /// A replica with a volume of its own.
    pub fn replica(&self) -> Replica {
        self.replica_with(&[])
    }

    pub fn replica_with(&self, settings: &[(&str, &str)]) -> Replica {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut build = Proxy::build()
            .env("APTMESH_INDEX_URL", &self.url)
            .env("APTMESH_MIRROR_RECHECK_AFTER", "1h")
            .env("APTMESH_INDEX_PATIENCE", "20s")
            .env("APTMESH_LISTEN_PEER", &peer)
            .env("APTMESH_PROXY_ADVERTISE", format!("http://{peer}"));
        for (name, value) in settings {
            build = build.env(name, *value);
        }
        Replica(build.start())
    }

    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    fn sql(&self, statement: &str) -> String {
        self.server.sql(database_of(&self.url), statement)
    }

    /// Where fellows reach the first replica.
    fn peer(&self) -> std::net::SocketAddr {
        let url = self.sql("SELECT url FROM fellows ORDER BY seen_at LIMIT 1");
        url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    /// A package at the mirror; its path there.
    pub fn package(&self, number: u64, size: usize) -> (String, Vec<u8>) {
        let path = format!("/debian/pool/p{number}_1_all.deb");
        let bytes = [b"!<arch>\n".as_slice(), &noise(number, size)].concat();
        self.mirror.put(&path, File::new(bytes.clone()));
        (path, bytes)
    }

    /// A fellow that is none of ours, and is said to have a package.
    fn false_fellow(&self, path: &str, bytes: &[u8]) -> Mirror {
        let fellow = Mirror::start();
        let (host, digest, size) = (self.mirror.host(), sha256_hex(bytes), bytes.len());
        self.sql(&format!(
            "UPDATE volumes SET identity = 'first' WHERE identity IS NULL;
             INSERT INTO volumes (identity) VALUES ('another') ON CONFLICT DO NOTHING;
             INSERT INTO fellows SELECT 'http://{}', 'false', id, now() + interval '1 hour'
                 FROM volumes WHERE identity = 'another';
             INSERT INTO blobs SELECT '\\x{digest}', {size}, 1, 1, 1, 1, 1, 1, false, id
                 FROM volumes WHERE identity = 'another';
             INSERT INTO resources VALUES ('http://{host}{path}', '\\x{digest}', {size},
                 1000000000, NULL, 'application/vnd.debian.binary-package', 1)",
            fellow.addr()
        ));
        fellow.put(&blob_path(bytes), File::new(bytes));
        fellow
    }

    fn get(&self, from: &Proxy, path: &str) -> Reply {
        get(from.addr(), &from.url_for(&self.mirror, path))
    }

    /// The whole, and right.
    pub fn fetch(&self, from: &Proxy, path: &str, bytes: &[u8]) -> Reply {
        let reply = self.get(from, path);
        assert_eq!((reply.status, reply.complete), (200, true), "{path}: {}", reply.reason);
        assert!(reply.body == bytes, "{path}: other bytes");
        from.wait_landed();
        reply
    }

    fn client(&self, proxy: &Proxy, archive: &LocalArchive) -> Apt {
        let apt = Apt::new(None);
        let base = format!("http://{}/{}/debian", proxy.addr(), self.mirror.host());
        apt.sources(&archive.source_line(&base));
        apt
    }

    /// What was asked of the mirror and is there: that there is no `InRelease` is asked each time.
    fn fetched(&self) -> Vec<String> {
        let log = self.mirror.log().into_iter();
        log.filter(|seen| seen.status != 404).map(|seen| seen.path).collect()
    }
}

fn blob_path(bytes: &[u8]) -> String {
    format!("/blob/sha256/{}", sha256_hex(bytes))
}

fn blob_of(proxy: &Proxy, bytes: &[u8]) -> PathBuf {
    let digest = sha256_hex(bytes);
    proxy.data().join("blobs").join(&digest[..2]).join(&digest)
}

fn archive() -> LocalArchive {
    LocalArchive::new("demo").package("tool", "1.0", 2_000_000).package("toy", "1.0", 1_000)
}

fn install(apt: &Apt) {
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let download = apt.download(&["tool", "toy"]);
    assert!(download.ok, "{}", download.output);
}

#[test]
fn what_one_replica_stored_another_gets_from_it_and_keeps() {
    on_time(|| {
        let (site, archive) = (Site::new(), archive());
        archive.publish(&site.mirror, "/debian");
        let first = site.replica();
        install(&site.client(&first, &archive));
        first.wait_landed();
        let second = site.replica();
        site.mirror.clear_log();

        install(&site.client(&second, &archive));
        second.wait_landed();
        assert_eq!(site.fetched(), [""; 0], "the mirror is not asked");
        assert!(second.count(FROM_FELLOWS) >= 4, "release file, packages file, packages");
        assert!(second.count("aptmesh_engine_served_bytes_total{source=\"replica\"}") > 2_000_000);
        assert!(second.count("aptmesh_swarm_received_bytes_total") > 2_000_000);
        assert!(first.count(GIVEN) > 2_000_000);

        first.kill9();
        let (brought, before) = (second.blobs(), second.count(FROM_FELLOWS));
        install(&site.client(&second, &archive));
        assert_eq!(site.fetched(), [""; 0], "it has them itself by now");
        assert_eq!(second.count(FROM_FELLOWS), before);
        assert_eq!((brought.len() >= 4, brought == second.blobs()), (true, true), "{brought:?}");
        second.check_blobs();
        let kept = "SELECT count(*) FROM (SELECT FROM blobs GROUP BY digest HAVING count(*) > 1) AS shared";
        assert!(site.sql(kept).parse::<u64>().unwrap() >= 4, "the index knows it of both");
    });
}

#[test]
fn a_client_is_told_that_a_fellow_gave_it() {
    on_time(|| {
        let site = Site::new();
        let first = site.replica();
        let files = [site.package(1, 4_000), site.package(2, 400_000), site.package(3, LARGE)];
        for (path, bytes) in &files {
            site.fetch(&first, path, bytes);
        }
        let second = site.replica();
        site.mirror.clear_log();
        for (path, bytes) in &files {
            let reply = site.fetch(&second, path, bytes);
            assert_eq!(reply.header("x-aptmesh-source"), Some("peer"));
            assert_eq!(reply.header("cache-status"), Some("aptmesh; fwd=miss; stored"));
            let again = site.fetch(&second, path, bytes);
            assert_eq!(again.header("x-aptmesh-source"), Some("store"));
        }
        assert_eq!(site.fetched(), [""; 0]);
    });
}

#[test]
fn marks_are_the_same_on_every_replica() {
    on_time(|| {
        let site = Site::new();
        let first = site.replica();
        let (path, bytes) = site.package(1, LARGE);
        let told = site.fetch(&first, &path, &bytes);
        let marks = |reply: &Reply| {
            ["last-modified", "etag", "content-type"]
                .map(|name| reply.header(name).map(str::to_owned))
        };
        let second = site.replica();
        site.mirror.clear_log();
        // Cut off at the first, a client goes on at the second.
        let date = told.header("last-modified").unwrap();
        let asked = [("Range", "bytes=3000000-"), ("If-Range", date)];
        let rest = request(second.addr(), "GET", &second.url_for(&site.mirror, &path), &asked);
        assert_eq!((rest.status, rest.complete), (206, true), "{}", rest.reason);
        assert!(rest.body == bytes[3_000_000..]);
        assert_eq!(marks(&rest), marks(&told));
        second.wait_landed();
        assert_eq!(
            marks(&site.fetch(&second, &path, &bytes)),
            marks(&told),
            "once it is stored, too"
        );
        assert_eq!(site.fetched(), [""; 0]);
    });
}

/// Two replicas that confirm whatever they have each time, the first of which has an archive's lists.
fn one_has_the_lists() -> (Site, LocalArchive, Replica, Replica) {
    let (site, archive) = (Site::new(), archive());
    archive.publish(&site.mirror, "/debian");
    let always = [("APTMESH_MIRROR_RECHECK_AFTER", "0s")];
    let first = site.replica_with(&always);
    install(&site.client(&first, &archive));
    first.wait_landed();
    let second = site.replica_with(&always);
    (site, archive, first, second)
}

#[test]
fn metadata_of_a_mirror_that_is_away_comes_from_a_fellow() {
    on_time(|| {
        let (site, archive, _first, second) = one_has_the_lists();
        site.mirror.stop();
        install(&site.client(&second, &archive));
        assert!(
            second.count("aptmesh_engine_served_total{source=\"replica\",outcome=\"stale\"}") >= 1
        );
    });
}

#[test]
fn metadata_from_a_fellow_is_confirmed_with_the_mirror() {
    on_time(|| {
        let (site, archive, _first, second) = one_has_the_lists();
        site.mirror.clear_log();
        install(&site.client(&second, &archive));
        assert_eq!(site.mirror.bodies("/debian/dists/demo/Release"), 0);
        let release = site.mirror.requests("/debian/dists/demo/Release");
        assert!(release.iter().any(|seen| seen.status == 304), "{release:?}");
    });
}

#[test]
fn the_mirror_is_asked_where_a_fellow_is_dead() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, LARGE);
        let (small_path, small) = site.package(2, 5_000);
        let first = site.replica();
        site.fetch(&first, &path, &bytes);
        site.fetch(&first, &small_path, &small);
        first.kill9();
        // As far as the index knows, it is there.
        site.sql("UPDATE fellows SET seen_at = now() + interval '1 hour'");
        let second = site.replica();
        site.mirror.clear_log();
        for (path, bytes) in [(&path, &bytes), (&small_path, &small)] {
            let reply = site.fetch(&second, path, bytes);
            assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
            assert_eq!(site.mirror.bodies(path), 1);
        }
        assert!(second.count("aptmesh_swarm_replica_requests_total{answer=\"silent\"}") >= 1);
    });
}

#[test]
fn who_stops_is_not_asked() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, 5_000);
        let first = site.replica();
        site.fetch(&first, &path, &bytes);
        assert_eq!(site.sql("SELECT count(*) FROM fellows"), "1");
        first.signal("TERM");
        first.wait_exit(PATIENCE);
        assert_eq!(site.sql("SELECT count(*) FROM fellows"), "0");
        let second = site.replica();
        site.fetch(&second, &path, &bytes);
        assert_eq!(second.count(ASKED), 0);
    });
}

#[test]
fn a_blob_that_went_bad_is_not_given_and_goes() {
    on_time(|| {
        let site = Site::new();
        let first = site.replica();
        let files = [site.package(1, LARGE), site.package(2, LARGE), site.package(3, 50_000)];
        for (path, bytes) in &files {
            site.fetch(&first, path, bytes);
        }
        // Cut short; changed; changed.
        let open = |bytes: &[u8]| {
            fs::OpenOptions::new().read(true).write(true).open(blob_of(&first, bytes)).unwrap()
        };
        open(&files[0].1).set_len(2_000_000).unwrap();
        for (_, bytes) in &files[1..] {
            open(bytes).write_all(b"!<arch>\nother bytes").unwrap();
        }
        let second = site.replica();
        site.mirror.clear_log();
        for (path, bytes) in &files {
            let reply = site.fetch(&second, path, bytes);
            assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"), "{path}");
            wait_until(PATIENCE, "the bad blob goes", || !blob_of(&first, bytes).exists());
        }
        second.check_blobs();
        assert_eq!(second.count(FROM_FELLOWS), 0);
        // It went there only.
        for (path, bytes) in &files {
            let reply = site.fetch(&second, path, bytes);
            assert_eq!(reply.header("x-aptmesh-source"), Some("store"));
        }
    });
}

#[test]
fn the_mirror_is_asked_where_a_fellow_is_slow() {
    on_time(|| {
        let site = Site::new();
        let [silent, slow] = [1, 2].map(|number| site.package(number, LARGE));
        let fellow = site.false_fellow(&silent.0, &silent.1);
        fellow.script(&blob_path(&silent.1), vec![Fault::StallHead(Duration::from_secs(600))]);
        let other = site.replica();
        let reply = site.fetch(&other, &silent.0, &silent.1);
        assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
        assert_eq!(
            (site.mirror.bodies(&silent.0), fellow.requests(&blob_path(&silent.1)).len()),
            (1, 1)
        );

        let site = Site::new();
        site.mirror.put(&slow.0, File::new(slow.1.clone()));
        let fellow = site.false_fellow(&slow.0, &slow.1);
        let trickle = Fault::Trickle { bytes_per_second: 50_000 };
        fellow.script(&blob_path(&slow.1), vec![trickle]);
        let other = site.replica();
        site.fetch(&other, &slow.0, &slow.1);
        assert_eq!(fellow.requests(&blob_path(&slow.1)).len(), 1, "it gave some");
        assert_eq!(site.mirror.bodies(&slow.0), 1, "and the mirror the rest");
        other.check_blobs();
    });
}

#[test]
fn what_a_fellow_breaks_off_goes_on_at_the_mirror() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, LARGE);
        let fellow = site.false_fellow(&path, &bytes);
        fellow.script(&blob_path(&bytes), vec![Fault::Cut { after: 3_000_000 }]);
        let replica = site.replica();
        site.fetch(&replica, &path, &bytes);
        let asked = site.mirror.requests(&path);
        assert_eq!(asked.len(), 1, "{asked:?}");
        let range = asked[0].header("range").expect("the rest alone is asked for").to_owned();
        let from: usize =
            range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
        assert!(from > 0 && from <= 3_000_000, "{range}");
        assert_eq!(asked[0].status, 206);
        assert_eq!(replica.count("aptmesh_engine_resumed_total"), 1);
        replica.check_blobs();
    });
}

#[test]
fn a_replica_that_dies_in_mid_body_is_no_matter() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, 60_000_000);
        let first = site.replica();
        site.fetch(&first, &path, &bytes);
        let second = site.replica();
        site.mirror.clear_log();
        let mut client = Connection::open(second.addr());
        client.send("GET", &second.url_for(&site.mirror, &path), &[]);
        assert_eq!(client.read_head().header("x-aptmesh-source"), Some("peer"));
        let begin = client.read_body_some(1_000_000);
        first.kill9();
        let rest = client.read_body_some(bytes.len() - begin.len());
        assert!([begin, rest].concat() == bytes);
        second.wait_landed();
        second.check_blobs();
    });
}

#[test]
fn what_two_volumes_want_at_once_comes_from_the_mirror_once() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, 500_000);
        let held_up = File::new(bytes.clone()).head_delay(Duration::from_secs(3));
        site.mirror.replace(&path, held_up);
        let replicas = [site.replica(), site.replica()];
        wait_until(PATIENCE, "they know each other", || {
            site.sql("SELECT count(*) FROM fellows") == "2"
        });
        std::thread::sleep(Duration::from_secs(3));
        std::thread::scope(|scope| {
            for replica in &replicas {
                let replica = &replica.0;
                scope.spawn(|| site.fetch(replica, &path, &bytes));
            }
        });
        assert_eq!(site.mirror.bodies(&path), 1);
        for replica in &replicas {
            assert_eq!(replica.blobs().len(), 1);
        }
    });
}

#[test]
fn a_fellow_that_lies_is_found_out() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, 100_000);
        let fellow = site.false_fellow(&path, &bytes);
        let lie = |bytes: &[u8]| {
            let mut lie = bytes.to_vec();
            *lie.last_mut().unwrap() ^= 1;
            lie
        };
        fellow.replace(&blob_path(&bytes), File::new(lie(&bytes)));
        let replica = site.replica();
        let reply = site.fetch(&replica, &path, &bytes);
        assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"), "nobody notices");
        assert_eq!(fellow.requests(&blob_path(&bytes)).len(), 1);

        let site = Site::new();
        let (path, bytes) = site.package(2, LARGE);
        let fellow = site.false_fellow(&path, &bytes);
        fellow.replace(&blob_path(&bytes), File::new(lie(&bytes)));
        let replica = site.replica();
        let reply = site.get(&replica, &path);
        // Its end is held back; and who had no byte of it yet gets the mirror's.
        assert_eq!(reply.complete, reply.body == bytes, "{}", reply.reason);
        replica.wait_landed();
        assert_eq!(replica.count("aptmesh_engine_verify_failures_total{source=\"replica\"}"), 1);
        let reply = site.fetch(&replica, &path, &bytes);
        assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
        assert_eq!(fellow.requests(&blob_path(&bytes)).len(), 1, "it is not asked again");
    });
}

#[test]
fn what_one_replica_evicts_the_other_still_has() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, LARGE);
        let (first, second) = (site.replica(), site.replica());
        site.fetch(&first, &path, &bytes);
        site.fetch(&second, &path, &bytes);
        site.mirror.clear_log();
        let evict = aptmesh()
            .args(["evict", "--bytes", "1GiB", "--data"])
            .arg(second.data())
            .env("APTMESH_INDEX_URL", &site.url)
            .output()
            .unwrap();
        assert!(evict.status.success(), "{}", String::from_utf8_lossy(&evict.stderr));
        assert!(!blob_of(&second, &bytes).exists() && blob_of(&first, &bytes).exists());
        assert_eq!(site.fetch(&first, &path, &bytes).header("x-aptmesh-source"), Some("store"));
        wait_until(PATIENCE, "the second lets go", || {
            site.get(&second, &path).header("x-aptmesh-source") == Some("peer")
        });
        assert_eq!(site.fetched(), [""; 0]);
    });
}

#[test]
fn the_upload_limit_is_not_for_fellows() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, LARGE);
        let settings = [
            ("APTMESH_SWARM_KEY", &*node::swarm_key()),
            ("APTMESH_SWARM_UPLOAD_LIMIT", "10kB/s"),
            ("APTMESH_LISTEN_DHT", "127.0.0.1:0"),
            ("APTMESH_LISTEN_SIDECAR", "127.0.0.1:0"),
        ];
        let first = site.replica_with(&settings);
        site.fetch(&first, &path, &bytes);
        let second = site.replica_with(&settings);
        site.fetch(&second, &path, &bytes);
        assert_eq!(first.count(&format!("{GIVEN}{{to=\"replica\"}}")), bytes.len() as u64);
        assert_eq!(site.mirror.bodies(&path), 1);
    });
}

/// They are told of it by the one, and come to the other.
#[test]
fn another_site_gets_at_one_replica_what_its_fellow_has() {
    on_time(|| {
        let (site, archive, key) = (Site::new(), archive(), node::swarm_key());
        archive.publish(&site.mirror, "/debian");
        let of_swarm = [
            ("APTMESH_SWARM_KEY", &*key),
            ("APTMESH_LISTEN_DHT", "127.0.0.1:0"),
            ("APTMESH_LISTEN_SIDECAR", "127.0.0.1:0"),
        ];
        let first = site.replica_with(&of_swarm);
        for path in
            ["dists/demo/Release".to_owned(), archive.index_path(), archive.deb_path("tool")]
        {
            assert_eq!(site.get(&first, &format!("/debian/{path}")).status, 200);
        }
        first.wait_landed();
        wait_until(PATIENCE, "both lists are learnt", || first.count(LEARNT) >= 2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        drop(listener);
        let (listen, url) = (peer.to_string(), format!("http://{peer}"));
        let own = [("APTMESH_LISTEN_PEER", &*listen), ("APTMESH_PROXY_ADVERTISE", &*url)];
        let second = site.replica_with(&[&of_swarm[..], &own].concat());
        site.mirror.clear_log();

        let secret = Secret::of_swarm(&key.parse().unwrap());
        let ask = |method: &str, bytes: &[u8], fields: &[(&str, &str)]| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let token = secret.token(&Sha256::of(bytes), now);
            let fields = [&[("Authorization", token.as_str())], fields].concat();
            request(peer, method, &blob_path(bytes), &fields)
        };
        let tool = archive.deb("tool").to_vec();
        wait_until(PATIENCE, "the fellow", || ask("HEAD", &tool, &[]).status == 200);
        let whole = ask("GET", &tool, &[]);
        assert_eq!((whole.status, whole.complete), (200, true), "{}", whole.reason);
        assert!(whole.body == tool);
        assert!(whole.header("last-modified").is_some());
        let part = ask("GET", &tool, &[("Range", "bytes=1000000-1499999")]);
        assert_eq!((part.status, part.complete), (206, true));
        assert!(part.body == tool[1_000_000..1_500_000]);
        let etag = format!("\"{}\"", sha256_hex(&tool));
        assert_eq!(ask("GET", &tool, &[("If-None-Match", &etag)]).status, 304);
        assert_eq!(ask("GET", &tool, &[("Range", "bytes=99999999-")]).status, 416);
        assert!(!blob_of(&second, &tool).exists(), "it only passes through");
        let passed = second.count(&format!("{GIVEN}{{to=\"peer\",source=\"replica\"}}"));
        assert_eq!(passed, tool.len() as u64 + 500_000);

        // Still nothing but what is public, and nothing that nobody has.
        let (path, unlisted) = site.package(9, 50_000);
        site.fetch(&first, &path, &unlisted);
        assert_eq!(ask("GET", &unlisted, &[]).status, 404);
        assert_eq!(ask("GET", archive.deb("toy"), &[]).status, 404);
        assert_eq!(site.mirror.bodies(&format!("/debian/{}", archive.deb_path("tool"))), 0);
    });
}

#[test]
fn strangers_get_nothing() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, 50_000);
        let first = site.replica();
        site.fetch(&first, &path, &bytes);
        let peer = site.peer();
        let blob = blob_path(&bytes);
        let wrong = format!("Aptmesh 1700000000-{}", "0".repeat(64));
        let tokens: [&[(&str, &str)]; 4] = [
            &[],
            &[("Authorization", &wrong)],
            &[("Authorization", "Basic YTpi")],
            &[("Authorization", "Aptmesh")],
        ];
        for token in tokens {
            for target in [blob.as_str(), "/blob/sha256/00", "/", "/metrics"] {
                let reply = request(peer, "GET", target, token);
                assert_eq!(reply.status, 403, "{target}");
                assert_eq!(request(peer, "HEAD", target, token).status, 403);
            }
        }
        assert_eq!(request(peer, "POST", &blob, &[]).status, 403);
        assert_eq!(first.count(GIVEN), 0);
        // Nor does the proxy surface have it.
        assert_ne!(get(first.addr(), &blob).status, 200);
    });
}

#[test]
fn a_fellow_gets_parts_and_is_told_at_once_what_is_not_there() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, LARGE);
        let first = site.replica();
        site.fetch(&first, &path, &bytes);
        let absent = site.package(2, LARGE);
        // A fellow's question, heard by one that only listens.
        let listener = site.false_fellow(&absent.0, &absent.1);
        let second = site.replica();
        site.fetch(&second, &absent.0, &absent.1);
        let heard = listener.requests(&blob_path(&absent.1));
        let token = heard[0].header("authorization").expect("a token").to_owned();
        let asked = |bytes: &[u8], fields: &[(&str, &str)]| {
            let fields = [&[("Authorization", token.as_str())], fields].concat();
            request(site.peer(), "GET", &blob_path(bytes), &fields)
        };
        assert_eq!(asked(&absent.1, &[]).status, 404, "by a fellow, and not here");
        assert_eq!(asked(&bytes, &[]).status, 403, "a token is for one blob");

        // Now it is here.
        site.fetch(&first, &absent.0, &absent.1);
        let whole = asked(&absent.1, &[]);
        assert_eq!((whole.status, whole.complete), (200, true));
        assert!(whole.body == absent.1);
        let part = asked(&absent.1, &[("Range", "bytes=1000000-1000009")]);
        assert_eq!(part.status, 206);
        assert!(part.body == absent.1[1_000_000..1_000_010]);
        let beyond = asked(&absent.1, &[("Range", "bytes=9999999-")]);
        assert_eq!(beyond.status, 416);
    });
}

#[test]
fn what_is_private_is_not_asked_of_fellows_nor_offered() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, 50_000);
        let first = site.replica();
        site.fetch(&first, &path, &bytes);
        let second = site.replica();
        let credentials = [("Authorization", "Basic dTpw")];
        let target = second.url_for(&site.mirror, &path);
        let reply = request(second.addr(), "GET", &target, &credentials);
        assert_eq!((reply.status, reply.header("x-aptmesh-source")), (200, Some("mirror")));
        assert_eq!((second.count(ASKED), first.count(GIVEN)), (0, 0));

        let (path, bytes) = site.package(2, 50_000);
        let target = first.url_for(&site.mirror, &path);
        assert_eq!(request(first.addr(), "GET", &target, &credentials).status, 200);
        assert!(!blob_of(&first, &bytes).exists());
        let known =
            format!("SELECT count(*) FROM blobs WHERE digest = '\\x{}'", sha256_hex(&bytes));
        assert_eq!(site.sql(&known), "0");
    });
}

#[test]
fn processes_on_one_volume_share_its_identity_and_others_have_another() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(1, 50_000);
        let first = site.replica();
        site.fetch(&first, &path, &bytes);
        let beside = Replica(
            Proxy::build()
                .data(first.data())
                .env("APTMESH_INDEX_URL", &site.url)
                .env("APTMESH_MIRROR_RECHECK_AFTER", "1h")
                .env("APTMESH_INDEX_PATIENCE", "20s")
                .start(),
        );
        let reply = site.fetch(&beside, &path, &bytes);
        assert_eq!(reply.header("x-aptmesh-source"), Some("store"));
        assert_eq!(site.sql("SELECT count(*) FROM volumes"), "1");
        let _other = site.replica();
        assert_eq!(site.sql("SELECT count(*) FROM volumes"), "2");
    });
}

#[test]
fn a_url_for_fellows_is_a_url_and_needs_a_shared_index() {
    let refused = |settings: &[(&str, &str)]| {
        let mut command = aptmesh();
        command.arg("config").envs(settings.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(78));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let advertise = "APTMESH_PROXY_ADVERTISE";
    let index = ("APTMESH_INDEX_URL", "postgres://me@127.0.0.1/apt");
    assert!(refused(&[(advertise, "http://10.0.0.1:9979")]).contains("PostgreSQL"));
    assert!(refused(&[index, (advertise, "10.0.0.1")]).contains("proxy.advertise"));
    assert!(refused(&[index, (advertise, "ftp://10.0.0.1")]).contains("http://HOST:PORT"));
}

/// Nobody holds it yet: the second follows the first while the mirror sends.
#[test]
fn what_one_volume_is_fetching_comes_to_the_other_at_the_same_time() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(30, LARGE);
        site.mirror.put(&path, File::new(bytes.clone()).rate(1 << 20));
        let (fetching, following) = (site.replica(), site.replica());
        let mut first = begin(&site, &fetching, &path);
        assert!(first.read_body_some(1 << 18) == bytes[..1 << 18]);
        let mut second = begin(&site, &following, &path);
        assert!(second.read_body_some(1 << 18) == bytes[..1 << 18]);
        assert!(site.mirror.requests(&path).iter().any(|seen| seen.open), "it is on its way");
        for client in [&mut first, &mut second] {
            assert!(client.read_body_some(bytes.len() - (1 << 18)) == bytes[1 << 18..]);
        }
        assert_eq!((site.mirror.bodies(&path), site.mirror.requests(&path).len()), (1, 1));
        for replica in [&fetching, &following] {
            replica.wait_landed();
            assert!(blob_of(replica, &bytes).exists(), "each keeps it");
            replica.check_blobs();
        }
    });
}

#[test]
fn who_followed_a_replica_that_died_goes_on_at_the_mirror() {
    on_time(|| {
        let site = Site::new();
        let (path, bytes) = site.package(31, LARGE);
        site.mirror.put(&path, File::new(bytes.clone()).rate(1 << 20));
        let (dying, following) = (site.replica(), site.replica());
        let mut first = begin(&site, &dying, &path);
        assert!(first.read_body_some(1 << 18) == bytes[..1 << 18]);
        let mut second = begin(&site, &following, &path);
        assert!(second.read_body_some(1 << 20) == bytes[..1 << 20]);
        dying.kill9();
        assert!(second.read_body_some(bytes.len() - (1 << 20)) == bytes[1 << 20..]);
        let seen = site.mirror.requests(&path);
        assert_eq!(seen.len(), 2, "{seen:#?}");
        assert_eq!((seen[1].status, seen[1].header("range").is_some()), (206, true));
        following.wait_landed();
        following.check_blobs();
    });
}

/// A client who has read the head of an answer.
fn begin(site: &Site, replica: &Proxy, path: &str) -> Connection {
    let mut client = Connection::open(replica.addr());
    client.set_read_timeout(PATIENCE);
    client.send("GET", &replica.url_for(&site.mirror, path), &[]);
    assert_eq!(client.read_head().status, 200);
    client
}

/// Real apt on each at the same moment: many of the flights that one hears of have ended when it asks.
#[test]
fn apt_on_two_volumes_at_once_fetches_everything_once() {
    on_time(|| {
        let names: Vec<String> = (0..40).map(|number| format!("tool{number}")).collect();
        let archive = names
            .iter()
            .fold(LocalArchive::new("demo"), |archive, name| archive.package(name, "1.0", 4_000));
        let site = Site::new();
        archive.publish(&site.mirror, "/debian");
        let replicas = [site.replica(), site.replica()];
        // Both know of each other.
        wait_until(PATIENCE, "two fellows", || site.sql("SELECT count(*) FROM fellows") == "2");
        thread::sleep(Duration::from_secs(3));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let clients = replicas.each_ref().map(|replica| site.client(replica, &archive));
        thread::scope(|scope| {
            for apt in &clients {
                let names = &names;
                scope.spawn(move || {
                    let update = apt.update();
                    assert!(update.ok, "{}", update.output);
                    let download = apt.download(names);
                    assert!(download.ok, "{}", download.output);
                });
            }
        });
        let log = site.mirror.log();
        let mut bodies: Vec<&str> =
            log.iter().filter(|seen| seen.status == 200).map(|seen| seen.path.as_str()).collect();
        let all = bodies.len();
        bodies.sort_unstable();
        bodies.dedup();
        assert_eq!(all, bodies.len(), "twice: {log:#?}");
        assert!(all > 40, "{bodies:?}");
    });
}
