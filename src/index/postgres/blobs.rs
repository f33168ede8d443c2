//! Statements about what lies on this process's volume, and what it is worth.
//!
//! Several processes run them at once. So whatever locks several rows locks them in the order of
//! their keys, and of what locks rows of several tables, names come first, then blobs, then
//! volumes.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::content::digest::Sha256;
use crate::index::postgres::calls::{Calls, Parameter, Purpose, Statement};
use crate::index::postgres::rows::{column, corrupt, digest, limit_of, signed, sorted, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{Class, IndexError, NAMES_MAX, Names, ROUND_TRIP, Stored, Use, Volume};

const COLUMNS: &str =
    "digest, size, stored_at, used_at, uses, rank, checked_at, unreferenced_since";

/// Makes sure that blob `$1` of `$2` bytes is known on this volume, since `$3`; `$4` is
/// [`ROUND_TRIP`]. A new one counts as used once. That a known one is written, as it is, makes this
/// wait for who is forgetting it. Of a new row, `xmax`, who locked or replaced it, is nobody.
pub(super) fn added(own: &str) -> String {
    format!(
        "added AS (
    INSERT INTO blobs (volume, digest, size, stored_at, used_at, uses, rank, checked_at,
        unreferenced_since)
    SELECT id, $1, $2, $3, $3, 1, floor + 1.0 + $4 / ($2 + 1), $3,
        CASE WHEN EXISTS (SELECT 1 FROM expectations WHERE expectations.digest = $1)
               OR EXISTS (SELECT 1 FROM lists WHERE lists.blob = $1)
             THEN NULL ELSE $3 END
    FROM volumes WHERE id = {own}
    ON CONFLICT (digest, volume) DO UPDATE SET size = blobs.size
    RETURNING volume, size, xmax = 0 AS is_new)"
    )
}

/// Sums up what is `added`.
pub(super) const COUNT: &str = "UPDATE volumes SET blobs = blobs + 1, bytes = bytes + added.size
    FROM added WHERE added.is_new AND volumes.id = added.volume";

/// Blobs `$1` that lists name are referenced, on whatever volume. A list that is being learnt and a blob that is being
/// stored do not see each other: so both look again when they are done, and the later one sees both.
pub(super) const REFERRED: &str = "WITH referred AS MATERIALIZED (
        SELECT digest, volume FROM blobs
        WHERE digest = ANY($1) AND unreferenced_since IS NOT NULL
            AND (EXISTS (SELECT 1 FROM expectations WHERE expectations.digest = blobs.digest)
                OR EXISTS (SELECT 1 FROM lists WHERE lists.blob = blobs.digest))
        ORDER BY digest, volume FOR NO KEY UPDATE)
    UPDATE blobs SET unreferenced_since = NULL
    FROM referred WHERE blobs.digest = referred.digest AND blobs.volume = referred.volume";

pub(super) async fn add(
    calls: &Calls,
    blob: &Sha256,
    size: u64,
    now: i64,
) -> Result<(), IndexError> {
    let (blob, size) = (blob.as_bytes().as_slice(), signed(size));
    let sql = format!("WITH {} {COUNT}", added(calls.volume()));
    let statements = [
        Statement {
            sql: &sql,
            parameters: &[
                (&blob, Type::BYTEA),
                (&size, Type::INT8),
                (&now, Type::INT8),
                (&ROUND_TRIP, Type::FLOAT8),
            ],
        },
        Statement { sql: REFERRED, parameters: &[(&vec![blob], Type::BYTEA_ARRAY)] },
    ];
    calls.rows_of_last(Purpose::write("add a blob"), &statements).await.map(drop)
}

