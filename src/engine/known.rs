//! What is known of a resource: from memory, else from index and store, else from where the same content
//! lies under another name.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::archive::kind::Kind;
use crate::content::digest::{Expected, Sha256};
use crate::engine::memory::Known;
use crate::engine::volume::inspect::InspectError;
use crate::engine::volume::proof::Soundness;
use crate::engine::{Ask, Engine, Sharing, without_index};
use crate::index::budget::{self, Budget};
use crate::index::{Entry, Expectation};
use crate::store::{Blob, StoreError};
use crate::telemetry::traces::{self, span};

/// What the loading of a blob came to.
enum Loaded {
    Known(Box<Known>),
    /// The volume does not have it.
    Missing,
    /// It is not what its name says.
    Bad(Blob),
    /// It is bad, as was found before, and can not be removed.
    Condemned,
}

/// What is known of a resource.
#[derive(Clone, Default)]
pub(super) struct Finding {
    /// What is stored of it, and is what it must be.
    pub(super) known: Option<Arc<Known>>,
    /// What it must be; not looked up where memory knows.
    pub(super) expectation: Option<Expectation>,
}

/// Look-ups under way, by key: who wants the same waits for the same.
#[derive(Default)]
pub(super) struct Findings {
    table: Mutex<HashMap<String, Arc<OnceCell<Finding>>>>,
}

impl Findings {
    async fn together(&self, key: &str, finding: impl Future<Output = Finding>) -> Finding {
        let cell = Arc::clone(self.table().entry(key.to_owned()).or_default());
        // Who comes when it is found looks anew.
        let _over = Over { findings: self, key, cell: &cell };
        let (begun, mut is_ours) = (Instant::now(), false);
        let found = cell.get_or_init(|| {
            is_ours = true;
            finding
        });
        let found = found.await.clone();
        if let Some(budget) = Budget::current().filter(|_| !is_ours) {
            budget.spend(begun.elapsed());
        }
        found
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Arc<OnceCell<Finding>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to take a look-up off the table; also when who waited for it has left.
struct Over<'a> {
    findings: &'a Findings,
    key: &'a str,
    cell: &'a Arc<OnceCell<Finding>>,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut table = self.findings.table();
        let is_ours = table.get(self.key).is_some_and(|cell| Arc::ptr_eq(cell, self.cell));
        // Others may go on with what this one began.
        if is_ours && (self.cell.initialized() || Arc::strong_count(self.cell) == 2) {
            table.remove(self.key);
        }
    }
}

impl Engine {
    /// What is known of the resource: from memory, else from index and store. An index or a store that
    /// fails knows nothing.
    pub(super) async fn find(self: &Arc<Self>, ask: &Ask) -> Finding {
        let key = ask.target.key.as_str();
        if !ask.kind.is_stored() || ask.sharing == Sharing::Private {
            return Finding::default();
        }
        let knowledge = self.knowledge.load(Ordering::Acquire);
        let held = self.held(key).await;
        if held.as_ref().is_some_and(|known| known.is_checked(knowledge)) {
            return Finding { known: held, expectation: None };
        }
        let looking_up = Box::pin(budget::waited_for(self.look_up(ask, held, knowledge)));
        self.findings.together(key, looking_up).await
    }

    /// The same, where all that matters is what is stored.
    pub(super) async fn known(self: &Arc<Self>, ask: &Ask) -> Option<Arc<Known>> {
        self.find(ask).await.known
    }

    /// `held` was not checked against all that was learnt by now.
    async fn look_up(
        self: &Arc<Self>,
        ask: &Ask,
        held: Option<Arc<Known>>,
        knowledge: u64,
    ) -> Finding {
        let key = ask.target.key.as_str();
        let found = self.index.find(key).await.map_or_else(|error| without_index(&error), Some);
        // What lists say that could not be asked is to be looked up again.
        let is_checked = found.is_some() || !may_be_listed(ask.kind);
        let found = found.unwrap_or_default();
        let expectation = must_be(ask.kind, || found.expectation);
        let fits = |entry: &Entry| {
            expectation.is_none_or(|expected| !expected.contradicts(entry.size, &entry.blob))
        };
        let known = match held {
            Some(held) if fits(&held.entry) => Some(held),
            // Rebuilt in place under its old name, which makes it another file.
            Some(_) => {
                self.memory.forget(key);
                self.elsewhere(key, expectation).await
            }
            None => match self.loaded(key, found.entry.filter(fits)).await {
                Some(known) => Some(known),
                None => self.elsewhere(key, expectation).await,
            },
        };
        if let Some(known) = &known {
            if is_checked {
                known.mark_checked(knowledge);
            }
            if known.soundness() == Soundness::Proven {
                self.learner.offer(key, known);
            }
        }
        Finding { known, expectation }
    }

