//! Who may be asked, who may ask, what is refused without a thought, and settings that are wrong.

use crate::kit::proxy::Build;
use crate::kit::{Connection, Fault, File, Mirror, Proxy, get, noise, request, wait_until};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PACKAGE: &str = "/debian/pool/main/h/hello/hello_2.10.orig.tar.xz";
const PAGE: &str = "/latest/meta-data/";

/// A proxy with the default rules: nothing private may be asked.
fn strict() -> Build {
    Proxy::build().env("APTMESH_MIRROR_ALLOW_PRIVATE", "")
}

/// A mirror that has the package.
fn stocked(ip: &str) -> Mirror {
    let mirror = Mirror::start_at(ip);
    mirror.put(PACKAGE, File::new(noise(1, 1_000)));
    mirror.put(PAGE, File::new(noise(1, 1_000)));
    mirror
}

fn status(proxy: &Proxy, target: &str) -> u16 {
    get(proxy.addr(), target).status
}

/// The target is refused with 403 and a reason that names the setting.
fn assert_forbidden(proxy: &Proxy, target: &str, setting: &str) {
    for method in ["GET", "HEAD"] {
        let reply = request(proxy.addr(), method, target, &[]);
        assert!(reply.complete && reply.status == 403, "{method} {target}: {reply:?}");
        assert!(reply.reason.contains(setting), "{method} {target}: {}", reply.reason);
    }
}

/// The proxy still does its work.
fn assert_alive(proxy: &Proxy, mirror: &Mirror) {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, PACKAGE));
    assert!(reply.complete && reply.body == noise(1, 1_000), "{reply:?}");
}

#[test]
fn special_addresses_are_refused_in_every_spelling() {
    let (mirror, proxy) = (stocked("127.0.0.1"), strict().start());
    let port = mirror.addr().port();
    for host in [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.9.9.9",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "0.0.0.0",
        "0",
        "224.0.0.1",
        "255.255.255.255",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "0xa9fea9fe",
    ] {
        for path in [PACKAGE, PAGE] {
            assert_forbidden(&proxy, &format!("/{host}:{port}{path}"), "mirror.allow_private");
        }
        let absolute = format!("http://{host}:{port}{PACKAGE}");
        assert_forbidden(&proxy, &absolute, "mirror.allow_private");
        assert_forbidden(&proxy, &format!("/https/{host}{PACKAGE}"), "mirror.allow_private");
    }
    assert_eq!(mirror.connections(), 0);
    // No mirror was waited for.
    assert!(proxy.metric("aptmesh_mirror_requests_total{answer=\"forbidden\"}") > 0.0);
    assert_eq!(proxy.count("aptmesh_mirror_request_seconds_count"), 0);
}

#[test]
fn a_redirect_does_not_lead_to_a_special_address() {
    let (door, victim) = (stocked("127.0.0.2"), stocked("127.0.0.1"));
    let proxy = strict().env("APTMESH_MIRROR_ALLOW_PRIVATE", "127.0.0.2").start();
    let port = victim.addr().port();
    assert_eq!(status(&proxy, &proxy.url_for(&door, PACKAGE)), 200);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "10.0.0.1"] {
        for path in ["/a_1.deb", PAGE] {
            door.put(path, File::new(noise(2, 10)));
            let there = format!("http://{host}:{port}{PAGE}");
            door.script(path, vec![Fault::Redirect(there); 2]);
            assert_forbidden(&proxy, &proxy.url_for(&door, path), "mirror.allow_private");
        }
    }
    assert_eq!(victim.connections(), 0);
}

#[test]
fn an_allow_list_names_the_only_hosts() {
    let (listed, other) = (stocked("127.0.0.1"), stocked("127.0.0.2"));
    let proxy = Proxy::build().env("APTMESH_MIRROR_ALLOW", "127.0.0.1, deb.example.org").start();
    assert_eq!(status(&proxy, &proxy.url_for(&listed, PACKAGE)), 200);
    assert_eq!(status(&proxy, &proxy.url_for(&listed, PAGE)), 200);
    let same_by_name = format!("/localhost:{}{PACKAGE}", listed.addr().port());
    for target in [&same_by_name, &proxy.url_for(&other, PACKAGE), &proxy.url_for(&other, PAGE)] {
        assert_forbidden(&proxy, target, "mirror.allow");
    }
    let there = format!("http://{}{PAGE}", other.host());
    listed.script(PAGE, vec![Fault::Redirect(there); 2]);
    assert_forbidden(&proxy, &proxy.url_for(&listed, PAGE), "mirror.allow");
    assert_eq!(other.connections(), 0);
}

