//! The servers beside us: nginx as an origin and as a cache, apt-cacher-ng. Each runs from a folder
//! of its own, on loopback, and ends with its handle.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::kit::wait_until;

pub struct Server {
    child: Child,
    pub address: SocketAddr,
    _folder: TempDir,
}

impl Server {
    /// nginx serving the files below `root`.
    pub fn origin(root: &Path) -> Self {
        let root = root.display();
        nginx(&format!("root {root}; open_file_cache max=100;"), "")
    }

    /// nginx as a cache of `origin`, as one would set it up for packages. `tcp_nopush` helps it with
    /// some sizes and costs it dearly with others.
    pub fn nginx_cache(origin: SocketAddr, tcp_nopush: bool) -> Self {
        let server = format!(
            "location / {{
                proxy_pass http://{origin};
                proxy_http_version 1.1;
                proxy_set_header Connection \"\";
                proxy_cache packages;
                proxy_cache_valid 200 1d;
                proxy_cache_lock on;
                proxy_cache_lock_timeout 60s;
                proxy_cache_lock_age 60s;
            }}"
        );
        let tcp_nopush = if tcp_nopush { "on" } else { "off" };
        let http = format!(
            "proxy_cache_path FOLDER/cache keys_zone=packages:10m max_size=10g inactive=1d
                 use_temp_path=off;
             tcp_nopush {tcp_nopush};"
        );
        nginx(&server, &http)
    }

    /// apt-cacher-ng with its own defaults.
    pub fn apt_cacher_ng() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        for name in ["cache", "log", "conf"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        // It wants a file there, if an empty one.
        fs::write(folder.path().join("conf/acng.conf"), "").unwrap();
        let child = Command::new("/usr/sbin/apt-cacher-ng")
            .args(["-c", &at("conf"), "ForeGround=1", "BindAddress=127.0.0.1"])
            .args([format!("Port={}", address.port()), "SocketPath=".to_owned()])
            .args([format!("CacheDir={}", at("cache")), format!("LogDir={}", at("log"))])
            .args([
                "SupportDir=/usr/lib/apt-cacher-ng",
                "ReportPage=acng-report.html",
                "AllowUserPorts=0",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("apt-cacher-ng is installed (make bench does it)");
        Self { child, address, _folder: folder }.ready()
    }

    pub fn pids(&self) -> Vec<u32> {
        with_children(self.child.id())
    }

    fn ready(self) -> Self {
        wait_until(Duration::from_secs(20), "the server listens", || {
            TcpStream::connect(self.address).is_ok()
        });
        self
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's workers end with their master on TERM, not on KILL.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn nginx(server: &str, http: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let at = folder.path().display().to_string();
    let configuration = format!(
        "worker_processes auto; daemon off; pid {at}/pid; error_log {at}/error.log;
         events {{ worker_connections 4096; }}
         http {{
            access_log off; sendfile on; keepalive_requests 1000000000;
            default_type application/octet-stream;
            client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;
            uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;
            {}
            server {{ listen {address} backlog=1024; {server} }}
         }}",
        http.replace("FOLDER", &at)
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    open_to_workers(folder.path());
    let child = Command::new("nginx")
        .args(["-p", &at, "-c", &file.display().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx is installed (make bench does it)");
    Server { child, address, _folder: folder }.ready()
}

/// nginx's workers are another user, and must get into the folder.
pub fn open_to_workers(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Below 32768: apt-cacher-ng can not reach higher ports of an origin.
fn free_address() -> SocketAddr {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    loop {
        let port = 20_000 + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

fn with_children(pid: u32) -> Vec<u32> {
    let mut pids = vec![pid];
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        pids.extend(with_children(child.parse().unwrap()));
    }
    pids
}

/// CPU seconds that processes have used so far.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks: f64 = pids
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .map(|stat| {
            let after_name =
                stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            let fields: Vec<f64> =
                after_name.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
            fields.iter().sum::<f64>()
        })
        .sum();
    ticks / 100.0
}

/// The most memory that processes have held, in MB.
pub fn peak_megabytes(pids: &[u32]) -> f64 {
    let kilobytes: f64 = pids
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter_map(|status| {
            let line = status.lines().find(|line| line.starts_with("VmHWM:"))?.to_owned();
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        })
        .sum();
    kilobytes / 1024.0
}
