//! The store keeps within its bounds: room is made before it is needed, of what is worth least, and
//! no request ever notices.

use crate::kit::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const MB: usize = 1_000_000;
const EVICTED: &str = "aptmesh_store_evicted_blobs_total";
const BLOCK: u64 = 4096;

fn proxy(quota: &str) -> Proxy {
    Proxy::build().env("APTMESH_STORE_QUOTA", quota).start()
}

fn path(number: usize) -> String {
    format!("/debian/pool/f/file{number}_1.orig.tar.xz")
}

fn put(mirror: &Mirror, number: usize, size: usize) -> Vec<u8> {
    let bytes = noise(number as u64 + 1, size);
    mirror.put(&path(number), File::new(bytes.clone()));
    bytes
}

/// Fetches a file, which must come right, and waits until it is stored.
fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, path));
    assert!(reply.status == 200 && reply.complete, "{path}: {} {}", reply.status, reply.reason);
    proxy.wait_landed();
    reply
}

fn is_hit(reply: &Reply) -> bool {
    reply.header("cache-status") == Some("aptmesh; hit")
}

fn is_stored(proxy: &Proxy, bytes: &[u8]) -> bool {
    let name = sha256_hex(bytes);
    proxy.data().join("blobs").join(&name[..2]).join(name).exists()
}

/// What blobs and staged files take on the disk, and how many they are.
fn usage(data: &Path) -> (u64, u64) {
    let (mut bytes, mut files) = (0, 0);
    // In this order: a file that is committed meanwhile is not counted twice.
    let mut folders = vec![data.join("staging"), data.join("blobs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                // What says that its process lives.
                Ok(_) if entry.file_name() == "lock" => {}
                Ok(metadata) => {
                    bytes += metadata.blocks() * 512;
                    files += 1;
                }
                Err(_gone) => {}
            }
        }
    }
    (bytes, files)
}

/// The same while nothing moves: files come and go while a running one is looked at.
fn usage_at_an_instant(proxy: &Proxy) -> (u64, u64) {
    let pid = rustix::process::Pid::from_raw(proxy.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let status = format!("/proc/{}/stat", proxy.pid());
    wait_until(PATIENCE, "a halt", || fs::read_to_string(&status).unwrap().contains(") T "));
    let usage = usage(proxy.data());
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    usage
}

fn run(proxy: &Proxy, quota: &str, args: &[&str]) -> String {
    let run = aptmesh()
        .arg("--data")
        .arg(proxy.data())
        .args(["evict"])
        .args(args)
        .env("APTMESH_STORE_QUOTA", quota)
        .env("APTMESH_STORE_MIN_FREE", "0")
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// The file names that `aptmesh evict` told.
fn told(output: &str) -> BTreeSet<String> {
    let names = output.lines().filter(|line| line.contains("http://"));
    names.map(|line| line.rsplit('/').next().unwrap().to_owned()).collect()
}

fn status(proxy: &Proxy, pointer: &str) -> u64 {
    let status: serde_json::Value =
        serde_json::from_slice(&get(proxy.admin(), "/status.json").body).unwrap();
    status.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap()
}

#[test]
fn a_full_cache_stores_what_is_new_with_one_fetch() {
    let (mirror, proxy) = (Mirror::start(), proxy("10MB"));
    for number in 0..12 {
        put(&mirror, number, MB);
        let reply = fetch(&proxy, &mirror, &path(number));
        assert_eq!(reply.header("cache-status"), Some("aptmesh; fwd=miss; stored"));
        assert_eq!(mirror.bodies(&path(number)), 1);
    }
    assert!(is_hit(&fetch(&proxy, &mirror, &path(11))));
    assert_eq!(mirror.bodies(&path(11)), 1);
    assert!(proxy.count(EVICTED) >= 2);
    let evicted = proxy.count("aptmesh_store_evicted_bytes_total");
    assert_eq!(evicted, proxy.count(EVICTED) * MB as u64);

    // Room is made ahead, also between two looks.
    wait_until(PATIENCE, "the sums", || {
        let blobs = proxy.blobs().len() as u64;
        let bytes = blobs * MB as u64;
        proxy.count("aptmesh_store_bytes") == bytes
            && proxy.count("aptmesh_store_blobs") == blobs
            && status(&proxy, "/stored/bytes") == bytes
    });
    assert_eq!(proxy.count("aptmesh_store_quota_bytes"), 10 * MB as u64);
    assert!(proxy.count("aptmesh_store_free_bytes") > 0);
    assert_eq!(status(&proxy, "/stored/quota"), 10 * MB as u64);
    let told =
        aptmesh().args(["status", "--admin-listen", &proxy.admin().to_string()]).output().unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).contains(" of 10.0 MB"), "{told:?}");
}

