//! What a request comes to: the answer's description and source, or the reason there is none.

use std::fmt;
use std::sync::Arc;

use http::StatusCode;

use crate::archive::kind::Kind;
use crate::content::digest::Sha256;
use crate::content::validators::Validators;
use crate::engine::flight::follower::Follower;
use crate::engine::memory::Known;
use crate::engine::relayed::Relayed;
use crate::index::Entry;
use crate::mirror::{self, MirrorError};

/// A representation's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes; `None` while a mirror has not said.
    pub size: Option<u64>,
    /// Its marks.
    pub validators: Validators,
    /// As the mirror said.
    pub content_type: Option<String>,
}

impl Meta {
    /// The description of a stored resource.
    #[must_use]
    pub fn of(entry: &Entry) -> Self {
        Self {
            size: Some(entry.size),
            validators: entry.validators.clone(),
            content_type: entry.content_type.clone(),
        }
    }
}

/// An answer.
pub struct Served {
    /// Where its bytes are.
    pub content: Content,
    /// What the cache did for it.
    pub outcome: Outcome,
    /// Whether no part of it may be given: see `taint.rs`.
    pub only_whole: bool,
    /// Whether its bytes were taken over from another replica for it.
    pub is_borrowed: bool,
    /// Whether it follows a flight that another request began.
    pub is_joined: bool,
    /// Why the mirror did not confirm it, where that was tried for it.
    pub doubt: Option<Box<Failure>>,
}

/// Whose bytes an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This volume's.
    Store,
    /// Another replica's of this site.
    Replica,
    /// Other sites'.
    Peer,
    /// A mirror's.
    Mirror,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Store, Self::Replica, Self::Peer, Self::Mirror];

    /// The word for metric labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Replica => "replica",
            Self::Peer => "peer",
            Self::Mirror => "mirror",
        }
    }
}

/// How an answer came by its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It has none of an archive: a refusal, a trouble, a page of ours.
    None,
    /// From memory.
    Memory,
    /// From a file of the volume.
    Store,
    /// From either, and the mirror could not confirm them.
    Stale,
    /// From a flight that another request began, whoever gives it.
    Flight,
    /// Another replica gave them.
    Replica,
    /// Other sites gave them.
    Peer,
    /// A mirror gave them.
    Mirror,
}

impl Source {
    /// All of them, each at its [`Self::number`].
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Memory,
        Self::Store,
        Self::Stale,
        Self::Flight,
        Self::Replica,
        Self::Peer,
        Self::Mirror,
    ];

    /// The word for logs and metric labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Memory => "memory",
            Self::Store => "store",
            Self::Stale => "stale",
            Self::Flight => "flight",
            Self::Replica => "replica",
            Self::Peer => "peer",
            Self::Mirror => "mirror",
        }
    }

    /// Its place in a table.
    #[must_use]
    pub const fn number(self) -> usize {
        self as usize
    }

    /// Whether nobody was asked for the bytes.
    #[must_use]
    pub fn is_stored(self) -> bool {
        matches!(self, Self::Memory | Self::Store | Self::Stale)
    }
}

impl Served {
    pub(super) fn new(content: Content, outcome: Outcome) -> Self {
        let is_borrowed = matches!(&content, Content::Flight(flight) if flight.is_borrowed());
        Self { content, outcome, only_whole: false, is_borrowed, is_joined: false, doubt: None }
    }

    /// What it is, where that is known before it is handed out.
    pub(super) fn digest(&self) -> Option<Sha256> {
        match &self.content {
            Content::Known(known) => Some(known.entry.blob),
            Content::Flight(follower) => follower.digest(),
            Content::Relay(_) => None,
        }
    }

    /// Whose bytes it has.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.outcome {
            _ if self.is_borrowed => Origin::Replica,
            _ if matches!(&self.content, Content::Flight(flight) if flight.is_gathered()) => {
                Origin::Peer
            }
            Outcome::Hit | Outcome::Stale | Outcome::Revalidated => Origin::Store,
            Outcome::Miss
            | Outcome::Collapsed
            | Outcome::Relayed
            | Outcome::Refused
            | Outcome::Error => Origin::Mirror,
        }
    }

    /// How it came by its bytes.
    #[must_use]
    pub fn source(&self) -> Source {
        match (self.origin(), &self.content) {
            _ if self.is_joined => Source::Flight,
            (Origin::Store, _) if self.outcome == Outcome::Stale => Source::Stale,
            (Origin::Store, Content::Known(known)) if known.small.is_some() => Source::Memory,
            (Origin::Store, _) => Source::Store,
            (Origin::Replica, _) => Source::Replica,
            (Origin::Peer, _) => Source::Peer,
            (Origin::Mirror, _) => Source::Mirror,
        }
    }
}

/// What a request came to, for who counts and logs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedAs {
    /// What was asked for.
    pub kind: Kind,
    /// How the answer came by its bytes.
    pub source: Source,
    /// What the cache did.
    pub outcome: Outcome,
}

