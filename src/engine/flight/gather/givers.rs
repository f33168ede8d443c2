//! Those who take part in one download, and how each stands.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::Engine;
use crate::engine::flight::gather::ahead::Judged;
use crate::engine::flight::gather::board::Giver;
use crate::engine::flight::pace::per_second;
use crate::swarm::claims::Claims;
use crate::swarm::discovery::{HOLDERS_MAX, Holder};

/// How one stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stand {
    /// It waits for something to do.
    Idle,
    /// It brings something.
    Busy,
    /// It is not to be asked before that.
    Rests(Instant),
    /// It is fetching the file itself, and has so many bytes.
    Fetching(u64),
    /// It does not have it.
    Gone,
    /// It did not give what it was asked for.
    Failed,
}

impl Stand {
    /// The word for traces, at the end of what it was asked for.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Idle | Self::Busy => "given",
            Self::Rests(_) => "busy",
            Self::Fetching(_) => "not_yet",
            Self::Gone => "absent",
            Self::Failed => "failed",
        }
    }
}

/// Whether its bytes are believed to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Fair,
    /// It brought some of what was wrong.
    Suspect,
    /// It brought wrong bytes.
    Blamed,
}

struct One {
    holder: Holder,
    stand: Stand,
    /// It is fetching the file itself, and has so many bytes.
    have: Option<u64>,
    brought: u64,
    brought_at: Option<Instant>,
    has_answered: bool,
    busy_for: Duration,
    since: Instant,
    failures: u32,
    trust: Trust,
    /// Its filter says so.
    is_claimed: bool,
}

/// How often one may fail in one download.
const FAILURES_MAX: u32 = 2;
/// For how long one rests that failed.
const REST: Duration = Duration::from_millis(250);

/// For how long one may be silent and still counts as bringing something.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// All of them.
pub(super) struct Givers {
    all: Vec<One>,
    disputes: usize,
    sole: Option<Giver>,
    are_out: bool,
}

impl Givers {
    pub(super) fn new() -> Self {
        Self { all: Vec::new(), disputes: 0, sole: None, are_out: false }
    }

    /// Those who were found, too.
    pub(super) fn add(&mut self, found: Vec<Holder>, by_filter: bool) {
        let known: HashSet<Arc<str>> =
            self.all.iter().map(|one| Arc::clone(&one.holder.node)).collect();
        let new = found.into_iter().filter(|holder| !known.contains(&holder.node));
        let room = (2 * HOLDERS_MAX).saturating_sub(self.all.len());
        self.all.extend(new.take(room).map(|holder| One {
            holder,
            stand: Stand::Idle,
            have: None,
            brought: 0,
            brought_at: None,
            has_answered: false,
            busy_for: Duration::ZERO,
            since: Instant::now(),
            failures: 0,
            trust: Trust::Fair,
            is_claimed: by_filter,
        }));
    }

    /// Who could be asked for something. While it is in dispute whose bytes were wrong, those first who
    /// brought none of them.
    pub(super) fn idle(&mut self, now: Instant) -> Vec<(Giver, Holder)> {
        if self.are_out {
            return Vec::new();
        }
        for one in &mut self.all {
            if matches!(one.stand, Stand::Rests(until) if until <= now) {
                one.stand = Stand::Idle;
            }
        }
        if let Some(sole) = self.sole()
            && let Some(one) = self.all.get(sole)
        {
            let is_idle = one.stand == Stand::Idle;
            return is_idle.then(|| (sole, one.holder.clone())).into_iter().collect();
        }
        let idle = |suspects| {
            self.all
                .iter()
                .enumerate()
                .filter(move |(_, one)| {
                    one.stand == Stand::Idle && (one.trust == Trust::Suspect) == suspects
                })
                .map(|(giver, one)| (giver, one.holder.clone()))
                .collect()
        };
        let idle_ones: Vec<(Giver, Holder)> = idle(false);
        if idle_ones.is_empty() { idle(true) } else { idle_ones }
    }

    /// Who brings all of it alone, so that it can be told whether its bytes are right.
    fn sole(&self) -> Option<Giver> {
        let is_there =
            |giver: &Giver| self.all.get(*giver).is_some_and(|one| one.stand != Stand::Gone);
        self.sole.filter(is_there)
    }

    pub(super) fn begin(&mut self, giver: Giver) {
        if self.are_in_dispute() {
            self.sole = Some(giver);
        }
        if let Some(one) = self.all.get_mut(giver) {
            one.stand = Stand::Busy;
            one.since = Instant::now();
        }
    }

    /// Bytes of it are here, up to byte `end`; how many all have brought.
    pub(super) fn brought(&mut self, giver: Giver, bytes: u64, end: u64) -> u64 {
        if let Some(one) = self.all.get_mut(giver) {
            one.have = one.have.map(|have| have.max(end));
            one.brought += bytes;
            one.brought_at = Some(Instant::now());
            one.failures = 0;
        }
        self.all.iter().map(|one| one.brought).sum()
    }

