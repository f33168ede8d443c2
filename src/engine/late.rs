//! What the index could not be told at its time: kept in memory, and told when it can be. What other
//! processes recorded meanwhile stays, where it is as new.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounterVec, IntGauge};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::content::digest::Sha256;
use crate::engine::volume::adopt::Unadopted;
use crate::engine::volume::inspect::{InspectError, Inspector};
use crate::index::{Entry, IndexError};
use crate::telemetry::metrics::Metrics;

/// Notes kept, at about half a kilobyte each: what a site that fetches five files a second fetches in an
/// hour. Beyond them, the oldest goes: its blob is found again by a walk over the volume.
const NOTES_MAX: usize = 16_384;
/// Before it is tried again to tell them.
const PAUSE: Duration = Duration::from_secs(1);
/// How often an index that is well may refuse a note before that is given up.
const REFUSALS_MAX: u32 = 3;

/// What a note is about: there is one of each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Resource(String),
    Absent(String),
    Blob(Sha256),
}

/// What is to be told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// It is this.
    Record(Entry),
    /// It still is this.
    Confirm(Entry),
    /// The mirror does not have it.
    Absent,
    /// It lies on the volume, and has so many bytes.
    Stored(u64),
}

impl What {
    /// Bytes on the volume that the index may not know of.
    fn bytes(&self) -> u64 {
        match self {
            Self::Record(entry) => entry.size,
            Self::Stored(size) => *size,
            Self::Confirm(_) | Self::Absent => 0,
        }
    }
}

#[derive(Default)]
struct Notes {
    /// The oldest first; some may be told already.
    order: VecDeque<Subject>,
    what: HashMap<Subject, What>,
    bytes: u64,
    /// Whether some were let go.
    is_incomplete: bool,
}

impl Notes {
    fn put(&mut self, subject: Subject, what: What) {
        self.bytes += what.bytes();
        match self.what.insert(subject.clone(), what) {
            Some(before) => self.bytes -= before.bytes(),
            None => self.order.push_back(subject),
        }
    }

    fn take(&mut self, subject: &Subject) {
        if let Some(what) = self.what.remove(subject) {
            self.bytes -= what.bytes();
        }
        if self.order.front() == Some(subject) {
            self.order.pop_front();
        } else {
            self.order.retain(|other| other != subject);
        }
    }

    /// Makes place for a new one; whether one had to go.
    fn make_place(&mut self) -> bool {
        let is_full = self.what.len() >= NOTES_MAX;
        if let Some(oldest) = self.order.front().cloned().filter(|_| is_full) {
            self.take(&oldest);
            self.is_incomplete = true;
        }
        is_full
    }

    fn first(&self) -> Option<(Subject, What)> {
        let subject = self.order.front()?;
        Some((subject.clone(), self.what.get(subject)?.clone()))
    }
}

/// What the index is still to be told.
pub(super) struct Late {
    notes: Mutex<Notes>,
    more: Notify,
    unadopted: Arc<Unadopted>,
    waiting: IntGauge,
    ended: IntCounterVec,
}

impl Late {
    /// Nothing yet; what takes room meanwhile is told to `unadopted`.
    pub(super) fn new(unadopted: &Arc<Unadopted>, metrics: &Metrics) -> Self {
        Self {
            notes: Mutex::default(),
            more: Notify::new(),
            unadopted: Arc::clone(unadopted),
            waiting: metrics.gauge(
                "aptmesh_engine_late_notes",
                "What the index could not be told yet: kept until it can be.",
            ),
            ended: metrics.counters_of(
                "aptmesh_engine_late_notes_total",
                "What the index could not be told at its time, by what became of it.",
                "outcome",
                &["told", "lost"],
            ),
        }
    }

    /// What is stored of `key` could not be recorded because of `why`.
    pub(super) fn record(&self, key: &str, entry: &Entry, why: &IndexError) {
        say(key, why, "stored, but not recorded yet");
        self.put(Subject::Resource(key.to_owned()), What::Record(entry.clone()));
    }

    /// That `key` still is `entry`, at a later time, could not be told because of `why`.
    pub(super) fn confirm(&self, key: &str, entry: &Entry, why: &IndexError) {
        say(key, why, "confirmed, but not recorded yet");
        let subject = Subject::Resource(key.to_owned());
        let pending = match self.notes().what.get(&subject) {
            Some(What::Record(pending)) => Some(pending.blob == entry.blob),
            _ => None,
        };
        match pending {
            None => self.put(subject, What::Confirm(entry.clone())),
            Some(true) => self.put(subject, What::Record(entry.clone())),
            Some(false) => {}
        }
    }

    /// That `key` is not there could not be told because of `why`.
    pub(super) fn note_absent(&self, key: &str, why: &IndexError) {
        say(key, why, "refused, but not noted yet");
        self.put(Subject::Absent(key.to_owned()), What::Absent);
    }

    /// That `blob`, of `size` bytes, lies on the volume could not be told.
    pub(super) fn add(&self, blob: &Sha256, size: u64) {
        self.put(Subject::Blob(*blob), What::Stored(size));
    }

