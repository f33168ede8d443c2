//! The real helm, and what it renders.

use crate::engine::run;
use serde_json::Value;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The namespace that everything is rendered for.
pub const NAMESPACE: &str = "apt";
/// Those that the chart says it is for, from the oldest on.
const VERSIONS: [&str; 6] = ["1.27", "1.29", "1.31", "1.33", "1.35", "1.37"];

pub fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("helm/aptmesh")
}

/// The chart's file of values `ci/NAME-values.yaml`.
pub fn example(name: &str) -> String {
    chart().join(format!("ci/{name}-values.yaml")).display().to_string()
}

/// All of these.
pub fn examples() -> Vec<String> {
    let files = std::fs::read_dir(chart().join("ci")).expect("examples");
    let name_of = |file: std::fs::DirEntry| {
        file.file_name().to_str()?.strip_suffix("-values.yaml").map(str::to_owned)
    };
    let mut names: Vec<_> = files.filter_map(|file| name_of(file.expect("a file"))).collect();
    names.sort();
    names
}

/// A tool that `tools/helm.sh` installs.
fn tool(name: &str) -> PathBuf {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let installed = run("tools/helm.sh", &[]);
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    });
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/helm").join(name)
}

/// Runs `helm ARGUMENTS`. Its standard output, or why it fails.
pub fn helm(arguments: &[&str]) -> Result<String, String> {
    helm_with(&[], arguments)
}

/// The same with further environment.
pub fn helm_with(variables: &[(&str, &str)], arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(tool("helm"));
    // Of whoever runs the tests, no repositories, plugins or cluster.
    for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(folder, tool("home"));
    }
    command.env("KUBECONFIG", "/dev/null").envs(variables.iter().copied());
    let output = command.args(arguments).output().expect("helm");
    let [out, err] =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    if output.status.success() { Ok(out) } else { Err(err) }
}

/// What `helm template` makes of the chart in a folder or package, with further arguments.
pub fn template(chart: &str, arguments: &[&str]) -> Result<String, String> {
    let mut all = vec!["template", "aptmesh", chart, "--namespace", NAMESPACE];
    all.extend(arguments);
    helm(&all)
}

/// The manifests that an example makes, with these values set besides.
pub fn render(name: &str, values: &[&str]) -> Manifests {
    match try_render(name, values) {
        Ok(text) => Manifests::read(&text),
        Err(said) => panic!("{name} {values:?}: {said}"),
    }
}

pub fn try_render(name: &str, values: &[&str]) -> Result<String, String> {
    let file = example(name);
    let mut arguments = vec!["--values", &file];
    arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
    template(chart().to_str().expect("a path"), &arguments)
}

/// The documents of a stream.
pub fn yaml(text: &str) -> Vec<Value> {
    read_yaml(text, &[])
}

fn read_yaml(text: &str, versions: &[&str]) -> Vec<Value> {
    let mut python = Command::new("python3")
        .arg("tests/containers/chart/manifests.py")
        .args(versions)
        .env("PYTHONPATH", tool("python"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut input = python.stdin.take().expect("its input");
    input.write_all(text.as_bytes()).expect("it reads all");
    drop(input);
    let output = python.wait_with_output().expect("python3");
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The objects of a release.
pub struct Manifests(pub Vec<Value>);

impl Manifests {
    /// Reads them, and holds them against Kubernetes' schemas.
    pub fn read(text: &str) -> Self {
        Self(read_yaml(text, &VERSIONS))
    }

    pub fn get(&self, kind: &str, name: &str) -> &Value {
        self.find(kind, name).unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    pub fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.of_kind(kind).into_iter().find(|object| object["metadata"]["name"] == name)
    }

    pub fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// What makes pods, and pods.
    pub fn pods(&self) -> Vec<Pod<'_>> {
        self.0.iter().filter_map(Pod::of).collect()
    }

    /// The replicas.
    pub fn replica(&self) -> Pod<'_> {
        let is_replica = |pod: &Pod<'_>| pod.component() == "proxy";
        self.pods().into_iter().find(is_replica).expect("a replica")
    }
}

/// A pod, or what pods are made of.
#[derive(Clone, Copy)]
pub struct Pod<'a> {
    pub owner: &'a Value,
    pub metadata: &'a Value,
    pub spec: &'a Value,
}

impl<'a> Pod<'a> {
    fn of(owner: &'a Value) -> Option<Self> {
        let pod = match owner["kind"].as_str()? {
            "Pod" => owner,
            "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => &owner["spec"]["template"],
            _ => return None,
        };
        Some(Self { owner, metadata: &pod["metadata"], spec: &pod["spec"] })
    }

    pub fn component(&self) -> &'a str {
        self.metadata["labels"]["app.kubernetes.io/component"].as_str().expect("a component")
    }

    /// Those before the others, then these.
    pub fn containers(&self) -> Vec<&'a Value> {
        let of = |key: &str| self.spec[key].as_array().into_iter().flatten();
        of("initContainers").chain(of("containers")).collect()
    }

    pub fn container(&self, name: &str) -> &'a Value {
        let found = self.containers().into_iter().find(|container| container["name"] == name);
        found.unwrap_or_else(|| panic!("no container {name}"))
    }

    /// The number of each named port.
    pub fn ports(&self) -> Vec<(&'a str, u64)> {
        let ports =
            self.containers().into_iter().filter_map(|container| container["ports"].as_array());
        ports
            .flatten()
            .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap()))
            .collect()
    }

    /// Whether a selector by labels finds it.
    pub fn has(&self, labels: &Value) -> bool {
        let labels = labels.as_object().expect("labels");
        labels.iter().all(|(key, value)| self.metadata["labels"][key] == *value)
    }
}
