//! One process from its start to its end: what it says, how many it lets in, what its commands
//! print, and how it sees its clients off.

use crate::kit::{Connection, File, Mirror, Proxy, aptmesh, get, noise, request, wait_until};
use aptmesh::config::KEYS;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const PATH: &str = "/debian/pool/f/file_1.orig.tar.xz";
/// More than a stop takes when nothing is under way, less than it may take at most.
const SOON: Duration = Duration::from_secs(15);
/// More than the bound of a stop.
const LONG: Duration = Duration::from_secs(60);

/// The log of a proxy that ended well, once it has said `words`.
fn log_of_stopped(proxy: &Proxy, words: &str) -> String {
    assert_eq!(proxy.wait_exit(LONG).code(), Some(0), "{}", proxy.log());
    wait_until(SOON, words, || proxy.log().contains(words));
    proxy.log()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A client that is in the middle of its download, which the mirror sends at this speed.
fn downloading(proxy: &Proxy, mirror: &Mirror, bytes: &[u8], rate: u64) -> Connection {
    mirror.put(PATH, File::new(bytes).rate(rate));
    let mut client = Connection::open(proxy.addr());
    client.send("GET", &proxy.url_for(mirror, PATH), &[]);
    assert_eq!(client.read_head().status, 200);
    assert_eq!(client.read_body_some(1000), bytes[..1000]);
    client
}

fn stops_after_the_last_answer(signal: &str) {
    let mirror = Mirror::start();
    let proxy = Proxy::start();
    let bytes = noise(1, 10_000_000);
    let mut idle = Connection::open(proxy.addr());
    idle.send("GET", "/", &[]);
    assert_eq!(idle.read_reply("GET").status, 406);
    let mut client = downloading(&proxy, &mirror, &bytes, 1_000_000);

    proxy.signal(signal);
    wait_until(SOON, "newcomers to be refused", || TcpStream::connect(proxy.addr()).is_err());
    let ready = get(proxy.admin(), "/readyz");
    assert_eq!((ready.status, text(&ready.body).as_str()), (503, "stopping\n"));
    assert_eq!(get(proxy.admin(), "/livez").status, 200);
    assert_eq!(idle.read_head().status, 0, "an idle connection was kept");
    assert!(mirror.log()[0].open, "the download is over already: this shows nothing");

    assert_eq!(client.read_body_some(bytes.len()), bytes[1000..]);
    let log = log_of_stopped(&proxy, "stopped");
    assert!(!log.contains("stopped with"), "{log}");
    assert_eq!(proxy.blobs().len(), 1, "what was downloaded is kept");
    proxy.check_blobs();
}

#[test]
fn sigterm_lets_a_running_download_end() {
    stops_after_the_last_answer("TERM");
}

#[test]
fn sigint_lets_a_running_download_end() {
    stops_after_the_last_answer("INT");
}

/// A proxy of which a balancer has asked whether it is ready.
fn watched(drain_delay: &str) -> Proxy {
    let proxy = Proxy::build().env("APTMESH_LISTEN_DRAIN_DELAY", drain_delay).start();
    assert_eq!(get(proxy.admin(), "/readyz").status, 200);
    proxy
}

#[test]
fn newcomers_are_served_while_a_balancer_is_told_that_it_is_not_ready() {
    let proxy = watched("1h");
    let mut kept = Connection::open(proxy.addr());
    let first = kept.get("/");
    assert_eq!((first.status, first.header("connection")), (406, None));

    proxy.signal("TERM");
    wait_until(SOON, "the balancer to be told", || get(proxy.admin(), "/readyz").status == 503);
    let mut newcomer = Connection::open(proxy.addr());
    for connection in [&mut kept, &mut newcomer] {
        let last = connection.get("/");
        assert_eq!((last.status, last.header("connection")), (406, Some("close")));
        assert_eq!(connection.read_head().status, 0, "it was kept");
    }
    proxy.signal("TERM");
    log_of_stopped(&proxy, "stopped");
}

#[test]
fn a_stop_that_no_balancer_watches_is_not_delayed() {
    let alone = Proxy::build().env("APTMESH_LISTEN_DRAIN_DELAY", "1h").start();
    alone.signal("TERM");
    log_of_stopped(&alone, "stopped");
    let by_hand = watched("1h");
    by_hand.signal("INT");
    log_of_stopped(&by_hand, "stopped");
}

#[test]
fn requests_sent_ahead_are_answered_before_a_stop() {
    let mirror = Mirror::start();
    let proxy = Proxy::start();
    let bytes = noise(5, 5_000_000);
    let mut client = downloading(&proxy, &mirror, &bytes, 1_000_000);
    for _ in 0..10 {
        client.send("GET", "/", &[]);
    }
    proxy.signal("TERM");
    wait_until(SOON, "newcomers to be refused", || TcpStream::connect(proxy.addr()).is_err());
    assert!(mirror.log()[0].open, "the download is over already: this shows nothing");
    assert_eq!(client.read_body_some(bytes.len()), bytes[1000..]);
    for _ in 0..9 {
        let reply = client.read_reply("GET");
        assert_eq!((reply.status, reply.header("connection")), (406, None));
    }
    let last = client.read_reply("GET");
    assert_eq!((last.status, last.header("connection")), (406, Some("close")));
    log_of_stopped(&proxy, "stopped");
}

#[test]
fn who_never_stops_asking_is_told_to_go() {
    let proxy = watched("1h");
    let mut client = Connection::open(proxy.addr());
    client.send("GET", "/", &[]);
    proxy.signal("TERM");
    wait_until(SOON, "the balancer to be told", || get(proxy.admin(), "/readyz").status == 503);
    let told = (0..1000).any(|_| {
        client.send("GET", "/", &[]);
        client.send("GET", "/", &[]);
        client.read_reply("GET").header("connection") == Some("close")
    });
    assert!(told);
    proxy.signal("TERM");
    log_of_stopped(&proxy, "stopped");
}

#[test]
fn idle_connections_do_not_hold_a_stop_up() {
    let proxy = Proxy::start();
    let silent: Vec<_> = (0..20).map(|_| Connection::open(proxy.addr())).collect();
    let mut kept: Vec<_> = (0..20).map(|_| Connection::open(proxy.addr())).collect();
    for connection in &mut kept {
        connection.send("GET", "/", &[]);
        assert_eq!(connection.read_reply("GET").status, 406);
    }

    proxy.signal("TERM");
    // Cut connections would have it say so.
    let log = log_of_stopped(&proxy, "stopped");
    assert!(!log.contains("stopped with"), "{log}");
    drop((silent, kept));
}

#[test]
fn a_download_that_takes_too_long_is_cut_by_the_stop() {
    let mirror = Mirror::start();
    let proxy = Proxy::start();
    let bytes = noise(2, 50_000_000);
    let mut client = downloading(&proxy, &mirror, &bytes, 100_000);
    client.set_read_timeout(LONG);

    proxy.signal("TERM");
    let rest = client.read_body_some(bytes.len());
    assert!(rest.len() < bytes.len() / 2, "{} bytes came", rest.len());
    log_of_stopped(&proxy, "stopped with answers or downloads under way");
    assert!(proxy.blobs().is_empty(), "half a file was kept");
}

#[test]
fn a_connection_too_many_waits_for_its_turn() {
    let proxy = Proxy::build().env("APTMESH_LISTEN_CONNECTIONS", "4").start();
    let mut inside: Vec<_> = (0..4).map(|_| Connection::open(proxy.addr())).collect();
    for connection in &mut inside {
        connection.send("GET", "/", &[]);
        assert_eq!(connection.read_reply("GET").status, 406);
    }

    let mut fifth = Connection::open(proxy.addr());
    fifth.set_read_timeout(Duration::from_secs(1));
    fifth.send("GET", "/", &[]);
    assert_eq!(fifth.read_head().status, 0, "the fifth was served beside four others");
    drop(inside.pop());
    fifth.set_read_timeout(LONG);
    assert_eq!(fifth.read_head().status, 406);
    for connection in &mut inside {
        connection.send("GET", "/", &[]);
        assert_eq!(connection.read_reply("GET").status, 406);
    }
}

#[test]
fn two_thousand_idle_connections_cost_little_memory() {
    let mirror = Mirror::start();
    let bytes = noise(3, 100_000);
    mirror.put(PATH, File::new(bytes.clone()));
    let proxy = Proxy::start();
    let target = proxy.url_for(&mirror, PATH);
    assert_eq!(get(proxy.addr(), &target).body, bytes);

    let mut connections: Vec<_> = (0..2000).map(|_| Connection::open(proxy.addr())).collect();
    for connection in &mut connections {
        connection.send("GET", &target, &[]);
        assert_eq!(connection.read_reply("GET").body.len(), bytes.len());
    }
    let resident = proxy.resident_bytes();
    assert!(resident < 100 << 20, "{resident} bytes are resident");
    assert_eq!(get(proxy.addr(), &target).body, bytes);
    for connection in connections.iter_mut().step_by(400) {
        connection.send("GET", &target, &[]);
        assert_eq!(connection.read_reply("GET").body, bytes);
    }
}

#[test]
fn a_head_that_never_ends_is_given_up() {
    let proxy = Proxy::start();
    let mut slow = Connection::open(proxy.addr());
    slow.set_read_timeout(LONG);
    slow.send_raw(b"GET / HTTP/1.1\r\nHost: ca");
    let head = slow.read_head();
    let closed = head.reason.contains("end of file") || head.reason.contains("reset");
    assert!(head.status == 408 || closed, "{head:?}");
}

#[test]
fn operators_have_an_address_of_their_own() {
    let proxy = Proxy::start();
    for (path, expected) in
        [("/livez", "alive\n"), ("/readyz", "ready\n"), ("/metrics", "aptmesh_engine_flights 0")]
    {
        let reply = get(proxy.admin(), path);
        assert!(reply.status == 200 && text(&reply.body).contains(expected), "{path}: {reply:?}");
        let refused = get(proxy.addr(), path);
        assert!((400..500).contains(&refused.status), "{path}: {refused:?}");
        assert!(!text(&refused.body).contains(expected), "{path}: {refused:?}");
    }
    let mirrored = get(proxy.admin(), "/deb.example.org/debian/dists/stable/InRelease");
    assert_eq!(mirrored.status, 404);
    assert_eq!(request(proxy.admin(), "POST", "/metrics", &[]).status, 405);
}

#[test]
fn logs_for_machines_are_json() {
    let mirror = Mirror::start();
    let proxy =
        Proxy::build().arg("--log-format").arg("json").env("APTMESH_LOG_LEVEL", "debug").start();
    for path in ["/not/there_1.deb", "/not/\"there\"_1.deb"] {
        assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, path)).status, 404);
    }
    proxy.signal("TERM");
    let log = log_of_stopped(&proxy, "stopped");
    assert!(log.contains("\"access\""), "{log}");
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
    }
}

