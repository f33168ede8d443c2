//! Each alert fires at a real Prometheus once its fault is there, and its condition does not hold before. How long it has to
//! hold is shortened here; it is tested by promtool (`dashboards/alerts.test.yaml`).

use crate::heal;
use crate::hostile::{self, Liar};
use crate::kit::fleet::migrated;
use crate::kit::prometheus::Prometheus;
use crate::kit::*;
use crate::observability;
use crate::swarm::{PATIENCE, Swarm};
use crate::volume::Volume;
use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

const MB: usize = 1024 * 1024;
/// Nobody listens there.
const NOBODY: &str = "127.0.0.1:9";
const LOOKS: Duration = Duration::from_secs(2);
/// What another site gives wrong.
const LIES: [&str; 4] = ["tool", "tale", "toad", "tome"];
/// Mirrors of which nobody answers.
const GONE: &str = "gone http://127.0.0.1:9/debian http://127.0.0.2:9/debian";
/// What a process may have open.
const FILES_MAX: usize = 200;
/// Nearly all of them.
const FILES_OPEN: usize = 180;
/// Longer than clients should wait for a first byte.
const SLOW: Duration = Duration::from_secs(7);

/// A Prometheus, and which of its alerts were seen.
struct Watch {
    prometheus: Prometheus,
    seen: BTreeSet<String>,
}

impl Watch {
    fn over(job: &str, targets: &[SocketAddr]) -> Self {
        Self { prometheus: Prometheus::start(job, targets), seen: BTreeSet::new() }
    }

    fn expression(&self, alert: &str) -> String {
        let alerts = self.prometheus.alerts();
        let found = alerts.into_iter().find(|(name, _)| name == alert);
        found.unwrap_or_else(|| panic!("there is no alert {alert}")).1
    }

    /// The condition does not hold, then `provoke` is called until the alert fires.
    fn sees(&mut self, alert: &str, mut provoke: impl FnMut()) {
        let expression = self.expression(alert);
        self.waits_for_quiet(alert, &expression);
        wait_until(2 * PATIENCE, &format!("{alert}: {expression}"), || {
            provoke();
            // For two looks of Prometheus.
            thread::sleep(LOOKS);
            self.fires(alert)
        });
        self.seen.insert(alert.to_owned());
    }

    fn fires(&self, alert: &str) -> bool {
        let firing = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
        !self.prometheus.query(&firing).is_empty()
    }

    /// No condition holds but those of these.
    fn sees_nothing_but(&self, expected: &[&str]) {
        for (alert, expression) in self.prometheus.alerts() {
            if !expected.contains(&&*alert) {
                self.waits_for_quiet(&alert, &expression);
            }
        }
    }

    /// It does not hold; for a moment it may, as for a database that is slow while the machine is busy with other tests.
    fn waits_for_quiet(&self, alert: &str, expression: &str) {
        wait_until(PATIENCE, &format!("{alert} not to hold without a fault: {expression}"), || {
            self.prometheus.query(expression).is_empty()
        });
    }

    /// It fires from the start, or as a consequence of what was provoked before.
    fn has(&mut self, alert: &str) {
        let expression = self.expression(alert);
        wait_until(2 * PATIENCE, &format!("{alert}: {expression}"), || self.fires(alert));
        self.seen.insert(alert.to_owned());
    }
}

fn ask(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    get(proxy.addr(), &proxy.url_for(mirror, path))
}

/// Processes of which each can have its own fault.
struct Scene {
    mirror: Mirror,
    cache: Proxy,
    /// With next to no quota, and an archive of which both mirrors are away.
    small: Proxy,
    /// With few files to open.
    narrow: Proxy,
    /// On a volume that takes nothing.
    full: Proxy,
    volume: Volume,
    /// With a database.
    replica: Proxy,
    server: Postgres,
    /// With a node of the swarm that is not there.
    orphan: Site,
    /// With one of its own, and nobody else.
    site: Site,
    /// The same; it has something to tell.
    lone: Site,
    /// Whose log nobody reads, and whose traces nobody takes.
    mute: Proxy,
    swarm: Swarm,
}

