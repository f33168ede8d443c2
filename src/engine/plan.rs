//! What to do with a request, from what is known. Pure: all the branching is here, all the I/O in
//! the arms.

use crate::archive::kind::Kind;

/// How fresh the client wants it (RFC 9111 §5.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// As the cache sees fit.
    #[default]
    Any,
    /// `max-age=0`, as apt sends with every metadata file: confirmed lately is fresh enough.
    Recent,
    /// `no-cache`: confirmed for this very request.
    Now,
}

/// All that the decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// What is asked for.
    pub kind: Kind,
    /// How fresh it must be.
    pub freshness: Freshness,
    /// Only its head.
    pub head_only: bool,
    /// Whether it may be shared with others: no credentials, no query.
    pub shareable: bool,
    /// Whether a new blob can and may be stored.
    pub storable: bool,
    /// What is known of it; `None` if it is not stored.
    pub known: Option<Standing>,
}

/// How well a stored resource stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Confirmed by the mirror within the recheck window.
    Confirmed,
    /// The mirror failed to confirm it a moment ago.
    Unconfirmed,
    /// Neither.
    Old,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Serve what is stored.
    Serve,
    /// Serve what is stored and say that the mirror could not confirm it.
    ServeStale,
    /// Ask the mirror whether what is stored is still right.
    Revalidate,
    /// Fetch, share and store it.
    Fetch,
    /// Hand the question to the mirror and the answer to the client.
    Relay,
}

impl Plan {
    /// The word for traces.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::ServeStale => "serve_stale",
            Self::Revalidate => "revalidate",
            Self::Fetch => "fetch",
            Self::Relay => "relay",
        }
    }
}

/// Decides.
#[must_use]
pub fn plan(situation: &Situation) -> Plan {
    if !situation.shareable || !situation.kind.is_stored() {
        return Plan::Relay;
    }
    let Some(standing) = situation.known else {
        let fetch = situation.storable && !situation.head_only;
        return if fetch { Plan::Fetch } else { Plan::Relay };
    };
    match (situation.kind, situation.freshness, standing) {
        // Named by its content: it can not be out of date.
        (Kind::ByHash(_), _, _)
        | (Kind::Package | Kind::Patch, Freshness::Any | Freshness::Recent, _)
        | (_, Freshness::Any | Freshness::Recent, Standing::Confirmed) => Plan::Serve,
        (_, Freshness::Now, _) | (_, _, Standing::Old) => Plan::Revalidate,
        (_, _, Standing::Unconfirmed) => Plan::ServeStale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 7] = [
        Kind::Release,
        Kind::Index,
        Kind::ByHash(None),
        Kind::Package,
        Kind::Patch,
        Kind::Installer,
        Kind::Other,
    ];

    fn situation(kind: Kind) -> Situation {
        Situation {
            kind,
            freshness: Freshness::Any,
            head_only: false,
            shareable: true,
            storable: true,
            known: None,
        }
    }

    #[test]
    fn what_is_not_known_is_fetched_or_relayed() {
        for kind in KINDS {
            let fetch = if kind == Kind::Other { Plan::Relay } else { Plan::Fetch };
            assert_eq!(plan(&situation(kind)), fetch, "{kind:?}");
            assert_eq!(plan(&Situation { head_only: true, ..situation(kind) }), Plan::Relay);
            assert_eq!(plan(&Situation { shareable: false, ..situation(kind) }), Plan::Relay);
            assert_eq!(plan(&Situation { storable: false, ..situation(kind) }), Plan::Relay);
        }
    }

    #[test]
    fn what_is_known_is_served_or_confirmed() {
        use Freshness::{Any, Now, Recent};
        use Plan::{Relay, Revalidate, Serve, ServeStale};
        use Standing::{Confirmed, Old, Unconfirmed};
        let package = Kind::Package;
        let table = [
            (Kind::Release, Any, Confirmed, Serve),
            (Kind::Release, Recent, Confirmed, Serve),
            (Kind::Release, Now, Confirmed, Revalidate),
            (Kind::Release, Recent, Old, Revalidate),
            (Kind::Release, Any, Old, Revalidate),
            (Kind::Release, Recent, Unconfirmed, ServeStale),
            (Kind::Release, Now, Unconfirmed, Revalidate),
            (Kind::Index, Recent, Old, Revalidate),
            (Kind::Index, Recent, Confirmed, Serve),
            (Kind::ByHash(None), Now, Old, Serve),
            (package, Any, Old, Serve),
            (package, Recent, Old, Serve),
            (package, Now, Old, Revalidate),
            (Kind::Patch, Recent, Old, Serve),
            (Kind::Patch, Now, Old, Revalidate),
            (Kind::Installer, Recent, Old, Revalidate),
            (Kind::Other, Any, Confirmed, Relay),
        ];
        for (kind, freshness, standing, planned) in table {
            for storable in [true, false] {
                let known = Some(standing);
                let situation = Situation { freshness, known, storable, ..situation(kind) };
                assert_eq!(plan(&situation), planned, "{situation:?}");
            }
        }
    }

    #[test]
    fn credentials_never_meet_what_is_stored() {
        for kind in KINDS {
            let known = Some(Standing::Confirmed);
            let private = Situation { shareable: false, known, ..situation(kind) };
            assert_eq!(plan(&private), Plan::Relay);
        }
    }
}
