//! Mirrors that are one archive: what one of them gave counts for all, and what one of them can
//! not give is had from the next.

use crate::kit::proxy::Build;
use crate::kit::*;
use std::fs;
use std::process::Output;
use std::thread;
use std::time::{Duration, SystemTime};

const INRELEASE: &str = "/debian/dists/demo/InRelease";
const RELEASE: &str = "/debian/dists/demo/Release";
const GROUPS: &str = "APTMESH_ARCHIVE_GROUPS";
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
const VERIFY_FAILURES: &str = "aptmesh_engine_verify_failures_total";
const PATIENCE: Duration = Duration::from_secs(30);

/// Two mirrors that are different hosts.
fn pair() -> [Mirror; 2] {
    ["127.0.0.1", "127.0.0.2"].map(Mirror::start_at)
}

/// The setting that makes these mirrors one archive, called `demo`.
fn group(mirrors: &[Mirror; 2]) -> String {
    let [one, two] = mirrors.each_ref().map(|mirror| format!("http://{}/debian", mirror.host()));
    format!("demo {one} {two}")
}

fn build(mirrors: &[Mirror; 2]) -> Build {
    Proxy::build().env(GROUPS, group(mirrors)).env("APTMESH_MIRROR_TIMEOUT", "2s")
}

fn demo() -> LocalArchive {
    LocalArchive::new("demo").package("tool", "1.0", 1_000_000).package("toy", "1.0", 100)
}

/// Puts the archive on both mirrors.
fn publish(archive: &LocalArchive, mirrors: &[Mirror; 2]) {
    mirrors.iter().for_each(|mirror| archive.publish(mirror, "/debian"));
}

fn pool(archive: &LocalArchive, name: &str) -> String {
    format!("/debian/{}", archive.deb_path(name))
}

fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, path));
    proxy.wait_landed();
    reply
}

/// Has the cache learn what the archive's lists say.
fn teach(proxy: &Proxy, archive: &LocalArchive) {
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        let reply = get(proxy.addr(), &format!("/demo/{path}"));
        assert_eq!(reply.status, 200, "{path}: {}", reply.reason);
    }
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(LEARNT) >= 2);
}

#[test]
fn what_one_mirror_gave_is_a_hit_under_the_others() {
    let (mirrors, archive) = (pair(), demo());
    let [one, two] = &mirrors;
    publish(&archive, &mirrors);
    let proxy = build(&mirrors).start();
    for path in [RELEASE.to_owned(), format!("/debian/{}", archive.index_path())]
        .into_iter()
        .chain(["tool", "toy"].map(|name| pool(&archive, name)))
    {
        let first = fetch(&proxy, one, &path);
        assert_eq!(first.status, 200, "{path}: {}", first.reason);
        let absolute = format!("http://{}{path}", two.host());
        for target in [proxy.url_for(two, &path), absolute, path.replacen("debian", "demo", 1)] {
            let again = get(proxy.addr(), &target);
            assert_eq!(again.body, first.body, "{target}");
            assert_eq!(again.header("cache-status"), Some("aptmesh; hit"), "{target}");
            assert_eq!(again.header("last-modified"), first.header("last-modified"));
        }
    }
    let asked = |mirror: &Mirror| mirror.log().iter().filter(|seen| seen.status == 200).count();
    assert_eq!((asked(one), asked(two)), (4, 0));
    assert_eq!(proxy.count("aptmesh_engine_served_total{outcome=\"hit\"}"), 12);
}

#[test]
fn what_lies_beside_the_archive_belongs_to_its_mirror_alone() {
    let mirrors = pair();
    let proxy = build(&mirrors).start();
    for path in ["/other/pool/tool_1.orig.tar.xz", "/debian-security/pool/tool_1.orig.tar.xz"] {
        for (seed, mirror) in (1..).zip(&mirrors) {
            mirror.put(path, File::new(noise(seed, 100)));
            assert_eq!(fetch(&proxy, mirror, path).body, noise(seed, 100), "{path}");
        }
    }
}

