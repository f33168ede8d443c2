//! What a service manager hears of a process, by way of a socket such as systemd's.

use crate::kit::node::swarm_key;
use crate::kit::{Postgres, aptmesh, fleet, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A manager of one process, which it kills when it is dropped.
struct Manager {
    socket: UnixDatagram,
    child: Child,
    _folder: TempDir,
}

impl Manager {
    fn of(verb: &str, settings: &[(&str, &str)]) -> Self {
        Self::with(verb, settings, &[])
    }

    fn with(verb: &str, settings: &[(&str, &str)], args: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let any = "127.0.0.1:0";
        let child = aptmesh()
            .args([verb, "--listen", any, "--admin-listen", any, "--dht-listen", any])
            .args(["--peer-listen", any, "--data"])
            .arg(folder.path().join("data"))
            .args(args)
            .env("APTMESH_LISTEN_SIDECAR", any)
            .envs(settings.iter().copied())
            .env("NOTIFY_SOCKET", path)
            .env("WATCHDOG_USEC", "200000")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the aptmesh binary");
        Self { socket, child, _folder: folder }
    }

    /// The next word, other than that it is alive.
    fn hears(&self) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let word = self.next();
            if word != ["WATCHDOG=1"] {
                return word;
            }
        }
        panic!("it has nothing to say for {PATIENCE:?}");
    }

    fn next(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("a word");
        let text = str::from_utf8(&bytes[..length]).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a running process");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From its start to its end; `shows` is in the line that tells what runs.
fn lives(verb: &str, settings: &[(&str, &str)], shows: &[&str]) {
    let mut manager = Manager::of(verb, settings);
    let ready = manager.hears();
    assert_eq!(ready[0], "READY=1", "{verb}: {ready:?}");
    for part in shows {
        assert!(ready[1].starts_with("STATUS=") && ready[1].contains(part), "{verb}: {ready:?}");
    }
    for _ in 0..3 {
        assert_eq!(manager.next(), ["WATCHDOG=1"], "{verb}");
    }

    manager.signal(Signal::HUP);
    let reloading = manager.hears();
    assert_eq!(reloading[..2], ["RELOADING=1", "STATUS=reading the settings"], "{verb}");
    let clock = reloading[2].strip_prefix("MONOTONIC_USEC=").expect("the time");
    assert!(clock.parse::<u64>().unwrap() > 0, "{verb}: {reloading:?}");
    assert_eq!(manager.hears(), ready, "{verb}");

    manager.signal(Signal::TERM);
    let stopping = manager.hears();
    assert_eq!((stopping[0].as_str(), stopping.len()), ("STOPPING=1", 2), "{verb}");
    wait_until(PATIENCE, "its end", || manager.child.try_wait().expect("a child").is_some());
    assert_eq!(manager.child.wait().expect("a child").code(), Some(0), "{verb}");
}

#[test]
fn a_cache_tells_its_manager_how_it_is() {
    lives("serve", &[], &["proxy on http://127.0.0.1:", "admin on http://127.0.0.1:"]);
}

#[test]
fn a_replica_tells_its_manager_how_it_is() {
    let server = Postgres::start();
    let url = fleet::migrated(&server);
    lives("proxy", &[("APTMESH_INDEX_URL", &url)], &["proxy on http://127.0.0.1:"]);
}

#[test]
fn a_node_tells_its_manager_how_it_is() {
    let key = swarm_key();
    lives("dht", &[("APTMESH_SWARM_KEY", &key)], &["dht on 127.0.0.1:", "sidecar on http://"]);
}

#[test]
fn settings_that_are_wrong_are_no_reason_to_keep_a_manager_waiting() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("aptmesh.toml");
    std::fs::write(&file, "").unwrap();
    let key = swarm_key();
    for verb in ["serve", "dht"] {
        std::fs::write(&file, "").unwrap();
        let settings = [("APTMESH_SWARM_KEY", key.as_str())];
        let manager = Manager::with(verb, &settings, &["--config", file.to_str().unwrap()]);
        let ready = manager.hears();
        std::fs::write(&file, "[nonsense]\n").unwrap();
        manager.signal(Signal::HUP);
        assert_eq!(manager.hears()[0], "RELOADING=1", "{verb}");
        assert_eq!(manager.hears(), ready, "{verb}");
    }
}
