//! The index of a fleet: one PostgreSQL database, for all processes of a site.

mod blobs;
mod calls;
mod errands;
mod expectations;
mod files;
mod gauges;
mod health;
mod hosts;
mod leases;
mod link;
mod resources;
mod rows;
pub mod schema;
mod tellings;
mod tls;
mod traffic;
mod trouble;
mod url;
mod volumes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio_postgres::types::Type;

use self::calls::{Calls, Purpose};
pub use self::url::Config;
use crate::content::digest::Sha256;
use crate::index::{
    Change, Changes, Class, Entry, Errand, Expectation, Found, HashedFile, Holders, Holding, Index,
    IndexError, KeptFilter, Knowledge, Lease, Names, NewFilter, Presence, Renewal, Renewed, Site,
    Stored, Taken, Tellable, Totals, Traffic, Use, Volume,
};
use crate::telemetry::metrics::Metrics;

/// Rows that are counted one by one. Of larger tables, the server's own estimate is told.
const COUNTED_MAX: f64 = 1e6;

/// An [`Index`] in PostgreSQL. Calls that clients wait for fail when their time is up, and at once
/// while the server is away.
pub struct PostgresIndex {
    calls: Calls,
}

impl PostgresIndex {
    /// Connects to nobody yet: that is done by the first call, and whenever there is need.
    ///
    /// # Errors
    /// When the CA file can not be read.
    pub fn new(config: &Config) -> Result<Self, IndexError> {
        Ok(Self { calls: Calls::new(config)? })
    }

    /// Tells `metrics` of its calls and connections.
    #[must_use]
    pub fn observed(self, metrics: &Metrics) -> Self {
        Self { calls: self.calls.observed(metrics) }
    }

    /// Whether the database can be reached, and has the schema that this program works with.
    ///
    /// # Errors
    /// When not; where the schema is another, [`schema::SchemaMismatch`] is the source.
    pub async fn verify(&self) -> Result<(), IndexError> {
        let purpose = Purpose::read("use the database");
        self.calls.rows(purpose, "SELECT 1", &[]).await?;
        self.calls.warm_up().await;
        Ok(())
    }
}

#[async_trait]
impl Index for PostgresIndex {
    async fn find(&self, key: &str) -> Result<Found, IndexError> {
        resources::find(&self.calls, key).await
    }

    async fn look_up(&self, key: &str) -> Result<Option<Entry>, IndexError> {
        resources::look_up(&self.calls, key).await
    }

    async fn record(&self, key: &str, entry: &Entry) -> Result<(), IndexError> {
        resources::record(&self.calls, key, entry).await
    }

    async fn confirm(&self, key: &str, blob: &Sha256, checked_at: i64) -> Result<(), IndexError> {
        resources::confirm(&self.calls, key, blob, checked_at).await
    }

    async fn by_blob(&self, blob: &Sha256) -> Result<Option<Entry>, IndexError> {
        resources::by_blob(&self.calls, blob).await
    }

    async fn add_blob(&self, blob: &Sha256, size: u64, now: i64) -> Result<(), IndexError> {
        blobs::add(&self.calls, blob, size, now).await
    }

    async fn forget_blobs(&self, blobs: &[Sha256]) -> Result<(), IndexError> {
        blobs::forget(&self.calls, blobs).await
    }

    async fn blob(&self, blob: &Sha256) -> Result<Option<Stored>, IndexError> {
        blobs::get(&self.calls, blob).await
    }

    async fn blobs_after(
        &self,
        after: Option<Sha256>,
        limit: usize,
    ) -> Result<Vec<Stored>, IndexError> {
        blobs::after(&self.calls, after, limit).await
    }

    async fn blobs_to_check(&self, limit: usize) -> Result<Vec<Stored>, IndexError> {
        blobs::to_check(&self.calls, limit).await
    }

    async fn blob_checked(&self, blob: &Sha256, now: i64) -> Result<(), IndexError> {
        blobs::checked(&self.calls, blob, now).await
    }

