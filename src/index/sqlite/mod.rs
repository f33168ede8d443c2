//! The embedded index: one SQLite file, for one process.

mod actor;
mod blobs;
mod errands;
mod expectations;
mod files;
mod leases;
mod schema;
mod tellings;
mod traffic;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use self::actor::Actor;
use self::leases::Leases;
use crate::content::digest::Sha256;
use crate::content::validators::Validators;
use crate::index::metrics::{IndexMetrics, UP, UP_HELP};
use crate::index::{
    Change, Changes, Class, Entry, Errand, Expectation, Found, HashedFile, Holders, Holding, Index,
    IndexError, KeptFilter, Knowledge, Lease, Names, NewFilter, Presence, Renewal, Renewed, Site,
    Stored, Taken, Tellable, Totals, Traffic, Use, Volume, bounds_of,
};
use crate::telemetry::metrics::Metrics;

/// Where the embedded index is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// In this file, made if it is missing.
    File(PathBuf),
    /// In memory, for as long as the process lives.
    Memory,
}

/// An [`Index`] in SQLite. Look-ups have a connection of their own, so that they never wait for a
/// write; and counting, which walks over all rows, has one.
pub struct SqliteIndex {
    reader: Actor,
    writer: Actor,
    counter: Actor,
    leases: Leases,
}

impl SqliteIndex {
    /// Opens the index, bringing its schema up to date. A file that SQLite calls corrupt is set
    /// aside as `*.corrupt` and begun anew: all that is in it can be learnt again.
    ///
    /// # Errors
    /// When the file can not be opened or written, or is newer than this program.
    pub fn open(config: &Config) -> Result<Self, IndexError> {
        match config {
            Config::Memory => {
                let connection = schema::open_memory()?;
                Ok(Self::on_one(Actor::start("index", connection)?))
            }
            Config::File(path) => {
                let writer = open_or_begin_anew(path)?;
                let reader = schema::open_file(path)?;
                let counter = schema::open_file(path)?;
                Ok(Self {
                    reader: Actor::start("index-reader", reader)?,
                    writer: Actor::start("index-writer", writer)?,
                    counter: Actor::start("index-counter", counter)?,
                    leases: Leases::default(),
                })
            }
        }
    }
}

impl SqliteIndex {
    /// An index in memory with what the file at `path` knows, for when that can not be written: what
    /// is on the volume is still found. Without a readable file it begins empty.
    ///
    /// # Errors
    /// When not even an index in memory can be had.
    pub fn copy_of(path: &Path) -> Result<Self, IndexError> {
        let connection = schema::copy_to_memory(path).or_else(|error| {
            tracing::warn!(%error, source = %error.source, "beginning with an empty index");
            schema::open_memory()
        })?;
        Ok(Self::on_one(Actor::start("index", connection)?))
    }

    async fn record_where(
        &self,
        key: &str,
        entry: &Entry,
        condition: &'static str,
    ) -> Result<(), IndexError> {
        let (key, entry) = (key.to_owned(), entry.clone());
        self.writer
            .call("record a resource", move |connection| {
                let transaction = connection.transaction()?;
                blobs::add(&transaction, &entry.blob, entry.size, entry.checked_at)?;
                transaction
                    .prepare_cached(&format!(
                        "INSERT INTO resources
                             (key, blob, size, last_modified, etag, content_type, checked_at)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                         ON CONFLICT (key) DO UPDATE SET
                             blob = excluded.blob, size = excluded.size,
                             last_modified = excluded.last_modified, etag = excluded.etag,
                             content_type = excluded.content_type,
                             checked_at = excluded.checked_at
                         WHERE {condition}",
                    ))?
                    .execute(params![
                        key,
                        entry.blob.as_bytes(),
                        signed(entry.size),
                        entry.validators.last_modified,
                        entry.validators.etag,
                        entry.content_type,
                        entry.checked_at,
                    ])?;
                transaction.commit()
            })
            .await
    }

    /// Tells `metrics` of its calls.
    #[must_use]
    pub fn observed(self, metrics: &Metrics) -> Self {
        let actors = [&self.reader, &self.writer, &self.counter].map(Actor::clone);
        let is_up = move || actors.iter().all(Actor::is_well).into();
        metrics.gauge_of(UP, UP_HELP, is_up);
        let metrics = IndexMetrics::new(metrics);
        Self {
            reader: self.reader.observed(&metrics),
            writer: self.writer.observed(&metrics),
            counter: self.counter.observed(&metrics),
            ..self
        }
    }

