//! `aptmesh dht` as a process, on a loopback address of its own.

use super::client::{self, Reply};
use super::proxy::{Captured, address_in, aptmesh, lines_of, sum_of_samples};
use super::wait_until;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const START_TIME: Duration = Duration::from_secs(30);
const STOP_TIME: Duration = Duration::from_secs(20);

/// Nodes so far: each has an address of its own, and ports that others know beforehand.
static NODES: AtomicU32 = AtomicU32::new(1);

/// How a node is to be started.
pub struct Build {
    pub ip: String,
    listen: Option<String>,
    hosts: Option<PathBuf>,
    data: Option<PathBuf>,
    config: Option<PathBuf>,
    env: Vec<(String, String)>,
}

impl Build {
    /// Bootstraps from there.
    pub fn seeds(self, seeds: &[&Node]) -> Self {
        let seeds: Vec<String> = seeds.iter().map(|seed| seed.dht.to_string()).collect();
        self.env("SWARM_BOOTSTRAP", seeds.join(","))
    }

    /// A setting, without `APTMESH_`. The last one of a name counts.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((format!("APTMESH_{name}"), value.into()));
        self
    }

    /// Other variables, such as those of a receiver of traces.
    pub fn variables(mut self, variables: Vec<(&'static str, String)>) -> Self {
        self.env.extend(variables.into_iter().map(|(name, value)| (name.to_owned(), value)));
        self
    }

    /// Listens for nodes there.
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = Some(address.to_owned());
        self
    }

    /// Keeps its data where another one has it.
    pub fn data_of(mut self, other: &Node) -> Self {
        self.data = Some(other.data().to_owned());
        self
    }

    /// Reads its settings from this file, too.
    pub fn config(mut self, file: &Path) -> Self {
        self.config = Some(file.to_owned());
        self
    }

    /// Finds names in this file.
    pub fn hosts(mut self, file: &Path) -> Self {
        self.hosts = Some(file.to_owned());
        self
    }

    pub fn start(self) -> Node {
        let data = TempDir::new().expect("a folder for the data");
        let Running { child, log, admin, api, dht } = Running::start(&self, data.path());
        let api = Api::at(api);
        Node { ip: self.ip.clone(), build: self, data, child, log, admin, api, dht }
    }

    fn command(&self, data: &Path) -> Command {
        let listen = self.listen.clone().unwrap_or_else(|| format!("{}:9980", self.ip));
        let aptmesh = aptmesh();
        let mut command = match &self.hosts {
            None => aptmesh,
            Some(hosts) => {
                let mut command = Command::new("unshare");
                let script = "mount --bind \"$HOSTS\" /etc/hosts && exec \"$0\" \"$@\"";
                command.args(["--mount", "sh", "-c", script]).arg(aptmesh.get_program());
                command.env("HOSTS", hosts);
                command
            }
        };
        command
            .args(["dht", "--dht-listen", &listen])
            .args(["--admin-listen", &format!("{}:9978", self.ip), "--data"])
            .arg(self.data.as_deref().unwrap_or(data))
            .args(self.config.iter().flat_map(|file| [Path::new("--config"), file]))
            .env("APTMESH_LISTEN_SIDECAR", format!("{}:9981", self.ip))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// A node under test. It is killed when it is dropped, and its log is printed when the test fails.
pub struct Node {
    pub ip: String,
    build: Build,
    data: TempDir,
    child: Child,
    log: Captured,
    admin: SocketAddr,
    api: Api,
    dht: SocketAddr,
}

impl Node {
    /// A node of the swarm with this key.
    pub fn build(key: &str) -> Build {
        let ip = own_ip();
        let advertise = format!("http://{ip}:9979");
        Build { ip, listen: None, hosts: None, data: None, config: None, env: Vec::new() }
            .env("SWARM_KEY", key)
            .env("SWARM_ALLOW_PRIVATE", "127.0.0.0/8,::1/128")
            .env("SWARM_ADVERTISE", advertise)
            .env("LOG_LEVEL", "info,aptmesh::dht=debug")
    }

    /// Starts one that bootstraps from these.
    pub fn start(key: &str, seeds: &[&Node]) -> Self {
        Self::build(key).seeds(seeds).start()
    }

    /// Where other nodes find it.
    pub fn dht(&self) -> SocketAddr {
        self.dht
    }

    /// Where the administrator talks to.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where its proxy talks to.
    pub fn api(&self) -> SocketAddr {
        self.api.address()
    }

    pub fn data(&self) -> &Path {
        self.data.path()
    }

    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Ends it like a loss of power, as far as a process can tell.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its short name: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &command]).status().expect("a shell").success());
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) {
        self.signal("TERM");
        wait_until(STOP_TIME, "the end of the node", || {
            self.child.try_wait().expect("a child").is_some()
        });
    }

    /// Starts it again, with the same data and address.
    pub fn restart(&mut self) {
        self.kill9();
        let running = Running::start(&self.build, self.data.path());
        let Running { child, log, admin, api, dht } = running;
        (self.child, self.log, self.admin, self.dht) = (child, log, admin, dht);
        self.api = Api::at(api);
    }

    /// The URL under which its blobs are said to be had.
    pub fn url(&self) -> String {
        format!("http://{}:9979", self.ip)
    }

    pub fn wait_found(&self, blob: &str, wanted: &[&Node]) {
        let mut wanted: Vec<String> = wanted.iter().map(|node| node.url()).collect();
        wanted.sort();
        wait_until(Duration::from_secs(30), "the right answer to a look-up", || {
            self.look_up(blob) == wanted
        });
    }

    pub fn metric(&self, name_with_labels: &str) -> f64 {
        let reply = client::get(self.admin, "/metrics");
        assert_eq!(reply.status, 200, "/metrics: {}", reply.reason);
        sum_of_samples(&String::from_utf8_lossy(&reply.body), name_with_labels)
    }

    /// The memory that it really occupies.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// User and system time so far.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }

    /// What a stranger who says this hears within a moment; nothing, when it is hung up on.
    pub fn hears(&self, says: &[u8]) -> Vec<u8> {
        use std::io::Read;
        let mut socket = TcpStream::connect(self.dht).expect("a connection");
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut heard = Vec::new();
        let _ = socket.write_all(says);
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = socket.read(&mut buffer) {
            heard.extend_from_slice(&buffer[..count]);
        }
        heard
    }
}

