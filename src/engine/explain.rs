//! What is known of a resource, and what would happen if somebody asked for it: for the puzzled. Looks at all
//! and touches nothing: nothing is fetched, nothing counts as used.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::archive::kind::Kind;
use crate::archive::list::{List, ListKind};
use crate::archive::target::Target;
use crate::content::digest::{Expected, Sha256};
use crate::engine::flight::ended::Ended;
use crate::engine::flight::running::Running;
use crate::engine::known::must_be;
use crate::engine::memory::{Known, now_seconds};
use crate::engine::plan::{Freshness, Plan, Situation, Standing, plan};
use crate::engine::{Engine, without_index};
use crate::index::{Entry, Expectation, IndexError, budget};
use crate::mirror::Prospect;
use crate::swarm::discovery::Holder;

/// For how long other sites are looked for: as long as a client would wait.
const LOOK_UP_BUDGET: Duration = Duration::from_millis(150);
/// For how long the volume is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Lists that are told of: more suites than this do not share a package.
const LISTS_MAX: usize = 16;
/// Files of shared folders that are told of.
const FILES_MAX: usize = 4;
/// Folders above a list in which its release file is looked for: `main/binary-amd64` is two below it.
const ABOVE_MAX: usize = 6;

/// What is known of a resource.
#[derive(Debug)]
pub struct Explanation {
    /// Its one name; its query is left out, which may be a secret.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// The archive that the operator says it belongs to.
    pub archive: Option<String>,
    /// Why it is nobody else's, if it is one client's.
    pub private: Option<Private>,
    /// What it must be.
    pub expectation: Option<Expectation>,
    /// The lists that name it.
    pub lists: Vec<Naming>,
    /// What is stored of it.
    pub stored: Option<Stored>,
    /// The download that brings it now.
    pub running: Option<Running>,
    /// How the last one ended, if that is remembered.
    pub ended: Option<Ended>,
    /// Sites that say that they have it.
    pub claims: Vec<Claim>,
    /// Who would be asked, in that order.
    pub mirrors: Vec<Prospect>,
    /// Whether nobody is asked, by the operator's word.
    pub is_offline: bool,
    /// Whether the index did not tell in time: what it knows is missing here.
    pub is_index_silent: bool,
    /// What would be done for a client who asks now.
    pub plan: Plan,
    /// The time of all this, in seconds since 1970.
    pub now: i64,
}

/// What makes a request one client's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Private {
    /// A name and a password.
    Credentials,
    /// A query: the path alone does not name it.
    Query,
}

/// A list that names a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// Its URL.
    pub list: String,
    /// Whether all of it was learnt: else it does not count.
    pub is_learnt: bool,
    /// The release file that it was learnt under, which may be itself.
    pub release: Option<String>,
}

/// What is stored of a resource. Times are seconds since 1970.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The bytes.
    pub blob: Sha256,
    /// Their number.
    pub size: u64,
    /// Where they are.
    pub place: Place,
    /// Whether they are what the resource must be.
    pub is_right: bool,
    /// Whether memory holds them, or the file open.
    pub is_at_hand: bool,
    /// When a mirror last gave or confirmed them; `None`: none ever did, under this name.
    pub confirmed_at: Option<i64>,
    /// How they stand, by that.
    pub standing: Standing,
    /// What is known of them on the volume.
    pub on_volume: Option<crate::index::Stored>,
}

/// Where bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file of the volume.
    Volume(PathBuf),
    /// In these files, which are served in place.
    Folders(Vec<PathBuf>),
    /// At other replicas.
    Replicas(Vec<String>),
    /// The index says that they are stored, and they are not.
    Nowhere,
}

/// A site that says that it has something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who.
    pub holder: Holder,
    /// Whether its filter says so; else it was found just now.
    pub by_filter: bool,
}

/// What the index tells.
#[derive(Default)]
struct Told {
    entry: Option<Entry>,
    expectation: Option<Expectation>,
    lists: Vec<Naming>,
}

impl Engine {
    /// What is known of what `target` names, as clients would mean it.
    pub async fn explain(self: &Arc<Self>, target: Target) -> Explanation {
        let private = match &target {
            Target { userinfo: Some(_), .. } => Some(Private::Credentials),
            Target { has_query: true, .. } => Some(Private::Query),
            _ => None,
        };
        let target = self.mirror.settle(target, private == Some(Private::Credentials));
        let kind = Kind::of(&target.path);
        let is_kept = private.is_none() && kind.is_stored();
        let told = if is_kept { self.told(&target.key).await } else { Ok(Told::default()) };
        let is_index_silent = told.is_err();
        let Told { entry, expectation, lists } =
            told.unwrap_or_else(|error| without_index(&error).unwrap_or_default());
        let expectation = if is_kept { must_be(kind, || expectation) } else { None };
        let stored = if is_kept { self.copy(&target.key, entry, expectation).await } else { None };
        let blob = named_by(expectation).or(stored.as_ref().map(|stored| stored.blob));
        let known = stored.as_ref().filter(|stored| stored.is_served());
        Explanation {
            name: target.key.split('?').next().unwrap_or_default().to_owned(),
            kind,
            archive: self.mirror.archive_of(&target),
            private,
            lists,
            running: self.flights.running_for(&target.key).filter(|_| is_kept),
            ended: self.flights.ended_for(&target.key).filter(|_| is_kept),
            claims: match blob {
                Some(blob) if is_kept => self.claims(&blob).await,
                _ => Vec::new(),
            },
            mirrors: self.mirror.prospects(&target, private.is_some()),
            is_offline: self.mirror.is_offline(),
            is_index_silent,
            plan: plan(&Situation {
                kind,
                freshness: Freshness::Any,
                head_only: false,
                shareable: private.is_none(),
                storable: self.store.takes_blobs(),
                known: known.map(|stored| stored.standing),
            }),
            expectation,
            stored,
            now: now_seconds(),
        }
    }

