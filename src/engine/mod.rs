//! What to do with a request: known? → plan → serve, revalidate, fetch or relay.

mod ask;
mod count;
mod duties;
pub mod explain;
pub mod fellows;
pub mod flight;
pub mod give;
mod hint;
pub mod history;
mod known;
mod late;
mod learn;
mod leases;
pub mod memory;
mod metrics;
pub mod outcome;
pub mod plan;
pub mod prefetch;
pub mod relayed;
mod state;
pub mod suites;
mod taint;
mod traffic;
pub mod volume;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};

use crate::archive::kind::Kind;
use crate::archive::target::Target;
use crate::content::digest::Hasher;
pub use crate::engine::ask::{Ask, Client, Sharing};
use crate::engine::count::Count;
use crate::engine::duties::Duties;
use crate::engine::fellows::Fellows;
use crate::engine::flight::follower::Follower;
use crate::engine::flight::pace::Paces;
use crate::engine::flight::transfer::Transfer;
use crate::engine::flight::writer::TAIL;
use crate::engine::flight::{Boarding, By, Flights, Flow, Interest, Landing, NotBoarded};
use crate::engine::give::Gate;
pub use crate::engine::hint::Hint;
use crate::engine::history::History;
use crate::engine::known::{Finding, Findings};
use crate::engine::late::Late;
use crate::engine::learn::Learner;
use crate::engine::learn::doubt::Doubts;
use crate::engine::leases::{Leases, Tenure};
use crate::engine::memory::{Known, Memory};
pub use crate::engine::metrics::{EngineMetrics, ServedCounters};
use crate::engine::outcome::{Content, Failure, Outcome, Served, ServedAs};
use crate::engine::plan::{Freshness, Plan, Situation, plan};
use crate::engine::prefetch::Prefetcher;
use crate::engine::relayed::Relayed;
use crate::engine::suites::Suites;
use crate::engine::suites::judge::{self, Judge};
use crate::engine::taint::Tainted;
use crate::engine::traffic::Meter;
use crate::engine::volume::folders::{self, Folders};
use crate::engine::volume::inspect::Inspector;
use crate::engine::volume::proof::Checks;
use crate::engine::volume::room::{self, Room};
use crate::engine::volume::upkeep;
use crate::engine::volume::uses::Uses;
use crate::index::{Entry, Expectation, Index, IndexError, budget};
use crate::mirror::{Answer, Framing, Mirror, Question};
use crate::store::Store;
use crate::swarm::Swarm;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::shown::shown;
use crate::telemetry::traces::{self, span};

/// For how long a client waits for a confirmation while there is a stored copy to give it.
const STALE_PATIENCE: Duration = Duration::from_secs(5);
/// For how long the index is told at least, at the end, what it does not know yet.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);
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
    /// How other replicas reach this one.
    pub fellows: fellows::Config,
    /// The smallest blob, in bytes, that sites tell each other of one by one.
    pub announced_from: u64,
    /// Who else may have what is public.
    pub give: give::Config,
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
    /// What the index is still to be told.
    late: Arc<Late>,
    prefetcher: Arc<Prefetcher>,
    judge: Arc<Judge>,
    flights: Arc<Flights>,
    leases: Arc<Leases>,
    duties: Arc<Duties>,
    fellows: Arc<Fellows>,
    announced_from: u64,
    paces: Paces,
    swarm: Arc<Swarm>,
    gate: Gate,
    meter: Arc<Meter>,
    history: Arc<History>,
    findings: Findings,
    recheck_after_millis: AtomicU64,
    doubts: Arc<Doubts>,
    suites: Suites,
    tainted: Tainted,
    count: Arc<Count>,
    tasks: TaskTracker,
    metrics: EngineMetrics,
}

