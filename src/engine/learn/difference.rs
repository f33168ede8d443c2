//! What a list says now against what it said before, in little memory: names are compared by their
//! hashes, and only those of before are held, in one piece.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;

use tokio::sync::mpsc;

use crate::engine::learn::Refusal;
use crate::index::{Change, Expectation};

/// The most names of one list, of now and of before. Debian's largest, the sources of `main`, has
/// 130,000.
pub(in crate::engine) const NAMES_MAX: usize = 500_000;
/// The most bytes of the names of one list, of now and of before: the index keeps them. Those of
/// Debian's sources take 15 MB.
pub(in crate::engine) const NAME_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// Changes written in one transaction, so that other writes get their turn.
pub(in crate::engine) const BATCH: usize = 2000;
/// Bytes of names in one transaction: batches of long names are smaller ones.
const BATCH_BYTES: usize = 1024 * 1024;

/// What a list said before, and whether it says it again. Names are known by 128 bits of a hash that
/// nobody outside can foresee, and what is said of them by 64: none are mistaken for each other.
#[derive(Default)]
pub(in crate::engine) struct Said {
    names: HashMap<[u64; 2], Saying>,
    hashers: [RandomState; 2],
    before: Bounds,
    now: Bounds,
    /// The names of before, one after another.
    text: String,
}

struct Saying {
    expectation: u64,
    /// Where its name is in the text, until it is said again.
    left_out: Option<Range<u32>>,
}

/// What is new about something that is said.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// It was said before, or already.
    None,
    /// It was not, or something else was.
    Some,
}

impl Said {
    /// Takes in what was said before.
    ///
    /// # Errors
    /// When that was too much.
    pub(in crate::engine) fn take_before(
        &mut self,
        key: &str,
        what: &Expectation,
    ) -> Result<(), Refusal> {
        let start = self.before.bytes;
        self.before.count(key)?;
        self.text.push_str(key);
        let left_out = Some(start..self.before.bytes);
        self.names.insert(self.name_of(key), Saying { expectation: self.hash_of(what), left_out });
        Ok(())
    }

    /// Takes in what is said now. Of two statements about one name, the first counts.
    fn take(&mut self, key: &str, what: &Expectation) -> Result<News, Refusal> {
        self.now.count(key)?;
        let expectation = self.hash_of(what);
        let now = Saying { expectation, left_out: None };
        match self.names.entry(self.name_of(key)) {
            Entry::Vacant(place) => {
                place.insert(now);
                Ok(News::Some)
            }
            Entry::Occupied(known) if known.get().left_out.is_none() => Ok(News::None),
            Entry::Occupied(mut known) => {
                let before = known.insert(now);
                Ok(if before.expectation == expectation { News::None } else { News::Some })
            }
        }
    }

    /// What was said before and is not any more.
    pub(in crate::engine) fn left_out(&self) -> impl Iterator<Item = &str> {
        let spans = self.names.values().filter_map(|saying| saying.left_out.as_ref());
        spans.filter_map(|span| self.text.get(span.start as usize..span.end as usize))
    }

    fn name_of(&self, key: &str) -> [u64; 2] {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(key))
    }

    fn hash_of(&self, what: &Expectation) -> u64 {
        let [hasher, _] = &self.hashers;
        hasher.hash_one((what.size, what.digest))
    }
}

/// Keeps a list within bounds.
#[derive(Default)]
struct Bounds {
    names: usize,
    bytes: u32,
}

impl Bounds {
    fn count(&mut self, name: &str) -> Result<(), Refusal> {
        self.names += 1;
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        self.bytes = self.bytes.saturating_add(length);
        if self.names > NAMES_MAX || self.bytes > NAME_BYTES_MAX {
            return Err(Refusal::TooMuch);
        }
        Ok(())
    }
}

/// Hands on what is said and was not said before, in batches.
pub(in crate::engine) struct Difference {
    said: Said,
    change: Change,
    change_bytes: usize,
    batches: mpsc::Sender<Change>,
}

impl Difference {
    pub(in crate::engine) fn new(said: Said, batches: mpsc::Sender<Change>) -> Self {
        Self { said, change: Change::default(), change_bytes: 0, batches }
    }

    /// Takes in a statement of the list; blocks while batches wait to be written.
    ///
    /// # Errors
    /// When there is too much of it, or nobody writes it down any more: there is no use in going on.
    pub(in crate::engine) fn say(&mut self, key: &str, what: Expectation) -> Result<(), Refusal> {
        if self.said.take(key, &what)? == News::Some {
            self.change.set.push((key.to_owned(), what));
            self.change_bytes += key.len();
            if self.change.set.len() == BATCH || self.change_bytes >= BATCH_BYTES {
                self.send()?;
            }
        }
        Ok(())
    }

