//! The chart's documents: values, the table of them in its README, and the schema that refuses others.

use super::helm::{chart, helm, try_render, yaml};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// What is around the table in README.md.
const MARKS: [&str; 2] =
    ["<!-- values: made by `make helm-readme` -->\n", "<!-- end of values -->\n"];
/// Settings that the chart makes itself, of what its objects are.
const OWN: [&str; 10] = [
    "data.dir",
    "index.url",
    "listen.admin",
    "listen.dht",
    "listen.peer",
    "listen.proxy",
    "listen.sidecar",
    "proxy.advertise",
    "proxy.sidecar",
    "swarm.key",
];

/// With `APTMESH_WRITE_README` set, as by `make helm-readme`, it is brought up to date first.
#[test]
fn the_readme_has_every_value() {
    let path = chart().join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("a mark");
    let (_, after) = rest.split_once(MARKS[1]).expect("another");
    let right = format!("{before}{}{}{}{after}", MARKS[0], table(), MARKS[1]);
    if std::env::var_os("APTMESH_WRITE_README").is_some() {
        fs::write(path, right).unwrap();
    } else {
        assert!(text == right, "{} is out of date: make helm-readme", path.display());
    }
}

#[test]
fn the_schema_knows_exactly_these_values() {
    let schema = schema();
    let mut known = BTreeSet::new();
    leaves_of(&schema, String::new(), &mut known);
    known.remove("global");
    let values: BTreeSet<_> = values().into_iter().map(|value| value.key).collect();
    assert_eq!(known, values);
}

/// Those of docs/settings.toml, but for what the chart sets itself: there a value would have no effect.
#[test]
fn the_schema_knows_the_programs_settings() {
    let settings: toml::Table = fs::read_to_string("docs/settings.toml").unwrap().parse().unwrap();
    let all: BTreeSet<String> = settings
        .iter()
        .flat_map(|(section, keys)| {
            keys.as_table().unwrap().keys().map(move |key| format!("{section}.{key}"))
        })
        .filter(|setting| !OWN.contains(&setting.as_str()))
        .collect();
    let sections = &schema()["properties"]["settings"]["properties"];
    let known: BTreeSet<String> = sections
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(section, schema)| {
            assert_eq!(schema["additionalProperties"], false, "{section}");
            schema["properties"]
                .as_object()
                .unwrap()
                .keys()
                .map(move |key| format!("{section}.{key}"))
        })
        .collect();
    assert_eq!(known, all);
}

/// In each section, and in what lists hold.
#[test]
fn typing_mistakes_are_refused() {
    let mut sections: BTreeSet<String> = values()
        .into_iter()
        .filter_map(|value| value.key.rsplit_once('.').map(|(section, _)| section.to_owned()))
        .collect();
    sections.extend(
        ["", "settings.store", "settings.swarm", "peerService.nodePorts"].map(str::to_owned),
    );
    for section in sections {
        let key = [&section, "mistake"].map(|part| part.trim()).join(".");
        let key = key.trim_start_matches('.');
        let said = try_render("deployment", &[&format!("{key}=1")]).expect_err(key);
        assert!(said.contains("additional properties 'mistake' not allowed"), "{key}: {said}");
    }
    for wrong in [
        r#"mode="daemonset""#,
        r#"replicas="two""#,
        r#"service.type="Loadbalancer""#,
        r#"service.port=99770"#,
        r#"image.digest="sha256:12""#,
        r#"persistence.size="200 GB""#,
        r#"settings.store.quota={"bytes":1}"#,
        r#"client.url="https://cache.example.org""#,
        r#"networkPolicy.clients=[{"cidr":"10.0.0.0/8"}]"#,
        r#"proxy.resources={"limit":{"memory":"1Gi"}}"#,
        r#"extraEnv=[{"nam":"TZ"}]"#,
    ] {
        let said = try_render("deployment", &[wrong]).expect_err(wrong);
        assert!(said.contains("don't meet the specifications of the schema"), "{wrong}: {said}");
    }
}

