//! HTTP as clients see it: conditions, ranges, pipelines, framing, statuses, credentials, and what
//! real apt makes of it.

use crate::kit::{
    Apt, Connection, Fault, File, LocalArchive, Mirror, Proxy, Reply, get, noise, request,
};
use std::fs;
use std::thread;
use std::time::{Duration, SystemTime};

/// A source package: any bytes will do for one.
const PACKAGE: &str = "/debian/pool/main/h/hello/hello_2.10.orig.tar.xz";
const RELEASE: &str = "/debian/dists/sid/Release";
const PAGE: &str = "/debian/about/readme.txt";
/// When a file of the kit's mirror changed.
const DATE: &str = "Tue, 02 Jan 2024 00:00:00 GMT";
const LATER: &str = "Wed, 03 Jan 2024 00:00:00 GMT";
const EARLIER: &str = "Mon, 01 Jan 2024 00:00:00 GMT";

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A proxy that has stored the package with these bytes; its mirror is gone.
fn warm(bytes: &[u8]) -> (Proxy, String) {
    let mirror = Mirror::start();
    mirror.put(PACKAGE, File::new(bytes).etag("\"v1\""));
    let proxy = Proxy::start();
    let target = proxy.url_for(&mirror, PACKAGE);
    assert_eq!(get(proxy.addr(), &target).body, bytes);
    proxy.wait_landed();
    (proxy, target)
}

fn ask(proxy: &Proxy, mirror: &Mirror, path: &str, fields: Fields) -> Reply {
    request(proxy.addr(), "GET", &proxy.url_for(mirror, path), fields)
}

fn cache_status(reply: &Reply) -> &str {
    reply.header("cache-status").unwrap_or_default()
}

#[test]
fn a_cold_head_downloads_nothing() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.put(PACKAGE, File::new(noise(1, 100_000)));
    let head = request(proxy.addr(), "HEAD", &proxy.url_for(&mirror, PACKAGE), &[]);
    assert!(head.complete && head.status == 200 && head.body.is_empty(), "{head:?}");
    assert_eq!(head.header("content-length"), Some("100000"));
    assert_eq!(head.header("last-modified"), Some(DATE));
    proxy.wait_landed();
    let methods: Vec<String> = mirror.log().into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["HEAD"]);
    assert_eq!(mirror.bytes(PACKAGE), 0);
    assert!(proxy.blobs().is_empty());
}

#[test]
fn a_warm_head_says_what_a_get_would() {
    let (proxy, target) = warm(&noise(2, 100_000));
    let head = request(proxy.addr(), "HEAD", &target, &[]);
    let whole = get(proxy.addr(), &target);
    assert!(head.complete && head.status == 200 && head.body.is_empty());
    for name in [
        "content-length",
        "last-modified",
        "etag",
        "content-type",
        "accept-ranges",
        "cache-status",
        "via",
    ] {
        assert!(head.header(name).is_some(), "{name}");
        assert_eq!(head.header(name), whole.header(name), "{name}");
    }
    assert_eq!(cache_status(&head), "aptmesh; hit");
    let part = request(proxy.addr(), "HEAD", &target, &[("Range", "bytes=0-9")]);
    assert!(part.complete && part.body.is_empty(), "{part:?}");
}

#[test]
fn parts_of_what_is_stored_are_exact() {
    // Below and above what is held in memory: the second one is sent by the kernel.
    for size in [10_007, 3_000_017] {
        let bytes = noise(3, size);
        let (proxy, target) = warm(&bytes);
        let part = |range: &str| request(proxy.addr(), "GET", &target, &[("Range", range)]);
        for (first, end) in [
            (0, 1),
            (5, 10),
            (4_097, 9_999),
            (1, size - 1),
            (size - 1, size),
            (size / 3, size / 3 * 2 + 1),
            (262_143.min(size - 3), 524_289.min(size)),
        ] {
            let reply = part(&format!("bytes={first}-{}", end - 1));
            assert!(reply.complete && reply.status == 206, "{first}..{end}: {}", reply.status);
            assert!(reply.body == bytes[first..end], "{first}..{end} of {size}");
            let range = format!("bytes {first}-{}/{size}", end - 1);
            assert_eq!(reply.header("content-range"), Some(range.as_str()));
            assert_eq!(reply.header("content-length"), Some((end - first).to_string().as_str()));
        }
        for (range, from) in
            [("bytes=-7", size - 7), ("bytes=4099-", 4_099), ("bytes=17-99999999", 17)]
        {
            let reply = part(range);
            assert!(reply.complete && reply.status == 206, "{range}");
            assert!(reply.body == bytes[from..], "{range} of {size}");
        }
        let all = format!("bytes=-{}", size + 1);
        assert!(part(&all).body == bytes);
        for range in [format!("bytes={size}-"), "bytes=99999999-".to_owned(), "bytes=-0".to_owned()]
        {
            let reply = part(&range);
            assert!(reply.complete && reply.status == 416 && reply.body.is_empty(), "{range}");
            let unsatisfied = format!("bytes */{size}");
            assert_eq!(reply.header("content-range"), Some(unsatisfied.as_str()));
        }
        for range in ["bytes=0-1,5-6", "lines=0-1", "bytes=9-5", "bytes=a-b", "bytes"] {
            let reply = part(range);
            assert!(reply.complete && reply.status == 200 && reply.body == bytes, "{range}");
        }
    }
}