impl ServedAs {
    /// That of an answer, or of none.
    #[must_use]
    pub fn of(kind: Kind, served: &Result<Served, Failure>) -> Self {
        let (source, outcome) = match served {
            Ok(served) => (served.source(), served.outcome),
            Err(failure) => {
                let is_mirrors = matches!(failure, Failure::Upstream { .. });
                let source = if is_mirrors { Source::Mirror } else { Source::None };
                (source, if failure.is_no() { Outcome::Refused } else { Outcome::Error })
            }
        };
        Self { kind, source, outcome }
    }

    /// What can come together. The counters of all of it are there from the start.
    pub(super) const PAIRS: [(Source, Outcome); 18] = [
        (Source::None, Outcome::Refused),
        (Source::None, Outcome::Error),
        (Source::Memory, Outcome::Hit),
        (Source::Memory, Outcome::Revalidated),
        (Source::Store, Outcome::Hit),
        (Source::Store, Outcome::Revalidated),
        (Source::Stale, Outcome::Stale),
        (Source::Flight, Outcome::Collapsed),
        (Source::Replica, Outcome::Hit),
        (Source::Replica, Outcome::Stale),
        (Source::Replica, Outcome::Revalidated),
        (Source::Replica, Outcome::Miss),
        (Source::Replica, Outcome::Collapsed),
        (Source::Peer, Outcome::Miss),
        (Source::Mirror, Outcome::Miss),
        (Source::Mirror, Outcome::Relayed),
        (Source::Mirror, Outcome::Refused),
        (Source::Mirror, Outcome::Error),
    ];
}

/// Where an answer's bytes are.
pub enum Content {
    /// Stored.
    Known(Arc<Known>),
    /// Arriving.
    Flight(Box<Follower>),
    /// The mirror's own answer, handed on.
    Relay(Box<Relayed>),
}

/// What the cache did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Served what was stored.
    Hit,
    /// Served what was stored, which the mirror could not confirm.
    Stale,
    /// Served what was stored, which the mirror confirmed.
    Revalidated,
    /// Fetched it.
    Miss,
    /// Joined a flight that was under way.
    Collapsed,
    /// Handed the mirror's answer on.
    Relayed,
    /// Said no: the mirror, or a rule of the operator's.
    Refused,
    /// Had no answer, or that of a mirror in trouble.
    Error,
}

impl Outcome {
    /// All of them, each at its [`Self::number`].
    pub const ALL: [Self; 8] = [
        Self::Hit,
        Self::Stale,
        Self::Revalidated,
        Self::Miss,
        Self::Collapsed,
        Self::Relayed,
        Self::Refused,
        Self::Error,
    ];

    /// Its place in a table.
    #[must_use]
    pub const fn number(self) -> usize {
        self as usize
    }

    /// The word for logs and metric labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Relayed => "relayed",
            Self::Refused => "refused",
            Self::Error => "error",
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The mirror answered, and it was no.
    Upstream {
        /// Its status.
        status: StatusCode,
        /// Its host, for the reason.
        host: String,
        /// Its `Retry-After`, as it was.
        retry_after: Option<http::HeaderValue>,
    },
    /// The mirror could not be asked, or broke off before its first byte.
    Mirror(MirrorError),
    /// The mirror's answer was not what was asked for.
    Unusable {
        /// Its host.
        host: String,
        /// What was wrong with it.
        reason: String,
    },
    /// A fault of ours.
    Internal(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream { status, host, .. } => write!(f, "{host} answered {status}"),
            Self::Mirror(error) if error.kind == mirror::MirrorErrorKind::Unreachable => {
                write!(f, "{} unreachable: {}", error.host, error.reason)
            }
            Self::Mirror(error) => error.fmt(f),
            Self::Unusable { host, reason } => write!(f, "{host} {reason}"),
            Self::Internal(reason) => f.write_str(reason),
        }
    }
}

impl Failure {
    pub(super) fn internal(reason: &'static str) -> Self {
        Self::Internal(reason)
    }

    /// The mirror's own no.
    pub(super) fn not_there(host: &str) -> Self {
        Self::Upstream { status: StatusCode::NOT_FOUND, host: host.to_owned(), retry_after: None }
    }

    /// Whether the mirror said that it does not have it.
    #[must_use]
    pub fn is_not_there(&self) -> bool {
        matches!(self, Self::Upstream { status, .. } if matches!(status.as_u16(), 404 | 410))
    }

    /// Whether it is a clear no: the mirror's, or that the host may not be asked.
    #[must_use]
    pub fn is_no(&self) -> bool {
        match self {
            Self::Upstream { status, .. } => status.is_client_error() && *status != 429,
            Self::Mirror(error) => error.kind == mirror::MirrorErrorKind::Forbidden,
            Self::Unusable { .. } | Self::Internal(_) => false,
        }
    }

    /// Whether it is the mirror that is in trouble, so that what is stored is better than nothing.
    /// A clear no is not trouble, and neither is a host that may not be asked.
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        match self {
            Self::Upstream { status, .. } => status.is_server_error() || *status == 429,
            Self::Mirror(error) => error.kind != mirror::MirrorErrorKind::Forbidden,
            Self::Unusable { .. } | Self::Internal(_) => true,
        }
    }
}
