//! What to do with a request: known? → plan → serve, revalidate, fetch or relay.

mod admission;
pub mod adopt;
mod difference;
mod doubt;
pub mod evict;
pub mod flight;
pub mod folders;
pub mod follower;
pub mod import;
pub mod inspect;
pub mod judge;
mod learn;
pub mod memory;
mod metrics;
pub mod moves;
pub mod outcome;
mod pace;
pub mod pins;
pub mod plan;
pub mod prefetch;
mod proof;
mod reading;
pub mod relayed;
mod resume;
pub mod room;
mod suites;
mod taint;
mod tidy;
mod transfer;
pub mod upkeep;
mod uses;
pub mod walk;
mod writer;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::header::{self, HeaderMap};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::archive::kind::Kind;
use crate::archive::target::Target;
use crate::content::digest::{Expected, Hasher, Sha256};
use crate::engine::doubt::Doubts;
use crate::engine::flight::{Boarding, Flights, Interest, Landing, NotBoarded};
use crate::engine::folders::Folders;
use crate::engine::follower::Follower;
use crate::engine::inspect::Inspector;
use crate::engine::judge::Judge;
use crate::engine::learn::Learner;
use crate::engine::memory::{Known, Memory};
pub use crate::engine::metrics::EngineMetrics;
use crate::engine::outcome::{Content, Failure, Outcome, Served};
use crate::engine::plan::{Freshness, Plan, Situation, plan};
use crate::engine::prefetch::Prefetcher;
use crate::engine::proof::{Checks, Soundness};
use crate::engine::relayed::Relayed;
use crate::engine::room::Room;
pub use crate::engine::suites::Client;
use crate::engine::suites::Suites;
use crate::engine::taint::Tainted;
use crate::engine::transfer::Transfer;
use crate::engine::uses::Uses;
use crate::engine::writer::TAIL;
use crate::index::{Entry, Expectation, Index, IndexError, Totals};
use crate::mirror::{Answer, Framing, Mirror, Question};
use crate::store::{Blob, Store, StoreError};
use crate::telemetry::metrics::Metrics;

/// For how long a client waits for a confirmation while there is a stored copy to give it.
const STALE_PATIENCE: Duration = Duration::from_secs(5);
/// How often a client takes its place in another flight because one broke off before its start.
const BOARDINGS_MAX: u32 = 3;

/// How the engine works.
#[derive(Clone, Debug)]
pub struct Config {
    /// For how long one revalidation answers all; zero: every request is revalidated, though those
    /// at the same time share one.
    pub recheck_after: Duration,
    /// How release files are judged.
    pub judge: judge::Config,
    /// What is fetched before anybody asks.
    pub prefetch: prefetch::Config,
    /// How much is stored.
    pub room: room::Config,
    /// How what is stored is checked.
    pub scrub: upkeep::Config,
    /// What is served in place.
    pub folders: folders::Config,
}

/// The engine: one for all surfaces.
pub struct Engine {
    index: Arc<dyn Index>,
    store: Arc<Store>,
    mirror: Arc<Mirror>,
    room: Arc<Room>,
    memory: Arc<Memory>,
    inspector: Arc<Inspector>,
    folders: Arc<Folders>,
    checks: Checks,
    uses: Arc<Uses>,
    /// How often something was learnt: what was checked before has to be checked again.
    knowledge: Arc<AtomicU64>,
    learner: Learner,
    prefetcher: Arc<Prefetcher>,
    judge: Judge,
    flights: Arc<Flights>,
    recheck_after_millis: AtomicU64,
    doubts: Doubts,
    suites: Suites,
    tainted: Tainted,
    tasks: TaskTracker,
    metrics: EngineMetrics,
}

/// What the loading of a blob came to.
enum Loaded {
    Known(Box<Known>),
    /// The volume does not have it.
    Missing,
    /// It is not what its name says.
    Bad(Blob),
}

/// Who may have what is fetched for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody.
    Shared,
    /// Nobody after it: `no-store`.
    NotStored,
    /// Nobody else: it carries credentials, or names the resource by more than its path.
    Private,
}

