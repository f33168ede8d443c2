//! The chart as it is given to others.

use super::helm::{Manifests, chart, example, examples, helm, template, yaml};
use base64::Engine as _;
use std::fs;
use tempfile::TempDir;

#[test]
fn helm_finds_nothing_to_complain_about() {
    let chart = chart().display().to_string();
    for name in examples() {
        let file = example(&name);
        let said = helm(&["lint", "--strict", "--values", &file, &chart]);
        let said = said.unwrap_or_else(|said| panic!("{name}: {said}"));
        assert!(!said.contains("[WARNING]") && !said.contains("[ERROR]"), "{name}: {said}");
    }
}

#[test]
fn a_package_makes_the_same_release() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().display().to_string();
    let source = chart().display().to_string();
    helm(&["package", &source, "--destination", &place]).unwrap();
    let packages: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
    let [package] = &packages[..] else { panic!("{packages:?}") };
    let package = package.display().to_string();
    // This one makes no secrets, so all of it is the same each time.
    let file = example("full");
    let [one, other] =
        [&source, &package].map(|from| template(from, &["--values", &file]).unwrap());
    assert_eq!(one, other);
    let shown = helm(&["show", "readme", &package]).unwrap();
    assert_eq!(shown.trim(), fs::read_to_string(chart().join("README.md")).unwrap().trim());
}

/// `helm/aptmesh/dashboards` leads to the folder that Compose and the tests of the metrics use.
#[test]
fn dashboards_and_alerts_are_the_repositorys() {
    let text = template(&chart().display().to_string(), &["--values", &example("full")]).unwrap();
    let release = Manifests::read(&text);
    let mut boards = 0;
    for file in fs::read_dir("dashboards").unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(short) = name.strip_suffix(".json") else { continue };
        let short = short.trim_start_matches("aptmesh-");
        let map = release.get("ConfigMap", &format!("cache-dashboard-{short}"));
        let [given, there] =
            [map["data"][&name].as_str().unwrap(), &fs::read_to_string(path).unwrap()].map(json);
        assert_eq!(given, there, "{name}");
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
        boards += 1;
    }
    assert!(boards > 0, "there are dashboards");
    assert_eq!(release.0.iter().filter(|object| is_board(object)).count(), boards);

    let text = fs::read_to_string("dashboards/alerts.yaml").unwrap();
    let alerts = yaml(&text);
    let rules = release.get("PrometheusRule", "cache");
    assert_eq!(rules["spec"], alerts[0]);
    assert!(rules["spec"]["groups"][0]["rules"][0]["alert"].is_string(), "{rules}");

    let handbook = "https://wiki.example.org/aptmesh";
    let value = format!("prometheusRule.handbook={handbook}");
    let linked =
        template(&chart().display().to_string(), &["--values", &example("full"), "--set", &value]);
    let linked = Manifests::read(&linked.unwrap());
    let links = yaml(
        &text.replace("runbook_url: docs/operations.md#", &format!("runbook_url: {handbook}#")),
    );
    assert_eq!(linked.get("PrometheusRule", "cache")["spec"], links[0]);
    assert_ne!(links[0], alerts[0]);
}

/// The versions of chart and program are those of the repository.
#[test]
fn its_program_is_of_this_version() {
    let about = fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    assert!(about.contains(&format!("appVersion: \"{}\"", env!("CARGO_PKG_VERSION"))), "{about}");
}

/// Of Prometheus' operator's objects there are no schemas here: what is in them, field by field.
#[test]
fn custom_resources_are_what_the_operator_knows() {
    let text = template(&chart().display().to_string(), &["--values", &example("full")]).unwrap();
    let release = Manifests::read(&text);
    let custom: Vec<_> = release
        .0
        .iter()
        .filter(|object| object["apiVersion"] == "monitoring.coreos.com/v1")
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    assert_eq!(custom, ["PrometheusRule", "ServiceMonitor"]);

    let monitor = &release.get("ServiceMonitor", "cache")["spec"];
    let service = release.get("Service", "cache-admin");
    let labels = monitor["selector"]["matchLabels"].as_object().unwrap();
    assert!(labels.iter().all(|(key, value)| service["metadata"]["labels"][key] == *value));
    let others = release.of_kind("Service").into_iter().filter(|other| *other != service);
    for other in others {
        let is_found = labels.iter().all(|(key, value)| other["metadata"]["labels"][key] == *value);
        assert!(!is_found, "{other}");
    }
    let endpoints = monitor["endpoints"].as_array().unwrap();
    for (endpoint, job) in endpoints.iter().zip(["aptmesh-proxy", "aptmesh-dht"]) {
        let ports = service["spec"]["ports"].as_array().unwrap();
        assert!(ports.iter().any(|port| port["name"] == endpoint["port"]), "{endpoint}");
        assert_eq!(endpoint["path"], "/metrics");
        let labels = [("job", job), ("site", "aptmesh")];
        for (label, (name, value)) in endpoint["relabelings"].as_array().unwrap().iter().zip(labels)
        {
            assert!(label["targetLabel"] == name && label["replacement"] == value, "{label}");
        }
        // Which is how the site in compose.yaml calls it, and what dashboards and alerts go by.
        let config = fs::read_to_string("deploy/compose/prometheus.yml").unwrap();
        assert!(config.contains(&format!("job_name: {job}\n")), "{job}");
    }
    for group in release.get("PrometheusRule", "cache")["spec"]["groups"].as_array().unwrap() {
        assert!(group["name"].is_string());
        for rule in group["rules"].as_array().unwrap() {
            assert!(rule["alert"].is_string() && rule["expr"].is_string(), "{rule}");
        }
    }
}

/// A swarm's key is as the program wants it, and another one each time.
#[test]
fn a_key_is_made_that_the_program_takes() {
    let key = || {
        let text = template(&chart().display().to_string(), &["--values", &example("deployment")]);
        let release = Manifests::read(&text.unwrap());
        let secret = release.get("Secret", "aptmesh-swarm");
        assert_eq!(secret["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        let encoded = secret["data"]["key"].as_str().unwrap().to_owned();
        let key = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        String::from_utf8(key).unwrap()
    };
    let keys = [key(), key()];
    assert!(
        keys.iter()
            .all(|key| key.len() == 64 && key.bytes().all(|digit| digit.is_ascii_hexdigit()))
    );
    assert_ne!(keys[0], keys[1]);
}

fn is_board(object: &serde_json::Value) -> bool {
    object["metadata"]["name"].as_str().unwrap().starts_with("cache-dashboard-")
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}
