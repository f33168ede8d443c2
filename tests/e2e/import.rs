//! What a site has already is stored without asking anybody, whatever it lies in; and nothing is
//! believed of it but its bytes.

use crate::kit::*;
use crate::volume::Unreadable;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

fn import(data: &Path, paths: &[&Path]) -> Output {
    command(data, paths).output().unwrap()
}

fn command(data: &Path, paths: &[&Path]) -> Command {
    let mut command = aptmesh();
    command.arg("import").args(paths).arg("--data").arg(data).env("APTMESH_STORE_MIN_FREE", "0");
    command
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).concat()
}

/// Exit code 0, and these words.
#[track_caller]
fn assert_says(output: &Output, words: &[&str]) {
    let text = text(output);
    assert!(output.status.success(), "{text}");
    for words in words {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
}

/// A package of noise, by the number of its payload's bytes.
fn deb(name: &str, size: usize) -> Vec<u8> {
    LocalArchive::new("any").package(name, "1", size).deb(name).to_vec()
}

fn put(folder: &Path, path: &str, bytes: &[u8]) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn is_stored(data: &Path, bytes: &[u8]) -> bool {
    let digest = sha256_hex(bytes);
    let stored = fs::read(data.join("blobs").join(&digest[..2]).join(&digest));
    stored.is_ok_and(|stored| stored == bytes)
}

#[test]
fn what_was_imported_serves_the_first_request_that_expects_it() {
    let (mirror, source) = (Mirror::start(), TempDir::new().unwrap());
    let archive = LocalArchive::new("demo")
        .package("tool", "1.0", 9_000_000)
        .package("toy", "1.0", 60_000)
        .package("dot", "1.0", 100);
    archive.publish(&mirror, "/debian");
    for name in ["tool", "toy", "dot"] {
        // apt's own names say nothing of the pool.
        put(source.path(), &format!("archives/{name}_1.0_all.deb"), archive.deb(name));
    }
    let proxy = Proxy::start();
    let imported = import(proxy.data(), &[source.path()]);
    assert_says(&imported, &["new:      3 files", "known:    0 files", "left out: 0 files"]);

    let apt = Apt::new(None);
    let base = format!("http://{}/{}/debian", proxy.addr(), mirror.host());
    apt.sources(&archive.source_line(&base));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let learnt = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(learnt) == 2);
    let download = apt.download(&["tool", "toy", "dot"]);
    assert!(download.ok, "{}", download.output);
    for name in ["tool", "toy", "dot"] {
        assert_eq!(mirror.requests(&format!("/debian/{}", archive.deb_path(name))).len(), 0);
    }
    let hits = "aptmesh_engine_served_total{outcome=\"hit\",resource=\"package\"}";
    assert_eq!(proxy.count(hits), 3);
    proxy.check_blobs();
}

