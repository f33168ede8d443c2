//! What holds for the pods of any release.

use super::helm::{Manifests, Pod, examples, render};
use base64::Engine as _;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;

/// With each example: what comes of it, under its name.
fn releases() -> Vec<(String, Manifests)> {
    examples().into_iter().map(|name| (name.clone(), render(&name, &[]))).collect()
}

#[test]
fn pods_have_no_rights() {
    for (example, release) in releases() {
        for pod in release.pods() {
            let what = format!("{example}: {}", pod.component());
            let of_pod = &pod.spec["securityContext"];
            assert_eq!(of_pod["seccompProfile"], json!({"type": "RuntimeDefault"}), "{what}");
            assert_eq!(pod.spec["automountServiceAccountToken"], false, "{what}");
            assert_eq!(pod.spec["enableServiceLinks"], false, "{what}");
            for shared in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod.spec[shared].is_null(), "{what}");
            }
            let on_node: Vec<_> = pod.spec["volumes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|volume| volume["hostPath"]["path"].as_str())
                .collect();
            if pod.component() == "client" {
                // What it writes is root's; it sees no more of the node than that.
                assert_eq!(on_node, ["/etc/apt/apt.conf.d", "/usr/local/lib/aptmesh"]);
            } else {
                assert_eq!(of_pod["runAsNonRoot"], true, "{what}");
                let user = if pod.component() == "postgresql" { 999 } else { 9977 };
                for key in ["runAsUser", "runAsGroup"] {
                    assert_eq!(of_pod[key], user, "{what}");
                }
                assert!(on_node.is_empty(), "{what}");
            }
            for container in pod.containers() {
                let expected = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                });
                assert_eq!(container["securityContext"], expected, "{what}");
                let resources = &container["resources"];
                for bound in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
                    assert!(resources.pointer(bound).is_some(), "{what}: {bound}");
                }
            }
        }
    }
}

/// The groups' volumes are not walked through at each start, which takes hours where there are many blobs.
#[test]
fn volumes_become_the_users_once() {
    for (example, release) in releases() {
        let security = &release.replica().spec["securityContext"];
        assert_eq!(security["fsGroup"], 9977, "{example}");
        assert_eq!(security["fsGroupChangePolicy"], "OnRootMismatch", "{example}");
    }
}

#[test]
fn probes_ask_where_each_process_answers() {
    for (example, release) in releases() {
        let replica = release.replica();
        let ports: HashMap<_, _> = replica.ports().into_iter().collect();
        for (name, port) in [("proxy", 9978), ("dht", 9982)] {
            if name == "dht" && example == "bare" {
                continue;
            }
            let container = replica.container(name);
            let asked = |probe: &str| {
                let http = &container[probe]["httpGet"];
                let port = ports[http["port"].as_str().unwrap()];
                (port, http["path"].as_str().unwrap().to_owned())
            };
            assert_eq!(asked("startupProbe"), (port, "/livez".into()), "{example}");
            assert_eq!(asked("livenessProbe"), (port, "/livez".into()), "{example}");
            // A node without a swarm is not ready, but the proxy beside it serves.
            if name == "dht" {
                assert!(container["readinessProbe"].is_null(), "{example}");
            } else {
                assert_eq!(asked("readinessProbe"), (port, "/readyz".into()), "{example}");
            }
            let listens = format!("[::]:{port}");
            assert_eq!(variable(container, "APTMESH_LISTEN_ADMIN"), listens, "{example}");
        }
        // A replica has to see its clients off before it is killed.
        assert!(replica.spec["terminationGracePeriodSeconds"].as_u64() >= Some(30), "{example}");
    }
}

/// What asks for pods by their labels finds those that it means, and ports by names that they have.
#[test]
fn selectors_and_ports_meet_pods() {
    for (example, release) in releases() {
        let pods = release.pods();
        let found = |labels: &Value| -> Vec<Pod<'_>> {
            pods.iter().copied().filter(|pod| pod.has(labels)).collect()
        };
        for service in release.of_kind("Service") {
            let name = &service["metadata"]["name"];
            let selected = found(&service["spec"]["selector"]);
            let [pod] = selected[..] else { panic!("{example}: {name} has {}", selected.len()) };
            let ports: HashMap<_, _> = pod.ports().into_iter().collect();
            for port in service["spec"]["ports"].as_array().unwrap() {
                let target = port["targetPort"].as_str().unwrap();
                assert!(ports.contains_key(target), "{example}: {name} to {target}");
            }
        }
        for kind in ["Deployment", "StatefulSet", "DaemonSet", "PodDisruptionBudget"] {
            for object in release.of_kind(kind) {
                let selected = found(&object["spec"]["selector"]["matchLabels"]);
                let [pod] = selected[..] else { panic!("{example}: {kind}: {}", selected.len()) };
                assert!(kind == "PodDisruptionBudget" || pod.owner == object, "{example}: {kind}");
            }
        }
        for policy in release.of_kind("NetworkPolicy") {
            assert_eq!(found(&policy["spec"]["podSelector"]["matchLabels"]).len(), 1, "{example}");
        }
        for spread in list(&release.replica().spec["topologySpreadConstraints"]) {
            assert_eq!(found(&spread["labelSelector"]["matchLabels"]).len(), 1, "{example}");
        }
        for scaler in release.of_kind("HorizontalPodAutoscaler") {
            let target = &scaler["spec"]["scaleTargetRef"];
            let [kind, name] = ["kind", "name"].map(|key| target[key].as_str().unwrap());
            release.get(kind, name);
        }
    }
}

