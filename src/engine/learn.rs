//! Learning: what the lists that pass through say of other resources becomes expectations. Off the
//! request path, one list at a time, in bounded memory: a client's bytes never wait for it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntCounterVec;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::interval;
use tokio_util::task::TaskTracker;

use crate::archive::compression::Compression;
use crate::archive::control::ControlError;
use crate::archive::list::{List, ListKind};
use crate::archive::listed::Listed;
use crate::archive::release::{Release, ReleaseError};
use crate::archive::target::canonical_path;
use crate::archive::{aliases, packages, release};
use crate::content::digest::{Expected, Sha256};
use crate::engine::memory::{Known, now_seconds};
use crate::index::{Change, Expectation, Index, IndexError};
use crate::store::Blob;
use crate::telemetry::metrics::Metrics;

/// Lists that may wait to be learnt. One beyond is learnt when it is asked for again.
const WAITING_MAX: usize = 256;
/// Blobs of which it is remembered that they were looked at; then they are looked at anew.
const SEEN_MAX: usize = 4096;
/// Lists kept for another look, each with its file open.
const EARLY_MAX: usize = 32;
/// The most plain bytes of a list, compressed or not. Debian's largest packages file has 60 MB.
const PLAIN_MAX: u64 = 1024 * 1024 * 1024;
/// The most bytes of a release file. Debian's have 200 kB.
const RELEASE_MAX: u64 = 32 * 1024 * 1024;
/// Changes written in one transaction, so that other writes get their turn.
const BATCH: usize = 2000;
/// Batches that may wait to be written.
const BATCHES_MAX: usize = 4;
/// For how long nobody asks for a suite before it stops counting as in use, in seconds: machines that
/// are updated monthly still are its users.
const DISUSED_AFTER: i64 = 30 * 24 * 60 * 60;
/// How often there is a look for such lists.
const FORGET_EVERY: Duration = Duration::from_hours(1);
/// Lists that are forgotten at once.
const FORGOTTEN_MAX: usize = 64;
/// What is read of a file at once, in bytes.
const READ_AHEAD: usize = 128 * 1024;

/// A queue in front of the one who learns.
#[derive(Clone)]
pub(super) struct Learner {
    jobs: mpsc::Sender<Job>,
}

#[derive(Clone)]
struct Job {
    list: List,
    digest: Sha256,
    blob: Blob,
}

impl Learner {
    /// Starts learning into `index`; `knowledge` counts what changed something.
    pub(super) fn start(
        index: Arc<dyn Index>,
        knowledge: Arc<AtomicU64>,
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let student = Student {
            index,
            knowledge,
            seen: HashSet::new(),
            early: Vec::new(),
            learnt: metrics.counters(
                "aptmesh_engine_learnt_lists_total",
                "Lists that were looked at to learn from, by outcome.",
                &["outcome"],
            ),
        };
        tasks.spawn(student.run(waiting));
        Self { jobs }
    }

    /// Has what is stored at `url` learnt, if it is a list. Never waits.
    pub(super) fn offer(&self, url: &str, known: &Known) {
        let Some(list) = List::at(url) else { return };
        let job = Job { list, digest: known.entry.blob, blob: known.blob.clone() };
        if self.jobs.try_send(job).is_err() {
            tracing::debug!(url, "too many lists wait to be learnt: this one is left for later");
        }
    }
}

/// Why a list was not learnt.
#[derive(Debug, Error)]
enum Refusal {
    #[error("its release file does not name it, or not any more")]
    NotCurrent,
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
    #[error("could not be read: {0}")]
    Read(io::Error),
    #[error("could not be read to its end: {0}")]
    Interrupted(tokio::task::JoinError),
    #[error("could not be remembered: {}", .0.source)]
    Index(IndexError),
}

struct Student {
    index: Arc<dyn Index>,
    knowledge: Arc<AtomicU64>,
    seen: HashSet<(String, Sha256)>,
    /// Lists that came before their release file was learnt, oldest first.
    early: Vec<Job>,
    learnt: IntCounterVec,
}