/// One statement: no blob is half forgotten. The names go first, being what the statement itself does;
/// then what it takes to count. What another volume holds keeps its names.
pub(super) async fn forget(calls: &Calls, digests: &[Sha256]) -> Result<(), IndexError> {
    let own = calls.volume();
    let sql = format!(
        "WITH names AS MATERIALIZED (
            SELECT key FROM resources
            WHERE blob = ANY($1) AND NOT EXISTS (
                SELECT 1 FROM blobs WHERE digest = resources.blob AND volume <> {own})
            ORDER BY key FOR UPDATE),
        locked AS MATERIALIZED (
            SELECT digest FROM blobs WHERE digest = ANY($1) AND volume = {own}
            ORDER BY digest FOR UPDATE),
        forgotten AS (
            DELETE FROM blobs USING locked
            WHERE blobs.digest = locked.digest AND volume = {own} RETURNING size),
        counted AS (
            UPDATE volumes SET blobs = blobs - gone.number, bytes = bytes - gone.sum
            FROM (SELECT count(*) AS number, coalesce(sum(size), 0)::BIGINT AS sum
                  FROM forgotten) AS gone
            WHERE gone.number > 0 AND volumes.id = {own})
        DELETE FROM resources USING names WHERE resources.key = names.key"
    );
    let parameters: [Parameter<'_>; 1] = [(&sorted(digests), Type::BYTEA_ARRAY)];
    calls.rows(Purpose::write("forget blobs"), &sql, &parameters).await.map(drop)
}

pub(super) async fn get(calls: &Calls, digest: &Sha256) -> Result<Option<Stored>, IndexError> {
    let purpose = Purpose::read("look up a blob");
    let parameters: [Parameter<'_>; 1] = [(&digest.as_bytes().as_slice(), Type::BYTEA)];
    Ok(page(calls, purpose, "AND digest = $1", &parameters).await?.pop())
}

pub(super) async fn after(
    calls: &Calls,
    after: Option<Sha256>,
    limit: usize,
) -> Result<Vec<Stored>, IndexError> {
    let after: &[u8] = after.as_ref().map_or(&[], |digest| digest.as_bytes());
    page(
        calls,
        Purpose::read("page through blobs"),
        "AND digest > $1 ORDER BY digest LIMIT $2",
        &[(&after, Type::BYTEA), (&limit_of(limit), Type::INT8)],
    )
    .await
}

pub(super) async fn to_check(calls: &Calls, limit: usize) -> Result<Vec<Stored>, IndexError> {
    page(
        calls,
        Purpose::read("look up blobs to check"),
        "ORDER BY checked_at, digest LIMIT $1",
        &[(&limit_of(limit), Type::INT8)],
    )
    .await
}

pub(super) async fn checked(calls: &Calls, digest: &Sha256, now: i64) -> Result<(), IndexError> {
    calls
        .rows(
            Purpose::write("note that a blob was checked"),
            &format!(
                "UPDATE blobs SET checked_at = $2 WHERE digest = $1 AND volume = {}",
                calls.volume()
            ),
            &[(&digest.as_bytes().as_slice(), Type::BYTEA), (&now, Type::INT8)],
        )
        .await
        .map(drop)
}

pub(super) async fn touch(calls: &Calls, uses: &[Use]) -> Result<(), IndexError> {
    let mut sums: BTreeMap<&[u8], (i64, i64)> = BTreeMap::new();
    for used in uses {
        let (number, at) = sums.entry(used.digest.as_bytes()).or_insert((0, used.used_at));
        *number = number.saturating_add(signed(used.uses));
        *at = used.used_at.max(*at);
    }
    let digests: Vec<&[u8]> = sums.keys().copied().collect();
    let (numbers, times): (Vec<i64>, Vec<i64>) = sums.values().copied().unzip();
    let own = calls.volume();
    calls
        .rows(
            Purpose::write("note uses"),
            &format!(
                "WITH used AS MATERIALIZED (
                 SELECT blobs.digest, told.number, told.at
                 FROM unnest($1, $2, $3) AS told (digest, number, at)
                 JOIN blobs ON blobs.digest = told.digest AND volume = {own}
                 ORDER BY blobs.digest FOR NO KEY UPDATE OF blobs)
             UPDATE blobs SET uses = uses + used.number,
                 used_at = greatest(used_at, used.at),
                 rank = floor + (uses + used.number) * (1.0 + $4 / (size + 1)),
                 unreferenced_since = CASE WHEN unreferenced_since < used.at THEN used.at
                                           ELSE unreferenced_since END
             FROM used, volumes
             WHERE blobs.digest = used.digest AND volume = {own} AND volumes.id = {own}"
            ),
            &[
                (&digests, Type::BYTEA_ARRAY),
                (&numbers, Type::INT8_ARRAY),
                (&times, Type::INT8_ARRAY),
                (&ROUND_TRIP, Type::FLOAT8),
            ],
        )
        .await
        .map(drop)
}