    async fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
        blobs::touch(&self.calls, uses).await
    }

    async fn victims(
        &self,
        class: Class,
        after: Option<&Stored>,
        limit: usize,
    ) -> Result<Vec<Stored>, IndexError> {
        blobs::victims(&self.calls, class, after, limit).await
    }

    async fn raise_floor(&self, floor: f64) -> Result<(), IndexError> {
        blobs::raise_floor(&self.calls, floor).await
    }

    async fn names(&self, blobs: &[Sha256]) -> Result<Vec<Names>, IndexError> {
        blobs::names(&self.calls, blobs).await
    }

    async fn pin(&self, blobs: &[Sha256]) -> Result<(), IndexError> {
        blobs::pin(&self.calls, blobs).await
    }

    async fn unpin(&self) -> Result<(), IndexError> {
        blobs::unpin(&self.calls).await
    }

    async fn volume(&self) -> Result<Volume, IndexError> {
        blobs::volume(&self.calls).await
    }

    async fn names_below(&self, folder: &str, limit: usize) -> Result<Vec<String>, IndexError> {
        resources::names_below(&self.calls, folder, limit).await
    }

    async fn note_absent(&self, key: &str) -> Result<(), IndexError> {
        resources::note_absent(&self.calls, key).await
    }

    async fn is_absent(&self, key: &str) -> Result<bool, IndexError> {
        resources::is_absent(&self.calls, key).await
    }

    async fn uses_below(
        &self,
        folder: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, i64)>, IndexError> {
        resources::uses_below(&self.calls, folder, after, limit).await
    }

    async fn expectation(&self, key: &str) -> Result<Option<Expectation>, IndexError> {
        expectations::of(&self.calls, key).await
    }

    async fn listed_size(&self, blob: &Sha256) -> Result<Option<u64>, IndexError> {
        expectations::listed_size(&self.calls, blob).await
    }

    async fn lists_naming(&self, key: &str) -> Result<Vec<String>, IndexError> {
        expectations::lists_naming(&self.calls, key).await
    }

    async fn learnt(&self, list: &str) -> Result<Option<Sha256>, IndexError> {
        expectations::learnt(&self.calls, list).await
    }

    async fn said_by(
        &self,
        list: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, Expectation)>, IndexError> {
        expectations::said_by(&self.calls, list, after, limit).await
    }

    async fn learn(
        &self,
        under: &Lease,
        list: &str,
        change: Change,
        now: i64,
    ) -> Result<(), IndexError> {
        expectations::learn(&self.calls, under, list, &change, now).await
    }

    async fn finish(
        &self,
        under: &Lease,
        list: &str,
        blob: &Sha256,
        now: i64,
    ) -> Result<(), IndexError> {
        expectations::finish(&self.calls, under, list, blob, now).await
    }

    async fn asked(&self, list: &str, below: Option<&str>, now: i64) -> Result<(), IndexError> {
        expectations::asked(&self.calls, list, below, now).await
    }

    async fn disused_lists(&self, before: i64, limit: usize) -> Result<Vec<String>, IndexError> {
        expectations::disused(&self.calls, before, limit).await
    }

    async fn unlearn(
        &self,
        under: &Lease,
        list: &str,
        limit: usize,
        now: i64,
    ) -> Result<bool, IndexError> {
        expectations::unlearn(&self.calls, under, list, limit, now).await
    }

    async fn file(&self, path: &Path) -> Result<Option<HashedFile>, IndexError> {
        files::get(&self.calls, path).await
    }

    async fn files_with(
        &self,
        digest: &Sha256,
        limit: usize,
    ) -> Result<Vec<HashedFile>, IndexError> {
        files::with(&self.calls, digest, limit).await
    }

    async fn files_below(
        &self,
        folder: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> Result<Vec<HashedFile>, IndexError> {
        files::below(&self.calls, folder, after, limit).await
    }

    async fn record_files(&self, files: &[HashedFile]) -> Result<(), IndexError> {
        files::record(&self.calls, files).await
    }

    async fn forget_files(&self, paths: &[PathBuf]) -> Result<(), IndexError> {
        files::forget(&self.calls, paths).await
    }

    async fn knowledge(&self) -> Result<Knowledge, IndexError> {
        expectations::knowledge(&self.calls).await
    }

    async fn record_late(&self, key: &str, entry: &Entry) -> Result<(), IndexError> {
        resources::record_late(&self.calls, key, entry).await
    }

    fn trouble(&self) -> Option<&'static str> {
        self.calls.trouble()
    }

    async fn add_errands(&self, errands: &[Errand], now: i64) -> Result<(), IndexError> {
        errands::add(&self.calls, errands, now).await
    }

    async fn next_errand(&self, since: i64) -> Result<Option<Errand>, IndexError> {
        errands::next(&self.calls, since).await
    }

    async fn end_errand(&self, errand: &Errand, again: bool) -> Result<(), IndexError> {
        errands::end(&self.calls, errand, again).await
    }

    async fn spend(&self, bytes: i64, now: i64) -> Result<u64, IndexError> {
        errands::spend(&self.calls, bytes, now).await
    }

    async fn take(&self, name: &str, owner: &str, term: Duration) -> Result<Taken, IndexError> {
        leases::take(&self.calls, name, owner, term).await
    }

    async fn renew(
        &self,
        renewals: &[Renewal],
        term: Duration,
    ) -> Result<Vec<Renewed>, IndexError> {
        leases::renew(&self.calls, renewals, term).await
    }

    async fn holdings(&self, names: &[String]) -> Result<Vec<Holding>, IndexError> {
        leases::holdings(&self.calls, names).await
    }

    async fn holdings_like(&self, prefix: &str) -> Result<Vec<Holding>, IndexError> {
        leases::holdings_like(&self.calls, prefix).await
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), IndexError> {
        leases::release(&self.calls, leases).await
    }

    async fn record_under(
        &self,
        lease: &Lease,
        key: &str,
        entry: &Entry,
    ) -> Result<bool, IndexError> {
        resources::record_under(&self.calls, lease, key, entry).await
    }

    fn volume_identity(&self) -> &str {
        &self.calls.own().identity
    }

    async fn forget_lost_volumes(&self, limit: usize) -> Result<bool, IndexError> {
        volumes::forget_lost(&self.calls, limit).await
    }

    async fn holders(&self, blob: &Sha256) -> Result<Holders, IndexError> {
        volumes::holders(&self.calls, blob).await
    }

    async fn meet(&self, here: &Presence) -> Result<Option<Site>, IndexError> {
        volumes::meet(&self.calls, here).await
    }

    async fn part(&self, here: &Presence) -> Result<(), IndexError> {
        volumes::part(&self.calls, here).await
    }

    async fn tellable_after(
        &self,
        after: Option<Sha256>,
        limit: usize,
    ) -> Result<Vec<Tellable>, IndexError> {
        tellings::tellable_after(&self.calls, after, limit).await
    }

    async fn changes_since(&self, mark: Option<&str>) -> Result<Changes, IndexError> {
        tellings::changes_since(&self.calls, mark).await
    }

    async fn filter(&self) -> Result<Option<KeptFilter>, IndexError> {
        tellings::filter(&self.calls).await
    }

    async fn filter_generation(&self) -> Result<u64, IndexError> {
        tellings::generation(&self.calls).await
    }

    async fn keep_filter(&self, under: &Lease, new: NewFilter<'_>) -> Result<(), IndexError> {
        tellings::keep(&self.calls, under, new).await
    }

    async fn add_traffic(&self, more: &Traffic) -> Result<Traffic, IndexError> {
        traffic::add(&self.calls, more).await
    }

    async fn totals(&self) -> Result<Totals, IndexError> {
        let purpose = Purpose::read("count resources");
        let rows = self
            .calls
            .rows(
                purpose,
                &format!(
                    "SELECT resources, blobs, bytes, expectations FROM volumes,
                         LATERAL (SELECT CASE WHEN reltuples > $1 THEN reltuples::BIGINT
                             ELSE (SELECT count(*) FROM resources) END
                          FROM pg_class WHERE oid = 'resources'::REGCLASS) AS r (resources),
                         LATERAL (SELECT CASE WHEN reltuples > $1 THEN reltuples::BIGINT
                             ELSE (SELECT count(*) FROM expectations) END
                          FROM pg_class WHERE oid = 'expectations'::REGCLASS) AS e (expectations)
                     WHERE id = {}",
                    self.calls.volume()
                ),
                &[(&COUNTED_MAX, Type::FLOAT8)],
            )
            .await?;
        let number = |at| match rows.first() {
            Some(row) => rows::unsigned(row, at).map_err(rows::corrupt(purpose)),
            None => Ok(0),
        };
        Ok(Totals {
            resources: number(0)?,
            blobs: number(1)?,
            bytes: number(2)?,
            expectations: number(3)?,
        })
    }
}
