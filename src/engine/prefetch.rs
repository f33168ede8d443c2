//! Prefetching: when a suite moves on, the new versions of packages that this site used lately are
//! fetched before anybody asks, at hours when the line is free, so that the morning's upgrades are
//! hits. Off unless the operator gives it a budget. The index keeps what is to be fetched and what was
//! spent; of a site's processes, one fetches.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prometheus::IntCounterVec;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use crate::archive::version::{PackageFile, compare};
use crate::engine::duties::Duty;
use crate::engine::flight::State;
use crate::engine::known::Finding;
use crate::engine::leases::Sureness;
use crate::engine::memory::now_seconds;
use crate::engine::{Ask, Engine};
use crate::index::{ERRAND_TERM, Errand, Expectation, IndexError};
use crate::telemetry::metrics::Metrics;

/// Lists whose news may wait to be looked at. What one more says is not prefetched.
const OFFERS_MAX: usize = 64;
/// News of one list: a suite's whole point release has fewer packages that one site uses.
pub(super) const NEWS_MAX: usize = 20_000;
/// Fetched packages that are watched for being used.
const WATCHED_MAX: usize = 10_000;
/// A package that was fetched and not used for so long was fetched in vain.
const WASTED_AFTER: Duration = Duration::from_hours(14 * 24);
/// Packages used within this time, in seconds, are worth fetching anew.
const USED_WITHIN: i64 = 30 * 24 * 60 * 60;
/// Names that are read of the index at a time.
const PAGE: usize = 2000;
/// How often it is looked whether the hours have come, or there is budget, or the mirror is well again.
const TICK: Duration = Duration::from_secs(30);
/// How often it is looked for what other processes want fetched.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What prefetching may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Bytes a day; 0: nothing.
    pub budget: u64,
    /// Bytes a second; 0: as fast as mirrors give them.
    pub rate: u64,
    /// When.
    pub hours: Hours,
}

/// Hours of the day, in local time, as a set of bits; none named: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hours(u32);

impl FromStr for Hours {
    type Err = String;

    /// Reads `1-6` (from one o'clock until six) or `22-6`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "write hours as 1-6 or 22-6".to_owned();
        let hour = |text: &str| text.trim().parse().ok().filter(|hour| *hour <= 24).ok_or_else(bad);
        let (from, until) = text.split_once('-').ok_or_else(bad)?;
        let (from, until): (u8, u8) = (hour(from)?, hour(until)?);
        if from == until {
            return Err(bad());
        }
        let is_between = |hour: &u8| {
            if from < until { (from..until).contains(hour) } else { *hour >= from || *hour < until }
        };
        Ok(Self((0..24).filter(is_between).fold(0, |set, hour| set | 1 << hour)))
    }
}

impl Hours {
    /// The hours of all of them.
    #[must_use]
    pub fn joined(all: Vec<Self>) -> Self {
        Self(all.into_iter().fold(0, |set, hours| set | hours.0))
    }

    fn include(self, hour: u8) -> bool {
        self.0 == 0 || self.0 & 1 << hour != 0
    }
}

/// A package, whichever its version: name and architecture.
type Package = (String, String);

/// A new file: the key of its resource, and its bytes.
type News = (String, u64);

/// New files of a list.
struct Offer {
    /// The URL of the archive's root.
    base: String,
    /// Keys of resources.
    news: Vec<News>,
}

/// Where lists' news go; nowhere if prefetching is off.
pub(super) struct Prefetcher {
    offers: Option<mpsc::Sender<Offer>>,
    watched: Watched,
}

