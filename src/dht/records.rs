//! Who has what, as far as it is this node's to know: a Kademlia record store that takes provider
//! records only, in little memory, for as long as their announcers said, and within bounds that no
//! node can use up for the others.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use libp2p::{Multiaddr, PeerId};

use crate::content::swarm_key::DhtKey;
use crate::dht::TTL_MAX;

/// Bounds of the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Records in all.
    pub(super) records: usize,
    /// Records of one node.
    pub(super) of_a_node: usize,
    /// Nodes for one key.
    pub(super) of_a_key: usize,
}

/// About 50 MB.
pub(super) const BOUNDS: Bounds = Bounds { records: 500_000, of_a_node: 131_072, of_a_key: 64 };
/// Nodes that are named to who looks up a key.
const NAMED_MAX: usize = 20;

/// The records, with the clock handed in.
pub(super) struct Records {
    bounds: Bounds,
    /// What seconds are counted from.
    epoch: Instant,
    keys: HashMap<DhtKey, Holders>,
    nodes: Nodes,
    count: usize,
    evicted: u64,
}

/// Most blobs have one holder, and a list on the heap costs more than a record.
enum Holders {
    One(Holder),
    Many(Vec<Holder>),
}

#[derive(Clone, Copy)]
struct Holder {
    node: u32,
    /// Seconds of the store's own clock.
    until: u32,
}

/// Each node has a number, so that a record needs only that.
#[derive(Default)]
struct Nodes {
    numbers: HashMap<PeerId, u32>,
    all: HashMap<u32, Node>,
    next: u32,
}

struct Node {
    peer: PeerId,
    records: usize,
    addresses: Vec<Multiaddr>,
}

impl Records {
    pub(super) fn new(bounds: Bounds, now: Instant) -> Self {
        let (keys, nodes) = (HashMap::new(), Nodes::default());
        Self { bounds, epoch: now, keys, nodes, count: 0, evicted: 0 }
    }

    /// Remembers for `ttl` that `peer` has `key`; whether there was room.
    pub(super) fn add(&mut self, key: DhtKey, peer: PeerId, ttl: Duration, now: Instant) -> bool {
        let number = self.nodes.number(peer);
        let until = self.seconds(now).saturating_add(seconds_up(ttl.min(TTL_MAX)));
        if let Some(holders) = self.keys.get_mut(&key)
            && let Some(holder) = holders.all_mut().iter_mut().find(|one| one.node == number)
        {
            // A message that was overtaken by a later one may be for a shorter time.
            holder.until = holder.until.max(until);
            return true;
        }
        if self.has_room(&key, number) {
            let holder = Holder { node: number, until };
            match self.keys.get_mut(&key) {
                Some(holders) => holders.push(holder),
                None => drop(self.keys.insert(key, Holders::One(holder))),
            }
            self.count += 1;
            self.nodes.count(number, 1);
            return true;
        }
        self.nodes.tidy(number);
        false
    }

    /// Forgets that `peer` has `key`; whether that was known.
    pub(super) fn remove(&mut self, key: &DhtKey, peer: &PeerId) -> bool {
        let Some(number) = self.nodes.numbers.get(peer).copied() else { return false };
        let Some(holders) = self.keys.get_mut(key) else { return false };
        let gone = holders.retain(|holder| holder.node != number);
        if holders.all().is_empty() {
            self.keys.remove(key);
        }
        self.count -= gone;
        self.nodes.uncount(number, gone);
        gone > 0
    }

    /// Where a node can be reached, to be told along with what it has.
    pub(super) fn set_addresses(&mut self, peer: &PeerId, addresses: &[Multiaddr]) {
        let number = self.nodes.numbers.get(peer);
        if let Some(node) = number.and_then(|number| self.nodes.all.get_mut(number)) {
            addresses.clone_into(&mut node.addresses);
        }
    }

    /// Forgets what has expired.
    pub(super) fn sweep(&mut self, now: Instant) {
        let now = self.seconds(now);
        self.retain(|holder| holder.until > now);
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Records that had to go before their time.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    fn seconds(&self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.epoch).as_secs();
        u32::try_from(passed).unwrap_or(u32::MAX)
    }

