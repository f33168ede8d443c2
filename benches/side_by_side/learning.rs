//! Learning: what a packages file as large as Debian's costs, beside the requests it must not slow.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aptmesh::content::digest::{Expected, Sha256};
use aptmesh::index::postgres::{self, PostgresIndex};
use aptmesh::index::sqlite::{self, SqliteIndex};
use aptmesh::index::{Change, Expectation, Index, Taken};

use crate::hits::wrk;
use crate::kit::fleet::migrated;
use crate::kit::{self, File, Mirror, Postgres, Proxy};
use crate::rivals::cpu_seconds;
use crate::table::{Table, median};

const ENTRIES: usize = 64_000;
const MANY: usize = 1_000_000;
const LOOKUPS: usize = 10_000;

pub fn run() {
    let confirming = || Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", "0s");
    let (mirror, proxy) = (Mirror::start(), confirming().start());
    learn_thrice("SQLite", &mirror, &proxy);
    hits_meanwhile(&mirror, &proxy);
    let folder = tempfile::tempdir().unwrap();
    let file = sqlite::Config::File(folder.path().join("index.sqlite"));
    look_ups("SQLite", &SqliteIndex::open(&file).unwrap());

    let server = Postgres::start();
    let proxy = confirming().env("APTMESH_INDEX_URL", migrated(&server)).start();
    learn_thrice("PostgreSQL", &mirror, &proxy);
    hits_meanwhile(&mirror, &proxy);
    let minute = Duration::from_secs(60);
    let config = postgres::Config::parse(&migrated(&server), 8, minute).unwrap();
    look_ups("PostgreSQL", &PostgresIndex::new(&config).unwrap());
}

fn learn_thrice(index: &str, mirror: &Mirror, proxy: &Proxy) {
    let head = ["64,000 entries, xz", "CPU s", "wall s", "memory over rest, MB"];
    let mut table = Table::new(&format!("Learning a packages file ({index})"), &head);
    for (name, changed) in [("first time", 0), ("1 % changed", ENTRIES / 100), ("unchanged", 0)] {
        let packages =
            compress(&packages_file(changed + usize::from(name == "unchanged") * ENTRIES / 100));
        mirror.put("/flat/Packages.xz", File::new(packages).no_validators());
        let (cpu, wall, memory) = learn(mirror, proxy);
        table.row(&[
            name.to_owned(),
            format!("{cpu:.2}"),
            format!("{wall:.2}"),
            format!("{memory:.0}"),
        ]);
    }
    table.print();
}

/// `changed` packages have another version than at first.
fn packages_file(changed: usize) -> String {
    let mut text = String::new();
    for number in 0..ENTRIES {
        let version = if number < changed { "2.0-1" } else { "1.0-1" };
        let digest = kit::sha256_hex(format!("{number} {version}").as_bytes());
        let filler = kit::hex(&kit::noise(number as u64, 160));
        write!(
            text,
            "Package: package{number}\nVersion: {version}\nArchitecture: amd64\nDepends: {filler}\n\
             Filename: pool/main/p/package{number}/package{number}_{version}_amd64.deb\n\
             Size: {number}\nSHA256: {digest}\nDescription: {filler}\n\n"
        )
        .unwrap();
    }
    text
}

fn compress(text: &str) -> Vec<u8> {
    let mut xz = Command::new("xz")
        .args(["-1", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("xz is installed (make bench does it)");
    let mut input = xz.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || input.write_all(text.as_bytes()).unwrap());
        xz.wait_with_output().unwrap().stdout
    })
}

fn learn(mirror: &Mirror, proxy: &Proxy) -> (f64, f64, f64) {
    let looked_at = || proxy.count("aptmesh_engine_learnt_lists_total");
    let (before, cpu, rest) = (looked_at(), cpu_seconds(&[proxy.pid()]), proxy.resident_bytes());
    let begun = Instant::now();
    let target = proxy.url_for(mirror, "/flat/Packages.xz");
    assert_eq!(kit::get(proxy.addr(), &target).status, 200);
    let mut most = rest;
    // An unchanged file is not even looked at: there is nothing to wait for.
    while looked_at() == before && begun.elapsed() < Duration::from_secs(20) {
        most = most.max(proxy.resident_bytes());
        if begun.elapsed() > Duration::from_secs(2) && cpu_seconds(&[proxy.pid()]) - cpu < 0.2 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let wall = begun.elapsed().as_secs_f64();
    let memory = most.saturating_sub(rest) as f64 / 1e6;
    (cpu_seconds(&[proxy.pid()]) - cpu, wall, memory)
}

fn hits_meanwhile(mirror: &Mirror, proxy: &Proxy) {
    mirror.put("/pool/hot_1_all.deb", File::new(crate::package(1, 100_000)));
    let target = proxy.url_for(mirror, "/pool/hot_1_all.deb");
    kit::get(proxy.addr(), &target);
    proxy.wait_landed();
    let url = format!("http://{}{target}", proxy.addr());
    let resting = median((0..3).map(|_| wrk(&url)).collect());
    let busy = median(
        (0..3)
            .map(|round| {
                let packages = compress(&packages_file(ENTRIES / 4 * (round + 1)));
                mirror.put("/flat/Packages.xz", File::new(packages).no_validators());
                kit::get(proxy.addr(), &proxy.url_for(mirror, "/flat/Packages.xz"));
                wrk(&url)
            })
            .collect(),
    );
    println!(
        "  hits of 100 kB: {resting:.0}/s at rest, {busy:.0}/s while it learns: {:.2}",
        busy / resting
    );
}

fn look_ups(make: &str, index: &impl Index) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let key =
        |number: usize| format!("http://mirror.example.org/debian/pool/main/p/package{number}.deb");
    runtime.block_on(async {
        let taken = index.take("learn:list", "bench", Duration::from_secs(3600)).await.unwrap();
        let Taken::Granted { lease, .. } = taken else { panic!("somebody else learns") };
        for batch in 0..MANY / 10_000 {
            let set = (batch * 10_000..(batch + 1) * 10_000)
                .map(|number| {
                    let digest = Expected::Sha256(Sha256::of(&number.to_le_bytes()));
                    (key(number), Expectation { size: Some(1), digest })
                })
                .collect();
            index.learn(&lease, "list", Change { set, unset: Vec::new() }, 1).await.unwrap();
        }
        index.finish(&lease, "list", &Sha256::of(b"list"), 1).await.unwrap();
        let mut times = Vec::with_capacity(LOOKUPS);
        for number in 0..LOOKUPS {
            let key = key(number * 7919 % MANY);
            let begun = Instant::now();
            assert!(index.expectation(&key).await.unwrap().is_some());
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        let (middle, high) = (times[LOOKUPS / 2], times[LOOKUPS / 100 * 99]);
        println!("  {make}: look-ups among {MANY} expectations: median {middle:.0} us, 99th percentile {high:.0} us");
    });
}
