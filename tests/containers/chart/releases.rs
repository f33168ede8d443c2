//! A release's life in the real helm's own order: what comes before what, what stays, what ends it.

use super::cluster::Cluster;
use super::helm::{chart, example};

/// The arguments of `helm install` or `helm upgrade` of an example.
fn with(
    cluster: &Cluster,
    verb: &str,
    example_name: &str,
    values: &[&str],
) -> Result<String, String> {
    let (chart, file) = (chart().display().to_string(), example(example_name));
    let mut arguments = vec![verb, "aptmesh", &chart, "--values", &file, "--timeout", "60s"];
    arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
    cluster.helm(&arguments)
}

fn place(changes: &[String], change: &str) -> usize {
    let found = changes.iter().position(|other| other == change);
    found.unwrap_or_else(|| panic!("no {change} in {changes:#?}"))
}

/// Each time the Job ends before anything else is made or changed.
#[test]
fn the_schema_is_migrated_before_replicas_are_touched() {
    let cluster = Cluster::start();
    with(&cluster, "install", "deployment", &[]).unwrap();
    let changes = cluster.changes();
    let hooks = [
        "create NetworkPolicy/aptmesh-migrate",
        "create Job/aptmesh-migrate",
        "delete Job/aptmesh-migrate",
        "delete NetworkPolicy/aptmesh-migrate",
    ];
    assert_eq!(changes[..4], hooks.map(str::to_owned), "{changes:#?}");
    assert!(place(&changes, "create Deployment/aptmesh") > 3);

    with(&cluster, "upgrade", "deployment", &[r#"image.tag="next""#]).unwrap();
    let changes = cluster.changes();
    assert_eq!(changes[..4], hooks.map(str::to_owned), "{changes:#?}");
    assert!(place(&changes, "change Deployment/aptmesh") > 3);
    assert_eq!(image(&cluster), "aptmesh:next");

    cluster.helm(&["rollback", "aptmesh", "1", "--timeout", "60s"]).unwrap();
    let changes = cluster.changes();
    assert_eq!(changes[..4], hooks.map(str::to_owned), "{changes:#?}");
    assert!(place(&changes, "change Deployment/aptmesh") > 3);
    assert_ne!(image(&cluster), "aptmesh:next");
}

/// Where the schema can not be brought up to date, or does not suit the older program, replicas stay as they are.
#[test]
fn a_migration_that_fails_ends_an_upgrade_and_a_rollback() {
    let cluster = Cluster::start();
    with(&cluster, "install", "deployment", &[]).unwrap();
    with(&cluster, "upgrade", "deployment", &[r#"image.tag="next""#]).unwrap();
    cluster.changes();

    cluster.make_jobs_fail(true);
    with(&cluster, "upgrade", "deployment", &[r#"image.tag="worse""#]).unwrap_err();
    cluster.helm(&["rollback", "aptmesh", "1", "--timeout", "60s"]).unwrap_err();
    let changes = cluster.changes();
    let touched = |change: &String| !change.ends_with("/aptmesh-migrate");
    assert!(!changes.iter().any(touched), "{changes:#?}");
    assert_eq!(image(&cluster), "aptmesh:next");
    assert!(cluster.get("Job", "aptmesh-migrate").is_some(), "it stays, with its log");

    // Helm takes a rollback that a hook refused for one that goes on, until there is another: to what runs.
    cluster.make_jobs_fail(false);
    cluster.helm(&["rollback", "aptmesh", "2", "--timeout", "60s"]).unwrap();
    assert_eq!(image(&cluster), "aptmesh:next");
    with(&cluster, "upgrade", "deployment", &[r#"image.tag="better""#]).unwrap();
    assert_eq!(image(&cluster), "aptmesh:better");
}

/// They are made once, and outlive the release.
#[test]
fn secrets_stay_as_they_were_made() {
    let cluster = Cluster::start();
    let secrets = || {
        ["aptmesh-swarm", "aptmesh-postgresql"]
            .map(|name| cluster.get("Secret", name).expect("a Secret")["data"].clone())
    };
    with(&cluster, "install", "try", &[]).unwrap();
    let made = secrets();
    with(&cluster, "upgrade", "try", &["replicas=3"]).unwrap();
    assert_eq!(secrets(), made);
    cluster.helm(&["uninstall", "aptmesh"]).unwrap();
    assert!(cluster.get("StatefulSet", "aptmesh").is_none());
    assert_eq!(secrets(), made);
    with(&cluster, "install", "try", &[]).unwrap();
    assert_eq!(secrets(), made);
}

/// With the bundled database nothing is waited for before it is there, nor after replicas that wait for it.
#[test]
fn a_bundled_database_needs_no_hook() {
    let cluster = Cluster::start();
    cluster.make_jobs_fail(true);
    for verb in ["install", "upgrade"] {
        with(&cluster, verb, "try", &[]).unwrap();
    }
    cluster.helm(&["rollback", "aptmesh", "1"]).unwrap();
    assert!(!cluster.changes().iter().any(|change| change.contains("Job/")));
}

#[test]
fn helm_test_runs_a_client() {
    let cluster = Cluster::start();
    with(&cluster, "install", "try", &[]).unwrap();
    assert!(cluster.get("Pod", "aptmesh-test").is_none(), "only when asked");
    let said = cluster.helm(&["test", "aptmesh", "--timeout", "60s"]).unwrap();
    assert!(said.contains("Phase:") && said.contains("Succeeded"), "{said}");
    cluster.make_jobs_fail(true);
    cluster.helm(&["test", "aptmesh", "--timeout", "60s"]).unwrap_err();
}

fn image(cluster: &Cluster) -> String {
    let deployment = cluster.get("Deployment", "aptmesh").expect("replicas");
    deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
}
