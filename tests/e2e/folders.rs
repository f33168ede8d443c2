//! Files that lie elsewhere are served in place: never copied, changed or evicted, and never under a
//! digest that they do not have any more.

use crate::kit::*;
use crate::volume::Unreadable;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// A walk that took a second is followed by a pause of fifty.
const PATIENCE: Duration = Duration::from_secs(120);
const HASHED: &str = "aptmesh_store_checked_bytes_total";
const SHARED_BYTES: &str = "aptmesh_store_shared_bytes";
const BIG: usize = 20_000_000;

/// An archive whose packages also lie in a folder.
struct Site {
    mirror: Mirror,
    archive: LocalArchive,
    folder: TempDir,
    proxy: Proxy,
}

impl Site {
    fn start() -> Self {
        Self::start_in(&std::env::temp_dir())
    }

    /// With its folder below this one.
    fn start_in(parent: &Path) -> Self {
        let (mirror, folder) = (Mirror::start(), TempDir::new_in(parent).unwrap());
        let archive =
            LocalArchive::new("demo").package("tool", "1.0", BIG).package("toy", "1", 900);
        archive.publish(&mirror, "/debian");
        for name in ["tool", "toy"] {
            let path = folder.path().join("tree").join(format!("{name}.deb"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, archive.deb(name)).unwrap();
        }
        fs::write(folder.path().join("README"), "none of an archive's").unwrap();
        let proxy = Proxy::build().env("APTMESH_STORE_FOLDERS", folder.path()).start();
        let site = Self { mirror, archive, folder, proxy };
        site.wait_for_files(2);
        let both = ["tool", "toy"].map(|name| site.archive.deb(name).len() as u64);
        assert_eq!(site.proxy.count(SHARED_BYTES), both.iter().sum::<u64>());
        site.update();
        site
    }

    fn update(&self) {
        for path in ["dists/demo/Release".to_owned(), self.archive.index_path()] {
            assert_eq!(self.get(&format!("/debian/{path}")).status, 200);
        }
        let looked_at = "aptmesh_engine_learnt_lists_total";
        wait_until(PATIENCE, "both lists are learnt", || self.proxy.count(looked_at) >= 2);
        self.mirror.clear_log();
    }

    fn wait_for_files(&self, files: u64) {
        wait_until(PATIENCE, "the folder's files", || {
            self.proxy.count("aptmesh_store_shared_files") == files
                && (files == 0) == (self.proxy.count(SHARED_BYTES) == 0)
        });
    }

    fn get(&self, path: &str) -> Reply {
        get(self.proxy.addr(), &self.proxy.url_for(&self.mirror, path))
    }

    fn pool(&self, name: &str) -> String {
        format!("/debian/{}", self.archive.deb_path(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("tree").join(format!("{name}.deb"))
    }

    /// A hit, and nobody was asked.
    #[track_caller]
    fn assert_served_in_place(&self, name: &str) {
        let reply = self.get(&self.pool(name));
        assert!(reply.complete && reply.body == self.archive.deb(name), "{:?}", reply.trouble);
        assert_eq!(reply.header("cache-status"), Some("aptmesh; hit"));
        assert_eq!(self.mirror.requests(&self.pool(name)).len(), 0);
        // The lists alone.
        assert_eq!(self.proxy.blobs().len(), 2);
    }

    /// The right bytes, whoever has them.
    #[track_caller]
    fn assert_right(&self, name: &str) -> Reply {
        let reply = self.get(&self.pool(name));
        assert!(reply.complete && reply.body == self.archive.deb(name), "{:?}", reply.trouble);
        reply
    }
}

/// Changes one byte, and nothing else that its owner can help.
fn touch_byte(path: &Path) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let metadata = file.metadata().unwrap();
    let (mut byte, offset) = ([0], metadata.len() / 2);
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    file.set_modified(metadata.modified().unwrap()).unwrap();
}

#[test]
fn files_are_served_where_they_lie_and_hashed_once() {
    let mut site = Site::start();
    for _ in 0..2 {
        site.assert_served_in_place("tool");
        site.assert_served_in_place("toy");
    }
    let range = request(
        site.proxy.addr(),
        "GET",
        &site.proxy.url_for(&site.mirror, &site.pool("tool")),
        &[("Range", "bytes=9000000-10999999")],
    );
    assert_eq!((range.status, range.complete), (206, true));
    assert_eq!(range.body, site.archive.deb("tool")[9_000_000..11_000_000]);

    site.proxy.restart();
    site.wait_for_files(2);
    assert_eq!(site.proxy.count(HASHED), 0, "what is remembered is not hashed again");
    site.assert_served_in_place("tool");
    assert_eq!(fs::read(site.path("tool")).unwrap(), site.archive.deb("tool"));
}

#[test]
fn a_file_that_changed_is_not_served_as_what_it_was() {
    let mut site = Site::start();
    site.assert_served_in_place("tool");
    let changed = |site: &Site| {
        touch_byte(&site.path("tool"));
        let reply = site.assert_right("tool");
        assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
    };
    // While it is held open...
    changed(&site);
    assert!(site.path("tool").exists(), "what is wrong is not ours to remove");
    // ...and back again, as its owner's mirror tool does it.
    fs::write(site.path("tool"), site.archive.deb("tool")).unwrap();
    site.proxy.signal("TERM");
    site.proxy.wait_exit(PATIENCE);
    fs::remove_dir_all(site.proxy.data().join("blobs")).unwrap();
    site.proxy.restart();
    site.wait_for_files(2);
    site.update();
    let reply = site.assert_right("tool");
    assert_eq!(reply.header("x-aptmesh-source"), Some("store"));

    // And while the proxy does not run.
    site.proxy.signal("TERM");
    site.proxy.wait_exit(PATIENCE);
    fs::remove_dir_all(site.proxy.data().join("blobs")).unwrap();
    touch_byte(&site.path("tool"));
    site.proxy.restart();
    site.update();
    site.mirror.clear_log();
    changed_before(&site);
}

fn changed_before(site: &Site) {
    let reply = site.assert_right("tool");
    assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
    assert_eq!(site.mirror.requests(&site.pool("tool")).len(), 1);
}

#[test]
fn a_file_that_changes_while_it_is_sent_does_not_come_whole() {
    let site = Site::start();
    for proven in [false, true] {
        let mut connection = Connection::open(site.proxy.addr());
        connection.send("GET", &site.proxy.url_for(&site.mirror, &site.pool("tool")), &[]);
        let head = connection.read_head();
        assert_eq!((head.status, head.header("x-aptmesh-source")), (200, Some("store")));
        let mut got = connection.read_body_some(100_000);
        touch_byte(&site.path("tool"));
        got.extend(connection.read_body_some(BIG * 2));
        let whole = site.archive.deb("tool");
        assert!(got.len() < whole.len(), "{proven}: {} bytes", got.len());
        if !proven {
            touch_byte(&site.path("tool"));
            site.wait_until_in_place("tool");
        }
    }
}

impl Site {
    fn wait_until_in_place(&self, name: &str) {
        wait_until(PATIENCE, "it is hashed again", || {
            let target = self.proxy.url_for(&self.mirror, &self.pool(name));
            let head = request(self.proxy.addr(), "HEAD", &target, &[]);
            head.header("x-aptmesh-source") == Some("store")
        });
    }
}

#[test]
fn new_files_are_found_and_lost_ones_forgotten() {
    let site = Site::start();
    let more = LocalArchive::new("demo").package("more", "1", 70_000);
    fs::write(site.path("more"), more.deb("more")).unwrap();
    site.wait_for_files(3);

    fs::remove_file(site.path("toy")).unwrap();
    assert_eq!(site.assert_right("toy").header("x-aptmesh-source"), Some("mirror"));
    site.wait_for_files(2);
    // A file that is renamed is another path, and served from there.
    fs::rename(site.path("tool"), site.folder.path().join("moved.deb")).unwrap();
    wait_until(PATIENCE, "it is found where it is now", || {
        let target = site.proxy.url_for(&site.mirror, &site.pool("tool"));
        let head = request(site.proxy.addr(), "HEAD", &target, &[]);
        head.header("cache-status") == Some("aptmesh; hit")
    });
    assert_eq!(site.assert_right("tool").header("x-aptmesh-source"), Some("store"));
    assert_eq!(site.mirror.bodies(&site.pool("tool")), 0);
}

/// A folder that can be taken away, as when it is not mounted, and be brought back as it was.
struct Mounted {
    parent: TempDir,
}

impl Mounted {
    fn new() -> Self {
        let mounted = Self { parent: TempDir::new().unwrap() };
        fs::create_dir(mounted.path()).unwrap();
        mounted
    }

    fn path(&self) -> PathBuf {
        self.parent.path().join("here")
    }

    fn away(&self) -> PathBuf {
        self.parent.path().join("away")
    }

    fn unmount(&self) {
        fs::rename(self.path(), self.away()).unwrap();
        fs::create_dir(self.path()).unwrap();
    }

    fn mount(&self) {
        fs::remove_dir_all(self.path()).unwrap();
        fs::rename(self.away(), self.path()).unwrap();
    }
}

/// Folders of which the first stays and the second comes and goes; the mirror has lists alone.
fn with_mounted() -> (Site, Mounted) {
    let (mirror, folder, mounted) = (Mirror::start(), TempDir::new().unwrap(), Mounted::new());
    let archive = LocalArchive::new("demo").package("tool", "1.0", 70_000).package("toy", "1", 900);
    archive.publish(&mirror, "/debian");
    fs::write(folder.path().join("tool.deb"), archive.deb("tool")).unwrap();
    fs::write(mounted.path().join("toy.deb"), archive.deb("toy")).unwrap();
    let roots = format!("{},{}", folder.path().display(), mounted.path().display());
    let proxy = Proxy::build().env("APTMESH_STORE_FOLDERS", roots).start();
    let site = Site { mirror, archive, folder, proxy };
    site.wait_for_files(2);
    site.update();
    site.mirror.remove(&site.pool("toy"));
    (site, mounted)
}

#[test]
fn what_was_not_mounted_for_a_while_is_shared_again_and_not_hashed_again() {
    let (site, mounted) = with_mounted();
    let hashed = site.proxy.count(HASHED);
    mounted.unmount();
    assert_eq!(site.get(&site.pool("toy")).status, 404);
    mounted.mount();
    assert_eq!(site.assert_right("toy").header("x-aptmesh-source"), Some("store"));

    // Also when a walk sees that it is not there.
    mounted.unmount();
    site.wait_for_files(1);
    mounted.mount();
    site.wait_for_files(2);
    assert_eq!(site.proxy.count(HASHED), hashed);
}

#[test]
fn a_file_that_was_another_for_a_while_is_shared_again() {
    let (site, mounted) = with_mounted();
    mounted.unmount();
    let other = LocalArchive::new("demo").package("toy", "1", 901);
    fs::write(mounted.path().join("toy.deb"), other.deb("toy")).unwrap();
    assert_eq!(site.get(&site.pool("toy")).status, 404);
    // With the times that it had: to a walk nothing has changed.
    mounted.mount();
    site.wait_until_in_place("toy");
    site.assert_right("toy");
}

#[test]
fn what_went_while_its_folder_was_away_is_forgotten_too() {
    let mounted = Mounted::new();
    let archive = LocalArchive::new("demo").package("tool", "1.0", 70_000).package("toy", "1", 900);
    for name in ["tool", "toy"] {
        fs::write(mounted.path().join(name).with_extension("deb"), archive.deb(name)).unwrap();
    }
    let mut proxy = Proxy::build().env("APTMESH_STORE_FOLDERS", mounted.path()).start();
    let remembered = |proxy: &Proxy| -> i64 {
        let index = rusqlite::Connection::open(proxy.data().join("index.sqlite")).unwrap();
        index.query_row("SELECT count(*) FROM files", [], |row| row.get(0)).unwrap()
    };
    wait_until(PATIENCE, "both files", || remembered(&proxy) == 2);
    proxy.signal("TERM");
    proxy.wait_exit(PATIENCE);
    mounted.unmount();
    proxy.restart();
    // For the first walk, which finds nothing.
    std::thread::sleep(Duration::from_secs(1));
    fs::remove_file(mounted.away().join("toy.deb")).unwrap();
    mounted.mount();
    wait_until(PATIENCE, "one file", || remembered(&proxy) == 1);
    wait_until(PATIENCE, "one file", || proxy.count("aptmesh_store_shared_files") == 1);
    assert_eq!(proxy.count(HASHED), 0);
}

#[test]
fn a_file_that_can_not_be_read_does_not_hide_the_others() {
    let (site, mounted) = with_mounted();
    let _unreadable = Unreadable::at(&site.folder.path().join("bad_1.orig.tar.xz"));
    // Until it has been left alone for long enough to be hashed.
    std::thread::sleep(Duration::from_secs(3));
    let more = LocalArchive::new("demo").package("more", "1", 70_000);
    for folder in [site.folder.path(), &mounted.path()] {
        fs::write(folder.join("more.deb"), more.deb("more")).unwrap();
    }
    site.wait_for_files(4);
    site.assert_served_in_place("tool");
}

#[test]
fn a_folder_that_says_nothing_holds_no_request_up() {
    let remote = Remote::mounted();
    let site = Site::start_in(&remote.path());
    let frozen = remote.freeze();
    let reply = site.get(&site.pool("tool"));
    assert!(reply.complete && reply.body == site.archive.deb("tool"), "{:?}", reply.trouble);
    assert_eq!(reply.header("x-aptmesh-source"), Some("mirror"));
    assert!(site.proxy.log().contains("a shared folder says nothing"));
    drop(frozen);
    wait_until(PATIENCE, "it answers", || {
        site.proxy.log().contains("a shared folder answers again")
    });
    let reply = site.get(&site.pool("toy"));
    assert_eq!(reply.header("cache-status"), Some("aptmesh; hit"));
    assert_eq!(reply.body, site.archive.deb("toy"));
}

#[test]
fn folders_that_can_not_be_shared_are_named_at_the_start() {
    let data = TempDir::new().unwrap();
    let inside = data.path().join("blobs");
    let output = aptmesh()
        .arg("--data")
        .arg(data.path())
        .env("APTMESH_STORE_FOLDERS", format!("relative,{}", inside.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("absolute") && text.contains("lies in data.dir"), "{text}");
}
