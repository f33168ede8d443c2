//! The kit against itself: what the tests measure with must be right.

use super::*;
use std::fs;

const MEGABYTE: usize = 1 << 20;

#[test]
fn a_mirror_serves_wholes_and_parts() {
    let mirror = Mirror::start();
    let bytes = noise(1, 10 * MEGABYTE);
    mirror.put("/f", File::new(bytes.clone()).etag("\"x\""));

    let whole = get(mirror.addr(), "/f?query");
    assert!(whole.complete && whole.status == 200 && whole.body == bytes);

    let ask = |headers: &[(&str, &str)]| request(mirror.addr(), "GET", "/f", headers);
    let part = ask(&[("Range", "bytes=5-9")]);
    assert!(part.complete && part.status == 206 && part.body == bytes[5..10]);
    assert_eq!(part.header("content-range"), Some("bytes 5-9/10485760"));
    let tail = ask(&[("Range", "bytes=10485750-"), ("If-Range", "\"x\"")]);
    assert!(tail.status == 206 && tail.body == bytes[bytes.len() - 10..]);
    let changed = ask(&[("Range", "bytes=5-9"), ("If-Range", "\"y\"")]);
    assert!(changed.status == 200 && changed.body == bytes);
    let date = whole.header("last-modified").unwrap();
    let dated = ask(&[("Range", "bytes=5-9"), ("If-Range", date)]);
    assert_eq!(dated.status, 206);
    assert_eq!(ask(&[("Range", "bytes=10485760-")]).status, 416);
    assert_eq!(ask(&[("If-None-Match", "\"x\"")]).status, 304);
    assert_eq!(ask(&[("If-None-Match", "\"y\"")]).status, 200);
    assert_eq!(ask(&[("If-Modified-Since", date)]).status, 304);
    assert_eq!(get(mirror.addr(), "/g").status, 404);

    let head = request(mirror.addr(), "HEAD", "/f", &[]);
    assert!(head.complete && head.body.is_empty());
    assert_eq!(head.header("content-length"), Some("10485760"));

    mirror.clear_log();
    let (_, hash, len) = download_hash(mirror.addr(), "/f", &[]);
    assert_eq!((hash, len), (sha256_hex(&bytes), bytes.len() as u64));
    assert_eq!(mirror.bodies("/f"), 1);
    assert_eq!(mirror.bytes("/f"), bytes.len() as u64);
    wait_until(Duration::from_secs(1), "the log", || !mirror.log()[0].open);
    assert!(mirror.log()[0].finished);
}

#[test]
fn framings_are_told_apart() {
    let mirror = Mirror::start();
    let bytes = noise(2, MEGABYTE);
    mirror.put("/chunked", File::new(bytes.clone()).chunked());
    mirror.put("/unsized", File::new(bytes.clone()).unsized_());
    mirror.put("/old", File::new(bytes.clone()).http10());

    let chunked = get(mirror.addr(), "/chunked");
    assert!(chunked.complete && chunked.body == bytes);
    let unsized_ = get(mirror.addr(), "/unsized");
    assert!(!unsized_.complete && unsized_.body == bytes);
    let old = get(mirror.addr(), "/old");
    assert!(old.complete && old.body == bytes);
}

#[test]
fn requests_are_answered_in_order() {
    let mirror = Mirror::start();
    mirror.put("/a", File::new(noise(3, 1000)));
    mirror.put("/b", File::new(noise(4, 1000)).chunked());
    let mut connection = Connection::open(mirror.addr());
    for target in ["/a", "/b", "/a"] {
        connection.send("GET", target, &[]);
    }
    for seed in [3, 4, 3] {
        assert_eq!(connection.read_reply("GET").body, noise(seed, 1000));
    }
    connection.send("GET", "/a", &[]);
    assert_eq!(connection.read_head().status, 200);
    assert_eq!(connection.read_body_some(10), noise(3, 1000)[..10]);
    assert_eq!(connection.read_body_some(5000), noise(3, 1000)[10..]);
    assert_eq!(mirror.connections(), 1);
}

