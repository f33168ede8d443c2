//! Announcing and withdrawing, and taking others' records. A key's records go straight to the nodes
//! closest to it, many keys in a message; each node says how many it took.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use libp2p::PeerId;

use super::{Node, Sent};
use crate::content::swarm_key::DhtKey;
use crate::dht::announcer::Announcer;
use crate::dht::message::{Answer, Ask, KEYS_MAX, KNOWN_MAX};
use crate::dht::place::{COPIES, Map};
use crate::dht::{Announced, PROVISIONAL_TTL};

/// Keys announced at a time: 5,000 a second, if so many are due.
const PACE: usize = 2_500;
/// How often what is due is looked for: keys that come one by one travel together.
const EVERY: Duration = Duration::from_millis(500);
/// After how long an announcement that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Keys that are looked through in a tick for those that a newcomer should keep: 5,000 a second.
const SEARCHED: usize = 500;
/// Distances between keys and nodes that are measured for that in a tick: a few milliseconds' work.
const MEASURED: usize = 200_000;
/// Messages with records that are under way at a time.
const UNDERWAY_MAX: usize = 256;

/// What is announced, and to whom it may have to go anew.
pub(super) struct Announcing {
    announcer: Announcer,
    announced_at: Instant,
    /// Nodes that came and have not been seen to yet.
    joined: Newcomers,
    search: Option<Search>,
}

/// Nodes, and when they came.
type Newcomers = HashMap<PeerId, Instant>;

/// All keys are being looked through for these nodes.
struct Search {
    newcomers: Newcomers,
    /// The last key that was.
    last: Option<DhtKey>,
}

impl Announcing {
    pub(super) fn new(ttl: Duration, keys: BTreeSet<DhtKey>, now: Instant) -> Self {
        let mut announcer = Announcer::new(ttl);
        for key in keys {
            announcer.add(key, now);
        }
        Self { announcer, announced_at: now, joined: Newcomers::new(), search: None }
    }

    pub(super) fn len(&self) -> usize {
        self.announcer.len()
    }

    pub(super) fn lag(&self, now: Instant) -> Duration {
        self.announcer.lag(now)
    }

    /// Keys that have been due for so long.
    pub(super) fn due_for(&self, time: Duration, now: Instant) -> usize {
        self.announcer.due_for(time, now)
    }

    /// A node came, or came back: what it had may be lost.
    pub(super) fn joined(&mut self, peer: PeerId, now: Instant) {
        if let Some(search) = &mut self.search {
            search.newcomers.remove(&peer);
        }
        if self.announcer.len() > 0 && self.joined.len() < KNOWN_MAX {
            self.joined.insert(peer, now);
        }
    }
}

impl Node {
    pub(super) fn announce(&mut self, keys: Vec<DhtKey>) -> Announced {
        let (now, asked) = (Instant::now(), keys.len());
        let announcer = &mut self.announcing.announcer;
        let before: Vec<DhtKey> = keys.into_iter().filter(|key| announcer.add(*key, now)).collect();
        let new = before.len();
        self.note(&before, true);
        let full = self.announcing.len() >= crate::dht::announcer::KEYS_MAX;
        let rest = asked - new;
        let (known, refused) = if full { (0, rest) } else { (rest, 0) };
        Announced { new, known, refused, too_small: 0 }
    }

    /// Announces these keys, and withdraws all others.
    pub(super) fn announce_only(&mut self, keys: BTreeSet<DhtKey>) -> Announced {
        let all = self.announcing.announcer.after(None, usize::MAX).into_iter();
        let others: Vec<DhtKey> = all.filter(|key| !keys.contains(key)).collect();
        self.withdraw(&others);
        self.announce(keys.into_iter().collect())
    }

    pub(super) fn withdraw(&mut self, keys: &[DhtKey]) -> usize {
        let announcer = &mut self.announcing.announcer;
        let gone: Vec<DhtKey> = keys.iter().filter(|key| announcer.remove(key)).copied().collect();
        self.note(&gone, false);
        self.tell_gone(&gone);
        gone.len()
    }

