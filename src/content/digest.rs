//! Digests. SHA-256 names every blob; SHA-512 and SHA-1 are checked where an archive names a file
//! by them (`by-hash/SHA512/…`, `by-hash/SHA1/…`).

use std::fmt;

use sha2::Digest as _;

/// The SHA-256 of a blob: its name on the volume and in the index.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Reads 64 lower- or upper-case hex digits; anything else is `None`.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        from_hex(hex).map(Self)
    }

    /// The raw 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The inverse of [`Sha256::as_bytes`]; `None` unless there are exactly 32.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

/// A digest that a file must have, in whichever algorithm its source gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// SHA-1: only where nothing stronger is given.
    Sha1([u8; 20]),
    /// SHA-256, which is then the blob's name too.
    Sha256(Sha256),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl Expected {
    /// The digest's bytes; their number tells the algorithm.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha1(bytes) => bytes,
            Self::Sha256(digest) => digest.as_bytes(),
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The inverse of [`Expected::as_bytes`]; `None` for another number of bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            20 => bytes.try_into().ok().map(Self::Sha1),
            32 => Sha256::from_bytes(bytes).map(Self::Sha256),
            64 => bytes.try_into().ok().map(Self::Sha512),
            _ => None,
        }
    }

    /// Reads a digest from the directory and file name of Debian's `by-hash/ALGORITHM/HEX`.
    /// `None` for an algorithm that proves nothing (`MD5Sum`) or a name of another length.
    #[must_use]
    pub fn from_by_hash(algorithm: &str, hex: &str) -> Option<Self> {
        match algorithm {
            "SHA1" => from_hex(hex).map(Self::Sha1),
            "SHA256" => Sha256::from_hex(hex).map(Self::Sha256),
            "SHA512" => from_hex(hex).map(Self::Sha512),
            _ => None,
        }
    }
}

/// Hashes a body as it passes, and tells at its end what it is.
#[derive(Clone)]
pub struct Hasher {
    sha256: sha2::Sha256,
    extra: Option<Extra>,
    expected: Option<Expected>,
}

#[derive(Clone)]
enum Extra {
    Sha1(sha1::Sha1),
    Sha512(Box<sha2::Sha512>),
}

/// A whole body's digest, and whether it is what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The body's name.
    pub sha256: Sha256,
    /// `false` only when a digest was expected and this is not it.
    pub as_expected: bool,
}

impl Hasher {
    /// A hasher for a body of which `expected` is known, or nothing.
    #[must_use]
    pub fn new(expected: Option<Expected>) -> Self {
        let extra = match expected {
            Some(Expected::Sha1(_)) => Some(Extra::Sha1(sha1::Sha1::new())),
            Some(Expected::Sha512(_)) => Some(Extra::Sha512(Box::new(sha2::Sha512::new()))),
            Some(Expected::Sha256(_)) | None => None,
        };
        Self { sha256: sha2::Sha256::new(), extra, expected }
    }

    /// Takes the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        match &mut self.extra {
            Some(Extra::Sha1(hasher)) => hasher.update(bytes),
            Some(Extra::Sha512(hasher)) => hasher.update(bytes),
            None => {}
        }
    }

    /// The digest of the bytes so far.
    #[must_use]
    pub fn so_far(&self) -> Sha256 {
        Sha256(self.sha256.clone().finalize().into())
    }

    /// The verdict, when the body has ended.
    #[must_use]
    pub fn finish(self) -> Verdict {
        let sha256 = Sha256(self.sha256.finalize().into());
        let as_expected = match (self.expected, self.extra) {
            (None, _) => true,
            (Some(Expected::Sha256(wanted)), _) => wanted == sha256,
            (Some(Expected::Sha1(wanted)), Some(Extra::Sha1(hasher))) => {
                hasher.finalize().as_slice() == wanted
            }
            (Some(Expected::Sha512(wanted)), Some(Extra::Sha512(hasher))) => {
                hasher.finalize().as_slice() == wanted
            }
            (Some(_), _) => false,
        };
        Verdict { sha256, as_expected }
    }
}

pub(super) fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    if hex.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *byte = nibble(high)? << 4 | nibble(low)?;
    }
    Some(bytes)
}

/// Two lower-case digits a byte.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        for nibble in [byte >> 4, byte & 15] {
            hex.extend(char::from_digit(nibble.into(), 16));
        }
        hex
    })
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC_SHA1: &str = "a9993e364706816aba3e25717850c26c9cd0d89d";
    const ABC_SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn hex_is_read_and_written() {
        let digest = Sha256::from_hex(ABC_SHA256).unwrap();
        assert_eq!(digest, Sha256::of(b"abc"));
        assert_eq!(digest.to_string(), ABC_SHA256);
        assert_eq!(Sha256::from_bytes(digest.as_bytes()), Some(digest));
        for bad in ["", "ba78", &ABC_SHA256.replace('b', "g"), &format!("{ABC_SHA256}00")] {
            assert_eq!(Sha256::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_algorithm_is_checked() {
        let sha512: String =
            sha2::Sha512::digest(b"abc").iter().map(|b| format!("{b:02x}")).collect();
        for (algorithm, hex) in [("SHA1", ABC_SHA1), ("SHA256", ABC_SHA256), ("SHA512", &sha512)] {
            for (body, right) in [("abc", true), ("abd", false)] {
                let expected = Expected::from_by_hash(algorithm, hex);
                assert!(expected.is_some(), "{algorithm}");
                let mut hasher = Hasher::new(expected);
                hasher.update(&body.as_bytes()[..1]);
                hasher.update(&body.as_bytes()[1..]);
                assert_eq!(hasher.finish().as_expected, right, "{algorithm} {body}");
            }
        }
    }

    #[test]
    fn nothing_expected_is_as_expected() {
        assert!(Hasher::new(None).finish().as_expected);
        assert_eq!(Expected::from_by_hash("MD5Sum", &"0".repeat(32)), None);
        assert_eq!(Expected::from_by_hash("SHA256", ABC_SHA1), None);
    }
}