#[test]
fn faults_come_one_by_one() {
    let mirror = Mirror::start();
    mirror.put("/f", File::new(noise(5, 5000)));
    mirror.script(
        "/f",
        vec![
            Fault::Cut { after: 100 },
            Fault::Status(503),
            Fault::None,
            Fault::Refuse,
            Fault::WrongLength { declared: 6000 },
            Fault::Stall { after: 7, for_: Duration::from_millis(200) },
            Fault::StallHead(Duration::from_millis(200)),
            Fault::Redirect("/g".to_owned()),
            Fault::Html,
        ],
    );
    let ask = || get(mirror.addr(), "/f");
    let cut = ask();
    assert!(!cut.complete && cut.body.len() == 100, "{cut:?}");
    assert_eq!(cut.header("content-length"), Some("5000"));
    assert_eq!(ask().status, 503);
    assert!(ask().complete);
    assert_eq!(ask().status, 0);
    let wrong = ask();
    assert!(!wrong.complete && wrong.body.len() == 5000);
    let stalled = ask();
    assert!(!stalled.complete && stalled.body.len() == 7);
    assert!(stalled.total >= Duration::from_millis(200));
    let late = ask();
    assert!(late.complete && late.first_byte >= Duration::from_millis(200));
    assert_eq!(ask().header("location"), Some("/g"));
    assert_eq!(ask().header("content-type"), Some("text/html; charset=utf-8"));
    assert!(ask().complete);
}

#[test]
fn a_mirror_may_change_before_each_request() {
    let mirror = Mirror::start();
    let mut number = 0;
    mirror.before_each(move |path| {
        number += 1;
        let text = format!("{path} {number}");
        vec![(path.to_owned(), File::new(text.as_bytes()))]
    });
    let mut client = Connection::open_from("127.0.0.9", mirror.addr());
    assert_eq!(client.get("/a").body, b"/a 1");
    assert_eq!(client.get("/a").body, b"/a 2");
    assert_eq!(get(mirror.addr(), "/b").body, b"/b 3");
}

#[test]
fn a_mirror_notices_who_leaves() {
    let mirror = Mirror::start();
    mirror.put("/f", File::new(noise(6, MEGABYTE)).rate(1000));
    let mut connection = Connection::open(mirror.addr());
    connection.send("GET", "/f", &[]);
    assert_eq!(connection.read_head().status, 200);
    assert!(mirror.log()[0].open);
    drop(connection);
    wait_until(Duration::from_secs(2), "the end", || !mirror.log()[0].open);
    assert!(!mirror.log()[0].finished);
}

#[test]
fn a_stopped_mirror_refuses() {
    let mirror = Mirror::start();
    mirror.put("/f", File::new(noise(7, 10)));
    let mut kept = Connection::open(mirror.addr());
    mirror.stop();
    kept.send("GET", "/f", &[]);
    assert_eq!(kept.read_reply("GET").status, 0);
    assert_eq!(get(mirror.addr(), "/f").status, 0);
    mirror.restart();
    assert!(get(mirror.addr(), "/f").complete);
}

#[test]
fn the_rate_is_even() {
    let mirror = Mirror::start();
    mirror.put("/f", File::new(noise(8, 2_000_000)).rate(1_000_000));
    let mut connection = Connection::open(mirror.addr());
    let start = Instant::now();
    connection.send("GET", "/f", &[]);
    connection.read_head();
    for part in 1..=4 {
        assert_eq!(connection.read_body_some(500_000).len(), 500_000);
        let due = 0.5 * f64::from(part);
        let off = start.elapsed().as_secs_f64() / due - 1.0;
        assert!(off.abs() < 0.25, "part {part} is {off} off");
    }
}

#[test]
fn a_link_adds_its_round_trips_and_no_limit() {
    let mirror = Mirror::start();
    let bytes = noise(9, 50 * MEGABYTE);
    mirror.put("/f", File::new(bytes.clone()));
    let rtt = Duration::from_millis(100);
    let link = Link::to(mirror.addr(), rtt);

    let mut connection = Connection::open(link.addr());
    connection.send("HEAD", "/f", &[]);
    let first = connection.read_reply("HEAD").total;
    // Timers are not exact, and the machine may be busy.
    assert!(first > rtt * 19 / 10 && first < rtt * 6, "{first:?}");
    connection.send("HEAD", "/f", &[]);
    let second = connection.read_reply("HEAD").total;
    assert!(second > rtt * 9 / 10 && second < rtt * 4, "{second:?}");

    let whole = get(link.addr(), "/f");
    assert!(whole.complete && whole.body == bytes);
    assert!(whole.total < Duration::from_secs(2), "{:?}", whole.total);
    assert_eq!(link.connections(), 2);

    mirror.stop();
    assert_eq!(get(link.addr(), "/f").status, 0);
}

