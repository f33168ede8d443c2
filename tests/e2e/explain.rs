//! `aptmesh explain`: what the cache knows of a file and would do, however the file is named; to look changes
//! nothing.

mod others;
mod people;
mod places;
mod suites;

use crate::groups;
use crate::kit::*;
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
const TOOL: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";
const INDEX: &str = "/debian/dists/sid/main/binary-all/Packages.xz";
const MB: usize = 1 << 20;

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What is told to programs.
fn explained(proxy: &Proxy, url: &str) -> Value {
    let reply = get(proxy.admin(), &format!("/explain.json?url={}", encoded(url)));
    assert_eq!(reply.status, 200, "{url}: {}", String::from_utf8_lossy(&reply.body));
    serde_json::from_slice(&reply.body).unwrap()
}

/// What is told to people, and how it would be served.
fn would(explained: &Value) -> (&str, &str) {
    (explained["plan"].as_str().unwrap(), explained["would"].as_str().unwrap())
}

fn command(proxy: &Proxy, args: &[&str]) -> Output {
    command_at(proxy.admin(), args)
}

fn command_at(admin: SocketAddr, args: &[&str]) -> Output {
    let admin = admin.to_string();
    aptmesh().arg("explain").args(args).args(["--admin-listen", &admin]).output().unwrap()
}

fn url_of(mirror: &Mirror, path: &str) -> String {
    format!("http://{}{path}", mirror.host())
}

/// Through the proxy, and to the volume.
fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, path));
    assert_eq!((reply.status, reply.complete), (200, true), "{path}: {}", reply.reason);
    proxy.wait_landed();
}

#[test]
fn a_package_is_followed_from_unknown_to_stored_and_back() {
    let mirror = Mirror::start();
    let archive = LocalArchive::new("demo").package("tool", "1.0", MB);
    archive.publish(&mirror, "/debian");
    let proxy = Proxy::start();
    let path = format!("/debian/{}", archive.deb_path("tool"));
    let url = url_of(&mirror, &path);
    let before = mirror.log().len();

    let unknown = explained(&proxy, &url);
    assert_eq!((&unknown["url"], &unknown["kind"]), (&url.as_str().into(), &"package".into()));
    assert_eq!(unknown["expected"], Value::Null);
    assert_eq!(unknown["stored"], Value::Null);
    assert_eq!(unknown["last_download"], Value::Null);
    let (plan, words) = would(&unknown);
    assert_eq!(plan, "fetch");
    assert!(words.contains(&format!("fetched from http://{}", mirror.host())), "{words}");
    assert_eq!(mirror.log().len(), before, "nobody is asked");

    // What lists say of it, and by which release file.
    fetch(&proxy, &mirror, "/debian/dists/demo/Release");
    fetch(&proxy, &mirror, &format!("/debian/{}", archive.index_path()));
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(LEARNT) >= 2);
    let learnt = explained(&proxy, &url);
    let digest = sha256_hex(archive.deb("tool"));
    assert_eq!(learnt["expected"]["digest"], digest.as_str());
    assert_eq!(learnt["expected"]["size"], archive.deb("tool").len());
    let list = archive.index_path();
    let list = list.trim_end_matches(".xz").trim_end_matches(".gz");
    assert_eq!(learnt["lists"][0]["list"], url_of(&mirror, &format!("/debian/{list}")).as_str());
    let release = url_of(&mirror, "/debian/dists/demo/Release");
    assert_eq!(learnt["lists"][0]["release"], release.as_str());
    assert_eq!(learnt["stored"], Value::Null);
    assert!(would(&learnt).1.contains("checked against what the list says"), "{learnt}");

    fetch(&proxy, &mirror, &path);
    let stored = explained(&proxy, &url);
    let place = &stored["stored"];
    assert_eq!((&place["sha256"], &place["place"]), (&digest.as_str().into(), &"volume".into()));
    assert_eq!(std::fs::read(place["at"][0].as_str().unwrap()).unwrap(), archive.deb("tool"));
    assert_eq!((&place["is_right"], &place["is_in_memory"]), (&true.into(), &true.into()));
    assert!(place["confirmed_at"].is_i64() && place["stored_at"].is_i64(), "{stored}");
    assert_eq!(would(&stored), ("serve", "It would be served from here, without asking anybody."));
    let last = &stored["last_download"];
    assert_eq!((&last["outcome"], &last["from"]), (&"whole".into(), &"mirror".into()));
    assert_eq!(last["bytes"], archive.deb("tool").len());

    // Under whatever name, and in whatever words.
    let by_hash = format!("/debian/pool/by-hash/SHA256/{digest}");
    let through = format!("http://{}/{}{path}", proxy.addr(), mirror.host());
    let authority = mirror.host();
    for name in [
        format!("http://{authority}{path}"),
        format!("http://{authority}{}", path.replace("tool_1", "tool%5f1")),
        format!("/{authority}{path}"),
        format!("{authority}{path}"),
        format!("http://localhost:{}/{authority}{path}", proxy.addr().port()),
        through,
    ] {
        let same = explained(&proxy, &name);
        assert_eq!(
            (&same["url"], &same["plan"]),
            (&url.as_str().into(), &"serve".into()),
            "{name}"
        );
    }
    let named = explained(&proxy, &url_of(&mirror, &by_hash));
    assert_eq!((&named["kind"], &named["plan"]), (&"by_hash".into(), &"serve".into()), "{named}");
    let tls = explained(&proxy, &format!("http://HTTPS///{authority}{path}"));
    assert_eq!(tls["url"], format!("https://{authority}{path}").as_str());
    assert_eq!(tls["plan"], "fetch", "another mirror, as far as is known");

    // Lost by the volume.
    std::fs::remove_file(place["at"][0].as_str().unwrap()).unwrap();
    let gone = explained(&proxy, &url);
    assert_eq!(gone["stored"]["place"], "nowhere");
    assert!(would(&gone).1.starts_with("What was stored is gone."), "{gone}");
}

