//! Keys and signatures for tests, made with the same crate, and one of each made with gpg.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pgp::composed::KeyType;
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{
    KeyFlags, PacketTrait, PubKeyInner, PublicKey, PublicSubkey, SecretKey, SecretSubkey,
    Signature, SignatureConfig, SignatureType, Subpacket, SubpacketData, UserId,
};
use pgp::types::{Duration, KeyDetails, KeyVersion, Password, SigningKey, Tag, Timestamp};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

// Times, in seconds since 1970: when keys and signatures are made, one later, and the checks'.
pub(super) const MADE: i64 = 1_600_000_000;
pub(super) const LATER: i64 = MADE + 1000;
pub(super) const NOW: i64 = 1_700_000_000;

/// What is special about a key.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each test sets one of them")]
pub(super) struct Spec {
    /// As gpg makes them, algorithm 22 instead of 27 (RFC 9580 §9.1).
    pub(super) is_legacy: bool,
    pub(super) key_lifetime: Option<i64>,
    pub(super) signature_lifetime: Option<i64>,
    /// When the key's owner last said what the key may do.
    pub(super) bound_at: i64,
    pub(super) is_revoked: bool,
    /// Whether the key's own signature is on it, or a stranger's.
    pub(super) is_certified: bool,
    pub(super) may_sign: bool,
    /// Whether a subkey signs instead, and whether it says itself whose it is.
    pub(super) subkey: Option<bool>,
    pub(super) names_id_only: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            is_legacy: false,
            key_lifetime: None,
            signature_lifetime: None,
            bound_at: MADE,
            is_revoked: false,
            is_certified: true,
            may_sign: true,
            subkey: None,
            names_id_only: false,
        }
    }
}

/// An archive that signs.
pub(super) struct Signer {
    spec: Spec,
    public: PublicKey,
    secret: SecretKey,
    sub_public: PublicSubkey,
    sub_secret: SecretSubkey,
}

