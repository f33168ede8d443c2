//! The nodes of one site: each has a lease in the index, which tells where it is and passes away with it.
//! So they find each other through the site's own database, and know who announces what.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::dht::{Dht, Fellow};
use crate::index::{Index, IndexError, Lease, Renewal, Taken};

/// How often a node says that it is there.
const MEET: Duration = Duration::from_secs(10);
/// For how long that counts: when a node dies, others have its share within 40 s.
const TERM: Duration = Duration::from_secs(30);
/// What the leases of nodes are called.
const NODE: &str = "node:";
/// The right to build the site's have-filter.
const FILTER: &str = "filter";
/// Nodes of a site that are taken note of.
const NODES_MAX: usize = 64;

/// What a node's lease tells.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    addresses: Vec<SocketAddr>,
    /// Whether it has a share of what the site announces.
    announces: bool,
}

/// This node, and those that are there besides.
#[derive(Default)]
pub(super) struct Nodes {
    me: String,
    lease: Option<Lease>,
    filter: Option<Lease>,
    /// Those that announce.
    announcing: Vec<String>,
    met_at: Option<Instant>,
}

impl Nodes {
    /// Says that this node is there, and looks for the others, when it is time.
    pub(super) async fn meet(
        &mut self,
        index: &dyn Index,
        dht: &Dht,
        announces: bool,
    ) -> Result<(), IndexError> {
        if self.met_at.is_some_and(|at| at.elapsed() < MEET) {
            return Ok(());
        }
        // One that has stopped is nowhere.
        let Some(status) = dht.status().await else { return Ok(()) };
        self.me = status.node;
        let mut fellows = Vec::new();
        let mut is_alone = true;
        self.announcing.clear();
        for other in index.holdings_like(NODE).await?.into_iter().take(NODES_MAX) {
            let told = other.note.and_then(|note| serde_json::from_str::<Note>(&note).ok());
            let id = other.lease.name.strip_prefix(NODE).unwrap_or_default();
            let Some(told) = told.filter(|_| id != self.me) else { continue };
            is_alone = false;
            fellows.push(Fellow { node: id.to_owned(), addresses: told.addresses });
            self.announcing.extend(told.announces.then(|| id.to_owned()));
        }
        // What one announces that reaches nobody, nobody hears of: others have its share, then.
        let is_heard = is_alone || status.connected > 0;
        let note = Note { addresses: status.addresses, announces: announces && is_heard };
        self.hold(index, &note, announces).await?;
        dht.meet(fellows).await;
        self.met_at = Some(Instant::now());
        Ok(())
    }

    /// Holds the leases: this node's own, and if nobody else has it, the one to build the filter.
    async fn hold(
        &mut self,
        index: &dyn Index,
        note: &Note,
        announces: bool,
    ) -> Result<(), IndexError> {
        let name = format!("{NODE}{}", self.me);
        if self.lease.is_none() {
            self.lease = take(index, &name, &self.me).await?;
        }
        if self.filter.is_none() && announces {
            self.filter = take(index, FILTER, &self.me).await?;
        }
        let told = serde_json::to_string(note).unwrap_or_default();
        let own = self.lease.iter().map(|lease| (lease, Some(told.clone())));
        let held = own.chain(self.filter.iter().map(|lease| (lease, None)));
        let renewals: Vec<Renewal> =
            held.map(|(lease, note)| Renewal { lease: lease.clone(), note }).collect();
        let renewed = index.renew(&renewals, TERM).await?;
        let is_held = |lease: &Lease| renewed.iter().any(|renewed| renewed.name == lease.name);
        self.lease = self.lease.take().filter(is_held);
        self.filter = self.filter.take().filter(is_held);
        Ok(())
    }

    /// This node's id.
    pub(super) fn me(&self) -> &str {
        &self.me
    }

    /// The other nodes of the site that announce.
    pub(super) fn announcing(&self) -> impl Iterator<Item = &str> {
        self.announcing.iter().map(String::as_str)
    }

    /// What this node builds the have-filter under, if it is the one that does.
    pub(super) const fn builders_lease(&self) -> Option<&Lease> {
        self.filter.as_ref()
    }

    /// Another node has it by now.
    pub(super) fn let_go_of_filter(&mut self) {
        self.filter = None;
    }

    /// Has the others take over at once.
    pub(super) async fn leave(&mut self, index: &dyn Index) {
        let held: Vec<Lease> = self.lease.take().into_iter().chain(self.filter.take()).collect();
        if let Err(error) = index.release(&held).await {
            tracing::debug!(%error, source = %error.source, "others will notice later");
        }
    }
}

async fn take(index: &dyn Index, name: &str, owner: &str) -> Result<Option<Lease>, IndexError> {
    Ok(match index.take(name, owner, TERM).await? {
        Taken::Granted { lease, .. } => Some(lease),
        Taken::Held => None,
    })
}
