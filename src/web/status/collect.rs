//! Asks all parts how they are. None of them is waited for for long: what does not answer is left out, and
//! said to be missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::time::timeout;

use crate::archive::signature::{BadSignature, Verdict};
use crate::dht;
use crate::engine::Engine;
use crate::engine::flight::running::{Giver, Running};
use crate::engine::history::Lately;
use crate::engine::outcome::Source;
use crate::engine::suites::shown::ReleaseFile;
use crate::index::budget;
use crate::mirror::{Account, AccountState};
use crate::swarm::sidecar::Sidecar;
use crate::web::status::report::{
    Archive, ByWay, Flight, History, Mirror, Peer, Report, Stored, Swarm, Traffic, Volume,
};
use crate::web::status::trouble;

/// How long a part may take.
pub(in crate::web) const PATIENCE: Duration = Duration::from_millis(1_500);
/// Flights that are told of one by one.
const FLIGHTS_MAX: usize = 50;
/// Letters of what others named: more of it tells people nothing.
const TEXT_MAX: usize = 500;
/// Keys that are told of one by one.
const KEYS_MAX: usize = 16;
/// By so many seconds a mirror's clock may be ahead of ours.
const AHEAD_MAX: i64 = 60;

/// Where the parts are.
pub struct Collector {
    engine: Arc<Engine>,
    node: Option<Arc<Sidecar>>,
    started: Instant,
}

impl Collector {
    /// Of a process that starts now, and of its site's node.
    #[must_use]
    pub fn new(engine: Arc<Engine>, node: Option<Arc<Sidecar>>) -> Self {
        Self { engine, node, started: Instant::now() }
    }

    /// How all is.
    pub async fn report(&self) -> Report {
        let engine = &self.engine;
        let (stored, volume, archives, swarm, cards) = tokio::join!(
            timeout(PATIENCE, engine.totals()),
            self.volume(),
            timeout(PATIENCE, budget::waited_for(engine.release_files())),
            self.swarm(),
            self.cards(),
        );
        let (running, flights) = engine.running(FLIGHTS_MAX);
        let (session, all_time) = engine.traffic();
        let lately = engine.lately();
        let quota = engine.room().limits().quota;
        let (process, replicas) = engine.replicas();
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            flights,
            running: running.iter().map(flight).collect(),
            served_bytes: self.served_bytes(),
            traffic: Traffic {
                now: per_second(lately.now.into(), lately.now_seconds),
                minute: per_second(lately.minute.into(), lately.minute_seconds),
                session: session.into(),
                all_time: all_time.map(ByWay::from),
            },
            history: history(&lately),
            stored: stored.ok().flatten().map(|totals| Stored {
                resources: totals.resources,
                blobs: totals.blobs,
                bytes: totals.bytes,
                expectations: totals.expectations,
                quota,
            }),
            volume,
            archives: archives.ok().map(|files| files.into_iter().map(archive).collect()),
            mirrors: engine.mirrors().into_iter().map(mirror).collect(),
            swarm,
            peers: self.peers(&cards),
            duties: engine.duties().into_iter().map(str::to_owned).collect(),
            process: process.to_owned(),
            replicas,
            offline: engine.is_offline(),
            trouble: trouble::of_store_and_index(engine),
            troubles: Vec::new(),
        };
        report.troubles = trouble::all(&report, engine.store_trouble(), engine.index_trouble());
        report
    }

    /// What lies there, and what room there is.
    async fn volume(&self) -> Volume {
        let room = self.engine.room();
        let (stored, space) = tokio::join!(stored(&self.engine), timeout(PATIENCE, room.space()));
        let space = space.ok().flatten();
        Volume {
            blobs: stored.map(|stored| stored.blobs),
            bytes: stored.map(|stored| stored.bytes),
            free: space.map(|space| space.free),
            total: space.map(|space| space.total),
        }
    }

    fn served_bytes(&self) -> BTreeMap<String, u64> {
        let bytes = &self.engine.metrics().served_bytes;
        Source::ALL.map(|source| (source.label().to_owned(), bytes.sum(source))).into()
    }

    async fn swarm(&self) -> Option<Swarm> {
        let node = self.node.as_ref()?;
        let silent = || "its node did not answer when it was last asked who has a file".to_owned();
        Some(match node.told("/status", PATIENCE).await {
            Ok(status) => Swarm { status, trouble: node.is_away().then(silent) },
            Err(why) => {
                let trouble = Some(format!("its node does not say how it is: {why}"));
                Swarm { status: None, trouble }
            }
        })
    }

    /// What is known of other sites.
    async fn cards(&self) -> Vec<dht::Peer> {
        let Some(node) = &self.node else { return Vec::new() };
        let told: Result<Cards, String> = node.told("/peers", PATIENCE).await;
        told.map(|told| told.peers).unwrap_or_default()
    }

    fn peers(&self, cards: &[dht::Peer]) -> Vec<Peer> {
        let site = |node: &str| {
            let card = cards.iter().find(|card| card.node == node);
            card.map(|card| card.site.clone()).filter(|site| !site.is_empty())
        };
        let standings = self.engine.peers().into_iter();
        standings
            .map(|standing| Peer {
                site: site(&standing.node),
                node: standing.node,
                url: standing.url,
                success: standing.success,
                bytes_per_second: standing.bytes_per_second,
                first_byte_ms: standing.first_byte_ms,
                in_flight: standing.in_flight,
                proven_bytes: standing.proven_bytes,
                benched_for: standing.benched_for,
                blamed: standing.blamed,
            })
            .collect()
    }
}

