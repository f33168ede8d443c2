//! How other sites have been doing: who gives fast and reliably is asked more often, who fails again and
//! again is benched, and who gave wrong bytes is not asked for a day. In memory only: sites come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::swarm::chance::Chance;
use crate::swarm::discovery::Holder;
use crate::telemetry::metrics::Metrics;

/// Errors in a row that bench a site.
const ERRORS_MAX: u32 = 3;
/// For how long one is benched at first; then for twice as long, up to this; each give or take a fifth,
/// so that not all sites come back to it at once.
const BENCH: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));
const JITTER: f64 = 0.2;
/// A silence that counts as an error, though who asked had it all from elsewhere before there was one:
/// twice as long as a download waits for a first word. Shorter ones add up.
const SILENCE: Duration = Duration::from_millis(300);
/// For how long one is not asked that gave wrong bytes.
const BLAME: Duration = Duration::from_hours(24);
/// For how long one that is busy is left alone: as it says, within these bounds.
const BUSY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Sites that are known: as many as a node knows.
const KNOWN_MAX: usize = 1_024;
/// Sites that are remembered for wrong bytes.
const BLAMED_MAX: usize = 4_096;
/// How much the last time counts against all before.
const NEWS: f64 = 0.3;
/// Bytes by which a site's speed can be told.
const TELLING: u64 = 64 * 1024;
/// What a site is taken to give, in bytes per second, when none is known: a line of 10 megabits.
const RATE: f64 = 1_250_000.0;

/// What is known of all sites.
pub struct Ranking {
    known: Arc<Mutex<Known>>,
    chance: Chance,
}

#[derive(Default)]
struct Known {
    peers: HashMap<Arc<str>, Peer>,
    /// Who gave wrong bytes, and until when that counts.
    blamed: HashMap<Arc<str>, Instant>,
}

struct Peer {
    url: Arc<str>,
    /// Share of attempts that succeed, of late.
    success: f64,
    /// Bytes per second.
    rate: Option<f64>,
    /// Seconds to the first byte.
    first_byte: Option<f64>,
    in_flight: usize,
    /// For how long it has not answered, and up to when that is counted.
    silent: Duration,
    silent_until: Instant,
    errors: u32,
    pause: Duration,
    benched_until: Instant,
    busy_until: Instant,
    /// Bytes that were right.
    proven: u64,
    used: Instant,
}

/// A site as it stands, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Its node's id.
    pub node: String,
    /// Where it is asked, of several URLs the first.
    pub url: String,
    /// Share of attempts that succeed, of late.
    pub success: f64,
    /// Bytes per second, of late.
    pub bytes_per_second: Option<u64>,
    /// Milliseconds to the first byte, of late.
    pub first_byte_ms: Option<u64>,
    /// Attempts under way.
    pub in_flight: usize,
    /// Bytes that it gave and that were right.
    pub proven_bytes: u64,
    /// Seconds for which it is still benched.
    pub benched_for: u64,
    /// Whether it gave wrong bytes within a day.
    pub blamed: bool,
}

