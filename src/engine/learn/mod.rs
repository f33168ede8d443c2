//! Learning: what the lists that pass through say of other resources becomes expectations. Off the
//! request path, one list at a time, in bounded memory: a client's bytes never wait for it. Of a
//! site's processes, one at a time learns a list, and writes nothing when another took over.

mod difference;
pub(super) mod doubt;
mod reading;
mod seen;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntCounterVec;
use rustix::process::setpriority_process;
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::TaskTracker;

use crate::archive::control::ControlError;
use crate::archive::list::{List, ListKind};
use crate::archive::release::ReleaseError;
use crate::content::digest::{Expected, Sha256};
use crate::engine::duties::{Duties, Duty};
use crate::engine::learn::difference::{BATCH, Difference, NAME_BYTES_MAX, NAMES_MAX, Said};
use crate::engine::learn::seen::{Seen, Version};
use crate::engine::memory::{Known, now_seconds};
use crate::engine::prefetch::{NEWS_MAX, Prefetcher};
use crate::engine::volume::inspect::Inspector;
use crate::index::{Change, Entry, Expectation, Index, IndexError, Lease};
use crate::store::Blob;
use crate::telemetry::metrics::Metrics;

/// Lists that may wait to be learnt. One beyond is learnt when it is asked for again.
const WAITING_MAX: usize = 256;
/// Lists kept for another look, each with its file open.
const EARLY_MAX: usize = 32;
/// Lists that the index could not remember, each with its file open.
const FAILED_MAX: usize = 32;
/// Lists that wait until a fellow has learnt them, each with its file open; one beyond is learnt when
/// it is asked for again.
const WITH_FELLOWS_MAX: usize = 32;
/// How often it is looked whether lists that wait can be learnt by now.
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// By how much learning gives way to what clients wait for (nice(2)).
const NICENESS: i32 = 10;
/// Batches that may wait to be written.
const BATCHES_MAX: usize = 4;
/// For how long nobody asks for a suite before it stops counting as in use, in seconds: machines that
/// are updated monthly still are its users.
const DISUSED_AFTER: i64 = 30 * 24 * 60 * 60;
/// How often there is a look for such lists.
const FORGET_EVERY: Duration = Duration::from_hours(1);
/// For how long there is a pause before a list is learnt again that the index could not remember:
/// another process may be writing, or the disk be full for a moment.
const AGAIN_AFTER: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20)];
/// How often those are looked at again that could not be remembered even so.
const FAILED_EVERY: Duration = Duration::from_secs(15);
/// Lists that are forgotten at once.
const FORGOTTEN_MAX: usize = 64;

/// A queue in front of the one who learns.
#[derive(Clone)]
pub(super) struct Learner {
    jobs: mpsc::Sender<Job>,
    again: Arc<Notify>,
}

#[derive(Clone)]
struct Job {
    /// What it is stored as.
    key: String,
    list: List,
    entry: Entry,
    blob: Blob,
}

impl Job {
    fn digest(&self) -> Sha256 {
        self.entry.blob
    }

    fn is_same(&self, other: &Self) -> bool {
        self.list.key == other.list.key && self.digest() == other.digest()
    }

    fn version(&self) -> Version {
        Version { key: self.key.clone(), list: self.list.clone(), entry: self.entry.clone() }
    }
}

impl Learner {
    /// Starts learning into `index`; `knowledge` counts what changed something.
    pub(super) fn start(
        index: Arc<dyn Index>,
        inspector: Arc<Inspector>,
        duties: Arc<Duties>,
        knowledge: Arc<AtomicU64>,
        prefetcher: Arc<Prefetcher>,
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let again = Arc::<Notify>::default();
        let student = Student {
            index,
            inspector,
            duties,
            knowledge,
            prefetcher,
            seen: Seen::default(),
            early: Vec::new(),
            failed: Vec::new(),
            with_fellows: Vec::new(),
            heard: 0,
            learnt: metrics.counters_of(
                "aptmesh_engine_learnt_lists_total",
                "Lists that were looked at to learn from, by outcome.",
                "outcome",
                &["learnt", "known", "not_current", "superseded", "refused", "failed", "forgotten"],
            ),
            files: metrics.counters_of(
                "aptmesh_engine_learnt_files_total",
                "Files of which a list that was learnt says what it did not say before (set), or says nothing any \
                 more (unset).",
                "change",
                &["set", "unset"],
            ),
        };
        tasks.spawn(student.run(waiting, Arc::clone(&again)));
        Self { jobs, again }
    }

