//! The image by itself: what it is, how it starts, serves and ends.

use crate::engine::{Container, Network, docker, image, next_image, run, standin};
use crate::kit::{HostArchive, get, wait_until};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// With its Debian base, in bytes.
const SIZE_MAX: u64 = 120_000_000;
/// As one is run that nobody trusts.
const LOCKED_DOWN: [&str; 5] =
    ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];

#[test]
fn real_apt_is_served_by_one_container_without_any_rights() {
    let network = Network::new("image");
    let cache = serving(&network, &[]);
    cache.wait_until_healthy();

    let client = client_of(&network, cache.name());
    client.must(&["apt-get", "update"]);
    client.must(&["apt-get", "install", "-y", "hello", "jq"]);
    client.must(&["jq", "--version"]);

    let rights = cache.must(&["cat", "/proc/1/status"]);
    for right in ["Uid:\t9977\t9977\t9977\t9977", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(rights.contains(right), "{right} in {rights}");
    }
    assert!(!cache.exec(&["touch", "/tmp/file"]).ok, "the root file system can be written");
    // What a client got went through the cache, and its release file was checked with the image's keys.
    let told = metrics(&cache);
    assert!(
        value(&told, r#"aptmesh_engine_release_verdicts_total{admitted="yes",verdict="good"}"#) > 0,
        "{told}"
    );
    // Another client gets what is stored.
    let fetched = value(&told, "aptmesh_mirror_received_bytes_total");
    let other = client_of(&network, cache.name());
    other.must(&["apt-get", "update"]);
    other.must(&["apt-get", "install", "-y", "hello", "jq"]);
    let told = metrics(&cache);
    let again = value(&told, "aptmesh_mirror_received_bytes_total") - fetched;
    assert!(again * 10 < fetched, "{again} bytes after {fetched} were fetched again");

    assert_eq!(cache.stop(30), 0, "it ended by itself, and well: {}", cache.logs());
}

#[test]
fn its_volume_outlives_it() {
    let network = Network::new("volume");
    let volume = crate::engine::Volume::new("volume");
    let mount = format!("{}:/var/lib/aptmesh", volume.name());
    let first = serving(&network, &["--volume", &mount]);
    first.wait_until_healthy();
    let client = client_of(&network, first.name());
    client.must(&["apt-get", "update"]);
    client.must(&["apt-get", "install", "-y", "--download-only", "hello"]);
    assert_eq!(first.stop(30), 0);

    // The next version, on the same volume, with nobody else to ask.
    let options = ["--volume", &mount, "--env", "APTMESH_MIRROR_OFFLINE=true"];
    let second = serving_of(next_image(), &network, &options);
    second.wait_until_healthy();
    let client = client_of(&network, second.name());
    client.must(&["apt-get", "update"]);
    client.must(&["apt-get", "install", "-y", "hello"]);
}

#[test]
fn its_health_is_that_of_the_process() {
    let network = Network::new("health");
    let test =
        docker(&["image", "inspect", "--format", "{{json .Config.Healthcheck.Test}}", image()]);
    assert_eq!(test, r#"["CMD","/usr/bin/aptmesh","health"]"#);
    let often = ["--health-interval", "1s", "--health-timeout", "4s", "--health-retries", "1"];
    let cache = serving(&network, &often);
    cache.wait_until_healthy();
    let health = || cache.inspect("{{.State.Health.Status}}");

    cache.kill("STOP");
    wait_until(Duration::from_secs(60), "a hung process to be noticed", || health() == "unhealthy");
    cache.kill("CONT");
    wait_until(Duration::from_secs(60), "it to be well again", || health() == "healthy");
}

#[test]
fn it_is_small_and_tells_what_it_is() {
    let inspect = |template: &str| docker(&["image", "inspect", "--format", template, image()]);
    let size: u64 = inspect("{{.Size}}").parse().unwrap();
    println!("the image has {:.1} MB", size as f64 / 1e6);
    assert!(size <= SIZE_MAX, "{size} bytes");
    assert_eq!(inspect("{{.Config.User}}"), "9977:9977");
    let labels = inspect("{{json .Config.Labels}}");
    let labels: serde_json::Value = serde_json::from_str(&labels).unwrap();
    for label in ["title", "description", "licenses", "version", "revision", "base.name"] {
        let value = labels[format!("org.opencontainers.image.{label}")].as_str();
        assert!(value.is_some_and(|value| !value.is_empty()), "{label} in {labels}");
    }
    let next = ["image", "inspect", "--format", "{{.RootFS.Layers}}"];
    let [this, next] = [image(), next_image()].map(|tag| docker(&[&next[..], &[tag]].concat()));
    assert_eq!(this, next, "what differs from build to build comes last");

    let keys = docker(&[
        "run",
        "--rm",
        "--entrypoint",
        "ls",
        image(),
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
        "/etc/ssl/certs/ca-certificates.crt",
    ]);
    assert_eq!(keys.lines().count(), 3, "{keys}");
}

/// The dependencies' layer is taken from the last build when only the product's code is another; and that
/// code is what gets built, however old its files are.
#[test]
fn a_change_of_the_code_builds_no_dependency_again() {
    image();
    let context = TempDir::new().unwrap();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["Cargo.toml", "Cargo.lock", "Dockerfile"] {
        fs::copy(top.join(file), context.path().join(file)).unwrap();
    }
    // Such as a new version of the package.
    let manifest = fs::read_to_string(context.path().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("[package.metadata.deb]"));
    let manifest = manifest.replace("[package.metadata.deb]", "[package.metadata.other]");
    fs::write(context.path().join("Cargo.toml"), manifest).unwrap();
    for folder in ["src", "migrations"] {
        fs::create_dir(context.path().join(folder)).unwrap();
    }
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 40);
    let write = |name: &str, text: &str| {
        let path = context.path().join(name);
        fs::write(&path, text).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    };
    write("src/main.rs", "fn main() { println!(\"another\"); }\n");
    write("src/lib.rs", "//! Another.\n");
    write("migrations/step.sql", "");

    let layers_of = |tag: &str, folder: &str| {
        let built = run("tools/docker_build.sh", &[tag, folder, "--target", "build"]);
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let layers = docker(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", tag]);
        serde_json::from_str::<Vec<String>>(&layers).unwrap()
    };
    let [ours, another] = ["aptmesh:e2e-build", "aptmesh:e2e-another"];
    let same = layers_of(ours, ".");
    let changed = layers_of(another, context.path().to_str().unwrap());
    assert_eq!(docker(&["run", "--rm", another, "/aptmesh"]), "another");
    docker(&["image", "rm", "--force", another, ours]);
    // Manifest, migrations, code, and what is built of them are another; what was built before is the same.
    let shared = same.iter().zip(&changed).take_while(|(one, other)| one == other).count();
    assert_eq!(shared, same.len() - 4, "{same:?} {changed:?}");
}

/// `serve` in a container without any rights, told only where the archive of this machine is.
fn serving(network: &Network, options: &[&str]) -> Container {
    serving_of(image(), network, options)
}

fn serving_of(image: &str, network: &Network, options: &[&str]) -> Container {
    let allowed = format!("APTMESH_MIRROR_ALLOW_PRIVATE={}", HostArchive::read().hosts().join(","));
    let mut all = vec!["--network", network.name(), "--env", &allowed];
    all.extend(LOCKED_DOWN);
    all.extend(options);
    Container::start("cache", &all, image, &[])
}

/// A machine of the site: its apt asks the cache for everything.
fn client_of(network: &Network, cache: &str) -> Container {
    let client = standin("debian:trixie-slim");
    let client = Container::start(
        "client",
        &["--network", network.name(), "--init"],
        &client,
        &["sleep", "infinity"],
    );
    let setting = format!("Acquire::http::Proxy \"http://{cache}:9977\";");
    client.must(&["sh", "-c", "printf '%s\\n' \"$0\" > /etc/apt/apt.conf.d/30aptmesh", &setting]);
    client
}

/// What a container's metrics say at the moment.
fn metrics(container: &Container) -> String {
    let admin = SocketAddr::new(container.ip().parse().unwrap(), 9978);
    String::from_utf8(get(admin, "/metrics").body).unwrap()
}

/// A metric's value in an exposition.
fn value(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or_default() as u64
}
