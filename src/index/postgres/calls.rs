//! Calls to the database: on pooled connections, within a budget of time, tried again where
//! concurrency was in the way.
//!
//! Nothing is kept in a session: no prepared statement, setting or lock outlives a transaction. So
//! it is no matter whether a pooler such as pgbouncer hands each transaction to another session.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
};
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, SimpleQueryMessage};
use tokio_util::task::TaskTracker;

use crate::index::budget::{self, Budget};
use crate::index::metrics::{IndexMetrics, Outcome};
use crate::index::postgres::gauges::Gauges;
use crate::index::postgres::health::{Condition, Health, Reach, reasons};
use crate::index::postgres::hosts::Hosts;
use crate::index::postgres::schema::{self, SchemaMismatch};
use crate::index::postgres::tls;
use crate::index::postgres::url::Config;
use crate::index::postgres::volumes::{self, Own};
use crate::index::{FencedOff, IndexError};
use crate::telemetry::metrics::Metrics;

/// How often a server that is away is looked after: as long as apt waits before it tries again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long a server whose disk is full is not written to.
const FULL_FOR: Duration = Duration::from_secs(15);
/// Connections that are opened ahead of need.
const WARM_MAX: usize = 8;
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

/// What a call is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purpose {
    /// Completes "could not …".
    operation: &'static str,
    /// Whether it only reads: then it waits for nobody's locks, and its lateness tells of the server.
    only_reads: bool,
    /// Whether it does not wait for a turn among other background work.
    is_urgent: bool,
}

impl Purpose {
    pub(super) const fn read(operation: &'static str) -> Self {
        Self { operation, only_reads: true, is_urgent: false }
    }

    pub(super) const fn write(operation: &'static str) -> Self {
        Self { operation, only_reads: false, is_urgent: false }
    }

    /// It can not wait, whoever waits for it.
    pub(super) const fn urgent(self) -> Self {
        Self { is_urgent: true, ..self }
    }

    /// Completes "could not …".
    pub(super) const fn operation(self) -> &'static str {
        self.operation
    }
}

/// Nobody was asked this time, for a reason that was told when it was noticed.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct NotAsked(&'static str);

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
    fn refused_write(&self) -> Option<Duration> {
        if self.is_of(&[SqlState::DISK_FULL]) {
            return Some(FULL_FOR);
        }
        self.is_of(&[SqlState::READ_ONLY_SQL_TRANSACTION]).then_some(Duration::ZERO)
    }

    /// Whether the schema may have changed under us.
    fn is_of_schema(&self) -> bool {
        self.is_of(&[SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN])
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::NotAsked(_) => Outcome::NotAsked,
            Self::Late(_) => Outcome::Late,
            _ => Outcome::Failed,
        }
    }
}

/// The way to the database.
pub(super) struct Calls {
    link: Arc<Link>,
    /// Connections that background work may take, so that clients find some.
    background: Semaphore,
    metrics: Option<IndexMetrics>,
}

/// What is looked after.
struct Link {
    pool: Pool,
    health: Health,
    /// For how long is waited where no client does.
    patience: Duration,
    has_several_hosts: bool,
    schema_is_right: AtomicBool,
    volume: Own,
    tasks: TaskTracker,
}

