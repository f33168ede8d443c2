//! What the page says of parts that run elsewhere, that are silent, or that failed and were not asked since.

use super::{PATIENCE, date, status, terminal};
use crate::hostile::{Liar, wrong};
use crate::kit::*;
use crate::swarm::{FROM_PEERS, Swarm};
use serde_json::Value;
use std::time::{Duration, SystemTime};

const MB: usize = 1_000_000;

/// What is wrong, in words.
fn troubles(proxy: &Proxy) -> String {
    status(proxy.admin())["troubles"].to_string()
}

fn page(proxy: &Proxy) -> String {
    String::from_utf8(get(proxy.admin(), "/status").body).unwrap()
}

#[test]
fn a_node_beside_the_proxy_is_shown_and_missed() {
    let swarm = Swarm::of(&[("tool", 2 * MB)]);
    let giver = Site::build(&swarm.key).named("berlin").start();
    swarm.learn(&giver);
    swarm.fetch(&giver, "tool");
    let mut node = Node::build(&swarm.key).env("SWARM_BOOTSTRAP", giver.dht().to_string()).start();
    let proxy = Proxy::build().beside(&swarm.key, format!("http://{}", node.api())).start();
    swarm.learn(&proxy);
    node.wait_connected(1);
    wait_until(PATIENCE, "the giver is found", || !node.look_up(&swarm.blob("tool")).is_empty());
    swarm.mirror.remove(&swarm.path("tool"));
    swarm.fetch(&proxy, "tool");
    assert!(proxy.count(FROM_PEERS) > 0);
    wait_until(PATIENCE, "the giver's name is known", || {
        status(proxy.admin())["peers"][0]["site"] == "berlin"
    });
    let told = status(proxy.admin());
    assert!(told["swarm"]["connected"].as_u64() > Some(0), "{}", told["swarm"]);
    assert_eq!(told["swarm"]["announce_late"], 0);
    assert_eq!(told["troubles"], serde_json::json!([]));
    let shown = page(&proxy);
    assert!(shown.contains("Nodes in the table") && shown.contains("berlin"), "{shown}");
    let printed = terminal(&proxy);
    for part in ["1 nodes known, 1 connected", "announced:", "none late", "berlin: in use"] {
        assert!(printed.contains(part), "{part:?} is not in:\n{printed}");
    }

    // One that is silent is not waited for.
    node.signal("STOP");
    let is_missed = || {
        let told = troubles(&proxy);
        assert!(told.contains("The swarm: its node"), "{told}");
        assert!(page(&proxy).contains("its node does not say how it is"));
        assert!(terminal(&proxy).contains("The swarm: its node"));
    };
    is_missed();
    node.signal("CONT");
    wait_until(PATIENCE, "all is well again", || troubles(&proxy) == "[]");
    node.kill9();
    is_missed();
}

#[test]
fn a_volume_and_an_index_that_are_silent_are_told_of() {
    let (remote, mirror) = (Remote::mounted(), Mirror::start());
    let proxy = Proxy::build().data(&remote.path()).start();
    let text = format!("Suite: demo\nCodename: demo\nDate: {}\nSHA256:\n", date(1));
    let release = "/debian/dists/demo/Release";
    mirror.put(release, File::new(text.into_bytes()));
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, release)).status, 200);
    proxy.wait_landed();
    wait_until(PATIENCE, "it is counted", || {
        let told = status(proxy.admin());
        told["archives"][0]["served"] == true && told["volume"]["blobs"] == 1
    });
    let frozen = remote.freeze();
    // It asks the index, and that asks the volume.
    let path = "/debian/pool/main/t/tool/tool_1.0.orig.tar.xz";
    mirror.put(path, File::new(noise(1, MB)));
    let mut client = Connection::open(proxy.addr());
    client.send("GET", &proxy.url_for(&mirror, path), &[]);
    for _ in 0..3 {
        for (addr, path) in [(proxy.admin(), "/status.json"), (proxy.admin(), "/status")] {
            assert_eq!(get(addr, path).status, 200, "{path}");
        }
        assert_eq!(request(proxy.addr(), "GET", "/", &[super::BROWSER]).status, 200);
    }
    let told = status(proxy.admin());
    assert_eq!(told["volume"]["free"], Value::Null, "{told}");
    wait_until(PATIENCE, "the index is missed", || {
        troubles(&proxy).contains("Without its index: SQLite says nothing")
    });
    drop(frozen);
    wait_until(PATIENCE, "all is told again", || {
        let told = status(proxy.admin());
        told["stored"].is_object()
            && told["archives"][0]["served"] == true
            && !troubles(&proxy).contains("index")
    });
}

