//! Fellows: replicas of this site with a volume of their own. What one of them has is fetched from it
//! before any mirror is asked.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use prometheus::IntCounter;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::Span;

use crate::archive::kind::Kind;
use crate::content::digest::{Expected, Hasher, Sha256};
use crate::engine::flight::Flight;
use crate::engine::flight::follower::Cut;
use crate::engine::flight::writer::{Stopped, Writer};
use crate::engine::memory::{Known, now_seconds};
use crate::engine::plan::Freshness;
use crate::engine::volume::promise::Staged;
use crate::engine::{Ask, Engine, Sharing, without_index};
use crate::index::{Entry, Expectation, Index, IndexError, Presence, budget};
use crate::store::{COMMIT_PATIENCE, StoreError};
use crate::swarm::fellows::{self, Body};
use crate::swarm::token::Secret;
use crate::telemetry::metrics::Metrics;

/// How often fellows hear of each other.
const MEET_EVERY: Duration = Duration::from_secs(2);
/// Fellows that are asked for one blob, one after the other: a mirror has it too.
const ASKED_MAX: usize = 2;
/// For how long they may take together until the first byte.
const BUDGET: Duration = Duration::from_secs(4);
/// Up to this size, in bytes, a blob is taken in memory and hashed before anybody sees a byte of it: it
/// takes no longer than that on the line between replicas.
const SMALL_MAX: u64 = 1024 * 1024;
/// For how long a file may take that has to be whole before its mirror can be asked whether it still is
/// right.
const BRING_BUDGET: Duration = Duration::from_secs(5);
/// The most bytes of such a file.
const BRING_MAX: u64 = 256 * 1024 * 1024;
/// Files that are brought at a time.
const BRINGING_MAX: usize = 16;

/// How this replica shows itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The URL under which its fellows reach it; `None`: it only takes.
    pub advertise: Option<String>,
}

/// What is known of fellows, and the way to them.
pub(super) struct Fellows {
    index: Arc<dyn Index>,
    swarm: fellows::Fellows,
    here: Presence,
    met: ArcSwapOption<Met>,
    is_parting: AtomicBool,
    /// Held while a blob is brought, by the beginning of its digest.
    bringing: [Mutex<()>; BRINGING_MAX],
}

/// The last meeting.
struct Met {
    secret: Secret,
    /// What all took for the time then, in seconds since 1970.
    time: f64,
    at: Instant,
    are_there: bool,
    /// Where they and those that share our volume are reached.
    others: Vec<String>,
}

impl Met {
    fn now(&self) -> u64 {
        Duration::try_from_secs_f64(self.time)
            .unwrap_or_default()
            .saturating_add(self.at.elapsed())
            .as_secs()
    }
}

/// What fellows have of a resource.
pub struct Offer {
    /// What it is.
    pub entry: Entry,
    /// Where they are reached.
    urls: Vec<String>,
}

/// Bytes of a blob on their way through us, from a fellow to another site.
pub struct Passing {
    body: Box<Body>,
    left: u64,
}

impl Passing {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the fellow breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Cut> {
        if self.left == 0 {
            return Ok(None);
        }
        let next = self.body.chunk().await.map_err(|error| Cut(error.to_string().into()))?;
        let mut bytes = next.ok_or_else(|| Cut("a fellow gave too little".into()))?;
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= bytes.len() as u64;
        Ok(Some(bytes))
    }
}

/// Bytes of a blob from a fellow.
pub(super) enum Loan {
    /// All of them, and right. The URL tells whose they are.
    Whole(Arc<str>, Bytes),
    /// On their way, still to be hashed.
    Coming(Box<Body>),
}

impl Fellows {
    pub(super) fn new(
        config: &Config,
        index: &Arc<dyn Index>,
        process: String,
        received: IntCounter,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let mut new_secret = vec![0; 32];
        let filled = SystemRandom::new().fill(&mut new_secret);
        filled.map_err(|_unspecified| anyhow::anyhow!("this system has no random numbers"))?;
        Ok(Self {
            index: Arc::clone(index),
            swarm: fellows::Fellows::new(received, metrics)?,
            here: Presence { process, url: config.advertise.clone(), new_secret },
            met: ArcSwapOption::empty(),
            is_parting: AtomicBool::new(false),
            bringing: Default::default(),
        })
    }

    /// Tells and hears of fellows; `false` if there can be none.
    pub(super) async fn meet(&self) -> bool {
        if self.is_parting.load(Ordering::Relaxed) {
            return false;
        }
        match self.index.meet(&self.here).await {
            Ok(None) => return false,
            Ok(Some(site)) => self.met.store(Some(Arc::new(Met {
                secret: Secret::new(&site.secret),
                time: site.now,
                at: Instant::now(),
                are_there: site.has_fellows,
                others: site.others,
            }))),
            // They are asked as long as the index is, which knows what they have.
            Err(error) => {
                tracing::debug!(%error, source = %error.source, "did not meet the fellows");
            }
        }
        true
    }

