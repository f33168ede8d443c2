//! Leases of this process: taken, renewed while they are held, and given up; and a look at what the
//! holders of others tell. One task does it for all, so that a site's database is asked ten times a
//! second by each process, however many downloads are under way.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::IntCounterVec;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::engine::memory::now_seconds;
use crate::index::budget::{self, Budget};
use crate::index::{Holding, Index, IndexError, Lease, Renewal, Taken};
use crate::telemetry::metrics::Metrics;

/// For how long a lease holds without being renewed: clients of a process that dies wait for as long,
/// and apt waits for 30 s. A database or a machine that is slow for a moment costs no lease.
pub(super) const TERM: Duration = Duration::from_secs(5);
/// How often it is told how far a download has come.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How often a lease is renewed of which there is nothing new to tell.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked what other holders tell.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a lease is asked for that another holds, for as long as the process lives.
const ASK_EVERY: Duration = TERM;

/// What a holder tells others who want the same.
pub(super) trait Telling: Send + Sync {
    /// Now; `None`: nothing yet.
    fn note(&self) -> Option<String>;

    /// Whether others want it.
    fn is_wanted(&self, by_others: bool);
}

/// The leases of this process, and those of others that it watches.
pub(super) struct Leases {
    index: Arc<dyn Index>,
    /// Tells this process from others.
    owner: String,
    held: Arc<Mutex<BTreeMap<String, Held>>>,
    taken: IntCounterVec,
    watched: Mutex<HashMap<String, watch::Sender<Sight>>>,
    /// There is something to do at once.
    wake: Notify,
    renewing: tokio::sync::Mutex<()>,
    /// There is something to tell at once.
    is_urgent: AtomicBool,
    /// None is taken any more.
    is_over: AtomicBool,
}

struct Held {
    lease: Lease,
    /// When it was last asked for, of those times that it was had.
    sure: watch::Sender<Instant>,
    telling: Option<Arc<dyn Telling>>,
    told: Option<String>,
    renewed_at: Instant,
    lost: CancellationToken,
}

impl Held {
    fn wanted(&self, by_others: bool) {
        if let Some(telling) = &self.telling {
            telling.is_wanted(by_others);
        }
    }

    fn end(&self) {
        self.wanted(false);
        self.lost.cancel();
    }
}

/// What was seen of a lease that another holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// There was no look yet.
    Unseen,
    /// It is held.
    Held(Holding),
    /// Nobody holds it.
    Free,
    /// The index can not tell.
    Blind,
}

impl Leases {
    pub(super) fn new(index: &Arc<dyn Index>, metrics: &Metrics) -> Arc<Self> {
        let held: Arc<Mutex<BTreeMap<String, Held>>> = Arc::default();
        let looked_at = Arc::clone(&held);
        metrics.gauge_of(
            "aptmesh_engine_leases",
            "Leases that this process holds: the right to run a download, or to do what a site does once.",
            move || i64::try_from(lock(&looked_at).len()).unwrap_or(i64::MAX),
        );
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Arc::new(Self {
            index: Arc::clone(index),
            owner: format!("{host}-{}-{started}", std::process::id()),
            held,
            taken: metrics.counters_of(
                "aptmesh_engine_leases_total",
                "Leases that were asked for, by what came of it: taken, refused (another process has it), or \
                 failed (the index could not be asked); and those lost to another process.",
                "outcome",
                &["taken", "refused", "failed", "lost"],
            ),
            watched: Mutex::default(),
            wake: Notify::new(),
            renewing: tokio::sync::Mutex::default(),
            is_urgent: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        })
    }

    /// What tells this process from others.
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// What tells this process's volume from others of its site.
    pub(super) fn volume(&self) -> &str {
        self.index.volume_identity()
    }

    /// Takes a lease, and with it what its last holder told, if that one died; `None` while another
    /// holds it.
    ///
    /// # Errors
    /// When the index can not be asked.
    pub(super) async fn take(
        self: &Arc<Self>,
        name: &str,
        telling: Option<Arc<dyn Telling>>,
    ) -> Result<Option<(Tenure, Option<String>)>, IndexError> {
        if self.is_over.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let (sure, surely) = watch::channel(Instant::now());
        let since = now_seconds();
        let taking = self.index.take(name, &self.owner, TERM);
        // What no client waits for is done with an index that is too slow for clients, too.
        let taken = match Budget::current() {
            Some(_) => taking.await,
            None => budget::for_at_most(TERM / 2, taking).await,
        };
        self.count(match &taken {
            Ok(Taken::Granted { .. }) => "taken",
            Ok(_) => "refused",
            Err(_) => "failed",
        });
        let Taken::Granted { lease, note } = taken? else {
            return Ok(None);
        };
        let lost = CancellationToken::new();
        let held = Held {
            lease: lease.clone(),
            sure,
            telling,
            told: None,
            renewed_at: Instant::now(),
            lost: lost.clone(),
        };
        // Taken anew by ourselves, it is lost to who had it before.
        self.held().insert(name.to_owned(), held).as_ref().map(Held::end).unwrap_or_default();
        self.wake.notify_one();
        Ok(Some((Tenure { leases: Arc::clone(self), lease, since, lost, sure: surely }, note)))
    }

