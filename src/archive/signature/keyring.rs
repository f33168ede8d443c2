//! The keys that archives are trusted to sign with, and how they are named.

use std::sync::Arc;

use pgp::errors::Error as PgpError;
use pgp::packet::{PublicKey, PublicSubkey, Signature};
use pgp::types::{Fingerprint, KeyId, Timestamp};
use thiserror::Error;

use super::armour::{self, Packets};
use super::certificate::Certificate;

/// The largest keyring file that is read, in bytes. Debian's is 56 kB, and one with all of its
/// developers 30 MB, which is no archive's.
pub const KEYRING_BYTES_MAX: usize = 16 << 20;

/// How many signing keys a keyring takes in all.
pub const KEYS_MAX: usize = 4096;

/// The keys that archives are trusted to sign with. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: Vec<Arc<Key>>,
}

/// Why a keyring file was not taken. Nothing of it is in the keyring then.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyringError {
    /// It exceeds [`KEYRING_BYTES_MAX`].
    #[error("it is larger than {KEYRING_BYTES_MAX} bytes")]
    TooLarge,
    /// The keyring would have more than [`KEYS_MAX`] keys.
    #[error("there are more than {KEYS_MAX} keys in all")]
    TooManyKeys,
    /// It is a gpg keybox, which apt does not take either.
    #[error("it is a gpg keybox, export the keys")]
    Keybox,
    /// It is neither a row of packets nor armoured certificates, or is cut short.
    #[error("it is no OpenPGP keyring, or a damaged one")]
    Damaged,
}

impl Keyring {
    /// Takes the certificates in a keyring file: binary, or ASCII-armoured in one or several
    /// blocks. Tells how many of them have a key that can sign. What this cache can not use (keys
    /// of old versions, unknown algorithms, encryption keys, without a valid self-signature) is
    /// left out without complaint. A certificate that is known already is merged.
    ///
    /// # Errors
    /// When the file can not be read or a limit is exceeded; the keyring is then as it was.
    pub fn add(&mut self, file: &[u8]) -> Result<usize, KeyringError> {
        if file.len() > KEYRING_BYTES_MAX {
            return Err(KeyringError::TooLarge);
        }
        if file.get(8..12) == Some(b"KBXf") {
            return Err(KeyringError::Keybox);
        }
        let mut added = self.clone();
        let count = match file.first() {
            // The first bit of every packet is set (RFC 9580 §4.2).
            Some(first) if first & 0x80 != 0 => added.add_packets(file)?,
            _ => added.add_armoured(file)?,
        };
        *self = added;
        Ok(count)
    }

    /// The keyring that has only those of these keys which `names` names by fingerprint, or by its
    /// last 16 or 8 hex digits (for version 6 keys, its first 16). A primary key's name stands for
    /// all keys of its certificate, unless `!` follows it, a subkey's for that key alone: as with
    /// apt's `Signed-By`. What is no such name names nothing.
    #[must_use]
    pub fn restricted(&self, names: &[String]) -> Self {
        let names: Vec<Name> = names.iter().filter_map(|name| Name::read(name)).collect();
        let is_named = |key: &&Arc<Key>| names.iter().any(|name| name.is_of(key));
        Self { keys: self.keys.iter().filter(is_named).map(Arc::clone).collect() }
    }

    /// How many signing keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no signing key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter().map(AsRef::as_ref)
    }

    fn add_armoured(&mut self, file: &[u8]) -> Result<usize, KeyringError> {
        let mut count = 0;
        let mut blocks = 0;
        let mut rest = file;
        while let Some(start) = memchr::memmem::find(rest, armour::CERTIFICATE.begin) {
            let block = rest.get(start..).unwrap_or_default();
            let (packets, after) =
                armour::read(block, armour::CERTIFICATE).map_err(|_| KeyringError::Damaged)?;
            count += self.add_packets(&packets)?;
            blocks += 1;
            rest = after;
        }
        if blocks == 0 && !file.trim_ascii().is_empty() {
            return Err(KeyringError::Damaged);
        }
        Ok(count)
    }

    fn add_packets(&mut self, bytes: &[u8]) -> Result<usize, KeyringError> {
        let mut count = 0;
        let mut certificate: Option<Certificate> = None;
        for packet in Packets::of(bytes) {
            let packet = packet.map_err(|_| KeyringError::Damaged)?;
            match packet.tag {
                armour::PUBLIC_KEY | armour::SECRET_KEY => {
                    count += self.add_certificate(certificate.take())?;
                    certificate = Certificate::read(packet);
                }
                _ => {
                    if let Some(certificate) = &mut certificate {
                        certificate.take_packet(packet);
                    }
                }
            }
        }
        Ok(count + self.add_certificate(certificate)?)
    }

    fn add_certificate(&mut self, certificate: Option<Certificate>) -> Result<usize, KeyringError> {
        let keys = certificate.map(Certificate::into_keys).unwrap_or_default();
        let is_useful = !keys.is_empty();
        for key in keys {
            if let Some(known) = self.keys.iter_mut().find(|known| known.is_same(&key)) {
                Arc::make_mut(known).merge(&key);
            } else if self.keys.len() < KEYS_MAX {
                self.keys.push(Arc::new(key));
            } else {
                return Err(KeyringError::TooManyKeys);
            }
        }
        Ok(usize::from(is_useful))
    }
}