/// Each class has an index of its own, in the order in which its blobs go.
pub(super) async fn victims(
    calls: &Calls,
    class: Class,
    after: Option<&Stored>,
    limit: usize,
) -> Result<Vec<Stored>, IndexError> {
    let purpose = Purpose::read("choose victims");
    let digest: &[u8] = after.map_or(&[], |last| last.digest.as_bytes());
    let rank = after.map_or(f64::MIN, |last| last.rank);
    let limit = limit_of(limit);
    let by_rank: [Parameter<'_>; 3] =
        [(&rank, Type::FLOAT8), (&digest, Type::BYTEA), (&limit, Type::INT8)];
    match class {
        Class::Disused(before) => {
            let since = after.and_then(|last| last.unreferenced_since).unwrap_or(i64::MIN);
            page(
                calls,
                purpose,
                "AND unreferenced_since IS NOT NULL AND NOT pinned AND unreferenced_since < $1
                     AND (unreferenced_since, digest) > ($2, $3)
                 ORDER BY unreferenced_since, digest LIMIT $4",
                &[
                    (&before, Type::INT8),
                    (&since, Type::INT8),
                    (&digest, Type::BYTEA),
                    (&limit, Type::INT8),
                ],
            )
            .await
        }
        Class::Unreferenced => {
            page(
                calls,
                purpose,
                "AND unreferenced_since IS NOT NULL AND NOT pinned AND (rank, digest) > ($1, $2)
                 ORDER BY rank, digest LIMIT $3",
                &by_rank,
            )
            .await
        }
        Class::Referenced => {
            page(
                calls,
                purpose,
                "AND unreferenced_since IS NULL AND NOT pinned AND (rank, digest) > ($1, $2)
                 ORDER BY rank, digest LIMIT $3",
                &by_rank,
            )
            .await
        }
    }
}

pub(super) async fn raise_floor(calls: &Calls, floor: f64) -> Result<(), IndexError> {
    calls
        .rows(
            Purpose::write("raise the floor"),
            &format!("UPDATE volumes SET floor = $1 WHERE floor < $1 AND id = {}", calls.volume()),
            &[(&floor, Type::FLOAT8)],
        )
        .await
        .map(drop)
}

pub(super) async fn names(calls: &Calls, blobs: &[Sha256]) -> Result<Vec<Names>, IndexError> {
    let purpose = Purpose::read("look up blobs' names");
    let digests: Vec<&[u8]> = blobs.iter().map(|blob| &blob.as_bytes()[..]).collect();
    let rows = calls
        .rows(
            purpose,
            "SELECT at - 1, is_list, key
             FROM unnest($1) WITH ORDINALITY AS wanted (digest, at), LATERAL (
                 (SELECT false, key FROM resources WHERE blob = wanted.digest LIMIT $2)
                 UNION ALL
                 (SELECT false, key FROM expectations
                  WHERE expectations.digest = wanted.digest LIMIT $2)
                 UNION ALL
                 (SELECT true, key FROM lists WHERE blob = wanted.digest LIMIT $2)
                 UNION ALL
                 (SELECT true, lists.key FROM expectations JOIN lists ON list = id
                  WHERE expectations.digest = wanted.digest LIMIT $2)) AS names (is_list, key)",
            &[(&digests, Type::BYTEA_ARRAY), (&limit_of(NAMES_MAX), Type::INT8)],
        )
        .await?;
    let mut found = vec![(BTreeSet::new(), BTreeSet::new()); blobs.len()];
    for row in &rows {
        let (at, is_list, key) = name_from(row).map_err(corrupt(purpose))?;
        if let Some((resources, lists)) = found.get_mut(at) {
            if is_list { lists } else { resources }.insert(key);
        }
    }
    let some = |keys: BTreeSet<String>| keys.into_iter().take(NAMES_MAX).collect();
    let names = found.into_iter();
    Ok(names
        .map(|(resources, lists)| Names { resources: some(resources), lists: some(lists) })
        .collect())
}

fn name_from(row: &Row) -> Result<(usize, bool, String), Trouble> {
    let at = usize::try_from(unsigned(row, 0)?).unwrap_or(usize::MAX);
    Ok((at, column(row, 1)?, column(row, 2)?))
}

pub(super) async fn pin(calls: &Calls, digests: &[Sha256]) -> Result<(), IndexError> {
    let own = calls.volume();
    calls
        .rows(
            Purpose::write("pin blobs"),
            &format!(
                "WITH locked AS MATERIALIZED (
                     SELECT digest FROM blobs WHERE digest = ANY($1) AND volume = {own}
                     ORDER BY digest FOR NO KEY UPDATE)
                 UPDATE blobs SET pinned = true FROM locked
                 WHERE blobs.digest = locked.digest AND volume = {own}"
            ),
            &[(&sorted(digests), Type::BYTEA_ARRAY)],
        )
        .await
        .map(drop)
}

