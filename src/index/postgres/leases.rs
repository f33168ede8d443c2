//! Statements about leases. Rows are locked in the order of their names.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::index::postgres::calls::{Calls, Parameter, Purpose};
use crate::index::postgres::rows::{column, corrupt, signed, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{Holding, IndexError, Lease, Renewal, Renewed, Taken, WANTED_SECONDS};

/// Nothing, unless lease `$9` of generation `$10` is held: its next holder waits until what follows
/// is done.
pub(super) const FENCE: &str = "fence AS MATERIALIZED (
    SELECT 1 FROM leases WHERE name = $9 AND generation = $10 FOR SHARE)";

pub(super) async fn take(
    calls: &Calls,
    name: &str,
    owner: &str,
    term: Duration,
) -> Result<Taken, IndexError> {
    let purpose = Purpose::write("take a lease").urgent();
    let rows = calls
        .rows(
            purpose,
            "INSERT INTO leases (name, owner, generation, expires_at)
             VALUES ($1, $2, (extract(epoch FROM clock_timestamp()) * 1000000)::BIGINT,
                 clock_timestamp() + make_interval(secs => $3))
             ON CONFLICT (name) DO UPDATE SET
                 owner = excluded.owner, expires_at = excluded.expires_at,
                 generation = greatest(leases.generation + 1, excluded.generation)
             WHERE leases.owner = excluded.owner OR leases.expires_at < clock_timestamp()
             RETURNING generation, note",
            &[(&name, Type::TEXT), (&owner, Type::TEXT), (&term.as_secs_f64(), Type::FLOAT8)],
        )
        .await?;
    let granted = |row: &Row| {
        let lease = Lease { name: name.to_owned(), generation: unsigned(row, 0)? };
        Ok(Taken::Granted { lease, note: column(row, 1)? })
    };
    let taken = rows.first().map(granted).transpose().map_err(corrupt(purpose))?;
    Ok(taken.unwrap_or(Taken::Held))
}

pub(super) async fn renew(
    calls: &Calls,
    renewals: &[Renewal],
    term: Duration,
) -> Result<Vec<Renewed>, IndexError> {
    let purpose = Purpose::write("renew leases").urgent();
    let names: Vec<&str> = renewals.iter().map(|one| one.lease.name.as_str()).collect();
    let generations: Vec<i64> = renewals.iter().map(|one| signed(one.lease.generation)).collect();
    let notes: Vec<Option<&str>> = renewals.iter().map(|one| one.note.as_deref()).collect();
    let parameters: [Parameter<'_>; 5] = [
        (&names, Type::TEXT_ARRAY),
        (&generations, Type::INT8_ARRAY),
        (&notes, Type::TEXT_ARRAY),
        (&term.as_secs_f64(), Type::FLOAT8),
        (&WANTED_SECONDS, Type::FLOAT8),
    ];
    let rows = calls
        .rows(
            purpose,
            "WITH ours AS MATERIALIZED (
                 SELECT leases.name, told.note
                 FROM leases JOIN unnest($1, $2, $3) AS told (name, generation, note)
                     ON leases.name = told.name AND leases.generation = told.generation
                 ORDER BY leases.name FOR NO KEY UPDATE OF leases)
             UPDATE leases SET
                 expires_at = clock_timestamp() + make_interval(secs => $4),
                 note = coalesce(ours.note, leases.note)
             FROM ours WHERE leases.name = ours.name
             RETURNING leases.name,
                 coalesce(wanted_at > clock_timestamp() - make_interval(secs => $5), false)",
            &parameters,
        )
        .await?;
    let renewed =
        rows.iter().map(|row| Ok(Renewed { name: column(row, 0)?, is_wanted: column(row, 1)? }));
    renewed.collect::<Result<_, _>>().map_err(corrupt(purpose))
}

/// That somebody looked is noted once a second, and not where a row is being renewed.
pub(super) async fn holdings(calls: &Calls, names: &[String]) -> Result<Vec<Holding>, IndexError> {
    let purpose = Purpose::read("look at leases").urgent();
    let rows = calls
        .rows(
            purpose,
            "WITH unnoted AS MATERIALIZED (
                 SELECT name FROM leases
                 WHERE name = ANY($1) AND expires_at > clock_timestamp()
                     AND coalesce(wanted_at < clock_timestamp() - interval '1 second', true)
                 ORDER BY name FOR NO KEY UPDATE SKIP LOCKED),
             noted AS (
                 UPDATE leases SET wanted_at = clock_timestamp()
                 FROM unnoted WHERE leases.name = unnoted.name)
             SELECT name, generation, note FROM leases
             WHERE name = ANY($1) AND expires_at > clock_timestamp()",
            &[(&names, Type::TEXT_ARRAY)],
        )
        .await?;
    rows.iter().map(holding_from).collect::<Result<_, _>>().map_err(corrupt(purpose))
}

pub(super) async fn holdings_like(calls: &Calls, prefix: &str) -> Result<Vec<Holding>, IndexError> {
    let purpose = Purpose::read("look at leases");
    let rows = calls
        .rows(
            purpose,
            "SELECT name, generation, note FROM leases
             WHERE starts_with(name, $1) AND expires_at > clock_timestamp()",
            &[(&prefix, Type::TEXT)],
        )
        .await?;
    rows.iter().map(holding_from).collect::<Result<_, _>>().map_err(corrupt(purpose))
}

/// With those of processes that died long ago.
pub(super) async fn release(calls: &Calls, leases: &[Lease]) -> Result<(), IndexError> {
    let names: Vec<&str> = leases.iter().map(|lease| lease.name.as_str()).collect();
    let generations: Vec<i64> = leases.iter().map(|lease| signed(lease.generation)).collect();
    calls
        .rows(
            Purpose::write("release leases"),
            "WITH gone AS MATERIALIZED (
                 SELECT name FROM leases
                 WHERE (name, generation) IN (SELECT * FROM unnest($1, $2))
                     OR expires_at < clock_timestamp() - interval '1 hour'
                 ORDER BY name FOR UPDATE)
             DELETE FROM leases USING gone WHERE leases.name = gone.name",
            &[(&names, Type::TEXT_ARRAY), (&generations, Type::INT8_ARRAY)],
        )
        .await
        .map(drop)
}

fn holding_from(row: &Row) -> Result<Holding, Trouble> {
    let lease = Lease { name: column(row, 0)?, generation: unsigned(row, 1)? };
    Ok(Holding { lease, note: column(row, 2)? })
}