impl Engine {
    /// Puts the engine together. What nobody waits for when it stops runs on `background`.
    ///
    /// # Errors
    /// When the client that asks other replicas can not be made.
    pub fn new(
        config: &Config,
        index: Arc<dyn Index>,
        store: Arc<Store>,
        mirror: Arc<Mirror>,
        swarm: Arc<Swarm>,
        metrics: &Metrics,
        background: &TaskTracker,
    ) -> anyhow::Result<Arc<Self>> {
        // Nothing that is loaded counts as checked against state 0.
        let knowledge = Arc::new(AtomicU64::new(1));
        let (prefetcher, errands) = Prefetcher::new(&config.prefetch, metrics);
        let prefetcher = Arc::new(prefetcher);
        let leases = Leases::new(&index, metrics);
        let duties = Duties::new(&leases, metrics);
        let memory = Memory::observed(metrics);
        let room = Room::of(&config.room, &index, &store, &memory, &duties, metrics);
        let moves = room.evictor().moves();
        let inspector = Inspector::new(&index, &store, moves, room.unadopted(), metrics);
        let inspector = Arc::new(inspector);
        let folders = Folders::new(&config.folders, &index, &inspector, metrics);
        let late = Arc::new(Late::new(room.unadopted(), metrics));
        let process = leases.owner().to_owned();
        let from_fellows = swarm.received.with_label_values(&["replica"]);
        let fellows = Fellows::new(&config.fellows, &index, process, from_fellows, metrics)?;
        let learner = Learner::start(
            Arc::clone(&index),
            Arc::clone(&inspector),
            Arc::clone(&duties),
            Arc::clone(&knowledge),
            Arc::clone(&prefetcher),
            metrics,
            background,
        );
        let counted = EngineMetrics::new(metrics);
        let meter = Meter::new(&index, &mirror, &swarm, &counted);
        let history = History::new(&meter);
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
            late,
            prefetcher,
            judge: Arc::new(Judge::new(config.judge.clone(), metrics)),
            flights: Flights::new(metrics),
            leases,
            fellows: Arc::new(fellows),
            swarm,
            gate: Gate::new(&config.give),
            meter,
            history,
            duties: Arc::clone(&duties),
            announced_from: config.announced_from,
            paces: Paces::default(),
            findings: Findings::default(),
            recheck_after_millis: AtomicU64::new(0),
            doubts: Doubts::new(&duties),
            suites: Suites::default(),
            tainted: Tainted::default(),
            count: Arc::new(Count::new(metrics)),
            tasks: TaskTracker::new(),
            metrics: counted,
        });
        if let Some(errands) = errands {
            errands.start(&engine, background);
        }
        engine.set_recheck_after(config.recheck_after);
        engine.go_on(config, background);
        Ok(engine)
    }

    /// What is done all the time, whether somebody asks for something or not.
    fn go_on(&self, config: &Config, background: &TaskTracker) {
        background.spawn(self.tidying().run());
        background.spawn(self.tidying().keep_room(Arc::clone(&self.duties)));
        background.spawn(Arc::clone(&self.room).tell_fellows());
        background.spawn(Arc::clone(&self.leases).run());
        background.spawn(Arc::clone(&self.meter).keep_telling());
        background.spawn(Arc::clone(&self.count).keep_telling(Arc::clone(&self.index)));
        background.spawn(Arc::clone(&self.history).watch(Arc::clone(&self.meter)));
        let (late, inspector) = (Arc::clone(&self.late), Arc::clone(&self.inspector));
        background.spawn(async move { late.tell(&inspector).await });
        background.spawn(upkeep::scrub(
            Arc::clone(&self.duties),
            Arc::clone(&self.inspector),
            config.scrub,
        ));
        background.spawn(upkeep::look_for_volume(Arc::clone(&self.inspector)));
        background.spawn(upkeep::adopt(Arc::clone(&self.duties), Arc::clone(&self.inspector)));
        background.spawn(Arc::clone(&self.folders).watch(Arc::clone(&self.duties)));
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
        budget::waited_for(self.serve_in_time(ask)).await
    }

    async fn serve_in_time(self: &Arc<Self>, ask: &Ask) -> Result<Served, Failure> {
        let pinned = self.pinned(ask).await;
        let meant = pinned.as_ref().unwrap_or(ask);
        let served = self.answer(meant).await;
        let served = self.as_it_was_told(ask, served).await;
        let mut served = self.unless_expired(ask, served).await;
        if let Ok(served) = &mut served {
            served.only_whole = self.tainted.contains(&meant.target.key);
            self.remember_given(ask, served);
            self.note_shown(ask, served);
            self.prefetcher.was_used(&meant.target.key);
        }
        self.count(ask, &served);
        served
    }

    async fn answer(self: &Arc<Self>, ask: &Ask) -> Result<Served, Failure> {
        let span = span!("engine.plan");
        let Finding { known: held, expectation } = self.find(ask).instrument(span.clone()).await;
        let is_held = held.is_some();
        let bringing = || Box::pin(self.bring(ask).instrument(span.clone()));
        let known = if is_held { held } else { bringing().await };
        let hit = if is_held { ask.hit() } else { Outcome::Miss };
        let plan = self.plan(ask, known.as_deref());
        traces::set(&span, "aptmesh.plan", plan.label());
        drop(span);
        let served = match (plan, known) {
            (Plan::Serve, Some(known)) => Ok(stored(known, hit)),
            (Plan::ServeStale, Some(known)) => Ok(stored(known, Outcome::Stale)),
            // What waits for others is on the heap, so that a hit moves less.
            (Plan::Revalidate, Some(known)) => Box::pin(self.revalidate(ask, known)).await,
            (Plan::Fetch, _) => Box::pin(self.fetch(ask, None, expectation)).await,
            (Plan::Relay | Plan::Serve | Plan::ServeStale | Plan::Revalidate, _) => {
                Box::pin(self.relay(ask)).await
            }
        };
        served.map(|served| {
            let is_brought = !is_held && matches!(served.content, Content::Known(_));
            Served { is_borrowed: served.is_borrowed || is_brought, ..served }
        })
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

    async fn revalidate(self: &Arc<Self>, ask: &Ask, known: Arc<Known>) -> Result<Served, Failure> {
        if self.mirror.is_away(&ask.target) {
            // Nobody waits for what tells whether it is back.
            drop(self.board(ask, Some(&known), None));
            known.fail();
            return Ok(stored(known, Outcome::Stale));
        }
        let expectation = self.expectation(ask).await;
        let confirming = self.fetch(ask, Some(&known), expectation);
        let doubt = match timeout(STALE_PATIENCE, confirming).await {
            Ok(Err(failure)) if failure.is_trouble() => failure,
            Ok(answered) => return answered,
            Err(_elapsed) => Failure::internal("not confirmed in time"),
        };
        known.fail();
        let doubt = Some(Box::new(doubt));
        Ok(Served { doubt, ..stored(known, Outcome::Stale) })
    }

    /// Takes part in the flight for the resource, beginning it where there is none.
    async fn fetch(
        self: &Arc<Self>,
        ask: &Ask,
        known: Option<&Arc<Known>>,
        expectation: Option<Expectation>,
    ) -> Result<Served, Failure> {
        for _ in 0..BOARDINGS_MAX {
            let (interest, outcome) = match self.board(ask, known, expectation) {
                Ok(boarded) => boarded,
                Err(NotBoarded::Full) => {
                    return Err(Failure::internal("too many downloads are under way"));
                }
                Err(NotBoarded::Landed) => match self.memory.get(&ask.target.key) {
                    Some(known) => return Ok(stored(known, ask.hit())),
                    None => continue,
                },
            };
            let landing = self.landing(&interest, outcome).await;
            if let Landing::Flowing(flow) = &landing
                && expectation.is_some()
                && flow.meta.size.is_some_and(|size| size <= TAIL)
            {
                // Held back to its end anyway: so there can still be a status if it is wrong.
                interest.flight().over().await;
            }
            match landing {
                Landing::Unchanged(known) => return Ok(stored(known, Outcome::Revalidated)),
                Landing::Settled(known) => return Ok(stored(known, ask.hit())),
                Landing::Flowing(flow) if !interest.flight().is_cut() => {
                    let is_own = outcome == Outcome::Miss || ask.begun_early;
                    return Ok(self.following(flow, interest, is_own));
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

    /// What becomes of the question to the mirror. Who joined a flight of another request waits in a span of
    /// its own, which points at that one's.
    async fn landing(&self, interest: &Interest, outcome: Outcome) -> Landing {
        let span =
            if outcome == Outcome::Collapsed { span!("engine.follow") } else { Span::none() };
        traces::link(&span, interest.flight().origin());
        interest.flight().landed().instrument(span).await
    }

    /// An answer from a flight, which may be its own.
    fn following(&self, flow: Arc<Flow>, interest: Interest, is_own: bool) -> Served {
        // Another replica began it; with a volume of its own, it is asked for the bytes.
        let is_abroad = flow.by == By::Replica;
        let is_joined = !is_own || (is_abroad && flow.borrowed.is_none());
        let outcome = if is_own && !is_abroad { Outcome::Miss } else { Outcome::Collapsed };
        let follower = Follower::new(flow, interest, Arc::clone(&self.mirror));
        let served = Served::new(Content::Flight(Box::new(follower)), outcome);
        Served { is_joined, ..served }
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
        let span = departure.span().clone();
        if !span.is_disabled() {
            traces::set(&span, "aptmesh.resource", ask.kind.label());
            traces::set(&span, "server.address", ask.target.authority.host.clone());
            traces::set(&span, "url.path", shown(&ask.target.path).into_owned());
        }
        let transfer = Transfer {
            engine: Arc::clone(self),
            target: Arc::clone(&ask.target),
            sources: ask.sources.clone(),
            kind: ask.kind,
            expectation,
            known: known.cloned(),
            may_borrow: ask.freshness != Freshness::Now,
            is_elsewhere: false,
            pace: ask.pace,
            window: match ask.freshness {
                Freshness::Now => Duration::ZERO,
                Freshness::Any | Freshness::Recent => self.recheck_after(),
            },
            via: ask.headers.get_all(header::VIA).iter().cloned().collect(),
        };
        self.metrics.flights.inc();
        let engine = Arc::clone(self);
        let flying = budget::inherited(async move {
            // Whoever began it, clients may wait for it.
            budget::waited_for(Box::pin(transfer.run(departure))).await;
            engine.metrics.flights.dec();
        });
        self.tasks.spawn(flying.instrument(span));
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
        let is_trouble = answer.status.is_server_error() || answer.status == 429;
        let outcome = if is_trouble { Outcome::Error } else { Outcome::Relayed };
        let relayed = Box::new(Relayed::new(answer, expected));
        Ok(Served::new(Content::Relay(relayed), outcome))
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

    /// Tells the index what is stored of `key`: later, if need be. `false` if another process has the
    /// lease under which that was to be done.
    async fn record(&self, key: &str, entry: &Entry, tenure: Option<&Tenure>) -> bool {
        let recorded = match tenure {
            Some(tenure) => self.index.record_under(tenure.lease(), key, entry).await,
            None => self.index.record(key, entry).await.map(|()| true),
        };
        recorded.inspect(|_| self.late.is_told(key)).unwrap_or_else(|error| {
            // Whoever has the lease by then took it later, and what that one records is newer.
            let since = tenure.map_or(i64::MAX, Tenure::since);
            let entry = Entry { checked_at: entry.checked_at.min(since), ..entry.clone() };
            self.late.record(key, &entry, &error);
            true
        })
    }

    /// The same for what came from a replica that fetched it under its own lease: not over what is as new.
    async fn record_joined(&self, key: &str, entry: &Entry) {
        match self.index.record_late(key, entry).await {
            Ok(()) => self.late.is_told(key),
            Err(error) => self.late.record(key, entry, &error),
        }
    }

    /// As [`Self::record`], without keeping anybody waiting.
    fn record_soon(self: &Arc<Self>, key: &str, entry: &Entry) {
        let (engine, key, entry) = (Arc::clone(self), key.to_owned(), entry.clone());
        self.tasks.spawn(async move { engine.record(&key, &entry, None).await });
    }

    fn count(&self, ask: &Ask, served: &Result<Served, Failure>) {
        self.metrics.served.of(ServedAs::of(ask.kind, served)).inc();
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

    /// Opens a tunnel for a client.
    ///
    /// # Errors
    /// When it may not be opened, or nothing answers.
    pub async fn connect(&self, host: &str, port: u16) -> Result<tokio::net::TcpStream, Failure> {
        self.mirror.connect(host, port).await.map_err(Failure::Mirror)
    }

    /// Waits until all flights are over; `false` if some are not at `until`. Then the index is told what it does
    /// not know yet, until then or for `LAST_WORDS_MAX` at least.
    pub async fn drain(&self, until: Instant) -> bool {
        self.tasks.close();
        let landed = timeout_at(until, self.tasks.wait()).await.is_ok();
        let last_words = async {
            self.leases.release_all().await;
            self.tidying().tell().await;
            self.meter.tell().await;
            // What is left is found by a walk over the volume.
            self.late.tell_now(&self.inspector).await;
        };
        if timeout_at(until.max(Instant::now() + LAST_WORDS_MAX), last_words).await.is_err() {
            tracing::debug!("the index does not take what is left to tell");
        }
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