#[test]
fn if_range_decides_between_a_part_and_the_whole() {
    let bytes = noise(4, 50_000);
    let (proxy, target) = warm(&bytes);
    for (mark, status) in [
        (DATE, 206),
        ("\"v1\"", 206),
        (LATER, 200),
        (EARLIER, 200),
        ("\"v2\"", 200),
        ("W/\"v1\"", 200),
        ("Tuesday, 02-Jan-24 00:00:00 GMT", 200),
        ("nonsense", 200),
    ] {
        let fields = [("Range", "bytes=49000-"), ("If-Range", mark)];
        let reply = request(proxy.addr(), "GET", &target, &fields);
        assert!(reply.complete && reply.status == status, "{mark}: {}", reply.status);
        let from = if status == 206 { 49_000 } else { 0 };
        assert!(reply.body == bytes[from..], "{mark}");
    }
    // An other version than the one that the client has a part of: not even 416.
    let fields = [("Range", "bytes=99999-"), ("If-Range", LATER)];
    assert_eq!(request(proxy.addr(), "GET", &target, &fields).status, 200);
}

#[test]
fn what_the_client_has_is_not_sent_again() {
    let bytes = noise(5, 50_000);
    let (proxy, target) = warm(&bytes);
    let mut connection = Connection::open(proxy.addr());
    let table: [(Fields, u16); 11] = [
        (&[("If-Modified-Since", DATE)], 304),
        // Not what we gave: another version, or a date of its own making.
        (&[("If-Modified-Since", LATER)], 200),
        (&[("If-Modified-Since", EARLIER)], 200),
        (&[("If-Modified-Since", "yesterday")], 200),
        (&[("If-None-Match", "\"v1\"")], 304),
        (&[("If-None-Match", "W/\"v1\"")], 304),
        (&[("If-None-Match", "\"v0\", \"v1\"")], 304),
        (&[("If-None-Match", "*")], 304),
        (&[("If-None-Match", "\"v2\"")], 200),
        // The stronger condition counts (RFC 9110 §13.2.2).
        (&[("If-None-Match", "\"v2\""), ("If-Modified-Since", LATER)], 200),
        (&[("If-None-Match", "\"v1\""), ("Range", "bytes=0-1")], 304),
    ];
    for (fields, status) in table {
        connection.send("GET", &target, fields);
        let reply = connection.read_reply("GET");
        assert!(reply.complete && reply.status == status, "{fields:?}: {}", reply.status);
        assert!(reply.body == if status == 304 { &[] } else { bytes.as_slice() }, "{fields:?}");
        assert_eq!(reply.header("last-modified"), Some(DATE), "{fields:?}");
        assert_eq!(reply.header("etag"), Some("\"v1\""), "{fields:?}");
    }
}

#[test]
fn what_one_client_has_is_its_own_affair() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let bytes = noise(29, 50_000);
    for path in [PACKAGE, RELEASE] {
        mirror.put(path, File::new(bytes.as_slice()).head_delay(Duration::from_millis(500)));
        thread::scope(|scope| {
            // Whoever comes first, they are in the same flight.
            let has_it = scope.spawn(|| {
                let condition = ("If-Modified-Since", DATE);
                ask(&proxy, &mirror, path, &[condition])
            });
            let has_nothing = scope.spawn(|| ask(&proxy, &mirror, path, &[]));
            let unchanged = has_it.join().unwrap();
            assert!(unchanged.complete && unchanged.status == 304, "{path}: {unchanged:?}");
            assert!(has_nothing.join().unwrap().body == bytes, "{path}");
        });
        let asked = mirror.requests(path);
        assert_eq!(asked.len(), 1, "{path}");
        assert_eq!(asked[0].header("if-modified-since"), None, "{path}");
        proxy.wait_landed();
    }
}

#[test]
fn a_client_of_the_old_protocol_gets_whole_answers() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let bytes = noise(30, 300_000);
    mirror.put(PACKAGE, File::new(bytes.as_slice()).chunked());
    for round in ["cold", "warm"] {
        let mut connection = Connection::open(proxy.addr());
        let ask = format!("GET {} HTTP/1.0\r\n\r\n", proxy.url_for(&mirror, PACKAGE));
        connection.send_raw(ask.as_bytes());
        let reply = connection.read_reply("GET");
        assert!(reply.status == 200 && reply.body == bytes, "{round}: {:?}", reply.trouble);
        assert_eq!(reply.header("transfer-encoding"), None, "{round}");
        connection.send_raw(ask.as_bytes());
        assert_eq!(connection.read_reply("GET").status, 0, "{round}: it was kept open");
        proxy.wait_landed();
    }
}