#[test]
fn room_is_made_while_others_download() {
    let (mirror, proxy) = (Mirror::start(), proxy("10MB"));
    for number in 0..9 {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
    }
    let files: Vec<(String, Vec<u8>)> = (20..23)
        .map(|number| {
            let bytes = noise(number, 3 * MB);
            let file = File::new(bytes.clone()).rate(MB as u64);
            // One of them does not tell its size.
            let file = if number == 22 { file.chunked() } else { file };
            mirror.put(&path(number as usize), file);
            (path(number as usize), bytes)
        })
        .collect();
    thread::scope(|scope| {
        for (path, bytes) in &files {
            let (mirror, proxy) = (&mirror, &proxy);
            scope.spawn(move || assert_eq!(&fetch(proxy, mirror, path).body, bytes));
        }
        wait_until(PATIENCE, "promises", || proxy.count("aptmesh_store_promised_bytes") > 0);
    });
    for (path, bytes) in &files {
        assert!(is_hit(&fetch(&proxy, &mirror, path)), "{path}");
        assert_eq!(mirror.bodies(path), 1, "{path}");
        assert!(is_stored(&proxy, bytes));
    }
    assert_eq!(proxy.count("aptmesh_store_refused_total"), 0);
}

#[test]
fn a_size_that_only_the_mirror_claims_evicts_nothing_ahead_of_its_bytes() {
    let (mirror, proxy) = (Mirror::start(), proxy("200MB"));
    let bodies: Vec<Vec<u8>> = (1..10).map(|number| vec![number; 20 * MB]).collect();
    for (number, body) in bodies.iter().enumerate() {
        mirror.put(&path(number), File::new(body.clone()));
        fetch(&proxy, &mirror, &path(number));
    }
    let left = || proxy.blobs().len();
    assert_eq!(left(), bodies.len());
    for (number, declared) in [(20, 190 * MB), (21, 5_000 * MB), (22, usize::MAX / 2)] {
        mirror.put(&path(number), File::new(*b"8 bytes."));
        mirror.script(&path(number), vec![Fault::WrongLength { declared }; 9]);
        let reply = get(proxy.addr(), &proxy.url_for(&mirror, &path(number)));
        assert!(!reply.complete, "{reply:?}");
        proxy.wait_landed();
    }
    // Room for 67 MB went, and some more to be ready for the next.
    assert!(left() >= 5, "{} left", left());
    // One that keeps its word is stored, however large it is.
    let large = vec![99; 150 * MB];
    mirror.put(&path(30), File::new(large.clone()));
    assert!(fetch(&proxy, &mirror, &path(30)).body == large);
    assert!(is_hit(&fetch(&proxy, &mirror, &path(30))) && mirror.bodies(&path(30)) == 1);
    assert_eq!(get(proxy.admin(), "/readyz").body, b"ready\n");
}

#[test]
fn what_can_never_fit_is_passed_on_and_costs_nothing_stored() {
    let (mirror, proxy) = (Mirror::start(), proxy("2MB"));
    let small = put(&mirror, 0, MB / 2);
    fetch(&proxy, &mirror, &path(0));
    for chunked in [false, true] {
        let bytes = noise(9, 5 * MB);
        let file = File::new(bytes.clone());
        mirror.put(&path(1), if chunked { file.chunked() } else { file });
        let reply = fetch(&proxy, &mirror, &path(1));
        assert_eq!(reply.body, bytes);
        assert_eq!(proxy.blobs().len(), usize::from(is_stored(&proxy, &small)));
    }
    assert!(proxy.count("aptmesh_store_refused_total") >= 2);
    // That is no trouble of the volume: what fits is stored as ever.
    assert_eq!(get(proxy.admin(), "/readyz").body, b"ready\n");
    put(&mirror, 2, MB / 2);
    fetch(&proxy, &mirror, &path(2));
    assert!(is_hit(&fetch(&proxy, &mirror, &path(2))));
}

