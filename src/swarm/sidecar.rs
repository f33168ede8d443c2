//! The way to this site's node of the swarm's DHT, over its HTTP API (`web/sidecar.rs`). It may be dead,
//! slow or unreachable: then nobody waits for it, and there is nobody to be found.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use prometheus::{Histogram, IntCounterVec};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};
use url::Url;

use crate::content::card::URLS_MAX;
use crate::content::digest::Sha256;
use crate::swarm::away::{Away, Standing};
use crate::swarm::client::{self, Pace, Paced, in_words};
use crate::swarm::discovery::{Discovery, HOLDERS_MAX, Holder};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{self, span};

/// For how long a connection may take to be made: it is on this machine, or near.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// For how long the node looks, whoever waits for it: what it finds late is known to who asks next.
const LOOK_UP_MAX: Duration = Duration::from_millis(500);
/// For how long an answer to a look-up, or an order, may be waited for: longer than the node looks.
const CALL_MAX: Duration = Duration::from_secs(1);
/// For how long all cards may be waited for.
const PEERS_MAX: Duration = Duration::from_secs(3);
/// For how long its answers may be silent; their end is waited for no longer than says who asks.
const PACE: Pace = Pace { silence_max: PEERS_MAX, least: None };
/// Idle connections kept to it.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// For how long it is remembered who has a blob, or that nobody has.
const KEPT_FOR: Duration = Duration::from_secs(5);
/// The same, where nobody was found.
const NONE_KEPT_FOR: Duration = Duration::from_millis(100);
/// Blobs of which that is remembered, or being found out.
const ASKED_MAX: usize = 2_048;
/// Orders that wait to be sent; what is too many is not announced.
const ORDERS_MAX: usize = 1_024;
/// Orders that are sent together.
const BATCH_MAX: usize = 256;
/// Bytes of an answer to a look-up: 64 sites and their cards.
const FOUND_MAX: usize = 256 * 1024;
/// Bytes of all cards: a node knows 1,024.
const CARDS_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a node's id, and of a URL on a card.
const TEXT_MAX: usize = 255;
/// From within a machine to longer than anybody waits.
const LOOK_UP_BUCKETS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.5];

/// The way to the node.
pub struct Sidecar {
    link: Arc<Link>,
    asked: Mutex<HashMap<Sha256, Asked>>,
    orders: mpsc::Sender<Order>,
    tasks: TaskTracker,
    look_ups: IntCounterVec,
    look_up_seconds: Histogram,
}

/// A site of the swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Who it is, and where its blobs are to be had.
    pub holder: Holder,
    /// Generation of its have-filter; 0: it has none.
    pub filter: u64,
}

/// A look-up that was begun, and its answer when it is there.
struct Asked {
    at: Instant,
    answer: Answer,
}

type Answer = watch::Receiver<Option<Arc<[Holder]>>>;

/// What the node is told; without waiting for it.
#[derive(Clone, Copy)]
enum Order {
    Announce(Sha256, u64),
    Withdraw(Sha256),
}

/// The client.
struct Link {
    client: reqwest::Client,
    /// Without a slash at its end.
    api: String,
    away: Away,
    /// Who the node is, by its own word.
    node: OnceLock<Arc<str>>,
}

#[derive(Deserialize)]
struct Peers {
    node: String,
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
struct Peer {
    node: String,
    urls: Vec<String>,
    filter: u64,
}

impl Sidecar {
    /// The way to the node whose API is at `api`. What it is told goes out on `tasks`.
    ///
    /// # Errors
    /// When there is no TLS.
    pub fn start(api: &Url, metrics: &Metrics, tasks: &TaskTracker) -> anyhow::Result<Arc<Self>> {
        let link = Arc::new(Link {
            client: client::builder(CONNECT_TIMEOUT, IDLE_CONNECTIONS_MAX)?.build()?,
            api: api.as_str().trim_end_matches('/').to_owned(),
            away: Away::default(),
            node: OnceLock::new(),
        });
        let looked_at = Arc::clone(&link);
        metrics.gauge_of(
            "aptmesh_swarm_sidecar_away",
            "1 while this site's node of the DHT does not answer, 0 else.",
            move || looked_at.away.is_away().into(),
        );
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        tasks.spawn(Arc::clone(&link).keep_telling(ordered));
        Ok(Arc::new(Self {
            link,
            asked: Mutex::default(),
            orders,
            tasks: tasks.clone(),
            look_ups: metrics.counters_of(
                "aptmesh_swarm_look_ups_total",
                "Questions who has a blob, to this site's node of the DHT, by what came of them: found, none, late, \
                 given_up (it came from elsewhere first), or away (the node does not answer).",
                "outcome",
                &["found", "none", "late", "given_up", "away"],
            ),
            look_up_seconds: metrics.histogram(
                "aptmesh_swarm_look_up_seconds",
                "For how long the node was waited for in a look-up, in seconds.",
                &LOOK_UP_BUCKETS,
            ),
        }))
    }