/// A request, as the engine sees it.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is asked for: its one name.
    pub target: Arc<Target>,
    /// The names under which mirrors are asked for it, until one is not refused: its own alone,
    /// unless the client's release file says more.
    pub sources: Vec<Arc<Target>>,
    /// Its kind.
    pub kind: Kind,
    /// How fresh it must be.
    pub freshness: Freshness,
    /// Only its head.
    pub head_only: bool,
    /// Who else may have what is fetched for it.
    pub sharing: Sharing,
    /// The client's conditions, range and credentials, for when its question is handed on.
    pub headers: HeaderMap,
    /// Who asks; `None`: we ourselves.
    pub client: Option<Client>,
    /// The most bytes a second that are taken of the mirror while nobody else wants them.
    pub pace: Option<u64>,
    /// Whether a flight was begun for it before its turn: then it is a miss, even if that flight
    /// has landed by now.
    pub begun_early: bool,
}

impl Engine {
    /// Puts the engine together. What nobody waits for when it stops runs on `background`.
    #[must_use]
    pub fn new(
        config: &Config,
        index: Arc<dyn Index>,
        store: Arc<Store>,
        mirror: Arc<Mirror>,
        metrics: &Metrics,
        background: &TaskTracker,
    ) -> Arc<Self> {
        // Nothing that is loaded counts as checked against state 0.
        let knowledge = Arc::new(AtomicU64::new(1));
        let (prefetcher, errands) = Prefetcher::new(&config.prefetch, metrics);
        let prefetcher = Arc::new(prefetcher);
        let learner = Learner::start(
            Arc::clone(&index),
            Arc::clone(&knowledge),
            Arc::clone(&prefetcher),
            metrics,
            background,
        );
        let memory = Arc::new(Memory::default());
        let room = Room::new(&config.room, &index, &store, &memory, metrics);
        let inspector = Arc::new(Inspector::new(&index, &store, metrics));
        let folders = Folders::new(&config.folders, &index, &inspector, metrics);
        let engine = Arc::new(Self {
            index,
            store,
            mirror,
            room,
            memory,
            inspector,
            folders,
            checks: Checks::default(),
            uses: Arc::default(),
            knowledge,
            learner,
            prefetcher,
            judge: Judge::new(config.judge.clone(), metrics),
            flights: Arc::default(),
            recheck_after_millis: AtomicU64::new(0),
            doubts: Doubts::default(),
            suites: Suites::default(),
            tainted: Tainted::default(),
            tasks: TaskTracker::new(),
            metrics: EngineMetrics::new(metrics),
        });
        if let Some(errands) = errands {
            errands.start(Arc::downgrade(&engine), background);
        }
        engine.set_recheck_after(config.recheck_after);
        background.spawn(engine.tidying().run());
        background.spawn(upkeep::scrub(Arc::clone(&engine.inspector), config.scrub));
        background.spawn(upkeep::adopt(Arc::clone(&engine.inspector)));
        background.spawn(Arc::clone(&engine.folders).watch());
        engine
    }