/// What a pod mounts is there: made by the release, or named in the values as being there.
#[test]
fn what_pods_refer_to_is_there() {
    let there = ["aptmesh-index", "aptmesh-owner", "swarm-key", "site-ca", "registry", "blobs"];
    for (example, release) in releases() {
        for pod in release.pods() {
            let is_hook = !pod.owner["metadata"]["annotations"]["helm.sh/hook"].is_null()
                && pod.component() != "test";
            for name in referred(pod.spec) {
                let made = ["Secret", "ConfigMap", "PersistentVolumeClaim"]
                    .iter()
                    .any(|kind| release.find(kind, &name).is_some());
                // A hook comes before what the release makes.
                let made = made && !is_hook;
                let is_there = there.contains(&name.as_str());
                assert!(made != is_there, "{example}: {} refers to {name}", pod.component());
            }
            let volumes = list(&pod.spec["volumes"]);
            let claims = list(&pod.owner["spec"]["volumeClaimTemplates"]);
            let names: BTreeSet<_> = volumes
                .iter()
                .map(|volume| volume["name"].as_str().unwrap())
                .chain(claims.iter().map(|claim| claim["metadata"]["name"].as_str().unwrap()))
                .collect();
            for container in pod.containers() {
                for mount in list(&container["volumeMounts"]) {
                    let name = mount["name"].as_str().unwrap();
                    assert!(names.contains(name), "{example}: {} mounts {name}", pod.component());
                }
            }
        }
    }
}

/// A misspelt one would be refused by the program.
#[test]
fn variables_are_settings_of_the_program() {
    let settings = fs::read_to_string("docs/settings.toml").unwrap();
    for (example, release) in releases() {
        for container in release.pods().iter().flat_map(Pod::containers) {
            for variable in list(&container["env"]) {
                let name = variable["name"].as_str().unwrap();
                let setting = name.strip_suffix("_FILE").unwrap_or(name);
                let known = settings.contains(&format!("# {setting}\n"));
                assert!(known || !name.starts_with("APTMESH_"), "{example}: {name}");
            }
        }
    }
}

#[test]
fn secrets_are_in_secrets_alone() {
    for (example, release) in releases() {
        let is_secret = |object: &&Value| object["kind"] == "Secret";
        let values: Vec<String> = release
            .0
            .iter()
            .filter(is_secret)
            .flat_map(|secret| secret["data"].as_object().unwrap().values())
            .flat_map(|encoded| {
                let encoded = encoded.as_str().unwrap().to_owned();
                let plain = base64::engine::general_purpose::STANDARD.decode(&encoded).unwrap();
                [encoded, String::from_utf8(plain).unwrap()]
            })
            .collect();
        assert!(values.iter().all(|value| value.len() >= 32), "{example}: too short for a secret");
        for object in release.0.iter().filter(|object| !is_secret(object)) {
            let text = object.to_string();
            assert!(!values.iter().any(|value| text.contains(value)), "{example}: {text}");
        }
        assert_eq!(
            values.is_empty(),
            !["deployment", "statefulset", "try", "bundled"].contains(&example.as_str())
        );
    }
}

/// A variable of a container.
pub fn variable<'a>(container: &'a Value, name: &str) -> &'a str {
    let all = list(&container["env"]);
    let found = all.iter().find(|variable| variable["name"] == name);
    found.and_then(|variable| variable["value"].as_str()).unwrap_or_default()
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

/// The names of Secrets, ConfigMaps and claims that a pod needs.
fn referred(spec: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut add = |name: &Value| {
        if let Some(name) = name.as_str() {
            names.insert(name.to_owned());
        }
    };
    for secret in list(&spec["imagePullSecrets"]) {
        add(&secret["name"]);
    }
    for volume in list(&spec["volumes"]) {
        for pointer in ["/secret/secretName", "/configMap/name", "/persistentVolumeClaim/claimName"]
        {
            volume.pointer(pointer).map(&mut add);
        }
        for source in list(&volume["projected"]["sources"]) {
            add(&source["secret"]["name"]);
        }
    }
    names
}
