//! Statements about what went through.

use rusqlite::{Connection, params};

use crate::index::Traffic;
use crate::index::sqlite::{signed, unsigned};

pub(super) fn add(connection: &Connection, more: &Traffic) -> rusqlite::Result<Traffic> {
    let [mirrors, peers, replicas, store, to_peers, to_replicas] = more.parts().map(signed);
    let mut statement = connection.prepare_cached(
        "UPDATE traffic SET from_mirrors = from_mirrors + ?1, from_peers = from_peers + ?2,
             from_replicas = from_replicas + ?3, from_store = from_store + ?4,
             to_peers = to_peers + ?5, to_replicas = to_replicas + ?6
         RETURNING from_mirrors, from_peers, from_replicas, from_store, to_peers, to_replicas",
    )?;
    let parts = params![mirrors, peers, replicas, store, to_peers, to_replicas];
    statement.query_row(parts, |row| {
        let mut sums = [0; 6];
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = unsigned(row, at)?;
        }
        Ok(Traffic::of_parts(sums))
    })
}
