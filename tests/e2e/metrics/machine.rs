//! One process on a machine, and what can happen to it.

use super::ledger::Ledger;
use super::{PATIENCE, assert_well_formed, wait_at_rest};
use crate::groups::{build, fetch, pair, pool, publish, teach};
use crate::kit::*;
use std::fs;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const MB: usize = 1_000_000;
/// So large, and of no blocks: it takes a while to find out what it is.
const LYING: u64 = 400_000_000;
const BROKEN: &str = "/demo/pool/broken_1.orig.tar.xz";
const SLOW: &str = "/debian/pool/slow_1.orig.tar.xz";

/// The higher its number, the newer it is.
fn archive(number: u64) -> LocalArchive {
    LocalArchive::new("demo").package("tool", &format!("1.{number}"), 100_000).later(number)
}

/// A cache of two mirrors that are one archive, with shared folders, a balancer, and files fetched early.
pub fn run(ledger: &Ledger) {
    let (mirrors, data, shared) = (pair(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let lying = data.path().join("blobs/00");
    fs::create_dir_all(&lying).unwrap();
    fs::File::create(lying.join("0".repeat(64))).unwrap().set_len(LYING).unwrap();
    let old = archive(0);
    let toy = LocalArchive::new("other").package("toy", "1.0", 1_000);
    fs::write(shared.path().join("toy.deb"), toy.deb("toy")).unwrap();
    publish(&old, &mirrors);
    let proxy = build(&mirrors)
        .data(data.path())
        .env("APTMESH_STORE_FOLDERS", shared.path())
        .env("APTMESH_STORE_SCRUB_INTERVAL", "0s")
        .env("APTMESH_MIRROR_RECHECK_AFTER", "0s")
        .env("APTMESH_MIRROR_CONNECT_PORTS", mirrors[1].addr().port().to_string())
        .env("APTMESH_PREFETCH_BUDGET", "10MiB")
        .env("APTMESH_LISTEN_BALANCERS", "127.0.0.1/32")
        .start();
    let sees = |metric: &str| ledger.sees(proxy.admin(), metric);
    for metric in ["aptmesh_store_unadopted_bytes", "aptmesh_store_shared_files"] {
        sees(metric);
    }
    ledger.look(proxy.admin());
    teach(&proxy, &old);
    fetch(&proxy, &mirrors[0], &pool(&old, "tool"));
    fetches_early(&proxy, &mirrors, ledger);
    mirrors_fail(&proxy, &mirrors, ledger);
    follows_a_slow_one(&proxy, &mirrors[1], ledger);
    let mut garbled = Connection::open(proxy.addr());
    garbled.send_raw(b"PROXY NONSENSE\r\n");
    garbled.read_head();
    tunnels(&proxy, &mirrors[1]);
    for metric in [
        "aptmesh_engine_expectations",
        "aptmesh_engine_resources",
        "aptmesh_store_scrubbed_at_seconds",
        "aptmesh_store_bad_blobs_total",
    ] {
        sees(metric);
    }
    wait_at_rest(&proxy);
    // Nothing is mounted there any more.
    fs::rename(data.path().join("blobs"), data.path().join("aside")).unwrap();
    fs::create_dir(data.path().join("blobs")).unwrap();
    sees("aptmesh_store_up");
    assert_well_formed(proxy.admin());
}

/// The archive moves on, and what was used is fetched before anybody asks.
fn fetches_early(proxy: &Proxy, mirrors: &[Mirror; 2], ledger: &Ledger) {
    let mut numbers = 1..;
    wait_until(PATIENCE, "a file is fetched early", || {
        // What was used is known to the index some seconds later.
        thread::sleep(Duration::from_secs(2));
        let new = archive(numbers.next().unwrap());
        publish(&new, mirrors);
        for path in ["dists/demo/Release".to_owned(), new.index_path()] {
            assert_eq!(get(proxy.addr(), &format!("/demo/{path}")).status, 200, "{path}");
        }
        ledger.look(proxy.admin());
        ledger.has_moved("aptmesh_engine_prefetched_bytes_total")
    });
}

/// One breaks off, one sends something else, one is not there.
fn mirrors_fail(proxy: &Proxy, mirrors: &[Mirror; 2], ledger: &Ledger) {
    let bytes = noise(1, MB);
    for mirror in mirrors {
        mirror.put(&BROKEN.replace("/demo", "/debian"), File::new(bytes.clone()));
    }
    let mut faults = vec![Fault::Cut { after: MB / 2 }];
    faults.extend(vec![Fault::Refuse; 20]);
    mirrors[0].script(&BROKEN.replace("/demo", "/debian"), faults);
    let reply = get(proxy.addr(), BROKEN);
    assert!(reply.complete && reply.body == bytes, "{}", reply.reason);
    for metric in
        ["aptmesh_engine_resumed_total", "aptmesh_mirror_failovers_total", "aptmesh_mirror_up"]
    {
        ledger.sees(proxy.admin(), metric);
    }
    let other = sha256_hex(b"something else");
    let by_hash = format!("/debian/dists/demo/main/binary-all/by-hash/SHA256/{other}");
    mirrors[1].put(&by_hash, File::new(noise(2, MB)));
    get(proxy.addr(), &proxy.url_for(&mirrors[1], &by_hash));
    ledger.sees(proxy.admin(), "aptmesh_engine_verify_failures_total");
    // Nobody listens there.
    assert!(get(proxy.addr(), "/127.0.0.1:9/debian/pool/a_1_all.deb").status >= 500);
    ledger.sees(proxy.admin(), "aptmesh_mirror_away");
}

/// What is under way is seen while it is.
fn follows_a_slow_one(proxy: &Proxy, mirror: &Mirror, ledger: &Ledger) {
    mirror.put(SLOW, File::new(noise(3, 2 * MB)).rate(100_000));
    let mut client = Connection::open(proxy.addr());
    client.send("GET", &proxy.url_for(mirror, SLOW), &[]);
    for metric in
        ["aptmesh_engine_flights", "aptmesh_engine_waiters", "aptmesh_store_promised_bytes"]
    {
        ledger.sees(proxy.admin(), metric);
    }
}

fn tunnels(proxy: &Proxy, mirror: &Mirror) {
    let mut tunnel = Connection::open(proxy.addr());
    let ask = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", mirror.host());
    tunnel.send_raw(ask.as_bytes());
    assert_eq!(tunnel.read_head().status, 200);
    assert_eq!(tunnel.get("/debian/dists/demo/Release").status, 200);
}

/// A cache with next to no room.
pub fn run_full(ledger: &Ledger) {
    let (mirror, proxy) =
        (Mirror::start(), Proxy::build().env("APTMESH_STORE_QUOTA", "4MB").start());
    ledger.look(proxy.admin());
    for (number, size) in [MB, MB, MB, MB, MB, MB, 6 * MB].into_iter().enumerate() {
        let path = format!("/debian/pool/b/big{number}_1.orig.tar.xz");
        mirror.put(&path, File::new(noise(number as u64, size)));
        assert!(get(proxy.addr(), &proxy.url_for(&mirror, &path)).complete);
        proxy.wait_landed();
        thread::sleep(Duration::from_millis(200));
    }
    for metric in [
        "aptmesh_store_evicted_blobs_total",
        "aptmesh_store_evicted_bytes_total",
        "aptmesh_store_refused_total",
    ] {
        ledger.sees(proxy.admin(), metric);
    }
    wait_at_rest(&proxy);
}