    /// As long as the process lives.
    pub(super) async fn keep_meeting(self: Arc<Self>) {
        while self.meet().await {
            sleep(MEET_EVERY).await;
        }
    }

    /// They need not ask here any more.
    pub(super) async fn part(&self) {
        self.is_parting.store(true, Ordering::Relaxed);
        if self.here.url.is_some()
            && let Err(error) = self.index.part(&self.here).await
        {
            tracing::debug!(%error, source = %error.source, "did not tell the fellows");
        }
    }

    /// Whether there is anybody to ask.
    fn are_there(&self) -> bool {
        self.met.load().as_ref().is_some_and(|met| met.are_there)
    }

    /// Whether a question for `blob` is by a fellow.
    pub(super) fn admit(&self, authorization: &str, blob: &Sha256) -> bool {
        let met = self.met.load();
        met.as_ref().is_some_and(|met| met.secret.admits(authorization, blob, met.now()))
    }

    /// These bytes of a blob, of the first that answers.
    async fn open(&self, urls: &[String], entry: &Entry, part: Range<u64>) -> Option<Body> {
        let part = (part.start, Some(part.end).filter(|end| *end < entry.size));
        let met = self.met.load_full()?;
        let asked = urls.iter().filter(|url| self.swarm.may_ask(url)).take(ASKED_MAX);
        for url in asked {
            let token = met.secret.token(&entry.blob, met.now());
            match self.swarm.fetch(url, &entry.blob, part, &token).await {
                Ok(body) if body.size() == Some(entry.size) => return Some(body),
                Ok(body) => {
                    tracing::warn!(url, size = ?body.size(), "a fellow has another size of a blob");
                    self.swarm.blame(body.url());
                }
                Err(error) => tracing::info!(%error, "a fellow does not give a blob"),
            }
        }
        None
    }

    /// Where other replicas of the site are reached, as of the last meeting.
    pub(super) fn others(&self) -> Vec<String> {
        self.met.load().as_ref().map(|met| met.others.clone()).unwrap_or_default()
    }

    /// Whether it is worth asking the replica at `url`.
    pub(super) fn may_ask(&self, url: &str) -> bool {
        self.swarm.may_ask(url)
    }

    /// Where fellows reach this replica.
    pub(super) fn url(&self) -> Option<String> {
        self.here.url.clone()
    }

    /// The body of a flight of the replica at `url`, which is named by the digest of its key.
    pub(super) async fn join(&self, url: &str, flight: &Sha256) -> Option<Body> {
        if !self.swarm.may_ask(url) {
            return None;
        }
        let met = self.met.load_full()?;
        let token = met.secret.token(flight, met.now());
        match self.swarm.join(url, flight, &token).await {
            Ok(body) => Some(body),
            Err(error) => {
                tracing::info!(%error, "a fellow does not give of what it fetches");
                None
            }
        }
    }

    /// All bytes of a small blob.
    async fn whole(&self, urls: &[String], entry: &Entry) -> Option<(Arc<str>, Bytes)> {
        let mut urls = urls;
        while let Some(mut body) = self.open(urls, entry, 0..entry.size).await {
            match read(&mut body, entry).await {
                Ok(bytes) if Sha256::of(&bytes) == entry.blob => {
                    return Some((Arc::clone(body.url()), bytes));
                }
                Ok(_wrong) => self.swarm.blame(body.url()),
                Err(reason) => tracing::info!(reason, "a fellow did not give a whole blob"),
            }
            // Those before it did not answer.
            let place = urls.iter().position(|url| **url == **body.url())?;
            urls = urls.get(place + 1..)?;
        }
        None
    }
}

async fn read(body: &mut Body, entry: &Entry) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(usize::try_from(entry.size).unwrap_or_default());
    while let Some(chunk) = body.chunk().await.map_err(|error| error.to_string())? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > entry.size {
            return Err("more than it said".to_owned());
        }
    }
    Ok(bytes.into())
}

impl Engine {
    /// Begins to hear of fellows, and has them hear of this replica.
    pub async fn meet_fellows(&self, background: &TaskTracker) {
        // Who is late is met later.
        drop(timeout(MEET_EVERY, self.fellows.meet()).await);
        background.spawn(Arc::clone(&self.fellows).keep_meeting());
    }

    /// Tells fellows that this replica stops.
    pub async fn leave_fellows(&self) {
        self.fellows.part().await;
    }

