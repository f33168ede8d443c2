//! Kinds of resource, told from the path (Debian repository format, "Archive structure").
//!
//! The kind decides how a resource is cached, never whether it may be fetched.

use crate::archive::list::without_compression;
use crate::content::digest::Expected;

/// What a resource is, as far as its path tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `InRelease`, `Release`, `Release.gpg`: names everything else, changes in place.
    Release,
    /// Packages, sources and other metadata files under a name that may change its content.
    Index,
    /// `by-hash/ALGORITHM/HEX`: named by its content; the digest is there unless the algorithm
    /// proves nothing.
    ByHash(Option<Expected>),
    /// A binary or source package file: its version is in its name.
    Package,
    /// A patch of a metadata file (`*.diff/…`): its times are in its name.
    Patch,
    /// An installer's file, which `SHA256SUMS` names; `current` may change its content.
    Installer,
    /// Anything else: passed on, not stored.
    Other,
}

impl Kind {
    /// Every word that [`Self::label`] says.
    pub const LABELS: [&str; 7] =
        ["release", "index", "by_hash", "package", "patch", "installer", "other"];

    /// Tells the kind of the resource at `path` (decoded, with or without a leading slash).
    #[must_use]
    pub fn of(path: &str) -> Self {
        let mut from_end = path.rsplit('/');
        let name = from_end.next().unwrap_or_default();
        let (parent, grandparent) = (from_end.next(), from_end.next());
        if let (Some(algorithm), Some("by-hash")) = (parent, grandparent)
            && is_by_hash(algorithm, name)
        {
            return Self::ByHash(Expected::from_by_hash(algorithm, name));
        }
        if name.is_empty() || has_ending(name, "html") || has_ending(name, "htm") {
            // A page about the archive, or a folder's.
            Self::Other
        } else if matches!(name, "InRelease" | "Release" | "Release.gpg") {
            Self::Release
        } else if is_package(name) {
            Self::Package
        } else if is_patch(parent.unwrap_or_default(), name) {
            Self::Patch
        } else if is_installer_file(path) && !is_index(name) {
            Self::Installer
        } else if is_index(name) || path.split('/').any(|segment| segment == "dists") {
            Self::Index
        } else {
            Self::Other
        }
    }

    /// Whether resources of this kind are stored.
    #[must_use]
    pub fn is_stored(self) -> bool {
        self != Self::Other
    }

    /// The word for logs and metric labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        Self::LABELS.get(self.number()).copied().unwrap_or_default()
    }

    /// The place of its label among [`Self::LABELS`].
    #[must_use]
    pub const fn number(self) -> usize {
        match self {
            Self::Release => 0,
            Self::Index => 1,
            Self::ByHash(_) => 2,
            Self::Package => 3,
            Self::Patch => 4,
            Self::Installer => 5,
            Self::Other => 6,
        }
    }

    /// Whether `head`, the first bytes of a body, can begin a file of this kind; no bytes at all
    /// mean an empty file. A captive portal's or an error page is no part of an archive, whatever
    /// status it came with; and what a mirror with a full disk has instead of a package is none.
    #[must_use]
    pub fn can_begin_with(self, name: &str, head: &[u8]) -> bool {
        if self == Self::Other {
            return true;
        }
        if head.is_empty() {
            return !matches!(self, Self::Release | Self::Package);
        }
        match name {
            "InRelease" => starts_like(head, b"-----BEGIN PGP SIGNED MESSAGE-----"),
            _ if BINARY_PACKAGES.iter().any(|ending| has_ending(name, ending)) => {
                starts_like(head, b"!<arch>\n")
            }
            _ => !is_html(head),
        }
    }
}

const BINARY_PACKAGES: [&str; 3] = ["deb", "udeb", "ddeb"];