    /// Has what is stored at `url` learnt, if it is a list. Never waits.
    pub(super) fn offer(&self, url: &str, known: &Known) {
        let Some(list) = List::at(url) else { return };
        let job =
            Job { key: url.to_owned(), list, entry: known.entry.clone(), blob: known.blob.clone() };
        if self.jobs.try_send(job).is_err() {
            tracing::debug!(url, "too many lists wait to be learnt: this one is left for later");
        }
    }

    /// The index may have lost what was learnt: all of it is looked at again.
    pub(super) fn learn_again(&self) {
        self.again.notify_one();
    }
}

/// Runs `work` on a thread of its own, which gives way to those that serve clients.
fn on_idle_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, Refusal>>, Refusal> {
    let (answer, answered) = oneshot::channel();
    let started = std::thread::Builder::new().name("learner".to_owned()).spawn(move || {
        // On Linux, a thread's own (setpriority(2), "C library/kernel differences").
        if let Err(error) = setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "learning at the usual priority");
        }
        // Who asked may have stopped: then nobody misses the answer.
        drop(answer.send(work()));
    });
    started.map(|_| answered).map_err(Refusal::Read)
}

/// Why a list was not learnt.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("its release file does not name it, or not any more")]
    NotCurrent,
    #[error("its mirror gave a newer one since")]
    Superseded,
    #[error("another process learns it")]
    WithFellow,
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
    #[error("it names more than {NAMES_MAX} files, or in more than {NAME_BYTES_MAX} bytes")]
    TooMuch,
    #[error("it takes too long to read")]
    TooSlow,
    #[error("could not be read: {0}")]
    Read(io::Error),
    #[error("nobody writes down what it says any more")]
    Abandoned,
    #[error("could not be read to its end")]
    Interrupted,
    #[error("could not be remembered: {}", .0.source)]
    Index(IndexError),
}

impl Refusal {
    /// Whether the same file would be refused again. A fault of ours passes.
    fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::NotCurrent
                | Self::Superseded
                | Self::WithFellow
                | Self::Abandoned
                | Self::Interrupted
                | Self::Index(_)
        )
    }
}

/// What the index says of a write.
impl From<IndexError> for Refusal {
    fn from(error: IndexError) -> Self {
        if error.is_fenced_off() { Self::WithFellow } else { Self::Index(error) }
    }
}

struct Student {
    index: Arc<dyn Index>,
    inspector: Arc<Inspector>,
    duties: Arc<Duties>,
    knowledge: Arc<AtomicU64>,
    prefetcher: Arc<Prefetcher>,
    seen: Seen,
    /// Lists that came before their release file was learnt, oldest first.
    early: Vec<Job>,
    /// Lists that the index could not remember, oldest first.
    failed: Vec<Job>,
    /// Lists that fellows learn, or did when it was looked last.
    with_fellows: Vec<Job>,
    /// The state of knowledge in which those that came early were last looked at.
    heard: u64,
    learnt: IntCounterVec,
    files: IntCounterVec,
}

