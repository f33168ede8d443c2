//! A mirror moves on between two requests of one client; what the client gets is of one piece.

use crate::kit::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const GENERATIONS: usize = 20;

/// The archive's `number`th state: one package more than the one before.
fn generation(number: usize) -> LocalArchive {
    (0..=number).fold(LocalArchive::new("demo"), |archive, number| {
        archive.package(&format!("tool{number}"), "1.0", 100)
    })
}

fn proxy() -> Proxy {
    Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start()
}

#[test]
fn a_packages_file_fits_the_release_file_that_the_client_was_given() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let (mut moved_on, mut mixed_directly) = (generation(0), 0);
    moved_on.publish(&mirror, "/debian");
    for number in 1..GENERATIONS {
        let given = moved_on;
        let release = get(proxy.addr(), &proxy.url_for(&mirror, "/debian/dists/demo/Release"));
        assert_eq!(release.body, given.release().as_bytes());
        let direct = get(mirror.addr(), "/debian/dists/demo/Release");

        moved_on = generation(number);
        moved_on.publish(&mirror, "/debian");
        let path = format!("/debian/{}", given.index_path());
        let index = get(proxy.addr(), &proxy.url_for(&mirror, &path));
        assert_eq!(index.body, given.index().as_bytes(), "generation {number}: {}", index.reason);

        let direct_index = get(mirror.addr(), &path);
        let named = String::from_utf8_lossy(&direct.body).into_owned();
        mixed_directly += usize::from(!named.contains(&sha256_hex(&direct_index.body)));
    }
    assert_eq!(mixed_directly, GENERATIONS - 1, "without the cache they never fit");
}

#[test]
fn what_can_not_be_had_by_its_hash_is_had_by_its_name() {
    let (mirror, proxy, given) = (Mirror::start(), proxy(), generation(0));
    given.publish(&mirror, "/debian");
    get(proxy.addr(), &proxy.url_for(&mirror, "/debian/dists/demo/Release"));
    let moved_on = generation(1);
    moved_on.publish(&mirror, "/debian");
    mirror.remove(&format!("/debian/{}", given.by_hash_path()));
    let path = format!("/debian/{}", given.index_path());
    let index = get(proxy.addr(), &proxy.url_for(&mirror, &path));
    assert_eq!(index.status, 200, "never an invented 404");
    assert_eq!(index.body, moved_on.index().as_bytes());
}

/// Runs real apt, which is told to ask for names instead of hashes, while the archive moves on
/// without a pause; tells how often it complained.
fn complaints(through: impl Fn(&Mirror) -> String, runs: usize) -> usize {
    let mirror = Mirror::start();
    generation(0).publish(&mirror, "/debian");
    let base = through(&mirror);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..GENERATIONS).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                generation(number).publish(&mirror, "/debian");
                thread::sleep(Duration::from_millis(2));
            }
        });
        let bad = (0..runs)
            .filter(|_| {
                let apt = Apt::new(None);
                apt.conf("Acquire::By-Hash", "no");
                apt.conf("Acquire::Retries", "0");
                apt.sources(&generation(0).source_line(&base));
                let update = apt.update();
                let is_mixed = ["Hash Sum mismatch", "unexpected size"]
                    .iter()
                    .any(|complaint| update.output.contains(complaint));
                assert!(update.ok || is_mixed, "{}", update.output);
                is_mixed
            })
            .count();
        stop.store(true, Ordering::Relaxed);
        bad
    })
}

#[test]
fn real_apt_never_sees_two_states_of_an_archive_mixed() {
    let proxy = proxy();
    let through = |mirror: &Mirror| format!("http://{}/{}/debian", proxy.addr(), mirror.host());
    assert_eq!(complaints(through, 40), 0, "{}", proxy.log());
    let directly = |mirror: &Mirror| format!("http://{}/debian", mirror.host());
    assert!(complaints(directly, 40) > 0, "the mirror does not move fast enough to prove anything");
}
