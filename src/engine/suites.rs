//! Consistent suites: a client that was given a release file is answered with the files that this
//! one names, even when the mirror has moved on meanwhile. Lazily and by digest: what can not be
//! had that way falls through to the mirror.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::archive::kind::Kind;
use crate::archive::listed::Listed;
use crate::archive::release::{self, Release};
use crate::archive::target::{Target, canonical_path};
use crate::content::digest::{Expected, Sha256};
use crate::engine::outcome::{Content, Outcome, Served};
use crate::engine::plan::Freshness;
use crate::engine::{Ask, Engine, Sharing, stored};
use crate::index::Expectation;
use crate::store::Blob;

/// Release files of which the contents are held: of some dozens of suites, two generations each.
const GENERATIONS_MAX: usize = 64;
/// Clients and suites of which it is remembered what was given to whom.
const GIVEN_MAX: usize = 16 * 1024;

/// What was given to whom.
pub(super) struct Suites {
    generations: Cache<Sha256, Arc<Generation>>,
    /// By client and the folder of the release file.
    given: Cache<(IpAddr, String), Sha256>,
}

/// What one release file names.
struct Generation {
    /// By canonical path below the release file's folder.
    files: HashMap<String, Listed>,
    by_hash: bool,
}

impl Default for Suites {
    fn default() -> Self {
        Self { generations: Cache::new(GENERATIONS_MAX), given: Cache::new(GIVEN_MAX) }
    }
}

impl Suites {
    /// Holds what the release file `blob`, which is `bytes`, names: before it is on the volume.
    pub(super) fn hold(&self, blob: Sha256, bytes: &[u8]) {
        if let Some(generation) = parse(bytes) {
            self.generations.insert(blob, Arc::new(generation));
        }
    }

    /// `client` was given the release file `blob`, under the name `key`.
    pub(super) fn give(&self, client: IpAddr, key: &str, blob: Sha256) {
        if let Some((folder, _)) = key.rsplit_once('/') {
            self.given.insert((client, folder.to_owned()), blob);
        }
    }

    /// The release file that `client` was given last for the suite that `key` is in, and the path
    /// of `key` below its folder.
    fn given_for<'a>(&self, client: IpAddr, key: &'a str) -> Option<(Sha256, &'a str, &'a str)> {
        let mut folder = key;
        while let Some((parent, _)) = folder.rsplit_once('/') {
            folder = parent;
            if let Some(blob) = self.given.get(&(client, folder.to_owned())) {
                let path = key.strip_prefix(folder)?.strip_prefix('/')?;
                return Some((blob, folder, path));
            }
        }
        None
    }
}

impl Engine {
    /// Remembers which release file a client is being given.
    pub(super) fn remember_given(&self, ask: &Ask, served: &Served) {
        let is_release = matches!(ask.target.file_name(), "InRelease" | "Release");
        let (Some(client), Kind::Release, true) = (ask.client, ask.kind, is_release) else {
            return;
        };
        let blob = match &served.content {
            Content::Known(known) => Some(known.entry.blob),
            Content::Flight(follower) => follower.digest(),
            Content::Relay(_) => None,
        };
        if let Some(blob) = blob {
            self.suites.give(client, &ask.target.key, blob);
        }
    }

    /// The metadata file as the release file given to this client names it: stored, or fetched under
    /// its by-hash name. `None`: as for anybody.
    pub(super) async fn pinned(self: &Arc<Self>, ask: &Ask) -> Option<Served> {
        let (Some(client), Kind::Index, Freshness::Any | Freshness::Recent) =
            (ask.client, ask.kind, ask.freshness)
        else {
            return None;
        };
        if ask.sharing == Sharing::Private {
            return None;
        }
        let (release, folder, path) = self.suites.given_for(client, &ask.target.key)?;
        let generation = self.generation(release).await?;
        let listed = generation.files.get(path)?;
        let Expected::Sha256(digest) = listed.digest else { return None };
        let by_hash = by_hash_url(folder, path, &digest);
        let expectation = Expectation { size: listed.size, digest: listed.digest };
        let elsewhere = self.under_another_name(Some(expectation)).await;
        if let Some(known) = self.loaded(&by_hash, elsewhere).await {
            self.learner.offer(&ask.target.key, &known);
            return Some(stored(known, Outcome::Hit));
        }
        if !generation.by_hash {
            return None;
        }
        let target = Target::from_absolute(&by_hash).ok()?;
        let ask = Ask { kind: Kind::of(&target.path), target: Arc::new(target), ..ask.clone() };
        // Gone from the mirror, for one: then its plain name is all there is.
        self.fetch(&ask, None).await.ok()
    }

    async fn generation(&self, release: Sha256) -> Option<Arc<Generation>> {
        if let Some(generation) = self.suites.generations.get(&release) {
            return Some(generation);
        }
        let store = Arc::clone(&self.store);
        let reading = tokio::task::spawn_blocking(move || read(&store.read(&release).ok()??));
        let generation = Arc::new(reading.await.ok()??);
        self.suites.generations.insert(release, Arc::clone(&generation));
        Some(generation)
    }
}

fn by_hash_url(folder: &str, path: &str, digest: &Sha256) -> String {
    match path.rsplit_once('/') {
        Some((parent, _)) => format!("{folder}/{parent}/by-hash/SHA256/{digest}"),
        None => format!("{folder}/by-hash/SHA256/{digest}"),
    }
}

/// Blocks.
fn read(blob: &Blob) -> Option<Generation> {
    let size = usize::try_from(blob.size).ok().filter(|&size| size <= release::TEXT_MAX)?;
    let mut bytes = vec![0; size];
    blob.file.read_exact_at(&mut bytes, 0).ok()?;
    parse(&bytes)
}

fn parse(file: &[u8]) -> Option<Generation> {
    let release = Release::parse(&release::content(file).ok()?.text).ok()?;
    let files = release.files.into_iter().map(|file| (canonical_path(&file.path), file)).collect();
    Some(Generation { files, by_hash: release.acquire_by_hash })
}
