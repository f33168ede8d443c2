//! Consistent suites: a client that was given a release file is answered with the files that this
//! one names, even when the mirror has moved on meanwhile. Lazily and by digest: what can not be had
//! that way falls through to the mirror.
//!
//! Where an archive has no by-hash names, the mirror's next state is followed only when what this
//! site uses of it can be had: until then the state before goes on being served, whole.

pub(super) mod admission;
pub mod judge;
pub mod shown;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::time::{Instant, timeout_at};

use crate::archive::kind::Kind;
use crate::archive::listed::Listed;
use crate::archive::release::{self, Release};
use crate::archive::target::{Target, canonical_path};
use crate::content::digest::{Expected, Sha256};
use crate::engine::flight::{Landing, State};
use crate::engine::known::Finding;
use crate::engine::memory::now_seconds;
use crate::engine::outcome::{Failure, Served};
use crate::engine::plan::Freshness;
use crate::engine::suites::shown::Shown;
use crate::engine::{Ask, Client, Engine, Sharing, without_index};
use crate::store::Blob;

/// Bytes of release files' contents that are held: a dozen suites of Debian's size.
const GENERATIONS_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// What a listed file takes besides its path, about.
const LISTED_BYTES: usize = 160;
/// Clients and suites of which it is remembered what was given to whom.
const GIVEN_MAX: usize = 16 * 1024;
/// For how long a client is held to what it was given: an `apt-get update` over a slow line.
const GIVEN_FOR: Duration = Duration::from_hours(1);
/// Suites without by-hash names of which something is remembered.
const SUITES_MAX: usize = 1024;
/// For how long a mirror's next state is not followed because it is not whole. Then it is: somebody
/// may need what there is of it.
const BEHIND_FOR: Duration = Duration::from_hours(1);
/// Files of a suite that must be there before its next state is followed.
const MEMBERS_MAX: usize = 256;
/// The longest name of one that is remembered, in bytes.
const NAME_MAX: usize = 512;
/// How many of them are fetched at a time.
const MEMBERS_AT_ONCE: usize = 4;

/// What was given to whom.
pub(super) struct Suites {
    generations: Cache<Sha256, Arc<Generation>, Weight>,
    /// By client and the folder of the release file.
    given: Cache<(Recipient, Arc<str>), (Sha256, Instant)>,
    /// Suites whose mirror is between two states, by their folder.
    behind: Cache<Arc<str>, Behind>,
    /// What was asked for by name, by the suite's folder: what the index does not know since it could
    /// not be had yet.
    wanted: Cache<Arc<str>, Arc<Mutex<BTreeSet<String>>>>,
    /// Release files that their mirror said it does not have, by key.
    refused: Cache<Arc<str>, ()>,
    pub(super) shown: Shown,
}

/// A mirror between two states.
#[derive(Clone, Copy)]
struct Behind {
    since: Instant,
    seen: Instant,
}

/// A client in one of the two ways to tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Recipient {
    Connection(u64),
    Address(IpAddr),
}

impl Client {
    fn recipients(self) -> [Recipient; 2] {
        [Recipient::Connection(self.connection), Recipient::Address(self.address)]
    }
}

