//! Finding the sites that have a blob, and fetching blobs from other sites and replicas. They are asked by
//! digest alone; that the bytes are right is for who asks to see. Every wait is bounded, and who fails is
//! left alone for a while.

mod away;
mod chance;
pub mod claims;
mod client;
pub mod discovery;
pub mod fellows;
pub mod filters;
pub mod peers;
pub mod ranking;
pub mod sidecar;
pub mod token;

use std::sync::Arc;

use ipnet::IpNet;
use prometheus::IntCounterVec;
use tokio_util::task::TaskTracker;
use url::Url;

use self::claims::Claims;
use self::discovery::{Discovery, Nobody};
use self::filters::Filters;
use self::peers::Peers;
use self::ranking::Ranking;
use self::sidecar::Sidecar;
use crate::content::swarm_key::SwarmKey;
use crate::telemetry::metrics::Metrics;

/// Which swarm this site is of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its key.
    pub key: SwarmKey,
    /// Where the API of this site's node is; `None`: the proxy runs the node itself.
    pub sidecar: Option<Url>,
    /// Networks of special addresses where other sites may be.
    pub allow_private: Vec<IpNet>,
}

/// The other sites: who has what, the way to them, and what is known of them.
pub struct Swarm {
    /// Who has a blob.
    pub discovery: Arc<dyn Discovery>,
    /// The way to them.
    pub peers: Arc<Peers>,
    /// How they have been doing.
    pub ranking: Arc<Ranking>,
    /// Whether what their filters say is true.
    pub claims: Arc<Claims>,
    /// Bytes of bodies received, `from` replicas and from peers.
    pub received: IntCounterVec,
    /// The way to this site's own node; `None`: there is none.
    pub node: Option<Arc<Sidecar>>,
}

impl Swarm {
    /// The swarm of this key, and of the node whose API is there, with what it needs to keep up running on
    /// `tasks`; one of nobody else, where there is none.
    ///
    /// # Errors
    /// When there is no TLS.
    pub fn new(
        of: Option<(&Config, &Url)>,
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> anyhow::Result<Self> {
        let (claims, ranking) = (Arc::new(Claims::new(metrics)), Arc::new(Ranking::new(metrics)));
        let received = metrics.counters_of(
            "aptmesh_swarm_received_bytes_total",
            "Bytes of blobs received from other replicas and other sites (peers).",
            "from",
            &["replica", "peer"],
        );
        let from_peers = received.with_label_values(&["peer"]);
        let Some((config, sidecar)) = of else {
            let peers = Arc::new(Peers::new(&SwarmKey::open(), &[], from_peers, metrics)?);
            return Ok(Self {
                discovery: Arc::new(Nobody),
                peers,
                ranking,
                claims,
                received,
                node: None,
            });
        };
        let peers = Peers::new(&config.key, &config.allow_private, from_peers, metrics)?;
        let peers = Arc::new(peers);
        let sidecar = Sidecar::start(sidecar, metrics, tasks)?;
        let filters = Filters::start(
            config.key.clone(),
            Arc::clone(&sidecar),
            Arc::clone(&peers),
            (Arc::clone(&claims), Arc::clone(&ranking)),
            metrics,
            tasks,
        );
        Ok(Self { discovery: filters, peers, ranking, claims, received, node: Some(sidecar) })
    }

    /// Whether there is nobody else in it.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.node.is_none()
    }
}