#[test]
fn the_name_of_a_group_stands_for_its_host() {
    let (mirrors, archive) = (pair(), demo());
    publish(&archive, &mirrors);
    let proxy = build(&mirrors).start();
    let apt = Apt::new(None);
    apt.sources(&archive.source_line(&format!("http://{}/demo", proxy.addr())));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let download = apt.download(&["tool", "toy"]);
    assert!(download.ok, "{}", download.output);
    assert_eq!(mirrors[0].bodies(&pool(&archive, "tool")), 1);
    // A no is asked of all; the rest the first one does.
    assert!(mirrors[1].log().iter().all(|seen| seen.status == 404));
    // Another name is a host as ever.
    assert_ne!(get(proxy.addr(), "/demo2/dists/demo/Release").status, 200);
}

#[test]
fn groups_can_be_written_in_the_file() {
    let (mirrors, archive) = (pair(), demo());
    publish(&archive, &mirrors);
    let [one, two] = mirrors.each_ref().map(Mirror::host);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("aptmesh.toml");
    let other = "[[archive.groups]]\nname = \"more\"\nmirrors = [\"http://deb.example.org/x\"]\n";
    let text = format!(
        "[[archive.groups]]\nname = \"demo\"\n\
         mirrors = [\"http://{one}/debian\", \"http://{two}/debian\"]\n{other}"
    );
    fs::write(&file, text).unwrap();
    let proxy = Proxy::build().arg("--config").arg(&file).start();
    mirrors[0].stop();
    let reply = get(proxy.addr(), "/demo/dists/demo/Release");
    assert_eq!(reply.body, archive.release().as_bytes(), "{}", reply.reason);

    // What is printed says the same again.
    let print = || aptmesh().arg("config").arg("--config").arg(&file).output().unwrap();
    let printed = print();
    assert!(printed.status.success(), "{printed:?}");
    fs::write(&file, &printed.stdout).unwrap();
    assert_eq!(print().stdout, printed.stdout);
    for word in ["demo", "more", one.as_str(), two.as_str(), "deb.example.org"] {
        assert!(said(&printed).contains(word), "{word} is not in {}", said(&printed));
    }
}

/// Small files that both mirrors have, as many as a test may need.
const FILES: usize = 1000;

fn file_path(number: usize) -> String {
    format!("/debian/pool/main/t/tool/tool_{number}.orig.tar.xz")
}

fn stock(mirrors: &[Mirror; 2]) {
    for mirror in mirrors {
        for number in 0..FILES {
            mirror.put(&file_path(number), File::new(noise(number as u64, 500)));
        }
    }
}

fn assert_file(proxy: &Proxy, mirror: &Mirror, number: usize) {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, &file_path(number)));
    assert_eq!((reply.status, reply.complete), (200, true), "{number}: {}", reply.reason);
    assert_eq!(reply.body, noise(number as u64, 500), "{number}");
}

#[test]
fn a_mirror_that_is_down_is_left_alone_and_used_again_when_it_is_back() {
    let mirrors = pair();
    let [one, two] = &mirrors;
    stock(&mirrors);
    let proxy = build(&mirrors).start();
    one.hang_up(true);
    (0..60).for_each(|number| assert_file(&proxy, one, number));
    let knocks = one.connections();
    assert!((1..=15).contains(&knocks), "{knocks} connections for 60 requests");
    assert_eq!(two.log().len(), 60);

    one.hang_up(false);
    let mut numbers = 60..FILES;
    wait_until(Duration::from_secs(90), "the first mirror is used again", || {
        thread::sleep(Duration::from_millis(100));
        assert_file(&proxy, two, numbers.next().expect("a file that nobody asked for"));
        !one.log().is_empty()
    });
}

