//! What a site does once, it does once, however many processes it has: whoever does it, another goes on
//! when that one dies, and one that was paused meanwhile does nothing more.

use crate::kit::postgres::database_of;
use crate::kit::*;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
const CHECKED: &str = "aptmesh_store_checked_bytes_total";
const EVICTED: &str = "aptmesh_store_evicted_blobs_total";
const MB: usize = 1_000_000;

/// A database and a volume that replicas share.
struct Site {
    server: Postgres,
    url: String,
    volume: tempfile::TempDir,
    mirror: Mirror,
}

impl Site {
    fn new() -> Self {
        let (server, volume) = (Postgres::start(), tempfile::tempdir().unwrap());
        let url = fleet::migrated(&server);
        Self { server, url, volume, mirror: Mirror::start() }
    }

    fn replica(&self, settings: &[(&str, &str)]) -> Proxy {
        let build = Proxy::build()
            .data(self.volume.path())
            .env("APTMESH_INDEX_URL", &self.url)
            .env("APTMESH_INDEX_PATIENCE", "20s")
            .env("APTMESH_MIRROR_RECHECK_AFTER", "1h");
        settings.iter().fold(build, |build, (name, value)| build.env(name, value)).start()
    }

    fn sql(&self, statement: &str) -> String {
        self.server.sql(database_of(&self.url), statement)
    }

    fn get(&self, replica: &Proxy, path: &str) -> Reply {
        get(replica.addr(), &replica.url_for(&self.mirror, path))
    }

    /// Has files of a megabyte stored.
    fn stock(&self, replica: &Proxy, files: usize) {
        for number in 0..files {
            self.mirror.put(&path(number), File::new(noise(number as u64 + 1, MB)));
            assert_eq!(self.get(replica, &path(number)).status, 200);
        }
        replica.wait_landed();
        self.settle();
        assert_eq!(self.stored(), (files * MB) as u64);
    }

    /// A busy machine may not have recorded all that it stored.
    fn settle(&self) {
        self.run(&["scrub"]);
    }

    fn run(&self, arguments: &[&str]) {
        let run = aptmesh()
            .arg("--data")
            .arg(self.volume.path())
            .args(arguments)
            .env("APTMESH_INDEX_URL", &self.url)
            .env("APTMESH_STORE_MIN_FREE", "0")
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }

    fn stored(&self) -> u64 {
        self.sql("SELECT bytes FROM volumes").parse().unwrap()
    }
}

fn path(number: usize) -> String {
    format!("/debian/pool/f/file{number}_1.orig.tar.xz")
}

fn duty(name: &str) -> String {
    format!("aptmesh_engine_duties{{duty=\"{name}\"}}")
}

fn does(replica: &Proxy, name: &str) -> bool {
    match replica.count(&duty(name)) {
        0 => false,
        1 => true,
        more => panic!("{name} is done {more} times"),
    }
}

fn sum(replicas: &[&Proxy], metric: &str) -> u64 {
    replicas.iter().map(|replica| replica.count(metric)).sum()
}

/// Stops a process in whatever it does.
fn pause(replica: &Proxy) {
    replica.signal("STOP");
    let status = format!("/proc/{}/stat", replica.pid());
    wait_until(PATIENCE, "a halt", || fs::read_to_string(&status).unwrap().contains(") T "));
}