#[test]
fn other_caches_folders_are_known_and_nothing_in_them_is_trusted() {
    let (source, outside, data) =
        (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let debs: Vec<Vec<u8>> = (0..6).map(|number| deb(&format!("p{number}"), 1000)).collect();
    let dsc = b"Format: 3.0 (quilt)\nSource: p\n".to_vec();
    let root = source.path();
    // apt
    put(root, "apt/p0_1_all.deb", &debs[0]);
    put(root, "apt/lock", b"");
    put(root, "apt/partial/p9_1_all.deb", &debs[0][..700]);
    // apt-cacher-ng
    put(root, "acng/debrep/pool/main/p/p1_1_all.deb", &debs[1]);
    put(root, "acng/debrep/pool/main/p/p1_1_all.deb.head", b"HTTP/1.1 200 OK\r\n\r\n");
    put(root, "acng/debrep/pool/main/p/p8_1_all.deb", &debs[1][..900]);
    put(root, "acng/debrep/dists/demo/InRelease", b"-----BEGIN PGP SIGNED MESSAGE-----\n");
    put(root, "acng/_actmp/1234", b"x");
    // apt-cacher-rs
    let rs = "rs/ftp.example.org/debian";
    put(root, &format!("{rs}/p2_1_all.deb"), &debs[2]);
    put(root, &format!("{rs}/p7_1_all.deb"), b"<html>please log in</html>");
    put(root, &format!("{rs}/tmp/Xq3f"), &debs[2][..500]);
    let sources = b"Package: p4\nFormat: 1.0\n".to_vec();
    put(root, &format!("{rs}/dists/by-hash/{}", sha256_hex(&sources)), &sources);
    // apt-p2p, and whatever gives files names that say nothing
    put(root, "p2p/cache/0f/3a9b", &debs[3]);
    put(root, "p2p/packages.db", &noise(1, 5000));
    // a mirror's tree
    let packages = b"Package: p4\n".to_vec();
    let by_hash = format!("mirror/dists/demo/main/by-hash/SHA256/{}", sha256_hex(&packages));
    put(root, &by_hash, &packages);
    put(root, "mirror/pool/p4_1_all.deb", &debs[4]);
    put(root, "mirror/pool/p_1.dsc", &dsc);
    put(root, "mirror/pool/again_1_all.deb", &debs[4]);
    symlink("p4_1_all.deb", root.join("mirror/pool/link_1_all.deb")).unwrap();
    // what must not be followed
    put(outside.path(), "p5_1_all.deb", &debs[5]);
    symlink(outside.path(), root.join("mirror/elsewhere")).unwrap();
    let fifo = Command::new("mkfifo").arg(root.join("mirror/pool/pipe_1_all.deb")).status();
    assert!(fifo.unwrap().success());

    let output = import(data.path(), &[root]);
    let words = [
        "new:      8 files",
        "known:    1 files",
        "left out: 12 files",
        "1 folder of unfinished downloads",
        "3 cut short, or otherwise damaged",
        "3 no file of an archive",
        "1 empty",
        "1 release file",
        "2 symbolic link",
        "1 neither file nor folder",
        "p8_1_all.deb: cut short",
        "p7_1_all.deb: cut short",
    ];
    assert_says(&output, &words);
    for stored in debs[..5].iter().chain([&packages, &sources, &dsc]) {
        assert!(is_stored(data.path(), stored));
    }
    assert!(!is_stored(data.path(), &debs[5]), "a link led out of the tree");
}

#[test]
fn a_second_run_copies_nothing_and_what_changed_is_seen() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for number in 0..20 {
        let package = deb(&format!("p{number}"), 100_000 * (number + 1));
        put(source.path(), &format!("p{number}_1_all.deb"), &package);
    }
    let large = deb("large", 6_000_000);
    put(source.path(), "large_1_all.deb", &large);
    assert_says(&import(data.path(), &[source.path()]), &["new:      21 files"]);
    assert_says(
        &import(data.path(), &[source.path()]),
        &["new:      0 files", "known:    21 files"],
    );

    // As large and as old as before, but another.
    let path = source.path().join("p3_1_all.deb");
    let (before, date) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified());
    let mut after = before.clone();
    after[200_000] ^= 1;
    fs::write(&path, &after).unwrap();
    fs::File::options().append(true).open(&path).unwrap().set_modified(date.unwrap()).unwrap();
    assert_says(
        &import(data.path(), &[source.path()]),
        &["new:      1 files", "known:    20 files"],
    );
    for bytes in [&before, &after, &large] {
        assert!(is_stored(data.path(), bytes));
    }
    // The sources are as they were, and not joined to what is stored.
    assert_eq!(fs::read(&path).unwrap(), after);
    fs::write(&path, b"something else").unwrap();
    assert!(is_stored(data.path(), &after));
}

#[test]
fn an_import_that_was_killed_goes_on_where_it_was() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let packages: Vec<Vec<u8>> =
        (0..600).map(|number| deb(&format!("p{number}"), 300_000)).collect();
    for (number, package) in packages.iter().enumerate() {
        put(source.path(), &format!("p{number}_1_all.deb"), package);
    }
    let blobs = || {
        let folders = fs::read_dir(data.path().join("blobs")).into_iter().flatten().flatten();
        folders.map(|folder| fs::read_dir(folder.path()).unwrap().count()).sum::<usize>()
    };
    let mut killed = command(data.path(), &[source.path()]).stdout(Stdio::null()).spawn().unwrap();
    wait_until(PATIENCE, "some are stored", || blobs() > 0);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let before = blobs();

    let output = import(data.path(), &[source.path()]);
    assert_says(&output, &["left out: 0 files"]);
    assert_eq!(blobs(), packages.len());
    assert!(before < packages.len(), "it was over before it was killed");
    assert!(packages.iter().all(|package| is_stored(data.path(), package)));
    // What the killed one left stays for a minute.
    let left = fs::read_dir(data.path().join("staging")).unwrap();
    assert!(left.count() <= 1);
}

#[test]
fn files_of_another_file_system_are_copied_too() {
    let (source, data) = (TempDir::new_in("/dev/shm").unwrap(), TempDir::new().unwrap());
    let (large, small) = (deb("large", 9_000_000), deb("small", 9_000));
    put(source.path(), "large_1_all.deb", &large);
    put(source.path(), "small_1_all.deb", &small);
    assert_says(&import(data.path(), &[source.path()]), &["new:      2 files, 9.0 MB"]);
    assert!(is_stored(data.path(), &large) && is_stored(data.path(), &small));
}

#[test]
fn an_import_keeps_to_the_quota_and_says_so() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for number in 0..8 {
        let package = deb(&format!("p{number}"), 200_000);
        put(source.path(), &format!("p{number}_1_all.deb"), &package);
    }
    let output =
        command(data.path(), &[source.path()]).env("APTMESH_STORE_QUOTA", "1MB").output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("store.quota") && text.contains("new:      4 files"), "{text}");
}

