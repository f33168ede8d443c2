//! One of several servers: each is given the same time, so that one that says nothing is not in the
//! way of the next. Where the URL says `target_session_attrs=read-write`, one that only reads is passed
//! over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deadpool_postgres::Connect;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, pending};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Client, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Who connects.
pub(super) struct Hosts(Arc<Inner>);

struct Inner {
    each: Vec<tokio_postgres::Config>,
    tls: MakeRustlsConnect,
    patience: Duration,
    /// The one that took us last.
    last: AtomicUsize,
}

type Connected = (Client, JoinHandle<()>);

impl Hosts {
    pub(super) fn new(
        each: Vec<tokio_postgres::Config>,
        tls: MakeRustlsConnect,
        patience: Duration,
    ) -> Self {
        Self(Arc::new(Inner { each, tls, patience, last: AtomicUsize::new(0) }))
    }
}

impl Inner {
    /// The error of the last that could be asked at all.
    async fn connect(&self) -> Result<Connected, Error> {
        let first = self.last.load(Ordering::Relaxed);
        let mut failed = None;
        for number in 0..self.each.len() {
            let at = (first + number) % self.each.len();
            let Some(host) = self.each.get(at) else { continue };
            match timeout(self.patience, host.connect(self.tls.clone())).await {
                Ok(Ok((client, connection))) => {
                    self.last.store(at, Ordering::Relaxed);
                    return Ok((client, carried(connection)));
                }
                Ok(Err(error)) => failed = Some(error),
                Err(_elapsed) => {}
            }
        }
        match failed {
            Some(error) => Err(error),
            // All have let their time pass, and so has the one who asked.
            None => pending().await,
        }
    }
}

/// What comes and goes on a connection does so in a task of its own, which ends with the client.
fn carried(connection: impl Future<Output = Result<(), Error>> + Send + 'static) -> JoinHandle<()> {
    #[expect(clippy::disallowed_methods, reason = "it ends with its client")]
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to PostgreSQL broke");
        }
    })
}

impl Connect for Hosts {
    fn connect(&self, _config: &tokio_postgres::Config) -> BoxFuture<'_, Result<Connected, Error>> {
        let inner = Arc::clone(&self.0);
        async move { inner.connect().await }.boxed()
    }
}
