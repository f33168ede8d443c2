//! What is stored of a resource, and where. Goes the way of `known.rs`, and changes nothing on it.

use std::sync::Arc;

use crate::content::digest::Sha256;
use crate::engine::Engine;
use crate::engine::explain::questions::Questions;
use crate::engine::explain::{Place, Stored, named_by};
use crate::engine::memory::Known;
use crate::engine::volume::folders::Found;
use crate::engine::volume::proof::Soundness;
use crate::index::{Entry, Expectation};

impl Engine {
    /// What is stored under a name, or of what it must be.
    pub(super) async fn copy(
        &self,
        questions: &Questions,
        key: &str,
        entry: Option<Entry>,
        expectation: Option<Expectation>,
    ) -> Option<Stored> {
        let held = self.memory.peek(key);
        let entry = held.as_ref().map(|held| held.entry.clone()).or(entry);
        let fits = |entry: &Entry| {
            expectation.is_none_or(|expected| !expected.contradicts(entry.size, &entry.blob))
        };
        // What is another file by now is of no use, where the right one lies under another name.
        let other = match &entry {
            Some(entry) if fits(entry) => None,
            _ => self.other_name(questions, expectation).await.filter(fits),
        };
        let entry = other.or(entry)?;
        let held = held.filter(|held| held.entry.blob == entry.blob);
        let window = self.recheck_after();
        let standing = match &held {
            Some(held) => held.standing(window),
            None => Known::standing_of(entry.checked_at, window),
        };
        let on_volume = questions.ask(self.index.blob(&entry.blob)).await.flatten();
        let is_named = named_by(expectation) == Some(entry.blob);
        Some(Stored {
            place: self.place(questions, &entry.blob, is_named).await,
            is_right: fits(&entry),
            is_at_hand: match &held {
                Some(held) => self.is_ready(held).await,
                None => false,
            },
            confirmed_at: Some(held.map_or(entry.checked_at, |held| held.confirmed_at()))
                .filter(|at| *at > 0),
            standing,
            on_volume,
            blob: entry.blob,
            size: entry.size,
        })
    }

    /// Whether what memory holds can be served, whatever the volume does.
    async fn is_ready(&self, held: &Arc<Known>) -> bool {
        matches!(held.soundness(), Soundness::Proven | Soundness::Unproven)
            && self.is_at_hand(held).await
    }

    /// What has the right content, under whatever name, or in a shared folder.
    async fn other_name(
        &self,
        questions: &Questions,
        expectation: Option<Expectation>,
    ) -> Option<Entry> {
        let digest = named_by(expectation)?;
        if let Some(entry) = questions.ask(self.index.by_blob(&digest)).await.flatten() {
            return Some(entry);
        }
        // New to the index, or that is silent.
        if let Some(entry) = self.inspector.on_volume(&digest).await {
            return Some(entry);
        }
        let shared = self.shared_file(questions, &digest).await?;
        Some(Entry::nameless(digest, shared.blob.size))
    }

    /// Shared folders serve only what is named by its content (`is_named`).
    async fn place(&self, questions: &Questions, blob: &Sha256, is_named: bool) -> Place {
        let (store, name) = (Arc::clone(&self.store), *blob);
        let looking = self.store.look(move || store.read(&name));
        let is_there = looking.await.ok().map(|found| found.is_some());
        if is_there == Some(true) {
            return Place::Volume(self.store.path_of(blob));
        }
        if is_named && let Some(shared) = self.shared_file(questions, blob).await {
            return Place::Folders(shared.path);
        }
        if is_there.is_none() {
            return Place::Unknown;
        }
        let holders = questions.ask(self.index.holders(blob)).await.unwrap_or_default();
        if holders.urls.is_empty() { Place::Nowhere } else { Place::Replicas(holders.urls) }
    }

    /// The file of a shared folder that would be served.
    async fn shared_file(&self, questions: &Questions, digest: &Sha256) -> Option<Found> {
        let files = questions.ask(self.folders.remembered(digest)).await?;
        let (found, _) = questions.folders.wait(self.folders.first_intact(files)).await?;
        found
    }
}
