//! The embedded index: one SQLite file, for one process.

mod actor;
mod expectations;
mod schema;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use self::actor::Actor;
use crate::content::digest::Sha256;
use crate::content::validators::Validators;
use crate::index::{Change, Entry, Expectation, Index, IndexError, Totals};

/// Where the embedded index is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// In this file, made if it is missing.
    File(PathBuf),
    /// In memory, for as long as the process lives.
    Memory,
}

/// An [`Index`] in SQLite. Look-ups have a connection of their own, so that they never wait for a
/// write.
pub struct SqliteIndex {
    reader: Actor,
    writer: Actor,
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
                let actor = Actor::start("index", connection)?;
                Ok(Self { reader: actor.clone(), writer: actor })
            }
            Config::File(path) => {
                let writer = open_or_begin_anew(path)?;
                let reader = schema::open_file(path)?;
                Ok(Self {
                    reader: Actor::start("index-reader", reader)?,
                    writer: Actor::start("index-writer", writer)?,
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
        let actor = Actor::start("index", connection)?;
        Ok(Self { reader: actor.clone(), writer: actor })
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
    async fn look_up(&self, key: &str) -> Result<Option<Entry>, IndexError> {
        let key = key.to_owned();
        self.reader
            .call("look up a resource", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT blob, size, last_modified, etag, content_type, checked_at
                         FROM resources WHERE key = ?1",
                    )?
                    .query_row([key], entry_from)
                    .optional()
            })
            .await
    }

    async fn record(&self, key: &str, entry: &Entry) -> Result<(), IndexError> {
        let (key, entry) = (key.to_owned(), entry.clone());
        self.writer
            .call("record a resource", move |connection| {
                connection
                    .prepare_cached(
                        "INSERT INTO resources
                             (key, blob, size, last_modified, etag, content_type, checked_at)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                         ON CONFLICT (key) DO UPDATE SET
                             blob = excluded.blob, size = excluded.size,
                             last_modified = excluded.last_modified, etag = excluded.etag,
                             content_type = excluded.content_type,
                             checked_at = excluded.checked_at",
                    )?
                    .execute(params![
                        key,
                        entry.blob.as_bytes(),
                        i64::try_from(entry.size).unwrap_or(i64::MAX),
                        entry.validators.last_modified,
                        entry.validators.etag,
                        entry.content_type,
                        entry.checked_at,
                    ])
                    .map(drop)
            })
            .await
    }

    async fn confirm(&self, key: &str, blob: &Sha256, checked_at: i64) -> Result<(), IndexError> {
        let (key, blob) = (key.to_owned(), *blob);
        self.writer
            .call("confirm a resource", move |connection| {
                connection
                    .prepare_cached(
                        "UPDATE resources SET checked_at = ?3 WHERE key = ?1 AND blob = ?2",
                    )?
                    .execute(params![key, blob.as_bytes(), checked_at])
                    .map(drop)
            })
            .await
    }

    async fn forget_blob(&self, blob: &Sha256) -> Result<(), IndexError> {
        let blob = *blob;
        self.writer
            .call("forget a blob", move |connection| {
                connection
                    .prepare_cached("DELETE FROM resources WHERE blob = ?1")?
                    .execute([blob.as_bytes()])
                    .map(drop)
            })
            .await
    }

    async fn by_blob(&self, blob: &Sha256) -> Result<Option<Entry>, IndexError> {
        let blob = *blob;
        self.reader
            .call("look up a blob", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT blob, size, last_modified, etag, content_type, checked_at
                         FROM resources WHERE blob = ?1
                         ORDER BY last_modified IS NULL LIMIT 1",
                    )?
                    .query_row([blob.as_bytes()], entry_from)
                    .optional()
            })
            .await
    }

    async fn names_below(&self, folder: &str, limit: usize) -> Result<Vec<String>, IndexError> {
        // The slash at the end makes all names below sort before the next character.
        let bounds = (folder.to_owned(), format!("{}0", folder.trim_end_matches('/')));
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

    async fn expectation(&self, key: &str) -> Result<Option<Expectation>, IndexError> {
        let key = key.to_owned();
        self.reader.call("look up an expectation", move |c| expectations::of(c, &key)).await
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

    async fn learn(&self, list: &str, change: Change) -> Result<(), IndexError> {
        let list = list.to_owned();
        self.writer.call("learn a list", move |c| expectations::learn(c, &list, &change)).await
    }

    async fn finish(&self, list: &str, blob: &Sha256, now: i64) -> Result<(), IndexError> {
        let (list, blob) = (list.to_owned(), *blob);
        self.writer.call("finish a list", move |c| expectations::finish(c, &list, blob, now)).await
    }

    async fn totals(&self) -> Result<Totals, IndexError> {
        self.reader
            .call("count resources", |connection| {
                connection.query_row(
                    "SELECT (SELECT count(*) FROM resources), count(*), coalesce(sum(size), 0),
                         (SELECT count(*) FROM expectations)
                     FROM (SELECT max(size) AS size FROM resources GROUP BY blob)",
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

fn entry_from(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let blob: Vec<u8> = row.get(0)?;
    let blob = Sha256::from_bytes(&blob).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(
            0,
            rusqlite::types::Type::Blob,
            "a digest that is not 32 bytes".into(),
        )
    })?;
    Ok(Entry {
        blob,
        size: unsigned(row, 1)?,
        validators: Validators { last_modified: row.get(2)?, etag: row.get(3)? },
        content_type: row.get(4)?,
        checked_at: row.get(5)?,
    })
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}
