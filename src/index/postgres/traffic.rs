//! Statements about what went through.

use tokio_postgres::types::Type;

use crate::index::postgres::calls::{Calls, Purpose};
use crate::index::postgres::rows::{corrupt, signed, unsigned};
use crate::index::postgres::trouble::Trouble;
use crate::index::{IndexError, Traffic};

pub(super) async fn add(calls: &Calls, more: &Traffic) -> Result<Traffic, IndexError> {
    let purpose = Purpose::write("count traffic");
    let parts = more.parts().map(signed);
    let [mirrors, peers, replicas, store, to_peers, to_replicas] = &parts;
    let rows = calls
        .rows(
            purpose,
            "UPDATE traffic SET from_mirrors = from_mirrors + $1, from_peers = from_peers + $2,
                 from_replicas = from_replicas + $3, from_store = from_store + $4,
                 to_peers = to_peers + $5, to_replicas = to_replicas + $6
             RETURNING from_mirrors, from_peers, from_replicas, from_store, to_peers, to_replicas",
            &[
                (mirrors, Type::INT8),
                (peers, Type::INT8),
                (replicas, Type::INT8),
                (store, Type::INT8),
                (to_peers, Type::INT8),
                (to_replicas, Type::INT8),
            ],
        )
        .await?;
    let row = rows.first().ok_or(Trouble::Corrupt("no sum")).map_err(corrupt(purpose))?;
    let mut sums = [0; 6];
    for (at, sum) in sums.iter_mut().enumerate() {
        *sum = unsigned(row, at).map_err(corrupt(purpose))?;
    }
    Ok(Traffic::of_parts(sums))
}