    fn has_room(&mut self, key: &DhtKey, number: u32) -> bool {
        let of_this_key = self.keys.get(key).map_or(0, |holders| holders.all().len());
        let of_this_node = self.nodes.all.get(&number).map_or(0, |node| node.records);
        if of_this_key >= self.bounds.of_a_key || of_this_node >= self.bounds.of_a_node {
            return false;
        }
        self.count < self.bounds.records || self.make_room(of_this_node)
    }

    /// Takes from the node that has most, if that is far more than the one has who needs room: a flood
    /// pushes out itself.
    fn make_room(&mut self, needs: usize) -> bool {
        let largest = self.nodes.all.iter().max_by_key(|(_, node)| node.records);
        let Some((&number, node)) = largest else { return false };
        if node.records <= 2 * (needs + 1) {
            return false;
        }
        let mut takes = node.records / 2;
        let before = self.count;
        self.retain(|holder| {
            let goes = holder.node == number && takes > 0;
            takes -= usize::from(goes);
            !goes
        });
        self.evicted += u64::try_from(before - self.count).unwrap_or_default();
        true
    }

    fn retain(&mut self, mut keeps: impl FnMut(&Holder) -> bool) {
        let nodes = &mut self.nodes;
        let count = &mut self.count;
        self.keys.retain(|_, holders| {
            holders.retain(|holder| {
                let stays = keeps(holder);
                if !stays {
                    *count -= 1;
                    nodes.uncount(holder.node, 1);
                }
                stays
            });
            !holders.all().is_empty()
        });
        if self.keys.capacity() > 4 * self.keys.len().max(1_024) {
            self.keys.shrink_to_fit();
        }
    }
}

impl Holders {
    fn all(&self) -> &[Holder] {
        match self {
            Self::One(holder) => std::slice::from_ref(holder),
            Self::Many(holders) => holders,
        }
    }

    fn all_mut(&mut self) -> &mut [Holder] {
        match self {
            Self::One(holder) => std::slice::from_mut(holder),
            Self::Many(holders) => holders,
        }
    }

    fn push(&mut self, holder: Holder) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, holder]),
            Self::Many(holders) => holders.push(holder),
        }
    }

    /// Returns how many went.
    fn retain(&mut self, mut keeps: impl FnMut(&Holder) -> bool) -> usize {
        match self {
            Self::One(holder) if keeps(holder) => 0,
            Self::One(_) => {
                *self = Self::Many(Vec::new());
                1
            }
            Self::Many(holders) => {
                let before = holders.len();
                holders.retain(keeps);
                before - holders.len()
            }
        }
    }
}

impl Nodes {
    fn number(&mut self, peer: PeerId) -> u32 {
        *self.numbers.entry(peer).or_insert_with(|| {
            self.next = self.next.wrapping_add(1);
            self.all.insert(self.next, Node { peer, records: 0, addresses: Vec::new() });
            self.next
        })
    }

    fn count(&mut self, number: u32, more: usize) {
        if let Some(node) = self.all.get_mut(&number) {
            node.records += more;
        }
    }

    fn uncount(&mut self, number: u32, fewer: usize) {
        if let Some(node) = self.all.get_mut(&number) {
            node.records -= fewer;
        }
        self.tidy(number);
    }

    /// A node without records has no number.
    fn tidy(&mut self, number: u32) {
        if self.all.get(&number).is_some_and(|node| node.records == 0)
            && let Some(node) = self.all.remove(&number)
        {
            self.numbers.remove(&node.peer);
        }
    }
}

/// A part of a second is a second: nobody's record is too short-lived to be found.
fn seconds_up(duration: Duration) -> u32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// What Kademlia asks of a store. Records come in another way (`Ask::Announce`), and values not at all.
impl RecordStore for Records {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Result<()> {
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let holders = DhtKey::from_bytes(key.as_ref()).and_then(|key| self.keys.get(&key));
        let now = self.seconds(Instant::now());
        holders
            .map_or(&[][..], Holders::all)
            .iter()
            .filter(|holder| holder.until > now)
            .filter_map(|holder| self.nodes.all.get(&holder.node))
            .take(NAMED_MAX)
            .map(|node| ProviderRecord::new(key.clone(), node.peer, node.addresses.clone()))
            .collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn key(number: u32) -> DhtKey {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        DhtKey::from_bytes(&bytes).unwrap()
    }

