//! Opening the file: its settings and its schema.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::index::IndexError;

/// Each brings the schema one version up; the version is SQLite's `user_version`.
const MIGRATIONS: [&str; 1] = [include_str!("../../../migrations/sqlite/0001_resources.sql")];

/// For how long a statement waits for another connection's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn open_file(path: &Path) -> Result<Connection, IndexError> {
    prepare(Connection::open(path)).map_err(could_not_open)
}

pub(super) fn open_memory() -> Result<Connection, IndexError> {
    prepare(Connection::open_in_memory()).map_err(could_not_open)
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
    // With a write-ahead log, `NORMAL` may lose the last commits in a power cut, never the file's
    // consistency: what is lost is learnt again.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    migrate(&mut connection)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
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