impl Calls {
    /// Connects to nobody yet.
    pub(super) fn new(config: &Config) -> Result<Self, IndexError> {
        let fault = |source| IndexError { operation: "prepare connections", source };
        let tls = tls::connector(config).map_err(fault)?;
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let hosts = Hosts::new(config.each.clone(), tls, config.connect_timeout());
        let manager = Manager::from_connect(config.server.clone(), hosts, recycling);
        let number = u32::try_from(config.each.len()).unwrap_or(u32::MAX);
        let pool = Pool::builder(manager)
            .max_size(config.connections)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(config.connect_timeout().saturating_mul(number)))
            .wait_timeout(Some(config.patience))
            .build()
            .map_err(|error| fault(error.into()))?;
        let link = Link {
            pool,
            health: Health::default(),
            patience: config.patience,
            has_several_hosts: number > 1,
            schema_is_right: AtomicBool::new(false),
            volume: Own::new(config.volume),
            tasks: TaskTracker::new(),
        };
        let background = Semaphore::new((config.connections / 2).max(1));
        Ok(Self { link: Arc::new(link), background, metrics: None })
    }

    /// Tells `metrics` of its calls and connections.
    pub(super) fn observed(self, metrics: &Metrics) -> Self {
        let link = Arc::downgrade(&self.link);
        metrics.collect(Gauges::new(self.link.pool.clone(), move || {
            link.upgrade().is_some_and(|link| link.health.trouble().is_none())
        }));
        Self { metrics: Some(IndexMetrics::new(metrics)), ..self }
    }

    /// What is wrong with the server, in words.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.link.health.trouble()
    }

    /// A connection to a database with the right schema.
    pub(super) async fn connection(&self) -> Result<Connection, Trouble> {
        self.link.connection().await
    }

    /// Opens connections ahead of the first clients, who have no time for that.
    pub(super) async fn warm_up(&self) {
        Link::warm_up(&self.link).await;
    }

    /// The number of this process's volume, as an expression.
    pub(super) fn volume(&self) -> &str {
        &self.link.volume.id
    }

    /// This process's volume.
    pub(super) fn own(&self) -> &Own {
        &self.link.volume
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
        let begin = &self.beginning();
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
        let begun = Instant::now();
        let outcome = match Budget::current() {
            Some(budget) => {
                let outcome = self.run_on_account(purpose, &budget, attempt).await;
                budget.spend(begun.elapsed());
                outcome
            }
            None => self.run_in_background(purpose, attempt).await,
        };
        if let Some(metrics) = &self.metrics {
            let outcome = outcome.as_ref().map_or_else(Trouble::outcome, |_| Outcome::Answered);
            metrics.count(purpose.operation, outcome, begun.elapsed());
        }
        outcome.map_err(|trouble| IndexError {
            operation: purpose.operation,
            source: match trouble {
                Trouble::Schema(mismatch) => mismatch.into(),
                Trouble::NotAsked(why) => NotAsked(why).into(),
                Trouble::FencedOff => FencedOff.into(),
                trouble => trouble.into(),
            },
        })
    }

    async fn run_on_account<T, F>(
        &self,
        purpose: Purpose,
        budget: &Budget,
        attempt: impl Fn() -> F + Send,
    ) -> Result<T, Trouble>
    where
        T: Send,
        F: Future<Output = Result<T, Trouble>> + Send,
    {
        let (patience, client_waits) = (budget.left(), budget.is_of_client());
        if patience.is_zero() {
            return Err(Trouble::NotAsked("PostgreSQL has had its time"));
        }
        self.admit(purpose, client_waits)?;
        let takes_turns = !client_waits && !purpose.is_urgent;
        let _permit = if takes_turns { self.permit(patience).await? } else { None };
        let outcome = within(patience, attempt).await;
        match &outcome {
            // What had little time left was late before: it is looked at how the server is.
            Err(late @ Trouble::Late(_))
                if client_waits && purpose.only_reads && patience >= full() =>
            {
                self.link.health.is_late(&late.to_string());
                Link::look_after(&self.link, LOOK_EVERY);
            }
            outcome => self.note(outcome.as_ref().err()),
        }
        outcome
    }

    async fn run_in_background<T, F>(
        &self,
        purpose: Purpose,
        attempt: impl Fn() -> F + Send,
    ) -> Result<T, Trouble>
    where
        T: Send,
        F: Future<Output = Result<T, Trouble>> + Send,
    {
        self.admit(purpose, false)?;
        // Who waits long for a turn is not to wait for what others found out meanwhile.
        let _permit = self.permit(self.link.patience).await?;
        self.admit(purpose, false)?;
        let outcome = within(self.link.patience, attempt).await;
        self.note(outcome.as_ref().err());
        outcome
    }

    fn admit(&self, purpose: Purpose, client_waits: bool) -> Result<(), Trouble> {
        let health = &self.link.health;
        if health.admits(purpose.only_reads, client_waits) {
            return Ok(());
        }
        Link::look_after(&self.link, LOOK_EVERY);
        Err(Trouble::NotAsked(health.trouble().unwrap_or("PostgreSQL is back")))
    }

    /// Background work waits for its turn; that it waits long tells nothing of the server.
    async fn permit(&self, patience: Duration) -> Result<Option<SemaphorePermit<'_>>, Trouble> {
        let permit = timeout(patience, self.background.acquire()).await;
        // It is never closed.
        permit.map(Result::ok).map_err(|_elapsed| Trouble::Late(patience))
    }

    /// What begins a transaction. The server gives up its statements soon after nobody waits for them
    /// any more: an order to stop them, sent when that is so, is lost on a pooler.
    pub(super) fn beginning(&self) -> String {
        self.link.beginning()
    }

    fn note(&self, trouble: Option<&Trouble>) {
        let link = &self.link;
        if let Some((refused, time)) =
            trouble.and_then(|trouble| Some((trouble, trouble.refused_write()?)))
        {
            link.health.refuses_writes(&refused.to_string(), time);
            if link.has_several_hosts {
                // Another may be the one that writes.
                link.pool.retain(|_, _| false);
            }
            Link::look_after(link, LOOK_EVERY);
            return;
        }
        match trouble {
            // It may have waited for a lock; or for a server that is gone.
            Some(Trouble::Late(_)) => Link::look_after(link, Duration::ZERO),
            // Where there are connections, there may only be no room for one more.
            Some(Trouble::NoConnection(_)) if link.pool.status().size > 0 => {
                Link::look_after(link, Duration::ZERO);
            }
            // It may be one connection that broke: the server is asked, on another.
            Some(outage) if outage.is_outage() && link.pool.status().size > 1 => {
                Link::look_after(link, Duration::ZERO);
            }
            Some(outage) if outage.is_outage() => {
                link.health.found(Condition::AWAY, &outage.to_string());
                Link::look_after(link, LOOK_EVERY);
            }
            Some(of_schema) if of_schema.is_of_schema() => {
                link.schema_is_right.store(false, Ordering::Relaxed);
            }
            None | Some(_) => {}
        }
    }
}

