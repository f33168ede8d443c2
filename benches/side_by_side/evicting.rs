//! Evicting: what it costs to choose and to remove victims in a large store, and what requests notice
//! of it.

use std::sync::Arc;
use std::time::Instant;

use aptmesh::content::digest::Sha256;
use aptmesh::engine::volume::evict::{Evictor, Mode};
use aptmesh::engine::volume::pins::Pin;
use aptmesh::index::sqlite::{Config, SqliteIndex};
use aptmesh::index::{Index, ROUND_TRIP};
use aptmesh::store::{self, Store};
use aptmesh::telemetry::metrics::Metrics;

use crate::kit::{self, File, Mirror, Proxy};
use crate::table::{Table, median};

const BLOBS: u64 = 1_000_000;
const GIGABYTE: u64 = 1_000_000_000;
const FILES: usize = 300;
const SIZE: usize = 1_000_000;

pub fn run() {
    victims();
    churn();
}

fn victims() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index: Arc<dyn Index> = Arc::new(SqliteIndex::open(&Config::File(path.clone())).unwrap());
    fill(&path);
    let store = Arc::new(Store::open(&store::Config { dir: folder.path().to_owned() }));
    let evictor =
        |pins: &[Pin]| Evictor::new(pins, &index, &store, &Arc::default(), &Metrics::default());
    let (plain, pinning) = (evictor(&[]), evictor(&[Pin::Suite("no-such-suite".to_owned())]));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut table = Table::new(
        &format!("Victims among {BLOBS} blobs of 20 kB to 2 MB (SQLite)"),
        &["", "ms per GB freed"],
    );
    for (name, evictor, mode) in [
        ("choosing", &plain, Mode::Rehearsal),
        ("choosing, with pins to look at", &pinning, Mode::Rehearsal),
        ("choosing, removing, forgetting", &plain, Mode::Real),
    ] {
        let times = (0..10).map(|_| {
            let begun = Instant::now();
            let freed = runtime.block_on(evictor.evict(GIGABYTE, mode, None)).unwrap();
            begun.elapsed().as_secs_f64() * 1e3 / (freed as f64 / GIGABYTE as f64)
        });
        table.row(&[name.to_owned(), format!("{:.2}", median(times.collect()))]);
    }
    table.print();
}

/// A third is referenced by no list, a third of that for long.
fn fill(path: &std::path::Path) {
    let mut connection = rusqlite::Connection::open(path).unwrap();
    let transaction = connection.transaction().unwrap();
    {
        let mut insert =
            transaction.prepare("INSERT INTO blobs VALUES (?, ?, 1, 1, 1, ?, 1, ?, 0)").unwrap();
        for number in 0..BLOBS {
            let size = 20_000 + number * 7_919 % 1_980_000;
            let since = match number % 9 {
                0 => Some(1),
                3 | 6 => Some(i64::MAX),
                _ => None,
            };
            let rank = 1.0 + ROUND_TRIP / size as f64;
            let digest = Sha256::of(&number.to_le_bytes());
            insert.execute((digest.as_bytes(), size as i64, rank, since)).unwrap();
        }
    }
    transaction
        .execute(
            "UPDATE volume SET blobs = ?, bytes = (SELECT sum(size) FROM blobs)",
            [BLOBS as i64],
        )
        .unwrap();
    transaction.commit().unwrap();
}

/// The same misses with room for all, and with room for a tenth.
fn churn() {
    let mirror = Mirror::start();
    for number in 0..FILES {
        mirror.put(&path(number), File::new(crate::package(number as u64, SIZE)));
    }
    let mut table = Table::new(
        &format!("{FILES} misses of 1 MB, one after the other"),
        &["quota", "median ms", "wall s"],
    );
    for quota in ["", "30MB"] {
        let proxy = Proxy::build().env("APTMESH_STORE_QUOTA", quota).start();
        let begun = Instant::now();
        let times = (0..FILES).map(|number| {
            let reply = kit::get(proxy.addr(), &proxy.url_for(&mirror, &path(number)));
            assert_eq!((reply.status, reply.body.len()), (200, SIZE));
            reply.total.as_secs_f64() * 1e3
        });
        let middle = median(times.collect());
        let name = if quota.is_empty() { "none" } else { quota };
        let wall = begun.elapsed().as_secs_f64();
        table.row(&[name.to_owned(), format!("{middle:.2}"), format!("{wall:.2}")]);
    }
    table.print();
}

fn path(number: usize) -> String {
    format!("/debian/pool/f/file{number}_1_all.deb")
}
