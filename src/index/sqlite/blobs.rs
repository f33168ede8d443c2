//! Statements about what lies on the volume, and what it is worth.

use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, Transaction, params};

use crate::content::digest::Sha256;
use crate::index::sqlite::{digest_from, signed, unsigned};
use crate::index::{Class, NAMES_MAX, Names, ROUND_TRIP, Stored, Use, Volume};

const COLUMNS: &str =
    "digest, size, stored_at, used_at, uses, rank, checked_at, unreferenced_since";

/// Makes sure that the blob is known. A new one counts as used once, now; and whether lists name it
/// is found out now, and kept up by what they learn.
pub(super) fn add(
    transaction: &Transaction<'_>,
    digest: &Sha256,
    size: u64,
    now: i64,
) -> rusqlite::Result<()> {
    let size = signed(size);
    let added = transaction
        .prepare_cached(
            "INSERT INTO blobs (digest, size, stored_at, used_at, uses, rank, checked_at,
                 unreferenced_since)
             SELECT ?1, ?2, ?3, ?3, 1, floor + 1.0 + ?4 / (?2 + 1), ?3,
                 CASE WHEN EXISTS (SELECT 1 FROM expectations WHERE digest = ?1)
                        OR EXISTS (SELECT 1 FROM lists WHERE blob = ?1)
                      THEN NULL ELSE ?3 END
             FROM volume WHERE true
             ON CONFLICT (digest) DO NOTHING",
        )?
        .execute(params![digest.as_bytes(), size, now, ROUND_TRIP])?;
    if added > 0 {
        transaction
            .prepare_cached("UPDATE volume SET blobs = blobs + 1, bytes = bytes + ?1")?
            .execute([size])?;
    }
    Ok(())
}

/// One transaction: no blob is half forgotten.
pub(super) fn forget(connection: &mut Connection, digests: &[Sha256]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let (mut blobs, mut bytes) = (0_i64, 0_i64);
    {
        let mut resources = transaction.prepare_cached("DELETE FROM resources WHERE blob = ?1")?;
        let mut forgotten =
            transaction.prepare_cached("DELETE FROM blobs WHERE digest = ?1 RETURNING size")?;
        for digest in digests {
            resources.execute([digest.as_bytes()])?;
            let size: Option<i64> =
                forgotten.query_row([digest.as_bytes()], |row| row.get(0)).optional()?;
            blobs += i64::from(size.is_some());
            bytes += size.unwrap_or_default();
        }
    }
    transaction
        .prepare_cached("UPDATE volume SET blobs = blobs - ?1, bytes = bytes - ?2")?
        .execute([blobs, bytes])?;
    transaction.commit()
}

pub(super) fn get(connection: &Connection, digest: &Sha256) -> rusqlite::Result<Option<Stored>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM blobs WHERE digest = ?1"))?
        .query_row([digest.as_bytes()], stored_from)
        .optional()
}

pub(super) fn after(
    connection: &Connection,
    after: Option<Sha256>,
    limit: usize,
) -> rusqlite::Result<Vec<Stored>> {
    let after: &[u8] = after.as_ref().map_or(&[], |digest| digest.as_bytes());
    page(connection, "WHERE digest > ?1 ORDER BY digest LIMIT ?2", params![after, limit_of(limit)])
}

pub(super) fn to_check(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<Stored>> {
    page(connection, "ORDER BY checked_at, digest LIMIT ?1", params![limit_of(limit)])
}

pub(super) fn checked(connection: &Connection, digest: &Sha256, now: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE blobs SET checked_at = ?2 WHERE digest = ?1")?
        .execute(params![digest.as_bytes(), now])
        .map(drop)
}

/// One transaction for all.
pub(super) fn touch(connection: &mut Connection, uses: &[Use]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let floor: f64 = transaction
            .prepare_cached("SELECT floor FROM volume")?
            .query_row([], |row| row.get(0))?;
        let mut touch = transaction.prepare_cached(
            "UPDATE blobs SET uses = uses + ?2,
                 used_at = CASE WHEN used_at < ?3 THEN ?3 ELSE used_at END,
                 rank = ?4 + (uses + ?2) * (1.0 + ?5 / (size + 1)),
                 unreferenced_since = CASE WHEN unreferenced_since < ?3 THEN ?3
                                           ELSE unreferenced_since END
             WHERE digest = ?1",
        )?;
        for used in uses {
            let (digest, times) = (used.digest.as_bytes(), signed(used.uses));
            touch.execute(params![digest, times, used.used_at, floor, ROUND_TRIP])?;
        }
    }
    transaction.commit()
}

