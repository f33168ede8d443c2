//! Who brings which bytes of a file: what is there, what is coming from whom, and what is still to be
//! given out. Pure.
//!
//! The mirror, where it is asked at all, brings a file from its beginning. So peers that have all of it
//! bring it from its end, and the two meet; what a peer is still fetching itself is taken from its
//! beginning, as far as it is there.

use std::ops::Range;

/// The least that is worth a request of its own, in bytes.
const RUN_MIN: u64 = 256 * 1024;
/// What is left of a run that is not worth being divided: who helps takes all of it.
const TAIL: u64 = 512 * 1024;
/// Who helps with another's run must be so many times as fast as that one to be done.
const HELP: u64 = 2;

/// One of those who bring bytes, by its number in this download.
pub(in crate::engine) type Giver = usize;

/// A request under way: bytes that a giver is to bring, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    number: usize,
    giver: Giver,
    next: u64,
    end: u64,
}

impl Run {
    /// Whether all that it has yet to bring is there, the mirror having come to `led`.
    fn is_over(&self, there: &[Range<u64>], led: u64) -> bool {
        let next = self.next.max(led);
        next >= self.end || there.iter().any(|range| range.start <= next && self.end <= range.end)
    }
}

/// The download.
#[derive(Debug)]
pub(super) struct Board {
    size: u64,
    /// Up to here the mirror has brought it.
    led: u64,
    /// What peers have brought; disjoint, ascending.
    there: Vec<Range<u64>>,
    runs: Vec<Run>,
    numbers: usize,
}

/// A run that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) number: usize,
    pub(super) range: Range<u64>,
}

impl Board {
    pub(super) fn new(size: u64) -> Self {
        Self { size, led: 0, there: Vec::new(), runs: Vec::new(), numbers: 0 }
    }

    /// The mirror has brought so many from the beginning.
    pub(super) fn lead(&mut self, led: u64) {
        self.led = self.led.max(led);
    }

    /// Bytes that nobody has brought yet.
    pub(super) fn missing(&self) -> u64 {
        let mut missing = self.size - self.led.min(self.size);
        for range in &self.there {
            missing -= range.end - range.start.max(self.led).min(range.end);
        }
        missing
    }

    /// Where what peers bring begins: the mirror need not go on beyond it, unless they fail.
    pub(super) fn meeting(&self) -> u64 {
        let coming = self.runs.iter().map(|run| run.next);
        let there = self.there.iter().filter(|range| range.end > self.led).map(|range| range.start);
        coming.chain(there).filter(|at| *at > self.led).min().unwrap_or(self.size)
    }

    /// The last bytes that nobody brings, `most` of them at most.
    pub(super) fn assign_last(&mut self, giver: Giver, most: u64) -> Option<Assigned> {
        let gap = self.gaps().pop()?;
        let start = gap.end.saturating_sub(most.max(RUN_MIN)).max(gap.start);
        // A rest that is hardly worth a request goes with it.
        let start = if start - gap.start < RUN_MIN { gap.start } else { start };
        Some(self.give(giver, start..gap.end))
    }

    /// Where the first bytes are that nobody brings.
    pub(super) fn first_gap(&self) -> Option<u64> {
        self.gaps().first().map(|gap| gap.start)
    }

    /// The first bytes that nobody brings, `most` of them at most, from before byte `limit`.
    pub(super) fn assign_first(&mut self, giver: Giver, most: u64, limit: u64) -> Option<Assigned> {
        let gap = self.gaps().into_iter().next().filter(|gap| gap.start < limit)?;
        let end = gap.end.min(gap.start + most.max(RUN_MIN)).min(limit);
        Some(self.give(giver, gap.start..end))
    }

