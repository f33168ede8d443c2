//! Other sites' have-filters, kept here: so it is known who has a blob without asking anybody. A site's
//! card tells that it has another one; then it is fetched, or what has changed in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use prometheus::{IntCounterVec, IntGauge};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::task::TaskTracker;

use crate::content::digest::Sha256;
use crate::content::filter::{Delta, Filter};
use crate::content::swarm_key::SwarmKey;
use crate::swarm::chance::Chance;
use crate::swarm::claims::Claims;
use crate::swarm::discovery::{Discovery, HOLDERS_MAX, Holder};
use crate::swarm::peers::{FilterAnswer, Peers, Refused};
use crate::swarm::ranking::Ranking;
use crate::swarm::sidecar::{Sidecar, Site};
use crate::telemetry::metrics::Metrics;

/// How often cards are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Sites whose filters are kept: each look at a blob goes through all of them.
const SITES_MAX: usize = 200;
/// Bytes of all filters: more than so many sites with 200,000 blobs each have.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Filters that are fetched at a time. Most who are asked in vain can not be reached: each takes two seconds,
/// for which others should not have to wait.
const FETCHES_MAX: usize = 16;
/// For how long one may take: the largest, on a line of a megabit.
const FETCH_MAX: Duration = Duration::from_secs(30);
/// For how long a site is left alone that does not give its filter, at first; then for twice as long, up
/// to this.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));

/// The filters, over the node that knows their sites.
pub struct Filters {
    key: SwarmKey,
    sidecar: Arc<Sidecar>,
    peers: Arc<Peers>,
    claims: Arc<Claims>,
    ranking: Arc<Ranking>,
    kept: ArcSwap<Vec<(Holder, Arc<Filter>)>>,
    chance: Chance,
    metrics: FilterMetrics,
}

struct FilterMetrics {
    filters: IntGauge,
    bytes: IntGauge,
    oldest: IntGauge,
    fetches: IntCounterVec,
}

/// All that is known of sites' filters.
#[derive(Default)]
struct Book(HashMap<Arc<str>, Page>);

/// A site, and its filter if there is one.
struct Page {
    site: Site,
    kept: Option<Kept>,
    /// The generation on the card for which it was last fetched.
    fetched_for: u64,
    is_being_fetched: bool,
    pause: Duration,
    not_before: Instant,
}

struct Kept {
    filter: Arc<Filter>,
    /// As it was sent.
    bytes: usize,
    /// When the site last told that it is of this generation.
    confirmed: Instant,
}

/// What came of fetching a filter.
enum Fetched {
    Whole(Filter, usize),
    /// The filter that it made of the last one, and the bytes that came.
    Delta(Filter, usize),
    Unchanged,
    /// Why; and for how long the site wants to be left alone.
    Failed(String, Duration),
}

impl Filters {
    /// Begins to fetch and keep filters, on `tasks`.
    #[must_use]
    pub fn start(
        key: SwarmKey,
        sidecar: Arc<Sidecar>,
        peers: Arc<Peers>,
        (claims, ranking): (Arc<Claims>, Arc<Ranking>),
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        let (kept, chance) = (ArcSwap::default(), Chance::default());
        let metrics = FilterMetrics::new(metrics);
        let filters =
            Arc::new(Self { key, sidecar, peers, claims, ranking, kept, chance, metrics });
        tasks.spawn(Arc::clone(&filters).keep());
        filters
    }

