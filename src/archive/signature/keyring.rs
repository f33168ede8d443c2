//! Certificates (RFC 9580 §10.1.1) and which of their keys may sign.

use std::sync::Arc;

use pgp::errors::Error as PgpError;
use pgp::packet::{
    PacketHeader, PublicKey, PublicSubkey, Signature, SignatureType, SubpacketData, UserId,
};
use pgp::types::{Duration, Fingerprint, KeyDetails as _, KeyId, PublicParams, Tag, Timestamp};
use thiserror::Error;

use super::armour::{self, Packet, Packets};

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
    certificate: Fingerprint,
    fingerprint: Fingerprint,
    id: KeyId,
    material: Material,
    /// When the newest signature was made that says what the key may do and until when.
    bound_at: Timestamp,
    /// In seconds since 1970.
    expires_at: Option<i64>,
    pub(super) is_revoked: bool,
    /// Its signatures prove nothing any more.
    pub(super) is_weak: bool,
}

#[derive(Clone, Debug)]
enum Material {
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

/// Reads a signature packet of version 4 or 6; older ones and what is broken is `None`.
pub(super) fn read_signature(packet: Packet<'_>) -> Option<Signature> {
    let header = header(packet, Tag::Signature)?;
    whole(packet, |body| Signature::try_from_reader(header, body))
}

fn header(packet: Packet<'_>, tag: Tag) -> Option<PacketHeader> {
    matches!(packet.body.first(), Some(4 | 6)).then_some(())?;
    Some(PacketHeader::new_fixed(tag, u32::try_from(packet.body.len()).ok()?))
}

/// What `read` makes of the packet's body, if it is all of it.
fn whole<T>(packet: Packet<'_>, read: impl FnOnce(&mut &[u8]) -> Result<T, PgpError>) -> Option<T> {
    let mut body = packet.body;
    let value = read(&mut body).ok()?;
    body.is_empty().then_some(value)
}

/// A certificate while its packets are read (RFC 9580 §10.1.1).
struct Certificate {
    primary: Component<PublicKey>,
    subkeys: Vec<Component<PublicSubkey>>,
    /// What the next signature packets are about.
    subject: Subject,
}

enum Subject {
    Primary,
    User(UserId),
    /// The last of the subkeys.
    Subkey,
    /// Something that is not of interest or not understood.
    Other,
}

/// A key and what valid signatures by the certificate's primary key say about it.
struct Component<K> {
    key: K,
    binding: Option<Binding>,
    is_revoked: bool,
    is_weak: bool,
}

/// The newest word on a key.
#[derive(Clone, Copy)]
struct Binding {
    made_at: Timestamp,
    lifetime: Option<Duration>,
    /// `None` where the signature is silent on it.
    may_sign: Option<bool>,
}

impl Certificate {
    fn read(packet: Packet<'_>) -> Option<Self> {
        if packet.tag != armour::PUBLIC_KEY {
            return None;
        }
        let header = header(packet, Tag::PublicKey)?;
        let key = whole(packet, |body| PublicKey::try_from_reader(header, body))?;
        let is_weak = is_weak(packet.body, key.public_params());
        let primary = Component { key, binding: None, is_revoked: false, is_weak };
        Some(Self { primary, subkeys: Vec::new(), subject: Subject::Primary })
    }

    fn take_packet(&mut self, packet: Packet<'_>) {
        match packet.tag {
            armour::USER_ID => {
                let Ok(length) = u32::try_from(packet.body.len()) else { return };
                let header = PacketHeader::new_fixed(Tag::UserId, length);
                let user = UserId::try_from_reader(header, packet.body);
                self.subject = user.map_or(Subject::Other, Subject::User);
            }
            armour::PUBLIC_SUBKEY => {
                self.subject = match read_subkey(packet) {
                    Some(subkey) => {
                        self.subkeys.push(subkey);
                        Subject::Subkey
                    }
                    None => Subject::Other,
                }
            }
            armour::USER_ATTRIBUTE | armour::SECRET_SUBKEY => self.subject = Subject::Other,
            armour::SIGNATURE_PACKET => {
                if let Some(signature) = read_signature(packet) {
                    self.take_signature(&signature);
                }
            }
            _ => {}
        }
    }

    /// Believes a signature about this certificate if its own primary key made it.
    fn take_signature(&mut self, signature: &Signature) {
        let primary = &self.primary.key;
        match (&self.subject, signature.typ()) {
            (Subject::Primary, Some(SignatureType::KeyRevocation)) => {
                self.primary.is_revoked |= signature.verify_key(primary).is_ok();
            }
            (Subject::Primary, Some(SignatureType::Key))
                if signature.verify_key(primary).is_ok() =>
            {
                self.primary.bind(signature);
            }
            (Subject::User(user), Some(kind))
                if kind != SignatureType::CertRevocation
                    && signature.verify_certification(primary, Tag::UserId, user).is_ok() =>
            {
                self.primary.bind(signature);
            }
            (Subject::Subkey, Some(kind)) => {
                if let Some(subkey) = self.subkeys.last_mut() {
                    subkey.take_signature(primary, kind, signature);
                }
            }
            _ => {}
        }
    }