    /// All sites that the node knows; `None` when it does not tell.
    pub async fn peers(&self) -> Option<Vec<Site>> {
        if self.link.away.standing(Instant::now()) == Standing::Away {
            return None;
        }
        let cards = self.link.get("/peers", CARDS_MAX, PEERS_MAX).await?;
        Some(cards.filter_map(site).collect())
    }

    /// What the node says at `path` of its API, for people: `/status`, `/peers`. That it does not say it
    /// changes nothing for look-ups: who watches disturbs nobody.
    ///
    /// # Errors
    /// In words, when it does not tell within `patience`.
    pub async fn told<T: DeserializeOwned>(
        &self,
        path: &'static str,
        patience: Duration,
    ) -> Result<T, String> {
        let asked = self.link.client.get(format!("{}{path}", self.link.api));
        let read = async {
            let told = answer(asked, CARDS_MAX).await?;
            serde_json::from_slice(&told).map_err(|error| error.to_string())
        };
        timeout(patience, read).await.unwrap_or_else(|_elapsed| Err("no answer in time".to_owned()))
    }

    /// Whether it did not answer the last question of a look-up.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.link.away.is_away()
    }

    /// The answer that is there or under way, shared with all who ask for the same at a time. `None`
    /// where nobody is to wait for one.
    fn answer(&self, blob: &Sha256) -> Option<Answer> {
        let now = Instant::now();
        let is_fresh = |asked: &Asked| asked.is_fresh(now);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = asked.get(blob).filter(|asked| is_fresh(asked)) {
            return Some(asked.answer.clone());
        }
        if asked.len() >= ASKED_MAX {
            asked.retain(|_, asked| is_fresh(asked));
        }
        if asked.len() >= ASKED_MAX {
            return None;
        }
        let standing = self.link.away.standing(now);
        if standing == Standing::Away {
            return None;
        }
        let (tell, answer) = watch::channel(None);
        asked.insert(*blob, Asked { at: now, answer: answer.clone() });
        // Others may share it.
        let span = span!(parent: None, "swarm.ask_node", otel.kind = "client");
        traces::belong_to_current(&span);
        self.tasks.spawn(Arc::clone(&self.link).look_up(*blob, tell).instrument(span));
        // What only tells whether it is back keeps nobody waiting.
        (standing == Standing::There).then_some(answer)
    }

    /// What came of it, and who was found.
    async fn find(&self, blob: &Sha256, budget: Duration) -> (&'static str, Vec<Holder>) {
        let Some(mut answer) = self.answer(blob) else { return ("away", Vec::new()) };
        match timeout(budget, answer.wait_for(Option::is_some)).await {
            Err(_elapsed) => ("late", Vec::new()),
            Ok(Err(_gone)) => ("away", Vec::new()),
            Ok(Ok(found)) => match found.as_deref() {
                Some(found) if !found.is_empty() => ("found", found.to_vec()),
                _ => ("none", Vec::new()),
            },
        }
    }

    fn order(&self, order: Order) {
        // Others find it elsewhere.
        if self.orders.try_send(order).is_err() {
            tracing::debug!("too much to announce at a time");
        }
    }
}

impl Asked {
    /// Whether it still is an answer: somebody may begin to fetch at any moment what nobody has.
    fn is_fresh(&self, now: Instant) -> bool {
        let found_none = self.answer.borrow().as_ref().is_some_and(|found| found.is_empty());
        let kept_for = if found_none { NONE_KEPT_FOR } else { KEPT_FOR };
        self.at + kept_for > now && !self.came_to_nothing()
    }

    /// Whoever was to answer is gone.
    fn came_to_nothing(&self) -> bool {
        self.answer.borrow().is_none() && self.answer.has_changed().is_err()
    }
}

/// Who has a blob? Counted at its end, be it that who asked has it from elsewhere by then.
struct Question<'a> {
    sidecar: &'a Sidecar,
    begun: Instant,
    outcome: &'static str,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.sidecar.look_ups.with_label_values(&[self.outcome]).inc();
        self.sidecar.look_up_seconds.observe(self.begun.elapsed().as_secs_f64());
    }
}

#[async_trait]
impl Discovery for Sidecar {
    fn me(&self) -> Option<Arc<str>> {
        self.link.node.get().cloned()
    }

    /// It knows nothing that it does not ask for.
    fn claimed(&self, _: &Sha256) -> Vec<Holder> {
        Vec::new()
    }

