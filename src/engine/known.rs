//! What is known of a resource: from memory, else from index and store, else from where the same content
//! lies under another name.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::archive::kind::Kind;
use crate::content::digest::{Expected, Sha256};
use crate::engine::memory::Known;
use crate::engine::volume::inspect::InspectError;
use crate::engine::volume::proof::Soundness;
use crate::engine::{Ask, Engine, Sharing, without_index};
use crate::index::{Entry, Expectation};
use crate::store::{Blob, StoreError};

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

/// The index could not tell what lists say; what a resource's own name says.
#[derive(Clone, Copy)]
struct Untold(Option<Expectation>);

impl Engine {
    /// What is stored of the resource and, as far as lists tell, is what it must be: from memory,
    /// else from index and store. An index or a store that fails knows nothing.
    pub(super) async fn known(self: &Arc<Self>, ask: &Ask) -> Option<Arc<Known>> {
        let key = ask.target.key.as_str();
        if !ask.kind.is_stored() || ask.sharing == Sharing::Private {
            return None;
        }
        let knowledge = self.knowledge.load(Ordering::Acquire);
        let held = self.held(key).await;
        if held.as_ref().is_some_and(|known| known.is_checked(knowledge)) {
            return held;
        }
        let told = self.told(ask).await;
        let expectation = told.unwrap_or_else(|Untold(by_name)| by_name);
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
            None => {
                let recorded = self.recorded(key).await.filter(fits);
                match self.loaded(key, recorded).await {
                    Some(known) => known,
                    None => self.elsewhere(key, expectation).await?,
                }
            }
        };
        if told.is_ok() {
            known.mark_checked(knowledge);
        }
        if known.soundness() == Soundness::Proven {
            self.learner.offer(key, &known);
        }
        Some(known)
    }

    /// What the resource must be: told by the list that names it or, where it is named by its
    /// content, by its own name.
    pub(super) async fn expectation(&self, ask: &Ask) -> Option<Expectation> {
        self.told(ask).await.unwrap_or_else(|Untold(by_name)| by_name)
    }

    async fn told(&self, ask: &Ask) -> Result<Option<Expectation>, Untold> {
        let by_name = match ask.kind {
            Kind::ByHash(digest) => digest.map(|digest| Expectation { size: None, digest }),
            Kind::Package | Kind::Patch | Kind::Installer => None,
            // Their names stay while their content changes: they are confirmed instead, or held to
            // the release file that their client has.
            Kind::Release | Kind::Index | Kind::Other => return Ok(None),
        };
        if matches!(by_name, Some(Expectation { digest: Expected::Sha256(_), .. })) {
            return Ok(by_name);
        }
        match self.index.expectation(&ask.target.key).await {
            Ok(listed) => Ok(listed.or(by_name)),
            Err(error) => {
                without_index::<()>(&error);
                Err(Untold(by_name))
            }
        }
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
                self.forget(&digest);
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
        let loading = tokio::task::spawn_blocking(move || {
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
        loading.await.map_err(StoreError::interrupted)?
    }

    /// Lets go of what the volume does not have; nobody waits until the index does.
    fn forget(self: &Arc<Self>, digest: &Sha256) {
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
