//! The index: what the site knows of resources. A cache of facts: losing it costs speed, never
//! correctness.

pub mod budget;
mod fellow;
mod lease;
mod metrics;
pub mod postgres;
pub mod sqlite;
mod telling;
mod traffic;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

use crate::content::digest::{Expected, Sha256};
use crate::content::validators::Validators;
pub use crate::index::fellow::{FELLOWS_MAX, Holders, Presence, Site};
pub use crate::index::lease::{FencedOff, Holding, Lease, Renewal, Renewed, Taken, WANTED_SECONDS};
pub use crate::index::telling::{
    CHANGES_MAX, Changes, DELTAS_KEPT, KeptFilter, NewFilter, Tellable,
};
pub use crate::index::traffic::Traffic;

/// Which make, and where.
#[derive(Clone, Debug)]
pub enum Config {
    /// A file, for one process.
    Sqlite(sqlite::Config),
    /// A server, for a fleet.
    Postgres(Box<postgres::Config>),
}

/// What the index knows of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes it had.
    pub blob: Sha256,
    /// Their number.
    pub size: u64,
    /// What the mirror said of this version.
    pub validators: Validators,
    /// The mirror's `Content-Type`.
    pub content_type: Option<String>,
    /// When the mirror last gave or confirmed it; seconds since 1970.
    pub checked_at: i64,
}

impl Entry {
    /// What is known of bytes that no resource names: no mirror ever vouched for them.
    #[must_use]
    pub fn nameless(blob: Sha256, size: u64) -> Self {
        let validators = Validators::default();
        Self { blob, size, validators, content_type: None, checked_at: 0 }
    }
}

/// What an archive's list says that a resource must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Bytes; `None` where the list does not tell.
    pub size: Option<u64>,
    /// Its digest.
    pub digest: Expected,
}

impl Expectation {
    /// Whether content of this size and name can not be what is expected. A digest of another
    /// algorithm than the name's does not tell.
    #[must_use]
    pub fn contradicts(&self, size: u64, blob: &Sha256) -> bool {
        let other_digest = matches!(&self.digest, Expected::Sha256(digest) if digest != blob);
        other_digest || self.size.is_some_and(|expected| expected != size)
    }
}

/// What the index has of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// As [`Index::look_up`].
    pub entry: Option<Entry>,
    /// As [`Index::expectation`].
    pub expectation: Option<Expectation>,
}

/// A difference between what a list says and what it was known to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Said now.
    pub set: Vec<(String, Expectation)>,
    /// Not said any more.
    pub unset: Vec<String>,
}

/// How much an index was taught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knowledge {
    /// Tells the place that it was written to from another, and from itself after it was away for long enough
    /// to be set back to an older state.
    pub place: String,
    /// Rises whenever a list is finished or unlearnt.
    pub version: u64,
}

impl Knowledge {
    /// Whether what was known `before` may have been lost.
    #[must_use]
    pub fn may_lack(&self, before: &Self) -> bool {
        self.place != before.place || self.version < before.version
    }
}

/// What is known of a blob on the volume. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its name.
    pub digest: Sha256,
    /// Bytes.
    pub size: u64,
    /// When it was stored.
    pub stored_at: i64,
    /// When it was last served.
    pub used_at: i64,
    /// How often it was.
    pub uses: u64,
    /// The lowest goes first; see [`ROUND_TRIP`].
    pub rank: f64,
    /// When its bytes were last hashed; 0: not known.
    pub checked_at: i64,
    /// Since when no list names it and nobody has used it; `None`: a list names it, or is it.
    pub unreferenced_since: Option<i64>,
}

/// Uses of a blob since they were last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Which.
    pub digest: Sha256,
    /// How often.
    pub uses: u64,
    /// The last time; seconds since 1970.
    pub used_at: i64,
}

/// Blobs in the order in which they may go: no blob of a class goes while an earlier class has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No list names it, and nobody has used it since this time: the oldest first.
    Disused(i64),
    /// No list names it, but somebody with older lists may still want it: the lowest rank first.
    Unreferenced,
    /// A list names it: the lowest rank first.
    Referenced,
}

