//! What can go wrong with a mirror, and what a caller may make of it.

use std::error::Error;
use std::fmt;
use std::io;

use thiserror::Error;

use crate::trust;

/// A question that got no answer, or an answer that broke off.
#[derive(Clone, Debug, Error)]
#[error("{host}: {reason}")]
pub struct MirrorError {
    /// What a caller may make of it.
    pub kind: MirrorErrorKind,
    /// Who was asked.
    pub host: String,
    /// In a few words, fit for a user.
    pub reason: String,
}

/// What a caller may make of a [`MirrorError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorErrorKind {
    /// The settings do not let us ask this host.
    Forbidden,
    /// No connection.
    Unreachable,
    /// Silent for too long.
    Silent,
    /// Redirected in a circle, or to what may not be followed.
    Misdirected,
    /// Nobody here knows whether it is who it says: there are no certificate authorities.
    Unchecked,
    /// Answered with what makes no sense, or broke off.
    Broken,
    /// Not asked: it has been unreachable for some time, or nobody is to be asked.
    Away,
}

impl MirrorErrorKind {
    pub(super) const ALL: [Self; 7] = [
        Self::Forbidden,
        Self::Unreachable,
        Self::Silent,
        Self::Misdirected,
        Self::Unchecked,
        Self::Broken,
        Self::Away,
    ];

    /// The word for metric labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Forbidden => "forbidden",
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::Misdirected => "misdirected",
            Self::Unchecked => "unchecked",
            Self::Broken => "broken",
            Self::Away => "away",
        }
    }
}

/// A name of which every address is banned.
#[derive(Debug, Error)]
#[error("only special-purpose addresses, see mirror.allow_private")]
pub(super) struct SpecialAddress;

impl MirrorError {
    pub(super) fn new(kind: MirrorErrorKind, host: &str, reason: impl fmt::Display) -> Self {
        Self { kind, host: host.to_owned(), reason: reason.to_string() }
    }

    /// The mirror said nothing in time.
    #[must_use]
    pub fn silent(host: &str) -> Self {
        Self::new(MirrorErrorKind::Silent, host, "no answer in time")
    }

    /// It happened where the mirror redirected to: which says little of the mirror.
    pub(super) fn elsewhere(self) -> Self {
        let kind = if self.may_pass() { MirrorErrorKind::Broken } else { self.kind };
        Self { kind, ..self }
    }

    pub(super) fn away(host: &str) -> Self {
        Self::new(MirrorErrorKind::Away, host, "away, and what was asked for is not stored")
    }

    pub(super) fn offline(host: &str) -> Self {
        let reason = "not asked (mirror.offline), and what was asked for is not stored";
        Self::new(MirrorErrorKind::Away, host, reason)
    }

    pub(super) fn not_listed(host: &str) -> Self {
        Self::new(MirrorErrorKind::Forbidden, host, "not in mirror.allow")
    }

    pub(super) fn special_address(host: &str) -> Self {
        Self::new(MirrorErrorKind::Forbidden, host, SpecialAddress)
    }

    /// Whether asking again may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self.kind,
            MirrorErrorKind::Unreachable | MirrorErrorKind::Silent | MirrorErrorKind::Broken
        )
    }

    pub(super) fn from_client(host: &str, error: reqwest::Error) -> Self {
        // The URL may carry what does not belong into logs.
        let error = error.without_url();
        if chain(&error).any(<dyn Error>::is::<SpecialAddress>) {
            return Self::special_address(host);
        }
        if let Some(reason) = chain(&error).find_map(trust::nobody_to_ask) {
            return Self::new(MirrorErrorKind::Unchecked, host, reason);
        }
        let kind = if error.is_connect() {
            MirrorErrorKind::Unreachable
        } else if error.is_timeout() {
            MirrorErrorKind::Silent
        } else {
            MirrorErrorKind::Broken
        };
        let system = chain(&error).find_map(|cause| cause.downcast_ref::<io::Error>());
        let deepest = chain(&error).last().map(ToString::to_string);
        let reason = system.map(ToString::to_string).or(deepest).unwrap_or_default();
        Self::new(kind, host, reason)
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}