#[test]
fn many_requests_share_a_connection() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let bytes = noise(6, 40_000);
    mirror.put(PACKAGE, File::new(bytes.as_slice()));
    mirror.put(PAGE, File::new(noise(7, 300)).chunked());
    let package = proxy.url_for(&mirror, PACKAGE);
    let mut connection = Connection::open(proxy.addr());
    let mut ask = |method: &str, target: &str, fields: Fields| {
        connection.send(method, target, fields);
        let reply = connection.read_reply(method);
        assert!(reply.complete, "{method} {target}: {:?}", reply.trouble);
        reply
    };
    for round in 0..50 {
        assert_eq!(ask("GET", &package, &[]).body, bytes, "round {round}");
        assert_eq!(ask("GET", &package, &[("Range", "bytes=7-8")]).body, bytes[7..9]);
        assert_eq!(ask("HEAD", &package, &[]).status, 200);
        assert_eq!(ask("GET", &package, &[("If-Modified-Since", DATE)]).status, 304);
        assert!(ask("GET", &proxy.url_for(&mirror, PAGE), &[]).body == noise(7, 300));
        assert_eq!(ask("GET", &proxy.url_for(&mirror, "/pool/no_1.deb"), &[]).status, 404);
    }
    assert_eq!(mirror.bodies(PACKAGE), 1);
}

#[test]
fn ten_pipelined_requests_are_answered_in_order() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let path = |number: u64| format!("/pool/p/p{number}_1.orig.tar.xz");
    let bytes = |number: u64| noise(number, 1_000 + 40_000 * (number as usize % 3));
    for number in 0..10 {
        // The first are the slowest to arrive.
        let delay = Duration::from_millis(60 * (10 - number));
        mirror.put(&path(number), File::new(bytes(number)).head_delay(delay));
    }
    for round in ["cold", "warm"] {
        let mut connection = Connection::open(proxy.addr());
        for number in 0..10 {
            connection.send("GET", &proxy.url_for(&mirror, &path(number)), &[]);
        }
        for number in 0..10 {
            let reply = connection.read_reply("GET");
            assert!(reply.complete && reply.status == 200, "{round} {number}: {}", reply.status);
            assert!(reply.body == bytes(number), "{round} {number}");
            assert_eq!(mirror.bodies(&path(number)), 1, "{round} {number}");
        }
        proxy.wait_landed();
    }
}

#[test]
fn the_absolute_target_names_the_mirror_and_the_host_field_does_not() {
    let (mine, other, proxy) = (Mirror::start(), Mirror::start(), Proxy::start());
    mine.put(PACKAGE, File::new(noise(8, 1_000)));
    other.put(PACKAGE, File::new(noise(9, 1_000)));
    let target = format!("http://{}{PACKAGE}", mine.host());
    for host in [other.host(), "127.0.0.1".to_owned(), "deb.example.org:80".to_owned()] {
        let reply = request(proxy.addr(), "GET", &target, &[("Host", &host)]);
        assert!(reply.body == noise(8, 1_000), "{host}");
    }
    assert_eq!(mine.bodies(PACKAGE), 1);
    assert_eq!(mine.log()[0].header("host"), Some(mine.host().as_str()));
    assert_eq!(other.connections(), 0);
    proxy.wait_landed();
    // The prefix form names the same file.
    assert_eq!(cache_status(&ask(&proxy, &mine, PACKAGE, &[])), "aptmesh; hit");
}

#[test]
fn the_usual_port_is_the_same_written_or_not() {
    // A parent proxy shows what is asked for without a name service.
    let parent = Mirror::start();
    parent.put(PACKAGE, File::new(noise(10, 1_000)));
    let proxy =
        Proxy::build().env("APTMESH_MIRROR_PROXY", format!("http://{}", parent.host())).start();
    let ask = |target: String, host: &str| {
        let reply = request(proxy.addr(), "GET", &target, &[("Host", host)]);
        assert!(reply.body == noise(10, 1_000), "{target}: {}", reply.reason);
        proxy.wait_landed();
    };
    ask(format!("http://deb.example.org:80{PACKAGE}"), "deb.example.org");
    ask(format!("http://deb.example.org{PACKAGE}"), "deb.example.org:80");
    ask(format!("http://DEB.Example.ORG{PACKAGE}"), "deb.example.org");
    ask(format!("/deb.example.org:80{PACKAGE}"), "cache");
    let asked: Vec<String> = parent.log().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, [format!("http://deb.example.org{PACKAGE}")]);
}

