//! Which nodes keep the records of a key: those whose ids are closest to it, as Kademlia measures, since
//! that is where a look-up ends.

use libp2p::PeerId;
use libp2p::kad::{KBucketKey, RecordKey};

use crate::content::swarm_key::DhtKey;

/// Nodes that keep a record: with half of them gone at once, one key in 256 is lost until it is renewed.
pub(super) const COPIES: usize = 8;

type Point = [u8; 32];

/// Nodes, as points of Kademlia's space.
#[derive(Default)]
pub(super) struct Map(Vec<(Point, PeerId)>);

impl Map {
    pub(super) fn of(peers: impl IntoIterator<Item = PeerId>) -> Self {
        Self(peers.into_iter().map(|peer| (point(&KBucketKey::from(peer)), peer)).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The nodes for a key.
    pub(super) fn closest(&self, key: &DhtKey) -> Vec<PeerId> {
        let target = point(&KBucketKey::new(record_key(key)));
        let mut nodes: Vec<(Point, PeerId)> =
            self.0.iter().map(|(node, peer)| (distance(node, &target), *peer)).collect();
        if nodes.len() > COPIES {
            nodes.select_nth_unstable(COPIES - 1);
            nodes.truncate(COPIES);
        }
        nodes.into_iter().map(|(_, peer)| peer).collect()
    }
}

/// The key as Kademlia has it.
pub(super) fn record_key(key: &DhtKey) -> RecordKey {
    RecordKey::new(key.as_bytes())
}

fn point<T>(key: &KBucketKey<T>) -> Point {
    key.hashed_bytes().try_into().unwrap_or_default()
}

fn distance(one: &Point, other: &Point) -> Point {
    let mut distance = *one;
    distance.iter_mut().zip(other).for_each(|(byte, other)| *byte ^= other);
    distance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_are_those_that_kademlia_finds() {
        let peers: Vec<PeerId> = (0..50).map(|_| PeerId::random()).collect();
        let map = Map::of(peers.clone());
        for number in 0..20 {
            let key = DhtKey::from_bytes(&[number; 20]).unwrap();
            let target = KBucketKey::new(record_key(&key));
            let mut by_kademlia = peers.clone();
            by_kademlia.sort_by_key(|peer| KBucketKey::from(*peer).distance(&target));
            by_kademlia.truncate(COPIES);
            by_kademlia.sort();
            let mut closest = map.closest(&key);
            closest.sort();
            assert_eq!(closest, by_kademlia);
        }
        assert_eq!(Map::of([peers[0]]).closest(&DhtKey::from_bytes(&[0; 20]).unwrap()), [peers[0]]);
    }
}