    /// Whether only other volumes are known to have it.
    pub(super) async fn is_elsewhere(&self, blob: &Sha256) -> bool {
        match self.index.holders(blob).await {
            Ok(holders) => holders.is_elsewhere && !holders.is_ours,
            Err(error) => {
                without_index::<()>(&error);
                true
            }
        }
    }

    /// What fellows have of a resource: what it must be, or else what it was when it was last fetched.
    pub(super) async fn offer(&self, key: &str, expectation: Option<Expectation>) -> Option<Offer> {
        if !self.fellows.are_there() {
            return None;
        }
        let expected = match expectation {
            Some(Expectation { digest: Expected::Sha256(digest), .. }) => Some(digest),
            _ => None,
        };
        let fits = |entry: &Entry| {
            expectation.is_none_or(|expected| !expected.contradicts(entry.size, &entry.blob))
        };
        let recorded = self.recorded(key).await.filter(fits);
        let blob = expected.or_else(|| recorded.as_ref().map(|entry| entry.blob))?;
        let holders = self.index.holders(&blob).await;
        let holders = holders.unwrap_or_else(|error| without_index(&error).unwrap_or_default());
        if holders.urls.is_empty() {
            return None;
        }
        let entry = if let Some(entry) = recorded {
            entry
        } else {
            // Under another name.
            let named = self.index.by_blob(&blob).await;
            let named = named.unwrap_or_else(|error| without_index(&error));
            named.filter(fits).or_else(|| Some(Entry::nameless(blob, holders.size?)))?
        };
        Some(Offer { entry, urls: holders.urls })
    }

    /// Whether what only fellows have would be taken from them before any mirror is asked.
    pub(super) fn would_borrow(&self, kind: Kind, size: u64) -> bool {
        let may_be_stored = self.fellows.are_there() && self.store.takes_blobs();
        may_be_stored && (is_lasting(kind) || size <= BRING_MAX)
    }

    /// Takes what fellows offer.
    pub(super) async fn borrow(&self, offer: &Offer) -> Option<Loan> {
        let Offer { entry, urls } = offer;
        let borrowing = async {
            if entry.size <= SMALL_MAX {
                let (url, bytes) = self.fellows.whole(urls, entry).await?;
                Some(Loan::Whole(url, bytes))
            } else {
                self.fellows
                    .open(urls, entry, 0..entry.size)
                    .await
                    .map(|body| Loan::Coming(Box::new(body)))
            }
        };
        timeout(BUDGET, borrowing).await.ok()?
    }

    /// The rest of a blob of which another fellow broke off.
    pub(super) async fn borrow_rest(&self, entry: &Entry, from: u64) -> Option<Body> {
        // Its clients waited for the index when they came.
        let holders = self.index.holders(&entry.blob);
        let holders = budget::for_at_most(budget::of_a_request(), holders).await.ok()?;
        timeout(BUDGET, self.fellows.open(&holders.urls, entry, from..entry.size)).await.ok()?
    }

    /// What fellows have of a blob that is not here, if a list names it: other sites are told of what all
    /// of us have.
    pub(super) async fn public_offer(&self, blob: &Sha256) -> Result<Option<Offer>, IndexError> {
        if !self.fellows.are_there() {
            return Ok(None);
        }
        let holders = self.index.holders(blob).await?;
        let Some(size) = holders.size.filter(|_| !holders.urls.is_empty()) else {
            return Ok(None);
        };
        if self.index.names(&[*blob]).await?.iter().all(|names| names.lists.is_empty()) {
            return Ok(None);
        }
        let named = self.index.by_blob(blob).await?.filter(|entry| entry.size == size);
        let entry = named.unwrap_or_else(|| Entry::nameless(*blob, size));
        Ok(Some(Offer { entry, urls: holders.urls }))
    }

    /// These bytes of what fellows offer, for another site; `None` if none of them gives it now.
    pub async fn pass_on(&self, offer: &Offer, part: Range<u64>) -> Option<Passing> {
        let left = part.end.saturating_sub(part.start);
        let opening = self.fellows.open(&offer.urls, &offer.entry, part);
        let body = Box::new(timeout(BUDGET, opening).await.ok()??);
        Some(Passing { body, left })
    }

    /// A fellow's bytes turned out to be wrong.
    pub(super) fn blame_fellow(&self, url: &Arc<str>) {
        self.metrics.verify_failures.with_label_values(&["replica"]).inc();
        tracing::error!(%url, "a fellow gave wrong bytes: it is not asked for a while");
        self.fellows.swarm.blame(url);
    }

