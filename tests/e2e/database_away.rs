//! PostgreSQL away, in each of the ways in which it can be: clients notice nothing, what was stored
//! meanwhile is recorded when it is back, and the replicas share it again, without a restart.

mod at_random;

use crate::kit::fleet::migrated;
use crate::kit::postgres::database_of;
use crate::kit::*;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(90);
const URL: &str = "APTMESH_INDEX_URL";
const HITS: &str = "aptmesh_engine_served_total{outcome=\"hit\"}";
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
const LATE: &str = "aptmesh_engine_late_notes";
const TOLD: &str = "aptmesh_engine_late_notes_total{outcome=\"told\"}";
const NOT_ASKED: &str = "aptmesh_index_calls_total{outcome=\"not_asked\"}";
/// Files that are stored meanwhile, at least.
const STORED_MIN: usize = 5;
const UP: &str = "aptmesh_index_up";

/// A mirror, and a volume that replicas share.
struct Site {
    mirror: Mirror,
    archive: LocalArchive,
    volume: TempDir,
}

impl Site {
    fn new() -> Self {
        let (mirror, volume) = (Mirror::start(), TempDir::new().unwrap());
        let archive =
            LocalArchive::new("demo").package("tool", "1.0", 200_000).package("toy", "1.0", 1_000);
        archive.publish(&mirror, "/debian");
        Self { mirror, archive, volume }
    }

    fn replica(&self, url: &str) -> Proxy {
        let replica = Proxy::build().data(self.volume.path()).env(URL, url);
        let replica = replica.env("APTMESH_MIRROR_RECHECK_AFTER", "1h");
        replica.env("APTMESH_INDEX_POOL", "4").env("APTMESH_INDEX_TIMEOUT", "3s").start()
    }

    /// A whole run of a new client.
    fn install(&self, replica: &Proxy) {
        let apt = Apt::new(None);
        let base = format!("http://{}/{}/debian", replica.addr(), self.mirror.host());
        apt.sources(&self.archive.source_line(&base));
        // One try is to be enough.
        apt.conf("Acquire::Retries", "0");
        let update = apt.update();
        assert!(update.ok, "{}", update.output);
        let download = apt.download(&["tool", "toy"]);
        assert!(download.ok, "{}", download.output);
    }

    /// A package that is new to the mirror; its path there.
    fn publish(&self, number: u64) -> (String, Vec<u8>) {
        let path = format!("/debian/pool/new{number}_1_all.deb");
        let bytes = [b"!<arch>\n".as_slice(), &noise(number, 90_000)].concat();
        self.mirror.put(&path, File::new(bytes.clone()));
        (path, bytes)
    }

    fn fetch(&self, replica: &Proxy, path: &str, bytes: &[u8]) {
        let reply = get(replica.addr(), &replica.url_for(&self.mirror, path));
        assert_eq!((reply.status, reply.complete), (200, true), "{}", reply.reason);
        assert!(reply.body == bytes, "wrong bytes of {path}");
    }

    /// Two replicas live through something that comes over their index, and over after that.
    fn endures(&self, replicas: &[Proxy; 2], begin: impl FnOnce(), end: impl FnOnce()) {
        self.endures_and(replicas, begin, |here| here.count(LATE) > 0, end);
        assert!(replicas[0].count(TOLD) > 0);
    }

    fn endures_and(
        &self,
        replicas: &[Proxy; 2],
        begin: impl FnOnce(),
        is_noted: impl Fn(&Proxy) -> bool,
        end: impl FnOnce(),
    ) {
        let [here, there] = replicas;
        self.install(here);
        here.wait_landed();
        wait_until(PATIENCE, "both have their index", || {
            replicas.iter().all(|replica| ready(replica) == "ready\n")
        });

        begin();
        let (path, bytes) = self.publish(1);
        self.fetch(here, &path, &bytes);
        self.mirror.clear_log();
        self.install(here);
        // It has nothing in memory, but what is named by its content lies on the volume.
        self.install(there);
        let lists = format!("/debian/{}", self.archive.by_hash_path());
        assert_eq!(self.mirror.bodies(&lists), 0, "it lies on the volume");
        let mut stored = vec![(path, bytes)];
        wait_until(PATIENCE, "it is known that something is wrong", || {
            let (path, bytes) = self.publish(1 + stored.len() as u64);
            self.fetch(here, &path, &bytes);
            stored.push((path, bytes));
            let told = ready(here).starts_with("ready, but without its index: PostgreSQL");
            told && stored.len() >= STORED_MIN && is_noted(here)
        });
        here.wait_landed();
        assert!(here.blobs().len() > stored.len(), "it is stored all the same");

        end();
        wait_until(PATIENCE, "all is well again", || {
            replicas.iter().all(|replica| ready(replica) == "ready\n" && replica.count(LATE) == 0)
        });
        // On a busy machine, an answer may come too late for one or the other.
        let hits = there.count(HITS);
        let is_shared = |(path, bytes): &&(String, Vec<u8>)| {
            self.mirror.clear_log();
            self.fetch(there, path, bytes);
            self.mirror.log().is_empty()
        };
        let shared = stored.iter().filter(is_shared).count();
        assert!(shared > 0, "the other knows what was stored");
        assert!(there.count(HITS) >= hits + shared as u64);
        // Learnt, or learnt at last.
        self.install(there);
        for replica in replicas {
            replica.check_blobs();
        }
    }
}

