//! A volume that is full, or can not be written: clients get their files all the same, and operators
//! are told.

use crate::kit::{
    Apt, File, LocalArchive, Mirror, Proxy, Remote, Reply, download_hash, get, noise, sha256_hex,
    wait_until,
};
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const MEGABYTE: usize = 1 << 20;

/// A file system of its own, gone when dropped: to be declared before the proxy on it.
pub(crate) struct Volume {
    folder: TempDir,
}

impl Volume {
    pub(crate) fn of_megabytes(size: u32) -> Self {
        let folder = TempDir::new().expect("a folder to mount on");
        mount(folder.path(), &["-t", "tmpfs", "-o", &format!("size={size}m"), "tmpfs"]);
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Nothing may have a file on it open for writing.
    pub(crate) fn make_read_only(&self) {
        mount(self.path(), &["-o", "remount,ro"]);
    }

    pub(crate) fn make_writable(&self) {
        mount(self.path(), &["-o", "remount,rw"]);
    }

    /// Leaves no room; the room comes back with the removal of the file.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = fs::File::create(&path).unwrap();
        for size in [MEGABYTE, 4096] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// A file of some size whose bytes nobody gets: one of the kernel's, under another name.
pub(crate) struct Unreadable(PathBuf);

impl Unreadable {
    pub(crate) fn at(path: &Path) -> Self {
        fs::File::create(path).unwrap();
        // Has 4096 bytes, and refuses to be read: no duplex mode in the loopback device.
        mount(path, &["--bind", "/sys/class/net/lo/duplex"]);
        assert!(fs::read(path).is_err() && fs::metadata(path).unwrap().len() > 0);
        Self(path.to_owned())
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(folder: &Path, args: &[&str]) {
    let run = Command::new("mount").args(args).arg(folder).output().expect("mount on this machine");
    assert!(
        run.status.success(),
        "this test needs the right to mount a tmpfs (root, with CAP_SYS_ADMIN): {}",
        String::from_utf8_lossy(&run.stderr)
    );
}

fn proxy_on(volume: &Volume) -> Proxy {
    Proxy::build().data(volume.path()).start()
}

/// Several clients at the same time, all of which must get the whole file.
fn all_get(clients: usize, addr: SocketAddr, target: &str, bytes: &[u8]) -> Vec<Reply> {
    let sha256 = sha256_hex(bytes);
    let client = || {
        let (reply, got, len) = download_hash(addr, target, &[]);
        assert!(reply.complete && reply.status == 200, "{reply:?} after {len} bytes");
        assert_eq!((len, &got), (bytes.len() as u64, &sha256));
        reply
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        running.into_iter().map(|client| client.join().expect("a whole file")).collect()
    })
}

fn times_said(proxy: &Proxy, words: &str) -> usize {
    proxy.log().lines().filter(|line| line.contains(words)).count()
}

fn readiness(proxy: &Proxy) -> String {
    let reply = get(proxy.admin(), "/readyz");
    assert_eq!(reply.status, 200);
    String::from_utf8(reply.body).unwrap()
}

fn is_hit(reply: &Reply) -> bool {
    reply.header("cache-status") == Some("aptmesh; hit")
}

/// Files that are being downloaded.
fn staged(proxy: &Proxy) -> usize {
    proxy.staged().len()
}

const BIG: &str = "/debian/pool/b/big_1.orig.tar.xz";
const SMALL: &str = "/debian/pool/s/small_1.orig.tar.xz";

#[test]
fn what_does_not_fit_is_streamed_and_not_stored() {
    let volume = Volume::of_megabytes(8);
    let mirror = Mirror::start();
    let bytes = noise(1, 20 * MEGABYTE);
    mirror.put(BIG, File::new(bytes.clone()));
    let proxy = proxy_on(&volume);
    assert_eq!(readiness(&proxy), "ready\n");

    let target = proxy.url_for(&mirror, BIG);
    let mut replies = all_get(3, proxy.addr(), &target, &bytes);
    replies.extend(all_get(2, proxy.addr(), &target, &bytes));
    for reply in &replies {
        assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
        assert!(!reply.header("cache-status").unwrap().contains("stored"), "{reply:?}");
    }
    assert!(proxy.blobs().is_empty());
    wait_until(Duration::from_secs(20), "no staged file", || staged(&proxy) == 0);
    // That is no trouble of the volume: what fits is stored at once.
    assert_eq!(times_said(&proxy, "the volume is full"), 0, "{}", proxy.log());
    assert_eq!(readiness(&proxy), "ready\n");
    let small = noise(6, MEGABYTE);
    mirror.put(SMALL, File::new(small.clone()));
    let target = proxy.url_for(&mirror, SMALL);
    all_get(1, proxy.addr(), &target, &small);
    proxy.wait_landed();
    assert!(is_hit(&all_get(1, proxy.addr(), &target, &small)[0]));
}

#[test]
fn a_volume_that_fills_up_in_mid_download_costs_the_clients_nothing() {
    let volume = Volume::of_megabytes(8);
    let mirror = Mirror::start();
    let bytes = noise(2, 20 * MEGABYTE);
    mirror.put(BIG, File::new(bytes.clone()).chunked().rate(20_000_000));
    let proxy = proxy_on(&volume);

    all_get(3, proxy.addr(), &proxy.url_for(&mirror, BIG), &bytes);
    let (rest, begun): (Vec<_>, Vec<_>) =
        mirror.requests(BIG).into_iter().partition(|seen| seen.header("range").is_some());
    assert_eq!(begun.len(), 1, "{begun:#?}");
    // The three go on from where the volume was full, and not from the start.
    assert_eq!(rest.len(), 3, "{rest:#?}");
    for seen in &rest {
        assert!(seen.status == 206 && seen.header("if-range").is_some(), "{seen:?}");
        assert!(seen.body_bytes < 16 * MEGABYTE as u64, "{seen:?}");
    }
    assert!(proxy.blobs().is_empty());
    wait_until(Duration::from_secs(20), "no staged file", || staged(&proxy) == 0);
    assert_eq!(times_said(&proxy, "the volume is full"), 1, "{}", proxy.log());
    assert!(readiness(&proxy).contains("not storing"));
}

#[test]
fn what_can_not_be_resumed_is_cut_off_when_the_volume_fills_up() {
    let volume = Volume::of_megabytes(8);
    let mirror = Mirror::start();
    let bytes = noise(3, 20 * MEGABYTE);
    mirror.put(BIG, File::new(bytes.clone()).chunked().no_validators());
    let proxy = proxy_on(&volume);

    let target = proxy.url_for(&mirror, BIG);
    let (cut, _, len) = download_hash(proxy.addr(), &target, &[]);
    assert!(!cut.complete && len < bytes.len() as u64, "{cut:?}");
    // Apt asks again: by then it is known that there is no room.
    all_get(1, proxy.addr(), &target, &bytes);
    assert!(proxy.blobs().is_empty());
}

#[test]
fn storing_begins_again_when_there_is_room() {
    let volume = Volume::of_megabytes(8);
    let mirror = Mirror::start();
    let bytes = noise(4, MEGABYTE);
    mirror.put(SMALL, File::new(bytes.clone()));
    let proxy = proxy_on(&volume);
    let target = proxy.url_for(&mirror, SMALL);
    let filler = volume.fill();

    for _ in 0..3 {
        assert!(!is_hit(&all_get(1, proxy.addr(), &target, &bytes)[0]));
    }
    assert!(readiness(&proxy).contains("not storing"));
    assert_eq!(mirror.bodies(SMALL), 3 + 1, "each client's, and one that had no room");

    // Another try finds it as full as before, which is no news.
    let mut asked = 3;
    wait_until(Duration::from_secs(60), "another try", || {
        thread::sleep(Duration::from_millis(200));
        all_get(1, proxy.addr(), &target, &bytes);
        asked += 1;
        mirror.bodies(SMALL) > asked + 1
    });
    assert_eq!(times_said(&proxy, "the volume is full"), 1, "{}", proxy.log());

    fs::remove_file(filler).unwrap();
    wait_until(Duration::from_secs(60), "a hit", || {
        thread::sleep(Duration::from_millis(200));
        is_hit(&all_get(1, proxy.addr(), &target, &bytes)[0])
    });
    assert_eq!(readiness(&proxy), "ready\n");
    assert_eq!(times_said(&proxy, "the volume is full"), 1, "{}", proxy.log());
    assert_eq!(times_said(&proxy, "takes new blobs again"), 1, "{}", proxy.log());
    proxy.check_blobs();
}

#[test]
fn a_volume_that_became_read_only_still_serves_what_it_has() {
    let volume = Volume::of_megabytes(16);
    let index = TempDir::new().unwrap();
    let mirror = Mirror::start();
    let (old, new) = (noise(5, MEGABYTE), noise(6, MEGABYTE));
    mirror.put(SMALL, File::new(old.clone()));
    mirror.put(BIG, File::new(new.clone()));
    let url = format!("sqlite:{}", index.path().join("index.sqlite").display());
    let mut proxy = Proxy::build().data(volume.path()).arg("--index").arg(url).start();
    let target = proxy.url_for(&mirror, SMALL);
    wait_until(Duration::from_secs(20), "a hit", || is_hit(&get(proxy.addr(), &target)));
    // What it wrote itself it still has open for writing.
    proxy.restart();
    volume.make_read_only();
    mirror.clear_log();

    let kept = all_get(2, proxy.addr(), &target, &old);
    assert!(kept.iter().all(is_hit), "{kept:?}");
    let new_target = proxy.url_for(&mirror, BIG);
    for _ in 0..2 {
        let passed_on = all_get(2, proxy.addr(), &new_target, &new);
        assert!(!passed_on.iter().any(is_hit), "{passed_on:?}");
    }
    assert_eq!(mirror.requests(SMALL).len(), 0);
    wait_until(Duration::from_secs(20), "the log", || {
        times_said(&proxy, "the volume can not be written") > 0
    });
    assert_eq!(times_said(&proxy, "the volume can not be written"), 1, "{}", proxy.log());
    let told = readiness(&proxy);
    assert!(told.contains("not storing: the volume can not be written"), "{told}");
    assert!(is_hit(&get(proxy.addr(), &target)));
}

#[test]
fn what_is_stored_is_still_known_after_a_start_on_a_volume_that_takes_nothing() {
    type Trouble = fn(&Volume);
    let troubles: [(Trouble, &str); 2] = [
        (|volume| drop(volume.fill()), "stored before it was full"),
        (Volume::make_read_only, "stored before it was read-only"),
    ];
    for (trouble, what) in troubles {
        let volume = Volume::of_megabytes(8);
        let mirror = Mirror::start();
        let bytes = noise(8, MEGABYTE);
        mirror.put(BIG, File::new(bytes.clone()));
        let mut proxy = proxy_on(&volume);
        all_get(1, proxy.addr(), &proxy.url_for(&mirror, BIG), &bytes);
        proxy.wait_landed();
        proxy.signal("TERM");
        proxy.wait_exit(Duration::from_secs(20));
        trouble(&volume);
        proxy.restart();
        let replies = all_get(1, proxy.addr(), &proxy.url_for(&mirror, BIG), &bytes);
        assert!(replies.iter().all(is_hit), "{what}: {replies:?}");
        assert_eq!(mirror.bodies(BIG), 1, "{what}");
    }
}

#[test]
fn it_starts_on_a_volume_that_can_not_be_written() {
    let volume = Volume::of_megabytes(8);
    volume.make_read_only();
    let mirror = Mirror::start();
    let bytes = noise(7, MEGABYTE);
    mirror.put(BIG, File::new(bytes.clone()));
    let proxy = proxy_on(&volume);

    for _ in 0..2 {
        let replies = all_get(2, proxy.addr(), &proxy.url_for(&mirror, BIG), &bytes);
        assert!(!replies.iter().any(is_hit), "{replies:?}");
    }
    assert_eq!(times_said(&proxy, "index in memory"), 1, "{}", proxy.log());
    assert_eq!(times_said(&proxy, "the volume can not be written"), 1, "{}", proxy.log());
    assert!(readiness(&proxy).contains("not storing"));
}

#[test]
fn a_chunked_file_comes_whole_from_a_volume_without_any_room() {
    let bytes = noise(9, 2 * MEGABYTE);
    for file in [File::new(bytes.clone()), File::new(bytes.clone()).no_validators()] {
        let volume = Volume::of_megabytes(8);
        let mirror = Mirror::start();
        mirror.put(BIG, file.chunked());
        let proxy = proxy_on(&volume);
        volume.fill();
        let target = proxy.url_for(&mirror, BIG);
        all_get(1, proxy.addr(), &target, &bytes);
        all_get(2, proxy.addr(), &target, &bytes);
        assert!(proxy.blobs().is_empty());
        assert!(readiness(&proxy).contains("not storing"));
    }
}

#[test]
fn a_stray_file_among_the_staged_ones_is_in_nobodys_way() {
    let folder = TempDir::new().unwrap();
    let staging = folder.path().join("staging");
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("stray"), "not of ours").unwrap();
    let mirror = Mirror::start();
    let bytes = noise(10, MEGABYTE);
    mirror.put(SMALL, File::new(bytes.clone()));
    let mut proxy = Proxy::build().data(folder.path()).start();
    for _ in 0..2 {
        assert_eq!(readiness(&proxy), "ready\n");
        all_get(1, proxy.addr(), &proxy.url_for(&mirror, SMALL), &bytes);
        proxy.wait_landed();
        assert!(is_hit(&get(proxy.addr(), &proxy.url_for(&mirror, SMALL))));
        // As it may be at the next start.
        fs::write(staging.join("stray"), "not of ours").unwrap();
        proxy.restart();
    }
    assert_eq!(mirror.bodies(SMALL), 1);
    assert_eq!(proxy.blobs().len(), 1);
}

#[test]
fn an_index_whose_disk_says_nothing_holds_no_request_up() {
    let (remote, mirror, archive) = (Remote::mounted(), Mirror::start(), LocalArchive::new("demo"));
    let archive = archive.package("tool", "1.0", 900_000).package("toy", "1.0", 900);
    archive.publish(&mirror, "/debian");
    let url = format!("sqlite:{}", remote.path().join("index.sqlite").display());
    let mut proxy = Proxy::build().env("APTMESH_INDEX_URL", url).start();
    let path = |name| format!("/debian/{}", archive.deb_path(name));
    let fetch = |proxy: &Proxy, name| {
        let reply = get(proxy.addr(), &proxy.url_for(&mirror, &path(name)));
        assert_eq!((reply.status, reply.complete), (200, true), "{name}: {}", reply.reason);
        assert!(reply.body == archive.deb(name), "{name}");
        reply.header("cache-status").map(str::to_owned)
    };
    fetch(&proxy, "tool");
    proxy.wait_landed();
    // Nothing of it is in memory.
    proxy.restart();
    let frozen = remote.freeze();
    for name in ["tool", "toy", "tool"] {
        fetch(&proxy, name);
    }
    let apt = Apt::new(Some(format!("http://{}", proxy.addr())));
    apt.sources(&archive.source_line(&format!("http://{}/debian", mirror.host())));
    for run in [apt.update(), apt.download(&["tool", "toy"])] {
        assert!(run.ok, "{}", run.output);
    }
    assert_eq!(proxy.count("aptmesh_index_up"), 0);
    let status = String::from_utf8(get(proxy.admin(), "/status.json").body).unwrap();
    assert!(status.contains("without its index: SQLite says nothing"), "{status}");
    drop(frozen);
    wait_until(Duration::from_secs(60), "it is asked again", || {
        ["tool", "toy"].iter().all(|name| fetch(&proxy, name).as_deref() == Some("aptmesh; hit"))
            && proxy.count("aptmesh_index_up") == 1
    });
}