#[test]
fn a_mirror_speaks_tls() {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
    use std::io::{Read, Write};

    let ca = Ca::new();
    let mirror = Mirror::start_tls(&ca);
    mirror.put("/f", File::new(noise(10, MEGABYTE)).unsized_());
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = ClientConnection::new(config.into(), "localhost".try_into().unwrap()).unwrap();
    let stream = std::net::TcpStream::connect(mirror.addr()).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    stream.write_all(b"GET /f HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(answer.ends_with(&noise(10, MEGABYTE)));
}

#[test]
fn real_apt_accepts_the_local_archive() {
    let mirror = Mirror::start();
    let archive = LocalArchive::new("demo").package("hello-mesh", "1:1.0-1", 300_000).package(
        "other-mesh",
        "2.0",
        10,
    );
    archive.publish(&mirror, "/debian");
    let apt = Apt::new(None);
    apt.sources(&archive.source_line(&format!("http://{}/debian", mirror.host())));

    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let index = format!("/debian/{}", archive.by_hash_path());
    assert_eq!(mirror.bodies(&index), 1, "{:#?}", mirror.log());
    let size = archive.deb("hello-mesh").len() as u64;
    assert_eq!(apt.show_sizes(&["hello-mesh"]), [("hello-mesh".to_owned(), size)]);

    let install = apt.install_download_only(&["hello-mesh", "other-mesh"]);
    assert!(install.ok, "{}", install.output);
    let archives = apt.archives();
    assert_eq!(archives.len(), 2, "{}", install.output);
    assert_eq!(fs::read(&archives[0]).unwrap(), archive.deb("hello-mesh"));
    let unpacked = apt.run("dpkg-deb", &["-c", archives[0].to_str().unwrap()]);
    assert!(unpacked.output.contains("300000"), "{}", unpacked.output);

    apt.clean_archives();
    assert!(apt.archives().is_empty());
    let download = apt.download(&["hello-mesh"]);
    assert!(download.ok, "{}", download.output);
    assert_eq!(apt.archives().len(), 1);

    let newer = archive.package("hello-mesh", "1:1.1-1", 1000);
    newer.publish(&mirror, "/debian");
    assert!(apt.update().ok);
    let size = newer.deb("hello-mesh").len() as u64;
    assert_eq!(apt.show_sizes(&["hello-mesh"])[0].1, size);

    apt.clean_state();
    mirror.stop();
    apt.conf("Acquire::Retries", "0");
    assert!(!apt.update().ok);
}

#[test]
fn a_browser_shows_a_page_and_tells_what_is_wrong_with_it() {
    let page = "<!doctype html><meta http-equiv=Content-Security-Policy content=\"script-src 'none'\">\
        <style>body{background:#fff}@media(prefers-color-scheme:dark){body{background:#123}}</style>\
        <p>Hello</p><script>document.body.textContent='changed'</script>";
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("page.html"), page).unwrap();
    let address = format!("file://{}/page.html", folder.path().display());

    let mut chromium = Chromium::start();
    for (dark, colour) in [(false, "rgb(255, 255, 255)"), (true, "rgb(17, 34, 51)")] {
        chromium.open(&address, 390, 844, dark);
        let seen = chromium.evaluate("getComputedStyle(document.body).backgroundColor");
        assert_eq!(seen, colour);
    }
    assert_eq!(chromium.evaluate("[innerWidth, innerHeight]"), serde_json::json!([390, 844]));
    assert_eq!(chromium.text(), "Hello");
    assert!(chromium.html().contains("<p>Hello</p>"));
    let complaints = chromium.complaints();
    assert!(complaints.iter().any(|one| one.contains("script-src 'none'")), "{complaints:?}");

    let file = folder.path().join("page.png");
    chromium.screenshot(&file);
    let picture = fs::read(&file).unwrap();
    assert_eq!(picture[..8], *b"\x89PNG\r\n\x1a\n");
    // Width and height, and the end: all was written.
    assert_eq!(picture[16..24], [390_u32.to_be_bytes(), 844_u32.to_be_bytes()].concat());
    assert!(picture.windows(4).any(|four| four == b"IEND"));
}