#[test]
fn a_private_host_may_be_allowed_by_its_name() {
    let mirror = stocked("127.0.0.1");
    let proxy = strict().env("APTMESH_MIRROR_ALLOW_PRIVATE", "localhost").start();
    let named = format!("/localhost:{}{PACKAGE}", mirror.addr().port());
    assert!(get(proxy.addr(), &named).body == noise(1, 1_000));
    // The name is allowed, not what it stands for.
    assert_forbidden(&proxy, &proxy.url_for(&mirror, PACKAGE), "mirror.allow_private");
}

#[test]
fn strangers_are_turned_away() {
    let mirror = stocked("127.0.0.1");
    let proxy = Proxy::build()
        .env("APTMESH_CLIENTS_ALLOW", "10.0.0.0/8,2001:db8::/32")
        .env("APTMESH_MIRROR_CONNECT_PORTS", mirror.addr().port().to_string())
        .start();
    let mut connection = Connection::open(proxy.addr());
    let package = proxy.url_for(&mirror, PACKAGE);
    for (method, target) in [("GET", "/"), ("GET", &package), ("CONNECT", &mirror.host())] {
        connection.send(method, target, &[]);
        let reply = connection.read_reply("GET");
        assert!(reply.complete && reply.status == 403, "{method} {target}: {reply:?}");
        assert!(reply.reason.contains("clients.allow"), "{}", reply.reason);
        assert!(reply.reason.contains("127.0.0.1"), "{}", reply.reason);
        connection = Connection::open(proxy.addr());
    }
    assert_eq!(mirror.connections(), 0);
    assert_eq!(get(proxy.admin(), "/livez").status, 200);
}

#[test]
fn a_signal_changes_the_rules_of_a_running_proxy() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("aptmesh.toml");
    let mirror = stocked("127.0.0.1");
    let write = |text: &str| fs::write(&file, text).unwrap();
    write("[mirror]\ntimeout = \"9s\"\n");
    let proxy = Proxy::build().arg("--config").arg(&file).start();
    let target = proxy.url_for(&mirror, PAGE);
    let becomes = |expected: u16, reason: &str| {
        proxy.signal("HUP");
        wait_until(Duration::from_secs(20), reason, || {
            let reply = get(proxy.addr(), &target);
            reply.status == expected && reply.reason.contains(reason)
        });
    };
    assert_eq!(status(&proxy, &target), 200);
    write("[mirror]\nallow = [\"deb.example.org\"]\n");
    becomes(403, "mirror.allow");
    write("[mirror]\nallow = [\"deb.example.org\", \"127.0.0.1\"]\n");
    becomes(200, "OK");
    write("[clients]\nallow = [\"10.0.0.0/8\"]\n");
    becomes(403, "clients.allow");
    write("[clients]\nallow = [\"127.0.0.0/8\"]\n[listen]\nconnections = 7\n");
    becomes(200, "OK");
    wait_until(Duration::from_secs(20), "what takes a restart", || {
        proxy.log().contains("listen.connections")
    });

    // Wrong settings change nothing, and say so.
    write("[clients]\nalow = [\"10.0.0.0/8\"]\n[mirror]\nallow = [\"a/b\"]\n");
    proxy.signal("HUP");
    wait_until(Duration::from_secs(20), "a complaint", || proxy.log().contains("clients.alow"));
    assert_eq!(status(&proxy, &target), 200);
}

