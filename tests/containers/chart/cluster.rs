//! What helm needs of a Kubernetes API server, so that its own order of things is seen: objects are kept as they are
//! sent, Jobs and pods end at once, well or not. No cluster can be had here; that its objects are right is for the
//! schemas, and that its pods run for `pod.rs`. What helm has to remember of releases is in a PostgreSQL.

use super::helm::{NAMESPACE, helm_with};
use crate::kit::Postgres;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// Group with version, plural, kind.
const RESOURCES: [(&str, &str, &str); 11] = [
    ("v1", "configmaps", "ConfigMap"),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    ("v1", "pods", "Pod"),
    ("v1", "secrets", "Secret"),
    ("v1", "services", "Service"),
    ("apps/v1", "daemonsets", "DaemonSet"),
    ("apps/v1", "deployments", "Deployment"),
    ("apps/v1", "statefulsets", "StatefulSet"),
    ("batch/v1", "jobs", "Job"),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget"),
];

/// The server.
pub struct Cluster {
    address: String,
    /// Ends with it.
    _memory: Postgres,
    database: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By their URLs.
    objects: BTreeMap<String, Value>,
    /// `create Job/NAME` and so on, as they came.
    changes: Vec<String>,
    jobs_fail: bool,
    version: u64,
}

impl Cluster {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                thread::spawn(move || answer_all(stream, &state));
            }
        });
        let memory = Postgres::start();
        let database = format!("{}?sslmode=disable", memory.database());
        Self { address, _memory: memory, database, state }
    }

    /// Runs `helm ARGUMENTS` on it.
    pub fn helm(&self, arguments: &[&str]) -> Result<String, String> {
        let here = ["--kube-apiserver", &self.address, "--namespace", NAMESPACE];
        let memory =
            [("HELM_DRIVER", "sql"), ("HELM_DRIVER_SQL_CONNECTION_STRING", self.database.as_str())];
        helm_with(&memory, &[arguments, &here].concat())
    }

    pub fn make_jobs_fail(&self, fail: bool) {
        self.state().jobs_fail = fail;
    }

    /// What was changed since this was asked last.
    pub fn changes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().changes)
    }

    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let state = self.state();
        let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        state.objects.values().find(is_it).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Value,
}

fn answer_all(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut writer = stream;
    while let Some(request) = read(&mut reader) {
        let mut state = state.lock().unwrap();
        if request.query.contains_key("watch") {
            let events = state.watch(&request);
            drop(state);
            // All that happens has happened: the rest is silence, until helm hangs up.
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
            let _ = writer.write_all(format!("{head}{events}").as_bytes());
            let _ = reader.read_to_end(&mut Vec::new());
            return;
        }
        let (status, body) = state.answer(&request);
        drop(state);
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if writer.write_all(format!("{head}{body}").as_bytes()).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut length = 0;
    loop {
        let field = line()?;
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(": ")?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let url = url::Url::parse("http://api").ok()?.join(target).ok()?;
    Some(Request {
        method,
        path: url.path().to_owned(),
        query: url.query_pairs().into_owned().collect(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
}

impl State {
    fn answer(&mut self, request: &Request) -> (u16, Value) {
        if let Some(found) = discovery(&request.path) {
            return (200, found);
        }
        let found = self.objects.get(&request.path).cloned();
        match (request.method.as_str(), found) {
            ("GET", Some(object)) => (200, object),
            ("GET", None) if is_collection(&request.path) => {
                let items = self.items(request);
                (
                    200,
                    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}),
                )
            }
            ("POST", _) => {
                let name = request.body["metadata"]["name"].as_str().expect("a name");
                let path = format!("{}/{name}", request.path);
                if self.objects.contains_key(&path) {
                    return failure(409, "AlreadyExists");
                }
                (201, self.put(path, request.body.clone(), "create"))
            }
            // As helm applies: the whole of what it wants there to be.
            ("PATCH", None) => {
                (201, self.put(request.path.clone(), request.body.clone(), "create"))
            }
            ("PATCH" | "PUT", Some(_)) => {
                (200, self.put(request.path.clone(), request.body.clone(), "change"))
            }
            ("DELETE", Some(object)) => {
                self.objects.remove(&request.path);
                self.note("delete", &object);
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => failure(404, "NotFound"),
        }
    }

    fn put(&mut self, path: String, mut object: Value, how: &str) -> Value {
        self.version += 1;
        object["metadata"]["namespace"] = json!(NAMESPACE);
        object["metadata"]["uid"] = json!(path);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object["metadata"]["generation"] = json!(1);
        let end = if self.jobs_fail { "Failed" } else { "Complete" };
        let phase = if self.jobs_fail { "Failed" } else { "Succeeded" };
        match object["kind"].as_str().expect("a kind") {
            "Job" => {
                object["status"] = json!({"conditions": [{"type": end, "status": "True"}], "startTime": "2026-01-01T00:00:00Z"})
            }
            "Pod" => object["status"] = json!({"phase": phase}),
            _ => {}
        }
        self.note(how, &object);
        self.objects.insert(path, object.clone());
        object
    }

    fn note(&mut self, how: &str, object: &Value) {
        let [kind, name] =
            [&object["kind"], &object["metadata"]["name"]].map(|text| text.as_str().unwrap());
        self.changes.push(format!("{how} {kind}/{name}"));
    }

    fn items(&self, request: &Request) -> Vec<Value> {
        let below = format!("{}/", request.path);
        let all = self
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(&below))
            .map(|(_, object)| object);
        let labels = request.query.get("labelSelector").cloned().unwrap_or_default();
        let has_labels = |object: &&Value| {
            labels
                .split(',')
                .filter_map(|label| label.split_once('='))
                .all(|(key, value)| object["metadata"]["labels"][key] == value)
        };
        let name = request
            .query
            .get("fieldSelector")
            .and_then(|field| field.strip_prefix("metadata.name="));
        let has_name = |object: &&Value| name.is_none_or(|name| object["metadata"]["name"] == name);
        all.filter(has_labels).filter(has_name).cloned().collect()
    }

    /// All that is there, and that this is all.
    fn watch(&self, request: &Request) -> String {
        let added = self
            .items(request)
            .into_iter()
            .map(|object| json!({"type": "ADDED", "object": object}));
        let kind = RESOURCES.iter().find(|(_, plural, _)| request.path.ends_with(plural));
        let (version, _, kind) = kind.expect("a resource");
        let end = json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": {
            "resourceVersion": self.version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}}});
        let events: Vec<String> = added.chain([end]).map(|event| format!("{event}\n")).collect();
        if request.query.contains_key("sendInitialEvents") {
            events.concat()
        } else {
            String::new()
        }
    }
}