    /// As long as the process lives.
    async fn keep(self: Arc<Self>) {
        let (mut book, mut fetches) = (Book::default(), JoinSet::new());
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    // Where nobody tells, all may be as it was.
                    if let Some(sites) = self.sidecar.peers().await {
                        book.look_at(sites, Instant::now());
                    }
                }
                Some(done) = fetches.join_next() => {
                    if let Ok((node, fetched_for, fetched)) = done {
                        let outcome = book.take(&node, fetched_for, fetched, Instant::now());
                        self.metrics.fetches.with_label_values(&[outcome]).inc();
                    }
                }
            }
            while fetches.len() < FETCHES_MAX
                && let Some((site, last)) = book.next(Instant::now())
            {
                let filters = Arc::clone(&self);
                fetches.spawn(async move {
                    let came = filters.fetch(&site.holder, last).await;
                    (site.holder.node, site.filter, came)
                });
            }
            self.publish(&book);
        }
    }

    async fn fetch(&self, holder: &Holder, last: Option<Arc<Filter>>) -> Fetched {
        let whole_or_delta = async {
            match self.fetch_once(holder, last.as_deref()).await {
                // A delta to something else.
                None if last.is_some() => self.fetch_once(holder, None).await,
                fetched => fetched,
            }
        };
        let fetched = timeout(FETCH_MAX, whole_or_delta).await.unwrap_or_else(|_elapsed| {
            Some(Fetched::Failed("too slow".to_owned(), Duration::ZERO))
        });
        fetched.unwrap_or_else(|| Fetched::Failed("sent no filter".to_owned(), Duration::ZERO))
    }

    /// `None` for what is neither a filter, nor a delta to the last one.
    async fn fetch_once(&self, holder: &Holder, last: Option<&Filter>) -> Option<Fetched> {
        // Who can not be reached gives no blobs, either.
        let attempt = self.ranking.begin(holder);
        let answer = self.peers.filter(holder, last.map(Filter::generation)).await;
        if let Err(Refused::Failed(_)) = answer {
            attempt.failed();
        } else {
            attempt.absent();
        }
        let bytes = match answer {
            Ok(FilterAnswer::Changed(bytes)) => bytes,
            Ok(FilterAnswer::Unchanged) => return Some(Fetched::Unchanged),
            Err(Refused::Busy(pause)) => {
                return Some(Fetched::Failed("busy".to_owned(), pause));
            }
            Err(refused) => return Some(Fetched::Failed(refused.to_string(), Duration::ZERO)),
        };
        if let Some(filter) = Filter::parse(&bytes) {
            return Some(Fetched::Whole(filter, bytes.len()));
        }
        let (mut filter, delta) = (last?.clone(), Delta::parse(&bytes)?);
        filter.apply(&delta).then_some(Fetched::Delta(filter, bytes.len()))
    }

    /// What the book says is what is looked at from now on.
    fn publish(&self, book: &Book) {
        let kept: Vec<_> = book
            .0
            .values()
            .filter_map(|page| Some((page.site.holder.clone(), page.kept.as_ref()?)))
            .map(|(holder, kept)| (holder, Arc::clone(&kept.filter)))
            .collect();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.filters.set(number(kept.len()));
        self.metrics.bytes.set(number(book.bytes()));
        let oldest = book.oldest(Instant::now()).as_secs();
        self.metrics.oldest.set(i64::try_from(oldest).unwrap_or(i64::MAX));
        self.kept.store(Arc::new(kept));
    }
}

#[async_trait]
impl Discovery for Filters {
    fn me(&self) -> Option<Arc<str>> {
        self.sidecar.me()
    }

    /// Whose filters say so; where there are many, others each time.
    fn claimed(&self, blob: &Sha256) -> Vec<Holder> {
        let kept = self.kept.load();
        let entry = self.key.dht_key(blob).short();
        let claims: Vec<&Holder> = kept
            .iter()
            .filter(|(_, filter)| filter.has(entry))
            .map(|(holder, _)| holder)
            .filter(|holder| self.claims.believes(holder))
            .collect();
        let told = claims.len().min(HOLDERS_MAX);
        let first = self.chance.below(claims.len());
        claims.into_iter().cycle().skip(first).take(told).cloned().collect()
    }

    async fn look_up(&self, blob: &Sha256, budget: Duration) -> Vec<Holder> {
        self.sidecar.look_up(blob, budget).await
    }

    async fn announce(&self, blob: &Sha256, size: u64) {
        self.sidecar.announce(blob, size).await;
    }

    async fn withdraw(&self, blob: &Sha256) {
        self.sidecar.withdraw(blob).await;
    }
}

