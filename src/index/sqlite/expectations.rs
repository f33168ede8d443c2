//! Statements about lists and what they say.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use crate::content::digest::{Expected, Sha256};
use crate::index::sqlite::{blobs, signed, unsigned};
use crate::index::{Change, Expectation, Knowledge, bounds_of};

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

pub(super) fn listed_size(connection: &Connection, blob: &Sha256) -> rusqlite::Result<Option<u64>> {
    let size: Option<i64> = connection
        .prepare_cached(
            "SELECT size FROM expectations WHERE digest = ?1 AND size IS NOT NULL LIMIT 1",
        )?
        .query_row([blob.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(size.and_then(|size| u64::try_from(size).ok()))
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

/// One transaction: others see the change whole, and blobs are referenced by what is said.
pub(super) fn learn(
    connection: &mut Connection,
    list: &str,
    change: &Change,
    now: i64,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let learnt_from = learnt(&transaction, list)?;
    transaction
        .prepare_cached(
            "INSERT INTO lists (key, blob, learnt_at, asked_at) VALUES (?1, NULL, 0, ?2)
             ON CONFLICT (key) DO UPDATE SET blob = NULL",
        )?
        .execute(params![list, now])?;
    if let Some(blob) = learnt_from {
        blobs::unrefer(&transaction, blob.as_bytes(), now)?;
    }
    let id: i64 = transaction
        .prepare_cached("SELECT id FROM lists WHERE key = ?1")?
        .query_row([list], |row| row.get(0))?;
    for (key, expectation) in &change.set {
        set(&transaction, id, key, expectation, now)?;
    }
    for key in &change.unset {
        unset(&transaction, id, key, now)?;
    }
    transaction.commit()
}

fn set(
    transaction: &Transaction<'_>,
    list: i64,
    key: &str,
    expectation: &Expectation,
    now: i64,
) -> rusqlite::Result<()> {
    let digest = expectation.digest.as_bytes();
    let row = params![list, key, expectation.size.map(signed), digest];
    let is_new = transaction
        .prepare_cached(
            "INSERT INTO expectations (list, key, size, digest) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (list, key) DO NOTHING",
        )?
        .execute(row)?
        > 0;
    if !is_new {
        let before: Vec<u8> = transaction
            .prepare_cached("SELECT digest FROM expectations WHERE list = ?1 AND key = ?2")?
            .query_row(params![list, key], |row| row.get(0))?;
        transaction
            .prepare_cached(
                "UPDATE expectations SET size = ?3, digest = ?4 WHERE list = ?1 AND key = ?2",
            )?
            .execute(row)?;
        blobs::unrefer(transaction, &before, now)?;
    }
    blobs::refer(transaction, digest)
}

fn unset(transaction: &Transaction<'_>, list: i64, key: &str, now: i64) -> rusqlite::Result<()> {
    let before: Option<Vec<u8>> = transaction
        .prepare_cached("DELETE FROM expectations WHERE list = ?1 AND key = ?2 RETURNING digest")?
        .query_row(params![list, key], |row| row.get(0))
        .optional()?;
    before.map_or(Ok(()), |before| blobs::unrefer(transaction, &before, now))
}

pub(super) fn finish(
    connection: &mut Connection,
    list: &str,
    blob: Sha256,
    now: i64,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let before = learnt(&transaction, list)?;
    transaction
        .prepare_cached(
            "INSERT INTO lists (key, blob, learnt_at, asked_at) VALUES (?1, ?2, ?3, ?3)
             ON CONFLICT (key) DO UPDATE SET
                 blob = excluded.blob, learnt_at = excluded.learnt_at,
                 asked_at = excluded.asked_at",
        )?
        .execute(params![list, blob.as_bytes(), now])?;
    if let Some(before) = before {
        blobs::unrefer(&transaction, before.as_bytes(), now)?;
    }
    blobs::refer(&transaction, blob.as_bytes())?;
    learnt_anew(&transaction)?;
    transaction.commit()
}

fn learnt_anew(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE knowledge SET version = version + 1")?.execute([]).map(drop)
}

/// How often lists were learnt or forgotten. Nobody replaces an open file.
pub(super) fn knowledge(connection: &Connection) -> rusqlite::Result<Knowledge> {
    let mut query = connection.prepare_cached("SELECT version FROM knowledge")?;
    query.query_row([], |row| Ok(Knowledge { place: String::new(), version: unsigned(row, 0)? }))
}

pub(super) fn asked(
    connection: &Connection,
    list: &str,
    below: Option<&str>,
    now: i64,
) -> rusqlite::Result<()> {
    let (from, to) = below.map_or_else(|| (list.to_owned(), list.to_owned()), bounds_of);
    connection
        .prepare_cached(
            "UPDATE lists SET asked_at = ?4
             WHERE (key = ?1 OR (key >= ?2 AND key < ?3)) AND asked_at < ?4",
        )?
        .execute(params![list, from, to, now])
        .map(drop)
}

pub(super) fn disused(
    connection: &Connection,
    before: i64,
    limit: usize,
) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare_cached("SELECT key FROM lists WHERE asked_at < ?1 ORDER BY asked_at LIMIT ?2")?
        .query_map(params![before, i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?
        .collect()
}

pub(super) fn unlearn(
    connection: &mut Connection,
    list: &str,
    limit: usize,
    now: i64,
) -> rusqlite::Result<bool> {
    let keys: Vec<String> = connection
        .prepare_cached(
            "SELECT expectations.key FROM expectations JOIN lists ON list = id
             WHERE lists.key = ?1 LIMIT ?2",
        )?
        .query_map(params![list, i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if !keys.is_empty() {
        learn(connection, list, &Change { set: Vec::new(), unset: keys }, now)?;
        return Ok(false);
    }
    let transaction = connection.transaction()?;
    let blob = learnt(&transaction, list)?;
    transaction.prepare_cached("DELETE FROM lists WHERE key = ?1")?.execute([list])?;
    if let Some(blob) = blob {
        blobs::unrefer(&transaction, blob.as_bytes(), now)?;
    }
    learnt_anew(&transaction)?;
    transaction.commit()?;
    Ok(true)
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