pub(super) async fn unpin(calls: &Calls) -> Result<(), IndexError> {
    let own = calls.volume();
    calls
        .rows(
            Purpose::write("unpin blobs"),
            &format!(
                "WITH locked AS MATERIALIZED (
                     SELECT digest FROM blobs WHERE pinned AND volume = {own}
                     ORDER BY digest FOR NO KEY UPDATE)
                 UPDATE blobs SET pinned = false FROM locked
                 WHERE blobs.digest = locked.digest AND volume = {own}"
            ),
            &[],
        )
        .await
        .map(drop)
}

pub(super) async fn volume(calls: &Calls) -> Result<Volume, IndexError> {
    let purpose = Purpose::read("sum up the volume");
    let sql = format!("SELECT blobs, bytes, floor FROM volumes WHERE id = {}", calls.volume());
    let rows = calls.rows(purpose, &sql, &[]).await?;
    // One that this database does not know yet is empty to it.
    let Some(row) = rows.first() else { return Ok(Volume::default()) };
    let read = || {
        Ok(Volume { blobs: unsigned(row, 0)?, bytes: unsigned(row, 1)?, floor: column(row, 2)? })
    };
    read().map_err(corrupt(purpose))
}

async fn page(
    calls: &Calls,
    purpose: Purpose,
    rest: &str,
    parameters: &[Parameter<'_>],
) -> Result<Vec<Stored>, IndexError> {
    let sql = format!("SELECT {COLUMNS} FROM blobs WHERE volume = {} {rest}", calls.volume());
    let rows = calls.rows(purpose, &sql, parameters).await?;
    rows.iter().map(stored_from).collect::<Result<_, _>>().map_err(corrupt(purpose))
}

fn stored_from(row: &Row) -> Result<Stored, Trouble> {
    Ok(Stored {
        digest: digest(row, 0)?,
        size: unsigned(row, 1)?,
        stored_at: column(row, 2)?,
        used_at: column(row, 3)?,
        uses: unsigned(row, 4)?,
        rank: column(row, 5)?,
        checked_at: column(row, 6)?,
        unreferenced_since: column(row, 7)?,
    })
}
