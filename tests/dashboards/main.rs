//! What is in `dashboards/`, by itself: rules that promtool accepts and whose tests pass, panels that
//! Grafana can draw, metrics that there are, and a section of the handbook for each alert.
//! What a running Prometheus makes of it is in `tests/e2e/observability.rs`.

mod source;

use serde_json::Value;
use source::{BOARDS, COLOURS, COLUMNS, HERE, LABELS, made};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// Has the dashboards written, rather than compared: `make dashboards`.
const WRITE: &str = "APTMESH_WRITE_DASHBOARDS";

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn file(board: &str) -> String {
    format!("dashboards/aptmesh-{board}.json")
}

/// Names and contents.
fn dashboards() -> Vec<(String, Value)> {
    let parse = |board| serde_json::from_str(&read(&file(board))).unwrap();
    BOARDS.into_iter().map(|board| (format!("aptmesh-{board}"), parse(board))).collect()
}

fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    let all = board["panels"].as_array().unwrap().iter();
    all.filter(|panel| panel["type"] != "row")
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
    // Written from the program: `tests/e2e/metrics.rs` sees to that.
    let declared = metrics_in(&read("docs/metrics.md"));
    assert!(declared.len() > 60);
    let is_there = |name: &str| {
        let parts = ["", "_bucket", "_sum", "_count"];
        let mut bases = parts.iter().filter_map(|part| name.strip_suffix(part));
        bases.any(|base| declared.contains(base))
    };
    let files = BOARDS.map(file);
    let files = files.iter().map(String::as_str);
    for file in files.chain(["dashboards/alerts.yaml", "docs/operations.md"]) {
        for name in metrics_in(&read(file)) {
            assert!(is_there(&name), "{file} names {name}, which docs/metrics.md does not know");
        }
    }
}

#[test]
fn they_are_what_their_sources_make() {
    for board in BOARDS {
        if std::env::var_os(WRITE).is_some() {
            fs::write(file(board), made(board)).unwrap();
        }
        assert!(
            read(&file(board)) == made(board),
            "{} is out of date: make dashboards",
            file(board)
        );
    }
    let there = fs::read_dir("dashboards").unwrap().map(|entry| entry.unwrap().path());
    let count = there.filter(|path| path.extension().is_some_and(|end| end == "json")).count();
    assert_eq!(count, BOARDS.len(), "a dashboard has no source");
}

#[test]
fn grafana_can_draw_them() {
    for (name, board) in dashboards() {
        assert_eq!(board["uid"], *name);
        let variables = variables(&board);
        assert_eq!(variables[..4], ["datasource", "by", "site", "instance"], "{name}");
        let all = board["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = all.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), all.len(), "{name}: panels share an id");
        assert_nothing_overlaps(&name, all);
        for panel in panels(&board) {
            let title = panel["title"].as_str().unwrap();
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{name}: {title} draws nothing");
            for target in targets {
                assert_eq!(target["datasource"]["uid"], "$datasource", "{name}: {title}");
                let expression = target["expr"].as_str().unwrap();
                // Alerts of the whole fleet: some have no site.
                let is_chosen = expression.contains(HERE) || expression.contains("ALERTS{");
                assert!(is_chosen, "{name}: {title} shows all targets");
            }
        }
    }
}

/// Grafana does not draw what is below the least value of an axis, nor a point that is alone between two gaps unless it is
/// told to.
#[test]
fn nothing_that_they_draw_is_out_of_sight() {
    for (name, board) in dashboards() {
        for panel in panels(&board).filter(|panel| panel["type"] == "timeseries") {
            let (title, defaults) = (&panel["title"], &panel["fieldConfig"]["defaults"]);
            let expressions = panel["targets"].as_array().unwrap().iter();
            let mut differences =
                expressions.filter(|one| one["expr"].as_str().unwrap().contains(") - sum"));
            assert!(differences.next().is_none() || defaults["min"].is_null(), "{name}, {title}");
            assert_eq!(defaults["custom"]["showPoints"], "auto", "{name}, {title}");
        }
    }
}

/// All files below a folder, one after the other.
fn sources(folder: &str) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: std::path::PathBuf| match path.is_dir() {
        true => sources(path.to_str().unwrap()),
        false => fs::read_to_string(path).unwrap(),
    };
    entries.map(text).collect()
}

