//! Calls to the database: on pooled connections, within a budget of time, tried again where
//! concurrency was in the way.
//!
//! Nothing is kept in a session: no prepared statement, setting or lock outlives a transaction. So
//! it is no matter whether a pooler such as pgbouncer hands each transaction to another session.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
};
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_util::task::TaskTracker;

use crate::index::postgres::health::{Health, reasons};
use crate::index::postgres::schema::{self, SchemaMismatch};
use crate::index::postgres::tls;
use crate::index::postgres::url::{Config, Patience};
use crate::index::{FencedOff, IndexError};

/// For how long a request waits for the database before it goes on without: what apt's users would
/// not notice, and longer than any statement of a request takes on a database that is well.
pub const CLIENT_PATIENCE: Duration = Duration::from_millis(200);
/// How often a call is tried where others were in its way: deadlocks, which the order of locks should
/// rule out, and serialization failures.
const ATTEMPTS_MAX: u32 = 3;
/// How much longer than its caller the server waits for a statement: the caller is to be the first, and
/// know why.
const GIVE_UP_AFTER: Duration = Duration::from_millis(100);
/// For how long the server waits for a caller in the midst of a transaction: one that is paused holds
/// locks that others wait for.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// A parameter and its type: that is told, so that a statement takes one round trip.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A statement and its parameters.
pub(super) struct Statement<'a> {
    pub(super) sql: &'a str,
    pub(super) parameters: &'a [Parameter<'a>],
}

/// What a call is for, and who waits for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purpose {
    /// Completes "could not …".
    operation: &'static str,
    /// Whether only background work waits.
    is_background: bool,
    /// Whether it only reads: then it waits for nobody's locks, and its lateness tells of the server.
    only_reads: bool,
}

impl Purpose {
    /// A client waits for what is read.
    pub(super) const fn read(operation: &'static str) -> Self {
        Self { operation, is_background: false, only_reads: true }
    }

    /// A client may wait until it is written.
    pub(super) const fn write(operation: &'static str) -> Self {
        Self { operation, is_background: false, only_reads: false }
    }

    /// Completes "could not …".
    pub(super) const fn operation(self) -> &'static str {
        self.operation
    }

    /// No client waits.
    pub(super) const fn in_background(self) -> Self {
        Self { is_background: true, ..self }
    }
}

/// The server is away, which was told when it was noticed; nobody was asked this time.
#[derive(Debug, Error)]
#[error("PostgreSQL is away")]
pub struct Away;

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
    Away,
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
            Self::Away => Away.fmt(f),
            Self::FencedOff => FencedOff.fmt(f),
            Self::Corrupt(what) => write!(f, "a row holds {what}"),
        }
    }
}

impl std::error::Error for Trouble {}

impl Trouble {
    /// Whether the same call may succeed at once: others were in its way.
    fn is_passing(&self) -> bool {
        let passing = [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE];
        matches!(self, Self::Database(error)
            if error.code().is_some_and(|code| passing.contains(code)))
    }

    /// Whether the server noticed first that time was up.
    fn is_cancelled(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::QUERY_CANCELED))
    }

    /// Whether it tells that the server is away.
    fn is_outage(&self) -> bool {
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
            Self::Schema(_) | Self::Late(_) | Self::Away | Self::FencedOff | Self::Corrupt(_) => {
                false
            }
        }
    }
}

/// The way to the database.
pub(super) struct Calls {
    pool: Pool,
    health: Health,
    patience: Patience,
    /// Connections that background work may take, so that clients find some.
    background: Semaphore,
    schema_is_right: AtomicBool,
    tasks: TaskTracker,
}