/// What a round trip to the mirror is worth, in bytes: 25 ms on a line of 10 MB/s. A use of a file
/// saves its bytes and one round trip, at the price of its bytes on the volume; so a blob ranks at
/// `floor + uses * (1 + ROUND_TRIP / (size + 1))` (`GreedyDual-Size` with frequency, Cherkasova 1998), the
/// floor being the last rank that had to go: what was used often, but long ago, sinks below it.
pub const ROUND_TRIP: f64 = 256.0 * 1024.0;

/// Who names a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Keys of resources; at most [`NAMES_MAX`].
    pub resources: Vec<String>,
    /// Keys of lists; at most [`NAMES_MAX`].
    pub lists: Vec<String>,
}

/// Names of a blob that are told: more suites than this do not share a package.
pub const NAMES_MAX: usize = 64;

/// The volume in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Volume {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The highest rank that had to go.
    pub floor: f64,
}

/// What tells one state of a file from another. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Bytes.
    pub size: u64,
    /// When its content was last modified, as its file system tells and anybody can set.
    pub modified: i64,
    /// When it was last changed in whatever way, which nobody can set.
    pub changed: i64,
    /// Its number in its file system.
    pub inode: u64,
}

/// A file that lies elsewhere than on the volume, as it was when it was hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedFile {
    /// Where; absolute.
    pub path: PathBuf,
    /// Its state then.
    pub identity: Identity,
    /// What its bytes were.
    pub digest: Sha256,
}

/// A file to be fetched before anybody asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errand {
    /// Which package it is a version of.
    pub package: String,
    /// Its resource.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Whether it could not be fetched once.
    pub has_failed: bool,
}

/// A volume that nobody has used for so long is lost.
pub const LOST_AFTER: Duration = Duration::from_hours(30 * 24);

/// For how long an errand waits for its turn, in seconds: then it is forgotten.
pub const ERRAND_TERM: i64 = 7 * DAY;

/// Errands that wait at most: further ones are forgotten.
pub const ERRANDS_MAX: usize = 10_000;

/// Facts by resource key. Where processes have volumes of their own, each has an index of its own as
/// far as bytes go (blobs, what they are worth, pins, sums, files that lie elsewhere), and all have
/// the same as far as names and lists go: a name is known while some volume has what it stands for.
/// Every call may be repeated, but for [`Index::touch`] and [`Index::add_traffic`], which count.
///
/// A blob is referenced while a list, learnt in full or in part, names its SHA-256, or was learnt from
/// it.
#[async_trait]
pub trait Index: Send + Sync {
    /// What is known of `key`, and what it is expected to be: both at the price of one look-up.
    async fn find(&self, key: &str) -> Result<Found, IndexError>;

    /// What is known of `key`; `None` if nothing is.
    async fn look_up(&self, key: &str) -> Result<Option<Entry>, IndexError>;

    /// Makes `entry` what is known of `key`.
    async fn record(&self, key: &str, entry: &Entry) -> Result<(), IndexError>;

    /// The mirror confirmed `blob` as the content of `key` at `checked_at` (seconds since 1970).
    /// Nothing happens if `key` is unknown or has other content by now.
    async fn confirm(&self, key: &str, blob: &Sha256, checked_at: i64) -> Result<(), IndexError>;

    /// What is known of some resource with the content `blob`. A blob that no resource names has
    /// neither marks nor a type, and no mirror ever vouched for it; `None` if it is not stored.
    async fn by_blob(&self, blob: &Sha256) -> Result<Option<Entry>, IndexError>;

    /// `blob` lies on the volume since `now`, its bytes having been hashed just then; under what
    /// name is not known. Nothing happens if it is known already.
    async fn add_blob(&self, blob: &Sha256, size: u64, now: i64) -> Result<(), IndexError>;