impl Signer {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(seed, Spec::default())
    }

    /// The same seed gives the same key.
    pub(super) fn with(seed: u64, spec: Spec) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let kind = if spec.is_legacy { KeyType::Ed25519Legacy } else { KeyType::Ed25519 };
        let mut key = || {
            let (public, secret) = kind.generate(&mut rng).unwrap();
            let (version, algorithm) = (KeyVersion::V4, kind.to_alg());
            let made = timestamp(MADE);
            (PubKeyInner::new(version, algorithm, made, None, public).unwrap(), secret)
        };
        let (public, secret) = key();
        let public = PublicKey::from_inner(public).unwrap();
        let secret = SecretKey::new(public.clone(), secret).unwrap();
        let (sub_public, sub_secret) = key();
        let sub_public = PublicSubkey::from_inner(sub_public).unwrap();
        let sub_secret = SecretSubkey::new(sub_public.clone(), sub_secret).unwrap();
        Self { spec, public, secret, sub_public, sub_secret }
    }

    pub(super) fn fingerprint(&self) -> String {
        format!("{:X}", self.public.fingerprint())
    }

    pub(super) fn subkey_fingerprint(&self) -> String {
        format!("{:X}", self.sub_public.fingerprint())
    }

    /// The certificate's packets.
    pub(super) fn certificate(&self) -> Vec<u8> {
        let mut packets = bytes(&self.public);
        if self.spec.is_revoked {
            let config = self.config(SignatureType::KeyRevocation, LATER, &self.secret, vec![]);
            let revocation = config.sign_key(&self.secret, &Password::empty(), &self.public);
            packets.extend(bytes(&revocation.unwrap()));
        }
        let user = UserId::from_str(pgp::types::PacketHeaderVersion::New, "archive").unwrap();
        packets.extend(bytes(&user));
        packets.extend(bytes(&self.self_signature(&user)));
        if let Some(agrees) = self.spec.subkey {
            packets.extend(bytes(&self.sub_public));
            packets.extend(bytes(&self.binding(agrees)));
        }
        packets
    }

    fn self_signature(&self, user: &UserId) -> Signature {
        let mut data = vec![flags(self.spec.may_sign)];
        if let Some(lifetime) = self.spec.key_lifetime {
            data.push(SubpacketData::KeyExpirationTime(duration(lifetime)));
        }
        let stranger;
        let secret = if self.spec.is_certified {
            &self.secret
        } else {
            stranger = Self::new(99);
            &stranger.secret
        };
        self.config(SignatureType::CertPositive, self.spec.bound_at, &self.secret, data)
            .sign_certification(secret, &self.public, &Password::empty(), Tag::UserId, user)
            .unwrap()
    }

    fn binding(&self, agrees: bool) -> Signature {
        let mut data = vec![flags(true)];
        if agrees {
            let back = self
                .config(SignatureType::KeyBinding, MADE, &self.sub_secret, vec![])
                .sign_primary_key_binding(
                    &self.sub_secret,
                    &self.sub_public,
                    &Password::empty(),
                    &self.public,
                );
            data.push(SubpacketData::EmbeddedSignature(Box::new(back.unwrap())));
        }
        self.config(SignatureType::SubkeyBinding, MADE, &self.secret, data)
            .sign_subkey_binding(&self.secret, &self.public, &Password::empty(), &self.sub_public)
            .unwrap()
    }

    /// A signature packet over text: over what a cleartext message has after its normalisation.
    pub(super) fn sign_text(&self, text: &str) -> Vec<u8> {
        let lines: Vec<&str> =
            text.split('\n').map(|line| line.trim_end_matches([' ', '\t', '\r'])).collect();
        self.sign(SignatureType::Text, lines.join("\n").as_bytes())
    }

    /// A signature packet over bytes as they are.
    pub(super) fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        self.sign(SignatureType::Binary, bytes)
    }

    fn sign(&self, kind: SignatureType, data: &[u8]) -> Vec<u8> {
        let lifetime = self.spec.signature_lifetime.map(duration);
        let extra = lifetime.map(SubpacketData::SignatureExpirationTime).into_iter().collect();
        let password = Password::empty();
        let signature = if self.spec.subkey.is_some() {
            let config = self.config(kind, MADE, &self.sub_secret, extra);
            config.sign(&self.sub_secret, &password, data)
        } else {
            self.config(kind, MADE, &self.secret, extra).sign(&self.secret, &password, data)
        };
        bytes(&signature.unwrap())
    }

    fn config(
        &self,
        kind: SignatureType,
        at: i64,
        issuer: &impl SigningKey,
        extra: Vec<SubpacketData>,
    ) -> SignatureConfig {
        let mut config = SignatureConfig::v4(kind, issuer.algorithm(), HashAlgorithm::Sha512);
        let mut data = vec![SubpacketData::SignatureCreationTime(timestamp(at))];
        data.extend(extra);
        if self.spec.names_id_only {
            data.push(SubpacketData::IssuerKeyId(issuer.legacy_key_id()));
        } else {
            data.push(SubpacketData::IssuerFingerprint(issuer.fingerprint()));
        }
        config.hashed_subpackets =
            data.into_iter().map(|it| Subpacket::regular(it).unwrap()).collect();
        config
    }
}

/// A cleartext message of `text`, with these signature packets.
pub(super) fn clearsigned(text: &str, signatures: &[Vec<u8>]) -> Vec<u8> {
    let mut message = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n".to_vec();
    for line in text.split('\n') {
        if line.starts_with('-') {
            message.extend(b"- ");
        }
        message.extend(line.as_bytes());
        message.push(b'\n');
    }
    message.extend(armoured(signatures));
    message
}

/// These signature packets in armour.
pub(super) fn armoured(signatures: &[Vec<u8>]) -> Vec<u8> {
    let base64 = STANDARD.encode(signatures.concat());
    let mut block = b"-----BEGIN PGP SIGNATURE-----\n\n".to_vec();
    for line in base64.as_bytes().chunks(64) {
        block.extend(line);
        block.push(b'\n');
    }
    block.extend(b"-----END PGP SIGNATURE-----\n");
    block
}

/// The signature packet with another last byte, which belongs to the cryptography.
pub(super) fn tampered(mut signature: Vec<u8>) -> Vec<u8> {
    *signature.last_mut().unwrap() ^= 1;
    signature
}

/// The signature packet, said to be over another digest (RFC 9580 §9.5).
pub(super) fn with_digest(mut signature: Vec<u8>, algorithm: HashAlgorithm) -> Vec<u8> {
    let body = if signature[1] < 192 { 2 } else { 3 };
    signature[body + 3] = algorithm.into();
    signature
}

