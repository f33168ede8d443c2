//! What peers have brought of a file, beyond what the mirror has: written where it belongs, believed when
//! the whole has the right digest. Where it has not, it is remembered who brought what, until the right
//! bytes tell whose were wrong.

use std::ops::Range;

use crate::content::digest::Sha256;
use crate::engine::flight::gather::board::{Giver, add, gaps};

/// Parts in dispute that are remembered: more givers and runs than a download has.
const DISPUTED_MAX: usize = 4_096;

/// Bytes of one giver.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    range: Range<u64>,
    giver: Giver,
}

/// What is there.
#[derive(Debug, Default)]
pub(in crate::engine) struct Ahead {
    there: Vec<Range<u64>>,
    parts: Vec<Part>,
    disputed: Vec<(Part, Sha256)>,
}

impl Ahead {
    /// The parts of `range` that are to be written: nobody has brought them, and `led`, the mirror's
    /// end, is before them.
    pub(in crate::engine) fn wanted(&self, range: &Range<u64>, led: u64) -> Vec<Range<u64>> {
        gaps(&self.there, range.start.max(led)..range.end.max(led))
    }

    /// They are written.
    pub(in crate::engine) fn add(&mut self, range: Range<u64>, giver: Giver) {
        add(&mut self.there, range.clone());
        match self.parts.iter_mut().find(|it| it.giver == giver && it.range.end == range.start) {
            Some(part) => part.range.end = range.end,
            None => self.parts.push(Part { range, giver }),
        }
    }

    /// Whether all from `led` to `size` is there.
    pub(in crate::engine) fn is_full(&self, led: u64, size: u64) -> bool {
        led < size && gaps(&self.there, led..size).is_empty()
    }

    /// Who brought what there is beyond `led`.
    pub(in crate::engine) fn givers(&self, led: u64) -> Vec<Giver> {
        let mut givers: Vec<Giver> =
            self.parts.iter().filter(|part| part.range.end > led).map(|part| part.giver).collect();
        givers.sort_unstable();
        givers.dedup();
        givers
    }

    /// The whole is wrong: nothing of it counts any more. `hash` tells what the parts are, so that it
    /// can be told later whose were wrong.
    ///
    /// # Errors
    /// Those of `hash`.
    pub(in crate::engine) fn dispute<E>(
        &mut self,
        hash: impl Fn(&Range<u64>) -> Result<Sha256, E>,
    ) -> Result<(), E> {
        self.there.clear();
        for part in self.parts.drain(..) {
            let digest = hash(&part.range)?;
            if self.disputed.len() < DISPUTED_MAX {
                self.disputed.push((part, digest));
            }
        }
        Ok(())
    }

    /// Whether it is still to be found out whose bytes were wrong.
    pub(in crate::engine) fn is_disputed(&self) -> bool {
        !self.disputed.is_empty()
    }

    /// The whole is right: who brought something else of it before.
    ///
    /// # Errors
    /// Those of `hash`.
    pub(in crate::engine) fn culprits<E>(
        &mut self,
        hash: impl Fn(&Range<u64>) -> Result<Sha256, E>,
    ) -> Result<Vec<Giver>, E> {
        let mut culprits = Vec::new();
        for (part, digest) in self.disputed.drain(..) {
            if !culprits.contains(&part.giver) && hash(&part.range)? != digest {
                culprits.push(part.giver);
            }
        }
        Ok(culprits)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn what_is_there_is_not_written_again() {
        let mut ahead = Ahead::default();
        ahead.add(10..20, 0);
        assert_eq!(ahead.wanted(&(5..25), 0), [5..10, 20..25]);
        assert_eq!(ahead.wanted(&(5..25), 7), [7..10, 20..25]);
        assert_eq!(ahead.wanted(&(5..8), 30), []);
        assert!(ahead.is_full(10, 20) && ahead.is_full(15, 20));
        assert!(!ahead.is_full(9, 20) && !ahead.is_full(10, 21) && !ahead.is_full(20, 20));
    }

    #[test]
    fn who_brought_wrong_bytes_is_found_when_the_right_ones_are_there() {
        let mut ahead = Ahead::default();
        let read = |bytes: &'static [u8]| {
            move |range: &Range<u64>| {
                let (from, to) = (range.start as usize, range.end as usize);
                Ok::<_, Infallible>(Sha256::of(&bytes[from..to]))
            }
        };
        ahead.add(2..3, 1);
        ahead.add(3..4, 1);
        ahead.add(4..6, 2);
        assert_eq!(ahead.givers(0), [1, 2]);
        assert_eq!(ahead.givers(4), [2]);
        let Ok(()) = ahead.dispute(read(b"abcdxx"));
        assert!(ahead.givers(0).is_empty());
        // One alone, who brings wrong bytes everywhere.
        ahead.add(0..6, 3);
        let Ok(()) = ahead.dispute(read(b"yyyyyy"));
        let Ok(culprits) = ahead.culprits(read(b"abcdef"));
        assert_eq!(culprits, [2, 3]);
        let Ok(culprits) = ahead.culprits(read(b"abcdef"));
        assert!(culprits.is_empty());
    }
}
