//! Statements about what other sites are told: of all volumes.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::content::digest::Sha256;
use crate::index::postgres::calls::{Calls, Purpose, Statement};
use crate::index::postgres::rows::{column, corrupt, digest, limit_of, signed, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{
    CHANGES_MAX, Changes, DELTAS_KEPT, FencedOff, IndexError, KeptFilter, Lease, NewFilter,
    Tellable,
};

/// Changes that are kept: as many as the trigger leaves that notes them.
const CHANGES_KEPT: i64 = 100_000;

pub(super) async fn tellable_after(
    calls: &Calls,
    after: Option<Sha256>,
    limit: usize,
) -> Result<Vec<Tellable>, IndexError> {
    let purpose = Purpose::read("page through what may be told");
    let after: &[u8] = after.as_ref().map_or(&[], |digest| digest.as_bytes());
    let rows = calls
        .rows(
            purpose,
            "SELECT digest, max(size) FROM blobs
             WHERE unreferenced_since IS NULL AND digest > $1
             GROUP BY digest ORDER BY digest LIMIT $2",
            &[(&after, Type::BYTEA), (&limit_of(limit), Type::INT8)],
        )
        .await?;
    let read = |row: &Row| Ok(Tellable { digest: digest(row, 0)?, size: unsigned(row, 1)? });
    rows.iter().map(read).collect::<Result<_, _>>().map_err(corrupt(purpose))
}

/// The trigger forgets one change for each that it notes. Where that was undone, the old one stays; and
/// rows that somebody has locked are going anyway.
async fn forget_old_changes(calls: &Calls) -> Result<(), IndexError> {
    let sql = "DELETE FROM changes WHERE id IN (
            SELECT id FROM changes WHERE id <= (SELECT max(id) FROM changes) - $1
            FOR UPDATE SKIP LOCKED)";
    let purpose = Purpose::write("forget old changes");
    calls.rows(purpose, sql, &[(&CHANGES_KEPT, Type::INT8)]).await?;
    Ok(())
}

/// Numbers of rows do not tell which are new: a transaction may come late with an earlier one. But what
/// the last look could see, by its snapshot, it has told.
pub(super) async fn changes_since(
    calls: &Calls,
    since: Option<&str>,
) -> Result<Changes, IndexError> {
    if since.is_none() {
        forget_old_changes(calls).await?;
    }
    let purpose = Purpose::read("look up changes");
    let limit = limit_of(CHANGES_MAX + 1);
    let rows = calls
        .rows(
            purpose,
            "WITH now AS MATERIALIZED (SELECT txid_current_snapshot()::TEXT AS mark),
             changed AS MATERIALIZED (
                 SELECT DISTINCT digest FROM changes
                 WHERE by_transaction >= txid_snapshot_xmin($1::TEXT::TXID_SNAPSHOT)
                     AND NOT txid_visible_in_snapshot(by_transaction, $1::TEXT::TXID_SNAPSHOT)
                 LIMIT $2)
             SELECT NULL::BYTEA, NULL::BIGINT, mark FROM now
             UNION ALL
             SELECT digest, (SELECT max(size) FROM blobs
                 WHERE blobs.digest = changed.digest AND unreferenced_since IS NULL), NULL
             FROM changed",
            &[(&since, Type::TEXT), (&limit, Type::INT8)],
        )
        .await?;
    let mut changes = Changes::default();
    for row in &rows {
        add_change(&mut changes, row).map_err(corrupt(purpose))?;
    }
    changes.are_too_many = changes.blobs.len() > CHANGES_MAX;
    changes.blobs.truncate(CHANGES_MAX);
    Ok(changes)
}

fn add_change(changes: &mut Changes, row: &Row) -> Result<(), Trouble> {
    if column::<Option<&[u8]>>(row, 0)?.is_none() {
        changes.mark = column(row, 2)?;
        return Ok(());
    }
    let size: Option<i64> = column(row, 1)?;
    changes.blobs.push((digest(row, 0)?, size.and_then(|size| u64::try_from(size).ok())));
    Ok(())
}

pub(super) async fn filter(calls: &Calls) -> Result<Option<KeptFilter>, IndexError> {
    let purpose = Purpose::read("read the have-filter");
    let rows = calls
        .rows(
            purpose,
            "SELECT whole FROM (
                 SELECT -1::BIGINT AS turn, whole FROM filter
                 UNION ALL
                 SELECT generation, delta FROM filter_deltas WHERE EXISTS (SELECT 1 FROM filter))
                 AS parts
             ORDER BY turn",
            &[],
        )
        .await?;
    let mut parts = rows.iter().map(|row| column::<Vec<u8>>(row, 0));
    let Some(whole) = parts.next() else { return Ok(None) };
    let read = || Ok(KeptFilter { whole: whole?, deltas: parts.collect::<Result<_, _>>()? });
    read().map(Some).map_err(corrupt(purpose))
}

pub(super) async fn generation(calls: &Calls) -> Result<u64, IndexError> {
    let purpose = Purpose::read("look up the have-filter's generation");
    let rows = calls.rows(purpose, "SELECT generation FROM filter", &[]).await?;
    let generation = rows.first().map(|row| unsigned(row, 0)).transpose();
    Ok(generation.map_err(corrupt(purpose))?.unwrap_or_default())
}

pub(super) async fn keep(
    calls: &Calls,
    under: &Lease,
    new: NewFilter<'_>,
) -> Result<(), IndexError> {
    let purpose = Purpose::write("keep the have-filter");
    let kept = match new.whole {
        Some(_) => {
            "INSERT INTO filter (is_this, generation, whole) SELECT true, $3, $4 FROM fence
             ON CONFLICT (is_this) DO UPDATE SET
                 generation = excluded.generation, whole = excluded.whole"
        }
        None => "UPDATE filter SET generation = $3 FROM fence WHERE $4::BYTEA IS NULL",
    };
    let sql = format!(
        "WITH fence AS MATERIALIZED (
             SELECT 1 FROM leases WHERE name = $1 AND generation = $2 FOR SHARE),
         kept AS ({kept}),
         added AS (
             INSERT INTO filter_deltas (generation, delta) SELECT $3, $5 FROM fence
             WHERE $5 IS NOT NULL ON CONFLICT (generation) DO NOTHING),
         old AS (
             DELETE FROM filter_deltas USING fence WHERE $4 IS NOT NULL AND generation <= (
                 SELECT generation FROM filter_deltas ORDER BY generation DESC LIMIT 1 OFFSET $6))
         SELECT 1 FROM fence"
    );
    let parameters = [
        (&under.name as _, Type::TEXT),
        (&signed(under.generation) as _, Type::INT8),
        (&signed(new.generation) as _, Type::INT8),
        (&new.whole as _, Type::BYTEA),
        (&new.delta as _, Type::BYTEA),
        (&limit_of(DELTAS_KEPT) as _, Type::INT8),
    ];
    let statement = Statement { sql: &sql, parameters: &parameters };
    let rows = calls.rows_of_last(purpose, &[statement]).await?;
    if rows.is_empty() {
        let operation = purpose.operation();
        return Err(IndexError { operation, source: FencedOff.into() });
    }
    Ok(())
}
