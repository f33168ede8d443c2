//! Replicas on one database and one volume: clients notice nothing of one that is restarted, and a
//! volume in trouble costs a fleet speed only.

use crate::kit::postgres::database_of;
use crate::kit::*;
use crate::volume::Volume;
use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// Requests that a client sends ahead: half of what apt does.
const AHEAD: usize = 5;

/// A file on the mirror, and what it must be.
struct Wanted {
    target: String,
    sha256: String,
}

fn publish(mirror: &Mirror, seed: u64, len: usize, rate: u64) -> Wanted {
    let bytes = noise(seed, len);
    let sha256 = sha256_hex(&bytes);
    let path = format!("/debian/pool/f/file_{seed}.orig.tar.xz");
    mirror.put(&path, File::new(bytes).rate(rate));
    Wanted { target: format!("/{}{path}", mirror.host()), sha256 }
}

/// A client that takes HTTP at its word: on a connection that has not been announced to end, every
/// request is answered.
fn browse(
    addr: SocketAddr,
    files: &[Wanted],
    seed: usize,
    pause: Duration,
    is_over: &AtomicBool,
) -> usize {
    let mut unanswered: VecDeque<&Wanted> = VecDeque::new();
    let mut chosen = files.iter().cycle().skip(seed * 7);
    let mut answers = 0;
    loop {
        let mut connection = Connection::open(addr);
        for wanted in &unanswered {
            connection.send("GET", &wanted.target, &[]);
        }
        loop {
            while unanswered.len() < AHEAD && !is_over.load(SeqCst) {
                let wanted = chosen.next().expect("no end of them");
                connection.send("GET", &wanted.target, &[]);
                unanswered.push_back(wanted);
                if !pause.is_zero() {
                    break;
                }
            }
            let Some(wanted) = unanswered.pop_front() else { return answers };
            let reply = connection.read_reply("GET");
            let told = (reply.status, &reply.reason, &reply.trouble);
            assert!(reply.status == 200 && reply.complete, "{told:?} after {answers} answers");
            assert_eq!(sha256_hex(&reply.body), wanted.sha256, "{}", wanted.target);
            answers += 1;
            if reply.header("connection").is_some_and(|value| value == "close") {
                break;
            }
            thread::sleep(pause);
        }
    }
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let mirror = Mirror::start();
    let archive =
        LocalArchive::new("demo").package("tool", "1.0", 2_000_000).package("toy", "1.0", 1_000);
    archive.publish(&mirror, "/debian");
    let files: Vec<_> =
        (1..150).map(|seed| publish(&mirror, seed, 1000 * seed as usize, 2_000_000)).collect();
    // On its way while a replica is told to stop, for longer than newcomers are let in.
    let large = publish(&mirror, 1000, 30_000_000, 2_000_000);
    let mut fleet = Fleet::build().env("APTMESH_LISTEN_DRAIN_DELAY", "5s").start(3);
    let balancer = Balancer::before(&fleet);
    let (addr, is_over) = (balancer.addr(), AtomicBool::new(false));
    let installed = AtomicUsize::new(0);
    let pids: Vec<_> = fleet.iter().map(Proxy::pid).collect();

    let answers: Vec<usize> = thread::scope(|scope| {
        let (files, is_over, archive, installed) = (&files, &is_over, &archive, &installed);
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let pause = Duration::from_millis(if client % 2 == 0 { 0 } else { 100 });
                scope.spawn(move || browse(addr, files, client, pause, is_over))
            })
            .collect();
        for _ in 0..2 {
            let base = format!("http://{addr}/{}/debian", mirror.host());
            scope.spawn(move || {
                while !is_over.load(SeqCst) {
                    let apt = Apt::new(None);
                    apt.conf("Acquire::Retries", "0");
                    apt.sources(&archive.source_line(&base));
                    let update = apt.update();
                    assert!(update.ok, "{}", update.output);
                    let download = apt.download(&["tool", "toy"]);
                    assert!(download.ok, "{}", download.output);
                    installed.fetch_add(1, SeqCst);
                }
            });
        }
        let large = &large;
        let downloads: Vec<_> =
            (0..3).map(|_| scope.spawn(move || download_hash(addr, &large.target, &[]))).collect();
        wait_until(Duration::from_secs(60), "load on all", || {
            fleet.iter().all(|replica| replica.count("aptmesh_engine_served_total") > 10)
        });
        let restarting = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fleet.restart_one_by_one(&balancer);
        }));
        is_over.store(true, SeqCst);
        restarting.expect("a rolling restart");
        for download in downloads {
            let (reply, sha256, _) = download.join().expect("a client");
            assert!(reply.complete && sha256 == large.sha256, "{reply:?}");
        }
        clients.into_iter().map(|client| client.join().expect("no failed request")).collect()
    });

    assert!(fleet.iter().zip(pids).all(|(replica, pid)| replica.pid() != pid));
    assert!(answers.iter().all(|&answers| answers > 20), "{answers:?}");
    assert!(installed.load(SeqCst) > 2);
    let log: String = fleet.iter().map(Proxy::log).collect();
    assert!(!log.contains("ERROR"), "{log}");
    fleet.wait_landed();
    fleet[0].check_blobs();
}