impl Student {
    async fn run(mut self, mut waiting: mpsc::Receiver<Job>, all_again: Arc<Notify>) {
        let (mut forgetting, mut once_more) = (interval(FORGET_EVERY), interval(FAILED_EVERY));
        once_more.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut again = interval(LOOK_AGAIN_EVERY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                job = waiting.recv() => match job {
                    Some(job) => self.look_at_all(job).await,
                    None => return,
                },
                // Not while it is known to be in vain.
                _ = once_more.tick(), if self.index.trouble().is_none() => {
                    for job in std::mem::take(&mut self.failed) {
                        self.look_at_all(job).await;
                    }
                }
                _ = again.tick() => self.look_again().await,
                () = all_again.notified() => self.look_at_all_again().await,
                _ = forgetting.tick() => {
                    if let Err(error) = self.forget_disused().await {
                        tracing::warn!(%error, source = %error.source, "could not forget old lists");
                    }
                }
            }
        }
    }

    async fn look_at_all(&mut self, job: Job) {
        let release = (job.list.kind == ListKind::Release).then(|| job.list.base.clone());
        self.look_at(job).await;
        // What came before its release file was learnt gets another look.
        for job in release.map(|base| self.take_early(&base)).unwrap_or_default() {
            self.look_at(job).await;
        }
    }

    /// At what fellows learnt meanwhile, or did not since they died; and, where they learnt anything, at
    /// what came before its release file.
    async fn look_again(&mut self) {
        let knowledge = self.knowledge.load(Ordering::Acquire);
        let mut jobs = std::mem::take(&mut self.with_fellows);
        if std::mem::replace(&mut self.heard, knowledge) != knowledge {
            for job in std::mem::take(&mut self.early) {
                let is_due = self.is_current(&job).await.unwrap_or(false);
                if is_due { &mut jobs } else { &mut self.early }.push(job);
            }
        }
        for job in jobs {
            self.look_at(job).await;
        }
    }

    /// At all that was seen, as far as it lies on the volume still. Who else has seen a later version tells
    /// the index so first.
    async fn look_at_all_again(&mut self) {
        let seen = self.seen.take_all();
        tracing::info!(lists = seen.len(), "the index may have lost something: learning all again");
        for Version { key, entry, .. } in &seen {
            if let Err(error) = self.inspector.record_late(key, entry).await {
                tracing::debug!(key, %error, "not recorded again");
            }
        }
        for version in seen {
            let Version { key, list, entry } = version;
            if let Ok(Some(blob)) = self.inspector.open(&entry.blob).await {
                self.look_at_all(Job { key, list, entry, blob }).await;
            }
        }
    }

    /// Forgets lists of suites that nobody uses any more: what they name is not worth more than other
    /// things then.
    async fn forget_disused(&mut self) -> Result<(), IndexError> {
        let before = now_seconds() - DISUSED_AFTER;
        // One process at a time.
        let Some(_on_duty) = self.duties.take(Duty::Learn, "").await? else { return Ok(()) };
        for list in self.index.disused_lists(before, FORGOTTEN_MAX).await? {
            let Some(on_duty) = self.duties.take(Duty::Learn, &list).await? else { continue };
            while !self.index.unlearn(on_duty.lease(), &list, BATCH, now_seconds()).await? {}
            tracing::info!(list, "forgot a list that nobody asks for any more");
            self.seen.forget(&list);
            self.knowledge.fetch_add(1, Ordering::Release);
            self.learnt.with_label_values(&["forgotten"]).inc();
        }
        Ok(())
    }

    async fn look_at(&mut self, job: Job) {
        let looked_at = job.version();
        if self.seen.has(&looked_at) {
            return;
        }
        let key = job.list.key.clone();
        let begun = Instant::now();
        let outcome = match self.learn_in_the_end(&job).await {
            Ok(None) => "known",
            Ok(Some(changes)) => {
                let millis = begun.elapsed().as_millis();
                tracing::info!(list = key, changes, millis, "learnt a list");
                "learnt"
            }
            Err(Refusal::NotCurrent) => {
                keep(&mut self.early, EARLY_MAX, job);
                "not_current"
            }
            Err(Refusal::Superseded) => "superseded",
            Err(Refusal::WithFellow) => {
                keep(&mut self.with_fellows, WITH_FELLOWS_MAX, job);
                return;
            }
            Err(refusal) if refusal.is_final() => {
                tracing::warn!(list = key, %refusal, "could not learn a list");
                "refused"
            }
            Err(refusal) => {
                tracing::warn!(list = key, %refusal, "could not learn a list now");
                keep(&mut self.failed, FAILED_MAX, job);
                "failed"
            }
        };
        self.learnt.with_label_values(&[outcome]).inc();
        self.remember(looked_at, outcome);
    }

    fn take_early(&mut self, base: &str) -> Vec<Job> {
        let early = std::mem::take(&mut self.early);
        let (now, later) = early.into_iter().partition(|job| job.list.key.starts_with(base));
        self.early = later;
        now
    }

    /// A list that is not current may become so, when its release file is learnt; and a fault of
    /// ours passes.
    fn remember(&mut self, looked_at: Version, outcome: &str) {
        if !matches!(outcome, "not_current" | "superseded" | "failed") {
            self.seen.put(looked_at);
        }
    }

    /// Learns, again where it was the index that failed.
    async fn learn_in_the_end(&self, job: &Job) -> Result<Option<usize>, Refusal> {
        for pause in AGAIN_AFTER {
            match self.learn(job).await {
                Err(refusal @ Refusal::Index(_)) => {
                    tracing::warn!(list = job.list.key, %refusal, "learning a list again");
                    sleep(pause).await;
                }
                done => return done,
            }
        }
        self.learn(job).await
    }

    /// The number of changes; `None` if this very file was learnt before.
    async fn learn(&self, job: &Job) -> Result<Option<usize>, Refusal> {
        let list = &job.list.key;
        if self.index.learnt(list).await? == Some(job.digest()) {
            return Ok(None);
        }
        let on_duty = self.duties.take(Duty::Learn, list).await?.ok_or(Refusal::WithFellow)?;
        // A fellow may have been about it until just now.
        let learnt = self.index.learnt(list).await?;
        if learnt == Some(job.digest()) {
            return Ok(None);
        }
        if job.list.kind != ListKind::Release && !self.is_current(job).await? {
            return Err(Refusal::NotCurrent);
        }
        if self.is_superseded(job).await? {
            return Err(Refusal::Superseded);
        }
        let under = on_duty.lease();
        let said = self.said_before(under, list).await?;
        let (mut changes, mut news) = (0, Vec::new());
        let said = match self.take_in(under, job, said, &mut changes, &mut news).await {
            // Half of a list counts for nothing, and would be in the way of the next.
            Err(refusal) if changes > 0 && refusal.is_final() => {
                self.forget(under, list).await?;
                return Err(refusal);
            }
            outcome => outcome?,
        };
        changes += self.unsay(under, list, &said).await?;
        self.index.finish(under, list, &job.digest(), now_seconds()).await?;
        if changes > 0 {
            self.knowledge.fetch_add(1, Ordering::Release);
        }
        // A list that is new to us has no news: all of it is old.
        if learnt.is_some() && job.list.kind == ListKind::Packages {
            self.prefetcher.offer(&job.list.base, news);
        }
        Ok(Some(changes))
    }

    /// What the index has of the list. More than a list may say is what others left behind that were
    /// refused when the process died.
    async fn said_before(&self, under: &Lease, list: &str) -> Result<Said, Refusal> {
        let mut said = Said::default();
        let mut pages = Pages::of(self, list);
        while let Some(page) = pages.next().await? {
            if page.iter().any(|(key, what)| said.take_before(key, what).is_err()) {
                self.forget(under, list).await?;
                return Ok(Said::default());
            }
        }
        Ok(said)
    }

    /// Writes what the list says now and did not say before, and counts it.
    async fn take_in(
        &self,
        under: &Lease,
        job: &Job,
        said: Said,
        changes: &mut usize,
        news: &mut Vec<(String, u64)>,
    ) -> Result<Said, Refusal> {
        let (batches, mut written) = mpsc::channel(BATCHES_MAX);
        let difference = Difference::new(said, batches);
        let Job { list, blob, .. } = job.clone();
        let reading = on_idle_thread(move || reading::read(&list, &blob, difference))?;
        while let Some(change) = written.recv().await {
            let count = change.set.len();
            *changes += count;
            self.note_news(&change, news);
            self.index.learn(under, &job.list.key, change, now_seconds()).await?;
            self.files.with_label_values(&["set"]).inc_by(count as u64);
        }
        reading.await.unwrap_or(Err(Refusal::Interrupted))
    }

    fn note_news(&self, change: &Change, news: &mut Vec<(String, u64)>) {
        if self.prefetcher.is_on() {
            let room = NEWS_MAX.saturating_sub(news.len());
            let sized = change.set.iter().filter_map(|(key, what)| Some((key.clone(), what.size?)));
            news.extend(sized.take(room));
        }
    }

    /// Takes out of the index what the list does not say any more, and counts it.
    async fn unsay(&self, under: &Lease, list: &str, said: &Said) -> Result<usize, Refusal> {
        let mut changes = 0;
        let mut left_out = said.left_out().map(str::to_owned).peekable();
        while left_out.peek().is_some() {
            changes += self.unset(under, list, left_out.by_ref().take(BATCH).collect()).await?;
        }
        Ok(changes)
    }

    /// Takes all out of the index that the list says.
    async fn forget(&self, under: &Lease, list: &str) -> Result<(), Refusal> {
        let mut pages = Pages::of(self, list);
        while let Some(page) = pages.next().await? {
            self.unset(under, list, page.into_iter().map(|(key, _)| key).collect()).await?;
        }
        Ok(())
    }

    async fn unset(&self, under: &Lease, list: &str, unset: Vec<String>) -> Result<usize, Refusal> {
        let count = unset.len();
        let change = Change { set: Vec::new(), unset };
        self.index.learn(under, list, change, now_seconds()).await?;
        self.files.with_label_values(&["unset"]).inc_by(count as u64);
        Ok(count)
    }

    /// Whether the site was given another version since: jobs wait, and fellows have later ones.
    async fn is_superseded(&self, job: &Job) -> Result<bool, Refusal> {
        let Job { key, entry, .. } = job;
        // When its mirror gave it is not known.
        if entry.checked_at == 0 {
            return Ok(false);
        }
        let stored = self.index.look_up(key).await?;
        Ok(stored.is_some_and(|now| now.blob != entry.blob && now.checked_at > entry.checked_at))
    }

    /// Whether the release file that was learnt last names this content for the list. An older one,
    /// which a client may still ask for by its hash, has nothing to say of today's files. Where no
    /// release file is known, the list stands for itself.
    async fn is_current(&self, job: &Job) -> Result<bool, Refusal> {
        let mut is_named = false;
        for file in job.list.files() {
            let expectation = self.index.expectation(&file).await?;
            let Some(Expectation { digest: Expected::Sha256(digest), .. }) = expectation else {
                continue;
            };
            if digest == job.digest() {
                return Ok(true);
            }
            is_named = true;
        }
        Ok(!is_named)
    }
}

/// Keeps a job for later, the oldest making room.
fn keep(jobs: &mut Vec<Job>, max: usize, job: Job) {
    if jobs.iter().any(|kept| kept.is_same(&job)) {
        return;
    }
    if jobs.len() == max {
        jobs.remove(0);
    }
    jobs.push(job);
}

/// What the index has of a list, a page at a time.
struct Pages<'a> {
    index: &'a dyn Index,
    list: &'a str,
    /// The last key that was seen.
    after: String,
}

impl<'a> Pages<'a> {
    fn of(student: &'a Student, list: &'a str) -> Self {
        Self { index: student.index.as_ref(), list, after: String::new() }
    }

    async fn next(&mut self) -> Result<Option<Vec<(String, Expectation)>>, Refusal> {
        let page = self.index.said_by(self.list, &self.after, BATCH).await;
        let page = page?;
        let Some((last, _)) = page.last() else { return Ok(None) };
        self.after.clone_from(last);
        Ok(Some(page))
    }
}
