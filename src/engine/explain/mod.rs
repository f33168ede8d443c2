//! What is known of a resource, and what would happen if somebody asked for it: for the puzzled. Looks at all
//! and touches nothing: nothing is fetched, nothing counts as used.

mod copy;
mod lists;
mod questions;
mod suite;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::archive::kind::Kind;
use crate::archive::target::Target;
use crate::content::digest::{Expected, Sha256};
use crate::engine::Engine;
use crate::engine::explain::questions::Questions;
use crate::engine::fellows::is_lasting;
use crate::engine::flight::ended::Ended;
use crate::engine::flight::running::Running;
use crate::engine::known::must_be;
use crate::engine::memory::now_seconds;
use crate::engine::plan::{Freshness, Plan, Situation, Standing, plan};
use crate::index::Expectation;
use crate::mirror::Prospect;
use crate::swarm::discovery::Holder;

/// For how long other sites are looked for: as long as a client would wait.
const LOOK_UP_BUDGET: Duration = Duration::from_millis(150);
/// For how long the index, and then shared folders, are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of a resource.
#[derive(Debug)]
pub struct Explanation {
    /// Its one name; its query is left out, which may be a secret.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// The archive that the operator says it belongs to.
    pub archive: Option<String>,
    /// Why it is nobody else's, if it is one client's.
    pub private: Option<Private>,
    /// What it must be.
    pub expectation: Option<Expectation>,
    /// The lists that name it.
    pub lists: Vec<Naming>,
    /// What is stored of it.
    pub stored: Option<Stored>,
    /// The download that brings it now.
    pub running: Option<Running>,
    /// How the last one ended, if that is remembered.
    pub ended: Option<Ended>,
    /// Sites that say that they have it.
    pub claims: Vec<Claim>,
    /// Who would be asked, in that order.
    pub mirrors: Vec<Prospect>,
    /// Whether nobody is asked, by the operator's word.
    pub is_offline: bool,
    /// Whether the index did not tell in time: what it knows is missing here.
    pub is_index_silent: bool,
    /// What would be done for a client who asks now. That a release file has expired is found out after it.
    pub plan: Plan,
    /// Whether another replica's copy would be taken over first.
    pub is_taken_over: bool,
    /// How it stands as a release file; as nothing, if it is none.
    pub suite: Suite,
    /// What its name means to clients that were given a release file from here lately.
    pub as_listed: Option<AsListed>,
    /// The time of all this, in seconds since 1970.
    pub now: i64,
}

/// What keeps clients from a release file that is stored, or the mirror's from being stored.
#[derive(Clone, Debug, Default)]
pub struct Suite {
    /// Whether what is stored has passed its `Valid-Until`, and that counts here.
    pub has_expired: bool,
    /// Why what its mirror has is not admitted, and how long ago that was; the reason completes "HOST …".
    pub refused: Option<(String, Duration)>,
    /// Whether its mirror said that it does not have it.
    pub is_absent: bool,
}

/// What a release file makes of a name.
#[derive(Debug)]
pub struct AsListed {
    /// The release file.
    pub release: String,
    /// What it names there.
    pub explanation: Box<Explanation>,
}

/// What makes a request one client's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Private {
    /// A name and a password.
    Credentials,
    /// A query: the path alone does not name it.
    Query,
}

/// A list that names a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// Its URL.
    pub list: String,
    /// Whether all of it was learnt: else it does not count.
    pub is_learnt: bool,
    /// The release file that it was learnt under, which may be itself.
    pub release: Option<String>,
}

/// What is stored of a resource. Times are seconds since 1970.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The bytes.
    pub blob: Sha256,
    /// Their number.
    pub size: u64,
    /// Where they are.
    pub place: Place,
    /// Whether they are what the resource must be.
    pub is_right: bool,
    /// Whether memory has them, or holds the file open and can read it.
    pub is_at_hand: bool,
    /// When a mirror last gave or confirmed them; `None`: none ever did, under this name.
    pub confirmed_at: Option<i64>,
    /// How they stand, by that.
    pub standing: Standing,
    /// What is known of them on the volume.
    pub on_volume: Option<crate::index::Stored>,
}

/// Where bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file of the volume.
    Volume(PathBuf),
    /// In this file, which is served in place.
    Folders(PathBuf),
    /// At other replicas.
    Replicas(Vec<String>),
    /// The index says that they are stored, and they are not.
    Nowhere,
    /// The volume does not say.
    Unknown,
}

/// A site that says that it has something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who.
    pub holder: Holder,
    /// Whether its filter says so; else it was found just now.
    pub by_filter: bool,
}