    /// Forgets blobs that are gone or about to be, and every resource whose content they are, unless
    /// another volume has it.
    async fn forget_blobs(&self, blobs: &[Sha256]) -> Result<(), IndexError>;

    /// What is known of a blob on the volume.
    async fn blob(&self, blob: &Sha256) -> Result<Option<Stored>, IndexError>;

    /// At most `limit` blobs with a greater digest than `after`, by digest; all, page by page.
    async fn blobs_after(
        &self,
        after: Option<Sha256>,
        limit: usize,
    ) -> Result<Vec<Stored>, IndexError>;

    /// The at most `limit` blobs whose bytes were hashed longest ago.
    async fn blobs_to_check(&self, limit: usize) -> Result<Vec<Stored>, IndexError>;

    /// The bytes of `blob` were hashed at `now`, and right; or it could not be read, and its turn comes
    /// again when the others have had theirs.
    async fn blob_checked(&self, blob: &Sha256, now: i64) -> Result<(), IndexError>;

    /// Blobs were used: they rank higher from now on.
    async fn touch(&self, uses: &[Use]) -> Result<(), IndexError>;

    /// The blobs of a class that go first, in the order in which they go; those after `after`. What
    /// is pinned is not among them.
    async fn victims(
        &self,
        class: Class,
        after: Option<&Stored>,
        limit: usize,
    ) -> Result<Vec<Stored>, IndexError>;

    /// Everything that ranked up to `floor` had to go: what is used from now on ranks above it.
    async fn raise_floor(&self, floor: f64) -> Result<(), IndexError>;

    /// Who names each of these blobs: some of its resources, and some of the lists that name it or
    /// were learnt from it.
    async fn names(&self, blobs: &[Sha256]) -> Result<Vec<Names>, IndexError>;

    /// Pins blobs, until a list that names them changes or [`Index::unpin`].
    async fn pin(&self, blobs: &[Sha256]) -> Result<(), IndexError>;

    /// Nothing is pinned any more.
    async fn unpin(&self) -> Result<(), IndexError>;

    /// What lies on the volume, in sum.
    async fn volume(&self) -> Result<Volume, IndexError>;

    /// The keys of at most `limit` resources that begin with `folder` (which ends with a slash), other
    /// than by-hash names.
    async fn names_below(&self, folder: &str, limit: usize) -> Result<Vec<String>, IndexError>;

    /// The mirror said that it does not have `key`.
    async fn note_absent(&self, key: &str) -> Result<(), IndexError>;

    /// Whether it said so.
    async fn is_absent(&self, key: &str) -> Result<bool, IndexError>;

    /// When what resources name was last used, in seconds since 1970: of at most `limit` resources
    /// below `folder` (which ends with a slash), by key, those after `after`.
    async fn uses_below(
        &self,
        folder: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, i64)>, IndexError>;

    /// What the lists that were learnt in full say of `key`; `None` if none names it, or if they
    /// disagree.
    async fn expectation(&self, key: &str) -> Result<Option<Expectation>, IndexError>;

    /// Bytes of `blob`, as some list says that names it under whatever key.
    async fn listed_size(&self, blob: &Sha256) -> Result<Option<u64>, IndexError>;

    /// The lists that name `key`.
    async fn lists_naming(&self, key: &str) -> Result<Vec<String>, IndexError>;

    /// The blob from which `list` was last learnt in full.
    async fn learnt(&self, list: &str) -> Result<Option<Sha256>, IndexError>;

    /// What `list` says of keys greater than `after`, by key and at most `limit`; all, page by page.
    async fn said_by(
        &self,
        list: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, Expectation)>, IndexError>;

    /// Changes what `list` says, at `now`. A change that is broken off half-way is made whole by the next
    /// learning: until [`Index::finish`] the list counts as not learnt. Where the lease `under` is lost,
    /// as for all that takes one, nothing is changed, and the source of the error is [`FencedOff`].
    async fn learn(
        &self,
        under: &Lease,
        list: &str,
        change: Change,
        now: i64,
    ) -> Result<(), IndexError>;

