//! An index in PostgreSQL: a process keeps nothing to itself, several are one cache, and a server that
//! is away costs speed only.

use crate::kit::fleet::migrated;
use crate::kit::postgres::database_of;
use crate::kit::*;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const URL: &str = "APTMESH_INDEX_URL";
const RECHECK: &str = "APTMESH_MIRROR_RECHECK_AFTER";
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
const HITS: &str = "aptmesh_engine_served_total{outcome=\"hit\"}";

fn archive() -> LocalArchive {
    LocalArchive::new("demo").package("tool", "1.0", 200_000).package("toy", "1.0", 1_000)
}

fn command(url: &str, arguments: &[&str]) -> Output {
    command_with(|command| command.env(URL, url), arguments)
}

fn command_with(set: impl FnOnce(&mut Command) -> &mut Command, arguments: &[&str]) -> Output {
    let mut command = aptmesh();
    set(&mut command).args(arguments).output().expect("the aptmesh binary")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// One of the processes that share a database and a volume.
fn replica(url: &str, volume: &Path) -> Proxy {
    Proxy::build().data(volume).env(URL, url).env(RECHECK, "1h").start()
}

/// A new client of `proxy`, with the suite in its sources.
fn client(proxy: &Proxy, mirror: &Mirror, archive: &LocalArchive) -> Apt {
    let apt = Apt::new(None);
    let base = format!("http://{}/{}/debian", proxy.addr(), mirror.host());
    apt.sources(&archive.source_line(&base));
    apt
}

/// What was asked of the mirror and is there: that there is no `InRelease` is asked each time.
fn fetched(mirror: &Mirror) -> Vec<String> {
    mirror.log().into_iter().filter(|seen| seen.status != 404).map(|seen| seen.path).collect()
}

fn install(apt: &Apt) {
    let update = apt.update();
    assert!(update.ok, "{}", update.output);
    let download = apt.download(&["tool", "toy"]);
    assert!(download.ok, "{}", download.output);
}

#[test]
fn a_database_is_migrated_once_and_by_hand() {
    let server = Postgres::start();
    let url = server.database();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display().to_string();
    for arguments in [
        ["migrate", "--check"].as_slice(),
        &["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data", &data],
    ] {
        let refused = command(&url, arguments);
        let told = told(&refused);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("version 0") && told.contains("run `aptmesh migrate`"), "{told}");
    }
    let first = command(&url, &["migrate"]);
    assert!(first.status.success() && told(&first).contains("migrated: "), "{}", told(&first));
    let again = command(&url, &["migrate"]);
    assert!(again.status.success() && !told(&again).contains("migrated: "), "{}", told(&again));
    assert!(command(&url, &["migrate", "--check"]).status.success());
    assert!(command("", &["migrate"]).status.success(), "SQLite needs none");
}

/// A step of a version to come that only adds is no reason to stop; one that takes away is.
#[test]
fn an_old_replica_starts_beside_new_ones_until_it_can_not() {
    let (server, mirror, archive) = (Postgres::start(), Mirror::start(), archive());
    let (url, volume) = (migrated(&server), tempfile::tempdir().unwrap());
    archive.publish(&mirror, "/debian");
    let database = database_of(&url);
    let version = server.sql(database, "SELECT max(version) FROM schema_versions");
    let version: u32 = version.parse().unwrap();
    let step = |next: u32, works_from: u32| {
        let columns = "schema_versions (version, name, works_from)";
        server
            .sql(database, &format!("INSERT INTO {columns} VALUES ({next}, 'new', {works_from})"));
    };
    server.sql(database, "ALTER TABLE resources ADD COLUMN colour TEXT");
    step(version + 1, version);
    assert!(command(&url, &["migrate"]).status.success());
    let old = replica(&url, volume.path());
    install(&client(&old, &mirror, &archive));
    old.wait_landed();
    assert_ne!(server.sql(database, "SELECT count(*) FROM resources"), "0");

    step(version + 2, version + 1);
    let refused = command(&url, &["migrate", "--check"]);
    let told = told(&refused);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("use a newer aptmesh"), "{told}");
    install(&client(&old, &mirror, &archive));
}

