//! What is asked again and what is not: files that never change, files that do, a mirror that is
//! away, and what is left after a restart.

use crate::kit::{Fault, File, Mirror, Proxy, Reply, get, noise, request, sha256_hex, wait_until};
use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

const PACKAGE: &str = "/debian/pool/main/h/hello/hello_2.10.orig.tar.xz";
const RELEASE: &str = "/debian/dists/sid/Release";
const PACKAGES_FILE: &str = "/debian/dists/sid/main/binary-all/Packages.xz";
/// When a file of the kit's mirror changed.
const DATE: &str = "Tue, 02 Jan 2024 00:00:00 GMT";
/// Longer than a test: within it, nobody asks again.
const LONG: &str = "1h";

const HIT: &str = "aptmesh; hit";
const CONFIRMED: &str = "aptmesh; hit; fwd=stale; fwd-status=304";

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A proxy that revalidates as soon as `window` is over.
fn proxy_with(window: &str) -> Proxy {
    Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", window).start()
}

/// A proxy that revalidates at each request and has stored what the mirror has at `path`.
fn warm(mirror: &Mirror, path: &str, file: File) -> Proxy {
    let proxy = proxy_with("0s");
    mirror.put(path, file);
    fetch(&proxy, mirror, path);
    mirror.clear_log();
    proxy
}

fn ask(proxy: &Proxy, mirror: &Mirror, path: &str, fields: Fields) -> Reply {
    let reply = request(proxy.addr(), "GET", &proxy.url_for(mirror, path), fields);
    assert!(reply.complete, "{path}: {reply:?}");
    reply
}

/// Asks and waits until it is stored.
fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) -> Vec<u8> {
    let reply = ask(proxy, mirror, path, &[]);
    assert_eq!(reply.status, 200, "{path}: {}", reply.reason);
    proxy.wait_landed();
    reply.body
}

/// Asks as apt does for metadata.
fn ask_like_apt(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    ask(proxy, mirror, path, &[("Cache-Control", "max-age=0")])
}

fn cache_status(reply: &Reply) -> &str {
    reply.header("cache-status").unwrap_or_default()
}

fn assert_stale(reply: &Reply, body: &[u8], what: &str) {
    assert_eq!(reply.status, 200, "{what}: {}", reply.reason);
    assert!(reply.body == body, "{what}");
    assert!(cache_status(reply).contains("stale"), "{what}: {}", cache_status(reply));
    assert_eq!(reply.header("x-aptmesh-source"), Some("store"), "{what}");
}

fn by_hash(bytes: &[u8]) -> String {
    format!("/debian/dists/sid/main/binary-all/by-hash/SHA256/{}", sha256_hex(bytes))
}

#[test]
fn files_that_never_change_are_never_asked_for_again() {
    let (mirror, proxy) = (Mirror::start(), proxy_with("0s"));
    let (package, metadata) = (noise(1, 50_000), noise(2, 50_000));
    let by_hash = by_hash(&metadata);
    for (path, bytes) in [(PACKAGE, package), (&by_hash, metadata)] {
        mirror.put(path, File::new(bytes.as_slice()).etag("\"1\""));
        fetch(&proxy, &mirror, path);
        for fields in [&[][..], &[("Cache-Control", "max-age=0")]] {
            let reply = ask(&proxy, &mirror, path, fields);
            assert_eq!((cache_status(&reply), reply.body == bytes), (HIT, true), "{path}");
        }
        assert_eq!(mirror.requests(path).len(), 1, "{path}");
    }
    // A name that is its content can not be out of date, whatever the client says.
    let reply = ask(&proxy, &mirror, &by_hash, &[("Cache-Control", "no-cache")]);
    assert_eq!(cache_status(&reply), HIT);
    assert_eq!(mirror.requests(&by_hash).len(), 1);
}

