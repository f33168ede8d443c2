//! Slots: how many bodies go out to other sites at a time, so that a site's line is not cut into so many
//! shares that none is of use, and no peer has them all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::Instant;

/// Bodies at a time.
const SLOTS: usize = 160;
/// Of these, to one peer: an apt there has up to ten requests on their way, each for another file.
const SLOTS_A_PEER: usize = 16;
/// Who takes longer than this for a piece, of 256 kB at most, has to leave the slot to others.
const PIECE_MAX: Duration = Duration::from_secs(30);

/// Who has them. A peer is an address; in IPv6 a network of 64 bits, in which one machine has any address
/// it likes.
pub(super) struct Slots {
    held: Mutex<Held>,
    in_use: IntGauge,
}

#[derive(Default)]
struct Held {
    by_number: HashMap<u64, Holder>,
    /// How many there were so far.
    number: u64,
}

struct Holder {
    peer: IpAddr,
    /// When it was handed what it has not taken yet; `None`: it waits for us.
    handed_at: Option<Instant>,
}

impl Held {
    /// The number of a slot for `peer`; `None` if it has its share, or nothing is left.
    fn take(&mut self, peer: IpAddr, now: Instant) -> Option<u64> {
        let own = self.by_number.values().filter(|holder| holder.peer == peer).count();
        if own >= SLOTS_A_PEER {
            return None;
        }
        if self.by_number.len() >= SLOTS {
            let is_slow = |at: Instant| now.duration_since(at) > PIECE_MAX;
            let slow = |holder: &Holder| holder.handed_at.is_some_and(is_slow);
            let slow = self.by_number.iter().find(|(_, holder)| slow(holder)).map(|(at, _)| *at)?;
            self.by_number.remove(&slow);
        }
        self.number += 1;
        self.by_number.insert(self.number, Holder { peer, handed_at: None });
        Some(self.number)
    }
}

impl Slots {
    pub(super) fn new(in_use: IntGauge) -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), in_use })
    }

    /// A slot for a body to `address`; `None` if it has its share, or nothing is left.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let peer = peer_at(address);
        let number = self.change(|held| held.take(peer, Instant::now()))?;
        Some(Slot { slots: Arc::clone(self), number, peer })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        let mut held = self.lock();
        let changed = change(&mut held);
        self.in_use.set(i64::try_from(held.by_number.len()).unwrap_or(i64::MAX));
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot, until it is dropped, or lost to others.
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    peer: IpAddr,
}

impl Slot {
    /// Whose it is.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The peer has a piece to take now.
    pub(super) fn hand_out(&self) {
        self.note(Some(Instant::now()));
    }

    /// It took all of it; `false` if it was so slow that others have the slot.
    pub(super) fn take_back(&self) -> bool {
        self.note(None)
    }

    fn note(&self, handed_at: Option<Instant>) -> bool {
        let mut held = self.slots.lock();
        let holder = held.by_number.get_mut(&self.number);
        holder.map(|holder| holder.handed_at = handed_at).is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.change(|held| held.by_number.remove(&self.number));
    }
}

/// Whom an address stands for: in IPv6, a network.
pub(super) fn peer_at(address: IpAddr) -> IpAddr {
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

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn nobody_has_more_than_a_share() {
        let slots = slots();
        let taken: Vec<_> = (0..SLOTS_A_PEER).map(|_| slots.take(peer(1)).unwrap()).collect();
        assert!(slots.take(peer(1)).is_none());
        assert!(slots.take(peer(2)).is_some());
        drop(taken);
        assert!(slots.take(peer(1)).is_some());
        assert_eq!(slots.in_use.get(), 0);
    }

    #[test]
    fn there_are_so_many_in_all() {
        let slots = slots();
        let taken: Vec<_> = (0..).map(peer).map_while(|peer| slots.take(peer)).collect();
        assert_eq!((taken.len(), slots.in_use.get()), (SLOTS, 160));
    }

    #[test]
    fn who_is_slow_leaves_it_to_others() {
        let (mut held, begun) = (Held::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        let peers = (0..).map(peer).take(SLOTS);
        let numbers: Vec<u64> = peers.map(|peer| held.take(peer, begun).unwrap()).collect();
        held.by_number.get_mut(&numbers[7]).unwrap().handed_at = Some(after(1));
        assert_eq!(held.take(peer(200), after(30)), None, "not so slow yet");
        let number = held.take(peer(200), after(32)).unwrap();
        assert!(!numbers.contains(&number) && !held.by_number.contains_key(&numbers[7]));
        assert_eq!(held.take(peer(201), after(999)), None, "the others wait for us");
    }

    #[test]
    fn one_machine_has_many_addresses_of_the_sixth_version() {
        let slots = slots();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let one = |host: usize| address(&format!("2001:db8::{host:x}"));
        let _taken: Vec<_> = (0..SLOTS_A_PEER).map(|host| slots.take(one(host)).unwrap()).collect();
        assert!(slots.take(one(SLOTS_A_PEER)).is_none());
        assert!(slots.take(address("2001:db8:0:1::1")).is_some());
    }
}