#[test]
fn an_import_of_many_batches_comes_to_its_end() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for number in 0..6000 {
        put(source.path(), &format!("p{number}_1.orig.tar.xz"), &noise(number, 20));
    }
    let mut import = command(data.path(), &[source.path()]);
    let mut import = import.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut ended = None;
    let is_over = || {
        ended = import.try_wait().unwrap();
        ended.is_some()
    };
    // However slow: it must not stand still.
    wait_until(Duration::from_secs(120), "the end of the import", is_over);
    assert!(ended.unwrap().success());
}

#[test]
fn what_an_old_index_knows_and_a_new_volume_lacks_is_imported_again() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let packages: Vec<_> = ["a", "b", "c"].map(|name| deb(name, 50_000)).into();
    for (number, package) in packages.iter().enumerate() {
        put(source.path(), &format!("p{number}_1_all.deb"), package);
    }
    assert_says(&import(data.path(), &[source.path()]), &["new:      3 files"]);
    fs::remove_dir_all(data.path().join("blobs")).unwrap();
    assert_says(&import(data.path(), &[source.path()]), &["new:      3 files"]);
    assert!(packages.iter().all(|package| is_stored(data.path(), package)));
    assert_says(&import(data.path(), &[source.path()]), &["known:    3 files"]);
}

/// A cache with files that nobody may push out for nothing, as many as there is room for.
struct Full {
    data: TempDir,
    before: Vec<Vec<u8>>,
}

impl Full {
    const QUOTA: &str = "50MB";

    /// Five files of 10 MB.
    fn new() -> Self {
        let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let before: Vec<_> = (0..5).map(|number| deb(&format!("b{number}"), 9_900_000)).collect();
        for (number, package) in before.iter().enumerate() {
            put(source.path(), &format!("b{number}_1_all.deb"), package);
        }
        let full = Self { data, before };
        assert_says(&full.import(source.path()), &["new:      5 files"]);
        full
    }

    fn import(&self, source: &Path) -> Output {
        let mut command = command(self.data.path(), &[source]);
        command.env("APTMESH_STORE_QUOTA", Self::QUOTA).output().unwrap()
    }

    fn kept(&self) -> usize {
        self.before.iter().filter(|bytes| is_stored(self.data.path(), bytes)).count()
    }
}

#[test]
fn nothing_goes_for_what_is_not_taken() {
    let (full, source) = (Full::new(), TempDir::new().unwrap());
    let sparse = |path: &str, size: u64| {
        let path = source.path().join(path);
        fs::File::create(path).unwrap().set_len(size).unwrap();
    };
    // Of no archive, and much more than the quota in sum; cut short; larger than all there is.
    for number in 0..20 {
        sparse(&format!("machine{number}.img"), 30_000_000);
    }
    sparse("disk.img", 1 << 42);
    put(source.path(), "cut_1_all.deb", &deb("cut", 20_000_000)[..19_000_000]);
    sparse("huge_1.orig.tar.xz", 60_000_000);
    sparse("endless_1.orig.tar.xz", 1 << 42);
    // Stored already, under other names.
    for (number, package) in full.before.iter().enumerate() {
        put(source.path(), &format!("again{number}_1_all.deb"), package);
    }
    let words = [
        "new:      0 files",
        "known:    5 files",
        "21 no file of an archive",
        "1 cut short, or otherwise damaged",
        "2 larger than all that may be stored",
        "endless_1.orig.tar.xz: larger than",
    ];
    assert_says(&full.import(source.path()), &words);
    assert_eq!(full.kept(), full.before.len());
}

#[test]
fn an_import_ends_rather_than_push_out_what_it_brought() {
    let quota = "50MB";
    let (mirror, source) = (Mirror::start(), TempDir::new().unwrap());
    let names = ["a", "b", "c", "d"];
    let archive = names
        .iter()
        .fold(LocalArchive::new("demo"), |archive, name| archive.package(name, "1", 11_000_000));
    archive.publish(&mirror, "/debian");
    let proxy = Proxy::build().env("APTMESH_STORE_QUOTA", quota).start();
    let fetch = |path: &str| get(proxy.addr(), &proxy.url_for(&mirror, &format!("/debian/{path}")));
    for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
        assert_eq!(fetch(&path).status, 200);
    }
    let learnt = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(learnt) == 2);
    for name in names {
        assert!(fetch(&archive.deb_path(name)).complete);
    }
    proxy.wait_landed();
    proxy.signal("TERM");
    proxy.wait_exit(PATIENCE);

    // What is stored within the second in which an import begins counts as its own.
    std::thread::sleep(Duration::from_millis(1100));
    // What lists name stays, once nothing but that and what was imported is left.
    let packages: Vec<Vec<u8>> = (0..1020).map(|number| noise(100 + number, 50_000)).collect();
    for (number, package) in packages.iter().enumerate() {
        put(source.path(), &format!("p{number}_1.orig.tar.xz"), package);
    }
    let mut import = command(proxy.data(), &[source.path()]);
    let output = import.env("APTMESH_STORE_QUOTA", quota).output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("only push out what was imported"), "{text}");
    let new = text.lines().find_map(|line| line.strip_prefix("new:")?.trim().split(' ').next());
    let stored = packages.iter().filter(|bytes| is_stored(proxy.data(), bytes)).count();
    assert_eq!(new.unwrap().parse(), Ok(stored), "all that was new is there\n{text}");
    assert!(stored >= 256, "{stored}");
    let kept = names.iter().filter(|name| is_stored(proxy.data(), archive.deb(name))).count();
    assert!(kept >= 1, "{kept}");
}

