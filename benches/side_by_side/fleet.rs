//! A fleet: replicas on one PostgreSQL database. What its index costs a hit, whether replicas wait for
//! each other, and how it does with as many expectations as ten million packages have.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aptmesh::index::Index as _;
use aptmesh::index::postgres::{self, PostgresIndex};

use crate::hits::{contender, measure};
use crate::kit::fleet::migrated;
use crate::kit::postgres::database_of;
use crate::kit::{self, File, Mirror, Postgres, Proxy};
use crate::rivals::{Server, open_to_workers};
use crate::table::{Table, median};
use crate::{SIZES, write_files};

const REPLICAS: usize = 3;
/// Requests a second to all replicas together, and for how long.
const RATE: usize = 500;
const SECONDS: usize = 30;
const CLIENTS: usize = 24;
/// A lock that is waited for longer is told by the server.
const LONG_WAIT_MS: u32 = 5;
const MANY: u64 = 10_000_000;
const LOOKUPS: u64 = 20_000;

pub fn run() {
    let server = Postgres::start();
    hits(&server);
    waits(&server);
    look_ups(&server);
}

fn hits(server: &Postgres) {
    let files = tempfile::tempdir().unwrap();
    open_to_workers(files.path());
    write_files(files.path());
    let origin = Server::origin(files.path());
    let through = format!("/{}", origin.address);
    let embedded = Proxy::start();
    let fleet = Proxy::build().env("APTMESH_INDEX_URL", migrated(server)).start();
    let contenders = [
        contender("SQLite", embedded.addr(), &through, vec![embedded.pid()]),
        contender("PostgreSQL", fleet.addr(), &through, vec![fleet.pid()]),
    ];
    let mut table =
        Table::new("Hits by index, wrk -t1 -c16", &["size", "SQLite", "PostgreSQL", "ratio"]);
    for (name, size) in SIZES {
        let measured = measure(&contenders, size);
        let [embedded, fleet] = [0, 1].map(|at| measured[at].requests_per_second);
        let ratio = format!("{:.2}", fleet / embedded);
        table.row(&[name.to_owned(), format!("{embedded:.0}/s"), format!("{fleet:.0}/s"), ratio]);
    }
    table.print();
}

/// Of twenty requests twelve are hits, five are for cold files, three for metadata that is confirmed.
fn waits(server: &Postgres) {
    let url = migrated(server);
    for setting in ["log_lock_waits = on", &format!("deadlock_timeout = '{LONG_WAIT_MS}ms'")] {
        server.sql("postgres", &format!("ALTER SYSTEM SET {setting}"));
    }
    server.sql("postgres", "SELECT pg_reload_conf()");
    let (mirror, volume) = (Mirror::start(), tempfile::tempdir().unwrap());
    let replica = |_| {
        let build = Proxy::build().data(volume.path()).env("APTMESH_INDEX_URL", &url);
        build.env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start()
    };
    let replicas: Vec<Proxy> = (0..REPLICAS).map(replica).collect();
    let path = |kind: &str, number: usize| match kind {
        "metadata" => format!("/debian/dists/suite{}/Release", number % 20),
        "hot" => format!("/pool/hot{}_1_all.deb", number % 200),
        _ => format!("/pool/cold{number}_1_all.deb"),
    };
    for number in 0..200 {
        mirror.put(&path("hot", number), File::new(crate::package(number as u64, 20_000)));
        mirror.put(&path("metadata", number), File::new(format!("Suite: {number}\n").into_bytes()));
    }
    for number in 0..RATE * SECONDS {
        mirror.put(&path("cold", number), File::new(crate::package(number as u64, 4_000)));
    }
    let long_waits = || server.log().matches("still waiting for").count();
    let committed = || {
        let asked = format!(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = '{}'",
            database_of(&url)
        );
        server.sql("postgres", &asked).parse::<f64>().unwrap()
    };
    let before = (long_waits(), committed());
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    let times: Vec<f64> = thread::scope(|scope| {
        let visit = |client: usize| {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= RATE * SECONDS {
                    return times;
                }
                let due = begun + Duration::from_secs_f64(number as f64 / RATE as f64);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let kind = match number % 20 {
                    0..12 => "hot",
                    12..17 => "cold",
                    _ => "metadata",
                };
                let proxy = &replicas[(number + client) % REPLICAS];
                let asked = Instant::now();
                let target = proxy.url_for(&mirror, &path(kind, number));
                assert_eq!(kit::get(proxy.addr(), &target).status, 200, "{target}");
                times.push(asked.elapsed().as_secs_f64() * 1e3);
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|at| scope.spawn(move || visit(at))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    thread::sleep(Duration::from_secs(1));
    let (waited, done) = (long_waits() - before.0, committed() - before.1);
    let away: usize = replicas.iter().map(|proxy| proxy.log().matches("is away").count()).sum();
    println!(
        "\n{REPLICAS} replicas, {rate:.0} mixed requests/s for {SECONDS} s: median {:.1} ms, 99th percentile {:.1} ms",
        median(times.clone()),
        percentile(times, 99)
    );
    println!(
        "  {done:.0} transactions ({:.1} a request), {waited} of them waited for a lock longer than {LONG_WAIT_MS} ms ({:.3} %); the database was called away {away} times",
        done / (RATE * SECONDS) as f64,
        100.0 * waited as f64 / done
    );
}

fn look_ups(server: &Postgres) {
    let url = migrated(server);
    let database = database_of(&url);
    let begun = Instant::now();
    // As learning writes them, only faster.
    server.sql(
        database,
        &format!(
            "INSERT INTO lists (key, blob, learnt_at) VALUES ('http://m/list', sha256('list'), 1);
             INSERT INTO expectations (list, key, size, digest)
                 SELECT id, 'http://mirror.example.org/debian/pool/main/p/package/package_' || number || '-1_amd64.deb',
                     1, sha256(number::text::bytea)
                 FROM lists, generate_series(1, {MANY}) AS number"
        ),
    );
    server.sql(database, "VACUUM ANALYZE");
    let size = |what: &str| {
        server.sql(database, &format!("SELECT pg_size_pretty({what}('expectations'))"))
    };
    println!(
        "\n{MANY} expectations: {} with indexes, {} without; made in {:.0} s",
        size("pg_total_relation_size"),
        size("pg_table_size"),
        begun.elapsed().as_secs_f64()
    );
    let minute = Duration::from_secs(60);
    let config = postgres::Config::parse(&url, 8, minute).unwrap();
    let index = PostgresIndex::new(&config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let times: Vec<f64> = runtime.block_on(async {
        let mut times = Vec::new();
        for number in 0..LOOKUPS {
            let key = format!(
                "http://mirror.example.org/debian/pool/main/p/package/package_{}-1_amd64.deb",
                number * 7_919_777 % MANY + 1
            );
            let begun = Instant::now();
            assert!(index.find(&key).await.unwrap().expectation.is_some());
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        times
    });
    println!(
        "  look-ups: median {:.2} ms, 99th percentile {:.2} ms",
        median(times.clone()),
        percentile(times, 99)
    );
}

fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * percent / 100]
}
