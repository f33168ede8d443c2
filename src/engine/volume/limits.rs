//! The bounds of what is stored, and what is missing to keep to them. Pure: `room.rs` acts on it.

use crate::store::Space;

/// What is kept free beyond the bounds, as a part of them, so that requests hardly ever wait...
const HEADROOM_PART: u64 = 50;
/// ...and at most, in bytes.
const HEADROOM_MAX: u64 = 1024 * 1024 * 1024;

/// The bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of blobs and downloads under way; `None`: no bound.
    pub quota: Option<u64>,
    /// What the volume must have left.
    pub min_free: MinFree,
}

/// What a volume must have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of the volume.
    Percent(u64),
}

impl Default for MinFree {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

impl MinFree {
    pub(super) fn of(self, space: Space) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => space.total / 100 * percent,
        }
    }
}

/// What downloads under way have been promised, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Promised {
    pub(super) all: u64,
    /// Of these, what the volume does not know of yet.
    pub(super) not_set_aside: u64,
}

impl Promised {
    pub(super) fn and(self, more: u64) -> Self {
        let not_set_aside = self.not_set_aside.saturating_add(more);
        Self { all: self.all.saturating_add(more), not_set_aside }
    }
}

/// What is missing, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shortage {
    /// To the quota.
    pub(super) of_quota: u64,
    /// To the volume's free space.
    pub(super) of_space: u64,
}

impl Shortage {
    pub(super) fn bytes(self) -> u64 {
        self.of_quota.max(self.of_space)
    }
}

/// What is missing for all promises to be kept.
pub(super) fn shortage(
    limits: Limits,
    stored: u64,
    promised: Promised,
    space: Option<Space>,
    with_headroom: bool,
) -> Shortage {
    let headroom = |of: u64| if with_headroom { (of / HEADROOM_PART).min(HEADROOM_MAX) } else { 0 };
    let of_quota = limits.quota.map_or(0, |quota| {
        let needed = stored.saturating_add(promised.all).saturating_add(headroom(quota));
        needed.saturating_sub(quota)
    });
    let of_space = space.map_or(0, |space| {
        let bound = limits.min_free.of(space);
        let needed = bound.saturating_add(promised.not_set_aside).saturating_add(headroom(bound));
        needed.saturating_sub(space.free)
    });
    Shortage { of_quota, of_space }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let quota = |quota| Limits { quota: Some(quota), min_free: MinFree::Bytes(0) };
        let free = |min_free| Limits { quota: None, min_free };
        let space = |free| Some(Space { total: 1000, free });
        let promised = |all, not_set_aside| Promised { all, not_set_aside };
        let table = [
            (Limits::default(), 900, promised(900, 900), None, (0, 0)),
            (quota(100), 60, promised(40, 0), None, (0, 0)),
            (quota(100), 61, promised(40, 0), None, (1, 0)),
            (quota(100), 500, promised(0, 0), space(0), (400, 0)),
            (free(MinFree::Bytes(50)), 500, promised(0, 0), space(50), (0, 0)),
            (free(MinFree::Bytes(50)), 500, promised(7, 0), space(50), (0, 0)),
            (free(MinFree::Bytes(50)), 500, promised(7, 7), space(50), (0, 7)),
            (free(MinFree::Percent(5)), 500, promised(0, 0), space(30), (0, 20)),
            (free(MinFree::Bytes(50)), 500, promised(0, 0), None, (0, 0)),
        ];
        for (limits, stored, promised, space, (of_quota, of_space)) in table {
            let missing = shortage(limits, stored, promised, space, false);
            assert_eq!(missing, Shortage { of_quota, of_space }, "{limits:?} {stored}");
        }
        let ahead = shortage(quota(100), 100, Promised::default(), None, true);
        assert_eq!(ahead.of_quota, 2, "two hundredths");
    }
}