const RECHECK: &str = "APTMESH_MIRROR_RECHECK_AFTER";
const PATIENCE: Duration = Duration::from_secs(90);
/// More than memory holds of a file.
const LARGE: usize = 400_000;

fn archive() -> LocalArchive {
    LocalArchive::new("demo").package("tool", "1.0", LARGE).package("toy", "1.0", 1_000)
}

/// A new machine installs something: nothing may fail, not even once.
fn install(replica: &Proxy, mirror: &Mirror, archive: &LocalArchive) {
    let apt = Apt::new(None);
    apt.conf("Acquire::Retries", "0");
    apt.sources(&archive.source_line(&format!(
        "http://{}/{}/debian",
        replica.addr(),
        mirror.host()
    )));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let download = apt.download(&["tool", "toy"]);
    assert!(download.ok, "{}", download.output);
}

#[track_caller]
fn assert_served(replica: &Proxy, wanted: &Wanted) -> Reply {
    let reply = get(replica.addr(), &wanted.target);
    let told = (reply.status, &reply.reason, &reply.trouble);
    assert!(reply.status == 200 && reply.complete, "{told:?}");
    assert_eq!(sha256_hex(&reply.body), wanted.sha256);
    reply
}

fn is_hit(reply: &Reply) -> bool {
    reply.header("cache-status") == Some("aptmesh; hit")
}

fn wait_for_hits(fleet: &Fleet, wanted: &Wanted) {
    for replica in fleet.iter() {
        wait_until(PATIENCE, "a hit", || is_hit(&assert_served(replica, wanted)));
    }
}

/// Two replicas that share `volume`, on which some files and a suite are stored.
fn stocked(volume: &Path, mirror: &Mirror, archive: &LocalArchive) -> (Fleet, Vec<Wanted>) {
    let fleet = Fleet::build().volume(volume).env(RECHECK, "1h").start(2);
    archive.publish(mirror, "/debian");
    install(&fleet[0], mirror, archive);
    let stored: Vec<_> = (1..5).map(|seed| publish(mirror, seed, LARGE, 100_000_000)).collect();
    for wanted in &stored {
        wait_for_hits(&fleet, wanted);
    }
    fleet.wait_landed();
    (fleet, stored)
}

fn blobs_known(fleet: &Fleet) -> usize {
    fleet.server.sql(database_of(&fleet.url), "SELECT count(*) FROM blobs").parse().unwrap()
}

fn blob_of(volume: &Path, wanted: &Wanted) -> PathBuf {
    volume.join("blobs").join(&wanted.sha256[..2]).join(&wanted.sha256)
}

fn serves_without_its_volume(
    replica: &Proxy,
    mirror: &Mirror,
    archive: &LocalArchive,
    stored: &[Wanted],
) {
    thread::scope(|scope| {
        for wanted in stored {
            scope.spawn(|| assert_served(replica, wanted));
        }
    });
    install(replica, mirror, archive);
    let seed = replica.addr().port().into();
    assert_served(replica, &publish(mirror, seed, LARGE, 100_000_000));
    let ready = get(replica.admin(), "/readyz");
    let told = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(ready.status == 200 && told.contains("not storing"), "{told}");
}

#[test]
fn a_volume_that_says_nothing_holds_no_request_up() {
    let (remote, mirror, archive) = (Remote::mounted(), Mirror::start(), archive());
    let (mut fleet, stored) = stocked(&remote.path(), &mirror, &archive);
    // Has nothing open, and nothing in memory.
    fleet.grow();
    let frozen = remote.freeze();
    thread::scope(|scope| {
        for replica in fleet.iter() {
            scope.spawn(|| serves_without_its_volume(replica, &mirror, &archive, &stored));
        }
    });
    drop(frozen);

    stored.iter().for_each(|wanted| wait_for_hits(&fleet, wanted));
    let new = publish(&mirror, 200, LARGE, 100_000_000);
    wait_for_hits(&fleet, &new);
    fleet.wait_landed();
    fleet[0].check_blobs();
}