#[test]
fn nobody_notices_a_mirror_that_is_gone() {
    let (mirrors, archive) = (pair(), demo());
    let [one, two] = &mirrors;
    publish(&archive, &mirrors);
    let proxy = build(&mirrors).start();
    one.stop();
    let apt = Apt::new(None);
    apt.conf("Acquire::Retries", "0");
    apt.sources(&archive.source_line(&format!("http://{}/{}/debian", proxy.addr(), one.host())));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let download = apt.download(&["tool"]);
    assert!(download.ok, "{}", download.output);
    assert_eq!(two.bodies(&pool(&archive, "tool")), 1);

    two.stop();
    assert_eq!(fetch(&proxy, two, &pool(&archive, "tool")).body, archive.deb("tool"));
    let reply = fetch(&proxy, two, &pool(&archive, "toy"));
    assert!(matches!(reply.status, 502..=504), "{} {}", reply.status, reply.reason);
}

#[test]
fn trouble_is_asked_of_the_next_mirror() {
    let mirrors = pair();
    let [one, two] = &mirrors;
    stock(&mirrors);
    let proxy = build(&mirrors).start();
    for (number, fault) in
        [Fault::Status(503), Fault::Status(500), Fault::Refuse].into_iter().enumerate()
    {
        one.script(&file_path(number), vec![fault; 20]);
        assert_file(&proxy, one, number);
        assert_eq!(two.bodies(&file_path(number)), 1);
    }
}

#[test]
fn a_no_counts_when_all_say_it() {
    let mirrors = pair();
    let [one, two] = &mirrors;
    let proxy = build(&mirrors).start();
    let release = demo().release();
    for (path, bytes) in [(file_path(0), noise(0, 500)), (RELEASE.to_owned(), release.into())] {
        let reply = fetch(&proxy, one, &path);
        assert_eq!(reply.status, 404, "{path}: {}", reply.reason);
        assert_eq!((one.requests(&path).len(), two.requests(&path).len()), (1, 1), "{path}");

        two.put(&path, File::new(&bytes[..]));
        let reply = fetch(&proxy, one, &path);
        assert_eq!((reply.status, reply.body), (200, bytes), "{path}: {}", reply.reason);
    }
}

/// The first mirror breaks off half-way and then hangs up; the second has the file as `alter`
/// makes it. Returns how many bytes of it this one sent.
fn rest_of_a_file(archive: &LocalArchive, taught: bool, alter: fn(File, &str) -> File) -> u64 {
    let mirrors = pair();
    let [one, two] = &mirrors;
    for (mirror, mark) in mirrors.iter().zip(["\"one\"", "\"two\""]) {
        archive.publish_with(mirror, "/debian", |path, file| match path {
            path if path.ends_with(".deb") => alter(file, mark),
            _ => file,
        });
    }
    let proxy = build(&mirrors).start();
    if taught {
        teach(&proxy, archive);
    }
    let (path, right) = (pool(archive, "tool"), archive.deb("tool"));
    let mut script = vec![Fault::Cut { after: right.len() / 2 }];
    script.extend(vec![Fault::Refuse; 20]);
    one.script(&path, script);
    let reply = fetch(&proxy, one, &path);
    assert_eq!((reply.status, reply.complete), (200, true), "{:?}", reply.trouble);
    assert!(reply.body == right, "{} bytes", reply.body.len());
    assert!(two.requests(&path).iter().any(|seen| seen.header("range").is_some()));
    assert!(proxy.count("aptmesh_engine_resumed_total") >= 1);
    proxy.check_blobs();
    assert_eq!(fetch(&proxy, two, &path).header("cache-status"), Some("aptmesh; hit"));
    two.bytes(&path)
}

#[test]
fn the_rest_of_a_file_comes_from_the_next_mirror() {
    let archive = demo();
    let whole = archive.deb("tool").len() as u64;
    for taught in [true, false] {
        let sent = rest_of_a_file(&archive, taught, |file, _| file);
        assert!(sent <= whole / 2 + 64 * 1024, "{sent} bytes of {whole}, taught: {taught}");
    }
}

#[test]
fn the_rest_of_a_file_comes_from_a_mirror_without_ranges() {
    let archive = demo();
    let sent = rest_of_a_file(&archive, true, |file, mark| match mark {
        "\"two\"" => file.ignore_range(),
        _ => file,
    });
    assert!(sent >= archive.deb("tool").len() as u64, "{sent}");
}

