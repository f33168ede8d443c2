//! An archive's key, made and used by the gpg that real archives sign with.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A key pair in a folder of its own, which goes with it.
pub struct Signer {
    home: TempDir,
}

impl Signer {
    /// `ed25519` is quick; `rsa4096` is what Ubuntu has.
    pub fn new(algorithm: &str) -> Self {
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

    /// A file with the public key, as apt and the product read it.
    pub fn keyring(&self) -> PathBuf {
        let path = self.home.path().join("archive.gpg");
        fs::write(&path, self.gpg(&["--export"], b"")).unwrap();
        path
    }

    /// The key's fingerprint, in capital hex digits.
    pub fn fingerprint(&self) -> String {
        let listed = self.gpg(&["--with-colons", "--list-keys"], b"");
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let line = listed.lines().find(|line| line.starts_with("fpr:"));
        line.and_then(|line| line.split(':').nth(9)).expect("a fingerprint").to_owned()
    }

    /// `text` with a signature around it: an InRelease file.
    pub fn clearsign(&self, text: &str) -> Vec<u8> {
        self.gpg(&["--digest-algo", "SHA512", "--clearsign"], text.as_bytes())
    }

    /// A signature of `text`: a Release.gpg file.
    pub fn detach(&self, text: &str) -> Vec<u8> {
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
