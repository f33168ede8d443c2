//! The admin surface: is it alive, is it ready, what does it count. Apart from the proxy, so that
//! clients do not see it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter as _, Reply as _};

use crate::dht::Dht;
use crate::engine::Engine;
use crate::engine::outcome::Source;
use crate::index::Traffic;
use crate::telemetry::metrics::Metrics;
use crate::web::phase::Phase;

/// How long a status waits for the index to count.
const COUNT_PATIENCE: Duration = Duration::from_secs(2);

/// What the admin surface needs to answer.
pub struct Admin {
    engine: Arc<Engine>,
    dht: Option<Dht>,
    metrics: Metrics,
    started: Instant,
    phase: tokio::sync::watch::Receiver<Phase>,
    watched_at: Mutex<Option<Instant>>,
}

/// Who asks whether it is ready.
#[derive(Deserialize)]
struct By {
    /// Set by the process's own health check, which sends no clients here.
    own: Option<bool>,
}

impl Admin {
    /// The surface; not ready any more once the `phase` is another than serving.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        dht: Option<Dht>,
        metrics: Metrics,
        phase: tokio::sync::watch::Receiver<Phase>,
    ) -> Self {
        let watched_at = Mutex::default();
        Self { engine, dht, metrics, started: Instant::now(), phase, watched_at }
    }

    /// Whether somebody asked within this time if it is ready, as balancers do again and again.
    #[must_use]
    pub fn is_watched(&self, within: Duration) -> bool {
        let watched_at = self.watched_at.lock().unwrap_or_else(PoisonError::into_inner);
        watched_at.is_some_and(|at| at.elapsed() < within)
    }

    /// All that it answers.
    #[must_use]
    pub fn routes(self: Arc<Self>) -> BoxedFilter<(Response,)> {
        let admin = warp::any().map(move || Arc::clone(&self));
        let livez = warp::path!("livez").map(|| "alive\n".into_response());
        let readyz = warp::path!("readyz")
            .and(warp::query())
            .and(admin.clone())
            .map(|by: By, admin: Arc<Admin>| readyz(&by, &admin));
        let metrics = warp::path!("metrics")
            .and(admin.clone())
            .map(|admin: Arc<Admin>| metrics(&admin.metrics));
        let status = warp::path!("status.json").and(admin).then(status);
        let all = livez.or(readyz).unify().or(metrics).unify().or(status).unify();
        warp::get().or(warp::head()).unify().and(all).boxed()
    }
}

/// Ready means that apt is served: a volume that takes nothing, or an index that is away, is told of,
/// but is no reason to send clients away.
fn readyz(by: &By, admin: &Admin) -> Response {
    if by.own != Some(true) {
        let watched_at = &admin.watched_at;
        *watched_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
    if *admin.phase.borrow() != Phase::Serving {
        let reply = warp::reply::with_status("stopping\n", StatusCode::SERVICE_UNAVAILABLE);
        return reply.into_response();
    }
    match trouble(&admin.engine) {
        None => "ready\n".into_response(),
        Some(trouble) => format!("ready, but {trouble}\n").into_response(),
    }
}

/// What is wrong, in words.
fn trouble(engine: &Engine) -> Option<String> {
    let store = engine.store_trouble();
    let index = engine.index_trouble().map(|trouble| format!("without its index: {trouble}"));
    let all: Vec<String> = store.into_iter().chain(index).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

pub(super) fn metrics(metrics: &Metrics) -> Response {
    let text = metrics.render();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    warp::reply::with_header(text, "content-type", kind).into_response()
}

fn by_way(bytes: Traffic) -> serde_json::Value {
    json!({
        "from_mirrors": bytes.from_mirrors, "from_peers": bytes.from_peers,
        "from_replicas": bytes.from_replicas, "from_store": bytes.from_store,
        "to_peers": bytes.to_peers, "to_replicas": bytes.to_replicas,
    })
}

async fn status(admin: Arc<Admin>) -> Response {
    let totals = timeout(COUNT_PATIENCE, admin.engine.totals()).await.ok().flatten();
    let swarm = match &admin.dht {
        Some(dht) => match dht.status().await {
            Some(status) => json!(status),
            None => json!({ "trouble": "the node does not answer" }),
        },
        None => json!(null),
    };
    let (session, all_time) = admin.engine.traffic();
    let bytes = &admin.engine.metrics().served_bytes;
    let served =
        Source::ALL.map(|from| (from.label(), bytes.with_label_values(&[from.label()]).get()));
    warp::reply::json(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": admin.started.elapsed().as_secs(),
        "flights": admin.engine.flights(),
        "served_bytes": HashMap::from(served),
        "traffic": {"session": by_way(session), "all_time": all_time.map(by_way)},
        "stored": totals.map(|totals| json!({
            "resources": totals.resources, "blobs": totals.blobs, "bytes": totals.bytes,
            "expectations": totals.expectations, "quota": admin.engine.room().limits().quota,
        })),
        "swarm": swarm,
        "peers": admin.engine.peers(),
        "duties": admin.engine.duties(),
        "trouble": trouble(&admin.engine),
    }))
    .into_response()
}