#[test]
fn a_quota_a_tenth_of_what_is_wanted_holds_under_load() {
    const FILES: usize = 200;
    const QUOTA: u64 = 2_000_000;
    let (mirror, proxy) = (Mirror::start(), proxy("2MB"));
    let bodies: Vec<Vec<u8>> =
        (0..FILES).map(|number| put(&mirror, number, 20_000 + number * 37_003 % 160_000)).collect();
    let total: usize = bodies.iter().map(Vec::len).sum();
    assert!(total as u64 >= 9 * QUOTA, "{total}");
    let (over, samples) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Each goes its own way, and all like the first ones best.
    let wanted_by = |client: usize, step: usize| {
        let any = (client * 7919 + step * 104_729) % FILES;
        if step.is_multiple_of(3) { any % 8 } else { any }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|client: usize| {
                let (mirror, proxy, bodies) = (&mirror, &proxy, &bodies);
                scope.spawn(move || {
                    for step in 0..60 {
                        let number = wanted_by(client, step);
                        let reply = get(proxy.addr(), &proxy.url_for(mirror, &path(number)));
                        assert_eq!((reply.status, reply.complete), (200, true), "{}", reply.reason);
                        assert!(reply.body == bodies[number], "file {number}");
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let (bytes, files) = usage_at_an_instant(&proxy);
                assert!(bytes <= QUOTA + files * BLOCK, "{bytes} bytes in {files} files");
                samples.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(10));
            }
        });
        let ended: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert!(samples.load(Ordering::Relaxed) > 20, "{samples:?} samples");
    assert!(proxy.count(EVICTED) > 100, "{}", proxy.count(EVICTED));
    proxy.wait_landed();
    proxy.check_blobs();
    assert_eq!(status(&proxy, "/stored/blobs"), proxy.blobs().len() as u64);
    assert!(proxy.staged().is_empty());
}

/// What `apt-get update` fetches, learnt.
fn update(proxy: &Proxy, mirror: &Mirror, archive: &LocalArchive) {
    let learnt = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
    let before = proxy.count(learnt);
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        fetch(proxy, mirror, &format!("/debian/{path}"));
    }
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(learnt) >= before + 2);
}

fn deb(archive: &LocalArchive, name: &str) -> (String, Vec<u8>) {
    (format!("/debian/{}", archive.deb_path(name)), archive.deb(name).to_vec())
}

#[test]
fn superseded_versions_go_before_what_lists_name() {
    let mirror = Mirror::start();
    let proxy = Proxy::build()
        .env("APTMESH_STORE_QUOTA", "3MB")
        .env("APTMESH_MIRROR_RECHECK_AFTER", "0s")
        .start();
    let old =
        LocalArchive::new("demo").package("tool", "1.0", MB / 2).package("toy", "1.0", MB / 2);
    old.publish(&mirror, "/debian");
    update(&proxy, &mirror, &old);
    let (old_path, old_tool) = deb(&old, "tool");
    let (toy_path, toy) = deb(&old, "toy");
    fetch(&proxy, &mirror, &toy_path);
    // The old version is the one that everybody wants.
    for _ in 0..20 {
        fetch(&proxy, &mirror, &old_path);
    }
    let new = LocalArchive::new("demo")
        .package("tool", "2.0", MB / 2)
        .package("toy", "1.0", MB / 2)
        .package("third", "1.0", MB / 2)
        .package("fourth", "1.0", MB / 2);
    new.publish(&mirror, "/debian");
    update(&proxy, &mirror, &new);
    let (new_path, new_tool) = deb(&new, "tool");
    fetch(&proxy, &mirror, &new_path);
    assert!(is_stored(&proxy, &old_tool) && is_stored(&proxy, &new_tool));
    fetch(&proxy, &mirror, &deb(&new, "third").0);
    let evicted = proxy.count(EVICTED);
    assert_eq!(evicted, 0, "there is room for all so far");
    // Wait for the uses to be told: the old version ranks highest of all then.
    wait_until(PATIENCE, "the uses are told", || {
        let told = run(&proxy, "3MB", &["--dry-run", "--bytes", "1MB"]);
        told.lines().any(|line| line.contains("tool_1.0") && !line.contains("used once"))
    });

    let outside = noise(77, MB);
    mirror.put("/debian/pool/o/outside_1.orig.tar.xz", File::new(outside.clone()));
    fetch(&proxy, &mirror, "/debian/pool/o/outside_1.orig.tar.xz");
    assert!(!is_stored(&proxy, &old_tool), "superseded, so it goes first, however popular");
    assert!(is_stored(&proxy, &new_tool) && is_stored(&proxy, &toy));
    assert!(
        is_stored(&proxy, new.index().as_bytes()) && is_stored(&proxy, new.release().as_bytes())
    );
    assert!(proxy.count("aptmesh_store_evicted_blobs_total{reason=\"unreferenced\"}") > 0);
    assert_eq!(proxy.count("aptmesh_store_evicted_blobs_total{reason=\"least_used\"}"), 0);
    // Only when nothing lesser is left does what lists name go.
    let output = run(&proxy, "3MB", &["--dry-run", "--bytes", "2.5MB"]);
    let reasons: Vec<&str> =
        output.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let least_used = reasons.iter().position(|reason| *reason == "least_used").unwrap();
    assert!(reasons[..least_used].iter().all(|reason| *reason == "unreferenced"), "{output}");
    assert!(output.lines().take(least_used).any(|line| line.contains("outside_1")), "{output}");
    fetch(&proxy, &mirror, &deb(&new, "fourth").0);
    assert!(!is_stored(&proxy, &outside) && is_stored(&proxy, &new_tool));
}