impl Scene {
    fn new() -> Self {
        let (server, volume) = (Postgres::start(), Volume::of_megabytes(8));
        let swarm = Swarm::of(&LIES.map(|name| (name, 3 * MB)));
        let orphan =
            Site::build(&swarm.key).env("PROXY_SIDECAR", format!("http://{NOBODY}")).start();
        // Where nobody is.
        let alone = || Site::build(&swarm.key).bootstrap(&[NOBODY.parse().unwrap()]).start();
        let (site, lone) = (alone(), alone());
        // A pipe that is open at both ends of itself.
        let unread = "mkfifo \"$0\" && exec \"$@\" 2<>\"$0\"";
        let pipes = tempfile::tempdir().unwrap();
        let pipe = pipes.path().join("log").display().to_string();
        let unread = ["sh", "-c", unread, &pipe].map(str::to_owned);
        let nobody = ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{NOBODY}"));
        let mute = Proxy::build().prefix(unread.to_vec()).variables(vec![nobody]).start();
        let files = ["prlimit", &format!("--nofile={FILES_MAX}")].map(str::to_owned);
        Self {
            mirror: Mirror::start(),
            cache: Proxy::start(),
            small: Proxy::build()
                .env("APTMESH_STORE_QUOTA", "1MB")
                .env("APTMESH_ARCHIVE_GROUPS", GONE)
                .start(),
            narrow: Proxy::build().prefix(files.to_vec()).start(),
            full: Proxy::build().data(volume.path()).start(),
            volume,
            replica: Proxy::build().env("APTMESH_INDEX_URL", migrated(&server)).start(),
            server,
            orphan,
            site,
            lone,
            mute,
            swarm,
        }
    }

    fn proxies(&self) -> [&Proxy; 9] {
        let alone = [&self.cache, &self.small, &self.narrow, &self.full, &self.replica, &self.mute];
        let [one, two, three, four, five, six] = alone;
        [one, two, three, four, five, six, &self.orphan, &self.site, &self.lone]
    }

    fn targets(&self) -> Vec<SocketAddr> {
        self.proxies().map(Proxy::admin).to_vec()
    }

    /// First, as nobody must be served before. The mirror answers, which is all that it does.
    fn requests_fail(&self, watch: &mut Watch) {
        let path = "/debian/pool/a/away_1_all.deb";
        self.mirror.put(path, File::new(b"!<arch>\n".as_slice()));
        let fail = || {
            for _ in 0..12 {
                self.mirror.script(path, vec![Fault::Status(500); 9]);
                assert_eq!(ask(&self.cache, &self.mirror, path).status, 500);
            }
        };
        watch.sees("AptmeshNothingServed", fail);
        watch.has("AptmeshRequestsFail");
        watch.sees("AptmeshMirrorAway", || {
            let reply = get(self.cache.addr(), &format!("/{NOBODY}/debian/pool/a_1_all.deb"));
            assert!(reply.status >= 500, "{}", reply.reason);
        });
    }

