//! The release files that clients were given, for people: how old each is, who vouches for it, and what its
//! mirror offers that is not admitted. Signatures are checked when somebody looks, once a file.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::archive::signature::Verdict;
use crate::content::digest::Sha256;
use crate::engine::memory::now_seconds;
use crate::engine::outcome::Served;
use crate::engine::suites::{bytes_of, is_release_file, signature_url};
use crate::engine::{Ask, Engine, Sharing};

/// Release files that are remembered: those of many releases and third parties, each used by some
/// client since the start.
const SHOWN_MAX: usize = 128;
/// The longest reason that is remembered, in bytes: parts of it may be the mirror's own.
const REASON_MAX: usize = 300;

/// The release files that are remembered, by key.
#[derive(Default)]
pub(in crate::engine) struct Shown(Mutex<HashMap<Arc<str>, Memo>>);

/// What is remembered of one.
#[derive(Clone)]
struct Memo {
    /// The one that was served last; `None`: none was.
    blob: Option<Sha256>,
    used: Instant,
    /// Why what its mirror has is not admitted, and since when that is known.
    refused: Option<(String, Instant)>,
    /// Of which file, and what its signature is worth.
    judged: Option<(Sha256, Verdict)>,
}

/// A release file as it stands. Times are seconds since 1970.
#[derive(Clone, Debug)]
pub struct ReleaseFile {
    /// Its name.
    pub key: String,
    /// `Suite`, such as `stable`.
    pub suite: Option<String>,
    /// `Codename`, such as `trixie`.
    pub codename: Option<String>,
    /// `Date`
    pub date: Option<i64>,
    /// `Valid-Until`
    pub valid_until: Option<i64>,
    /// When a mirror last gave or confirmed it.
    pub confirmed_at: Option<i64>,
    /// What its signature is worth now; `None`: none is served, or it can not be told.
    pub signature: Option<Verdict>,
    /// Why what its mirror offers is not admitted, and how long ago that was.
    pub refused: Option<(String, Duration)>,
    /// Whether there is one to be served.
    pub is_served: bool,
    /// The time of all this.
    pub now: i64,
}

impl Shown {
    fn all(&self) -> MutexGuard<'_, HashMap<Arc<str>, Memo>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: &str, change: impl FnOnce(&mut Memo)) {
        let mut all = self.all();
        if all.len() >= SHOWN_MAX && !all.contains_key(key) {
            let oldest = all.iter().min_by_key(|(_, memo)| memo.used);
            if let Some(key) = oldest.map(|(key, _)| Arc::clone(key)) {
                all.remove(&key);
            }
        }
        let memo = all.entry(key.into()).or_insert_with(Memo::new);
        memo.used = Instant::now();
        change(memo);
    }

    /// What its mirror has is not admitted; the reason completes "HOST …".
    pub(in crate::engine) fn refuse(&self, key: &str, reason: &str) {
        let reason = reason.chars().take(REASON_MAX).collect();
        self.change(key, |memo| memo.refused = Some((reason, Instant::now())));
    }

    /// Why it was not, and how long ago that was.
    pub(in crate::engine) fn refused(&self, key: &str) -> Option<(String, Duration)> {
        let refused = self.all().get(key)?.refused.clone();
        refused.map(|(reason, at)| (reason, at.elapsed()))
    }

    /// What its mirror has is admitted, or is what was admitted before.
    pub(in crate::engine) fn accept(&self, key: &str) {
        if let Some(memo) = self.all().get_mut(key) {
            memo.refused = None;
        }
    }
}

impl Memo {
    fn new() -> Self {
        Self { blob: None, used: Instant::now(), refused: None, judged: None }
    }

    fn verdict(&self) -> Option<Verdict> {
        let judged = self.judged.as_ref().filter(|(blob, _)| Some(*blob) == self.blob);
        judged.map(|(_, verdict)| verdict.clone())
    }
}

impl Engine {
    /// A release file is being served. What is private is not remembered.
    pub(in crate::engine) fn note_shown(&self, ask: &Ask, served: &Served) {
        if ask.sharing == Sharing::Shared
            && is_release_file(ask)
            && let Some(blob) = served.digest()
        {
            self.suites.shown.change(&ask.target.key, |memo| memo.blob = Some(blob));
        }
    }

    /// The release files that clients were given since the start, by name.
    pub async fn release_files(&self) -> Vec<ReleaseFile> {
        let memos: Vec<(Arc<str>, Memo)> = {
            let all = self.suites.shown.all();
            all.iter().map(|(key, memo)| (Arc::clone(key), memo.clone())).collect()
        };
        let mut files = Vec::with_capacity(memos.len());
        for (key, memo) in memos {
            files.push(self.release_file(&key, memo).await);
        }
        files.sort_by(|one, other| one.key.cmp(&other.key));
        files
    }

    async fn release_file(&self, key: &Arc<str>, memo: Memo) -> ReleaseFile {
        let generation = match memo.blob {
            Some(blob) => self.generation(blob).await,
            None => None,
        };
        let said = generation.as_deref();
        let confirmed_at = match self.memory.get(key) {
            Some(known) => Some(known.confirmed_at()),
            None => self.recorded(key).await.map(|entry| entry.checked_at),
        };
        ReleaseFile {
            key: key.to_string(),
            suite: said.and_then(|said| said.suite.clone()),
            codename: said.and_then(|said| said.codename.clone()),
            date: said.and_then(|said| said.date),
            valid_until: said.and_then(|said| said.valid_until),
            confirmed_at,
            signature: self.signature_of(key, &memo).await,
            refused: memo.refused.map(|(reason, at)| (reason, at.elapsed())),
            is_served: memo.blob.is_some(),
            now: now_seconds(),
        }
    }

    /// What the signature of the file served last is worth.
    async fn signature_of(&self, key: &Arc<str>, memo: &Memo) -> Option<Verdict> {
        if let Some(verdict) = memo.verdict() {
            return Some(verdict);
        }
        let blob = memo.blob?;
        let detached = match key.rsplit_once('/') {
            Some((folder, "Release")) => self.recorded(&signature_url(folder, &blob)).await,
            _ => None,
        };
        let (store, judge, name) =
            (Arc::clone(&self.store), Arc::clone(&self.judge), Arc::clone(key));
        let looking = self.store.look(move || {
            let read = |digest: &Sha256| {
                let found = store.read(digest)?;
                let bytes = found.and_then(|blob| bytes_of(&blob));
                // Disks forget.
                Ok(bytes.filter(|bytes| Sha256::of(bytes) == *digest))
            };
            let Some(file) = read(&blob)? else { return Ok(None) };
            let detached = match detached {
                Some(entry) => read(&entry.blob)?,
                None => None,
            };
            Ok(Some(judge.verdict(&name, &file, detached.as_deref(), now_seconds())))
        });
        let verdict = looking.await.ok()??;
        if let Some(memo) = self.suites.shown.all().get_mut(key) {
            memo.judged = Some((blob, verdict.clone()));
        }
        Some(verdict)
    }
}