impl Book {
    /// Takes what the cards say.
    fn look_at(&mut self, sites: Vec<Site>, now: Instant) {
        let mut sites: HashMap<Arc<str>, Site> = sites
            .into_iter()
            .filter(|site| site.filter != 0)
            .map(|site| (Arc::clone(&site.holder.node), site))
            .collect();
        // Who is gone, or has no filter any more, is forgotten.
        self.0.retain(|node, _| sites.contains_key(node));
        for page in self.0.values_mut() {
            if let Some(site) = sites.remove(&page.site.holder.node) {
                page.site = site;
            }
            if let Some(kept) = page.kept.as_mut().filter(|_| page.fetched_for == page.site.filter)
            {
                kept.confirmed = now;
            }
        }
        let room = SITES_MAX.saturating_sub(self.0.len());
        self.0
            .extend(sites.into_iter().take(room).map(|(node, site)| (node, Page::new(site, now))));
    }

    /// Whose filter is to be fetched now, and the one that there is.
    fn next(&mut self, now: Instant) -> Option<(Site, Option<Arc<Filter>>)> {
        let page = self.0.values_mut().find(|page| page.is_due(now))?;
        page.is_being_fetched = true;
        let last = page.kept.as_ref().map(|kept| Arc::clone(&kept.filter));
        Some((page.site.clone(), last))
    }

    /// Takes what came of it; tells what that was.
    fn take(
        &mut self,
        node: &Arc<str>,
        fetched_for: u64,
        fetched: Fetched,
        now: Instant,
    ) -> &'static str {
        let all = self.bytes();
        // It may be gone by now.
        let Some(page) = self.0.get_mut(node) else { return fetched.label() };
        page.is_being_fetched = false;
        let outcome = fetched.label();
        let before = page.kept.as_ref().map_or(0, |kept| kept.bytes);
        let (filter, bytes) = match fetched {
            Fetched::Whole(filter, bytes) => (Arc::new(filter), bytes),
            Fetched::Delta(filter, bytes) => (Arc::new(filter), before + bytes),
            Fetched::Unchanged => {
                page.succeed(fetched_for, now);
                return outcome;
            }
            Fetched::Failed(reason, pause) => {
                tracing::debug!(node = %node, reason, "a site does not give its filter");
                page.fail(pause, now);
                return outcome;
            }
        };
        if all - before + bytes > BYTES_MAX {
            page.fail(PAUSE.1, now);
            return "no_room";
        }
        page.kept = Some(Kept { filter, bytes, confirmed: now });
        page.succeed(fetched_for, now);
        outcome
    }

    fn bytes(&self) -> usize {
        self.kept().map(|kept| kept.bytes).sum()
    }

    /// For how long no site has confirmed the filter of it that is kept.
    fn oldest(&self, now: Instant) -> Duration {
        self.kept().map(|kept| now.duration_since(kept.confirmed)).max().unwrap_or_default()
    }

    fn kept(&self) -> impl Iterator<Item = &Kept> {
        self.0.values().filter_map(|page| page.kept.as_ref())
    }
}

impl Page {
    fn new(site: Site, now: Instant) -> Self {
        let pause = PAUSE.0 / 2;
        Self { site, kept: None, fetched_for: 0, is_being_fetched: false, pause, not_before: now }
    }

    fn is_due(&self, now: Instant) -> bool {
        let kept = self.kept.as_ref().map(|kept| kept.filter.generation());
        let is_new = self.fetched_for != self.site.filter && kept != Some(self.site.filter);
        is_new && !self.is_being_fetched && self.not_before <= now
    }

    fn succeed(&mut self, fetched_for: u64, now: Instant) {
        self.fetched_for = fetched_for;
        self.pause = PAUSE.0 / 2;
        if let Some(kept) = &mut self.kept {
            kept.confirmed = now;
        }
    }

    fn fail(&mut self, at_least: Duration, now: Instant) {
        self.pause = (2 * self.pause).min(PAUSE.1);
        self.not_before = now + self.pause.max(at_least);
    }
}

impl Fetched {
    fn label(&self) -> &'static str {
        match self {
            Self::Whole(..) => "whole",
            Self::Delta(..) => "delta",
            Self::Unchanged => "unchanged",
            Self::Failed(..) => "failed",
        }
    }
}