#[test]
fn spellings_of_a_path_are_one_file() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.put("/pool/g/g++/g++_1:2~3.orig.tar.xz", File::new(noise(11, 1_000)));
    for spelling in [
        "/pool/g/g%2b%2B/g++_1%3a2%7e3.orig.tar.xz",
        "/pool/g/g++/g++_1:2~3.orig.tar.xz",
        "/pool/./g/./g++/g%2B%2b_1%3A2~3.orig.tar.xz",
        "/%70ool/g/g++/g++_1:2%7E3.orig%2etar.xz",
    ] {
        let reply = ask(&proxy, &mirror, spelling, &[]);
        assert!(reply.complete && reply.body == noise(11, 1_000), "{spelling}: {}", reply.status);
        proxy.wait_landed();
    }
    // Some stores tell them apart: the mirror got the first client's own spelling.
    let asked: Vec<String> = mirror.log().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, ["/pool/g/g%2b%2B/g++_1%3a2%7e3.orig.tar.xz"]);
    assert_eq!(proxy.blobs().len(), 1);
}

#[test]
fn answers_say_where_they_come_from() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.put(PACKAGE, File::new(noise(12, 1_000)));
    mirror.put(PAGE, File::new(noise(13, 1_000)));
    let expect = |path: &str, status: &str, source: &str| {
        let reply = ask(&proxy, &mirror, path, &[]);
        assert_eq!(cache_status(&reply), status);
        assert_eq!(reply.header("x-aptmesh-source"), Some(source));
        assert_eq!(reply.header("via"), Some("1.1 aptmesh"));
        assert_eq!(reply.header("accept-ranges"), Some("bytes"));
        proxy.wait_landed();
    };
    expect(PACKAGE, "aptmesh; fwd=miss; stored", "mirror");
    expect(PACKAGE, "aptmesh; hit", "store");
    expect(PAGE, "aptmesh; fwd=bypass", "mirror");
    expect(PAGE, "aptmesh; fwd=bypass", "mirror");
}

#[test]
fn dates_come_in_the_one_form_that_apt_reads() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let dated = |date| File::new(noise(14, 1_000)).no_validators().header("Last-Modified", date);
    for path in [PACKAGE, RELEASE, PAGE] {
        for (number, (date, canonical)) in [
            ("Tuesday, 02-Jan-24 00:00:00 GMT", Some(DATE)),
            ("Tue Jan  2 00:00:00 2024", Some(DATE)),
            (DATE, Some(DATE)),
            ("2024-01-02T00:00:00Z", None),
            ("yesterday", None),
        ]
        .into_iter()
        .enumerate()
        {
            let path = format!("/{number}{path}");
            mirror.put(&path, dated(date));
            for round in ["cold", "warm"] {
                let reply = ask(&proxy, &mirror, &path, &[]);
                assert_eq!(reply.status, 200, "{path}");
                assert_eq!(reply.header("last-modified"), canonical, "{date}, {round} {path}");
                proxy.wait_landed();
            }
        }
    }
}

#[test]
fn the_end_of_every_body_is_marked() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let bytes = noise(15, 100_000);
    let file = || File::new(bytes.as_slice());
    let mut connection = Connection::open(proxy.addr());
    for path in [PACKAGE, RELEASE, PAGE] {
        for (manner, file) in [
            ("sized", file()),
            ("chunked", file().chunked()),
            ("unsized", file().unsized_()),
            ("old", file().http10()),
            ("closing", file().close_each()),
        ] {
            let path = format!("/{manner}{path}");
            mirror.put(&path, file);
            for _ in ["cold", "again"] {
                connection.send("GET", &proxy.url_for(&mirror, &path), &[]);
                let reply = connection.read_reply("GET");
                assert!(reply.complete && reply.status == 200, "{path}: {:?}", reply.trouble);
                assert!(reply.body == bytes, "{path}");
                proxy.wait_landed();
            }
        }
    }
    // Nothing has an end as well. Metadata may be empty; packages never are.
    mirror.put("/empty/Packages", File::new(Vec::new()));
    mirror.put("/empty/empty_1.deb", File::new(Vec::new()));
    for (path, status) in
        [("/empty/Packages", 200), ("/empty/empty_1.deb", 503), ("/empty/missing_1.deb", 404)]
    {
        for _ in ["cold", "again"] {
            connection.send("GET", &proxy.url_for(&mirror, path), &[]);
            let reply = connection.read_reply("GET");
            assert!(reply.complete && reply.status == status, "{path}: {reply:?}");
            assert_eq!(reply.body.is_empty(), status == 200, "{path}");
            proxy.wait_landed();
        }
    }
}

