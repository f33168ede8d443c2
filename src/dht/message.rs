//! What nodes say to each other beside Kademlia's own messages: cards, and what they have.
//!
//! ```text
//! meet       0, the asker's card, then 40 bytes for each card that it has: node (32), issued (8)
//! announce   1, for how many seconds (4), keys (20 each)
//! withdraw   2, keys
//! cards      0, cards that the asker lacks, the answering node's own first
//! done       1, number of keys taken (4), number refused (4)
//! ```
//!
//! A card has its length in two bytes before it. Numbers are big-endian.

use crate::content::card;
use crate::content::swarm_key::DhtKey;

/// Keys in one message.
pub const KEYS_MAX: usize = 4_096;
/// Cards that a node tells it knows.
pub const KNOWN_MAX: usize = 1_024;
/// Cards in one answer: the asker comes again for more.
pub const CARDS_MAX: usize = 64;
/// Bytes of a message.
pub const SIZE_MAX: usize = 128 * 1024;

const KNOWN_SIZE: usize = 40;

/// A card that the asker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The node that it is of.
    pub node: [u8; 32],
    /// When it was issued.
    pub issued: u64,
}

/// What one node asks another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To take a card, and give those that are newer than what the asker knows.
    Meet {
        /// The asker's.
        card: Vec<u8>,
        /// What it has.
        known: Vec<Known>,
    },
    /// To remember that the asker has these blobs.
    Announce {
        /// For how long.
        seconds: u32,
        /// Which.
        keys: Vec<DhtKey>,
    },
    /// To forget that the asker has them.
    Withdraw {
        /// Which.
        keys: Vec<DhtKey>,
    },
}

/// What it hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Cards, the answering node's own first.
    Cards(Vec<Vec<u8>>),
    /// How much of what was asked was done.
    Done {
        /// So many keys.
        taken: u32,
        /// And for so many there was no room.
        refused: u32,
    },
}

impl Ask {
    /// As it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Meet { card, known } => {
                let mut out = vec![0];
                push_card(&mut out, card);
                for Known { node, issued } in known {
                    out.extend_from_slice(node);
                    out.extend_from_slice(&issued.to_be_bytes());
                }
                out
            }
            Self::Announce { seconds, keys } => {
                let mut out = vec![1];
                out.extend_from_slice(&seconds.to_be_bytes());
                push_keys(&mut out, keys);
                out
            }
            Self::Withdraw { keys } => {
                let mut out = vec![2];
                push_keys(&mut out, keys);
                out
            }
        }
    }

    /// Reads what was sent; `None` for what is no message, or is out of bounds.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            0 => {
                let (card, rest) = take_card(rest)?;
                let (known, []) = rest.as_chunks::<KNOWN_SIZE>() else { return None };
                let known = known.iter().map(read_known).collect::<Option<_>>()?;
                Some(Self::Meet { card: card.to_vec(), known }).filter(Self::is_bounded)
            }
            1 => {
                let (seconds, keys) = rest.split_first_chunk()?;
                Some(Self::Announce {
                    seconds: u32::from_be_bytes(*seconds),
                    keys: read_keys(keys)?,
                })
            }
            2 => Some(Self::Withdraw { keys: read_keys(rest)? }),
            _ => None,
        }
    }

    fn is_bounded(&self) -> bool {
        matches!(self, Self::Meet { known, .. } if known.len() <= KNOWN_MAX)
    }
}

impl Answer {
    /// As it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Cards(cards) => {
                let mut out = vec![0];
                for card in cards {
                    push_card(&mut out, card);
                }
                out
            }
            Self::Done { taken, refused } => {
                let mut out = vec![1];
                out.extend_from_slice(&taken.to_be_bytes());
                out.extend_from_slice(&refused.to_be_bytes());
                out
            }
        }
    }

    /// Reads what was sent; `None` for what is no message, or is out of bounds.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        match kind {
            0 => {
                let mut cards = Vec::new();
                while !rest.is_empty() && cards.len() < CARDS_MAX {
                    let (card, after) = take_card(rest)?;
                    cards.push(card.to_vec());
                    rest = after;
                }
                rest.is_empty().then_some(Self::Cards(cards))
            }
            1 => {
                let (taken, refused) = rest.split_first_chunk()?;
                let refused = u32::from_be_bytes(refused.try_into().ok()?);
                Some(Self::Done { taken: u32::from_be_bytes(*taken), refused })
            }
            _ => None,
        }
    }
}