    /// The list has ended: hands on the rest.
    ///
    /// # Errors
    /// When nobody writes it down any more.
    pub(in crate::engine) fn end(mut self) -> Result<Said, Refusal> {
        if !self.change.set.is_empty() {
            self.send()?;
        }
        Ok(self.said)
    }

    fn send(&mut self) -> Result<(), Refusal> {
        self.change_bytes = 0;
        let change = std::mem::take(&mut self.change);
        // Who does not receive it has its own reason, and tells it.
        self.batches.blocking_send(change).map_err(|_| Refusal::Abandoned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::digest::{Expected, Sha256};

    fn expectation(content: &str) -> Expectation {
        Expectation { size: None, digest: Expected::Sha256(Sha256::of(content.as_bytes())) }
    }

    fn said(before: &[(&str, &str)]) -> Said {
        let mut said = Said::default();
        for (key, content) in before {
            said.take_before(key, &expectation(content)).unwrap();
        }
        said
    }

    /// What is written of a list, and what it does not say any more.
    fn learn(before: &[(&str, &str)], now: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let (batches, mut written) = mpsc::channel(4);
        let mut difference = Difference::new(said(before), batches);
        for (key, content) in now {
            difference.say(key, expectation(content)).unwrap();
        }
        let said = difference.end().unwrap();
        let mut set = Vec::new();
        while let Some(change) = written.blocking_recv() {
            assert!(change.unset.is_empty());
            for (key, what) in change.set {
                let content = now.iter().find(|(_, content)| expectation(content) == what);
                set.push(format!("{key}={}", content.unwrap().1));
            }
        }
        let mut left_out: Vec<String> = said.left_out().map(str::to_owned).collect();
        left_out.sort();
        (set, left_out)
    }

    #[test]
    fn only_what_is_new_or_gone_is_written() {
        let before = [("a", "1"), ("b", "1"), ("c", "1")];
        for (now, set, left_out) in [
            (&[("a", "1"), ("b", "1"), ("c", "1")][..], &[][..], &[][..]),
            (&[("c", "1"), ("a", "2"), ("d", "1")], &["a=2", "d=1"], &["b"]),
            (&[], &[], &["a", "b", "c"]),
        ] {
            assert_eq!(learn(&before, now), (to_owned(set), to_owned(left_out)), "{now:?}");
        }
    }

    #[test]
    fn of_two_statements_the_first_counts_whenever_it_is_learnt() {
        let list = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "1")];
        assert_eq!(learn(&[], &list), (to_owned(&["a=1", "b=1"]), vec![]));
        let known = [("a", "1"), ("b", "1")];
        assert_eq!(learn(&known, &list), (vec![], vec![]));
        assert_eq!(learn(&[("a", "2")], &list), (to_owned(&["a=1", "b=1"]), vec![]));
    }

    #[test]
    fn sizes_are_compared_too() {
        let mut said = said(&[("a", "1")]);
        let sized = Expectation { size: Some(1), ..expectation("1") };
        assert_eq!(said.take("a", &sized).unwrap(), News::Some);
    }

    #[test]
    fn names_are_bounded_by_number_and_bytes() {
        let what = expectation("");
        let mut bounds = Bounds { names: NAMES_MAX - 1, bytes: 0 };
        assert!(bounds.count("a").is_ok());
        assert!(matches!(bounds.count("a"), Err(Refusal::TooMuch)));
        let long = "a".repeat(NAME_BYTES_MAX as usize / 2);
        let mut said = Said::default();
        for is_ok in [true, true, false] {
            assert_eq!(said.take(&long, &what).is_ok(), is_ok);
        }
        for is_ok in [true, true, false] {
            assert_eq!(said.take_before(&long, &what).is_ok(), is_ok);
        }
    }

    #[test]
    fn long_names_come_in_small_batches() {
        let (batches, mut written) = mpsc::channel(4);
        let mut difference = Difference::new(Said::default(), batches);
        for digit in ["a", "b", "c"] {
            difference.say(&digit.repeat(BATCH_BYTES / 2), expectation("")).unwrap();
        }
        assert_eq!(written.try_recv().unwrap().set.len(), 2);
        difference.end().unwrap();
        assert_eq!(written.try_recv().unwrap().set.len(), 1);
    }

    #[test]
    fn it_ends_when_nobody_writes_any_more() {
        let (batches, written) = mpsc::channel(4);
        let mut difference = Difference::new(Said::default(), batches);
        drop(written);
        let error = (0..=BATCH)
            .find_map(|number| difference.say(&number.to_string(), expectation("")).err());
        assert!(matches!(error, Some(Refusal::Abandoned)), "{error:?}");
    }

    fn to_owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }
}
