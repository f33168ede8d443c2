//! The release files that clients were given, for people: how old each is, who vouches for it, and what its
//! mirror offers that is not admitted. Signatures are checked when somebody looks, once an hour.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::archive::signature::Verdict;
use crate::content::digest::Sha256;
use crate::engine::memory::now_seconds;
use crate::engine::outcome::{Outcome, Served};
use crate::engine::suites::{bytes_of, is_release_file, signature_url};
use crate::engine::{Ask, Engine, Sharing};
use crate::index::IndexError;

/// Release files that are remembered: those of many releases and third parties, each used by some
/// client since the start.
const SHOWN_MAX: usize = 128;
/// The longest reason that is remembered, in bytes: parts of it may be the mirror's own.
const REASON_MAX: usize = 300;
/// For how long a refusal is told of: who asked then has asked again since, or nobody cares.
const REFUSED_FOR: Duration = Duration::from_hours(24);
/// For how long a verdict is kept: keys expire.
const JUDGED_FOR: Duration = Duration::from_hours(1);

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
    /// What was served when that was refused; `None`: not known.
    refused_beside: Option<Sha256>,
    judged: Option<Judged>,
}

/// What a signature is worth.
#[derive(Clone)]
struct Judged {
    /// The file, and its detached signature.
    of: (Sha256, Option<Sha256>),
    verdict: Verdict,
    at: Instant,
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

    /// What its mirror has is not admitted, and `beside` it, if that is known, is served; the reason
    /// completes "HOST …".
    pub(in crate::engine) fn refuse(&self, key: &str, reason: &str, beside: Option<Sha256>) {
        let reason = reason.chars().take(REASON_MAX).collect();
        self.change(key, |memo| {
            memo.refused = Some((reason, Instant::now()));
            memo.refused_beside = beside.or(memo.blob);
        });
    }

    /// Why what its mirror has is not admitted, if that still counts, `confirmed_at` being when what is served was
    /// found right; and how long ago that was.
    pub(in crate::engine) fn refused(
        &self,
        key: &str,
        confirmed_at: Option<i64>,
    ) -> Option<(String, Duration)> {
        let memo = self.all().get(key)?.clone();
        memo.refusal(confirmed_at, now_seconds())
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
        let used = Instant::now();
        Self { blob: None, used, refused: None, refused_beside: None, judged: None }
    }

    /// This one is served. If it is another than at a refusal, a right one was admitted meanwhile, here or
    /// by a fellow.
    fn show(&mut self, blob: Sha256, is_stale: bool) {
        self.blob = Some(blob);
        let beside = self.refused_beside.or_else(|| is_stale.then_some(blob));
        self.refused_beside = beside;
        if beside != Some(blob) {
            self.refused = None;
        }
    }

    /// The refusal, unless its mirror has been found right since, or that was long ago.
    fn refusal(self, confirmed_at: Option<i64>, now: i64) -> Option<(String, Duration)> {
        let (reason, at) = self.refused?;
        let ago = at.elapsed();
        let seconds = i64::try_from(ago.as_secs()).unwrap_or(i64::MAX);
        let is_right = confirmed_at.is_some_and(|at| at > now.saturating_sub(seconds));
        (ago < REFUSED_FOR && !is_right).then_some((reason, ago))
    }

    /// What was found out of this file, whatever signature lay beside it.
    fn last_verdict(&self, file: Sha256) -> Option<Verdict> {
        let judged = self.judged.as_ref().filter(|judged| judged.of.0 == file)?;
        Some(judged.verdict.clone())
    }

    /// What was found out lately of this file with this signature beside it.
    fn verdict(&self, of: (Sha256, Option<Sha256>)) -> Option<Verdict> {
        let judged = self.judged.as_ref().filter(|judged| judged.of == of)?;
        (judged.at.elapsed() < JUDGED_FOR).then(|| judged.verdict.clone())
    }
}