    fn tell_gone(&mut self, gone: &[DhtKey]) {
        for (peer, keys) in self.spread(gone) {
            if peer == self.me {
                self.forget_records(peer, &keys);
                continue;
            }
            for keys in keys.chunks(KEYS_MAX) {
                self.send(peer, Ask::Withdraw { keys: keys.to_vec() }, Sent::Withdrawn);
            }
        }
    }

    /// Announces once, and for a short time, what is not announced anyway: it is being fetched. Nothing
    /// of that is kept here, so that it can neither be renewed nor survive a restart.
    pub(super) fn promise(&mut self, keys: Vec<DhtKey>) -> Announced {
        let asked = keys.len();
        let keys = self.not_announced(keys);
        let known = asked - keys.len();
        if self.sent.len() >= UNDERWAY_MAX {
            return Announced { known, refused: keys.len(), ..Announced::default() };
        }
        let seconds = u32::try_from(PROVISIONAL_TTL.as_secs()).unwrap_or(u32::MAX);
        for (peer, keys) in self.spread(&keys) {
            if peer == self.me {
                self.take_records(peer, PROVISIONAL_TTL, &keys);
                continue;
            }
            for keys in keys.chunks(KEYS_MAX) {
                self.send(peer, Ask::Announce { seconds, keys: keys.to_vec() }, Sent::Promised);
            }
        }
        Announced { new: keys.len(), known, ..Announced::default() }
    }

    /// It came to nothing.
    pub(super) fn take_back(&mut self, keys: Vec<DhtKey>) -> usize {
        let gone = self.not_announced(keys);
        self.tell_gone(&gone);
        gone.len()
    }

    fn not_announced(&self, mut keys: Vec<DhtKey>) -> Vec<DhtKey> {
        keys.retain(|key| !self.announcing.announcer.has(key));
        keys
    }

    /// Writes down what is announced, so that a restart resumes.
    fn note(&mut self, keys: &[DhtKey], announced: bool) {
        let Some(home) = &mut self.home else { return };
        let mut noted = home.note(keys, announced);
        if home.is_wasteful(self.announcing.len()) {
            let all = self.announcing.announcer.after(None, usize::MAX);
            noted = noted.and_then(|()| home.write_journal(&self.swarm_name, all.iter()));
        }
        if let Err(error) = noted {
            tracing::warn!(%error, "could not write down what is announced");
        }
    }

    /// Announces what is due, as far as the pace allows.
    pub(super) fn announce_due(&mut self, now: Instant) {
        self.search_for_newcomers(now);
        let underway = self.sent.len();
        let waits = now.duration_since(self.announcing.announced_at) < EVERY;
        // A node that knows nobody has nobody to tell: what is due stays so.
        if waits || self.directory.len() == 0 || underway >= UNDERWAY_MAX {
            return;
        }
        self.announcing.announced_at = now;
        let keys = self.announcing.announcer.take_due(PACE, now);
        for (peer, keys) in self.spread(&keys) {
            self.tell(peer, &keys);
        }
    }

    /// Who has not answered yet is shown our card first, as without it nobody takes a record; when it
    /// answers, it is a newcomer, and told then.
    fn tell(&mut self, peer: PeerId, keys: &[DhtKey]) {
        if peer == self.me {
            self.take_records(peer, self.config.announce_ttl, keys);
            return;
        }
        if !self.met.contains(&peer) {
            self.meet(peer);
            return;
        }
        let seconds = u32::try_from(self.config.announce_ttl.as_secs().max(1)).unwrap_or(u32::MAX);
        for keys in keys.chunks(KEYS_MAX) {
            let ask = Ask::Announce { seconds, keys: keys.to_vec() };
            self.send(peer, ask, Sent::Announced(keys.to_vec()));
        }
    }

    /// What was refused is offered again when its time has come, and no sooner: that node is full.
    pub(super) fn announce_done(&mut self, taken: u32, refused: u32) {
        self.metrics.announces.with_label_values(&["taken"]).inc_by(taken.into());
        self.metrics.announces.with_label_values(&["refused"]).inc_by(refused.into());
    }

