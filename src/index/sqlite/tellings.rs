//! Statements about what other sites are told.

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::content::digest::Sha256;
use crate::index::sqlite::{digest_from, signed, unsigned};
use crate::index::{CHANGES_MAX, Changes, DELTAS_KEPT, KeptFilter, NewFilter, Tellable};

pub(super) fn tellable_after(
    connection: &Connection,
    after: Option<Sha256>,
    limit: usize,
) -> rusqlite::Result<Vec<Tellable>> {
    let after: &[u8] = after.as_ref().map_or(&[], |digest| digest.as_bytes());
    connection
        .prepare_cached(
            "SELECT digest, size FROM blobs WHERE unreferenced_since IS NULL AND digest > ?1
             ORDER BY digest LIMIT ?2",
        )?
        .query_map(params![after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(Tellable { digest: digest_from(row, 0)?, size: unsigned(row, 1)? })
        })?
        .collect()
}

pub(super) fn changes_since(
    connection: &mut Connection,
    since: Option<i64>,
) -> rusqlite::Result<Changes> {
    // One state of the file for both statements.
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Deferred)?;
    let mark: i64 = transaction
        .prepare_cached("SELECT coalesce(max(id), 0) FROM changes")?
        .query_row([], |row| row.get(0))?;
    let since = since.unwrap_or(mark);
    let limit = i64::try_from(CHANGES_MAX + 1).unwrap_or(i64::MAX);
    let mut blobs: Vec<(Sha256, Option<u64>)> = transaction
        .prepare_cached(
            "SELECT changed.digest, size
             FROM (SELECT DISTINCT digest FROM changes WHERE id > ?1 LIMIT ?2) AS changed
             LEFT JOIN blobs ON blobs.digest = changed.digest AND unreferenced_since IS NULL",
        )?
        .query_map([since, limit], |row| {
            let size: Option<i64> = row.get(1)?;
            Ok((digest_from(row, 0)?, size.and_then(|size| u64::try_from(size).ok())))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let are_too_many = blobs.len() > CHANGES_MAX;
    blobs.truncate(CHANGES_MAX);
    Ok(Changes { mark: mark.to_string(), blobs, are_too_many })
}

pub(super) fn filter(connection: &Connection) -> rusqlite::Result<Option<KeptFilter>> {
    let mut parts: Vec<Vec<u8>> = connection
        .prepare_cached(
            "SELECT whole FROM (
                 SELECT -1 AS turn, whole FROM filter
                 UNION ALL SELECT generation, delta FROM filter_deltas WHERE EXISTS (SELECT 1 FROM filter))
             ORDER BY turn",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if parts.is_empty() {
        return Ok(None);
    }
    let deltas = parts.split_off(1);
    Ok(parts.pop().map(|whole| KeptFilter { whole, deltas }))
}

pub(super) fn generation(connection: &Connection) -> rusqlite::Result<u64> {
    let kept = connection
        .prepare_cached("SELECT generation FROM filter")?
        .query_row([], |row| unsigned(row, 0))
        .optional()?;
    Ok(kept.unwrap_or_default())
}

pub(super) fn keep(connection: &mut Connection, new: NewFilter<'_>) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let generation = signed(new.generation);
    match new.whole {
        Some(whole) => {
            transaction
                .prepare_cached(
                    "INSERT INTO filter (is_this, generation, whole) VALUES (1, ?1, ?2)
                     ON CONFLICT (is_this) DO UPDATE SET
                         generation = excluded.generation, whole = excluded.whole",
                )?
                .execute(params![generation, whole])?;
            transaction
                .prepare_cached(
                    "DELETE FROM filter_deltas WHERE generation <= (
                         SELECT generation FROM filter_deltas
                         ORDER BY generation DESC LIMIT 1 OFFSET ?1)",
                )?
                .execute([i64::try_from(DELTAS_KEPT).unwrap_or(i64::MAX)])?;
        }
        None => drop(
            transaction
                .prepare_cached("UPDATE filter SET generation = ?1")?
                .execute([generation])?,
        ),
    }
    if let Some(delta) = new.delta {
        transaction
            .prepare_cached("INSERT OR REPLACE INTO filter_deltas VALUES (?1, ?2)")?
            .execute(params![generation, delta])?;
    }
    transaction.commit()
}