#[test]
fn to_look_changes_nothing() {
    let mirror = Mirror::start();
    for (path, size) in [(TOOL, MB), (INDEX, 100)] {
        mirror.put(path, File::new(noise(1, size)));
    }
    let mut proxy = Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start();
    for path in [TOOL, INDEX] {
        fetch(&proxy, &mirror, path);
    }
    proxy.restart();
    let counted = |proxy: &Proxy| {
        let of = |name: &str| proxy.count(name);
        [
            of("aptmesh_engine_served_total"),
            of("aptmesh_mirror_requests_total"),
            of("aptmesh_engine_memory_entries"),
            of("aptmesh_engine_flight_seconds_count"),
        ]
    };
    mirror.clear_log();
    let (before, first) = (counted(&proxy), explained(&proxy, &url_of(&mirror, TOOL)));
    for path in [TOOL, INDEX, "/debian/pool/n/no_1_all.deb"] {
        for _ in 0..20 {
            explained(&proxy, &url_of(&mirror, path));
        }
    }
    assert_eq!(counted(&proxy), before);
    assert_eq!(mirror.log().len(), 0);
    let last = explained(&proxy, &url_of(&mirror, TOOL));
    for field in ["used_at", "uses", "is_in_memory", "confirmed_at"] {
        assert_eq!(first["stored"][field], last["stored"][field], "{field}");
    }
    assert_eq!(first["stored"]["is_in_memory"], false);
    let index = explained(&proxy, &url_of(&mirror, INDEX));
    assert_eq!(would(&index).0, "revalidate");
    assert!(would(&index).1.contains("would be asked whether it is still right"), "{index}");
    wait_until(PATIENCE, "a mirror confirmed it since", || {
        get(proxy.addr(), &proxy.url_for(&mirror, INDEX));
        let told = explained(&proxy, &url_of(&mirror, INDEX));
        told["stored"]["confirmed_at"].as_i64() > index["stored"]["confirmed_at"].as_i64()
    });
    assert_eq!(mirror.bodies(INDEX), 0);
}

