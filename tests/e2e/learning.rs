//! What an archive's lists say is learnt from what passes through, and everything is held against it:
//! a package is known before it is fetched, under whatever name it is asked for.

use crate::kit::*;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
const REFUSED: &str = "aptmesh_engine_learnt_lists_total{outcome=\"refused\"}";
const VERIFY_FAILURES: &str = "aptmesh_engine_verify_failures_total";
const PATIENCE: Duration = Duration::from_secs(30);

/// A proxy that confirms metadata with the mirror each time.
fn proxy() -> Proxy {
    Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start()
}

fn demo() -> LocalArchive {
    LocalArchive::new("demo").package("tool", "1.0", 200_000).package("toy", "1.0", 50_000)
}

/// The same names and versions, other bytes of the same number.
fn rebuilt(archive: &LocalArchive) -> LocalArchive {
    let other = LocalArchive::new("demo").package("tool", "1.0~", 200_000);
    archive.with_deb("tool", other.deb("tool").to_vec())
}

fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    get(proxy.addr(), &proxy.url_for(mirror, path))
}

/// What `apt-get update` fetches.
fn update(proxy: &Proxy, mirror: &Mirror, archive: &LocalArchive) {
    let before = proxy.count(LEARNT);
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        let reply = fetch(proxy, mirror, &format!("/debian/{path}"));
        assert_eq!((reply.status, reply.complete), (200, true), "{path}");
    }
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(LEARNT) >= before + 2);
}

fn pool(archive: &LocalArchive, name: &str) -> String {
    format!("/debian/{}", archive.deb_path(name))
}

fn expectations(proxy: &Proxy) -> u64 {
    let status = get(proxy.admin(), "/status.json").body;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    status.pointer("/stored/expectations").and_then(serde_json::Value::as_u64).unwrap()
}

#[test]
fn what_lists_say_is_learnt_once_and_outlives_the_process() {
    let (mirror, mut proxy, archive) = (Mirror::start(), proxy(), demo());
    archive.publish(&mirror, "/debian");
    assert_eq!(expectations(&proxy), 0);
    update(&proxy, &mirror, &archive);
    // Two packages, and the packages file.
    let learnt = expectations(&proxy);
    assert_eq!(learnt, 3);

    proxy.restart();
    assert_eq!(expectations(&proxy), learnt);
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        assert_eq!(fetch(&proxy, &mirror, &format!("/debian/{path}")).status, 200);
    }
    let known = "aptmesh_engine_learnt_lists_total{outcome=\"known\"}";
    wait_until(PATIENCE, "both lists are looked at", || proxy.count(known) == 2);
    assert_eq!(proxy.count(LEARNT), 0, "nothing is learnt twice");
}

#[test]
fn of_a_changed_list_only_the_difference_is_written() {
    let (mirror, proxy, archive) = (Mirror::start(), proxy(), demo());
    archive.publish(&mirror, "/debian");
    update(&proxy, &mirror, &archive);
    let grown = archive.package("third", "1.0", 1000);
    grown.publish(&mirror, "/debian");
    update(&proxy, &mirror, &grown);
    let packages = proxy.log();
    let line = packages.lines().rfind(|line| line.contains("binary-") && line.contains("learnt"));
    assert!(line.is_some_and(|line| line.contains("changes=1")), "{packages}");
    assert_eq!(expectations(&proxy), 4);
}

#[test]
fn of_two_entries_of_one_name_the_first_counts_and_none_is_learnt_anew() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let (one, two) = (*b"!<arch>\none", *b"!<arch>\ntwo");
    let list: String = [one, two, one]
        .map(|content| {
            let digest = sha256_hex(&content);
            format!("Package: p\nFilename: p.deb\nSize: 11\nSHA256: {digest}\n\n")
        })
        .concat();
    for (round, changes) in [(1, 1), (2, 0), (3, 0)] {
        // Another file each time, which says the same.
        let text = format!("{list}Package: round{round}\n");
        mirror.put("/flat/Packages", File::new(text.into_bytes()).no_validators());
        assert_eq!(fetch(&proxy, &mirror, "/flat/Packages").status, 200);
        wait_until(PATIENCE, "the list is learnt", || proxy.count(LEARNT) == round);
        let log = proxy.log();
        let line = log.lines().rfind(|line| line.contains("learnt a list")).unwrap();
        assert!(line.contains(&format!("changes={changes} ")), "{line}");
    }
    mirror.put("/flat/p.deb", File::new(two));
    assert_eq!(fetch(&proxy, &mirror, "/flat/p.deb").status, 503);
    assert!(proxy.count(VERIFY_FAILURES) > 0);
    mirror.put("/flat/p.deb", File::new(one));
    assert_eq!(fetch(&proxy, &mirror, "/flat/p.deb").body, one);
}

