//! Flights: however many clients want a file, it comes from the mirror once; each of them gets it
//! from its first byte at its own pace, and it ends early only when nobody wants it any more.

use crate::kit::*;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

const MEGABYTE: usize = 1 << 20;

/// Debug builds included.
const MEMORY_MAX: u64 = 150 << 20;

/// A file of which nobody checks how it begins.
const TOOL: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";
const SERVED: &str = "aptmesh_engine_served_total";
/// The kit's date of every file.
const DATE: &str = "Tue, 02 Jan 2024 00:00:00 GMT";

/// A mirror that has `file` at [`TOOL`], and a proxy.
fn scene(file: File) -> (Mirror, Proxy) {
    let mirror = Mirror::start();
    mirror.put(TOOL, file);
    (mirror, Proxy::start())
}

/// A client who has asked for [`TOOL`] and read the head of the answer.
fn begin(proxy: &Proxy, mirror: &Mirror, headers: &[(&str, &str)]) -> (Connection, Head) {
    let mut client = Connection::open(proxy.addr());
    client.send("GET", &proxy.url_for(mirror, TOOL), headers);
    let head = client.read_head();
    (client, head)
}

/// The rest of a body that must go on like `expected` and end there.
fn assert_rest(client: &mut Connection, expected: &[u8]) {
    let body = client.read_body_some(expected.len());
    assert!(body == expected, "{} of {} bytes came, or wrong ones", body.len(), expected.len());
}

fn assert_in_flight(mirror: &Mirror) {
    let seen = mirror.requests(TOOL);
    assert!(seen.iter().any(|seen| seen.open), "the mirror is done: {seen:#?}");
}

/// What each of `count` clients got who asked at the same time.
fn crowd<T: Send>(count: usize, ask: impl Fn() -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(count);
    let visit = || {
        barrier.wait();
        ask()
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..count).map(|_| scope.spawn(visit)).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    })
}

#[test]
fn fifty_clients_cost_one_upstream_body() {
    let bytes = noise(1, 100 * MEGABYTE);
    let expected = sha256_hex(&bytes);
    let (mirror, proxy) = scene(File::new(bytes).rate(25 << 20));
    let url = proxy.url_for(&mirror, TOOL);

    let replies = crowd(50, || download_hash(proxy.addr(), &url, &[]));

    for (reply, hash, _) in &replies {
        assert!(reply.status == 200 && reply.complete, "{reply:?}");
        assert_eq!(hash, &expected);
    }
    assert_eq!((mirror.bodies(TOOL), mirror.bytes(TOOL)), (1, 100 << 20));
    assert_eq!(proxy.count(&format!("{SERVED}{{outcome=\"miss\"}}")), 1);
    assert!(proxy.count(&format!("{SERVED}{{outcome=\"collapsed\"}}")) > 0);
    let peak = proxy.peak_resident_bytes();
    println!("50 clients, 100 MB: at most {} MB resident", peak >> 20);
    assert!(peak < MEMORY_MAX, "{peak} bytes");
    proxy.wait_landed();
    assert_eq!(proxy.blobs().len(), 1);
    proxy.check_blobs();
    assert!(proxy.staged().is_empty(), "{:?}", proxy.staged());
}

#[test]
fn the_first_client_may_leave() {
    let bytes = noise(2, 8 * MEGABYTE);
    let (mirror, proxy) = scene(File::new(bytes.clone()).rate(2 << 20));

    let (mut first, head) = begin(&proxy, &mirror, &[]);
    assert_eq!(head.header("cache-status"), Some("aptmesh; fwd=miss; stored"));
    assert_rest(&mut first, &bytes[..MEGABYTE]);
    let (mut second, head) = begin(&proxy, &mirror, &[]);
    assert_eq!(head.header("cache-status"), Some("aptmesh; fwd=miss; collapsed; stored"));
    drop(first);
    assert_rest(&mut second, &bytes[..2 * MEGABYTE]);
    let (mut third, _) = begin(&proxy, &mirror, &[]);
    assert_in_flight(&mirror);

    assert_rest(&mut third, &bytes);
    assert_rest(&mut second, &bytes[2 * MEGABYTE..]);
    assert_eq!((mirror.bodies(TOOL), mirror.bytes(TOOL)), (1, bytes.len() as u64));
}