/// What contradicts itself is told before anything is made.
#[test]
fn contradictions_are_told() {
    for (example, values, why) in [
        (
            "deployment",
            r#"index.existingSecret="""#,
            "try it out with --set postgresql.enabled=true",
        ),
        ("deployment", "postgresql.enabled=true", "which of the two?"),
        ("bundled", r#"migration.existingSecret="owner""#, "is for a database of yours"),
        ("deployment", "persistence.enabled=false", "use mode: statefulset"),
        ("statefulset", r#"persistence.existingClaim="blobs""#, "use mode: deployment"),
        ("deployment", "client.daemonSet.enabled=true", "nodes can not resolve the Service's name"),
    ] {
        let said = try_render(example, &[values]).expect_err(why);
        assert!(said.contains(why), "{values}: {said}");
    }
}

/// NOTES.txt is rendered for every way to reach the cache, and says what comes next.
#[test]
fn the_notes_say_what_comes_next() {
    let notes = |values: &[&str]| {
        let chart = chart().display().to_string();
        let file = super::helm::example("deployment");
        let mut all = vec!["install", "aptmesh", &chart, "--dry-run=client", "--values", &file];
        all.extend(values.iter().flat_map(|value| ["--set-json", value]));
        let said = helm(&all).unwrap();
        said.split_once("NOTES:").expect("notes").1.to_owned()
    };
    let plain = notes(&[]);
    for next in
        ["rollout status deployment/aptmesh", "test aptmesh", "http://aptmesh.", "aptmesh-swarm"]
    {
        assert!(plain.contains(next), "{next} in {plain}");
    }
    for (values, next) in [
        (r#"service.type="LoadBalancer""#, "status.loadBalancer.ingress"),
        (r#"service.type="NodePort""#, "spec.ports[0].nodePort"),
        (r#"client.url="http://192.0.2.7:80""#, "client-config --url http://192.0.2.7:80"),
    ] {
        assert!(!plain.contains(next) && notes(&[values]).contains(next), "{next}");
    }
    let told = notes(&[r#"swarm.existingSecret="mine""#]);
    assert!(!told.contains("A swarm's key was made"), "{told}");
}

/// A value of values.yaml.
pub struct Documented {
    pub key: String,
    default: String,
    about: String,
}

/// All of them, in their order. Each is on one line, below its comment.
pub fn values() -> Vec<Documented> {
    let text = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let mut values = Vec::new();
    let mut path: Vec<&str> = Vec::new();
    let mut about: Vec<&str> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if let Some(comment) = trimmed.strip_prefix("# ") {
            about.push(comment);
            continue;
        }
        if let Some((name, default)) = trimmed.split_once(':') {
            path.truncate((line.len() - trimmed.len()) / 2);
            path.push(name);
            if !default.is_empty() {
                assert!(!about.is_empty(), "{} has no comment in values.yaml", path.join("."));
                let (key, default) = (path.join("."), default.trim().to_owned());
                values.push(Documented { key, default, about: about.join(" ") });
            }
        }
        about.clear();
    }
    values
}

fn table() -> String {
    let mut table = "| value | default | what it is |\n|---|---|---|\n".to_owned();
    for Documented { key, default, about } in values() {
        let about = about.replace('|', "\\|");
        table.push_str(&format!("| `{key}` | `{default}` | {about} |\n"));
    }
    table
}

fn schema() -> Value {
    let text = fs::read_to_string(chart().join("values.schema.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The keys that a schema names. A section whose members have defaults in one line is one value in the file.
fn leaves_of(schema: &Value, key: String, leaves: &mut BTreeSet<String>) {
    let in_one_line = values().iter().any(|value| value.key == key);
    match schema["properties"].as_object() {
        Some(members) if !in_one_line => {
            assert_eq!(schema["additionalProperties"], false, "{key}");
            for (name, member) in members {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                leaves_of(member, key, leaves);
            }
        }
        _ => drop(leaves.insert(key)),
    }
}

/// The lines are read as YAML reads them.
#[test]
fn the_table_has_yamls_own_defaults() {
    let file = &yaml(&fs::read_to_string(chart().join("values.yaml")).unwrap())[0];
    let listed: String = values().iter().map(|value| format!("- {}\n", value.default)).collect();
    let listed = &yaml(&listed)[0];
    for (number, Documented { key, .. }) in values().iter().enumerate() {
        let pointer = format!("/{}", key.replace('.', "/"));
        assert_eq!(file.pointer(&pointer), Some(&listed[number]), "{key}");
    }
}