#[test]
fn a_slow_volume_fails_no_request() {
    let (remote, mirror, archive) = (Remote::mounted(), Mirror::start(), archive());
    let (fleet, stored) = stocked(&remote.path(), &mirror, &archive);
    let later = LocalArchive::new("demo").package("tool", "2.0", LARGE).package("toy", "2.0", 9);
    let later = later.later(1);
    later.publish(&mirror, "/later/debian");
    let slow = remote.slow_down(Duration::from_millis(1500));
    thread::scope(|scope| {
        for (number, replica) in (0..).zip(fleet.iter()) {
            let (mirror, archive, later, stored) = (&mirror, &archive, &later, &stored);
            scope.spawn(move || {
                stored.iter().for_each(|wanted| drop(assert_served(replica, wanted)));
                install(replica, mirror, archive);
                assert_served(replica, &publish(mirror, 100 + number, LARGE, 100_000_000));
                let target =
                    replica.url_for(mirror, &format!("/later/debian/{}", later.deb_path("tool")));
                assert_eq!(get(replica.addr(), &target).body, later.deb("tool"));
            });
        }
    });
    drop(slow);
    stored.iter().for_each(|wanted| wait_for_hits(&fleet, wanted));
    fleet.wait_landed();
    fleet[0].check_blobs();
}

#[test]
fn a_volume_that_is_not_mounted_is_not_forgotten() {
    let (remote, mirror, archive) = (Remote::mounted(), Mirror::start(), archive());
    let (mut fleet, stored) = stocked(&remote.path(), &mirror, &archive);
    let known = blobs_known(&fleet);
    remote.unmount();
    // It has nothing open of the volume that was, and finds an empty folder.
    fleet.grow();
    for replica in fleet.iter() {
        stored.iter().for_each(|wanted| drop(assert_served(replica, wanted)));
        install(replica, &mirror, &archive);
    }
    fleet.wait_landed();
    assert!(blobs_known(&fleet) >= known, "{} of {known} are known", blobs_known(&fleet));

    remote.mount();
    fleet.grow();
    stored.iter().for_each(|wanted| wait_for_hits(&fleet, wanted));
    wait_for_hits(&fleet, &publish(&mirror, 200, LARGE, 100_000_000));
    fleet.wait_landed();
    fleet[0].check_blobs();
}

#[test]
fn a_volume_that_is_full_or_read_only_is_used_again_by_all_when_it_is_well() {
    let (volume, mirror, archive) = (Volume::of_megabytes(16), Mirror::start(), archive());
    let (fleet, stored) = stocked(volume.path(), &mirror, &archive);
    let troubles: [fn(&Volume) -> Option<PathBuf>; 2] = [
        |volume| Some(volume.fill()),
        |volume| {
            volume.make_read_only();
            None
        },
    ];
    for (number, trouble) in (0..).zip(troubles) {
        stored.iter().for_each(|wanted| wait_for_hits(&fleet, wanted));
        let filler = trouble(&volume);
        for (replica, seed) in fleet.iter().zip(100 + 10 * number..) {
            install(replica, &mirror, &archive);
            // What is stored goes for what is new, where that helps.
            let hits =
                stored.iter().filter(|wanted| is_hit(&assert_served(replica, wanted))).count();
            assert!(filler.is_some() || hits == stored.len(), "{hits}");
            let new = publish(&mirror, seed, LARGE, 100_000_000);
            (0..2).for_each(|_| drop(assert_served(replica, &new)));
            let told = get(replica.admin(), "/readyz");
            let told = String::from_utf8_lossy(&told.body).into_owned();
            assert!(filler.is_some() || told.contains("not storing"), "{told}");
        }
        match filler {
            Some(filler) => fs::remove_file(filler).unwrap(),
            None => volume.make_writable(),
        }
        for (replica, seed) in fleet.iter().zip(200 + 10 * number..) {
            let new = publish(&mirror, seed, LARGE, 100_000_000);
            wait_until(PATIENCE, "storing again", || is_hit(&assert_served(replica, &new)));
            wait_for_hits(&fleet, &new);
        }
        fleet.wait_landed();
        fleet[0].check_blobs();
    }
}

#[test]
fn blobs_spoilt_behind_the_back_of_all_are_had_anew() {
    let (mirror, archive) = (Mirror::start(), archive());
    let volume = tempfile::tempdir().unwrap();
    let (fleet, stored) = stocked(volume.path(), &mirror, &archive);
    fs::remove_file(blob_of(volume.path(), &stored[0])).unwrap();
    for (wanted, size) in stored[1..].iter().zip([0, 1, LARGE as u64 / 2]) {
        let blob = fs::File::options().write(true).open(blob_of(volume.path(), wanted)).unwrap();
        blob.set_len(size).unwrap();
    }
    for replica in fleet.iter() {
        stored.iter().for_each(|wanted| drop(assert_served(replica, wanted)));
        install(replica, &mirror, &archive);
    }
    stored.iter().for_each(|wanted| wait_for_hits(&fleet, wanted));
    fleet.wait_landed();
    for wanted in &stored {
        assert!(blob_of(volume.path(), wanted).exists());
    }
    fleet[0].check_blobs();
}
