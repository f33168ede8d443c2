//! Statements about lists and what they say.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::content::digest::{Expected, Sha256};
use crate::index::{Change, Expectation};

/// Lists that are half learnt do not count; and where lists disagree, one of them is out of date, and
/// it can not be told which.
pub(super) fn of(connection: &Connection, key: &str) -> rusqlite::Result<Option<Expectation>> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT size, digest FROM expectations JOIN lists ON list = id
         WHERE expectations.key = ?1 AND blob IS NOT NULL LIMIT 2",
    )?;
    let said: Vec<Expectation> = statement
        .query_map([key], |row| expectation_from(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(match said.as_slice() {
        [only] => Some(*only),
        _ => None,
    })
}

pub(super) fn lists_naming(connection: &Connection, key: &str) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare_cached(
            "SELECT lists.key FROM expectations JOIN lists ON list = id
             WHERE expectations.key = ?1 ORDER BY learnt_at DESC, id DESC",
        )?
        .query_map([key], |row| row.get(0))?
        .collect()
}

pub(super) fn learnt(connection: &Connection, list: &str) -> rusqlite::Result<Option<Sha256>> {
    let blob: Option<Option<Vec<u8>>> = connection
        .prepare_cached("SELECT blob FROM lists WHERE key = ?1")?
        .query_row([list], |row| row.get(0))
        .optional()?;
    Ok(blob.flatten().and_then(|blob| Sha256::from_bytes(&blob)))
}

pub(super) fn said_by(
    connection: &Connection,
    list: &str,
    after: &str,
    limit: usize,
) -> rusqlite::Result<Vec<(String, Expectation)>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "SELECT key, size, digest FROM expectations
             WHERE list = (SELECT id FROM lists WHERE key = ?1) AND key > ?2
             ORDER BY key LIMIT ?3",
        )?
        .query_map(params![list, after, limit], |row| Ok((row.get(0)?, expectation_from(row, 1)?)))?
        .collect()
}

/// One transaction: others see the change whole.
pub(super) fn learn(
    connection: &mut Connection,
    list: &str,
    change: &Change,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction
        .prepare_cached(
            "INSERT INTO lists (key, blob, learnt_at) VALUES (?1, NULL, 0)
             ON CONFLICT (key) DO UPDATE SET blob = NULL",
        )?
        .execute([list])?;
    let id: i64 = transaction
        .prepare_cached("SELECT id FROM lists WHERE key = ?1")?
        .query_row([list], |row| row.get(0))?;
    {
        let mut set = transaction.prepare_cached(
            "INSERT INTO expectations (list, key, size, digest) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (list, key) DO UPDATE SET size = excluded.size, digest = excluded.digest",
        )?;
        for (key, expectation) in &change.set {
            let size = expectation.size.map(|size| i64::try_from(size).unwrap_or(i64::MAX));
            set.execute(params![id, key, size, expectation.digest.as_bytes()])?;
        }
        let mut unset =
            transaction.prepare_cached("DELETE FROM expectations WHERE list = ?1 AND key = ?2")?;
        for key in &change.unset {
            unset.execute(params![id, key])?;
        }
    }
    transaction.commit()
}

pub(super) fn finish(
    connection: &Connection,
    list: &str,
    blob: Sha256,
    now: i64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO lists (key, blob, learnt_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET blob = excluded.blob, learnt_at = excluded.learnt_at",
        )?
        .execute(params![list, blob.as_bytes(), now])
        .map(drop)
}

fn expectation_from(row: &Row<'_>, first: usize) -> rusqlite::Result<Expectation> {
    let size: Option<i64> = row.get(first)?;
    let digest = row.get_ref(first + 1)?.as_blob()?;
    let digest = Expected::from_bytes(digest).ok_or_else(|| {
        let reason = "a digest of no known length".into();
        rusqlite::Error::FromSqlConversionFailure(first + 1, Type::Blob, reason)
    })?;
    Ok(Expectation { size: size.and_then(|size| u64::try_from(size).ok()), digest })
}