#[test]
fn the_same_bytes_under_another_name_are_one_blob() {
    let (mirror, proxy) = (Mirror::start(), proxy_with("0s"));
    let bytes = noise(1, 50_000);
    let by_hash = by_hash(&bytes);
    for path in [PACKAGE, &by_hash] {
        mirror.put(path, File::new(bytes.as_slice()));
        assert_eq!(fetch(&proxy, &mirror, path), bytes);
    }
    assert_eq!(mirror.requests(&by_hash).len(), 0, "its name tells that it is there");
    assert_eq!(proxy.blobs().len(), 1);
}

#[test]
fn files_that_change_in_place_are_confirmed_by_their_marks() {
    let mirror = Mirror::start();
    let proxy = proxy_with("0s");
    let undated = || File::new(noise(2, 50_000)).no_validators();
    for (folder, file, etag, date) in [
        ("/both", File::new(noise(2, 50_000)).etag("\"r1\""), Some("\"r1\""), Some(DATE)),
        ("/date", File::new(noise(2, 50_000)), None, Some(DATE)),
        ("/etag", undated().etag("\"r1\""), Some("\"r1\""), None),
        ("/weak", undated().etag("W/\"r1\""), Some("W/\"r1\""), None),
    ] {
        for path in [RELEASE, PACKAGES_FILE] {
            let path = format!("{folder}{path}");
            mirror.put(&path, file.clone());
            fetch(&proxy, &mirror, &path);
            let reply = ask_like_apt(&proxy, &mirror, &path);
            assert!(reply.status == 200 && reply.body == noise(2, 50_000), "{path}");
            assert_eq!(cache_status(&reply), CONFIRMED, "{path}");
            assert_eq!(reply.header("x-aptmesh-source"), Some("store"), "{path}");
            let asked = mirror.requests(&path);
            assert_eq!(asked.len(), 2, "{path}");
            assert_eq!(asked[1].status, 304, "{path}");
            assert_eq!(asked[1].header("if-none-match"), etag, "{path}");
            assert_eq!(asked[1].header("if-modified-since"), date, "{path}");
            // The client's own copy is confirmed along with ours.
            if date.is_some() {
                let fields = [("If-Modified-Since", DATE), ("Cache-Control", "max-age=0")];
                assert_eq!(ask(&proxy, &mirror, &path, &fields).status, 304, "{path}");
            }
            proxy.wait_landed();
        }
    }
}

#[test]
fn clients_that_ask_at_the_same_time_share_one_confirmation() {
    let mirror = Mirror::start();
    let file = File::new(noise(3, 50_000));
    let proxy = warm(&mirror, RELEASE, file.clone());
    mirror.put(RELEASE, file.head_delay(Duration::from_millis(2_500)));
    let start = Barrier::new(20);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                start.wait();
                let reply = ask_like_apt(&proxy, &mirror, RELEASE);
                assert_eq!(cache_status(&reply), CONFIRMED);
                assert!(reply.body == noise(3, 50_000));
            });
        }
    });
    assert_eq!(mirror.requests(RELEASE).len(), 1);
}

#[test]
fn within_the_window_nobody_is_asked() {
    let (mirror, proxy) = (Mirror::start(), proxy_with(LONG));
    for path in [RELEASE, PACKAGES_FILE] {
        mirror.put(path, File::new(noise(4, 1_000)));
        fetch(&proxy, &mirror, path);
        mirror.replace(path, File::new(noise(5, 1_000)).etag("\"new\""));
        for fields in [&[][..], &[("Cache-Control", "max-age=0")]] {
            let reply = ask(&proxy, &mirror, path, fields);
            assert_eq!((cache_status(&reply), reply.body == noise(4, 1_000)), (HIT, true));
        }
        assert_eq!(mirror.requests(path).len(), 1, "{path}");
    }
}