#[test]
fn each_duty_is_done_by_one_and_passes_on() {
    const STANDING: [&str; 5] = ["scrub", "adopt", "folders", "tidy", "prefetch"];
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let settings = [
        ("APTMESH_PREFETCH_BUDGET", "1MB"),
        ("APTMESH_STORE_FOLDERS", folder.path().to_str().unwrap()),
    ];
    let mut replicas: Vec<Proxy> = (0..3).map(|_| site.replica(&settings)).collect();
    let first = |replicas: &[Proxy]| replicas.iter().position(|replica| does(replica, "scrub"));
    let each_is_done = |replicas: &[Proxy]| {
        STANDING.iter().all(|name| {
            let number = replicas.iter().filter(|replica| does(replica, name)).count();
            assert!(number <= 1, "{name}");
            number == 1
        })
    };
    wait_until(PATIENCE, "each duty to be done", || each_is_done(&replicas));
    let status = get(replicas[first(&replicas).unwrap()].admin(), "/status.json").body;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert!(status["duties"].as_array().unwrap().contains(&"scrub".into()), "{status}");

    replicas.remove(first(&replicas).unwrap()).kill9();
    wait_until(PATIENCE, "each duty to be done by who is left", || each_is_done(&replicas));

    let paused = replicas.remove(first(&replicas).unwrap());
    pause(&paused);
    wait_until(PATIENCE, "each duty to be done by the last", || each_is_done(&replicas));
    paused.signal("CONT");
    wait_until(PATIENCE, "the woken one to notice", || {
        STANDING.iter().all(|name| !does(&paused, name))
    });
    assert!(each_is_done(&replicas));

    // Who ends in peace gives all up at once.
    replicas[0].signal("TERM");
    replicas[0].wait_exit(PATIENCE);
    wait_until(PATIENCE, "the other one to do all", || each_is_done(std::slice::from_ref(&paused)));
}

#[test]
fn what_is_stored_is_scrubbed_once_whatever_becomes_of_who_does_it() {
    const FILES: usize = 16;
    let site = Site::new();
    let settings = [("APTMESH_STORE_SCRUB_RATE", "2MB/s")];
    let replicas: Vec<Proxy> = (0..3).map(|_| site.replica(&settings)).collect();
    let all: Vec<&Proxy> = replicas.iter().collect();
    site.stock(all[0], FILES);
    let before = sum(&all, CHECKED);
    site.sql("UPDATE blobs SET checked_at = 1");
    let checked = || sum(&all, CHECKED) - before;
    wait_until(PATIENCE, "the scrub to begin", || checked() > 2 * MB as u64);
    let paused = all.iter().find(|replica| does(replica, "scrub")).unwrap();
    let done_before = paused.count(CHECKED);
    pause(paused);
    let left = "SELECT count(*) FROM blobs WHERE checked_at = 1";
    let begun: usize = site.sql(left).parse().unwrap();
    assert!(begun > 4, "it is stopped in its midst: {begun} are left");
    wait_until(PATIENCE, "another to go on", || site.sql(left).parse::<usize>().unwrap() < 3);
    paused.signal("CONT");
    // How far it is, only who has the duty tells.
    let tells = |replica: &&&Proxy| replica.count("aptmesh_store_scrubbed_at_seconds") > 0;
    wait_until(PATIENCE, "one to tell, and it no more", || {
        !tells(&paused) && all.iter().filter(tells).count() == 1
    });
    wait_until(PATIENCE, "all to be checked", || site.sql(left) == "0");
    thread::sleep(Duration::from_secs(6));
    let by_paused = paused.count(CHECKED) - done_before;
    assert!(by_paused < 4 * MB as u64, "what it did until it was stopped: {by_paused}");
    let (all_bytes, checked) = ((FILES * MB) as u64, checked());
    // One file may have been begun twice.
    assert!(checked >= all_bytes && checked <= all_bytes + 2 * MB as u64, "{checked}");
}

#[test]
fn a_folder_that_all_share_is_hashed_once() {
    const FILES: u64 = 30;
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    for number in 0..FILES {
        let bytes = noise(number, 3 * MB);
        fs::write(folder.path().join(format!("p{number}_1.orig.tar.xz")), bytes).unwrap();
    }
    // What was written just now is left alone.
    thread::sleep(Duration::from_secs(3));
    let settings = [("APTMESH_STORE_FOLDERS", folder.path().to_str().unwrap())];
    let replicas: Vec<Proxy> = (0..3).map(|_| site.replica(&settings)).collect();
    let all: Vec<&Proxy> = replicas.iter().collect();
    let known = || site.sql("SELECT count(*) FROM files");
    wait_until(PATIENCE, "all files to be hashed", || known() == FILES.to_string());
    thread::sleep(Duration::from_secs(3));
    assert_eq!(sum(&all, CHECKED), FILES * 3 * MB as u64);
}

