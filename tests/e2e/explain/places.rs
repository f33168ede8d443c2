//! Where it is stored: on the volume, in folders, or where the index and the volume do not say.

use super::*;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

#[test]
fn a_volume_that_says_nothing_has_lost_nothing() {
    let (remote, index, mirror) = (Remote::mounted(), TempDir::new().unwrap(), Mirror::start());
    let cold = "/debian/pool/c/cold_1.orig.tar.xz";
    for (path, seed, size) in [(TOOL, 1, 900), (cold, 2, MB)] {
        mirror.put(path, File::new(noise(seed, size)));
    }
    let url = format!("sqlite:{}", index.path().join("index.sqlite").display());
    let mut proxy = Proxy::build().data(&remote.path()).env("APTMESH_INDEX_URL", url).start();
    fetch(&proxy, &mirror, cold);
    proxy.restart();
    fetch(&proxy, &mirror, TOOL);
    let frozen = remote.freeze();
    let told = explained(&proxy, &url_of(&mirror, cold));
    assert_eq!(told["stored"]["place"], "unknown", "{told}");
    assert_ne!(would(&told).0, "serve");
    assert!(!would(&told).1.contains("is gone"), "{told}");
    // What is small is in memory.
    let told = explained(&proxy, &url_of(&mirror, TOOL));
    let stored = &told["stored"];
    assert_eq!((&stored["place"], &stored["is_in_memory"]), (&"unknown".into(), &true.into()));
    assert_eq!(would(&told).0, "serve", "{told}");
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, TOOL)).body, noise(1, 900));
    let page = command(&proxy, &[&url_of(&mirror, cold)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("in the index, while the volume does not answer"), "{page}");
    drop(frozen);
    wait_until(PATIENCE, "the volume is back", || {
        explained(&proxy, &url_of(&mirror, cold))["stored"]["place"] == "volume"
    });
}

#[test]
fn shared_folders_serve_what_is_there_and_imported_files_do_not() {
    let (mirror, folder) = (Mirror::start(), TempDir::new().unwrap());
    let archive =
        LocalArchive::new("demo").package("tool", "1", 100_000).package("toy", "1", 100_000);
    archive.publish(&mirror, "/debian");
    let (shared, other) = (folder.path().join("shared"), folder.path().join("other"));
    for (folder, name) in [(&shared, "tool"), (&other, "toy")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("a.deb"), archive.deb(name)).unwrap();
    }
    let proxy = Proxy::build().env("APTMESH_STORE_FOLDERS", &shared).start();
    let mut import = aptmesh();
    import.arg("import").arg(&other).arg("--data").arg(proxy.data());
    let import = import.env("APTMESH_STORE_MIN_FREE", "0").output().unwrap();
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    let files = || proxy.count("aptmesh_store_shared_files");
    wait_until(PATIENCE, "the folder's file", || files() == 1);
    fetch(&proxy, &mirror, groups::RELEASE);
    fetch(&proxy, &mirror, &format!("/debian/{}", archive.index_path()));
    wait_until(PATIENCE, "both lists are learnt", || proxy.count(LEARNT) >= 2);
    let told = |name| explained(&proxy, &url_of(&mirror, &groups::pool(&archive, name)));

    let tool = told("tool");
    let place = &tool["stored"];
    assert_eq!((&place["place"], would(&tool).0), (&"folders".into(), "serve"), "{tool}");
    let at = Path::new(place["at"][0].as_str().unwrap());
    assert_eq!(fs::read(at).unwrap(), archive.deb("tool"));
    assert!(at.starts_with(fs::canonicalize(&shared).unwrap()), "{tool}");
    // Changed by its owner, and so another file.
    fs::write(shared.join("a.deb"), archive.deb("toy")).unwrap();
    let changed = told("tool");
    assert_eq!((&changed["stored"], would(&changed).0), (&Value::Null, "fetch"), "{changed}");

    let toy = told("toy");
    assert_eq!((&toy["stored"]["place"], would(&toy).0), (&"volume".into(), "serve"), "{toy}");
    fs::remove_file(toy["stored"]["at"][0].as_str().unwrap()).unwrap();
    let gone = told("toy");
    assert_eq!((&gone["stored"]["place"], would(&gone).0), (&"nowhere".into(), "fetch"), "{gone}");
}

#[test]
fn an_index_that_hangs_is_not_waited_for() {
    let (remote, mirror) = (Remote::mounted(), Mirror::start());
    mirror.put(TOOL, File::new(noise(1, 900)));
    let file = remote.path().join("index.sqlite");
    let url = format!("sqlite:{}", file.display());
    let mut proxy = Proxy::build().env("APTMESH_INDEX_URL", url).start();
    fetch(&proxy, &mirror, TOOL);
    proxy.signal("TERM");
    proxy.wait_exit(PATIENCE);
    // So large that what is asked for is read from the disk.
    let index = rusqlite::Connection::open(&file).unwrap();
    let filler = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
        INSERT INTO resources SELECT 'http://' || hex(randomblob(40)), randomblob(32), 1, NULL, NULL, NULL, 1
        FROM n";
    index.execute_batch(filler).unwrap();
    drop(index);
    proxy.restart();
    let frozen = remote.freeze();
    let told = command(&proxy, &[&url_of(&mirror, TOOL)]);
    let words = String::from_utf8(told.stdout).unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(words.contains("unknown: the index does not answer"), "{words}");
    assert!(words.contains("The index does not say whether it is stored."), "{words}");
    drop(frozen);
}

#[test]
fn without_the_index_what_is_named_by_its_content_is_found_on_the_volume() {
    let mirror = Mirror::start();
    let bytes = noise(1, MB);
    let path = format!("/debian/pool/by-hash/SHA256/{}", sha256_hex(&bytes));
    mirror.put(&path, File::new(bytes));
    mirror.put(TOOL, File::new(noise(2, MB)));
    let mut proxy = Proxy::start();
    for path in [path.as_str(), TOOL] {
        fetch(&proxy, &mirror, path);
    }
    proxy.restart();
    let index = rusqlite::Connection::open(proxy.data().join("index.sqlite")).unwrap();
    index.busy_timeout(PATIENCE).unwrap();
    index.execute_batch("ALTER TABLE resources RENAME TO gone").unwrap();
    let told = explained(&proxy, &url_of(&mirror, &path));
    assert_eq!((&told["stored"]["place"], would(&told).0), (&"volume".into(), "serve"), "{told}");
    assert_eq!(told["is_index_silent"], true);
    mirror.clear_log();
    get(proxy.addr(), &proxy.url_for(&mirror, &path));
    assert_eq!(mirror.log().len(), 0, "so it was");
    let page = command(&proxy, &[&url_of(&mirror, TOOL)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("unknown: the index does not answer"), "{page}");
}