impl Prefetcher {
    /// The prefetcher, and what it is to be run with where it is on.
    pub(super) fn new(config: &Config, metrics: &Metrics) -> (Self, Option<Errands>) {
        let watched = Watched::new(metrics);
        metrics
            .gauge(
                "aptmesh_engine_prefetch_limit_bytes_per_second",
                "Bytes a second at which packages are fetched before anybody asks (prefetch.rate); 0: no limit.",
            )
            .set(config.rate.try_into().unwrap_or(i64::MAX));
        if config.budget == 0 {
            return (Self { offers: None, watched }, None);
        }
        let (offers, received) = mpsc::channel(OFFERS_MAX);
        let errands = Errands {
            config: config.clone(),
            offers: received,
            watched: watched.clone(),
            added: Arc::default(),
        };
        (Self { offers: Some(offers), watched }, Some(errands))
    }

    /// Whether news are wanted.
    pub(super) fn is_on(&self) -> bool {
        self.offers.is_some()
    }

    /// Has a look at the news of a list that was learnt before; never waits.
    pub(super) fn offer(&self, base: &str, news: Vec<News>) {
        let offer = Offer { base: base.to_owned(), news };
        if let Some(Err(_full)) = self.offers.as_ref().map(|offers| offers.try_send(offer)) {
            tracing::debug!(base, "too many news: these are not prefetched");
        }
    }

    /// Somebody asked for `key`.
    pub(super) fn was_used(&self, key: &str) {
        if self.is_on() {
            self.watched.was_used(key);
        }
    }
}

/// What was fetched, and whether it was of use.
#[derive(Clone)]
struct Watched {
    unused: Arc<Mutex<HashMap<Package, Unused>>>,
    bytes: IntCounterVec,
}

/// A package that was fetched and that nobody asked for yet.
struct Unused {
    key: String,
    size: u64,
    since: Instant,
}

impl Watched {
    fn new(metrics: &Metrics) -> Self {
        let bytes = metrics.counters_of(
            "aptmesh_engine_prefetched_bytes_total",
            "Bytes of packages fetched before anybody asked, of those used then, and of those not.",
            "fate",
            &["fetched", "used", "wasted"],
        );
        Self { unused: Arc::default(), bytes }
    }

    fn was_fetched(&self, package: Package, errand: &Errand) {
        self.count("fetched", errand.size);
        let new = Unused { key: errand.key.clone(), size: errand.size, since: Instant::now() };
        let mut unused = self.lock();
        if unused.len() < WATCHED_MAX || unused.contains_key(&package) {
            unused.insert(package, new);
        }
    }

    fn was_used(&self, key: &str) {
        let mut unused = self.lock();
        if unused.is_empty() {
            return;
        }
        let Some(package) = package_of(key) else { return };
        if unused.get(&package).is_some_and(|unused| unused.key == key)
            && let Some(used) = unused.remove(&package)
        {
            self.count("used", used.size);
        }
    }

    /// A newer version of the package is there: the one before was fetched in vain.
    fn was_superseded(&self, package: &Package) {
        if let Some(unused) = self.lock().remove(package) {
            self.count("wasted", unused.size);
        }
    }

    /// What waited for too long was fetched in vain.
    fn give_up_old(&self) {
        self.lock().retain(|_, unused| {
            let is_wasted = unused.since.elapsed() > WASTED_AFTER;
            if is_wasted {
                self.count("wasted", unused.size);
            }
            !is_wasted
        });
    }

