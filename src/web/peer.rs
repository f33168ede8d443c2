//! The surface for other replicas and other sites: blobs, by digest alone; and, for replicas, what is being
//! fetched, by the digest of its key. Each request proves by whom it is; other sites get what is public,
//! as fast as the operator allows, and a few bodies at a time.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use prometheus::IntCounter;
use tokio_util::task::TaskTracker;
use warp::Filter as _;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::content::digest::Sha256;
use crate::engine::Engine;
use crate::engine::fellows::Offer;
use crate::engine::give::{Asker, Gift};
use crate::engine::outcome::{self, Outcome};
use crate::telemetry::metrics::Metrics;
use crate::web::access::{Counted, Credit};
use crate::web::body::Source;
use crate::web::connection::Visit;
use crate::web::filter::HaveFilter;
use crate::web::reply;
use crate::web::slots::{self, Slots};
use crate::web::uplink::Uplink;

/// Who is turned away comes back after one second at least, and this many at most: not all at once.
const RETRY_AFTER_MAX: u64 = 5;

/// What the peer surface needs to answer.
pub struct Peer {
    engine: Arc<Engine>,
    filter: Option<HaveFilter>,
    slots: Arc<Slots>,
    uplink: Arc<Uplink>,
    refused: IntCounter,
    busy: IntCounter,
}

/// What a request names.
enum Asked {
    Blob(Sha256),
    Flight(Sha256),
    Filter,
}

/// What a token for the have-filter is for.
static FILTER: LazyLock<Sha256> = LazyLock::new(|| Sha256::of(b"filter"));

impl Asked {
    fn read(path: &str) -> Option<Self> {
        if path == "/filter" {
            return Some(Self::Filter);
        }
        let digest = |folder| path.strip_prefix(folder).and_then(Sha256::from_hex);
        digest("/blob/sha256/").map(Self::Blob).or_else(|| digest("/flight/").map(Self::Flight))
    }

    fn digest(&self) -> &Sha256 {
        match self {
            Self::Blob(digest) | Self::Flight(digest) => digest,
            Self::Filter => &FILTER,
        }
    }
}

