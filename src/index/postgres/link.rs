//! The connections to the server, and who looks after it until it is well.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::SimpleQueryMessage;
use tokio_util::task::TaskTracker;

use crate::index::budget::{self, Budget};
use crate::index::postgres::health::{Condition, Health, Reach};
use crate::index::postgres::schema;
use crate::index::postgres::trouble::Trouble;
use crate::index::postgres::volumes::{self, Own};

/// How often a server that is away is looked after: as long as apt waits before it tries again.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Connections that are opened ahead of need.
const WARM_MAX: usize = 8;
/// How much longer than its caller the server waits for a statement: the caller is to be the first, and
/// know why.
const GIVE_UP_AFTER: Duration = Duration::from_millis(100);
/// For how long the server waits for a caller in the midst of a transaction: one that is paused holds
/// locks that others wait for.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What is looked after.
pub(super) struct Link {
    pub(super) pool: Pool,
    pub(super) health: Health,
    /// For how long is waited where no client does.
    pub(super) patience: Duration,
    pub(super) has_several_hosts: bool,
    pub(super) schema_is_right: AtomicBool,
    pub(super) volume: Own,
    pub(super) tasks: TaskTracker,
}

impl Link {
    /// Opens connections, as far as there are some that nobody uses: who uses one may wait for a lock with it.
    pub(super) async fn warm_up(link: &Arc<Self>, patience: Duration) {
        let pool = link.pool.status();
        let used = pool.size.saturating_sub(pool.available);
        let number = pool.max_size.saturating_sub(used).min(WARM_MAX);
        let mut opening: FuturesUnordered<_> = (0..number).map(|_| link.connection()).collect();
        // None is given back before all are there: the next one would get it.
        let mut opened = Vec::new();
        let all = async {
            while let Some(connection) = opening.next().await {
                opened.extend(connection);
            }
        };
        // Those that are late are there for others all the same.
        let _all_or_some = timeout(patience, all).await;
        opened.into_iter().for_each(Connection::give_back);
    }

    /// Has somebody look at the server, `after` a while and until it is well.
    pub(super) fn look_after(link: &Arc<Self>, after: Duration) {
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

    pub(super) fn beginning(&self) -> String {
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
    pub(super) async fn connection(&self) -> Result<Connection, Trouble> {
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
            Link::warm_up(&link, LOOK_EVERY).await;
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

/// Who has waited for this has given the server its time.
pub(super) fn full() -> Duration {
    budget::of_a_request() * 3 / 4
}

/// A server that was slow is well when it answers within this: a request has time for more than one
/// call.
fn fast() -> Duration {
    budget::of_a_request() / 2
}