#[test]
fn a_package_that_is_not_what_its_list_says_never_comes_whole() {
    let (mirror, proxy, archive) = (Mirror::start(), proxy(), demo());
    archive.publish(&mirror, "/debian");
    update(&proxy, &mirror, &archive);
    let path = pool(&archive, "tool");
    let right = archive.deb("tool").to_vec();
    let mut wrong = right.clone();
    wrong[100_000] ^= 1;

    for file in [File::new(wrong.clone()), File::new(wrong).chunked()] {
        mirror.put(&path, file);
        let reply = fetch(&proxy, &mirror, &path);
        assert!(!reply.complete, "{} {}", reply.status, reply.body.len());
        assert!(reply.body.len() < right.len());
    }
    assert!(proxy.count(VERIFY_FAILURES) >= 2);

    mirror.put(&path, File::new(&right[..1000]));
    let reply = fetch(&proxy, &mirror, &path);
    assert_eq!(reply.status, 503, "a wrong size is refused before the first byte");
    assert!(reply.reason.contains("1000 bytes"), "{}", reply.reason);

    mirror.put(&path, File::new(right.clone()));
    assert_eq!(fetch(&proxy, &mirror, &path).body, right);
    proxy.wait_landed();
    proxy.check_blobs();
}

/// Puts a list on the mirror and has the cache learn it.
fn teach(proxy: &Proxy, mirror: &Mirror, path: &str, text: &str) {
    let before = proxy.count(LEARNT);
    mirror.put(path, File::new(text.as_bytes()));
    assert_eq!(fetch(proxy, mirror, path).body, text.as_bytes(), "{path}");
    wait_until(PATIENCE, "the list is learnt", || proxy.count(LEARNT) > before);
}

/// A small file that is held back to its end, and one that is handed out as it comes; under either
/// name once more as somebody would have them who changed one byte.
fn right_and_wrong(names: [&str; 2]) -> [(String, Vec<u8>, Vec<u8>); 2] {
    [(names[0], 100), (names[1], 300_000)].map(|(name, len)| {
        let right = [b"!<arch>\n".as_slice(), &noise(len as u64, len)].concat();
        let mut wrong = right.clone();
        wrong[len / 2] ^= 1;
        (name.to_owned(), right, wrong)
    })
}

/// Nothing else than the right bytes comes whole from there, and they are stored.
fn assert_held_to(proxy: &Proxy, mirror: &Mirror, path: &str, right: &[u8], wrong: &[u8]) {
    for file in [File::new(wrong), File::new(wrong).chunked(), File::new(&right[1..])] {
        mirror.put(path, file);
        let reply = fetch(proxy, mirror, path);
        assert!(reply.status != 200 || !reply.complete, "{path}: {} bytes", reply.body.len());
        proxy.wait_landed();
    }
    mirror.put(path, File::new(right));
    for expected in ["aptmesh; fwd=miss; stored", "aptmesh; hit"] {
        mirror.clear_log();
        let reply = fetch(proxy, mirror, path);
        assert_eq!((reply.status, reply.complete), (200, true), "{path}: {}", reply.reason);
        assert!(reply.body == right, "{path}: {} bytes", reply.body.len());
        let status = reply.header("cache-status").unwrap_or_default();
        assert!(status.starts_with(expected), "{path}: {status}");
        assert_eq!(mirror.bodies(path), usize::from(expected.contains("miss")), "{path}");
        proxy.wait_landed();
    }
    proxy.check_blobs();
}