/// Each class has an index of its own, in the order in which its blobs go.
pub(super) fn victims(
    connection: &Connection,
    class: Class,
    after: Option<&Stored>,
    limit: usize,
) -> rusqlite::Result<Vec<Stored>> {
    let digest: &[u8] = after.map_or(&[], |last| last.digest.as_bytes());
    let rank = after.map_or(f64::MIN, |last| last.rank);
    let limit = limit_of(limit);
    match class {
        Class::Disused(before) => {
            let since = after.and_then(|last| last.unreferenced_since).unwrap_or(i64::MIN);
            page(
                connection,
                "WHERE unreferenced_since IS NOT NULL AND pinned = 0 AND unreferenced_since < ?1
                     AND (unreferenced_since, digest) > (?2, ?3)
                 ORDER BY unreferenced_since, digest LIMIT ?4",
                params![before, since, digest, limit],
            )
        }
        Class::Unreferenced => page(
            connection,
            "WHERE unreferenced_since IS NOT NULL AND pinned = 0 AND (rank, digest) > (?1, ?2)
             ORDER BY rank, digest LIMIT ?3",
            params![rank, digest, limit],
        ),
        Class::Referenced => page(
            connection,
            "WHERE unreferenced_since IS NULL AND pinned = 0 AND (rank, digest) > (?1, ?2)
             ORDER BY rank, digest LIMIT ?3",
            params![rank, digest, limit],
        ),
    }
}

pub(super) fn raise_floor(connection: &Connection, floor: f64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE volume SET floor = ?1 WHERE floor < ?1")?
        .execute([floor])
        .map(drop)
}

pub(super) fn names(connection: &Connection, digest: &Sha256) -> rusqlite::Result<Names> {
    let keys = |statement: &str| -> rusqlite::Result<Vec<String>> {
        let mut keys: Vec<String> = connection
            .prepare_cached(statement)?
            .query_map(params![digest.as_bytes(), limit_of(NAMES_MAX)], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    };
    Ok(Names {
        resources: keys(
            "SELECT key FROM resources WHERE blob = ?1
             UNION ALL SELECT key FROM expectations WHERE digest = ?1 LIMIT ?2",
        )?,
        lists: keys(
            "SELECT key FROM lists WHERE blob = ?1
             UNION ALL
             SELECT lists.key FROM expectations JOIN lists ON list = id WHERE digest = ?1 LIMIT ?2",
        )?,
    })
}

pub(super) fn pin(connection: &mut Connection, digests: &[Sha256]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut pin =
            transaction.prepare_cached("UPDATE blobs SET pinned = 1 WHERE digest = ?1")?;
        for digest in digests {
            pin.execute([digest.as_bytes()])?;
        }
    }
    transaction.commit()
}

pub(super) fn unpin(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("UPDATE blobs SET pinned = 0 WHERE pinned = 1", []).map(drop)
}

pub(super) fn volume(connection: &Connection) -> rusqlite::Result<Volume> {
    connection.prepare_cached("SELECT blobs, bytes, floor FROM volume")?.query_row([], |row| {
        Ok(Volume { blobs: unsigned(row, 0)?, bytes: unsigned(row, 1)?, floor: row.get(2)? })
    })
}

/// A list names the blob from now on; it may not be stored.
pub(super) fn refer(transaction: &Transaction<'_>, digest: &[u8]) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE blobs SET unreferenced_since = NULL
             WHERE digest = ?1 AND unreferenced_since IS NOT NULL",
        )?
        .execute([digest])
        .map(drop)
}

/// A list does not name the blob any more: unless another one does, it is unreferenced. It may have
/// been pinned because of that list.
pub(super) fn unrefer(
    transaction: &Transaction<'_>,
    digest: &[u8],
    now: i64,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE blobs SET pinned = 0, unreferenced_since =
                 CASE WHEN EXISTS (SELECT 1 FROM expectations WHERE digest = ?1)
                        OR EXISTS (SELECT 1 FROM lists WHERE blob = ?1)
                      THEN NULL ELSE coalesce(unreferenced_since, ?2) END
             WHERE digest = ?1",
        )?
        .execute(params![digest, now])
        .map(drop)
}

fn page(
    connection: &Connection,
    rest: &str,
    parameters: &[&dyn ToSql],
) -> rusqlite::Result<Vec<Stored>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM blobs {rest}"))?
        .query_map(parameters, stored_from)?
        .collect()
}

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn stored_from(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        digest: digest_from(row, 0)?,
        size: unsigned(row, 1)?,
        stored_at: row.get(2)?,
        used_at: row.get(3)?,
        uses: unsigned(row, 4)?,
        rank: row.get(5)?,
        checked_at: row.get(6)?,
        unreferenced_since: row.get(7)?,
    })
}
