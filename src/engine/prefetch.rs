//! Prefetching: when a suite moves on, the new versions of packages that this site used lately are
//! fetched before anybody asks, at hours when the line is free, so that the morning's upgrades are
//! hits. Off unless the operator gives it a budget.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prometheus::IntCounterVec;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::archive::version::{PackageFile, compare};
use crate::engine::flight::State;
use crate::engine::known::Finding;
use crate::engine::memory::now_seconds;
use crate::engine::{Ask, Engine};
use crate::index::Expectation;
use crate::telemetry::metrics::Metrics;

/// Lists whose news may wait to be looked at. What one more says is not prefetched.
const OFFERS_MAX: usize = 64;
/// News of one list: a suite's whole point release has fewer packages that one site uses.
pub(super) const NEWS_MAX: usize = 20_000;
/// Packages that may wait to be fetched; further ones are not prefetched.
const WAITING_MAX: usize = 10_000;
/// Fetched packages that are watched for being used.
const WATCHED_MAX: usize = 10_000;
/// A package that was fetched and not used for so long was fetched in vain.
const WASTED_AFTER: Duration = Duration::from_hours(14 * 24);
/// Packages used within this time, in seconds, are worth fetching anew.
const USED_WITHIN: i64 = 30 * 24 * 60 * 60;
/// Names that are read of the index at a time.
const PAGE: usize = 2000;
/// How often it is looked whether the hours have come.
const TICK: Duration = Duration::from_secs(30);
/// A budget is for so long.
const DAY: Duration = Duration::from_hours(24);

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
        if config.budget == 0 {
            return (Self { offers: None, watched }, None);
        }
        let (offers, received) = mpsc::channel(OFFERS_MAX);
        let errands = Errands {
            config: config.clone(),
            offers: received,
            watched: watched.clone(),
            waiting: HashMap::new(),
            turns: 0,
            rest_until: Instant::now(),
            spent: 0,
            day: Instant::now(),
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
        let bytes = metrics.counters(
            "aptmesh_engine_prefetched_bytes_total",
            "Bytes of packages fetched before anybody asked, of those used then, and of those not.",
            &["fate"],
        );
        Self { unused: Arc::default(), bytes }
    }

    fn was_fetched(&self, package: Package, item: &Item) {
        self.count("fetched", item.size);
        let new = Unused { key: item.key.clone(), size: item.size, since: Instant::now() };
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

/// A file that waits to be fetched.
#[derive(Clone)]
struct Item {
    key: String,
    size: u64,
    /// Its place: the lowest is the next.
    turn: u64,
    has_failed: bool,
}

/// What there is to fetch, and how much may be.
pub(super) struct Errands {
    config: Config,
    offers: mpsc::Receiver<Offer>,
    watched: Watched,
    /// The newest version of each package.
    waiting: HashMap<Package, Item>,
    turns: u64,
    /// Mirror or volume are in trouble: not the time for what nobody asked for.
    rest_until: Instant,
    spent: u64,
    day: Instant,
}

impl Errands {
    /// Runs until the engine is gone.
    pub(super) fn start(self, engine: Weak<Engine>, tasks: &TaskTracker) {
        tasks.spawn(self.run(engine));
    }

    async fn run(mut self, engine: Weak<Engine>) {
        loop {
            let next = self.next();
            let pause = if next.is_some() { Duration::ZERO } else { TICK };
            let offered = match timeout(pause, self.offers.recv()).await {
                Ok(Some(offer)) => Some(offer),
                Ok(None) => return,
                Err(_elapsed) => None,
            };
            let Some(engine) = engine.upgrade() else { return };
            match (offered, next) {
                (Some(offer), _) => self.take_in(&engine, offer).await,
                (None, Some(package)) => self.fetch(&engine, package).await,
                (None, None) => {}
            }
        }
    }

    /// The package whose turn it is, if this is the time and there is budget left for it.
    fn next(&mut self) -> Option<Package> {
        if self.day.elapsed() >= DAY {
            self.day = Instant::now();
            self.spent = 0;
            self.watched.give_up_old();
        }
        let is_time = self.config.hours.include(local_hour()) && Instant::now() >= self.rest_until;
        let first = self.waiting.iter().min_by_key(|(_, item)| item.turn).filter(|_| is_time)?;
        (self.spent + first.1.size <= self.config.budget).then(|| first.0.clone())
    }

    /// Of the news, takes the newest versions of packages that were used lately.
    async fn take_in(&mut self, engine: &Engine, offer: Offer) {
        let used = used_lately(engine, &offer.base).await;
        for (key, size) in newest(&offer.news, &used) {
            let Some(package) = package_of(&key) else { continue };
            self.watched.was_superseded(&package);
            self.waiting.remove(&package);
            // One that is too big for a day would keep the others from being fetched.
            if size <= self.config.budget && self.waiting.len() < WAITING_MAX {
                self.turns += 1;
                let item = Item { key, size, turn: self.turns, has_failed: false };
                self.waiting.insert(package, item);
            }
        }
    }

    async fn fetch(&mut self, engine: &Arc<Engine>, package: Package) {
        let Some(item) = self.waiting.get(&package).cloned() else { return };
        let Some(ask) = Ask::ours(&item.key) else {
            self.waiting.remove(&package);
            return;
        };
        if engine.mirror.is_away(&ask.target) {
            self.rest_until = Instant::now() + TICK;
            return;
        }
        self.waiting.remove(&package);
        let ask = Ask { pace: Some(self.config.rate).filter(|rate| *rate > 0), ..ask };
        let Finding { known, expectation } = engine.find(&ask).await;
        if known.is_some() {
            return;
        }
        self.spent += item.size;
        if is_fetched(engine, &ask, expectation).await {
            tracing::info!(key = item.key, size = item.size, "prefetched a package");
            self.watched.was_fetched(package, &item);
            return;
        }
        self.rest_until = Instant::now() + TICK;
        self.spent -= item.size;
        if !item.has_failed {
            self.turns += 1;
            self.waiting.insert(package, Item { has_failed: true, turn: self.turns, ..item });
        }
    }
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
