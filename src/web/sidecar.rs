//! The surfaces of a node of the swarm's DHT: the API for its proxy, in JSON, and that for operators.
//!
//! ```text
//! GET  /lookup/SHA256?budget_ms=150   {"node": "…", "peers": [{"node", "site", "urls", …}]}; &trace=true: and how
//! POST /announce                      {"blobs": [{"sha256": "…", "size": 1234}]}
//! POST /withdraw                      {"blobs": ["…"]}
//!      …?provisional=true             of blobs that are being fetched: for a minute, unless stored by then
//! POST /filter/GENERATION             the site's have-filter is of this generation
//! GET  /status, /peers
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut as _};
use futures_util::{Stream, StreamExt as _};
use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tracing::Instrument as _;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter as _, Reply as _};

use crate::content::digest::Sha256;
use crate::dht::Dht;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{self, span};
use crate::web::admin;
use crate::web::phase::Phase;

/// Bytes of a request: 40,000 blobs and more.
const BODY_MAX: usize = 4 * 1024 * 1024;
/// For how long a look-up may take when nobody says: longer than a proxy waits.
const BUDGET: u64 = 150;

/// A request's body, as it arrives.
trait Body: Stream<Item = Result<Self::Piece, warp::Error>> + Send {
    type Piece: Buf + Send;
}

impl<B: Buf + Send, S: Stream<Item = Result<B, warp::Error>> + Send> Body for S {
    type Piece = B;
}

/// What the surfaces need to answer.
pub struct Sidecar {
    dht: Dht,
    metrics: Metrics,
    phase: watch::Receiver<Phase>,
}

