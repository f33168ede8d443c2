//! The index in PostgreSQL, on real servers.

use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use aptmesh::content::digest::{Expected, Sha256};
use aptmesh::index::postgres::schema::{self, MIGRATIONS, SchemaMismatch};
use aptmesh::index::postgres::{Config, PostgresIndex};
use aptmesh::index::{
    Change, Changes, Entry, Expectation, Index, IndexError, Traffic, Use, budget,
};

use crate::conformance;
use crate::kit::Ca;
use crate::kit::postgres::{PgBouncer, Postgres, database_of};
use crate::leases;

/// Bounds what must not hang, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// With more patience than it has in the product: how fast this machine is, is no matter here.
pub(crate) fn config(url: &str) -> Config {
    Config::parse(url, 8, PATIENCE / 2).unwrap()
}

fn open(url: &str) -> PostgresIndex {
    PostgresIndex::new(&config(url)).unwrap()
}

/// A server, and a migrated database on it that others may be copied from.
pub(crate) fn migrated() -> (Postgres, String) {
    let server = Postgres::start();
    let url = server.database();
    assert_eq!(schema::migrate(&config(&url)).unwrap().len(), MIGRATIONS.len());
    let name = database_of(&url).to_owned();
    (server, name)
}

pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("no hanging") })
}

#[test]
fn postgres_conforms() {
    let (server, template) = migrated();
    conformance::run(|| open(&server.copy_of(&template)));
}

#[test]
fn postgres_behind_pgbouncer_conforms() {
    let (server, template) = migrated();
    let bouncer = PgBouncer::before(&server);
    conformance::run(|| open(&bouncer.url_for(&server.copy_of(&template))));
}

#[test]
fn postgres_survives_its_clients() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    conformance::survives(|| open(&url));
}

#[test]
fn migrating_is_possible_behind_pgbouncer() {
    let server = Postgres::start();
    let bouncer = PgBouncer::before(&server);
    let url = bouncer.url_for(&server.database());
    assert_eq!(schema::migrate(&config(&url)).unwrap().len(), MIGRATIONS.len());
    schema::verify(&config(&url)).unwrap();
}

#[test]
fn several_may_migrate_at_once() {
    let server = Postgres::start();
    let config = config(&server.database());
    let taken: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..6).map(|_| scope.spawn(|| schema::migrate(&config))).collect();
        runs.into_iter().map(|run| run.join().unwrap().unwrap().len()).sum()
    });
    assert_eq!(taken, MIGRATIONS.len(), "each step once");
    schema::verify(&config).unwrap();
}

#[test]
fn who_has_nothing_to_migrate_is_in_nobodys_way() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let reading = server.session(database_of(&url), "LOCK TABLE schema_versions IN ROW SHARE MODE");
    assert!(schema::migrate(&config(&url)).unwrap().is_empty());
    drop(reading);
}

#[test]
fn what_an_older_version_stored_is_counted() {
    let server = Postgres::start();
    let url = server.database();
    let database = database_of(&url);
    server.sql(database, "CREATE TABLE schema_versions (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TIMESTAMPTZ NOT NULL DEFAULT now())");
    server.sql(database, include_str!("../../migrations/postgres/0001_resources.sql"));
    server.sql(database, include_str!("../../migrations/postgres/0002_expectations.sql"));
    server.sql(
        database,
        "INSERT INTO schema_versions VALUES (1, 'resources'), (2, 'expectations');
         INSERT INTO resources SELECT key, sha256(body::bytea), size, NULL, NULL, NULL, 9
             FROM (VALUES ('m/a', 'a', 7), ('n/a', 'a', 7), ('m/b', 'b', 5)) AS r (key, body, size);
         INSERT INTO lists (key, blob, learnt_at) VALUES ('m/list', NULL, 0);
         INSERT INTO expectations SELECT id, 'm/a', 7, sha256('a') FROM lists",
    );
    assert_eq!(schema::migrate(&config(&url)).unwrap().len(), MIGRATIONS.len() - 2);
    let index = open(&url);
    wait(async {
        let volume = index.volume().await.unwrap();
        assert_eq!((volume.blobs, volume.bytes), (2, 12));
        let named = index.blob(&Sha256::of(b"a")).await.unwrap().unwrap();
        assert_eq!((named.size, named.unreferenced_since), (7, None));
        let other = index.blob(&Sha256::of(b"b")).await.unwrap().unwrap();
        assert!(other.unreferenced_since.is_some_and(|since| since > 1_700_000_000));
    });
}

