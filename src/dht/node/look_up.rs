//! Looking up who has a blob. The first who are named are told at once: the nodes closest to a key all
//! know much the same. Those who ask for one key at a time share a search.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::{GetProvidersError, GetProvidersOk, GetProvidersResult, QueryId, QueryStats};
use tokio::sync::oneshot;

use super::{Node, wall_clock};
use crate::content::swarm_key::DhtKey;
use crate::dht::place::record_key;
use crate::dht::{Found, Peer, Step, Trace};

/// Searches at a time; further ones find nothing.
const SEARCHES_MAX: usize = 1_024;
/// Who may ask for one key at a time.
const ASKERS_MAX: usize = 256;
/// The longest that anybody may wait.
const BUDGET_MAX: Duration = Duration::from_secs(10);
/// Holders that are told.
const HOLDERS_MAX: usize = 64;
/// Steps that are remembered.
const STEPS_MAX: usize = 64;
/// When nobody waits.
const NEVER: Duration = Duration::from_hours(1);

/// The searches under way.
#[derive(Default)]
pub(super) struct LookUps {
    searches: HashMap<DhtKey, Search>,
    keys: HashMap<QueryId, DhtKey>,
}

struct Search {
    query: QueryId,
    began: Instant,
    /// Nobody can be found any more whom nobody has named.
    ended: bool,
    holders: BTreeSet<PeerId>,
    trace: Trace,
    askers: Vec<Asker>,
}

struct Asker {
    until: Instant,
    reply: oneshot::Sender<Found>,
}

impl LookUps {
    /// When the next asker has waited long enough.
    pub(super) fn next_deadline(&self) -> Instant {
        let askers = self.searches.values().flat_map(|search| &search.askers);
        let next = askers.map(|asker| asker.until).min();
        next.unwrap_or_else(|| Instant::now() + NEVER)
    }
}

impl Node {
    pub(super) fn look_up(&mut self, key: DhtKey, budget: Duration, reply: oneshot::Sender<Found>) {
        let now = Instant::now();
        let asker = Asker { until: now + budget.min(BUDGET_MAX), reply };
        let searches = &mut self.look_ups.searches;
        let room = searches.len() < SEARCHES_MAX;
        let full = searches.get(&key).map_or(!room, |search| search.askers.len() >= ASKERS_MAX);
        if full {
            let trace = Trace { ended: "late", ..Trace::default() };
            // Who asked may have left.
            drop(asker.reply.send(Found { trace, ..Found::default() }));
        } else if let Some(search) = searches.get_mut(&key) {
            search.askers.push(asker);
        } else {
            let query = self.net.behaviour_mut().kad.get_providers(record_key(&key));
            self.look_ups.keys.insert(query, key);
            let search = Search {
                query,
                began: now,
                ended: false,
                holders: BTreeSet::new(),
                trace: Trace::default(),
                askers: vec![asker],
            };
            self.look_ups.searches.insert(key, search);
        }
    }

    pub(super) fn on_look_up(
        &mut self,
        query: QueryId,
        result: GetProvidersResult,
        stats: &QueryStats,
        last: bool,
    ) {
        let Some(key) = self.look_ups.keys.get(&query).copied() else { return };
        if last {
            self.look_ups.keys.remove(&query);
        }
        let Some(search) = self.look_ups.searches.get_mut(&key) else { return };
        search.trace.asked = stats.num_requests();
        search.trace.answered = stats.num_successes();
        search.trace.failed = stats.num_failures();
        search.ended |= last;
        match result {
            Ok(GetProvidersOk::FoundProviders { providers, .. }) => {
                search.named(providers.into_iter().filter(|peer| *peer != self.me));
            }
            Ok(GetProvidersOk::FinishedWithNoAdditionalRecord { closest_peers })
            | Err(GetProvidersError::Timeout { closest_peers, .. }) => {
                search.trace.closest = closest_peers.iter().map(ToString::to_string).collect();
            }
        }
        self.see_to(key);
    }

