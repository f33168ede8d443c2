//! The Docker engine: images built once for all tests, containers that go away with their test.
#![allow(dead_code, reason = "each test uses its own part")]

mod container;
mod images;

pub use container::{Container, Network, Volume};
pub use images::{Image, image, next_image, standin};

use std::process::{Command, Output};

/// Runs `docker ARGUMENTS`. Its standard output, without the last newline.
///
/// Panics with what it said when it fails.
pub fn docker(arguments: &[&str]) -> String {
    try_docker(arguments).unwrap_or_else(|said| panic!("docker {}: {said}", arguments.join(" ")))
}

/// Runs `docker ARGUMENTS`. Its standard output, or all that it said when it fails.
pub fn try_docker(arguments: &[&str]) -> Result<String, String> {
    let output = run("docker", arguments);
    let out = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if output.status.success() {
        Ok(out)
    } else {
        Err(format!("{}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// Runs a program from the top of the repository.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    command.output().unwrap_or_else(|error| panic!("{program} (`make e2e` installs it): {error}"))
}

/// A name that no other run of the tests uses at the same time.
pub fn name(what: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("aptmesh-e2e-{}-{number}-{what}", std::process::id())
}
