//! The sidecar's own engine: a node of the swarm's DHT. It announces what its site has, looks up who has
//! what, keeps its share of the swarm's records, and passes on the sites' cards. It knows nothing of the
//! proxy: they meet over the sidecar's HTTP API.

mod announcer;
mod directory;
mod home;
pub mod message;
mod metrics;
mod network;
mod node;
mod place;
mod rate;
mod reach;
mod records;
pub mod seeds;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use libp2p::identity::ed25519;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use self::node::{Node, Order};
use self::seeds::Seed;
use crate::content::digest::Sha256;
use crate::content::swarm_key::{DhtKey, SwarmKey};
use crate::telemetry::metrics::Metrics;

/// The longest that anybody remembers what was announced.
pub const TTL_MAX: Duration = Duration::from_hours(3);
/// For how long it is remembered that a site is fetching a blob; nobody renews that.
pub const PROVISIONAL_TTL: Duration = Duration::from_mins(1);
/// For how long the node may take to say how it is.
const STATUS_MAX: Duration = Duration::from_secs(2);
/// Orders that wait for the node.
const ORDERS_MAX: usize = 1_024;

/// A node's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which swarm; none, if none was named.
    pub key: Option<SwarmKey>,
    /// Where it listens for other nodes.
    pub listen: Vec<SocketAddr>,
    /// The folder below which it keeps what survives a restart.
    pub data: PathBuf,
    /// Where it first looks for others.
    pub seeds: Vec<Seed>,
    /// Networks of special addresses where nodes may be.
    pub allow_private: Vec<IpNet>,
    /// Whether it looks for others by multicast.
    pub lan: bool,
    /// Whether it announces anything.
    pub announce: bool,
    /// The smallest blob that is announced, in bytes.
    pub announce_min_size: u64,
    /// For how long others remember what was announced; renewed after a third of that.
    pub announce_ttl: Duration,
    /// Where other sites fetch blobs from this one.
    pub advertise: Vec<String>,
    /// Where the peer port beside this node listens: where nothing is advertised, others fetch from
    /// there, under the node's own addresses.
    pub peer: Option<SocketAddr>,
    /// The site's name, for people.
    pub site: String,
}

/// A running node.
#[derive(Clone)]
pub struct Dht {
    orders: mpsc::Sender<Order>,
    key: SwarmKey,
    announces: bool,
    min_size: u64,
    address: SocketAddr,
    id: Arc<str>,
}

/// What was found out about a blob.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// The sites that have it, by their own word.
    pub peers: Vec<Peer>,
    /// Nodes that have it but whose card is not known.
    pub without_card: usize,
    /// What the look-up did.
    pub trace: Trace,
}

/// A look-up, step by step.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Trace {
    /// How it ended: `found`, `none` or `late`.
    pub ended: &'static str,
    /// Milliseconds that it took.
    pub took_ms: f64,
    /// Nodes asked.
    pub asked: u32,
    /// Of them, those that answered.
    pub answered: u32,
    /// And those that could not be reached.
    pub failed: u32,
    /// Who named holders, in order.
    pub steps: Vec<Step>,
    /// The nodes closest to the key, at its end.
    pub closest: Vec<String>,
}

/// An answer within a look-up that named holders.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Milliseconds since the look-up began.
    pub at_ms: f64,
    /// The nodes it named.
    pub holders: Vec<String>,
}

/// A site, as its card tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its node.
    pub node: String,
    /// Its name.
    pub site: String,
    /// Where its blobs are to be had.
    pub urls: Vec<String>,
    /// Generation of its have-filter.
    pub filter: u64,
    /// Where its node listens.
    pub addresses: Vec<SocketAddr>,
    /// Whether it is connected now.
    pub connected: bool,
    /// Seconds since its card was issued.
    pub card_age: u64,
}

/// Another node of the same site.
#[derive(Debug)]
pub struct Fellow {
    /// Its id.
    pub node: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
}

/// What became of blobs that were to be announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Announced {
    /// Announced from now on.
    pub new: usize,
    /// Announced already.
    pub known: usize,
    /// Too small to be worth it.
    pub too_small: usize,
    /// There was no room, or nothing is announced at all.
    pub refused: usize,
}

/// How a node is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its id.
    pub node: String,
    /// Its site's name.
    pub site: String,
    /// Tells swarms apart.
    pub swarm: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Whether it knows others, or was told of none.
    pub ready: bool,
    /// Whether no node of another site is connected, though it was told where to look.
    #[serde(default)]
    pub alone: bool,
    /// Nodes connected.
    pub connected: usize,
    /// Of these, those of other sites.
    #[serde(default)]
    pub connected_others: usize,
    /// Nodes in its table.
    pub table: usize,
    /// Cards known.
    pub cards: usize,
    /// Records kept for the swarm.
    pub records: usize,
    /// Blobs announced.
    pub announced: usize,
    /// Generation of the site's have-filter; 0 if there is none.
    pub filter: u64,
    /// For how many seconds the longest due announcement has been due.
    pub announce_lag: u64,
    /// Blobs whose announcement is due now.
    #[serde(default)]
    pub announce_due: usize,
    /// Of these, those that have been due for more than half a minute.
    #[serde(default)]
    pub announce_late: usize,
    /// Seconds for which others remember.
    pub announce_ttl: u64,
}

