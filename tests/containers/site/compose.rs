//! A site as `compose.yaml` makes it, in a project of its own that is taken down with all it stored.

use crate::engine::{docker, name, run, standin, try_docker};
use crate::kit::postgres::free_port;
use crate::kit::{HostArchive, Run, get, request, wait_until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(120);
/// Where every process of the product tells operators how it is.
const ADMIN: u16 = 9978;

/// A running site.
pub struct Site {
    project: String,
    options: Vec<String>,
    environment: BTreeMap<String, String>,
}

impl Site {
    /// One that is not up yet, whose doors are where nobody else's are.
    pub fn new(what: &str, image: &str) -> Self {
        let mut site =
            Self { project: name(what), options: Vec::new(), environment: BTreeMap::new() };
        for door in ["", "_AUTO", "_PEER", "_DHT", "_PROMETHEUS", "_GRAFANA"] {
            site.set(&format!("SITE{door}_PORT"), &free_port().to_string());
        }
        site.set("SITE_BIND", "127.0.0.1");
        site.set("SITE_IMAGE", image);
        site.set("APTMESH_MIRROR_ALLOW_PRIVATE", &HostArchive::read().hosts().join(","));
        // The disk and the processors are shared with other tests.
        site.set("APTMESH_STORE_MIN_FREE", "256MiB");
        site.set("APTMESH_INDEX_PATIENCE", "5s");
        site.set("COMPOSE_PROFILES", "");
        site
    }

    /// A variable of `.env` from now on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.environment.insert(key.to_owned(), value.to_owned());
    }

    /// Options of compose, before its command, from now on.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
    }

    pub fn project(&self) -> &str {
        &self.project
    }

    /// With Grafana, where its image can be had: Debian has no package to make a stand-in of.
    pub fn with_grafana(mut self) -> Self {
        let mut images = base_images("grafana/");
        if images.all(|image| run("tools/standins.sh", &[&image]).status.success()) {
            self.set("COMPOSE_PROFILES", "grafana");
        } else {
            println!("Grafana is left out: its image can not be pulled, and Debian has none");
        }
        self
    }

    /// `docker compose up -d`, with the base images that can be had.
    pub fn up(&self) {
        for image in ["postgres:", "haproxy:", "prom/"].into_iter().flat_map(base_images) {
            standin(&image);
        }
        self.compose(&["up", "-d"]);
    }

    /// `docker compose ARGUMENTS`, which has to succeed. What it said.
    pub fn compose(&self, arguments: &[&str]) -> String {
        succeed(self.prepare(compose()).args(arguments))
    }

    /// `docker compose run` of a service that ends by itself, alone. What it said, and whether it succeeded.
    pub fn run_alone(&self, service: &str, options: &[&str], command: &[&str]) -> Run {
        let mut run = self.prepare(compose());
        run.args(["run", "--rm", "--no-deps", "-T"]).args(options).arg(service).args(command);
        observe(&mut run)
    }

    /// `deploy/compose/upgrade.sh`, to the image that is set.
    pub fn upgrade(&self) -> Run {
        observe(&mut self.prepare(Command::new("deploy/compose/upgrade.sh")))
    }

    /// For this project and with what it is set to.
    fn prepare(&self, mut command: Command) -> Command {
        command.current_dir(env!("CARGO_MANIFEST_DIR")).envs(&self.environment);
        command.args(["-p", &self.project]).args(&self.options);
        command
    }

    /// The containers of a service, stopped ones too.
    pub fn parts(&self, service: &str) -> Vec<Part> {
        let service = format!("label=com.docker.compose.service={service}");
        let project = format!("label=com.docker.compose.project={}", self.project);
        let listed =
            ["ps", "--all", "--quiet", "--no-trunc", "--filter", &service, "--filter", &project];
        docker(&listed).lines().map(|id| Part { id: id.to_owned() }).collect()
    }

    /// The only container of a service.
    pub fn part(&self, service: &str) -> Part {
        let mut parts = self.parts(service);
        assert_eq!(parts.len(), 1, "{service}");
        parts.remove(0)
    }

    pub fn replicas(&self) -> Vec<Part> {
        self.parts("proxy")
    }

    /// All containers of the site.
    pub fn all(&self) -> Vec<Part> {
        let services = ["secrets", "migrate", "postgres", "proxy", "dht", "gateway", "prometheus"];
        services.iter().flat_map(|service| self.parts(service)).collect()
    }

    /// What clients write: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.environment["SITE_PORT"])
    }

    /// Under which addresses machines of the host's network come to the gateway: those of the bridges that
    /// its door is in, when it has joined the `other` site.
    pub fn addresses_of_clients(&self, other: &Self) -> Vec<String> {
        let template = "{{range .IPAM.Config}}{{.Gateway}}{{end}}";
        let bridges = [self, other].map(|site| format!("{}_outer", site.project));
        bridges
            .iter()
            .map(|bridge| docker(&["network", "inspect", "--format", template, bridge]) + "/32")
            .collect()
    }

    /// The sum of a counter over all replicas, of the series that have all of these labels.
    pub fn count(&self, metric: &str, labels: &str) -> u64 {
        self.replicas().iter().map(|replica| replica.count(metric, labels)).sum()
    }

    /// The password of Grafana's administrator, read as Grafana does.
    pub fn secret_of_grafana(&self) -> String {
        let volume = format!("{}_grafana-secrets:/run/secrets/grafana:ro", self.project);
        let options = ["run", "--rm", "--user", "472:472", "--volume", &volume];
        let image = &self.environment["SITE_IMAGE"];
        docker(
            &[&options[..], &["--entrypoint", "cat", image, "/run/secrets/grafana/password"]]
                .concat(),
        )
    }

    /// What Grafana answers its administrator; nothing where there is no Grafana.
    pub fn grafana(&self, path: &str) -> Option<Value> {
        let grafana = self.parts("grafana").pop()?;
        let password = grafana.exec(&["cat", "/run/secrets/grafana/password"]).output;
        let who = format!("Basic {}", STANDARD.encode(format!("admin:{}", password.trim())));
        let port = self.environment["SITE_GRAFANA_PORT"].parse().expect("a port");
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let reply = request(address, "GET", path, &[("Authorization", &who)]);
        Some(serde_json::from_slice(&reply.body).unwrap_or_default())
    }

    /// What Prometheus answers: `/api/v1/…`.
    pub fn prometheus(&self, path: &str) -> Value {
        let port = self.environment["SITE_PROMETHEUS_PORT"].parse().expect("a port");
        let reply = get((Ipv4Addr::LOCALHOST, port).into(), path);
        let told: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        assert!(told["status"] == "success", "{path}: {} {told}", reply.reason);
        told["data"].clone()
    }

    /// The value of an expression that has one, now.
    pub fn ask(&self, expression: &str) -> Option<f64> {
        let query: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let told = self.prometheus(&format!("/api/v1/query?query={query}"));
        told["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// Waits until the gateway has this many replicas to send clients to.
    pub fn wait_for_replicas(&self, count: usize) {
        let gateway = self.part("gateway");
        let up = r#"proxy="replicas",state="UP""#;
        wait_until(PATIENCE, &format!("{count} replicas behind the gateway"), || {
            let told = gateway.get(8404, "/metrics");
            sum(&told, "haproxy_server_status", up) == count as u64
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.prepare(compose()).args(["logs", "--no-color", "--tail=60"]).output();
            let said = logs.map(|logs| logs.stdout).unwrap_or_default();
            eprintln!("== {}\n{}", self.project, String::from_utf8_lossy(&said));
        }
        let down = ["down", "--volumes", "--timeout", "1", "--remove-orphans"];
        let _ = self.prepare(compose()).args(down).output();
    }
}

/// A container of a site; compose removes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Part {
    pub id: String,
}

impl Part {
    pub fn exec(&self, command: &[&str]) -> Run {
        let started = Instant::now();
        let said = try_docker(&[&["exec", &self.id], command].concat());
        let ok = said.is_ok();
        Run { ok, output: said.unwrap_or_else(|said| said), took: started.elapsed() }
    }

    /// Its address among the others of its site, or its only one.
    pub fn ip(&self) -> Option<String> {
        let template =
            "{{range $name, $it := .NetworkSettings.Networks}}{{$name}} {{$it.IPAddress}}\n{{end}}";
        let all = self.inspect(template);
        let inner = all.lines().find(|line| line.contains("_inner "));
        let (_, address) = inner.or_else(|| all.lines().next())?.split_once(' ')?;
        (!address.is_empty()).then(|| address.to_owned())
    }

    pub fn inspect(&self, template: &str) -> String {
        docker(&["inspect", "--format", template, &self.id])
    }

    /// The body of an answer; empty where there is none.
    pub fn get(&self, port: u16, path: &str) -> String {
        let ip = self.ip().and_then(|ip| ip.parse().ok());
        let body = ip.map(|ip| get(SocketAddr::new(ip, port), path).body).unwrap_or_default();
        String::from_utf8_lossy(&body).into_owned()
    }

    pub fn readiness(&self) -> String {
        self.get(ADMIN, "/readyz")
    }

    /// Which swarm a node is in, by the key that it has.
    pub fn swarm(&self) -> Option<String> {
        let status: Value = serde_json::from_str(&self.get(ADMIN, "/status.json")).ok()?;
        status["swarm"].as_str().map(str::to_owned)
    }

    /// The sum of a counter's series that have all of these labels, such as `to="peer"`.
    pub fn count(&self, metric: &str, labels: &str) -> u64 {
        sum(&self.get(ADMIN, "/metrics"), metric, labels)
    }

    /// Connections of clients, seen from within.
    pub fn clients(&self) -> usize {
        // Port 9977, established.
        let tables = self.exec(&["cat", "/proc/net/tcp", "/proc/net/tcp6"]).output;
        let fields = tables.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        fields
            .filter(|line| line.len() > 3 && line[1].ends_with(":26F9") && line[3] == "01")
            .count()
    }
}

/// The sum of the series of a metric that have all of these labels.
fn sum(exposition: &str, metric: &str, labels: &str) -> u64 {
    let values = exposition.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(metric)?;
        let is_it = rest.is_empty() || rest.starts_with('{');
        let fits = labels.split(',').all(|label| rest.contains(label));
        (is_it && fits).then(|| value.parse::<f64>().ok()).flatten()
    });
    values.sum::<f64>() as u64
}

/// Docker's own compose, or else Debian's older one.
fn compose() -> Command {
    if try_docker(&["compose", "version"]).is_ok() {
        let mut command = Command::new("docker");
        command.arg("compose");
        command
    } else {
        Command::new("docker-compose")
    }
}

/// All that it said.
fn succeed(command: &mut Command) -> String {
    let run = observe(command);
    assert!(run.ok, "{command:?}: {}", run.output);
    run.output
}

fn observe(command: &mut Command) -> Run {
    let started = Instant::now();
    let output = command.output().expect("compose (`make e2e` installs it)");
    let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    Run { ok: output.status.success(), output: format!("{out}{err}"), took: started.elapsed() }
}

/// The images in compose.yaml of this maker.
fn base_images(maker: &str) -> impl Iterator<Item = String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("compose.yaml");
    let text = fs::read_to_string(file).expect("compose.yaml");
    let images = text.lines().filter_map(|line| line.trim().strip_prefix("image: "));
    let images = images.filter(|image| image.starts_with(maker)).map(str::to_owned);
    images.collect::<Vec<_>>().into_iter()
}