#[derive(Deserialize)]
struct LookUp {
    budget_ms: Option<u64>,
    trace: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct How {
    provisional: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Announce {
    blobs: Vec<Blob>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Blob {
    sha256: String,
    size: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Withdraw {
    blobs: Vec<String>,
}

impl Sidecar {
    /// The surfaces; not ready any more once the `phase` is another than serving.
    #[must_use]
    pub const fn new(dht: Dht, metrics: Metrics, phase: watch::Receiver<Phase>) -> Self {
        Self { dht, metrics, phase }
    }

    /// What is for the proxy.
    #[must_use]
    pub fn api_routes(self: Arc<Self>) -> BoxedFilter<(Response,)> {
        let me = warp::any().map(move || Arc::clone(&self));
        let look_up = warp::path!("lookup" / String)
            .and(warp::get())
            .and(warp::query())
            .and(me.clone())
            .then(look_up);
        let announce = warp::path!("announce")
            .and(warp::post())
            .and(warp::query())
            .and(warp::body::stream())
            .and(me.clone())
            .then(announce);
        let withdraw = warp::path!("withdraw")
            .and(warp::post())
            .and(warp::query())
            .and(warp::body::stream())
            .and(me.clone())
            .then(withdraw);
        let filter = warp::path!("filter" / u64).and(warp::post()).and(me.clone()).then(set_filter);
        let status = warp::path!("status").and(warp::get()).and(me.clone()).then(status);
        let peers = warp::path!("peers").and(warp::get()).and(me).then(peers);
        let asks = look_up.or(status).unify().or(peers).unify();
        asks.or(announce).unify().or(withdraw).unify().or(filter).unify().boxed()
    }

    /// What is for operators.
    #[must_use]
    pub fn admin_routes(self: Arc<Self>) -> BoxedFilter<(Response,)> {
        let me = warp::any().map(move || Arc::clone(&self));
        let livez = warp::path!("livez").map(|| "alive\n".into_response());
        let readyz = warp::path!("readyz").and(me.clone()).then(readyz);
        let metrics = warp::path!("metrics")
            .and(me.clone())
            .map(|sidecar: Arc<Sidecar>| admin::metrics(&sidecar.metrics));
        let status = warp::path!("status.json").and(me).then(status);
        let all = livez.or(readyz).unify().or(metrics).unify().or(status).unify();
        warp::get().or(warp::head()).unify().and(all).boxed()
    }
}

async fn look_up(sha256: String, how: LookUp, sidecar: Arc<Sidecar>) -> Response {
    let Some(blob) = Sha256::from_hex(&sha256) else { return no_digest(&sha256) };
    let budget = Duration::from_millis(how.budget_ms.unwrap_or(BUDGET));
    let span = span!("dht.look_up");
    let looked_up = sidecar.dht.look_up(&blob, budget).instrument(span.clone()).await;
    let Some(found) = looked_up else {
        traces::fail(&span, "silent", "the node does not answer");
        return silent();
    };
    traces::set(&span, "aptmesh.found", traces::number(found.peers.len() as u64));
    drop(span);
    if how.trace == Some(true) {
        return warp::reply::json(&found).into_response();
    }
    warp::reply::json(&json!({ "node": sidecar.dht.id(), "peers": found.peers })).into_response()
}

async fn announce(how: How, body: impl Body, sidecar: Arc<Sidecar>) -> Response {
    let order: Announce = match read(body).await {
        Ok(order) => order,
        Err(why) => return refusal(StatusCode::BAD_REQUEST, &why),
    };
    let mut blobs = Vec::with_capacity(order.blobs.len());
    for blob in &order.blobs {
        let Some(digest) = Sha256::from_hex(&blob.sha256) else { return no_digest(&blob.sha256) };
        blobs.push((digest, blob.size));
    }
    reply(match how.provisional {
        Some(true) => sidecar.dht.announce_provisionally(&blobs).await,
        _ => sidecar.dht.announce(&blobs).await,
    })
}

async fn withdraw(how: How, body: impl Body, sidecar: Arc<Sidecar>) -> Response {
    let order: Withdraw = match read(body).await {
        Ok(order) => order,
        Err(why) => return refusal(StatusCode::BAD_REQUEST, &why),
    };
    let mut blobs = Vec::with_capacity(order.blobs.len());
    for blob in &order.blobs {
        let Some(digest) = Sha256::from_hex(blob) else { return no_digest(blob) };
        blobs.push(digest);
    }
    let withdrawn = match how.provisional {
        Some(true) => sidecar.dht.withdraw_provisional(&blobs).await,
        _ => sidecar.dht.withdraw(&blobs).await,
    };
    reply(withdrawn.map(|withdrawn| json!({ "withdrawn": withdrawn })))
}

async fn set_filter(generation: u64, sidecar: Arc<Sidecar>) -> Response {
    reply(sidecar.dht.set_filter(generation).await.map(|()| json!({ "filter": generation })))
}

async fn status(sidecar: Arc<Sidecar>) -> Response {
    reply(sidecar.dht.status().await)
}

async fn peers(sidecar: Arc<Sidecar>) -> Response {
    let peers = sidecar.dht.peers().await;
    reply(peers.map(|peers| json!({ "node": sidecar.dht.id(), "peers": peers })))
}

/// Ready means that it has found the swarm, or was told of nobody who could be in it.
async fn readyz(sidecar: Arc<Sidecar>) -> Response {
    if *sidecar.phase.borrow() != Phase::Serving {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    }
    match sidecar.dht.status().await {
        Some(status) if status.ready => "ready\n".into_response(),
        Some(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "no other node found yet\n"),
        None => silent(),
    }
}

/// An order, or why it is none.
async fn read<T: DeserializeOwned>(body: impl Body) -> Result<T, String> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| format!("{error}\n"))?;
        bytes.put(piece);
        if bytes.len() > BODY_MAX {
            return Err(format!("at most {BODY_MAX} bytes at a time\n"));
        }
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("{error}\n"))
}

fn reply(answer: Option<impl serde::Serialize>) -> Response {
    answer.map_or_else(silent, |answer| warp::reply::json(&answer).into_response())
}

/// The node has stopped, or is too busy.
fn silent() -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "the node does not answer\n")
}

fn no_digest(text: &str) -> Response {
    let text: String = text.chars().take(80).collect();
    refusal(StatusCode::BAD_REQUEST, &format!("{text:?} is no SHA-256 in hex digits\n"))
}

fn refusal(status: StatusCode, why: &str) -> Response {
    warp::reply::with_status(why.to_owned(), status).into_response()
}
