//! What others get of us: fellows all that lies here, other sites what is public, of all volumes of ours.
//! No mirror and no other site is asked for them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::content::digest::Sha256;
use crate::content::swarm_key::SwarmKey;
use crate::engine::fellows::Offer;
use crate::engine::flight::follower::Follower;
use crate::engine::memory::{Known, now_seconds};
use crate::engine::outcome::{Content, Outcome, Served};
use crate::engine::{Engine, without_index};
use crate::index::{IndexError, budget};
use crate::swarm::token::Secret;

/// Blobs of which it is remembered whether a list names them: more than sites ask for between two updates
/// of a suite.
const REMEMBERED_MAX: usize = 16_384;
/// Look-ups for other sites at a time, so that their questions do not crowd out our clients'.
const LOOK_UPS_MAX: usize = 8;
/// Of these, for one peer, so that no peer has them all.
const LOOK_UPS_A_PEER: usize = 2;
/// For how long one of them waits for its turn: an apt at the peer has ten files looked up at once.
const LOOK_UP_PATIENCE: Duration = Duration::from_millis(300);

/// How others are told from strangers.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The swarm whose sites may have what is public; `None`: there are only fellows.
    pub swarm_key: Option<SwarmKey>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A replica of this site.
    Fellow,
    /// Another site of the swarm.
    Site,
    /// Nobody we know.
    Stranger,
}

/// What another site gets.
pub enum Gift {
    /// A blob that is stored, though it may still have to prove right.
    Stored(Arc<Known>),
    /// One that is coming from a mirror.
    Arriving(Box<Follower>),
    /// One that only fellows have.
    Elsewhere(Box<Offer>),
    /// There is none, or it is not public.
    Nothing,
    /// That can not be told at the moment.
    Busy,
}

/// Who may have what.
pub(super) struct Gate {
    swarm: Option<Swarm>,
    /// Whether lists name a blob, and the state of knowledge that says so.
    named: Cache<Sha256, (bool, u64)>,
    look_ups: Semaphore,
    /// Of peers that have turns, or wait for one.
    by_peer: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// The right to ask the index for a peer.
struct Turn<'a> {
    _look_up: SemaphorePermit<'a>,
    _lane: Lane<'a>,
}

/// A peer's place among those that have turns.
struct Lane<'a> {
    gate: &'a Gate,
    peer: IpAddr,
    turn: Option<OwnedSemaphorePermit>,
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let mut by_peer = self.gate.by_peer();
        drop(self.turn.take());
        // Who waits holds on to it.
        if by_peer.get(&self.peer).is_some_and(|turns| Arc::strong_count(turns) == 1) {
            by_peer.remove(&self.peer);
        }
    }
}

enum Swarm {
    /// Everybody is of it.
    Open,
    Keyed(Secret),
}

impl Gate {
    pub(super) fn new(config: &Config) -> Self {
        let swarm = config.swarm_key.as_ref().map(|key| {
            if *key == SwarmKey::open() { Swarm::Open } else { Swarm::Keyed(Secret::of_swarm(key)) }
        });
        let (named, look_ups) = (Cache::new(REMEMBERED_MAX), Semaphore::new(LOOK_UPS_MAX));
        Self { swarm, named, look_ups, by_peer: Mutex::default() }
    }

    /// Waits until it is the turn of `peer`; `None`: that is not soon.
    async fn turn(&self, peer: IpAddr) -> Option<Turn<'_>> {
        timeout(LOOK_UP_PATIENCE, self.next_turn(peer)).await.ok()?
    }

    async fn next_turn(&self, peer: IpAddr) -> Option<Turn<'_>> {
        let mut lane = Lane { gate: self, peer, turn: None };
        let new = || Arc::new(Semaphore::new(LOOK_UPS_A_PEER));
        let turns = Arc::clone(self.by_peer().entry(peer).or_insert_with(new));
        lane.turn = Some(turns.acquire_owned().await.ok()?);
        let look_up = self.look_ups.acquire().await.ok()?;
        Some(Turn { _look_up: look_up, _lane: lane })
    }

    fn by_peer(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.by_peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether lists name a blob, as far as that is remembered.
    fn remembers(&self, blob: &Sha256, knowledge: u64) -> Option<bool> {
        self.named.get(blob).filter(|(_, at)| *at == knowledge).map(|(is_named, _)| is_named)
    }

    /// Whether who asks for `what` is of the swarm.
    fn admits(&self, authorization: Option<&str>, what: &Sha256) -> bool {
        match &self.swarm {
            None => false,
            Some(Swarm::Open) => true,
            Some(Swarm::Keyed(secret)) => {
                let now = u64::try_from(now_seconds()).unwrap_or_default();
                authorization.is_some_and(|token| secret.admits(token, what, now))
            }
        }
    }
}

impl Engine {
    /// Who asks for what has this digest, as far as the request's `Authorization` proves it.
    #[must_use]
    pub fn asker(&self, authorization: Option<&str>, what: &Sha256) -> Asker {
        if authorization.is_some_and(|token| self.fellows.admit(token, what)) {
            Asker::Fellow
        } else if self.gate.admits(authorization, what) {
            Asker::Site
        } else {
            Asker::Stranger
        }
    }