    /// The index knows by now what `key` is.
    pub(super) fn is_told(&self, key: &str) {
        let mut notes = self.notes();
        if !notes.what.is_empty() {
            notes.take(&Subject::Resource(key.to_owned()));
            self.count(&notes);
        }
    }

    fn put(&self, subject: Subject, what: What) {
        let mut notes = self.notes();
        if !notes.what.contains_key(&subject) && notes.make_place() {
            self.ended.with_label_values(&["lost"]).inc();
        }
        notes.put(subject, what);
        self.count(&notes);
        drop(notes);
        self.more.notify_one();
    }

    fn count(&self, notes: &Notes) {
        self.waiting.set(i64::try_from(notes.what.len()).unwrap_or(i64::MAX));
        self.unadopted.set_late(notes.bytes);
    }

    /// Tells the index all that comes, in its order. Never ends.
    pub(super) async fn tell(&self, inspector: &Inspector) {
        let mut refusals = 0;
        loop {
            let Some((subject, what)) = self.first() else {
                self.more.notified().await;
                continue;
            };
            match tell(inspector, &subject, &what).await {
                Ok(()) => {
                    refusals = 0;
                    self.end(&subject, &what, "told");
                }
                Err(error) if inspector.index.trouble().is_none() => {
                    refusals += 1;
                    if refusals >= REFUSALS_MAX {
                        tracing::warn!(?subject, %error, "the index can not be told");
                        refusals = 0;
                        self.notes().is_incomplete = true;
                        self.end(&subject, &what, "lost");
                    }
                    sleep(PAUSE).await;
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Tells the index what it can be told at once.
    pub(super) async fn tell_now(&self, inspector: &Inspector) {
        while let Some((subject, what)) = self.first() {
            if tell(inspector, &subject, &what).await.is_err() {
                return;
            }
            self.end(&subject, &what, "told");
        }
    }

    fn first(&self) -> Option<(Subject, What)> {
        let mut notes = self.notes();
        let first = notes.first();
        if first.is_none() && std::mem::take(&mut notes.is_incomplete) {
            self.unadopted.look_again();
        }
        first
    }

    /// Unless there is something else to be told of it by now.
    fn end(&self, subject: &Subject, what: &What, outcome: &str) {
        let mut notes = self.notes();
        if notes.what.get(subject) == Some(what) {
            notes.take(subject);
            self.count(&notes);
        }
        self.ended.with_label_values(&[outcome]).inc();
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn tell(inspector: &Inspector, subject: &Subject, what: &What) -> Result<(), InspectError> {
    let index = &inspector.index;
    match (subject, what) {
        (Subject::Resource(key), What::Record(entry)) => inspector.record_late(key, entry).await?,
        (Subject::Resource(key), What::Confirm(entry)) => {
            index.confirm(key, &entry.blob, entry.checked_at).await?;
        }
        (Subject::Absent(key), _) => index.note_absent(key).await?,
        (Subject::Blob(digest), What::Stored(size)) => inspector.note(digest, *size).await?,
        // Notes are not made like that.
        (Subject::Resource(_) | Subject::Blob(_), _) => {}
    }
    Ok(())
}

fn say(key: &str, why: &IndexError, what: &str) {
    if why.is_old_news() {
        tracing::debug!(key, "{what}");
    } else {
        tracing::warn!(key, error = %why, source = %why.source, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(content: &[u8], checked_at: i64) -> Entry {
        Entry { checked_at, ..Entry::nameless(Sha256::of(content), content.len() as u64) }
    }

    fn away() -> IndexError {
        IndexError { operation: "be there", source: "away".into() }
    }

    fn late() -> Late {
        Late::new(&Arc::default(), &Metrics::default())
    }

    #[test]
    fn the_last_word_on_a_name_counts() {
        let late = late();
        late.record("a", &entry(b"1", 1), &away());
        late.confirm("a", &entry(b"1", 5), &away());
        late.confirm("a", &entry(b"2", 6), &away());
        late.record("b", &entry(b"22", 2), &away());
        let a = Subject::Resource("a".to_owned());
        assert_eq!(late.first(), Some((a.clone(), What::Record(entry(b"1", 5)))));
        assert_eq!(late.unadopted.bytes(), 3);
        late.end(&a, &What::Record(entry(b"1", 1)), "told");
        assert!(late.first().is_some_and(|(subject, _)| subject == a), "it changed meanwhile");
        late.is_told("a");
        assert!(late.first().is_some_and(|(subject, _)| subject != a));
        assert_eq!(late.unadopted.bytes(), 2);
    }

    #[test]
    fn what_is_too_much_is_looked_for_on_the_volume() {
        let late = late();
        for number in 0..=NOTES_MAX {
            late.add(&Sha256::of(&number.to_be_bytes()), 1);
        }
        assert_eq!(late.unadopted.bytes(), NOTES_MAX as u64);
        let gone = Subject::Blob(Sha256::of(&0_usize.to_be_bytes()));
        assert!(late.first().is_some_and(|(subject, _)| subject != gone));
        assert!(late.notes().is_incomplete);
    }
}
