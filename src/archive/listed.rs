//! What a list in an archive says a file must be, and the rules that such lists share: which
//! paths, sizes and digests count.

use std::collections::HashSet;

use crate::archive::control::ControlError;
use crate::archive::control::Paragraph;
use crate::archive::target::TARGET_MAX;
use crate::content::digest::Expected;

/// The longest path, in bytes: a longer one can not be asked for.
pub const PATH_MAX: usize = TARGET_MAX;

/// A file as a checked list names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The path, decoded, relative to what the list's own names are relative to: the archive's
    /// root for packages and sources, the list's folder for release files, patches and sums.
    /// Without `.` and `..`.
    pub path: String,
    /// The size in bytes, where the list gives it.
    pub size: Option<u64>,
    /// The strongest digest for this cache: SHA-256, which is the blob's name, or else SHA-512,
    /// or else SHA-1. A file with nothing but MD5 is not listed.
    pub digest: Expected,
}

/// How much of a list could be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Files that were found.
    pub listed: u64,
    /// Entries without a usable path, size or digest.
    pub skipped: u64,
}

/// `name` in `folder` as one path without `.` segments. `None` for what is not below the folder
/// or can not be asked for: absolute, with `..`, with control characters or backslashes, ending
/// in a slash, or longer than [`PATH_MAX`].
#[must_use]
pub fn path_below(folder: &str, name: &str) -> Option<String> {
    let is_absolute = folder.starts_with('/') || name.starts_with('/');
    if is_absolute || folder.len() + name.len() > PATH_MAX {
        return None;
    }
    let folder = folder.trim_end_matches('/');
    let mut path = String::with_capacity(folder.len() + 1 + name.len());
    let folders = folder.split('/').filter(|_| !folder.is_empty());
    for segment in folders.chain(name.split('/')) {
        match segment {
            "." => continue,
            ".." => return None,
            "" if path.is_empty() => return None,
            _ => {}
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(segment);
    }
    let is_name = |last: &str| !last.is_empty() && last != ".";
    let ends_in_name = name.rsplit('/').next().is_some_and(is_name);
    let is_strange = |byte: u8| byte < 0x20 || byte == 0x7f || byte == b'\\';
    (ends_in_name && !path.bytes().any(is_strange)).then_some(path)
}

/// A size: decimal digits, and no more than a database's integer holds.
pub(super) fn size(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return None;
    }
    text.parse().ok().filter(|&size| i64::try_from(size).is_ok())
}

/// Hands on what a list says, counts it, and ends it when it is too long.
pub(super) struct Tally<F> {
    found: F,
    count: Count,
    entries_max: u64,
}

impl<F: FnMut(Listed)> Tally<F> {
    pub(super) fn new(entries_max: u64, found: F) -> Self {
        Self { found, count: Count::default(), entries_max }
    }

    /// Takes an entry; `None` is one that can not be used.
    pub(super) fn take(&mut self, entry: Option<Listed>) -> Result<(), ControlError> {
        let Some(listed) = entry else {
            self.count.skipped += 1;
            return Ok(());
        };
        if self.count.listed == self.entries_max {
            return Err(ControlError::TooManyEntries { entries_max: self.entries_max });
        }
        self.count.listed += 1;
        (self.found)(listed);
        Ok(())
    }

    /// Takes the checksum sections of `paragraph`, lines of `DIGEST SIZE NAME` with names in
    /// `folder`. `sections` are pairs of field and algorithm, the one that is to win first; a
    /// file that several have counts once. Tells whether there was any entry.
    pub(super) fn take_sections(
        &mut self,
        paragraph: &Paragraph,
        sections: &[(&str, &str)],
        folder: &str,
    ) -> Result<bool, ControlError> {
        let mut known = HashSet::new();
        let mut any = false;
        for (field, algorithm) in sections {
            for line in paragraph.lines(field) {
                any = true;
                let entry = section_entry(line, algorithm, folder);
                let is_new = |listed: &Listed| known.insert(listed.path.clone());
                if entry.as_ref().is_none_or(is_new) {
                    self.take(entry)?;
                }
            }
        }
        Ok(any)
    }

    pub(super) fn count(&self) -> Count {
        self.count
    }
}

fn section_entry(line: &[u8], algorithm: &str, folder: &str) -> Option<Listed> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (digest, bytes, name) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    Some(Listed {
        path: path_below(folder, name)?,
        size: Some(size(bytes)?),
        digest: Expected::from_by_hash(algorithm, digest)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_their_folder() {
        let long = "x".repeat(PATH_MAX + 1);
        let table = [
            ("", "pool/a.deb", Some("pool/a.deb")),
            ("", "./a.deb", Some("a.deb")),
            ("", "././pool/./a.deb", Some("pool/a.deb")),
            (".", "a.dsc", Some("a.dsc")),
            ("./", "a.dsc", Some("a.dsc")),
            ("pool/main/h", "a.dsc", Some("pool/main/h/a.dsc")),
            ("./pool//", "a.dsc", Some("pool/a.dsc")),
            ("pool", "a b\u{e4}", Some("pool/a b\u{e4}")),
            ("", "a//b", Some("a//b")),
            ("", "..a/b..", Some("..a/b..")),
            ("", "", None),
            ("pool", "", None),
            ("", ".", None),
            ("", "a/.", None),
            ("", "a/", None),
            ("", "/etc/passwd", None),
            ("/etc", "passwd", None),
            ("/", "passwd", None),
            ("pool", "/etc/passwd", None),
            (".", "/etc/passwd", None),
            ("", ".//etc/passwd", None),
            ("", "..", None),
            ("", "../a", None),
            ("pool", "../a", None),
            ("..", "a", None),
            ("pool/..", "a", None),
            ("", "a/../b", None),
            ("", "a\\b", None),
            ("", "a\0b", None),
            ("", "a\nb", None),
            ("", "a\u{7f}b", None),
            ("", &long, None),
        ];
        for (folder, name, path) in table {
            assert_eq!(path_below(folder, name).as_deref(), path, "{folder:?} {name:?}");
        }
    }

    #[test]
    fn sizes_are_numbers_that_a_database_holds() {
        let table = [
            ("0", Some(0)),
            ("007", Some(7)),
            ("9223372036854775807", Some(i64::MAX.cast_unsigned())),
            ("9223372036854775808", None),
            ("18446744073709551616", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1e3", None),
            ("1 2", None),
        ];
        for (text, value) in table {
            assert_eq!(size(text), value, "{text:?}");
        }
    }
}
