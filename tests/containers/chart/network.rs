//! What NetworkPolicies let through, as a network would judge it.

use super::helm::{Manifests, Pod, render};
use serde_json::{Value, json};
use std::net::IpAddr;

/// One end of a connection.
#[derive(Clone, Copy)]
enum End<'a> {
    /// A pod of the release, by component.
    Ours(&'a str),
    /// A pod of another namespace, which has this name.
    Pod(&'a str),
    /// A machine outside of the cluster.
    Machine(&'a str),
}
use End::{Machine, Ours, Pod as Other};

const SOMEBODY: End<'_> = Machine("198.18.0.1");

#[test]
fn a_replica_with_a_database_elsewhere() {
    let release = render("deployment", &[]);
    let network = Network(&release);
    for port in [9977, 3142] {
        assert!(network.lets(SOMEBODY, Ours("proxy"), port));
        assert!(network.lets(Other("builds"), Ours("proxy"), port));
    }
    for port in [9979, 9980] {
        assert!(network.lets(SOMEBODY, Ours("proxy"), port), "sites have the swarm's key");
        assert!(network.lets(Ours("proxy"), SOMEBODY, port));
    }
    for port in [9978, 9982] {
        assert!(network.lets(Other("monitoring"), Ours("proxy"), port));
        assert!(!network.lets(SOMEBODY, Ours("proxy"), port));
    }
    assert!(!network.lets(Ours("proxy"), Ours("proxy"), 9981), "a node's API is for its own pod");
    for port in [53, 80, 443, 5432] {
        assert!(network.lets(Ours("proxy"), SOMEBODY, port));
    }
    for port in [22, 25, 6443, 2049] {
        assert!(!network.lets(Ours("proxy"), SOMEBODY, port));
    }
    assert!(network.lets(Ours("migrate"), SOMEBODY, 5432));
    for port in [80, 443, 9979] {
        assert!(!network.lets(Ours("migrate"), SOMEBODY, port));
    }
    assert!(!network.lets(SOMEBODY, Ours("migrate"), 9977));
}

#[test]
fn a_database_of_its_own_is_for_replicas() {
    let release = render("bundled", &[]);
    let network = Network(&release);
    assert!(network.lets(Ours("proxy"), Ours("postgresql"), 5432));
    assert!(!network.lets(Ours("proxy"), SOMEBODY, 5432), "there is no other database");
    for somebody in [SOMEBODY, Other("builds"), Ours("test")] {
        assert!(!network.lets(somebody, Ours("postgresql"), 5432));
    }
    assert!(!network.lets(Ours("postgresql"), SOMEBODY, 53), "it asks nobody");
}

#[test]
fn without_a_swarm_nobody_is_a_peer() {
    let on = "networkPolicy.enabled=true";
    let release = render("bare", &[on]);
    let network = Network(&release);
    for port in [9979, 9980, 9982] {
        assert!(!network.lets(SOMEBODY, Ours("proxy"), port));
        assert!(!network.lets(Ours("proxy"), SOMEBODY, port));
        assert!(!network.lets(Ours("proxy"), Ours("proxy"), port));
    }
    // With a volume each, replicas fetch from each other.
    let release = render("bare", &[on, r#"mode="statefulset""#]);
    let network = Network(&release);
    assert!(network.lets(Ours("proxy"), Ours("proxy"), 9979));
    assert!(!network.lets(SOMEBODY, Ours("proxy"), 9979));
    assert!(!network.lets(Ours("proxy"), SOMEBODY, 9979));
}

#[test]
fn a_site_narrows_it_down() {
    let release = render("full", &[]);
    let network = Network(&release);
    let [client, site] = ["192.0.2.9", "203.0.113.7"].map(Machine);
    assert!(network.lets(client, Ours("proxy"), 9977));
    assert!(network.lets(Ours("test"), Ours("proxy"), 9977), "`helm test` is a client");
    assert!(!network.lets(SOMEBODY, Ours("proxy"), 9977));
    assert!(!network.lets(Other("builds"), Ours("proxy"), 3142));
    assert!(network.lets(site, Ours("proxy"), 9979) && network.lets(site, Ours("proxy"), 9980));
    assert!(!network.lets(Machine("203.0.113.9"), Ours("proxy"), 9979));
    assert!(network.lets(Ours("proxy"), Ours("proxy"), 9980), "replicas' nodes meet");
    assert!(network.lets(Other("monitoring"), Ours("proxy"), 9982));
    assert!(!network.lets(Other("builds"), Ours("proxy"), 9982));
    for (port, is_let) in [(443, true), (3128, true), (80, false), (6432, true), (5432, false)] {
        assert_eq!(network.lets(Ours("proxy"), SOMEBODY, port), is_let, "{port}");
    }
    assert!(network.lets(Ours("migrate"), SOMEBODY, 6432));
    // Further rules.
    assert!(network.lets(Ours("test"), Ours("proxy"), 9978));
    assert!(network.lets(Ours("proxy"), Machine("198.51.100.3"), 22));
}

#[test]
fn who_receives_traces_is_named() {
    let collector = Other("monitoring");
    let release = render("deployment", &[]);
    assert!(!Network(&release).lets(Ours("proxy"), collector, 4318));
    let rule = r#"networkPolicy.extraEgress=[{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}], "ports": [{"port": 4318}]}]"#;
    let release = render("deployment", &[rule]);
    assert!(Network(&release).lets(Ours("proxy"), collector, 4318));
    assert!(!Network(&release).lets(Ours("proxy"), Other("builds"), 4318));
}

/// A network that obeys the policies of a release.
struct Network<'a>(&'a Manifests);

impl Network<'_> {
    /// Whether a TCP connection gets through; what leaves a machine or another namespace is not ours to judge.
    fn lets(&self, from: End<'_>, to: End<'_>, port: u64) -> bool {
        self.side("Egress", "to", from, to, port) && self.side("Ingress", "from", to, from, port)
    }

    /// Whether the policies of one end let it have to do with the other.
    fn side(&self, kind: &str, whom: &str, end: End<'_>, other: End<'_>, port: u64) -> bool {
        let Some(pod) = self.pod(end) else { return true };
        let policies = self.0.of_kind("NetworkPolicy");
        let mut its = policies
            .into_iter()
            .map(|policy| &policy["spec"])
            .filter(|spec| pod.has(&spec["podSelector"]["matchLabels"]))
            .filter(|spec| spec["policyTypes"].as_array().unwrap().contains(&json!(kind)))
            .peekable();
        if its.peek().is_none() {
            return true;
        }
        // A port's name is that of the pod that is connected to.
        let server = if kind == "Ingress" { Some(pod) } else { self.pod(other) };
        let rules = its.flat_map(|spec| spec[kind.to_lowercase()].as_array().unwrap());
        rules
            .into_iter()
            .any(|rule| has_port(&rule["ports"], server, port) && self.is_among(&rule[whom], other))
    }

    fn pod(&self, end: End<'_>) -> Option<Pod<'_>> {
        let Ours(component) = end else { return None };
        self.0.pods().into_iter().find(|pod| pod.component() == component)
    }

    fn is_among(&self, peers: &Value, end: End<'_>) -> bool {
        let Some(peers) = peers.as_array() else { return true };
        peers.iter().any(|peer| match end {
            Machine(address) => is_in(&peer["ipBlock"], address),
            Other(namespace) => is_namespace(&peer["namespaceSelector"], namespace),
            Ours(_) if peer["namespaceSelector"].is_object() => {
                is_namespace(&peer["namespaceSelector"], super::NAMESPACE)
            }
            Ours(_) => {
                let labels = &peer["podSelector"]["matchLabels"];
                let pod = self.pod(end).expect("one of ours");
                peer["podSelector"].is_object() && (labels.is_null() || pod.has(labels))
            }
        })
    }
}

fn has_port(ports: &Value, server: Option<Pod<'_>>, port: u64) -> bool {
    let Some(ports) = ports.as_array() else { return true };
    ports.iter().any(|rule| {
        let is_tcp = rule["protocol"].is_null() || rule["protocol"] == "TCP";
        let number = rule["port"].as_u64().or_else(|| {
            let named = server?.ports().into_iter().find(|(name, _)| rule["port"] == *name);
            named.map(|(_, number)| number)
        });
        is_tcp && number == Some(port)
    })
}

fn is_in(block: &Value, address: &str) -> bool {
    let holds = |network: &Value| {
        let network: ipnet::IpNet = network.as_str().unwrap().parse().unwrap();
        network.contains(&address.parse::<IpAddr>().unwrap())
    };
    let excepted = || block["except"].as_array().into_iter().flatten().any(holds);
    block.is_object() && holds(&block["cidr"]) && !excepted()
}

fn is_namespace(selector: &Value, name: &str) -> bool {
    let labels = &selector["matchLabels"];
    selector.is_object() && (labels.is_null() || labels["kubernetes.io/metadata.name"] == name)
}