#[test]
fn an_unreachable_mirror_is_a_trouble_that_may_pass() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.stop();
    // By the second it is known to be away.
    for (path, status) in [(PACKAGE, 503), (RELEASE, 504), (PAGE, 504)] {
        let reply = ask(&proxy, &mirror, path, &[]);
        assert!(reply.complete && reply.status == status, "{reply:?}");
        assert!(reply.header("retry-after").is_some_and(|after| after.parse::<u8>().is_ok()));
        assert!(reply.reason.contains("127.0.0.1"), "{}", reply.reason);
        assert!(String::from_utf8_lossy(&reply.body).contains(&reply.reason));
    }
    mirror.restart();
    mirror.put(PACKAGE, File::new(noise(16, 1_000)));
    assert!(ask(&proxy, &mirror, PACKAGE, &[]).body == noise(16, 1_000));
}

#[test]
fn a_silent_mirror_is_a_timeout_of_ours() {
    let mirror = Mirror::start();
    mirror.put(PACKAGE, File::new(noise(17, 1_000)).head_delay(Duration::from_mins(10)));
    let proxy = Proxy::build().env("APTMESH_MIRROR_TIMEOUT", "1s").start();
    let reply = ask(&proxy, &mirror, PACKAGE, &[]);
    assert!(reply.complete && reply.status == 504, "{reply:?}");
    assert!(reply.reason.contains("127.0.0.1"), "{}", reply.reason);
    assert!(reply.header("retry-after").is_some());
}

#[test]
fn refusals_of_the_mirror_stay_what_they_are() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    for path in [PACKAGE, RELEASE, PAGE] {
        for status in [400, 403, 404, 410, 429, 451] {
            let path = format!("/{status}{path}");
            mirror.put(&path, File::new(noise(18, 1_000)));
            mirror.script(&path, vec![Fault::Status(status)]);
            let reply = ask(&proxy, &mirror, &path, &[]);
            assert!(reply.complete && reply.status == status, "{path}: {}", reply.status);
            assert_eq!(mirror.requests(&path).len(), 1, "{path}");
            // It is remembered for nobody.
            proxy.wait_landed();
            assert!(ask(&proxy, &mirror, &path, &[]).body == noise(18, 1_000), "{path}");
        }
    }
}

#[test]
fn unknown_kinds_pass_through_unstored() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let page = b"<!DOCTYPE html><title>Read me</title>".to_vec();
    let file = File::new(page.as_slice())
        .content_type("text/html")
        .etag("\"p\"")
        .header("X-Powered-By", "patience")
        .header("Connection", "X-Between-Us")
        .header("X-Between-Us", "secret");
    mirror.put("/x/readme.html", file);
    let path = "/x/readme.html?lang=de&x=1";
    for _ in 0..2 {
        let reply = ask(&proxy, &mirror, path, &[]);
        assert!(reply.complete && reply.status == 200 && reply.body == page);
        assert_eq!(reply.header("content-type"), Some("text/html"));
        assert_eq!(reply.header("etag"), Some("\"p\""));
        assert_eq!(reply.header("last-modified"), Some(DATE));
        assert_eq!(reply.header("x-powered-by"), Some("patience"));
        assert_eq!(reply.header("x-between-us"), None);
    }
    let unchanged = ask(&proxy, &mirror, path, &[("If-None-Match", "\"p\"")]);
    assert!(unchanged.complete && unchanged.status == 304, "{unchanged:?}");
    let part = ask(&proxy, &mirror, path, &[("Range", "bytes=1-4"), ("If-Range", "\"p\"")]);
    assert!(part.complete && part.status == 206 && part.body == page[1..5], "{part:?}");
    assert_eq!(part.header("content-range"), Some("bytes 1-4/37"));
    let since = ask(&proxy, &mirror, path, &[("If-Modified-Since", LATER)]);
    assert_eq!(since.status, 304);

    let log = mirror.log();
    assert_eq!(log.len(), 5);
    assert!(log.iter().all(|seen| seen.path == path), "{log:#?}");
    assert_eq!(log[2].header("if-none-match"), Some("\"p\""));
    assert_eq!(log[3].header("if-range"), Some("\"p\""));
    assert_eq!(log[0].header("accept-encoding"), Some("identity"));

    // A query makes another thing even of a package.
    mirror.put(PACKAGE, File::new(noise(19, 1_000)));
    for _ in 0..2 {
        assert_eq!(ask(&proxy, &mirror, &format!("{PACKAGE}?v=1"), &[]).status, 200);
    }
    assert_eq!(mirror.bodies(PACKAGE), 2);
    assert!(proxy.blobs().is_empty());
}