#[test]
fn no_cache_asks_even_within_the_window() {
    let (mirror, proxy) = (Mirror::start(), proxy_with(LONG));
    for path in [RELEASE, PACKAGES_FILE, PACKAGE] {
        mirror.put(path, File::new(noise(6, 1_000)).etag("\"1\""));
        fetch(&proxy, &mirror, path);
        for field in [("Cache-Control", "no-cache"), ("Pragma", "no-cache")] {
            let reply = ask(&proxy, &mirror, path, &[field]);
            assert_eq!(cache_status(&reply), CONFIRMED, "{field:?} {path}");
            proxy.wait_landed();
        }
        let asked = mirror.requests(path);
        assert_eq!(asked.len(), 3, "{path}");
        assert!(asked[1..].iter().all(|seen| seen.status == 304), "{asked:#?}");
        mirror.replace(path, File::new(noise(7, 1_000)).etag("\"2\""));
        let reply = ask(&proxy, &mirror, path, &[("Cache-Control", "no-cache")]);
        assert!(reply.body == noise(7, 1_000), "{path}");
        proxy.wait_landed();
        assert!(ask(&proxy, &mirror, path, &[]).body == noise(7, 1_000), "{path}");
    }
}

#[test]
fn a_changed_file_is_served_at_once() {
    let mirror = Mirror::start();
    let proxy = warm(&mirror, RELEASE, File::new(noise(8, 50_000)).etag("\"1\""));
    mirror.replace(RELEASE, File::new(noise(9, 60_000)).etag("\"2\"").header("X", "y"));
    let reply = ask_like_apt(&proxy, &mirror, RELEASE);
    assert!(reply.status == 200 && reply.body == noise(9, 60_000));
    assert_eq!(reply.header("etag"), Some("\"2\""));
    assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
    proxy.wait_landed();
    let reply = ask_like_apt(&proxy, &mirror, RELEASE);
    assert_eq!((cache_status(&reply), reply.body == noise(9, 60_000)), (CONFIRMED, true));
    assert_eq!(mirror.requests(RELEASE).pop().unwrap().header("if-none-match"), Some("\"2\""));
}

#[test]
fn a_mirror_without_marks_is_asked_again_and_compared_by_digest() {
    let mirror = Mirror::start();
    let bare = |seed| File::new(noise(seed, 50_000)).no_validators();
    let proxy = warm(&mirror, RELEASE, bare(10));
    for _ in 0..2 {
        let reply = ask_like_apt(&proxy, &mirror, RELEASE);
        assert!(reply.body == noise(10, 50_000));
        proxy.wait_landed();
    }
    let asked = mirror.requests(RELEASE);
    assert_eq!(asked.len(), 2);
    let conditions = ["if-none-match", "if-modified-since"];
    assert!(asked.iter().all(|seen| conditions.iter().all(|name| seen.header(name).is_none())));
    assert_eq!(proxy.blobs().len(), 1);
    // A confirmation all the same: it is what is served when the mirror is gone.
    assert_eq!(proxy.metric("aptmesh_engine_stored_bytes_total"), 50_000.0);
    mirror.replace(RELEASE, bare(11));
    assert!(fetch(&proxy, &mirror, RELEASE) == noise(11, 50_000));
    mirror.stop();
    assert_stale(&ask_like_apt(&proxy, &mirror, RELEASE), &noise(11, 50_000), "away");
}

#[test]
fn while_the_mirror_is_away_the_stale_copy_is_served_and_says_so() {
    let window = Duration::from_secs(8);
    let (mirror, proxy) = (Mirror::start(), proxy_with("8s"));
    let bytes = noise(12, 50_000);
    for path in [RELEASE, PACKAGES_FILE] {
        mirror.put(path, File::new(bytes.as_slice()));
        fetch(&proxy, &mirror, path);
    }
    mirror.stop();
    thread::sleep(window);
    let asked = || proxy.metric("aptmesh_mirror_requests_total");
    for path in [RELEASE, PACKAGES_FILE] {
        let before = asked();
        assert_stale(&ask_like_apt(&proxy, &mirror, path), &bytes, path);
        // The second time it is known that nobody answers, and not waited for.
        proxy.wait_landed();
        let after = asked();
        assert!(after > before, "{path} was not asked for");
        // One failure answers all for as long as one confirmation would.
        assert_stale(&ask_like_apt(&proxy, &mirror, path), &bytes, path);
        assert_eq!(asked(), after, "{path} was asked for again");
    }
    mirror.restart();
    wait_until(Duration::from_secs(30), "it is noticed that the mirror is back", || {
        let reply = ask_like_apt(&proxy, &mirror, RELEASE);
        assert_eq!(reply.body, bytes);
        !cache_status(&reply).contains("stale-mirror-away")
    });
}

