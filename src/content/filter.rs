//! Have-filters: which blobs a site has, in about nine bits a blob, so that peers need not ask for each.
//! Entries are blinded ([`DhtKey::short`](crate::content::swarm_key::DhtKey::short)): without the swarm
//! key nobody can test for a blob.
//!
//! A filter is a binary fuse filter of what the site had when it was built, and a patch of what came and
//! went since. A peer that has one generation is given the difference to the next; when the patch has
//! grown, the site builds the filter anew. Numbers are big-endian.
//!
//! ```text
//! filter    "aptmeshF" 1, generation (8), seed (8), log2 of a segment (4), segments (4),
//!           fingerprints, (segments + 2) << log2 of them, then a patch
//! patch     number of entries that came (4), these (8 each), number of those that went (4), these;
//!           each strictly ascending
//! delta     "aptmeshD" 1, from generation (8), to generation (8), a patch
//! ```

use crate::content::fuse::Fuse;
use crate::content::reading::Reading;

const FILTER: &[u8] = b"aptmeshF\x01";
const DELTA: &[u8] = b"aptmeshD\x01";
/// Entries in a filter: ten times what a site has that keeps all of an architecture.
pub const ENTRIES_MAX: usize = 1_000_000;
/// Entries in a patch.
pub const PATCH_MAX: usize = 65_536;
/// Bytes of fingerprints.
const PRINTS_MAX: usize = 2 * ENTRIES_MAX;
/// Bytes of a filter; what is longer need not be read.
pub const SIZE_MAX: usize = 64 + PRINTS_MAX + 8 * PATCH_MAX;
/// A patch is worth a new filter when it has more than one entry for so many of the filter's own.
const PATCH_SHARE: usize = 16;

/// What a site has, at one generation of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    generation: u64,
    fuse: Fuse,
    since: Patch,
}

/// What came and what went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Ascending.
    came: Vec<u64>,
    /// Ascending.
    went: Vec<u64>,
}

/// From one generation to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Whose filter it changes.
    pub from: u64,
    /// Into which.
    pub to: u64,
    /// How.
    pub patch: Patch,
}

impl Filter {
    /// The filter of these entries; `None` if they are more than [`ENTRIES_MAX`].
    #[must_use]
    pub fn of(generation: u64, mut entries: Vec<u64>) -> Option<Self> {
        entries.sort_unstable();
        entries.dedup();
        if entries.len() > ENTRIES_MAX {
            return None;
        }
        Some(Self { generation, fuse: Fuse::of(&entries)?, since: Patch::default() })
    }

    /// Which generation it is of.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the site has it, most probably: yes is wrong once in 256, no never.
    #[must_use]
    pub fn has(&self, entry: u64) -> bool {
        self.since.tells(entry).unwrap_or_else(|| self.fuse.has(entry))
    }

    /// Brings it to the delta's generation; whether that could be done.
    pub fn apply(&mut self, delta: &Delta) -> bool {
        let fits = delta.from == self.generation;
        let joined = fits.then(|| self.since.then(&delta.patch)).filter(Patch::is_bounded);
        if let Some(since) = joined {
            self.since = since;
            self.generation = delta.to;
            return true;
        }
        false
    }

    /// Whether it had better be built anew, being of `entries` now.
    #[must_use]
    pub fn is_worn(&self, entries: usize) -> bool {
        self.since.len() > (entries / PATCH_SHARE).clamp(256, PATCH_MAX / 2)
    }

    /// As it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = FILTER.to_vec();
        out.extend_from_slice(&self.generation.to_be_bytes());
        self.fuse.write(&mut out);
        self.since.write(&mut out);
        out
    }

    /// Reads what somebody sent; `None` for what is no filter, or is out of bounds.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reading = Reading(bytes.strip_prefix(FILTER)?);
        let filter = Self {
            generation: reading.u64()?,
            fuse: Fuse::read(&mut reading, PRINTS_MAX)?,
            since: Patch::read(&mut reading)?,
        };
        reading.end()?;
        Some(filter)
    }
}

/// A filter, and how it came to be: for peers that have an earlier generation.
pub struct History {
    filter: Filter,
    deltas: Vec<Delta>,
}

impl History {
    /// What a site keeps: its filter as it was built, and the deltas before and since, in order. `None`
    /// for what is none.
    #[must_use]
    pub fn read(whole: &[u8], deltas: &[Vec<u8>]) -> Option<Self> {
        let mut filter = Filter::parse(whole)?;
        let deltas: Vec<Delta> = deltas.iter().filter_map(|delta| Delta::parse(delta)).collect();
        for delta in &deltas {
            if delta.to > filter.generation && !filter.apply(delta) {
                return None;
            }
        }
        Some(Self { filter, deltas })
    }

