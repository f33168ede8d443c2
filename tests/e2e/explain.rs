//! `aptmesh explain`: what the cache knows of a file and would do, however the file is named; to look changes
//! nothing.

use crate::kit::*;
use crate::swarm::Swarm;
use crate::volumes;
use crate::{groups, signatures};
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

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
    mirror.put(TOOL, File::new(noise(1, MB)).rate(200_000));
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
        index()["plan"] == "serve_stale"
    });
    assert!(would(&index()).1.contains("failed to confirm it a moment ago"));
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
fn sites_that_say_they_have_it_are_named() {
    let swarm = Swarm::of(&[("tool", 5 * MB)]);
    let one = swarm.stocked(&[], &["tool"]);
    let two = swarm.site(&[&one]);
    swarm.wait_found(&two, "tool", &[&one]);
    let told = explained(&two, &url_of(&swarm.mirror, &swarm.path("tool")));
    let claims = told["peers"].as_array().unwrap();
    assert_eq!(claims.len(), 1, "{told}");
    assert_eq!(claims[0]["urls"][0], one.peer_url().as_str());
    assert!(would(&told).1.contains("from the sites that have it"), "{told}");
    assert_eq!(two.blobs().len(), 2, "two lists, and nothing more");
    // Whatever changes under its name comes from the mirror alone.
    for path in [groups::RELEASE, "/debian/dists/demo/main/binary-all/Packages.xz"] {
        let list = explained(&two, &url_of(&swarm.mirror, path));
        assert_eq!(list["peers"], Value::Array(Vec::new()), "{list}");
    }
    // The one that has it names nobody else, and not itself.
    let own = explained(&one, &url_of(&swarm.mirror, &swarm.path("tool")));
    assert_eq!((&own["peers"], &own["plan"]), (&Value::Array(Vec::new()), &"serve".into()));
}

