//! Mirrors that are one archive: what one of them can not give is had from the next.

use crate::groups::{
    FILES, LEARNT, PATIENCE, RELEASE, assert_file, build, demo, fetch, file_path, pair, pool,
    publish, stock, teach,
};
use crate::kit::*;
use std::thread;
use std::time::{Duration, SystemTime};

const INRELEASE: &str = "/debian/dists/demo/InRelease";
const VERIFY_FAILURES: &str = "aptmesh_engine_verify_failures_total";

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
    let answers = two.log().iter().filter(|seen| seen.status == 200).count() as u64;
    assert_eq!(proxy.count(FAILOVERS), answers, "all that the second gave");

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
fn the_mirror_that_lied_is_named() {
    let (mirrors, archive) = (pair(), demo());
    let [one, two] = &mirrors;
    publish(&archive, &mirrors);
    let proxy = build(&mirrors).start();
    teach(&proxy, &archive);
    let (large, small) = (pool(&archive, "tool"), pool(&archive, "toy"));
    let mut wrong = archive.deb("tool").to_vec();
    wrong[500_000] ^= 1;
    two.put(&large, File::new(wrong));
    two.put(&small, File::new(archive.deb("toy")[1..].to_vec()));
    one.stop();
    assert!(!fetch(&proxy, one, &large).complete);
    let told = |path: &str, word: &str| {
        let is_it = |line: &&str| line.contains(path) && line.contains(word);
        wait_until(PATIENCE, word, || proxy.log().lines().any(|line| is_it(&line)));
        proxy.log().lines().find(is_it).unwrap().to_owned()
    };
    let broke = told(&large, "a download broke off");
    let origin = format!("origin=\"http://{}\"", two.host());
    assert!(broke.contains("127.0.0.2 sent bytes that are not what"), "{broke}");
    assert!(broke.contains(&origin), "{broke}");
    let access = told(&large, "end=cut");
    assert!(access.contains("127.0.0.2 sent bytes"), "{access}");
    let refused = fetch(&proxy, one, &small);
    assert!(refused.status >= 500 && refused.reason.contains("127.0.0.2 has"), "{refused:?}");
    let access = told(&small, " status=5");
    assert!(access.contains("reason=\"127.0.0.2 has"), "{access}");
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

const AWAY: &str = "aptmesh_mirror_away";
const FAILOVERS: &str = "aptmesh_mirror_failovers_total";

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
fn a_mirror_that_nobody_asks_for_long_does_not_count_as_away() {
    let mirrors = pair();
    let proxy = build(&mirrors).start();
    mirrors.iter().for_each(Mirror::stop);
    let reply = fetch(&proxy, &mirrors[0], &file_path(0));
    assert!(matches!(reply.status, 502..=504), "{} {}", reply.status, reply.reason);
    assert_eq!(proxy.count(AWAY), 2);
    wait_until(Duration::from_secs(180), "what is told is as it is now", || proxy.count(AWAY) == 0);
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