#[test]
fn a_mirror_that_hangs_does_not_keep_the_stale_copy_from_its_client() {
    let mirror = Mirror::start();
    let file = File::new(noise(13, 50_000));
    let proxy = warm(&mirror, RELEASE, file.clone());
    mirror.put(RELEASE, file.head_delay(Duration::from_mins(10)));
    let reply = ask_like_apt(&proxy, &mirror, RELEASE);
    assert_stale(&reply, &noise(13, 50_000), "hanging");
    assert!(reply.total < Duration::from_secs(25), "apt gives up after 30 s: {:?}", reply.total);
    let asked = mirror.requests(RELEASE);
    assert!(!asked.is_empty() && asked.iter().all(|seen| seen.status == 0), "{asked:#?}");
}

#[test]
fn a_mirror_in_trouble_leaves_the_stale_copy() {
    let mirror = Mirror::start();
    let proxy = warm(&mirror, RELEASE, File::new(noise(14, 50_000)));
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Refuse,
        Fault::Html,
        Fault::Redirect("ftp://example.org/".to_owned()),
    ] {
        // More than it is asked, then right again.
        mirror.script(RELEASE, vec![fault.clone(); 4]);
        let before = mirror.requests(RELEASE).len();
        while mirror.requests(RELEASE).len() < before + 4 {
            let reply = ask_like_apt(&proxy, &mirror, RELEASE);
            assert_stale(&reply, &noise(14, 50_000), &format!("{fault:?}"));
            proxy.wait_landed();
        }
        let reply = ask_like_apt(&proxy, &mirror, RELEASE);
        assert_eq!(cache_status(&reply), CONFIRMED, "{fault:?}");
        proxy.wait_landed();
    }
}

#[test]
fn a_file_that_is_gone_is_gone() {
    let mirror = Mirror::start();
    let proxy = warm(&mirror, RELEASE, File::new(noise(15, 1_000)).etag("\"1\""));
    for status in [404, 403, 410] {
        mirror.script(RELEASE, vec![Fault::Status(status)]);
        assert_eq!(ask_like_apt(&proxy, &mirror, RELEASE).status, status);
        proxy.wait_landed();
    }
    mirror.remove(RELEASE);
    assert_eq!(ask_like_apt(&proxy, &mirror, RELEASE).status, 404);
    mirror.put(RELEASE, File::new(noise(16, 1_000)).etag("\"2\""));
    proxy.wait_landed();
    assert!(ask_like_apt(&proxy, &mirror, RELEASE).body == noise(16, 1_000));
}

#[test]
fn what_is_stored_survives_restarts() {
    let (mirror, mut proxy) = (Mirror::start(), proxy_with(LONG));
    let small = "/pool/s/small_1.orig.tar.xz";
    for (path, seed, len) in [(PACKAGE, 17, 2_000_000), (small, 18, 900), (RELEASE, 19, 70_000)] {
        mirror.put(path, File::new(noise(seed, len)).etag("\"e\""));
        fetch(&proxy, &mirror, path);
    }
    mirror.stop();
    for gently in [true, false] {
        if !gently {
            proxy.kill9();
        }
        proxy.restart();
        for (path, seed, len) in [(PACKAGE, 17, 2_000_000), (small, 18, 900), (RELEASE, 19, 70_000)]
        {
            let reply = ask_like_apt(&proxy, &mirror, path);
            assert!(reply.status == 200 && reply.body == noise(seed, len), "{path}");
            assert_eq!(cache_status(&reply), HIT, "{path}");
            assert_eq!(reply.header("etag"), Some("\"e\""), "{path}");
            assert_eq!(reply.header("last-modified"), Some(DATE), "{path}");
            assert_eq!(reply.header("content-type"), Some("application/octet-stream"), "{path}");
        }
    }
    proxy.check_blobs();
}