#[test]
fn credentials_stay_between_client_and_mirror() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.put(PACKAGE, File::new(noise(20, 1_000)));
    let basic = "Basic bWU6aHVudGVyMg=="; // me:hunter2
    let in_url = format!("http://me:hunter2@{}{PACKAGE}", mirror.host());
    let in_prefix = format!("/me:hunter2@{}{PACKAGE}", mirror.host());
    let plain = proxy.url_for(&mirror, PACKAGE);
    let private: [(&str, Fields); 3] =
        [(&plain, &[("Authorization", basic)]), (&in_url, &[]), (&in_prefix, &[])];
    for (target, fields) in private {
        let reply = request(proxy.addr(), "GET", target, fields);
        assert!(reply.body == noise(20, 1_000), "{target}");
        let seen = mirror.log().pop().unwrap();
        assert_eq!(seen.header("authorization"), Some(basic), "{target}");
        assert!(!seen.path.contains("hunter2"), "{}", seen.path);
    }
    proxy.wait_landed();
    assert!(proxy.blobs().is_empty());

    // Another client gets what the mirror gives to it, which is nothing.
    mirror.script(PACKAGE, vec![Fault::Status(401)]);
    let stranger = get(proxy.addr(), &plain);
    assert_eq!(stranger.status, 401);
    assert_eq!(mirror.log().pop().unwrap().header("authorization"), None);

    // And what is stored for all is not what somebody with credentials may get.
    assert_eq!(get(proxy.addr(), &plain).status, 200);
    proxy.wait_landed();
    mirror.replace(PACKAGE, File::new(noise(21, 1_000)));
    assert!(get(proxy.addr(), &in_url).body == noise(21, 1_000));
    assert!(get(proxy.addr(), &plain).body == noise(20, 1_000));
    assert!(!proxy.log().contains("hunter2"), "the log tells the password");
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let (mirror, other, proxy) = (Mirror::start(), Mirror::start_at("127.0.0.2"), Proxy::start());
    mirror.put(PACKAGE, File::new(noise(22, 1_000)));
    other.put(PACKAGE, File::new(noise(23, 1_000)));
    mirror.script(PACKAGE, vec![Fault::Redirect(format!("http://{}{PACKAGE}", other.host()))]);
    let reply = ask(&proxy, &mirror, PACKAGE, &[("Authorization", "Bearer hunter2")]);
    assert!(reply.body == noise(23, 1_000));
    assert_eq!(mirror.log()[0].header("authorization"), Some("Bearer hunter2"));
    assert_eq!(other.log()[0].header("authorization"), None);
}

#[test]
fn what_must_not_be_stored_is_not() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.put(PACKAGE, File::new(noise(24, 100_000)));
    for _ in 0..2 {
        let reply = ask(&proxy, &mirror, PACKAGE, &[("Cache-Control", "no-store")]);
        assert!(reply.complete && reply.body == noise(24, 100_000));
        assert!(!cache_status(&reply).contains("stored"), "{}", cache_status(&reply));
    }
    proxy.wait_landed();
    assert_eq!(mirror.bodies(PACKAGE), 2);
    assert!(proxy.blobs().is_empty());
    // It says nothing about what is stored already.
    ask(&proxy, &mirror, PACKAGE, &[]);
    proxy.wait_landed();
    let reply = ask(&proxy, &mirror, PACKAGE, &[("Cache-Control", "no-store")]);
    assert_eq!(cache_status(&reply), "aptmesh; hit");
}

#[test]
fn a_cache_is_only_read_from() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.put(PACKAGE, File::new(noise(25, 1_000)));
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE"] {
        let target = proxy.url_for(&mirror, PACKAGE);
        let reply = request(proxy.addr(), method, &target, &[("Content-Length", "0")]);
        assert!(reply.complete && reply.status == 405, "{method}: {reply:?}");
        assert_eq!(reply.header("allow"), Some("GET, HEAD, CONNECT"));
    }
    assert!(mirror.log().is_empty());
}

#[test]
fn the_front_page_is_for_browsers_and_406_for_those_who_look_for_a_cache() {
    let proxy = Proxy::start();
    let agent = ("User-Agent", "Debian APT-HTTP/1.3 (2.6.1)");
    let apt = request(proxy.addr(), "GET", "/", &[agent, ("Accept", "text/*")]);
    assert!(apt.complete && apt.status == 406 && !apt.body.is_empty(), "{apt:?}");
    assert_eq!(get(proxy.addr(), "/").status, 406);
    let accept = ("Accept", "text/html,application/xhtml+xml,*/*;q=0.8");
    let host = ("Host", "cache.example.org:9977");
    let browser = request(proxy.addr(), "GET", "/", &[accept, host]);
    assert!(browser.complete && browser.status == 200, "{browser:?}");
    assert_eq!(browser.header("content-type"), Some("text/html; charset=utf-8"));
    let page = String::from_utf8_lossy(&browser.body);
    assert!(page.contains("<!DOCTYPE html>") && page.contains("http://cache.example.org:9977"));
    let hostile =
        request(proxy.addr(), "GET", "/", &[accept, ("Host", "<script>alert(1)</script>")]);
    assert!(!String::from_utf8_lossy(&hostile.body).contains("<script>"), "{hostile:?}");
}