/// What the node tells of them.
#[derive(Deserialize)]
struct Cards {
    peers: Vec<dht::Peer>,
}

/// How much lies on the volume; of before, if the index does not say it in time; `None`: it never did.
pub(in crate::web) async fn stored(engine: &Engine) -> Option<crate::index::Volume> {
    let room = engine.room();
    let told = timeout(PATIENCE, budget::waited_for(room.volume_if_told())).await;
    told.unwrap_or_else(|_elapsed| room.volume_of_before())
}

/// What others named, as far as people read it.
fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn per_second(bytes: ByWay, seconds: f64) -> ByWay {
    let each = |bytes| rate(bytes, Duration::try_from_secs_f64(seconds).unwrap_or_default());
    ByWay {
        from_mirrors: each(bytes.from_mirrors),
        from_peers: each(bytes.from_peers),
        from_replicas: each(bytes.from_replicas),
        from_store: each(bytes.from_store),
        to_peers: each(bytes.to_peers),
        to_replicas: each(bytes.to_replicas),
    }
}

/// Bytes per second; of a moment, as if it were a tenth of one.
fn rate(bytes: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    bytes.saturating_mul(1_000) / millis.max(100)
}

fn history(lately: &Lately) -> History {
    let spans = &lately.spans;
    History {
        span_seconds: lately.span_seconds,
        from_store: spans.iter().map(|span| span.from_store).collect(),
        from_replicas: spans.iter().map(|span| span.from_replicas).collect(),
        from_peers: spans.iter().map(|span| span.from_peers).collect(),
        from_mirrors: spans.iter().map(|span| span.from_mirrors).collect(),
    }
}

fn flight(running: &Running) -> Flight {
    let giver = running.giver.as_ref();
    Flight {
        kind: running.kind.label().to_owned(),
        from: giver.map(|giver| giver.label().to_owned()),
        mirror: giver.and_then(Giver::mirror).map(short),
        size: running.size,
        bytes: running.bytes,
        bytes_per_second: rate(running.bytes, running.age),
        waiting: running.waiting,
        age: running.age.as_secs(),
        url: short(&running.key),
    }
}

fn archive(file: ReleaseFile) -> Archive {
    let since = |at: i64| u64::try_from(file.now.saturating_sub(at)).unwrap_or_default();
    let (refused, refused_ago) = match file.refused {
        Some((reason, ago)) => (Some(reason), Some(ago.as_secs())),
        None => (None, None),
    };
    let is_past = |at: &i64| *at <= file.now + AHEAD_MAX;
    let mut keys = file.signature.clone().map(keys).unwrap_or_default();
    keys.truncate(KEYS_MAX);
    Archive {
        url: short(&file.key),
        suite: file.suite.as_deref().map(short),
        codename: file.codename.as_deref().map(short),
        date: file.date,
        valid_until: file.valid_until,
        age: file.date.filter(is_past).map(since),
        expired: file.valid_until.is_some_and(|until| until < file.now),
        confirmed: file.confirmed_at.filter(|at| *at > 0).map(since),
        signature: file.signature.as_ref().map(|verdict| verdict.label().to_owned()),
        keys,
        refused,
        refused_ago,
        served: file.is_served,
    }
}

fn keys(verdict: Verdict) -> Vec<String> {
    match verdict {
        Verdict::Good { signers }
        | Verdict::Expired { signers }
        | Verdict::Weak { signers }
        | Verdict::UnknownKey { issuers: signers } => signers,
        Verdict::Bad(BadSignature::Wrong { signer } | BadSignature::Revoked { signer }) => {
            vec![signer]
        }
        Verdict::Unsigned | Verdict::Malformed(_) => Vec::new(),
    }
}

fn mirror((account, bytes_per_second): (Account, Option<u64>)) -> Mirror {
    let (last_failure, failed_ago) = match account.last_failure {
        Some((reason, ago)) => (Some(reason), Some(ago.as_secs())),
        None => (None, None),
    };
    let state = match account.state {
        AccountState::Well if account.has_failed => "failed",
        state => state.label(),
    };
    Mirror {
        url: account.origin,
        archive: account.archive,
        state: state.to_owned(),
        benched_for: account.benched_for.as_secs(),
        requests: account.requests,
        failures: account.failures,
        bytes: account.bytes,
        bytes_per_second,
        asked: account.asked.map(|ago| ago.as_secs()),
        last_failure,
        failed_ago,
    }
}