/// The API of a node, be it in a process of its own or within a proxy.
pub struct Api {
    address: SocketAddr,
}

impl Api {
    pub fn at(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn get(&self, target: &str) -> Value {
        json(&client::get(self.address, target))
    }

    pub fn post(&self, target: &str, body: &Value) -> Value {
        json(&self.try_post(target, &body.to_string()))
    }

    pub fn try_post(&self, target: &str, body: &str) -> Reply {
        let mut connection = client::Connection::open(self.address);
        let head =
            format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.send_raw(&[head.as_bytes(), body.as_bytes()].concat());
        connection.read_reply("POST")
    }

    pub fn status(&self, field: &str) -> Value {
        self.get("/status")[field].clone()
    }

    pub fn count(&self, field: &str) -> u64 {
        self.status(field).as_u64().unwrap_or_else(|| panic!("a number: {field}"))
    }

    /// Announces blobs, all of 2 MB.
    pub fn announce(&self, blobs: &[String]) -> Value {
        let blobs: Vec<Value> = blobs
            .iter()
            .map(|blob| serde_json::json!({ "sha256": blob, "size": 2_000_000 }))
            .collect();
        self.post("/announce", &serde_json::json!({ "blobs": blobs }))
    }

    pub fn withdraw(&self, blobs: &[String]) -> Value {
        self.post("/withdraw", &serde_json::json!({ "blobs": blobs }))
    }

    /// URLs where the blob is to be had, in order.
    pub fn look_up(&self, blob: &str) -> Vec<String> {
        let mut urls = urls(&self.get(&format!("/lookup/{blob}?budget_ms=3000"))["peers"]);
        urls.sort();
        urls
    }

    pub fn wait_connected(&self, nodes: usize) {
        wait_until(Duration::from_secs(30), "connections to other nodes", || {
            self.count("table") >= nodes as u64
        });
    }

    /// All sites that it knows: URLs of each.
    pub fn peers(&self) -> Vec<Vec<String>> {
        let told = self.get("/peers");
        let peers = told["peers"].as_array().expect("a list of peers").iter();
        peers.map(|peer| urls(&Value::Array(vec![peer.clone()]))).collect()
    }
}

impl Deref for Node {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("--- log of the node at {} ---\n{}---", self.ip, self.log());
        }
    }
}