/// Savings first, then health; what mirrors and lists tell saves nothing.
#[test]
fn each_begins_with_what_it_saves() {
    for (name, board) in dashboards() {
        let rows = board["panels"].as_array().unwrap().iter();
        let rows: Vec<&Value> =
            rows.filter(|panel| panel["type"] == "row").map(|row| &row["title"]).collect();
        let wanted =
            if name == "aptmesh-mirrors" { ["Now", "Answers"] } else { ["Savings", "Health"] };
        assert_eq!(rows[..2], wanted, "{name}");
    }
}

/// What has a colour is drawn somewhere, and what a label may be called has a colour.
#[test]
fn each_colour_is_borne_by_something() {
    let boards = dashboards();
    let overrides = boards
        .iter()
        .flat_map(|(_, board)| panels(board))
        .flat_map(|panel| panel["fieldConfig"]["overrides"].as_array().unwrap());
    let named = overrides.filter_map(|one| one["matcher"]["options"].as_str());
    let borne: BTreeSet<&str> =
        named.flat_map(|names| names.split(['/', '^', '(', '|', ')', '$'])).collect();
    let words: BTreeSet<&str> = COLOURS.iter().flat_map(|(_, words)| *words).copied().collect();
    let unused: Vec<&&str> = words.difference(&borne).collect();
    assert!(unused.is_empty(), "nothing bears {unused:?}");
    let labels: BTreeSet<&str> = LABELS.iter().flat_map(|(_, words)| *words).copied().collect();
    let plain: Vec<&&str> = labels.difference(&words).collect();
    assert!(plain.is_empty(), "these have no colour: {plain:?}");
    let source = sources("src");
    let unknown = labels.into_iter().filter(|word| !source.contains(&format!("\"{word}\"")));
    let unknown: Vec<&str> = unknown.collect();
    assert!(unknown.is_empty(), "the source has no {unknown:?}");
}

#[test]
fn each_panel_says_what_it_shows_and_what_is_bad() {
    for (name, board) in dashboards() {
        let mut titles = BTreeSet::new();
        for panel in panels(&board) {
            let title = panel["title"].as_str().unwrap();
            assert!(titles.insert(title), "{name} has two panels {title}");
            let about = panel["description"].as_str().unwrap();
            assert!(about.contains("Bad: "), "{name}, {title}: {about}");
        }
    }
    let alerts = in_rules("- alert: ");
    for (name, board) in dashboards() {
        let text = board.to_string();
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
        for word in words.filter(|word| word.starts_with("Aptmesh") && *word != "Aptmesh") {
            assert!(alerts.iter().any(|alert| alert == word), "{name}: there is no alert {word}");
        }
    }
}

#[test]
fn each_leads_to_the_others() {
    let boards = dashboards();
    for (name, board) in &boards {
        let link = &board["links"][0];
        assert!(link["type"] == "dashboards" && link["includeVars"] == true, "{name}");
        // Which is how that link finds them.
        assert_eq!(board["tags"], link["tags"], "{name}");
        for panel in panels(board) {
            for link in panel["fieldConfig"]["defaults"]["links"].as_array().into_iter().flatten() {
                let url = link["url"].as_str().unwrap();
                let (target, query) = url.split_once('?').unwrap();
                let target = target.strip_prefix("/d/").unwrap();
                let there = boards.iter().find(|(name, _)| name == target).expect(target);
                let variables = variables(&there.1);
                for named in query.split('&').filter_map(|one| one.strip_prefix("var-")) {
                    let variable = named.split_once('=').unwrap().0;
                    assert!(variables.contains(&variable), "{url}: {target} has no {variable}");
                }
            }
        }
    }
}

fn variables(board: &Value) -> Vec<&str> {
    let list = board["templating"]["list"].as_array().unwrap().iter();
    list.map(|variable| variable["name"].as_str().unwrap()).collect()
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
