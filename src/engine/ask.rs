//! What is asked of the engine, and by whom.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;

use crate::archive::kind::Kind;
use crate::archive::target::Target;
use crate::engine::outcome::Outcome;
use crate::engine::plan::Freshness;

/// Who may have what is fetched for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody.
    Shared,
    /// Nobody after it: `no-store`.
    NotStored,
    /// Nobody else: it carries credentials, or names the resource by more than its path.
    Private,
}

/// A request, as the engine sees it.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is asked for: its one name.
    pub target: Arc<Target>,
    /// The names under which mirrors are asked for it, until one is not refused: its own alone,
    /// unless the client's release file says more.
    pub sources: Vec<Arc<Target>>,
    /// Its kind.
    pub kind: Kind,
    /// How fresh it must be.
    pub freshness: Freshness,
    /// Only its head.
    pub head_only: bool,
    /// Who else may have what is fetched for it.
    pub sharing: Sharing,
    /// The client's conditions, range and credentials, for when its question is handed on.
    pub headers: HeaderMap,
    /// Who asks; `None`: we ourselves.
    pub client: Option<Client>,
    /// The most bytes a second that are taken of the mirror while nobody else wants them.
    pub pace: Option<u64>,
    /// Whether a flight was begun for it before its turn: then it is a miss, even if that flight
    /// has landed by now.
    pub begun_early: bool,
}

/// Whom an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Tells it from others at the same address, such as those behind a gateway.
    pub connection: u64,
    /// Tells it when it comes back over another connection.
    pub address: IpAddr,
}

impl Ask {
    /// What it comes to when it is stored by the time of its turn.
    pub(super) fn hit(&self) -> Outcome {
        if self.begun_early { Outcome::Miss } else { Outcome::Hit }
    }

    /// A question of our own, for what is at `url`; `None` if that is no URL.
    pub(super) fn ours(url: &str) -> Option<Self> {
        let target = Arc::new(Target::from_absolute(url).ok()?);
        Some(Self {
            kind: Kind::of(&target.path),
            sources: vec![Arc::clone(&target)],
            target,
            freshness: Freshness::Any,
            head_only: false,
            sharing: Sharing::Shared,
            headers: HeaderMap::new(),
            client: None,
            pace: None,
            begun_early: false,
        })
    }
}
