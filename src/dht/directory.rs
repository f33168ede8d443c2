//! The cards of the swarm's sites: who a node is, and where its site's blobs are to be had. Nodes hand
//! them on to each other, so that at look-up time a node's id already is a URL.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};

use crate::content::card::{Card, Signed};
use crate::dht::message::{CARDS_MAX, KNOWN_MAX, Known};

/// How long a card is good for; a node issues a new one long before.
pub(super) const LIFE: Duration = Duration::from_hours(2);
/// How wrong a node's clock may be.
const SKEW: Duration = Duration::from_mins(15);

/// All cards, but for our own.
pub(super) struct Directory {
    me: PeerId,
    cards: HashMap<PeerId, Entry>,
}

struct Entry {
    signed: Signed,
    /// The node itself has shown us a card: it is not invented.
    met: bool,
}

/// What became of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is of a node that was not known, or had said goodbye.
    New,
    /// The same, and it took the place of that one, which nobody here ever met.
    Instead(PeerId),
    /// It is newer than what was known.
    Newer,
    /// There is nothing new in it.
    Known,
    /// It is one too many.
    Full,
    /// It is not signed as it should be, or of another time.
    Refused,
}

impl Directory {
    pub(super) fn new(me: PeerId) -> Self {
        Self { me, cards: HashMap::new() }
    }

    /// Takes a card that `by` handed us; `now` is in milliseconds since 1970.
    pub(super) fn take(&mut self, signed: Signed, by: PeerId, now: u64) -> (Option<PeerId>, Taken) {
        let Some(key) = public_key(&signed.card.node) else { return (None, Taken::Refused) };
        let peer = key.to_peer_id();
        let from_itself = peer == by;
        let known = self.cards.get_mut(&peer).map(|known| {
            known.met |= from_itself;
            (known.signed.card.issued, known.met)
        });
        let issued = known.map(|(issued, _)| issued);
        if peer == self.me || issued.is_some_and(|issued| issued >= signed.card.issued) {
            return (Some(peer), Taken::Known);
        }
        let in_time = signed.card.issued <= now.saturating_add(millis(SKEW))
            && signed.card.issued.saturating_add(millis(LIFE)) > now;
        if !in_time || !signed.holds(|_, message, signature| key.verify(message, signature)) {
            return (Some(peer), Taken::Refused);
        }
        let is_full = issued.is_none() && self.cards.len() >= KNOWN_MAX;
        let met = known.map_or(from_itself, |(_, met)| met);
        let gone = if is_full && from_itself { self.forget_a_stranger() } else { None };
        if is_full && gone.is_none() {
            return (Some(peer), Taken::Full);
        }
        let before = self.cards.insert(peer, Entry { signed, met });
        let was_there = before.is_some_and(|before| !before.signed.card.addresses.is_empty());
        let taken = match gone {
            Some(gone) => Taken::Instead(gone),
            None if was_there => Taken::Newer,
            None => Taken::New,
        };
        (Some(peer), taken)
    }

    /// Who never came here may be invented: any member can hand on as many cards as it likes.
    fn forget_a_stranger(&mut self) -> Option<PeerId> {
        let stranger = self.cards.iter().find(|(_, entry)| !entry.met).map(|(peer, _)| *peer)?;
        self.cards.remove(&stranger);
        Some(stranger)
    }

    pub(super) fn card(&self, peer: &PeerId) -> Option<&Card> {
        self.cards.get(peer).map(|entry| &entry.signed.card)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Card)> {
        self.cards.iter().map(|(peer, entry)| (peer, &entry.signed.card))
    }

    pub(super) fn len(&self) -> usize {
        self.cards.len()
    }

    /// What we tell that we know.
    pub(super) fn known(&self) -> Vec<Known> {
        let known = |entry: &Entry| {
            let card = &entry.signed.card;
            Known { node: card.node, issued: card.issued }
        };
        self.cards.values().map(known).take(KNOWN_MAX).collect()
    }

    /// What somebody who knows these lacks; one place is left for our own.
    pub(super) fn lacking(&self, known: &[Known]) -> Vec<Vec<u8>> {
        let known: HashMap<&[u8; 32], u64> =
            known.iter().map(|known| (&known.node, known.issued)).collect();
        let lacks = |signed: &&Signed| {
            known.get(&signed.card.node).is_none_or(|issued| *issued < signed.card.issued)
        };
        let cards =
            self.cards.values().map(|entry| &entry.signed).filter(lacks).take(CARDS_MAX - 1);
        cards.map(|signed| signed.as_bytes().to_vec()).collect()
    }

    /// Forgets what is out of date, and tells of whom.
    pub(super) fn expire(&mut self, now: u64) -> Vec<PeerId> {
        let expired = |entry: &Entry| entry.signed.card.issued.saturating_add(millis(LIFE)) <= now;
        self.cards.extract_if(|_, entry| expired(entry)).map(|(peer, _)| peer).collect()
    }
}

/// Signs a card as ours.
pub(super) fn sign(identity: &Keypair, card: Card) -> Signed {
    card.sign(|message| {
        let signature = identity.sign(message).unwrap_or_default();
        signature.try_into().unwrap_or([0; 64])
    })
}