impl Link {
    async fn warm_up(link: &Arc<Self>) {
        let number = link.pool.status().max_size.min(WARM_MAX);
        let opening = futures_util::future::join_all((0..number).map(|_| link.connection()));
        if let Ok(opened) = timeout(link.patience, opening).await {
            opened.into_iter().flatten().for_each(Connection::give_back);
        }
    }

    /// Has somebody look at the server, `after` a while and until it is well.
    fn look_after(link: &Arc<Self>, after: Duration) {
        if link.health.look_after() {
            let watch = Watch(Arc::downgrade(link));
            link.tasks.spawn(async move {
                sleep(after).await;
                while watch.look().await {
                    sleep(LOOK_EVERY).await;
                }
            });
        }
    }

    fn beginning(&self) -> String {
        let patience = Budget::current().map_or(self.patience, |budget| budget.left());
        let millis = (patience + GIVE_UP_AFTER).as_millis();
        let silence = SILENCE_MAX.as_millis();
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {millis}; \
             SET LOCAL idle_in_transaction_session_timeout = {silence}"
        )
    }

    /// How the server is, and why.
    async fn condition(&self) -> (Condition, String) {
        let late = || Trouble::Late(self.patience);
        let connecting = timeout(self.patience, self.connection()).await;
        let found = match connecting.unwrap_or_else(|_elapsed| Err(late())) {
            Err(trouble) => Err(trouble),
            Ok(connection) => {
                let beginning = self.beginning();
                let question = format!("{beginning}; SHOW transaction_read_only; COMMIT");
                let begun = Instant::now();
                match timeout(self.patience, connection.simple_query(&question)).await {
                    Ok(Ok(said)) => {
                        connection.give_back();
                        Ok((says_on(&said), begun.elapsed()))
                    }
                    Ok(Err(error)) => Err(error.into()),
                    Err(_elapsed) => Err(late()),
                }
            }
        };
        match found {
            Ok((is_read_only, took)) => {
                let limit = if self.health.is_slow() { fast() } else { budget::of_a_request() };
                let reach = if took > limit { Reach::Slow } else { Reach::Well };
                (Condition { reach, is_read_only }, format!("it takes {took:?} for an answer"))
            }
            // Those that there are may do.
            Err(Trouble::NoConnection(_)) if self.pool.status().size > 0 => {
                (Condition::default(), String::new())
            }
            // It is there; that each call is told why it is of no use.
            Err(Trouble::Schema(_)) => (Condition::default(), String::new()),
            Err(trouble) => (Condition::AWAY, trouble.to_string()),
        }
    }

    /// A connection to a database with the right schema.
    async fn connection(&self) -> Result<Connection, Trouble> {
        let pool = self.pool.clone();
        // Who asks may give up, but a connection that is being made is there for the next.
        let getting = self.tasks.spawn(async move { pool.get().await });
        let got = getting.await.map_err(|_| Trouble::NotAsked("stopping"))?;
        let object = got.map_err(Trouble::NoConnection)?;
        let connection = Connection { object: Some(object) };
        if !self.schema_is_right.load(Ordering::Relaxed) {
            let begin = &self.beginning();
            match schema::check(&connection, begin).await {
                Ok(Ok(())) => {
                    volumes::register(&connection, begin, &self.volume).await?;
                    self.schema_is_right.store(true, Ordering::Relaxed);
                }
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

/// Who looks after the server.
struct Watch(Weak<Link>);

impl Watch {
    /// Whether there is need to look again.
    async fn look(&self) -> bool {
        let Some(link) = self.0.upgrade() else { return false };
        let (condition, why) = link.condition().await;
        if condition.reach == Reach::Away || (condition.is_read_only && link.has_several_hosts) {
            // Connections to a server that stays away are no good when it is back: it may be another.
            link.pool.retain(|_, _| false);
        }
        if condition == Condition::default() && link.health.is_about_to_be_well() {
            Link::warm_up(&link).await;
        }
        link.health.found(condition, &why);
        link.health.trouble().is_some()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(link) = self.0.upgrade() {
            link.health.leave_alone();
        }
    }
}

fn says_on(said: &[SimpleQueryMessage]) -> bool {
    said.iter()
        .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on")))
}

async fn within<T, F>(patience: Duration, attempt: impl Fn() -> F + Send) -> Result<T, Trouble>
where
    F: Future<Output = Result<T, Trouble>> + Send,
{
    match timeout(patience, tried_again(attempt)).await {
        Err(_elapsed) => Err(Trouble::Late(patience)),
        Ok(Err(trouble)) if trouble.is_cancelled() => Err(Trouble::Late(patience)),
        Ok(outcome) => outcome,
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

/// Who has waited for this has given the server its time.
fn full() -> Duration {
    budget::of_a_request() * 3 / 4
}

/// A server that was slow is well when it answers within this: a request has time for more than one
/// call.
fn fast() -> Duration {
    budget::of_a_request() / 2
}