#[test]
fn what_all_are_asked_for_is_learnt_once() {
    let site = Site::new();
    let mut list = String::new();
    for number in 0..40_000 {
        write!(list, "Filename: p{number}.deb\nSize: 1\nSHA256: {number:064x}\n\n").unwrap();
    }
    site.mirror.put("/flat/Packages", File::new(list.into_bytes()));
    let replicas: Vec<Proxy> = (0..3).map(|_| site.replica(&[])).collect();
    let all: Vec<&Proxy> = replicas.iter().collect();
    for replica in &all {
        assert_eq!(site.get(replica, "/flat/Packages").status, 200);
    }
    let known = "aptmesh_engine_learnt_lists_total{outcome=\"known\"}";
    wait_until(PATIENCE, "all to know it", || sum(&all, LEARNT) + sum(&all, known) == 3);
    assert_eq!(sum(&all, LEARNT), 1);
    assert_eq!(site.sql("SELECT count(*) FROM expectations"), "40000");
}

#[test]
fn a_list_that_its_learner_left_half_learnt_is_learnt_by_another() {
    let site = Site::new();
    let mut list = String::new();
    for number in 0..100_000 {
        write!(list, "Filename: p{number}.deb\nSize: 1\nSHA256: {number:064x}\n\n").unwrap();
    }
    site.mirror.put("/flat/Packages", File::new(list.into_bytes()));
    let (first, second) = (site.replica(&[]), site.replica(&[]));
    assert_eq!(site.get(&first, "/flat/Packages").status, 200);
    let said = || site.sql("SELECT count(*) FROM expectations").parse::<usize>().unwrap();
    wait_until(PATIENCE, "some of it to be learnt", || said() > 0);
    assert_eq!(site.get(&second, "/flat/Packages").status, 200);
    first.kill9();
    assert!(said() < 100_000, "it is killed in its midst");
    wait_until(PATIENCE, "the other one to learn it", || second.count(LEARNT) == 1);
    assert_eq!(said(), 100_000);
}

/// A list that is another one whenever somebody asks for it: all its entries tell the version as their
/// size.
struct Changing {
    versions: Arc<Mutex<HashMap<String, u64>>>,
}

impl Changing {
    const ENTRIES: u64 = 5000;
    const PATH: &'static str = "/flat/Packages";

    fn on(mirror: &Mirror) -> Self {
        let versions: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let (told, mut version) = (Arc::clone(&versions), 0);
        mirror.before_each(move |path| {
            if path != Self::PATH {
                return Vec::new();
            }
            version += 1;
            let mut text = String::new();
            for number in 0..Self::ENTRIES {
                let digest = version * Self::ENTRIES + number;
                write!(text, "Filename: p{number}.deb\nSize: {version}\nSHA256: {digest:064x}\n\n")
                    .unwrap();
            }
            told.lock().unwrap().insert(sha256_hex(text.as_bytes()), version);
            vec![(path.to_owned(), File::new(text.into_bytes()).no_validators())]
        });
        Self { versions }
    }

    /// What the index has of it is one version, or does not count; which.
    fn is_one(&self, site: &Site) -> Option<u64> {
        let told = site.sql(
            "SELECT coalesce(max(encode(lists.blob, 'hex')), ''), count(*), min(size), max(size)
             FROM lists JOIN expectations ON list = id WHERE lists.key LIKE '%/flat/Packages'",
        );
        let columns: Vec<&str> = told.split('|').collect();
        let [blob, count, first, last] = columns[..] else { panic!("{told}") };
        if blob.is_empty() {
            return None;
        }
        let version = *self.versions.lock().unwrap().get(blob).expect("a version that was given");
        assert_eq!(count, Self::ENTRIES.to_string(), "{told}");
        assert_eq!([first, last], [version.to_string(), version.to_string()], "{told}");
        Some(version)
    }
}