#[test]
fn a_file_that_can_not_be_read_is_left_out_and_the_rest_is_taken() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(source.path(), "good_1_all.deb", &deb("good", 100));
    let _unreadable = Unreadable::at(&source.path().join("bad_1.orig.tar.xz"));
    let words = ["new:      1 files", "left out: 1 files", "bad_1.orig.tar.xz: "];
    let output = import(data.path(), &[source.path()]);
    assert_says(&output, &words);
    assert!(!text(&output).contains("changed while it was read"), "{}", text(&output));
}

#[test]
fn what_is_not_there_any_more_is_not_remembered_but_of_shared_folders() {
    let (data, shared) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(shared.path(), "shared_1_all.deb", &deb("shared", 100));
    let remembered = || -> i64 {
        let index = rusqlite::Connection::open(data.path().join("index.sqlite")).unwrap();
        index.query_row("SELECT count(*) FROM files", [], |row| row.get(0)).unwrap()
    };
    let import = |folder: &Path| {
        let mut command = command(data.path(), &[folder]);
        let output = command.env("APTMESH_STORE_FOLDERS", shared.path()).output().unwrap();
        assert_says(&output, &["left out: 0 files"]);
    };
    import(shared.path());
    fs::remove_file(shared.path().join("shared_1_all.deb")).unwrap();
    for day in 1..4 {
        let source = TempDir::new().unwrap();
        for number in 0..3 {
            put(source.path(), &format!("p{number}_1_all.deb"), &deb(&format!("p{number}"), day));
        }
        import(source.path());
        assert_eq!(remembered(), 1 + 3, "on day {day}");
    }
}

#[test]
fn names_of_files_do_nothing_to_a_terminal() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(source.path(), "\x1b[2J\x1b[31mred_1_all.deb", b"<html>");
    let output = import(data.path(), &[source.path()]);
    assert_says(&output, &["[31mred_1_all.deb: cut short"]);
    assert!(!text(&output).contains('\x1b'), "{:?}", text(&output));
}

#[test]
fn what_is_not_there_and_what_is_the_caches_own_is_said() {
    let data = TempDir::new().unwrap();
    let output = import(data.path(), &[Path::new("/nowhere")]);
    assert!(!output.status.success() && text(&output).contains("there is no /nowhere"));
    let parent = data.path().join("parent");
    put(&parent, "p_1_all.deb", &deb("p", 100));
    let own = parent.join("data");
    assert_says(&import(&own, &[&parent]), &["new:      1 files", "1 the cache's own data"]);
}

#[test]
fn how_far_it_is_shows_as_a_bar_on_a_terminal_and_as_lines_elsewhere() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(source.path(), "p_1_all.deb", &deb("p", 100_000));
    let output = import(data.path(), &[source.path()]);
    assert_says(&output, &["looked at: 10"]);
    assert!(!text(&output).contains("B/s"), "{}", text(&output));

    let import = format!(
        "{} import {} --data {}",
        env!("CARGO_BIN_EXE_aptmesh"),
        source.path().display(),
        data.path().display()
    );
    let terminal = Command::new("script").args(["-qec", &import, "/dev/null"]).output();
    let terminal = text(&terminal.expect("script, of bsdutils"));
    assert!(terminal.contains("B/s") && !terminal.contains("looked at"), "{terminal:?}");
}

#[test]
fn nobody_elses_data_is_written_to() {
    let (source, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(source.path(), "p_1_all.deb", &deb("p", 100));
    std::os::unix::fs::chown(data.path(), Some(65_534), None).expect("root");
    for output in [
        import(data.path(), &[source.path()]),
        aptmesh().args(["scrub", "--data"]).arg(data.path()).output().unwrap(),
    ] {
        assert!(!output.status.success());
        assert!(text(&output).contains("belongs to user 65534"), "{}", text(&output));
    }
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}