    /// The keys of the certificate that may sign.
    fn into_keys(self) -> Vec<Key> {
        let certificate = self.primary.key.fingerprint();
        let Some(binding) = self.primary.binding else { return Vec::new() };
        let expires_at = binding.expires_at(self.primary.key.created_at());
        let mut keys = Vec::new();
        if binding.may_sign != Some(false) {
            keys.push(Key {
                certificate: certificate.clone(),
                fingerprint: certificate.clone(),
                id: self.primary.key.legacy_key_id(),
                bound_at: binding.made_at,
                expires_at,
                is_revoked: self.primary.is_revoked,
                is_weak: self.primary.is_weak,
                material: Material::Primary(self.primary.key),
            });
        }
        for subkey in self.subkeys {
            let Some(own) = subkey.binding.filter(|own| own.may_sign == Some(true)) else {
                continue;
            };
            let ends = [expires_at, own.expires_at(subkey.key.created_at())];
            keys.push(Key {
                certificate: certificate.clone(),
                fingerprint: subkey.key.fingerprint(),
                id: subkey.key.legacy_key_id(),
                bound_at: own.made_at.max(binding.made_at),
                expires_at: ends.into_iter().flatten().min(),
                is_revoked: subkey.is_revoked || self.primary.is_revoked,
                is_weak: subkey.is_weak,
                material: Material::Subkey(subkey.key),
            });
        }
        keys
    }
}

impl<K> Component<K> {
    /// Takes in what a signature, which is valid, says of the key.
    fn bind(&mut self, signature: &Signature) {
        let Some(made_at) = signature.created() else { return };
        if self.binding.is_some_and(|known| known.made_at > made_at) {
            return;
        }
        let has_flags = signature.config().is_some_and(|config| {
            config.hashed_subpackets().any(|it| matches!(it.data, SubpacketData::KeyFlags(_)))
        });
        self.binding = Some(Binding {
            made_at,
            lifetime: signature.key_expiration_time(),
            may_sign: has_flags.then(|| signature.key_flags().sign()),
        });
    }
}

impl Binding {
    /// When a key that was made at `created` expires, in seconds since 1970. A lifetime of 0 has
    /// no end (RFC 9580 §5.2.3.13).
    fn expires_at(self, created: Timestamp) -> Option<i64> {
        let lifetime = self.lifetime.map_or(0, Duration::as_secs);
        (lifetime != 0).then(|| i64::from(created.as_secs()) + i64::from(lifetime))
    }
}

fn read_subkey(packet: Packet<'_>) -> Option<Component<PublicSubkey>> {
    let header = header(packet, Tag::PublicSubkey)?;
    let key = whole(packet, |body| PublicSubkey::try_from_reader(header, body))?;
    let is_weak = is_weak(packet.body, key.public_params());
    Some(Component { key, binding: None, is_revoked: false, is_weak })
}

impl Component<PublicSubkey> {
    fn take_signature(&mut self, primary: &PublicKey, kind: SignatureType, signature: &Signature) {
        match kind {
            SignatureType::SubkeyRevocation => {
                self.is_revoked |= signature.verify_subkey_binding(primary, &self.key).is_ok();
            }
            SignatureType::SubkeyBinding if is_bound(primary, &self.key, signature) => {
                self.bind(signature);
            }
            _ => {}
        }
    }
}

/// Whether `signature` binds the subkey; one that signs must itself say so (RFC 9580 §10.1.5), or
/// anybody could claim another's signatures as theirs.
fn is_bound(primary: &PublicKey, subkey: &PublicSubkey, signature: &Signature) -> bool {
    if signature.verify_subkey_binding(primary, subkey).is_err() {
        return false;
    }
    !signature.key_flags().sign()
        || signature
            .embedded_signature()
            .is_some_and(|back| back.verify_primary_key_binding(subkey, primary).is_ok())
}

/// Whether a key of this kind proves nothing any more: what apt refuses too (its
/// `APT::Key::Assert-Pubkey-Algo`).
fn is_weak(body: &[u8], params: &PublicParams) -> bool {
    match params {
        PublicParams::RSA(_) => {
            // The length in bits of the modulus: RFC 9580 §5.5.2, behind version, time, algorithm
            // and in version 6 another length.
            let at = if body.first() == Some(&6) { 10 } else { 6 };
            let bits = body.get(at..).and_then(|it| it.first_chunk()).copied();
            u16::from_be_bytes(bits.unwrap_or_default()) < 2048
        }
        PublicParams::DSA(_) | PublicParams::Elgamal(_) => true,
        _ => false,
    }
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