#[test]
fn disused_goes_before_superseded() {
    let (mirror, mut proxy) = (Mirror::start(), proxy("10MB"));
    let bodies: Vec<Vec<u8>> = (0..3).map(|number| put(&mirror, number, MB)).collect();
    for number in 0..3 {
        fetch(&proxy, &mirror, &path(number));
    }
    proxy.signal("TERM");
    proxy.wait_exit(PATIENCE);
    // A week passes; of the three, the second is used least but was used lately.
    let age = |file: usize, days: i64| {
        let index = rusqlite::Connection::open(proxy.data().join("index.sqlite")).unwrap();
        let changed = index.execute(
            "UPDATE blobs SET unreferenced_since = unreferenced_since - ?1, used_at = used_at - ?1,
                 uses = ?2, rank = rank * ?2
             WHERE digest = (SELECT blob FROM resources WHERE key LIKE ?3)",
            (days * 86_400, if file == 1 { 1 } else { 50 }, format!("%file{file}_1%")),
        );
        assert_eq!(changed.unwrap(), 1);
    };
    age(0, 7);
    age(1, 2);
    age(2, 5);
    let output = run(&proxy, "10MB", &["--dry-run", "--bytes", "9MB"]);
    let lines: Vec<&str> = output.lines().collect();
    for (line, words) in [
        (0, ["file0_1", "disused", "used 50 times, last 7days ago"]),
        (1, ["file2_1", "disused", "used 50 times, last 5days ago"]),
        (2, ["file1_1", "unreferenced", "used once, last 2days ago"]),
    ] {
        assert!(words.iter().all(|word| lines[line].contains(word)), "{output}");
    }
    assert!(lines[3].starts_with("would go: 3 files, 3.0 MB"), "{output}");
    proxy.restart();
    put(&mirror, 3, 8 * MB + MB / 2);
    fetch(&proxy, &mirror, &path(3));
    assert!(is_stored(&proxy, &bodies[1]) && proxy.blobs().len() == 2);
    assert_eq!(proxy.count("aptmesh_store_evicted_blobs_total{reason=\"disused\"}"), 2);
}

#[test]
fn bad_bounds_are_named() {
    let config = |key: &str, value: &str| {
        let run = aptmesh().arg("config").env(key, value).output().unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    for (key, value, words) in [
        ("APTMESH_STORE_QUOTA", "a lot", "store.quota: write bytes with a unit"),
        ("APTMESH_STORE_QUOTA", "0", "store.quota: \"0\": must not be zero"),
        ("APTMESH_STORE_QUOTA", "99999999TiB", "store.quota: is more than any volume has"),
        ("APTMESH_STORE_MIN_FREE", "95%", "store.min_free: \"95%\": write 0% to 90%"),
        ("APTMESH_STORE_MIN_FREE", "much", "store.min_free: \"much\": write bytes with a unit"),
        ("APTMESH_STORE_PINS", "ok,http://m/", "store.pins: \"http://m/\": write a package name"),
    ] {
        let (code, told) = config(key, value);
        assert!(code == Some(78) && told.contains(words), "{key} {value}: {code:?} {told}");
    }
    let folder = tempfile::tempdir().unwrap();
    let run = aptmesh().args(["evict", "--data"]).arg(folder.path()).output().unwrap();
    let told = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.code() == Some(1) && told.contains("there is no index at"), "{told}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made there");
}