#[test]
fn the_password_of_the_database_is_kept_secret() {
    let server = Postgres::start();
    let url = server.database();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    fs::write(&file, format!("{url}\n")).unwrap();
    let from_file = |arguments: &[&str]| {
        command_with(|command| command.env("APTMESH_INDEX_URL_FILE", &file), arguments)
    };
    assert!(from_file(&["migrate"]).status.success());
    let mut all = told(&from_file(&["config"]));
    assert!(all.contains("# url is set, and a secret"), "{all}");
    for wrong in [format!("{url}?sslmode=no"), url.replace("sesame", "barley")] {
        let refused = command(&wrong, &["migrate"]);
        assert!(!refused.status.success());
        all.push_str(&told(&refused));
    }
    assert!(!all.contains("sesame") && !all.contains("barley"), "{all}");
}

#[test]
fn a_process_leaves_nothing_that_the_next_one_needs() {
    let (server, mirror, archive) = (Postgres::start(), Mirror::start(), archive());
    let (url, volume) = (migrated(&server), tempfile::tempdir().unwrap());
    archive.publish(&mirror, "/debian");
    let first = replica(&url, volume.path());
    install(&client(&first, &mirror, &archive));
    first.wait_landed();
    first.kill9();
    mirror.clear_log();

    let next = replica(&url, volume.path());
    assert!(!volume.path().join("index.sqlite").exists());
    install(&client(&next, &mirror, &archive));
    assert_eq!(fetched(&mirror), [""; 0]);
    assert!(next.count(HITS) >= 3);
}

#[test]
fn what_one_process_stored_the_other_serves() {
    let (server, mirror, archive) = (Postgres::start(), Mirror::start(), archive());
    let bouncer = PgBouncer::before(&server);
    let (url, volume) = (migrated(&server), tempfile::tempdir().unwrap());
    archive.publish(&mirror, "/debian");
    let storing = replica(&url, volume.path());
    let serving = replica(&bouncer.url_for(&url), volume.path());
    install(&client(&storing, &mirror, &archive));
    storing.wait_landed();
    mirror.clear_log();

    install(&client(&serving, &mirror, &archive));
    assert_eq!(fetched(&mirror), [""; 0]);
    assert!(serving.count(HITS) >= 3);
}

/// What requests ask the index, but not what goes on without them.
fn looks(proxy: &Proxy) -> u64 {
    let operations = [
        "look up a resource",
        "look up an expectation",
        "look up a blob",
        "look up who holds a blob",
    ];
    let calls = |operation: &str| {
        proxy.count(&format!("aptmesh_index_calls_total{{operation=\"{operation}\"}}"))
    };
    operations.iter().map(|operation| calls(operation)).sum()
}

#[test]
fn a_first_hit_asks_the_database_once_and_a_warm_one_not_at_all() {
    let (server, mirror, archive) = (Postgres::start(), Mirror::start(), archive());
    let (url, volume) = (migrated(&server), tempfile::tempdir().unwrap());
    archive.publish(&mirror, "/debian");
    let storing = replica(&url, volume.path());
    install(&client(&storing, &mirror, &archive));
    storing.wait_landed();
    // What is learnt after that is told to others, who then ask again.
    wait_until(PATIENCE, "the lists are learnt", || storing.count(LEARNT) >= 2);

    let serving = replica(&url, volume.path());
    // To be told at the start of what was learnt counts as news, which makes it ask again.
    let told = "aptmesh_index_calls_total{operation=\"look up what is new\"}";
    wait_until(PATIENCE, "it heard what is new", || serving.count(told) >= 2);
    for (number, package) in ["tool", "toy"].into_iter().enumerate() {
        let target = serving.url_for(&mirror, &format!("/debian/{}", archive.deb_path(package)));
        for hit in 0..20 {
            let reply = get(serving.addr(), &target);
            assert_eq!(reply.header("cache-status"), Some("aptmesh; hit"), "{package} {hit}");
            assert_eq!(looks(&serving), number as u64 + 1, "{package} {hit}");
        }
    }
}

