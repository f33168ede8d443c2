//! Why a call to the database failed, and what that tells of the server.

use std::fmt;
use std::time::Duration;

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

use crate::index::FencedOff;
use crate::index::metrics::Outcome;
use crate::index::postgres::health::reasons;
use crate::index::postgres::schema::SchemaMismatch;

/// For how long a server whose disk is full is not written to.
const FULL_FOR: Duration = Duration::from_secs(15);

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No connection can be had.
    NoConnection(PoolError),
    /// The database said so, or the connection broke.
    Database(tokio_postgres::Error),
    /// The schema is not ours.
    Schema(SchemaMismatch),
    /// It took too long.
    Late(Duration),
    /// Nobody asks at the moment.
    NotAsked(&'static str),
    /// The lease under which it was to be written is lost.
    FencedOff,
    /// A row holds what can not be.
    Corrupt(&'static str),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConnection(error) => write!(f, "no connection: {}", reasons(error)),
            Self::Database(error) => f.write_str(&reasons(error)),
            Self::Schema(mismatch) => mismatch.fmt(f),
            Self::Late(patience) => write!(f, "PostgreSQL did not answer within {patience:?}"),
            Self::NotAsked(why) => f.write_str(why),
            Self::FencedOff => FencedOff.fmt(f),
            Self::Corrupt(what) => write!(f, "a row holds {what}"),
        }
    }
}

impl std::error::Error for Trouble {}

impl Trouble {
    /// Whether the same call may succeed at once: others were in its way.
    pub(super) fn is_passing(&self) -> bool {
        let passing = [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE];
        matches!(self, Self::Database(error)
            if error.code().is_some_and(|code| passing.contains(code)))
    }

    /// Whether the server noticed first that time was up.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::QUERY_CANCELED))
    }

    /// Whether it tells that the server is away.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::NoConnection(_) => true,
            // Class 57P0x: shutting down or starting; 08: the connection, also as poolers say it.
            Self::Database(error) => error.code().map_or_else(
                || {
                    error.is_closed()
                        || std::error::Error::source(error)
                            .is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
                },
                |code| {
                    code.code().starts_with("57P0")
                        || code.code().starts_with("08")
                        || *code == SqlState::TOO_MANY_CONNECTIONS
                },
            ),
            Self::Schema(_)
            | Self::Late(_)
            | Self::NotAsked(_)
            | Self::FencedOff
            | Self::Corrupt(_) => false,
        }
    }

    fn is_of(&self, codes: &[SqlState]) -> bool {
        matches!(self, Self::Database(error) if error.code().is_some_and(|code| codes.contains(code)))
    }

    /// For how long at least the server reads, but does not write: it tells by itself whether it is a
    /// standby, or was told so, but not whether its disk is full.
    pub(super) fn refused_write(&self) -> Option<Duration> {
        if self.is_of(&[SqlState::DISK_FULL]) {
            return Some(FULL_FOR);
        }
        self.is_of(&[SqlState::READ_ONLY_SQL_TRANSACTION]).then_some(Duration::ZERO)
    }

    /// Whether the schema may have changed under us.
    pub(super) fn is_of_schema(&self) -> bool {
        self.is_of(&[SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN])
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::NotAsked(_) => Outcome::NotAsked,
            Self::Late(_) => Outcome::Late,
            _ => Outcome::Failed,
        }
    }
}
