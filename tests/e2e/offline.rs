//! Without upstream: what is stored is served at once, the rest is refused at once, and a mirror that
//! comes back is noticed.

use crate::kit::*;
use std::fs;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const OFFLINE: &str = "APTMESH_MIRROR_OFFLINE";

fn archive() -> LocalArchive {
    LocalArchive::new("demo").package("tool", "1.0", 200_000).package("toy", "1.0", 1_000)
}

/// A data folder in which the suite and one package of it are stored by real apt.
fn stock(mirror: &Mirror, archive: &LocalArchive, proxy: &Proxy) -> Apt {
    archive.publish(mirror, "/debian");
    let apt = Apt::new(None);
    apt.sources(&archive.source_line(&format!("http://{}/{}/debian", proxy.addr(), mirror.host())));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let download = apt.download(&["tool"]);
    assert!(download.ok, "{}", download.output);
    proxy.wait_landed();
    apt
}

#[test]
fn offline_nobody_is_asked_and_what_is_stored_is_served() {
    let (mirror, archive, folder) = (Mirror::start(), archive(), tempfile::tempdir().unwrap());
    let first = Proxy::build().data(folder.path()).start();
    drop(stock(&mirror, &archive, &first));
    drop(first);
    mirror.clear_log();

    let proxy = Proxy::build().data(folder.path()).env(OFFLINE, "true").start();
    let apt = Apt::new(None);
    apt.sources(&archive.source_line(&format!("http://{}/{}/debian", proxy.addr(), mirror.host())));
    apt.conf("Acquire::Retries", "0");
    let update = apt.update();
    assert!(update.output.contains("Reading package lists"), "{}", update.output);
    assert!(apt.download(&["tool"]).ok);
    let missing = apt.download(&["toy"]);
    assert!(!missing.ok && missing.output.contains("mirror.offline"), "{}", missing.output);
    let path = format!("/debian/{}", archive.deb_path("toy"));
    let reply = get(proxy.addr(), &proxy.url_for(&mirror, &path));
    assert_eq!(reply.status, 504, "{}", reply.reason);
    assert_eq!(mirror.log().len(), 0);
    assert_eq!(mirror.connections(), mirror.connections());
}

#[test]
fn offline_can_be_changed_while_it_runs() {
    let (mirror, folder) = (Mirror::start(), tempfile::tempdir().unwrap());
    mirror.put(
        "/debian/pool/a_1_all.deb",
        File::new([b"!<arch>\n".as_slice(), &noise(1, 99)].concat()),
    );
    let file = folder.path().join("aptmesh.toml");
    let write = |offline| fs::write(&file, format!("[mirror]\noffline = {offline}\n")).unwrap();
    write(true);
    let proxy = Proxy::build().arg("--config").arg(&file).start();
    let status = || get(proxy.addr(), &proxy.url_for(&mirror, "/debian/pool/a_1_all.deb")).status;
    assert_eq!(status(), 504);
    write(false);
    proxy.signal("HUP");
    wait_until(PATIENCE, "the mirror is asked", || status() == 200);
}

#[test]
fn a_mirror_that_is_away_is_not_waited_for_by_every_request() {
    let (mirror, archive) = (Mirror::start(), archive());
    let proxy = Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start();
    let apt = stock(&mirror, &archive, &proxy);
    mirror.stop();
    let release = proxy.url_for(&mirror, "/debian/dists/demo/Release");
    // Somebody has to find it out.
    assert_eq!(get(proxy.addr(), &release).status, 200);
    wait_until(PATIENCE, "it is known", || proxy.metric("aptmesh_mirror_away") == 1.0);
    let begun = Instant::now();
    for _ in 0..20 {
        let reply = get(proxy.addr(), &release);
        assert_eq!((reply.status, &reply.body[..]), (200, archive.release().as_bytes()));
        assert!(reply.header("cache-status").unwrap().contains("stale-mirror-away"));
    }
    let took = begun.elapsed();
    // As the first attempts did: not a bound on speed, but on waiting each time.
    assert!(took < Duration::from_secs(20), "{took:?}");
    for _ in 0..3 {
        let path = format!("/debian/{}", archive.deb_path("toy"));
        let reply = get(proxy.addr(), &proxy.url_for(&mirror, &path));
        assert_eq!(reply.status, 504, "{}", reply.reason);
        assert!(reply.reason.contains("away"), "{}", reply.reason);
    }
    apt.clean_state();
    assert!(apt.update().ok, "the suite is stored");
    assert!(apt.download(&["tool"]).ok);

    mirror.restart();
    let path = format!("/debian/{}", archive.deb_path("toy"));
    let reply = get(proxy.addr(), &proxy.url_for(&mirror, &path));
    assert_eq!(reply.body, archive.deb("toy"), "nobody waits until it is probed: {}", reply.reason);
    wait_until(PATIENCE, "it is known to be back", || proxy.metric("aptmesh_mirror_away") == 0.0);
}

#[test]
fn release_files_are_served_until_they_expire() {
    let (mirror, proxy) =
        (Mirror::start(), Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start());
    let until = std::time::SystemTime::now() + Duration::from_secs(4);
    let until = httpdate::fmt_http_date(until).replace("GMT", "UTC");
    let text = format!("Suite: demo\nValid-Until: {until}\nSHA256:\n");
    mirror.put("/debian/dists/demo/Release", File::new(text.clone().into_bytes()));
    let ask = || get(proxy.addr(), &proxy.url_for(&mirror, "/debian/dists/demo/Release"));
    assert_eq!(ask().body, text.as_bytes());
    proxy.wait_landed();
    mirror.stop();
    wait_until(PATIENCE, "it has expired", || {
        let reply = ask();
        assert!(reply.status == 200 && reply.body == text.as_bytes() || reply.status == 503);
        reply.status == 503 && reply.reason.contains("expired")
    });
}
