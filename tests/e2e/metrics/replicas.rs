//! Replicas of a site on real PostgreSQL: with one volume, with a volume each, and without their database.

use super::ledger::Ledger;
use super::wait_at_rest;
use crate::kit::postgres::database_of;
use crate::kit::*;
use crate::volumes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const MB: usize = 1_000_000;
const SLOW: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";

pub fn run(ledger: &Ledger) {
    share_a_volume(ledger);
    have_one_each(ledger);
}

/// What one fetches the other follows, and goes on with when the first is killed.
fn share_a_volume(ledger: &Ledger) {
    let fleet = Fleet::build().env("APTMESH_STORE_QUOTA", "100MB").start(2);
    let (mirror, [first, second]) = (Mirror::start(), [&fleet[0], &fleet[1]]);
    ledger.look(second.admin());
    mirror.put(SLOW, File::new(noise(1, 12 * MB)).rate(MB as u64 / 2));
    let begin = |replica: &Proxy| {
        let mut client = Connection::open(replica.addr());
        client.send("GET", &replica.url_for(&mirror, SLOW), &[]);
        assert_eq!(client.read_head().status, 200);
        client.read_body_some(MB);
        client
    };
    let _lost = begin(first);
    ledger.sees(second.admin(), "aptmesh_store_promised_by_others_bytes");
    let mut follower = begin(second);
    ledger.sees(second.admin(), "aptmesh_engine_followed_total");
    ledger.look(first.admin());
    // What is missing may come at once.
    mirror.put(SLOW, File::new(noise(1, 12 * MB)));
    first.kill9();
    assert_eq!(follower.read_body_some(11 * MB).len(), 11 * MB);
    for metric in
        ["aptmesh_engine_taken_over_total", "aptmesh_engine_leases", "aptmesh_engine_leases_total"]
    {
        ledger.sees(second.admin(), metric);
    }
    wait_at_rest(second);
    wait_for_the_database(&fleet, second, &mirror, ledger);
}

/// It is held up, then away, then back.
fn wait_for_the_database(fleet: &Fleet, replica: &Proxy, mirror: &Mirror, ledger: &Ledger) {
    let lock = fleet
        .server
        .session(database_of(&fleet.url), "LOCK TABLE resources, expectations, volumes");
    let is_seen = AtomicBool::new(false);
    thread::scope(|scope| {
        for asker in 0..12 {
            let (replica, is_seen) = (&replica, &is_seen);
            scope.spawn(move || {
                let mut rounds = 0..200;
                while !is_seen.load(Ordering::Relaxed)
                    && let Some(round) = rounds.next()
                {
                    let path = format!("/debian/pool/absent{asker}_{round}_all.deb");
                    get(replica.addr(), &replica.url_for(mirror, &path));
                }
            });
        }
        ledger.sees(replica.admin(), "aptmesh_index_waiting");
        is_seen.store(true, Ordering::Relaxed);
    });
    drop(lock);
    fleet.server.stop();
    ledger.sees(replica.admin(), "aptmesh_index_up");
    let path = "/debian/pool/late_1.orig.tar.xz";
    mirror.put(path, File::new(noise(2, MB)));
    assert!(get(replica.addr(), &replica.url_for(mirror, path)).complete);
    ledger.sees(replica.admin(), "aptmesh_engine_late_notes");
    fleet.server.resume();
    ledger.sees(replica.admin(), "aptmesh_engine_late_notes_total");
}

/// What one has the other gets from it.
fn have_one_each(ledger: &Ledger) {
    let site = volumes::Site::new();
    let [first, second] = [site.replica(), site.replica()];
    ledger.look(second.admin());
    for number in 0..4 {
        let (path, bytes) = site.package(number, 50_000);
        site.fetch(&first, &path, &bytes);
        site.fetch(&second, &path, &bytes);
    }
    ledger.look(first.admin());
    ledger.sees(second.admin(), "aptmesh_swarm_replica_requests_total");
    wait_at_rest(&second);
}
