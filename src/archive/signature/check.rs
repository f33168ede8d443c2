//! Judging signatures: which keys they name, whether they hold, and what that makes of a file.

use pgp::crypto::hash::HashAlgorithm;
use pgp::errors::Error as PgpError;
use pgp::packet::{Signature, SignatureType};

use super::armour::{self, Packets};
use super::certificate::read_signature;
use super::keyring::{Key, Keyring, issuers, names_issuer};
use super::{
    BadSignature, Malformed, SIGNATURE_BYTES_MAX, SIGNATURES_MAX, TEXT_BYTES_MAX, Verdict,
    cleartext,
};

impl Keyring {
    /// Judges an `InRelease` (RFC 9580 §7) at the time `now`, in seconds since 1970. The text that
    /// was signed is what [`crate::archive::release::content`] gives; nothing else of the file may
    /// be believed.
    #[must_use]
    pub fn check_inline(&self, inrelease: &[u8], now: i64) -> Verdict {
        cleartext::read(inrelease)
            .and_then(|message| {
                self.check(&message.signatures, Signed::Cleartext(message.signed()), now)
            })
            .unwrap_or_else(Verdict::from)
    }

    /// Judges a `Release` by its `Release.gpg` (RFC 9580 §10.4), which may be armoured, in one or
    /// several blocks, or binary. `now` is in seconds since 1970.
    #[must_use]
    pub fn check_detached(&self, release: &[u8], signature: &[u8], now: i64) -> Verdict {
        if release.len() > TEXT_BYTES_MAX {
            return Verdict::Malformed(Malformed::TooLarge { limit: TEXT_BYTES_MAX });
        }
        if memchr::memchr(0, release).is_some() {
            return Verdict::Malformed(Malformed::Nul);
        }
        detached_packets(signature)
            .and_then(|packets| self.check(&packets, Signed::Detached(release), now))
            .unwrap_or_else(Verdict::from)
    }

    /// Judges what is signed by the signature packets in `packets`.
    fn check(&self, packets: &[u8], signed: Signed<'_>, now: i64) -> Result<Verdict, Malformed> {
        let mut findings = Findings::default();
        for packet in Packets::of(packets) {
            let packet = packet?;
            match packet.tag {
                armour::MARKER | armour::PADDING => continue,
                armour::SIGNATURE_PACKET => {}
                _ => return Err(Malformed::Packets),
            }
            if findings.count == SIGNATURES_MAX {
                return Err(Malformed::TooManySignatures);
            }
            findings.count += 1;
            match read_signature(packet) {
                Some(signature) => findings.add(self.judge(&signature, signed, now)),
                None => findings.add(Finding::Unreadable),
            }
        }
        Ok(findings.into_verdict())
    }

    /// Judges one signature.
    fn judge(&self, signature: &Signature, signed: Signed<'_>, now: i64) -> Finding {
        if !signed.may_have(signature) {
            return Finding::Unreadable;
        }
        let mut wrong = None;
        for key in self.keys().filter(|key| names_issuer(signature, key)) {
            match judge_by(key, signature, signed, now) {
                // Two keys may share a key id; that another one did not sign says nothing.
                finding @ Finding::Wrong(_) => wrong = wrong.or(Some(finding)),
                finding => return finding,
            }
        }
        wrong.unwrap_or_else(|| Finding::Unknown(issuers(signature)))
    }
}

/// Judges a signature by a key that its issuer fields name.
fn judge_by(key: &Key, signature: &Signature, signed: Signed<'_>, now: i64) -> Finding {
    let name = key.certificate_hex();
    if key.is_weak || !is_strong(signature.hash_alg()) {
        return Finding::Weak(name);
    }
    match signed.verify(signature, key) {
        Ok(()) if key.is_revoked => Finding::Revoked(name),
        Ok(()) if key.has_expired(now) || has_expired(signature, now) => Finding::Expired(name),
        Ok(()) => Finding::Good(name),
        Err(PgpError::Unsupported { .. } | PgpError::Unimplemented { .. }) => Finding::Weak(name),
        Err(_) => Finding::Wrong(name),
    }
}