    async fn told(&self, key: &str) -> Result<Told, IndexError> {
        budget::waited_for(async {
            let found = self.index.find(key).await?;
            let mut lists = Vec::new();
            for list in self.index.lists_naming(key).await?.into_iter().take(LISTS_MAX) {
                let is_learnt = self.index.learnt(&list).await?.is_some();
                let release = self.release_of(&list).await?;
                lists.push(Naming { list, is_learnt, release });
            }
            Ok(Told { entry: found.entry, expectation: found.expectation, lists })
        })
        .await
    }

    /// The release file by which a list was learnt: that of its own folder, or the nearest above it.
    async fn release_of(&self, list: &str) -> Result<Option<String>, IndexError> {
        if List::at(list).is_some_and(|list| list.kind == ListKind::Release) {
            return Ok(Some(list.to_owned()));
        }
        let mut folder = list;
        for _ in 0..ABOVE_MAX {
            let Some((parent, _)) = folder.rsplit_once('/') else { break };
            let release = format!("{parent}/Release");
            if self.index.learnt(&release).await?.is_some() {
                return Ok(Some(release));
            }
            folder = parent;
        }
        Ok(None)
    }

    /// What is stored under a name, or of what it must be.
    async fn copy(
        &self,
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
            _ => self.other_name(expectation).await,
        };
        let entry = other.or(entry)?;
        let held = held.filter(|held| held.entry.blob == entry.blob);
        let window = self.recheck_after();
        let standing = match &held {
            Some(held) => held.standing(window),
            None => Known::standing_of(entry.checked_at, window),
        };
        let asking = budget::waited_for(self.index.blob(&entry.blob));
        let on_volume = asking.await.unwrap_or_else(|error| without_index(&error));
        Some(Stored {
            place: self.place(&entry.blob).await,
            is_right: fits(&entry),
            is_at_hand: held.is_some(),
            confirmed_at: Some(entry.checked_at).filter(|at| *at > 0),
            standing,
            on_volume,
            blob: entry.blob,
            size: entry.size,
        })
    }

    /// What has the right content, under whatever name, or in a shared folder.
    async fn other_name(&self, expectation: Option<Expectation>) -> Option<Entry> {
        let digest = named_by(expectation)?;
        let asking = budget::waited_for(self.index.by_blob(&digest));
        if let Some(entry) = asking.await.unwrap_or_else(|error| without_index(&error)) {
            return Some(entry);
        }
        let asking = budget::waited_for(self.index.files_with(&digest, 1));
        let files = asking.await.unwrap_or_else(|error| without_index(&error).unwrap_or_default());
        Some(Entry::nameless(digest, files.first()?.identity.size))
    }

    async fn place(&self, blob: &Sha256) -> Place {
        let (store, name) = (Arc::clone(&self.store), *blob);
        let looking = self.store.look(move || store.read(&name));
        if let Ok(Ok(Some(_))) = timeout(PATIENCE, looking).await {
            return Place::Volume(self.store.path_of(blob));
        }
        let asking = budget::waited_for(self.index.files_with(blob, FILES_MAX));
        let files = asking.await.unwrap_or_else(|error| without_index(&error).unwrap_or_default());
        if !files.is_empty() {
            return Place::Folders(files.into_iter().map(|file| file.path).collect());
        }
        let asking = budget::waited_for(self.index.holders(blob));
        match asking.await.unwrap_or_else(|error| without_index(&error).unwrap_or_default()).urls {
            urls if urls.is_empty() => Place::Nowhere,
            urls => Place::Replicas(urls),
        }
    }

    /// Who says that it has a blob, and is not this site.
    async fn claims(&self, blob: &Sha256) -> Vec<Claim> {
        let discovery = &self.swarm.discovery;
        let filters = discovery.claimed(blob).into_iter();
        let mut claims: Vec<Claim> =
            filters.map(|holder| Claim { holder, by_filter: true }).collect();
        for holder in discovery.look_up(blob, LOOK_UP_BUDGET).await {
            let is_known = claims.iter().any(|claim| claim.holder.node == holder.node);
            if !is_known && discovery.me().as_ref() != Some(&holder.node) {
                claims.push(Claim { holder, by_filter: false });
            }
        }
        claims
    }
}

impl Stored {
    /// Whether a client would get it from here.
    fn is_served(&self) -> bool {
        self.is_right && matches!(self.place, Place::Volume(_) | Place::Folders(_))
    }
}

fn named_by(expectation: Option<Expectation>) -> Option<Sha256> {
    match expectation?.digest {
        Expected::Sha256(digest) => Some(digest),
        Expected::Sha1(_) | Expected::Sha512(_) => None,
    }
}
