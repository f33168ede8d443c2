//! A site's card: who it is, and where its peers find it. Its node signs it, so that others may hand
//! it on.
//!
//! ```text
//! 1 byte    version of this format, 1
//! 32 bytes  Ed25519 public key of the node
//! 8 bytes   when it was issued, milliseconds since 1970
//! 8 bytes   generation of the site's have-filter, 0 for none
//! text      the site's name, for people
//! 1 byte    number of peer URLs, 4 at most; each a text
//! 1 byte    number of the node's addresses, 8 at most; each 4 or 6, the IP address, 2 bytes of port
//! 64 bytes  Ed25519 signature over "aptmesh card" and all before
//! ```
//!
//! A text is its length in one byte, and that many bytes of UTF-8. Numbers are big-endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::content::reading::Reading;

/// The version of the format, and of what cards promise.
const VERSION: u8 = 1;
/// What is signed before the card, so that a signature is good for nothing else.
const CONTEXT: &[u8] = b"aptmesh card";
/// URLs of a site.
pub const URLS_MAX: usize = 4;
/// Addresses of a node.
pub const ADDRESSES_MAX: usize = 8;
/// Bytes of a text.
const TEXT_MAX: usize = 255;
/// Bytes of a card.
pub const SIZE_MAX: usize =
    1 + 32 + 8 + 8 + (URLS_MAX + 1) * (TEXT_MAX + 1) + 1 + 1 + ADDRESSES_MAX * 19 + SIGNATURE;
const SIGNATURE: usize = 64;

/// What a site tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The node's Ed25519 public key.
    pub node: [u8; 32],
    /// When it was issued, in milliseconds since 1970; of two cards of a node, the later one counts.
    pub issued: u64,
    /// The generation of the site's have-filter; 0 if it has none.
    pub filter: u64,
    /// The site's name, for people.
    pub site: String,
    /// Where its peers fetch blobs; none, if it gives nothing.
    pub urls: Vec<String>,
    /// Where its node listens.
    pub addresses: Vec<SocketAddr>,
}

/// A card with its signature, which is still to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub card: Card,
    bytes: Vec<u8>,
}

impl Card {
    /// Signs it: `sign` is given the message and returns its Ed25519 signature. Texts are cut to 255
    /// bytes, lists to their bounds.
    pub fn sign(mut self, sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE]) -> Signed {
        cut(&mut self.site);
        self.urls.retain(|url| url.len() <= TEXT_MAX);
        self.urls.truncate(URLS_MAX);
        self.addresses.truncate(ADDRESSES_MAX);
        let mut bytes = self.body();
        let signature = sign(&message(&bytes));
        bytes.extend_from_slice(&signature);
        Signed { card: self, bytes }
    }

    fn body(&self) -> Vec<u8> {
        let mut body = vec![VERSION];
        body.extend_from_slice(&self.node);
        body.extend_from_slice(&self.issued.to_be_bytes());
        body.extend_from_slice(&self.filter.to_be_bytes());
        push_text(&mut body, &self.site);
        push_count(&mut body, self.urls.len());
        for url in &self.urls {
            push_text(&mut body, url);
        }
        push_count(&mut body, self.addresses.len());
        for address in &self.addresses {
            push_address(&mut body, *address);
        }
        body
    }
}

impl Signed {
    /// Reads a card; `None` for what is none, or more than one. Whether its signature is right, tells
    /// [`Signed::holds`].
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let body = bytes.get(..bytes.len().checked_sub(SIGNATURE)?)?;
        let mut reading = Reading(body);
        if bytes.len() > SIZE_MAX || reading.u8()? != VERSION {
            return None;
        }
        let card = Card {
            node: reading.array()?,
            issued: reading.u64()?,
            filter: reading.u64()?,
            site: reading.text().filter(|site| !site.contains(char::is_control))?.to_owned(),
            urls: list(&mut reading, URLS_MAX, url)?,
            addresses: list(&mut reading, ADDRESSES_MAX, address)?,
        };
        reading.end()?;
        Some(Self { card, bytes: bytes.to_vec() })
    }

    /// Whether the node that it names signed it: `verify` is given its public key, the message and
    /// the signature.
    pub fn holds(&self, verify: impl FnOnce(&[u8; 32], &[u8], &[u8]) -> bool) -> bool {
        let body = self.bytes.len().saturating_sub(SIGNATURE);
        let (body, signature) = self.bytes.split_at_checked(body).unwrap_or_default();
        verify(&self.card.node, &message(body), signature)
    }

    /// As it is handed on.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    [CONTEXT, body].concat()
}

