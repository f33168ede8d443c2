//! The schema's version, and how it is brought up to date: by `aptmesh migrate`, never by the server,
//! so that of many replicas none does it, and the server needs no right to change tables.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use postgres::IsolationLevel;
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
pub const MIGRATIONS: [Migration; 11] = [
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
    Migration {
        name: "volumes",
        sql: include_str!("../../../migrations/postgres/0009_volumes.sql"),
    },
    Migration {
        name: "tellings",
        sql: include_str!("../../../migrations/postgres/0010_tellings.sql"),
    },
    Migration {
        name: "traffic",
        sql: include_str!("../../../migrations/postgres/0011_traffic.sql"),
    },
];

/// Held while the schema changes: ASCII for `aptmesh` and a number.
const MIGRATING: i64 = 0x6170_746d_6573_6801;

/// How often a step is tried again that waited for who uses its tables: it is not to wait for long, since
/// all who come after it wait for it.
const WAITS_MAX: u32 = 60;
/// How long the others have until then.
const WAIT: Duration = Duration::from_secs(1);

/// The oldest program, told by its own schema's version, that works with the schema as this one leaves
/// it: replicas of two versions run side by side while a site is upgraded. A step that takes away, or
/// gives another meaning to, what older programs use has to wait until nobody runs them, and raises
/// this to the first version that does without.
const WORKS_FROM: usize = 9;

/// The version, and the oldest program's that works with it. Steps that were taken before this was
/// noted work with none but their own.
const VERSION: &str = "SELECT coalesce(max(version), 0),
        coalesce(max(coalesce((to_jsonb(step) ->> 'works_from')::INTEGER, version)), 0)
    FROM schema_versions AS step";

/// The schema is not one that this program works with.
#[derive(Debug, PartialEq, Eq)]
pub struct SchemaMismatch {
    found: Found,
}

/// The state of a schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    version: usize,
    works_from: usize,
}

impl Found {
    fn read(messages: &[SimpleQueryMessage]) -> Self {
        let number = |at| {
            let row = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(at),
                _ => None,
            });
            row.and_then(|number| number.parse().ok()).unwrap_or_default()
        };
        Self { version: number(0), works_from: number(1) }
    }

    /// Whether a program works with it whose own schema is `known`.
    fn suits(self, known: usize) -> bool {
        self.version >= known && self.works_from <= known
    }

    fn ensure(self) -> Result<(), SchemaMismatch> {
        if self.suits(MIGRATIONS.len()) { Ok(()) } else { Err(SchemaMismatch { found: self }) }
    }
}

impl SchemaMismatch {
    /// Whether `aptmesh migrate` of this program helps.
    #[must_use]
    pub fn is_older(&self) -> bool {
        self.found.version < MIGRATIONS.len()
    }
}

impl fmt::Display for SchemaMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Found { version, works_from }, known) = (self.found, MIGRATIONS.len());
        write!(f, "the database's schema is version {version}")?;
        if self.is_older() {
            write!(f, ", this program works with {known}: run `aptmesh migrate`")
        } else {
            let need = "programs of version";
            write!(f, " and for {need} {works_from}, this one is of {known}: use a newer aptmesh")
        }
    }
}

impl Error for SchemaMismatch {}

/// Whether the schema is one that this program works with, in a transaction of its own.
pub(super) async fn check(
    client: &Client,
    begin: &str,
) -> Result<Result<(), SchemaMismatch>, tokio_postgres::Error> {
    let (opened, said, ended) = futures_util::future::join3(
        client.batch_execute(begin),
        client.simple_query(VERSION),
        client.batch_execute("COMMIT"),
    )
    .await;
    opened?;
    let found = match said {
        Ok(messages) => Found::read(&messages),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Found::default(),
        Err(error) => return Err(error),
    };
    ended?;
    Ok(found.ensure())
}

/// Whether the schema is one that this program works with. Blocks.
///
/// # Errors
/// When it is not ([`SchemaMismatch`] is the source), or the database can not be asked.
pub fn verify(config: &Config) -> Result<(), IndexError> {
    let verified = || -> Result<(), Fault> {
        let mut client = connect(config)?;
        Ok(found(&mut client)?.ensure()?)
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
        let mut waits = 0;
        loop {
            match migrate_once(&mut client) {
                Ok(Some(step)) => taken.push(step),
                Ok(None) => return Ok(taken),
                Err(fault) if is_in_the_way(&fault) && waits < WAITS_MAX => {
                    waits += 1;
                    // Those who queued behind the step get their turn.
                    std::thread::sleep(WAIT);
                }
                Err(fault) => return Err(fault),
            }
        }
    };
    migrated().map_err(|source| IndexError { operation: "migrate the database", source })
}

type Fault = Box<dyn Error + Send + Sync>;

fn connect(config: &Config) -> Result<postgres::Client, Fault> {
    let server = postgres::Config::from(config.server.clone());
    Ok(server.connect(tls::connector(config)?)?)
}

/// Whether others used what the step changes for too long.
fn is_in_the_way(fault: &Fault) -> bool {
    let error = fault.downcast_ref::<postgres::Error>();
    error.is_some_and(|error| error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
}

/// The name of the step that was taken; `None`: there is none left.
fn migrate_once(client: &mut postgres::Client) -> Result<Option<&'static str>, Fault> {
    let mut transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start()?;
    transaction.batch_execute(&format!("SELECT pg_advisory_xact_lock({MIGRATING})"))?;
    transaction.batch_execute(
        "SET LOCAL client_min_messages = warning;
         SET LOCAL lock_timeout = '2s';
         CREATE TABLE IF NOT EXISTS schema_versions (
             version    INTEGER PRIMARY KEY,
             name       TEXT NOT NULL,
             applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
         );
         DO $$ BEGIN
             IF NOT EXISTS (SELECT 1 FROM pg_attribute
                            WHERE attrelid = 'schema_versions'::REGCLASS
                                AND attname = 'works_from' AND NOT attisdropped) THEN
                 ALTER TABLE schema_versions ADD COLUMN works_from INTEGER;
             END IF;
         END $$",
    )?;
    let found = Found::read(&transaction.simple_query(VERSION)?);
    let Some(migration) = MIGRATIONS.get(found.version) else {
        found.ensure()?;
        return Ok(None);
    };
    let (name, version) = (migration.name, found.version + 1);
    let works_from = version.min(WORKS_FROM);
    transaction.batch_execute(migration.sql)?;
    transaction.batch_execute(&format!(
        "INSERT INTO schema_versions (version, name, works_from)
         VALUES ({version}, '{name}', {works_from})"
    ))?;
    transaction.commit()?;
    Ok(Some(name))
}

fn found(client: &mut postgres::Client) -> Result<Found, postgres::Error> {
    match client.simple_query(VERSION) {
        Ok(messages) => Ok(Found::read(&messages)),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(Found::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_program_works_with_what_a_newer_one_added() {
        let expanded = Found { version: 9, works_from: 7 };
        assert!(expanded.suits(9) && expanded.suits(8) && expanded.suits(7));
        assert!(!expanded.suits(6), "what it uses is gone");
        assert!(!expanded.suits(10), "what it uses is not there yet");
        assert!(WORKS_FROM <= MIGRATIONS.len());
    }
}