fn is_collection(path: &str) -> bool {
    RESOURCES.iter().any(|(_, plural, _)| path.ends_with(&format!("/{plural}")))
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}),
    )
}

/// What resources there are.
fn discovery(path: &str) -> Option<Value> {
    let groups = || RESOURCES.iter().filter_map(|(version, _, _)| version.split_once('/'));
    match path {
        "/version" => Some(json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})),
        "/api" => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        "/apis" => {
            let mut all: Vec<Value> = groups()
                .map(|(name, version)| {
                    let version =
                        json!({"groupVersion": format!("{name}/{version}"), "version": version});
                    json!({"name": name, "versions": [version], "preferredVersion": version})
                })
                .collect();
            all.dedup();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all}))
        }
        "/openapi/v3" => {
            let paths = RESOURCES.iter().map(|(version, _, _)| {
                let place = place_of(version);
                (place.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{place}")}))
            });
            Some(json!({"paths": Value::Object(paths.collect())}))
        }
        _ if path.starts_with("/openapi/v3/") => Some(validated_here(path)),
        _ => {
            let version = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/api/"))?;
            let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
            let resources: Vec<Value> = RESOURCES
                .iter()
                .filter(|(group, _, _)| *group == version)
                .map(|(_, plural, kind)| {
                    json!({"name": plural, "singularName": kind.to_lowercase(), "namespaced": true, "kind": kind, "verbs": verbs})
                })
                .collect();
            (!resources.is_empty()).then(|| {
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
            })
        }
    }
}

fn place_of(version: &str) -> String {
    if version.contains('/') { format!("apis/{version}") } else { format!("api/{version}") }
}

/// That fields are held against schemas by the server, so that helm need not.
fn validated_here(path: &str) -> Value {
    let its = RESOURCES.iter().filter(|(version, _, _)| path.ends_with(&place_of(version)));
    let paths = its.map(|(version, plural, kind)| {
        let (group, short) = version.split_once('/').unwrap_or(("", version));
        let patch = json!({
            "x-kubernetes-group-version-kind": {"group": group, "version": short, "kind": kind},
            "parameters": [{"name": "fieldValidation", "in": "query"}],
            "responses": {"200": {"description": "applied"}},
        });
        let place = format!("/{}/namespaces/{{namespace}}/{plural}/{{name}}", place_of(version));
        (place, json!({"patch": patch}))
    });
    let about = json!({"title": "Kubernetes", "version": "v1.33.0"});
    json!({"openapi": "3.0.0", "info": about, "paths": Value::Object(paths.collect())})
}