#[test]
fn what_is_coming_and_what_came_to_nothing_is_told() {
    let mirror = Mirror::start();
    mirror.put(TOOL, File::new(noise(1, MB)).rate(50_000));
    let proxy = Proxy::start();
    let mut client = Connection::open(proxy.addr());
    client.send("GET", &proxy.url_for(&mirror, TOOL), &[]);
    assert_eq!(client.read_head().status, 200);
    client.read_body_some(1_000);
    let coming = explained(&proxy, &url_of(&mirror, TOOL));
    let download = &coming["download"];
    assert_eq!((&download["size"], &download["waiting"]), (&MB.into(), &1.into()));
    assert!(download["bytes"].as_u64() >= Some(1_000), "{coming}");
    assert_eq!(download["mirror"], format!("http://{}", mirror.host()).as_str());
    let words = "The client would join the download that is under way.";
    assert_eq!(would(&coming), ("fetch", words));
    drop(client);
    let given_up = || explained(&proxy, &url_of(&mirror, TOOL))["last_download"]["outcome"].clone();
    wait_until(PATIENCE, "nobody wants it", || given_up() == "given_up");

    let absent = "/debian/pool/n/no_1_all.deb";
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, absent)).status, 404);
    let refused = explained(&proxy, &url_of(&mirror, absent));
    assert_eq!(refused["last_download"]["outcome"], "refused");
    assert!(refused["last_download"]["failure"].as_str().unwrap().contains("404"), "{refused}");
    let told = command(&proxy, &[&url_of(&mirror, absent)]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("Last download:") && told.contains("the mirror refused it"), "{told}");

    let cut = "/debian/pool/c/cut_1.orig.tar.xz";
    mirror.put(cut, File::new(noise(2, MB)).no_validators());
    mirror.script(cut, vec![Fault::Cut { after: 500_000 }; 9]);
    get(proxy.addr(), &proxy.url_for(&mirror, cut));
    let broken = || explained(&proxy, &url_of(&mirror, cut))["last_download"].clone();
    wait_until(PATIENCE, "it broke off", || broken()["outcome"] == "cut");
    assert!(broken()["failure"].is_string(), "{}", broken());
}

#[test]
fn mirrors_that_are_away_or_not_to_be_asked_are_told_of() {
    let mirror = Mirror::start();
    mirror.put(INDEX, File::new(noise(1, 100)));
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("aptmesh.toml");
    std::fs::write(&config, "").unwrap();
    let proxy = Proxy::build()
        .arg("--config")
        .arg(&config)
        .env("APTMESH_MIRROR_RECHECK_AFTER", "1s")
        .start();
    fetch(&proxy, &mirror, INDEX);
    mirror.stop();
    let index = || explained(&proxy, &url_of(&mirror, INDEX));
    // Stale: the mirror could not confirm it.
    wait_until(PATIENCE, "it is served as it is", || {
        get(proxy.addr(), &proxy.url_for(&mirror, INDEX));
        let told = index();
        let (plan, words) = would(&told);
        plan == "serve_stale" && words.contains("failed to confirm it a moment ago")
    });
    wait_until(PATIENCE, "it is away", || {
        get(proxy.addr(), &proxy.url_for(&mirror, "/debian/pool/n/no_1_all.deb"));
        index()["mirrors"][0]["state"] == "away"
    });
    let new = explained(&proxy, &url_of(&mirror, "/debian/pool/n/new_1_all.deb"));
    assert!(would(&new).1.contains("is away: it would be tried for a moment"), "{new}");
    wait_until(PATIENCE, "it is old", || index()["plan"] == "revalidate");
    assert!(would(&index()).1.contains("is away, what is stored would be served, unconfirmed."));

    std::fs::write(&config, "[mirror]\noffline = true\n").unwrap();
    proxy.signal("HUP");
    wait_until(PATIENCE, "it is offline", || would(&index()).1.contains("(mirror.offline)"));
    let new = explained(&proxy, &url_of(&mirror, "/debian/pool/n/new_1_all.deb"));
    assert!(would(&new).1.starts_with("There would be no answer but an error, since"), "{new}");

    let picky = Proxy::build().env("APTMESH_MIRROR_ALLOW", "mirror.example.org").start();
    let forbidden = explained(&picky, "http://other.example.org/debian/pool/n/no_1_all.deb");
    assert!(would(&forbidden).1.contains("not in mirror.allow"), "{forbidden}");
    assert!(forbidden["mirrors"][0]["forbidden"].is_string(), "{forbidden}");
}

