//! Release files are judged before anybody sees them: by their signatures, their age, and what was
//! accepted before. The keys are made here, by the same gpg that archives sign with.

use crate::kit::*;
use std::fs;
use std::time::{Duration, SystemTime};

pub(crate) const INRELEASE: &str = "/debian/dists/demo/InRelease";
const RELEASE: &str = "/debian/dists/demo/Release";
const RELEASE_GPG: &str = "/debian/dists/demo/Release.gpg";
const VERDICTS: &str = "aptmesh_engine_release_verdicts_total";

pub(crate) fn proxy(verify: &str, signer: &Signer) -> Proxy {
    Proxy::build()
        .env("APTMESH_MIRROR_RECHECK_AFTER", "0s")
        .env("APTMESH_ARCHIVE_VERIFY", verify)
        .env("APTMESH_ARCHIVE_KEYRING", signer.keyring().display().to_string())
        .start()
}

/// A release file made so many days ago.
pub(crate) fn release(days_ago: u64, more: &str) -> String {
    let date = |days: u64| {
        let at = SystemTime::now() - Duration::from_secs(days * 86_400);
        httpdate::fmt_http_date(at).replace("GMT", "UTC")
    };
    let more = more.replace("YESTERDAY", &date(1));
    format!("Suite: demo\nCodename: demo\nDate: {}\n{more}SHA256:\n", date(days_ago))
}

fn put(mirror: &Mirror, path: &str, body: impl Into<Vec<u8>>) {
    mirror.put(path, File::new(body.into()).no_validators());
}

fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, path));
    proxy.wait_landed();
    reply
}

fn verdicts(proxy: &Proxy, verdict: &str) -> u64 {
    proxy.count(&format!("{VERDICTS}{{verdict=\"{verdict}\"}}"))
}

fn admitted(proxy: &Proxy, verdict: &str, admitted: &str) -> u64 {
    proxy.count(&format!("{VERDICTS}{{verdict=\"{verdict}\",admitted=\"{admitted}\"}}"))
}

#[test]
fn a_good_signature_is_enough_for_the_strictest() {
    let mirror = Mirror::start();
    // As Debian signs, and as Ubuntu does.
    for algorithm in ["ed25519", "rsa4096"] {
        let signer = Signer::new(algorithm);
        let proxy = proxy("enforce", &signer);
        let file = signer.clearsign(&release(3, ""));
        put(&mirror, INRELEASE, file.clone());
        assert_eq!(fetch(&proxy, &mirror, INRELEASE).body, file, "{algorithm}");
        let text = release(3, "");
        put(&mirror, RELEASE, text.clone());
        put(&mirror, RELEASE_GPG, signer.detach(&text));
        assert_eq!(fetch(&proxy, &mirror, RELEASE).body, text.as_bytes(), "{algorithm}");
        assert_eq!(verdicts(&proxy, "good"), 2);
        assert_eq!(admitted(&proxy, "good", "yes"), 2);
        assert_eq!(proxy.blobs().len(), 3);
    }
}

#[test]
fn a_wrong_signature_of_a_known_key_is_refused_and_the_old_file_kept() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = proxy("auto", &signer);
    let good = signer.clearsign(&release(3, ""));
    let bad = String::from_utf8(good.clone()).unwrap().replace("Suite: demo", "Suite: dome");

    put(&mirror, INRELEASE, bad.clone());
    let reply = fetch(&proxy, &mirror, INRELEASE);
    assert_eq!(reply.status, 503);
    assert!(reply.reason.contains("signature"), "{}", reply.reason);
    assert_eq!((proxy.blobs().len(), verdicts(&proxy, "bad")), (0, 1));

    put(&mirror, INRELEASE, good.clone());
    assert_eq!(fetch(&proxy, &mirror, INRELEASE).body, good);
    put(&mirror, INRELEASE, bad);
    let reply = fetch(&proxy, &mirror, INRELEASE);
    assert_eq!(reply.body, good);
    assert!(reply.header("cache-status").unwrap().contains("stale"));
}

