//! Importing: packages from a folder into the store, beside `sha256sum` over the same files with the
//! same parallelism; and the scrub's price for hits.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::hits::wrk;
use crate::kit::{self, File, LocalArchive, Mirror, Proxy, aptmesh};
use crate::table::{Table, median};

const FILES: usize = 10_000;
/// As in an archive: many small ones, and few large ones have most of the bytes.
const SIZES: [usize; 10] =
    [4_000, 10_000, 20_000, 40_000, 60_000, 100_000, 150_000, 300_000, 900_000, 8_416_000];

pub fn run() {
    let (source, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = write_packages(source.path());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let title = format!("Import of {FILES} packages, {:.1} GB, {cores} at a time", bytes / 1e9);
    let mut table = Table::new(&title, &["", "wall s", "MB/s", "vs sha256sum"]);
    let hashing = timed(&mut sha256sum(source.path(), cores));
    let mut row = |name: &str, wall: f64| {
        let (rate, ratio) = (bytes / 1e6 / wall, hashing / wall);
        table.row(&[
            name.to_owned(),
            format!("{wall:.2}"),
            format!("{rate:.0}"),
            format!("{ratio:.2}"),
        ]);
    };
    row("sha256sum", hashing);
    let mut import = aptmesh();
    import.arg("import").arg(source.path()).arg("--data").arg(data.path());
    import.env("APTMESH_STORE_MIN_FREE", "0");
    row("import, all new", timed(&mut import));
    row("import, all known", timed(&mut import));
    let mut scrub = aptmesh();
    row("scrub by hand", timed(scrub.arg("scrub").arg("--data").arg(data.path())));
    table.print();
    hits_while_scrubbing();
}

/// The bytes of all of them.
fn write_packages(folder: &Path) -> f64 {
    let mut bytes = 0;
    for (number, size) in SIZES.into_iter().enumerate() {
        let name = format!("p{number}");
        let mut package = LocalArchive::new("any").package(&name, "1", size).deb(&name).to_vec();
        let at = package.len() - size / 2;
        for copy in 0..FILES / SIZES.len() {
            package[at..at + 8].copy_from_slice(&(copy as u64).to_le_bytes());
            fs::write(folder.join(format!("p{number}.{copy}_1_all.deb")), &package).unwrap();
            bytes += package.len();
        }
    }
    // What was written for the benchmark is not to be written during it.
    assert!(Command::new("sync").status().unwrap().success());
    bytes as f64
}

fn sha256sum(folder: &Path, cores: usize) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!(
        "find {} -name '*.deb' -print0 | xargs -0 -n 64 -P {cores} sha256sum",
        folder.display()
    ));
    command
}

fn timed(command: &mut Command) -> f64 {
    let begun = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}");
    begun.elapsed().as_secs_f64()
}

/// A cache that hashes what it has again and again, at the bound that is the default.
fn hits_while_scrubbing() {
    let mirror = Mirror::start();
    for size in [100_000, 50_000_000] {
        mirror.put(&format!("/pool/f{size}_1_all.deb"), File::new(crate::package(1, size)));
    }
    let rate = |scrub_rate: &str| {
        let build = Proxy::build().env("APTMESH_STORE_SCRUB_INTERVAL", "0s");
        let proxy = build.env("APTMESH_STORE_SCRUB_RATE", scrub_rate).start();
        let target = |size| proxy.url_for(&mirror, &format!("/pool/f{size}_1_all.deb"));
        kit::get(proxy.addr(), &target(50_000_000));
        kit::get(proxy.addr(), &target(100_000));
        proxy.wait_landed();
        let url = format!("http://{}{}", proxy.addr(), target(100_000));
        median((0..3).map(|_| wrk(&url)).collect())
    };
    let (resting, busy) = (rate("0"), rate("10MiB/s"));
    let ratio = busy / resting;
    println!("  hits of 100 kB: {resting:.0}/s, {busy:.0}/s with a scrub at 10 MiB/s: {ratio:.2}");
}