#[test]
fn the_rest_of_a_file_comes_from_a_mirror_that_marks_it_otherwise() {
    let archive = demo();
    rest_of_a_file(&archive, true, |file, mark| file.etag(mark));
    // Nor need their clocks agree.
    rest_of_a_file(&archive, true, |file, mark| match mark {
        "\"two\"" => {
            file.last_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))
        }
        _ => file,
    });
}

#[test]
fn wrong_bytes_of_one_mirror_are_had_right_from_the_next() {
    let (mirrors, archive) = (pair(), demo());
    let [one, two] = &mirrors;
    publish(&archive, &mirrors);
    let proxy = build(&mirrors).start();
    let apt = Apt::new(None);
    apt.sources(&archive.source_line(&format!("http://{}/demo", proxy.addr())));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(LEARNT) >= 2);

    let mut lies = Vec::new();
    for name in ["tool", "toy"] {
        let mut wrong = archive.deb(name).to_vec();
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        lies.push(sha256_hex(&wrong));
        one.put(&pool(&archive, name), File::new(wrong));
    }
    let download = apt.download(&["tool", "toy"]);
    assert!(download.ok, "{}", download.output);
    assert_eq!(apt.archives().len(), 2);
    proxy.wait_landed();
    for name in ["tool", "toy"] {
        let path = pool(&archive, name);
        assert!(two.bodies(&path) >= 1, "{name}");
        assert_eq!(fetch(&proxy, one, &path).body, archive.deb(name), "{name}");
    }
    assert!(one.bodies(&pool(&archive, "tool")) + one.bodies(&pool(&archive, "toy")) > 0);
    assert!(proxy.count(VERIFY_FAILURES) >= 1);
    proxy.check_blobs();
    let stored = |lie: &String| proxy.blobs().iter().any(|blob| blob.ends_with(lie));
    assert!(!lies.iter().any(stored));
}

#[test]
fn a_mirror_that_lags_behind_is_not_followed() {
    let (mirrors, signer) = (pair(), Signer::new("ed25519"));
    let [one, two] = &mirrors;
    let old = demo().signed_inline(&signer);
    let new = demo().package("more", "1.0", 100).signed_inline(&signer);
    new.publish(one, "/debian");
    old.publish(two, "/debian");
    let proxy = build(&mirrors)
        .env("APTMESH_MIRROR_RECHECK_AFTER", "0s")
        .env("APTMESH_ARCHIVE_KEYRING", signer.keyring().display().to_string())
        .start();
    assert_eq!(fetch(&proxy, one, INRELEASE).body, new.inrelease());
    one.stop();
    for target in ["/demo/dists/demo/InRelease", &proxy.url_for(two, INRELEASE)] {
        let reply = get(proxy.addr(), target);
        assert_eq!((reply.status, &*reply.body), (200, new.inrelease()), "{target}");
        proxy.wait_landed();
    }
    assert!(!two.requests(INRELEASE).is_empty(), "it was asked");
    // When it has caught up, it counts.
    let newest = new.package("most", "1.0", 100).signed_inline(&signer);
    newest.publish(two, "/debian");
    wait_until(PATIENCE, "the second mirror's new release file", || {
        fetch(&proxy, one, INRELEASE).body == newest.inrelease()
    });
}

