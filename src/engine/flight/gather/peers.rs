//! The peers' part of a download: who is asked, for what, and what comes of it.

use std::fmt::Display;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{Instrument as _, Span};

use crate::content::digest::Sha256;
use crate::content::validators::Validators;
use crate::engine::flight::Flight;
use crate::engine::flight::gather::board::{Assigned, Board, Giver};
use crate::engine::flight::gather::givers::{Givers, Stand};
use crate::engine::flight::gather::lead::{BUDGET, Lead, Sight, TRIAL, lead};
use crate::engine::flight::gather::leash::Hand;
use crate::engine::flight::transfer::Transfer;
use crate::engine::flight::writer::{Proof, Writer};
use crate::engine::outcome::Meta;
use crate::swarm::Swarm;
use crate::swarm::discovery::Holder;
use crate::swarm::peers::{PieceBody, Refused};
use crate::telemetry::traces::{self, span};

/// How often it is looked how far the mirror is to go.
const TICK: Duration = Duration::from_millis(25);
/// What is asked at once of a peer of which nobody knows how fast it is, in bytes.
const RUN: u64 = 1024 * 1024;
/// What is asked of one at once at most, in bytes; of one that is known, as much as it brings in a second.
const RUN_MAX: u64 = 16 * 1024 * 1024;
/// For how long one is left alone that is fetching the file itself, and has not come further.
const FETCHING: Duration = Duration::from_secs(1);
/// Two that are fetching the same are about as far when no more than this is between them, in bytes.
const CLOSE: u64 = 2 * 1024 * 1024;
/// Further than this, in bytes, nobody waits for what a peer is still fetching itself.
const BEYOND: u64 = 4 * 1024 * 1024;
/// The mirror is asked for so many bytes at least, while peers bring the rest.
const STRIDE: u64 = 1024 * 1024;
/// For how long peers are waited for that are not to be asked at the moment, where the mirror is of no use.
const OUT_PATIENCE: Duration = Duration::from_secs(4);
/// How often all may be there and wrong, before no peer is asked any more.
const DISPUTES_MAX: usize = 4;
/// When it is looked again who has it, after the first time: others may begin to fetch it, too.
const LOOK_AGAIN: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
];
/// What a peer is taken to bring of which nobody knows, in bytes per second.
const RATE: u64 = 1_000_000;
/// No file of an archive is older; seconds since 1970.
const OLDEST: i64 = 631_152_000;

/// One download's peers.
pub(super) struct Gathering<'a> {
    transfer: &'a Transfer,
    swarm: &'a Swarm,
    flight: &'a Flight,
    writer: &'a Writer,
    blob: Sha256,
    size: u64,
    begun: Instant,
    board: Mutex<Board>,
    givers: Mutex<Givers>,
    last_modified: Mutex<Option<i64>>,
    mirror_is_out: AtomicBool,
    mirror_leads: AtomicBool,
    /// Whether others were told that this site is fetching it.
    is_told: AtomicBool,
    /// How often all was there, and wrong.
    round: AtomicUsize,
}

/// How a run ended.
struct Ended {
    giver: Giver,
    number: usize,
    stand: Stand,
}

