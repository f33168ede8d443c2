//! Opening the file: its settings and its schema.

use std::path::Path;
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::index::IndexError;

/// Each brings the schema one version up; the version is SQLite's `user_version`.
const MIGRATIONS: [&str; 11] = [
    include_str!("../../../migrations/sqlite/0001_resources.sql"),
    include_str!("../../../migrations/sqlite/0002_expectations.sql"),
    include_str!("../../../migrations/sqlite/0003_blobs.sql"),
    include_str!("../../../migrations/sqlite/0004_files.sql"),
    include_str!("../../../migrations/sqlite/0005_absent.sql"),
    include_str!("../../../migrations/sqlite/0006_knowledge.sql"),
    include_str!("../../../migrations/sqlite/0007_leases.sql"),
    include_str!("../../../migrations/sqlite/0008_errands.sql"),
    include_str!("../../../migrations/sqlite/0009_volumes.sql"),
    include_str!("../../../migrations/sqlite/0010_tellings.sql"),
    include_str!("../../../migrations/sqlite/0011_traffic.sql"),
];

/// For how long a statement waits for another connection's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages of a copy between two looks at other work, of which there is none.
const PAGES_AT_ONCE: std::ffi::c_int = 10_000;

pub(super) fn open_file(path: &Path) -> Result<Connection, IndexError> {
    prepare(Connection::open(path)).map_err(could_not_open)
}

pub(super) fn open_memory() -> Result<Connection, IndexError> {
    prepare(Connection::open_in_memory()).map_err(could_not_open)
}

/// A copy in memory of a file that may only be read.
pub(super) fn copy_to_memory(path: &Path) -> Result<Connection, IndexError> {
    let copy = || -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        let file = open_read_only(path)?;
        let mut memory = Connection::open_in_memory()?;
        Backup::new(&file, &mut memory)?.run_to_completion(PAGES_AT_ONCE, Duration::ZERO, None)?;
        prepare(Ok(memory))
    };
    copy().map_err(could_not_open)
}

/// With its write-ahead log, if that is there; else the file alone is all there is, and must be
/// called immutable for SQLite to do without a place for the log.
fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let readable = |connection: &Connection| {
        connection.pragma_query_value(None, "schema_version", |row| row.get::<_, i64>(0)).map(drop)
    };
    let with_log = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    if let Ok(connection) = with_log
        && readable(&connection).is_ok()
    {
        return Ok(connection);
    }
    let escaped =
        path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
}

/// Whether the file is no database, or a broken one.
pub(super) fn is_corrupt(error: &IndexError) -> bool {
    error
        .source
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code)
        .is_some_and(|code| matches!(code, ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

fn could_not_open(source: Box<dyn std::error::Error + Send + Sync>) -> IndexError {
    IndexError { operation: "open the index", source }
}

fn prepare(
    opened: rusqlite::Result<Connection>,
) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let mut connection = opened?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // A transaction that reads first and then finds another process writing fails at once: only one
    // that means to write from its start waits for its turn.
    connection.set_transaction_behavior(TransactionBehavior::Immediate);
    // With a write-ahead log, `NORMAL` may lose the last commits in a power cut, never the file's
    // consistency: what is lost is learnt again.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    migrate(&mut connection)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let transaction = connection.transaction()?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(version)?;
    if done > MIGRATIONS.len() {
        let known = MIGRATIONS.len();
        return Err(format!("its schema is version {done}, this program knows {known}").into());
    }
    for migration in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", i64::try_from(MIGRATIONS.len())?)?;
    transaction.commit()?;
    Ok(())
}
