//! The index: what the site knows of resources. A cache of facts: losing it costs speed, never
//! correctness.

pub mod sqlite;

use std::error::Error;

use async_trait::async_trait;
use thiserror::Error;

use crate::content::digest::Sha256;
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
