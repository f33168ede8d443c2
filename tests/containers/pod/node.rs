//! A node of a cluster, as far as one release needs it: pods' containers run under the Docker engine with exactly
//! what their manifests say. What this does not know it refuses, so that nothing is left out quietly.

use crate::chart::Pod;
use crate::engine::{Container, Network, Volume, docker, standin};
use crate::kit::{get, wait_until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

const TOOLS: &str = "debian:trixie-slim";
/// For how long a pod comes up, or a Job runs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A node, and what is in the cluster that pods refer to.
pub struct Node {
    pub network: Network,
    secrets: HashMap<String, Files>,
    settings: HashMap<String, Files>,
    /// Claims, and folders of the machine by their paths: they outlive pods.
    claims: RefCell<HashMap<String, Volume>>,
}

impl Node {
    /// With a release's Secrets and ConfigMaps.
    pub fn new(objects: &[Value]) -> Self {
        standin(TOOLS);
        let mut node = Self {
            network: Network::new("node"),
            secrets: HashMap::new(),
            settings: HashMap::new(),
            claims: RefCell::default(),
        };
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let members = || object["data"].as_object().into_iter().flatten();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            match object["kind"].as_str().unwrap() {
                "Secret" => {
                    let decoded = |value| STANDARD.decode(text(value)).unwrap();
                    let files = members().map(|(key, value)| (key.clone(), decoded(value)));
                    node.secrets.insert(name, files.collect());
                }
                "ConfigMap" => {
                    let files =
                        members().map(|(key, value)| (key.clone(), text(value).into_bytes()));
                    node.settings.insert(name, files.collect());
                }
                _ => {}
            }
        }
        node
    }

    /// A Secret that somebody else made.
    pub fn give_secret(&mut self, name: &str, key: &str, value: &str) {
        self.secrets.entry(name.to_owned()).or_default().insert(key.to_owned(), value.into());
    }

    pub fn secret(&self, name: &str, key: &str) -> String {
        String::from_utf8(self.secrets[name][key].clone()).unwrap()
    }

    /// Starts a pod under this name, which Services call so: init containers first, one after the other, to their
    /// end; then the others.
    pub fn start<'a>(&'a self, pod: Pod<'a>, name: &str, services: &[&str]) -> Running<'a> {
        let names = [&[name], services].concat();
        let mut options = vec!["--network", self.network.name()];
        for name in &names {
            options.extend(["--network-alias", name]);
        }
        // It holds the network that all the pod's containers are in.
        let sandbox = Container::start(name, &options, TOOLS, &["sleep", "infinity"]);
        let volumes = self.volumes(pod, name);
        let mut running = Running { node: self, pod, containers: Vec::new(), sandbox, volumes };
        for container in list(&pod.spec["initContainers"]) {
            let started = running.run(container, name);
            running.wait_for_end(&started);
        }
        for container in list(&pod.spec["containers"]) {
            let started = running.run(container, name);
            running.containers.push(started);
        }
        running
    }

    /// What is below each name of a pod's volumes, and whether it keeps what an image has there.
    fn volumes(&self, pod: Pod<'_>, pod_name: &str) -> HashMap<String, Held> {
        let group = pod.spec["securityContext"]["fsGroup"].as_u64();
        let mut volumes = HashMap::new();
        for volume in list(&pod.spec["volumes"]) {
            let name = volume["name"].as_str().unwrap().to_owned();
            let held = if volume["emptyDir"].is_object() {
                Held::Own(empty(group))
            } else if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                self.claim(claim, group)
            } else if let Some(path) = volume["hostPath"]["path"].as_str() {
                self.claim(path, None)
            } else if let Some(secret) = volume["secret"].as_object() {
                let files = chosen(&self.secrets[text(&secret["secretName"])], &volume["secret"]);
                Held::Own(filled(&files, &secret["defaultMode"], group))
            } else if let Some(name) = volume["configMap"]["name"].as_str() {
                Held::Own(filled(&self.settings[name], &Value::Null, group))
            } else if let Some(sources) = volume["projected"]["sources"].as_array() {
                let secrets = sources.iter().map(|source| &source["secret"]);
                let files =
                    secrets.flat_map(|source| chosen(&self.secrets[text(&source["name"])], source));
                Held::Own(filled(&files.collect(), &volume["projected"]["defaultMode"], group))
            } else {
                panic!("what volume is that? {volume}");
            };
            volumes.insert(name, held);
        }
        for claim in list(&pod.owner["spec"]["volumeClaimTemplates"]) {
            let name = claim["metadata"]["name"].as_str().unwrap();
            volumes.insert(name.to_owned(), self.claim(&format!("{name}-{pod_name}"), group));
        }
        volumes
    }

    /// The volume that stands for a folder of the machine.
    pub fn folder(&self, path: &str) -> String {
        self.claim(path, None).name().to_owned()
    }

    fn claim(&self, name: &str, group: Option<u64>) -> Held {
        let mut claims = self.claims.borrow_mut();
        let volume = claims.entry(name.to_owned()).or_insert_with(|| empty(group));
        Held::Claimed(volume.name().to_owned())
    }
}

