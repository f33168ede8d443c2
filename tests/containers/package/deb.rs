//! The package: made of the image's program, in two versions, once for all tests.

use crate::engine::{docker, image, run, standin};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub const VERSION: &str = "0.1.0-1";
/// The same program and files, so that what differs is the upgrade itself.
pub const NEXT_VERSION: &str = "0.1.1-1";
/// Where containers find the packages.
pub const FOLDER: &str = "/packages";

/// The image with what makes and checks a package.
pub fn workshop() -> &'static str {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        standin("rust:1.95-slim-trixie");
        build("workshop");
    });
    "aptmesh:e2e-workshop"
}

/// The image of a machine with systemd.
pub fn machine() -> &'static str {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| build("machine"));
    "aptmesh:e2e-machine"
}

fn build(target: &str) {
    let (tag, product) = (format!("aptmesh:e2e-{target}"), format!("PRODUCT={}", image()));
    standin("debian:trixie-slim");
    let folder = "tests/containers/package";
    let arguments = [&tag, folder, "--target", target, "--build-arg", &product];
    let built = run("tools/docker_build.sh", &arguments);
    assert!(built.status.success(), "{tag}: {}", String::from_utf8_lossy(&built.stderr));
}

/// The folder of the packages, which the engine mounts into containers.
pub fn folder() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let fetched = run("tools/deb.sh", &[]);
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        let make = ["tools/deb.sh", "/product/aptmesh", FOLDER, "--deb-version"];
        in_workshop(&folder, &[&make[..], &[VERSION]].concat());
        // What is looked at is the other one.
        in_workshop(&folder, &[&make[..], &[NEXT_VERSION, "--fast"]].concat());
        folder
    })
}

/// Runs a command in the workshop, on the sources and with the packages in [`FOLDER`]. What it said.
pub fn in_workshop(folder: &Path, command: &[&str]) -> String {
    let sources = format!("{}:/sources:ro", env!("CARGO_MANIFEST_DIR"));
    let packages = format!("{}:{FOLDER}", folder.display());
    let options =
        ["run", "--rm", "--workdir", "/sources", "--volume", &sources, "--volume", &packages];
    docker(&[&options[..], &[workshop()], command].concat())
}

/// The path of a version in a container.
pub fn path(version: &str) -> String {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!("{FOLDER}/aptmesh_{version}_{architecture}.deb")
}
