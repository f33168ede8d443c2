//! The files of a site, held against each other: nothing of them runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What compose itself reads.
const OF_COMPOSE: [&str; 2] = ["COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"];
/// Only for a second site on the same machine.
const OF_SECOND: [&str; 3] = ["FIRST_PROJECT", "SITE_DHT_PORT", "SITE_NAME"];

#[test]
fn every_variable_gets_to_a_container() {
    let compose = read("compose.yaml");
    let second = read("compose.second.yaml");
    let handed = variables_used(&(compose.clone() + &second));
    let told = variables_told(&read(".env"));
    let known: BTreeSet<_> = OF_COMPOSE.iter().chain(&OF_SECOND).map(|&it| it.to_owned()).collect();
    for variable in told.difference(&known) {
        assert!(handed.contains(variable), "nobody is handed {variable} of .env");
    }
    for variable in handed.difference(&known) {
        assert!(told.contains(variable), ".env does not have {variable}");
    }
    for variable in variables_told(&read("second.env")).difference(&known) {
        assert!(handed.contains(variable), "nobody is handed {variable} of second.env");
    }
    // A setting, under its own name.
    for setting in handed.iter().filter(|variable| variable.starts_with("APTMESH_")) {
        assert!(compose.contains(&format!(" {setting}: ${{{setting}:-")), "{setting}");
    }
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect(file)
}

/// The names in `${NAME:-…}`.
fn variables_used(text: &str) -> BTreeSet<String> {
    let starts = text.split("${").skip(1);
    starts.filter_map(|rest| Some(rest.split_once(":-")?.0.to_owned())).collect()
}

/// The names in `NAME=…`.
fn variables_told(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect()
}
