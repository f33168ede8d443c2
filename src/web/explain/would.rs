//! What would be done for a client who asks now, in a sentence. Pure.

use crate::engine::explain::{Explanation, Place, Private};
use crate::engine::plan::Plan;
use crate::mirror::AccountState;

pub(super) fn of(explained: &Explanation) -> String {
    let mirror = match (&explained.private, explained.plan) {
        (None, Plan::Serve) => {
            return "It would be served from here, without asking anybody.".to_owned();
        }
        (None, Plan::ServeStale) => {
            let why = "the mirror failed to confirm it a moment ago";
            return format!("It would be served from here as it is: {why}.");
        }
        _ => mirror(explained),
    };
    let stored = "what is stored would be served, unconfirmed";
    match (explained.private, explained.plan, mirror) {
        (_, Plan::Revalidate, Err(why)) => format!("Since {why}, {stored}."),
        (_, Plan::Revalidate, Ok(origin)) => format!(
            "{origin} would be asked whether it is still right; if it says nothing within some seconds, {stored}."
        ),
        (None, Plan::Fetch, mirror) => fetched(explained, mirror),
        (private, _, Ok(origin)) => {
            format!(
                "{origin} would be asked, and its answer handed on: {}.",
                reason(explained, private)
            )
        }
        (private, _, Err(why)) => format!(
            "There would be no answer but an error, since {why}; it would come from the mirror alone: {}.",
            reason(explained, private)
        ),
    }
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

fn fetched(explained: &Explanation, mirror: Result<String, String>) -> String {
    if explained.running.is_some() {
        return "The client would join the download that is under way.".to_owned();
    }
    let replicas = explained.stored.as_ref().filter(|stored| stored.is_right);
    let has_replicas = replicas.is_some_and(|stored| matches!(stored.place, Place::Replicas(_)));
    let check = if explained.expectation.is_some() {
        ", and checked against what the list says"
    } else {
        ""
    };
    let other = match &explained.stored {
        Some(stored) if !stored.is_right => "What is stored is another file than it must be. ",
        Some(stored) if stored.place == Place::Nowhere => "What was stored is gone. ",
        _ => "",
    };
    match (has_replicas, explained.claims.len(), mirror) {
        (true, ..) => "It would be taken over from another replica, and stored here.".to_owned(),
        (false, 0, Ok(origin)) => {
            format!("{other}It would be fetched from {origin}, stored{check}.")
        }
        (false, 0, Err(why)) => {
            format!("{other}There would be no answer but an error, since {why}.")
        }
        (false, _, Ok(origin)) => format!(
            "{other}It would be fetched from the sites that have it and, what they do not bring, from \
             {origin}, stored{check}."
        ),
        (false, _, Err(why)) => {
            format!("{other}It would be fetched from the sites that have it, stored{check}; {why}.")
        }
    }
}

/// Who would be asked; else why nobody.
fn mirror(explained: &Explanation) -> Result<String, String> {
    if explained.is_offline {
        return Err("no mirror is asked (mirror.offline)".to_owned());
    }
    let mirrors = &explained.mirrors;
    if let Some(why) = mirrors.iter().find_map(|mirror| mirror.forbidden.as_ref())
        && mirrors.iter().all(|mirror| mirror.forbidden.is_some())
    {
        return Err(format!("the mirror may not be asked ({why})"));
    }
    let asked = mirrors.iter().find(|mirror| mirror.forbidden.is_none());
    match asked {
        Some(mirror) if mirror.state != AccountState::Away => Ok(mirror.origin.clone()),
        Some(mirror) => Err(format!("{} is away", mirror.origin)),
        None => Err("there is nobody to ask".to_owned()),
    }
}