#[test]
fn what_can_not_be_judged_passes_unless_proof_is_demanded() {
    let (mirror, signer, stranger) =
        (Mirror::start(), Signer::new("ed25519"), Signer::new("ed25519"));
    put(&mirror, INRELEASE, stranger.clearsign(&release(3, "")));
    put(&mirror, RELEASE, release(3, ""));
    let lenient = proxy("auto", &signer);
    let strict = proxy("enforce", &signer);
    for path in [INRELEASE, RELEASE] {
        assert_eq!(fetch(&lenient, &mirror, path).status, 200, "{path}");
        let reply = fetch(&strict, &mirror, path);
        assert_eq!(reply.status, 503, "{path}");
        assert!(reply.reason.contains("signed"), "{}", reply.reason);
    }
    for (proxy, is_admitted) in [(&lenient, "yes"), (&strict, "no")] {
        for verdict in ["unknown_key", "unsigned"] {
            assert_eq!((verdicts(proxy, verdict), admitted(proxy, verdict, is_admitted)), (1, 1));
        }
    }
    assert_eq!(strict.blobs().len(), 0);
}

#[test]
fn a_mirror_that_goes_back_is_not_followed() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = proxy("auto", &signer);
    let (old, new) = (signer.clearsign(&release(9, "")), signer.clearsign(&release(2, "")));
    for (offered, expected) in [(&old, &old), (&new, &new), (&old, &new), (&new, &new)] {
        put(&mirror, INRELEASE, offered.clone());
        let reply = fetch(&proxy, &mirror, INRELEASE);
        assert_eq!((reply.status, &reply.body), (200, expected), "{}", reply.reason);
    }
    assert_eq!(verdicts(&proxy, "older"), 1);
}

#[test]
fn an_expired_release_file_is_refused() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let expired = signer.clearsign(&release(9, "Valid-Until: YESTERDAY\n"));
    put(&mirror, INRELEASE, expired.clone());
    let strict = proxy("auto", &signer);
    let reply = fetch(&strict, &mirror, INRELEASE);
    assert_eq!(reply.status, 503);
    assert!(reply.reason.contains("expired"), "{}", reply.reason);
    assert_eq!(fetch(&proxy("off", &signer), &mirror, INRELEASE).body, expired);
}

#[test]
fn another_spelling_of_the_frame_hides_no_date() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let expired = signer.clearsign(&release(9, "Valid-Until: YESTERDAY\n"));
    let expired = String::from_utf8(expired).unwrap();
    let proxy = proxy("auto", &signer);
    for spelling in ["Hash:SHA512\n\n", "Hash: SHA512\n \n"] {
        put(&mirror, INRELEASE, expired.replace("Hash: SHA512\n\n", spelling));
        let reply = fetch(&proxy, &mirror, INRELEASE);
        assert!(
            reply.reason.contains("expired"),
            "{spelling:?}: {} {}",
            reply.status,
            reply.reason
        );
    }
}

#[test]
fn the_machines_own_archive_is_good_as_it_is() {
    let archive = HostArchive::read();
    let mut allowed = archive.hosts();
    allowed.push("127.0.0.0/8".to_owned());
    let proxy = Proxy::build()
        .env("APTMESH_MIRROR_ALLOW_PRIVATE", allowed.join(","))
        .env("APTMESH_ARCHIVE_VERIFY", "enforce")
        .start();
    let apt = Apt::new(None);
    apt.sources(&archive.lines_prefix(proxy.addr()));
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    assert!(verdicts(&proxy, "good") >= 1);
    assert_eq!(proxy.count(VERDICTS), verdicts(&proxy, "good"));
}