#[test]
fn a_request_that_comes_round_ends() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let own = proxy.addr();
    // A mirror that sends everybody back to where they come from, for ever.
    let back = format!("http://{own}/{}{PACKAGE}", mirror.host());
    mirror.put(PACKAGE, File::new(noise(26, 1_000)));
    mirror.script(PACKAGE, vec![Fault::Redirect(back); 200]);
    let through_itself = format!("/{own}/{own}/{own}/{}{PACKAGE}", mirror.host());
    let absolute = format!("http://{own}/{own}/{}{PACKAGE}", mirror.host());
    for target in [proxy.url_for(&mirror, PACKAGE), through_itself, absolute] {
        for method in ["GET", "HEAD"] {
            let reply = request(proxy.addr(), method, &target, &[]);
            assert!(reply.complete && reply.status == 508, "{method} {target}: {reply:?}");
        }
    }
    assert!(mirror.log().len() < 20, "{} requests", mirror.log().len());
}

#[test]
fn one_cache_may_stand_behind_another() {
    let (mirror, outer) = (Mirror::start(), Proxy::start());
    let parent = format!("http://{}", outer.addr());
    let inner = Proxy::build().env("APTMESH_MIRROR_PROXY", parent).start();
    mirror.put(PACKAGE, File::new(noise(27, 300_000)));
    mirror.put(PAGE, File::new(noise(28, 1_000)));
    for _ in 0..2 {
        assert!(ask(&inner, &mirror, PACKAGE, &[]).body == noise(27, 300_000));
        assert!(ask(&inner, &mirror, PAGE, &[]).body == noise(28, 1_000));
        inner.wait_landed();
    }
    assert_eq!(mirror.bodies(PACKAGE), 1);
    assert_eq!(outer.metric("aptmesh_engine_served_total{resource=\"package\"}"), 1.0);
    assert_eq!(inner.metric("aptmesh_engine_served_total{resource=\"package\"}"), 2.0);
    assert_eq!(outer.metric("aptmesh_engine_served_total{resource=\"other\"}"), 2.0);
    // Both are named on the way.
    let seen = &mirror.requests(PACKAGE)[0];
    let via: Vec<_> =
        seen.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("via")).collect();
    let names = via.iter().flat_map(|(_, value)| value.split(',')).count();
    assert_eq!(names, 2, "{via:?}");
    // The parent has it for its other clients, whoever is away.
    outer.wait_landed();
    mirror.stop();
    assert_eq!(cache_status(&ask(&outer, &mirror, PACKAGE, &[])), "aptmesh; hit");
}

#[test]
fn real_apt_pipelines_at_every_depth() {
    let mirror = Mirror::start();
    let names: Vec<String> = (0..12).map(|number| format!("mesh-{number}")).collect();
    let archive =
        names.iter().enumerate().fold(LocalArchive::new("demo"), |archive, (at, name)| {
            archive.package(name, "1.0", 1_000 + at * 5_000)
        });
    for depth in ["0", "1", "10"] {
        let proxy = Proxy::start();
        let base = format!("/depth{depth}");
        archive.publish(&mirror, &base);
        let apt = Apt::new(None);
        apt.conf("Acquire::http::Pipeline-Depth", depth);
        apt.conf("Acquire::Retries", "0");
        apt.sources(&archive.source_line(&format!(
            "http://{}/{}{base}",
            proxy.addr(),
            mirror.host()
        )));
        let packages: Vec<&str> = names.iter().map(String::as_str).collect();
        for round in ["cold", "warm"] {
            let update = apt.update();
            assert!(update.ok, "depth {depth}, {round}: {}", update.output);
            let install = apt.install_download_only(&packages);
            assert!(install.ok, "depth {depth}, {round}: {}", install.output);
            assert!(!install.output.contains("Pipeline"), "{}", install.output);
            assert_eq!(apt.archives().len(), 12);
            apt.clean_state();
        }
        for name in &packages {
            let path = format!("{base}/{}", archive.deb_path(name));
            assert_eq!(mirror.bodies(&path), 1, "depth {depth}: {name}");
        }
    }
}