    /// As it is now.
    #[must_use]
    pub const fn filter(&self) -> &Filter {
        &self.filter
    }

    /// What leads from `generation` to the present one, if that is known, and less than the whole.
    #[must_use]
    pub fn since(&self, generation: u64) -> Option<Delta> {
        let at = self.deltas.iter().position(|delta| delta.from == generation)?;
        let mut joined = Delta { from: generation, to: generation, patch: Patch::default() };
        for delta in self.deltas.get(at..).unwrap_or_default() {
            if delta.from != joined.to {
                return None;
            }
            joined = Delta { to: delta.to, patch: joined.patch.then(&delta.patch), ..joined };
        }
        let is_good = joined.to == self.filter.generation
            && joined.patch.is_bounded()
            && joined.patch.len() * 8 < self.filter.fuse.size();
        is_good.then_some(joined)
    }
}

impl Delta {
    /// Whether peers take it.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.patch.is_bounded()
    }

    /// As it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = DELTA.to_vec();
        out.extend_from_slice(&self.from.to_be_bytes());
        out.extend_from_slice(&self.to.to_be_bytes());
        self.patch.write(&mut out);
        out
    }

    /// Reads what somebody sent; `None` for what is no delta, or is out of bounds.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reading = Reading(bytes.strip_prefix(DELTA)?);
        let delta =
            Self { from: reading.u64()?, to: reading.u64()?, patch: Patch::read(&mut reading)? };
        reading.end()?;
        Some(delta)
    }
}

impl Patch {
    /// What came and what went; what did both is there.
    #[must_use]
    pub fn new(mut came: Vec<u64>, mut went: Vec<u64>) -> Self {
        came.sort_unstable();
        came.dedup();
        went.retain(|entry| came.binary_search(entry).is_err());
        went.sort_unstable();
        went.dedup();
        Self { came, went }
    }

