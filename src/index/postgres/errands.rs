//! Statements about what is to be fetched before anybody asks.

use std::collections::BTreeMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::index::postgres::calls::{Calls, Purpose, Statement};
use crate::index::postgres::rows::{column, corrupt, limit_of, signed, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{DAY, ERRAND_TERM, ERRANDS_MAX, Errand, IndexError};

/// Locked in the order of packages.
pub(super) async fn add(calls: &Calls, errands: &[Errand], now: i64) -> Result<(), IndexError> {
    // Of two of one package, the last counts.
    let errands: BTreeMap<&str, &Errand> =
        errands.iter().map(|errand| (errand.package.as_str(), errand)).collect();
    let packages: Vec<&str> = errands.keys().copied().collect();
    let keys: Vec<&str> = errands.values().map(|errand| errand.key.as_str()).collect();
    let sizes: Vec<i64> = errands.values().map(|errand| signed(errand.size)).collect();
    let failed: Vec<bool> = errands.values().map(|errand| errand.has_failed).collect();
    let replaced = Statement {
        sql: "WITH gone AS MATERIALIZED (
                  SELECT package FROM errands WHERE package = ANY($1) OR added_at < $2
                  ORDER BY package FOR UPDATE)
              DELETE FROM errands USING gone WHERE errands.package = gone.package",
        parameters: &[(&packages, Type::TEXT_ARRAY), (&(now - ERRAND_TERM), Type::INT8)],
    };
    let added = Statement {
        sql: "INSERT INTO errands (package, key, size, has_failed, added_at)
              SELECT package, key, size, has_failed, $5
              FROM unnest($1, $2, $3, $4) AS new (package, key, size, has_failed)
              WHERE (SELECT count(*) FROM errands) < $6
              ON CONFLICT (package) DO NOTHING",
        parameters: &[
            (&packages, Type::TEXT_ARRAY),
            (&keys, Type::TEXT_ARRAY),
            (&sizes, Type::INT8_ARRAY),
            (&failed, Type::BOOL_ARRAY),
            (&now, Type::INT8),
            (&limit_of(ERRANDS_MAX), Type::INT8),
        ],
    };
    let purpose = Purpose::write("add errands");
    calls.rows_of_each(purpose, &[replaced, added]).await.map(drop)
}

pub(super) async fn next(calls: &Calls, since: i64) -> Result<Option<Errand>, IndexError> {
    let purpose = Purpose::read("look up an errand");
    let rows = calls
        .rows(
            purpose,
            "SELECT package, key, size, has_failed FROM errands
             WHERE added_at >= $1 ORDER BY turn LIMIT 1",
            &[(&since, Type::INT8)],
        )
        .await?;
    rows.first().map(errand_from).transpose().map_err(corrupt(purpose))
}

pub(super) async fn end(calls: &Calls, errand: &Errand, again: bool) -> Result<(), IndexError> {
    let sql = if again {
        "UPDATE errands SET has_failed = true, turn = DEFAULT WHERE package = $1 AND key = $2"
    } else {
        "DELETE FROM errands WHERE package = $1 AND key = $2"
    };
    let purpose = Purpose::write("end an errand");
    calls
        .rows(purpose, sql, &[(&errand.package, Type::TEXT), (&errand.key, Type::TEXT)])
        .await
        .map(drop)
}

pub(super) async fn spend(calls: &Calls, bytes: i64, now: i64) -> Result<u64, IndexError> {
    let purpose = Purpose::write("spend bytes on errands");
    let rows = calls
        .rows(
            purpose,
            "UPDATE spent SET
                 bytes = greatest(0, $1 + CASE WHEN $2 - since < $3 THEN bytes ELSE 0 END),
                 since = CASE WHEN $2 - since < $3 THEN since ELSE $2 END
             RETURNING bytes",
            &[(&bytes, Type::INT8), (&now, Type::INT8), (&DAY, Type::INT8)],
        )
        .await?;
    let row = rows.first().ok_or(Trouble::Corrupt("no sum")).map_err(corrupt(purpose))?;
    unsigned(row, 0).map_err(corrupt(purpose))
}

fn errand_from(row: &Row) -> Result<Errand, Trouble> {
    Ok(Errand {
        package: column(row, 0)?,
        key: column(row, 1)?,
        size: unsigned(row, 2)?,
        has_failed: column(row, 3)?,
    })
}
