//! What the disk spoils is found, never served as if it were right, and fetched anew; what lies on the
//! volume is used, whether the index knows it or not.

use crate::kit::*;
use crate::volume::Volume;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const BIG: &str = "/debian/pool/b/big_1.orig.tar.xz";
const SMALL: &str = "/debian/pool/s/small_1.orig.tar.xz";
const BIG_SIZE: usize = 20_000_000;
const SMALL_SIZE: usize = 10_000;
const BAD: &str = "aptmesh_store_bad_blobs_total";
const CHECKED: &str = "aptmesh_store_checked_bytes_total";

/// Files that are stored, and what they are.
struct Stocked {
    mirror: Mirror,
    proxy: Proxy,
    big: Vec<u8>,
    small: Vec<u8>,
}

fn stocked(build: impl FnOnce(proxy::Build) -> proxy::Build) -> Stocked {
    let (mirror, proxy) = (Mirror::start(), build(Proxy::build()).start());
    let (big, small) = (noise(1, BIG_SIZE), noise(2, SMALL_SIZE));
    for (path, bytes) in [(BIG, &big), (SMALL, &small)] {
        mirror.put(path, File::new(bytes.clone()));
        assert_eq!(&fetch(&proxy, &mirror, path).body, bytes);
    }
    wait_until(PATIENCE, "both are stored", || proxy.blobs().len() == 2);
    proxy.wait_landed();
    mirror.clear_log();
    Stocked { mirror, proxy, big, small }
}

fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    get(proxy.addr(), &proxy.url_for(mirror, path))
}

fn is_hit(reply: &Reply) -> bool {
    reply.header("cache-status") == Some("aptmesh; hit")
}

impl Stocked {
    fn blob(&self, bytes: &[u8]) -> PathBuf {
        let digest = sha256_hex(bytes);
        self.proxy.data().join("blobs").join(&digest[..2]).join(digest)
    }

    fn flip(&self, bytes: &[u8]) {
        flip(&self.blob(bytes), bytes.len() as u64 / 2);
    }

    fn fetch(&self, path: &str) -> Reply {
        fetch(&self.proxy, &self.mirror, path)
    }

    /// The next answer has the right bytes, from the mirror; the one after it, from the volume.
    fn assert_healed(&self, path: &str, bytes: &[u8]) {
        let anew = self.fetch(path);
        assert!(anew.complete && anew.body == bytes, "{:?}", anew.trouble);
        assert_eq!(anew.header("x-aptmesh-source"), Some("mirror"));
        wait_until(PATIENCE, "a hit", || is_hit(&self.fetch(path)));
        self.proxy.wait_landed();
    }

    fn scrub(&self) -> Output {
        aptmesh().args(["scrub", "--data"]).arg(self.proxy.data()).output().unwrap()
    }
}