#[test]
fn what_a_release_file_names_may_come_from_another_mirror() {
    let mirrors = pair();
    let [one, two] = &mirrors;
    let given = LocalArchive::new("demo").package("tool", "1.0", 100);
    let next = LocalArchive::new("demo").package("tool", "2.0", 100).later(1);
    publish(&given, &mirrors);
    next.publish(two, "/debian");
    let proxy = build(&mirrors).start();
    let mut client = Connection::open(proxy.addr());
    let release = client.get(&proxy.url_for(one, RELEASE));
    assert_eq!(release.body, given.release().as_bytes(), "{}", release.reason);
    one.stop();
    let index = client.get(&proxy.url_for(one, &format!("/debian/{}", given.index_path())));
    assert_eq!(String::from_utf8_lossy(&index.body), given.index(), "{}", index.reason);
    assert_eq!(two.bodies(&format!("/debian/{}", given.by_hash_path())), 1);
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

#[test]
fn groups_that_are_wrong_end_the_start() {
    for (groups, fault) in [
        ("demo", "demo"),
        ("demo signed-by=0123456789ABCDEF0123456789ABCDEF01234567", "demo"),
        ("demo http://a.example.org/debian sometimes", "sometimes"),
        ("demo http://a.example.org/debian signed=yes", "signed=yes"),
        ("demo http://a.example.org/debian signed-by=nobody", "nobody"),
        ("demo http://a.example.org/debian signed-by=/no/such/file.gpg", "/no/such/file.gpg"),
        ("demo ftp://a.example.org/debian", "ftp://"),
        (
            "demo http://a.example.org/d,other http://b.example.org/d,demo http://c.example.org/d",
            "demo",
        ),
        ("deb.example http://a.example.org/debian", "deb.example"),
        ("demo http://a.example.org/debian?x=1", "?x=1"),
        ("https http://a.example.org/debian", "https"),
    ] {
        for verb in ["serve", "config"] {
            let output = aptmesh().arg(verb).env(GROUPS, groups).output().unwrap();
            let text = said(&output);
            assert_eq!(output.status.code(), Some(78), "{groups}: {text}");
            assert!(text.contains("archive.groups") && text.contains(fault), "{groups}: {text}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("aptmesh.toml");
    for (text, fault) in [
        ("[[archive.groups]]\nname = \"demo\"\n", "demo"),
        ("[[archive.groups]]\nmirrors = [\"http://a.example.org/debian\"]\n", "name"),
        (
            "[[archive.groups]]\nname = \"demo\"\nmirors = [\"http://a.example.org/debian\"]\n",
            "mirors",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let output = aptmesh().args(["config", "--config"]).arg(&file).output().unwrap();
        let printed = said(&output);
        assert_eq!(output.status.code(), Some(78), "{text}: {printed}");
        assert!(printed.contains("archive.groups") && printed.contains(fault), "{text}: {printed}");
    }
}

#[test]
fn the_mirrors_of_a_group_may_be_asked_and_nobody_else() {
    let mirrors = pair();
    let [one, two] = &mirrors;
    let stranger = Mirror::start_at("127.0.0.3");
    stock(&mirrors);
    stranger.put(&file_path(0), File::new(noise(0, 500)));
    for (setting, value) in
        [("APTMESH_MIRROR_ALLOW_PRIVATE", ""), ("APTMESH_MIRROR_ALLOW", "deb.example.org")]
    {
        let proxy = build(&mirrors).env(setting, value).start();
        assert_file(&proxy, one, 0);
        assert_file(&proxy, two, 1);
        assert_eq!(
            get(proxy.addr(), &format!("/demo{}", &file_path(2)["/debian".len()..])).status,
            200
        );
        let reply = get(proxy.addr(), &proxy.url_for(&stranger, &file_path(0)));
        assert_eq!(reply.status, 403, "{setting}: {}", reply.reason);
        // Nor do they lead there.
        let there = format!("http://{}{}", stranger.host(), file_path(0));
        for mirror in &mirrors {
            mirror.script(&file_path(3), vec![Fault::Redirect(there.clone()); 8]);
        }
        assert_ne!(get(proxy.addr(), &proxy.url_for(one, &file_path(3))).status, 200, "{setting}");
        mirrors.iter().for_each(|mirror| mirror.heal(&file_path(3)));
    }
    assert_eq!(stranger.connections(), 0);
}

const AWAY: &str = "aptmesh_mirror_away";

/// It is served, at once or when somebody asks again: one that is away has but a moment to answer.
fn wait_for_file(proxy: &Proxy, mirror: &Mirror, number: usize) {
    wait_until(PATIENCE, "a file that a mirror has", || {
        let reply = fetch(proxy, mirror, &file_path(number));
        reply.status == 200 && reply.body == noise(number as u64, 500)
    });
}

#[test]
fn nothing_stays_away_that_is_back() {
    for second_stops in [true, false] {
        let mirrors = pair();
        let [one, two] = &mirrors;
        stock(&mirrors);
        let proxy = build(&mirrors).start();
        mirrors.iter().for_each(Mirror::stop);
        let reply = fetch(&proxy, one, &file_path(0));
        assert!(matches!(reply.status, 502..=504), "{} {}", reply.status, reply.reason);
        assert_eq!(proxy.count(AWAY), 2);

        two.restart();
        wait_for_file(&proxy, one, 1);
        assert_file(&proxy, one, 2);
        assert_eq!(proxy.count(AWAY), 1);

        // The first is back, and is asked when the second does not have what is wanted.
        one.restart();
        if second_stops {
            two.stop();
        } else {
            two.remove(&file_path(3));
        }
        wait_for_file(&proxy, two, 3);
        assert!(one.bodies(&file_path(3)) >= 1);
        assert_file(&proxy, two, 4);
        assert_eq!(one.bodies(&file_path(4)), 1, "it is the favourite again");

        two.restart();
        one.remove(&file_path(5));
        wait_for_file(&proxy, one, 5);
        assert_eq!(proxy.count(AWAY), 0);
    }
}

#[test]
fn a_no_beside_a_trouble_that_passes_is_not_the_last_word() {
    let (mirrors, archive) = (pair(), demo());
    let [one, two] = &mirrors;
    publish(&archive, &mirrors);
    let proxy = build(&mirrors).start();
    teach(&proxy, &archive);
    let path = pool(&archive, "tool");
    one.remove(&path);
    two.script(&path, vec![Fault::Status(503); 2]);
    let reply = fetch(&proxy, one, &path);
    assert_eq!((reply.status, reply.complete), (200, true), "{}", reply.reason);
    assert_eq!(reply.body, archive.deb("tool"));
    assert_eq!(two.bodies(&path), 1);
    assert!(one.requests(&path).iter().all(|seen| seen.status == 404));
}

#[test]
fn a_no_does_not_count_where_a_list_promises_the_file() {
    let (mirrors, archive) = (pair(), demo());
    let [one, two] = &mirrors;
    publish(&archive, &mirrors);
    let proxy = build(&mirrors).start();
    teach(&proxy, &archive);
    for (path, status) in [(pool(&archive, "tool"), 503), (file_path(0), 404)] {
        one.remove(&path);
        two.script(&path, vec![Fault::Status(503); 50]);
        let reply = fetch(&proxy, one, &path);
        assert_eq!(reply.status, status, "{path}: {}", reply.reason);
    }
}

#[test]
fn the_old_bytes_of_a_mirror_that_lags_are_not_given_for_the_new_ones() {
    let given = LocalArchive::new("demo").without_by_hash().package("tool", "2.0", 100).later(1);
    let old = LocalArchive::new("demo").without_by_hash();
    // Once of the same size, and once not.
    for old in [old.clone().package("tool", "1.0", 100), old] {
        let mirrors = pair();
        let [one, two] = &mirrors;
        old.publish(one, "/debian");
        given.publish(two, "/debian");
        let proxy = build(&mirrors).start();
        one.script(RELEASE, vec![Fault::Status(503)]);
        for _ in 0..2 {
            let mut client = Connection::open(proxy.addr());
            let release = client.get(&proxy.url_for(one, RELEASE));
            assert_eq!(release.body, given.release().as_bytes(), "{}", release.reason);
            let path = format!("/debian/{}", given.index_path());
            let index = client.get(&proxy.url_for(one, &path));
            assert_eq!((index.status, index.complete), (200, true), "{}", index.reason);
            assert_eq!(String::from_utf8_lossy(&index.body), given.index());
            proxy.wait_landed();
            assert_eq!((one.requests(&path).len(), two.bodies(&path)), (1, 1));
        }
        proxy.check_blobs();
    }
}

#[test]
fn apt_gets_a_large_index_right_though_a_mirror_lags() {
    // Too large to be held back to its end: apt hears that it broke off, and asks again.
    let archive = |version: &str| {
        (0..400).fold(LocalArchive::new("demo").without_by_hash(), |archive, number| {
            archive.package(&format!("tool{number}"), version, 10)
        })
    };
    let (old, given) = (archive("1.0"), archive("2.0").later(1));
    let mirrors = pair();
    let [one, two] = &mirrors;
    old.publish(one, "/debian");
    given.publish(two, "/debian");
    let proxy = build(&mirrors).start();
    one.script(RELEASE, vec![Fault::Status(503)]);
    let apt = Apt::new(None);
    apt.sources(&given.source_line(&format!("http://{}/demo", proxy.addr())));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let path = format!("/debian/{}", given.index_path());
    assert_eq!((one.bodies(&path), two.bodies(&path)), (1, 1));
    let download = apt.download(&["tool399"]);
    assert!(download.ok, "{}", download.output);
    proxy.wait_landed();
    proxy.check_blobs();
}

#[test]
fn what_may_be_a_secret_is_told_to_the_host_that_the_client_wrote() {
    const SECRET: &str = "hunter2";
    let path = file_path(0);
    for written in 0..2 {
        let mirrors = pair();
        let (this, other) = (&mirrors[written], &mirrors[1 - written]);
        stock(&mirrors);
        let proxy = build(&mirrors).start();
        let (host, basic) = (this.host(), ("Authorization", "Bearer hunter2"));
        let asks: [(String, &[(&str, &str)]); 5] = [
            (format!("/{host}{path}?token={SECRET}"), &[]),
            (format!("http://{host}{path}?token={SECRET}"), &[]),
            (format!("/me:{SECRET}@{host}{path}"), &[]),
            (format!("http://me:{SECRET}@{host}{path}"), &[]),
            (format!("/{host}{path}"), &[basic]),
        ];
        for (target, fields) in &asks {
            // One that is in trouble, or does not have it, is no reason to tell another.
            this.script(&path, vec![Fault::Status(503), Fault::None, Fault::Status(404)]);
            for status in [200, 404] {
                let reply = request(proxy.addr(), "GET", target, fields);
                assert_eq!(reply.status, status, "{target}: {}", reply.reason);
            }
            assert_eq!(this.requests(&path).len(), 3, "{target}");
            this.clear_log();
        }
        assert_eq!(other.connections(), 0);
        assert!(proxy.blobs().is_empty() && !proxy.log().contains(SECRET));
    }
}

#[test]
fn what_may_be_a_secret_is_told_to_the_first_mirror_under_the_groups_name() {
    let mirrors = pair();
    let [one, two] = &mirrors;
    stock(&mirrors);
    let proxy = build(&mirrors).start();
    let path = file_path(0).replacen("/debian", "", 1);
    let basic = "Basic bWU6aHVudGVyMg=="; // me:hunter2
    let asks: [(String, &[(&str, &str)]); 4] = [
        (format!("/demo{path}?token=hunter2"), &[]),
        (format!("/me:hunter2@demo{path}"), &[]),
        (format!("http://me:hunter2@demo{path}"), &[]),
        (format!("/demo{path}"), &[("Authorization", basic)]),
    ];
    for (target, fields) in &asks {
        let reply = request(proxy.addr(), "GET", target, fields);
        assert_eq!(reply.status, 200, "{target}: {}", reply.reason);
        let seen = one.log().pop().unwrap();
        let has_query = target.contains('?');
        assert_eq!(seen.path.contains("?token=hunter2"), has_query, "{}", seen.path);
        assert_eq!(seen.header("authorization"), (!has_query).then_some(basic), "{target}");
    }
    assert_eq!((one.log().len(), two.connections()), (asks.len(), 0));
    assert!(proxy.blobs().is_empty() && !proxy.log().contains("hunter2"));
}

#[test]
fn a_mirror_that_is_named_by_address_may_be_asked_at_its_own_port_alone() {
    let mirrors = pair();
    let [one, two] = &mirrors;
    let beside = Mirror::start();
    stock(&mirrors);
    beside.put(&file_path(0), File::new(noise(0, 500)));
    let ports = [one, &beside].map(|mirror| mirror.addr().port().to_string()).join(",");
    let proxy = build(&mirrors)
        .env("APTMESH_MIRROR_ALLOW_PRIVATE", "")
        .env("APTMESH_MIRROR_CONNECT_PORTS", ports)
        .start();
    assert_file(&proxy, one, 0);

    let admin = format!("{}/metrics", proxy.admin());
    let others = [admin, format!("{}{}", beside.host(), file_path(0))];
    for (number, there) in (1..).zip(&others) {
        let reply = get(proxy.addr(), &format!("/{there}"));
        assert_eq!(reply.status, 403, "{there}: {}", reply.reason);
        assert!(reply.reason.contains("allow_private"), "{}", reply.reason);
        // Nor do the mirrors lead there.
        let redirect = Fault::Redirect(format!("http://{there}"));
        mirrors.iter().for_each(|mirror| mirror.script(&file_path(number), vec![redirect.clone()]));
        let reply = get(proxy.addr(), &proxy.url_for(two, &file_path(number)));
        assert_eq!(reply.status, 403, "to {there}: {}", reply.reason);
    }
    let knocks = one.connections();
    for host in [one, &beside].map(Mirror::host) {
        let reply = request(proxy.addr(), "CONNECT", &host, &[]);
        assert_eq!(reply.status, 403, "{host}: {}", reply.reason);
        assert!(reply.reason.contains("allow_private"), "{}", reply.reason);
    }
    assert_eq!((one.connections(), beside.connections()), (knocks, 0));
}

#[test]
fn a_mirror_that_is_named_by_name_may_be_asked_where_names_may_lead() {
    let mirror = Mirror::start();
    mirror.put(&file_path(0), File::new(noise(0, 500)));
    let host = format!("localhost:{}", mirror.addr().port());
    let build = || Proxy::build().env(GROUPS, format!("demo http://{host}/debian"));
    let targets = [format!("/{host}{}", file_path(0)), file_path(0).replacen("debian", "demo", 1)];

    let strict = build().env("APTMESH_MIRROR_ALLOW_PRIVATE", "").start();
    for target in &targets {
        let reply = get(strict.addr(), target);
        assert_eq!(reply.status, 403, "{target}: {}", reply.reason);
        assert!(reply.reason.contains("allow_private"), "{}", reply.reason);
    }
    assert_eq!(mirror.connections(), 0);
    let lenient = build().env("APTMESH_MIRROR_ALLOW_PRIVATE", "localhost").start();
    for target in &targets {
        assert_eq!(get(lenient.addr(), target).body, noise(0, 500), "{target}");
    }
}

#[test]
fn a_signal_does_not_take_a_running_group_apart() {
    let mirrors = pair();
    let [one, two] = &mirrors;
    stock(&mirrors);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("aptmesh.toml");
    let write = |name: &str, mirrors: &str| {
        let text = format!("[[archive.groups]]\nname = \"{name}\"\nmirrors = [{mirrors}]\n");
        fs::write(&file, text).unwrap();
    };
    let [first, second] =
        mirrors.each_ref().map(|mirror| format!("\"http://{}/debian\"", mirror.host()));
    write("demo", &format!("{first}, {second}"));
    let proxy =
        Proxy::build().env("APTMESH_MIRROR_ALLOW_PRIVATE", "").arg("--config").arg(&file).start();
    assert_file(&proxy, two, 0);

    write("other", "\"http://deb.example.org/debian\"");
    proxy.signal("HUP");
    wait_until(PATIENCE, "what takes a restart is named", || {
        let log = proxy.log();
        log.lines().any(|line| line.contains("archive.groups") && line.contains("next start"))
    });
    assert_file(&proxy, two, 1);
    assert_eq!((one.bodies(&file_path(1)), two.log().len()), (1, 0));
    one.stop();
    let by_name = file_path(2).replacen("debian", "demo", 1);
    assert_eq!(get(proxy.addr(), &by_name).body, noise(2, 500));
    assert_eq!(two.bodies(&file_path(2)), 1);
    assert_ne!(get(proxy.addr(), &by_name.replacen("demo", "other", 1)).status, 200);
}
