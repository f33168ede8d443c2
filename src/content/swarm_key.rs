//! The secret that makes sites a swarm, and what is derived from it: the key under which a blob is
//! announced, and the pre-shared key that keeps strangers out.

use std::fmt;
use std::str::FromStr;

use hmac::digest::array::Array;
use hmac::digest::typenum::U64;
use hmac::{Hmac, KeyInit, Mac as _};
use sha1::Sha1;
use sha2::Digest as _;
use thiserror::Error;

use crate::content::digest::{self, Sha256};

/// What the open swarm's key is the digest of: it keeps other networks apart, and nobody out.
const OPEN: &[u8] = b"aptmesh: the swarm that everybody may join";

/// A swarm's secret: 32 random bytes, written as 64 hex digits.
#[derive(Clone, PartialEq, Eq)]
pub struct SwarmKey([u8; 32]);

/// The text is no swarm key.
#[derive(Debug, Error)]
#[error("write the 64 hex digits that `aptmesh key` prints")]
pub struct NoSwarmKey;

impl SwarmKey {
    /// The key of these bytes, which must be random.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key of the swarm that everybody may join.
    #[must_use]
    pub fn open() -> Self {
        Self(sha2::Sha256::digest(OPEN).into())
    }

    /// The key as text; keep it secret.
    #[must_use]
    pub fn reveal(&self) -> String {
        digest::to_hex(&self.0)
    }

    /// Under which key a blob is announced and looked up: `HMAC-SHA1(swarm key, sha256)`. Who is not in
    /// the swarm can not tell of which blob it is, and swarms do not mix.
    #[must_use]
    pub fn dht_key(&self, blob: &Sha256) -> DhtKey {
        let mac = <Hmac<Sha1> as KeyInit>::new(&padded(&self.0)).chain_update(blob.as_bytes());
        DhtKey(mac.finalize().into_bytes().into())
    }

    /// The key that connections are encrypted with before anything else is said.
    #[must_use]
    pub fn pre_shared(&self) -> [u8; 32] {
        self.derive(b"aptmesh pre-shared key 1")
    }

    /// By which a site shows that it is of the swarm when it asks another for a blob.
    #[must_use]
    pub fn token_secret(&self) -> [u8; 32] {
        self.derive(b"aptmesh tokens 1")
    }

    /// Tells keys apart without giving them away.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        digest::to_hex(self.derive(b"aptmesh fingerprint 1").get(..4).unwrap_or_default())
    }

    fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let mac = <Hmac<sha2::Sha256> as KeyInit>::new(&padded(&self.0)).chain_update(purpose);
        mac.finalize().into_bytes().into()
    }
}

impl FromStr for SwarmKey {
    type Err = NoSwarmKey;

    fn from_str(text: &str) -> Result<Self, NoSwarmKey> {
        digest::from_hex(text.trim()).map(Self).ok_or(NoSwarmKey)
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmKey({}…)", self.fingerprint())
    }
}

/// What a blob is called in the swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DhtKey([u8; DhtKey::SIZE]);

impl DhtKey {
    /// Its bytes.
    pub const SIZE: usize = 20;

    /// The key with these bytes; `None` for another number of them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::SIZE] {
        &self.0
    }

    /// What stands for the blob in a have-filter.
    #[must_use]
    pub fn short(&self) -> u64 {
        self.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
    }
}

/// A key of HMAC is as long as a block of its hash; a shorter one is filled up with zeros (RFC 2104).
fn padded(key: &[u8; 32]) -> Array<u8, U64> {
    let mut block = Array::default();
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_written() {
        let key = SwarmKey::new([0xab; 32]);
        assert_eq!(format!(" {}\n", key.reveal()).parse::<SwarmKey>().unwrap(), key);
        for bad in ["", "secret", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66)] {
            assert!(bad.parse::<SwarmKey>().is_err(), "{bad}");
        }
        assert!(!format!("{key:?}").contains(&key.reveal()));
    }

    #[test]
    fn what_is_derived_depends_on_the_key() {
        let (one, other) = (SwarmKey::new([1; 32]), SwarmKey::new([2; 32]));
        let blob = Sha256::of(b"abc");
        assert_ne!(one.dht_key(&blob), other.dht_key(&blob));
        assert_ne!(one.dht_key(&blob), one.dht_key(&Sha256::of(b"abd")));
        assert_ne!(one.pre_shared(), other.pre_shared());
        assert_ne!(one.pre_shared(), one.0);
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert_ne!(SwarmKey::open(), one);
    }

    /// Computed by another implementation: a change would part the swarm.
    #[test]
    fn the_derivations_stay_as_they_are() {
        let key = SwarmKey::new([0x11; 32]);
        let blob = Sha256::of(b"abc");
        assert_eq!(
            digest::to_hex(key.dht_key(&blob).as_bytes()),
            "8d873d7c0d8830289890da0c45e4eccfc1dc5937"
        );
        assert_eq!(
            digest::to_hex(&key.pre_shared()),
            "0a05edac4229d921b84ca4396c0dea382ae5830870015771b1d7c0a7100f8e22"
        );
    }
}