#[test]
fn a_late_client_begins_at_the_first_byte_and_catches_up() {
    let bytes = noise(3, 8 * MEGABYTE);
    let (mirror, proxy) = scene(File::new(bytes.clone()).rate(2 << 20));
    let (mut early, _) = begin(&proxy, &mirror, &[]);
    assert_rest(&mut early, &bytes[..3 * MEGABYTE]);

    let (mut late, _) = begin(&proxy, &mirror, &[]);
    assert_rest(&mut late, &bytes[..3 * MEGABYTE]);
    assert_in_flight(&mirror);

    assert_rest(&mut late, &bytes[3 * MEGABYTE..]);
    assert_rest(&mut early, &bytes[3 * MEGABYTE..]);
    assert_eq!(mirror.bodies(TOOL), 1);
}

#[test]
fn ranges_of_a_file_in_flight_come_from_the_flight() {
    let bytes = noise(4, 8 * MEGABYTE);
    let (mirror, proxy) = scene(File::new(bytes.clone()).rate(2 << 20));
    let (mut whole, _) = begin(&proxy, &mirror, &[]);
    assert_rest(&mut whole, &bytes[..2 * MEGABYTE]);

    let ask = |range: &str, more: &[(&str, &str)]| {
        begin(&proxy, &mirror, &[&[("Range", range)], more].concat())
    };
    let (mut arrived, head) = ask("bytes=1000-1999", &[("If-Range", DATE)]);
    assert_eq!(head.status, 206);
    assert_eq!(head.header("content-range"), Some("bytes 1000-1999/8388608"));
    assert_rest(&mut arrived, &bytes[1000..2000]);
    let (mut ahead, head) = ask("bytes=4000000-", &[("If-Range", DATE)]);
    assert_eq!(head.status, 206);
    assert_rest(&mut ahead, &bytes[4_000_000..4_000_100]);
    assert_in_flight(&mirror);
    let (mut other, head) = ask("bytes=1000-", &[("If-Range", "Mon, 01 Jan 2024 00:00:00 GMT")]);
    assert_eq!(head.status, 200, "a part of another version is of no use");
    assert_in_flight(&mirror);

    assert_rest(&mut ahead, &bytes[4_000_100..]);
    assert_rest(&mut other, &bytes);
    assert_rest(&mut whole, &bytes[2 * MEGABYTE..]);
    assert_eq!((mirror.bodies(TOOL), mirror.bytes(TOOL)), (1, bytes.len() as u64));
    assert_eq!(mirror.requests(TOOL)[0].header("range"), None);
}

#[test]
fn a_body_of_unknown_length_is_shared_too() {
    let bytes = noise(10, 4 * MEGABYTE);
    let (mirror, proxy) = scene(File::new(bytes.clone()).rate(2 << 20).chunked());
    let (mut first, _) = begin(&proxy, &mirror, &[]);
    assert_rest(&mut first, &bytes[..MEGABYTE]);
    // How far a range reaches is not known yet: the whole is always right.
    let (mut second, head) = begin(&proxy, &mirror, &[("Range", "bytes=1000-")]);
    assert_eq!(head.status, 200);
    assert_rest(&mut second, &bytes[..MEGABYTE]);
    assert_in_flight(&mirror);

    assert_rest(&mut second, &bytes[MEGABYTE..]);
    assert_rest(&mut first, &bytes[MEGABYTE..]);
    assert!(second.read_body_some(1).is_empty() && first.read_body_some(1).is_empty());
    assert_eq!((mirror.bodies(TOOL), mirror.bytes(TOOL)), (1, bytes.len() as u64));
}