impl Peer {
    /// The surface, with the site's have-filter if there is to be one. All other sites together get
    /// `upload_limit` bytes a second at most; 0: as many as they can take.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        filter: Option<HaveFilter>,
        upload_limit: u64,
        metrics: &Metrics,
        background: &TaskTracker,
    ) -> Self {
        let waits = metrics.counter(
            "aptmesh_web_peer_limit_waits_total",
            "Turns that bodies for other sites waited for, since swarm.upload_limit is set.",
        );
        let slots = metrics.gauge(
            "aptmesh_web_peer_slots_used",
            "Bodies on their way to other sites: 160 at most, 16 to one address.",
        );
        let uplink = Uplink::new(upload_limit, waits);
        let limited = Arc::clone(&uplink);
        metrics.gauge_of(
            "aptmesh_web_peer_upload_limit_bytes_per_second",
            "Bytes a second that all other sites together get at most (swarm.upload_limit); 0: no limit.",
            move || i64::try_from(limited.limit().unwrap_or_default()).unwrap_or(i64::MAX),
        );
        background.spawn(Arc::clone(&uplink).run());
        Self {
            engine,
            filter,
            slots: Slots::new(slots),
            uplink,
            refused: metrics.counter(
                "aptmesh_web_peer_refused_total",
                "Requests by strangers: without a token, or with one that does not hold.",
            ),
            busy: metrics.counter(
                "aptmesh_web_peer_busy_total",
                "Requests of other sites that were told to come back later.",
            ),
        }
    }

    /// Changes how many bytes a second other sites get.
    pub fn set_upload_limit(&self, upload_limit: u64) {
        self.uplink.set_limit(upload_limit);
    }

    /// All that it answers.
    #[must_use]
    pub fn routes(self: &Arc<Self>) -> BoxedFilter<(Response,)> {
        let peer = Arc::clone(self);
        let peer = warp::any().map(move || Arc::clone(&peer));
        peer.and(warp::ext::get::<Visit>()).then(answer).boxed()
    }

    /// Who asks for what, if it is somebody who may.
    fn asker(&self, visit: &Visit) -> Option<(Asker, Option<Asked>)> {
        let what = Asked::read(visit.uri.path());
        let token = visit.headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok());
        // In an open swarm everybody may hear that there is no such thing.
        let nothing = Sha256::of(&[]);
        let digest = what.as_ref().map_or(&nothing, Asked::digest);
        match self.engine.asker(token, digest) {
            Asker::Stranger => None,
            asker => Some((asker, what)),
        }
    }

    /// Counts what a blob's body comes to.
    fn count(&self, to: &str, mut answer: Response) -> Response {
        let has_blob = answer.status().is_success();
        if let Some(credit) = answer.extensions().get::<Credit>().filter(|_| has_blob) {
            let given = &self.engine.metrics().given_bytes;
            let counter = given.with_label_values(&[to, credit.source.label()]);
            answer.extensions_mut().insert(Counted(counter));
        }
        answer
    }

    async fn lend(&self, visit: &Visit, head_only: bool, blob: &Sha256) -> Response {
        match self.engine.lend(blob).await {
            Some(known) => reply::lent(&visit.headers, head_only, blob, &known),
            None => reply::refusal(StatusCode::NOT_FOUND, "not here"),
        }
    }

    async fn share(&self, visit: &Visit, head_only: bool, flight: &Sha256) -> Response {
        match self.engine.share(flight) {
            Some(served) => reply::served(&visit.headers, head_only, None, served).await,
            None => reply::refusal(StatusCode::NOT_FOUND, "not on its way here"),
        }
    }

    async fn give(&self, visit: &Visit, head_only: bool, blob: &Sha256) -> Response {
        let answer = match self.engine.give(blob, slots::peer_at(visit.client.address)).await {
            Gift::Stored(known) => reply::lent(&visit.headers, head_only, blob, &known),
            Gift::Arriving(follower) => reply::arriving(&visit.headers, head_only, blob, follower),
            Gift::Elsewhere(offer) => return self.pass_on(visit, head_only, &offer).await,
            Gift::Nothing => return reply::refusal(StatusCode::NOT_FOUND, "not here"),
            Gift::Busy => return self.busy(blob),
        };
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            self.busy.inc();
        }
        self.in_a_slot(visit, blob, answer)
    }

    /// What a fellow has, as it comes from there: the swarm is told of all that the site has. That it does
    /// not come now is no reason to think that it is not there.
    async fn pass_on(&self, visit: &Visit, head_only: bool, offer: &Offer) -> Response {
        let (head, part) = reply::passed_on(&visit.headers, head_only, offer);
        let credit = Credit::of(outcome::Source::Replica, Outcome::Miss);
        let answer = |source| reply::credited(reply::with_payload(head, source), credit);
        let Some(part) = part else { return answer(Source::Empty) };
        let blob = &offer.entry.blob;
        let Some(slot) = self.slots.take(visit.client.address) else { return self.busy(blob) };
        let Some(passing) = self.engine.pass_on(offer, part).await else { return self.busy(blob) };
        answer(Source::passing(passing).given(slot, Arc::clone(&self.uplink)))
    }

    /// The have-filter.
    async fn tell(&self, visit: &Visit) -> Response {
        match &self.filter {
            Some(filter) => filter.answer(visit).await,
            None => reply::refusal(StatusCode::NOT_FOUND, "there is no filter"),
        }
    }

    /// An answer to another site, its body within the bounds for all of them. What has none takes no slot.
    fn in_a_slot(&self, visit: &Visit, what: &Sha256, answer: Response) -> Response {
        let has_body = matches!(answer.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT);
        if visit.method == Method::HEAD || !has_body {
            return answer;
        }
        let Some(slot) = self.slots.take(visit.client.address) else { return self.busy(what) };
        let uplink = Arc::clone(&self.uplink);
        reply::passed(answer, |source| source.given(slot, uplink))
    }

    fn busy(&self, what: &Sha256) -> Response {
        self.busy.inc();
        let spread = what.as_bytes().first().map_or(0, |first| u64::from(*first) % RETRY_AFTER_MAX);
        reply::busy(Duration::from_secs(1 + spread), "busy")
    }
}

async fn answer(peer: Arc<Peer>, visit: Visit) -> Response {
    let Some((asker, what)) = peer.asker(&visit) else {
        // Strangers do not even hear what there is to ask for.
        peer.refused.inc();
        return reply::refusal(
            StatusCode::FORBIDDEN,
            "this is for replicas and sites of one swarm",
        );
    };
    if !matches!(visit.method, Method::GET | Method::HEAD) {
        let mut answer =
            reply::refusal(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are answered");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let head_only = visit.method == Method::HEAD;
    match (asker, what) {
        (Asker::Fellow, Some(Asked::Blob(blob))) => {
            peer.count("replica", peer.lend(&visit, head_only, &blob).await)
        }
        (Asker::Fellow, Some(Asked::Flight(flight))) => {
            peer.count("replica", peer.share(&visit, head_only, &flight).await)
        }
        (Asker::Site, Some(Asked::Blob(blob))) => {
            peer.count("peer", peer.give(&visit, head_only, &blob).await)
        }
        (Asker::Fellow, Some(Asked::Filter)) => peer.tell(&visit).await,
        (Asker::Site, Some(Asked::Filter)) => {
            let answer = peer.tell(&visit).await;
            peer.in_a_slot(&visit, &FILTER, answer)
        }
        _ => reply::refusal(StatusCode::NOT_FOUND, "not here"),
    }
}
