//! The surface for other replicas: blobs, by digest alone, and what is being fetched, by the digest of
//! its key. Each request proves that it is by one of them.

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use prometheus::IntCounterVec;
use warp::Filter as _;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::content::digest::Sha256;
use crate::engine::Engine;
use crate::telemetry::metrics::Metrics;
use crate::web::connection::Visit;
use crate::web::reply;

/// What the peer surface needs to answer.
pub struct Peer {
    engine: Arc<Engine>,
    served_bytes: IntCounterVec,
}

impl Peer {
    /// The surface.
    #[must_use]
    pub fn new(engine: Arc<Engine>, metrics: &Metrics) -> Self {
        let served_bytes = metrics.counters(
            "aptmesh_peer_served_bytes_total",
            "Bytes of bodies handed to other replicas, by source.",
            &["source"],
        );
        Self { engine, served_bytes }
    }

    /// Bytes of bodies handed out.
    #[must_use]
    pub fn served_bytes(&self) -> &IntCounterVec {
        &self.served_bytes
    }

    /// All that it answers.
    #[must_use]
    pub fn routes(self: &Arc<Self>) -> BoxedFilter<(Response,)> {
        let peer = Arc::clone(self);
        let peer = warp::any().map(move || Arc::clone(&peer));
        peer.and(warp::ext::get::<Visit>()).then(answer).boxed()
    }
}

async fn answer(peer: Arc<Peer>, visit: Visit) -> Response {
    if !matches!(visit.method, Method::GET | Method::HEAD) {
        let mut answer =
            reply::refusal(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are answered");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    // Strangers do not even hear what there is to ask for.
    let path = visit.uri.path();
    let blob = path.strip_prefix("/blob/sha256/").and_then(Sha256::from_hex);
    let flight = path.strip_prefix("/flight/").and_then(Sha256::from_hex);
    let token = visit.headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok());
    let may_ask = |asked: &Sha256| token.is_some_and(|it| peer.engine.is_by_fellow(it, asked));
    let head_only = visit.method == Method::HEAD;
    match (blob.filter(may_ask), flight.filter(may_ask)) {
        (Some(blob), _) => match peer.engine.lend(&blob).await {
            Some(known) => reply::lent(&visit.headers, head_only, &blob, &known),
            None => reply::refusal(StatusCode::NOT_FOUND, "not here"),
        },
        (None, Some(flight)) => match peer.engine.share(&flight) {
            Some(served) => reply::served(&visit.headers, head_only, served).await,
            None => reply::refusal(StatusCode::NOT_FOUND, "not on its way here"),
        },
        (None, None) => reply::refusal(StatusCode::FORBIDDEN, "this is for replicas of one site"),
    }
}
