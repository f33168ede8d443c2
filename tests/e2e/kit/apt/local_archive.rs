//! A small archive of real packages, to be put on a mirror of the test.

use super::deb;
use crate::kit::mirror::{File, Mirror};
use crate::kit::{Signer, noise, sha256_hex};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// 2024-01-02 00:00:00 UTC, like the files of a mirror.
const FIRST_DATE: Duration = Duration::from_secs(1_704_153_600);

/// An archive with one suite, the component `main`, and packages for all
/// architectures; unsigned, unless it is signed.
#[derive(Clone)]
pub struct LocalArchive {
    suite: String,
    arch: String,
    packages: Vec<Package>,
    date: SystemTime,
    by_hash: bool,
    inrelease: Option<Vec<u8>>,
    release_gpg: Option<Vec<u8>>,
}

#[derive(Clone)]
struct Package {
    name: String,
    version: String,
    deb: Vec<u8>,
}

impl Package {
    /// Relative to the base of the archive.
    fn path(&self) -> String {
        // A file name leaves the epoch out.
        let version = self.version.split_once(':');
        let version = version.map_or(self.version.as_str(), |(_, rest)| rest);
        format!("pool/main/{0}/{0}_{version}_all.deb", self.name)
    }
}

impl LocalArchive {
    pub fn new(suite: &str) -> Self {
        let printed = Command::new("dpkg")
            .arg("--print-architecture")
            .output()
            .expect("this test needs dpkg on the machine");
        Self {
            suite: suite.to_owned(),
            arch: String::from_utf8_lossy(&printed.stdout).trim().to_owned(),
            packages: Vec::new(),
            date: SystemTime::UNIX_EPOCH + FIRST_DATE,
            by_hash: true,
            inrelease: None,
            release_gpg: None,
        }
    }

    /// Has no by-hash names, and says so.
    pub fn without_by_hash(mut self) -> Self {
        self.by_hash = false;
        self
    }

    /// Made so many minutes later.
    pub fn later(mut self, minutes: u64) -> Self {
        self.date += Duration::from_secs(60 * minutes);
        self
    }

    /// With an `InRelease` file. What is changed afterwards is not signed.
    pub fn signed_inline(self, signer: &Signer) -> Self {
        let inrelease = signer.clearsign(&self.release());
        self.with_inrelease(inrelease)
    }

    /// With a `Release.gpg` file. What is changed afterwards is not signed.
    pub fn signed_detached(self, signer: &Signer) -> Self {
        let signature = signer.detach(&self.release());
        self.with_release_gpg(signature)
    }

    /// With these bytes as its `InRelease` file.
    pub fn with_inrelease(mut self, bytes: Vec<u8>) -> Self {
        self.inrelease = Some(bytes);
        self
    }

    /// With these bytes as its `Release.gpg` file.
    pub fn with_release_gpg(mut self, bytes: Vec<u8>) -> Self {
        self.release_gpg = Some(bytes);
        self
    }

    /// Its `InRelease` file.
    pub fn inrelease(&self) -> &[u8] {
        self.inrelease.as_deref().expect("an InRelease file")
    }

    /// Its `Release.gpg` file.
    pub fn release_gpg(&self) -> &[u8] {
        self.release_gpg.as_deref().expect("a Release.gpg file")
    }