#[test]
fn another_schema_is_refused_until_it_is_right() {
    let server = Postgres::start();
    let url = server.database();
    let index = open(&url);
    let refused = |error: IndexError| {
        assert!(error.source.is::<SchemaMismatch>(), "{}", error.source);
        error.source.to_string()
    };
    let why = refused(wait(index.look_up("m/a")).unwrap_err());
    assert!(why.contains("version 0") && why.contains("aptmesh migrate"), "{why}");
    refused(schema::verify(&config(&url)).unwrap_err());
    schema::migrate(&config(&url)).unwrap();
    assert_eq!(wait(index.look_up("m/a")).unwrap(), None, "without a restart");

    // By one that did not tell yet what works with it.
    server.sql(database_of(&url), "INSERT INTO schema_versions VALUES (1000, 'of the future')");
    let why = refused(wait(open(&url).verify()).unwrap_err());
    assert!(why.contains("1000") && why.contains("newer aptmesh"), "{why}");
    refused(schema::migrate(&config(&url)).unwrap_err());
}

#[test]
fn a_newer_schema_may_go_on_working_for_an_older_program() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (database, ours) = (database_of(&url), MIGRATIONS.len());
    let running = open(&url);
    wait(running.record("m/a", &entry("a"))).unwrap();
    // A future step that adds what we do not know of.
    let (next, after) = (ours + 1, ours + 2);
    server.sql(
        database,
        &format!(
            "ALTER TABLE resources ADD COLUMN colour TEXT NOT NULL DEFAULT 'none';
             CREATE TABLE colours (name TEXT PRIMARY KEY);
             INSERT INTO schema_versions (version, name, works_from)
                 VALUES ({next}, 'colours', {ours})"
        ),
    );
    for index in [&running, &open(&url)] {
        wait(async {
            index.record("m/b", &entry("b")).await.unwrap();
            assert_eq!(index.look_up("m/a").await.unwrap(), Some(entry("a")));
        });
    }
    schema::verify(&config(&url)).unwrap();
    assert!(schema::migrate(&config(&url)).unwrap().is_empty(), "a start runs it, too");

    // One that takes away what we use.
    server.sql(
        database,
        &format!(
            "ALTER TABLE resources DROP COLUMN etag;
             INSERT INTO schema_versions (version, name, works_from)
                 VALUES ({after}, 'no marks', {next})"
        ),
    );
    let why = |refused: IndexError| {
        assert!(refused.source.is::<SchemaMismatch>(), "{}", refused.source);
        refused.source.to_string()
    };
    let told = why(wait(open(&url).verify()).unwrap_err());
    assert!(told.contains(&format!("version {after}")), "{told}");
    assert!(told.contains("newer aptmesh") && told.contains(&format!("of {ours}")), "{told}");
    why(schema::verify(&config(&url)).unwrap_err());
    why(schema::migrate(&config(&url)).unwrap_err());
    // One that runs since before hears of it when something is missing.
    wait(running.look_up("m/a")).unwrap_err();
    why(wait(running.look_up("m/a")).unwrap_err());
}

#[test]
fn large_tables_are_not_counted_row_by_row() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let index = open(&url);
    wait(async {
        index.record("m/a", &entry("a")).await.unwrap();
        assert_eq!(index.totals().await.unwrap().resources, 1);
        let grown = "UPDATE pg_class SET reltuples = 12e6 WHERE oid = 'resources'::REGCLASS";
        server.sql(database_of(&url), grown);
        let totals = index.totals().await.unwrap();
        assert_eq!((totals.resources, totals.expectations), (12_000_000, 0));
    });
}

#[test]
fn traffic_is_summed_over_replicas() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (here, there) = (open(&url), open(&url));
    let parts = |part| Traffic::of_parts([part; 6]);
    wait(async {
        here.add_traffic(&parts(5)).await.unwrap();
        assert_eq!(there.add_traffic(&parts(2)).await.unwrap(), parts(7));
        assert_eq!(here.add_traffic(&parts(0)).await.unwrap(), parts(7));
    });
}

#[test]
fn what_is_recorded_late_undoes_nothing_newer() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (here, there) = (open(&url), open(&url));
    let at = |content: &str, checked_at| Entry { checked_at, ..entry(content) };
    wait(async {
        there.record("m/a", &at("newer", 20)).await.unwrap();
        here.record_late("m/a", &at("older", 10)).await.unwrap();
        assert_eq!(here.look_up("m/a").await.unwrap(), Some(at("newer", 20)));
        assert!(here.blob(&Sha256::of(b"older")).await.unwrap().is_some(), "it lies there");
        here.confirm("m/a", &Sha256::of(b"newer"), 15).await.unwrap();
        assert_eq!(here.look_up("m/a").await.unwrap(), Some(at("newer", 20)));
    });
}

