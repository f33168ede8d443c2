//! Statements about volumes, and about the replicas that give blobs of theirs to others.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use crate::content::digest::Sha256;
use crate::index::postgres::calls::{Calls, Parameter, Purpose, Statement};
use crate::index::postgres::rows::{column, corrupt, limit_of, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{FELLOWS_MAX, Holders, IndexError, LOST_AFTER, Presence, Site};

/// Who has said nothing for longer is not asked.
const SILENT_SECONDS: f64 = 15.0;

/// The volume of this process.
pub(super) struct Own {
    pub(super) identity: String,
    /// Its number, as an expression: looked up by each statement, so that a database that was lost or
    /// restored is no matter.
    pub(super) id: String,
}

impl Own {
    pub(super) fn new(identity: u128) -> Self {
        // Digits only: it may stand in a statement.
        let identity = format!("{identity:032x}");
        Self { id: format!("(SELECT id FROM volumes WHERE identity = '{identity}')"), identity }
    }

    /// Makes it known to the database, for its first process. What was stored before volumes were told
    /// apart lies on the one whose process comes first.
    fn registered(&self) -> [String; 3] {
        let Self { identity, id } = self;
        [
            format!(
                "UPDATE volumes SET identity = '{identity}' WHERE identity IS NULL AND {id} IS NULL"
            ),
            format!(
                "INSERT INTO volumes (identity) SELECT '{identity}' WHERE {id} IS NULL
                 ON CONFLICT (identity) DO NOTHING"
            ),
            format!(
                "UPDATE volumes SET seen_at = now()
                 WHERE id = {id} AND seen_at < now() - interval '1 hour'"
            ),
        ]
    }
}

/// Before a process's first call. A database that can not be written is read all the same.
pub(super) async fn register(
    client: &Client,
    begin: &str,
    own: &Own,
) -> Result<(), tokio_postgres::Error> {
    let statements = own.registered().join(";");
    let (opened, registered, ended) = futures_util::future::join3(
        client.batch_execute(begin),
        client.batch_execute(&statements),
        client.batch_execute("COMMIT"),
    )
    .await;
    match opened.and(registered).and(ended) {
        Err(error) if error.code().is_some() => {
            tracing::debug!(%error, "the database does not take the volume");
            Ok(())
        }
        registered => registered,
    }
}

pub(super) async fn meet(calls: &Calls, here: &Presence) -> Result<Option<Site>, IndexError> {
    let purpose = Purpose::write("meet the fellows");
    let own = calls.volume();
    let [claim, insert, seen] = calls.own().registered();
    let present = format!(
        "INSERT INTO fellows (url, process, volume, seen_at)
         SELECT $1, $2, id, clock_timestamp() FROM volumes WHERE id = {own} AND $1 IS NOT NULL
         ON CONFLICT (url) DO UPDATE SET
             process = excluded.process, volume = excluded.volume, seen_at = excluded.seen_at"
    );
    let founded = "INSERT INTO site (is_this, secret)
        SELECT true, $1 WHERE NOT EXISTS (SELECT 1 FROM site) ON CONFLICT (is_this) DO NOTHING";
    let site = format!(
        "SELECT secret, extract(epoch FROM clock_timestamp())::FLOAT8, EXISTS (
             SELECT 1 FROM fellows WHERE volume <> {own}
                 AND seen_at > clock_timestamp() - make_interval(secs => $1)),
             ARRAY(SELECT url FROM fellows WHERE url IS DISTINCT FROM $2
                 AND seen_at > clock_timestamp() - make_interval(secs => $1)
                 ORDER BY url LIMIT {FELLOWS_MAX})
         FROM site"
    );
    let statements = [
        Statement { sql: &claim, parameters: &[] },
        Statement { sql: &insert, parameters: &[] },
        Statement { sql: &seen, parameters: &[] },
        Statement {
            sql: &present,
            parameters: &[(&here.url, Type::TEXT), (&here.process, Type::TEXT)],
        },
        Statement { sql: founded, parameters: &[(&here.new_secret, Type::BYTEA)] },
        Statement {
            sql: &site,
            parameters: &[(&SILENT_SECONDS, Type::FLOAT8), (&here.url, Type::TEXT)],
        },
    ];
    let rows = calls.rows_of_last(purpose, &statements).await?;
    let row = rows.first().ok_or(Trouble::Corrupt("no secret")).map_err(corrupt(purpose))?;
    site_from(row).map(Some).map_err(corrupt(purpose))
}

fn site_from(row: &Row) -> Result<Site, Trouble> {
    Ok(Site {
        secret: column(row, 0)?,
        now: column(row, 1)?,
        has_fellows: column(row, 2)?,
        others: column(row, 3)?,
    })
}

/// With those that died long ago.
pub(super) async fn part(calls: &Calls, here: &Presence) -> Result<(), IndexError> {
    calls
        .rows(
            Purpose::write("leave the fellows"),
            "WITH gone AS MATERIALIZED (
                 SELECT url FROM fellows
                 WHERE (url = $1 AND process = $2)
                     OR seen_at < clock_timestamp() - interval '1 hour'
                 ORDER BY url FOR UPDATE)
             DELETE FROM fellows USING gone WHERE fellows.url = gone.url",
            &[(&here.url, Type::TEXT), (&here.process, Type::TEXT)],
        )
        .await
        .map(drop)
}

/// Volumes that are lost: `$1` is [`LOST_AFTER`].
fn lost(own: &str) -> String {
    format!(
        "SELECT id FROM volumes WHERE identity IS NOT NULL AND id <> {own}
             AND seen_at < clock_timestamp() - make_interval(secs => $1)"
    )
}