#[test]
fn what_is_not_told_is_not_nothing() {
    let remote = Remote::mounted();
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let keyring = signer.keyring().display().to_string();
    let mut fleet = Fleet::build()
        .volume(&remote.path())
        .env("APTMESH_ARCHIVE_KEYRING", keyring)
        .env("APTMESH_MIRROR_RECHECK_AFTER", "1h")
        .start(1);
    let archive = LocalArchive::new("demo").package("tool", "1.0", MB).signed_detached(&signer);
    archive.publish(&mirror, "/debian");
    let release = "/debian/dists/demo/Release";
    for path in [release.to_owned(), format!("{release}.gpg")] {
        assert_eq!(get(fleet[0].addr(), &fleet[0].url_for(&mirror, &path)).status, 200);
    }
    fleet.wait_landed();
    // One that has nothing in memory but the release file.
    fleet.grow();
    let other = &fleet[1];
    assert_eq!(get(other.addr(), &other.url_for(&mirror, release)).status, 200);
    fleet.server.pause();
    let told = status(other.admin());
    assert_eq!(told["archives"][0]["signature"], Value::Null, "{}", told["archives"]);
    fleet.server.go_on();
    wait_until(PATIENCE, "its signature is looked at", || {
        status(other.admin())["archives"][0]["signature"] == "good"
    });

    // Nobody says what lies on the volume to one that starts without an index.
    fleet.server.pause();
    let frozen = remote.freeze();
    let told = status(other.admin());
    assert!(told["stored"].is_null() && told["volume"]["free"].is_null(), "{told}");
    drop(frozen);
    fleet.server.stop();
    fleet.grow();
    let late = &fleet[2];
    let told = status(late.admin());
    assert_eq!((&told["volume"]["bytes"], &told["stored"]), (&Value::Null, &Value::Null));
    assert!(page(late).contains("unknown") && !page(late).contains("0 files"), "{}", page(late));
    let front = request(late.addr(), "GET", "/", &[super::BROWSER]).body;
    assert!(String::from_utf8_lossy(&front).contains("<b>unknown</b>"));
    assert!(terminal(late).contains("unknown, unknown"), "{}", terminal(late));
}

#[test]
fn a_refusal_ends_where_a_fellow_has_the_right_file() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let fleet = Fleet::build()
        .env("APTMESH_ARCHIVE_KEYRING", signer.keyring().display().to_string())
        .env("APTMESH_MIRROR_RECHECK_AFTER", "1s")
        .start(2);
    let path = "/debian/dists/demo/InRelease";
    let text = |days| format!("Suite: demo\nCodename: demo\nDate: {}\nSHA256:\n", date(days));
    let put = |bytes: &[u8]| mirror.put(path, File::new(bytes.to_vec()).no_validators());
    let asked = |replica: &Proxy| get(replica.addr(), &replica.url_for(&mirror, path)).body;
    let [first, last] = [3, 1].map(|days| signer.clearsign(&text(days)));
    put(&first);
    assert_eq!(asked(&fleet[0]), first);
    let wrong = String::from_utf8(signer.clearsign(&text(2))).unwrap().replace("demo", "omed");
    put(wrong.as_bytes());
    let refused = || status(fleet[0].admin())["archives"][0]["refused"].clone();
    wait_until(PATIENCE, "it is refused", || asked(&fleet[0]) == first && refused().is_string());
    assert!(troubles(&fleet[0]).contains("is not admitted"));
    assert!(terminal(&fleet[0]).contains("REFUSED"), "{}", terminal(&fleet[0]));

    put(&last);
    assert_eq!(asked(&fleet[1]), last);
    fleet.wait_landed();
    // It is the fellow's that is served here, not one that this replica fetched.
    mirror.stop();
    wait_until(PATIENCE, "the fellow's is served", || asked(&fleet[0]) == last);
    assert_eq!(refused(), Value::Null);
    assert!(!troubles(&fleet[0]).contains("is not admitted"), "{}", troubles(&fleet[0]));
}

