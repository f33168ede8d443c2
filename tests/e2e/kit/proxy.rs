//! The real proxy binary, run as its users run it.

use super::client;
use super::mirror::Mirror;
use super::{sha256_hex, wait_until};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_TIME: Duration = Duration::from_secs(20);
const STOP_TIME: Duration = Duration::from_secs(40);

/// The binary, free of the settings of whoever runs the tests.
pub fn aptmesh() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aptmesh"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("APTMESH_") || text.starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command
}

/// The command, run by way of another program.
fn after(prefix: &[String], command: Command) -> Command {
    let Some((program, arguments)) = prefix.split_first() else { return command };
    let mut wrapped = Command::new(program);
    wrapped.args(arguments).arg(command.get_program());
    for (name, _) in command.get_envs() {
        wrapped.env_remove(name);
    }
    wrapped
}

/// How a proxy is to be started.
pub struct Build {
    verb: &'static str,
    data: Option<PathBuf>,
    env: Vec<(String, OsString)>,
    args: Vec<OsString>,
    /// Of the proxy and of the administrator; port 0 for any.
    addresses: [SocketAddr; 2],
    /// What runs it; empty: nothing else.
    prefix: Vec<String>,
}

impl Build {
    /// Keeps the data there instead of in a folder that goes with the proxy.
    pub fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// A setting: `APTMESH_<SECTION>_<KEY>`. The last one of a name counts.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Settings and other variables, such as those of a receiver of traces.
    pub fn variables(self, variables: Vec<(&'static str, String)>) -> Self {
        variables.into_iter().fold(self, |build, (name, value)| build.env(name, value))
    }

    /// In the swarm with this key, by way of the node at that URL, and gives nothing itself.
    pub fn beside(self, key: &str, node: impl Into<OsString>) -> Self {
        self.env("APTMESH_SWARM_KEY", key)
            .env("APTMESH_SWARM_ANNOUNCE", "false")
            .env("APTMESH_SWARM_ALLOW_PRIVATE", "127.0.0.0/8")
            .env("APTMESH_PROXY_SIDECAR", node)
    }

    /// Listens on another loopback address.
    pub fn at(mut self, ip: IpAddr) -> Self {
        self.addresses = [SocketAddr::from((ip, 0)); 2];
        self
    }

    /// Runs this command instead of `serve`.
    pub fn verb(mut self, verb: &'static str) -> Self {
        self.verb = verb;
        self
    }

    /// Runs it by way of another program, such as one that puts it on another network.
    pub fn prefix(mut self, prefix: Vec<String>) -> Self {
        self.prefix = prefix;
        self
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// As on a system whose certificate authorities are in this file only, which need not be there.
    pub fn authorities(self, file: &Path) -> Self {
        self.env("SSL_CERT_FILE", file).env("SSL_CERT_DIR", "")
    }

    /// Starts the proxy and waits until it is ready.
    pub fn start(self) -> Proxy {
        let own_folder =
            self.data.is_none().then(|| TempDir::new().expect("a folder for the data"));
        let data = match (&self.data, &own_folder) {
            (Some(folder), _) => folder.clone(),
            (None, Some(own)) => own.path().join("data"),
            (None, None) => unreachable!("one of them was made above"),
        };
        let running = Running::start(&self, &data);
        Proxy { build: self, data, own_folder, running }
    }

    fn command(&self, data: &Path) -> Command {
        let mut command = after(&self.prefix, aptmesh());
        command
            .args([self.verb, "--listen", &self.addresses[0].to_string()])
            .args(["--admin-listen", &self.addresses[1].to_string(), "--data"])
            .arg(data)
            .args(&self.args)
            .env("APTMESH_MIRROR_ALLOW_PRIVATE", "127.0.0.0/8")
            // How full the disk is on which the tests run is not their matter.
            .env("APTMESH_STORE_MIN_FREE", "0")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// A proxy under test. It is killed when it is dropped, and its log is
/// printed when the test fails.
pub struct Proxy {
    build: Build,
    data: PathBuf,
    /// Held so that the folder goes away after the proxy.
    own_folder: Option<TempDir>,
    running: Running,
}

impl Proxy {
    pub fn start() -> Self {
        Self::build().start()
    }

    pub fn build() -> Build {
        let addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 2];
        let (env, args, prefix) = (Vec::new(), Vec::new(), Vec::new());
        Build { verb: "serve", data: None, env, args, addresses, prefix }
    }

    /// Where apt talks to.
    pub fn addr(&self) -> SocketAddr {
        self.running.proxy
    }

    /// Where the administrator talks to.
    pub fn admin(&self) -> SocketAddr {
        self.running.admin
    }

    /// The target for a path of a mirror, in the prefix form.
    pub fn url_for(&self, mirror: &Mirror, path: &str) -> String {
        format!("/{}/{}", mirror.host(), path.trim_start_matches('/'))
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn pid(&self) -> u32 {
        self.running.child.lock().unwrap().id()
    }

    /// What it logged since it was started (or restarted).
    pub fn log(&self) -> String {
        self.running.log.text()
    }

    /// Sends a signal by its short name: `TERM`, `HUP`, `STOP`.
    pub fn signal(&self, name: &str) {
        // The shell's own kill: not every machine has it as a program.
        let sent = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{name} {}", self.pid()))
            .status()
            .expect("a shell");
        assert!(sent.success(), "could not send SIG{name} to the proxy");
    }

    /// Ends it like a loss of power, as far as a process can tell.
    pub fn kill9(&self) {
        self.running.kill();
    }

    /// Waits until it has ended by itself.
    pub fn wait_exit(&self, timeout: Duration) -> ExitStatus {
        self.running
            .exit_within(timeout)
            .unwrap_or_else(|| panic!("the proxy still runs after {timeout:?}"))
    }

    /// Starts it again with the same data and settings, on new ports. When it
    /// still runs, it is first asked to end.
    pub fn restart(&mut self) {
        if self.running.exit_within(Duration::ZERO).is_none() {
            self.signal("TERM");
            self.wait_exit(STOP_TIME);
        }
        self.running = Running::start(&self.build, &self.data);
    }

    /// The same on the ports that it had: for one with an address of its own, lest others take them.
    pub fn restart_in_place(&mut self) {
        self.build.addresses = [self.addr(), self.admin()];
        self.restart();
    }

    /// The sum of a metric over all samples that have these labels:
    /// `requests_total` or `requests_total{result="hit"}`. A sample may have
    /// more labels; 0 when there is no such sample.
    pub fn metric(&self, name_with_labels: &str) -> f64 {
        let reply = client::get(self.admin(), "/metrics");
        assert_eq!(reply.status, 200, "/metrics: {}", reply.reason);
        sum_of_samples(&String::from_utf8_lossy(&reply.body), name_with_labels)
    }

    /// A metric that only takes whole numbers.
    pub fn count(&self, name_with_labels: &str) -> u64 {
        // No sample at all sums up to minus zero.
        format!("{:.0}", self.metric(name_with_labels).abs()).parse().expect("a whole number")
    }

    /// The memory that it really occupies.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that it ever occupied.
    pub fn peak_resident_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, which: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the status of the running proxy");
        let kilobytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix(which))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .and_then(|number| number.trim().parse().ok())
            .expect("a line about memory");
        kilobytes * 1024
    }

    /// Every stored file that is named after its SHA-256.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.data.join("blobs"), &mut found);
        found.retain(|path| digest_in_path(path).is_some());
        found.sort();
        found
    }

    /// The files of downloads under way.
    pub fn staged(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.data.join("staging"), &mut found);
        // Each process's folder has one.
        found.retain(|path| path.file_name().is_some_and(|name| name != "lock"));
        found
    }