#[test]
fn nobody_elses_cache_is_evicted_from() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("index.sqlite"), "").unwrap();
    std::os::unix::fs::chown(folder.path(), Some(65_534), None).expect("root");
    let run = aptmesh().args(["evict", "--data"]).arg(folder.path()).output().unwrap();
    let told = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && told.contains("belongs to user 65534"), "{told}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is made there");
}

#[test]
fn what_is_used_survives_and_does_so_after_a_restart() {
    let (mirror, mut proxy) = (Mirror::start(), proxy("5MB"));
    let hot = put(&mirror, 0, MB);
    for _ in 0..5 {
        fetch(&proxy, &mirror, &path(0));
    }
    for number in 1..4 {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
    }
    // What is told at the end is known after it.
    proxy.restart();
    for number in 4..12 {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
        assert!(is_stored(&proxy, &hot), "the hot one goes after file {number}");
        let (bytes, files) = usage(proxy.data());
        assert!(bytes <= 5 * MB as u64 + files * BLOCK);
    }
    assert!(is_hit(&fetch(&proxy, &mirror, &path(0))));
    assert_eq!(mirror.bodies(&path(0)), 1);
    // Frequency ages: what nobody wants any more goes in the end.
    for round in 0..20 {
        for number in 20..30 {
            put(&mirror, number, MB);
            fetch(&proxy, &mirror, &path(number));
        }
        if !is_stored(&proxy, &hot) {
            return;
        }
        assert!(round < 19, "a file that was hot once stays for ever");
    }
}

#[test]
fn small_files_are_worth_more_for_their_size() {
    let (mirror, proxy) = (Mirror::start(), proxy("3MB"));
    let small: Vec<Vec<u8>> = (0..10).map(|number| put(&mirror, number, 10_000)).collect();
    for number in 0..10 {
        fetch(&proxy, &mirror, &path(number));
    }
    for number in 10..16 {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
    }
    assert!(small.iter().all(|bytes| is_stored(&proxy, bytes)));
}

#[test]
fn pins_are_kept() {
    let mirror = Mirror::start();
    let proxy = Proxy::build()
        .env("APTMESH_STORE_QUOTA", "4MB")
        .env("APTMESH_STORE_PINS", "linux-image-*, suite:demo")
        .start();
    let archive = LocalArchive::new("demo").package("tool", "1.0", MB / 2);
    archive.publish(&mirror, "/debian");
    update(&proxy, &mirror, &archive);
    let (tool_path, tool) = deb(&archive, "tool");
    fetch(&proxy, &mirror, &tool_path);
    let kernel = [&b"!<arch>\n"[..], &noise(5, MB)].concat();
    let kernel_path = "/other/pool/linux-image-6.1_6.1.0_amd64.deb";
    mirror.put(kernel_path, File::new(kernel.clone()));
    fetch(&proxy, &mirror, kernel_path);
    for number in 0..10 {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
    }
    assert!(proxy.count(EVICTED) >= 7);
    for kept in [&tool, &kernel, &archive.index().into_bytes(), &archive.release().into_bytes()] {
        assert!(is_stored(&proxy, kept), "{} bytes", kept.len());
    }
    // When only pinned ones are left, what is new is passed on.
    let big = noise(99, 3 * MB);
    mirror.put(&path(99), File::new(big.clone()));
    assert_eq!(fetch(&proxy, &mirror, &path(99)).body, big);
    assert!(!is_stored(&proxy, &big) && is_stored(&proxy, &kernel));
}