#[test]
fn people_look_it_up_in_a_browser() {
    let mirror = Mirror::start();
    mirror.put(TOOL, File::new(noise(1, 100)));
    let proxy = Proxy::start();
    fetch(&proxy, &mirror, TOOL);
    let status = get(proxy.admin(), "/status");
    let status = String::from_utf8(status.body).unwrap();
    assert!(status.contains("action=\"/explain\""), "the way to it");
    let url = url_of(&mirror, TOOL);
    let page = get(proxy.admin(), &format!("/explain?url={}", encoded(&url)));
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap().to_owned();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    let body = String::from_utf8(page.body).unwrap();
    assert!(body.contains(&url) && body.contains("It would be served from here"), "{body}");
    assert!(body.contains(&sha256_hex(&noise(1, 100))), "{body}");
    let odd = get(
        proxy.admin(),
        &format!("/explain?url={}", encoded("/m.org/<script>alert(1)</script>")),
    );
    assert!(!String::from_utf8(odd.body).unwrap().contains("<script>alert"), "text stays text");
    let told = command(&proxy, &[&url]);
    assert!(told.status.success());
    let told = String::from_utf8(told.stdout).unwrap();
    for words in [url.as_str(), "It would be served from here", "Kind:", "package", "SHA-256:"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let json = command(&proxy, &["--json", &url]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["plan"], "serve");
}

#[test]
fn a_release_file_that_has_expired_is_not_said_to_be_served() {
    let mirror = Mirror::start();
    let until = SystemTime::now() + Duration::from_secs(5);
    let until = httpdate::fmt_http_date(until).replace("GMT", "UTC");
    let text = format!("Suite: demo\nValid-Until: {until}\nSHA256:\n");
    mirror.put(groups::RELEASE, File::new(text.into_bytes()));
    let [often, seldom] = ["0s", "1h"]
        .map(|window| Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", window).start());
    for proxy in [&often, &seldom] {
        fetch(proxy, &mirror, groups::RELEASE);
        assert_eq!(
            explained(proxy, &url_of(&mirror, groups::RELEASE))["release"]["has_expired"],
            false
        );
    }
    mirror.stop();
    for proxy in [&often, &seldom] {
        wait_until(PATIENCE, "it has expired", || {
            get(proxy.addr(), &proxy.url_for(&mirror, groups::RELEASE)).status == 503
        });
        let told = explained(proxy, &url_of(&mirror, groups::RELEASE));
        assert_eq!(told["release"]["has_expired"], true, "{told}");
        let (_, words) = would(&told);
        assert!(words.contains("error") && words.contains("has expired (Valid-Until)"), "{told}");
        assert!(!words.contains("would be served"), "{told}");
    }
}

#[test]
fn what_is_not_admitted_is_told_with_the_reason() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = signatures::proxy("auto", &signer);
    let good = signer.clearsign(&signatures::release(3, ""));
    let bad = String::from_utf8(good.clone()).unwrap().replace("Suite: demo", "Suite: dome");
    let put = |bytes: Vec<u8>| mirror.put(signatures::INRELEASE, File::new(bytes).no_validators());
    let ask = || {
        let reply = get(proxy.addr(), &proxy.url_for(&mirror, signatures::INRELEASE));
        proxy.wait_landed();
        reply.status
    };
    let told = || explained(&proxy, &url_of(&mirror, signatures::INRELEASE));

    put(bad.into_bytes());
    assert_eq!(ask(), 503);
    let refused = told();
    assert!(refused["release"]["refused"].as_str().unwrap().contains("signature"), "{refused}");
    assert!(would(&refused).1.contains("was not admitted: it "), "{refused}");
    // It came, and whole: nobody was silent.
    assert_eq!(refused["last_download"]["outcome"], "failed");
    let page = command(&proxy, &[&url_of(&mirror, signatures::INRELEASE)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("nothing that is of use was given: "), "{page}");

    put(good);
    assert_eq!(ask(), 200);
    assert_eq!(told()["release"]["refused"], Value::Null);
    // Back to an older one.
    put(signer.clearsign(&signatures::release(9, "")));
    assert_eq!(ask(), 200);
    let older = told();
    assert!(would(&older).1.contains("went back to an older release file"), "{older}");
    let page = command(&proxy, &[&url_of(&mirror, signatures::INRELEASE)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("the mirror had nothing newer than what is stored"), "{page}");
}

#[test]
fn what_a_mirror_that_is_away_said_it_has_not_is_told() {
    let (mirror, archive) = (Mirror::start(), LocalArchive::new("demo").package("tool", "1", 100));
    archive.publish(&mirror, "/debian");
    let proxy = Proxy::start();
    let inrelease = "/debian/dists/demo/InRelease";
    let ask = || get(proxy.addr(), &proxy.url_for(&mirror, inrelease)).status;
    assert_eq!(ask(), 404);
    fetch(&proxy, &mirror, groups::RELEASE);
    mirror.stop();
    wait_until(PATIENCE, "it is away, and its last word is told", || {
        assert_eq!(ask(), 404);
        let told = explained(&proxy, &url_of(&mirror, inrelease));
        would(&told).1.contains("is away") && told["release"]["is_absent"] == true
    });
    let told = explained(&proxy, &url_of(&mirror, inrelease));
    assert!(would(&told).1.contains("would be told that it is not there (404)"), "{told}");
}

#[test]
fn a_list_is_told_as_clients_of_its_release_file_get_it() {
    let (mirror, archive) = (Mirror::start(), LocalArchive::new("demo").package("tool", "1", 100));
    archive.publish(&mirror, "/debian");
    let proxy = Proxy::start();
    let index = format!("/debian/{}", archive.index_path());
    let nobody = explained(&proxy, &url_of(&mirror, &index));
    assert_eq!(nobody["as_listed"], Value::Null);
    assert!(would(&nobody).1.contains("the file that this one names"), "{nobody}");

    let mut client = Connection::open(proxy.addr());
    for path in [groups::RELEASE, &index] {
        assert_eq!(client.get(&proxy.url_for(&mirror, path)).status, 200, "{path}");
    }
    proxy.wait_landed();
    let told = explained(&proxy, &url_of(&mirror, &index));
    assert_eq!((&told["stored"], &told["last_download"]), (&Value::Null, &Value::Null));
    let listed = &told["as_listed"];
    assert_eq!(listed["release"], url_of(&mirror, groups::RELEASE).as_str());
    let by_hash = url_of(&mirror, &format!("/debian/{}", archive.by_hash_path()));
    assert_eq!(listed["report"]["url"], by_hash.as_str(), "{told}");
    assert_eq!(listed["report"]["plan"], "serve");
    assert_eq!(listed["report"]["last_download"]["outcome"], "whole");
    let words = would(&told).1;
    assert!(words.contains(&format!("it means {by_hash}. It would be served")), "{words}");
    let page = command(&proxy, &[&url_of(&mirror, &index)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("As listed, stored:") && page.contains("As listed, last:"), "{page}");
}

#[test]
fn a_volume_that_says_nothing_has_lost_nothing() {
    let (remote, index, mirror) = (Remote::mounted(), TempDir::new().unwrap(), Mirror::start());
    let cold = "/debian/pool/c/cold_1.orig.tar.xz";
    for (path, seed, size) in [(TOOL, 1, 900), (cold, 2, MB)] {
        mirror.put(path, File::new(noise(seed, size)));
    }
    let url = format!("sqlite:{}", index.path().join("index.sqlite").display());
    let mut proxy = Proxy::build().data(&remote.path()).env("APTMESH_INDEX_URL", url).start();
    fetch(&proxy, &mirror, cold);
    proxy.restart();
    fetch(&proxy, &mirror, TOOL);
    let frozen = remote.freeze();
    let told = explained(&proxy, &url_of(&mirror, cold));
    assert_eq!(told["stored"]["place"], "unknown", "{told}");
    assert_ne!(would(&told).0, "serve");
    assert!(!would(&told).1.contains("is gone"), "{told}");
    // What is small is in memory.
    let told = explained(&proxy, &url_of(&mirror, TOOL));
    let stored = &told["stored"];
    assert_eq!((&stored["place"], &stored["is_in_memory"]), (&"unknown".into(), &true.into()));
    assert_eq!(would(&told).0, "serve", "{told}");
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, TOOL)).body, noise(1, 900));
    let page = command(&proxy, &[&url_of(&mirror, cold)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("in the index, while the volume does not answer"), "{page}");
    drop(frozen);
    wait_until(PATIENCE, "the volume is back", || {
        explained(&proxy, &url_of(&mirror, cold))["stored"]["place"] == "volume"
    });
}

#[test]
fn shared_folders_serve_what_is_there_and_imported_files_do_not() {
    let (mirror, folder) = (Mirror::start(), TempDir::new().unwrap());
    let archive =
        LocalArchive::new("demo").package("tool", "1", 100_000).package("toy", "1", 100_000);
    archive.publish(&mirror, "/debian");
    let (shared, other) = (folder.path().join("shared"), folder.path().join("other"));
    for (folder, name) in [(&shared, "tool"), (&other, "toy")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("a.deb"), archive.deb(name)).unwrap();
    }
    let proxy = Proxy::build().env("APTMESH_STORE_FOLDERS", &shared).start();
    let mut import = aptmesh();
    import.arg("import").arg(&other).arg("--data").arg(proxy.data());
    let import = import.env("APTMESH_STORE_MIN_FREE", "0").output().unwrap();
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    let files = || proxy.count("aptmesh_store_shared_files");
    wait_until(PATIENCE, "the folder's file", || files() == 1);
    fetch(&proxy, &mirror, groups::RELEASE);
    fetch(&proxy, &mirror, &format!("/debian/{}", archive.index_path()));
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(LEARNT) >= 2);
    let told = |name| explained(&proxy, &url_of(&mirror, &groups::pool(&archive, name)));

    let tool = told("tool");
    let place = &tool["stored"];
    assert_eq!((&place["place"], would(&tool).0), (&"folders".into(), "serve"), "{tool}");
    let at = Path::new(place["at"][0].as_str().unwrap());
    assert_eq!(fs::read(at).unwrap(), archive.deb("tool"));
    assert!(at.starts_with(fs::canonicalize(&shared).unwrap()), "{tool}");
    // Changed by its owner, and so another file.
    fs::write(shared.join("a.deb"), archive.deb("toy")).unwrap();
    let changed = told("tool");
    assert_eq!((&changed["stored"], would(&changed).0), (&Value::Null, "fetch"), "{changed}");

    let toy = told("toy");
    assert_eq!((&toy["stored"]["place"], would(&toy).0), (&"volume".into(), "serve"), "{toy}");
    fs::remove_file(toy["stored"]["at"][0].as_str().unwrap()).unwrap();
    let gone = told("toy");
    assert_eq!((&gone["stored"]["place"], would(&gone).0), (&"nowhere".into(), "fetch"), "{gone}");
}