    /// Where nobody is free to begin: a part of what a slower one brings, `rate` telling the bytes per
    /// second of each. What is left of that may come twice; the first counts.
    pub(super) fn help(&mut self, giver: Giver, rate: impl Fn(Giver) -> u64) -> Option<Assigned> {
        let own = rate(giver).max(1);
        // In milliseconds.
        let left = |run: &Run| (run.end - run.next).saturating_mul(1000) / rate(run.giver).max(1);
        let (there, led) = (&self.there, self.led);
        let helped = |run: &&mut Run| run.giver != giver && !run.is_over(there, led);
        let slowest = self.runs.iter_mut().filter(helped);
        let run = slowest.max_by_key(|run| left(run))?;
        let bytes = run.end - run.next;
        if left(run) < HELP * bytes.saturating_mul(1000) / own {
            return None;
        }
        let range = if bytes <= TAIL {
            run.next..run.end
        } else {
            // As much as both bring in the same time.
            let theirs = rate(run.giver).max(1);
            let theirs = bytes.saturating_mul(theirs) / theirs.saturating_add(own);
            let from = run.next + theirs.min(bytes - RUN_MIN);
            let range = from..run.end;
            run.end = from;
            range
        };
        Some(self.give(giver, range))
    }

    /// A run's next `bytes` are here: where they belong, and how many of them are wanted.
    pub(super) fn arrived(&mut self, number: usize, bytes: u64) -> (u64, u64) {
        let Some(run) = self.runs.iter_mut().find(|run| run.number == number) else {
            return (0, 0);
        };
        let (at, wanted) = (run.next, bytes.min(run.end.saturating_sub(run.next)));
        run.next += wanted;
        self.add(at..at + wanted);
        (at, wanted)
    }

    /// Whether nothing of a run is wanted any more.
    pub(super) fn is_over(&self, number: usize) -> bool {
        let run = self.runs.iter().find(|run| run.number == number);
        run.is_none_or(|run| run.is_over(&self.there, self.led))
    }

    /// The run has ended: what it did not bring is free again.
    pub(super) fn end(&mut self, number: usize) {
        self.runs.retain(|run| run.number != number);
    }

    /// Nothing that peers have brought counts.
    pub(super) fn clear(&mut self) {
        self.there.clear();
        self.runs.clear();
    }

    fn give(&mut self, giver: Giver, range: Range<u64>) -> Assigned {
        self.numbers += 1;
        let number = self.numbers;
        self.runs.push(Run { number, giver, next: range.start, end: range.end });
        Assigned { number, range }
    }

    fn add(&mut self, new: Range<u64>) {
        add(&mut self.there, new);
    }

    /// What is neither there nor coming.
    fn gaps(&self) -> Vec<Range<u64>> {
        let mut taken = self.there.clone();
        for run in &self.runs {
            add(&mut taken, run.next..run.end);
        }
        gaps(&taken, self.led..self.size)
    }
}

/// Adds a range to disjoint, ascending ones.
pub(super) fn add(ranges: &mut Vec<Range<u64>>, new: Range<u64>) {
    if new.is_empty() {
        return;
    }
    let from = ranges.partition_point(|range| range.end < new.start);
    let to = ranges.partition_point(|range| range.start <= new.end);
    let touched = ranges.get(from..to).unwrap_or_default();
    let start = touched.first().map_or(new.start, |first| first.start.min(new.start));
    let end = touched.last().map_or(new.end, |last| last.end.max(new.end));
    ranges.splice(from..to, std::iter::once(start..end));
}