    /// Waits until the lease is ours, for as long as it takes: for work that goes on for as long as a
    /// site lives, in one of its processes.
    pub(super) async fn hold(self: &Arc<Self>, name: &str) -> Tenure {
        loop {
            match self.take(name, None).await {
                Ok(Some((tenure, _))) => return tenure,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(name, %error, source = %error.source, "no lease");
                }
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// Watches a lease that another holds.
    pub(super) fn watch(self: &Arc<Self>, name: &str) -> Watched {
        let sender = watch::Sender::new(Sight::Unseen);
        let sight = sender.subscribe();
        self.watched().insert(name.to_owned(), sender);
        self.wake.notify_one();
        Watched { leases: Arc::clone(self), name: name.to_owned(), sight }
    }

    /// There is something to tell that others wait for.
    pub(super) fn tell_now(&self) {
        self.is_urgent.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Tells what is new of all leases that tell something, and waits until the index has heard of it.
    pub(super) async fn tell(&self) {
        self.is_urgent.store(true, Ordering::Relaxed);
        self.renew().await;
    }

    /// Renews and looks, for as long as the process lives.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.pause() => {}
                () = self.wake.notified() => {}
            }
            tokio::join!(self.renew(), self.look());
        }
    }

    async fn pause(&self) {
        let (is_watching, is_telling, is_holding) = {
            let held = self.held();
            let is_telling = held.values().any(|held| held.telling.is_some());
            (!self.watched().is_empty(), is_telling, !held.is_empty())
        };
        match (is_watching, is_telling, is_holding) {
            (true, _, _) => sleep(LOOK_EVERY).await,
            (_, true, _) => sleep(TELL_EVERY).await,
            (_, _, true) => sleep(RENEW_EVERY).await,
            (false, false, false) => std::future::pending().await,
        }
    }