#[test]
fn a_mirror_that_failed_is_not_well_for_not_being_asked() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let path = "/debian/pool/main/t/tool/tool_1.0.orig.tar.xz";
    mirror.put(path, File::new(noise(4, 1_000)));
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, path)).status, 200);
    let other = "/debian/pool/main/o/other/other_1.0.orig.tar.xz";
    mirror.script(other, vec![Fault::Status(503); 99]);
    assert_ne!(get(proxy.addr(), &proxy.url_for(&mirror, other)).status, 200);
    let state = || status(proxy.admin())["mirrors"][0]["state"].clone();
    wait_until(PATIENCE, "its bench is over", || state() != "benched");
    assert_eq!(state(), "failed");
    assert!(troubles(&proxy).contains("failed when it was last asked"), "{}", troubles(&proxy));
    assert!(page(&proxy).contains("failed when last asked"));
    assert!(terminal(&proxy).contains("failed when last asked"));
    mirror.heal(other);
    mirror.put(other, File::new(noise(5, 1_000)));
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, other)).status, 200);
    assert_eq!((state(), troubles(&proxy)), ("well".into(), "[]".to_owned()));
}

#[test]
fn hosts_that_clients_name_hide_no_mirror_of_the_settings() {
    let named = Mirror::start_at("127.0.0.78");
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("aptmesh.toml");
    let group = format!(
        "[[archive.groups]]\nname = \"debian\"\nmirrors = [\"http://{}/debian\"]\n",
        named.host()
    );
    std::fs::write(&file, group).unwrap();
    let proxy = Proxy::build().arg("--config").arg(&file).start();
    let path = "/debian/pool/main/t/tool/tool_1.0.orig.tar.xz";
    named.stop();
    assert_ne!(get(proxy.addr(), &proxy.url_for(&named, path)).status, 200);
    for number in 0..8 {
        for _ in 0..3 {
            let target = format!("/127.0.0.79:{}{path}", 1 + number);
            assert_ne!(get(proxy.addr(), &target).status, 200);
        }
    }
    let told = status(proxy.admin())["troubles"].clone();
    let first = told[0]["what"].as_str().unwrap();
    assert!(first.contains(&named.host()), "{told}");
    assert!(told[1]["means"].as_str().unwrap().contains("mistyped"), "{told}");
}

#[test]
fn who_joins_a_download_spares_the_mirror() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let path = "/debian/pool/main/b/big/big_1.0.orig.tar.xz";
    mirror.put(path, File::new(noise(6, MB)).rate(MB as u64 / 4));
    let target = proxy.url_for(&mirror, path);
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| assert_eq!(get(proxy.addr(), &target).body.len(), MB));
        }
    });
    let session = &status(proxy.admin())["traffic"]["session"];
    assert_eq!(session["from_mirrors"], MB);
    assert_eq!(session["from_store"], 4 * MB, "{session}");
}

fn in_a_while(wait: Duration) -> String {
    httpdate::fmt_http_date(SystemTime::now() + wait).replace("GMT", "UTC")
}

#[test]
fn signatures_and_dates_are_told_as_they_are() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let keyring = signer.keyring().display().to_string();
    let proxy = Proxy::build().env("APTMESH_ARCHIVE_KEYRING", keyring).start();
    let text = |suite: &str, date: String, more: String| {
        format!("Suite: {suite}\nCodename: {suite}\nDate: {date}\n{more}SHA256:\n")
    };
    let three_days = in_a_while(Duration::from_secs(3 * 86_400));
    let none = String::new;
    let stranger = Signer::new("ed25519");
    let long = format!("{}/InRelease", "a".repeat(1_500));
    let files = [
        ("good/InRelease", signer.clearsign(&text("good", date(1), none()))),
        ("strange/InRelease", stranger.clearsign(&text("strange", date(1), none()))),
        ("bare/Release", text("bare", date(1), none()).into_bytes()),
        ("future/Release", text("future", three_days, none()).into_bytes()),
        (&*long, signer.clearsign(&text("long", date(1), none()))),
    ];
    let fetch = |path: &str, bytes: Vec<u8>| {
        let path = format!("/debian/dists/{path}");
        mirror.put(&path, File::new(bytes));
        let reply = get(proxy.addr(), &proxy.url_for(&mirror, &path));
        assert_eq!(reply.status, 200, "{path}: {}", reply.reason);
    };
    files.into_iter().for_each(|(path, bytes)| fetch(path, bytes));
    // It must still be good when it is fetched.
    let until = format!("Valid-Until: {}\n", in_a_while(Duration::from_secs(15)));
    fetch("over/Release", text("over", date(2), until).into_bytes());
    let archive = |suite: &str| {
        let told = status(proxy.admin())["archives"].clone();
        let archives = told.as_array().unwrap();
        archives.iter().find(|archive| archive["suite"] == suite).expect(suite).clone()
    };
    let signed = || ["good", "strange", "bare"].map(|suite| archive(suite)["signature"].clone());
    wait_until(PATIENCE, "all are stored, and looked at", || !signed().contains(&Value::Null));
    assert_eq!(signed(), ["good", "unknown_key", "unsigned"]);
    assert_eq!(archive("good")["keys"][0].as_str(), Some(&*signer.fingerprint()));
    assert_eq!(archive("future")["age"], Value::Null);
    assert!(archive("long")["url"].as_str().unwrap().chars().count() < 600);
    wait_until(PATIENCE, "it expires", || archive("over")["expired"] == true);
    assert!(troubles(&proxy).contains("has expired"), "{}", troubles(&proxy));
    let (shown, printed) = (page(&proxy), terminal(&proxy));
    for part in ["by a key that is not known here", "in the future", "expired"] {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
    for part in ["signature: good (", "signature: none", "made in the future", "EXPIRED"] {
        assert!(printed.contains(part), "{part:?} is not in:\n{printed}");
    }
}

