//! Replicas on one database and one volume: clients notice nothing of one that is restarted, and a
//! volume in trouble costs a fleet speed only.

use crate::kit::*;
use std::collections::VecDeque;
use std::net::SocketAddr;
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