    /// Leases are lost to who took them meanwhile, not to an index that is away.
    async fn renew(&self) {
        // One after the other, so that what is told later stays.
        let _alone = self.renewing.lock().await;
        let asked_at = Instant::now();
        let due = self.due();
        if due.is_empty() {
            return;
        }
        let renewed = match budget::for_at_most(TERM / 2, self.index.renew(&due, TERM)).await {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::debug!(%error, source = %error.source, "leases were not renewed");
                return;
            }
        };
        let wanted: HashMap<&str, bool> =
            renewed.iter().map(|one| (one.name.as_str(), one.is_wanted)).collect();
        let mut held = self.held();
        for renewal in due {
            let name = renewal.lease.name.as_str();
            // It may have been given up, and even taken anew.
            let Some(one) = held.get_mut(name).filter(|one| one.lease == renewal.lease) else {
                continue;
            };
            if let Some(is_wanted) = wanted.get(name) {
                one.sure.send_replace(asked_at);
                one.wanted(*is_wanted);
                one.told = renewal.note.or(one.told.take());
            } else {
                tracing::warn!(name, "another process took over");
                self.count("lost");
                held.remove(name).inspect(Held::end);
            }
        }
    }

    /// What is to be renewed by now, or has something new to tell.
    fn due(&self) -> Vec<Renewal> {
        let now = Instant::now();
        let is_urgent = self.is_urgent.swap(false, Ordering::Relaxed);
        let mut due = Vec::new();
        for held in self.held().values_mut() {
            let since = now.duration_since(held.renewed_at);
            let note = held.telling.as_ref().and_then(|telling| telling.note());
            let is_new = note != held.told && (is_urgent || since >= TELL_EVERY);
            if is_new || since >= RENEW_EVERY {
                held.renewed_at = now;
                due.push(Renewal { lease: held.lease.clone(), note: note.filter(|_| is_new) });
            }
        }
        due
    }

    async fn look(&self) {
        let names: Vec<String> = self.watched().keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        // That one look is late does not tell how the index is: nobody else is to go without it.
        let looking = budget::for_at_most(budget::of_a_request(), self.index.holdings(&names));
        let mut seen: HashMap<String, Sight> = match looking.await {
            Ok(held) => {
                held.into_iter().map(|one| (one.lease.name.clone(), Sight::Held(one))).collect()
            }
            Err(error) => {
                tracing::debug!(%error, source = %error.source, "leases could not be looked at");
                names.iter().map(|name| (name.clone(), Sight::Blind)).collect()
            }
        };
        let watched = self.watched();
        for name in names {
            let sight = seen.remove(&name).unwrap_or(Sight::Free);
            if let Some(sender) = watched.get(&name) {
                sender.send_if_modified(|current| {
                    let is_new = *current != sight;
                    *current = sight;
                    is_new
                });
            }
        }
    }

    /// Gives all leases up: the process is about to end.
    pub(super) async fn release_all(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        let held = std::mem::take(&mut *self.held());
        held.values().for_each(Held::end);
        self.release(held.into_values().map(|held| held.lease).collect()).await;
    }

    /// Whether it was ours still.
    fn let_go(&self, lease: &Lease) -> bool {
        let mut held = self.held();
        let is_ours = held.get(&lease.name).is_some_and(|held| held.lease == *lease);
        if is_ours {
            held.remove(&lease.name).inspect(Held::end);
        }
        is_ours
    }

    async fn release(&self, leases: Vec<Lease>) {
        if leases.is_empty() {
            return;
        }
        if let Err(error) = self.index.release(&leases).await {
            tracing::debug!(%error, source = %error.source, "leases will expire");
        }
    }

    fn count(&self, outcome: &str) {
        self.taken.with_label_values(&[outcome]).inc();
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        lock(&self.held)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Sight>>> {
        lock(&self.watched)
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lease of this process, which is renewed until this is dropped.
pub(super) struct Tenure {
    leases: Arc<Leases>,
    lease: Lease,
    since: i64,
    lost: CancellationToken,
    sure: watch::Receiver<Instant>,
}

impl Tenure {
    /// When it was taken, in seconds since 1970.
    pub(super) fn since(&self) -> i64 {
        self.since
    }

    /// The lease, to write under.
    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Whether it is still ours, to be asked before each step of work.
    pub(super) fn sureness(&self) -> Sureness {
        Sureness(self.sure.clone())
    }

    /// Waits until another process has it.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// Whether a lease is still ours: a process that was paused does not know that it is not.
#[derive(Clone)]
pub(super) struct Sureness(watch::Receiver<Instant>);

impl Sureness {
    /// Whether it is, without waiting.
    pub(super) fn holds(&self) -> bool {
        self.0.has_changed().is_ok() && self.0.borrow().elapsed() + RENEW_EVERY < TERM
    }

    /// At once where it is, else when it was renewed; never where it is lost.
    pub(super) async fn wait(&mut self) {
        while self.0.has_changed().is_ok() {
            self.0.mark_unchanged();
            if self.holds() {
                return;
            }
            drop(self.0.changed().await);
        }
        std::future::pending::<()>().await;
    }
}

/// Nobody waits until the index has heard of it.
impl Drop for Tenure {
    fn drop(&mut self) {
        if self.leases.let_go(&self.lease)
            && let Ok(runtime) = Handle::try_current()
        {
            let (leases, lease) = (Arc::clone(&self.leases), self.lease.clone());
            runtime.spawn(async move { leases.release(vec![lease]).await });
        }
    }
}

/// A lease of another process, watched until this is dropped.
pub(super) struct Watched {
    leases: Arc<Leases>,
    name: String,
    sight: watch::Receiver<Sight>,
}

impl Watched {
    /// What is seen next that is new.
    pub(super) async fn next(&mut self) -> Sight {
        match self.sight.changed().await {
            Ok(()) => self.sight.borrow_and_update().clone(),
            // Somebody else watches it under this name.
            Err(_) => Sight::Blind,
        }
    }
}

impl Watched {
    /// Waits until there is something new.
    pub(super) async fn changed(&mut self) {
        // An error is told by `next`.
        drop(self.sight.changed().await);
        self.sight.mark_changed();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut watched = self.leases.watched();
        let sender = watched.get(&self.name);
        if sender.is_some_and(|sender| sender.subscribe().same_channel(&self.sight)) {
            watched.remove(&self.name);
        }
    }
}
