//! Statements about lists and what they say.
//!
//! Of all processes, one at a time changes what lists say, for one batch: what a blob's last list
//! unsays could not be told otherwise. And of one list, only who has the lease: that is looked at last,
//! so that who renews it waits for a commit only, as does who takes it over.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use crate::content::digest::{Expected, Sha256};
use crate::index::postgres::blobs::REFERRED;
use crate::index::postgres::calls::{Calls, Parameter, Purpose, Statement, transact};
use crate::index::postgres::rows::{column, corrupt, expectation, limit_of, signed, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{Change, Expectation, IndexError, Knowledge, Lease, bounds_of};

/// Begins a change of what lists say: who else wants to waits. It is known again soon what a crash of
/// the server loses of it, so that nobody has to wait for its disk.
const LEARNING: &str = "SET LOCAL synchronous_commit = off;
    SELECT pg_advisory_xact_lock(x'6170746d65736802'::BIGINT)";

/// Nothing, where the lease is lost; else its next holder waits until the transaction is over.
const FENCE: &str = "SELECT 1 FROM leases WHERE name = $1 AND generation = $2 FOR SHARE";

const LEARNT_ANEW: &str = "UPDATE knowledge SET version = version + 1";

/// What is expected of `$1`. Lists that are half learnt do not count; and where lists disagree, one of
/// them is out of date, and it can not be told which.
pub(super) const EXPECTED: &str =
    "SELECT DISTINCT size, digest FROM expectations JOIN lists ON list = id
     WHERE expectations.key = $1 AND blob IS NOT NULL LIMIT 2";

pub(super) async fn of(calls: &Calls, key: &str) -> Result<Option<Expectation>, IndexError> {
    let purpose = Purpose::read("look up an expectation");
    let rows = calls.rows(purpose, EXPECTED, &[(&key, Type::TEXT)]).await?;
    agreed(&rows).map_err(corrupt(purpose))
}

/// What all rows of [`EXPECTED`] say.
pub(super) fn agreed(rows: &[Row]) -> Result<Option<Expectation>, Trouble> {
    match rows {
        [only] => expectation(only, 0).map(Some),
        _ => Ok(None),
    }
}

pub(super) async fn lists_naming(calls: &Calls, key: &str) -> Result<Vec<String>, IndexError> {
    keys(
        calls,
        Purpose::read("look up lists"),
        "SELECT lists.key FROM expectations JOIN lists ON list = id
         WHERE expectations.key = $1 ORDER BY learnt_at DESC, id DESC",
        &[(&key, Type::TEXT)],
    )
    .await
}

pub(super) async fn listed_size(calls: &Calls, blob: &Sha256) -> Result<Option<u64>, IndexError> {
    let purpose = Purpose::read("look up a size");
    let sql = "SELECT size FROM expectations WHERE digest = $1 AND size IS NOT NULL LIMIT 1";
    let rows = calls.rows(purpose, sql, &[(&&blob.as_bytes()[..], Type::BYTEA)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let size: i64 = column(row, 0).map_err(corrupt(purpose))?;
    Ok(u64::try_from(size).ok())
}

pub(super) async fn learnt(calls: &Calls, list: &str) -> Result<Option<Sha256>, IndexError> {
    let purpose = Purpose::read("look up a list");
    let sql = "SELECT blob FROM lists WHERE key = $1";
    let rows = calls.rows(purpose, sql, &[(&list, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let blob: Option<&[u8]> = column(row, 0).map_err(corrupt(purpose))?;
    Ok(blob.and_then(Sha256::from_bytes))
}

pub(super) async fn said_by(
    calls: &Calls,
    list: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<(String, Expectation)>, IndexError> {
    let purpose = Purpose::read("read a list");
    let rows = calls
        .rows(
            purpose,
            "SELECT key, size, digest FROM expectations
             WHERE list = (SELECT id FROM lists WHERE key = $1) AND key > $2
             ORDER BY key LIMIT $3",
            &[(&list, Type::TEXT), (&after, Type::TEXT), (&limit_of(limit), Type::INT8)],
        )
        .await?;
    let said = rows.iter().map(|row| Ok((column(row, 0)?, expectation(row, 1)?)));
    said.collect::<Result<_, _>>().map_err(corrupt(purpose))
}

/// One transaction: others see the change whole, and blobs are referenced by what is said.
pub(super) async fn learn(
    calls: &Calls,
    under: &Lease,
    list: &str,
    change: &Change,
    now: i64,
) -> Result<(), IndexError> {
    let purpose = Purpose::write("learn a list");
    let begin = &calls.beginning();
    calls
        .run(purpose, || async move {
            let connection = calls.connection().await?;
            let mut batch = Batch::begin(&connection, begin, now).await?;
            let id = batch.open(list).await?;
            batch.set(id, &change.set).await?;
            batch.unset(id, &change.unset).await?;
            let named = batch.commit(under).await?;
            look_again(&connection, begin, &named).await?;
            connection.give_back();
            Ok(())
        })
        .await
}

pub(super) async fn finish(
    calls: &Calls,
    under: &Lease,
    list: &str,
    blob: &Sha256,
    now: i64,
) -> Result<(), IndexError> {
    let purpose = Purpose::write("finish a list");
    let begin = &calls.beginning();
    calls
        .run(purpose, || async move {
            let connection = calls.connection().await?;
            let mut batch = Batch::begin(&connection, begin, now).await?;
            batch.finish(list, blob).await?;
            let named = batch.commit(under).await?;
            look_again(&connection, begin, &named).await?;
            connection.give_back();
            Ok(())
        })
        .await
}

pub(super) async fn unlearn(
    calls: &Calls,
    under: &Lease,
    list: &str,
    limit: usize,
    now: i64,
) -> Result<bool, IndexError> {
    let purpose = Purpose::write("unlearn a list");
    let some = keys(
        calls,
        purpose,
        "SELECT expectations.key FROM expectations JOIN lists ON list = id
         WHERE lists.key = $1 LIMIT $2",
        &[(&list, Type::TEXT), (&limit_of(limit), Type::INT8)],
    )
    .await?;
    if !some.is_empty() {
        learn(calls, under, list, &Change { set: Vec::new(), unset: some }, now).await?;
        return Ok(false);
    }
    let begin = &calls.beginning();
    calls
        .run(purpose, || async move {
            let connection = calls.connection().await?;
            let mut batch = Batch::begin(&connection, begin, now).await?;
            batch.forget(list).await?;
            batch.commit(under).await?;
            connection.give_back();
            Ok(true)
        })
        .await
}

pub(super) async fn asked(
    calls: &Calls,
    list: &str,
    below: Option<&str>,
    now: i64,
) -> Result<(), IndexError> {
    let (from, to) = below.map_or_else(|| (list.to_owned(), list.to_owned()), bounds_of);
    calls
        .rows(
            Purpose::write("note that a list was asked for"),
            "WITH locked AS MATERIALIZED (
                 SELECT id FROM lists
                 WHERE (key = $1 OR (key >= $2 AND key < $3)) AND asked_at < $4
                 ORDER BY id FOR NO KEY UPDATE)
             UPDATE lists SET asked_at = $4 FROM locked
             WHERE lists.id = locked.id AND asked_at < $4",
            &[(&list, Type::TEXT), (&from, Type::TEXT), (&to, Type::TEXT), (&now, Type::INT8)],
        )
        .await
        .map(drop)
}

pub(super) async fn disused(
    calls: &Calls,
    before: i64,
    limit: usize,
) -> Result<Vec<String>, IndexError> {
    keys(
        calls,
        Purpose::read("look up lists"),
        "SELECT key FROM lists WHERE asked_at < $1 ORDER BY asked_at LIMIT $2",
        &[(&before, Type::INT8), (&limit_of(limit), Type::INT8)],
    )
    .await
}

/// How often lists were learnt or forgotten; and in which database (recreated ones have another number),
/// in which file of it (restored tables have another one) of which server since when (no backup of files, and
/// no standby, takes its place without a start), as which volume (a database that was not ready yet when we
/// came has heard of it later, and took nothing until then).
pub(super) async fn knowledge(calls: &Calls) -> Result<Knowledge, IndexError> {
    let purpose = Purpose::read("look up what is new");
    let sql = format!(
        "SELECT version, concat_ws(' ',
            (SELECT oid FROM pg_database WHERE datname = current_database()),
            pg_relation_filenode('knowledge'), extract(epoch FROM pg_postmaster_start_time()), {})
        FROM knowledge",
        calls.volume()
    );
    let rows = calls.rows(purpose, &sql, &[]).await?;
    let row = rows.first().ok_or(Trouble::Corrupt("no version")).map_err(corrupt(purpose))?;
    let read = || Ok(Knowledge { version: unsigned(row, 0)?, place: column(row, 1)? });
    read().map_err(corrupt(purpose))
}

async fn keys(
    calls: &Calls,
    purpose: Purpose,
    sql: &str,
    parameters: &[Parameter<'_>],
) -> Result<Vec<String>, IndexError> {
    let rows = calls.rows(purpose, sql, parameters).await?;
    rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>().map_err(corrupt(purpose))
}

/// After the commit; see [`REFERRED`].
async fn look_again(client: &Client, begin: &str, named: &[Vec<u8>]) -> Result<(), Trouble> {
    let again = Statement { sql: REFERRED, parameters: &[(&named, Type::BYTEA_ARRAY)] };
    transact(client, begin, &again).await?;
    Ok(())
}

/// A change of what lists say, on its way.
struct Batch<'a> {
    client: &'a Client,
    now: i64,
    /// Digests that lists name or named; whether one of them does not any more.
    changed: BTreeMap<Vec<u8>, bool>,
}

impl<'a> Batch<'a> {
    async fn begin(client: &'a Client, begin: &str, now: i64) -> Result<Self, Trouble> {
        client.batch_execute(&format!("{begin}; {LEARNING}")).await?;
        Ok(Self { client, now, changed: BTreeMap::new() })
    }

    /// The list's number; it does not count as learnt any more.
    async fn open(&mut self, list: &str) -> Result<i64, Trouble> {
        let row = self
            .client
            .query_typed_one(
                "WITH before AS MATERIALIZED (SELECT blob FROM lists WHERE key = $1)
                 INSERT INTO lists (key, blob, learnt_at, asked_at) VALUES ($1, NULL, 0, $2)
                 ON CONFLICT (key) DO UPDATE SET blob = NULL
                 RETURNING id, (SELECT blob FROM before)",
                &[(&list, Type::TEXT), (&self.now, Type::INT8)],
            )
            .await?;
        self.unnamed(&row, 1)?;
        column(&row, 0)
    }

    async fn set(&mut self, list: i64, said: &[(String, Expectation)]) -> Result<(), Trouble> {
        // Of two entries of one name, the last counts.
        let said: BTreeMap<&str, &Expectation> =
            said.iter().map(|(key, expectation)| (key.as_str(), expectation)).collect();
        let keys: Vec<&str> = said.keys().copied().collect();
        let sizes: Vec<Option<i64>> = said.values().map(|said| said.size.map(signed)).collect();
        let digests: Vec<&[u8]> = said.values().map(|said| said.digest.as_bytes()).collect();
        let before = self
            .client
            .query_typed(
                "WITH before AS MATERIALIZED (
                     SELECT expectations.digest FROM unnest($2) AS said (key)
                     JOIN expectations ON list = $1 AND expectations.key = said.key),
                 written AS (
                     INSERT INTO expectations (list, key, size, digest)
                     SELECT $1, * FROM unnest($2, $3, $4)
                     ON CONFLICT (list, key) DO UPDATE SET
                         size = excluded.size, digest = excluded.digest)
                 SELECT digest FROM before",
                &[
                    (&list, Type::INT8),
                    (&keys, Type::TEXT_ARRAY),
                    (&sizes, Type::INT8_ARRAY),
                    (&digests, Type::BYTEA_ARRAY),
                ],
            )
            .await?;
        for row in &before {
            self.unnamed(row, 0)?;
        }
        for expectation in said.values() {
            if matches!(expectation.digest, Expected::Sha256(_)) {
                self.changed.entry(expectation.digest.as_bytes().to_vec()).or_insert(false);
            }
        }
        Ok(())
    }

    async fn unset(&mut self, list: i64, keys: &[String]) -> Result<(), Trouble> {
        if keys.is_empty() {
            return Ok(());
        }
        let before = self
            .client
            .query_typed(
                "DELETE FROM expectations WHERE list = $1 AND key = ANY($2) RETURNING digest",
                &[(&list, Type::INT8), (&keys, Type::TEXT_ARRAY)],
            )
            .await?;
        for row in &before {
            self.unnamed(row, 0)?;
        }
        Ok(())
    }

    async fn finish(&mut self, list: &str, blob: &Sha256) -> Result<(), Trouble> {
        let digest = blob.as_bytes().as_slice();
        let row = self
            .client
            .query_typed_one(
                "WITH before AS MATERIALIZED (SELECT blob FROM lists WHERE key = $1)
                 INSERT INTO lists (key, blob, learnt_at, asked_at) VALUES ($1, $2, $3, $3)
                 ON CONFLICT (key) DO UPDATE SET
                     blob = excluded.blob, learnt_at = excluded.learnt_at,
                     asked_at = excluded.asked_at
                 RETURNING (SELECT blob FROM before)",
                &[(&list, Type::TEXT), (&digest, Type::BYTEA), (&self.now, Type::INT8)],
            )
            .await?;
        self.unnamed(&row, 0)?;
        self.changed.entry(digest.to_vec()).or_insert(false);
        self.client.batch_execute(LEARNT_ANEW).await?;
        Ok(())
    }

    async fn forget(&mut self, list: &str) -> Result<(), Trouble> {
        let gone = self
            .client
            .query_typed("DELETE FROM lists WHERE key = $1 RETURNING blob", &[(&list, Type::TEXT)])
            .await?;
        for row in &gone {
            self.unnamed(row, 0)?;
        }
        self.client.batch_execute(LEARNT_ANEW).await?;
        Ok(())
    }

    /// A list does not name this digest any more, if there is one.
    fn unnamed(&mut self, row: &Row, at: usize) -> Result<(), Trouble> {
        let digest: Option<Vec<u8>> = column(row, at)?;
        if let Some(digest) = digest {
            self.changed.insert(digest, true);
        }
        Ok(())
    }

    /// Settles which blobs are referenced now, on all volumes. One that a list does not name any more may have been
    /// pinned because of that list. The digests that were looked at.
    async fn commit(self, under: &Lease) -> Result<Vec<Vec<u8>>, Trouble> {
        let (digests, unnamed): (Vec<Vec<u8>>, Vec<bool>) = self.changed.into_iter().unzip();
        self.client
            .query_typed(
                "WITH changed AS MATERIALIZED (
                     SELECT blobs.digest, blobs.volume, said.unnamed
                     FROM unnest($1, $2) AS said (digest, unnamed)
                     JOIN blobs ON blobs.digest = said.digest
                     WHERE said.unnamed OR unreferenced_since IS NOT NULL
                     ORDER BY blobs.digest, blobs.volume FOR NO KEY UPDATE OF blobs)
                 UPDATE blobs SET pinned = pinned AND NOT changed.unnamed,
                     unreferenced_since = CASE
                         WHEN EXISTS (SELECT 1 FROM expectations
                                      WHERE expectations.digest = blobs.digest)
                           OR EXISTS (SELECT 1 FROM lists WHERE lists.blob = blobs.digest)
                         THEN NULL ELSE coalesce(unreferenced_since, $3) END
                 FROM changed
                 WHERE blobs.digest = changed.digest AND blobs.volume = changed.volume",
                &[
                    (&digests, Type::BYTEA_ARRAY),
                    (&unnamed, Type::BOOL_ARRAY),
                    (&self.now, Type::INT8),
                ],
            )
            .await?;
        let fence: [Parameter<'_>; 2] =
            [(&under.name, Type::TEXT), (&signed(under.generation), Type::INT8)];
        let held = self.client.query_typed_opt(FENCE, &fence).await?;
        if held.is_none() {
            return Err(Trouble::FencedOff);
        }
        self.client.batch_execute("COMMIT").await?;
        Ok(digests)
    }
}
