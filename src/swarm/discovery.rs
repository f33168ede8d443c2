//! Finding the sites that have a blob.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::content::digest::Sha256;

/// Who is told of at once: more are not asked for one blob.
pub const HOLDERS_MAX: usize = 32;

/// A site that may have a blob.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Its node's id: by that it is known, whatever its URLs are.
    pub node: Arc<str>,
    /// Where its blobs are to be had: any of these.
    pub urls: Arc<[Arc<str>]>,
}

/// A way to find sites, and to be found by them. None of its calls fails: who is not found costs
/// a fetch from the mirror, nothing else.
#[async_trait]
pub trait Discovery: Send + Sync {
    /// The id of this site's own node, once it is known.
    fn me(&self) -> Option<Arc<str>> {
        None
    }

    /// Who has `blob` by what is known here already; at most [`HOLDERS_MAX`]. Asks nobody.
    fn claimed(&self, blob: &Sha256) -> Vec<Holder>;

    /// Who has `blob`, or is fetching it, as far as can be found out within `budget`; at most
    /// [`HOLDERS_MAX`].
    async fn look_up(&self, blob: &Sha256, budget: Duration) -> Vec<Holder>;

    /// This site is fetching `blob`, of `size` bytes, from a mirror: others can have of it what
    /// there is.
    async fn announce(&self, blob: &Sha256, size: u64);

    /// It came to nothing.
    async fn withdraw(&self, blob: &Sha256);
}

/// A site without a swarm.
pub struct Nobody;

#[async_trait]
impl Discovery for Nobody {
    fn claimed(&self, _: &Sha256) -> Vec<Holder> {
        Vec::new()
    }

    async fn look_up(&self, _: &Sha256, _: Duration) -> Vec<Holder> {
        Vec::new()
    }

    async fn announce(&self, _: &Sha256, _: u64) {}

    async fn withdraw(&self, _: &Sha256) {}
}