#[test]
fn patches_are_held_to_their_index() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let folder = "/debian/dists/demo/main/binary-all/Packages.diff";
    let patches = right_and_wrong(["T-2-F-1.gz", "T-3-F-1.gz"]);
    let section = |name: &str, ending: &str| {
        let line = |(patch, right, _): &(String, Vec<u8>, Vec<u8>)| {
            let patch = patch.replace(".gz", ending);
            format!(" {} {} {patch}\n", sha256_hex(right), right.len())
        };
        format!("SHA256-{name}:\n{}", patches.iter().map(line).collect::<String>())
    };
    let plain = section("Patches", "").replace(&sha256_hex(&patches[0].1), &"0".repeat(64));
    let index = format!(
        "SHA256-Current: {} 1\n{}{plain}{}",
        "0".repeat(64),
        section("History", ""),
        section("Download", ".gz")
    );
    teach(&proxy, &mirror, &format!("{folder}/Index"), &index);
    for (name, right, wrong) in &patches {
        assert_held_to(&proxy, &mirror, &format!("{folder}/{name}"), right, wrong);
    }
    assert!(proxy.count(VERIFY_FAILURES) >= 4);
}

#[test]
fn installer_files_are_held_to_their_sums() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let folder = "/debian/dists/demo/main/installer-all/current/images";
    let files = right_and_wrong(["netboot/mini.iso", "netboot/linux"]);
    let sums: String =
        files.iter().map(|(name, right, _)| format!("{}  ./{name}\n", sha256_hex(right))).collect();
    teach(&proxy, &mirror, &format!("{folder}/SHA256SUMS"), &sums);
    for (name, right, wrong) in &files {
        assert_held_to(&proxy, &mirror, &format!("{folder}/{name}"), right, wrong);
    }
    assert!(proxy.count(VERIFY_FAILURES) >= 4);
}

#[test]
fn translations_are_held_to_the_release_file_that_the_client_was_given() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let files = right_and_wrong(["main/i18n/Translation-en.xz", "main/i18n/Translation-de.xz"]);
    let lines: String = files
        .iter()
        .map(|(name, right, _)| format!(" {} {} {name}\n", sha256_hex(right), right.len()))
        .collect();
    let release = format!("Suite: demo\nSHA256:\n{lines}");
    teach(&proxy, &mirror, "/debian/dists/demo/Release", &release);
    for (name, right, wrong) in &files {
        assert_held_to(&proxy, &mirror, &format!("/debian/dists/demo/{name}"), right, wrong);
    }
}

#[test]
fn packages_of_a_flat_repository_are_held_to_its_list() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let packages = right_and_wrong(["toy.deb", "deep/tool.deb"]);
    let list: String = packages
        .iter()
        .map(|(name, right, _)| {
            let (size, digest) = (right.len(), sha256_hex(right));
            format!("Package: p\nFilename: ./{name}\nSize: {size}\nSHA256: {digest}\n\n")
        })
        .collect();
    teach(&proxy, &mirror, "/flat/Packages", &list);
    for (name, right, wrong) in &packages {
        assert_held_to(&proxy, &mirror, &format!("/flat/{name}"), right, wrong);
    }
    assert!(proxy.count(VERIFY_FAILURES) >= 4);
}

#[test]
fn a_wrong_package_is_not_relayed_either() {
    let (mirror, proxy, archive) = (Mirror::start(), proxy(), demo());
    archive.publish(&mirror, "/debian");
    update(&proxy, &mirror, &archive);
    let path = pool(&archive, "tool");
    let mut wrong = archive.deb("tool").to_vec();
    wrong[100_000] ^= 1;
    mirror.put(&path, File::new(wrong));
    let target = proxy.url_for(&mirror, &path);
    let reply = request(proxy.addr(), "GET", &target, &[("Cache-Control", "no-store")]);
    assert!(!reply.complete, "{}", reply.status);
}

