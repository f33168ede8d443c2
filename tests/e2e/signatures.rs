//! Release files are judged before anybody sees them: by their signatures, their age, and what was
//! accepted before. The keys are made here, by the same gpg that archives sign with.

use crate::kit::*;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const INRELEASE: &str = "/debian/dists/demo/InRelease";
const RELEASE: &str = "/debian/dists/demo/Release";
const VERDICTS: &str = "aptmesh_engine_release_verdicts_total";

/// An archive's key.
struct Signer {
    home: TempDir,
}

impl Signer {
    fn new(algorithm: &str) -> Self {
        let signer = Self { home: tempfile::tempdir().unwrap() };
        let user = "Archive <archive@example.org>";
        signer.gpg(&["--quick-generate-key", user, algorithm, "sign", "never"], b"");
        signer
    }

    fn gpg(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("gpg")
            .args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""])
            .args(args)
            .env("GNUPGHOME", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs gpg (package gnupg)");
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "gpg {args:?}: {complaint}");
        output.stdout
    }

    fn keyring(&self) -> PathBuf {
        let path = self.home.path().join("archive.gpg");
        fs::write(&path, self.gpg(&["--export"], b"")).unwrap();
        path
    }

    fn clearsign(&self, text: &str) -> Vec<u8> {
        self.gpg(&["--digest-algo", "SHA512", "--clearsign"], text.as_bytes())
    }

    fn detach(&self, text: &str) -> Vec<u8> {
        self.gpg(&["--armor", "--detach-sign"], text.as_bytes())
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf")
            .args(["--kill", "all"])
            .env("GNUPGHOME", self.home.path())
            .status();
    }
}

fn proxy(verify: &str, signer: &Signer) -> Proxy {
    Proxy::build()
        .env("APTMESH_MIRROR_RECHECK_AFTER", "0s")
        .env("APTMESH_ARCHIVE_VERIFY", verify)
        .env("APTMESH_ARCHIVE_KEYRING", signer.keyring().display().to_string())
        .start()
}

/// A release file made so many days ago.
fn release(days_ago: u64, more: &str) -> String {
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
        put(&mirror, "/debian/dists/demo/Release.gpg", signer.detach(&text));
        assert_eq!(fetch(&proxy, &mirror, RELEASE).body, text.as_bytes(), "{algorithm}");
        assert_eq!(verdicts(&proxy, "good"), 2);
        assert_eq!(proxy.blobs().len(), 2);
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
    for proxy in [&lenient, &strict] {
        assert_eq!(verdicts(proxy, "unknown_key"), 1);
        assert_eq!(verdicts(proxy, "unsigned"), 1);
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