    /// What is in memory has one connection.
    fn on_one(actor: Actor) -> Self {
        let (reader, counter) = (actor.clone(), actor.clone());
        Self { reader, counter, writer: actor, leases: Leases::default() }
    }
}

fn open_or_begin_anew(path: &Path) -> Result<Connection, IndexError> {
    match schema::open_file(path) {
        Err(error) if schema::is_corrupt(&error) => {
            let aside = path.with_extension("corrupt");
            tracing::error!(?path, ?aside, "the index is corrupt: setting it aside");
            std::fs::rename(path, &aside).map_err(|source| IndexError {
                operation: "set the corrupt index aside",
                source: source.into(),
            })?;
            schema::open_file(path)
        }
        opened => opened,
    }
}

#[async_trait]
impl Index for SqliteIndex {
    async fn find(&self, key: &str) -> Result<Found, IndexError> {
        let key = key.to_owned();
        self.reader
            .call("look up a resource", move |connection| {
                let entry = look_up(connection, &key)?;
                Ok(Found { entry, expectation: expectations::of(connection, &key)? })
            })
            .await
    }

    async fn look_up(&self, key: &str) -> Result<Option<Entry>, IndexError> {
        let key = key.to_owned();
        self.reader.call("look up a resource", move |c| look_up(c, &key)).await
    }

    async fn record(&self, key: &str, entry: &Entry) -> Result<(), IndexError> {
        self.record_where(key, entry, "true").await
    }

    async fn record_late(&self, key: &str, entry: &Entry) -> Result<(), IndexError> {
        self.record_where(key, entry, "resources.checked_at < excluded.checked_at").await
    }

    async fn confirm(&self, key: &str, blob: &Sha256, checked_at: i64) -> Result<(), IndexError> {
        let (key, blob) = (key.to_owned(), *blob);
        self.writer
            .call("confirm a resource", move |connection| {
                connection
                    .prepare_cached(
                        "UPDATE resources SET checked_at = ?3
                         WHERE key = ?1 AND blob = ?2 AND checked_at < ?3",
                    )?
                    .execute(params![key, blob.as_bytes(), checked_at])
                    .map(drop)
            })
            .await
    }

    async fn by_blob(&self, blob: &Sha256) -> Result<Option<Entry>, IndexError> {
        let blob = *blob;
        self.reader
            .call("look up a blob", move |connection| {
                let named = connection
                    .prepare_cached(
                        "SELECT blob, size, last_modified, etag, content_type, checked_at
                         FROM resources WHERE blob = ?1
                         ORDER BY last_modified IS NULL LIMIT 1",
                    )?
                    .query_row([blob.as_bytes()], entry_from)
                    .optional()?;
                match named {
                    Some(entry) => Ok(Some(entry)),
                    None => Ok(blobs::get(connection, &blob)?
                        .map(|stored| Entry::nameless(stored.digest, stored.size))),
                }
            })
            .await
    }

    async fn add_blob(&self, blob: &Sha256, size: u64, now: i64) -> Result<(), IndexError> {
        let blob = *blob;
        self.writer
            .call("add a blob", move |connection| {
                let transaction = connection.transaction()?;
                blobs::add(&transaction, &blob, size, now)?;
                transaction.commit()
            })
            .await
    }