/// One state of a suite: what its release file says. One that can not be read says nothing.
#[derive(Default)]
pub(super) struct Generation {
    /// By canonical path below the release file's folder.
    files: HashMap<String, Listed>,
    by_hash: bool,
    suite: Option<String>,
    codename: Option<String>,
    /// Seconds since 1970, both.
    date: Option<i64>,
    pub(super) valid_until: Option<i64>,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Sha256, Arc<Generation>> for Weight {
    fn weight(&self, _release: &Sha256, generation: &Arc<Generation>) -> u64 {
        let bytes: usize = generation.files.keys().map(|path| 2 * path.len() + LISTED_BYTES).sum();
        (bytes + LISTED_BYTES) as u64
    }
}

impl Default for Suites {
    fn default() -> Self {
        Self {
            generations: generations(),
            given: Cache::new(GIVEN_MAX),
            behind: Cache::new(SUITES_MAX),
            wanted: Cache::new(SUITES_MAX),
            refused: Cache::new(SUITES_MAX),
            shown: Shown::default(),
        }
    }
}

/// In one piece: a suite may weigh more than a part of it.
fn generations() -> Cache<Sha256, Arc<Generation>, Weight> {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(SUITES_MAX)
        .weight_capacity(GENERATIONS_BYTES_MAX)
        .shards(1)
        .build();
    options.map_or_else(
        |_| Cache::with_weighter(SUITES_MAX, GENERATIONS_BYTES_MAX, Weight),
        |options| {
            Cache::with_options(
                options,
                Weight,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            )
        },
    )
}

impl Suites {
    /// Holds what a release file says, which may not be on the volume yet.
    pub(super) fn hold(&self, release: Sha256, generation: Generation) {
        self.generations.insert(release, Arc::new(generation));
    }

    fn give(&self, client: Client, folder: &str, release: Sha256) {
        let folder: Arc<str> = folder.into();
        for recipient in client.recipients() {
            self.given.insert((recipient, Arc::clone(&folder)), (release, Instant::now()));
        }
    }

    fn take_back(&self, client: Client, folder: &str) {
        for recipient in client.recipients() {
            self.given.remove(&(recipient, folder.into()));
        }
    }

    fn given(&self, client: Client, folder: &str) -> Option<Sha256> {
        let lately = |recipient| {
            let (release, at) = self.given.get(&(recipient, folder.into()))?;
            (at.elapsed() < GIVEN_FOR).then_some(release)
        };
        client.recipients().into_iter().find_map(lately)
    }

    /// The mirror said that it does not have a release file.
    pub(super) fn refuse(&self, key: &str) {
        self.refused.insert(key.into(), ());
    }

    /// Somebody asked for a file of the suite by its name.
    fn want(&self, folder: &str, key: &str) {
        let wanted = self.wanted.get(folder).unwrap_or_else(|| {
            let wanted = Arc::default();
            self.wanted.insert(folder.into(), Arc::clone(&wanted));
            wanted
        });
        let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.len() < MEMBERS_MAX && key.len() <= NAME_MAX {
            wanted.insert(key.to_owned());
        }
    }

    fn wanted(&self, folder: &str) -> BTreeSet<String> {
        let wanted = self.wanted.get(folder).unwrap_or_default();
        wanted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Until when the suite's mirror, which is between two states, is not followed.
    fn followed_at(&self, folder: &str) -> Instant {
        let now = Instant::now();
        let before = self.behind.get(folder);
        // What was seen long ago was another time.
        let before = before.filter(|behind| behind.seen.elapsed() < BEHIND_FOR);
        let since = before.map_or(now, |behind| behind.since);
        self.behind.insert(folder.into(), Behind { since, seen: now });
        since + BEHIND_FOR
    }
}

impl Generation {
    pub(super) fn read(file: &[u8]) -> Option<Self> {
        let release = Release::parse(&release::content(file).ok()?.text).ok()?;
        let Release { suite, codename, date, valid_until, .. } = release;
        let by_hash = release.acquire_by_hash;
        let files = release.files.into_iter().map(|file| (canonical_path(&file.path), file));
        Some(Self { files: files.collect(), by_hash, suite, codename, date, valid_until })
    }

    /// How the file at `path` below `folder` is asked for: under its digest.
    fn pin(&self, ask: &Ask, folder: &str, path: &str) -> Option<Ask> {
        let target = Arc::new(self.by_hash_target(folder, path)?);
        let mut sources = vec![Arc::clone(&ask.target)];
        if self.by_hash {
            sources.insert(0, Arc::clone(&target));
        }
        Some(Ask { kind: Kind::of(&target.path), target, sources, ..ask.clone() })
    }