impl Engine {
    /// A release file is being served. What is private is not remembered.
    pub(in crate::engine) fn note_shown(&self, ask: &Ask, served: &Served) {
        if ask.sharing == Sharing::Shared
            && is_release_file(ask)
            && let Some(blob) = served.digest()
        {
            let is_stale = served.outcome == Outcome::Stale;
            self.suites.shown.change(&ask.target.key, |memo| memo.show(blob, is_stale));
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
        let confirmed_at = match self.memory.peek(key) {
            Some(known) => Some(known.confirmed_at()),
            None => self.recorded(key).await.map(|entry| entry.checked_at),
        };
        let now = now_seconds();
        ReleaseFile {
            key: key.to_string(),
            suite: said.and_then(|said| said.suite.clone()),
            codename: said.and_then(|said| said.codename.clone()),
            date: said.and_then(|said| said.date),
            valid_until: said.and_then(|said| said.valid_until),
            confirmed_at,
            signature: self.signature_of(key, &memo).await,
            is_served: memo.blob.is_some(),
            refused: memo.refusal(confirmed_at, now),
            now,
        }
    }

    /// What the signature of the file served last is worth.
    async fn signature_of(&self, key: &Arc<str>, memo: &Memo) -> Option<Verdict> {
        let blob = memo.blob?;
        // An index that does not tell whether there is a signature is no proof that there is none.
        let Ok(detached) = self.detached(key, &blob).await else { return memo.last_verdict(blob) };
        if let Some(verdict) = memo.verdict((blob, detached)) {
            return Some(verdict);
        }
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
                Some(signature) => read(&signature)?,
                None => None,
            };
            Ok(Some(judge.verdict(&name, &file, detached.as_deref(), now_seconds())))
        });
        let verdict = looking.await.ok()??;
        if let Some(memo) = self.suites.shown.all().get_mut(key) {
            let (of, verdict) = ((blob, detached), verdict.clone());
            memo.judged = Some(Judged { of, verdict, at: Instant::now() });
        }
        Some(verdict)
    }

    /// The signature that is stored beside a `Release`.
    async fn detached(&self, key: &str, release: &Sha256) -> Result<Option<Sha256>, IndexError> {
        let Some((folder, "Release")) = key.rsplit_once('/') else { return Ok(None) };
        let name = signature_url(folder, release);
        if let Some(known) = self.memory.peek(&name) {
            return Ok(Some(known.entry.blob));
        }
        Ok(self.index.look_up(&name).await?.map(|entry| entry.blob))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_ends_with_the_right_file_however_that_came() {
        let [before, after] = ["before", "after"].map(|text| Sha256::of(text.as_bytes()));
        let shown = Shown::default();
        let memo = |key: &str| shown.all().get(key).cloned().unwrap();
        let is_told = |key: &str, confirmed_at| memo(key).refusal(confirmed_at, 1_000).is_some();

        shown.change("a", |memo| memo.show(before, false));
        shown.refuse("a", "sent nonsense", None);
        shown.change("a", |memo| memo.show(before, true));
        assert!(is_told("a", Some(1_000)) && !is_told("a", Some(1_001)));
        shown.change("a", |memo| memo.show(after, false));
        assert!(!is_told("a", None));

        // Nothing was served before it was refused.
        shown.refuse("b", "sent nonsense", None);
        shown.change("b", |memo| memo.show(before, true));
        assert!(is_told("b", None));
        shown.change("b", |memo| memo.show(after, false));
        assert!(!is_told("b", None));
        shown.refuse("c", "went back", Some(before));
        shown.change("c", |memo| memo.show(before, false));
        assert!(is_told("c", None));
    }

    #[test]
    fn a_verdict_is_of_one_signature_and_not_for_ever() {
        let [file, signature] = ["file", "signature"].map(|text| Sha256::of(text.as_bytes()));
        let judged = |at| Judged { of: (file, None), verdict: Verdict::Unsigned, at };
        let memo = Memo { judged: Some(judged(Instant::now())), ..Memo::new() };
        assert_eq!(memo.verdict((file, None)), Some(Verdict::Unsigned));
        assert_eq!(memo.last_verdict(file), Some(Verdict::Unsigned));
        assert_eq!(memo.verdict((file, Some(signature))), None);
        assert_eq!(memo.last_verdict(signature), None);
        if let Some(long_ago) = Instant::now().checked_sub(JUDGED_FOR) {
            let memo = Memo { judged: Some(judged(long_ago)), ..Memo::new() };
            assert_eq!(memo.verdict((file, None)), None);
        }
    }
}
