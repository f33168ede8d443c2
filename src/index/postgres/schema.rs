//! The schema's version, and how it is brought up to date: by `aptmesh migrate`, never by the server,
//! so that of many replicas none does it, and the server needs no right to change tables.

use std::error::Error;
use std::fmt;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::index::IndexError;
use crate::index::postgres::tls;
use crate::index::postgres::url::Config;

/// A step of the schema.
pub struct Migration {
    /// The name of its file, after the number.
    pub name: &'static str,
    sql: &'static str,
}

/// Each brings the schema one version up; the version is their number.
pub const MIGRATIONS: [Migration; 8] = [
    Migration {
        name: "resources",
        sql: include_str!("../../../migrations/postgres/0001_resources.sql"),
    },
    Migration {
        name: "expectations",
        sql: include_str!("../../../migrations/postgres/0002_expectations.sql"),
    },
    Migration { name: "blobs", sql: include_str!("../../../migrations/postgres/0003_blobs.sql") },
    Migration { name: "files", sql: include_str!("../../../migrations/postgres/0004_files.sql") },
    Migration { name: "absent", sql: include_str!("../../../migrations/postgres/0005_absent.sql") },
    Migration {
        name: "knowledge",
        sql: include_str!("../../../migrations/postgres/0006_knowledge.sql"),
    },
    Migration { name: "leases", sql: include_str!("../../../migrations/postgres/0007_leases.sql") },
    Migration {
        name: "errands",
        sql: include_str!("../../../migrations/postgres/0008_errands.sql"),
    },
];

/// Held while the schema changes: ASCII for `aptmesh` and a number.
const MIGRATING: i64 = 0x6170_746d_6573_6801;

const VERSION: &str = "SELECT coalesce(max(version), 0) FROM schema_versions";

/// The schema is not the one that this program works with.
#[derive(Debug, PartialEq, Eq)]
pub struct SchemaMismatch {
    found: usize,
}

impl SchemaMismatch {
    /// Whether `aptmesh migrate` of this program helps.
    #[must_use]
    pub fn is_older(&self) -> bool {
        self.found < MIGRATIONS.len()
    }
}

impl fmt::Display for SchemaMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (found, known) = (self.found, MIGRATIONS.len());
        write!(f, "the database's schema is version {found}, this program works with {known}: ")?;
        f.write_str(if self.is_older() { "run `aptmesh migrate`" } else { "use a newer aptmesh" })
    }
}

impl Error for SchemaMismatch {}

/// Whether the schema is the one that this program works with.
pub(super) async fn check(
    client: &Client,
) -> Result<Result<(), SchemaMismatch>, tokio_postgres::Error> {
    let found = match client.simple_query(VERSION).await {
        Ok(messages) => version_in(&messages),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => 0,
        Err(error) => return Err(error),
    };
    Ok(matching(found))
}

fn matching(found: usize) -> Result<(), SchemaMismatch> {
    if found == MIGRATIONS.len() { Ok(()) } else { Err(SchemaMismatch { found }) }
}

fn version_in(messages: &[SimpleQueryMessage]) -> usize {
    let version = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Whether the schema is the one that this program works with. Blocks.
///
/// # Errors
/// When it is not ([`SchemaMismatch`] is the source), or the database can not be asked.
pub fn verify(config: &Config) -> Result<(), IndexError> {
    let verified = || -> Result<(), Fault> {
        let mut client = connect(config)?;
        Ok(matching(version_of(&mut client)?)?)
    };
    verified().map_err(|source| IndexError { operation: "use the database", source })
}

/// Brings the schema up to date, each step in a transaction of its own that holds a lock, so that it
/// is no matter how many do so at once. Blocks. The names of the steps that were taken.
///
/// # Errors
/// When the schema is newer than this program ([`SchemaMismatch`] is the source), or a step fails;
/// the steps before it stay.
pub fn migrate(config: &Config) -> Result<Vec<&'static str>, IndexError> {
    let migrated = || -> Result<Vec<&'static str>, Fault> {
        let mut client = connect(config)?;
        let mut taken = Vec::new();
        while let Some(step) = migrate_once(&mut client)? {
            taken.push(step);
        }
        Ok(taken)
    };
    migrated().map_err(|source| IndexError { operation: "migrate the database", source })
}

type Fault = Box<dyn Error + Send + Sync>;

fn connect(config: &Config) -> Result<postgres::Client, Fault> {
    let server = postgres::Config::from(config.server.clone());
    Ok(server.connect(tls::connector(config)?)?)
}

/// The name of the step that was taken; `None`: there is none left.
fn migrate_once(client: &mut postgres::Client) -> Result<Option<&'static str>, Fault> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(&format!("SELECT pg_advisory_xact_lock({MIGRATING})"))?;
    transaction.batch_execute(
        "SET LOCAL client_min_messages = warning;
         CREATE TABLE IF NOT EXISTS schema_versions (
             version    INTEGER PRIMARY KEY,
             name       TEXT NOT NULL,
             applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
         )",
    )?;
    let found = version_in(&transaction.simple_query(VERSION)?);
    let Some(migration) = MIGRATIONS.get(found) else {
        matching(found)?;
        return Ok(None);
    };
    let (name, version) = (migration.name, found + 1);
    transaction.batch_execute(migration.sql)?;
    transaction.batch_execute(&format!(
        "INSERT INTO schema_versions (version, name) VALUES ({version}, '{name}')"
    ))?;
    transaction.commit()?;
    Ok(Some(name))
}

fn version_of(client: &mut postgres::Client) -> Result<usize, postgres::Error> {
    match client.simple_query(VERSION) {
        Ok(messages) => Ok(version_in(&messages)),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(0),
        Err(error) => Err(error),
    }
}