impl Student {
    async fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        let mut forgetting = interval(FORGET_EVERY);
        loop {
            tokio::select! {
                job = waiting.recv() => match job {
                    Some(job) => self.look_at_all(job).await,
                    None => return,
                },
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

    /// Forgets lists of suites that nobody uses any more: what they name is not worth more than other
    /// things then.
    async fn forget_disused(&mut self) -> Result<(), IndexError> {
        let before = now_seconds() - DISUSED_AFTER;
        for list in self.index.disused_lists(before, FORGOTTEN_MAX).await? {
            while !self.index.unlearn(&list, BATCH, now_seconds()).await? {}
            tracing::info!(list, "forgot a list that nobody asks for any more");
            self.seen.retain(|(key, _)| *key != list);
            self.knowledge.fetch_add(1, Ordering::Release);
            self.learnt.with_label_values(&["forgotten"]).inc();
        }
        Ok(())
    }

    async fn look_at(&mut self, job: Job) {
        let looked_at = (job.list.key.clone(), job.digest);
        if self.seen.contains(&looked_at) {
            return;
        }
        let key = job.list.key.clone();
        let begun = Instant::now();
        let outcome = match self.learn(&job).await {
            Ok(None) => "known",
            Ok(Some(changes)) => {
                let millis = begun.elapsed().as_millis();
                tracing::info!(list = key, changes, millis, "learnt a list");
                "learnt"
            }
            Err(Refusal::NotCurrent) => {
                self.keep_early(job);
                "not_current"
            }
            Err(refusal @ (Refusal::Index(_) | Refusal::Interrupted(_))) => {
                tracing::warn!(list = key, %refusal, "could not learn a list now");
                "failed"
            }
            Err(refusal) => {
                tracing::warn!(list = key, %refusal, "could not learn a list");
                "refused"
            }
        };
        self.learnt.with_label_values(&[outcome]).inc();
        self.remember(looked_at, outcome);
    }

    fn keep_early(&mut self, job: Job) {
        let is_same = |early: &Job| early.list.key == job.list.key && early.digest == job.digest;
        if self.early.iter().any(is_same) {
            return;
        }
        if self.early.len() == EARLY_MAX {
            self.early.remove(0);
        }
        self.early.push(job);
    }

    fn take_early(&mut self, base: &str) -> Vec<Job> {
        let early = std::mem::take(&mut self.early);
        let (now, later) = early.into_iter().partition(|job| job.list.key.starts_with(base));
        self.early = later;
        now
    }

    /// A list that is not current may become so, when its release file is learnt; and a fault of
    /// ours passes.
    fn remember(&mut self, looked_at: (String, Sha256), outcome: &str) {
        if self.seen.len() == SEEN_MAX {
            self.seen.clear();
        }
        if !matches!(outcome, "not_current" | "failed") {
            // What else was seen of this list may come back.
            self.seen.retain(|(key, _)| *key != looked_at.0);
            self.seen.insert(looked_at);
        }
    }

    /// The number of changes; `None` if this very file was learnt before.
    async fn learn(&self, job: &Job) -> Result<Option<usize>, Refusal> {
        let list = job.list.key.clone();
        if self.index.learnt(&list).await.map_err(Refusal::Index)? == Some(job.digest) {
            return Ok(None);
        }
        if job.list.kind != ListKind::Release && !self.is_current(job).await? {
            return Err(Refusal::NotCurrent);
        }
        let digest = job.digest;
        let said = self.index.said_by(&list).await.map_err(Refusal::Index)?;
        let (batches, mut written) = mpsc::channel(BATCHES_MAX);
        let job = job.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut difference = Difference::new(said, batches);
            read(&job, &mut |key, expectation| difference.say(key, expectation))?;
            difference.end();
            Ok::<(), Refusal>(())
        });
        let mut changes = 0;
        while let Some(change) = written.recv().await {
            let change: Change = change;
            changes += change.set.len() + change.unset.len();
            self.index.learn(&list, change, now_seconds()).await.map_err(Refusal::Index)?;
        }
        reading.await.map_err(Refusal::Interrupted)??;
        self.index.finish(&list, &digest, now_seconds()).await.map_err(Refusal::Index)?;
        if changes > 0 {
            self.knowledge.fetch_add(1, Ordering::Release);
        }
        Ok(Some(changes))
    }

