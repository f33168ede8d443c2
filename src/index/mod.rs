//! The index: what the site knows of resources. A cache of facts: losing it costs speed, never
//! correctness.

pub mod sqlite;

use std::error::Error;

use async_trait::async_trait;
use thiserror::Error;

use crate::content::digest::{Expected, Sha256};
use crate::content::validators::Validators;

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

/// A difference between what a list says and what it was known to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Said now.
    pub set: Vec<(String, Expectation)>,
    /// Not said any more.
    pub unset: Vec<String>,
}

/// Facts by resource key. Every call may be repeated.
#[async_trait]
pub trait Index: Send + Sync {
    /// What is known of `key`; `None` if nothing is.
    async fn look_up(&self, key: &str) -> Result<Option<Entry>, IndexError>;

    /// Makes `entry` what is known of `key`.
    async fn record(&self, key: &str, entry: &Entry) -> Result<(), IndexError>;

    /// The mirror confirmed `blob` as the content of `key` at `checked_at` (seconds since 1970).
    /// Nothing happens if `key` is unknown or has other content by now.
    async fn confirm(&self, key: &str, blob: &Sha256, checked_at: i64) -> Result<(), IndexError>;

    /// Forgets every resource whose content is `blob`, which turned out to be missing.
    async fn forget_blob(&self, blob: &Sha256) -> Result<(), IndexError>;

    /// What is known of some resource with the content `blob`; `None` if no name of it is known.
    async fn by_blob(&self, blob: &Sha256) -> Result<Option<Entry>, IndexError>;

    /// The keys of at most `limit` resources that begin with `folder` (which ends with a slash), other
    /// than by-hash names.
    async fn names_below(&self, folder: &str, limit: usize) -> Result<Vec<String>, IndexError>;

    /// What the lists that were learnt in full say of `key`; `None` if none names it, or if they
    /// disagree.
    async fn expectation(&self, key: &str) -> Result<Option<Expectation>, IndexError>;

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

    /// Changes what `list` says. A change that is broken off half-way is made whole by the next
    /// learning: until [`Index::finish`] the list counts as not learnt.
    async fn learn(&self, list: &str, change: Change) -> Result<(), IndexError>;

    /// All that `blob` says of `list` is learnt; at `now`, in seconds since 1970.
    async fn finish(&self, list: &str, blob: &Sha256, now: i64) -> Result<(), IndexError>;

    /// How much is known.
    async fn totals(&self) -> Result<Totals, IndexError>;
}

/// The index in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Resources known.
    pub resources: u64,
    /// Distinct blobs they name.
    pub blobs: u64,
    /// Bytes of those blobs.
    pub bytes: u64,
    /// What lists say of resources.
    pub expectations: u64,
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
