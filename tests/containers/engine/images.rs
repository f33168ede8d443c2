//! Images: the product's, built by its Dockerfile once for all tests, and those that it stands on.

use super::{docker, name, run, try_docker};
use std::sync::OnceLock;

/// The product.
pub fn image() -> &'static str {
    static BUILT: OnceLock<()> = OnceLock::new();
    build("aptmesh:e2e", "0.1.0", &BUILT)
}

/// The same under the tag and version that a site is upgraded to.
pub fn next_image() -> &'static str {
    static BUILT: OnceLock<()> = OnceLock::new();
    image();
    build("aptmesh:e2e-next", "0.1.1", &BUILT)
}

/// An image that is not ours, such as `debian:trixie-slim`: pulled or made of Debian's packages, unless it
/// is there.
pub fn standin(image: &str) -> String {
    succeed("tools/standins.sh", &[image]);
    image.to_owned()
}

/// An image for one test, removed with it.
pub struct Image {
    name: String,
}

impl Image {
    /// Another one with a line of a Dockerfile on top.
    pub fn changed(what: &str, base: &str, line: &str) -> Self {
        let image = Self { name: name(what) };
        let container = docker(&["create", base]);
        docker(&["commit", "--change", line, &container, &image.name]);
        docker(&["rm", "--volumes", &container]);
        image
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = try_docker(&["rmi", "--force", &self.name]);
    }
}

fn build(tag: &'static str, version: &str, built: &OnceLock<()>) -> &'static str {
    built.get_or_init(|| {
        standin("rust:1.95-slim-trixie");
        standin("debian:trixie-slim");
        let revision = run("git", &["rev-parse", "HEAD"]);
        let revision = String::from_utf8_lossy(&revision.stdout).trim().to_owned();
        let [version, revision] = [format!("VERSION={version}"), format!("REVISION={revision}")];
        let arguments = [tag, ".", "--build-arg", &version, "--build-arg", &revision];
        succeed("tools/docker_build.sh", &arguments);
    });
    tag
}

fn succeed(program: &str, arguments: &[&str]) {
    let output = run(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
}
