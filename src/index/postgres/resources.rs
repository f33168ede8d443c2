//! Statements about what resources were.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::content::digest::Sha256;
use crate::content::validators::Validators;
use crate::index::postgres::blobs::{COUNT, REFERRED, added};
use crate::index::postgres::calls::{Calls, Parameter, Purpose, Statement};
use crate::index::postgres::expectations::{EXPECTED, agreed};
use crate::index::postgres::leases::FENCE;
use crate::index::postgres::rows::{column, corrupt, digest, limit_of, signed, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{Entry, Found, IndexError, Lease, ROUND_TRIP, bounds_of};

/// What is known of `$1`.
const KNOWN: &str = "SELECT blob, size, last_modified, etag, content_type, checked_at
     FROM resources WHERE key = $1";

pub(super) async fn look_up(calls: &Calls, key: &str) -> Result<Option<Entry>, IndexError> {
    let purpose = Purpose::read("look up a resource");
    let rows = calls.rows(purpose, KNOWN, &[(&key, Type::TEXT)]).await?;
    rows.first().map(entry_from).transpose().map_err(corrupt(purpose))
}

pub(super) async fn find(calls: &Calls, key: &str) -> Result<Found, IndexError> {
    let purpose = Purpose::read("look up a resource");
    let parameters: &[Parameter<'_>] = &[(&key, Type::TEXT)];
    let statements = [KNOWN, EXPECTED].map(|sql| Statement { sql, parameters });
    let answers = calls.rows_of_each(purpose, &statements).await?;
    let [known, expected] = answers.as_slice() else { return Ok(Found::default()) };
    let found = || {
        let entry = known.first().map(entry_from).transpose()?;
        Ok(Found { entry, expectation: agreed(expected)? })
    };
    found().map_err(corrupt(purpose))
}

/// What becomes of a key, the new row being `$1` to `$8`.
const RECORDED: &str = "ON CONFLICT (key) DO UPDATE SET
        blob = excluded.blob, size = excluded.size,
        last_modified = excluded.last_modified, etag = excluded.etag,
        content_type = excluded.content_type, checked_at = excluded.checked_at";

const INTO: &str =
    "INSERT INTO resources (key, blob, size, last_modified, etag, content_type, checked_at)";

/// Its clients have their bytes by then, or follow the flight that still has them.
pub(super) async fn record(calls: &Calls, key: &str, entry: &Entry) -> Result<(), IndexError> {
    record_where(calls, key, entry, "true").await
}

/// Not over what is as new.
pub(super) async fn record_late(calls: &Calls, key: &str, entry: &Entry) -> Result<(), IndexError> {
    record_where(calls, key, entry, "resources.checked_at < excluded.checked_at").await
}

async fn record_where(
    calls: &Calls,
    key: &str,
    entry: &Entry,
    condition: &str,
) -> Result<(), IndexError> {
    let added = added(calls.volume());
    let sql = format!(
        "WITH {added}, counted AS ({COUNT}) {INTO} VALUES ($5, $1, $2, $6, $7, $8, $3)
         {RECORDED} WHERE {condition}"
    );
    recorded(calls, &sql, key, entry, &[]).await.map(drop)
}

/// The blob lies on the volume, whether the lease is lost or not.
pub(super) async fn record_under(
    calls: &Calls,
    lease: &Lease,
    key: &str,
    entry: &Entry,
) -> Result<bool, IndexError> {
    let added = added(calls.volume());
    let sql = format!(
        "WITH {FENCE}, {added}, counted AS ({COUNT}) {INTO}
         SELECT $5, $1, $2, $6, $7, $8, $3 FROM fence {RECORDED} RETURNING 1"
    );
    let fence: [Parameter<'_>; 2] =
        [(&lease.name, Type::TEXT), (&signed(lease.generation), Type::INT8)];
    recorded(calls, &sql, key, entry, &fence).await
}

/// The name first, then the blob, then the volume: all that lock more than one go in this order.
async fn recorded(
    calls: &Calls,
    sql: &str,
    key: &str,
    entry: &Entry,
    fence: &[Parameter<'_>],
) -> Result<bool, IndexError> {
    let (blob, size) = (entry.blob.as_bytes().as_slice(), signed(entry.size));
    let Validators { last_modified, etag } = &entry.validators;
    let mut parameters: Vec<Parameter<'_>> = vec![
        (&blob, Type::BYTEA),
        (&size, Type::INT8),
        (&entry.checked_at, Type::INT8),
        (&ROUND_TRIP, Type::FLOAT8),
        (&key, Type::TEXT),
        (last_modified, Type::INT8),
        (etag, Type::TEXT),
        (&entry.content_type, Type::TEXT),
    ];
    parameters.extend_from_slice(fence);
    let statements = [
        Statement { sql, parameters: &parameters },
        Statement { sql: REFERRED, parameters: &[(&vec![blob], Type::BYTEA_ARRAY)] },
    ];
    let purpose = Purpose::write("record a resource");
    let answers = calls.rows_of_each(purpose, &statements).await?;
    Ok(answers.first().is_some_and(|rows| !rows.is_empty()))
}

pub(super) async fn confirm(
    calls: &Calls,
    key: &str,
    blob: &Sha256,
    checked_at: i64,
) -> Result<(), IndexError> {
    calls
        .rows(
            Purpose::write("confirm a resource"),
            "UPDATE resources SET checked_at = $3
             WHERE key = $1 AND blob = $2 AND checked_at < $3",
            &[
                (&key, Type::TEXT),
                (&blob.as_bytes().as_slice(), Type::BYTEA),
                (&checked_at, Type::INT8),
            ],
        )
        .await
        .map(drop)
}

/// With a mark, if there is one of that; under no name, if there is no name; on whatever volume.
pub(super) async fn by_blob(calls: &Calls, blob: &Sha256) -> Result<Option<Entry>, IndexError> {
    let purpose = Purpose::read("look up a blob");
    let rows = calls
        .rows(
            purpose,
            "(SELECT blob, size, last_modified, etag, content_type, checked_at,
                  CASE WHEN last_modified IS NULL THEN 1 ELSE 0 END AS place
              FROM resources WHERE blob = $1 ORDER BY place LIMIT 1)
             UNION ALL
             SELECT digest, size, NULL, NULL, NULL, 0, 2 FROM blobs WHERE digest = $1
             ORDER BY place LIMIT 1",
            &[(&blob.as_bytes().as_slice(), Type::BYTEA)],
        )
        .await?;
    rows.first().map(entry_from).transpose().map_err(corrupt(purpose))
}

pub(super) async fn names_below(
    calls: &Calls,
    folder: &str,
    limit: usize,
) -> Result<Vec<String>, IndexError> {
    let purpose = Purpose::read("look up names");
    let (from, to) = bounds_of(folder);
    let rows = calls
        .rows(
            purpose,
            "SELECT key FROM resources
             WHERE key > $1 AND key < $2 AND key NOT LIKE '%/by-hash/%'
             ORDER BY key LIMIT $3",
            &[(&from, Type::TEXT), (&to, Type::TEXT), (&limit_of(limit), Type::INT8)],
        )
        .await?;
    rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>().map_err(corrupt(purpose))
}

pub(super) async fn uses_below(
    calls: &Calls,
    folder: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<(String, i64)>, IndexError> {
    let purpose = Purpose::read("look up uses");
    let (from, to) = bounds_of(folder);
    let rows = calls
        .rows(
            purpose,
            "SELECT key, max(used_at) FROM resources JOIN blobs ON digest = blob
             WHERE key > $1 AND key < $2 GROUP BY key ORDER BY key LIMIT $3",
            &[
                (&from.as_str().max(after), Type::TEXT),
                (&to, Type::TEXT),
                (&limit_of(limit), Type::INT8),
            ],
        )
        .await?;
    let uses = rows.iter().map(|row| Ok((column(row, 0)?, column(row, 1)?)));
    uses.collect::<Result<_, _>>().map_err(corrupt(purpose))
}

pub(super) async fn note_absent(calls: &Calls, key: &str) -> Result<(), IndexError> {
    calls
        .rows(
            Purpose::write("note what is absent"),
            "INSERT INTO absent (key) VALUES ($1) ON CONFLICT (key) DO NOTHING",
            &[(&key, Type::TEXT)],
        )
        .await
        .map(drop)
}

pub(super) async fn is_absent(calls: &Calls, key: &str) -> Result<bool, IndexError> {
    let purpose = Purpose::read("look up what is absent");
    let found =
        calls.rows(purpose, "SELECT 1 FROM absent WHERE key = $1", &[(&key, Type::TEXT)]).await?;
    Ok(!found.is_empty())
}

fn entry_from(row: &Row) -> Result<Entry, Trouble> {
    Ok(Entry {
        blob: digest(row, 0)?,
        size: unsigned(row, 1)?,
        validators: Validators { last_modified: column(row, 2)?, etag: column(row, 3)? },
        content_type: column(row, 4)?,
        checked_at: column(row, 5)?,
    })
}
