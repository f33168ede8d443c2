//! Signatures: whatever the bytes, what is good is what the keys signed, and nobody takes a key's
//! trust. `fuzz/seeds/signature` has keys that gpg made, and what they signed; both are where to
//! begin from.
#![no_main]

use std::sync::LazyLock;

use aptmesh::archive::release::content;
use aptmesh::archive::signature::{KEYS_MAX, Keyring};
use libfuzzer_sys::fuzz_target;

const KEYS: &[u8] = include_bytes!("../seeds/signature/keyring.gpg");
const RELEASE: &[u8] = include_bytes!("../seeds/signature/Release");
const SIGNATURE: &[u8] = include_bytes!("../seeds/signature/Release.gpg");
const BY_REVOKED: &[u8] = include_bytes!("../seeds/signature/InRelease.gone");

/// An hour after the signatures were made, in seconds since 1970.
const NOW: i64 = 1_700_003_600;

static KEYRING: LazyLock<Keyring> = LazyLock::new(|| {
    let mut keyring = Keyring::default();
    assert_eq!(keyring.add(KEYS), Ok(6));
    assert!(keyring.check_detached(RELEASE, SIGNATURE, NOW).is_good());
    assert!(keyring.check_inline(BY_REVOKED, NOW).is_decisive());
    keyring
});

fuzz_target!(|data: &[u8]| {
    inline(data);
    detached(data);
    keys(data);
    names(data);
});

/// What is good is what was signed, and [`content`] finds just that in it.
fn inline(data: &[u8]) {
    let verdict = KEYRING.check_inline(data, NOW);
    assert!(!verdict.to_string().is_empty());
    if verdict.is_good() {
        assert_eq!(content(data).expect("what is signed is framed").text.as_ref(), RELEASE);
    }
}

/// As a signature of a text that is signed, and as the text of a signature.
fn detached(data: &[u8]) {
    let verdict = KEYRING.check_detached(RELEASE, data, NOW);
    assert!(!verdict.to_string().is_empty());
    if data.starts_with(b"Origin:") {
        let verdict = KEYRING.check_detached(data, SIGNATURE, NOW);
        assert_eq!(verdict.is_good(), data == RELEASE);
    }
}

/// A keyring that can not be read changes nothing; one that can takes no trust from others.
fn keys(data: &[u8]) {
    let mut keyring = KEYRING.clone();
    match keyring.add(data) {
        Err(_) => assert_eq!(keyring.len(), KEYRING.len()),
        Ok(0) => assert_eq!(keyring.len(), KEYRING.len()),
        Ok(_) => {
            assert!((KEYRING.len()..=KEYS_MAX).contains(&keyring.len()));
            assert!(keyring.check_detached(RELEASE, SIGNATURE, NOW).is_good());
        }
    }
}

/// Lines as names of keys.
fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let names: Vec<String> = text.lines().take(64).map(str::to_owned).collect();
    let restricted = KEYRING.restricted(&names);
    assert!(restricted.len() <= KEYRING.len());
    assert_eq!(restricted.restricted(&names).len(), restricted.len());
}