fn bytes(packet: &impl PacketTrait) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.to_writer_with_header(&mut bytes).unwrap();
    bytes
}

fn flags(may_sign: bool) -> SubpacketData {
    let mut flags = KeyFlags::default();
    flags.set_certify(true);
    flags.set_sign(may_sign);
    SubpacketData::KeyFlags(flags)
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_secs(u32::try_from(seconds).unwrap())
}

fn duration(seconds: i64) -> Duration {
    Duration::from_secs(u32::try_from(seconds).unwrap())
}

// gpg 2.2.40: `--quick-gen-key … rsa2048 sign never`, `--export`, `--digest-algo SHA512 --clearsign`.

/// The fingerprint of [`GPG_CERTIFICATE`].
pub(super) const GPG_FINGERPRINT: &str = "3EFC4CBECF70FC5C30F16058B67FEA5EAFBD3AE9";

/// An RSA key.
pub(super) const GPG_CERTIFICATE: &str = "\
-----BEGIN PGP PUBLIC KEY BLOCK-----

mQENBGsDO8EBCADN9MAkRZcifyhtFXuN6lJ6fPcGQgczP1ZnLho0p4KWNZbAvixp
Prua7kdZmLfgAyYj+LqIKJGrlhLRyrDtxIRa4l0j3kHF7T9CLhQWQml6UiI/jPMD
DovQP+wqUEL1LDTgI/Eyf45cgyGuLdQSBP8wTUgD2kRQPOxSdtbJsPmRrsXCcY+s
KyBugJwomp4nPU+/vBjJyYAt22h4fjk0kPkh+XgUMIuKNRjtsvT3CQCe3667+OMa
83IlwD2BzA/P4PxTgsFVnOuxpQNPKmsYdFT8ZI0eYdY8DaBBKPKMfEV84TIdv1rq
ZsyLvXORJKG4f+fkfLbuWEiPMe4CfHoEzXi7ABEBAAG0DGFwdG1lc2ggdGVzdIkB
TgQTAQoAOBYhBD78TL7PcPxcMPFgWLZ/6l6vvTrpBQJrAzvBAhsDBQsJCAcCBhUK
CQgLAgQWAgMBAh4BAheAAAoJELZ/6l6vvTrp7y8H+gMgylQ8g+MNWl2R6uANrMOR
S0Xb3YUkQuiYkZbCgDYaSmQWTNi5WjModB8WYVLGUrvQt6cggkqIqzg+tPkKSK0+
rHnYl8TdPgrAYrF8p2e2Xtax5a1qKaMFTFs3Urb8uXvcqSSDAvRo6LBeG3tVM3pY
DMitom22T7UsyDeHK02VfTTGjmDjl4D5AmVAORWoqX7iWzYeH/rX88qCzhiH6wD5
7tWBU0Fo+pB+wAcYdJG1CHWMgrKXz22cH0sOXDi3RtsuO0v+ERmO1znUJ5FWM3Dr
5ZMGH1lDuEQhRWAf9wtaQET3APV9HLTIDGUG6hzw5Le8HhszzhslMA1SQ2+p/Oo=
=riT0
-----END PGP PUBLIC KEY BLOCK-----
";

/// What the key signed.
pub(super) const GPG_INLINE: &str = "\
-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA512

Origin: Debian
- - dashed 

last
-----BEGIN PGP SIGNATURE-----

iQEzBAEBCgAdFiEEPvxMvs9w/Fww8WBYtn/qXq+9OukFAmsDO8EACgkQtn/qXq+9
OukFowgAipDxGBO3qtw0ce3JK92hQaFlWAMeecyGU06oq38GK1VM5CyA9GXE3ayK
JYlfkuRyxn88KMz58lyCIjVXe17RhS/f8gCdbn3IU9QIvdHDF237IHtWrujrm9RA
3ILySclByo042fkZNasalw4Z77MmtmP5BGy4BPtH7h/aXULS63oj9oPh47m7mu0g
BXcbGUo1FeIMrCaqIyczwb6ORooQfiN77QjIW091TWUFQ5HBZEFUcjE4MothBOEY
0fxEhNtxYHD2VGa73LLOGLO8YapSRbe5tizXzeQfzl06UHU+v8tJXYlkWpv2eGZg
Z/qoyifGXdip0ZciF3oTxHe+xt0mGg==
=r7OM
-----END PGP SIGNATURE-----
";