impl Ranking {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let known: Arc<Mutex<Known>> = Arc::default();
        let gauge = |name, help, count: fn(&Known, Instant) -> usize| {
            let looked_at = Arc::clone(&known);
            let now = move || count(&lock(&looked_at), Instant::now());
            metrics.gauge_of(name, help, move || i64::try_from(now()).unwrap_or(i64::MAX));
        };
        gauge(
            "aptmesh_swarm_known_peers",
            "Nodes of other sites from which something was fetched, or tried to be.",
            |known, _| known.peers.len(),
        );
        gauge(
            "aptmesh_swarm_benched_peers",
            "Nodes of other sites that are not asked at present, since they failed, or gave wrong bytes.",
            Known::benched,
        );
        Self { known, chance: Chance::default() }
    }

    /// Up to so many of them that are worth asking. The better one does, the more likely it is among
    /// these, and the further in front; one of which nothing is known counts as one like the others.
    #[must_use]
    pub fn choose(&self, holders: &[Holder], how_many: usize) -> Vec<Holder> {
        self.choose_at(holders, how_many, Instant::now())
    }

    fn choose_at(&self, holders: &[Holder], how_many: usize, now: Instant) -> Vec<Holder> {
        let known = lock(&self.known);
        let usual = known.usual_rate();
        // The least of exponential waiting times: chosen as often as the weights are to each other.
        let mut waits: Vec<(f64, &Holder)> = holders
            .iter()
            .filter(|holder| known.may_ask(holder, now))
            .map(|holder| (-self.chance.draw().ln() / known.weight(holder, usual), holder))
            .collect();
        drop(known);
        waits.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        waits.into_iter().take(how_many).map(|(_, holder)| holder.clone()).collect()
    }

    /// A site is being asked.
    pub fn begin(self: &Arc<Self>, holder: &Holder) -> Attempt {
        let now = Instant::now();
        lock(&self.known).peer(holder, now).in_flight += 1;
        let report = Report { begun: now, first_byte: None, received: 0, outcome: Outcome::Left };
        Attempt { ranking: Arc::clone(self), holder: holder.clone(), report }
    }

    /// So many bytes of it were right.
    pub fn prove(&self, holder: &Holder, bytes: u64) {
        lock(&self.known).peer(holder, Instant::now()).proven += bytes;
    }

    /// It gave wrong bytes.
    pub fn blame(&self, holder: &Holder) {
        let now = Instant::now();
        tracing::warn!(node = %holder.node, urls = ?holder.urls, "a site gave wrong bytes");
        lock(&self.known).blame(holder, now);
    }

    /// Bytes that it gave and that were right.
    #[must_use]
    pub fn proven(&self, holder: &Holder) -> u64 {
        lock(&self.known).peers.get(&holder.node).map_or(0, |peer| peer.proven)
    }

    /// Bytes per second that it gives, if that is known.
    #[must_use]
    pub fn rate(&self, holder: &Holder) -> Option<u64> {
        lock(&self.known).peers.get(&holder.node)?.rate.map(whole)
    }

    /// All that are known, those first that gave most.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Standing> {
        let (now, known) = (Instant::now(), lock(&self.known));
        let mut all: Vec<Standing> =
            known.peers.iter().map(|(node, peer)| known.standing(node, peer, now)).collect();
        all.sort_by_key(|standing| std::cmp::Reverse(standing.proven_bytes));
        all
    }

    fn end(&self, holder: &Holder, report: &Report, now: Instant) {
        let jitter = 1.0 + JITTER * (2.0 * self.chance.draw() - 1.0);
        if let Some(peer) = lock(&self.known).peers.get_mut(&holder.node) {
            peer.end(report, jitter, now);
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    fn may_ask(&self, holder: &Holder, now: Instant) -> bool {
        let peer = self.peers.get(&holder.node);
        !self.is_blamed(&holder.node, now)
            && peer.is_none_or(|peer| peer.benched_until <= now && peer.busy_until <= now)
    }

    fn is_blamed(&self, node: &str, now: Instant) -> bool {
        self.blamed.get(node).is_some_and(|until| *until > now)
    }

    fn weight(&self, holder: &Holder, usual: f64) -> f64 {
        self.peers.get(&holder.node).map_or(usual, |peer| peer.weight(usual))
    }

    /// What sites give on average, in bytes per second.
    fn usual_rate(&self) -> f64 {
        let rates = self.peers.values().filter_map(|peer| peer.rate);
        let (sum, count) = rates.fold((0.0, 0.0), |(sum, count), rate| (sum + rate, count + 1.0));
        if count > 0.0 { sum / count } else { RATE }
    }

    /// What is known of it; made up, and room for it, if need be.
    fn peer(&mut self, holder: &Holder, now: Instant) -> &mut Peer {
        if self.peers.len() >= KNOWN_MAX && !self.peers.contains_key(&holder.node) {
            let idle = self.peers.iter().filter(|(_, peer)| peer.in_flight == 0);
            let least = idle.min_by_key(|(_, peer)| (peer.benched_until > now, peer.used));
            if let Some(node) = least.map(|(node, _)| Arc::clone(node)) {
                self.peers.remove(&node);
            }
        }
        let url = holder.urls.first().cloned().unwrap_or_else(|| Arc::from(""));
        let peer =
            self.peers.entry(Arc::clone(&holder.node)).or_insert_with(|| Peer::new(&url, now));
        (peer.url, peer.used) = (url, now);
        peer
    }

    fn blame(&mut self, holder: &Holder, now: Instant) {
        if self.blamed.len() >= BLAMED_MAX {
            self.blamed.retain(|_, until| *until > now);
        }
        if self.blamed.len() >= BLAMED_MAX {
            let first = self.blamed.iter().min_by_key(|(_, until)| **until);
            let first = first.map(|(node, _)| Arc::clone(node));
            first.map(|node| self.blamed.remove(&node));
        }
        self.blamed.insert(Arc::clone(&holder.node), now + BLAME);
    }

    fn benched(&self, now: Instant) -> usize {
        let blamed = self.blamed.values().filter(|until| **until > now).count();
        let benched = self
            .peers
            .iter()
            .filter(|(node, peer)| peer.benched_until > now && !self.is_blamed(node, now));
        blamed + benched.count()
    }

    fn standing(&self, node: &str, peer: &Peer, now: Instant) -> Standing {
        Standing {
            node: node.to_owned(),
            url: peer.url.as_ref().to_owned(),
            success: peer.success,
            bytes_per_second: peer.rate.map(whole),
            first_byte_ms: peer.first_byte.map(|seconds| whole(seconds * 1_000.0)),
            in_flight: peer.in_flight,
            proven_bytes: peer.proven,
            benched_for: peer.benched_until.saturating_duration_since(now).as_secs(),
            blamed: self.is_blamed(node, now),
        }
    }
}

/// Without what is behind the point.
fn whole(number: f64) -> u64 {
    Duration::try_from_secs_f64(number).map_or(u64::MAX, |rounded| rounded.as_secs())
}

impl Peer {
    fn new(url: &Arc<str>, now: Instant) -> Self {
        Self {
            url: Arc::clone(url),
            success: 1.0,
            rate: None,
            first_byte: None,
            in_flight: 0,
            silent: Duration::ZERO,
            silent_until: now,
            errors: 0,
            pause: BENCH.0 / 2,
            benched_until: now,
            busy_until: now,
            proven: 0,
            used: now,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a few attempts")]
    fn weight(&self, usual: f64) -> f64 {
        // Never nothing: it may have got better.
        let rate = self.rate.unwrap_or(usual).max(1.0);
        self.success.max(0.01) * rate / (1.0 + self.in_flight as f64)
    }

    fn end(&mut self, report: &Report, jitter: f64, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.used = now;
        if let Some(at) = report.first_byte {
            let seconds = at.duration_since(report.begun).as_secs_f64();
            self.first_byte = Some(mixed(self.first_byte, seconds));
        }
        if let Some(rate) = report.rate(now) {
            self.rate = Some(mixed(self.rate, rate));
        }
        let is_heard = report.first_byte.is_some() || !matches!(report.outcome, Outcome::Left);
        if is_heard {
            (self.silent, self.silent_until) = (Duration::ZERO, now);
        }
        match report.outcome {
            Outcome::Done => {
                self.success = mixed(Some(self.success), 1.0);
                (self.errors, self.pause) = (0, BENCH.0 / 2);
            }
            Outcome::Failed => self.fail(jitter, now),
            Outcome::Busy(after) => {
                self.busy_until = self.busy_until.max(now + after.clamp(BUSY.0, BUSY.1));
            }
            Outcome::Left if !is_heard => self.left_waiting(report.begun, jitter, now),
            Outcome::Absent | Outcome::Left => {}
        }
    }

    fn fail(&mut self, jitter: f64, now: Instant) {
        self.success = mixed(Some(self.success), 0.0);
        self.errors = self.errors.saturating_add(1);
        // What was under way at the same time fails for the same reason.
        if self.errors >= ERRORS_MAX && self.benched_until <= now {
            self.pause = (2 * self.pause).min(BENCH.1);
            self.benched_until = now + self.pause.mul_f64(jitter);
        }
    }

    /// It was asked then, and has said nothing.
    fn left_waiting(&mut self, begun: Instant, jitter: f64, now: Instant) {
        // What was asked at the same time waited no longer for that.
        self.silent += now.duration_since(begun.max(self.silent_until));
        self.silent_until = now;
        if self.silent >= SILENCE {
            self.silent = Duration::ZERO;
            self.fail(jitter, now);
        }
    }
}

fn mixed(before: Option<f64>, now: f64) -> f64 {
    before.map_or(now, |before| before + NEWS * (now - before))
}

/// What came of asking a site.
struct Report {
    begun: Instant,
    first_byte: Option<Instant>,
    received: u64,
    outcome: Outcome,
}

impl Report {
    /// Bytes per second since it was asked, if there were enough to tell.
    #[expect(clippy::cast_precision_loss, reason = "it is no more than an estimate")]
    fn rate(&self, now: Instant) -> Option<f64> {
        let seconds = now.duration_since(self.begun).as_secs_f64().max(0.001);
        (self.received >= TELLING).then(|| self.received as f64 / seconds)
    }
}

#[derive(Clone, Copy)]
enum Outcome {
    Done,
    Failed,
    Busy(Duration),
    /// It does not have it, which is no error.
    Absent,
    /// Who asked broke it off.
    Left,
}

/// A site is being asked, and gives. Dropped without a word, it was broken off by who asked.
#[must_use = "how it ended is to be told"]
pub struct Attempt {
    ranking: Arc<Ranking>,
    holder: Holder,
    report: Report,
}

impl Attempt {
    /// The first bytes are there.
    pub fn first_byte(&mut self) {
        self.report.first_byte.get_or_insert_with(Instant::now);
    }

    /// So many bytes more are there.
    pub fn received(&mut self, bytes: u64) {
        self.first_byte();
        self.report.received += bytes;
    }

    /// All that was asked for is there.
    pub fn done(self) {
        self.end(Outcome::Done);
    }

    /// It could not be reached, was silent, broke off, or did not answer as it should.
    pub fn failed(self) {
        self.end(Outcome::Failed);
    }

    /// It wants to be left alone for so long; no error of it.
    pub fn busy(self, after: Duration) {
        self.end(Outcome::Busy(after));
    }

    /// It does not have the blob, or not yet as much of it; no error of it.
    pub fn absent(self) {
        self.end(Outcome::Absent);
    }

    /// Its bytes were wrong.
    pub fn wrong(self) {
        let (ranking, holder) = (Arc::clone(&self.ranking), self.holder.clone());
        self.end(Outcome::Failed);
        ranking.blame(&holder);
    }

    fn end(mut self, outcome: Outcome) {
        self.report.outcome = outcome;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.ranking.end(&self.holder, &self.report, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { node: name.into(), urls: [format!("http://{name}").into()].into() }
    }

    fn ranking() -> Arc<Ranking> {
        Arc::new(Ranking::new(&Metrics::default()))
    }

    /// What is tried of sites at that time.
    struct Trial(Arc<Ranking>, Instant);

    impl Trial {
        fn begin() -> Self {
            // Later than all that is told with the real clock.
            Self(ranking(), Instant::now() + Duration::from_mins(1))
        }

        fn pass(&mut self, time: Duration) {
            self.1 += time;
        }

        /// A site that was asked a second ago gave so much.
        fn ask(&self, holder: &Holder, received: u64, outcome: Outcome) {
            let (ranking, now) = (&self.0, self.1);
            lock(&ranking.known).peer(holder, now).in_flight += 1;
            let begun = now - Duration::from_secs(1);
            let first_byte = Some(begun + Duration::from_millis(20));
            ranking.end(holder, &Report { begun, first_byte, received, outcome }, now);
        }

        fn may_ask(&self, holder: &Holder) -> bool {
            !self.0.choose_at(std::slice::from_ref(holder), 1, self.1).is_empty()
        }

        /// How often each is chosen first.
        fn shares(&self, holders: &[Holder]) -> Vec<usize> {
            let mut shares = vec![0; holders.len()];
            for _ in 0..1_000 {
                let first = self.0.choose_at(holders, 1, self.1).pop().unwrap();
                shares[holders.iter().position(|holder| *holder == first).unwrap()] += 1;
            }
            shares
        }
    }

    #[test]
    fn who_does_better_is_chosen_more_often_and_nobody_always() {
        let trial = Trial::begin();
        let holders = ["fast", "slow", "new"].map(holder);
        let [fast, slow, _] = &holders;
        for share in trial.shares(&holders) {
            assert!((200..470).contains(&share), "nothing is known: {share}");
        }
        trial.ask(fast, 9_000_000, Outcome::Done);
        trial.ask(slow, 1_000_000, Outcome::Done);
        // 9 to 1 to 5, which is what is usual.
        let before = trial.shares(&holders);
        for (share, range) in before.iter().zip([500..700, 30..110, 230..440]) {
            assert!(range.contains(share), "{before:?}");
        }
        let busy: Vec<Attempt> = (0..8).map(|_| trial.0.begin(fast)).collect();
        let after = trial.shares(&holders);
        assert!(after[0] < before[0] / 2, "it has much to do: {after:?}");
        drop(busy);
        assert_eq!(trial.0.choose_at(&holders, 2, trial.1).len(), 2);
        assert_eq!(trial.0.choose_at(&holders, 9, trial.1).len(), 3);
        assert_eq!(trial.0.rate(fast), Some(9_000_000));
    }

    #[test]
    fn three_errors_in_a_row_bench_for_longer_each_time() {
        let (mut trial, bad) = (Trial::begin(), holder("bad"));
        for _ in 0..5 {
            trial.ask(&bad, 0, Outcome::Failed);
            trial.ask(&bad, 0, Outcome::Failed);
            assert!(trial.may_ask(&bad));
            trial.ask(&bad, 0, Outcome::Done);
        }
        trial.ask(&bad, 0, Outcome::Failed);
        trial.ask(&bad, 0, Outcome::Failed);
        for seconds in [10, 20, 40, 80, 160, 320, 600, 600] {
            let bench = Duration::from_secs(seconds);
            // All at a time are one.
            (0..5).for_each(|_| trial.ask(&bad, 0, Outcome::Failed));
            trial.pass(bench.mul_f64(0.79));
            assert!(!trial.may_ask(&bad), "{seconds}");
            trial.pass(bench.mul_f64(0.42));
            assert!(trial.may_ask(&bad), "{seconds}");
        }
        trial.ask(&bad, 0, Outcome::Done);
        (0..2).for_each(|_| trial.ask(&bad, 0, Outcome::Failed));
        assert!(trial.may_ask(&bad), "a success makes up for all");
    }

    #[test]
    fn silence_that_adds_up_is_an_error() {
        let silent_for = |trial: &Trial, site: &Holder, millis| {
            let begun = trial.1 - Duration::from_millis(millis);
            lock(&trial.0.known).peer(site, begun).in_flight += 1;
            let report = Report { begun, first_byte: None, received: 0, outcome: Outcome::Left };
            trial.0.end(site, &report, trial.1);
        };
        let (mut trial, mute) = (Trial::begin(), holder("mute"));
        for _ in 0..5 {
            trial.pass(Duration::from_millis(200));
            // At the same time.
            (0..4).for_each(|_| silent_for(&trial, &mute, 150));
            assert!(trial.may_ask(&mute));
        }
        trial.pass(Duration::from_millis(200));
        silent_for(&trial, &mute, 150);
        assert!(!trial.may_ask(&mute), "three times as long as that");
        let slow = holder("slow");
        for _ in 0..40 {
            trial.pass(Duration::from_millis(500));
            silent_for(&trial, &slow, 250);
            trial.ask(&slow, 1000, Outcome::Left);
            assert!(trial.may_ask(&slow), "it answers now and then");
        }
    }

    #[test]
    fn what_is_no_error_benches_nobody() {
        let (mut trial, site) = (Trial::begin(), holder("site"));
        for _ in 0..10 {
            trial.0.begin(&site).absent();
            drop(trial.0.begin(&site));
        }
        assert!(trial.may_ask(&site));
        for (says, is) in [(0, 1), (5, 5), (3_600, 30)] {
            trial.ask(&site, 0, Outcome::Busy(Duration::from_secs(says)));
            trial.pass(Duration::from_secs(is).saturating_sub(Duration::from_millis(1)));
            assert!(!trial.may_ask(&site), "{says}");
            trial.pass(Duration::from_millis(1));
            assert!(trial.may_ask(&site), "{says}");
        }
        let standing = trial.0.snapshot().pop().unwrap();
        assert_eq!((standing.success, standing.in_flight, standing.benched_for), (1.0, 0, 0));
    }

    #[test]
    fn wrong_bytes_are_remembered_for_a_day_whatever_comes() {
        let (mut trial, liar) = (Trial::begin(), holder("liar"));
        trial.0.begin(&liar).wrong();
        trial.0.begin(&liar).done();
        for number in 0..2 * KNOWN_MAX {
            trial.0.begin(&holder(&number.to_string())).done();
        }
        assert_eq!(trial.0.snapshot().len(), KNOWN_MAX);
        trial.pass(BLAME.saturating_sub(Duration::from_mins(2)));
        assert!(!trial.may_ask(&liar));
        trial.pass(Duration::from_mins(3));
        assert!(trial.may_ask(&liar));
        (0..2 * BLAMED_MAX).for_each(|number| trial.0.blame(&holder(&number.to_string())));
        assert_eq!(lock(&trial.0.known).blamed.len(), BLAMED_MAX);
    }

    #[test]
    fn what_was_right_is_counted() {
        let (trial, site) = (Trial::begin(), holder("site"));
        assert_eq!((trial.0.proven(&site), trial.0.rate(&site)), (0, None));
        trial.0.prove(&site, 7);
        trial.ask(&site, TELLING - 1, Outcome::Done);
        assert_eq!((trial.0.proven(&site), trial.0.rate(&site)), (7, None), "too little to tell");
        assert_eq!(trial.0.snapshot()[0].first_byte_ms, Some(20));
    }
}