    fn what_is_told_is_lost(&self, watch: &mut Watch) {
        let path = "/debian/pool/t/told_1.orig.tar.xz";
        self.mirror.put(path, File::new(noise(1, 100)));
        let target = self.mute.url_for(&self.mirror, path);
        let ask = || {
            let mut client = Connection::open(self.mute.addr());
            (0..2_500).for_each(|_| assert_eq!(client.get(&target).status, 200));
        };
        // More than a pipe and the queue before it take.
        watch.sees("AptmeshLogLinesLost", || {
            thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(ask))));
        });
        watch.has("AptmeshTracesLost");
    }

    fn mirrors_err(&self, watch: &mut Watch) {
        let (cache, mirror) = (&self.cache, &self.mirror);
        let other = sha256_hex(b"something else");
        let by_hash = format!("/debian/dists/demo/main/binary-all/by-hash/SHA256/{other}");
        mirror.put(&by_hash, File::new(noise(1, MB)));
        // The first time is enough.
        let mut times = 0..1;
        watch.sees("AptmeshWrongBytesFromMirror", || {
            times.next().into_iter().for_each(|_| drop(ask(cache, mirror, &by_hash)));
        });

        let expired = "Suite: old\nDate: Mon, 01 Jan 2024 00:00:00 UTC\n\
                       Valid-Until: Mon, 08 Jan 2024 00:00:00 UTC\nSHA256:\n";
        mirror.put("/debian/dists/old/Release", File::new(expired.as_bytes().to_vec()));
        watch.sees("AptmeshReleaseFilesRefused", || {
            assert_eq!(ask(cache, mirror, "/debian/dists/old/Release").status, 503);
        });

        let mut number = 0;
        watch.sees("AptmeshAnswersCut", || {
            for _ in 0..6 {
                number += 1;
                let path = format!("/debian/pool/c/cut{number}_1.orig.tar.xz");
                mirror.put(&path, File::new(noise(number, MB)).no_validators());
                mirror.script(&path, vec![Fault::Cut { after: MB / 2 }; 9]);
                assert!(!ask(cache, mirror, &path).complete);
            }
        });

        let garbage = [b"\x1f\x8b\x08\x00".as_slice(), &noise(2, 50_000)].concat();
        mirror.put("/flat/Packages.gz", File::new(garbage));
        watch.sees("AptmeshListsRefused", || {
            assert_eq!(ask(cache, mirror, "/flat/Packages.gz").status, 200);
        });
    }

    fn volumes_err(&self, watch: &mut Watch) {
        let mut number = 0;
        watch.sees("AptmeshNoRoom", || {
            for _ in 0..6 {
                number += 1;
                let path = format!("/debian/pool/b/big{number}_1.orig.tar.xz");
                self.mirror.put(&path, File::new(noise(number, 2 * MB)));
                assert!(ask(&self.small, &self.mirror, &path).complete);
            }
        });

        let small = "/debian/pool/s/small_1.orig.tar.xz";
        self.mirror.put(small, File::new(noise(1, MB)));
        watch.sees("AptmeshVolumeTrouble", || {
            self.volume.fill();
            assert!(ask(&self.full, &self.mirror, small).complete);
        });

        let (cache, path) = (&self.cache, "/debian/pool/s/spoilt_1.orig.tar.xz");
        let bytes = noise(3, 4 * MB);
        self.mirror.put(path, File::new(bytes.clone()));
        assert!(ask(cache, &self.mirror, path).complete);
        cache.wait_landed();
        let digest = sha256_hex(&bytes);
        let blob = cache.data().join("blobs").join(&digest[..2]).join(digest);
        heal::flip(&blob, bytes.len() as u64 / 2);
        watch.sees("AptmeshDiskSpoilsFiles", || drop(ask(cache, &self.mirror, path)));
    }

    fn indexes_err(&self, watch: &mut Watch) {
        let index = rusqlite::Connection::open(self.cache.data().join("index.sqlite")).unwrap();
        index.busy_timeout(PATIENCE).unwrap();
        index.execute_batch("ALTER TABLE resources RENAME TO gone").unwrap();
        let mut number = 0;
        watch.sees("AptmeshIndexFails", || {
            for _ in 0..10 {
                number += 1;
                ask(&self.cache, &self.mirror, &format!("/debian/pool/x_{number}.dsc"));
            }
        });
        // Else it is told to be of no use, as it is.
        index.execute_batch("ALTER TABLE gone RENAME TO resources").unwrap();
        watch.sees("AptmeshIndexAway", || {
            self.server.stop();
            ask(&self.replica, &self.mirror, "/debian/pool/s/small_1.orig.tar.xz");
        });
    }

    fn the_swarm_errs(&self, watch: &mut Watch) {
        let (swarm, site) = (&self.swarm, &self.site);
        watch.has("AptmeshNoPeers");
        swarm.learn(&self.orphan);
        watch.has("AptmeshSidecarAway");

        swarm.learn(site);
        let liar = Liar::of(swarm, site, &LIES, hostile::wrong);
        for name in LIES {
            liar.wait_found(swarm, site, name);
        }
        // On a busy machine a mirror that is not slow may be the sooner one all the same.
        swarm.publish(|file| file.rate(MB as u64));
        let mut names = LIES.iter();
        watch.sees("AptmeshWrongBytesFromPeer", || {
            names.next().into_iter().for_each(|name| drop(swarm.fetch(site, name)));
        });
    }

    /// Nobody is there to be told of what the first one has.
    fn nobody_is_told(&self, watch: &mut Watch) {
        watch.has("AptmeshAnnouncementsLate");
    }

    fn clients_wait(&self, watch: &mut Watch) {
        let gone = "/gone/pool/g/gone_1.orig.tar.xz";
        watch.sees("AptmeshArchiveAway", || assert!(get(self.small.addr(), gone).status >= 500));

        // Those that come at the same time as others are one in twenty of all.
        let mut rounds = 0;
        watch.sees("AptmeshSlowFirstByte", || {
            rounds += 1;
            thread::scope(|scope| {
                for client in 0..20 {
                    let path = format!("/debian/pool/l/late{rounds}x{client}_1.orig.tar.xz");
                    self.mirror.put(&path, File::new(noise(rounds, 1_000)));
                    self.mirror.script(&path, vec![Fault::StallHead(SLOW)]);
                    scope.spawn(move || ask(&self.cache, &self.mirror, &path));
                }
            });
        });

        let files = format!("/proc/{}/fd", self.narrow.pid());
        let mut connections = Vec::new();
        watch.sees("AptmeshFilesRunOut", || {
            // Connections that have asked for nothing yet. Prometheus needs some files, too, to hear of it.
            let open = fs::read_dir(&files).unwrap().count();
            let connect = || TcpStream::connect(self.narrow.addr()).unwrap();
            connections.extend((open..FILES_OPEN).map(|_| connect()));
        });
    }

    /// Last.
    fn processes_end(&mut self, watch: &mut Watch) {
        watch.sees("AptmeshRestartsOften", || self.narrow.restart_in_place());
        watch.sees("AptmeshTargetDown", || self.cache.kill9());
        // Where they are found by name, what was killed is no target any more.
        watch.prometheus.retarget(&self.targets()[1..]);
        watch.has("AptmeshTargetsGone");
        self.proxies().into_iter().for_each(Proxy::kill9);
        watch.has("AptmeshDown");
    }
}