impl FilterMetrics {
    fn new(metrics: &Metrics) -> Self {
        Self {
            filters: metrics.gauge("aptmesh_swarm_filters", "Other sites' have-filters kept."),
            bytes: metrics
                .gauge("aptmesh_swarm_filter_bytes", "Bytes of the have-filters kept, as they were sent."),
            oldest: metrics.gauge(
                "aptmesh_swarm_filter_oldest_seconds",
                "For how long the one that is most out of date has not been confirmed by its site.",
            ),
            fetches: metrics.counters_of(
                "aptmesh_swarm_filter_fetches_total",
                "Questions for other sites' have-filters, by what came of them: whole, delta, unchanged, failed, or \
                 no_room (not kept).",
                "outcome",
                &["whole", "delta", "unchanged", "failed", "no_room"],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str, filter: u64) -> Site {
        let holder = Holder { node: name.into(), urls: ["http://site".into()].into() };
        Site { holder, filter }
    }

    fn whole(generation: u64, bytes: usize) -> Fetched {
        Fetched::Whole(Filter::of(generation, vec![1, 2, 3]).unwrap(), bytes)
    }

    fn next(book: &mut Book, now: Instant) -> Option<(u64, Option<u64>)> {
        let (site, last) = book.next(now)?;
        Some((site.filter, last.map(|last| last.generation())))
    }

    #[test]
    fn a_filter_is_fetched_when_there_is_another_one() {
        let (mut book, now) = (Book::default(), Instant::now());
        let node: Arc<str> = "site".into();
        assert_eq!(next(&mut book, now), None);
        book.look_at(vec![site("site", 5), site("none", 0)], now);
        assert_eq!(next(&mut book, now), Some((5, None)));
        assert_eq!(next(&mut book, now), None, "it is being fetched");
        // It has gone on meanwhile.
        assert_eq!(book.take(&node, 5, whole(6, 100), now), "whole");
        assert_eq!((book.bytes(), next(&mut book, now)), (100, None));
        book.look_at(vec![site("site", 6)], now);
        assert_eq!(next(&mut book, now), None);
        book.look_at(vec![site("site", 7)], now);
        assert_eq!(next(&mut book, now), Some((7, Some(6))));
        assert_eq!(book.take(&node, 7, Fetched::Unchanged, now), "unchanged");
        assert_eq!(next(&mut book, now), None, "once for each card");
        book.look_at(vec![site("site", 0)], now);
        assert_eq!(book.bytes(), 0);
    }

    #[test]
    fn who_fails_is_left_alone_for_longer_each_time() {
        let (mut book, mut now) = (Book::default(), Instant::now());
        let node: Arc<str> = "site".into();
        book.look_at(vec![site("site", 5)], now);
        let failed = || Fetched::Failed("trouble".to_owned(), Duration::ZERO);
        for seconds in [10, 20, 40, 80, 160, 320, 600, 600] {
            assert_eq!(next(&mut book, now), Some((5, None)));
            assert_eq!(book.take(&node, 5, failed(), now), "failed");
            now += Duration::from_secs(seconds).saturating_sub(Duration::from_millis(1));
            book.look_at(vec![site("site", 5)], now);
            assert_eq!(next(&mut book, now), None, "{seconds}");
            now += Duration::from_millis(1);
        }
        assert_eq!(next(&mut book, now), Some((5, None)));
        assert_eq!(book.take(&node, 5, whole(5, 1), now), "whole");
        now += Duration::from_secs(30);
        assert_eq!(book.oldest(now), Duration::from_secs(30));
        book.look_at(vec![site("site", 5)], now);
        assert_eq!(book.oldest(now), Duration::ZERO);
    }

    #[test]
    fn there_are_bounds() {
        let (mut book, now) = (Book::default(), Instant::now());
        let sites = || (0..2 * SITES_MAX).map(|number| site(&number.to_string(), 1)).collect();
        book.look_at(sites(), now);
        book.look_at(sites(), now);
        assert_eq!(book.0.len(), SITES_MAX);
        let mut outcomes = HashMap::new();
        while let Some((site, _)) = book.next(now) {
            let outcome = book.take(&site.holder.node, 1, whole(1, 1024 * 1024), now);
            *outcomes.entry(outcome).or_insert(0) += 1;
        }
        assert_eq!(outcomes, HashMap::from([("whole", 64), ("no_room", SITES_MAX - 64)]));
        assert_eq!(book.bytes(), BYTES_MAX);
    }
}