    /// Changes for how long one revalidation answers all.
    pub fn set_recheck_after(&self, window: Duration) {
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        self.recheck_after_millis.store(millis, Ordering::Relaxed);
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When there is no answer to be had.
    pub async fn serve(self: &Arc<Self>, ask: &Ask) -> Result<Served, Failure> {
        let pinned = self.pinned(ask).await;
        let meant = pinned.as_ref().unwrap_or(ask);
        let served = self.answer(meant).await;
        let served = self.as_it_was_told(ask, served).await;
        let mut served = self.unless_expired(ask, served).await;
        if let Ok(served) = &mut served {
            served.only_whole = self.tainted.contains(&meant.target.key);
            self.remember_given(ask, served);
            self.prefetcher.was_used(&meant.target.key);
        }
        self.count(ask, &served);
        served
    }

    async fn answer(self: &Arc<Self>, ask: &Ask) -> Result<Served, Failure> {
        let known = self.known(ask).await;
        match (self.plan(ask, known.as_deref()), known) {
            (Plan::Serve, Some(known)) if ask.begun_early => Ok(stored(known, Outcome::Miss)),
            (Plan::Serve, Some(known)) => Ok(stored(known, Outcome::Hit)),
            (Plan::ServeStale, Some(known)) => Ok(stored(known, Outcome::Stale)),
            (Plan::Revalidate, Some(known)) => self.revalidate(ask, known).await,
            (Plan::Fetch, _) => self.fetch(ask, None).await,
            (Plan::Relay | Plan::Serve | Plan::ServeStale | Plan::Revalidate, _) => {
                self.relay(ask).await
            }
        }
    }

    /// A release file is good until its `Valid-Until`, and no mirror that is away or does not change
    /// makes it good for longer.
    async fn unless_expired(
        &self,
        ask: &Ask,
        served: Result<Served, Failure>,
    ) -> Result<Served, Failure> {
        if let Ok(Served { content: Content::Known(known), .. }) = &served
            && ask.kind == Kind::Release
            && self.judge.is_in_session()
            && self.has_expired(known.entry.blob).await
        {
            let host = ask.target.authority.host.clone();
            let reason = "has no newer release file than one that has expired".to_owned();
            return Err(Failure::Unusable { host, reason });
        }
        served
    }

    /// How much may be stored, and how much is.
    #[must_use]
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Begins what a request will need, without waiting: for requests whose turn to be answered has
    /// not come. `None` if there is nothing to begin.
    #[must_use]
    pub fn prepare(self: &Arc<Self>, ask: Ask) -> Option<Hint> {
        let in_memory = self.memory.get(&ask.target.key);
        if in_memory.is_some_and(|known| self.plan(&ask, Some(&known)) == Plan::Serve) {
            return None;
        }
        let engine = Arc::clone(self);
        let begun = Arc::new(AtomicBool::new(false));
        let has_begun = Arc::clone(&begun);
        let preparing = self.tasks.spawn(async move {
            let ask = engine.pinned(&ask).await.unwrap_or(ask);
            let known = engine.known(&ask).await;
            let expectation = engine.expectation(&ask).await;
            let interest = match (engine.plan(&ask, known.as_deref()), known) {
                (Plan::Fetch, _) => engine.board(&ask, None, expectation),
                (Plan::Revalidate, Some(known)) => engine.board(&ask, Some(&known), expectation),
                _ => return,
            };
            if let Ok((interest, outcome)) = interest {
                has_begun.store(outcome == Outcome::Miss, Ordering::Relaxed);
                // Kept until the hint is dropped, or the flight is over.
                interest.flight().over().await;
            }
        });
        Some(Hint { preparing: preparing.abort_handle(), begun })
    }

    fn plan(&self, ask: &Ask, known: Option<&Known>) -> Plan {
        plan(&Situation {
            kind: ask.kind,
            freshness: ask.freshness,
            head_only: ask.head_only,
            shareable: ask.sharing != Sharing::Private,
            storable: ask.sharing == Sharing::Shared && self.store.takes_blobs(),
            known: known.map(|known| known.standing(self.recheck_after())),
        })
    }

    fn recheck_after(&self) -> Duration {
        Duration::from_millis(self.recheck_after_millis.load(Ordering::Relaxed))
    }

    /// What is stored of the resource and, as far as lists tell, is what it must be: from memory,
    /// else from index and store. An index or a store that fails knows nothing.
    async fn known(self: &Arc<Self>, ask: &Ask) -> Option<Arc<Known>> {
        let key = ask.target.key.as_str();
        if !ask.kind.is_stored() || ask.sharing == Sharing::Private {
            return None;
        }
        let knowledge = self.knowledge.load(Ordering::Acquire);
        let held = self.held(key).await;
        if held.as_ref().is_some_and(|known| known.is_checked(knowledge)) {
            return held;
        }
        let expectation = self.expectation(ask).await;
        let fits = |entry: &Entry| {
            expectation.is_none_or(|expected| !expected.contradicts(entry.size, &entry.blob))
        };
        let known = match held {
            Some(held) if fits(&held.entry) => held,
            // Rebuilt in place under its old name, which makes it another file.
            Some(_) => {
                self.memory.forget(key);
                self.elsewhere(key, expectation).await?
            }
            None => match self.recorded(key).await.filter(fits) {
                Some(entry) => self.loaded(key, Some(entry)).await?,
                None => self.elsewhere(key, expectation).await?,
            },
        };
        known.mark_checked(knowledge);
        if known.soundness() == Soundness::Proven {
            self.learner.offer(key, &known);
        }
        Some(known)
    }

    /// What the resource must be: told by the list that names it or, where it is named by its
    /// content, by its own name.
    async fn expectation(&self, ask: &Ask) -> Option<Expectation> {
        let by_name = match ask.kind {
            Kind::ByHash(digest) => digest.map(|digest| Expectation { size: None, digest }),
            Kind::Package | Kind::Patch | Kind::Installer => None,
            // Their names stay while their content changes: they are confirmed instead, or held to
            // the release file that their client has.
            Kind::Release | Kind::Index | Kind::Other => return None,
        };
        if matches!(by_name, Some(Expectation { digest: Expected::Sha256(_), .. })) {
            return by_name;
        }
        let listed = self.index.expectation(&ask.target.key).await;
        listed.unwrap_or_else(|error| without_index(&error)).or(by_name)
    }

    async fn recorded(&self, key: &str) -> Option<Entry> {
        self.index.look_up(key).await.unwrap_or_else(|error| without_index(&error))
    }

    /// The same content: stored under whatever name, or in a shared folder.
    async fn elsewhere(
        self: &Arc<Self>,
        key: &str,
        expectation: Option<Expectation>,
    ) -> Option<Arc<Known>> {
        match self.loaded(key, self.under_another_name(expectation).await).await {
            Some(known) => Some(known),
            None => self.shared(key, expectation?).await,
        }
    }

    /// The same content, in a shared folder.
    async fn shared(self: &Arc<Self>, key: &str, expectation: Expectation) -> Option<Arc<Known>> {
        let Expected::Sha256(digest) = expectation.digest else { return None };
        let blob = self.folders.find(&digest).await?;
        let entry = Entry::nameless(digest, blob.size);
        let loading = tokio::task::spawn_blocking(move || Known::load_shared(entry, blob));
        let Ok(Ok(known)) = loading.await else {
            self.folders.disown(&digest).await;
            return None;
        };
        let known = Arc::new(known);
        self.memory.hold(key, Arc::clone(&known));
        self.prove(key, &known);
        Some(known)
    }

    /// The same content, stored under whatever name.
    async fn under_another_name(&self, expectation: Option<Expectation>) -> Option<Entry> {
        let Expected::Sha256(digest) = expectation?.digest else { return None };
        let elsewhere = self.index.by_blob(&digest).await;
        match elsewhere.unwrap_or_else(|error| without_index(&error)) {
            Some(entry) => Some(entry),
            None => self.inspector.on_volume(&digest).await.filter(|entry| {
                expectation.is_some_and(|expected| !expected.contradicts(entry.size, &entry.blob))
            }),
        }
    }

    /// Opens a resource's blob, and holds it in memory under `key`.
    async fn loaded(self: &Arc<Self>, key: &str, entry: Option<Entry>) -> Option<Arc<Known>> {
        let entry = entry?;
        let digest = entry.blob;
        match self.load(entry).await {
            Ok(Loaded::Known(known)) => {
                let known = Arc::from(known);
                self.memory.hold(key, Arc::clone(&known));
                self.prove(key, &known);
                Some(known)
            }
            Ok(Loaded::Missing) => {
                self.forget(&digest).await;
                None
            }
            Ok(Loaded::Bad(blob)) => {
                self.drop_bad(&digest, &blob).await;
                None
            }
            Err(error) => {
                tracing::warn!(%error, source = %error.source, "going on without the store");
                None
            }
        }
    }

    async fn load(&self, entry: Entry) -> Result<Loaded, StoreError> {
        if self.inspector.is_condemned(&entry.blob) {
            return Ok(Loaded::Missing);
        }
        let store = Arc::clone(&self.store);
        let loading = tokio::task::spawn_blocking(move || {
            let Some(blob) = store.read(&entry.blob)? else { return Ok(Loaded::Missing) };
            if blob.size != entry.size {
                return Ok(Loaded::Bad(blob));
            }
            match Known::load(entry, blob.clone()) {
                Ok(known) => Ok(Loaded::Known(Box::new(known))),
                Err(error) if error.kind() == ErrorKind::InvalidData => Ok(Loaded::Bad(blob)),
                Err(error) => Err(StoreError::interrupted(error)),
            }
        });
        loading.await.map_err(StoreError::interrupted)?
    }

    async fn forget(&self, digest: &Sha256) {
        let leaving = self.room.evictor().moves().leave(vec![*digest]);
        if leaving.digests.is_empty() {
            // Evicted just now, or on its way back.
            return;
        }
        tracing::warn!(%digest, "the index names a blob that the volume does not have");
        self.memory.forget_blobs(&[*digest]);
        if let Err(error) = self.index.forget_blobs(&[*digest]).await {
            tracing::warn!(%error, source = %error.source, "could not forget it");
        }
    }

    async fn revalidate(self: &Arc<Self>, ask: &Ask, known: Arc<Known>) -> Result<Served, Failure> {
        if self.mirror.is_away(&ask.target) {
            // Nobody waits for what tells whether it is back.
            drop(self.board(ask, Some(&known), None));
            known.fail();
            return Ok(stored(known, Outcome::Stale));
        }
        let confirming = self.fetch(ask, Some(&known));
        match timeout(STALE_PATIENCE, confirming).await {
            Ok(Err(failure)) if failure.is_trouble() => {
                tracing::warn!(
                    url = ask.target.url,
                    ?failure,
                    "serving what could not be confirmed"
                );
            }
            Ok(answered) => return answered,
            Err(_elapsed) => {
                tracing::warn!(url = ask.target.url, "serving what was not confirmed in time");
            }
        }
        known.fail();
        Ok(stored(known, Outcome::Stale))
    }

    /// Takes part in the flight for the resource, beginning it where there is none.
    async fn fetch(
        self: &Arc<Self>,
        ask: &Ask,
        known: Option<&Arc<Known>>,
    ) -> Result<Served, Failure> {
        let expectation = self.expectation(ask).await;
        for _ in 0..BOARDINGS_MAX {
            let (interest, outcome) = match self.board(ask, known, expectation) {
                Ok(boarded) => boarded,
                Err(NotBoarded::Full) => {
                    return Err(Failure::internal("too many downloads are under way"));
                }
                Err(NotBoarded::Landed) => match self.memory.get(&ask.target.key) {
                    Some(known) => return Ok(stored(known, Outcome::Hit)),
                    None => continue,
                },
            };
            let landing = interest.flight().landed().await;
            if let Landing::Flowing(flow) = &landing
                && expectation.is_some()
                && flow.meta.size.is_some_and(|size| size <= TAIL)
            {
                // Held back to its end anyway: so there can still be a status if it is wrong.
                interest.flight().over().await;
            }
            match landing {
                Landing::Unchanged(known) => return Ok(stored(known, Outcome::Revalidated)),
                Landing::Flowing(flow) if !interest.flight().is_cut() => {
                    let mirror = Arc::clone(&self.mirror);
                    let follower = Box::new(Follower::new(flow, interest, mirror));
                    return Ok(Served::new(Content::Flight(follower), outcome));
                }
                Landing::Flowing(_) => {}
                Landing::Unstorable => return self.relay(ask).await,
                // It was begun by somebody who knows fewer names.
                Landing::Failed(Failure::Upstream { .. })
                    if outcome == Outcome::Collapsed && ask.sources.len() > 1 => {}
                Landing::Failed(failure) => return Err(failure),
            }
        }
        Err(Failure::internal("the download broke off again and again"))
    }

    /// A place in the resource's flight, begun if need be.
    fn board(
        self: &Arc<Self>,
        ask: &Ask,
        known: Option<&Arc<Known>>,
        expectation: Option<Expectation>,
    ) -> Result<(Interest, Outcome), NotBoarded> {
        let key = &ask.target.key;
        let landed_meanwhile = || {
            let known = self.memory.get(key);
            known.is_some_and(|known| self.plan(ask, Some(&known)) == Plan::Serve)
        };
        let Boarding { interest, departure } = self.flights.board(key, landed_meanwhile)?;
        let Some(departure) = departure else { return Ok((interest, Outcome::Collapsed)) };
        let transfer = Transfer {
            engine: Arc::clone(self),
            target: Arc::clone(&ask.target),
            sources: ask.sources.clone(),
            kind: ask.kind,
            expectation,
            known: known.cloned(),
            pace: ask.pace,
            via: ask.headers.get_all(header::VIA).iter().cloned().collect(),
        };
        self.metrics.flights.inc();
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            transfer.run(departure).await;
            engine.metrics.flights.dec();
        });
        Ok((interest, Outcome::Miss))
    }

    /// Hands the question to the mirror and its answer to the client.
    async fn relay(&self, ask: &Ask) -> Result<Served, Failure> {
        let mut headers = ask.headers.clone();
        if self.tainted.contains(&ask.target.key) {
            headers.remove(header::RANGE);
        }
        let question = Question { head_only: ask.head_only, headers, ..Question::default() };
        let (_, answer) = self.ask_by_names(&ask.sources, &question).await?;
        let is_release = ask.kind == Kind::Release && !ask.head_only && answer.status == 200;
        if is_release && self.judge.demands_proof() {
            let host = ask.target.authority.host.clone();
            let reason =
                "has a release file that can not be stored, and so not be judged".to_owned();
            return Err(Failure::Unusable { host, reason });
        }
        let mut expected = None;
        // Only a whole body can be told from another.
        if let Some(expectation) = self.expectation(ask).await
            && answer.status == 200
            && !ask.head_only
        {
            let promised = expectation.size;
            // A body of no bytes ends with its head, and can not be cut off any more.
            let is_wrong = |size| {
                promised.is_some_and(|promised| promised != size)
                    || (size == 0 && !Hasher::new(Some(expectation.digest)).finish().as_expected)
            };
            if matches!(answer.framing(), Framing::Length(size) if is_wrong(size)) {
                let host = ask.target.authority.host.clone();
                let reason = "sent a file of the wrong size".to_owned();
                return Err(Failure::Unusable { host, reason });
            }
            expected = Some(expectation.digest);
        }
        let expected =
            expected.map(|digest| (digest, ask.target.key.clone(), self.tainted.clone()));
        let relayed = Box::new(Relayed::new(answer, expected));
        Ok(Served::new(Content::Relay(relayed), Outcome::Relayed))
    }

    /// Asks for it under each of its names, until one is not refused.
    async fn ask_by_names<'a>(
        &self,
        names: &'a [Arc<Target>],
        question: &Question,
    ) -> Result<(&'a Arc<Target>, Answer), Failure> {
        let mut refused = Err(Failure::internal("nobody is to be asked"));
        for name in names {
            let answer = self.mirror.ask(name, question).await.map_err(Failure::Mirror)?;
            if !answer.status.is_client_error() {
                return Ok((name, answer));
            }
            refused = Ok((name, answer));
        }
        refused
    }

    /// Tells the index what is stored of `key`; without it, that is found out anew.
    async fn record(&self, key: &str, entry: &Entry) {
        if let Err(error) = self.index.record(key, entry).await {
            tracing::warn!(key, %error, source = %error.source, "stored, but not recorded");
        }
    }

    fn count(&self, ask: &Ask, served: &Result<Served, Failure>) {
        let (source, outcome) = match served {
            Ok(served) => (served.outcome.source(), served.outcome.label()),
            Err(Failure::Upstream { .. }) => ("mirror", "refused"),
            Err(_) => ("none", "error"),
        };
        self.metrics.served.with_label_values(&[ask.kind.label(), source, outcome]).inc();
        self.note_use(ask, served);
    }

    /// What was just fetched counts as used once already.
    fn note_use(&self, ask: &Ask, served: &Result<Served, Failure>) {
        if let Ok(Served { content: Content::Known(known), outcome, .. }) = served
            && *outcome != Outcome::Miss
        {
            self.uses.note(&known.uses);
        }
        if matches!(ask.kind, Kind::Release | Kind::Index) && served.is_ok() {
            self.uses.note_asked(&ask.target.key);
        }
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    /// Whether new blobs can be stored, in words; `None` when all is well.
    #[must_use]
    pub fn store_trouble(&self) -> Option<String> {
        self.store.health().trouble()
    }

    /// Downloads under way.
    #[must_use]
    pub fn flights(&self) -> usize {
        self.flights.count()
    }

    /// How much is stored; `None` if the index can not tell.
    pub async fn totals(&self) -> Option<Totals> {
        self.index.totals().await.ok()
    }

    /// Opens a tunnel for a client.
    ///
    /// # Errors
    /// When it may not be opened, or nothing answers.
    pub async fn connect(&self, host: &str, port: u16) -> Result<tokio::net::TcpStream, Failure> {
        self.mirror.connect(host, port).await.map_err(Failure::Mirror)
    }

    /// Waits until all flights are over; `false` if some are not at `until`.
    pub async fn drain(&self, until: Instant) -> bool {
        self.tasks.close();
        let landed = timeout_at(until, self.tasks.wait()).await.is_ok();
        self.tidying().tell().await;
        landed
    }
}

fn without_index<T>(error: &IndexError) -> Option<T> {
    if !error.is_old_news() {
        tracing::warn!(%error, source = %error.source, "going on without the index");
    }
    None
}

fn stored(known: Arc<Known>, outcome: Outcome) -> Served {
    Served::new(Content::Known(known), outcome)
}

/// A request whose turn has not come: while it is held, what it needs is under way.
pub struct Hint {
    preparing: AbortHandle,
    begun: Arc<AtomicBool>,
}

impl Hint {
    /// Whether it began a flight.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

impl Drop for Hint {
    fn drop(&mut self) {
        self.preparing.abort();
    }
}
