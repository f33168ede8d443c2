//! How a fellow shows that it is one: by a secret that it knows from the index, at a time that all of them
//! have from there. Other sites have a secret from the swarm's key, and each its own clock. Pure.

use ring::hmac;

use crate::content::digest::Sha256;
use crate::content::swarm_key::SwarmKey;

/// For how long a fellow's token holds, in seconds, before and after its time.
const HOLDS_FOR: u64 = 60;
/// The same for another site's, whose clock nobody sets by ours.
const SITES_HOLD_FOR: u64 = 5 * 60;
const SCHEME: &str = "Aptmesh ";

/// What fellows know, or sites of one swarm, and nobody else.
pub struct Secret {
    key: hmac::Key,
    holds_for: u64,
}

impl Secret {
    /// From the bytes that the index keeps.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, bytes), holds_for: HOLDS_FOR }
    }

    /// What the sites of a swarm know.
    #[must_use]
    pub fn of_swarm(key: &SwarmKey) -> Self {
        Self { holds_for: SITES_HOLD_FOR, ..Self::new(&key.token_secret()) }
    }

    /// What an `Authorization` header says that asks for `blob` at `now`, in seconds since 1970.
    #[must_use]
    pub fn token(&self, blob: &Sha256, now: u64) -> String {
        let tag = hmac::sign(&self.key, said(blob, now).as_bytes());
        // As long as a SHA-256, and written like one.
        let tag = Sha256::from_bytes(tag.as_ref()).map(|tag| tag.to_string());
        format!("{SCHEME}{now}-{}", tag.unwrap_or_default())
    }

    /// Whether it may be by one who knows the secret and asks for `blob`, `now` being the time here.
    #[must_use]
    pub fn admits(&self, authorization: &str, blob: &Sha256, now: u64) -> bool {
        let token = authorization.strip_prefix(SCHEME).and_then(|token| token.split_once('-'));
        let Some((Ok(at), Some(tag))) = token.map(|(at, tag)| (at.parse::<u64>(), bytes(tag)))
        else {
            return false;
        };
        at.abs_diff(now) <= self.holds_for
            && hmac::verify(&self.key, said(blob, at).as_bytes(), &tag).is_ok()
    }
}

fn said(blob: &Sha256, at: u64) -> String {
    format!("aptmesh blob {blob} {at}")
}

/// Of an HMAC-SHA256 in hex digits.
fn bytes(tag: &str) -> Option<[u8; 32]> {
    Sha256::from_hex(tag).map(|tag| *tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_one_blob_and_a_while() {
        let (ours, theirs) = (Secret::new(b"ours"), Secret::new(b"theirs"));
        let (a, b) = (Sha256::of(b"a"), Sha256::of(b"b"));
        let token = ours.token(&a, 1000);
        assert!(ours.admits(&token, &a, 1000) && ours.admits(&token, &a, 1060));
        assert!(ours.admits(&token, &a, 940), "clocks differ a little");
        assert!(!ours.admits(&token, &a, 1061) && !ours.admits(&token, &a, 939));
        assert!(!ours.admits(&token, &b, 1000) && !theirs.admits(&token, &a, 1000));
        let later = token.replace("1000-", "1001-");
        for other in [later.as_str(), &token[..token.len() - 1], "Aptmesh 1000-", "Aptmesh", ""] {
            assert!(!ours.admits(other, &a, 1000), "{other}");
        }
    }

    #[test]
    fn a_token_of_the_swarm_bears_with_clocks() {
        let (ours, theirs) = (SwarmKey::new([1; 32]), SwarmKey::new([2; 32]));
        let (secret, a) = (Secret::of_swarm(&ours), Sha256::of(b"a"));
        let token = secret.token(&a, 1000);
        assert_eq!(token, Secret::new(&ours.token_secret()).token(&a, 1000));
        assert!(secret.admits(&token, &a, 1300) && secret.admits(&token, &a, 700));
        assert!(!secret.admits(&token, &a, 1301) && !secret.admits(&token, &a, 699));
        assert!(!Secret::of_swarm(&theirs).admits(&token, &a, 1000));
    }
}
