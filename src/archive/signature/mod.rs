//! Signatures of release files (RFC 9580): who signed, and whether that holds. Bytes in, verdict
//! out.
//!
//! `InRelease` is a message in the cleartext signature framework (RFC 9580 §7), `Release.gpg` a
//! detached signature (RFC 9580 §10.4) of `Release`. Verdicts follow what apt makes of gpgv's
//! words: one good signature is enough, and a wrong one by a known key is never outweighed. The
//! framing (armour, packets, cleartext) is read here, strictly and with bounds; the `pgp` crate
//! reads single packets and does the cryptography.

mod armour;
mod certificate;
mod check;
mod cleartext;
mod keyring;
#[cfg(test)]
mod signing;

use std::fmt;

use thiserror::Error;

pub(super) use cleartext::{BEGIN as MESSAGE_BEGIN, signed_text};
pub use keyring::{KEYRING_BYTES_MAX, KEYS_MAX, Keyring, KeyringError};

/// The largest release file that is read, in bytes. apt itself takes 10 MB; Debian's largest is
/// under 1 MB.
pub const TEXT_BYTES_MAX: usize = 32 << 20;

/// The largest signature file, or signature part of an `InRelease`, that is read, in bytes: a
/// hundred times what three RSA 4096 signatures take.
pub const SIGNATURE_BYTES_MAX: usize = 256 << 10;

/// How many signatures of one release file are read. Archives that change keys have three.
pub const SIGNATURES_MAX: usize = 16;

/// What the signatures of a release file prove.
///
/// Keys are named by the fingerprint of their certificate's primary key, in upper-case hex, as
/// `gpg --list-keys` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A known key signed it, and no other known key's signature is wrong.
    Good {
        /// The certificates whose signatures hold.
        signers: Vec<String>,
    },
    /// Decisive: it is not what a known key signed, or only a revoked key did.
    Bad(BadSignature),
    /// The signature of a known key holds, but the key or the signature has expired. No judgement:
    /// so do old archives look, whose keys were good when they signed.
    Expired {
        /// The certificates that signed.
        signers: Vec<String>,
    },
    /// A known key is said to have signed, in a way that proves nothing or that is not understood:
    /// MD5, SHA-1, DSA, RSA below 2048 bits, an unknown curve. No judgement.
    Weak {
        /// The certificates that are said to have signed.
        signers: Vec<String>,
    },
    /// It is signed, by keys that are not in the keyring. No judgement.
    UnknownKey {
        /// Fingerprints, or key ids of 16 digits where the signature has no more.
        issuers: Vec<String>,
    },
    /// There is no signature.
    Unsigned,
    /// The framing is broken, so that nothing can be said; apt would not take it either.
    Malformed(Malformed),
}

impl Verdict {
    /// Whether the file has been proven wrong, which even a lenient cache must refuse.
    #[must_use]
    pub fn is_decisive(&self) -> bool {
        matches!(self, Self::Bad(_))
    }

    /// Whether a known key vouches for the file.
    #[must_use]
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Good { .. })
    }

    /// What `label` tells.
    pub const LABELS: [&str; 7] =
        ["good", "bad", "expired_key", "weak", "unknown_key", "unsigned", "malformed"];

    /// The word for logs and metric labels.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Good { .. } => "good",
            Self::Bad(_) => "bad",
            Self::Expired { .. } => "expired_key",
            Self::Weak { .. } => "weak",
            Self::UnknownKey { .. } => "unknown_key",
            Self::Unsigned => "unsigned",
            Self::Malformed(_) => "malformed",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good { signers } => write!(f, "signed by {}", signers.join(", ")),
            Self::Bad(reason) => reason.fmt(f),
            Self::Expired { signers } => write!(f, "signed by expired {}", signers.join(", ")),
            Self::Weak { signers } => write!(f, "weak signature by {}", signers.join(", ")),
            Self::UnknownKey { issuers } => write!(f, "signed by unknown {}", issuers.join(", ")),
            Self::Unsigned => f.write_str("not signed"),
            Self::Malformed(reason) => reason.fmt(f),
        }
    }
}

/// Why a signature is decisive against its file.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadSignature {
    /// The signature is not one of this text by this key.
    #[error("the signature by {signer} is wrong")]
    Wrong {
        /// The certificate that is said to have signed.
        signer: String,
    },
    /// The key was revoked by its owner, and no other known key signed.
    #[error("the signing key {signer} is revoked")]
    Revoked {
        /// The certificate that signed.
        signer: String,
    },
}

/// Why a signed file can not be read as one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// It has no signature where one belongs.
    #[error("it is not signed")]
    NotSigned,
    /// Text or signature exceed [`TEXT_BYTES_MAX`] or [`SIGNATURE_BYTES_MAX`].
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// It has more than [`SIGNATURES_MAX`] signatures.
    #[error("it has more than {SIGNATURES_MAX} signatures")]
    TooManySignatures,
    /// Something stands before the signed message, where a careless reader could take it for
    /// signed.
    #[error("it has text before the signed message")]
    TextBefore,
    /// Something stands after the signature.
    #[error("it has text after the signature")]
    TextAfter,
    /// The signed message has a header other than `Hash` (RFC 9580 §7.1), for example one that
    /// would change how the text is read.
    #[error("the signed message has an unknown header")]
    Header,
    /// A line begins with a dash that is not escaped (RFC 9580 §7.2).
    #[error("line {line} has a dash that is not escaped")]
    Dash {
        /// The line's number, from 1.
        line: usize,
    },
    /// A carriage return stands elsewhere than at the end of a line, where readers disagree.
    #[error("line {line} has a carriage return in it")]
    CarriageReturn {
        /// The line's number, from 1.
        line: usize,
    },
    /// There is a NUL in it.
    #[error("it has a NUL byte in it")]
    Nul,
    /// It ends before its signature does.
    #[error("it is cut short")]
    Truncated,
    /// The ASCII armour (RFC 9580 §6.2) can not be read.
    #[error("its armour is broken")]
    Armour,
    /// The packets (RFC 9580 §4) can not be read, or are no signatures.
    #[error("its signature packets are broken")]
    Packets,
}

impl From<Malformed> for Verdict {
    fn from(reason: Malformed) -> Self {
        match reason {
            Malformed::NotSigned => Self::Unsigned,
            _ => Self::Malformed(reason),
        }
    }
}