#[test]
fn a_slow_client_holds_nobody_up() {
    let bytes = noise(5, 100 * MEGABYTE);
    let (mirror, proxy) = scene(File::new(bytes.clone()));
    let (mut slow, _) = begin(&proxy, &mirror, &[]);
    assert_rest(&mut slow, &bytes[..MEGABYTE]);

    let url = proxy.url_for(&mirror, TOOL);
    for (reply, hash, _) in crowd(4, || download_hash(proxy.addr(), &url, &[])) {
        assert!(reply.complete, "{reply:?}");
        assert_eq!(hash, sha256_hex(&bytes));
    }
    let peak = proxy.peak_resident_bytes();
    assert!(peak < MEMORY_MAX, "{peak} bytes");
    assert_rest(&mut slow, &bytes[MEGABYTE..]);
    assert_eq!((mirror.bodies(TOOL), mirror.bytes(TOOL)), (1, bytes.len() as u64));
}

#[test]
fn release_and_packages_files_fly_the_same_way() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    for path in ["/debian/dists/sid/Release", "/debian/dists/sid/main/binary-amd64/Packages.xz"] {
        let bytes = noise(6, MEGABYTE);
        mirror.put(path, File::new(bytes.clone()).head_delay(Duration::from_secs(1)));
        let url = proxy.url_for(&mirror, path);
        let as_apt = [("Cache-Control", "max-age=0")];
        for reply in crowd(20, || request(proxy.addr(), "GET", &url, &as_apt)) {
            assert!(reply.complete && reply.body == bytes, "{path}: {}", reply.reason);
        }
        assert_eq!(mirror.requests(path).len(), 1, "{path}");
    }
    assert!(proxy.count(&format!("{SERVED}{{outcome=\"collapsed\"}}")) > 0);
}

#[test]
fn what_nobody_wants_any_more_is_given_up() {
    let bytes = noise(7, 40 * MEGABYTE);
    let (mirror, proxy) = scene(File::new(bytes.clone()).rate(1 << 20));
    let (mut client, _) = begin(&proxy, &mirror, &[]);
    assert_rest(&mut client, &bytes[..MEGABYTE]);
    assert_eq!(proxy.staged().len(), 1);
    assert_eq!(proxy.count("aptmesh_engine_flights"), 1);
    drop(client);

    wait_until(Duration::from_secs(25), "the mirror to be left", || !mirror.log()[0].open);
    assert!(!mirror.log()[0].finished);
    proxy.wait_landed();
    wait_until(Duration::from_secs(5), "the space", || proxy.staged().is_empty());
    assert!(proxy.blobs().is_empty());

    mirror.replace(TOOL, File::new(bytes.clone()));
    let (mut another, head) = begin(&proxy, &mirror, &[]);
    assert_eq!(head.header("cache-status"), Some("aptmesh; fwd=miss; stored"));
    assert_rest(&mut another, &bytes);
}

#[test]
fn a_client_that_comes_back_soon_finds_its_flight() {
    let bytes = noise(8, 8 * MEGABYTE);
    let (mirror, proxy) = scene(File::new(bytes.clone()).rate(2 << 20));
    let (mut client, _) = begin(&proxy, &mirror, &[]);
    assert_rest(&mut client, &bytes[..MEGABYTE]);
    drop(client);
    // As apt does when its connection broke.
    thread::sleep(Duration::from_secs(1));
    let rest = [("Range", "bytes=1048576-"), ("If-Range", DATE)];
    let (mut client, head) = begin(&proxy, &mirror, &rest);
    assert_eq!(head.status, 206);
    assert_rest(&mut client, &bytes[MEGABYTE..]);
    assert_eq!((mirror.bodies(TOOL), mirror.bytes(TOOL)), (1, bytes.len() as u64));
}

#[test]
fn a_head_request_does_not_disturb_a_flight() {
    let bytes = noise(9, 4 * MEGABYTE);
    let (mirror, proxy) = scene(File::new(bytes.clone()).rate(1 << 20));
    let (mut client, _) = begin(&proxy, &mirror, &[]);
    assert_rest(&mut client, &bytes[..MEGABYTE]);

    let url = proxy.url_for(&mirror, TOOL);
    let head = request(proxy.addr(), "HEAD", &url, &[]);
    assert!(head.status == 200 && head.body.is_empty(), "{head:?}");
    assert_eq!(head.header("content-length"), Some("4194304"));
    assert_eq!(head.header("last-modified"), Some(DATE));
    assert_in_flight(&mirror);

    assert_rest(&mut client, &bytes[MEGABYTE..]);
    assert_eq!(mirror.bodies(TOOL), 1);
}