/// What it says of itself; it is ready whatever its index does.
fn ready(replica: &Proxy) -> String {
    let reply = get(replica.admin(), "/readyz");
    assert_eq!(reply.status, 200, "{}", reply.reason);
    String::from_utf8(reply.body).unwrap()
}

/// The same by another way.
fn by_way_of(url: &str, port: u16, way: SocketAddr) -> String {
    url.replace(&format!("127.0.0.1:{port}"), &way.to_string())
}

fn two(site: &Site, url: &str) -> [Proxy; 2] {
    [site.replica(url), site.replica(url)]
}

#[test]
fn stopped() {
    let (site, server) = (Site::new(), Postgres::start());
    let replicas = two(&site, &migrated(&server));
    site.endures(&replicas, || server.stop(), || server.resume());
}

#[test]
fn paused() {
    let (site, server) = (Site::new(), Postgres::start());
    let replicas = two(&site, &migrated(&server));
    site.endures(&replicas, || server.pause(), || server.go_on());
}

#[test]
fn restarted() {
    let (site, server) = (Site::new(), Postgres::start());
    let replicas = two(&site, &migrated(&server));
    site.install(&replicas[0]);
    let restart = || {
        server.stop();
        server.resume();
    };
    for number in 0..3 {
        restart();
        // All its connections are broken, and nobody knows.
        for replica in &replicas {
            let (path, bytes) = site.publish(100 + number);
            site.fetch(replica, &path, &bytes);
        }
        replicas[0].wait_landed();
    }
    wait_until(PATIENCE, "all is well again", || {
        replicas.iter().all(|replica| ready(replica) == "ready\n" && replica.count(LATE) == 0)
    });
    site.mirror.clear_log();
    for number in 0..3 {
        let path = format!("/debian/pool/new{}_1_all.deb", 100 + number);
        for replica in &replicas {
            assert_eq!(get(replica.addr(), &replica.url_for(&site.mirror, &path)).status, 200);
        }
    }
    assert_eq!(site.mirror.log().len(), 0);
}

#[test]
fn failed_over() {
    let (site, first) = (Site::new(), Postgres::start());
    let url = migrated(&first);
    let second = first.standby();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", second.port(), first.port());
    let both = url.replace(&format!("127.0.0.1:{}", first.port()), &hosts);
    let both = format!("{both}?target_session_attrs=read-write");
    let replicas = two(&site, &both);
    let stop = || {
        second.catch_up(&first);
        first.stop();
    };
    site.endures(&replicas, stop, || second.promote());
    let recorded = "SELECT count(*) FROM resources WHERE key LIKE '%/new1_1_all.deb'";
    assert_eq!(second.sql(database_of(&url), recorded), "1");
}

/// The first server takes connections and says nothing: it is not in the way of the second.
#[test]
fn failed_over_from_a_server_that_hangs() {
    let (site, first) = (Site::new(), Postgres::start());
    let url = migrated(&first);
    let second = first.standby();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", first.port(), second.port());
    let both = url.replace(&format!("127.0.0.1:{}", first.port()), &hosts);
    let both = format!("{both}?target_session_attrs=read-write&connect_timeout=1");
    let replicas = two(&site, &both);
    let pause = || {
        second.catch_up(&first);
        first.pause();
    };
    site.endures(&replicas, pause, || second.promote());
}

#[test]
fn out_of_connections() {
    let (site, server) = (Site::new(), Postgres::start());
    let replicas = two(&site, &migrated(&server));
    let crowd = RefCell::new(None);
    let fill = || {
        for replica in &replicas {
            replica.signal("STOP");
        }
        server.stop();
        server.limit_connections(12);
        server.resume();
        *crowd.borrow_mut() = Some(server.fill());
        for replica in &replicas {
            replica.signal("CONT");
        }
    };
    site.endures(&replicas, fill, || drop(crowd.take()));
}

