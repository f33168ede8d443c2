//! Whatever ends the process, and whenever: what is stored is whole, what is served is right, and
//! what was unfinished goes away.

use crate::kit::{File, Mirror, Proxy, Reply, get, noise, sha256_hex};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, SystemTime};

const ROUNDS: u64 = 50;
const CLIENTS: u64 = 4;
/// Bytes per second for each file: a big one outlives its round.
const RATE: u64 = 10_000_000;

/// Where a file is asked for, and what it must be.
struct Wanted {
    target: String,
    sha256: String,
}

/// Puts a file on the mirror, under a name that promises its digest or one that does not.
fn publish(mirror: &Mirror, seed: u64, len: usize) -> Wanted {
    let bytes = noise(seed, len);
    let sha256 = sha256_hex(&bytes);
    let path = if seed.is_multiple_of(2) {
        format!("/debian/dists/demo/main/by-hash/SHA256/{sha256}")
    } else {
        format!("/debian/pool/f/file_{seed}.orig.tar.xz")
    };
    mirror.put(&path, File::new(bytes).rate(RATE));
    Wanted { target: format!("/{}{path}", mirror.host()), sha256 }
}

fn publish_round(mirror: &Mirror, round: u64) -> Vec<Wanted> {
    let big = round.is_multiple_of(4).then_some(5_000_000);
    let sizes = [100_000, 400_000, 1_500_000].into_iter().chain(big);
    (round * 5 + 1..).zip(sizes).map(|(seed, len)| publish(mirror, seed, len)).collect()
}

/// Looks random, and is the same in every run.
fn pick(seed: u64, below: usize) -> usize {
    let bytes = noise(seed, 8);
    usize::from(u16::from_le_bytes([bytes[6], bytes[7]])) % below
}

fn assert_whole(reply: &Reply, wanted: &Wanted) {
    assert!(reply.complete && reply.status == 200, "{}: {:?}", wanted.target, reply.trouble);
    assert_eq!(sha256_hex(&reply.body), wanted.sha256, "{} was served wrong", wanted.target);
}

/// What became of the answers of all rounds.
#[derive(Default)]
struct Tally {
    hits: AtomicUsize,
    fetched: AtomicUsize,
    broken: AtomicUsize,
}

/// Asks for one file after another, new ones and old ones, until the proxy is dead.
fn browse(addr: SocketAddr, files: &[Wanted], seed: u64, dead: &AtomicBool, tally: &Tally) {
    for step in 0.. {
        let newest = files.len().min(4);
        let choice = pick(seed * 1000 + step, files.len());
        let index = if step % 3 == 0 { choice } else { files.len() - 1 - choice % newest };
        let reply = get(addr, &files[index].target);
        let count = match (reply.complete && reply.status == 200, reply.header("x-aptmesh-source"))
        {
            (true, Some("store")) => &tally.hits,
            (true, _) => &tally.fetched,
            (false, _) => &tally.broken,
        };
        count.fetch_add(1, SeqCst);
        if reply.complete && reply.status == 200 {
            assert_whole(&reply, &files[index]);
        }
        // Another process may have the port by now.
        if !reply.complete || dead.load(SeqCst) {
            return;
        }
    }
}

/// What a dead process left is as old as if nobody could follow it any more.
fn age(left: &[PathBuf]) {
    let long_ago = SystemTime::now() - Duration::from_mins(2);
    for path in left {
        fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn fifty_kills_corrupt_nothing_and_leave_nothing() {
    let mirror = Mirror::start();
    let mut proxy = Proxy::start();
    let tally = Tally::default();
    let mut files = Vec::new();
    let mut left_behind = 0;
    for round in 0..ROUNDS {
        files.extend(publish_round(&mirror, round));
        let dead = AtomicBool::new(false);
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (addr, seed) = (proxy.addr(), round * CLIENTS + client);
                let (files, dead, tally) = (&files, &dead, &tally);
                scope.spawn(move || browse(addr, files, seed, dead, tally));
            }
            thread::sleep(Duration::from_millis(30 + pick(round + 7, 250) as u64));
            proxy.kill9();
            dead.store(true, SeqCst);
        });
        let left = proxy.staged();
        left_behind += left.len();
        age(&left);
        proxy.restart();
        assert_eq!(proxy.staged(), Vec::<PathBuf>::new(), "round {round}");
        proxy.check_blobs();
    }

    assert!(left_behind > 0, "no kill came in the middle of a download");
    assert!(proxy.blobs().len() > 20, "only {} files were stored", proxy.blobs().len());
    for (what, count) in
        [("hits", &tally.hits), ("fetched", &tally.fetched), ("broken", &tally.broken)]
    {
        assert!(count.load(SeqCst) > 20, "{what}: {count:?}");
    }
    for wanted in files.iter().rev().take(10) {
        assert_whole(&get(proxy.addr(), &wanted.target), wanted);
    }
    assert_eq!(children(&proxy.data().join("staging")).len(), 1, "folders of dead processes");
}

/// A proxy that stored one file and was killed.
fn stored_and_killed(mirror: &Mirror) -> (Proxy, Wanted) {
    let wanted = publish(mirror, 1, 300_000);
    let proxy = Proxy::start();
    assert_whole(&get(proxy.addr(), &wanted.target), &wanted);
    crate::kit::wait_until(Duration::from_secs(20), "the blob", || {
        get(proxy.addr(), &wanted.target).header("x-aptmesh-source") == Some("store")
    });
    proxy.kill9();
    mirror.clear_log();
    (proxy, wanted)
}

#[test]
fn what_was_stored_outlives_a_kill() {
    let mirror = Mirror::start();
    let (mut proxy, wanted) = stored_and_killed(&mirror);
    proxy.restart();

    let reply = get(proxy.addr(), &wanted.target);
    assert_whole(&reply, &wanted);
    assert_eq!(reply.header("cache-status"), Some("aptmesh; hit"));
    assert_eq!(mirror.log().len(), 0);
}

#[test]
fn a_truncated_blob_is_fetched_again() {
    let mirror = Mirror::start();
    let (mut proxy, wanted) = stored_and_killed(&mirror);
    let blob = fs::OpenOptions::new().write(true).open(&proxy.blobs()[0]).unwrap();
    blob.set_len(1000).unwrap();
    proxy.restart();

    assert_whole(&get(proxy.addr(), &wanted.target), &wanted);
    assert_eq!(mirror.log().len(), 1);
    crate::kit::wait_until(Duration::from_secs(20), "a whole blob", || {
        get(proxy.addr(), &wanted.target).header("x-aptmesh-source") == Some("store")
    });
    proxy.check_blobs();
}

#[test]
fn a_corrupt_index_is_begun_anew() {
    let mirror = Mirror::start();
    let (mut proxy, wanted) = stored_and_killed(&mirror);
    for file in children(proxy.data()).iter().filter(|path| path.is_file()) {
        fs::write(file, noise(9, 50_000)).unwrap();
    }
    proxy.restart();

    assert_whole(&get(proxy.addr(), &wanted.target), &wanted);
    crate::kit::wait_until(Duration::from_secs(20), "a hit", || {
        get(proxy.addr(), &wanted.target).header("x-aptmesh-source") == Some("store")
    });
    proxy.restart();
    let reply = get(proxy.addr(), &wanted.target);
    assert_eq!(reply.header("cache-status"), Some("aptmesh; hit"));
    assert_eq!(mirror.bodies(&wanted.target[1 + mirror.host().len()..]), 1);
}