#[test]
fn a_mirror_of_a_group_that_sent_wrong_bytes_is_benched() {
    let mirrors = [Mirror::start_at("127.0.0.80"), Mirror::start_at("127.0.0.81")];
    let archive = LocalArchive::new("demo").package("tool", "1.0", MB);
    for mirror in &mirrors {
        archive.publish(mirror, "/debian");
    }
    let mut wrong = archive.deb("tool").to_vec();
    wrong[MB / 2] ^= 1;
    mirrors[0].put(&format!("/debian/{}", archive.deb_path("tool")), File::new(wrong));
    let [one, two] = mirrors.each_ref().map(Mirror::host);
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("aptmesh.toml");
    let group = format!(
        "[[archive.groups]]\nname = \"demo\"\n\
         mirrors = [\"http://{one}/debian\", \"http://{two}/debian\"]\n"
    );
    std::fs::write(&file, group).unwrap();
    let proxy = Proxy::build().arg("--config").arg(&file).start();
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        assert_eq!(get(proxy.addr(), &format!("/demo/{path}")).status, 200);
    }
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(super::LEARNT) >= 2);
    // Whoever was given a part of the wrong ones asks again.
    wait_until(PATIENCE, "the right bytes", || {
        get(proxy.addr(), &format!("/demo/{}", archive.deb_path("tool"))).body
            == archive.deb("tool")
    });
    let told = status(proxy.admin());
    let accounts = told["mirrors"].as_array().unwrap();
    let of = |host: &str| {
        let url = format!("http://{host}");
        accounts.iter().find(|account| account["url"] == *url).expect(host)
    };
    assert_eq!((&of(&one)["state"], &of(&two)["state"]), (&"benched".into(), &"well".into()));
    for host in [&one, &two] {
        assert!(of(host)["archive"].is_string(), "{}", of(host));
    }
    let means = told["troubles"][0]["means"].as_str().unwrap();
    assert!(means.contains("other mirrors of the archive"), "{told}");
    assert!(page(&proxy).contains("benched") && terminal(&proxy).contains("benched for"));
}

#[test]
fn peers_are_ranked_and_a_liar_is_named() {
    let swarm = Swarm::of(&[("good", 2 * MB), ("tool", 3 * MB)]);
    let giver = Site::build(&swarm.key).named("berlin").start();
    swarm.learn(&giver);
    swarm.fetch(&giver, "good");
    let site = swarm.site(&[&giver]);
    let liar = Liar::of(&swarm, &site, &["tool"], wrong);
    liar.wait_found(&swarm, &site, "tool");
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));
    let found = || !site.node().look_up(&swarm.blob("good")).is_empty();
    wait_until(PATIENCE, "the giver is found", found);
    swarm.fetch(&site, "tool");
    swarm.mirror.remove(&swarm.path("good"));
    swarm.fetch(&site, "good");
    wait_until(PATIENCE, "the giver's name is known", || {
        status(site.admin())["peers"][0]["site"] == "berlin"
    });
    let peers = status(site.admin())["peers"].clone();
    assert!(peers[0]["proven_bytes"].as_u64() >= Some(MB as u64 / 2), "{peers}");
    assert_eq!((&peers[0]["blamed"], &peers[1]["blamed"]), (&false.into(), &true.into()));
    assert!(troubles(&site).contains("gave wrong bytes"), "{}", troubles(&site));
    let (shown, printed) = (page(&site), terminal(&site));
    assert!(shown.contains("1. berlin") && shown.contains("not asked for a day"), "{shown}");
    assert!(printed.contains(": gave wrong bytes, gave"), "{printed}");
}
