//! What peers have brought of a file, beyond what the mirror has: written where it belongs, believed when
//! the whole has the right digest. Where it has not, it is remembered who brought what, until the right
//! bytes tell whose were wrong.

use std::ops::Range;

use crate::content::digest::Sha256;
use crate::engine::flight::gather::board::{Giver, add, gaps};

/// Parts in dispute that are remembered: those of four gigabytes.
const DISPUTED_MAX: usize = 4_096;

/// Bytes of one giver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Part {
    pub(in crate::engine) range: Range<u64>,
    pub(in crate::engine) giver: Giver,
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

    /// What each brought of what there is beyond `led`, in bytes.
    pub(in crate::engine) fn brought(&self, led: u64) -> Vec<(Giver, u64)> {
        let bytes = |giver: Giver| {
            let own = self.parts.iter().filter(|part| part.giver == giver);
            own.map(|part| part.range.end.saturating_sub(part.range.start.max(led))).sum()
        };
        self.givers(led).into_iter().map(|giver| (giver, bytes(giver))).collect()
    }

    /// The whole is wrong: nothing of it counts any more. What it was made of, so that it can be told
    /// later whose bytes were wrong.
    pub(in crate::engine) fn clear(&mut self) -> Vec<Part> {
        self.there.clear();
        std::mem::take(&mut self.parts)
    }

    /// This part of what was wrong had this digest.
    pub(in crate::engine) fn dispute(&mut self, part: Part, digest: Sha256) {
        if self.disputed.len() < DISPUTED_MAX {
            self.disputed.push((part, digest));
        }
    }

    /// The whole is right: what was said to be in it before.
    pub(in crate::engine) fn disputed(&mut self) -> Vec<(Part, Sha256)> {
        std::mem::take(&mut self.disputed)
    }
}

/// Whose bytes turned out to be right, and whose wrong.
#[derive(Debug, Default)]
pub(in crate::engine) struct Judged {
    /// And how many.
    pub(in crate::engine) proven: Vec<(Giver, u64)>,
    pub(in crate::engine) culprits: Vec<Giver>,
}

#[cfg(test)]
mod tests {
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
    fn it_is_remembered_who_brought_what() {
        let mut ahead = Ahead::default();
        ahead.add(2..3, 1);
        ahead.add(3..4, 1);
        ahead.add(4..6, 2);
        assert_eq!(ahead.brought(0), [(1, 2), (2, 2)]);
        assert_eq!((ahead.givers(4), ahead.brought(5)), (vec![2], vec![(2, 1)]));
        let parts = ahead.clear();
        assert_eq!(parts.len(), 2);
        assert!(ahead.givers(0).is_empty() && !ahead.is_full(2, 6));
        for part in parts {
            ahead.dispute(part, Sha256::of(b"x"));
        }
        assert_eq!(ahead.disputed().len(), 2);
        assert_eq!(ahead.disputed().len(), 0);
    }
}