    /// Adds a package with a file of so many bytes of noise. The archive
    /// gets a minute younger, so that apt sees a new one.
    pub fn package(mut self, name: &str, version: &str, payload_len: usize) -> Self {
        let seed = format!("{name} {version}")
            .bytes()
            .fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        self.packages.push(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            deb: deb::build(name, version, &noise(seed, payload_len)),
        });
        self.date += Duration::from_secs(60);
        self
    }

    /// The path of a package's file below the base of the archive. The
    /// package that was added last counts.
    pub fn deb_path(&self, name: &str) -> String {
        self.find(name).path()
    }

    /// The file of a package.
    pub fn deb(&self, name: &str) -> &[u8] {
        &self.find(name).deb
    }

    /// The same archive, but for the bytes of one package, made a minute later.
    pub fn with_deb(&self, name: &str, deb: Vec<u8>) -> Self {
        let mut other = self.clone();
        for package in other.packages.iter_mut().filter(|package| package.name == name) {
            package.deb.clone_from(&deb);
        }
        other.date += Duration::from_secs(60);
        other
    }

    fn find(&self, name: &str) -> &Package {
        let mut packages = self.packages.iter().rev();
        packages
            .find(|package| package.name == name)
            .unwrap_or_else(|| panic!("{name} is not in the archive"))
    }

    /// The path of the suite's package index below the base of the archive.
    pub fn index_path(&self) -> String {
        format!("dists/{}/main/binary-{}/Packages", self.suite, self.arch)
    }

    /// The same, under the name that apt asks for.
    pub fn by_hash_path(&self) -> String {
        let hash = sha256_hex(self.index().as_bytes());
        let folder = format!("dists/{}/main/binary-{}", self.suite, self.arch);
        format!("{folder}/by-hash/SHA256/{hash}")
    }

    /// The Packages file.
    pub fn index(&self) -> String {
        let paragraph = |package: &Package| {
            format!(
                "Package: {}\nVersion: {}\nArchitecture: all\n\
                 Maintainer: Nobody <nobody@example.org>\nFilename: {}\nSize: {}\n\
                 SHA256: {}\nDescription: made for a test\n\n",
                package.name,
                package.version,
                package.path(),
                package.deb.len(),
                sha256_hex(&package.deb)
            )
        };
        self.packages.iter().map(paragraph).collect()
    }

    /// The Release file.
    pub fn release(&self) -> String {
        let index = self.index();
        // Apt wants the same date as HTTP, but with another word at the end.
        let date = httpdate::fmt_http_date(self.date).replace("GMT", "UTC");
        format!(
            "Origin: test\nLabel: test\nSuite: {suite}\nCodename: {suite}\nDate: {date}\n\
             {by_hash}No-Support-for-Architecture-all: Packages\n\
             Architectures: {arch} all\nComponents: main\nDescription: made for a test\n\
             SHA256:\n {hash} {size} main/binary-{arch}/Packages\n",
            suite = self.suite,
            by_hash = if self.by_hash { "Acquire-By-Hash: yes\n" } else { "" },
            arch = self.arch,
            hash = sha256_hex(index.as_bytes()),
            size = index.len()
        )
    }

    /// Puts the archive on a mirror, below `base` (`/debian`).
    pub fn publish(&self, mirror: &Mirror, base: &str) {
        self.publish_with(mirror, base, |_, file| file);
    }

    /// The same, with the release file also under the name `InRelease`, unsigned.
    pub fn publish_with_inrelease(&self, mirror: &Mirror, base: &str) {
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{}-----BEGIN PGP SIGNATURE-----\n\n\
             AAAA\n-----END PGP SIGNATURE-----\n",
            self.release()
        );
        self.clone().with_inrelease(text.into_bytes()).publish(mirror, base);
    }

    /// The same, where `alter` may change how each file (named by its path
    /// below the base) is served.
    pub fn publish_with(&self, mirror: &Mirror, base: &str, alter: impl Fn(&str, File) -> File) {
        for (path, file) in self.files() {
            let full = format!("{}/{path}", base.trim_end_matches('/'));
            mirror.put(&full, alter(&path, file));
        }
    }

    /// All files by their paths below the base, in the order of publishing: what is named before
    /// what names it, as archives do it.
    pub fn files(&self) -> Vec<(String, File)> {
        let dated = |bytes: &[u8]| File::new(bytes).last_modified(self.date);
        let deb = |package: &Package| {
            let file = File::new(package.deb.as_slice())
                .content_type("application/vnd.debian.binary-package");
            (package.path(), file)
        };
        let (index, suite) = (self.index(), format!("dists/{}", self.suite));
        let mut files: Vec<_> = self.packages.iter().map(deb).collect();
        if self.by_hash {
            files.push((self.by_hash_path(), dated(index.as_bytes())));
        }
        files.push((self.index_path(), dated(index.as_bytes())));
        files.push((format!("{suite}/Release"), dated(self.release().as_bytes())));
        for (name, seal) in [("Release.gpg", &self.release_gpg), ("InRelease", &self.inrelease)] {
            files.extend(seal.as_ref().map(|seal| (format!("{suite}/{name}"), dated(seal))));
        }
        files
    }

    /// The line for sources.list; `base_url` is where the base can be found.
    pub fn source_line(&self, base_url: &str) -> String {
        format!("deb [trusted=yes] {base_url} {} main", self.suite)
    }

    /// The same for an archive that is signed: apt takes it by this key alone.
    pub fn signed_source_line(&self, base_url: &str, keyring: &Path) -> String {
        format!("deb [signed-by={}] {base_url} {} main", keyring.display(), self.suite)
    }
}