#[test]
fn a_keyring_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not-a-keyring.gpg");
    fs::write(&file, "hello").unwrap();
    // Larger than any memory, though it takes no room.
    let large = folder.path().join("large.gpg");
    fs::File::create(&large).unwrap().set_len(1 << 42).unwrap();
    let missing = folder.path().join("missing.gpg");
    for (path, why) in [(file, "no OpenPGP"), (large, "larger than"), (missing, "No such file")] {
        let run = aptmesh().arg("config").env("APTMESH_ARCHIVE_KEYRING", &path).output().unwrap();
        let complaint = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(78), "{complaint}");
        for part in ["archive.keyring", ".gpg", why] {
            assert!(complaint.contains(part), "{complaint}");
        }
    }
}

/// A proxy that knows the keys of these signers, and these groups of mirrors.
fn grouped(signers: &[&Signer], groups: &str) -> Proxy {
    let keyrings: Vec<String> =
        signers.iter().map(|signer| signer.keyring().display().to_string()).collect();
    Proxy::build()
        .env("APTMESH_MIRROR_RECHECK_AFTER", "0s")
        .env("APTMESH_ARCHIVE_VERIFY", "enforce")
        .env("APTMESH_ARCHIVE_KEYRING", keyrings.join(","))
        .env("APTMESH_ARCHIVE_GROUPS", groups)
        .start()
}

#[test]
fn a_group_is_signed_by_the_keys_that_it_names() {
    let (scoped, free) = (Mirror::start(), Mirror::start_at("127.0.0.2"));
    let [own, second, foreign] = [(); 3].map(|()| Signer::new("ed25519"));
    let keys = [&own, &second].map(|signer| format!("signed-by={}", signer.fingerprint()));
    let group = format!("demo http://{}/debian {}", scoped.host(), keys.join(" "));
    let proxy = grouped(&[&own, &second, &foreign], &group);

    let by_foreign = foreign.clearsign(&release(9, ""));
    for mirror in [&scoped, &free] {
        put(mirror, INRELEASE, by_foreign.clone());
    }
    let reply = fetch(&proxy, &scoped, INRELEASE);
    assert_eq!(reply.status, 503);
    assert!(reply.reason.contains("signed"), "{}", reply.reason);
    assert_eq!((verdicts(&proxy, "unknown_key"), proxy.blobs().len()), (1, 0));
    assert_eq!(fetch(&proxy, &free, INRELEASE).body, by_foreign, "elsewhere all keys count");

    for (days, signer) in [(5, &own), (3, &second)] {
        let file = signer.clearsign(&release(days, ""));
        put(&scoped, INRELEASE, file.clone());
        assert_eq!(fetch(&proxy, &scoped, INRELEASE).body, file);
    }
    assert_eq!(verdicts(&proxy, "good"), 3);
}

#[test]
fn the_halves_of_a_groups_release_file_are_scoped_too() {
    let mirror = Mirror::start();
    let [own, foreign] = [(); 2].map(|()| Signer::new("ed25519"));
    let group = format!("demo http://{}/debian signed-by={}", mirror.host(), own.fingerprint());
    let proxy = grouped(&[&own, &foreign], &group);
    let text = release(3, "");
    put(&mirror, RELEASE, text.clone());
    put(&mirror, RELEASE_GPG, foreign.detach(&text));
    assert_eq!(fetch(&proxy, &mirror, RELEASE).status, 503);
    put(&mirror, RELEASE_GPG, own.detach(&text));
    assert_eq!(fetch(&proxy, &mirror, RELEASE).body, text.as_bytes());
}

