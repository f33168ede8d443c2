//! Statements about what is to be fetched before anybody asks.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::index::sqlite::{signed, unsigned};
use crate::index::{DAY, ERRAND_TERM, ERRANDS_MAX, Errand};

/// One transaction for all.
pub(super) fn add(
    connection: &mut Connection,
    errands: &[Errand],
    now: i64,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute("DELETE FROM errands WHERE added_at < ?1", [now - ERRAND_TERM])?;
    {
        let mut replace = transaction.prepare_cached("DELETE FROM errands WHERE package = ?1")?;
        let mut add = transaction.prepare_cached(
            "INSERT INTO errands (package, key, size, has_failed, added_at)
             SELECT ?1, ?2, ?3, ?4, ?5 WHERE (SELECT count(*) FROM errands) < ?6",
        )?;
        let most = i64::try_from(ERRANDS_MAX).unwrap_or(i64::MAX);
        for Errand { package, key, size, has_failed } in errands {
            replace.execute([package])?;
            add.execute(params![package, key, signed(*size), has_failed, now, most])?;
        }
    }
    transaction.commit()
}

pub(super) fn next(connection: &Connection, since: i64) -> rusqlite::Result<Option<Errand>> {
    connection
        .prepare_cached(
            "SELECT package, key, size, has_failed FROM errands
             WHERE added_at >= ?1 ORDER BY turn LIMIT 1",
        )?
        .query_row([since], errand_from)
        .optional()
}

pub(super) fn end(
    connection: &mut Connection,
    errand: &Errand,
    again: bool,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let names = params![errand.package, errand.key];
    if again {
        transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO errands (package, key, size, has_failed, added_at)
                 SELECT package, key, size, true, added_at FROM errands
                 WHERE package = ?1 AND key = ?2",
            )?
            .execute(names)?;
    } else {
        transaction
            .prepare_cached("DELETE FROM errands WHERE package = ?1 AND key = ?2")?
            .execute(names)?;
    }
    transaction.commit()
}

pub(super) fn spend(connection: &Connection, bytes: i64, now: i64) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(
            "UPDATE spent SET
                 bytes = max(0, ?1 + CASE WHEN ?2 - since < ?3 THEN bytes ELSE 0 END),
                 since = CASE WHEN ?2 - since < ?3 THEN since ELSE ?2 END
             RETURNING bytes",
        )?
        .query_row(params![bytes, now, DAY], |row| unsigned(row, 0))
}

fn errand_from(row: &Row<'_>) -> rusqlite::Result<Errand> {
    Ok(Errand {
        package: row.get(0)?,
        key: row.get(1)?,
        size: unsigned(row, 2)?,
        has_failed: row.get(3)?,
    })
}