#[test]
fn hostile_targets_are_refused() {
    let (mirror, proxy) = (stocked("127.0.0.1"), Proxy::start());
    let host = mirror.host();
    for (path, expected) in [
        ("/debian/../etc/passwd", 400),
        ("/debian/..", 400),
        ("/debian/%2e%2e/etc/passwd", 400),
        ("/debian/.%2E/etc/passwd", 400),
        ("/debian%2fetc", 400),
        ("/debian%2Fetc%5Cx", 400),
        ("/debian%5c..%5cetc", 400),
        ("/debian/%00", 400),
        ("/debian/%0d%0aX-Header:%20x", 400),
        ("/debian/%7f", 400),
        ("/debian/%zz", 400),
        ("/debian/%2", 400),
    ] {
        for target in [format!("/{host}{path}"), format!("http://{host}{path}")] {
            let reply = get(proxy.addr(), &target);
            assert!(reply.complete && reply.status == expected, "{target}: {reply:?}");
            assert!(reply.reason.contains("path"), "{target}: {}", reply.reason);
        }
    }
    for target in ["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://127.0.0.1:70/x"] {
        let reply = get(proxy.addr(), target);
        assert!(reply.complete && reply.status == 400, "{target}: {reply:?}");
    }
    for target in ["/no-path", "/%2e%2e/x", "/a%20b/x", "/-_-:99999/x", "/127.0.0.1:0/x", "//"] {
        let reply = get(proxy.addr(), target);
        assert!(reply.complete && (400..500).contains(&reply.status), "{target}: {reply:?}");
    }
    let long = format!("/{host}/{}", "x".repeat(5_000));
    assert_eq!(status(&proxy, &long), 414);
    let longer = format!("/{host}/{}", "x".repeat(200_000));
    let refused = status(&proxy, &longer);
    assert!(matches!(refused, 414 | 431), "{refused}");
    assert_eq!(mirror.connections(), 0);
    assert_alive(&proxy, &mirror);
}

/// What comes back for these bytes, until the proxy hangs up.
fn answer_to(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    // It may hang up, or stop reading, before the last byte.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(trouble) if trouble.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(trouble) => panic!("it did not hang up: {trouble}"),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn floods_of_header_fields_are_refused() {
    let (mirror, proxy) = (stocked("127.0.0.1"), Proxy::start());
    let target = proxy.url_for(&mirror, PACKAGE);
    let many: String = (0..200).map(|number| format!("X-{number}: y\r\n")).collect();
    let big = format!("X-Big: {}\r\n", "y".repeat(100_000));
    for (what, fields) in [("many", many), ("big", big)] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let answer = answer_to(proxy.addr(), head.as_bytes());
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{what}: {answer}");
    }
    let endless = vec![b'y'; 3_000_000];
    let answer = answer_to(proxy.addr(), &[b"GET / HTTP/1.1\r\nX: ", endless.as_slice()].concat());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(mirror.connections(), 0);
    // What browsers and proxies add on their way is no flood.
    let some: Vec<(String, String)> =
        (0..40).map(|number| (format!("X-{number}"), "y".repeat(100))).collect();
    let some: Vec<(&str, &str)> = some.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(request(proxy.addr(), "GET", &target, &some).status, 200);
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let (mirror, proxy) = (stocked("127.0.0.1"), Proxy::start());
    for garbage in [
        &noise(3, 10_000)[..],
        &[0; 500],
        b"\r\n\r\n\r\n\r\nnonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /a b c HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &b"nonsense, over and over\r\n\r\n".repeat(100_000),
    ] {
        let end = [garbage, b"\r\n\r\n"].concat();
        let answer = answer_to(proxy.addr(), &end);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(mirror.connections(), 0);
    assert_alive(&proxy, &mirror);
}

#[test]
fn a_flood_of_pipelined_requests_takes_no_memory() {
    let (mirror, proxy) = (stocked("127.0.0.1"), Proxy::start());
    assert_alive(&proxy, &mirror);
    let before = proxy.resident_bytes();
    let ask = format!("GET /{}/../x HTTP/1.1\r\nHost: h\r\n\r\n", mirror.host());
    let flood = ask.repeat(400_000);
    let mut stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // The answers are never read, so sooner or later the proxy stops reading as well.
    assert!(stream.write_all(flood.as_bytes()).is_err(), "it took {} bytes", flood.len());
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "it grew by {grown} bytes");
    assert_alive(&proxy, &mirror);
}

#[test]
fn a_request_in_a_body_is_no_request() {
    let (mirror, proxy) = (stocked("127.0.0.1"), Proxy::start());
    let hidden = "/debian/hidden_1.deb";
    mirror.put(hidden, File::new(noise(4, 1_000)));
    let inner = format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", proxy.url_for(&mirror, hidden));
    let length = inner.len();
    let target = proxy.url_for(&mirror, PACKAGE);
    for framing in [
        format!("Content-Length: {length}\r\n\r\n{inner}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{inner}\r\n0\r\n\r\n"),
    ] {
        let ask = format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{framing}");
        let answer = answer_to(proxy.addr(), ask.as_bytes());
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{framing}");
    }
    proxy.wait_landed();
    assert!(mirror.requests(hidden).is_empty(), "it was begun early");
}