    /// What it was asked for has come to its end; whether its filter was right, if it was by that.
    pub(super) fn end(&mut self, giver: Giver, stand: Stand, claims: &Claims) {
        let Some(one) = self.all.get_mut(giver) else { return };
        match (stand, std::mem::take(&mut one.is_claimed)) {
            (Stand::Gone, true) => claims.was_false(&one.holder),
            (Stand::Idle, true) => claims.held(&one.holder),
            (_, is_claimed) => one.is_claimed = is_claimed,
        }
        one.busy_for += one.since.elapsed();
        one.stand = match stand {
            Stand::Failed => {
                one.failures += 1;
                if one.failures > FAILURES_MAX {
                    Stand::Gone
                } else {
                    Stand::Rests(Instant::now() + REST)
                }
            }
            Stand::Fetching(have) => {
                one.have = Some(have);
                Stand::Idle
            }
            other => other,
        };
    }

    /// It is asked again later, and how far it has come by then.
    pub(super) fn rests(&mut self, giver: Giver, until: Instant) {
        if let Some(one) = self.all.get_mut(giver) {
            one.stand = Stand::Rests(until);
            one.have = None;
        }
    }

    pub(super) fn fetches(&mut self, giver: Giver, have: u64) {
        if let Some(one) = self.all.get_mut(giver) {
            one.have = one.have.max(Some(have));
        }
    }

    /// Whether somebody may still have it.
    pub(super) fn are_left(&self) -> bool {
        !self.are_out && self.all.iter().any(|one| one.stand != Stand::Gone)
    }

    /// Whether somebody can be asked again later.
    pub(super) fn are_resting(&self) -> bool {
        !self.are_out && self.all.iter().any(|one| matches!(one.stand, Stand::Rests(_)))
    }

    /// How far one has come that is fetching the file itself.
    pub(super) fn have(&self, giver: Giver) -> Option<u64> {
        self.all.get(giver).and_then(|one| one.have)
    }

    /// Those who have brought something just now: who has said nothing for longer may never do again.
    pub(super) fn busy(&self) -> impl Iterator<Item = &Holder> {
        let brings = |one: &&One| {
            let is_at_it = matches!(one.stand, Stand::Idle | Stand::Busy);
            is_at_it && one.brought_at.is_some_and(|at| at.elapsed() < SILENT_MAX)
        };
        self.all.iter().filter(brings).map(|one| &one.holder)
    }

    /// It gives what it was asked for.
    pub(super) fn answered(&mut self, giver: Giver) {
        if let Some(one) = self.all.get_mut(giver) {
            one.has_answered = true;
        }
    }

    /// Whether one that is asked has answered, or is known to give.
    pub(super) fn are_promising(&self, gives: impl Fn(&Holder) -> bool) -> bool {
        let asked = self.all.iter().filter(|one| one.stand == Stand::Busy);
        asked.into_iter().any(|one| one.has_answered || gives(&one.holder))
    }

    /// What all of them bring, in bytes per second.
    pub(super) fn rate(&self, since: Duration) -> u64 {
        per_second(self.all.iter().map(|one| one.brought).sum(), since)
    }

    /// What one brings, in bytes per second: as it did in this download, or else as it is known.
    pub(super) fn rate_of(
        &self,
        giver: Giver,
        known: impl Fn(&Holder) -> Option<u64>,
    ) -> Option<u64> {
        let one = self.all.get(giver)?;
        let now = if one.stand == Stand::Busy { one.since.elapsed() } else { Duration::ZERO };
        let busy_for = one.busy_for + now;
        let is_telling = busy_for > REST;
        if is_telling { Some(per_second(one.brought, busy_for)) } else { known(&one.holder) }
    }

    /// Whether bytes were wrong, and nobody knows whose.
    pub(super) fn are_in_dispute(&self) -> bool {
        self.disputes > 0
    }

    pub(super) fn dispute(&mut self, by: &[Giver], are_out: bool) {
        self.disputes += 1;
        self.sole = None;
        self.are_out |= are_out;
        for (giver, one) in self.all.iter_mut().enumerate() {
            // Who was suspected and asked alone does not get another turn.
            let is_suspect = one.trust == Trust::Suspect;
            if by.contains(&giver) && (is_suspect || by.len() == 1) {
                one.stand = Stand::Gone;
            } else if one.stand == Stand::Busy {
                one.stand = Stand::Idle;
            }
            if by.contains(&giver) && one.trust == Trust::Fair {
                one.trust = Trust::Suspect;
            }
        }
    }

    /// It gave wrong bytes.
    pub(super) fn blame(&mut self, giver: Giver, engine: &Engine) {
        if let Some(one) = self.all.get_mut(giver).filter(|one| one.trust != Trust::Blamed) {
            (one.stand, one.trust) = (Stand::Gone, Trust::Blamed);
            engine.metrics.verify_failures.with_label_values(&["peer"]).inc();
            engine.swarm.ranking.blame(&one.holder);
        }
    }

    /// The whole is right: these brought what is in it, and those something else.
    pub(super) fn judge(mut self, engine: &Engine, judged: &Judged) {
        for culprit in &judged.culprits {
            self.blame(*culprit, engine);
        }
        for (giver, bytes) in &judged.proven {
            if let Some(one) = self.all.get(*giver).filter(|one| one.trust != Trust::Blamed) {
                engine.swarm.ranking.prove(&one.holder, *bytes);
            }
        }
    }
}