    /// What is being fetched under a key with this digest, for a fellow with another volume; `None` if
    /// nothing has come of it yet.
    #[must_use]
    pub fn share(&self, flight: &Sha256) -> Option<Served> {
        let interest = self.flights.of_digest(flight)?;
        let flow = interest.flight().flow().filter(|_| !interest.flight().is_cut())?;
        let follower = Follower::new(flow, interest, Arc::clone(&self.mirror));
        let served = Served::new(Content::Flight(Box::new(follower)), Outcome::Collapsed);
        Some(Served { is_joined: true, ..served })
    }

    /// A blob of this volume, for a fellow; its bytes have proven right. `None` if there is none.
    pub async fn lend(self: &Arc<Self>, blob: &Sha256) -> Option<Arc<Known>> {
        let key = name_of(blob);
        let held = self.held(&key).await;
        let known = if let Some(known) = held {
            known
        } else if let Some(entry) = self.inspector.on_volume(blob).await {
            self.loaded(&key, Some(entry)).await?
        } else {
            // They were told that it is here.
            self.forget(blob);
            return None;
        };
        // What is small was hashed when it was read.
        let pending = known.small.is_none().then(|| known.proof.pending(&known.blob));
        match pending.flatten() {
            Some(proven) => proven.await.then_some(known),
            None => Some(known),
        }
    }

    /// What the site of `peer` gets when it asks for `blob`. What is not here costs one look-up at most,
    /// and no more than a few are made at a time.
    pub async fn give(self: &Arc<Self>, blob: &Sha256, peer: IpAddr) -> Gift {
        if let Some(gift) = self.give_at_hand(blob).await {
            return gift;
        }
        let Some(_turn) = self.gate.turn(peer).await else { return Gift::Busy };
        budget::waited_for(self.give_in_time(blob)).await.unwrap_or_else(|error| {
            without_index::<()>(&error);
            Gift::Busy
        })
    }

    /// What can be told without the index.
    async fn give_at_hand(self: &Arc<Self>, blob: &Sha256) -> Option<Gift> {
        let knowledge = self.knowledge.load(Ordering::Acquire);
        if !self.gate.remembers(blob, knowledge)? {
            return Some(Gift::Nothing);
        }
        if let Some(arriving) = self.arriving(blob) {
            return Some(arriving);
        }
        self.held(&name_of(blob)).await.map(Gift::Stored)
    }

    async fn give_in_time(self: &Arc<Self>, blob: &Sha256) -> Result<Gift, IndexError> {
        if let Some(arriving) = self.arriving(blob) {
            let is_named = self.is_named(blob, true).await?;
            return Ok(if is_named { arriving } else { Gift::Nothing });
        }
        if self.is_named(blob, false).await? {
            let key = name_of(blob);
            let known = match self.held(&key).await {
                Some(known) => Some(known),
                None => self.loaded(&key, self.index.by_blob(blob).await?).await,
            };
            if let Some(known) = known {
                return Ok(Gift::Stored(known));
            }
        }
        let offer = self.public_offer(blob).await?;
        Ok(offer.map_or(Gift::Nothing, |offer| Gift::Elsewhere(Box::new(offer))))
    }

    /// What a mirror sends us now. That other sites follow it keeps no flight going: we fetch for our own
    /// clients.
    fn arriving(&self, blob: &Sha256) -> Option<Gift> {
        let (flight, flow) = self.flights.bringing(blob)?;
        let follower = Follower::aside(flow, &flight, Arc::clone(&self.mirror));
        Some(Gift::Arriving(Box::new(follower)))
    }

    /// Whether a list names `blob`: only what archives publish is given away. One that is not stored
    /// counts only where it is on its way.
    async fn is_named(&self, blob: &Sha256, is_on_its_way: bool) -> Result<bool, IndexError> {
        let knowledge = self.knowledge.load(Ordering::Acquire);
        if let Some(is_named) = self.gate.remembers(blob, knowledge) {
            return Ok(is_named);
        }
        let is_named = if is_on_its_way {
            let names = self.index.names(&[*blob]).await?;
            names.first().is_some_and(|names| !names.lists.is_empty())
        } else {
            // Not stored now, but maybe in a moment: nothing to remember.
            let Some(stored) = self.index.blob(blob).await? else { return Ok(false) };
            stored.unreferenced_since.is_none()
        };
        self.gate.named.insert(*blob, (is_named, knowledge));
        Ok(is_named)
    }
}

/// Under which name memory holds it.
fn name_of(blob: &Sha256) -> String {
    format!("sha256:{blob}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_peer_has_all_turns() {
        let gate = Gate::new(&Config::default());
        let [greedy, modest] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let first = gate.turn(greedy).await.unwrap();
        let second = gate.turn(greedy).await.unwrap();
        assert!(gate.turn(greedy).await.is_none());
        let other = gate.turn(modest).await.unwrap();
        let waiting = gate.turn(greedy);
        let (third, ()) = tokio::join!(waiting, async { drop(first) });
        drop((second, third.unwrap(), other));
        assert!(gate.by_peer().is_empty());
    }
}