/// A process that was started by hand, killed when dropped.
struct Started {
    child: Child,
    greeting: String,
}

impl Started {
    /// Reads what it prints up to the line that says how to use it.
    fn with(args: &[&str]) -> Self {
        let mut child = aptmesh()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the aptmesh binary");
        let mut greeting = String::new();
        let mut printed = BufReader::new(child.stdout.take().expect("a pipe"));
        while !greeting.contains("Acquire::http::Proxy") {
            let count = printed.read_line(&mut greeting).expect("text");
            assert!(count > 0, "it ended after saying: {greeting}");
        }
        Self { child, greeting }
    }

    fn addresses(&self, before: &str) -> Vec<SocketAddr> {
        let lines = self.greeting.lines();
        lines.filter_map(|line| line.trim().strip_prefix(before)?.parse().ok()).collect()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn without_a_command_it_serves_and_says_how_to_use_it() {
    let data = TempDir::new().unwrap();
    let folder = data.path().to_str().unwrap();
    let started = Started::with(&[
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "[::1]:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--data",
        folder,
    ]);

    let proxies = started.addresses("proxy on http://");
    assert!(matches!(proxies[..], [SocketAddr::V4(_), SocketAddr::V6(_)]), "{}", started.greeting);
    for address in &proxies {
        assert_eq!(get(*address, "/").status, 406, "{address}");
    }
    let admin = started.addresses("admin on http://");
    assert_eq!(get(admin[0], "/readyz").status, 200);
    let apt_line = format!("Acquire::http::Proxy \"http://{}\";", proxies[0]);
    assert!(started.greeting.contains(&apt_line), "{}", started.greeting);
    assert!(started.greeting.contains(folder), "{}", started.greeting);
}

#[test]
fn a_signal_right_after_the_greeting_is_a_stop_too() {
    for _ in 0..20 {
        let data = TempDir::new().unwrap();
        let folder = data.path().to_str().unwrap();
        let any = "127.0.0.1:0";
        let mut started =
            Started::with(&["--listen", any, "--admin-listen", any, "--data", folder]);
        // Sent from here: a program for it would be too late to meet a process still starting.
        kill_process(Pid::from_child(&started.child), Signal::TERM).unwrap();
        assert_eq!(started.child.wait().unwrap().code(), Some(0), "killed instead of stopped");
    }
}

fn run(args: &[&str]) -> Output {
    aptmesh().args(args).output().expect("the aptmesh binary")
}

#[test]
fn an_address_in_use_is_named() {
    let proxy = Proxy::start();
    let data = TempDir::new().unwrap();
    let folder = data.path().to_str().unwrap();
    let (proxy_address, admin) = (proxy.addr().to_string(), proxy.admin().to_string());
    for (listen, admin_listen, key) in [
        (proxy_address.as_str(), "127.0.0.1:0", "listen.proxy"),
        ("127.0.0.1:0", admin.as_str(), "listen.admin"),
    ] {
        let taken = if key == "listen.proxy" { listen } else { admin_listen };
        let ended = run(&["--listen", listen, "--admin-listen", admin_listen, "--data", folder]);
        assert_eq!(ended.status.code(), Some(1));
        let said = text(&ended.stderr);
        let expected =
            format!("aptmesh: could not listen on {taken} ({key}): Address already in use");
        assert!(said.contains(&expected), "{said}");
    }
    assert_eq!(get(proxy.addr(), "/").status, 406);
}

#[test]
fn status_tells_how_a_running_proxy_is_doing() {
    let mirror = Mirror::start();
    mirror.put(PATH, File::new(noise(4, 1_500_000)));
    let mut proxy = Proxy::start();
    let target = proxy.url_for(&mirror, PATH);
    assert!(get(proxy.addr(), &target).complete);
    wait_until(SOON, "the landing", || proxy.metric("aptmesh_engine_flights") < 1.0);
    assert_eq!(get(proxy.addr(), &target).header("x-aptmesh-source"), Some("store"));
    let admin = proxy.admin().to_string();

    let told = run(&["status", "--admin-listen", &admin]);
    let said = text(&told.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.status.success(), "{}", text(&told.stderr));
    for part in [
        "aptmesh 0.",
        ", up ",
        "served from the store: 1.5 MB 1.5 MB",
        "fetched from mirrors: 1.5 MB 1.5 MB",
        "fetched from peers: 0 B 0 B",
        "1 file, 1.5 MB",
        "under way: 0",
        "all is well",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }

    proxy.restart();
    let gone = run(&["status", "--admin-listen", &admin]);
    assert_eq!(gone.status.code(), Some(1));
    let said = text(&gone.stderr);
    assert!(said.contains(&format!("no aptmesh answers at http://{admin}")), "{said}");
}

#[test]
fn config_prints_a_file_that_gives_the_same_settings() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("aptmesh.toml");
    let print = |args: &[&str]| {
        let printed = aptmesh()
            .args(["config", "--config", file.to_str().unwrap()])
            .args(args)
            .output()
            .unwrap();
        assert!(printed.status.success(), "{}", text(&printed.stderr));
        text(&printed.stdout)
    };
    std::fs::write(&file, "").unwrap();
    let changed = print(&["--listen", "127.0.0.1:1234", "--data", "/some/where"]);
    for key in &KEYS {
        assert!(changed.contains(&format!("# {}\n", key.variable())), "{}\n{changed}", key.name);
        let (section, name) = key.name.split_once('.').unwrap();
        assert!(changed.contains(&format!("[{section}]\n")), "{}\n{changed}", key.name);
        assert!(changed.contains(&format!("\n{name} = ")), "{}\n{changed}", key.name);
    }
    assert!(changed.contains("proxy = \"127.0.0.1:1234\""), "{changed}");

    std::fs::write(&file, &changed).unwrap();
    assert_eq!(print(&[]), changed);
}

#[test]
fn wrong_settings_are_all_named_at_once() {
    let ended = aptmesh()
        .env("APTMESH_MIRROR_TIMEOUT", "soon")
        .env("APTMESH_CLIENTS_ALLOW", "everybody")
        .env("APTMESH_MIRROR_NO_SUCH_KEY", "1")
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(78));
    let said = text(&ended.stderr);
    for name in ["mirror.timeout", "clients.allow", "NO_SUCH_KEY"] {
        assert!(said.to_lowercase().contains(&name.to_lowercase()), "{name} is not in:\n{said}");
    }
}