/// Where a volume's bytes are.
enum Held {
    /// With the pod.
    Own(Volume),
    /// With the claim of this name.
    Claimed(String),
}

impl Held {
    fn name(&self) -> &str {
        match self {
            Self::Own(volume) => volume.name(),
            Self::Claimed(name) => name,
        }
    }
}

/// A pod with its containers.
pub struct Running<'a> {
    node: &'a Node,
    pod: Pod<'a>,
    /// By their names in the manifest.
    containers: Vec<(String, Container)>,
    sandbox: Container,
    // Last, as a volume goes after those who use it.
    volumes: HashMap<String, Held>,
}

impl Running<'_> {
    pub fn container(&self, name: &str) -> &Container {
        let found = self.containers.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("no container {name}")).1
    }

    /// Where one of its ports is reached.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.sandbox.ip().parse().unwrap(), port)
    }

    /// Waits until all its probes succeed, as a kubelet does. A container without one for readiness is ready
    /// as long as it runs.
    pub fn wait_until_ready(&self) {
        for container in list(&self.pod.spec["containers"]) {
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let what = format!("{}'s {probe}", container["name"]);
                if probe == "readinessProbe" && container[probe].is_null() {
                    continue;
                }
                assert!(container[probe].is_object(), "{what}");
                wait_until(PATIENCE, &what, || {
                    self.ensure_running();
                    self.succeeds(container, &container[probe])
                });
            }
        }
    }

    /// Waits until its containers have ended by themselves, and well. What they said.
    pub fn wait_until_done(&self) -> String {
        self.containers.iter().map(|container| self.wait_for_end(container)).collect()
    }

    /// Ends it as Kubernetes does: SIGTERM to all at a time, and SIGKILL after the grace time. Their exit codes.
    pub fn terminate(&self) -> Vec<(String, i32)> {
        let grace = self.pod.spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        let grace = grace.to_string();
        let mut arguments = vec!["stop", "--time", &grace];
        arguments.extend(self.containers.iter().map(|(_, container)| container.name()));
        docker(&arguments);
        let code =
            |container: &Container| container.inspect("{{.State.ExitCode}}").parse().unwrap();
        self.containers.iter().map(|(name, container)| (name.clone(), code(container))).collect()
    }

    fn ensure_running(&self) {
        for (name, container) in &self.containers {
            let state = container.inspect("{{.State.Status}}");
            assert_eq!(state, "running", "{name}:\n{}", container.logs());
        }
    }

    /// What a container that ends by itself says to that.
    pub fn exit_code(&self, name: &str) -> i32 {
        let container = self.container(name);
        let has_ended = || container.inspect("{{.State.Status}}") == "exited";
        wait_until(PATIENCE, &format!("{name} to end"), has_ended);
        container.inspect("{{.State.ExitCode}}").parse().unwrap()
    }

    fn wait_for_end(&self, (name, container): &(String, Container)) -> String {
        let has_ended = || container.inspect("{{.State.Status}}") == "exited";
        wait_until(PATIENCE, &format!("{name} to end"), has_ended);
        let code = container.inspect("{{.State.ExitCode}}");
        assert_eq!(code, "0", "{name}:\n{}", container.logs());
        container.logs()
    }

    fn succeeds(&self, container: &Value, probe: &Value) -> bool {
        if let Some(command) = probe["exec"]["command"].as_array() {
            let command: Vec<_> = command.iter().map(text).collect();
            return self.container(text(&container["name"])).exec(&command).ok;
        }
        let http = &probe["httpGet"];
        let ports = self.pod.ports();
        let port = ports.iter().find(|(name, _)| http["port"] == *name).expect("a port").1;
        let address = self.at(port.try_into().unwrap());
        // While nobody listens yet, no connection can be had.
        std::net::TcpStream::connect(address).is_ok()
            && get(address, text(&http["path"])).status == 200
    }

    /// `docker run` for a container of a manifest.
    fn run(&self, container: &Value, pod_name: &str) -> (String, Container) {
        let name = text(&container["name"]);
        let mut options = vec![format!("--network=container:{}", self.sandbox.name())];
        options.extend(self.rights(container));
        let variables = self.variables(container, pod_name);
        options.extend(variables.iter().map(|(name, value)| format!("--env={name}={value}")));
        for mount in list(&container["volumeMounts"]) {
            let volume = self.volumes[text(&mount["name"])].name();
            let known = ["name", "mountPath", "readOnly"];
            assert!(
                mount.as_object().unwrap().keys().all(|key| known.contains(&&**key)),
                "{mount}"
            );
            let mode = if mount["readOnly"] == true { "ro,nocopy" } else { "nocopy" };
            options.push(format!("--volume={volume}:{}:{mode}", text(&mount["mountPath"])));
        }
        let mut command: Vec<String> =
            list(&container["command"]).map(expanded(&variables)).collect();
        let mut arguments: Vec<String> =
            list(&container["args"]).map(expanded(&variables)).collect();
        if !command.is_empty() {
            options.push(format!("--entrypoint={}", command.remove(0)));
            command.append(&mut arguments);
            arguments = command;
        }
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let image = text(&container["image"]);
        let started = Container::start(&format!("{pod_name}-{name}"), &options, image, &arguments);
        (name.to_owned(), started)
    }

    /// User, capabilities, memory. seccomp's `RuntimeDefault` is what the engine does anyway.
    fn rights(&self, container: &Value) -> Vec<String> {
        let (pod, own) = (&self.pod.spec["securityContext"], &container["securityContext"]);
        let mut options = Vec::new();
        for (key, value) in
            own.as_object().into_iter().flatten().chain(pod.as_object().into_iter().flatten())
        {
            match (key.as_str(), value) {
                ("allowPrivilegeEscalation", Value::Bool(false)) => {
                    options.push("--security-opt=no-new-privileges".to_owned());
                }
                ("readOnlyRootFilesystem", Value::Bool(true)) => {
                    options.push("--read-only".to_owned())
                }
                ("capabilities", value) => {
                    let all =
                        list(&value["drop"]).map(|right| format!("--cap-drop={}", text(right)));
                    options.extend(all);
                }
                ("fsGroup", group) => options.push(format!("--group-add={group}")),
                ("runAsUser", user) => options.push(format!("--user={user}:{}", pod["runAsGroup"])),
                ("runAsGroup" | "runAsNonRoot" | "fsGroupChangePolicy" | "seccompProfile", _) => {}
                _ => panic!("what right is that? {key}: {value}"),
            }
        }
        let memory = text(&container["resources"]["limits"]["memory"]);
        options.push(format!("--memory={}", memory.trim_end_matches('i').to_lowercase()));
        options
    }

    fn variables(&self, container: &Value, pod_name: &str) -> Vec<(String, String)> {
        let mut variables: Vec<(String, String)> = Vec::new();
        for variable in list(&container["env"]) {
            let value =
                match (&variable["value"], variable.pointer("/valueFrom/fieldRef/fieldPath")) {
                    (Value::String(_), None) => expanded(&variables)(&variable["value"]),
                    (Value::Null, Some(path)) if path == "metadata.name" => pod_name.to_owned(),
                    _ => match variable.pointer("/valueFrom/secretKeyRef") {
                        Some(from) => self.node.secret(text(&from["name"]), text(&from["key"])),
                        None => panic!("what value is that? {variable}"),
                    },
                };
            variables.push((text(&variable["name"]).to_owned(), value));
        }
        variables
    }
}