    /// All that `blob` says of `list` is learnt; at `now`, in seconds since 1970.
    async fn finish(
        &self,
        under: &Lease,
        list: &str,
        blob: &Sha256,
        now: i64,
    ) -> Result<(), IndexError>;

    /// How much was learnt, by whatever process, and into what.
    async fn knowledge(&self) -> Result<Knowledge, IndexError>;

    /// Somebody asked for `list` at `now`, and with `below` for a release file, so that all lists
    /// whose keys begin with that are in use.
    async fn asked(&self, list: &str, below: Option<&str>, now: i64) -> Result<(), IndexError>;

    /// Lists that nobody has asked for since `before`, at most `limit`.
    async fn disused_lists(&self, before: i64, limit: usize) -> Result<Vec<String>, IndexError>;

    /// Unlearns at most `limit` of what `list` says, at `now`; `true` when nothing is left of it.
    async fn unlearn(
        &self,
        under: &Lease,
        list: &str,
        limit: usize,
        now: i64,
    ) -> Result<bool, IndexError>;

    /// What is known of a file that lies elsewhere.
    async fn file(&self, path: &Path) -> Result<Option<HashedFile>, IndexError>;

    /// Files that lie elsewhere and had these bytes, at most `limit`.
    async fn files_with(
        &self,
        digest: &Sha256,
        limit: usize,
    ) -> Result<Vec<HashedFile>, IndexError>;

    /// At most `limit` files below `folder` that come after `after`, by path; all, page by page. Below
    /// the empty path lie all.
    async fn files_below(
        &self,
        folder: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> Result<Vec<HashedFile>, IndexError>;

    /// Makes this what is known of files that lie elsewhere.
    async fn record_files(&self, files: &[HashedFile]) -> Result<(), IndexError>;

    /// Forgets files that lie elsewhere, or did.
    async fn forget_files(&self, paths: &[PathBuf]) -> Result<(), IndexError>;

    /// As [`Index::record`], for what could not be recorded at its time: nothing of a name that was
    /// confirmed as late, or later, is undone, by whatever process.
    async fn record_late(&self, key: &str, entry: &Entry) -> Result<(), IndexError>;

    /// What is wrong with it at present, in words; `None`: nothing, as far as is known.
    fn trouble(&self) -> Option<&'static str> {
        None
    }

    /// Adds errands at the end, at `now`: each takes the place of that of another version of its package.
    /// Those that have waited for [`ERRAND_TERM`] make place.
    async fn add_errands(&self, errands: &[Errand], now: i64) -> Result<(), IndexError>;

    /// The errand whose turn it is, of those added since `since`.
    async fn next_errand(&self, since: i64) -> Result<Option<Errand>, IndexError>;

    /// Ends an errand; or puts it at the end, as one that failed once. Nothing happens where another
    /// version took its place.
    async fn end_errand(&self, errand: &Errand, again: bool) -> Result<(), IndexError>;

    /// Spends bytes on errands, or gives them back, at `now`; how many were spent since the day of errands
    /// began, one that is over beginning anew.
    async fn spend(&self, bytes: i64, now: i64) -> Result<u64, IndexError>;

    /// Takes the lease `name` for the process `owner`, for `term`, unless another process holds it.
    async fn take(&self, name: &str, owner: &str, term: Duration) -> Result<Taken, IndexError>;

    /// Holds leases for `term` from now on, and changes what is told of them. Those that are missing
    /// from the answer are lost.
    async fn renew(&self, renewals: &[Renewal], term: Duration)
    -> Result<Vec<Renewed>, IndexError>;

    /// Of these leases, those that somebody holds: they count as wanted.
    async fn holdings(&self, names: &[String]) -> Result<Vec<Holding>, IndexError>;

    /// The leases that somebody holds whose names begin with `prefix`; they do not count as wanted.
    async fn holdings_like(&self, prefix: &str) -> Result<Vec<Holding>, IndexError>;

    /// Gives leases up. Those that are lost are left to who has them.
    async fn release(&self, leases: &[Lease]) -> Result<(), IndexError>;