/// The digests that still prove something; apt trusts the same ones, and SHA-224, which nobody
/// signs with.
fn is_strong(algorithm: Option<HashAlgorithm>) -> bool {
    matches!(
        algorithm,
        Some(
            HashAlgorithm::Sha256
                | HashAlgorithm::Sha384
                | HashAlgorithm::Sha512
                | HashAlgorithm::Sha3_256
                | HashAlgorithm::Sha3_512
        )
    )
}

/// Whether the signature is past its own end (RFC 9580 §5.2.3.18), or says not when it was made
/// (§5.2.3.11).
fn has_expired(signature: &Signature, now: i64) -> bool {
    let Some(created) = signature.created() else { return true };
    let lifetime = signature.signature_expiration_time().map_or(0, pgp::types::Duration::as_secs);
    lifetime != 0 && i64::from(created.as_secs()) + i64::from(lifetime) <= now
}

/// The packets of a detached signature file.
fn detached_packets(signature: &[u8]) -> Result<Vec<u8>, Malformed> {
    if signature.len() > SIGNATURE_BYTES_MAX {
        return Err(Malformed::TooLarge { limit: SIGNATURE_BYTES_MAX });
    }
    // The first bit of every packet is set (RFC 9580 §4.2), that of no armour is.
    if signature.first().is_some_and(|first| first & 0x80 != 0) {
        return Ok(signature.to_vec());
    }
    let mut packets = Vec::new();
    let mut rest = signature.trim_ascii_start();
    while !rest.is_empty() {
        let (block, after) = armour::read(rest, armour::SIGNATURE)?;
        packets.extend(block);
        rest = after.trim_ascii_start();
    }
    Ok(packets)
}

/// What was signed.
#[derive(Clone, Copy)]
enum Signed<'a> {
    /// The text of a cleartext message: lines ended by LF, without the last line's end.
    Cleartext(&'a [u8]),
    /// A file as it is.
    Detached(&'a [u8]),
}

impl Signed<'_> {
    /// Whether a signature of this type can be one of this text. Text signatures (RFC 9580 §5.2.1)
    /// hold for a file with other line ends too; where it has any but LF, readers could take it
    /// for another text than was signed.
    fn may_have(self, signature: &Signature) -> bool {
        match (signature.typ(), self) {
            (Some(SignatureType::Binary), _) | (Some(SignatureType::Text), Self::Cleartext(_)) => {
                true
            }
            (Some(SignatureType::Text), Self::Detached(file)) => {
                memchr::memchr(b'\r', file).is_none()
            }
            _ => false,
        }
    }

    /// Does the cryptography. Text is hashed with CR LF at the ends of its lines (RFC 9580 §7.2);
    /// for text signatures the crate sees to that.
    fn verify(self, signature: &Signature, key: &Key) -> Result<(), PgpError> {
        match self {
            Self::Cleartext(text) if signature.typ() == Some(SignatureType::Binary) => {
                key.verify(signature, &with_crlf(text))
            }
            Self::Cleartext(bytes) | Self::Detached(bytes) => key.verify(signature, bytes),
        }
    }
}

fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut canonical = Vec::with_capacity(text.len() + text.len() / 32);
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if number > 0 {
            canonical.extend_from_slice(b"\r\n");
        }
        canonical.extend_from_slice(line);
    }
    canonical
}

/// What one signature proves.
enum Finding {
    Good(String),
    Wrong(String),
    Revoked(String),
    Expired(String),
    Weak(String),
    Unknown(Vec<String>),
    /// Of a type or version that is not understood.
    Unreadable,
}

/// What all signatures prove.
#[derive(Default)]
struct Findings {
    count: usize,
    good: Vec<String>,
    wrong: Vec<String>,
    revoked: Vec<String>,
    expired: Vec<String>,
    weak: Vec<String>,
    unknown: Vec<String>,
}