    /// The name by its digest of the file at `path` below `folder`.
    pub(super) fn by_hash_target(&self, folder: &str, path: &str) -> Option<Target> {
        let Expected::Sha256(digest) = self.files.get(path)?.digest else { return None };
        Target::from_absolute(&by_hash_url(folder, path, &digest)).ok()
    }
}

/// The name that a file of a suite has by its digest, whether the mirror knows it by that or not.
fn by_hash_url(folder: &str, path: &str, digest: &Sha256) -> String {
    match path.rsplit_once('/') {
        Some((parent, _)) => format!("{folder}/{parent}/by-hash/SHA256/{digest}"),
        None => format!("{folder}/by-hash/SHA256/{digest}"),
    }
}

/// The name under which the signature of one state's `Release` is kept.
pub(super) fn signature_url(folder: &str, release: &Sha256) -> String {
    format!("{folder}/by-hash/SHA256/{release}.gpg")
}

fn is_release_file(ask: &Ask) -> bool {
    ask.kind == Kind::Release && matches!(ask.target.file_name(), "InRelease" | "Release")
}

impl Engine {
    /// Remembers which release file a client is being given.
    pub(super) fn remember_given(&self, ask: &Ask, served: &Served) {
        let Some(client) = ask.client.filter(|_| is_release_file(ask) && !ask.head_only) else {
            return;
        };
        let Some((folder, _)) = ask.target.key.rsplit_once('/') else { return };
        match served.digest() {
            Some(release) => self.suites.give(client, folder, release),
            None => self.suites.take_back(client, folder),
        }
    }

    /// The request as the release file that its client was given means it: for the file of that
    /// digest. `None`: as for anybody.
    pub(super) async fn pinned(self: &Arc<Self>, ask: &Ask) -> Option<Ask> {
        let is_plain = ask.sharing == Sharing::Shared && ask.freshness != Freshness::Now;
        let client = ask.client.filter(|_| is_plain)?;
        if ask.target.file_name() == "Release.gpg" {
            return self.signature_given(client, ask).await;
        }
        if ask.kind != Kind::Index {
            return None;
        }
        let key = ask.target.key.as_str();
        let mut folder = key;
        while let Some((parent, _)) = folder.rsplit_once('/') {
            folder = parent;
            // The nearest release file that names it: some folders have small ones that name nothing.
            let Some(release) = self.suites.given(client, folder) else { continue };
            let path = key.strip_prefix(folder)?.strip_prefix('/')?;
            let Some(generation) = self.generation(release).await else { continue };
            let Some(pinned) = generation.pin(ask, folder, path) else { continue };
            if !generation.by_hash {
                self.suites.want(folder, key);
            }
            return Some(pinned);
        }
        None
    }

    /// The signature of the `Release` that the client was given, if that is stored.
    async fn signature_given(self: &Arc<Self>, client: Client, ask: &Ask) -> Option<Ask> {
        let (folder, _) = ask.target.key.rsplit_once('/')?;
        let release = self.suites.given(client, folder)?;
        let target = Arc::new(Target::from_absolute(&signature_url(folder, &release)).ok()?);
        let pinned = Ask { kind: Kind::ByHash(None), target, ..ask.clone() };
        self.known(&pinned).await.map(|_| pinned)
    }

    /// What there is not beside a `Release` that is stored, such as an `InRelease`: while the mirror is
    /// away, apt has to hear that again to ask for the `Release`.
    pub(super) async fn note_absent_beside(&self, release_key: &str) {
        let Some((folder, "Release")) = release_key.rsplit_once('/') else { return };
        for name in ["InRelease", "Release.gpg"] {
            let key = format!("{folder}/{name}");
            if self.suites.refused.get(key.as_str()).is_some()
                && let Err(error) = self.index.note_absent(&key).await
            {
                self.late.note_absent(&key, &error);
            }
        }
    }