#[test]
fn a_pin_ends_with_its_setting() {
    let mirror = Mirror::start();
    let config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let set = |pins: &str| {
        let text = format!("[store]\nquota = \"3MB\"\nmin_free = \"0\"\npins = [{pins}]\n");
        fs::write(config.path(), text).unwrap();
    };
    set("\"file0\"");
    let proxy = Proxy::build().arg("--config").arg(config.path()).start();
    let pinned = put(&mirror, 0, MB);
    for number in 0..6 {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
    }
    assert!(is_stored(&proxy, &pinned));
    set("");
    proxy.signal("HUP");
    wait_until(PATIENCE, "the change", || proxy.log().contains("store.pins"));
    let mut number = 6;
    wait_until(PATIENCE, "the end of the pin", || {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
        number += 1;
        !is_stored(&proxy, &pinned)
    });
}

#[test]
fn a_rehearsal_names_what_then_goes() {
    let (mirror, proxy) = (Mirror::start(), proxy("20MB"));
    for number in 0..6 {
        put(&mirror, number, MB);
        for _ in 0..=number {
            fetch(&proxy, &mirror, &path(number));
        }
    }
    wait_until(PATIENCE, "the uses are told", || {
        run(&proxy, "20MB", &["--dry-run", "--bytes", "6MB"]).contains("used 6 times")
    });
    let rehearsed = run(&proxy, "20MB", &["--dry-run", "--bytes", "2.5MB"]);
    assert_eq!(proxy.blobs().len(), 6, "nothing went");
    assert_eq!(told(&rehearsed).len(), 3, "{rehearsed}");
    for words in ["1.0 MB", "unreferenced", "used once", "file0_1", "would go: 3 files, 3.0 MB"] {
        assert!(rehearsed.contains(words), "{rehearsed}");
    }
    // Held open by the running cache, and to be let go.
    let went = run(&proxy, "20MB", &["--bytes", "2.5MB"]);
    assert_eq!(told(&went), told(&rehearsed));
    assert_eq!(proxy.blobs().len(), 3);
    for number in 0..3 {
        assert!(told(&went).contains(&format!("file{number}_1.orig.tar.xz")), "{went}");
        wait_until(PATIENCE, "the running cache lets go", || {
            let before = mirror.bodies(&path(number));
            fetch(&proxy, &mirror, &path(number));
            mirror.bodies(&path(number)) > before
        });
    }
    assert_eq!(run(&proxy, "20MB", &[]).lines().count(), 1, "within the bounds nothing has to go");
    assert_eq!(
        told(&run(&proxy, "4.5MB", &["--dry-run"])).len(),
        2,
        "as much as the bounds ask for"
    );
}

#[test]
fn a_slow_reader_gets_all_of_what_is_evicted_meanwhile() {
    let (mirror, proxy) = (Mirror::start(), proxy("60MB"));
    let bytes = noise(3, 30 * MB);
    mirror.put(&path(0), File::new(bytes.clone()));
    fetch(&proxy, &mirror, &path(0));
    let mut slow = Connection::open(proxy.addr());
    slow.send("GET", &proxy.url_for(&mirror, &path(0)), &[]);
    assert_eq!(slow.read_head().status, 200);
    let mut got = slow.read_body_some(MB);

    run(&proxy, "60MB", &["--bytes", "30MB"]);
    assert!(!is_stored(&proxy, &bytes));
    while got.len() < bytes.len() {
        let more = slow.read_body_some((bytes.len() - got.len()).min(MB));
        assert!(!more.is_empty(), "after {} bytes", got.len());
        got.extend(more);
    }
    assert!(got == bytes);
}

#[test]
fn a_lowered_quota_is_kept_to_without_any_mirror() {
    let mirror = Mirror::start();
    let config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let set = |quota: &str| {
        let text = format!("[store]\nquota = \"{quota}\"\nmin_free = \"0\"\n");
        fs::write(config.path(), text).unwrap();
    };
    set("20MB");
    let mut proxy = Proxy::build().arg("--config").arg(config.path()).start();
    for number in 0..10 {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
    }
    mirror.stop();
    set("6MB");
    proxy.signal("HUP");
    wait_until(PATIENCE, "the new bound", || proxy.blobs().len() <= 6);
    set("3MB");
    proxy.restart();
    wait_until(PATIENCE, "the newer bound", || proxy.blobs().len() <= 3);
    let kept = (0..10)
        .filter(|number| get(proxy.addr(), &proxy.url_for(&mirror, &path(*number))).status == 200);
    assert_eq!(kept.count(), proxy.blobs().len(), "what is kept is served");
}