#[test]
fn each_alert_sees_its_fault() {
    let mut scene = Scene::new();
    scene.swarm.learn(&scene.lone);
    scene.swarm.fetch(&scene.lone, LIES[0]);
    let targets = scene.targets();
    let mut watch = Watch::over("site/aptmesh-proxy", &targets);
    let all = targets.len().to_string();
    wait_until(PATIENCE, "a look at all", || {
        !watch.prometheus.query(&format!("sum(up) == {all}")).is_empty()
    });
    watch.sees_nothing_but(&["AptmeshNoPeers", "AptmeshSidecarAway", "AptmeshAnnouncementsLate"]);
    scene.requests_fail(&mut watch);
    scene.the_swarm_errs(&mut watch);
    scene.mirrors_err(&mut watch);
    scene.volumes_err(&mut watch);
    scene.clients_wait(&mut watch);
    scene.indexes_err(&mut watch);
    scene.nobody_is_told(&mut watch);
    // With so many requests that few are slow.
    scene.what_is_told_is_lost(&mut watch);
    fleet_names_them(&watch.prometheus);
    scene.processes_end(&mut watch);
    // Somebody named his jobs otherwise.
    let mut elsewhere = Watch::over("cache", &targets);
    elsewhere.has("AptmeshNotWatched");

    let seen: BTreeSet<String> = watch.seen.into_iter().chain(elsewhere.seen).collect();
    let all: BTreeSet<String> =
        watch.prometheus.alerts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(seen, all);
}

/// The table of alerts, which is empty when all is well, has those that hold.
fn fleet_names_them(prometheus: &Prometheus) {
    let panels = observability::board::panels("fleet");
    let table = panels.into_iter().find(|panel| panel.title == "Alerts").expect("the table");
    let found = prometheus.query(&table.asks[0].1);
    for alert in ["AptmeshVolumeTrouble", "AptmeshIndexAway", "AptmeshArchiveAway"] {
        assert!(found.iter().any(|(labels, _)| labels["alertname"] == alert), "{alert}: {found:?}");
    }
}