impl<'a> Gathering<'a> {
    pub(super) fn new(
        transfer: &'a Transfer,
        swarm: &'a Swarm,
        flight: &'a Flight,
        writer: &'a Writer,
        blob: Sha256,
        size: u64,
    ) -> Self {
        Self {
            transfer,
            swarm,
            flight,
            writer,
            blob,
            size,
            begun: Instant::now(),
            board: Mutex::new(Board::new(size)),
            givers: Mutex::new(Givers::new()),
            last_modified: Mutex::default(),
            mirror_is_out: AtomicBool::new(false),
            mirror_leads: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            round: AtomicUsize::new(0),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn blob(&self) -> Sha256 {
        self.blob
    }

    /// The mirror brings nothing more.
    pub(super) fn mirror_is_out(&self) {
        self.mirror_is_out.store(true, Ordering::Relaxed);
    }

    /// What is known of a file that no mirror has described.
    pub(super) fn meta(&self) -> Meta {
        let last_modified = *lock(&self.last_modified);
        let validators = Validators { last_modified, etag: None };
        Meta { size: Some(self.size), validators, content_type: None }
    }

    /// Who took part.
    pub(super) fn over(self) -> Givers {
        self.givers.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing came of it: others need not look for it here.
    pub(super) fn withdraw(&self) {
        if self.is_told.load(Ordering::Relaxed) {
            let (discovery, blob) = (Arc::clone(&self.swarm.discovery), self.blob);
            self.transfer.engine.tasks.spawn(async move { discovery.withdraw(&blob).await });
        }
    }

    /// Has peers bring it, and the mirror as much as it takes; whether all is there, and right. If not,
    /// nothing more comes of peers.
    pub(super) async fn run(&self, claimed: Vec<Holder>, hand: Hand) -> bool {
        lock(&self.givers).add(claimed, true);
        let mut runs: FuturesUnordered<BoxFuture<'_, Ended>> = FuturesUnordered::new();
        let mut proof = self.writer.proof();
        let mut looks = LOOK_AGAIN.iter();
        let mut looking = Some(self.look_up());
        let mut look_at = None;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = (0, Instant::now());
        let mut out_since = None;
        loop {
            let led = self.led(&mut heard);
            self.engage(&mut runs);
            let may_come = !runs.is_empty() || looking.is_some();
            self.hold(&hand, led, heard.1, may_come && self.is_worth_a_wait());
            // Where nothing is missing, the writer has yet to say whether it is right.
            let may_come =
                may_come || lock(&self.board).missing() == 0 || lock(&self.givers).are_resting();
            if self.mirror_is_out.load(Ordering::Relaxed) && !may_come {
                // Who is busy, or benched, is not for long, as a rule.
                let since = *out_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= OUT_PATIENCE || !lock(&self.givers).are_left() {
                    return false;
                }
            }
            tokio::select! {
                Some(ended) = runs.next() => self.has_ended(&ended),
                found = heard_of(&mut looking), if looking.is_some() => {
                    lock(&self.givers).add(found, false);
                    looking = None;
                    look_at = looks.next().map(|after| Instant::now() + *after);
                }
                () = until(look_at), if look_at.is_some() => {
                    look_at = None;
                    looking = Some(self.look_up());
                }
                _ = ticks.tick() => {}
                changed = proof.changed() => {
                    let proved = proof.borrow_and_update().clone();
                    match proved {
                        Proof::Right => return true,
                        Proof::Wrong { times, by, led } => {
                            runs.clear();
                            self.is_disputed(times, &by, led);
                        }
                        // The writer stopped: whoever waits for it hears why.
                        Proof::Missing if changed.is_err() => return false,
                        Proof::Missing => {}
                    }
                    if changed.is_err() {
                        return false;
                    }
                }
            }
        }
    }

    /// Whether blobs of this size are announced one by one.
    fn is_announced(&self) -> bool {
        self.size >= self.transfer.engine.announced_from
    }

    /// Whoever is asked or looked for has the budget's time; who has answered by then, or is known to
    /// give, a little more to show what it brings.
    fn is_worth_a_wait(&self) -> bool {
        let since = self.begun.elapsed();
        let gives = |holder: &Holder| self.swarm.ranking.proven(holder) > 0;
        since < BUDGET || (since < TRIAL && lock(&self.givers).are_promising(gives))
    }

    fn look_up(&self) -> BoxFuture<'a, Vec<Holder>> {
        let (swarm, blob, is_announced) = (self.swarm, self.blob, self.is_announced());
        Box::pin(async move {
            if is_announced { swarm.discovery.look_up(&blob, BUDGET).await } else { Vec::new() }
        })
    }

    /// How far the mirror has come; `heard`: and since when.
    fn led(&self, heard: &mut (u64, Instant)) -> u64 {
        let led = self.flight.progress().borrow().written;
        if led > heard.0 {
            *heard = (led, Instant::now());
        }
        lock(&self.board).lead(led);
        led
    }

    /// Lengthens or shortens the mirror's leash.
    fn hold(&self, hand: &Hand, led: u64, heard_at: Instant, may_come: bool) {
        let (missing, meeting) = {
            let board = lock(&self.board);
            (board.missing(), board.meeting())
        };
        let sight = {
            let givers = lock(&self.givers);
            // Where nothing is missing, it only takes to be hashed.
            let are_busy = may_come || missing == 0 || givers.busy().next().is_some();
            Sight {
                since: self.begun.elapsed(),
                silent: heard_at.elapsed(),
                size: self.size,
                led,
                missing,
                are_busy: are_busy && !givers.are_in_dispute(),
                are_proven: givers.busy().all(|holder| self.swarm.ranking.proven(holder) > 0),
                rate: givers.rate(self.begun.elapsed()),
                mirror_rate: self.transfer.mirror_rate(),
            }
        };
        let part = lead(&sight);
        let was_leading = self.mirror_leads.swap(part == Lead::All, Ordering::Relaxed);
        if was_leading != (part == Lead::All) {
            tracing::debug!(url = self.transfer.target.url, ?part, ?sight, "the mirror's part");
        }
        match part {
            Lead::To(end) => hand.reach(Some(end)),
            Lead::All => {
                self.tell();
                let end = meeting.max(led + STRIDE);
                hand.reach(Some(end).filter(|end| sight.are_busy && *end < self.size));
            }
        }
    }

    /// Tells others that they may have of it what the mirror brings.
    fn tell(&self) {
        let is_out = self.mirror_is_out.load(Ordering::Relaxed);
        if !is_out && self.is_announced() && !self.is_told.swap(true, Ordering::Relaxed) {
            let (discovery, blob, size) = (Arc::clone(&self.swarm.discovery), self.blob, self.size);
            let tasks = &self.transfer.engine.tasks;
            tasks.spawn(async move { discovery.announce(&blob, size).await });
        }
    }

    /// Gives everybody something to do.
    fn engage<'s>(&'s self, runs: &mut FuturesUnordered<BoxFuture<'s, Ended>>) {
        let wanted = if lock(&self.givers).are_in_dispute() { 1 } else { givers_for(self.size) };
        while runs.len() < wanted {
            let Some((giver, holder, assigned)) = self.next_run(wanted) else { return };
            lock(&self.givers).begin(giver);
            runs.push(Box::pin(self.bring(giver, holder, assigned)));
        }
    }

    fn next_run(&self, wanted: usize) -> Option<(Giver, Holder, Assigned)> {
        let mut givers = lock(&self.givers);
        let idle = givers.idle(Instant::now());
        let holders: Vec<Holder> = idle.iter().map(|(_, holder)| holder.clone()).collect();
        let ranking = &self.swarm.ranking;
        let rate = |holder: &Holder| ranking.rate(holder);
        for holder in ranking.choose(&holders, holders.len()) {
            let Some((giver, _)) = idle.iter().find(|(_, it)| it.node == holder.node) else {
                continue;
            };
            let mut board = lock(&self.board);
            let share = board.missing() / u64::try_from(wanted).unwrap_or(1).max(1);
            let most = rate(&holder).map_or(RUN, |rate| rate.clamp(RUN, RUN_MAX));
            let most = if self.size <= RUN { self.size } else { most.min(share) };
            let assigned = match givers.have(*giver) {
                Some(have) if self.is_of_use(&board, &holder, have) => {
                    board.assign_first(*giver, RUN_MAX, have.saturating_add(BEYOND))
                }
                Some(_) => {
                    givers.rests(*giver, Instant::now() + FETCHING);
                    continue;
                }
                None => board.assign_last(*giver, most).or_else(|| {
                    board.help(*giver, |giver| givers.rate_of(giver, rate).unwrap_or(RATE))
                }),
            };
            if let Some(assigned) = assigned {
                return Some((*giver, holder, assigned));
            }
            // It has nothing that is missing.
            givers.rests(*giver, Instant::now() + 4 * TICK);
        }
        None
    }

    /// Whether a site that is fetching the file itself, and has come so far, is of use. While the mirror
    /// brings it here too, only if it is further there; of two that are about as far, one goes on.
    fn is_of_use(&self, board: &Board, holder: &Holder, have: u64) -> bool {
        let here = board.first_gap().unwrap_or(self.size);
        if !self.mirror_leads.load(Ordering::Relaxed) {
            return have.saturating_add(CLOSE) >= here;
        }
        let me = self.swarm.discovery.me();
        let is_first = me.is_some_and(|me| holder.node < me);
        have > here + CLOSE || (is_first && have.saturating_add(CLOSE) >= here)
    }

    /// One request, to its end.
    async fn bring(&self, giver: Giver, holder: Holder, assigned: Assigned) -> Ended {
        let number = assigned.number;
        let Range { start, end } = assigned.range;
        let span = span!(
            "swarm.fetch",
            otel.kind = "client",
            aptmesh.peer = &*holder.node,
            aptmesh.from = traces::number(start),
            aptmesh.until = traces::number(end),
        );
        let stand = self.brought(giver, &holder, assigned).instrument(span.clone()).await;
        traces::set(&span, "aptmesh.outcome", stand.label());
        Ended { giver, number, stand }
    }

    async fn fetched(&self, holder: &Holder, range: Range<u64>) -> Result<PieceBody, Refused> {
        let fetched = self.swarm.peers.fetch(holder, &self.blob, range).await;
        fetched.inspect_err(|refused| note_failure(refused.label(), refused))
    }

    async fn brought(&self, giver: Giver, holder: &Holder, assigned: Assigned) -> Stand {
        let mut attempt = self.swarm.ranking.begin(holder);
        let Assigned { number, range } = assigned;
        let start = range.start;
        let mut body = match self.fetched(holder, range).await {
            Ok(body) => body,
            Err(Refused::Absent) => {
                attempt.absent();
                return Stand::Gone;
            }
            Err(Refused::Busy(after)) => {
                attempt.busy(after);
                return Stand::Rests(Instant::now() + after);
            }
            Err(Refused::NotYet { have }) => {
                attempt.absent();
                // Who has come near it gives it; who says so and does not, fails.
                let is_far = have.saturating_add(CLOSE) < start;
                return if is_far { Stand::Fetching(have) } else { Stand::Failed };
            }
            Err(Refused::Failed(reason)) => {
                tracing::debug!(node = &*holder.node, reason, "a peer does not give a blob");
                attempt.failed();
                return Stand::Failed;
            }
        };
        if body.whole().is_some_and(|whole| whole != self.size) {
            note_failure("failed", "has another file under that digest");
            attempt.failed();
            return Stand::Gone;
        }
        if let Some(have) = body.have() {
            if have.saturating_add(CLOSE) < start {
                attempt.absent();
                return Stand::Fetching(have);
            }
            lock(&self.givers).fetches(giver, have);
        }
        lock(&self.givers).answered(giver);
        self.note_date(body.validators().last_modified);
        loop {
            let chunk = match body.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(reason) => {
                    tracing::debug!(node = &*holder.node, reason, "a peer broke off");
                    note_failure("cut", &reason);
                    // It may be its mirror that is silent.
                    if body.have().is_some() {
                        attempt.absent();
                    } else {
                        attempt.failed();
                    }
                    return Stand::Failed;
                }
            };
            attempt.first_byte();
            let (at, wanted) = lock(&self.board).arrived(number, chunk.len() as u64);
            let chunk = chunk.slice(..usize::try_from(wanted).unwrap_or_default());
            attempt.received(wanted);
            let at_most = lock(&self.givers).brought(giver, wanted, at + wanted);
            self.transfer.keep_pace(self.flight, self.begun, at_most).await;
            let round = self.round.load(Ordering::Relaxed);
            let written = self.writer.write_ahead(round, at, chunk, giver).await;
            if written.is_err() || lock(&self.board).is_over(number) {
                break;
            }
        }
        attempt.done();
        Stand::Idle
    }

