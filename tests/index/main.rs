//! What every index must do, shown on every make of it.

mod conformance;

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