struct Running {
    child: Child,
    log: Captured,
    admin: SocketAddr,
    api: SocketAddr,
    dht: SocketAddr,
}

impl Running {
    fn start(build: &Build, data: &Path) -> Self {
        let mut child = build.command(data).spawn().expect("the aptmesh binary");
        let log = Captured::of(child.stderr.take().expect("a pipe"));
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        let next = |before: &str| loop {
            let line = lines.recv_timeout(START_TIME).unwrap_or_else(|_| {
                panic!("the node at {} did not start: {}", build.ip, log.text());
            });
            if let Some(address) = address_in(&line, before) {
                return address;
            }
        };
        let (dht, api) = (next("dht on "), next("sidecar on http://"));
        let admin = next("admin on http://");
        Self { child, log, admin, api, dht }
    }
}

/// Runs `what` on a network of its own, with an address that is not loopback; nothing else is there.
pub fn on_a_network_of_its_own(what: impl FnOnce() + Send + 'static) {
    const SET_UP: &str = "ip link set lo up multicast on && ip address add 10.9.0.1/24 dev lo && \
                          ip route add 224.0.0.0/4 dev lo && echo ready && exec sleep 1000";
    let mut holder = Command::new("unshare")
        .args(["--net", "sh", "-c", SET_UP])
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let ready = lines_of(holder.stdout.take().expect("a pipe")).recv_timeout(START_TIME);
    assert_eq!(ready.as_deref(), Ok("ready"), "a network of its own");
    let network = fs::File::open(format!("/proc/{}/ns/net", holder.id())).expect("its network");
    // This thread, and what it starts.
    let run = std::thread::spawn(move || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(network.as_fd(), Some(kind)).expect("to be root");
        what();
    });
    let done = run.join();
    let _ = holder.kill();
    let _ = holder.wait();
    if let Err(trouble) = done {
        std::panic::resume_unwind(trouble);
    }
}

/// A loopback address that nobody else has.
pub(super) fn own_ip() -> String {
    let number = NODES.fetch_add(1, Ordering::Relaxed);
    // Apart from the tests of other processes, too.
    let test = std::process::id() % 200 + 40;
    format!("127.{test}.{}.{}", number / 200, number % 200 + 1)
}

/// A new swarm's key.
pub fn swarm_key() -> String {
    let made = aptmesh().arg("key").output().expect("the aptmesh binary");
    assert!(made.status.success());
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

pub fn urls(peers: &Value) -> Vec<String> {
    let peers = peers.as_array().expect("a list of peers");
    let urls = peers.iter().flat_map(|peer| peer["urls"].as_array().expect("a list of URLs"));
    urls.map(|url| url.as_str().unwrap().to_owned()).collect()
}

fn json(reply: &Reply) -> Value {
    let text = String::from_utf8_lossy(&reply.body);
    assert_eq!(reply.status, 200, "{}: {text}", reply.reason);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
}
