//! How the engine and what it rests on are doing, for operators.

use crate::engine::Engine;
use crate::engine::metrics::EngineMetrics;
use crate::index::Totals;
use crate::mirror::Account;
use crate::swarm::ranking::Standing;

/// What is told of a volume without the blobs that the index knows.
const NOT_MOUNTED: &str = "the volume may not be mounted: most blobs of the index are not on it";

impl Engine {
    /// What is wrong with the index at present, in words.
    #[must_use]
    pub fn index_trouble(&self) -> Option<&'static str> {
        self.index.trouble()
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    /// What is wrong with the volume, in words; `None` when all is well.
    #[must_use]
    pub fn store_trouble(&self) -> Option<String> {
        let failing = self.store.health().trouble().map(|why| format!("not storing: {why}"));
        let missing = || self.inspector.is_volume_missing().then(|| NOT_MOUNTED.to_owned());
        failing.or_else(missing)
    }

    /// What its site does once, and this process does now.
    #[must_use]
    pub fn duties(&self) -> Vec<&'static str> {
        self.duties.labels()
    }

    /// Who this process is to other replicas of its site, and where those are reached.
    #[must_use]
    pub fn replicas(&self) -> (&str, Vec<String>) {
        (self.leases.owner(), self.fellows.others())
    }

    /// How mirrors are doing, and bytes per second of those that brought something large lately.
    #[must_use]
    pub fn mirrors(&self) -> Vec<(Account, Option<u64>)> {
        let accounts = self.mirror.accounts().into_iter();
        accounts.map(|account| (account.clone(), self.paces.of(&account.host))).collect()
    }

    /// Whether no mirror is asked, by the operator's word.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.mirror.is_offline()
    }

    /// Whether this site is in no swarm.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.swarm.is_alone()
    }

    /// How other sites have been doing.
    #[must_use]
    pub fn peers(&self) -> Vec<Standing> {
        self.swarm.ranking.snapshot()
    }

    /// Downloads under way.
    #[must_use]
    pub fn flights(&self) -> usize {
        self.flights.count()
    }

    /// How much is stored and known; `None` if the index can not tell.
    pub async fn totals(&self) -> Option<Totals> {
        let volume = self.room.volume_if_told().await?;
        let counted = self.count.of(&*self.index).await?;
        Some(Totals { blobs: volume.blobs, bytes: volume.bytes, ..counted })
    }
}