/// A key that may sign.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// The primary key's fingerprint.
    pub(super) certificate: Fingerprint,
    pub(super) fingerprint: Fingerprint,
    pub(super) id: KeyId,
    pub(super) material: Material,
    /// When the newest signature was made that says what the key may do and until when.
    pub(super) bound_at: Timestamp,
    /// In seconds since 1970.
    pub(super) expires_at: Option<i64>,
    pub(super) is_revoked: bool,
    /// Its signatures prove nothing any more.
    pub(super) is_weak: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Material {
    Primary(PublicKey),
    Subkey(PublicSubkey),
}

impl Key {
    pub(super) fn certificate_hex(&self) -> String {
        format!("{:X}", self.certificate)
    }

    pub(super) fn has_expired(&self, now: i64) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Does the cryptography of `signature` over `bytes`.
    pub(super) fn verify(&self, signature: &Signature, bytes: &[u8]) -> Result<(), PgpError> {
        match &self.material {
            Material::Primary(key) => signature.verify(key, bytes),
            Material::Subkey(key) => signature.verify(key, bytes),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && self.certificate == other.certificate
    }

    /// Learns from another copy of the key: revocation stays, the newest word on expiry counts.
    fn merge(&mut self, other: &Self) {
        self.is_revoked |= other.is_revoked;
        if other.bound_at > self.bound_at {
            self.bound_at = other.bound_at;
            self.expires_at = other.expires_at;
        }
    }
}

/// A key's name in settings.
struct Name {
    /// Upper-case hex.
    digits: String,
    is_exact: bool,
}

impl Name {
    /// Reads 8 to 64 hex digits, with or without spaces, `0x` before and `!` behind them.
    fn read(name: &str) -> Option<Self> {
        let mut digits: String = name.split_whitespace().collect();
        digits.make_ascii_uppercase();
        let is_exact = digits.ends_with('!');
        let digits = digits.trim_end_matches('!').trim_start_matches("0X").to_owned();
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_hex && (8..=64).contains(&digits.len())).then_some(Self { digits, is_exact })
    }

    fn is_of(&self, key: &Key) -> bool {
        let is_named = |fingerprint: &Fingerprint| {
            let hex = format!("{fingerprint:X}");
            match fingerprint {
                // RFC 9580 §5.5.4.3: the key id is the beginning.
                Fingerprint::V6(_) => hex.starts_with(&self.digits),
                _ => hex.ends_with(&self.digits),
            }
        };
        is_named(&key.fingerprint) || !self.is_exact && is_named(&key.certificate)
    }
}

/// Whether `signature` names `key` as its issuer, by fingerprint or key id (RFC 9580 §5.2.3.12,
/// §5.2.3.35).
pub(super) fn names_issuer(signature: &Signature, key: &Key) -> bool {
    signature.issuer_fingerprint().contains(&&key.fingerprint)
        || signature.issuer_key_id().contains(&&key.id)
}

