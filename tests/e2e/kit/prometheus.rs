//! The real Prometheus, as operators run it.

use super::postgres::free_port;
use super::{client, wait_until};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const START_TIME: Duration = Duration::from_secs(60);
/// Whom it scrapes.
const TARGETS: &str = "targets.yaml";
/// For how long an alert's condition has to hold here, in place of minutes.
const FOR: &str = "2s";

/// A server that looks at its targets every second. It is killed when it is dropped.
pub struct Prometheus {
    address: SocketAddr,
    server: Child,
    folder: TempDir,
}

impl Prometheus {
    /// Scrapes these for a job of this name, and has the repository's alerts, which fire after seconds rather than minutes.
    pub fn start(job: &str, targets: &[SocketAddr]) -> Self {
        let labelled: Vec<_> = targets.iter().map(|target| (*target, String::new())).collect();
        Self::with_rules(job, &labelled, soon)
    }

    /// Scrapes these, with the alerts as they are; series of each target have these labels, such as `site: north`.
    pub fn start_with(job: &str, targets: &[(SocketAddr, String)]) -> Self {
        Self::with_rules(job, targets, str::to_owned)
    }

    fn with_rules(
        job: &str,
        targets: &[(SocketAddr, String)],
        changed: impl Fn(&str) -> String,
    ) -> Self {
        let folder = TempDir::new().expect("a folder");
        let alerts = format!("{}/dashboards/alerts.yaml", env!("CARGO_MANIFEST_DIR"));
        fs::write(folder.path().join("alerts.yaml"), changed(&fs::read_to_string(alerts).unwrap()))
            .expect("alerts");
        write_targets(&folder, targets);
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [alerts.yaml]\n\
             scrape_configs:\n- job_name: {job}\n  file_sd_configs: [{{files: [{TARGETS}]}}]\n"
        );
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).expect("a file");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let server = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Debian's package prometheus");
        let prometheus = Self { address, server, folder };
        wait_until(START_TIME, "Prometheus", || prometheus.is_ready());
        prometheus
    }

    /// From now on scrapes these, as where targets are found by name.
    pub fn retarget(&self, targets: &[SocketAddr]) {
        let labelled: Vec<_> = targets.iter().map(|target| (*target, String::new())).collect();
        write_targets(&self.folder, &labelled);
    }

    fn is_ready(&self) -> bool {
        std::net::TcpStream::connect(self.address).is_ok()
            && client::get(self.address, "/-/ready").status == 200
    }

    /// What it has for an expression now: labels and values.
    pub fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        self.results(expression, "/api/v1/query?", |one| sample(&one["value"]).1)
    }

    /// What it had at a time, in seconds since 1970.
    pub fn query_at(&self, expression: &str, time: f64) -> Vec<(Value, f64)> {
        let way = format!("/api/v1/query?time={time}&");
        self.results(expression, &way, |one| sample(&one["value"]).1)
    }

    /// What it had within that time, every second: labels, and times with values.
    pub fn query_range(
        &self,
        expression: &str,
        from: f64,
        to: f64,
    ) -> Vec<(Value, Vec<(f64, f64)>)> {
        let way = format!("/api/v1/query_range?start={from}&end={to}&step=1&");
        let values =
            |one: &Value| one["values"].as_array().expect("values").iter().map(sample).collect();
        self.results(expression, &way, values)
    }

    fn results<V>(
        &self,
        expression: &str,
        way: &str,
        value: impl Fn(&Value) -> V,
    ) -> Vec<(Value, V)> {
        let encoded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let found = self.api(&format!("{way}query={encoded}"));
        let found = found["result"].as_array().unwrap_or_else(|| panic!("{expression}: {found}"));
        found.iter().map(|one| (one["metric"].clone(), value(one))).collect()
    }

    /// The value of an expression that has only one; `None`: it has none, or it is no number.
    pub fn value(&self, expression: &str) -> Option<f64> {
        let found = self.query(expression);
        assert!(found.len() <= 1, "{expression}: {found:?}");
        found.first().map(|(_, value)| *value).filter(|value| !value.is_nan())
    }

    /// The values of a label of what this selects.
    pub fn label_values(&self, selector: &str, label: &str) -> Vec<String> {
        let encoded = utf8_percent_encode(selector, NON_ALPHANUMERIC);
        let found = self.api(&format!("/api/v1/label/{label}/values?match[]={encoded}"));
        let found = found.as_array().expect("values").iter();
        found.map(|value| value.as_str().expect("a value").to_owned()).collect()
    }

    /// Alerts and their expressions.
    pub fn alerts(&self) -> Vec<(String, String)> {
        let groups = self.api("/api/v1/rules");
        let groups = groups["groups"].as_array().expect("groups").iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
        let words = |rule: &Value, key: &str| rule[key].as_str().expect("words").to_owned();
        rules.map(|rule| (words(rule, "name"), words(rule, "query"))).collect()
    }

    fn api(&self, target: &str) -> Value {
        let reply = client::get(self.address, target);
        let said: Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(said["status"], "success", "{target}: {said}\n{}", self.log());
        said["data"].clone()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// The rules, with [`FOR`] in place of all `for`.
fn soon(rules: &str) -> String {
    let line = |line: &str| match line.trim_start().strip_prefix("for: ") {
        Some(long) => line.replace(long, FOR),
        None => line.to_owned(),
    };
    rules.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn write_targets(folder: &TempDir, targets: &[(SocketAddr, String)]) {
    let target = |(target, labels): &(SocketAddr, String)| {
        format!("{{targets: ['{target}'], labels: {{{labels}}}}}")
    };
    let targets: Vec<String> = targets.iter().map(target).collect();
    let file = folder.path().join(TARGETS);
    let new = file.with_extension("new");
    fs::write(&new, format!("[{}]\n", targets.join(", "))).expect("a file");
    fs::rename(new, file).expect("a file in its place");
}

/// A time and its value.
fn sample(pair: &Value) -> (f64, f64) {
    let value = pair[1].as_str().expect("a value").parse().expect("a number");
    (pair[0].as_f64().expect("a time"), value)
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}