fn list<'a, T>(
    reading: &mut Reading<'a>,
    max: usize,
    item: impl Fn(&mut Reading<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = usize::from(reading.u8()?);
    if count > max {
        return None;
    }
    (0..count).map(|_| item(reading)).collect()
}

/// An HTTP URL with a host and nothing secret; that is all that is known of it.
fn url(reading: &mut Reading<'_>) -> Option<String> {
    let text = reading.text()?;
    let url = url::Url::parse(text).ok()?;
    let sound = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none();
    sound.then(|| text.to_owned())
}

fn address(reading: &mut Reading<'_>) -> Option<SocketAddr> {
    let ip: IpAddr = match reading.u8()? {
        4 => Ipv4Addr::from(reading.array::<4>()?).into(),
        6 => Ipv6Addr::from(reading.array::<16>()?).into(),
        _ => return None,
    };
    Some((ip, reading.u16()?).into())
}

fn push_address(body: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            body.push(4);
            body.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            body.push(6);
            body.extend_from_slice(&ip.octets());
        }
    }
    body.extend_from_slice(&address.port().to_be_bytes());
}

fn push_text(body: &mut Vec<u8>, text: &str) {
    push_count(body, text.len());
    body.extend_from_slice(text.as_bytes());
}

/// Of what was cut to fit before.
fn push_count(body: &mut Vec<u8>, count: usize) {
    body.push(u8::try_from(count).unwrap_or(u8::MAX));
}

fn cut(text: &mut String) {
    let end = (0..=TEXT_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text.retain(|character| !character.is_control());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        Card {
            node: [7; 32],
            issued: 1_700_000_000_000,
            filter: 3,
            site: "Büro".to_owned(),
            urls: vec!["http://192.0.2.1:9979".to_owned(), "https://peer.example.org/".to_owned()],
            addresses: vec![
                "192.0.2.1:9980".parse().unwrap(),
                "[2001:db8::1]:9980".parse().unwrap(),
            ],
        }
    }

    /// No signature, but good enough to see what is signed.
    fn sign(message: &[u8]) -> [u8; 64] {
        let sum = message.iter().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
        [sum; 64]
    }

    fn verify(_: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
        sign(message) == signature
    }

    #[test]
    fn a_card_is_read_as_it_was_signed() {
        let signed = card().sign(sign);
        let read = Signed::parse(signed.as_bytes()).unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.card, card());
        assert!(read.holds(verify));
    }

    #[test]
    fn what_was_changed_does_not_hold() {
        let signed = card().sign(sign);
        for at in 0..signed.as_bytes().len() {
            let mut bytes = signed.as_bytes().to_vec();
            bytes[at] ^= 1;
            assert!(Signed::parse(&bytes).is_none_or(|read| !read.holds(verify)), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_card_is_refused() {
        let whole = card().sign(sign).as_bytes().to_vec();
        for end in 0..whole.len() {
            assert_eq!(Signed::parse(&whole[..end]), None, "{end} bytes");
        }
        assert_eq!(Signed::parse(&[&whole[..], &[0]].concat()), None);
        for url in ["ftp://host/", "http://me:secret@host/", "http://", "host:9979", ""] {
            let signed = Card { urls: vec![url.to_owned()], ..card() }.sign(sign);
            assert_eq!(Signed::parse(signed.as_bytes()), None, "{url}");
        }
    }

    #[test]
    fn the_largest_card_fits() {
        let url = format!("http://host/{}", "x".repeat(TEXT_MAX - 12));
        let largest = Card {
            site: "ü".repeat(200),
            urls: vec![url; URLS_MAX + 3],
            addresses: vec!["[2001:db8::1]:9980".parse().unwrap(); ADDRESSES_MAX + 3],
            ..card()
        };
        let signed = largest.sign(sign);
        assert!(signed.as_bytes().len() <= SIZE_MAX);
        assert_eq!(Signed::parse(signed.as_bytes()).unwrap().card.urls.len(), URLS_MAX);
    }
}