    async fn look_up(&self, blob: &Sha256, budget: Duration) -> Vec<Holder> {
        let mut question = Question { sidecar: self, begun: Instant::now(), outcome: "given_up" };
        let span = span!("swarm.look_up");
        let (outcome, found) = self.find(blob, budget).instrument(span.clone()).await;
        traces::set(&span, "aptmesh.outcome", outcome);
        if matches!(outcome, "away" | "late") {
            traces::fail(&span, outcome, "the swarm's node has not answered");
        }
        traces::set(&span, "aptmesh.found", traces::number(found.len() as u64));
        question.outcome = outcome;
        found
    }

    async fn announce(&self, blob: &Sha256, size: u64) {
        self.order(Order::Announce(*blob, size));
    }

    async fn withdraw(&self, blob: &Sha256) {
        self.order(Order::Withdraw(*blob));
    }
}

impl Link {
    async fn look_up(self: Arc<Self>, blob: Sha256, tell: watch::Sender<Option<Arc<[Holder]>>>) {
        let path = format!("/lookup/{blob}?budget_ms={}", LOOK_UP_MAX.as_millis());
        if let Some(peers) = self.get(&path, FOUND_MAX, CALL_MAX).await {
            let found = peers.filter_map(|peer| Some(site(peer)?.holder)).take(HOLDERS_MAX);
            tell.send_replace(Some(found.collect()));
        }
    }

    /// Sends out orders in their order, those that came together in one message.
    async fn keep_telling(self: Arc<Self>, mut ordered: mpsc::Receiver<Order>) {
        let mut orders = Vec::new();
        while ordered.recv_many(&mut orders, BATCH_MAX).await > 0 {
            let is_same_kind = |one: &Order, next: &Order| {
                std::mem::discriminant(one) == std::mem::discriminant(next)
            };
            for alike in orders.chunk_by(is_same_kind) {
                self.tell(alike).await;
            }
            orders.clear();
        }
    }

    /// Orders of one kind. They are lost if it is away: nothing is served under a promise of theirs.
    async fn tell(&self, orders: &[Order]) {
        if self.away.standing(Instant::now()) == Standing::Away {
            return;
        }
        let blobs = orders.iter().map(|order| match order {
            Order::Announce(blob, size) => json!({ "sha256": blob.to_string(), "size": size }),
            Order::Withdraw(blob) => json!(blob.to_string()),
        });
        let blobs: Vec<_> = blobs.collect();
        let path = match orders.first() {
            Some(Order::Announce(..)) => "/announce",
            _ => "/withdraw",
        };
        let request = self
            .client
            .post(format!("{}{path}?provisional=true", self.api))
            .header("content-type", "application/json")
            .body(json!({ "blobs": blobs }).to_string());
        self.call(answer(request, FOUND_MAX), CALL_MAX).await;
    }

    async fn get(
        &self,
        path: &str,
        max: usize,
        patience: Duration,
    ) -> Option<impl Iterator<Item = Peer> + use<>> {
        let asked = answer(self.client.get(format!("{}{path}", self.api)), max);
        let read = async {
            let found = serde_json::from_slice::<Peers>(&asked.await?);
            found.map_err(|error| error.to_string())
        };
        let Peers { node, peers } = self.call(read, patience).await?;
        self.node.get_or_init(|| node.into());
        Some(peers.into_iter())
    }

    async fn call<T>(
        &self,
        question: impl Future<Output = Result<T, String>>,
        patience: Duration,
    ) -> Option<T> {
        let answered = timeout(patience, question).await;
        match answered.unwrap_or_else(|_elapsed| Err("no answer in time".to_owned())) {
            Ok(answer) => {
                if self.away.answered() {
                    tracing::info!(api = self.api, "the swarm's node is back");
                }
                Some(answer)
            }
            Err(reason) => {
                traces::fail(&Span::current(), "failed", &reason);
                if self.away.failed(Instant::now()) {
                    let api = &self.api;
                    tracing::warn!(api, reason, "the swarm's node is away: going on without");
                }
                None
            }
        }
    }
}

async fn answer(request: reqwest::RequestBuilder, max: usize) -> Result<Vec<u8>, String> {
    let response = request.headers(traces::headers()).send().await.map_err(in_words)?;
    if response.status().as_u16() != 200 {
        return Err(format!("answered {}", response.status().as_u16()));
    }
    Paced::new(response, PACE).read(max).await
}

/// A site that gives something.
fn site(peer: Peer) -> Option<Site> {
    let urls: Vec<Arc<str>> = peer
        .urls
        .into_iter()
        .filter(|url| url.len() <= TEXT_MAX)
        .take(URLS_MAX)
        .map(Arc::from)
        .collect();
    let is_sound = !urls.is_empty() && peer.node.len() <= TEXT_MAX;
    is_sound.then(|| Site {
        holder: Holder { node: peer.node.into(), urls: urls.into() },
        filter: peer.filter,
    })
}