    pub(super) fn announce_failed(&mut self, keys: &[DhtKey]) {
        let failed = u64::try_from(keys.len()).unwrap_or_default();
        self.metrics.announces.with_label_values(&["failed"]).inc_by(failed);
        let at = Instant::now() + RETRY;
        for key in keys {
            self.announcing.announcer.hasten(key, at);
        }
    }

    /// A newcomer is told at once what it is to keep: else that would be missed where look-ups end now.
    fn search_for_newcomers(&mut self, now: Instant) {
        if self.sent.len() >= UNDERWAY_MAX {
            return;
        }
        let count = (MEASURED / self.map().len()).clamp(1, SEARCHED);
        let Announcing { announcer, joined, search, .. } = &mut self.announcing;
        if search.is_none() && !joined.is_empty() {
            *search = Some(Search { newcomers: std::mem::take(joined), last: None });
        }
        let Some(Search { newcomers, last }) = search.take() else { return };
        let keys = announcer.after(last, count);
        let Some(last) = keys.last().copied() else { return };
        for (peer, mut keys) in self.spread(&keys) {
            let Some(since) = newcomers.get(&peer) else { continue };
            // All others it hears, or has heard, with everybody else.
            keys.retain(|key| self.announcing.announcer.was_announced_before(key, *since, now));
            if !keys.is_empty() {
                self.tell(peer, &keys);
            }
        }
        self.announcing.search = Some(Search { newcomers, last: Some(last) });
    }

    /// Which keys go to which node.
    fn spread(&mut self, keys: &[DhtKey]) -> HashMap<PeerId, Vec<DhtKey>> {
        let mut spread: HashMap<PeerId, Vec<DhtKey>> = HashMap::new();
        if keys.is_empty() {
            return spread;
        }
        let map = self.map();
        for key in keys {
            for peer in map.closest(key) {
                spread.entry(peer).or_default().push(*key);
            }
        }
        spread
    }

    /// The nodes that could keep records, this one among them.
    fn map(&mut self) -> &Map {
        let Self { map, directory, away, me, .. } = self;
        map.get_or_insert_with(|| {
            let there = directory
                .iter()
                .filter(|(peer, card)| !card.addresses.is_empty() && !away.contains_key(peer));
            Map::of(there.map(|(peer, _)| *peer).chain([*me]))
        })
    }

    /// Takes what a node announces, if it has shown its card.
    pub(super) fn take_records(&mut self, peer: PeerId, ttl: Duration, keys: &[DhtKey]) -> Answer {
        let card = self.directory.card(&peer);
        let known = peer == self.me || card.is_some();
        let addresses = card.map(|card| self.reachable(&card.addresses)).unwrap_or_default();
        let now = Instant::now();
        let admitted = match known {
            true if peer == self.me => keys.len(),
            true => self.rates.take(peer, keys.len(), now),
            false => 0,
        };
        let (keys, held_up) = keys.split_at(admitted);
        let records = self.net.behaviour_mut().kad.store_mut();
        let taken = keys.iter().filter(|key| records.add(**key, peer, ttl, now)).count();
        records.set_addresses(&peer, &addresses);
        let refused = keys.len() - taken;
        if peer != self.me {
            let count = |result: &str, keys: usize| {
                let keys = u64::try_from(keys).unwrap_or_default();
                self.metrics.taken.with_label_values(&[result]).inc_by(keys);
            };
            count("taken", taken);
            count("refused", refused);
            count(if known { "too_fast" } else { "refused" }, held_up.len());
        }
        done(taken, refused + held_up.len())
    }

    pub(super) fn forget_records(&mut self, peer: PeerId, keys: &[DhtKey]) -> Answer {
        let records = self.net.behaviour_mut().kad.store_mut();
        let forgotten = keys.iter().filter(|key| records.remove(key, &peer)).count();
        done(forgotten, keys.len() - forgotten)
    }
}

fn done(taken: usize, refused: usize) -> Answer {
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    Answer::Done { taken: number(taken), refused: number(refused) }
}

const _: () = assert!(COPIES >= 6, "apt-p2p kept six copies");
