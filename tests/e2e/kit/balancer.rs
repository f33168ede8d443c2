//! The real haproxy, which carries bytes to those replicas that say they are ready.

use super::postgres::{free_port, program};
use super::{Proxy, client, wait_until};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const START_TIME: Duration = Duration::from_secs(20);

/// A balancer, killed when it is dropped.
pub struct Balancer {
    folder: TempDir,
    addr: SocketAddr,
    statistics: SocketAddr,
    child: Child,
}

impl Balancer {
    pub fn before(replicas: &[Proxy]) -> Self {
        // It does not try again for a client: who is sent away is sent away.
        let mut servers = " balance roundrobin\n option httpchk GET /readyz\n".to_owned();
        for (number, replica) in replicas.iter().enumerate() {
            let (proxy, admin) = (replica.addr(), replica.admin());
            let checked = format!("check addr {} port {} inter 500ms", admin.ip(), admin.port());
            writeln!(servers, " server {number} {proxy} {checked} fall 2 rise 1").unwrap();
        }
        let balancer = Self::start(&servers);
        wait_until(START_TIME, "haproxy before its replicas", || {
            (0..replicas.len()).all(|number| balancer.has_up(number))
        });
        balancer
    }

    /// One that tells `to` for whom its connections are: `how` is `send-proxy` or `send-proxy-v2`. They come
    /// from 127.0.0.1.
    pub fn telling(how: &str, to: SocketAddr) -> Self {
        let balancer = Self::start(&format!(" server 0 {to} source 127.0.0.1 {how}\n"));
        wait_until(START_TIME, "haproxy", || TcpStream::connect(balancer.addr).is_ok());
        balancer
    }

    fn start(servers: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let [addr, statistics] =
            [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let settings = format!(
            "defaults\n mode tcp\n retries 0\n timeout connect 10s\n timeout client 2m\n timeout server 2m\n\
             frontend statistics\n mode http\n bind {statistics}\n stats enable\n stats uri /\n\
             listen replicas\n bind {addr}\n{servers}"
        );
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, settings).expect("a file");
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let child = Command::new(program("haproxy"))
            .args(["-db", "-f"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("haproxy");
        Self { folder, addr, statistics, child }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether a check found that this replica is ready.
    pub fn has_up(&self, number: usize) -> bool {
        let told = client::get(self.statistics, "/;csv").body;
        let told = String::from_utf8_lossy(&told).into_owned();
        let line = told.lines().find(|line| line.starts_with(&format!("replicas,{number},")));
        line.is_some_and(|line| line.contains(",UP,") && line.contains(",L7OK,"))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of haproxy ---\n{}---", self.log());
        }
    }
}