#[test]
fn versions_of_a_list_never_mix() {
    let site = Site::new();
    let list = Changing::on(&site.mirror);
    let settings = [("APTMESH_MIRROR_RECHECK_AFTER", "0s")];
    let (paused, other) = (site.replica(&settings), site.replica(&settings));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (site, is_over, list) = (&site, &is_over, &list);
        // Ended whatever happens, or the scope would not.
        let ending = Ending(is_over);
        for replica in [&paused, &other] {
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let mut connection = Connection::open(replica.addr());
                    connection.set_read_timeout(PATIENCE);
                    connection.get(&replica.url_for(&site.mirror, Changing::PATH));
                    thread::sleep(Duration::from_millis(300));
                }
            });
        }
        for _ in 0..2 {
            wait_until(PATIENCE, "it to learn", || {
                list.is_one(site);
                does(&paused, "learn")
            });
            pause(&paused);
            let before = other.count(LEARNT);
            wait_until(PATIENCE, "the other one to go on", || {
                list.is_one(site);
                other.count(LEARNT) >= before + 2
            });
            paused.signal("CONT");
            for _ in 0..20 {
                list.is_one(site);
                thread::sleep(Duration::from_millis(100));
            }
        }
        drop(ending);
    });
    // What is learnt last is what was given last.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(site.get(&other, Changing::PATH).status, 200);
    let last = *list.versions.lock().unwrap().values().max().unwrap();
    wait_until(PATIENCE, "the last version", || list.is_one(&site) == Some(last));
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_one_promised_no_other_promises_again() {
    const SIZE: usize = 24 * MB;
    let site = Site::new();
    let settings = [("APTMESH_STORE_QUOTA", "40MB")];
    let (first, second) = (site.replica(&settings), site.replica(&settings));
    let slow = File::new(noise(1, SIZE)).rate(6 * MB as u64);
    site.mirror.put(&path(1), slow);
    site.mirror.put(&path(2), File::new(noise(2, SIZE)));
    thread::scope(|scope| {
        let slow = scope.spawn(|| site.get(&first, &path(1)));
        let promised = "aptmesh_store_promised_by_others_bytes";
        wait_until(PATIENCE, "the promise to be told", || second.count(promised) >= SIZE as u64);
        let reply = site.get(&second, &path(2));
        assert_eq!((reply.status, reply.complete, reply.body.len()), (200, true, SIZE));
        assert_eq!(second.count("aptmesh_store_refused_total"), 1, "it is passed on");
        assert!(!slow.is_finished(), "while the other one was under way");
        assert_eq!(slow.join().unwrap().body, noise(1, SIZE));
    });
    first.wait_landed();
    wait_until(PATIENCE, "nothing to be promised", || {
        second.count("aptmesh_store_promised_by_others_bytes") == 0
    });
    // Now it is stored, and may go.
    let reply = site.get(&second, &path(2));
    assert_eq!(reply.header("cache-status"), Some("aptmesh; fwd=miss; stored"));
    assert_eq!((reply.complete, reply.body.len()), (true, SIZE));
    second.wait_landed();
    site.settle();
    assert_eq!(site.stored(), SIZE as u64);
    assert_eq!(sum(&[&first, &second], EVICTED), 1);
}