/// What an earlier apt left behind of a package, and how much the next one still gets.
#[test]
fn real_apt_goes_on_where_it_was_interrupted() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let archive = LocalArchive::new("demo").package("hello-mesh", "1.0", 600_000);
    archive.publish(&mirror, "/debian");
    let apt = Apt::new(Some(format!("http://{}", proxy.addr())));
    apt.conf("Acquire::Retries", "0");
    apt.sources(&archive.source_line(&format!("http://{}/debian", mirror.host())));
    assert!(apt.update().ok);
    let deb = archive.deb("hello-mesh");
    let dated = httpdate::parse_http_date(DATE).unwrap();
    let older = dated - Duration::from_secs(86_400);
    let len = deb.len();
    let mut garbled = deb[..len / 2].to_vec();
    garbled.reverse();
    let table: [(&str, &[u8], SystemTime, usize); 5] = [
        ("a cold half", &deb[..len / 2], dated, len - len / 2),
        ("a warm half", &deb[..len / 2], dated, len - len / 2),
        ("half of an older version", &garbled, older, len),
        ("all of it", deb, dated, 0),
        ("nothing", &[], dated, len),
    ];
    let sent = || proxy.metric("aptmesh_engine_served_bytes_total");
    for (what, partial, modified, expected) in table {
        apt.clean_archives();
        let path = apt.root().join("var/cache/apt/archives/partial/hello-mesh_1.0_all.deb");
        if !partial.is_empty() {
            fs::write(&path, partial).unwrap();
            fs::File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        }
        let before = sent();
        let install = apt.install_download_only(&["hello-mesh"]);
        assert!(install.ok, "{what}: {}", install.output);
        assert_eq!(apt.archives().len(), 1, "{what}: {}", install.output);
        assert!(fs::read(&apt.archives()[0]).unwrap() == deb, "{what}");
        assert_eq!((sent() - before) as usize, expected, "{what}: {}", install.output);
        proxy.wait_landed();
    }
    // All that from one whole download, of which apt wanted only a half at first.
    let asked = mirror.requests(&format!("/debian/{}", archive.deb_path("hello-mesh")));
    assert_eq!(asked.len(), 1, "{asked:#?}");
    assert_eq!(asked[0].header("range"), None);
}

#[test]
fn a_chunked_answer_that_also_tells_a_length_is_handed_on_whole() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    mirror.put(PAGE, File::new(noise(29, 20_000)).chunked().header("Content-Length", "5"));
    let reply = ask(&proxy, &mirror, PAGE, &[]);
    assert!(reply.complete && reply.status == 200, "{reply:?}");
    assert!(reply.body == noise(29, 20_000), "{} bytes", reply.body.len());
    assert_eq!(reply.header("content-length"), None);
}

#[test]
fn two_caches_that_ask_each_other_notice_it() {
    // An address that nobody else uses, so that its port stays free.
    let any = std::net::TcpListener::bind("127.0.0.77:0").unwrap();
    let meeting = any.local_addr().unwrap();
    drop(any);
    let first = Proxy::build().env("APTMESH_MIRROR_PROXY", format!("http://{meeting}")).start();
    let parent = format!("http://{}", first.addr());
    let second = Proxy::build()
        .env("APTMESH_MIRROR_PROXY", parent)
        .arg("--listen")
        .arg(meeting.to_string())
        .start();
    let front: Fields = &[("Via", "1.1 front")];
    for path in ["/x.txt", PACKAGE, RELEASE] {
        for (fields, proxy) in [(&[][..], &first), (front, &first), (front, &second)] {
            let url = format!("http://deb.example.org{path}");
            let reply = request(proxy.addr(), "GET", &url, fields);
            assert!(reply.complete && reply.status >= 500, "{path}: {reply:?}");
            proxy.wait_landed();
        }
    }
    for proxy in [&first, &second] {
        let asked = proxy.count("aptmesh_mirror_requests_total");
        assert!((1..40).contains(&asked), "{asked} requests");
        assert!(proxy.blobs().is_empty());
    }
}

#[test]
fn pages_about_an_archive_pass_through() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let page = b"<!DOCTYPE html><html><title>Index of</title></html>".to_vec();
    for path in ["/debian/dists/", "/debian/dists/sid/manual.html", "/debian/pool/main/h/hello/"] {
        mirror.put(path, File::new(page.as_slice()).content_type("text/html;charset=utf-8"));
        for asked in 1..=2 {
            let reply = ask(&proxy, &mirror, path, &[]);
            assert!(reply.complete && reply.status == 200 && reply.body == page, "{reply:?}");
            assert_eq!(reply.header("content-type"), Some("text/html;charset=utf-8"));
            assert_eq!(cache_status(&reply), "aptmesh; fwd=bypass");
            assert_eq!(mirror.requests(path).len(), asked);
        }
    }
    assert!(proxy.blobs().is_empty());
}

#[test]
fn a_head_knows_no_ranges() {
    // RFC 9110 §14.2: a range means something to GET alone.
    let (proxy, target) = warm(&noise(30, 100_000));
    for range in ["bytes=0-9", "bytes=-5", "bytes=500000-"] {
        let head = request(proxy.addr(), "HEAD", &target, &[("Range", range)]);
        assert!(head.complete && head.status == 200 && head.body.is_empty(), "{range}: {head:?}");
        assert_eq!(head.header("content-length"), Some("100000"), "{range}");
        assert_eq!(head.header("content-range"), None, "{range}");
    }
    let fields = [("Range", "bytes=0-9"), ("If-None-Match", "\"v1\"")];
    assert_eq!(request(proxy.addr(), "HEAD", &target, &fields).status, 304);
    let part = request(proxy.addr(), "GET", &target, &[("Range", "bytes=0-9")]);
    assert_eq!(part.status, 206);
}
