//! What every index must do, shown on every make of it.

mod conformance;
mod kit;
mod leases;
mod postgres;
mod tellings;
mod volumes;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aptmesh::content::digest::Sha256;
use aptmesh::index::Index as _;
use aptmesh::index::sqlite::{Config, SqliteIndex};

#[test]
fn sqlite_in_memory_conforms() {
    conformance::run(|| SqliteIndex::open(&Config::Memory).unwrap());
}

#[test]
fn sqlite_in_a_file_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let mut number = 0;
    conformance::run(|| {
        number += 1;
        let path = folder.path().join(format!("{number}.sqlite"));
        SqliteIndex::open(&Config::File(path)).unwrap()
    });
}

#[test]
fn sqlite_in_a_file_survives_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::File(folder.path().join("index.sqlite"));
    conformance::survives(|| SqliteIndex::open(&config).unwrap());
}

#[test]
fn what_reads_before_it_writes_waits_for_other_processes() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::File(folder.path().join("index.sqlite"));
    let index = SqliteIndex::open(&config).unwrap();
    let other = rusqlite::Connection::open(folder.path().join("index.sqlite")).unwrap();
    other.busy_timeout(Duration::from_secs(60)).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let is_over = &is_over;
        // As `import`, `scrub` and `evict` do beside a running cache.
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                other.execute_batch("BEGIN IMMEDIATE; UPDATE volume SET floor = floor").unwrap();
                std::thread::sleep(Duration::from_millis(5));
                other.execute_batch("COMMIT").unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| conformance::learns(&index)));
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}

#[test]
fn no_look_up_waits_for_a_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = SqliteIndex::open(&Config::File(path.clone())).unwrap();
    let rows = "INSERT INTO lists (id, key, learnt_at, asked_at) VALUES (1, 'm/list', 0, 0);
        WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 200000)
        INSERT INTO expectations SELECT 1, 'm/' || n, n, randomblob(32) FROM number;";
    rusqlite::Connection::open(path).unwrap().execute_batch(rows).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let counts = futures_util::future::join_all((0..100).map(|_| index.totals()));
        tokio::select! {
            biased;
            counted = counts => panic!("{} counts came first", counted.len()),
            found = index.look_up("m/1") => assert_eq!(found.unwrap(), None),
        }
        assert_eq!(index.totals().await.unwrap().expectations, 200_000);
    });
}

#[test]
fn a_corrupt_file_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    conformance::run_once(&SqliteIndex::open(&Config::File(path.clone())).unwrap());
    assert!(path.with_extension("corrupt").exists());
}

#[test]
fn a_schema_from_the_future_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 1_000).unwrap();
    drop(connection);
    let error = SqliteIndex::open(&Config::File(path)).err().unwrap();
    assert!(error.source.to_string().contains("1000"), "{}", error.source);
}

#[test]
fn what_an_older_version_stored_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let old = rusqlite::Connection::open(&path).unwrap();
    for migration in [
        include_str!("../../migrations/sqlite/0001_resources.sql"),
        include_str!("../../migrations/sqlite/0002_expectations.sql"),
    ] {
        old.execute_batch(migration).unwrap();
    }
    let digest = |body: &[u8]| *Sha256::of(body).as_bytes();
    for (key, body, size) in [("m/a", b"a", 7), ("n/a", b"a", 7), ("m/b", b"b", 5)] {
        let row = (key, digest(body), size);
        old.execute("INSERT INTO resources VALUES (?, ?, ?, NULL, NULL, NULL, 9)", row).unwrap();
    }
    old.execute("INSERT INTO lists VALUES (1, 'm/list', NULL, 0)", []).unwrap();
    old.execute("INSERT INTO expectations VALUES (1, 'm/a', 7, ?)", [digest(b"a")]).unwrap();
    old.pragma_update(None, "user_version", 2).unwrap();
    drop(old);

    let index = SqliteIndex::open(&Config::File(path)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let volume = index.volume().await.unwrap();
        assert_eq!((volume.blobs, volume.bytes), (2, 12));
        let named = index.blob(&Sha256::of(b"a")).await.unwrap().unwrap();
        assert_eq!((named.size, named.unreferenced_since), (7, None));
        let other = index.blob(&Sha256::of(b"b")).await.unwrap().unwrap();
        assert!(other.unreferenced_since.is_some_and(|since| since > 1_700_000_000));
        assert!(index.disused_lists(1_700_000_000, 9).await.unwrap().is_empty());
    });
}