#[test]
fn who_finds_an_eviction_under_way_waits_and_looks_again() {
    let site = Site::new();
    let stocking = site.replica(&[]);
    site.stock(&stocking, 10);
    stocking.kill9();
    // A fellow, which is evicting.
    site.sql(
        "INSERT INTO leases (name, owner, generation, expires_at)
         SELECT 'evict@' || identity || ':', 'a fellow', 1, now() + interval '1 hour'
             FROM volumes",
    );
    let replica = site.replica(&[("APTMESH_STORE_QUOTA", "10.1MB")]);
    site.mirror.put(&path(20), File::new(noise(20, MB)));
    site.mirror.put(&path(21), File::new(noise(21, MB)));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| site.get(&replica, &path(20)));
        thread::sleep(Duration::from_secs(1));
        assert_eq!(replica.count(EVICTED), 0, "it is the fellow's");
        site.run(&["evict", "--bytes", "5MB"]);
        let reply = waiting.join().unwrap();
        assert_eq!(reply.header("cache-status"), Some("aptmesh; fwd=miss; stored"));
    });
    replica.wait_landed();
    site.settle();
    assert_eq!((replica.count(EVICTED), site.stored()), (0, 6 * MB as u64));

    // The fellow dies, and there is need again.
    for number in 30..34 {
        site.mirror.put(&path(number), File::new(noise(number as u64, MB)));
        assert_eq!(site.get(&replica, &path(number)).status, 200);
        replica.wait_landed();
    }
    site.sql("UPDATE leases SET expires_at = now() WHERE owner = 'a fellow'");
    let reply = site.get(&replica, &path(21));
    assert_eq!(reply.header("cache-status"), Some("aptmesh; fwd=miss; stored"));
    replica.wait_landed();
    site.settle();
    assert!(replica.count(EVICTED) > 0 && site.stored() <= 10_100_000);
}

#[test]
fn three_replicas_keep_to_the_quota_and_evict_no_more_than_they_need() {
    const QUOTA: u64 = 60 * MB as u64;
    const FILES: usize = 50;
    let site = Site::new();
    let settings = [("APTMESH_STORE_QUOTA", "60MB")];
    let replicas: Vec<Proxy> = (0..3).map(|_| site.replica(&settings)).collect();
    for number in 0..3 * FILES {
        site.mirror.put(&path(number), File::new(noise(number as u64 + 1, MB)));
    }
    let is_over = AtomicBool::new(false);
    let (most, least) = thread::scope(|scope| {
        let (site, is_over) = (&site, &is_over);
        let watching = scope.spawn(|| {
            let (mut most, mut least) = (0, QUOTA);
            let mut was_full = false;
            while !is_over.load(Ordering::Relaxed) {
                let now = bytes_in(site.volume.path());
                was_full |= now > QUOTA - 5 * MB as u64;
                most = now.max(most);
                least = if was_full { now.min(least) } else { least };
                thread::sleep(Duration::from_millis(5));
            }
            (most, least)
        });
        let ending = Ending(is_over);
        let loads: Vec<_> = replicas
            .iter()
            .enumerate()
            .map(|(first, replica)| {
                scope.spawn(move || {
                    for number in (first..3 * FILES).step_by(3) {
                        let reply = site.get(replica, &path(number));
                        assert!(reply.status == 200 && reply.complete, "{}", reply.reason);
                        assert_eq!(reply.body.len(), MB);
                    }
                })
            })
            .collect();
        loads.into_iter().for_each(|load| load.join().unwrap());
        replicas.iter().for_each(Proxy::wait_landed);
        drop(ending);
        watching.join().unwrap()
    });
    // Each has one file under way; what they promise at the same moment they do not tell in time.
    assert!(most <= QUOTA + 3 * MB as u64, "{most}");
    // What is under way, what is told late, what is kept free, and a file that had to go as a whole.
    assert!(least >= QUOTA - 12 * MB as u64, "{least}");
    let all: Vec<&Proxy> = replicas.iter().collect();
    site.settle();
    wait_until(PATIENCE, "the bounds to be kept to", || site.stored() <= QUOTA);
    // Counted first: what goes between the two looks is no second time.
    let evicted = sum(&all, "aptmesh_store_evicted_bytes_total");
    let gone = (3 * FILES * MB) as u64 - site.stored();
    assert!(evicted <= gone, "{evicted} of {gone}: nothing goes twice");
    wait_until(PATIENCE, "index, volume and count to be one", || {
        let known = site.sql("SELECT count(*), sum(size) FROM blobs");
        known == site.sql("SELECT blobs, bytes FROM volumes")
            && bytes_in(&site.volume.path().join("blobs")) == site.stored()
    });
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_gone) => 0,
    };
    entries.map(bytes).sum()
}

/// Versions of an archive, the newer the later made.
fn archive(version: u64) -> LocalArchive {
    let version_text = format!("1.{version}");
    LocalArchive::new("demo").package("tool", &version_text, 100_000).later(version)
}