impl Dht {
    /// Starts a node on `tasks`.
    ///
    /// # Errors
    /// When there is no key, or the address can not be had.
    pub async fn start(
        config: Config,
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> anyhow::Result<Self> {
        let Some(key) = config.key.clone() else {
            anyhow::bail!("there is no swarm.key: `aptmesh key` makes one for all your machines");
        };
        let (announces, min_size) = (config.announce, config.announce_min_size);
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let (node, address) = Node::start(config, &key, metrics, tasks).await?;
        let id = node.id().into();
        tasks.spawn(node.run(ordered));
        Ok(Self { orders, key, announces, min_size, address, id })
    }

    /// Who the node is.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the node listens; of several addresses, the first.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who has a blob, as far as can be told within `budget`. `None` when the node has stopped.
    pub async fn look_up(&self, blob: &Sha256, budget: Duration) -> Option<Found> {
        let key = self.key.dht_key(blob);
        self.order(|reply| Order::LookUp { key, budget, reply }).await
    }

    /// Announces blobs of these sizes, from now on.
    pub async fn announce(&self, blobs: &[(Sha256, u64)]) -> Option<Announced> {
        self.announce_as(blobs, |keys, reply| Order::Announce { keys, reply }).await
    }

    /// Announces blobs that are being fetched, for [`PROVISIONAL_TTL`].
    pub async fn announce_provisionally(&self, blobs: &[(Sha256, u64)]) -> Option<Announced> {
        self.announce_as(blobs, |keys, reply| Order::Promise { keys, reply }).await
    }

    async fn announce_as(
        &self,
        blobs: &[(Sha256, u64)],
        order: impl FnOnce(Vec<DhtKey>, oneshot::Sender<Announced>) -> Order,
    ) -> Option<Announced> {
        if !self.announces {
            return Some(Announced { refused: blobs.len(), ..Announced::default() });
        }
        let worth = blobs.iter().filter(|(_, size)| *size >= self.min_size);
        let keys: Vec<DhtKey> = worth.map(|(blob, _)| self.key.dht_key(blob)).collect();
        let too_small = blobs.len() - keys.len();
        let announced = self.order(|reply| order(keys, reply)).await?;
        Some(Announced { too_small, ..announced })
    }

    /// Announces these blobs, and no others.
    pub async fn announce_only(
        &self,
        blobs: impl Iterator<Item = (Sha256, u64)>,
    ) -> Option<Announced> {
        let worth = blobs.filter(|(_, size)| self.announces && *size >= self.min_size);
        let keys = worth.map(|(blob, _)| self.key.dht_key(&blob)).collect();
        self.order(|reply| Order::AnnounceOnly { keys, reply }).await
    }

    /// Looks for the site's other nodes.
    pub async fn meet(&self, fellows: Vec<Fellow>) -> Option<()> {
        self.order(|reply| Order::Meet { fellows, reply }).await
    }

    /// Announces them no more, and has the others forget; tells how many were announced.
    pub async fn withdraw(&self, blobs: &[Sha256]) -> Option<usize> {
        let keys = blobs.iter().map(|blob| self.key.dht_key(blob)).collect();
        self.order(|reply| Order::Withdraw { keys, reply }).await
    }

    /// Has the others forget blobs that were announced provisionally, but for those that are announced
    /// as stored; tells how many.
    pub async fn withdraw_provisional(&self, blobs: &[Sha256]) -> Option<usize> {
        let keys = blobs.iter().map(|blob| self.key.dht_key(blob)).collect();
        self.order(|reply| Order::TakeBack { keys, reply }).await
    }

    /// Tells the others that the site's have-filter is of another generation.
    pub async fn set_filter(&self, generation: u64) -> Option<()> {
        self.order(|reply| Order::SetFilter { generation, reply }).await
    }

    /// How the node is doing. `None` when it has stopped, or is too busy to tell.
    pub async fn status(&self) -> Option<Status> {
        timeout(STATUS_MAX, self.order(|reply| Order::Status { reply })).await.ok().flatten()
    }

    /// All sites that are known.
    pub async fn peers(&self) -> Option<Vec<Peer>> {
        self.order(|reply| Order::Peers { reply }).await
    }

    /// Says goodbye and stops.
    pub async fn leave(&self) {
        // It may have stopped by itself.
        self.order(|reply| Order::Leave { reply }).await.unwrap_or(());
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// 32 random bytes, good for a key.
#[must_use]
pub fn fresh_secret() -> [u8; 32] {
    let mut secret = [0; 32];
    secret.copy_from_slice(ed25519::SecretKey::generate().as_ref());
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_not_waited_for() {
        let (orders, _never_taken) = mpsc::channel(1);
        let (key, address) = (SwarmKey::open(), SocketAddr::from(([127, 0, 0, 1], 9980)));
        let dht = Dht { orders, key, announces: true, min_size: 1, address, id: "node".into() };
        // The first waits for an answer, the second for room.
        let (one, other) = tokio::join!(dht.status(), dht.status());
        assert!(one.is_none() && other.is_none());
    }
}