    /// Takes over from a fellow, onto this volume, what can not be handed on while it comes: files whose
    /// content changes under their name, since the mirror is asked first whether they still are right.
    pub(super) async fn bring(self: &Arc<Self>, ask: &Ask) -> Option<Arc<Known>> {
        let is_of_use = ask.sharing == Sharing::Shared
            && ask.kind.is_stored()
            && (!is_lasting(ask.kind) || ask.freshness == Freshness::Now)
            && self.fellows.are_there()
            && self.store.takes_blobs();
        if !is_of_use {
            return None;
        }
        let expectation = self.expectation(ask).await;
        let offer = self.offer(&ask.target.key, expectation).await?;
        self.bring_offered(&ask.target.key, &offer).await
    }

    /// The same, for what another replica recorded a moment ago.
    pub(super) async fn bring_recorded(
        self: &Arc<Self>,
        key: &str,
        entry: Entry,
    ) -> Option<Arc<Known>> {
        if !self.fellows.are_there() {
            return None;
        }
        let urls = self.index.holders(&entry.blob).await.ok()?.urls;
        self.bring_offered(key, &Offer { entry, urls }).await
    }

    async fn bring_offered(self: &Arc<Self>, key: &str, offer: &Offer) -> Option<Arc<Known>> {
        if offer.entry.size > BRING_MAX || offer.urls.is_empty() {
            return None;
        }
        timeout(BRING_BUDGET, self.brought(key, offer)).await.ok()?
    }

    async fn brought(self: &Arc<Self>, key: &str, offer: &Offer) -> Option<Arc<Known>> {
        let Offer { entry, urls } = offer;
        let place = entry.blob.as_bytes().first().map_or(0, |first| usize::from(*first));
        let _alone = self.fellows.bringing.get(place % BRINGING_MAX)?.lock().await;
        if self.inspector.on_volume(&entry.blob).await.is_some()
            && let Some(known) = self.loaded(key, Some(entry.clone())).await
        {
            // Somebody else brought it just now.
            return Some(known);
        }
        let mut body = self.fellows.open(urls, entry, 0..entry.size).await?;
        let staged = self.room.stage(Some(entry.size)).await.ok()?;
        let flight = Arc::new(Flight::new(&Span::none()));
        let hasher = Hasher::new(Some(Expected::Sha256(entry.blob)));
        let writer = Writer::start(staged, hasher, 0, flight);
        loop {
            match body.chunk().await {
                Ok(None) => break,
                Ok(Some(chunk)) => {
                    if let Err(Stopped) = writer.write(chunk).await {
                        break;
                    }
                }
                Err(error) => {
                    tracing::info!(%error, "a fellow broke off");
                    return None;
                }
            }
        }
        let written = writer.finish().await.ok()?;
        if !written.verdict.as_expected {
            self.blame_fellow(body.url());
            return None;
        }
        // It is stored whether somebody still waits or not.
        let (engine, name, entry) = (Arc::clone(self), key.to_owned(), entry.clone());
        let storing =
            self.tasks.spawn(async move { engine.take_over(&name, entry, written.staged).await });
        match storing.await.map_err(StoreError::interrupted).and_then(|stored| stored) {
            Ok(known) => Some(known),
            Err(error) => {
                tracing::warn!(key, %error, source = %error.source, "brought, but not stored");
                None
            }
        }
    }

    /// The name is recorded already: all that is new is that the blob lies here, too.
    async fn take_over(
        &self,
        key: &str,
        entry: Entry,
        staged: Staged,
    ) -> Result<Arc<Known>, StoreError> {
        let Staged { stage, promise, .. } = staged;
        let (blob, size) = (entry.blob, entry.size);
        let arriving = self.room.evictor().moves().arrive(blob).await;
        let store = Arc::clone(&self.store);
        // However long the volume takes, it is arriving for as long.
        let committing = move || {
            let committed = store.commit(stage, &blob)?;
            let known = Known::load_new(entry, committed).map_err(StoreError::interrupted)?;
            Ok((known, arriving, promise))
        };
        let (known, arriving, promise) = self.store.within(COMMIT_PATIENCE, committing).await?;
        let known = Arc::new(known);
        self.metrics.stored_bytes.inc_by(size);
        self.memory.hold(key, Arc::clone(&known));
        self.learner.offer(key, &known);
        let (index, key) = (Arc::clone(&self.index), key.to_owned());
        self.tasks.spawn(async move {
            if let Err(error) = index.add_blob(&blob, size, now_seconds()).await {
                tracing::warn!(key, %error, source = %error.source, "brought, but not recorded");
            }
            drop((arriving, promise));
        });
        Ok(known)
    }
}

/// Whether what has such a name stays what it is: then it may be handed on while it comes.
pub(super) fn is_lasting(kind: Kind) -> bool {
    matches!(kind, Kind::ByHash(_) | Kind::Package | Kind::Patch)
}