#[test]
fn the_same_package_on_another_mirror_is_a_hit() {
    let (one, other) = (Mirror::start(), Mirror::start_at("127.0.0.2"));
    let (proxy, archive) = (proxy(), demo());
    for mirror in [&one, &other] {
        archive.publish(mirror, "/debian");
        update(&proxy, mirror, &archive);
    }
    let path = pool(&archive, "tool");
    let first = fetch(&proxy, &one, &path);
    proxy.wait_landed();
    let second = fetch(&proxy, &other, &path);
    assert_eq!(second.body, archive.deb("tool"));
    assert_eq!(second.header("cache-status"), Some("aptmesh; hit"));
    assert_eq!(second.header("last-modified"), first.header("last-modified"));
    assert_eq!(other.requests(&path).len(), 0);
}

#[test]
fn names_of_weak_digests_are_answered_from_the_store() {
    let (mirror, proxy, archive) = (Mirror::start(), proxy(), demo());
    archive.publish(&mirror, "/debian");
    let index = archive.index();
    let folder = archive.index_path().replace("dists/demo/", "").replace("/Packages", "");
    let names = [("MD5Sum", "0123456789abcdef".repeat(2)), ("SHA1", "0123456789".repeat(4))];
    let sections: String = names
        .iter()
        .map(|(name, hex)| format!("{name}:\n {hex} {} {folder}/Packages\n", index.len()))
        .collect();
    let release = format!("{}{sections}", archive.release());
    mirror.put("/debian/dists/demo/Release", File::new(release.into_bytes()));
    update(&proxy, &mirror, &archive);
    for (name, hex) in names {
        let path = format!("/debian/dists/demo/{folder}/by-hash/{name}/{hex}");
        let reply = fetch(&proxy, &mirror, &path);
        assert_eq!(reply.status, 200, "{name} {}", reply.reason);
        assert_eq!(reply.body, index.as_bytes());
        assert_eq!(mirror.requests(&path).len(), 0, "{name}");
    }
}

#[test]
fn a_package_rebuilt_under_its_old_name_is_a_new_file() {
    let (mirror, proxy, archive) = (Mirror::start(), proxy(), demo());
    archive.publish(&mirror, "/debian");
    update(&proxy, &mirror, &archive);
    let path = pool(&archive, "tool");
    assert_eq!(fetch(&proxy, &mirror, &path).body, archive.deb("tool"));
    proxy.wait_landed();

    let rebuilt = rebuilt(&archive);
    rebuilt.publish(&mirror, "/debian");
    update(&proxy, &mirror, &rebuilt);
    assert_eq!(fetch(&proxy, &mirror, &path).body, rebuilt.deb("tool"));
    proxy.wait_landed();
    let again = fetch(&proxy, &mirror, &path);
    assert_eq!(again.body, rebuilt.deb("tool"));
    assert_eq!(again.header("cache-status"), Some("aptmesh; hit"));
}

#[test]
fn what_was_learnt_too_long_ago_is_learnt_anew_instead_of_refusing_for_ever() {
    let (mirror, proxy, archive) = (Mirror::start(), proxy(), demo());
    archive.publish_with_inrelease(&mirror, "/debian");
    update(&proxy, &mirror, &archive);
    // This client knows the new lists from elsewhere.
    let rebuilt = rebuilt(&archive);
    rebuilt.publish_with_inrelease(&mirror, "/debian");
    let path = pool(&archive, "tool");
    assert!(!fetch(&proxy, &mirror, &path).complete, "against what is known");
    wait_until(PATIENCE, "the new package", || {
        let reply = fetch(&proxy, &mirror, &path);
        reply.complete && reply.body == rebuilt.deb("tool")
    });
}