    /// A card that somebody may wait for.
    pub(super) fn card_came(&mut self, peer: &PeerId) {
        let searches = self.look_ups.searches.iter();
        let waiting: Vec<DhtKey> = searches
            .filter(|(_, search)| search.holders.contains(peer))
            .map(|(key, _)| *key)
            .collect();
        for key in waiting {
            self.see_to(key);
        }
    }

    /// Tells what was found, if there is anything to tell, or nothing more to be hoped for.
    fn see_to(&mut self, key: DhtKey) {
        let Some(search) = self.look_ups.searches.get(&key) else { return };
        let (peers, unknown) = self.sites(&search.holders);
        let hopeless = search.ended && unknown.is_empty();
        if !peers.is_empty() || hopeless {
            self.end_search(key);
            return;
        }
        for peer in unknown {
            self.meet(peer);
        }
    }

    pub(super) fn end_late_look_ups(&mut self) {
        let now = Instant::now();
        let searches = self.look_ups.searches.iter();
        let late: Vec<DhtKey> = searches
            .filter(|(_, search)| search.askers.iter().any(|asker| asker.until <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in late {
            self.answer_late(key, now);
        }
    }

    /// Those who can not wait any longer hear what there is; the search goes on for the others.
    fn answer_late(&mut self, key: DhtKey, now: Instant) {
        let Some(search) = self.look_ups.searches.get_mut(&key) else { return };
        if search.askers.iter().all(|asker| asker.until <= now) {
            self.end_search(key);
            return;
        }
        let late = search.askers.extract_if(.., |asker| asker.until <= now);
        let late: Vec<Asker> = late.collect();
        let Some(search) = self.look_ups.searches.get(&key) else { return };
        for asker in late {
            drop(asker.reply.send(self.found(search)));
        }
    }

    fn end_search(&mut self, key: DhtKey) {
        let Some(search) = self.look_ups.searches.remove(&key) else { return };
        self.look_ups.keys.remove(&search.query);
        if let Some(mut query) = self.net.behaviour_mut().kad.query_mut(&search.query) {
            query.finish();
        }
        let trace = self.found(&search).trace;
        self.metrics.look_ups.with_label_values(&[trace.ended]).inc();
        self.metrics.look_up_seconds.observe(search.began.elapsed().as_secs_f64());
        self.metrics.look_up_requests.observe(f64::from(trace.asked));
        let answers: Vec<Found> = search.askers.iter().map(|_| self.found(&search)).collect();
        for (asker, found) in search.askers.into_iter().zip(answers) {
            drop(asker.reply.send(found));
        }
    }

    fn found(&self, search: &Search) -> Found {
        let (peers, unknown) = self.sites(&search.holders);
        let mut trace = search.trace.clone();
        trace.took_ms = milliseconds(search.began.elapsed());
        trace.ended = match (peers.is_empty(), search.ended) {
            (false, _) => "found",
            (true, true) => "none",
            (true, false) => "late",
        };
        Found { peers, without_card: unknown.len(), trace }
    }

    /// The sites of these nodes that give something, and the nodes of which no card is known.
    fn sites(&self, holders: &BTreeSet<PeerId>) -> (Vec<Peer>, Vec<PeerId>) {
        let now = wall_clock();
        let (mut peers, mut unknown) = (Vec::new(), Vec::new());
        for holder in holders {
            match self.peer(holder, now) {
                Some(peer) if !peer.urls.is_empty() => peers.push(peer),
                Some(_) => {}
                None => unknown.push(*holder),
            }
        }
        (peers, unknown)
    }
}

impl Search {
    fn named(&mut self, holders: impl Iterator<Item = PeerId>) {
        let holders: Vec<PeerId> = holders.take(HOLDERS_MAX).collect();
        if holders.is_empty() {
            return;
        }
        if self.trace.steps.len() < STEPS_MAX {
            self.trace.steps.push(Step {
                at_ms: milliseconds(self.began.elapsed()),
                holders: holders.iter().map(ToString::to_string).collect(),
            });
        }
        for holder in holders {
            if self.holders.len() < HOLDERS_MAX {
                self.holders.insert(holder);
            }
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