    /// The date of a file that only peers have described: a hint, if it can be one.
    fn note_date(&self, date: Option<i64>) {
        let now = crate::engine::memory::now_seconds();
        let date = date.filter(|date| (OLDEST..=now).contains(date));
        let mut known = lock(&self.last_modified);
        *known = known.or(date);
    }

    fn has_ended(&self, ended: &Ended) {
        lock(&self.board).end(ended.number);
        lock(&self.givers).end(ended.giver, ended.stand, &self.swarm.claims);
    }

    /// All was there, and wrong. Who brought all of it alone is to blame; else each is asked alone.
    fn is_disputed(&self, times: usize, by: &[Giver], led: u64) {
        self.round.store(times, Ordering::Relaxed);
        lock(&self.board).clear();
        let mut givers = lock(&self.givers);
        let url = &self.transfer.target.url;
        traces::fail(&span!("engine.verify"), "wrong", "peers gave wrong bytes");
        if let ([giver], 0) = (by, led) {
            // This tells who it was.
            givers.blame(*giver, &self.transfer.engine);
            tracing::debug!(url, times, "a peer gave wrong bytes");
        } else {
            tracing::warn!(url, times, "peers gave wrong bytes");
        }
        givers.dispute(by, times >= DISPUTES_MAX);
    }
}

/// Of the question to a peer, whose span is the current one.
fn note_failure(kind: &str, reason: &(impl Display + ?Sized)) {
    traces::fail(&Span::current(), kind, reason);
}

async fn heard_of(looking: &mut Option<BoxFuture<'_, Vec<Holder>>>) -> Vec<Holder> {
    match looking {
        Some(looking) => looking.await,
        None => Vec::new(),
    }
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        sleep_until(at).await;
    }
}

/// How many bring a file of this size at a time: more would wait for each other.
fn givers_for(size: u64) -> usize {
    match size >> 20 {
        0 => 1,
        1..8 => 2,
        8..64 => 4,
        _ => 8,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
