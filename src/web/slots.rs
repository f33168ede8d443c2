//! Slots: how many bodies go out to other sites at a time, so that a site's line is not cut into so many
//! shares that none is of use, and no peer has them all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;

/// Bodies at a time.
pub(super) const SLOTS: usize = 20;
/// Of these, to one peer.
pub(super) const SLOTS_A_PEER: usize = 2;

/// Who has how many. A peer is an address; in IPv6 a network of 64 bits, in which one machine has any
/// address it likes.
pub(super) struct Slots {
    taken: Mutex<HashMap<IpAddr, usize>>,
    in_use: IntGauge,
}

/// A slot, until it is dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    peer: IpAddr,
}

impl Slots {
    pub(super) fn new(in_use: IntGauge) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::default(), in_use })
    }

    /// A slot for a body to `address`; `None` if it has its share, or nothing is left.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let peer = peer_at(address);
        let mut taken = self.lock();
        let all: usize = taken.values().sum();
        let own = taken.get(&peer).copied().unwrap_or_default();
        if all >= SLOTS || own >= SLOTS_A_PEER {
            return None;
        }
        taken.insert(peer, own + 1);
        self.in_use.inc();
        Some(Slot { slots: Arc::clone(self), peer })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Whose it is.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        let left = taken.get(&self.peer).map_or(0, |own| own.saturating_sub(1));
        if left == 0 {
            taken.remove(&self.peer);
        } else {
            taken.insert(self.peer, left);
        }
        self.slots.in_use.dec();
    }
}

fn peer_at(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> Arc<Slots> {
        Slots::new(IntGauge::new("slots", "in a test").unwrap())
    }

    #[test]
    fn nobody_has_more_than_a_share() {
        let slots = slots();
        let [one, other] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let taken: Vec<_> = (0..SLOTS_A_PEER).map(|_| slots.take(one).unwrap()).collect();
        assert!(slots.take(one).is_none());
        assert!(slots.take(other).is_some());
        drop(taken);
        assert!(slots.take(one).is_some());
        assert!(slots.lock().is_empty(), "who has none is forgotten");
    }

    #[test]
    fn there_are_so_many_in_all() {
        let slots = slots();
        let peers = (0..).map(|last| IpAddr::from([192, 0, 2, last]));
        let taken: Vec<_> = peers.map_while(|peer| slots.take(peer)).collect();
        assert_eq!((taken.len(), slots.in_use.get()), (SLOTS, 20));
    }

    #[test]
    fn one_machine_has_many_addresses_of_the_sixth_version() {
        let slots = slots();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let _taken = (slots.take(address("2001:db8::1")), slots.take(address("2001:db8::2")));
        assert!(slots.take(address("2001:db8::3")).is_none());
        assert!(slots.take(address("2001:db8:0:1::1")).is_some());
    }
}
