//! Certificates (RFC 9580 §10.1.1), read packet by packet: which of their keys may sign, and until when.

use pgp::errors::Error as PgpError;
use pgp::packet::{
    PacketHeader, PublicKey, PublicSubkey, Signature, SignatureType, SubpacketData, UserId,
};
use pgp::types::{Duration, KeyDetails as _, PublicParams, Tag, Timestamp};

use super::armour::{self, Packet};
use super::keyring::{Key, Material};

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
pub(super) struct Certificate {
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
    pub(super) fn read(packet: Packet<'_>) -> Option<Self> {
        if packet.tag != armour::PUBLIC_KEY {
            return None;
        }
        let header = header(packet, Tag::PublicKey)?;
        let key = whole(packet, |body| PublicKey::try_from_reader(header, body))?;
        let is_weak = is_weak(packet.body, key.public_params());
        let primary = Component { key, binding: None, is_revoked: false, is_weak };
        Some(Self { primary, subkeys: Vec::new(), subject: Subject::Primary })
    }

    pub(super) fn take_packet(&mut self, packet: Packet<'_>) {
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
    pub(super) fn into_keys(self) -> Vec<Key> {
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