    fn count(&self, fate: &str, bytes: u64) {
        self.bytes.with_label_values(&[fate]).inc_by(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Package, Unused>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is to fetch, and how much may be. Each process adds what it hears of; one fetches.
pub(super) struct Errands {
    config: Config,
    offers: mpsc::Receiver<Offer>,
    watched: Watched,
    added: Arc<Notify>,
}

impl Errands {
    /// Runs until the engine is gone.
    pub(super) fn start(self, engine: &Arc<Engine>, tasks: &TaskTracker) {
        let fetching = Fetching {
            config: self.config.clone(),
            engine: Arc::downgrade(engine),
            watched: self.watched.clone(),
            added: Arc::clone(&self.added),
        };
        let duties = Arc::clone(&engine.duties);
        tasks.spawn(async move {
            duties.carry(Duty::Prefetch, "", |sureness| fetching.run(sureness)).await;
        });
        tasks.spawn(self.take_in_all(Arc::downgrade(engine)));
    }

    async fn take_in_all(mut self, engine: Weak<Engine>) {
        while let Some(offer) = self.offers.recv().await {
            let Some(engine) = engine.upgrade() else { return };
            self.take_in(&engine, offer).await;
        }
    }

    /// Of the news, takes the newest versions of packages that were used lately.
    async fn take_in(&self, engine: &Engine, offer: Offer) {
        let used = used_lately(engine, &offer.base).await;
        let mut errands = Vec::new();
        for (key, size) in newest(&offer.news, &used) {
            let Some(package) = package_of(&key) else { continue };
            self.watched.was_superseded(&package);
            // One that is too big for a day would keep the others from being fetched.
            if size <= self.config.budget {
                errands.push(Errand { package: named(&package), key, size, has_failed: false });
            }
        }
        if !errands.is_empty() {
            without(engine.index.add_errands(&errands, now_seconds()).await);
            self.added.notify_one();
        }
    }
}

/// Fetches what is due.
struct Fetching {
    config: Config,
    engine: Weak<Engine>,
    watched: Watched,
    added: Arc<Notify>,
}

impl Fetching {
    /// For as long as it is this process's duty.
    async fn run(&self, mut sureness: Sureness) -> Infallible {
        loop {
            sureness.wait().await;
            self.watched.give_up_old();
            let pause = match self.engine.upgrade() {
                Some(engine) if self.config.hours.include(local_hour()) => self.step(&engine).await,
                Some(_) => TICK,
                None => std::future::pending().await,
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.added.notified() => {}
            }
        }
    }

    /// Fetches the one whose turn it is; until when there is nothing to do then.
    async fn step(&self, engine: &Arc<Engine>) -> Duration {
        let since = now_seconds() - ERRAND_TERM;
        let next = without(engine.index.next_errand(since).await).flatten();
        let Some(errand) = next else { return LOOK_EVERY };
        let Some(ask) = Ask::ours(&errand.key) else {
            without(engine.index.end_errand(&errand, false).await);
            return Duration::ZERO;
        };
        // Mirror or volume are in trouble: not the time for what nobody asked for.
        if engine.mirror.is_away(&ask.target) {
            return TICK;
        }
        let ask = Ask { pace: Some(self.config.rate).filter(|rate| *rate > 0), ..ask };
        let Finding { known, expectation } = engine.find(&ask).await;
        if known.is_some() {
            without(engine.index.end_errand(&errand, false).await);
            return Duration::ZERO;
        }
        let bytes = i64::try_from(errand.size).unwrap_or(i64::MAX);
        let spend = async |bytes| without(engine.index.spend(bytes, now_seconds()).await);
        // Spent first: a process that dies has spent it.
        let Some(in_all) = spend(bytes).await else { return TICK };
        if in_all > self.config.budget {
            spend(-bytes).await;
            return TICK;
        }
        if let Some(package) = package_of(&errand.key) {
            self.watched.was_superseded(&package);
        }
        if is_fetched(engine, &ask, expectation).await {
            tracing::info!(key = errand.key, size = errand.size, "prefetched a package");
            if let Some(package) = package_of(&errand.key) {
                self.watched.was_fetched(package, &errand);
            }
            without(engine.index.end_errand(&errand, false).await);
            return Duration::ZERO;
        }
        spend(-bytes).await;
        without(engine.index.end_errand(&errand, !errand.has_failed).await);
        TICK
    }
}

/// Name and architecture; neither has a space.
fn named((name, architecture): &Package) -> String {
    format!("{name} {architecture}")
}

fn without<T>(answer: Result<T, IndexError>) -> Option<T> {
    answer
        .inspect_err(|error| {
            tracing::debug!(%error, source = %error.source, "not prefetching without the index");
        })
        .ok()
}

async fn is_fetched(engine: &Arc<Engine>, ask: &Ask, expectation: Option<Expectation>) -> bool {
    let Ok((interest, _)) = engine.board(ask, None, expectation) else { return false };
    interest.flight().over().await;
    interest.flight().progress().borrow().state == State::Whole
}

/// The package that the resource `key` is a version of; `None` if it is no package.
fn package_of(key: &str) -> Option<Package> {
    let file = PackageFile::of(key)?;
    Some((file.name.to_owned(), file.architecture.to_owned()))
}

/// The packages below `base` that were used lately: name and architecture, and the newest version.
async fn used_lately(engine: &Engine, base: &str) -> HashMap<Package, String> {
    let since = now_seconds() - USED_WITHIN;
    let mut used: HashMap<Package, String> = HashMap::new();
    let mut after = String::new();
    loop {
        let page = match engine.index.uses_below(base, &after, PAGE).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%error, source = %error.source, "not prefetching without the index");
                return HashMap::new();
            }
        };
        let Some((last, _)) = page.last() else { return used };
        after.clone_from(last);
        for (key, _) in page.iter().filter(|(_, used_at)| *used_at >= since) {
            let Some(file) = PackageFile::of(key) else { continue };
            let package = (file.name.to_owned(), file.architecture.to_owned());
            let newest = used.entry(package).or_default();
            if compare(newest, file.version).is_lt() {
                file.version.clone_into(newest);
            }
        }
    }
}