/// The parts of `whole` that disjoint, ascending ranges leave.
pub(super) fn gaps(taken: &[Range<u64>], whole: Range<u64>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = whole.start;
    for range in taken {
        if range.start.min(whole.end) > at {
            gaps.push(at..range.start.min(whole.end));
        }
        at = at.max(range.end);
    }
    if at < whole.end {
        gaps.push(at..whole.end);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1024 * 1024;

    #[test]
    fn ranges_are_joined_and_told_apart() {
        let mut ranges = Vec::new();
        for (new, all) in [
            (4..6, "[4..6]"),
            (8..9, "[4..6, 8..9]"),
            (6..7, "[4..7, 8..9]"),
            (0..1, "[0..1, 4..7, 8..9]"),
            (5..5, "[0..1, 4..7, 8..9]"),
            (2..8, "[0..1, 2..9]"),
            (0..20, "[0..20]"),
        ] {
            add(&mut ranges, new);
            assert_eq!(format!("{ranges:?}"), all);
        }
        for (taken, whole, left) in [
            (&[0..1, 4..7, 8..9][..], 0..10, "[1..4, 7..8, 9..10]"),
            (&[0..1, 4..7], 5..7, "[]"),
            (&[0..1, 4..17], 2..10, "[2..4]"),
            (&[], 2..2, "[]"),
        ] {
            assert_eq!(format!("{:?}", gaps(taken, whole)), left);
        }
    }

    #[test]
    fn peers_bring_a_file_from_its_end() {
        let mut board = Board::new(10 * MB);
        assert_eq!(board.assign_last(0, 4 * MB).unwrap().range, 6 * MB..10 * MB);
        assert_eq!(board.assign_last(1, 4 * MB).unwrap().range, 2 * MB..6 * MB);
        board.lead(2 * MB - 1000);
        assert_eq!(board.assign_last(2, 4 * MB).unwrap().range, 2 * MB - 1000..2 * MB);
        assert_eq!(board.assign_last(3, MB), None);
        assert_eq!(board.meeting(), 2 * MB);
        assert_eq!(board.missing(), 8 * MB + 1000);
    }

    #[test]
    fn a_small_rest_goes_with_the_last_run() {
        let mut board = Board::new(MB + 100);
        assert_eq!(board.assign_last(0, MB).unwrap().range, 0..MB + 100);
        let mut board = Board::new(MB + 100);
        assert_eq!(board.assign_last(0, 1).unwrap().range, MB + 100 - RUN_MIN..MB + 100);
    }

    #[test]
    fn what_a_peer_fetches_itself_is_taken_from_the_beginning() {
        let mut board = Board::new(10 * MB);
        board.lead(1000);
        let first = board.assign_first(0, MB, 3 * MB).unwrap();
        assert_eq!(first.range, 1000..MB + 1000);
        assert_eq!(board.assign_first(1, 4 * MB, 3 * MB).unwrap().range, MB + 1000..3 * MB);
        assert_eq!(board.assign_first(1, MB, 3 * MB), None, "there is no more yet");
        assert_eq!(board.arrived(first.number, 10), (1000, 10));
        assert_eq!(board.missing(), 10 * MB - 1010);
    }

    #[test]
    fn what_a_run_did_not_bring_is_free_again() {
        let mut board = Board::new(MB);
        let run = board.assign_last(0, MB).unwrap();
        assert_eq!(board.arrived(run.number, 100), (0, 100));
        board.end(run.number);
        assert_eq!(board.assign_last(1, MB).unwrap().range, 100..MB);
        assert_eq!(board.arrived(run.number, 100), (0, 0), "it has ended");
    }

    #[test]
    fn no_more_is_taken_than_was_asked_for() {
        let mut board = Board::new(MB);
        let run = board.assign_first(0, MB, 300_000).unwrap();
        assert_eq!(board.arrived(run.number, 400_000), (0, 300_000));
        assert!(board.is_over(run.number));
    }

    #[test]
    fn the_fast_help_the_slow() {
        let rate = |giver| if giver == 0 { 1_000 } else { 3_000 };
        let mut board = Board::new(4 * MB);
        let slow = board.assign_last(0, 4 * MB).unwrap();
        assert_eq!(board.assign_last(1, MB), None);
        let help = board.help(1, rate).unwrap();
        assert_eq!(help.range, MB..4 * MB, "both are done at the same time");
        assert!(!board.is_over(slow.number));
        assert_eq!(board.arrived(slow.number, 2 * MB), (0, MB));
        assert!(board.is_over(slow.number));
        assert_eq!(board.help(0, rate), None, "the slow do not help the fast");
    }

    #[test]
    fn the_last_bytes_may_come_twice() {
        let rate = |giver| if giver == 0 { 1_000 } else { 3_000 };
        let mut board = Board::new(400_000);
        let slow = board.assign_last(0, MB).unwrap();
        let help = board.help(1, rate).unwrap();
        assert_eq!(help.range, 0..400_000);
        assert_eq!(board.arrived(help.number, 400_000), (0, 400_000));
        assert!(board.is_over(slow.number));
        assert_eq!(board.missing(), 0);
    }

    #[test]
    fn what_the_mirror_has_brought_is_not_brought_again() {
        let mut board = Board::new(MB);
        let run = board.assign_last(0, MB).unwrap();
        board.lead(MB);
        assert!(board.is_over(run.number));
        assert_eq!(board.missing(), 0);
    }
}