/// A card of ours, still to be signed.
pub(super) fn own_card(
    identity: &Keypair,
    issued: u64,
    site: &str,
    filter: u64,
    urls: &[String],
    addresses: Vec<SocketAddr>,
) -> Card {
    let node = identity.public().try_into_ed25519().map_or([0; 32], |key| key.to_bytes());
    Card { node, issued, filter, site: site.to_owned(), urls: urls.to_vec(), addresses }
}

fn public_key(bytes: &[u8; 32]) -> Option<PublicKey> {
    ed25519::PublicKey::try_from_bytes(bytes).ok().map(PublicKey::from)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn card(identity: &Keypair, issued: u64) -> Signed {
        let addresses = vec!["192.0.2.1:1".parse().unwrap()];
        sign(identity, own_card(identity, issued, "site", 0, &[], addresses))
    }

    fn somebody() -> PeerId {
        PeerId::random()
    }

    fn directory() -> Directory {
        Directory::new(PeerId::random())
    }

    #[test]
    fn the_later_card_counts() {
        let (node, mut directory) = (Keypair::generate_ed25519(), directory());
        let peer = node.public().to_peer_id();
        assert_eq!(directory.take(card(&node, NOW), somebody(), NOW), (Some(peer), Taken::New));
        assert_eq!(directory.take(card(&node, NOW - 1), somebody(), NOW).1, Taken::Known);
        assert_eq!(directory.take(card(&node, NOW + 1), somebody(), NOW).1, Taken::Newer);
        assert_eq!(directory.card(&peer).unwrap().issued, NOW + 1);
        assert_eq!(directory.expire(NOW + millis(LIFE)), []);
        assert_eq!(directory.expire(NOW + 1 + millis(LIFE)), [peer]);
        assert_eq!(directory.len(), 0);
    }

    #[test]
    fn who_comes_back_after_a_goodbye_is_new() {
        let (node, mut directory) = (Keypair::generate_ed25519(), directory());
        directory.take(card(&node, NOW), somebody(), NOW);
        let goodbye = sign(&node, own_card(&node, NOW + 1, "site", 0, &[], Vec::new()));
        assert_eq!(directory.take(goodbye, somebody(), NOW).1, Taken::Newer);
        assert_eq!(directory.take(card(&node, NOW + 2), somebody(), NOW).1, Taken::New);
    }

    #[test]
    fn what_the_node_did_not_sign_or_is_of_another_time_is_refused() {
        let (node, other, mut directory) =
            (Keypair::generate_ed25519(), Keypair::generate_ed25519(), directory());
        let forged = sign(&other, own_card(&node, NOW, "site", 0, &[], Vec::new()));
        assert_eq!(directory.take(forged, somebody(), NOW).1, Taken::Refused);
        assert_eq!(
            directory.take(card(&node, NOW - millis(LIFE)), somebody(), NOW).1,
            Taken::Refused
        );
        assert_eq!(
            directory.take(card(&node, NOW + 2 * millis(SKEW)), somebody(), NOW).1,
            Taken::Refused
        );
        assert_eq!(directory.len(), 0);
    }

    #[test]
    fn only_what_the_other_lacks_is_handed_on() {
        let (one, two) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (mut ours, mut theirs) = (directory(), directory());
        for node in [&one, &two] {
            ours.take(card(node, NOW), somebody(), NOW);
        }
        theirs.take(card(&one, NOW), somebody(), NOW);
        theirs.take(card(&two, NOW - 1), somebody(), NOW);
        let lacking = ours.lacking(&theirs.known());
        assert_eq!(lacking, [card(&two, NOW).as_bytes()]);
        assert_eq!(theirs.lacking(&ours.known()), [[0u8; 0]; 0]);
    }

    #[test]
    fn there_is_a_bound_that_shuts_out_nobody_who_comes_in_person() {
        let mut directory = directory();
        let newcomer = || {
            let node = Keypair::generate_ed25519();
            (node.public().to_peer_id(), card(&node, NOW))
        };
        let (first, card_of_first) = newcomer();
        directory.take(card_of_first, first, NOW);
        for _ in 1..KNOWN_MAX {
            assert_eq!(directory.take(newcomer().1, first, NOW).1, Taken::New);
        }
        assert_eq!(directory.take(newcomer().1, first, NOW).1, Taken::Full);
        assert!(directory.lacking(&[]).len() < CARDS_MAX);
        // All that were only told of make way, and none of those that came.
        for _ in 1..KNOWN_MAX {
            let (peer, card) = newcomer();
            let (_, taken) = directory.take(card, peer, NOW);
            let Taken::Instead(gone) = taken else { panic!("{taken:?}") };
            assert!(directory.card(&peer).is_some() && directory.card(&gone).is_none());
        }
        let (last, card_of_last) = newcomer();
        assert_eq!(directory.take(card_of_last, last, NOW).1, Taken::Full);
        assert!(directory.card(&first).is_some() && directory.len() == KNOWN_MAX);
    }
}