#[test]
fn both_makes_have_the_same_migrations() {
    let names = |make: &str| {
        let folder = format!("{}/migrations/{make}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
        let mut names: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("postgres"), names("sqlite"));
    let numbered = MIGRATIONS.iter().zip(1..);
    let run: Vec<String> =
        numbered.map(|(step, at)| format!("{at:04}_{}.sql", step.name)).collect();
    assert_eq!(names("postgres"), run);
}

#[test]
fn the_right_server_is_told_from_others() {
    let (ca, other_ca) = (Ca::new(), Ca::new());
    let server = Postgres::start_with_tls(&ca);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, ca: &Ca| {
        let path = folder.path().join(name);
        std::fs::write(&path, ca.pem()).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (file("right.pem", &ca), file("wrong.pem", &other_ca));
    let url = server.database();
    schema::migrate(&config(&url)).unwrap();
    // Another name of the same server, which its certificate does not have.
    let misnamed = url.replace("127.0.0.1", "127.0.0.2");
    server.stop();
    server.listen_everywhere();
    server.resume();

    let verified = |url: &str, parameters: &str| {
        let config = config(&format!("{url}?{parameters}"));
        (wait(PostgresIndex::new(&config).unwrap().verify()), schema::verify(&config))
    };
    let accepted = [
        (&url, "sslmode=disable".to_owned()),
        (&url, "sslmode=prefer".to_owned()),
        (&misnamed, "sslmode=require".to_owned()),
        (&misnamed, format!("sslmode=verify-ca&sslrootcert={right}")),
        (&url, format!("sslmode=verify-full&sslrootcert={right}")),
    ];
    for (url, parameters) in accepted {
        let (by_pool, by_command) = verified(url, &parameters);
        assert!(by_pool.is_ok() && by_command.is_ok(), "{parameters}: {by_pool:?} {by_command:?}");
    }
    let refused = [
        (&misnamed, format!("sslmode=verify-full&sslrootcert={right}"), "not valid for name"),
        (&url, format!("sslmode=verify-full&sslrootcert={wrong}"), "invalid peer certificate"),
        (&url, format!("sslmode=verify-ca&sslrootcert={wrong}"), "invalid peer certificate"),
        (&url, format!("sslmode=require&sslrootcert={wrong}"), "invalid peer certificate"),
    ];
    for (url, parameters, why) in refused {
        let (by_pool, by_command) = verified(url, &parameters);
        let told = by_pool.unwrap_err().source.to_string();
        assert!(told.contains(why), "{parameters}: {told}");
        assert!(by_command.is_err(), "{parameters}");
    }
    let bouncer = PgBouncer::with_tls_before(&server, &ca);
    let pooled = bouncer.url_for(&url);
    for (parameters, is_right) in [
        (format!("sslmode=verify-full&sslrootcert={right}"), true),
        (format!("sslmode=verify-full&sslrootcert={wrong}"), false),
        ("sslmode=disable".to_owned(), false),
    ] {
        let (by_pool, by_command) = verified(&pooled, &parameters);
        assert_eq!((by_pool.is_ok(), by_command.is_ok()), (is_right, is_right), "{parameters}");
    }
    let plain = Postgres::start();
    let (by_pool, _) = verified(&plain.database(), "sslmode=require");
    assert!(by_pool.unwrap_err().source.to_string().contains("TLS"), "no TLS, no connection");
    let missing = config(&format!("{url}?sslmode=verify-full&sslrootcert=/nowhere.pem"));
    assert!(
        PostgresIndex::new(&missing).err().unwrap().source.to_string().contains("/nowhere.pem")
    );
}

#[test]
fn what_can_not_be_reached_is_an_error_soon() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let wrong = url.replace("sesame", "barley");
    // Takes connections, and never says a word.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let of_port = |port: u16| url.replace(&format!(":{}/", server.port()), &format!(":{port}/"));
    let (mute, nobody) = (of_port(silent.local_addr().unwrap().port()), of_port(1));
    let asked = |index: &PostgresIndex| wait(index.look_up("m/a"));
    let in_time = |index: &PostgresIndex| wait(budget::waited_for(index.look_up("m/a")));
    type Ask<'a> = &'a dyn Fn(&PostgresIndex) -> Result<Option<Entry>, IndexError>;
    let all: [(PostgresIndex, Ask<'_>, &str); 3] = [
        (open(&wrong), &asked, "password"),
        (open(&mute), &in_time, "did not answer within"),
        (open(&nobody), &asked, "refused"),
    ];
    for (index, ask, why) in all {
        let begun = Instant::now();
        let first = ask(&index).unwrap_err().source.to_string();
        assert!(first.contains(why), "{first}");
        let second = in_time(&index).unwrap_err().source.to_string();
        let says_so = ["PostgreSQL is away", "PostgreSQL is too slow"].contains(&second.as_str());
        assert!(says_so, "nobody waits again: {second}");
        assert!(index.trouble().is_some());
        assert!(begun.elapsed() < PATIENCE / 3, "{:?}", begun.elapsed());
        assert!(!format!("{first}{second}").contains("barley"));
    }
}

#[test]
fn a_request_waits_no_longer_than_its_budget() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let bouncer = PgBouncer::before(&server);
    for url in [url.clone(), bouncer.url_for(&url)] {
        let index = open(&url);
        wait(async {
            index.record("m/a", &entry("a")).await.unwrap();
            let lock = server.session(database_of(&url), "SELECT FROM resources FOR UPDATE");
            let blob = Sha256::of(b"a");
            let confirming = index.confirm("m/a", &blob, 5);
            late(budget::waited_for(confirming).await.unwrap_err());
            // It was a lock: the server is well.
            until("others are answered", async || {
                budget::waited_for(index.look_up("m/a")).await.is_ok()
            })
            .await;
            nobody_waits(&server, database_of(&url)).await;
            drop(lock);

            let lock = server.session(database_of(&url), "LOCK TABLE resources, absent");
            budget::waited_for(async {
                let begun = Instant::now();
                late(index.look_up("m/a").await.unwrap_err());
                // Nothing is left for the next, and nobody is asked.
                for _ in 0..3 {
                    assert!(index.is_absent("m/a").await.unwrap_err().is_old_news());
                }
                assert!(begun.elapsed() < PATIENCE / 3, "{:?}", begun.elapsed());
            })
            .await;
            nobody_waits(&server, database_of(&url)).await;
            drop(lock);
            until("the index is back", async || {
                budget::waited_for(index.look_up("m/a")).await.is_ok()
            })
            .await;
        });
    }
}

fn late(error: IndexError) {
    let why = error.source.to_string();
    assert!(why.contains("did not answer within"), "{why}");
}

/// What nobody waits for any more does not go on in the server.
async fn nobody_waits(server: &Postgres, database: &str) {
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = '{database}' AND wait_event_type = 'Lock'"
    );
    until("late statements are given up", async || server.sql(database, &waiting) == "0").await;
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE / 2;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_server_that_comes_back_is_used_again() {
    let (server, template) = migrated();
    let index = open(&server.copy_of(&template));
    wait(async {
        index.record("m/a", &entry("a")).await.unwrap();
        server.stop();
        until("it is noticed", async || index.look_up("m/a").await.is_err()).await;
        server.resume();
        until("it is back", async || index.look_up("m/a").await.is_ok()).await;
        assert_eq!(index.look_up("m/a").await.unwrap(), Some(entry("a")));
    });
}

#[test]
fn a_server_without_room_for_more_connections_keeps_those_there_are() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    wait(async {
        let database = database_of(&url);
        let allow = |word: &str| {
            server.sql("postgres", &format!("ALTER DATABASE {database} ALLOW_CONNECTIONS {word}"))
        };
        // On a busy machine a question may be late and take its connection with it: then once more.
        until("one of many finds the connection, which stays", async || {
            allow("true");
            let index = open(&url);
            index.record("m/a", &entry("a")).await.unwrap();
            allow("false");
            let look_up = || budget::waited_for(index.look_up("m/a"));
            let many = futures_util::future::join_all((0..20).map(|_| look_up())).await;
            let is_scarce = many.iter().any(Result::is_err) && many.iter().any(Result::is_ok);
            is_scarce && index.look_up("m/a").await.is_ok()
        })
        .await;
    });
}