#[test]
fn slow() {
    let (site, server) = (Site::new(), Postgres::start());
    let url = migrated(&server);
    let far = Link::to(([127, 0, 0, 1], server.port()).into(), Duration::ZERO);
    let replicas = two(&site, &by_way_of(&url, server.port(), far.addr()));
    let begin = || far.set_rtt(Duration::from_millis(250));
    let other = LocalArchive::new("other").package("extra", "1.0", 1_000);
    other.publish(&site.mirror, "/debian");
    let learnt_before = Cell::new(None);
    // No client waits for it any more, but what is stored is recorded, and lists are learnt.
    let is_noted = |here: &Proxy| {
        let learnt = here.count(LEARNT);
        match learnt_before.get() {
            Some(before) => learnt >= before + 2,
            None if here.count(NOT_ASKED) == 0 => false,
            None => {
                learnt_before.set(Some(learnt));
                for path in ["dists/other/Release".to_owned(), other.index_path()] {
                    let target = here.url_for(&site.mirror, &format!("/debian/{path}"));
                    assert_eq!(get(here.addr(), &target).status, 200);
                }
                false
            }
        }
    };
    site.endures_and(&replicas, begin, is_noted, || far.set_rtt(Duration::ZERO));
}

/// Who needs room does not wait for the right to make it where nobody can give it.
#[test]
fn stopped_while_the_volume_is_full() {
    let (site, server) = (Site::new(), Postgres::start());
    let url = migrated(&server);
    let replica = Proxy::build().data(site.volume.path()).env(URL, &url);
    let replica = replica.env("APTMESH_STORE_QUOTA", "4MB").start();
    wait_until(PATIENCE, "it has its index", || ready(&replica) == "ready\n");
    let put = |number: u64, size: usize| {
        let path = format!("/debian/pool/big{number}_1_all.deb");
        let bytes = [b"!<arch>\n".as_slice(), &noise(number, size)].concat();
        site.mirror.put(&path, File::new(bytes.clone()));
        (path, bytes)
    };
    for number in 0..2 {
        let (path, bytes) = put(number, 1_000_000);
        site.fetch(&replica, &path, &bytes);
    }
    replica.wait_landed();
    wait_until(PATIENCE, "both are known", || replica.count("aptmesh_store_blobs") == 2);

    server.stop();
    let (path, bytes) = put(2, 3_000_000);
    let asked = "aptmesh_index_calls_total{operation=\"take a lease\"}";
    let before = replica.count(asked);
    site.fetch(&replica, &path, &bytes);
    replica.wait_landed();
    // Whoever polls does so twenty times a second, for eight seconds.
    let asked = replica.count(asked) - before;
    assert!(asked < 60, "{asked} times");
    assert_eq!(replica.blobs().len(), 2, "it was passed on");
}

#[test]
fn read_only() {
    let (site, server) = (Site::new(), Postgres::start());
    let replicas = two(&site, &migrated(&server));
    site.endures(
        &replicas,
        || server.set("default_transaction_read_only = on"),
        || server.set("default_transaction_read_only = off"),
    );
}

/// A change that one learns while the other's connection is cut is not missed by the other.
#[test]
fn what_is_learnt_while_one_is_cut_off_reaches_it() {
    let (site, server) = (Site::new(), Postgres::start());
    let url = migrated(&server);
    let mut way = Link::to(([127, 0, 0, 1], server.port()).into(), Duration::ZERO);
    let of = |url: &str| {
        let replica = Proxy::build().data(site.volume.path()).env(URL, url);
        replica.env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start()
    };
    let (learning, holding) = (of(&url), of(&by_way_of(&url, server.port(), way.addr())));
    let pool = format!("/debian/{}", site.archive.deb_path("tool"));
    let update = |archive: &LocalArchive| {
        let before = learning.count(LEARNT);
        for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
            let target = learning.url_for(&site.mirror, &format!("/debian/{path}"));
            assert_eq!(get(learning.addr(), &target).status, 200);
        }
        wait_until(PATIENCE, "both lists are learnt", || learning.count(LEARNT) >= before + 2);
    };
    update(&site.archive);
    site.fetch(&holding, &pool, site.archive.deb("tool"));
    holding.wait_landed();

    way.cut();
    wait_until(PATIENCE, "it is noticed", || holding.count(UP) == 0);
    let other = LocalArchive::new("demo").package("tool", "1.0~", 200_000);
    let rebuilt = site.archive.with_deb("tool", other.deb("tool").to_vec());
    rebuilt.publish(&site.mirror, "/debian");
    update(&rebuilt);
    site.mirror.clear_log();
    site.fetch(&holding, &pool, site.archive.deb("tool"));
    assert_eq!(site.mirror.log().len(), 0, "memory goes on");

    way.mend();
    wait_until(PATIENCE, "it hears of it", || {
        let reply = get(holding.addr(), &holding.url_for(&site.mirror, &pool));
        assert_eq!((reply.status, reply.complete), (200, true), "{}", reply.reason);
        reply.body == rebuilt.deb("tool")
    });
}

