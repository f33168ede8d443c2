//! The database replaced under replicas that run, by an empty one or by an older state: what lies on the
//! volume is used again, without a restart.

use crate::kit::postgres::database_of;
use crate::kit::*;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);
const NAMES: [&str; 3] = ["tool", "toy", "late"];

/// Two replicas, and a mirror with an archive.
struct Site {
    mirror: Mirror,
    archive: LocalArchive,
    fleet: Fleet,
}

impl Site {
    fn start() -> Self {
        let mirror = Mirror::start();
        let archive = NAMES
            .iter()
            .fold(LocalArchive::new("demo"), |all, name| all.package(name, "1", 90_000));
        archive.publish(&mirror, "/debian");
        let fleet = Fleet::build().env("APTMESH_MIRROR_RECHECK_AFTER", "1h");
        // How fast this machine is, is no matter here.
        let fleet = fleet.env("APTMESH_INDEX_PATIENCE", "20s").start(2);
        Self { mirror, archive, fleet }
    }

    fn get(&self, replica: usize, path: &str) {
        let proxy = &self.fleet[replica];
        let reply = get(proxy.addr(), &proxy.url_for(&self.mirror, &format!("/debian/{path}")));
        assert_eq!((reply.status, reply.complete), (200, true), "{path}: {}", reply.reason);
    }

    fn fetch(&self, replica: usize, names: &[&str]) {
        for name in names {
            self.get(replica, &self.archive.deb_path(name));
        }
        self.fleet.wait_landed();
    }

    /// What a client without lists asks for.
    fn update(&self, replica: usize) {
        self.get(replica, "dists/demo/Release");
        self.get(replica, &self.archive.by_hash_path());
        self.fleet.wait_landed();
    }

    fn sql(&self, statement: &str) -> String {
        self.fleet.server.sql(database_of(&self.fleet.url), statement)
    }

    /// Until all have their index, and it knows the archive's lists and all that lies on the volume.
    fn wait_known(&self) {
        wait_until(PATIENCE, "all have their index", || {
            let is_ready = |proxy: &Proxy| get(proxy.admin(), "/readyz").body == b"ready\n";
            self.fleet.iter().all(is_ready)
        });
        wait_until(PATIENCE, "lists are learnt", || {
            self.sql("SELECT count(*) FROM lists WHERE blob IS NOT NULL") == "2"
        });
        let stored = self.fleet[0].blobs().len().to_string();
        wait_until(PATIENCE, "blobs are known", || {
            self.sql("SELECT count(*) FROM blobs") == stored
        });
    }

    fn replace(&self, by: Option<&str>) {
        let database = database_of(&self.fleet.url);
        self.fleet.server.lose(database);
        if let Some(dump) = by {
            self.fleet.server.restore(database, dump);
        }
        let migrated = aptmesh().arg("migrate").env("APTMESH_INDEX_URL", &self.fleet.url).output();
        assert!(migrated.expect("the aptmesh binary").status.success());
    }

    /// Each package through each replica, by clients that have their lists.
    fn is_all_used_again(&self) {
        self.mirror.clear_log();
        for replica in 0..2 {
            self.fetch(replica, &NAMES);
        }
        for name in NAMES {
            let path = format!("/debian/{}", self.archive.deb_path(name));
            assert_eq!(self.mirror.bodies(&path), 0, "{name} was fetched again");
        }
    }
}

#[test]
fn replicas_learn_again_what_an_empty_database_does_not_know() {
    let site = Site::start();
    site.update(0);
    site.fetch(0, &NAMES);
    site.wait_known();
    site.replace(None);
    site.wait_known();
    site.is_all_used_again();
}

#[test]
fn replicas_learn_again_what_an_older_database_does_not_know_yet() {
    let site = Site::start();
    // Nothing of the archive is known, or something of it.
    let database = database_of(&site.fleet.url);
    let before = site.fleet.server.dump(database);
    site.update(0);
    site.fetch(0, &NAMES[..2]);
    site.wait_known();
    let between = site.fleet.server.dump(database);
    site.fetch(1, &NAMES[2..]);
    site.wait_known();
    for dump in [between, before] {
        site.replace(Some(&dump));
        site.wait_known();
        site.is_all_used_again();
    }
}
