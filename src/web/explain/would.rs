//! What would be done for a client who asks now, in a sentence or two. Pure.

use crate::archive::kind::Kind;
use crate::engine::explain::{Explanation, Place, Private, Suite};
use crate::engine::plan::Plan;
use crate::mirror::AccountState;
use crate::web::status::words;

/// Whom the question would go to.
enum Way {
    /// This mirror.
    Asked(String),
    /// This one, which is away: it is tried for a moment only.
    Tried(String),
    /// Nobody: for the time being, as when all are away...
    Nobody(&'static str),
    /// ...or because nobody may be asked, whatever is stored.
    Forbidden(String),
}

impl Way {
    fn of(explained: &Explanation) -> Self {
        let mirrors = &explained.mirrors;
        let asked = mirrors.iter().find(|mirror| mirror.forbidden.is_none());
        match (asked, mirrors.iter().find_map(|mirror| mirror.forbidden.as_ref())) {
            (None, Some(why)) => Self::Forbidden(format!("the mirror may not be asked ({why})")),
            (None, None) => Self::Forbidden("there is nobody to ask".to_owned()),
            _ if explained.is_offline => Self::Nobody("no mirror is asked (mirror.offline)"),
            (Some(mirror), _) if mirror.state == AccountState::Away => {
                Self::Tried(mirror.origin.clone())
            }
            (Some(mirror), _) => Self::Asked(mirror.origin.clone()),
        }
    }

    /// Why there is no answer from it.
    fn why(&self) -> String {
        match self {
            Self::Asked(origin) => format!("{origin} does not answer"),
            Self::Tried(origin) => format!("{origin} is away"),
            Self::Nobody(why) => (*why).to_owned(),
            Self::Forbidden(why) => why.clone(),
        }
    }
}

pub(super) fn of(explained: &Explanation) -> String {
    let would = if explained.suite.has_expired { expired(explained) } else { planned(explained) };
    let would = match (explained.is_taken_over, explained.plan) {
        (false, _) | (true, Plan::Fetch | Plan::Relay) => would,
        (true, _) => format!("It would be taken over from another replica first. {would}"),
    };
    let would = match &explained.suite.refused {
        Some((reason, ago)) => {
            let ago = words::ago(ago.as_secs());
            format!("{would} What its mirror had {ago} was not admitted: it {reason}.")
        }
        None => would,
    };
    if explained.kind != Kind::Index || explained.private.is_some() {
        return would;
    }
    match &explained.as_listed {
        Some(listed) => format!(
            "{would} To clients that were given {} from here within the last hour, it means {}. {}",
            listed.release,
            listed.explanation.name,
            of(&listed.explanation)
        ),
        None => format!(
            "{would} To clients that were given a release file from here within the last hour, it means the \
             file that this one names."
        ),
    }
}

/// A release file that is stored is not served any more.
fn expired(explained: &Explanation) -> String {
    let expired = "what is stored has expired (Valid-Until)";
    match (explained.plan, Way::of(explained)) {
        (Plan::Revalidate, Way::Asked(origin)) => {
            format!(
                "{origin} would be asked for a newer one: {expired}, and without one there would be an error."
            )
        }
        (Plan::Revalidate, way) => {
            format!("There would be no answer but an error: {expired}, and {}.", way.why())
        }
        (Plan::ServeStale, _) => format!(
            "There would be no answer but an error: {expired}, and the mirror failed to give a newer one a \
             moment ago."
        ),
        _ => format!(
            "There would be no answer but an error: {expired}, and the mirror had no newer one when it was \
             asked last."
        ),
    }
}

fn planned(explained: &Explanation) -> String {
    let stored = "what is stored would be served, unconfirmed";
    match (explained.plan, Way::of(explained)) {
        (Plan::Serve, _) => "It would be served from here, without asking anybody.".to_owned(),
        (Plan::ServeStale, _) => {
            let why = "the mirror failed to confirm it a moment ago";
            format!("It would be served from here as it is: {why}.")
        }
        (Plan::Revalidate, Way::Asked(origin)) => format!(
            "{origin} would be asked whether it is still right; if it says nothing within some seconds, {stored}."
        ),
        (Plan::Revalidate, Way::Forbidden(why)) => no_answer(&Suite::default(), &why),
        (Plan::Revalidate, way) => format!("Since {}, {stored}.", way.why()),
        (Plan::Fetch, way) => fetched(explained, &way),
        (Plan::Relay, way) => relayed(explained, &way),
    }
}

fn relayed(explained: &Explanation, way: &Way) -> String {
    let (before, reason) = (before(explained), reason(explained, explained.private));
    let from = match way {
        Way::Asked(origin) => {
            return format!("{before}{origin} would be asked, and its answer handed on: {reason}.");
        }
        Way::Tried(origin) => tried(origin, &explained.suite),
        Way::Nobody(why) => no_answer(&explained.suite, why),
        Way::Forbidden(why) => no_answer(&Suite::default(), why),
    };
    format!("{before}{from} It would come from the mirror alone: {reason}.")
}

/// Why nothing is stored.
fn reason(explained: &Explanation, private: Option<Private>) -> &'static str {
    match private {
        Some(Private::Credentials) => {
            "what is fetched with a name and a password is one client's own, and never stored"
        }
        Some(Private::Query) => "what has a query is named by more than its path, and never stored",
        None if explained.kind.is_stored() => "the volume takes nothing now",
        None => "files of this kind are not stored",
    }
}

fn fetched(explained: &Explanation, way: &Way) -> String {
    if explained.running.is_some() {
        return "The client would join the download that is under way.".to_owned();
    }
    if explained.is_taken_over {
        return "It would be taken over from another replica, and stored here.".to_owned();
    }
    let check = match explained.expectation {
        Some(_) => ", and checked against what the list says",
        None => "",
    };
    let before = before(explained);
    match (explained.claims.len(), way) {
        (0, Way::Asked(origin)) => {
            format!("{before}It would be fetched from {origin}, stored{check}.")
        }
        (0, Way::Tried(origin)) => format!("{before}{}", tried(origin, &explained.suite)),
        (0, Way::Nobody(why)) => format!("{before}{}", no_answer(&explained.suite, why)),
        (0, Way::Forbidden(why)) => format!("{before}{}", no_answer(&Suite::default(), why)),
        (_, Way::Asked(origin)) => format!(
            "{before}It would be fetched from the sites that have it and, what they do not bring, from \
             {origin}, stored{check}."
        ),
        (_, way) => format!(
            "{before}It would be fetched from the sites that have it, stored{check}; {}.",
            way.why()
        ),
    }
}

/// What became of the copy that should be here.
fn before(explained: &Explanation) -> &'static str {
    match &explained.stored {
        Some(stored) if !stored.is_right => "What is stored is another file than it must be. ",
        Some(stored) if stored.place == Place::Nowhere => "What was stored is gone. ",
        Some(stored) if stored.place == Place::Unknown => {
            "The volume does not say whether it has it. "
        }
        None if explained.is_index_silent && explained.private.is_none() => {
            "The index does not say whether it is stored. "
        }
        _ => "",
    }
}

fn tried(origin: &str, suite: &Suite) -> String {
    let else_what = if suite.is_absent {
        "clients would be told that it is not there (404), as it said before"
    } else {
        "there would be no answer but an error"
    };
    format!("{origin} is away: it would be tried for a moment, and if it is not back, {else_what}.")
}

fn no_answer(suite: &Suite, why: &str) -> String {
    if suite.is_absent {
        return format!(
            "Clients would be told that it is not there (404), as its mirror said before: {why}."
        );
    }
    format!("There would be no answer but an error, since {why}.")
}