#[test]
fn blobs_that_were_lost_or_cut_short_are_fetched_anew() {
    let (mirror, mut proxy) = (Mirror::start(), proxy_with(LONG));
    let lose: fn(&Path) = |blob| fs::remove_file(blob).unwrap();
    let cut: fn(&Path) = |blob| {
        // Blobs may be read-only: replace it instead of writing to it.
        let half = fs::read(blob).unwrap()[..10_000].to_vec();
        fs::remove_file(blob).unwrap();
        fs::write(blob, half).unwrap();
    };
    for (seed, spoil) in [(20, lose), (21, cut)] {
        let path = format!("/pool/p/p{seed}_1.orig.tar.xz");
        mirror.put(&path, File::new(noise(seed, 90_000)));
        let before = proxy.blobs();
        fetch(&proxy, &mirror, &path);
        let blob = proxy.blobs().into_iter().find(|blob| !before.contains(blob)).unwrap();
        proxy.signal("TERM");
        proxy.wait_exit(Duration::from_secs(20));
        spoil(&blob);
        proxy.restart();
        assert!(fetch(&proxy, &mirror, &path) == noise(seed, 90_000));
        assert_eq!(mirror.bodies(&path), 2, "{path}");
        assert_eq!(cache_status(&ask(&proxy, &mirror, &path, &[])), HIT, "{path}");
        proxy.check_blobs();
    }
}

#[test]
fn a_lost_index_costs_speed_and_nothing_else() {
    let (mirror, mut proxy) = (Mirror::start(), proxy_with(LONG));
    mirror.put(PACKAGE, File::new(noise(22, 90_000)));
    fetch(&proxy, &mirror, PACKAGE);
    let remove: fn(&Path) = |index| fs::remove_file(index).unwrap();
    let garble: fn(&Path) = |index| fs::write(index, noise(23, 50_000)).unwrap();
    let cut: fn(&Path) = |index| fs::write(index, &fs::read(index).unwrap()[..5_000]).unwrap();
    for (round, (harm, gently)) in
        [(remove, true), (garble, true), (garble, false), (cut, true), (remove, false)]
            .into_iter()
            .enumerate()
    {
        if gently {
            proxy.signal("TERM");
            proxy.wait_exit(Duration::from_secs(20));
        } else {
            proxy.kill9();
        }
        harm(&proxy.data().join("index.sqlite"));
        proxy.restart();
        assert_eq!(get(proxy.admin(), "/readyz").status, 200, "round {round}");
        assert!(fetch(&proxy, &mirror, PACKAGE) == noise(22, 90_000), "round {round}");
        assert_eq!(cache_status(&ask(&proxy, &mirror, PACKAGE, &[])), HIT, "round {round}");
        assert_eq!(proxy.blobs().len(), 1, "round {round}");
        // What was learnt anew is kept anew.
        let bodies = mirror.bodies(PACKAGE);
        proxy.restart();
        wait_until(Duration::from_secs(20), "a start", || {
            get(proxy.admin(), "/livez").status == 200
        });
        assert!(fetch(&proxy, &mirror, PACKAGE) == noise(22, 90_000), "round {round}");
        assert_eq!(mirror.bodies(PACKAGE), bodies, "round {round}");
    }
    proxy.check_blobs();
}