impl Calls {
    /// Connects to nobody yet.
    pub(super) fn new(config: &Config) -> Result<Self, IndexError> {
        let fault = |source| IndexError { operation: "prepare connections", source };
        let tls = tls::connector(config).map_err(fault)?;
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(config.server.clone(), tls, recycling);
        let pool = Pool::builder(manager)
            .max_size(config.connections)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(config.connect_timeout()))
            .wait_timeout(Some(config.patience.background))
            .build()
            .map_err(|error| fault(error.into()))?;
        Ok(Self {
            pool,
            health: Health::default(),
            patience: config.patience,
            background: Semaphore::new((config.connections / 2).max(1)),
            schema_is_right: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        })
    }

    /// The rows of one statement.
    pub(super) async fn rows(
        &self,
        purpose: Purpose,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, IndexError> {
        self.rows_of_last(purpose, &[Statement { sql, parameters }]).await
    }

    /// Runs statements one after the other, each a transaction of its own, in one round trip; the
    /// rows of the last.
    pub(super) async fn rows_of_last(
        &self,
        purpose: Purpose,
        statements: &[Statement<'_>],
    ) -> Result<Vec<Row>, IndexError> {
        let mut answers = self.rows_of_each(purpose, statements).await?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// The same; the rows of each.
    pub(super) async fn rows_of_each(
        &self,
        purpose: Purpose,
        statements: &[Statement<'_>],
    ) -> Result<Vec<Vec<Row>>, IndexError> {
        let begin = &self.beginning(purpose);
        self.run(purpose, || async move {
            let connection = self.connection().await?;
            let client: &Client = &connection;
            let answers = statements.iter().map(|one| transact(client, begin, one));
            let answers = futures_util::future::join_all(answers).await;
            connection.give_back();
            Ok(answers.into_iter().collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Runs `attempt` until it succeeds, fails for good, or time is up.
    pub(super) async fn run<T, F>(
        &self,
        purpose: Purpose,
        attempt: impl Fn() -> F + Send,
    ) -> Result<T, IndexError>
    where
        T: Send,
        F: Future<Output = Result<T, Trouble>> + Send,
    {
        let outcome = match self.permit(purpose).await {
            Ok(_permit) if self.health.admits(Instant::now()) => {
                let attempts = tried_again(attempt);
                let patience = self.patience(purpose);
                let outcome = timeout(patience, attempts).await;
                let outcome = match outcome {
                    Ok(Err(trouble)) if trouble.is_cancelled() => Err(Trouble::Late(patience)),
                    outcome => outcome.unwrap_or(Err(Trouble::Late(patience))),
                };
                self.note(purpose, outcome.as_ref().err());
                outcome
            }
            Ok(_permit) => Err(Trouble::Away),
            Err(late) => Err(late),
        };
        outcome.map_err(|trouble| IndexError {
            operation: purpose.operation,
            source: match trouble {
                Trouble::Schema(mismatch) => mismatch.into(),
                Trouble::Away => Away.into(),
                Trouble::FencedOff => FencedOff.into(),
                trouble => trouble.into(),
            },
        })
    }

    /// Background work waits for its turn; that it waits long tells nothing of the server.
    async fn permit(&self, purpose: Purpose) -> Result<Option<SemaphorePermit<'_>>, Trouble> {
        if !purpose.is_background {
            return Ok(None);
        }
        let patience = self.patience(purpose);
        let permit = timeout(patience, self.background.acquire()).await;
        // It is never closed.
        permit.map(Result::ok).map_err(|_elapsed| Trouble::Late(patience))
    }

    fn patience(&self, purpose: Purpose) -> Duration {
        if purpose.is_background { self.patience.background } else { self.patience.client }
    }

    /// What begins a transaction. The server gives up its statements soon after nobody waits for them
    /// any more: an order to stop them, sent when that is so, is lost on a pooler.
    pub(super) fn beginning(&self, purpose: Purpose) -> String {
        let millis = (self.patience(purpose) + GIVE_UP_AFTER).as_millis();
        let silence = SILENCE_MAX.as_millis();
        format!(
            "BEGIN; SET LOCAL statement_timeout = {millis}; \
             SET LOCAL idle_in_transaction_session_timeout = {silence}"
        )
    }

    fn note(&self, purpose: Purpose, trouble: Option<&Trouble>) {
        match trouble {
            Some(late @ Trouble::Late(_)) if purpose.only_reads => self.give_up(late),
            // A write may have waited for a lock. Where there are connections, there may only be no
            // room for one more.
            Some(Trouble::Away | Trouble::Late(_)) => {}
            Some(Trouble::NoConnection(_)) if self.pool.status().size > 0 => {}
            Some(outage) if outage.is_outage() => self.give_up(outage),
            None | Some(_) => self.health.answered(),
        }
    }

    /// Connections to a server that stays away are no good when it is back: it may be another.
    fn give_up(&self, why: &Trouble) {
        if self.health.failed(why, Instant::now()) {
            self.pool.retain(|_, _| false);
        }
    }

    /// A connection to a database with the right schema.
    pub(super) async fn connection(&self) -> Result<Connection, Trouble> {
        let pool = self.pool.clone();
        // Who asks may give up, but a connection that is being made is there for the next.
        let getting = self.tasks.spawn(async move { pool.get().await });
        let got = getting.await.map_err(|_| Trouble::Away)?;
        let object = got.map_err(Trouble::NoConnection)?;
        let connection = Connection { object: Some(object) };
        if !self.schema_is_right.load(Ordering::Relaxed) {
            match schema::check(&connection).await {
                Ok(Ok(())) => self.schema_is_right.store(true, Ordering::Relaxed),
                Ok(Err(mismatch)) => {
                    connection.give_back();
                    return Err(Trouble::Schema(mismatch));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(connection)
    }
}

async fn tried_again<T, F>(attempt: impl Fn() -> F + Send) -> Result<T, Trouble>
where
    F: Future<Output = Result<T, Trouble>> + Send,
{
    let mut number = 1;
    loop {
        match attempt().await {
            Err(trouble) if trouble.is_passing() && number < ATTEMPTS_MAX => number += 1,
            outcome => return outcome,
        }
    }
}

/// A connection on loan.
pub(super) struct Connection {
    object: Option<Object>,
}

impl Connection {
    /// All that was asked is answered: it may be used again.
    pub(super) fn give_back(mut self) {
        drop(self.object.take());
    }
}

impl Deref for Connection {
    type Target = Object;

    #[expect(clippy::expect_used, reason = "it is only taken where the loan ends")]
    fn deref(&self) -> &Object {
        self.object.as_ref().expect("a connection")
    }
}

/// What it is doing, nobody waits for any more; the server gives that up by itself.
impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

/// One statement in a transaction of its own, in one round trip.
pub(super) async fn transact(
    client: &Client,
    begin: &str,
    statement: &Statement<'_>,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let (opened, rows, ended) = futures_util::future::join3(
        client.batch_execute(begin),
        client.query_typed(statement.sql, statement.parameters),
        client.batch_execute("COMMIT"),
    )
    .await;
    opened?;
    let rows = rows?;
    ended?;
    Ok(rows)
}