#[test]
fn what_is_private_is_never_stored_and_no_secret_is_repeated() {
    let mirror = Mirror::start();
    mirror.put(TOOL, File::new(noise(1, 100)));
    // Where lines of access to the admin port are seen.
    let proxy = Proxy::build().env("APTMESH_LOG_LEVEL", "debug").start();
    let host = mirror.host();
    fetch(&proxy, &mirror, TOOL);
    for (url, private) in [
        (format!("http://jane:hunter2@{host}{TOOL}"), "credentials"),
        (format!("/jane:hunter2@{host}{TOOL}"), "credentials"),
        (format!("http://{host}{TOOL}?token=hunter2"), "query"),
    ] {
        get(proxy.addr(), &url);
        let told = explained(&proxy, &url);
        assert_eq!((&told["private"], &told["plan"]), (&private.into(), &"relay".into()), "{url}");
        assert!(would(&told).1.contains("never stored"), "{told}");
        assert_eq!(told["stored"], Value::Null, "what others have is not its");
        // As people write it, so that a log would show it as it is.
        let page = get(proxy.admin(), &format!("/explain?url={url}"));
        assert!(String::from_utf8_lossy(&page.body).contains(TOOL), "{url}");
        for text in [told.to_string().into_bytes(), page.body, command(&proxy, &[&url]).stdout] {
            let text = String::from_utf8(text).unwrap();
            assert!(!text.contains("hunter2") && !text.contains("jane"), "{text}");
        }
    }
    for nonsense in
        ["", "x", "ftp://m.org/x", "http://", "http://jane:hunter2@/x", "/../x", "a\nb/c"]
    {
        for path in ["/explain.json", "/explain"] {
            let reply = get(proxy.admin(), &format!("{path}?url={}", encoded(nonsense)));
            let is_form = path == "/explain" && nonsense.is_empty();
            let expected = if is_form { 200 } else { 400 };
            assert_eq!(reply.status, expected, "{path}: {nonsense:?}");
            let body = String::from_utf8(reply.body).unwrap();
            assert!(!body.contains("hunter2"), "{body}");
        }
        let told = command(&proxy, &[nonsense]);
        assert_eq!(told.status.code(), Some(1), "{nonsense:?}");
        let words = String::from_utf8(told.stderr).unwrap();
        assert!(words.starts_with("aptmesh: ") && !words.contains("hunter2"), "{words}");
    }
    assert_eq!(get(proxy.admin(), "/explain.json").status, 400);
    let long = encoded(&format!("http://m.org/{}", "x".repeat(5_000)));
    assert_eq!(get(proxy.admin(), &format!("/explain.json?url={long}")).status, 400);
    let log = proxy.log();
    assert!(log.contains("/explain"), "the admin port's lines: {log}");
    assert!(!log.contains("hunter2"), "{log}");
    // Clients are not told what others have.
    assert_ne!(get(proxy.addr(), "/explain.json?url=x").status, 200);
}

#[test]
fn mirrors_of_one_archive_have_one_explanation() {
    let (mirrors, archive) = (groups::pair(), groups::demo());
    groups::publish(&archive, &mirrors);
    let proxy = groups::build(&mirrors).start();
    let path = groups::pool(&archive, "tool");
    fetch(&proxy, &mirrors[0], &path);
    for url in [url_of(&mirrors[0], &path), url_of(&mirrors[1], &path), "/demo/pool".to_owned()] {
        let told = explained(&proxy, &url);
        assert_eq!(told["archive"], "demo", "{told}");
        let asked: Vec<_> = told["mirrors"].as_array().unwrap().iter().map(|m| &m["url"]).collect();
        assert_eq!(asked.len(), 2, "{told}");
        if url != "/demo/pool" {
            assert_eq!(would(&told).0, "serve", "{told}");
        }
    }
}