#[test]
fn background_work_leaves_connections_to_clients() {
    while_background_work_waits(async |index, _, _| {
        for _ in 0..20 {
            until("clients are answered", async || {
                budget::waited_for(index.look_up("m/a")).await.is_ok()
            })
            .await;
        }
    });
}

/// The server was slow meanwhile: who looks after it does not wait for the connections of background work.
#[test]
fn a_server_that_was_slow_is_used_again_while_background_work_waits() {
    while_background_work_waits(async |index, server, database| {
        let look = || budget::waited_for(index.look_up("m/a"));
        let slow = server.slow(database, "LOCK TABLE resources", 5);
        until("it is too slow", async || {
            drop(look().await);
            index.trouble().is_some()
        })
        .await;
        // That ends by itself; the end of a session would be that of all.
        until("clients are answered", async || look().await.is_ok()).await;
        drop(slow);
    });
}

/// What is done while as much background work as there may be holds connections and waits for a lock; all of it succeeds
/// in the end.
fn while_background_work_waits(work: impl AsyncFnOnce(&PostgresIndex, &Postgres, &str)) {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let index = open(&url);
    wait(async {
        index.add_blob(&Sha256::of(b"a"), 1, 1).await.unwrap();
        let lock = server.session(database_of(&url), "SELECT FROM blobs FOR UPDATE");
        let used = [Use { digest: Sha256::of(b"a"), uses: 1, used_at: 2 }];
        let touching = futures_util::future::join_all((0..20).map(|_| index.touch(&used)));
        let working = async {
            work(&index, &server, database_of(&url)).await;
            drop(lock);
        };
        let (touched, ()) = futures_util::future::join(touching, working).await;
        touched.into_iter().for_each(Result::unwrap);
        assert_eq!(index.blob(&Sha256::of(b"a")).await.unwrap().unwrap().uses, 21);
    });
}

