//! Which lists were looked at, in which version: they are not read again for nothing. Where each lies is
//! kept, too, for when the index has lost what was learnt.

use std::collections::HashMap;

use crate::archive::list::{List, ListKind};
use crate::index::Entry;

/// Lists that are remembered, at about half a kilobyte each; then they are looked at anew.
const SEEN_MAX: usize = 4096;

/// Of each list, the version that was looked at last.
#[derive(Default)]
pub(super) struct Seen(HashMap<String, Version>);

/// One version of a list.
#[derive(Clone)]
pub(super) struct Version {
    /// What it is stored as.
    pub(super) key: String,
    pub(super) list: List,
    pub(super) entry: Entry,
}

impl Seen {
    pub(super) fn has(&self, version: &Version) -> bool {
        let seen = self.0.get(&version.list.key);
        seen.is_some_and(|seen| seen.entry.blob == version.entry.blob)
    }

    /// What else was seen of this list may come back.
    pub(super) fn put(&mut self, version: Version) {
        if self.0.len() >= SEEN_MAX {
            self.0.clear();
        }
        self.0.insert(version.list.key.clone(), version);
    }

    pub(super) fn forget(&mut self, list: &str) {
        self.0.remove(list);
    }

    /// All that was seen, which is to be seen anew: release files first, as they name the others.
    pub(super) fn take_all(&mut self) -> Vec<Version> {
        let mut all: Vec<Version> = std::mem::take(&mut self.0).into_values().collect();
        all.sort_by_key(|version| version.list.kind != ListKind::Release);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::digest::Sha256;

    fn version(key: &str, content: &[u8]) -> Version {
        let entry = Entry::nameless(Sha256::of(content), content.len() as u64);
        Version { key: key.to_owned(), list: List::at(key).unwrap(), entry }
    }

    #[test]
    fn of_each_list_the_last_version_is_remembered() {
        let packages = "http://h/debian/dists/sid/main/binary-all/Packages.xz";
        let release = "http://h/debian/dists/sid/InRelease";
        let mut seen = Seen::default();
        for (key, content) in [(packages, "1"), (packages, "2"), (release, "3")] {
            seen.put(version(key, content.as_bytes()));
        }
        assert!(seen.has(&version(packages, b"2")) && !seen.has(&version(packages, b"1")));
        let all = seen.take_all();
        assert_eq!(all.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), [release, packages]);
        assert!(!seen.has(&version(packages, b"2")));
    }

    #[test]
    fn they_are_bounded() {
        let mut seen = Seen::default();
        for number in 0..=SEEN_MAX {
            seen.put(version(&format!("http://h/debian/dists/{number}/Release"), b""));
        }
        assert_eq!(seen.take_all().len(), 1);
    }
}