fn push_card(out: &mut Vec<u8>, card: &[u8]) {
    let length = u16::try_from(card.len()).unwrap_or_default();
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(card.get(..length.into()).unwrap_or_default());
}

fn take_card(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes(*length));
    rest.split_at_checked(length).filter(|_| length <= card::SIZE_MAX)
}

fn read_known(bytes: &[u8; KNOWN_SIZE]) -> Option<Known> {
    let (node, issued) = bytes.split_first_chunk()?;
    Some(Known { node: *node, issued: u64::from_be_bytes(issued.try_into().ok()?) })
}

fn push_keys(out: &mut Vec<u8>, keys: &[DhtKey]) {
    for key in keys {
        out.extend_from_slice(key.as_bytes());
    }
}

fn read_keys(bytes: &[u8]) -> Option<Vec<DhtKey>> {
    let (keys, []) = bytes.as_chunks::<{ DhtKey::SIZE }>() else { return None };
    (keys.len() <= KEYS_MAX)
        .then(|| keys.iter().filter_map(|key| DhtKey::from_bytes(key)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let key = |number| DhtKey::from_bytes(&[number; 20]).unwrap();
        let known = vec![Known { node: [3; 32], issued: 5 }; 2];
        let asks = [
            Ask::Meet { card: vec![1, 2, 3], known },
            Ask::Meet { card: Vec::new(), known: Vec::new() },
            Ask::Announce { seconds: 60, keys: vec![key(1), key(2)] },
            Ask::Withdraw { keys: vec![key(9)] },
        ];
        for ask in asks {
            assert_eq!(Ask::parse(&ask.to_bytes()), Some(ask));
        }
        let cards = Answer::Cards(vec![vec![1; 300], vec![2]]);
        for answer in [cards, Answer::Done { taken: 1, refused: 2 }] {
            assert_eq!(Answer::parse(&answer.to_bytes()), Some(answer));
        }
    }

    #[test]
    fn the_largest_messages_fit_and_larger_ones_are_refused() {
        let ask =
            |count| Ask::Withdraw { keys: vec![DhtKey::from_bytes(&[0; 20]).unwrap(); count] };
        assert!(ask(KEYS_MAX).to_bytes().len() < SIZE_MAX);
        assert!(Ask::parse(&ask(KEYS_MAX).to_bytes()).is_some());
        assert_eq!(Ask::parse(&ask(KEYS_MAX + 1).to_bytes()), None);
        let meet = |count| Ask::Meet {
            card: vec![0; card::SIZE_MAX],
            known: vec![Known { node: [0; 32], issued: 0 }; count],
        };
        assert!(meet(KNOWN_MAX).to_bytes().len() < SIZE_MAX);
        assert!(Ask::parse(&meet(KNOWN_MAX).to_bytes()).is_some());
        assert_eq!(Ask::parse(&meet(KNOWN_MAX + 1).to_bytes()), None);
        let cards = |count| Answer::Cards(vec![vec![0; card::SIZE_MAX]; count]);
        assert!(cards(CARDS_MAX).to_bytes().len() < SIZE_MAX);
        assert_eq!(Answer::parse(&cards(CARDS_MAX + 1).to_bytes()), None);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [&[][..], &[3], &[0], &[0, 0, 9, 1], &[1, 0, 0], &[1, 0, 0, 0, 1, 7], &[2, 7]] {
            assert_eq!(Ask::parse(bad), None, "{bad:?}");
        }
        for bad in [&[][..], &[2], &[0, 0], &[0, 0, 2, 1], &[1, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Answer::parse(bad), None, "{bad:?}");
        }
    }
}