impl Engine {
    /// What is known of what `target` names, as clients would mean it.
    pub async fn explain(self: &Arc<Self>, target: Target) -> Explanation {
        let private = match &target {
            Target { userinfo: Some(_), .. } => Some(Private::Credentials),
            Target { has_query: true, .. } => Some(Private::Query),
            _ => None,
        };
        let target = self.mirror.settle(target, private == Some(Private::Credentials));
        let questions = Questions::default();
        let mut explanation = self.explained(&questions, &target, private).await;
        if private.is_none() && explanation.kind == Kind::Index {
            explanation.as_listed = self.as_listed(&questions, &target).await;
        }
        explanation.is_index_silent = questions.were_in_vain();
        explanation
    }

    async fn as_listed(&self, questions: &Questions, target: &Target) -> Option<AsListed> {
        let (release, listed) = self.listed(questions, target).await?;
        let explanation = Box::new(self.explained(questions, &listed, None).await);
        Some(AsListed { release, explanation })
    }

    /// The same, of this very name.
    async fn explained(
        &self,
        questions: &Questions,
        target: &Target,
        private: Option<Private>,
    ) -> Explanation {
        let kind = Kind::of(&target.path);
        let is_kept = private.is_none() && kind.is_stored();
        let told = if is_kept { self.told(questions, &target.key).await } else { None };
        let told = told.unwrap_or_default();
        let expectation = if is_kept { must_be(kind, || told.expectation) } else { None };
        let stored = if is_kept {
            self.copy(questions, &target.key, told.entry, expectation).await
        } else {
            None
        };
        let is_taken_over = stored.as_ref().is_some_and(|stored| self.takes_over(kind, stored));
        let known = stored.as_ref().filter(|stored| {
            // What may change is on this volume before its mirror is asked.
            stored.is_served() || (is_taken_over && !is_lasting(kind))
        });
        let suite = match kind {
            Kind::Release if is_kept => self.suite(questions, &target.key, known).await,
            _ => Suite::default(),
        };
        Explanation {
            name: target.key.split('?').next().unwrap_or_default().to_owned(),
            kind,
            archive: self.mirror.archive_of(target),
            private,
            lists: told.lists,
            running: self.flights.running_for(&target.key).filter(|_| is_kept),
            ended: self.flights.ended_for(&target.key).filter(|_| is_kept),
            claims: if is_kept {
                self.claims(questions, kind, expectation).await
            } else {
                Vec::new()
            },
            mirrors: self.mirror.prospects(target, private.is_some()),
            is_offline: self.mirror.is_offline(),
            is_index_silent: questions.were_in_vain(),
            plan: plan(&Situation {
                kind,
                freshness: Freshness::Any,
                head_only: false,
                shareable: private.is_none(),
                storable: self.store.takes_blobs(),
                known: known.map(|stored| stored.standing),
            }),
            is_taken_over,
            suite,
            as_listed: None,
            expectation,
            stored,
            now: now_seconds(),
        }
    }

    fn takes_over(&self, kind: Kind, stored: &Stored) -> bool {
        let is_there = stored.is_right && matches!(stored.place, Place::Replicas(_));
        is_there && !stored.is_at_hand && self.would_borrow(kind, stored.size)
    }

    /// Who says that it has a blob, and is not this site: if they would be asked at all.
    async fn claims(
        &self,
        questions: &Questions,
        kind: Kind,
        expectation: Option<Expectation>,
    ) -> Vec<Claim> {
        let is_given = is_lasting(kind) && !self.swarm.is_alone();
        let (Some(blob), Some(expected)) =
            (named_by(expectation).filter(|_| is_given), expectation)
        else {
            return Vec::new();
        };
        let size = match expected.size {
            Some(size) => Some(size),
            None => questions.ask(self.index.listed_size(&blob)).await.flatten(),
        };
        // What no list names is nobody's to give.
        let Some(size) = size.filter(|size| *size > 0) else { return Vec::new() };
        let discovery = &self.swarm.discovery;
        let filters = discovery.claimed(&blob).into_iter();
        let mut claims: Vec<Claim> =
            filters.map(|holder| Claim { holder, by_filter: true }).collect();
        if claims.is_empty() && size < self.announced_from {
            return claims;
        }
        for holder in discovery.look_up(&blob, LOOK_UP_BUDGET).await {
            let is_known = claims.iter().any(|claim| claim.holder.node == holder.node);
            if !is_known && discovery.me().as_ref() != Some(&holder.node) {
                claims.push(Claim { holder, by_filter: false });
            }
        }
        claims
    }
}

impl Stored {
    /// Whether a client would get it from here.
    fn is_served(&self) -> bool {
        let is_there = matches!(self.place, Place::Volume(_) | Place::Folders(_));
        self.is_right && (self.is_at_hand || is_there)
    }
}

fn named_by(expectation: Option<Expectation>) -> Option<Sha256> {
    match expectation?.digest {
        Expected::Sha256(digest) => Some(digest),
        Expected::Sha1(_) | Expected::Sha512(_) => None,
    }
}
