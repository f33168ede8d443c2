//! What `docs/operations.md` tells administrators to do: after it, the cache is as it was.

use crate::kit::postgres::database_of;
use crate::kit::*;
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);
const NAMES: [&str; 2] = ["tool", "toy"];

struct Site {
    mirror: Mirror,
    archive: LocalArchive,
}

impl Site {
    fn new() -> Self {
        let archive =
            LocalArchive::new("demo").package("tool", "1.0", 400_000).package("toy", "1.0", 1_000);
        let mirror = Mirror::start();
        archive.publish(&mirror, "/debian");
        Self { mirror, archive }
    }

    /// A new machine installs something: nothing may fail.
    fn install(&self, proxy: &Proxy) {
        let apt = Apt::new(None);
        apt.conf("Acquire::Retries", "0");
        let base = format!("http://{}/{}/debian", proxy.addr(), self.mirror.host());
        apt.sources(&self.archive.source_line(&base));
        for run in [apt.update(), apt.download(&NAMES)] {
            assert!(run.ok, "{}", run.output);
        }
    }

    /// How often the mirror gave packages.
    fn bodies(&self) -> usize {
        let path = |name| format!("/debian/{}", self.archive.deb_path(name));
        NAMES.into_iter().map(|name| self.mirror.bodies(&path(name))).sum()
    }

    /// A file by its digest; its path.
    fn publish(&self, seed: u64) -> String {
        let bytes = noise(seed, 90_000);
        let path =
            format!("/debian/dists/demo/main/binary-all/by-hash/SHA256/{}", sha256_hex(&bytes));
        self.mirror.put(&path, File::new(bytes));
        path
    }

    fn fetch(&self, proxy: &Proxy, path: &str) {
        let reply = get(proxy.addr(), &proxy.url_for(&self.mirror, path));
        assert!(reply.status == 200 && reply.complete, "{path}: {}", reply.reason);
        assert!(path.ends_with(&sha256_hex(&reply.body)), "{path}: other bytes");
        proxy.wait_landed();
    }
}

fn known(fleet: &Fleet) -> usize {
    fleet.server.sql(database_of(&fleet.url), "SELECT count(*) FROM blobs").parse().unwrap()
}

fn migrate(fleet: &Fleet) {
    let run = aptmesh().arg("migrate").env("APTMESH_INDEX_URL", &fleet.url).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

/// Stopped, and started again in its place: as after any work on the database.
fn restart(fleet: &mut Fleet) {
    fleet.iter_mut().for_each(Proxy::restart_in_place);
}

#[test]
fn a_database_that_was_lost_is_made_anew_and_an_old_dump_is_as_good() {
    let site = Site::new();
    let mut fleet = Fleet::of(2);
    site.install(&fleet[0]);
    fleet.wait_landed();
    let dump = fleet.server.dump(database_of(&fleet.url));
    let late = site.publish(1);
    site.fetch(&fleet[0], &late);
    let stored = fleet[0].blobs().len();
    wait_until(PATIENCE, "all is known", || known(&fleet) == stored);

    for old in [None, Some(dump)] {
        fleet.server.lose(database_of(&fleet.url));
        // Clients do not wait for the administrator.
        site.install(&fleet[0]);
        site.fetch(&fleet[1], &late);
        if let Some(old) = old {
            fleet.server.restore(database_of(&fleet.url), &old);
        }
        migrate(&fleet);
        restart(&mut fleet);
        wait_until(PATIENCE, "what is on the volume is known", || known(&fleet) >= stored);
        site.install(&fleet[0]);
        let learnt = "aptmesh_engine_learnt_lists_total";
        wait_until(PATIENCE, "lists are known again", || {
            fleet.iter().map(|replica| replica.count(learnt)).sum::<u64>() >= 2
        });
        let bodies = site.bodies();
        fleet.iter().for_each(|replica| site.install(replica));
        assert_eq!(site.bodies(), bodies, "what is stored was fetched again");
        assert_eq!(site.mirror.bodies(&late), 1);
        for replica in fleet.iter() {
            assert_eq!(get(replica.admin(), "/readyz").body, b"ready\n");
        }
    }
    fleet[0].check_blobs();
}

#[test]
fn a_volume_is_moved() {
    let site = Site::new();
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let fleet = Fleet::build().volume(old.path()).start(1);
    let proxy = Proxy::build().start();
    for cache in [&fleet[0], &proxy] {
        site.install(cache);
        cache.wait_landed();
        cache.signal("TERM");
        cache.wait_exit(PATIENCE);
    }
    let bodies = site.bodies();
    wait_until(PATIENCE, "all is known", || known(&fleet) == fleet[0].blobs().len());
    let volumes = || fleet.server.sql(database_of(&fleet.url), "SELECT count(*) FROM volumes");
    assert_eq!(volumes(), "1");

    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let from = format!("{}/.", from.display());
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(old.path(), new.path());
    let moved = Proxy::build().data(new.path()).env("APTMESH_INDEX_URL", &fleet.url).start();
    site.install(&moved);
    assert_eq!(volumes(), "1", "it is taken for another one");
    // With SQLite the index moves along.
    let place = tempfile::tempdir().unwrap();
    copy(proxy.data(), place.path());
    fs::remove_dir_all(proxy.data()).unwrap();
    let alone = Proxy::build().data(place.path()).start();
    site.install(&alone);
    assert_eq!(site.bodies(), bodies, "what is stored was fetched again");
    assert_eq!(alone.count("aptmesh_engine_served_total{resource=\"package\",outcome=\"hit\"}"), 2);
}

#[test]
fn an_older_program_begins_anew_beside_an_index_that_is_too_new() {
    let site = Site::new();
    let mut proxy = Proxy::start();
    site.install(&proxy);
    proxy.wait_landed();
    proxy.signal("TERM");
    proxy.wait_exit(PATIENCE);
    let index = |ending: &str| proxy.data().join(format!("index.sqlite{ending}"));
    let file = rusqlite::Connection::open(index("")).unwrap();
    file.pragma_update(None, "user_version", 10_000).unwrap();
    drop(file);
    proxy.restart();
    let words = "its schema is version 10000";
    wait_until(PATIENCE, "a word about it", || proxy.log().contains(words));
    site.install(&proxy);
    proxy.signal("TERM");
    proxy.wait_exit(PATIENCE);

    for ending in ["", "-wal", "-shm"] {
        drop(fs::rename(
            proxy.data().join(format!("index.sqlite{ending}")),
            proxy.data().join("aside"),
        ));
    }
    let bodies = site.bodies();
    proxy.restart();
    assert!(!proxy.log().contains(words), "{}", proxy.log());
    let stored = proxy.blobs().len() as f64;
    wait_until(PATIENCE, "its blobs are found", || proxy.metric("aptmesh_store_blobs") >= stored);
    site.install(&proxy);
    let learnt = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
    wait_until(PATIENCE, "lists are known", || proxy.count(learnt) >= 2);
    site.install(&proxy);
    assert!(site.bodies() <= bodies + NAMES.len());
    let again = site.bodies();
    site.install(&proxy);
    assert_eq!(site.bodies(), again);
}
