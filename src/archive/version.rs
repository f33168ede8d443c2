//! Package files' names and versions: which file is a newer version of the same package
//! (deb-version(7)).

use std::cmp::Ordering;

/// What the name of a binary package's file tells: `NAME_VERSION_ARCHITECTURE.deb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackageFile<'a> {
    /// The package.
    pub name: &'a str,
    /// Its version, without an epoch: file names leave that out.
    pub version: &'a str,
    /// Its architecture, with the ending of the file.
    pub architecture: &'a str,
}

impl<'a> PackageFile<'a> {
    /// Reads the last segment of `path`, decoded; `None` if it is not a binary package's.
    #[must_use]
    pub fn of(path: &'a str) -> Option<Self> {
        let file = path.rsplit('/').next()?;
        let mut parts = file.splitn(3, '_');
        let (name, version, architecture) = (parts.next()?, parts.next()?, parts.next()?);
        let is_binary = architecture.rsplit_once('.').is_some_and(|(_, ending)| ending == "deb");
        let is_whole = !name.is_empty() && !version.is_empty();
        (is_binary && is_whole).then_some(Self { name, version, architecture })
    }

    /// Whether the two are versions of one package.
    #[must_use]
    pub fn is_same_package(&self, other: &Self) -> bool {
        self.name == other.name && self.architecture == other.architecture
    }
}

/// Compares two versions without epochs.
#[must_use]
pub fn compare(one: &str, other: &str) -> Ordering {
    let (one, one_revision) = one.rsplit_once('-').unwrap_or((one, "0"));
    let (other, other_revision) = other.rsplit_once('-').unwrap_or((other, "0"));
    compare_parts(one, other).then_with(|| compare_parts(one_revision, other_revision))
}

/// Text and numbers by turns: text by letter, numbers by value.
fn compare_parts(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while !one.is_empty() || !other.is_empty() {
        let order = compare_text(take(&mut one, false), take(&mut other, false))
            .then_with(|| compare_numbers(take(&mut one, true), take(&mut other, true)));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// The digits, or what is none, at the beginning of `rest`.
fn take<'a>(rest: &mut &'a [u8], digits: bool) -> &'a [u8] {
    let end = rest.iter().position(|byte| byte.is_ascii_digit() != digits).unwrap_or(rest.len());
    let (taken, after) = rest.split_at(end);
    *rest = after;
    taken
}

/// `~` before the end, the end before letters, letters before the rest.
fn compare_text(one: &[u8], other: &[u8]) -> Ordering {
    let weight = |text: &[u8], at: usize| match text.get(at) {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(sign) => i32::from(*sign) + 256,
    };
    (0..one.len().max(other.len()))
        .map(|at| weight(one, at).cmp(&weight(other, at)))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn compare_numbers(one: &[u8], other: &[u8]) -> Ordering {
    let bare = |digits: &[u8]| {
        let start = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
        digits.get(start..).unwrap_or_default().to_vec()
    };
    let (one, other) = (bare(one), bare(other));
    one.len().cmp(&other.len()).then_with(|| one.cmp(&other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order() {
        let ascending = [
            "0",
            "1.0~~",
            "1.0~~a",
            "1.0~",
            "1.0~rc1-1",
            "1.0",
            "1.0-0ubuntu1",
            "1.0-1",
            "1.0-1+b1",
            "1.0-1.1",
            "1.0-2",
            "1.0-10",
            "1.0a-1",
            "1.0+dfsg-1",
            "1.2-3",
            "1.10-1",
            "1.010.1-1",
            "99999999999999999999999",
        ];
        for (place, one) in ascending.iter().enumerate() {
            for (other_place, other) in ascending.iter().enumerate() {
                assert_eq!(compare(one, other), place.cmp(&other_place), "{one} {other}");
            }
        }
        assert_eq!(compare("1.0", "1.00-0"), Ordering::Equal);
    }

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        let versions = ["1.0", "1.0-1", "1.0~a", "2+b", "2a", "2", "0.9.9-3", "1-a~1", "1-a", "a1"];
        for one in versions {
            for other in versions {
                let order = compare(one, other);
                let lt = std::process::Command::new("dpkg")
                    .args(["--compare-versions", one, "lt", other])
                    .stderr(std::process::Stdio::null())
                    .status()
                    .expect("this test needs dpkg");
                assert_eq!(order == Ordering::Less, lt.success(), "{one} {other}");
            }
        }
    }

    #[test]
    fn files_have_packages() {
        let file = PackageFile::of("pool/main/h/hello/hello_2.10-3_amd64.deb").unwrap();
        assert_eq!((file.name, file.version, file.architecture), ("hello", "2.10-3", "amd64.deb"));
        assert!(file.is_same_package(&PackageFile::of("hello_2.11_amd64.deb").unwrap()));
        assert!(!file.is_same_package(&PackageFile::of("hello_2.11_arm64.deb").unwrap()));
        for path in ["tool.deb", "a_1.dsc", "a_1_b.tar.gz", "_1_amd64.deb", ""] {
            assert_eq!(PackageFile::of(path), None, "{path}");
        }
    }
}