/// The one that stores does not see what the other learns, and is held up until it has learnt it.
#[test]
fn what_is_stored_while_it_is_learnt_is_referenced() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let index = open(&url);
    let learning = server.slow(
        database_of(&url),
        "INSERT INTO lists (key, learnt_at) VALUES ('m/list', 1);
         INSERT INTO expectations SELECT id, 'm/a', 1, sha256('a') FROM lists;
         UPDATE volumes SET floor = floor",
        2,
    );
    wait(index.record("m/a", &entry("a"))).unwrap();
    let said = server.sql(database_of(&url), "SELECT count(*) FROM expectations");
    assert_eq!(said, "1", "it was held up until the other had learnt");
    let stored = wait(index.blob(&Sha256::of(b"a"))).unwrap().unwrap();
    assert_eq!(stored.unreferenced_since, None);
    drop(learning);
}

/// Two processes' worth of everything at once: nothing fails, and all sums are right.
#[test]
#[allow(clippy::excessive_nesting, reason = "four things at once, in two processes")]
fn many_processes_do_not_get_in_each_others_way() {
    const BLOBS: u64 = 60;
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let indexes = [open(&url), open(&url)];
    let body = |number: u64| number.to_string().into_bytes();
    let digests: Vec<Sha256> = (0..BLOBS).map(|number| Sha256::of(&body(number))).collect();
    let patient = |result: Result<(), IndexError>| {
        // A busy machine may be late; nothing else may happen.
        if let Err(error) = result {
            let why = error.source.to_string();
            assert!(why.contains("within") || why.contains("away"), "{why}");
        }
    };
    wait(async {
        let work = indexes.iter().enumerate().map(|(process, index)| {
            let digests = &digests;
            async move {
                let storing = async {
                    for number in (0..BLOBS).chain(0..BLOBS) {
                        let key = format!("m/{process}/{number}");
                        let text = String::from_utf8(body(number)).unwrap();
                        patient(index.record(&key, &entry(&text)).await);
                    }
                };
                let forgetting = async {
                    for some in digests.chunks(7).chain(digests.chunks(5)) {
                        let mut some = some.to_vec();
                        if process == 1 {
                            some.reverse();
                        }
                        patient(index.forget_blobs(&some).await);
                    }
                };
                let using = async {
                    for _ in 0..40 {
                        let uses = digests.iter().map(|digest| Use {
                            digest: *digest,
                            uses: 1,
                            used_at: 2_000_000_000,
                        });
                        let mut uses: Vec<Use> = uses.collect();
                        if process == 1 {
                            uses.reverse();
                        }
                        patient(index.touch(&uses).await);
                    }
                };
                let learning = async {
                    for round in 0..20_u64 {
                        let said = (0..BLOBS).filter(|number| number % 3 == round % 3);
                        let says = |number: u64| Expectation {
                            size: Some(1),
                            digest: Expected::Sha256(Sha256::of(&body(number))),
                        };
                        let set: Vec<(String, Expectation)> = said
                            .clone()
                            .map(|number| (format!("m/{number}"), says(number)))
                            .collect();
                        let unset = set.iter().step_by(2).map(|(key, _)| key.clone()).collect();
                        let list = format!("m/list{process}");
                        let change = Change { set, unset: Vec::new() };
                        patient(leases::learn(index, &list, change, 5).await);
                        patient(
                            leases::learn(index, &list, Change { set: Vec::new(), unset }, 6).await,
                        );
                        patient(leases::finish(index, &list, &digests[0], 7).await);
                    }
                };
                futures_util::join!(storing, forgetting, using, learning);
            }
        });
        futures_util::future::join_all(work).await;
    });
    let database = database_of(&url);
    let sums = server.sql(
        database,
        "SELECT volumes.blobs - (SELECT count(*) FROM blobs),
             volumes.bytes - (SELECT coalesce(sum(size), 0) FROM blobs) FROM volumes",
    );
    assert_eq!(sums, "0|0");
    let forgotten = "SELECT count(*) FROM blobs WHERE unreferenced_since IS NOT NULL
         AND EXISTS (SELECT FROM expectations WHERE expectations.digest = blobs.digest)";
    assert_eq!(server.sql(database, forgotten), "0", "each named blob is referenced");
    let deadlocks = server.log().matches("deadlock detected").count();
    assert_eq!(deadlocks, 0, "locks are taken in order");
}

