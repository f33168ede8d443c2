//! Speed, side by side: aptmesh, nginx's `proxy_cache` and apt-cacher-ng on the same files, the same
//! machine, in one run. Prints figures and ratios; passes or fails nothing.
//!
//! `make bench` installs what it needs. `cargo bench --bench side_by_side -- hits` runs one part of
//! `hits`, `misses`, `crowd`, `pipelining`, `learning`, `evicting`,
//! `importing`, `fleet`, `dht`, `swarm`, `traces`, `replay`.

#[path = "../../tests/e2e/kit/mod.rs"]
mod kit;

mod crowd;
mod dht;
mod evicting;
mod fleet;
mod hits;
mod importing;
mod learning;
mod misses;
mod pipelining;
mod replay;
mod rivals;
mod swarm;
mod table;
mod traces;

use std::fs;
use std::path::Path;

/// Sizes of the files: (name, bytes).
pub const SIZES: [(&str, usize); 4] =
    [("4 kB", 4_000), ("100 kB", 100_000), ("1 MB", 1_000_000), ("100 MB", 100_000_000)];

fn main() {
    let asked: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |part: &str| asked.is_empty() || asked.iter().any(|word| word == part);
    println!("{}", conditions());
    if wanted("hits") {
        hits::run();
    }
    if wanted("misses") {
        misses::run();
    }
    if wanted("crowd") {
        crowd::run();
    }
    if wanted("pipelining") {
        pipelining::run();
    }
    if wanted("learning") {
        learning::run();
    }
    if wanted("evicting") {
        evicting::run();
    }
    if wanted("importing") {
        importing::run();
    }
    if wanted("fleet") {
        fleet::run();
    }
    if wanted("dht") {
        dht::run();
    }
    if wanted("swarm") {
        swarm::run();
    }
    if wanted("traces") {
        traces::run();
    }
    if wanted("replay") {
        replay::run();
    }
}

fn conditions() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("{model}, {cores} cores, load before: {}", load.trim())
}

/// The content of the test file of `size` bytes: it begins like a real package, so that caches that
/// look treat it as one.
pub fn package(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = kit::noise(seed, size);
    bytes[..8].copy_from_slice(b"!<arch>\n");
    bytes
}

/// The target of the test file of `size` bytes at an origin.
pub fn pool_path(size: usize) -> String {
    format!("pool/main/f/file{size}/file{size}_1_all.deb")
}

/// Puts all test files below `root`.
pub fn write_files(root: &Path) {
    for (_, size) in SIZES {
        let path = root.join(pool_path(size));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, package(1, size)).unwrap();
    }
}