/// A text with `$(NAME)` in it, with what those before it are.
fn expanded(variables: &[(String, String)]) -> impl Fn(&Value) -> String {
    let variables = variables.to_vec();
    move |value| {
        let mut text = text(value).to_owned();
        for (name, value) in &variables {
            text = text.replace(&format!("$({name})"), value);
        }
        text
    }
}

/// Those files of a source that its `items` name, under the names that they give.
fn chosen(files: &Files, source: &Value) -> Files {
    list(&source["items"])
        .map(|item| (text(&item["path"]).to_owned(), files[text(&item["key"])].clone()))
        .collect()
}

/// A new volume, which belongs to a pod's group.
fn empty(group: Option<u64>) -> Volume {
    let volume = Volume::new("data");
    let group = group.map(|group| format!("chgrp {group} . && chmod 2775 .")).unwrap_or_default();
    prepare(&volume, &group);
    volume
}

fn filled(files: &Files, mode: &Value, group: Option<u64>) -> Volume {
    let volume = Volume::new("files");
    let mode = mode.as_u64().unwrap_or(0o644);
    let write = |(name, content): (&String, &Vec<u8>)| {
        let content = STANDARD.encode(content);
        format!("echo {content} | base64 --decode > {name} && chmod {mode:o} {name}")
    };
    let group = group.map(|group| format!("chgrp --recursive {group} .")).unwrap_or("true".into());
    let commands: Vec<_> = files.iter().map(write).chain([group]).collect();
    prepare(&volume, &commands.join(" && "));
    volume
}

fn prepare(volume: &Volume, commands: &str) {
    let mount = format!("{}:/volume:nocopy", volume.name());
    docker(&[
        "run",
        "--rm",
        "--volume",
        &mount,
        "--workdir",
        "/volume",
        TOOLS,
        "sh",
        "-c",
        commands,
    ]);
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text instead of {value}"))
}