/// The issuers that `signature` names: fingerprints, or else key ids, in upper-case hex.
pub(super) fn issuers(signature: &Signature) -> Vec<String> {
    let fingerprints = signature.issuer_fingerprint();
    if fingerprints.is_empty() {
        let ids = signature.issuer_key_id().into_iter();
        return ids.map(|id| id.to_string().to_uppercase()).take(1).collect();
    }
    fingerprints.into_iter().map(|it| format!("{it:X}")).take(1).collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::super::signing::{Signer, Spec};
    use super::*;

    fn armoured(packets: &[u8]) -> Vec<u8> {
        let base64 = STANDARD.encode(packets);
        format!(
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\n{base64}\n\
             -----END PGP PUBLIC KEY BLOCK-----\n"
        )
        .into_bytes()
    }

    #[test]
    fn binary_and_armoured_files_with_several_certificates_are_read() {
        let (one, two) = (Signer::new(1).certificate(), Signer::new(2).certificate());
        for file in [
            [one.clone(), two.clone()].concat(),
            armoured(&[one.clone(), two.clone()].concat()),
            [armoured(&one), armoured(&two)].concat(),
            [b"Debian's keys\n\n".to_vec(), armoured(&one), b"\n--\n".to_vec(), armoured(&two)]
                .concat(),
        ] {
            let mut keyring = Keyring::default();
            assert_eq!(keyring.add(&file), Ok(2));
            assert_eq!(keyring.len(), 2);
            assert_eq!(keyring.add(&file), Ok(2));
            assert_eq!(keyring.len(), 2, "known certificates are merged");
        }
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let known = Signer::new(1).certificate();
        for unknown in [
            &[0xC6, 8, 3, 0, 0, 0, 0, 0, 0, 1][..],
            &[0xC6, 8, 5, 0, 0, 0, 0, 0, 0, 1],
            &[0xC6, 6, 4, 0, 0, 0, 0, 99],
            &[0xC6, 0],
            &[0xCC, 2, 1, 1],
            &[0xFF, 1, 1],
            &[0xC2, 1, 9],
            &[0xCE, 3, 9, 9, 9],
        ] {
            for file in [[unknown, &known].concat(), [&known, unknown].concat()] {
                let mut keyring = Keyring::default();
                assert_eq!(keyring.add(&file), Ok(1), "{unknown:?}");
            }
        }
        assert_eq!(Keyring::default().add(b""), Ok(0));
        assert_eq!(Keyring::default().add(b"\n"), Ok(0));
    }

    #[test]
    fn damaged_files_change_nothing() {
        let known = Signer::new(1).certificate();
        let cut = &known[..known.len() - 1];
        let mut keybox = vec![0, 0, 0, 32, 1, 1, 0, 2];
        keybox.extend(b"KBXf");
        for (file, error) in [
            ([&Signer::new(2).certificate(), cut].concat(), KeyringError::Damaged),
            (armoured(cut), KeyringError::Damaged),
            (armoured(&known)[..100].to_vec(), KeyringError::Damaged),
            (b"<html>".to_vec(), KeyringError::Damaged),
            (keybox, KeyringError::Keybox),
            (vec![0xC6; KEYRING_BYTES_MAX + 1], KeyringError::TooLarge),
        ] {
            let mut keyring = Keyring::default();
            assert_eq!(keyring.add(&file), Err(error));
            assert!(keyring.is_empty());
        }
    }

    #[test]
    fn another_keys_word_binds_nothing() {
        let signer = Signer::new(1);
        for spec in [
            Spec { is_certified: false, ..Spec::default() },
            Spec { may_sign: false, ..Spec::default() },
        ] {
            assert_eq!(Keyring::default().add(&Signer::with(1, spec).certificate()), Ok(0));
        }
        assert_eq!(Keyring::default().add(&signer.certificate()), Ok(1));
    }

    #[test]
    fn a_keyring_is_restricted_by_fingerprint_or_key_id() {
        let (one, two) =
            (Signer::new(1), Signer::with(2, Spec { subkey: Some(true), ..Spec::default() }));
        let mut keyring = Keyring::default();
        keyring.add(&one.certificate()).unwrap();
        keyring.add(&two.certificate()).unwrap();
        assert_eq!(keyring.len(), 3);
        let (first, second) = (one.fingerprint(), two.fingerprint());
        let subkey = two.subkey_fingerprint();
        for (names, count) in [
            (vec![first.clone()], 1),
            (vec![format!("0x{}", first.to_lowercase())], 1),
            (vec![first[24..].to_owned()], 1),
            (vec![first[32..].to_owned()], 1),
            (vec![second.clone()], 2),
            (vec![format!("{second}!")], 1),
            (vec![subkey.clone()], 1),
            (vec![first.clone(), subkey], 2),
            (vec![first.clone(), second], 3),
            (vec![format!("{} {}", &first[..20], &first[20..])], 1),
            (vec![first[33..].to_owned()], 0),
            (vec![first[..20].to_owned()], 0),
            (vec!["debian".to_owned(), String::new()], 0),
            (vec![], 0),
        ] {
            assert_eq!(keyring.restricted(&names).len(), count, "{names:?}");
        }
    }
}