    /// The last word of a mirror that is away, where it said that it does not have a release file.
    pub(super) async fn as_it_was_told(
        &self,
        ask: &Ask,
        served: Result<Served, Failure>,
    ) -> Result<Served, Failure> {
        let is_trouble = served.as_ref().is_err_and(Failure::is_trouble);
        if is_trouble && ask.kind == Kind::Release {
            let is_absent = self.index.is_absent(&ask.target.key).await;
            if is_absent.unwrap_or_else(|error| without_index(&error).unwrap_or_default()) {
                return Err(Failure::not_there(&ask.target.authority.host));
            }
        }
        served
    }

    /// What the release file `release` says: from memory, else from the store.
    pub(super) async fn generation(&self, release: Sha256) -> Option<Arc<Generation>> {
        if let Some(generation) = self.suites.generations.get(&release) {
            return Some(generation);
        }
        let store = Arc::clone(&self.store);
        let looking = self.store.look(move || {
            let Some(blob) = store.read(&release)? else { return Ok(None) };
            let right = bytes_of(&blob).filter(|bytes| Sha256::of(bytes) == release);
            Ok(right.map(|bytes| Generation::read(&bytes).unwrap_or_default()))
        });
        let generation = Arc::new(looking.await.ok()??);
        self.suites.generations.insert(release, Arc::clone(&generation));
        Some(generation)
    }

    /// Whether a release file has passed its `Valid-Until`.
    pub(super) async fn has_expired(&self, release: Sha256) -> bool {
        let generation = self.generation(release).await;
        let valid_until = generation.and_then(|generation| generation.valid_until);
        valid_until.is_some_and(|until| until < now_seconds())
    }

    /// Whether the next state of a suite may be followed: all that this site uses of it can be had,
    /// now or at any time, or has been waited for long enough. Fetches it, which may take long.
    pub(super) async fn may_follow(self: &Arc<Self>, release_key: &str, next: &Generation) -> bool {
        let Some((folder, _)) = release_key.rsplit_once('/') else { return true };
        let until = self.suites.followed_at(folder);
        let has_members =
            next.by_hash || timeout_at(until, self.has_members(folder, next)).await == Ok(true);
        let may_follow = has_members || Instant::now() >= until;
        if may_follow {
            self.suites.behind.remove(folder);
        }
        may_follow
    }

    async fn has_members(self: &Arc<Self>, folder: &str, next: &Generation) -> bool {
        let used = self.index.names_below(&format!("{folder}/"), MEMBERS_MAX).await;
        let used = used.unwrap_or_else(|error| without_index(&error).unwrap_or_default());
        let used: BTreeSet<String> = self.suites.wanted(folder).into_iter().chain(used).collect();
        let asks: Vec<Ask> = used
            .iter()
            .filter_map(|key| {
                next.pin(&Ask::ours(key)?, folder, key.strip_prefix(folder)?.strip_prefix('/')?)
            })
            .collect();
        let mut members = stream::iter(asks)
            .map(|ask| async move { self.has_member(&ask).await })
            .buffer_unordered(MEMBERS_AT_ONCE);
        while let Some(is_there) = members.next().await {
            if !is_there {
                return false;
            }
        }
        true
    }

    async fn has_member(self: &Arc<Self>, ask: &Ask) -> bool {
        let Finding { known, expectation } = self.find(ask).await;
        if known.is_some() {
            return true;
        }
        let Ok((interest, _)) = self.board(ask, None, expectation) else { return false };
        interest.flight().over().await;
        match interest.flight().landed().await {
            // What is not there was never had: archives name plain files that they have only packed.
            Landing::Failed(failure) => {
                let plain = ask.sources.last().map_or("", |source| source.key.as_str());
                failure.is_not_there() && self.recorded(plain).await.is_none()
            }
            _ => interest.flight().progress().borrow().state == State::Whole,
        }
    }
}

/// The bytes of a release file; `None` if it is too large to be one. Blocks.
pub(super) fn bytes_of(blob: &Blob) -> Option<Vec<u8>> {
    let size = usize::try_from(blob.size).ok().filter(|&size| size <= release::TEXT_MAX)?;
    let mut bytes = vec![0; size];
    blob.file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}