    /// As [`Index::record`], unless the lease is lost; `false` if it is.
    async fn record_under(
        &self,
        lease: &Lease,
        key: &str,
        entry: &Entry,
    ) -> Result<bool, IndexError>;

    /// Tells this process's volume from others; empty where there is one only.
    fn volume_identity(&self) -> &str;

    /// Forgets volumes that no process has used for [`LOST_AFTER`], and what lay on them only: at most
    /// `limit` blobs and files of them at a time. `true` when nothing is left to forget.
    async fn forget_lost_volumes(&self, limit: usize) -> Result<bool, IndexError>;

    /// Where `blob` lies: on our volume, and on those of fellows that can be reached.
    async fn holders(&self, blob: &Sha256) -> Result<Holders, IndexError>;

    /// Tells fellows that this process is there, for some seconds; what it should know of them. `None`:
    /// this index is for one volume, and there are none.
    async fn meet(&self, here: &Presence) -> Result<Option<Site>, IndexError>;

    /// Tells fellows that this process is going.
    async fn part(&self, here: &Presence) -> Result<(), IndexError>;

    /// At most `limit` of the blobs that other sites may be told of, with a greater digest than `after`,
    /// by digest; all, page by page. They lie on any volume of the site.
    async fn tellable_after(
        &self,
        after: Option<Sha256>,
        limit: usize,
    ) -> Result<Vec<Tellable>, IndexError>;

    /// What of that has changed since the mark of the last look, each change once; `None`: from when on
    /// to look, and what is too old to be told of is forgotten. Changes may be missed, after a long time
    /// and by a crash of the server: all are to be looked through now and then.
    async fn changes_since(&self, mark: Option<&str>) -> Result<Changes, IndexError>;

    /// The site's have-filter; `None`: it has none.
    async fn filter(&self) -> Result<Option<KeptFilter>, IndexError>;

    /// Its generation; 0: there is none.
    async fn filter_generation(&self) -> Result<u64, IndexError>;

    /// Keeps a new generation of it. What is no whole filter needs one that is kept.
    async fn keep_filter(&self, under: &Lease, new: NewFilter<'_>) -> Result<(), IndexError>;

    /// Counts what went through, for all volumes together; the sum since ever.
    async fn add_traffic(&self, more: &Traffic) -> Result<Traffic, IndexError>;

    /// How much is known.
    async fn totals(&self) -> Result<Totals, IndexError>;
}

/// The index in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Resources known.
    pub resources: u64,
    /// Blobs on the volume, whether a resource names them or not.
    pub blobs: u64,
    /// Bytes of those blobs.
    pub bytes: u64,
    /// What lists say of resources.
    pub expectations: u64,
}

/// How long a day of errands is, in seconds.
const DAY: i64 = 24 * 60 * 60;

/// What is below a folder stands between `FOLDER/` and `FOLDER0`, "0" being the character after the
/// slash.
const BOUNDS: [&str; 2] = ["/", "0"];

/// What all keys below `folder`, which may end with a slash, stand between.
fn bounds_of(folder: &str) -> (String, String) {
    let folder = folder.trim_end_matches('/');
    BOUNDS.map(|end| [folder, end].concat()).into()
}

/// An index that could not do what it was asked. To a request that is the same as not knowing.
#[derive(Debug, Error)]
#[error("could not {operation}")]
pub struct IndexError {
    /// Completes "could not …".
    pub operation: &'static str,
    /// What the backend said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Nobody was asked this time, for a reason that was told when it was noticed.
#[derive(Debug, Error)]
#[error("{0}")]
struct NotAsked(&'static str);

impl IndexError {
    /// Whether it only says again that the index is away, which was told already.
    #[must_use]
    pub fn is_old_news(&self) -> bool {
        self.source.is::<NotAsked>()
    }

    /// Whether another process has the lease under which it was to be done.
    #[must_use]
    pub fn is_fenced_off(&self) -> bool {
        self.source.is::<FencedOff>()
    }
}