fn is_by_hash(algorithm: &str, hex: &str) -> bool {
    let length = match algorithm {
        "MD5Sum" => 32,
        "SHA1" => 40,
        "SHA256" => 64,
        "SHA512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `NAME_VERSION…` with the ending of a binary or source package. The underscore, which package
/// names can not have, tells `hello_2.10.orig.tar.gz` from `data.tar.gz`.
fn is_package(name: &str) -> bool {
    if BINARY_PACKAGES.iter().any(|ending| has_ending(name, ending)) {
        return true;
    }
    let source = name.strip_suffix(".asc").unwrap_or(name);
    if !source.contains('_') {
        return false;
    }
    if has_ending(source, "dsc") {
        return true;
    }
    let bare = without_compression(source);
    bare != source && (has_ending(bare, "tar") || has_ending(bare, "diff"))
}

/// The metadata files that a release file can name, with or without compression: also in flat
/// repositories, which have no `dists`.
fn is_index(name: &str) -> bool {
    let bare = without_compression(name);
    matches!(bare, "Packages" | "Sources" | "Index")
        || ["Contents-", "Translation-", "Components-", "Commands-"]
            .iter()
            .any(|start| bare.starts_with(start))
        || matches!(name, "SHA256SUMS" | "SHA256SUMS.gpg" | "SHA512SUMS" | "MD5SUMS")
}

fn is_patch(folder: &str, name: &str) -> bool {
    has_ending(folder, "diff") && without_compression(name) != "Index"
}

/// `dists/SUITE/COMPONENT/installer-ARCHITECTURE/…`
fn is_installer_file(path: &str) -> bool {
    let mut segments = path.split('/').skip_while(|segment| *segment != "dists").skip(1);
    segments.any(|segment| segment.starts_with("installer-"))
}

fn has_ending(name: &str, ending: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(bare, last)| !bare.is_empty() && last == ending)
}

/// Whether `head` begins with `magic`, as far as it goes: a first chunk may be short.
fn starts_like(head: &[u8], magic: &[u8]) -> bool {
    let length = head.len().min(magic.len());
    head.get(..length) == magic.get(..length)
}

fn is_html(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    ["<!doctype html", "<html"].iter().any(|start| {
        text.get(..start.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(start.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_kinds() {
        let hex = "0".repeat(64);
        let by_hash = format!("debian/dists/sid/main/binary-amd64/by-hash/SHA256/{hex}");
        assert!(matches!(Kind::of(&by_hash), Kind::ByHash(Some(Expected::Sha256(_)))));
        let md5 = format!("debian/dists/sid/main/binary-amd64/by-hash/MD5Sum/{}", "0".repeat(32));
        assert_eq!(Kind::of(&md5), Kind::ByHash(None));
        let table = [
            ("debian/dists/sid/InRelease", Kind::Release),
            ("debian/dists/sid/Release.gpg", Kind::Release),
            ("flat/./Release", Kind::Release),
            ("debian/dists/sid/main/binary-amd64/Packages.xz", Kind::Index),
            ("debian/dists/sid/main/binary-amd64/Packages.diff/Index", Kind::Index),
            ("debian/dists/sid/main/binary-amd64/Packages.diff/T-1-F-2.gz", Kind::Patch),
            ("debian/dists/sid/main/installer-amd64/current/images/netboot/linux", Kind::Installer),
            ("debian/dists/sid/main/installer-amd64/current/images/SHA256SUMS", Kind::Index),
            ("installer-x/y", Kind::Other),
            ("debian/dists/sid/by-hash/SHA256/short", Kind::Index),
            ("flat/Packages", Kind::Index),
            ("flat/Sources.gz", Kind::Index),
            ("ubuntu/dists/noble/main/i18n/Translation-de.zst", Kind::Index),
            ("debian/pool/main/h/hello/hello_2.10-3_amd64.deb", Kind::Package),
            ("debian/pool/main/g/g++/g++_12.2.0-3_amd64.deb", Kind::Package),
            ("debian/pool/main/h/hello/hello_2.10.orig.tar.gz", Kind::Package),
            ("debian/pool/main/h/hello/hello_2.10.orig.tar.gz.asc", Kind::Package),
            ("debian/pool/main/h/hello/hello_2.10-3.debian.tar.xz", Kind::Package),
            ("debian/pool/main/h/hello/hello_2.10-3.diff.gz", Kind::Package),
            ("debian/pool/main/h/hello/hello_2.10-3.dsc", Kind::Package),
            ("flat/tool.deb", Kind::Package),
            ("packages.example.org/readme.html", Kind::Other),
            ("downloads/data.tar.gz", Kind::Other),
            ("key.asc", Kind::Other),
            ("debian/dists/", Kind::Other),
            ("debian/dists/sid/main/installer-amd64/current/doc/manual.html", Kind::Other),
            ("distsx/Foo", Kind::Other),
            (".deb", Kind::Other),
            ("", Kind::Other),
        ];
        for (path, kind) in table {
            assert_eq!(Kind::of(path), kind, "{path}");
            assert!(Kind::LABELS.contains(&kind.label()));
        }
    }

    #[test]
    fn what_can_not_be_the_file_is_told() {
        let table: [(&str, &[u8], bool); 12] = [
            ("pool/a_1_all.deb", b"", false),
            ("dists/sid/InRelease", b"", false),
            ("dists/sid/main/Contents-all", b"", true),
            ("dists/sid/InRelease", b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256", true),
            ("dists/sid/InRelease", b"-----BE", true),
            ("dists/sid/InRelease", b"<html>", false),
            ("pool/a_1_all.deb", b"!<arch>\ndebian-binary", true),
            ("pool/a_1_all.deb", b"Please log in", false),
            ("dists/sid/Release", b"\n <!DOCTYPE HTML PUBLIC", false),
            ("dists/sid/Release", b"Origin: Debian", true),
            ("dists/sid/main/Contents-all", b"<", true),
            ("about.html", b"<html>", true),
        ];
        for (path, head, possible) in table {
            let name = path.rsplit('/').next().unwrap();
            assert_eq!(Kind::of(path).can_begin_with(name, head), possible, "{path}");
        }
    }
}