#[test]
fn suites_nobody_asks_for_stop_counting() {
    let (mirror, mut proxy) = (Mirror::start(), proxy("20MB"));
    let archive = LocalArchive::new("demo").package("tool", "1.0", MB);
    archive.publish(&mirror, "/debian");
    update(&proxy, &mirror, &archive);
    let (tool_path, _) = deb(&archive, "tool");
    fetch(&proxy, &mirror, &tool_path);
    let reason = |proxy: &Proxy| {
        let output = run(proxy, "20MB", &["--dry-run", "--bytes", "20MB"]);
        let line = output.lines().find(|line| line.contains("tool_1.0")).unwrap().to_owned();
        line.split_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!(reason(&proxy), "least_used");
    let restart_later = |proxy: &mut Proxy, days: i64| {
        proxy.signal("TERM");
        proxy.wait_exit(PATIENCE);
        let index = rusqlite::Connection::open(proxy.data().join("index.sqlite")).unwrap();
        let changed = index.execute("UPDATE lists SET asked_at = asked_at - ?", [days * 86_400]);
        assert_eq!(changed.unwrap(), 2);
        proxy.restart();
    };
    // Asked for in time, it stays...
    restart_later(&mut proxy, 20);
    fetch(&proxy, &mirror, "/debian/dists/demo/Release");
    restart_later(&mut proxy, 20);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(
        (reason(&proxy).as_str(), status(&proxy, "/stored/expectations")),
        ("least_used", 2)
    );
    // ...and else it goes, until somebody asks again.
    restart_later(&mut proxy, 20);
    wait_until(PATIENCE, "the lists are forgotten", || status(&proxy, "/stored/expectations") == 0);
    assert_eq!(reason(&proxy), "unreferenced");
    update(&proxy, &mirror, &archive);
    assert_eq!(reason(&proxy), "least_used");
}

/// A small file system of its own, gone when dropped.
struct Volume(tempfile::TempDir);

impl Volume {
    fn of_megabytes(size: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success(), "this test needs the right to mount a tmpfs");
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_volume_makes_room_instead_of_giving_up() {
    for (min_free, kept_free) in [("0", 0), ("2MiB", 2 << 20), ("20%", 12 * (1 << 20) / 5)] {
        let volume = Volume::of_megabytes(12);
        let mirror = Mirror::start();
        let proxy =
            Proxy::build().data(&volume.path()).env("APTMESH_STORE_MIN_FREE", min_free).start();
        for number in 0..20 {
            let bytes = put(&mirror, number, MB);
            if number % 2 == 1 {
                mirror.put(&path(number), File::new(bytes).chunked());
            }
            let reply = fetch(&proxy, &mirror, &path(number));
            assert_eq!(reply.header("cache-status"), Some("aptmesh; fwd=miss; stored"), "{number}");
            assert!(is_hit(&fetch(&proxy, &mirror, &path(number))), "{number}");
            assert_eq!(mirror.bodies(&path(number)), 1, "{number}");
            let space = rustix::fs::statvfs(volume.path()).unwrap();
            let free = space.f_bavail * space.f_frsize;
            // Blocks that are not full and the index itself come on top.
            assert!(free + 128 * 1024 >= kept_free, "{free} bytes free after file {number}");
        }
        assert!(proxy.count(EVICTED) >= 8);
        assert_eq!(get(proxy.admin(), "/readyz").body, b"ready\n");
    }
}

#[test]
fn what_is_removed_and_still_open_is_not_freed_twice() {
    let volume = Volume::of_megabytes(48);
    let mirror = Mirror::start();
    let mut build = Proxy::build().data(&volume.path());
    build = build.env("APTMESH_STORE_MIN_FREE", "8MB");
    let proxy = build.start();
    // One reader takes its time, and the file is worth least.
    let big = noise(50, 12 * MB);
    mirror.put(&path(50), File::new(big.clone()));
    let mut slow = Connection::open(proxy.addr());
    slow.send("GET", &proxy.url_for(&mirror, &path(50)), &[]);
    assert_eq!(slow.read_head().status, 200);
    let mut got = slow.read_body_some(MB);
    proxy.wait_landed();
    let small: Vec<Vec<u8>> = (0..15).map(|number| put(&mirror, number, MB)).collect();
    for number in 0..15 {
        for _ in 0..3 {
            fetch(&proxy, &mirror, &path(number));
        }
    }
    let is_used = "aptmesh_engine_served_total{outcome=\"hit\"}";
    assert!(proxy.count(is_used) >= 30);
    thread::sleep(Duration::from_secs(4));

    // Somebody else fills the volume.
    let space = rustix::fs::statvfs(volume.path()).unwrap();
    let free = (space.f_bavail * space.f_frsize) as usize;
    fs::write(volume.path().join("filler"), vec![0; free - 7 * MB]).unwrap();
    wait_until(PATIENCE, "the big one goes", || !is_stored(&proxy, &big));
    thread::sleep(Duration::from_secs(3));
    assert!(small.iter().all(|bytes| is_stored(&proxy, bytes)), "{} left", proxy.blobs().len());
    while got.len() < big.len() {
        got.extend(slow.read_body_some((big.len() - got.len()).min(MB)));
    }
    assert!(got == big);
}

#[test]
fn a_quota_holds_though_the_index_was_lost() {
    const LYING: u64 = 2_000_000_000;
    let (mirror, data) = (Mirror::start(), tempfile::tempdir().unwrap());
    let folder = data.path().join("blobs/00");
    fs::create_dir_all(&folder).unwrap();
    // So large, and of no blocks: it takes a while to find out what it is.
    fs::File::create(folder.join("0".repeat(64))).unwrap().set_len(LYING).unwrap();
    let proxy = Proxy::build().data(data.path()).env("APTMESH_STORE_QUOTA", "2010MB").start();
    let unadopted = || proxy.count("aptmesh_store_unadopted_bytes");
    wait_until(PATIENCE, "a first look", || unadopted() == LYING);
    for number in 0..20 {
        put(&mirror, number, MB);
        fetch(&proxy, &mirror, &path(number));
        let new = proxy.blobs().len() - 1;
        assert!(new <= 10, "{new} files of a megabyte beside what was there");
    }
    assert_eq!(unadopted(), LYING, "it was there all the time");
}

#[test]
fn free_space_that_can_not_be_had_costs_nothing_stored() {
    let volume = Volume::of_megabytes(24);
    let mirror = Mirror::start();
    let mut proxy = Proxy::build().data(&volume.path());
    proxy = proxy.env("APTMESH_STORE_MIN_FREE", "50%");
    let proxy = proxy.start();
    let bodies: Vec<Vec<u8>> = (0..4).map(|number| put(&mirror, number, MB)).collect();
    for number in 0..4 {
        fetch(&proxy, &mirror, &path(number));
    }
    // Other data comes, more than all that is stored would make up for.
    fs::write(volume.path().join("other"), vec![0; 18 * MB]).unwrap();
    let readiness = || String::from_utf8(get(proxy.admin(), "/readyz").body).unwrap();
    wait_until(PATIENCE, "a word about it", || readiness().contains("store.min_free"));
    put(&mirror, 9, MB);
    fetch(&proxy, &mirror, &path(9));
    thread::sleep(Duration::from_secs(2));
    for (number, body) in bodies.iter().enumerate() {
        assert!(is_stored(&proxy, body) && is_hit(&fetch(&proxy, &mirror, &path(number))));
    }
    let complaints = || proxy.log().lines().filter(|line| line.contains("store.min_free")).count();
    wait_until(PATIENCE, "a line in the log", || complaints() > 0);
    assert_eq!(complaints(), 1, "{}", proxy.log());
    let by_hand = aptmesh()
        .args(["evict", "--data"])
        .arg(proxy.data())
        .env("APTMESH_STORE_MIN_FREE", "50%")
        .output()
        .unwrap();
    assert_eq!(by_hand.status.code(), Some(1));
    assert_eq!(proxy.blobs().len(), bodies.len());
    // With less of it, room is made again.
    fs::write(volume.path().join("other"), vec![0; 9 * MB]).unwrap();
    wait_until(PATIENCE, "room", || {
        fetch(&proxy, &mirror, &path(9));
        is_hit(&fetch(&proxy, &mirror, &path(9)))
    });
    assert_eq!(readiness(), "ready\n");
}