#[test]
fn hostile_lists_reach_the_client_and_teach_nothing() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let bodies: [(&str, Vec<u8>); 4] = [
        ("garbage.gz", [b"\x1f\x8b\x08\x00".as_slice(), &noise(1, 50_000)].concat()),
        ("truncated.xz", [b"\xfd7zXZ\x00".as_slice(), &noise(2, 10_000)].concat()),
        ("paragraph", [b"Package: x\nDescription: ".as_slice(), &vec![b'x'; 30_000_000]].concat()),
        ("zeros", vec![0; 5_000_000]),
    ];
    let before = proxy.resident_bytes();
    for (number, (name, body)) in bodies.iter().enumerate() {
        let ending = name.rsplit_once('.').map(|(_, ending)| format!(".{ending}"));
        let path = format!("/flat{number}/Packages{}", ending.unwrap_or_default());
        mirror.put(&path, File::new(body.clone()));
        assert_eq!(&fetch(&proxy, &mirror, &path).body, body, "{name}");
    }
    wait_until(PATIENCE, "all are refused", || proxy.count(REFUSED) >= 3);
    assert_eq!(expectations(&proxy), 0);
    assert!(proxy.log().contains("could not learn a list"), "{}", proxy.log());
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 100_000_000, "{grown} bytes more");
}

#[test]
fn a_list_of_too_much_teaches_nothing_and_leaves_nothing() {
    let (mirror, proxy) = (Mirror::start(), proxy());
    let entry = |name: &str| {
        format!("Filename: {name}.deb\nSize: 1\nSHA256: {}\n\n", sha256_hex(name.as_bytes()))
    };
    // 80 MB of names; that there are not many different ones makes it no better.
    let mut text = String::new();
    for number in 0..20_000 {
        write!(text, "{}", entry(&format!("{:04000}", number % 1000))).unwrap();
    }
    let put = |text: &str| {
        mirror.put("/flat/Packages.gz", File::new(gzip(text)).no_validators());
        assert!(fetch(&proxy, &mirror, "/flat/Packages.gz").complete);
    };
    put(&entry("before"));
    wait_until(PATIENCE, "a small list is learnt", || proxy.count(LEARNT) == 1);
    let before = proxy.resident_bytes();
    put(&text);
    wait_until(PATIENCE * 4, "it is refused", || proxy.count(REFUSED) == 1);
    assert!(proxy.log().contains("it names more than"), "{}", proxy.log());
    assert_eq!(expectations(&proxy), 0);
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 100_000_000, "{grown} bytes more");
    put(&(entry("after") + &entry("later")));
    wait_until(PATIENCE, "another small list is learnt", || proxy.count(LEARNT) == 2);
    assert_eq!(expectations(&proxy), 2);
}

fn gzip(text: &str) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .args(["-1", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs gzip");
    let mut input = gzip.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(text.as_bytes()).unwrap());
        gzip.wait_with_output().unwrap().stdout
    })
}

#[test]
fn the_machines_own_archive_is_learnt() {
    let archive = HostArchive::read();
    let mut allowed = archive.hosts();
    allowed.push("127.0.0.0/8".to_owned());
    let proxy = Proxy::build().env("APTMESH_MIRROR_ALLOW_PRIVATE", allowed.join(",")).start();
    let apt = Apt::new(None);
    apt.sources(&archive.lines_prefix(proxy.addr()));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    wait_until(Duration::from_secs(60), "a real archive's packages are known", || {
        expectations(&proxy) > 10_000
    });
    let download = apt.download(&["hostname"]);
    assert!(download.ok, "{}", download.output);
    assert_eq!(proxy.count(VERIFY_FAILURES), 0);
    assert_eq!(proxy.count(REFUSED), 0, "{}", proxy.log());
}

#[test]
fn what_the_index_could_not_take_is_learnt_without_another_request() {
    let (mirror, proxy, archive) = (Mirror::start(), proxy(), demo());
    archive.publish(&mirror, "/debian");
    let other = rusqlite::Connection::open(proxy.data().join("index.sqlite")).unwrap();
    other.busy_timeout(PATIENCE).unwrap();
    // Somebody else writes for longer than anybody waits.
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(fetch(&proxy, &mirror, "/debian/dists/demo/Release").status, 200);
    wait_until(2 * PATIENCE, "a failure", || proxy.log().contains("learning a list again"));
    assert_eq!(proxy.count(LEARNT), 0);
    other.execute_batch("COMMIT").unwrap();
    wait_until(2 * PATIENCE, "it is learnt", || proxy.count(LEARNT) == 1);
    assert_eq!(mirror.bodies("/debian/dists/demo/Release"), 1);
}
