//! What operators see, with the programs that they see it with: a real Prometheus has data for every
//! panel of the dashboards, and each alert's condition holds when its fault is there, and not before.

use crate::kit::fleet::migrated;
use crate::kit::prometheus::Prometheus;
use crate::kit::*;
use crate::swarm::{FROM_PEERS, PATIENCE, Swarm};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

const MB: usize = 1024 * 1024;
const DASHBOARDS: [&str; 2] = ["aptmesh-overview", "aptmesh-swarm"];

/// Two sites, each on a database, of which the second one has most of what it serves from the first.
struct Busy {
    swarm: Swarm,
    sites: [Site; 2],
    _server: Postgres,
}

impl Busy {
    fn new() -> Self {
        let names = ["large", "larger", "small", "smaller"];
        let swarm = Swarm::of(&[
            (names[0], 5 * MB),
            (names[1], 3 * MB),
            (names[2], 9_000),
            (names[3], 5_000),
        ]);
        let server = Postgres::start();
        let site = |seeds: &[&Site]| {
            let url = migrated(&server);
            swarm.site_with(seeds, &[("INDEX_URL", &url), ("STORE_QUOTA", "1GiB")])
        };
        let one = site(&[]);
        for name in names {
            swarm.fetch(&one, name);
        }
        // On a busy machine a mirror that is not slow may be the sooner one.
        swarm.publish(|file| file.rate(MB as u64));
        let two = site(&[&one]);
        swarm.wait_found(&two, names[0], &[&one]);
        Self { swarm, sites: [one, two], _server: server }
    }

    fn targets(&self) -> [SocketAddr; 2] {
        [self.sites[0].admin(), self.sites[1].admin()]
    }

    /// The second site's clients come.
    fn serve(&self) {
        let [one, two] = &self.sites;
        for name in ["large", "larger", "small", "smaller"] {
            self.swarm.fetch(two, name);
            self.swarm.fetch(two, name);
            self.swarm.fetch(one, name);
        }
        assert!(two.count(FROM_PEERS) > 4 * MB as u64);
    }

    fn metrics(&self, site: usize) -> String {
        String::from_utf8(get(self.sites[site].admin(), "/metrics").body).unwrap()
    }
}

fn read(dashboard: &str) -> Value {
    let path = format!("{}/dashboards/{dashboard}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What a variable of a dashboard offers to choose from.
fn choices(dashboard: &str, variable: &str, prometheus: &Prometheus) -> Vec<String> {
    let board = read(dashboard);
    let mut variables = board["templating"]["list"].as_array().unwrap().iter();
    let found = variables.find(|one| one["name"] == variable).expect(variable);
    let query = filled_in(found["query"].as_str().unwrap());
    let query = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
    let (selector, label) = query.and_then(|query| query.rsplit_once(", ")).expect("a query");
    prometheus.label_values(selector, label)
}

/// Titles of panels and the expressions that they draw.
fn panels(dashboard: &str) -> Vec<(String, String)> {
    let board = read(dashboard);
    let mut drawn = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            drawn.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    drawn
}

/// As Grafana fills it in, with all jobs and instances, for a while in which something happened.
fn filled_in(expression: &str) -> String {
    let variables =
        [("$__rate_interval", "5m"), ("$__range", "5m"), ("$job", ".+"), ("$instance", ".+")];
    let filled = variables
        .iter()
        .fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
    assert!(!filled.contains('$'), "{filled}");
    filled
}

/// The selectors of our metrics within an expression, such as `aptmesh_store_up{job="a"}`.
fn selectors(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in expression.match_indices("aptmesh_") {
        let rest = &expression[at..];
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let name = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let end = match rest[name..].starts_with('{') {
            true => rest.find('}').expect("an end") + 1,
            false => name,
        };
        found.insert(rest[..end].to_owned());
    }
    found
}

#[test]
fn prometheus_has_data_for_every_panel_and_alert() {
    let busy = Busy::new();
    let prometheus = Prometheus::start("aptmesh", &busy.targets());
    wait_until(PATIENCE, "both are scraped", || prometheus.value("sum(up)") == Some(2.0));
    busy.serve();
    // What counts from nothing is no increase to Prometheus: it must have seen it before.
    let hits = "sum(aptmesh_engine_served_total{outcome=\"hit\"})";
    wait_until(PATIENCE, "their first hits", || prometheus.value(hits).is_some());
    busy.serve();
    for (title, expression) in DASHBOARDS.into_iter().flat_map(panels) {
        let expression = filled_in(&expression);
        let what = format!("data for the panel {title}: {expression}");
        wait_until(PATIENCE, &what, || {
            prometheus.query(&expression).iter().any(|(_, value)| !value.is_nan())
        });
    }
    for dashboard in DASHBOARDS {
        assert_eq!(choices(dashboard, "job", &prometheus), ["aptmesh"]);
        let instances: BTreeSet<String> =
            choices(dashboard, "instance", &prometheus).into_iter().collect();
        assert_eq!(instances, busy.targets().map(|target| target.to_string()).into());
    }
    // They tell what happened.
    let panel = |dashboard: &str, title: &str| {
        let all = panels(dashboard);
        let (_, expression) = all.iter().find(|(name, _)| name == title).expect(title);
        prometheus.value(&filled_in(expression)).unwrap_or_else(|| panic!("{title}: {expression}"))
    };
    let (overview, swarm) = (DASHBOARDS[0], DASHBOARDS[1]);
    assert!(panel(overview, "Not fetched from mirrors") > 0.5);
    assert!(panel(overview, "Fetched from other sites") > 4.0 * MB as f64);
    assert!(panel(swarm, "Share from other sites") > 0.5);
    let well = [("Targets up", 2.0), ("Targets down", 0.0), ("Index", 1.0), ("Volume", 1.0)];
    for (title, wanted) in well {
        assert_eq!(panel(overview, title), wanted, "{title}");
    }

    // What alerts look at is there as well, with the labels by which they choose it; and all is well.
    let alerts = prometheus.alerts();
    assert!(alerts.len() > 15);
    for (alert, expression) in &alerts {
        for selector in selectors(expression) {
            // Whoever runs his node elsewhere has the same metric, and outcomes have their time.
            let there = prometheus.query(&format!("last_over_time({selector}[5m])"));
            let may_miss = ["outcome=~\"failed|late\""].iter().any(|one| selector.contains(one));
            assert!(may_miss || !there.is_empty(), "{alert}: nothing is {selector}");
        }
        let holds = prometheus.query(expression);
        assert!(holds.is_empty(), "{alert}, though all is well: {holds:?}");
    }
    for site in 0..2 {
        assert_well_formed(&busy.metrics(site));
    }
}

/// `promtool check metrics` has nothing to complain of.
fn assert_well_formed(metrics: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Debian's package prometheus");
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let run = promtool.wait_with_output().unwrap();
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(run.status.success() && said.trim().is_empty(), "{said}");
}