    fn holders(records: &Records, number: u32) -> Vec<PeerId> {
        let found = records.providers(&RecordKey::new(key(number).as_bytes()));
        found.into_iter().map(|record| record.provider).collect()
    }

    #[test]
    fn what_is_announced_is_found_until_it_is_withdrawn() {
        let (now, one, other) = (Instant::now(), PeerId::random(), PeerId::random());
        let mut records = Records::new(BOUNDS, now);
        assert!(records.add(key(1), one, MINUTE, now));
        assert!(records.add(key(1), other, MINUTE, now));
        assert!(records.add(key(1), one, MINUTE, now), "again is no more");
        assert_eq!((records.len(), holders(&records, 1)), (2, vec![one, other]));
        let address: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        records.set_addresses(&one, std::slice::from_ref(&address));
        let told = records.providers(&RecordKey::new(key(1).as_bytes()));
        assert_eq!(told[0].addresses, [address]);
        assert!(records.remove(&key(1), &one));
        assert!(!records.remove(&key(1), &one));
        assert_eq!(holders(&records, 1), [other]);
        assert!(records.remove(&key(1), &other));
        assert_eq!((records.len(), records.keys.len(), records.nodes.all.len()), (0, 0, 0));
    }

    #[test]
    fn what_has_expired_is_swept() {
        let (now, one, other) = (Instant::now(), PeerId::random(), PeerId::random());
        let mut records = Records::new(BOUNDS, now);
        records.add(key(1), one, MINUTE, now);
        records.add(key(1), other, 3 * MINUTE, now);
        records.add(key(2), one, MINUTE, now);
        records.add(key(2), one, Duration::MAX, now + MINUTE / 2);
        records.sweep(now + MINUTE + MINUTE / 10);
        assert_eq!(records.len(), 2);
        assert_eq!((holders(&records, 1), holders(&records, 2)), (vec![other], vec![one]));
        records.sweep(now + MINUTE + TTL_MAX);
        assert_eq!((records.len(), records.nodes.numbers.len()), (0, 0));
    }

    #[test]
    fn each_bound_holds() {
        let now = Instant::now();
        let bounds = Bounds { records: 100, of_a_node: 50, of_a_key: 3 };
        let mut records = Records::new(bounds, now);
        let crowd: Vec<PeerId> = (0..5).map(|_| PeerId::random()).collect();
        let taken = crowd.iter().filter(|peer| records.add(key(0), **peer, MINUTE, now)).count();
        assert_eq!(taken, 3, "nodes for one key");
        let flood = crowd[0];
        let taken = (1..200).filter(|number| records.add(key(*number), flood, MINUTE, now)).count();
        assert_eq!(taken, 49, "records of one node");
        assert!(records.len() <= 100);
    }

    #[test]
    fn a_flood_pushes_out_itself() {
        let now = Instant::now();
        let bounds = Bounds { records: 100, of_a_node: 90, of_a_key: 3 };
        let mut records = Records::new(bounds, now);
        let (flood, modest) = (PeerId::random(), PeerId::random());
        for number in 0..200 {
            records.add(key(number), flood, MINUTE, now);
        }
        for number in 1_000..1_040 {
            assert!(records.add(key(number), modest, MINUTE, now), "{number}");
        }
        assert!(records.len() <= 100);
        assert!(records.evicted() > 0);
        assert!((1_000..1_040).all(|number| holders(&records, number) == [modest]));
    }

    #[test]
    fn a_full_store_is_no_larger_than_promised() {
        // A slot of the table and its control byte; tables double when they are 7/8 full.
        let slot = size_of::<(DhtKey, Holders)>() + 1;
        assert!(slot <= 49, "{slot} bytes");
        assert!(BOUNDS.records.next_power_of_two() * 2 * slot < 110_000_000);
    }
}