/// Of the news, the newest file of each package in `used`, if it is newer than what was used.
fn newest(news: &[(String, u64)], used: &HashMap<Package, String>) -> Vec<News> {
    let mut newest: HashMap<Package, (String, &News)> = HashMap::new();
    for item in news {
        let Some(file) = PackageFile::of(&item.0) else { continue };
        let package = (file.name.to_owned(), file.architecture.to_owned());
        let Some(version) = used.get(&package) else { continue };
        let known = newest.get(&package).map_or(version, |(version, _)| version);
        if compare(known, file.version).is_lt() {
            newest.insert(package, (file.version.to_owned(), item));
        }
    }
    let chosen: HashSet<&String> = newest.values().map(|(_, (key, _))| key).collect();
    news.iter().filter(|(key, _)| chosen.contains(key)).cloned().collect()
}

fn local_hour() -> u8 {
    u8::try_from(jiff::Zoned::now().hour()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_go_over_midnight() {
        let night: Hours = "22-6".parse().unwrap();
        let noon: Hours = "12-13".parse().unwrap();
        let both = Hours::joined(vec![night, noon]);
        let included: Vec<u8> = (0..24).filter(|hour| both.include(*hour)).collect();
        assert_eq!(included, [0, 1, 2, 3, 4, 5, 12, 22, 23]);
        assert!((0..24).all(|hour| Hours::default().include(hour)));
        assert!("0-24".parse::<Hours>().unwrap().include(23));
        for bad in ["", "6", "6-6", "1-25", "a-b", "-1-3"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_newest_of_what_was_used_is_fetched() {
        let used = HashMap::from([
            (("tool".to_owned(), "amd64.deb".to_owned()), "1.0-2".to_owned()),
            (("old".to_owned(), "all.deb".to_owned()), "2.0".to_owned()),
        ]);
        let news = [
            "http://m/pool/tool_1.0-1_amd64.deb",
            "http://m/pool/tool_1.0-10_amd64.deb",
            "http://m/pool/tool_1.0-3_amd64.deb",
            "http://m/pool/tool_1.0-11_arm64.deb",
            "http://m/pool/other_9_amd64.deb",
            "http://m/pool/old_1.9_all.deb",
            "http://m/pool/old_2.0_all.deb",
        ]
        .map(|key| (key.to_owned(), 1));
        let chosen = newest(&news, &used);
        assert_eq!(chosen, [("http://m/pool/tool_1.0-10_amd64.deb".to_owned(), 1)]);
    }
}
