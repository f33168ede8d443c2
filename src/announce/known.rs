//! What may be told, as it was seen last in the index.

use std::collections::HashMap;

use crate::content::digest::Sha256;
use crate::content::filter::ENTRIES_MAX;
use crate::index::{Index, IndexError};

/// Blobs that are read at a time.
const PAGE: usize = 5_000;
/// Blobs that a site tells of: as many as its have-filter has room for, in 50 MB here.
const BLOBS_MAX: usize = ENTRIES_MAX;

/// Blobs and their sizes.
#[derive(Default)]
pub(super) struct Known(HashMap<Sha256, u64>);

/// What came and what went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) came: Vec<(Sha256, u64)>,
    pub(super) went: Vec<Sha256>,
    /// Those that went before it was seen that they came: they may have been told of on their way.
    pub(super) passed: Vec<Sha256>,
}

impl Known {
    /// All that is in the index.
    pub(super) async fn read(index: &dyn Index) -> Result<Self, IndexError> {
        let (mut all, mut after) = (HashMap::new(), None);
        loop {
            let page = index.tellable_after(after, PAGE).await?;
            after = page.last().map(|blob| blob.digest);
            let room = BLOBS_MAX - all.len();
            all.extend(page.iter().take(room).map(|blob| (blob.digest, blob.size)));
            if page.len() > room {
                tracing::warn!("the swarm is told of {BLOBS_MAX} blobs, of more that there are");
                return Ok(Self(all));
            }
            if page.len() < PAGE {
                return Ok(Self(all));
            }
        }
    }

    /// Becomes another; how that differs.
    pub(super) fn become_of(&mut self, all: Self) -> Difference {
        let before = std::mem::replace(self, all);
        let came = self.iter().filter(|(digest, _)| !before.0.contains_key(digest)).collect();
        let went = before.0.into_keys().filter(|digest| !self.0.contains_key(digest)).collect();
        Difference { came, went, passed: Vec::new() }
    }

    /// Takes changes over: a size, or that a blob is not to be told of any more; how it differs then.
    pub(super) fn change(&mut self, blobs: &[(Sha256, Option<u64>)]) -> Difference {
        let mut difference = Difference::default();
        for (digest, size) in blobs {
            match size {
                Some(size) if self.0.len() < BLOBS_MAX => {
                    if self.0.insert(*digest, *size).is_none() {
                        difference.came.push((*digest, *size));
                    }
                }
                Some(_) => {}
                None if self.0.remove(digest).is_some() => difference.went.push(*digest),
                None => difference.passed.push(*digest),
            }
        }
        difference
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Sha256, u64)> {
        self.0.iter().map(|(digest, size)| (*digest, *size))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(number: u8) -> (Sha256, u64) {
        (Sha256::of(&[number]), number.into())
    }

    #[test]
    fn a_difference_is_what_was_not_known() {
        let mut known = Known::default();
        let [one, two, three] = [1, 2, 3].map(blob);
        let told = |blob: (Sha256, u64)| (blob.0, Some(blob.1));
        let difference = known.change(&[told(one), told(two), (three.0, None)]);
        assert_eq!((difference.came, difference.went), (vec![one, two], vec![]));
        assert_eq!(difference.passed, [three.0]);
        let difference = known.change(&[told(one), (two.0, None)]);
        assert_eq!((difference.came, difference.went), (vec![], vec![two.0]));
        let difference = known.become_of(Known(HashMap::from([two, three])));
        assert_eq!((difference.came.len(), difference.went), (2, vec![one.0]));
        assert_eq!(known.len(), 2);
    }
}
