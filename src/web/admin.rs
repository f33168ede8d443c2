//! The admin surface: is it alive, is it ready, what does it count. Apart from the proxy, so that
//! clients do not see it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Deserialize;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter as _, Reply as _};

use crate::engine::Engine;
use crate::swarm::sidecar::Sidecar;
use crate::telemetry::metrics::Metrics;
use crate::web::explain::Explainer;
use crate::web::phase::Phase;
use crate::web::status::{self, Collector, trouble};

/// What the admin surface needs to answer.
pub struct Admin {
    engine: Arc<Engine>,
    collector: Arc<Collector>,
    metrics: Metrics,
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
    /// The surface, which asks the site's `node` how it is; not ready any more once the `phase` is another than serving.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        node: Option<Arc<Sidecar>>,
        metrics: Metrics,
        phase: tokio::sync::watch::Receiver<Phase>,
    ) -> Self {
        let watched_at = Mutex::default();
        let collector = Arc::new(Collector::new(Arc::clone(&engine), node));
        Self { engine, collector, metrics, phase, watched_at }
    }

    /// Whether somebody asked within this time if it is ready, as balancers do again and again.
    #[must_use]
    pub fn is_watched(&self, within: Duration) -> bool {
        let watched_at = self.watched_at.lock().unwrap_or_else(PoisonError::into_inner);
        watched_at.is_some_and(|at| at.elapsed() < within)
    }

    /// All that it answers; `proxies` is where clients reach this process.
    #[must_use]
    pub fn routes(self: Arc<Self>, proxies: &[SocketAddr]) -> BoxedFilter<(Response,)> {
        let ports = proxies.iter().map(SocketAddr::port).collect();
        let explain = Explainer::new(Arc::clone(&self.engine), ports).routes();
        let status = status::routes(Arc::clone(&self.collector));
        let admin = warp::any().map(move || Arc::clone(&self));
        let livez = warp::path!("livez").map(|| "alive\n".into_response());
        let readyz = warp::path!("readyz")
            .and(warp::query())
            .and(admin.clone())
            .map(|by: By, admin: Arc<Admin>| readyz(&by, &admin));
        let metrics =
            warp::path!("metrics").and(admin).map(|admin: Arc<Admin>| metrics(&admin.metrics));
        let all =
            livez.or(readyz).unify().or(metrics).unify().or(status).unify().or(explain).unify();
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
    match trouble::of_store_and_index(&admin.engine) {
        None => "ready\n".into_response(),
        Some(trouble) => format!("ready, but {trouble}\n").into_response(),
    }
}

pub(super) fn metrics(metrics: &Metrics) -> Response {
    let text = metrics.render();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    warp::reply::with_header(text, "content-type", kind).into_response()
}