#[test]
fn marks_that_change_while_the_bytes_do_not_are_kept_up_with() {
    let mirror = Mirror::start();
    let bytes = noise(24, 50_000);
    let marked = |etag: &str| File::new(bytes.as_slice()).etag(etag);
    let mut proxy = warm(&mirror, RELEASE, marked("\"0\""));
    for number in 1..=3 {
        let etag = format!("\"{number}\"");
        mirror.replace(RELEASE, marked(&etag));
        assert!(fetch(&proxy, &mirror, RELEASE) == bytes);
        // From here on the mirror knows the mark that it gave last.
        for _ in 0..2 {
            let reply = ask_like_apt(&proxy, &mirror, RELEASE);
            assert_eq!((cache_status(&reply), reply.body == bytes), (CONFIRMED, true));
            assert_eq!(reply.header("etag"), Some(etag.as_str()));
            proxy.wait_landed();
        }
        let unchanged = ask(&proxy, &mirror, RELEASE, &[("If-None-Match", &etag)]);
        assert_eq!(unchanged.status, 304);
        proxy.wait_landed();
        assert_eq!(mirror.bodies(RELEASE), number, "{:#?}", mirror.log());
    }
    proxy.restart();
    assert_eq!(cache_status(&ask_like_apt(&proxy, &mirror, RELEASE)), CONFIRMED);
    assert_eq!(mirror.requests(RELEASE).pop().unwrap().header("if-none-match"), Some("\"3\""));
    assert_eq!(proxy.blobs().len(), 1);
}

#[test]
fn a_slow_confirmation_arrives_behind_the_stale_copy() {
    let (mirror, proxy) = (Mirror::start(), proxy_with("1s"));
    let (old, new) = (noise(25, 50_000), noise(26, 60_000));
    mirror.put(RELEASE, File::new(old.as_slice()).etag("\"1\""));
    fetch(&proxy, &mirror, RELEASE);
    thread::sleep(Duration::from_secs(2));
    // Longer than clients wait who could have a copy, and longer than a flight that nobody wants.
    let slow = File::new(new.as_slice()).etag("\"2\"").head_delay(Duration::from_secs(12));
    mirror.replace(RELEASE, slow);
    assert_stale(&ask_like_apt(&proxy, &mirror, RELEASE), &old, "slow");
    assert_eq!(mirror.bodies(RELEASE), 1, "the answer was not waited for");
    wait_until(Duration::from_secs(40), "the answer", || mirror.requests(RELEASE)[1].finished);
    proxy.wait_landed();
    mirror.stop();
    assert!(ask_like_apt(&proxy, &mirror, RELEASE).body == new);
    assert_eq!(mirror.requests(RELEASE).len(), 2);
}

#[test]
fn one_file_that_leads_nowhere_does_not_make_its_mirror_away() {
    let (mirror, nobody) = (Mirror::start(), Mirror::start());
    let bytes = noise(30, 50_000);
    let proxy = warm(&mirror, RELEASE, File::new(bytes.as_slice()));
    nobody.stop();
    let lost = "/debian/pool/main/l/lost/lost_1.orig.tar.xz";
    let there = format!("http://{}{lost}", nobody.host());
    mirror.script(lost, vec![Fault::Redirect(there); 100]);
    for round in 0..3 {
        let reply = ask(&proxy, &mirror, lost, &[]);
        assert!(matches!(reply.status, 502..=504), "{} {}", reply.status, reply.reason);
        assert_eq!(proxy.count("aptmesh_mirror_away"), 0);
        let release = ask_like_apt(&proxy, &mirror, RELEASE);
        assert_eq!(cache_status(&release), CONFIRMED, "round {round}");
        assert_eq!(release.body, bytes);
        let path = format!("/debian/pool/main/f/found/found_{round}.orig.tar.xz");
        mirror.put(&path, File::new(noise(31, 1_000)));
        assert_eq!(fetch(&proxy, &mirror, &path), noise(31, 1_000));
    }
    assert!(mirror.requests(lost).len() >= 3);
}