#[test]
fn a_groups_keys_may_lie_in_a_file_of_their_own() {
    let (scoped, free) = (Mirror::start(), Mirror::start_at("127.0.0.2"));
    let [known, private] = [(); 2].map(|()| Signer::new("ed25519"));
    let keyring = private.keyring();
    let group = format!("demo http://{}/debian signed-by={}", scoped.host(), keyring.display());
    let proxy = grouped(&[&known], &group);
    let file = private.clearsign(&release(5, ""));
    for (mirror, status) in [(&scoped, 200), (&free, 503)] {
        put(mirror, INRELEASE, file.clone());
        assert_eq!(fetch(&proxy, mirror, INRELEASE).status, status);
    }
    put(&scoped, INRELEASE, known.clearsign(&release(3, "")));
    let reply = fetch(&proxy, &scoped, INRELEASE);
    assert_eq!(reply.body, file, "not by a key of others: {}", reply.reason);
}

/// The state of an archive so many days ago, with both halves of its release file.
fn halves(days_ago: u64, signer: &Signer) -> (String, String) {
    let text = release(days_ago, "");
    let signature = String::from_utf8(signer.detach(&text)).unwrap();
    (text, signature)
}

/// What a client that begins anew is given: a release file, then its signature.
fn both(proxy: &Proxy, mirror: &Mirror) -> (String, String) {
    let mut client = Connection::open(proxy.addr());
    let [text, signature] = [RELEASE, RELEASE_GPG].map(|path| {
        let reply = client.get(&proxy.url_for(mirror, path));
        assert_eq!((reply.status, reply.complete), (200, true), "{path}: {}", reply.reason);
        String::from_utf8(reply.body).unwrap()
    });
    proxy.wait_landed();
    (text, signature)
}

#[test]
fn a_client_gets_the_signature_that_belongs_to_its_release_file() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = proxy("auto", &signer);
    for days in [9, 7, 5] {
        let ((text, signature), newer) = (halves(days, &signer), halves(days - 1, &signer));
        put(&mirror, RELEASE, text.clone());
        put(&mirror, RELEASE_GPG, signature.clone());
        let mut client = Connection::open(proxy.addr());
        assert_eq!(client.get(&proxy.url_for(&mirror, RELEASE)).body, text.as_bytes());
        put(&mirror, RELEASE, newer.0.clone());
        put(&mirror, RELEASE_GPG, newer.1.clone());
        // Meanwhile others are given what the mirror has now.
        proxy.wait_landed();
        assert_eq!(both(&proxy, &mirror), newer);
        let reply = client.get(&proxy.url_for(&mirror, RELEASE_GPG));
        assert_eq!(reply.body, signature.as_bytes(), "{}", reply.reason);
    }
    assert_eq!(verdicts(&proxy, "bad"), 0);
}

#[test]
fn halves_that_do_not_fit_are_never_handed_out() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = proxy("auto", &signer);
    let (old, new, newest) = (halves(9, &signer), halves(5, &signer), halves(2, &signer));
    // What the mirror has, and what clients are given.
    let states = [
        ((&old.0, &old.1), &old),
        ((&new.0, &old.1), &old),
        ((&new.0, &new.1), &new),
        ((&new.0, &newest.1), &new),
        ((&newest.0, &newest.1), &newest),
    ];
    for (number, ((text, signature), given)) in states.into_iter().enumerate() {
        put(&mirror, RELEASE, text.clone());
        put(&mirror, RELEASE_GPG, signature.clone());
        for round in 0..2 {
            assert_eq!(both(&proxy, &mirror), *given, "state {number}, round {round}");
        }
    }
}

#[test]
fn the_accepted_halves_outlive_the_process() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let mut proxy = proxy("auto", &signer);
    let (old, new) = (halves(9, &signer), halves(5, &signer));
    // Whichever of the new halves comes first.
    for (text, signature) in [(&new.0, &old.1), (&old.0, &new.1)] {
        put(&mirror, RELEASE, old.0.clone());
        put(&mirror, RELEASE_GPG, old.1.clone());
        assert_eq!(both(&proxy, &mirror), old);
        proxy.restart();
        put(&mirror, RELEASE, text.clone());
        put(&mirror, RELEASE_GPG, signature.clone());
        assert_eq!(both(&proxy, &mirror), old);
    }
    proxy.restart();
    mirror.stop();
    assert_eq!(both(&proxy, &mirror), old, "the mirror is away");
}