/// Also where nobody asks for the list again.
#[test]
fn what_could_not_be_learnt_is_learnt_later() {
    let (site, server) = (Site::new(), Postgres::start());
    let url = migrated(&server);
    server.stop();
    let replica = site.replica(&url);
    site.install(&replica);
    let lists = |outcome: &str| {
        let of = format!("aptmesh_engine_learnt_lists_total{{outcome=\"{outcome}\"}}");
        replica.count(&of)
    };
    wait_until(PATIENCE, "it is given up", || lists("failed") > 0);
    server.resume();
    wait_until(PATIENCE, "both lists are learnt", || lists("learnt") >= 2);
}

#[test]
fn what_the_index_does_is_counted() {
    let (site, server) = (Site::new(), Postgres::start());
    let url = migrated(&server);
    let replica = site.replica(&url);
    let embedded = Proxy::start();
    for proxy in [&replica, &embedded] {
        site.install(proxy);
        proxy.wait_landed();
        let answered =
            "aptmesh_index_calls_total{operation=\"look up a resource\",outcome=\"answered\"}";
        assert!(proxy.count(answered) > 0);
        assert!(proxy.count("aptmesh_index_call_seconds_count") >= proxy.count(answered));
    }
    assert_eq!(replica.count(UP), 1);
    wait_until(PATIENCE, "a connection rests", || {
        replica.count("aptmesh_index_connections{state=\"idle\"}") > 0
    });
    let lock = server.session(database_of(&url), "LOCK TABLE resources, expectations, volumes");
    let is_seen = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..12 {
            let (path, _) = site.publish(number);
            let (target, addr) = (replica.url_for(&site.mirror, &path), replica.addr());
            let is_seen = &is_seen;
            scope.spawn(move || {
                // Named by nobody, and not stored: so the index is asked each time.
                let mut rounds = 0..200;
                while !is_seen.load(Ordering::Relaxed)
                    && let Some(round) = rounds.next()
                {
                    assert_eq!(get(addr, &target).status, 200);
                    get(addr, &format!("{target}.{round}_1_all.deb"));
                }
            });
        }
        wait_until(PATIENCE, "calls wait for connections that others have", || {
            let in_use = replica.count("aptmesh_index_connections{state=\"in_use\"}");
            in_use > 0 && replica.count("aptmesh_index_waiting") > 0
        });
        is_seen.store(true, Ordering::Relaxed);
    });
    assert!(replica.count("aptmesh_index_calls_total{outcome=\"late\"}") > 0);
    drop(lock);
    server.stop();
    wait_until(PATIENCE, "it is away", || replica.count(UP) == 0);
    wait_until(PATIENCE, "nobody asks", || replica.count(NOT_ASKED) > 0);
    let (path, bytes) = site.publish(99);
    site.fetch(&replica, &path, &bytes);
    wait_until(PATIENCE, "it is to be told", || replica.count(LATE) > 0);
    let status = get(replica.admin(), "/status.json");
    let page = request(replica.addr(), "GET", "/", &[("Accept", "text/html")]);
    for told in [status.body, page.body] {
        let told = String::from_utf8(told).unwrap();
        assert!(told.to_lowercase().contains("without its index: postgresql is away"), "{told}");
    }
    server.resume();
    wait_until(PATIENCE, "it is back", || replica.count(UP) == 1 && replica.count(LATE) == 0);
}

/// How long Kubernetes waits before it kills.
const GRACE: Duration = Duration::from_secs(30);

#[test]
fn a_stop_ends_in_time_while_the_database_hangs_and_a_download_does_not_end() {
    let (server, site) = (Postgres::start(), Site::new());
    let replica = Proxy::build()
        .data(site.volume.path())
        .env(URL, migrated(&server))
        .env("APTMESH_LISTEN_PEER", "127.0.0.1:0")
        .env("APTMESH_PROXY_ADVERTISE", "http://127.0.0.1:9979")
        .start();
    let path = "/debian/pool/f/file_1.orig.tar.xz";
    site.mirror.put(path, File::new(noise(7, 50_000_000)).rate(100_000));
    let mut client = Connection::open(replica.addr());
    client.send("GET", &replica.url_for(&site.mirror, path), &[]);
    assert_eq!((client.read_head().status, client.read_body_some(1000).len()), (200, 1000));
    server.pause();
    replica.signal("TERM");
    assert_eq!(replica.wait_exit(GRACE).code(), Some(0));
    server.go_on();
}