/// As blobs are forgotten that are gone; then the files, then the volumes that have nothing left.
pub(super) async fn forget_lost(calls: &Calls, limit: usize) -> Result<bool, IndexError> {
    let purpose = Purpose::write("forget lost volumes");
    let lost = lost(calls.volume());
    let blobs = format!(
        "WITH lost AS MATERIALIZED ({lost} ORDER BY id),
        chosen AS MATERIALIZED (
            SELECT digest, volume FROM blobs WHERE volume = (
                SELECT id FROM lost
                WHERE EXISTS (SELECT 1 FROM blobs WHERE volume = id) ORDER BY id LIMIT 1)
            LIMIT $2),
        names AS MATERIALIZED (
            SELECT key FROM resources JOIN chosen ON chosen.digest = resources.blob
            WHERE NOT EXISTS (
                SELECT 1 FROM blobs
                WHERE blobs.digest = resources.blob AND blobs.volume <> chosen.volume)
            ORDER BY key FOR UPDATE OF resources),
        locked AS MATERIALIZED (
            SELECT blobs.digest, blobs.volume FROM blobs JOIN chosen
                ON blobs.digest = chosen.digest AND blobs.volume = chosen.volume
            ORDER BY blobs.digest FOR UPDATE OF blobs),
        forgotten AS (
            DELETE FROM blobs USING locked
            WHERE blobs.digest = locked.digest AND blobs.volume = locked.volume
            RETURNING blobs.volume, blobs.size),
        counted AS (
            UPDATE volumes SET blobs = blobs - gone.number, bytes = bytes - gone.sum
            FROM (SELECT volume, count(*) AS number, sum(size)::BIGINT AS sum
                  FROM forgotten GROUP BY volume) AS gone
            WHERE volumes.id = gone.volume)
        DELETE FROM resources USING names WHERE resources.key = names.key"
    );
    let files = format!(
        "WITH gone AS MATERIALIZED (
             SELECT volume, path FROM files WHERE volume IN ({lost})
             ORDER BY volume, path LIMIT $2 FOR UPDATE)
         DELETE FROM files USING gone WHERE files.volume = gone.volume AND files.path = gone.path"
    );
    let volumes = format!(
        "WITH empty AS MATERIALIZED (
             SELECT id FROM volumes WHERE id IN ({lost})
                 AND NOT EXISTS (SELECT 1 FROM blobs WHERE volume = volumes.id)
                 AND NOT EXISTS (SELECT 1 FROM files WHERE volume = volumes.id)
             ORDER BY id FOR UPDATE)
         DELETE FROM volumes USING empty WHERE volumes.id = empty.id"
    );
    let left = format!("SELECT EXISTS ({lost})");
    let seconds = LOST_AFTER.as_secs_f64();
    let after: Parameter<'_> = (&seconds, Type::FLOAT8);
    let limit = limit_of(limit);
    let bounded = [after.clone(), (&limit, Type::INT8)];
    let after = [after];
    let statements = [
        Statement { sql: &blobs, parameters: &bounded },
        Statement { sql: &files, parameters: &bounded },
        Statement { sql: &volumes, parameters: &after },
        Statement { sql: &left, parameters: &after },
    ];
    let rows = calls.rows_of_last(purpose, &statements).await?;
    let row = rows.first().ok_or(Trouble::Corrupt("no answer")).map_err(corrupt(purpose))?;
    column::<bool>(row, 0).map(|are_left| !are_left).map_err(corrupt(purpose))
}

/// Those that can be asked first, in whatever order, so that all of them are asked in turn.
pub(super) async fn holders(calls: &Calls, blob: &Sha256) -> Result<Holders, IndexError> {
    let purpose = Purpose::read("look up who holds a blob");
    let sql = format!(
        "SELECT blobs.volume = {own}, blobs.size, url
         FROM blobs JOIN volumes ON volumes.id = blobs.volume AND (blobs.volume = {own}
             OR volumes.seen_at > clock_timestamp() - make_interval(secs => $4))
         LEFT JOIN fellows ON fellows.volume = blobs.volume AND blobs.volume <> {own}
             AND fellows.seen_at > clock_timestamp() - make_interval(secs => $2)
         WHERE digest = $1 ORDER BY blobs.volume = {own} DESC, url IS NULL, random() LIMIT $3",
        own = calls.volume()
    );
    let limit = i64::try_from(FELLOWS_MAX).unwrap_or(i64::MAX).saturating_add(1);
    let rows = calls
        .rows(
            purpose,
            &sql,
            &[
                (&blob.as_bytes().as_slice(), Type::BYTEA),
                (&SILENT_SECONDS, Type::FLOAT8),
                (&limit, Type::INT8),
                (&LOST_AFTER.as_secs_f64(), Type::FLOAT8),
            ],
        )
        .await?;
    let mut holders = Holders::default();
    for row in &rows {
        add_holder(&mut holders, row).map_err(corrupt(purpose))?;
    }
    Ok(holders)
}

fn add_holder(holders: &mut Holders, row: &Row) -> Result<(), Trouble> {
    let is_ours: Option<bool> = column(row, 0)?;
    if is_ours == Some(true) {
        holders.is_ours = true;
    } else {
        holders.is_elsewhere = true;
        holders.size = Some(unsigned(row, 1)?);
        holders.urls.extend(column::<Option<String>>(row, 2)?);
    }
    Ok(())
}