/// Flips one bit.
pub fn flip(path: &std::path::Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_flipped_bit_is_never_served_as_the_file() {
    let mut stocked = stocked(|build| build);
    stocked.flip(&stocked.big);
    stocked.flip(&stocked.small);
    stocked.proxy.restart();

    let reply = stocked.fetch(BIG);
    assert_eq!(reply.status, 200);
    assert!(!reply.complete && reply.body.len() < BIG_SIZE, "{} bytes", reply.body.len());
    assert_eq!(stocked.mirror.log().len(), 0);
    stocked.assert_healed(BIG, &stocked.big);

    // A small one is read before it is served: its client notices nothing.
    stocked.assert_healed(SMALL, &stocked.small);
    stocked.proxy.check_blobs();
    assert_eq!(stocked.proxy.count(BAD), 2);
    assert_eq!(stocked.proxy.count("aptmesh_engine_verify_failures_total{source=\"store\"}"), 2);
}

#[test]
fn a_bit_that_flips_while_the_proxy_runs_is_noticed() {
    let stocked = stocked(|build| build);
    assert!(is_hit(&stocked.fetch(BIG)));
    stocked.flip(&stocked.big);
    let reply = stocked.fetch(BIG);
    assert!(!reply.complete, "{} bytes", reply.body.len());
    stocked.assert_healed(BIG, &stocked.big);
}

#[test]
fn no_part_of_a_spoilt_file_ends_cleanly() {
    let mut stocked = stocked(|build| build);
    for range in ["bytes=0-999", "bytes=9000000-10999999", "bytes=-1"] {
        stocked.flip(&stocked.big);
        stocked.proxy.restart();
        let target = stocked.proxy.url_for(&stocked.mirror, BIG);
        let reply = request(stocked.proxy.addr(), "GET", &target, &[("Range", range)]);
        assert_eq!(reply.status, 206, "{range}");
        assert!(!reply.complete, "{range}: {} bytes", reply.body.len());
        stocked.assert_healed(BIG, &stocked.big);
    }
}

#[test]
fn parts_and_wholes_of_a_right_file_come_whole_after_a_restart() {
    let mut stocked = stocked(|build| build);
    for range in ["bytes=0-", "bytes=0-999", "bytes=9000000-10999999", "bytes=-1"] {
        stocked.proxy.restart();
        let target = stocked.proxy.url_for(&stocked.mirror, BIG);
        for _ in 0..2 {
            let reply = request(stocked.proxy.addr(), "GET", &target, &[("Range", range)]);
            assert!(reply.complete && reply.status == 206, "{range}: {:?}", reply.trouble);
            let told = reply.header("content-range").unwrap();
            let first: usize = told["bytes ".len()..told.find('-').unwrap()].parse().unwrap();
            assert_eq!(reply.body, stocked.big[first..first + reply.body.len()], "{range}");
        }
        let whole = stocked.fetch(BIG);
        assert!(is_hit(&whole) && whole.complete && whole.body == stocked.big);
    }
    assert_eq!(stocked.mirror.log().len(), 0);
}

fn by_hash(digest: &str) -> String {
    format!("/debian/dists/sid/main/by-hash/SHA256/{digest}")
}

#[test]
fn what_has_proven_right_is_not_hashed_again_under_another_name() {
    let mut stocked = stocked(|build| build.env("APTMESH_STORE_SCRUB_RATE", "0"));
    stocked.proxy.restart();
    assert!(is_hit(&stocked.fetch(BIG)));
    // Memory knows nothing of this name: the file is opened once more.
    let other_name = by_hash(&sha256_hex(&stocked.big));
    let same = stocked.fetch(&other_name);
    assert!(is_hit(&same) && same.body == stocked.big);
    assert_eq!(stocked.proxy.count(CHECKED), BIG_SIZE as u64, "hashed once");

    // What was proven is this state of this file, and no other.
    stocked.flip(&stocked.big);
    let third_name = other_name.replace("main", "contrib");
    assert!(!stocked.fetch(&third_name).complete);
    stocked.assert_healed(BIG, &stocked.big);
    assert_eq!(stocked.proxy.count(BAD), 1);
}

#[test]
fn a_small_file_does_not_wait_for_the_proof_of_large_ones() {
    let proxy = Proxy::build().env("APTMESH_STORE_SCRUB_RATE", "0").start();
    let (mirror, file) = (Mirror::start(), noise(5, 200_000));
    let put = |digest: &str| {
        let path = proxy.data().join("blobs").join(&digest[..2]).join(digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap()
    };
    put(&sha256_hex(&file)).write_all_at(&file, 0).unwrap();
    // As many as are hashed at a time, and more; they take minutes, and are wrong in the end.
    let large: Vec<String> = (0..6).map(|number| sha256_hex(&[number])).collect();
    for digest in &large {
        put(digest).set_len(1 << 40).unwrap();
        let head = request(proxy.addr(), "HEAD", &proxy.url_for(&mirror, &by_hash(digest)), &[]);
        assert!(head.status == 200 && head.header("cache-status") == Some("aptmesh; hit"));
    }
    let reply = fetch(&proxy, &mirror, &by_hash(&sha256_hex(&file)));
    assert!(is_hit(&reply) && reply.complete && reply.body == file, "{:?}", reply.trouble);
    assert_eq!(proxy.count(BAD), 0, "none of the large ones is done");
    assert!(proxy.count(CHECKED) > file.len() as u64, "but they are under way");
}

#[test]
fn a_file_cut_short_while_it_is_held_open_is_fetched_anew() {
    let stocked = stocked(|build| build);
    assert!(is_hit(&stocked.fetch(BIG)));
    let blob = fs::OpenOptions::new().write(true).open(stocked.blob(&stocked.big)).unwrap();
    blob.set_len(BIG_SIZE as u64 / 2).unwrap();
    stocked.assert_healed(BIG, &stocked.big);
    assert_eq!(stocked.proxy.count(BAD), 1);
}

#[test]
fn a_file_cut_short_while_it_is_sent_ends_before_its_end() {
    let stocked = stocked(|build| build);
    let mut connection = Connection::open(stocked.proxy.addr());
    connection.send("GET", &stocked.proxy.url_for(&stocked.mirror, BIG), &[]);
    assert_eq!(connection.read_head().status, 200);
    let mut got = connection.read_body_some(100_000).len();
    let blob = fs::OpenOptions::new().write(true).open(stocked.blob(&stocked.big)).unwrap();
    blob.set_len(BIG_SIZE as u64 - 1).unwrap();
    got += connection.read_body_some(BIG_SIZE).len();
    assert!(got < BIG_SIZE, "{got} bytes");
    stocked.assert_healed(BIG, &stocked.big);
}

#[test]
fn what_is_bad_and_can_not_be_removed_is_not_served_again() {
    let (volume, index) = (Volume::of_megabytes(64), tempfile::TempDir::new().unwrap());
    let url = format!("sqlite:{}", index.path().join("index.sqlite").display());
    let mut stocked = stocked(|build| build.data(volume.path()).env("APTMESH_INDEX_URL", url));
    stocked.flip(&stocked.big);
    stocked.proxy.signal("TERM");
    stocked.proxy.wait_exit(PATIENCE);
    volume.make_read_only();
    stocked.proxy.restart();
    assert!(!stocked.fetch(BIG).complete);
    for _ in 0..2 {
        let reply = stocked.fetch(BIG);
        assert!(reply.complete && reply.body == stocked.big, "{:?}", reply.trouble);
        assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
    }
    assert!(is_hit(&stocked.fetch(SMALL)));
    // It is served again as soon as the right one could take its place.
    volume.make_writable();
    wait_until(PATIENCE, "a hit", || is_hit(&stocked.fetch(BIG)));
    stocked.proxy.wait_landed();
    stocked.mirror.clear_log();
    let by_hash = format!("/debian/dists/demo/main/by-hash/SHA256/{}", sha256_hex(&stocked.big));
    let reply = stocked.fetch(&by_hash);
    assert!(is_hit(&reply) && reply.body == stocked.big, "{}", reply.status);
    assert_eq!(stocked.mirror.log().len(), 0);
    drop(stocked);
}

/// Puts in the place of a blob what can neither be read nor removed as one.
fn block(blob: &std::path::Path) {
    fs::remove_file(blob).unwrap();
    fs::create_dir(blob).unwrap();
    fs::write(blob.join("in the way"), "").unwrap();
}

#[test]
fn a_blob_that_can_not_be_read_or_removed_holds_up_no_other() {
    let stocked = stocked(|build| build.env("APTMESH_STORE_SCRUB_RATE", "0"));
    let files: Vec<(String, Vec<u8>)> = (10..14)
        .map(|number| (format!("/debian/pool/f/f{number}_1.orig.tar.xz"), noise(number, 100_000)))
        .collect();
    for (path, bytes) in &files {
        stocked.mirror.put(path, File::new(bytes.clone()));
        stocked.fetch(path);
    }
    stocked.proxy.wait_landed();
    // The first that would go, and one that the kernel will not open.
    block(&stocked.blob(&stocked.big));
    let linked = stocked.blob(&stocked.small);
    fs::remove_file(&linked).unwrap();
    std::os::unix::fs::symlink("elsewhere", &linked).unwrap();
    flip(&stocked.blob(&files[0].1), 7);

    let by_hand = stocked.scrub();
    assert_eq!(by_hand.status.code(), Some(1), "{}", text(&by_hand));
    assert!(text(&by_hand).contains("3 files are good"), "{}", text(&by_hand));
    assert!(!stocked.blob(&files[0].1).exists());

    let evicted = aptmesh()
        .args(["evict", "--bytes", "20.15MB", "--data"])
        .arg(stocked.proxy.data())
        .env("APTMESH_STORE_MIN_FREE", "0")
        .output()
        .unwrap();
    assert!(evicted.status.success(), "{}", text(&evicted));
    assert!(stocked.blob(&stocked.big).exists());
    for (path, bytes) in &files[1..] {
        assert!(!stocked.blob(bytes).exists(), "{path}: {}", text(&evicted));
    }
}

#[test]
fn the_background_scrub_steps_over_what_it_can_not_read() {
    let mut stocked = stocked(|build| build);
    stocked.proxy.signal("TERM");
    stocked.proxy.wait_exit(PATIENCE);
    // It comes first.
    let linked = stocked.blob(&stocked.small);
    fs::remove_file(&linked).unwrap();
    std::os::unix::fs::symlink("elsewhere", &linked).unwrap();
    stocked.flip(&stocked.big);
    let index = rusqlite::Connection::open(stocked.proxy.data().join("index.sqlite")).unwrap();
    index.execute("UPDATE blobs SET checked_at = 2 WHERE size > 1000000", []).unwrap();
    index.execute("UPDATE blobs SET checked_at = 1 WHERE size < 1000000", []).unwrap();
    drop(index);
    stocked.proxy.restart();
    wait_until(PATIENCE, "the next one is found bad", || !stocked.blob(&stocked.big).exists());
    assert_eq!(stocked.proxy.count(BAD), 1);
}

#[test]
fn a_volume_that_is_not_mounted_wipes_nothing_from_the_index() {
    let mut stocked = stocked(|build| build.env("APTMESH_STORE_SCRUB_INTERVAL", "0s"));
    for number in 0..6 {
        let path = format!("/debian/pool/m/more{number}_1.dsc");
        stocked.mirror.put(&path, File::new(path.clone().into_bytes()));
        stocked.fetch(&path);
    }
    stocked.proxy.wait_landed();
    stocked.proxy.signal("TERM");
    stocked.proxy.wait_exit(PATIENCE);
    let (blobs, aside) = (stocked.proxy.data().join("blobs"), stocked.proxy.data().join("aside"));
    fs::rename(&blobs, &aside).unwrap();
    stocked.proxy.restart();
    wait_until(PATIENCE, "a word about it", || stocked.proxy.log().contains("may not be mounted"));
    let told = || String::from_utf8(get(stocked.proxy.admin(), "/readyz").body).unwrap();
    assert!(told().contains("may not be mounted"), "{}", told());
    assert_eq!(stocked.proxy.count("aptmesh_store_up"), 0);
    // Clients get what they ask for, though it has to be fetched.
    let asked = stocked.fetch(SMALL);
    assert!(asked.complete && asked.body == stocked.small);
    assert_eq!(asked.header("x-aptmesh-source"), Some("mirror"));
    stocked.proxy.wait_landed();
    let scrubbed = stocked.scrub();
    assert_eq!(scrubbed.status.code(), Some(1));
    assert!(text(&scrubbed).contains("may not be mounted"), "{}", text(&scrubbed));
    assert_eq!(stored_blobs(&stocked.proxy), 8, "nothing is forgotten");
    assert_eq!(stocked.proxy.log().matches("may not be mounted").count(), 1);

    // It is noticed when it is there again.
    fs::remove_dir_all(&blobs).unwrap();
    fs::rename(&aside, &blobs).unwrap();
    wait_until(PATIENCE, "all to be well", || told() == "ready\n");
    assert_eq!(stocked.proxy.count("aptmesh_store_up"), 1);
    stocked.proxy.restart();
    // It ended well, and left nothing unfinished.
    assert!(!stocked.proxy.log().contains("left unfinished"), "{}", stocked.proxy.log());
    stocked.mirror.clear_log();
    for path in [BIG, SMALL] {
        assert!(is_hit(&stocked.fetch(path)), "{path}");
    }
    assert_eq!(stocked.mirror.log().len(), 0);
}

#[test]
fn the_background_scrub_finds_what_nobody_asks_for() {
    let stocked = stocked(|build| {
        build.env("APTMESH_STORE_SCRUB_INTERVAL", "0s").env("APTMESH_STORE_SCRUB_RATE", "100MiB/s")
    });
    wait_until(PATIENCE, "a check", || stocked.proxy.count(CHECKED) >= BIG_SIZE as u64);
    assert_eq!(stocked.proxy.count(BAD), 0);
    let (big, small) = (stocked.blob(&stocked.big), stocked.blob(&stocked.small));
    stocked.flip(&stocked.big);
    stocked.flip(&stocked.small);
    wait_until(PATIENCE, "both are gone", || !big.exists() && !small.exists());
    stocked.assert_healed(BIG, &stocked.big);
    // The right bytes of a small one are in memory, until that lets go of them.
    wait_until(PATIENCE, "it is fetched anew", || {
        assert_eq!(stocked.fetch(SMALL).body, stocked.small);
        stocked.mirror.bodies(SMALL) == 1
    });
    wait_until(PATIENCE, "both are back", || big.exists() && small.exists());
    stocked.proxy.wait_landed();
    stocked.proxy.check_blobs();
}

#[test]
fn what_was_checked_lately_or_never_is_to_be_is_left_alone() {
    let settings = [("RATE", "0"), ("INTERVAL", "7d")];
    for (name, value) in settings {
        let stocked = stocked(|build| build.env(&format!("APTMESH_STORE_SCRUB_{name}"), value));
        stocked.flip(&stocked.small);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(stocked.proxy.count(CHECKED), 0, "{name}");
        assert_eq!(stocked.proxy.blobs().len(), 2);
    }
}

#[test]
fn a_scrub_by_hand_tells_and_drops_beside_a_running_cache() {
    let stocked = stocked(|build| build.env("APTMESH_STORE_SCRUB_RATE", "0"));
    let clean = stocked.scrub();
    assert!(clean.status.success(), "{}", text(&clean));
    assert!(text(&clean).contains("2 files are good, 20.0 MB"), "{}", text(&clean));

    stocked.flip(&stocked.big);
    let found = stocked.scrub();
    assert_eq!(found.status.code(), Some(1), "{}", text(&found));
    assert!(text(&found).contains(&format!("bad: {}", sha256_hex(&stocked.big))));
    assert!(text(&found).contains("1 files are good"), "{}", text(&found));
    assert!(!stocked.blob(&stocked.big).exists());
    // The running cache had it open, and does not serve it any more.
    stocked.assert_healed(BIG, &stocked.big);
    assert!(stocked.scrub().status.success());
    let staging = fs::read_dir(stocked.proxy.data().join("staging")).unwrap();
    assert_eq!(staging.count(), 1, "the running cache's alone");
}

#[test]
fn a_lost_index_costs_no_upstream_byte() {
    let (mirror, mut proxy) = (Mirror::start(), Proxy::build().start());
    let archive =
        LocalArchive::new("demo").package("tool", "1.0", 200_000).package("toy", "1", 900);
    archive.publish(&mirror, "/debian");
    let lists =
        ["/debian/dists/demo/Release".to_owned(), format!("/debian/{}", archive.index_path())];
    let packages = ["tool", "toy"].map(|name| format!("/debian/{}", archive.deb_path(name)));
    for path in lists.iter().chain(&packages) {
        assert_eq!(fetch(&proxy, &mirror, path).status, 200);
    }
    wait_until(PATIENCE, "all are stored", || proxy.blobs().len() == 4);
    let blobs = proxy.blobs();
    for adopted_before in [true, false] {
        proxy.signal("TERM");
        proxy.wait_exit(PATIENCE);
        for file in fs::read_dir(proxy.data()).unwrap().flatten() {
            if file.file_type().unwrap().is_file() {
                fs::remove_file(file.path()).unwrap();
            }
        }
        proxy.restart();
        if adopted_before {
            let known = || stored_blobs(&proxy);
            wait_until(PATIENCE, "all blobs are adopted", || known() == blobs.len() as u64);
        }
        mirror.clear_log();
        for path in &lists {
            assert_eq!(fetch(&proxy, &mirror, path).status, 200);
        }
        let learnt = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
        wait_until(PATIENCE, "both lists are learnt", || proxy.count(learnt) == 2);
        for (path, name) in packages.iter().zip(["tool", "toy"]) {
            let reply = fetch(&proxy, &mirror, path);
            assert!(reply.complete && reply.body == archive.deb(name));
            assert!(is_hit(&reply), "{:?}", reply.header("cache-status"));
            assert_eq!(mirror.requests(path).len(), 0);
        }
    }
    wait_until(PATIENCE, "all are known", || stored_blobs(&proxy) == blobs.len() as u64);
    proxy.check_blobs();
}

fn stored_blobs(proxy: &Proxy) -> u64 {
    let status: serde_json::Value =
        serde_json::from_slice(&get(proxy.admin(), "/status.json").body).unwrap();
    status.pointer("/stored/blobs").and_then(serde_json::Value::as_u64).unwrap_or_default()
}

#[test]
fn what_is_moved_in_is_checked_first_and_what_is_gone_is_forgotten() {
    let mut stocked = stocked(|build| build);
    stocked.proxy.signal("TERM");
    stocked.proxy.wait_exit(PATIENCE);
    // One is gone, one comes, one is not what it says, and some are no blobs.
    fs::remove_file(stocked.blob(&stocked.big)).unwrap();
    let (good, liar) = (noise(7, 50_000), noise(8, 50_000));
    for (named, content) in [(&good, &good), (&liar, &good)] {
        let path = stocked.blob(named);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let foreign = stocked.proxy.data().join("blobs/00");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("notes.txt"), "mine").unwrap();
    stocked.proxy.restart();

    wait_until(PATIENCE, "the walk", || stocked.proxy.log().contains("agree again"));
    let log = stocked.proxy.log();
    assert!(log.contains("adopted=1") && log.contains("bad=1") && log.contains("gone=1"), "{log}");
    assert!(stocked.blob(&good).exists() && !stocked.blob(&liar).exists());
    assert!(foreign.join("notes.txt").exists());
    assert_eq!(stored_blobs(&stocked.proxy), 2);
    stocked.assert_healed(BIG, &stocked.big);
}