impl Findings {
    fn add(&mut self, finding: Finding) {
        let (list, names) = match finding {
            Finding::Good(signer) => (&mut self.good, vec![signer]),
            Finding::Wrong(signer) => (&mut self.wrong, vec![signer]),
            Finding::Revoked(signer) => (&mut self.revoked, vec![signer]),
            Finding::Expired(signer) => (&mut self.expired, vec![signer]),
            Finding::Weak(signer) => (&mut self.weak, vec![signer]),
            Finding::Unknown(issuers) => (&mut self.unknown, issuers),
            Finding::Unreadable => return,
        };
        for name in names {
            if !list.contains(&name) {
                list.push(name);
            }
        }
    }

    /// gpgv's words as apt weighs them: BADSIG spoils everything; then one GOODSIG is enough;
    /// REVKEYSIG, EXPKEYSIG and EXPSIG are worthless.
    fn into_verdict(self) -> Verdict {
        if let Some(signer) = self.wrong.into_iter().next() {
            return Verdict::Bad(BadSignature::Wrong { signer });
        }
        if !self.good.is_empty() {
            return Verdict::Good { signers: self.good };
        }
        if let Some(signer) = self.revoked.into_iter().next() {
            return Verdict::Bad(BadSignature::Revoked { signer });
        }
        if !self.expired.is_empty() {
            return Verdict::Expired { signers: self.expired };
        }
        if !self.weak.is_empty() {
            return Verdict::Weak { signers: self.weak };
        }
        if !self.unknown.is_empty() {
            return Verdict::UnknownKey { issuers: self.unknown };
        }
        if self.count == 0 { Verdict::Unsigned } else { Verdict::Malformed(Malformed::Packets) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::signing::{
        GPG_CERTIFICATE, GPG_FINGERPRINT, GPG_INLINE, LATER, MADE, NOW, Signer, Spec, armoured,
        clearsigned, tampered, with_digest,
    };
    use super::*;

    const TEXT: &str = "Origin: Debian\nSuite: stable\n- dashed\n\n  indented  \nlast\n";

    fn keyring(signers: &[&Signer]) -> Keyring {
        let mut keyring = Keyring::default();
        for signer in signers {
            assert_eq!(keyring.add(&signer.certificate()), Ok(1));
        }
        keyring
    }

    fn good(signers: &[&Signer]) -> Verdict {
        Verdict::Good { signers: signers.iter().map(|it| it.fingerprint()).collect() }
    }

    fn unknown(signers: &[&Signer]) -> Verdict {
        Verdict::UnknownKey { issuers: signers.iter().map(|it| it.fingerprint()).collect() }
    }

    fn wrong(signer: &Signer) -> Verdict {
        Verdict::Bad(BadSignature::Wrong { signer: signer.fingerprint() })
    }

    /// Judges the same text signed inline and detached; both verdicts must agree.
    fn both(keyring: &Keyring, signatures: &[Vec<u8>], text: &str) -> Verdict {
        let inline = keyring.check_inline(&clearsigned(text, signatures), NOW);
        let release = cleartext::signed_text(&clearsigned(text, signatures)).unwrap();
        let release = release.strip_suffix(b"\n").unwrap();
        assert_eq!(keyring.check_detached(release, &armoured(signatures), NOW), inline);
        assert_eq!(keyring.check_detached(release, &signatures.concat(), NOW), inline);
        inline
    }

    #[test]
    fn a_known_keys_signature_is_good_and_of_this_text_only() {
        let debian = Signer::new(1);
        let signatures = [debian.sign_text(TEXT)];
        assert_eq!(both(&keyring(&[&debian]), &signatures, TEXT), good(&[&debian]));
        let other = TEXT.replace("stable", "evil");
        assert_eq!(both(&keyring(&[&debian]), &signatures, &other), wrong(&debian));
        assert_eq!(both(&Keyring::default(), &signatures, TEXT), unknown(&[&debian]));
    }

    #[test]
    fn a_detached_signature_is_of_every_byte() {
        let debian = Signer::new(1);
        let keyring = keyring(&[&debian]);
        let signature = debian.sign_bytes(b"Origin: Debian \r\n\r\n");
        let check = |release: &[u8]| keyring.check_detached(release, &signature, NOW);
        assert_eq!(check(b"Origin: Debian \r\n\r\n"), good(&[&debian]));
        assert_eq!(check(b"Origin: Debian \n\n"), wrong(&debian));
        assert_eq!(check(b"Origin: Debian\r\n\r\n"), wrong(&debian));
        assert_eq!(check(b"Origin: Debian\0"), Verdict::Malformed(Malformed::Nul));
    }

    #[test]
    fn line_ends_and_blanks_at_them_are_not_signed_inline() {
        let debian = Signer::new(1);
        let signed = clearsigned(TEXT, &[debian.sign_text(TEXT)]);
        let signed = String::from_utf8(signed).unwrap();
        for variant in [
            signed.replace('\n', "\r\n"),
            signed.replace("stable\n", "stable \t \n"),
            signed.replace("- - dashed", "- - dashed\r"),
            signed.replace("Origin", "- Origin"),
        ] {
            let verdict = keyring(&[&debian]).check_inline(variant.as_bytes(), NOW);
            assert_eq!(verdict, good(&[&debian]), "{variant}");
            assert_eq!(cleartext::signed_text(variant.as_bytes()), {
                cleartext::signed_text(signed.as_bytes())
            });
        }
        for variant in [
            signed.replace("  indented", " indented"),
            signed.replace("stable\n", "stable\n\n"),
            signed.replace("last\n", "last\n\n"),
            signed.replace("stable\n", "stable"),
        ] {
            let verdict = keyring(&[&debian]).check_inline(variant.as_bytes(), NOW);
            assert_eq!(verdict, wrong(&debian), "{variant}");
        }
    }

    #[test]
    fn carriage_returns_can_not_join_lines() {
        let debian = Signer::new(1);
        let signature = debian.sign_text("a\nb");
        let inline =
            String::from_utf8(clearsigned("a\nb", std::slice::from_ref(&signature))).unwrap();
        let joined = inline.replace("a\nb", "a\rb");
        assert_eq!(
            keyring(&[&debian]).check_inline(joined.as_bytes(), NOW),
            Verdict::Malformed(Malformed::CarriageReturn { line: 4 })
        );
        assert_eq!(keyring(&[&debian]).check_detached(b"a\nb", &signature, NOW), good(&[&debian]));
        for release in [&b"a\rb"[..], b"a\r\nb"] {
            assert_eq!(
                keyring(&[&debian]).check_detached(release, &signature, NOW),
                Verdict::Malformed(Malformed::Packets)
            );
        }
    }

    #[test]
    fn binary_signatures_of_a_cleartext_cover_its_canonical_form() {
        let debian = Signer::new(1);
        let signature = debian.sign_bytes(b"a\r\n\r\nb");
        let signed = clearsigned("a \n\nb", &[signature]);
        assert_eq!(keyring(&[&debian]).check_inline(&signed, NOW), good(&[&debian]));
    }

    #[test]
    fn long_lines_are_hashed_as_they_are() {
        let debian = Signer::new(1);
        for length in 500..530 {
            let text = format!("{}\n{}\nc", "a".repeat(length), "b".repeat(2 * length));
            assert_eq!(
                both(&keyring(&[&debian]), &[debian.sign_text(&text)], &text),
                good(&[&debian])
            );
        }
    }

    #[test]
    fn one_good_signature_is_enough_beside_unknown_ones() {
        let (debian, ubuntu) = (Signer::new(1), Signer::new(2));
        let signatures = [ubuntu.sign_text(TEXT), debian.sign_text(TEXT)];
        assert_eq!(both(&keyring(&[&debian]), &signatures, TEXT), good(&[&debian]));
        assert_eq!(
            both(&keyring(&[&debian, &ubuntu]), &signatures, TEXT),
            good(&[&ubuntu, &debian])
        );
        assert_eq!(both(&Keyring::default(), &signatures, TEXT), unknown(&[&ubuntu, &debian]));
    }

    #[test]
    fn a_wrong_signature_by_a_known_key_spoils_good_ones() {
        let (debian, ubuntu) = (Signer::new(1), Signer::new(2));
        let signatures = [debian.sign_text(TEXT), tampered(ubuntu.sign_text(TEXT))];
        assert_eq!(both(&keyring(&[&debian, &ubuntu]), &signatures, TEXT), wrong(&ubuntu));
        assert_eq!(both(&keyring(&[&debian]), &signatures, TEXT), good(&[&debian]));
    }

    #[test]
    fn expired_keys_and_signatures_can_not_judge() {
        let old = Signer::with(1, Spec { key_lifetime: Some(NOW - MADE), ..Spec::default() });
        let signature = old.sign_text(TEXT);
        let signed = clearsigned(TEXT, std::slice::from_ref(&signature));
        let keyring = keyring(&[&old]);
        let expired = Verdict::Expired { signers: vec![old.fingerprint()] };
        assert_eq!(keyring.check_inline(&signed, NOW - 1), good(&[&old]));
        assert_eq!(keyring.check_inline(&signed, NOW), expired);
        assert_eq!(both(&keyring, &[tampered(signature)], TEXT), wrong(&old));

        let brief =
            Signer::with(2, Spec { signature_lifetime: Some(NOW - MADE), ..Spec::default() });
        let signed = clearsigned(TEXT, &[brief.sign_text(TEXT)]);
        let keyring = self::keyring(&[&brief]);
        assert_eq!(keyring.check_inline(&signed, NOW - 1), good(&[&brief]));
        assert_eq!(
            keyring.check_inline(&signed, NOW),
            Verdict::Expired { signers: vec![brief.fingerprint()] }
        );
    }

    #[test]
    fn a_revoked_key_is_decisive_unless_another_key_signed() {
        let lost = Signer::with(1, Spec { is_revoked: true, ..Spec::default() });
        let debian = Signer::new(2);
        let signatures = [lost.sign_text(TEXT)];
        assert_eq!(
            both(&keyring(&[&lost]), &signatures, TEXT),
            Verdict::Bad(BadSignature::Revoked { signer: lost.fingerprint() })
        );
        let signatures = [lost.sign_text(TEXT), debian.sign_text(TEXT)];
        assert_eq!(both(&keyring(&[&lost, &debian]), &signatures, TEXT), good(&[&debian]));
    }

    #[test]
    fn weak_digests_can_not_judge() {
        let debian = Signer::new(1);
        for digest in [HashAlgorithm::Sha1, HashAlgorithm::Md5, HashAlgorithm::Other(200)] {
            let weak = with_digest(debian.sign_text(TEXT), digest);
            assert_eq!(
                both(&keyring(&[&debian]), &[weak], TEXT),
                Verdict::Weak { signers: vec![debian.fingerprint()] }
            );
        }
    }

    #[test]
    fn what_gpg_signs_is_understood() {
        let mut keyring = Keyring::default();
        assert_eq!(keyring.add(GPG_CERTIFICATE.as_bytes()), Ok(1));
        let signer = GPG_FINGERPRINT.to_owned();
        let check = |inline: &str| keyring.check_inline(inline.as_bytes(), NOW * 2);
        assert_eq!(check(GPG_INLINE), Verdict::Good { signers: vec![signer.clone()] });
        let other = GPG_INLINE.replace("Debian", "Evil");
        assert_eq!(check(&other), Verdict::Bad(BadSignature::Wrong { signer }));
        assert_eq!(
            cleartext::signed_text(GPG_INLINE.as_bytes()).unwrap(),
            b"Origin: Debian\n- dashed\n\nlast\n"
        );
    }

    #[test]
    fn ed25519_as_gpg_has_it_is_understood() {
        let signer = Signer::with(1, Spec { is_legacy: true, ..Spec::default() });
        let keyring = keyring(&[&signer]);
        assert_eq!(both(&keyring, &[signer.sign_text(TEXT)], TEXT), good(&[&signer]));
        assert_eq!(both(&keyring, &[tampered(signer.sign_text(TEXT))], TEXT), wrong(&signer));
    }

    #[test]
    fn signing_subkeys_stand_for_their_certificate() {
        let debian = Signer::with(1, Spec { subkey: Some(true), ..Spec::default() });
        let signatures = [debian.sign_text(TEXT)];
        assert_eq!(both(&keyring(&[&debian]), &signatures, TEXT), good(&[&debian]));
        // Without its own word a subkey could be anybody's.
        let thief = Signer::with(1, Spec { subkey: Some(false), ..Spec::default() });
        let verdict = both(&keyring(&[&thief]), &[thief.sign_text(TEXT)], TEXT);
        assert_eq!(verdict.label(), "unknown_key");
    }

    #[test]
    fn key_ids_name_issuers_too() {
        let debian = Signer::with(1, Spec { names_id_only: true, ..Spec::default() });
        let signatures = [debian.sign_text(TEXT)];
        assert_eq!(both(&keyring(&[&debian]), &signatures, TEXT), good(&[&debian]));
        let id = debian.fingerprint().split_off(24);
        let unknown = Verdict::UnknownKey { issuers: vec![id] };
        assert_eq!(both(&Keyring::default(), &signatures, TEXT), unknown);
    }

    #[test]
    fn missing_and_broken_signatures_are_told_apart() {
        let debian = Signer::new(1);
        let keyring = keyring(&[&debian]);
        let signature = debian.sign_text("a");
        let check = |signature: &[u8]| keyring.check_detached(b"a", signature, NOW);
        assert_eq!(check(b""), Verdict::Unsigned);
        assert_eq!(check(b" \n"), Verdict::Unsigned);
        assert_eq!(keyring.check_inline(b"Origin: Debian\n", NOW), Verdict::Unsigned);
        assert_eq!(check(b"<html>"), Verdict::Malformed(Malformed::Armour));
        let cut = signature.len() - 1;
        assert_eq!(check(&signature[..cut]), Verdict::Malformed(Malformed::Packets));
        assert_eq!(check(&debian.certificate()), Verdict::Malformed(Malformed::Packets));
        assert_eq!(check(&[0xC2, 3, 3, 5, 0]), Verdict::Malformed(Malformed::Packets));
        let long = vec![0xC2; SIGNATURE_BYTES_MAX + 1];
        assert_eq!(check(&long).label(), "malformed");
        let two_blocks = armoured(&[signature]).repeat(2);
        assert_eq!(check(&two_blocks), good(&[&debian]));
    }

    #[test]
    fn the_number_of_signatures_is_bounded() {
        let debian = Signer::new(1);
        let many = vec![debian.sign_text("a"); SIGNATURES_MAX];
        assert_eq!(both(&keyring(&[&debian]), &many, "a"), good(&[&debian]));
        let more = vec![debian.sign_text("a"); SIGNATURES_MAX + 1];
        let refused = Verdict::Malformed(Malformed::TooManySignatures);
        assert_eq!(both(&keyring(&[&debian]), &more, "a"), refused);
    }

    #[test]
    fn no_flipped_bit_makes_a_verdict_good_for_another_text() {
        let debian = Signer::new(1);
        let keyring = keyring(&[&debian]);
        let signature = debian.sign_text("a");
        for at in 0..signature.len() {
            let mut flipped = signature.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(!keyring.check_detached(b"b", &flipped, NOW).is_good(), "byte {at}");
        }
    }

    #[test]
    fn a_later_copy_of_a_certificate_prolongs_or_revokes_it() {
        let short = Spec { key_lifetime: Some(10), ..Spec::default() };
        let old = Signer::with(1, short);
        let renewed = Signer::with(1, Spec { bound_at: LATER, ..Spec::default() });
        let revoked = Signer::with(1, Spec { is_revoked: true, ..short });
        let signatures = [old.sign_text(TEXT)];
        for order in [[&old, &renewed], [&renewed, &old]] {
            assert_eq!(both(&keyring(&order), &signatures, TEXT), good(&[&old]));
        }
        let verdict = both(&keyring(&[&renewed, &revoked]), &signatures, TEXT);
        assert_eq!(verdict.label(), "bad");
    }
}