    /// Waits until no download is under way: a client may have it all before
    /// it is stored.
    pub fn wait_landed(&self) {
        wait_until(Duration::from_secs(15), "the end of all downloads", || {
            self.metric("aptmesh_engine_flights") == 0.0
        });
    }

    /// Every stored file must be what its name says.
    pub fn check_blobs(&self) {
        for path in self.blobs() {
            let bytes = fs::read(&path).expect("a readable blob");
            let named = digest_in_path(&path).expect("a digest in the name");
            assert_eq!(
                sha256_hex(&bytes),
                named,
                "{} ({} bytes) is not what its name says",
                path.display(),
                bytes.len()
            );
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.kill();
        if thread::panicking() {
            eprintln!("--- log of the proxy ---\n{}---", self.log());
        }
    }
}

/// One life of the process.
struct Running {
    child: Mutex<Child>,
    proxy: SocketAddr,
    admin: SocketAddr,
    log: Captured,
}

impl Running {
    fn start(build: &Build, data: &Path) -> Self {
        let mut child = build.command(data).spawn().expect("the aptmesh binary");
        let log = Captured::of(child.stderr.take().expect("a pipe"));
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        match ready(&lines) {
            Ok((proxy, admin)) => Self { child: Mutex::new(child), proxy, admin, log },
            Err(trouble) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{trouble}; it logged:\n{}", log.text());
            }
        }
    }

    fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }

    fn exit_within(&self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.child.lock().unwrap().try_wait().expect("a child");
            if status.is_some() || Instant::now() >= deadline {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the two lines that tell the addresses.
fn ready(lines: &Receiver<String>) -> Result<(SocketAddr, SocketAddr), String> {
    let deadline = Instant::now() + START_TIME;
    let (mut proxy, mut admin) = (None, None);
    loop {
        if let (Some(proxy), Some(admin)) = (proxy, admin) {
            return Ok((proxy, admin));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                proxy = proxy.or_else(|| address_in(&line, "proxy on http://"));
                admin = admin.or_else(|| address_in(&line, "admin on http://"));
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("the proxy is not ready after {START_TIME:?}"));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err("the proxy ended before it was ready".to_owned());
            }
        }
    }
}

pub(super) fn address_in(line: &str, before: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(before)?;
    let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '/' | ',' | ';'));
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

/// The lines of a pipe, read to its end whether or not anybody listens: a
/// full pipe would stop the proxy.
pub(super) fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// All that comes out of a pipe.
pub(super) struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Captured {
    pub(super) fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let copy = bytes.clone();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = client::uninterrupted(|| pipe.read(&mut buffer)) {
                copy.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, reader }
    }

    /// Gives the last words of a dead process a moment to come through.
    pub(super) fn text(&self) -> String {
        let deadline = Instant::now() + Duration::from_millis(50);
        while !self.reader.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&path, found),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
}

/// The digest that a path spells: the 64 hex digits of its last parts, be it
/// `ab/abcd…`, `ab/cd…` or `sha256/abcd…`.
fn digest_in_path(path: &Path) -> Option<String> {
    let mut digits = String::new();
    for part in path.iter().rev() {
        digits.insert_str(0, part.to_str()?);
        if digits.len() >= 64 {
            break;
        }
    }
    (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digits)
}

pub(super) fn sum_of_samples(text: &str, name_with_labels: &str) -> f64 {
    let (name, labels) = match name_with_labels.split_once('{') {
        Some((name, labels)) => (name, labels.trim_end_matches('}')),
        None => (name_with_labels, ""),
    };
    let labels: Vec<&str> = labels.split(',').filter(|l| !l.is_empty()).collect();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(sample, _)| sample.split('{').next() == Some(name))
        .filter(|(sample, _)| labels.iter().all(|label| sample.contains(label)))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}