    async fn names_below(&self, folder: &str, limit: usize) -> Result<Vec<String>, IndexError> {
        let bounds = bounds_of(folder);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.reader
            .call("look up names", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT key FROM resources
                         WHERE key > ?1 AND key < ?2 AND key NOT LIKE '%/by-hash/%'
                         ORDER BY key LIMIT ?3",
                    )?
                    .query_map(params![bounds.0, bounds.1, limit], |row| row.get(0))?
                    .collect()
            })
            .await
    }

    async fn note_absent(&self, key: &str) -> Result<(), IndexError> {
        let key = key.to_owned();
        self.writer
            .call("note what is absent", move |connection| {
                connection
                    .prepare_cached(
                        "INSERT INTO absent (key) VALUES (?1) ON CONFLICT (key) DO NOTHING",
                    )?
                    .execute([key])
                    .map(drop)
            })
            .await
    }

    async fn is_absent(&self, key: &str) -> Result<bool, IndexError> {
        let key = key.to_owned();
        self.reader
            .call("look up what is absent", move |connection| {
                connection
                    .prepare_cached("SELECT EXISTS (SELECT 1 FROM absent WHERE key = ?1)")?
                    .query_row([key], |row| row.get(0))
            })
            .await
    }

    async fn uses_below(
        &self,
        folder: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, i64)>, IndexError> {
        let (from, to) = bounds_of(folder);
        let bounds = (from.max(after.to_owned()), to);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.reader
            .call("look up uses", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT key, used_at FROM resources JOIN blobs ON digest = blob
                         WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3",
                    )?
                    .query_map(params![bounds.0, bounds.1, limit], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })?
                    .collect()
            })
            .await
    }

    async fn forget_blobs(&self, blobs: &[Sha256]) -> Result<(), IndexError> {
        let blobs = blobs.to_vec();
        self.writer.call("forget blobs", move |c| blobs::forget(c, &blobs)).await
    }

    async fn blob(&self, blob: &Sha256) -> Result<Option<Stored>, IndexError> {
        let blob = *blob;
        self.reader.call("look up a blob", move |c| blobs::get(c, &blob)).await
    }

    async fn blobs_after(
        &self,
        after: Option<Sha256>,
        limit: usize,
    ) -> Result<Vec<Stored>, IndexError> {
        self.reader.call("page through blobs", move |c| blobs::after(c, after, limit)).await
    }

    async fn blobs_to_check(&self, limit: usize) -> Result<Vec<Stored>, IndexError> {
        self.reader.call("look up blobs to check", move |c| blobs::to_check(c, limit)).await
    }

    async fn blob_checked(&self, blob: &Sha256, now: i64) -> Result<(), IndexError> {
        let blob = *blob;
        self.writer
            .call("note that a blob was checked", move |c| blobs::checked(c, &blob, now))
            .await
    }

    async fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
        let uses = uses.to_vec();
        self.writer.call("note uses", move |c| blobs::touch(c, &uses)).await
    }

    async fn victims(
        &self,
        class: Class,
        after: Option<&Stored>,
        limit: usize,
    ) -> Result<Vec<Stored>, IndexError> {
        let after = after.cloned();
        self.reader
            .call("choose victims", move |c| blobs::victims(c, class, after.as_ref(), limit))
            .await
    }

    async fn raise_floor(&self, floor: f64) -> Result<(), IndexError> {
        self.writer.call("raise the floor", move |c| blobs::raise_floor(c, floor)).await
    }

    async fn names(&self, blobs: &[Sha256]) -> Result<Vec<Names>, IndexError> {
        let blobs = blobs.to_vec();
        self.reader
            .call("look up blobs' names", move |c| {
                blobs.iter().map(|blob| blobs::names(c, blob)).collect()
            })
            .await
    }

    async fn pin(&self, blobs: &[Sha256]) -> Result<(), IndexError> {
        let blobs = blobs.to_vec();
        self.writer.call("pin blobs", move |c| blobs::pin(c, &blobs)).await
    }

    async fn unpin(&self) -> Result<(), IndexError> {
        self.writer.call("unpin blobs", |c| blobs::unpin(c)).await
    }

    async fn volume(&self) -> Result<Volume, IndexError> {
        self.reader.call("sum up the volume", |c| blobs::volume(c)).await
    }

    async fn expectation(&self, key: &str) -> Result<Option<Expectation>, IndexError> {
        let key = key.to_owned();
        self.reader.call("look up an expectation", move |c| expectations::of(c, &key)).await
    }

    async fn listed_size(&self, blob: &Sha256) -> Result<Option<u64>, IndexError> {
        let blob = *blob;
        self.reader.call("look up a size", move |c| expectations::listed_size(c, &blob)).await
    }

    async fn lists_naming(&self, key: &str) -> Result<Vec<String>, IndexError> {
        let key = key.to_owned();
        self.reader.call("look up lists", move |c| expectations::lists_naming(c, &key)).await
    }

    async fn learnt(&self, list: &str) -> Result<Option<Sha256>, IndexError> {
        let list = list.to_owned();
        self.reader.call("look up a list", move |c| expectations::learnt(c, &list)).await
    }

    async fn said_by(
        &self,
        list: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, Expectation)>, IndexError> {
        let (list, after) = (list.to_owned(), after.to_owned());
        self.writer
            .call("read a list", move |c| expectations::said_by(c, &list, &after, limit))
            .await
    }

    async fn learn(
        &self,
        under: &Lease,
        list: &str,
        change: Change,
        now: i64,
    ) -> Result<(), IndexError> {
        self.leases.admit("learn a list", under)?;
        let list = list.to_owned();
        self.writer.call("learn a list", move |c| expectations::learn(c, &list, &change, now)).await
    }

    async fn finish(
        &self,
        under: &Lease,
        list: &str,
        blob: &Sha256,
        now: i64,
    ) -> Result<(), IndexError> {
        self.leases.admit("finish a list", under)?;
        let (list, blob) = (list.to_owned(), *blob);
        self.writer.call("finish a list", move |c| expectations::finish(c, &list, blob, now)).await
    }

    async fn knowledge(&self) -> Result<Knowledge, IndexError> {
        self.reader.call("look up what is new", |c| expectations::knowledge(c)).await
    }

    async fn asked(&self, list: &str, below: Option<&str>, now: i64) -> Result<(), IndexError> {
        let (list, below) = (list.to_owned(), below.map(str::to_owned));
        self.writer
            .call("note that a list was asked for", move |c| {
                expectations::asked(c, &list, below.as_deref(), now)
            })
            .await
    }

    async fn disused_lists(&self, before: i64, limit: usize) -> Result<Vec<String>, IndexError> {
        self.reader.call("look up lists", move |c| expectations::disused(c, before, limit)).await
    }

    async fn unlearn(
        &self,
        under: &Lease,
        list: &str,
        limit: usize,
        now: i64,
    ) -> Result<bool, IndexError> {
        self.leases.admit("unlearn a list", under)?;
        let list = list.to_owned();
        self.writer
            .call("unlearn a list", move |c| expectations::unlearn(c, &list, limit, now))
            .await
    }

    async fn file(&self, path: &Path) -> Result<Option<HashedFile>, IndexError> {
        let path = path.to_owned();
        self.reader.call("look up a file", move |c| files::get(c, &path)).await
    }

    async fn files_with(
        &self,
        digest: &Sha256,
        limit: usize,
    ) -> Result<Vec<HashedFile>, IndexError> {
        let digest = *digest;
        self.reader.call("look up files", move |c| files::with(c, &digest, limit)).await
    }

    async fn files_below(
        &self,
        folder: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> Result<Vec<HashedFile>, IndexError> {
        let (folder, after) = (folder.to_owned(), after.map(Path::to_owned));
        self.reader
            .call("page through files", move |c| files::below(c, &folder, after.as_deref(), limit))
            .await
    }

    async fn record_files(&self, files: &[HashedFile]) -> Result<(), IndexError> {
        let files = files.to_vec();
        self.writer.call("record files", move |c| files::record(c, &files)).await
    }

    async fn forget_files(&self, paths: &[PathBuf]) -> Result<(), IndexError> {
        let paths = paths.to_vec();
        self.writer.call("forget files", move |c| files::forget(c, &paths)).await
    }

    fn trouble(&self) -> Option<&'static str> {
        // Writing and counting may take long where all is well.
        self.reader.is_held_up().then_some("SQLite says nothing, as if its disk were away")
    }

    async fn add_errands(&self, errands: &[Errand], now: i64) -> Result<(), IndexError> {
        let errands = errands.to_vec();
        self.writer.call("add errands", move |c| errands::add(c, &errands, now)).await
    }

    async fn next_errand(&self, since: i64) -> Result<Option<Errand>, IndexError> {
        self.reader.call("look up an errand", move |c| errands::next(c, since)).await
    }

    async fn end_errand(&self, errand: &Errand, again: bool) -> Result<(), IndexError> {
        let errand = errand.clone();
        self.writer.call("end an errand", move |c| errands::end(c, &errand, again)).await
    }

    async fn spend(&self, bytes: i64, now: i64) -> Result<u64, IndexError> {
        self.writer.call("spend bytes on errands", move |c| errands::spend(c, bytes, now)).await
    }

    async fn take(&self, name: &str, owner: &str, term: Duration) -> Result<Taken, IndexError> {
        Ok(self.leases.take(name, owner, term))
    }

    async fn renew(
        &self,
        renewals: &[Renewal],
        term: Duration,
    ) -> Result<Vec<Renewed>, IndexError> {
        Ok(self.leases.renew(renewals, term))
    }

    async fn holdings(&self, names: &[String]) -> Result<Vec<Holding>, IndexError> {
        Ok(self.leases.holdings(names))
    }

    async fn holdings_like(&self, prefix: &str) -> Result<Vec<Holding>, IndexError> {
        Ok(self.leases.holdings_like(prefix))
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), IndexError> {
        self.leases.release(leases);
        Ok(())
    }

    async fn record_under(
        &self,
        lease: &Lease,
        key: &str,
        entry: &Entry,
    ) -> Result<bool, IndexError> {
        let is_held = self.leases.is_held(lease);
        if is_held {
            self.record(key, entry).await?;
        }
        Ok(is_held)
    }

    fn volume_identity(&self) -> &'static str {
        ""
    }

    /// There is one volume, and it is ours.
    async fn forget_lost_volumes(&self, _limit: usize) -> Result<bool, IndexError> {
        Ok(true)
    }

    async fn holders(&self, blob: &Sha256) -> Result<Holders, IndexError> {
        let size = self.blob(blob).await?.map(|stored| stored.size);
        Ok(Holders { is_ours: size.is_some(), size, ..Holders::default() })
    }

    async fn meet(&self, _here: &Presence) -> Result<Option<Site>, IndexError> {
        Ok(None)
    }

    async fn part(&self, _here: &Presence) -> Result<(), IndexError> {
        Ok(())
    }

    async fn tellable_after(
        &self,
        after: Option<Sha256>,
        limit: usize,
    ) -> Result<Vec<Tellable>, IndexError> {
        self.reader
            .call("page through what may be told", move |c| {
                tellings::tellable_after(c, after, limit)
            })
            .await
    }

    async fn changes_since(&self, mark: Option<&str>) -> Result<Changes, IndexError> {
        let mark = mark.map(|mark| mark.parse().unwrap_or_default());
        self.reader.call("look up changes", move |c| tellings::changes_since(c, mark)).await
    }

    async fn filter(&self) -> Result<Option<KeptFilter>, IndexError> {
        self.reader.call("read the have-filter", |c| tellings::filter(c)).await
    }

    async fn filter_generation(&self) -> Result<u64, IndexError> {
        self.reader.call("look up the have-filter's generation", |c| tellings::generation(c)).await
    }

    async fn keep_filter(&self, under: &Lease, new: NewFilter<'_>) -> Result<(), IndexError> {
        self.leases.admit("keep the have-filter", under)?;
        let (generation, whole) = (new.generation, new.whole.map(<[u8]>::to_vec));
        let delta = new.delta.map(<[u8]>::to_vec);
        self.writer
            .call("keep the have-filter", move |connection| {
                let (whole, delta) = (whole.as_deref(), delta.as_deref());
                tellings::keep(connection, NewFilter { generation, whole, delta })
            })
            .await
    }

    async fn add_traffic(&self, more: &Traffic) -> Result<Traffic, IndexError> {
        let more = *more;
        self.writer.call("count traffic", move |c| traffic::add(c, &more)).await
    }

    async fn totals(&self) -> Result<Totals, IndexError> {
        self.counter
            .call("count resources", |connection| {
                connection.query_row(
                    "SELECT (SELECT count(*) FROM resources), blobs, bytes,
                         (SELECT count(*) FROM expectations)
                     FROM volume",
                    [],
                    |row| {
                        Ok(Totals {
                            resources: unsigned(row, 0)?,
                            blobs: unsigned(row, 1)?,
                            bytes: unsigned(row, 2)?,
                            expectations: unsigned(row, 3)?,
                        })
                    },
                )
            })
            .await
    }
}

fn look_up(connection: &Connection, key: &str) -> rusqlite::Result<Option<Entry>> {
    connection
        .prepare_cached(
            "SELECT blob, size, last_modified, etag, content_type, checked_at
             FROM resources WHERE key = ?1",
        )?
        .query_row([key], entry_from)
        .optional()
}

fn entry_from(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        blob: digest_from(row, 0)?,
        size: unsigned(row, 1)?,
        validators: Validators { last_modified: row.get(2)?, etag: row.get(3)? },
        content_type: row.get(4)?,
        checked_at: row.get(5)?,
    })
}

fn digest_from(row: &Row<'_>, column: usize) -> rusqlite::Result<Sha256> {
    let digest: Vec<u8> = row.get(column)?;
    Sha256::from_bytes(&digest).ok_or_else(|| {
        let reason = "a digest that is not 32 bytes".into();
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, reason)
    })
}

/// SQL has no unsigned numbers.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}
