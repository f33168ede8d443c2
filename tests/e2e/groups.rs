//! Mirrors that are one archive: what one of them gave counts for all, and who may be asked what.

use crate::kit::proxy::Build;
use crate::kit::*;
use std::fs;
use std::process::Output;
use std::time::Duration;

pub(crate) const RELEASE: &str = "/debian/dists/demo/Release";
const GROUPS: &str = "APTMESH_ARCHIVE_GROUPS";
pub(crate) const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Two mirrors that are different hosts.
pub(crate) fn pair() -> [Mirror; 2] {
    ["127.0.0.1", "127.0.0.2"].map(Mirror::start_at)
}

/// The setting that makes these mirrors one archive, called `demo`.
fn group(mirrors: &[Mirror; 2]) -> String {
    let [one, two] = mirrors.each_ref().map(|mirror| format!("http://{}/debian", mirror.host()));
    format!("demo {one} {two}")
}

pub(crate) fn build(mirrors: &[Mirror; 2]) -> Build {
    Proxy::build().env(GROUPS, group(mirrors)).env("APTMESH_MIRROR_TIMEOUT", "2s")
}

pub(crate) fn demo() -> LocalArchive {
    LocalArchive::new("demo").package("tool", "1.0", 1_000_000).package("toy", "1.0", 100)
}

/// Puts the archive on both mirrors.
pub(crate) fn publish(archive: &LocalArchive, mirrors: &[Mirror; 2]) {
    mirrors.iter().for_each(|mirror| archive.publish(mirror, "/debian"));
}

pub(crate) fn pool(archive: &LocalArchive, name: &str) -> String {
    format!("/debian/{}", archive.deb_path(name))
}

pub(crate) fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, path));
    proxy.wait_landed();
    reply
}

/// Has the cache learn what the archive's lists say.
pub(crate) fn teach(proxy: &Proxy, archive: &LocalArchive) {
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
pub(crate) const FILES: usize = 1000;

pub(crate) fn file_path(number: usize) -> String {
    format!("/debian/pool/main/t/tool/tool_{number}.orig.tar.xz")
}

pub(crate) fn stock(mirrors: &[Mirror; 2]) {
    for mirror in mirrors {
        for number in 0..FILES {
            mirror.put(&file_path(number), File::new(noise(number as u64, 500)));
        }
    }
}

pub(crate) fn assert_file(proxy: &Proxy, mirror: &Mirror, number: usize) {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, &file_path(number)));
    assert_eq!((reply.status, reply.complete), (200, true), "{number}: {}", reply.reason);
    assert_eq!(reply.body, noise(number as u64, 500), "{number}");
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