#[test]
fn a_detached_signature_that_stays_wrong_is_refused() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = proxy("auto", &signer);
    let (old, new) = (halves(9, &signer), halves(5, &signer));
    put(&mirror, RELEASE, new.0.clone());
    put(&mirror, RELEASE_GPG, old.1.clone());
    for _ in 0..2 {
        let reply = fetch(&proxy, &mirror, RELEASE);
        assert_eq!(reply.status, 503);
        assert!(reply.reason.contains("signature"), "{}", reply.reason);
    }
    assert!(verdicts(&proxy, "bad") >= 2);
    assert_eq!(proxy.blobs().len(), 0);
    put(&mirror, RELEASE_GPG, new.1.clone());
    assert_eq!(both(&proxy, &mirror), new);
}

#[test]
fn an_older_release_file_is_not_followed_however_well_it_is_signed() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = proxy("auto", &signer);
    let (old, new) = (halves(9, &signer), halves(5, &signer));
    for (offered, given) in [(&new, &new), (&old, &new), (&new, &new)] {
        put(&mirror, RELEASE, offered.0.clone());
        put(&mirror, RELEASE_GPG, offered.1.clone());
        assert_eq!(both(&proxy, &mirror), *given);
    }
    assert!(verdicts(&proxy, "older") >= 1);
}

#[test]
fn an_unsigned_release_file_has_no_signature_invented_for_it() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = proxy("auto", &signer);
    put(&mirror, RELEASE, release(3, ""));
    assert_eq!(fetch(&proxy, &mirror, RELEASE).status, 200);
    assert_eq!(fetch(&proxy, &mirror, RELEASE_GPG).status, 404);
    // One of a key that nobody here knows is the client's affair.
    let (text, signature) = halves(2, &Signer::new("ed25519"));
    put(&mirror, RELEASE, text.clone());
    put(&mirror, RELEASE_GPG, signature.clone());
    assert_eq!(both(&proxy, &mirror), (text, signature));
}

#[test]
fn where_nothing_is_asked_of_release_files_both_forms_pass() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = proxy("off", &signer);
    let (old, new) = (halves(9, &signer), halves(5, &signer));
    let inline = String::from_utf8(signer.clearsign(&old.0)).unwrap();
    let inline = inline.replace("Suite: demo", "Suite: dome");
    put(&mirror, INRELEASE, inline.clone());
    put(&mirror, RELEASE, new.0.clone());
    put(&mirror, RELEASE_GPG, old.1.clone());
    for _ in 0..2 {
        assert_eq!(fetch(&proxy, &mirror, INRELEASE).body, inline.as_bytes());
        assert_eq!(both(&proxy, &mirror), (new.0.clone(), old.1.clone()));
    }
    assert_eq!(proxy.count(VERDICTS), 0);
}

#[test]
fn a_signature_made_anew_for_the_same_release_file_reaches_clients() {
    let (signer, stranger) = (Signer::new("ed25519"), Signer::new("ed25519"));
    let text = release(3, "");
    let signatures = [&stranger, &signer, &stranger]
        .map(|signer| String::from_utf8(signer.detach(&text)).unwrap());
    // A mirror that says that the file is the same, and one that sends it again.
    let marked = File::new(text.clone().into_bytes());
    for file in [marked.clone(), marked.no_validators()] {
        let (mirror, proxy) = (Mirror::start(), proxy("auto", &signer));
        mirror.put(RELEASE, file);
        for signature in &signatures {
            put(&mirror, RELEASE_GPG, signature.clone());
            wait_until(Duration::from_secs(30), "the new signature", || {
                let (given, its_signature) = both(&proxy, &mirror);
                assert_eq!(given, text);
                its_signature == *signature
            });
        }
        assert_eq!(verdicts(&proxy, "bad"), 0);
    }
}
