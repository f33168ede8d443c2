//! What is in `dashboards/`, by itself: rules that promtool accepts and whose tests pass, panels that
//! Grafana can draw, metrics that the source declares, and a section of the handbook for each alert.
//! What a running Prometheus makes of it is in `tests/e2e/observability.rs`.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const DASHBOARDS: [&str; 2] = ["aptmesh-overview", "aptmesh-swarm"];
/// Grafana's grid.
const COLUMNS: u64 = 24;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboards() -> Vec<(&'static str, Value)> {
    let parse = |name| serde_json::from_str(&read(&format!("dashboards/{name}.json"))).unwrap();
    DASHBOARDS.into_iter().map(|name| (name, parse(name))).collect()
}

/// The values of a key in the rules: one a line.
fn in_rules(key: &str) -> Vec<String> {
    let rules = read("dashboards/alerts.yaml");
    let values = rules.lines().filter_map(|line| line.trim().split_once(key));
    values.filter(|(before, _)| before.is_empty()).map(|(_, value)| value.to_owned()).collect()
}

fn promtool(arguments: &[&str]) -> String {
    let run = Command::new("promtool").args(arguments).output();
    let run = run.expect("promtool of Debian's package prometheus: make needs");
    let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    assert!(run.status.success(), "promtool {}: {said}", arguments.join(" "));
    said
}

/// Words that begin like our metrics; not what a `*` completes.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| word.starts_with("aptmesh_") && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// All names that the source declares: they are literals.
fn declared() -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.is_dir() => walk(&path, found),
                path => {
                    let source = fs::read_to_string(path).unwrap();
                    found.extend(
                        metrics_in(&source)
                            .into_iter()
                            .filter(|name| source.contains(&format!("\"{name}\""))),
                    );
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(Path::new("src"), &mut found);
    found
}

#[test]
fn the_rules_are_valid_and_their_tests_pass() {
    promtool(&["check", "rules", "dashboards/alerts.yaml"]);
    promtool(&["test", "rules", "dashboards/alerts.test.yaml"]);
}

#[test]
fn each_alert_is_tested_to_fire() {
    let tests = read("dashboards/alerts.test.yaml");
    for alert in in_rules("- alert: ") {
        let fires = format!("alertname=\"{alert}\", alertstate=\"firing\"");
        assert!(tests.contains(&fires), "no test has {alert} fire");
    }
}

#[test]
fn each_alert_leads_to_a_section_that_is_there() {
    let (alerts, links) = (in_rules("- alert: "), in_rules("runbook_url: "));
    assert!(!alerts.is_empty());
    let handbook = read("docs/operations.md");
    let headings: Vec<&str> =
        handbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let wanted: Vec<String> =
        alerts.iter().map(|name| format!("docs/operations.md#{}", name.to_lowercase())).collect();
    assert_eq!(links, wanted);
    for alert in &alerts {
        assert!(headings.contains(&alert.as_str()), "docs/operations.md has no section {alert}");
    }
    for heading in headings.iter().filter(|heading| heading.starts_with("Aptmesh")) {
        assert!(alerts.iter().any(|alert| alert == heading), "there is no alert {heading}");
    }
}

#[test]
fn they_name_metrics_that_there_are() {
    let declared = declared();
    assert!(declared.len() > 60);
    let is_there = |name: &str| {
        let parts = ["", "_bucket", "_sum", "_count"];
        let mut bases = parts.iter().filter_map(|part| name.strip_suffix(part));
        bases.any(|base| declared.contains(base))
    };
    let files = DASHBOARDS.map(|name| format!("dashboards/{name}.json"));
    let files = files.iter().map(String::as_str);
    for file in files.chain(["dashboards/alerts.yaml", "docs/operations.md"]) {
        for name in metrics_in(&read(file)) {
            assert!(is_there(&name), "{file} names {name}, which the source does not declare");
        }
    }
}

#[test]
fn grafana_can_draw_them() {
    let mut uids = BTreeSet::new();
    for (name, board) in dashboards() {
        assert_eq!(board["uid"], name);
        assert!(uids.insert(name), "{name} is not the only one");
        let variables: Vec<&str> = board["templating"]["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|variable| variable["name"].as_str().unwrap())
            .collect();
        assert_eq!(variables, ["datasource", "job", "instance"], "{name}");
        let panels = board["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{name}: panels share an id");
        assert_nothing_overlaps(name, panels);
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let title = panel["title"].as_str().unwrap();
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{name}: {title} draws nothing");
            for target in targets {
                assert_eq!(target["datasource"]["uid"], "$datasource", "{name}: {title}");
                let expression = target["expr"].as_str().unwrap();
                let chosen = "job=~\"$job\",instance=~\"$instance\"";
                assert!(expression.contains(chosen), "{name}: {title} shows all targets");
            }
        }
    }
}

fn assert_nothing_overlaps(name: &str, panels: &[Value]) {
    let mut taken = BTreeSet::new();
    for panel in panels {
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
        assert!(x + w <= COLUMNS, "{name}: {} does not fit", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{name}: {} lies over another", panel["title"]);
        }
    }
}