    /// What the resource must be.
    pub(super) async fn expectation(&self, ask: &Ask) -> Option<Expectation> {
        let unlisted = must_be(ask.kind, || None);
        let is_named_best =
            matches!(unlisted, Some(Expectation { digest: Expected::Sha256(_), .. }));
        if is_named_best || !may_be_listed(ask.kind) {
            return unlisted;
        }
        let listed = self.index.expectation(&ask.target.key).await;
        must_be(ask.kind, || listed.unwrap_or_else(|error| without_index(&error)))
    }

    pub(super) async fn recorded(&self, key: &str) -> Option<Entry> {
        self.index.look_up(key).await.unwrap_or_else(|error| without_index(&error))
    }

    /// The same content: stored under whatever name, or in a shared folder.
    async fn elsewhere(
        self: &Arc<Self>,
        key: &str,
        expectation: Option<Expectation>,
    ) -> Option<Arc<Known>> {
        match self.loaded(key, self.under_another_name(expectation).await).await {
            Some(known) => {
                // What is used here under which name is worth knowing: see `prefetch.rs`.
                self.record_soon(key, &known.entry);
                Some(known)
            }
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
    pub(super) async fn loaded(
        self: &Arc<Self>,
        key: &str,
        entry: Option<Entry>,
    ) -> Option<Arc<Known>> {
        let entry = entry?;
        let digest = entry.blob;
        match self.load(entry).await {
            Ok(Loaded::Known(known)) => {
                let known = Arc::from(known);
                if !self.is_at_hand(&known).await {
                    return None;
                }
                self.memory.hold(key, Arc::clone(&known));
                self.prove(key, &known);
                Some(known)
            }
            Ok(Loaded::Missing) => {
                if !self.is_elsewhere(&digest).await {
                    self.forget(&digest);
                }
                None
            }
            Ok(Loaded::Bad(blob)) => {
                self.drop_bad(&digest, &blob).await;
                None
            }
            Ok(Loaded::Condemned) => None,
            Err(error) => {
                tracing::warn!(%error, source = %error.source, "going on without the store");
                None
            }
        }
    }

    async fn load(&self, entry: Entry) -> Result<Loaded, StoreError> {
        let (store, inspector) = (Arc::clone(&self.store), Arc::clone(&self.inspector));
        let looking = Arc::clone(&store);
        let span = span!("store.open", aptmesh.bytes = traces::number(entry.size));
        let loading = looking.look(move || {
            let Some(blob) = store.read(&entry.blob)? else { return Ok(Loaded::Missing) };
            if inspector.is_condemned(&entry.blob, &blob) {
                return Ok(Loaded::Condemned);
            }
            if blob.size != entry.size {
                return Ok(Loaded::Bad(blob));
            }
            match Known::load(entry, blob.clone()) {
                Ok(known) => Ok(Loaded::Known(Box::new(known))),
                Err(error) if error.kind() == ErrorKind::InvalidData => Ok(Loaded::Bad(blob)),
                Err(error) => Err(StoreError::interrupted(error)),
            }
        });
        let loaded = loading.instrument(span.clone()).await;
        traces::set(&span, "aptmesh.outcome", label(&loaded));
        loaded
    }

    /// Lets go of what the volume does not have; nobody waits until the index does.
    pub(super) fn forget(self: &Arc<Self>, digest: &Sha256) {
        self.memory.forget_blobs(&[*digest]);
        let (engine, digest) = (Arc::clone(self), *digest);
        self.tasks.spawn(async move {
            match engine.inspector.forget_missing(&[digest]).await {
                // Evicted just now, or on its way back; or the volume is away, which is said once.
                Ok(0) | Err(InspectError::NoVolume) => {}
                Ok(_) => {
                    tracing::warn!(%digest, "the index names a blob that the volume does not have");
                }
                Err(error) => tracing::warn!(%digest, %error, "could not forget a blob"),
            }
        });
    }
}

/// A word for what loading came to.
fn label(loaded: &Result<Loaded, StoreError>) -> &'static str {
    match loaded {
        Ok(Loaded::Known(_)) => "opened",
        Ok(Loaded::Missing) => "missing",
        Ok(Loaded::Bad(_) | Loaded::Condemned) => "bad",
        Err(_) => "failed",
    }
}

/// What a resource must be: told by the list that names it or, where it is named by its content, by its
/// own name.
pub(super) fn must_be(
    kind: Kind,
    listed: impl FnOnce() -> Option<Expectation>,
) -> Option<Expectation> {
    let by_name = match kind {
        Kind::ByHash(digest) => digest.map(|digest| Expectation { size: None, digest }),
        _ => None,
    };
    match by_name {
        Some(Expectation { digest: Expected::Sha256(_), .. }) => by_name,
        _ if may_be_listed(kind) => listed().or(by_name),
        _ => None,
    }
}

/// The names of others stay while their content changes: they are confirmed instead, or held to the
/// release file that their client has.
fn may_be_listed(kind: Kind) -> bool {
    match kind {
        Kind::ByHash(_) | Kind::Package | Kind::Patch | Kind::Installer => true,
        Kind::Release | Kind::Index | Kind::Other => false,
    }
}