#[test]
fn what_one_process_learns_the_other_holds_its_memory_against() {
    let (server, mirror, archive) = (Postgres::start(), Mirror::start(), archive());
    let (url, volume) = (migrated(&server), tempfile::tempdir().unwrap());
    archive.publish(&mirror, "/debian");
    let of = || Proxy::build().data(volume.path()).env(URL, &url).env(RECHECK, "0s").start();
    let (learning, holding) = (of(), of());
    let pool = learning.url_for(&mirror, &format!("/debian/{}", archive.deb_path("tool")));
    let update = |archive: &LocalArchive| {
        let before = learning.count(LEARNT);
        for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
            let target = learning.url_for(&mirror, &format!("/debian/{path}"));
            assert_eq!(get(learning.addr(), &target).status, 200);
        }
        wait_until(PATIENCE, "both lists are learnt", || learning.count(LEARNT) >= before + 2);
    };
    update(&archive);
    assert_eq!(get(holding.addr(), &pool).body, archive.deb("tool"));
    holding.wait_landed();
    assert_eq!(get(holding.addr(), &pool).header("cache-status"), Some("aptmesh; hit"));

    let other = LocalArchive::new("demo").package("tool", "1.0~", 200_000);
    let rebuilt = archive.with_deb("tool", other.deb("tool").to_vec());
    rebuilt.publish(&mirror, "/debian");
    update(&rebuilt);
    wait_until(PATIENCE, "the other process hears of it", || {
        get(holding.addr(), &pool).body == rebuilt.deb("tool")
    });
}

#[test]
fn without_its_database_a_cache_goes_on_and_finds_it_again() {
    let (server, mirror, archive) = (Postgres::start(), Mirror::start(), archive());
    let (url, volume) = (migrated(&server), tempfile::tempdir().unwrap());
    archive.publish(&mirror, "/debian");
    let proxy = replica(&url, volume.path());
    let apt = client(&proxy, &mirror, &archive);
    install(&apt);
    proxy.wait_landed();

    server.stop();
    mirror.clear_log();
    apt.clean_archives();
    install(&apt);
    assert_eq!(fetched(&mirror), [""; 0], "memory knows");
    // A process that begins without it has no memory, but the mirror and the volume.
    let late = replica(&url, volume.path());
    install(&client(&late, &mirror, &archive));
    let package = File::new([b"!<arch>\n".as_slice(), &noise(1, 99_000)].concat());
    mirror.put("/debian/pool/new_1_all.deb", package);
    for proxy in [&proxy, &late] {
        let reply = get(proxy.addr(), &proxy.url_for(&mirror, "/debian/pool/new_1_all.deb"));
        assert_eq!((reply.status, reply.complete), (200, true), "{}", reply.reason);
        proxy.check_blobs();
    }

    server.resume();
    let recorded = |name: &str| {
        let count = format!("SELECT count(*) FROM resources WHERE key LIKE '%{name}'");
        server.sql(database_of(&url), &count) == "1"
    };
    for (number, proxy) in [&proxy, &late].into_iter().enumerate() {
        let mut file = 0;
        wait_until(PATIENCE, "what is stored is recorded again", || {
            file += 1;
            let name = format!("/debian/pool/again{number}_{file}_all.deb");
            let bytes = [b"!<arch>\n".as_slice(), &noise(file, 9_000 + number)].concat();
            mirror.put(&name, File::new(bytes));
            assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, &name)).status, 200);
            proxy.wait_landed();
            recorded(&name)
        });
        install(&client(proxy, &mirror, &archive));
    }
}

#[test]
fn a_database_that_says_nothing_holds_no_request_up() {
    let (mirror, archive) = (Mirror::start(), archive());
    archive.publish(&mirror, "/debian");
    // Takes connections, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://me:secret@{}/apt", silent.local_addr().unwrap());
    let volume = tempfile::tempdir().unwrap();
    let proxy = replica(&url, volume.path());
    let apt = client(&proxy, &mirror, &archive);
    apt.conf("Acquire::http::Timeout", "5");
    apt.conf("Acquire::Retries", "0");
    install(&apt);
    assert!(proxy.log().contains("PostgreSQL is away"), "{}", proxy.log());
    assert!(!proxy.log().contains("secret"));
}
