//! Calls to the database: on pooled connections, within a budget of time, tried again where
//! concurrency was in the way.
//!
//! Nothing is kept in a session: no prepared statement, setting or lock outlives a transaction. So
//! it is no matter whether a pooler such as pgbouncer hands each transaction to another session.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::index::NotAsked;
use crate::index::budget::Budget;
use crate::index::metrics::{self, IndexMetrics, Outcome};
use crate::index::postgres::gauges::Gauges;
use crate::index::postgres::health::{Condition, Health};
use crate::index::postgres::hosts::Hosts;
use crate::index::postgres::link::{Connection, LOOK_EVERY, Link, full};
use crate::index::postgres::tls;
use crate::index::postgres::trouble::Trouble;
use crate::index::postgres::url::Config;
use crate::index::postgres::volumes::Own;
use crate::index::{FencedOff, IndexError};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;

/// How often a call is tried where others were in its way: deadlocks, which the order of locks should
/// rule out, and serialization failures.
const ATTEMPTS_MAX: u32 = 3;

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

/// The way to the database.
pub(super) struct Calls {
    link: Arc<Link>,
    /// Connections that background work may take, so that clients find some.
    background: Semaphore,
    metrics: Option<IndexMetrics>,
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
        Link::warm_up(&self.link, self.link.patience).await;
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
        let span = metrics::span("postgresql", purpose.operation);
        let outcome = match Budget::current() {
            Some(budget) => {
                let running = self.run_on_account(purpose, &budget, attempt);
                let outcome = running.instrument(span.clone()).await;
                budget.spend(begun.elapsed());
                outcome
            }
            None => self.run_in_background(purpose, attempt).instrument(span.clone()).await,
        };
        if let Err(trouble) = &outcome {
            traces::fail(&span, trouble.outcome().label(), trouble);
        }
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