    /// Whether the release file that was learnt last names this content for the list. An older one,
    /// which a client may still ask for by its hash, has nothing to say of today's files. Where no
    /// release file is known, the list stands for itself.
    async fn is_current(&self, job: &Job) -> Result<bool, Refusal> {
        let mut is_named = false;
        for file in job.list.files() {
            let expectation = self.index.expectation(&file).await.map_err(Refusal::Index)?;
            let Some(Expectation { digest: Expected::Sha256(digest), .. }) = expectation else {
                continue;
            };
            if digest == job.digest {
                return Ok(true);
            }
            is_named = true;
        }
        Ok(!is_named)
    }
}

/// What a list says now against what it said before, in batches.
struct Difference {
    said: HashMap<String, Expectation>,
    change: Change,
    batches: mpsc::Sender<Change>,
}

impl Difference {
    fn new(said: Vec<(String, Expectation)>, batches: mpsc::Sender<Change>) -> Self {
        Self { said: said.into_iter().collect(), change: Change::default(), batches }
    }

    fn say(&mut self, key: String, expectation: Expectation) {
        if self.said.remove(&key) != Some(expectation) {
            self.change.set.push((key, expectation));
            self.send_if(BATCH);
        }
    }

    /// What was not said again is not said any more.
    fn end(mut self) {
        for (key, _) in std::mem::take(&mut self.said) {
            self.change.unset.push(key);
            self.send_if(BATCH);
        }
        self.send_if(1);
    }

    fn send_if(&mut self, enough: usize) {
        if self.change.set.len() + self.change.unset.len() >= enough {
            // A receiver that is gone has its own reason, and tells it.
            drop(self.batches.blocking_send(std::mem::take(&mut self.change)));
        }
    }
}

/// Reads a list; blocks.
fn read(job: &Job, say: &mut dyn FnMut(String, Expectation)) -> Result<(), Refusal> {
    let file = BlobReader { file: Arc::clone(&job.blob.file), offset: 0 };
    let mut said = |listed: Listed| {
        let key = format!("{}{}", job.list.base, canonical_path(&listed.path));
        say(key, Expectation { size: listed.size, digest: listed.digest });
    };
    if job.list.kind == ListKind::Release {
        let mut text = Vec::new();
        file.take(RELEASE_MAX).read_to_end(&mut text).map_err(Refusal::Read)?;
        let content = release::content(&text)?;
        let release = Release::parse(&content.text)?;
        let aliases = aliases::aliases(&content.text, &release)?;
        release.files.into_iter().chain(aliases).for_each(said);
        return Ok(());
    }
    let mut file = BufReader::with_capacity(READ_AHEAD, file);
    let compression = Compression::detect(io::BufRead::fill_buf(&mut file).map_err(Refusal::Read)?);
    let reader = compression.reader(file, PLAIN_MAX).map_err(Refusal::Read)?;
    match job.list.kind {
        ListKind::Packages => packages::packages(reader, &mut said)?,
        ListKind::Sources => packages::sources(reader, &mut said)?,
        ListKind::Patches => packages::patches(reader, &mut said)?,
        ListKind::Sums | ListKind::Release => packages::sums(reader, &mut said)?,
    };
    Ok(())
}

/// Reads a blob from its beginning, whoever else reads it.
struct BlobReader {
    file: Arc<File>,
    offset: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