#[test]
fn an_index_that_hangs_is_not_waited_for() {
    let (remote, mirror) = (Remote::mounted(), Mirror::start());
    mirror.put(TOOL, File::new(noise(1, 900)));
    let file = remote.path().join("index.sqlite");
    let url = format!("sqlite:{}", file.display());
    let mut proxy = Proxy::build().env("APTMESH_INDEX_URL", url).start();
    fetch(&proxy, &mirror, TOOL);
    proxy.signal("TERM");
    proxy.wait_exit(PATIENCE);
    // So large that what is asked for is read from the disk.
    let index = rusqlite::Connection::open(&file).unwrap();
    let filler = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
        INSERT INTO resources SELECT 'http://' || hex(randomblob(40)), randomblob(32), 1, NULL, NULL, NULL, 1
        FROM n";
    index.execute_batch(filler).unwrap();
    drop(index);
    proxy.restart();
    let frozen = remote.freeze();
    let told = command(&proxy, &[&url_of(&mirror, TOOL)]);
    let words = String::from_utf8(told.stdout).unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(words.contains("unknown: the index does not answer"), "{words}");
    assert!(words.contains("The index does not say whether it is stored."), "{words}");
    drop(frozen);
}

#[test]
fn without_the_index_what_is_named_by_its_content_is_found_on_the_volume() {
    let mirror = Mirror::start();
    let bytes = noise(1, MB);
    let path = format!("/debian/pool/by-hash/SHA256/{}", sha256_hex(&bytes));
    mirror.put(&path, File::new(bytes));
    mirror.put(TOOL, File::new(noise(2, MB)));
    let mut proxy = Proxy::start();
    for path in [path.as_str(), TOOL] {
        fetch(&proxy, &mirror, path);
    }
    proxy.restart();
    let index = rusqlite::Connection::open(proxy.data().join("index.sqlite")).unwrap();
    index.busy_timeout(PATIENCE).unwrap();
    index.execute_batch("ALTER TABLE resources RENAME TO gone").unwrap();
    let told = explained(&proxy, &url_of(&mirror, &path));
    assert_eq!((&told["stored"]["place"], would(&told).0), (&"volume".into(), "serve"), "{told}");
    assert_eq!(told["is_index_silent"], true);
    mirror.clear_log();
    get(proxy.addr(), &proxy.url_for(&mirror, &path));
    assert_eq!(mirror.log().len(), 0, "so it was");
    let page = command(&proxy, &[&url_of(&mirror, TOOL)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("unknown: the index does not answer"), "{page}");
}

#[test]
fn what_another_replica_has_is_told_as_it_is_taken_over() {
    let site = volumes::Site::new();
    let always = [("APTMESH_MIRROR_RECHECK_AFTER", "0s")];
    let (first, second) = (site.replica_with(&always), site.replica_with(&always));
    let (package, bytes) = site.package(1, MB);
    let mirror = site.mirror();
    mirror.put(groups::RELEASE, File::new(noise(1, 500)));
    for (path, expected) in [(package.as_str(), bytes), (groups::RELEASE, noise(1, 500))] {
        wait_until(PATIENCE, "the first has it", || {
            let reply = get(first.addr(), &first.url_for(mirror, path));
            first.wait_landed();
            reply.body == expected
        });
    }
    let told = |path: &str, words: &str| {
        wait_until(PATIENCE, words, || {
            let told = explained(&second, &url_of(mirror, path));
            told["stored"]["place"] == "replicas" && would(&told).1.contains(words)
        });
        explained(&second, &url_of(mirror, path))
    };
    let lasting = told(&package, "It would be taken over from another replica, and stored here.");
    assert_eq!(would(&lasting).0, "fetch");
    let changing = told(groups::RELEASE, "It would be taken over from another replica first.");
    assert_eq!(would(&changing).0, "revalidate");
    assert!(would(&changing).1.contains("would be asked whether it is still right"), "{changing}");
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

/// Something at an admin address that gives one answer.
fn door_that_says(status: &str, body: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let _ = client.read(&mut [0; 4096]).unwrap();
        client.write_all(answer.as_bytes()).unwrap();
    });
    addr
}

#[test]
fn nothing_that_is_told_does_anything_to_a_terminal() {
    let url = "http://m.org/x";
    let is_plain = |text: &[u8]| {
        let text = std::str::from_utf8(text).unwrap();
        !text.chars().any(|letter| letter.is_control() && letter != '\n' || letter == '\u{202e}')
    };
    let refused = command_at(door_that_says("400 x", r#"{"error":"a\u001b[2J\u009b31m"}"#), &[url]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!refused.stderr.is_empty() && is_plain(&refused.stderr), "{refused:?}");
    let hostile = "{\"url\":\"http://m.org/\u{9b}31m\u{202e}\u{7f}\"}";
    for args in [vec![url], vec!["--json", url]] {
        let told = command_at(door_that_says("200 OK", hostile), &args);
        assert!(told.status.success(), "what another version leaves out is no trouble: {told:?}");
        assert!(!told.stdout.is_empty() && is_plain(&told.stdout), "{told:?}");
        if args.len() == 2 {
            let json: Value = serde_json::from_slice(&told.stdout).unwrap();
            assert_eq!(json["url"], "http://m.org/\u{9b}31m\u{202e}\u{7f}", "the same JSON");
        }
    }
}
