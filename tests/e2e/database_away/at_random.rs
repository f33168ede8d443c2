//! PostgreSQL comes and goes for five minutes, and nobody notices.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const FOR: Duration = Duration::from_mins(5);
/// Sets the seed, to see a run again.
const SEED: &str = "APTMESH_TEST_SEED";
/// Between two runs of one apt, and two requests of one other client: other tests run beside this.
const APT_PAUSE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(60);
/// How often the archive changes.
const STATE_EVERY: Duration = Duration::from_secs(20);
/// Files that are asked for besides.
const FILES: u64 = 400;

/// Numbers as good as random (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

fn seed() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "a test that failed is begun again with its seed")]
    let given: Option<u64> = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    given.unwrap_or_else(now).max(1)
}

/// Makes the others stop, too, when one has failed.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The archive's next state: a new version of one package, the other as it was.
fn publish_state(site: &Site, number: u64) {
    let archive = LocalArchive::new("demo").package("tool", &format!("1.{number}"), 120_000);
    archive.package("toy", "1.0", 1_000).later(number).publish(&site.mirror, "/debian");
}

/// One way to be away, for a while.
fn take_away(server: &Postgres, dice: &mut Dice) {
    let gone = dice.millis(200, 7000);
    match dice.below(3) {
        0 => {
            server.stop();
            sleep(gone);
            server.resume();
        }
        1 => {
            server.pause();
            sleep(gone);
            server.go_on();
        }
        _ => {
            server.stop();
            server.resume();
        }
    }
}

#[test]
fn five_minutes_of_a_database_that_comes_and_goes() {
    let seed = seed();
    eprintln!("{SEED}={seed}");
    let (site, server) = (Site::new(), Postgres::start());
    let url = migrated(&server);
    let replica = || {
        let replica = Proxy::build().data(site.volume.path()).env(URL, &url);
        replica.env("APTMESH_MIRROR_RECHECK_AFTER", "2s").env("APTMESH_INDEX_POOL", "4").start()
    };
    let replicas = [replica(), replica()];
    let files: Vec<(String, Vec<u8>)> = (0..FILES).map(|number| site.publish(number)).collect();
    let (is_over, runs) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (site, files, is_over, runs) = (&site, &files, &is_over, &runs);
        for (replica, number) in replicas.iter().zip(1..) {
            scope.spawn(move || {
                let _ending = Ending(is_over);
                while !is_over.load(Ordering::Relaxed) {
                    site.install(replica);
                    runs.fetch_add(1, Ordering::Relaxed);
                    sleep(APT_PAUSE);
                }
            });
            scope.spawn(move || {
                let _ending = Ending(is_over);
                let (mut dice, begun) = (Dice(seed ^ number), Instant::now());
                while !is_over.load(Ordering::Relaxed) {
                    // More and more of them, so that there always are new ones.
                    let known = (FILES * begun.elapsed().as_secs() / FOR.as_secs()).min(FILES - 20);
                    let at = usize::try_from(dice.below(known + 20)).unwrap();
                    let (path, bytes) = &files[at];
                    site.fetch(replica, path, bytes);
                    sleep(PAUSE);
                }
            });
        }
        let ending = Ending(is_over);
        let (mut dice, begun, mut state) = (Dice(seed), Instant::now(), 0);
        while begun.elapsed() < FOR && !is_over.load(Ordering::Relaxed) {
            if begun.elapsed() > STATE_EVERY * u32::try_from(state).unwrap() {
                state += 1;
                publish_state(site, state);
            }
            take_away(&server, &mut dice);
            sleep(dice.millis(500, 6000));
        }
        drop(ending);
    });

    assert!(runs.load(Ordering::Relaxed) > 10, "{runs:?} runs of apt");
    for replica in &replicas {
        let log = replica.log();
        assert!(log.contains("PostgreSQL is away") && log.contains("PostgreSQL is back"), "{log}");
        assert!(replica.count(NOT_ASKED) > 0, "it was away while somebody wanted it");
        assert!(replica.count(HITS) > 50, "{} hits", replica.count(HITS));
        assert!(replica.count(TOLD) > 0, "something was recorded later");
        assert!(!log.contains("panicked"), "{log}");
        replica.check_blobs();
    }
    wait_until(PATIENCE, "all is well again", || {
        replicas.iter().all(|replica| ready(replica) == "ready\n" && replica.count(LATE) == 0)
    });
    let [here, there] = &replicas;
    let mut number = FILES;
    wait_until(PATIENCE, "what one stores the other serves", || {
        number += 1;
        let (path, bytes) = site.publish(number);
        site.fetch(here, &path, &bytes);
        here.wait_landed();
        site.mirror.clear_log();
        site.fetch(there, &path, &bytes);
        site.mirror.log().is_empty()
    });
}
