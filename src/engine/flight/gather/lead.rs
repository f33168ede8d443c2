//! How far the mirror leads while peers bring a file. Pure.
//!
//! What peers bring is handed out when all of it is there and right, and not before. So clients who wait
//! get the beginning from the mirror: a little, so that nobody takes the silence for an end, as long as
//! peers bring the rest in time; everything, as soon as they may not.

use std::time::Duration;

/// For how long peers are waited for before the mirror is asked at all.
pub(super) const BUDGET: Duration = Duration::from_millis(150);
/// For how long those are waited for who have never given right bytes.
const PROBATION: Duration = Duration::from_secs(1);
/// By how much later than from the mirror alone the end of a file may come.
const SLACK: Duration = Duration::from_millis(250);
/// Peers show by then what they bring.
pub(super) const TRIAL: Duration = Duration::from_millis(500);
/// For how long clients are without a byte at most.
const SILENCE: Duration = Duration::from_secs(4);
/// What the mirror brings so that clients have something, in bytes.
const MORSEL: u64 = 16 * 1024;
/// A file that is hardly larger is brought in one go.
const SMALL: u64 = 8 * MORSEL;
/// What a mirror is taken to bring that has not shown it yet, in bytes per second.
const MIRROR_RATE: u64 = 4_000_000;

/// How a download stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// Since it began.
    pub(super) since: Duration,
    /// Since clients had a new byte.
    pub(super) silent: Duration,
    /// Bytes of the whole.
    pub(super) size: u64,
    /// How far the mirror has come.
    pub(super) led: u64,
    /// What nobody has brought.
    pub(super) missing: u64,
    /// Whether any peer is bringing something.
    pub(super) are_busy: bool,
    /// Whether all who do have brought right bytes before.
    pub(super) are_proven: bool,
    /// What they bring together, in bytes per second.
    pub(super) rate: u64,
    /// What the mirror brought lately, if it is known; in bytes per second.
    pub(super) mirror_rate: Option<u64>,
}

/// How far the mirror may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lead {
    /// To this byte.
    To(u64),
    /// To the end.
    All,
}

pub(super) fn lead(sight: &Sight) -> Lead {
    let Sight { since, silent, size, led, .. } = *sight;
    if !sight.are_busy || (!sight.are_proven && since >= PROBATION) || is_late(sight) {
        return Lead::All;
    }
    let is_hungry = since >= BUDGET && (led == 0 || silent >= SILENCE);
    match is_hungry {
        true if size - led <= SMALL => Lead::All,
        true => Lead::To((led + 1).next_multiple_of(MORSEL)),
        // What was begun is brought to its end.
        false => Lead::To(led.next_multiple_of(MORSEL).min(size)),
    }
}

/// Whether the mirror alone would be done sooner.
fn is_late(sight: &Sight) -> bool {
    let time =
        |bytes: u64, rate: u64| Duration::from_millis(bytes.saturating_mul(1000) / rate.max(1));
    let by_mirror = time(sight.size - sight.led, sight.mirror_rate.unwrap_or(MIRROR_RATE));
    let by_peers = time(sight.missing, sight.rate);
    sight.since >= TRIAL && by_peers > by_mirror.saturating_add(SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;
    const WELL: Sight = Sight {
        since: Duration::from_millis(600),
        silent: Duration::from_millis(400),
        size: 50 * MB,
        led: MORSEL,
        missing: 40 * MB,
        are_busy: true,
        are_proven: true,
        rate: 20 * MB,
        mirror_rate: Some(10 * MB),
    };

    #[test]
    fn the_mirror_brings_as_little_as_will_do() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let young = Sight { since: ms(100), led: 0, rate: 0, ..WELL };
        for (why, sight, expected) in [
            ("peers bring it soon", WELL, Lead::To(MORSEL)),
            ("it has only begun", young, Lead::To(0)),
            ("clients wait for a first byte", Sight { since: ms(150), ..young }, Lead::To(MORSEL)),
            ("it is small", Sight { since: ms(150), size: 100_000, ..young }, Lead::All),
            ("clients have waited", Sight { silent: s(4), ..WELL }, Lead::To(2 * MORSEL)),
            ("nobody brings it", Sight { are_busy: false, ..young }, Lead::All),
            ("nobody knows them", Sight { are_proven: false, ..WELL }, Lead::To(MORSEL)),
            ("for long", Sight { are_proven: false, since: s(1), ..WELL }, Lead::All),
            ("they are slow", Sight { rate: 5 * MB, ..WELL }, Lead::All),
            (
                "so is the mirror",
                Sight { rate: 5 * MB, mirror_rate: Some(5 * MB), ..WELL },
                Lead::To(MORSEL),
            ),
            (
                "nobody knows the mirror",
                Sight { mirror_rate: None, rate: 2 * MB, ..WELL },
                Lead::All,
            ),
            ("they may still be", Sight { since: ms(300), rate: 0, ..WELL }, Lead::To(MORSEL)),
            ("there is little left", Sight { rate: MB, missing: MB, ..WELL }, Lead::To(MORSEL)),
        ] {
            assert_eq!(lead(&sight), expected, "{why}");
        }
    }
}