/// How long until the proxy hangs up on somebody who sends `piece` every half second.
fn hung_up_after(addr: SocketAddr, piece: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_mins(2) {
        let _ = stream.write_all(piece);
        match stream.read(&mut [0; 1024]) {
            Ok(0) => break,
            Err(trouble) if trouble.kind() == std::io::ErrorKind::ConnectionReset => break,
            // An answer such as 408, or nothing yet.
            _ => {}
        }
    }
    start.elapsed()
}

#[test]
fn who_does_not_get_on_with_a_request_is_hung_up_on() {
    let (mirror, proxy) = (stocked("127.0.0.1"), Proxy::start());
    let addr = proxy.addr();
    let after_an_answer = || {
        let mut stream = TcpStream::connect(addr).unwrap();
        let target = proxy.url_for(&mirror, PACKAGE);
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(2))).unwrap();
        let start = Instant::now();
        let _ = stream.read_to_end(&mut Vec::new());
        start.elapsed()
    };
    thread::scope(|scope| {
        let others = [
            scope.spawn(|| hung_up_after(addr, b"")),
            scope.spawn(|| hung_up_after(addr, b"x")),
            scope.spawn(|| hung_up_after(addr, b"X: y\r\n")),
            scope.spawn(after_an_answer),
        ];
        for (which, other) in others.into_iter().enumerate() {
            let took = other.join().unwrap();
            assert!(took < Duration::from_secs(60), "{which}: {took:?}");
        }
    });
    assert_alive(&proxy, &mirror);
}