/// What the mirror has now is learnt through `replica`.
fn update(site: &Site, replica: &Proxy, archive: &LocalArchive) {
    archive.publish(&site.mirror, "/debian");
    let before = replica.count(LEARNT);
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        assert_eq!(site.get(replica, &format!("/debian/{path}")).status, 200);
    }
    wait_until(PATIENCE, "both lists are learnt", || replica.count(LEARNT) >= before + 2);
}

fn deb(archive: &LocalArchive) -> String {
    format!("/debian/{}", archive.deb_path("tool"))
}

#[test]
fn what_is_new_is_fetched_once_within_one_budget_and_by_another_if_need_be() {
    let site = Site::new();
    let settings = [("APTMESH_PREFETCH_BUDGET", "250kB"), ("APTMESH_MIRROR_RECHECK_AFTER", "0s")];
    let (first, second) = (site.replica(&settings), site.replica(&settings));
    wait_until(PATIENCE, "the first to be on duty", || does(&first, "prefetch"));
    let versions: Vec<LocalArchive> = (0..4).map(archive).collect();
    update(&site, &second, &versions[0]);
    assert_eq!(site.get(&second, &deb(&versions[0])).status, 200);
    second.wait_landed();

    // What the second hears, the first fetches.
    let fetched = "aptmesh_engine_prefetched_bytes_total{fate=\"fetched\"}";
    update(&site, &second, &versions[1]);
    wait_until(PATIENCE, "the new version", || first.count(fetched) > 0);
    first.wait_landed();
    assert_eq!(site.mirror.bodies(&deb(&versions[1])), 1);
    assert_eq!(site.get(&second, &deb(&versions[1])).header("cache-status"), Some("aptmesh; hit"));
    assert_eq!(second.count(fetched), 0);
    // That it is used is known to the index some seconds later.
    thread::sleep(Duration::from_secs(4));

    // The first can not get what is new, and dies.
    site.mirror.script(&deb(&versions[2]), vec![Fault::Status(503); 4]);
    update(&site, &second, &versions[2]);
    wait_until(PATIENCE, "a try", || site.mirror.requests(&deb(&versions[2])).len() >= 4);
    wait_until(PATIENCE, "the end of it", || site.sql("SELECT has_failed FROM errands") == "t");
    first.kill9();
    wait_until(PATIENCE, "the other one to fetch it", || second.count(fetched) > 0);
    assert_eq!(site.mirror.bodies(&deb(&versions[2])), 1);

    // A third one is beyond the site's budget, though not beyond this process's.
    assert_eq!(site.get(&second, &deb(&versions[2])).status, 200);
    thread::sleep(Duration::from_secs(4));
    update(&site, &second, &versions[3]);
    thread::sleep(Duration::from_secs(4));
    assert_eq!(site.mirror.bodies(&deb(&versions[3])), 0);
    assert_eq!(site.sql("SELECT count(*) FROM errands"), "1", "it waits for another day");
}

#[test]
fn a_list_is_doubted_by_one() {
    let site = Site::new();
    let (first, second) = (site.replica(&[]), site.replica(&[]));
    let archive = archive(1);
    update(&site, &first, &archive);
    let other = LocalArchive::new("demo").package("tool", "1.0~", 100_000);
    site.mirror.put(&deb(&archive), File::new(other.deb("tool").to_vec()));
    let lists = || {
        let log = site.mirror.log();
        log.iter().filter(|seen| seen.path.contains("/dists/")).count()
    };
    let doubt = |replica: &Proxy| {
        let reply = site.get(replica, &deb(&archive));
        assert!(reply.status != 200 || !reply.complete, "{}", reply.status);
        replica.wait_landed();
    };
    let before = lists();
    doubt(&first);
    wait_until(PATIENCE, "the lists to be asked for", || lists() >= before + 2);
    first.wait_landed();
    thread::sleep(Duration::from_secs(2));
    let asked = lists();
    doubt(&second);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(lists(), asked, "they were looked at just now");
}
