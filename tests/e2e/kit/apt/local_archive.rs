//! A small archive of real packages, to be put on a mirror of the test.

use super::deb;
use crate::kit::mirror::{File, Mirror};
use crate::kit::{noise, sha256_hex};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// 2024-01-02 00:00:00 UTC, like the files of a mirror.
const FIRST_DATE: Duration = Duration::from_secs(1_704_153_600);

/// An unsigned archive with one suite, the component `main`, and packages
/// for all architectures.
#[derive(Clone)]
pub struct LocalArchive {
    suite: String,
    arch: String,
    packages: Vec<Package>,
    date: SystemTime,
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
        }
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
             Acquire-By-Hash: yes\nNo-Support-for-Architecture-all: Packages\n\
             Architectures: {arch} all\nComponents: main\nDescription: made for a test\n\
             SHA256:\n {hash} {size} main/binary-{arch}/Packages\n",
            suite = self.suite,
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
        self.publish(mirror, base);
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{}-----BEGIN PGP SIGNATURE-----\n\n\
             AAAA\n-----END PGP SIGNATURE-----\n",
            self.release()
        );
        let path = format!("{}/dists/{}/InRelease", base.trim_end_matches('/'), self.suite);
        mirror.put(&path, File::new(text.into_bytes()).last_modified(self.date));
    }

    /// The same, where `alter` may change how each file (named by its path
    /// below the base) is served.
    pub fn publish_with(&self, mirror: &Mirror, base: &str, alter: impl Fn(&str, File) -> File) {
        let put = |path: &str, file: File| {
            let full = format!("{}/{path}", base.trim_end_matches('/'));
            mirror.put(&full, alter(path, file));
        };
        let dated = |text: String| File::new(text.into_bytes()).last_modified(self.date);
        // What is named before what names it, as archives do it.
        for package in &self.packages {
            let file = File::new(package.deb.as_slice())
                .content_type("application/vnd.debian.binary-package");
            put(&package.path(), file);
        }
        put(&self.by_hash_path(), dated(self.index()));
        put(&self.index_path(), dated(self.index()));
        put(&format!("dists/{}/Release", self.suite), dated(self.release()));
    }

    /// The line for sources.list; `base_url` is where the base can be found.
    pub fn source_line(&self, base_url: &str) -> String {
        format!("deb [trusted=yes] {base_url} {} main", self.suite)
    }
}