/// The binary with these arguments and variables, and no others.
fn aptmesh(args: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aptmesh"))
        .args(args)
        .env_clear()
        .env("HOME", "/nonexistent")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write_file(folder: &Path, content: &str) -> String {
    let file = folder.join("aptmesh.toml");
    fs::write(&file, content).unwrap();
    file.display().to_string()
}

#[test]
fn all_faults_of_the_settings_are_named_at_once() {
    let folder = TempDir::new().unwrap();
    let file = write_file(
        folder.path(),
        "[mirror]\nalow = [\"x\"]\ntimeout = \"soon\"\n[nowhere]\nx = 1\n[clients]\nallow = [\"y\"]\n",
    );
    let variables = [("APTMESH_CLIENTS_ALOW", "10.0.0.0/8"), ("APTMESH_LISTEN_ADMIN", "here")];
    for verb in ["serve", "config"] {
        let output = aptmesh(&[verb, "--config", &file], &variables);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let said = text(&output.stderr);
        for name in [
            "mirror.alow",
            "mirror.timeout",
            "nowhere.x",
            "clients.allow",
            "APTMESH_CLIENTS_ALOW",
            "listen.admin",
        ] {
            assert!(said.contains(name), "{name} is not in {said}");
        }
    }
    let missing = folder.path().join("missing.toml").display().to_string();
    let output = aptmesh(&["serve", "--config", &missing], &[]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert!(text(&output.stderr).contains("missing.toml"));
}

#[test]
fn the_settings_are_printed_as_a_file_that_works() {
    let folder = TempDir::new().unwrap();
    let variables = [
        ("APTMESH_MIRROR_TIMEOUT", "7s"),
        ("APTMESH_MIRROR_ALLOW", "a.example.org,*.b.example.org"),
    ];
    let first = aptmesh(&["config", "--data", "/somewhere"], &variables);
    assert!(first.status.success(), "{first:?}");
    let printed = text(&first.stdout);
    for value in ["7s", "a.example.org", "*.b.example.org", "/somewhere", "127.0.0.1:9977"] {
        assert!(printed.contains(value), "{value} is not in {printed}");
    }
    let file = write_file(folder.path(), &printed);
    let second = aptmesh(&["config", "--config", &file], &[]);
    assert!(second.status.success(), "{second:?}");
    assert_eq!(text(&second.stdout), printed);
    // Flags and environment win over the file without a word about it.
    let third = aptmesh(&["config", "--config", &file, "--data", "/else"], &variables);
    assert_eq!(text(&third.stdout), printed.replace("/somewhere", "/else"), "{third:?}");
}

#[test]
fn secrets_are_not_printed() {
    let folder = TempDir::new().unwrap();
    let secret = "http://me:hunter2@proxy.example.org:3128";
    let in_file = write_file(folder.path(), secret);
    for variable in [("APTMESH_MIRROR_PROXY", secret), ("APTMESH_MIRROR_PROXY_FILE", &in_file)] {
        let output = aptmesh(&["config"], &[variable]);
        assert!(output.status.success(), "{output:?}");
        let printed = text(&output.stdout);
        assert!(!printed.contains("hunter2"), "{printed}");
        // It says that there is one, and what it says works, with the secret given again or not.
        assert!(printed.contains("secret"), "{printed}");
        let other = TempDir::new().unwrap();
        let file = write_file(other.path(), &printed);
        let again = aptmesh(&["config", "--config", &file], &[variable]);
        assert_eq!(text(&again.stdout), printed, "{again:?}");
        let without = aptmesh(&["config", "--config", &file], &[]);
        assert!(without.status.success(), "{without:?}");
    }
    // Neither is one that is wrong.
    for wrong in ["hunter2", "me:hunter2@proxy:port", "ftp://me:hunter2@proxy/"] {
        let output = aptmesh(&["config"], &[("APTMESH_MIRROR_PROXY", wrong)]);
        assert_eq!(output.status.code(), Some(78), "{wrong}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("mirror.proxy") && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let folder = TempDir::new().unwrap();
    let data = folder.path().display().to_string();
    let args = ["serve", "--listen", &addr, "--admin-listen", "127.0.0.1:0", "--data", &data];
    let output = aptmesh(&args, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains(&addr), "{output:?}");
}

#[test]
fn nothing_is_begun_for_who_may_not_come_in() {
    let mirror = Mirror::start();
    let proxy = Proxy::build().env("APTMESH_CLIENTS_ALLOW", "10.9.9.9/32").start();
    let pipeline: String = (0..100)
        .map(|number| {
            let path = format!("/debian/pool/p/p{number}_1.orig.tar.xz");
            mirror.put(&path, File::new(noise(5, 1_000)));
            format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", proxy.url_for(&mirror, &path))
        })
        .collect();
    for _ in 0..5 {
        let mut client = Connection::open(proxy.addr());
        client.send_raw(pipeline.as_bytes());
        for number in 0..100 {
            assert_eq!(client.read_reply("GET").status, 403, "{number}");
        }
    }
    proxy.wait_landed();
    assert_eq!(mirror.connections(), 0);
    assert_eq!(proxy.metric("aptmesh_mirror_requests_total"), 0.0);
    assert!(proxy.blobs().is_empty());
}

#[test]
fn the_parent_proxy_may_be_anywhere_and_no_other_host() {
    let parent = stocked("127.0.0.1");
    let url = format!("http://localhost:{}", parent.addr().port());
    let proxy = strict()
        .env("APTMESH_MIRROR_PROXY", url)
        .env("APTMESH_MIRROR_ALLOW", "deb.example.org,127.0.0.1")
        .start();
    for path in [PACKAGE, PAGE] {
        let reply = get(proxy.addr(), &format!("/deb.example.org{path}"));
        assert!(reply.complete && reply.body == noise(1, 1_000), "{path}: {reply:?}");
    }
    proxy.wait_landed();
    let asked = parent.log();
    assert_eq!(asked.len(), 2, "{asked:#?}");
    assert!(asked[0].path.starts_with("http://deb.example.org/"), "{}", asked[0].path);
    for host in ["other.example.org", "localhost"] {
        assert_forbidden(&proxy, &format!("/{host}{PACKAGE}"), "mirror.allow");
    }
    let literal = format!("/{}{PACKAGE}", parent.host());
    assert_forbidden(&proxy, &literal, "mirror.allow_private");
    assert_eq!(parent.log().len(), 2);
}

#[test]
fn numbers_that_can_not_work_are_named() {
    let cases = [
        ("APTMESH_LISTEN_CONNECTIONS", "9999999999999999999", "listen.connections"),
        ("APTMESH_LISTEN_CONNECTIONS", "99999999999999999999999999", "listen.connections"),
        ("APTMESH_LISTEN_CONNECTIONS", "0", "listen.connections"),
        ("APTMESH_MIRROR_TIMEOUT", "0s", "mirror.timeout"),
        ("APTMESH_MIRROR_TIMEOUT", "0", "mirror.timeout"),
    ];
    for (variable, value, key) in cases {
        let output = aptmesh(&["serve"], &[(variable, value)]);
        assert_eq!(output.status.code(), Some(78), "{variable}={value}: {output:?}");
        assert!(text(&output.stderr).contains(key), "{variable}={value}: {output:?}");
    }
}