    /// This and then that.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        let kept = |ours: &[u64], against: &[u64]| -> Vec<u64> {
            ours.iter().copied().filter(|entry| against.binary_search(entry).is_err()).collect()
        };
        let mut came = kept(&self.came, &next.went);
        came.extend_from_slice(&next.came);
        let mut went = kept(&self.went, &next.came);
        went.extend_from_slice(&next.went);
        Self::new(came, went)
    }

    /// Entries that came or went.
    #[must_use]
    pub fn len(&self) -> usize {
        self.came.len() + self.went.len()
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_bounded(&self) -> bool {
        self.len() <= PATCH_MAX
    }

    /// Whether it is there, if this patch knows.
    fn tells(&self, entry: u64) -> Option<bool> {
        let is_in = |entries: &[u64]| entries.binary_search(&entry).is_ok();
        if is_in(&self.came) { Some(true) } else { is_in(&self.went).then_some(false) }
    }

    fn write(&self, out: &mut Vec<u8>) {
        for entries in [&self.came, &self.went] {
            out.extend_from_slice(&u32::try_from(entries.len()).unwrap_or(u32::MAX).to_be_bytes());
            for entry in entries {
                out.extend_from_slice(&entry.to_be_bytes());
            }
        }
    }

    fn read(reading: &mut Reading<'_>) -> Option<Self> {
        let mut entries = || -> Option<Vec<u64>> {
            let count = usize::try_from(reading.u32()?).ok().filter(|count| *count <= PATCH_MAX)?;
            let bytes = reading.bytes(count * 8)?;
            let (chunks, _) = bytes.as_chunks();
            let entries: Vec<u64> = chunks.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
            entries.is_sorted_by(|one, next| one < next).then_some(entries)
        };
        Some(Self { came: entries()?, went: entries()? }).filter(Self::is_bounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distinct, and spread like digests.
    fn entries(range: std::ops::Range<u64>) -> Vec<u64> {
        range.map(|number| (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
    }

    #[test]
    fn a_hundred_thousand_blobs_take_as_much_as_is_promised() {
        let filter = Filter::of(1, entries(0..100_000)).unwrap();
        let size = filter.to_bytes().len();
        assert!((113_000..125_000).contains(&size), "{size}");
        assert!(entries(0..100_000).iter().all(|entry| filter.has(*entry)));
        let wrong = entries(100_000..200_000).iter().filter(|entry| filter.has(**entry)).count();
        assert!((200..600).contains(&wrong), "{wrong} false positives, 391 expected");
    }

    #[test]
    fn a_filter_is_read_as_it_was_written() {
        for count in [0, 1, 1_000] {
            let mut filter = Filter::of(7, entries(0..count)).unwrap();
            let patch = Patch::new(entries(2_000..2_100), entries(0..10));
            assert!(filter.apply(&Delta { from: 7, to: 8, patch }));
            let read = Filter::parse(&filter.to_bytes()).unwrap();
            assert!(read == filter);
            assert_eq!(read.generation(), 8);
        }
    }

    #[test]
    fn a_delta_brings_a_filter_forward_and_is_small() {
        let mut filter = Filter::of(1, entries(0..100_000)).unwrap();
        // 1.5 % of an archive change in a day.
        let patch = Patch::new(entries(200_000..201_500), entries(0..1_500));
        let delta = Delta { from: 1, to: 2, patch };
        assert!(delta.to_bytes().len() < 25_000);
        assert_eq!(Delta::parse(&delta.to_bytes()).unwrap(), delta);
        assert!(filter.apply(&delta));
        assert!(entries(200_000..201_500).iter().all(|entry| filter.has(*entry)));
        assert!(!entries(0..1_500).iter().any(|entry| filter.has(*entry)));
        assert!(!filter.apply(&delta), "it is of generation 2 now");
        assert!(!filter.is_worn(100_000));
        assert!(filter.is_worn(10_000));
        let back = Patch::new(entries(0..1), Vec::new());
        assert!(filter.apply(&Delta { from: 2, to: 3, patch: back }));
        assert!(filter.has(entries(0..1)[0]));
    }

    #[test]
    fn who_has_an_earlier_generation_is_brought_to_the_present_one() {
        let step = |from: u64| {
            let patch = Patch::new(entries(1_000 + from..1_001 + from), entries(from..from + 1));
            Delta { from, to: from + 1, patch }
        };
        let mut built = Filter::of(1, entries(0..1_000)).unwrap();
        let deltas: Vec<Vec<u8>> = (1..9).map(|from| step(from).to_bytes()).collect();
        // Built anew at the fourth generation.
        let mut early = built.clone();
        assert!((1..4).all(|from| built.apply(&step(from))));
        let history = History::read(&built.to_bytes(), &deltas).unwrap();
        assert_eq!(history.filter().generation(), 9);
        let delta = history.since(1).unwrap();
        assert_eq!((delta.from, delta.to), (1, 9));
        assert!(early.apply(&delta));
        assert!(entries(1_001..1_009).iter().all(|entry| early.has(*entry)));
        assert!(!entries(1..9).iter().any(|entry| early.has(*entry)));
        assert_eq!(history.since(8).unwrap(), step(8));
        for unknown in [0, 9, 100] {
            assert_eq!(history.since(unknown), None);
        }
        // A delta is missing: the whole still leads on, where it is later.
        let gap = [&deltas[..1], &deltas[4..]].concat();
        let history = History::read(&built.to_bytes(), &deltas[4..]);
        assert!(history.is_none(), "from 4 to 5");
        built.apply(&step(4));
        let history = History::read(&built.to_bytes(), &gap).unwrap();
        assert_eq!((history.since(1), history.since(5).is_some()), (None, true));
    }

    #[test]
    fn a_delta_larger_than_the_whole_is_not_told() {
        let mut built = Filter::of(1, entries(0..100)).unwrap();
        let delta = Delta { from: 1, to: 2, patch: Patch::new(entries(100..400), Vec::new()) };
        let deltas = [delta.to_bytes()];
        assert!(built.apply(&delta));
        assert_eq!(History::read(&built.to_bytes(), &deltas).unwrap().since(1), None);
    }

    #[test]
    fn a_filter_takes_no_more_than_its_bounds() {
        let mut filter = Filter::of(0, Vec::new()).unwrap();
        let mut applied = 0;
        for step in 0..4u64 {
            let patch = Patch::new(entries(step * 30_000..(step + 1) * 30_000), Vec::new());
            applied += u64::from(filter.apply(&Delta { from: step, to: step + 1, patch }));
        }
        assert_eq!(applied, 2);
        assert!(filter.to_bytes().len() <= SIZE_MAX);
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let filter = Filter::of(1, entries(0..50)).unwrap().to_bytes();
        for end in 0..filter.len() {
            assert!(Filter::parse(&filter[..end]).is_none(), "{end} bytes");
        }
        assert!(Filter::parse(&[&filter[..], &[0]].concat()).is_none());
        for at in 0..FILTER.len() {
            let mut other = filter.clone();
            other[at] ^= 1;
            assert!(Filter::parse(&other).is_none());
        }
        let unsorted = Delta { from: 1, to: 2, patch: Patch { came: vec![2, 1], went: vec![] } };
        assert!(Delta::parse(&unsorted.to_bytes()).is_none());
    }
}