pub(crate) fn entry(body: &str) -> Entry {
    Entry { checked_at: 3, ..Entry::nameless(Sha256::of(body.as_bytes()), body.len() as u64) }
}

/// Its number is lower than that of what was seen before it.
#[test]
fn a_change_that_is_committed_late_is_told_all_the_same() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let index = open(&url);
    let mark = wait(async {
        index.volume().await.unwrap();
        index.changes_since(None).await.unwrap().mark
    });
    let late = server.slow(
        database_of(&url),
        "INSERT INTO blobs (volume, digest, size, stored_at, used_at, uses, rank, checked_at)
         SELECT id, sha256('late'), 4, 1, 1, 1, 1, 1 FROM volumes",
        3,
    );
    let tells = |changes: &Changes, body: &[u8]| {
        changes.blobs.contains(&(Sha256::of(body), Some(body.len() as u64)))
    };
    let mark = wait(async {
        conformance::learn(&index, "http://m/list", &[("http://m/a", "early")], 1).await;
        index.add_blob(&Sha256::of(b"early"), 5, 1).await.unwrap();
        let seen = index.changes_since(Some(&mark)).await.unwrap();
        assert!(tells(&seen, b"early") && !tells(&seen, b"late"));
        seen.mark
    });
    let count = "SELECT count(*) FROM blobs WHERE size = 4";
    wait(until("the commit", async || server.sql(database_of(&url), count) == "1"));
    assert!(tells(&wait(index.changes_since(Some(&mark))).unwrap(), b"late"));
    drop(late);
}

/// Whatever it does, and on whatever database of the server.
#[test]
fn a_long_transaction_elsewhere_has_no_change_told_twice() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let index = open(&url);
    wait(index.volume()).unwrap();
    let long = server.slow(database_of(&url), "SELECT txid_current()", 60);
    wait(async {
        let mark = index.changes_since(None).await.unwrap().mark;
        conformance::learn(&index, "http://m/list", &[("http://m/a", "once")], 1).await;
        index.add_blob(&Sha256::of(b"once"), 4, 1).await.unwrap();
        let seen = index.changes_since(Some(&mark)).await.unwrap();
        assert_eq!(seen.blobs, [(Sha256::of(b"once"), Some(4))]);
        let again = index.changes_since(Some(&seen.mark)).await.unwrap();
        assert_eq!(again.blobs, []);
    });
    drop(long);
}

#[test]
fn changes_that_were_left_behind_are_forgotten() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let index = open(&url);
    wait(index.volume()).unwrap();
    let sql = |statement: &str| server.sql(database_of(&url), statement);
    sql("INSERT INTO changes (id, by_transaction, digest) OVERRIDING SYSTEM VALUE
         SELECT id, txid_current(), sha256('x') FROM unnest(ARRAY[1, 3, 4, 100002, 100003]) AS id");
    wait(index.changes_since(None)).unwrap();
    assert_eq!(sql("SELECT string_agg(id::TEXT, ' ' ORDER BY id) FROM changes"), "4 100002 100003");
}
