//! Bytes that a fellow gives instead of a mirror.
//!
//! Fellows share the database, and so trust each other as far as a mirror is trusted: what they send is
//! handed on while it comes, but for its end, which is held back until the digest is right. What is
//! small is whole and right before anybody sees it. The fellow itself has hashed what it gives.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::content::digest::Sha256;
use crate::engine::fellows::{Loan, is_lasting};
use crate::engine::flight::By;
use crate::engine::flight::ask::Arrival;
use crate::engine::flight::transfer::Transfer;
use crate::engine::outcome::Meta;
use crate::{mirror, swarm};

/// What a flow is that began at a fellow.
#[derive(Clone, Debug)]
pub struct Borrowed {
    /// What its bytes must be.
    pub digest: Sha256,
    /// When a mirror last vouched for it; seconds since 1970.
    pub checked_at: i64,
}

/// A body, whoever gives it.
pub(in crate::engine) enum Incoming {
    Mirror(Box<mirror::Body>),
    Fellow(Box<swarm::fellows::Body>),
    /// There is no more of it.
    Ended,
}

/// Why a body broke off.
pub(in crate::engine) struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Incoming {
    /// The next bytes; `None` at the end.
    pub(in crate::engine) async fn chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        match self {
            Self::Mirror(body) => body.chunk().await.map_err(|error| Broken(error.to_string())),
            Self::Fellow(body) => body.chunk().await.map_err(|error| Broken(error.to_string())),
            Self::Ended => Ok(None),
        }
    }
}

impl Transfer {
    /// What a fellow gives, if one has it: to be tried before any mirror is asked.
    pub(in crate::engine) async fn borrow(&self) -> Option<Arrival> {
        if self.known.is_some() || !self.may_borrow || !is_lasting(self.kind) {
            return None;
        }
        let offer = self.engine.offer(&self.target.key, self.expectation).await?;
        let (origin, first, body) = match self.engine.borrow(&offer).await? {
            Loan::Whole(url, bytes) => (url, bytes, Incoming::Ended),
            Loan::Coming(mut body) => {
                let first = body.chunk().await.ok()??;
                (Arc::clone(body.url()), first, Incoming::Fellow(body))
            }
        };
        let entry = offer.entry;
        Some(Arrival {
            meta: Meta::of(&entry),
            source: Arc::clone(&self.target),
            origin,
            first,
            body,
            asked: None,
            provable: true,
            borrowed: Some(Borrowed { digest: entry.blob, checked_at: entry.checked_at }),
            by: By::Mirror,
            joined_at: None,
        })
    }
}
