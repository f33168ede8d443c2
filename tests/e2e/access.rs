//! The access log: one line a request, whatever becomes of it, and what it tells is true.

use crate::kit::node::on_a_network_of_its_own;
use crate::kit::proxy::Build;
use crate::kit::*;
use crate::swarm::Swarm;
use crate::volumes;
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// A file of which nobody checks how it begins.
const TOOL: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";
const INDEX: &str = "/debian/dists/sid/main/binary-all/Packages.xz";
const MB: usize = 1 << 20;

/// A proxy that logs for machines.
pub fn proxy() -> Build {
    Proxy::build().arg("--log-format").arg("json")
}

/// The access log, as far as it is written.
pub fn lines(proxy: &Proxy) -> Vec<Value> {
    let log = proxy.log();
    // The last line may still be on its way.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter(|line| line["target"] == "access").collect()
}

/// The one line of which this holds.
pub fn line(proxy: &Proxy, is_it: impl Fn(&Value) -> bool) -> Value {
    let found = || lines(proxy).into_iter().filter(|line| is_it(line)).collect::<Vec<_>>();
    wait_until(PATIENCE, "a line of the access log", || !found().is_empty());
    let found = found();
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0].clone()
}

/// Of the `number`th request so far, from 1 on.
fn nth(proxy: &Proxy, number: usize) -> Value {
    wait_until(PATIENCE, "a line for each request", || lines(proxy).len() >= number);
    let lines = lines(proxy);
    assert_eq!(lines.len(), number, "{lines:#?}");
    lines[number - 1].clone()
}

/// These fields are these words or numbers.
fn assert_fields(line: &Value, expected: &[(&str, Value)]) {
    for (field, value) in expected {
        assert_eq!(&line[field], value, "{field} of {line}");
    }
}

/// Status, outcome, source, bytes and end.
fn assert_line(line: &Value, status: u16, outcome: &str, source: &str, bytes: usize, end: &str) {
    assert_fields(
        line,
        &[
            ("status", status.into()),
            ("outcome", outcome.into()),
            ("source", source.into()),
            ("bytes", bytes.into()),
            ("end", end.into()),
        ],
    );
}

/// A mirror with a large package and a small index, and a proxy whose client is told of line by line.
struct Told {
    mirror: Mirror,
    proxy: Proxy,
    /// Lines so far.
    count: usize,
}

impl Told {
    fn new() -> Self {
        let mirror = Mirror::start();
        mirror.put(TOOL, File::new(noise(2, MB)));
        mirror.put(INDEX, File::new(noise(1, 5_000)));
        let proxy = proxy().env("APTMESH_MIRROR_RECHECK_AFTER", "0s").start();
        Self { mirror, proxy, count: 0 }
    }

    /// The line of a request for that.
    fn line(&mut self, method: &str, target: &str, fields: &[(&str, &str)]) -> Value {
        request(self.proxy.addr(), method, target, fields);
        self.proxy.wait_landed();
        self.count += 1;
        nth(&self.proxy, self.count)
    }

    fn get(&mut self, target: &str) -> Value {
        self.line("GET", target, &[])
    }

    fn get_at(&mut self, path: &str) -> Value {
        let url = self.url(path);
        self.get(&url)
    }

    fn url(&self, path: &str) -> String {
        self.proxy.url_for(&self.mirror, path)
    }
}

#[test]
fn what_one_client_gets_is_told_line_by_line() {
    let mut told = Told::new();
    let (tool, index) = (told.url(TOOL), told.url(INDEX));
    let miss = told.get(&tool);
    assert_line(&miss, 200, "miss", "mirror", MB, "whole");
    assert_fields(
        &miss,
        &[
            ("level", "INFO".into()),
            ("surface", "proxy".into()),
            ("client", "127.0.0.1".into()),
            ("method", "GET".into()),
            ("uri", tool.as_str().into()),
            ("kind", "package".into()),
            ("reason", Value::Null),
            ("trace_id", Value::Null),
        ],
    );
    let (first, whole) = (miss["first_byte_ms"].as_f64(), miss["duration_ms"].as_f64());
    assert!(first > Some(0.0) && first <= whole, "{miss}");
    let written = miss["timestamp"].as_str().unwrap();
    assert!(written.ends_with('Z') && written.contains('T'), "{written} is no time of RFC 3339");

    assert_line(&told.get(&tool), 200, "hit", "store", MB, "whole");
    assert_line(&told.line("HEAD", &tool, &[]), 200, "hit", "store", 0, "whole");
    let part = told.line("GET", &tool, &[("Range", "bytes=10-109")]);
    assert_line(&part, 206, "hit", "store", 100, "whole");
    let beyond = told.line("GET", &tool, &[("Range", "bytes=2000000-")]);
    assert_line(&beyond, 416, "hit", "store", 0, "whole");
    let date = "Tue, 02 Jan 2024 00:00:00 GMT";
    let held = told.line("GET", &tool, &[("If-Modified-Since", date)]);
    assert_line(&held, 304, "hit", "store", 0, "whole");

    assert_line(&told.get(&index), 200, "miss", "mirror", 5_000, "whole");
    let confirmed = told.get(&index);
    assert_line(&confirmed, 200, "revalidated", "memory", 5_000, "whole");
    assert_eq!(confirmed["kind"], "index");
}

#[test]
fn what_one_client_does_not_get_from_here_is_told() {
    let mut told = Told::new();
    let absent = told.get_at("/debian/pool/n/no_1_all.deb");
    assert_line(&absent, 404, "refused", "mirror", "Not Found\n".len(), "whole");
    assert_eq!(absent["reason"], "Not Found");
    // A mirror in trouble is no mirror that said no, whether its answer is to be stored or not.
    for path in ["/debian/pool/t/trouble_1_all.deb", "/debian/trouble?v=1"] {
        told.mirror.put(path, File::new(b"!<arch>\n".as_slice()));
        told.mirror.script(path, vec![Fault::Status(500); 9]);
        let trouble = told.get_at(path);
        let expected =
            [("status", 500.into()), ("outcome", "error".into()), ("source", "mirror".into())];
        assert_fields(&trouble, &expected);
    }
    let forbidden = told.get("/169.254.1.1/debian/pool/t/tool_1_all.deb");
    let expected =
        [("status", 403.into()), ("outcome", "refused".into()), ("source", "none".into())];
    assert_fields(&forbidden, &expected);
    let relayed = told.get_at("/debian/README?v=1");
    assert_fields(&relayed, &[("outcome", "relayed".into()), ("source", "mirror".into())]);
    let nonsense = told.get("/no%host/x");
    assert_fields(&nonsense, &[("status", 404.into()), ("source", "none".into())]);
    let tool = told.url(TOOL);
    let posted = told.line("POST", &tool, &[]);
    assert_fields(&posted, &[("status", 405.into()), ("outcome", "refused".into())]);
    let front = told.line("GET", "/", &[("User-Agent", "Mozilla/5.0"), ("Accept", "text/html")]);
    assert_fields(&front, &[("status", 200.into()), ("outcome", "answered".into())]);
}

#[test]
fn what_one_client_gets_while_the_mirror_is_away_is_told() {
    let mut told = Told::new();
    let index = told.url(INDEX);
    told.get(&index);
    told.mirror.stop();
    let stale = told.get(&index);
    assert_line(&stale, 200, "stale", "stale", 5_000, "whole");
    assert!(stale["reason"].as_str().unwrap().contains("unreachable"), "{stale}");
    let failed = told.get_at("/debian/pool/n/new_1_all.deb");
    assert_fields(&failed, &[("outcome", "error".into()), ("source", "none".into())]);
    assert!(failed["status"].as_u64() >= Some(500), "{failed}");
    assert!(failed["reason"].as_str().unwrap().contains("127.0.0.1"), "{failed}");
    let text = told.proxy.log();
    for line in text.lines().filter(|line| line.contains("new_1_all.deb")) {
        assert!(line.contains("\"access\""), "a failure is told twice: {line}");
    }
}

#[test]
fn who_joins_and_who_leaves_is_told() {
    let mirror = Mirror::start();
    mirror.put(TOOL, File::new(noise(3, 2 * MB)).rate(MB as u64 / 3));
    let proxy = proxy().start();
    let target = proxy.url_for(&mirror, TOOL);
    let mut leaver = Connection::open(proxy.addr());
    leaver.send("GET", &target, &[]);
    assert_eq!(leaver.read_head().status, 200);
    let joined = get(proxy.addr(), &format!("http://{}{TOOL}", mirror.host()));
    assert_eq!(joined.body.len(), 2 * MB);
    let of = |outcome: &'static str| move |line: &Value| line["outcome"] == outcome;
    let told = line(&proxy, of("collapsed"));
    assert_line(&told, 200, "collapsed", "flight", 2 * MB, "whole");

    // What is on its way to a client is more than its kernel keeps for it.
    mirror.put("/debian/pool/h/huge_1.orig.tar.xz", File::new(noise(4, 40 * MB)));
    let mut taker = Connection::open(proxy.addr());
    taker.send("GET", &proxy.url_for(&mirror, "/debian/pool/h/huge_1.orig.tar.xz"), &[]);
    assert_eq!(taker.read_head().status, 200);
    taker.read_body_some(100_000);
    drop(taker);
    let left = line(&proxy, |line| line["uri"].as_str().unwrap().contains("huge"));
    assert_fields(&left, &[("end", "left".into()), ("outcome", "miss".into())]);
    let bytes = left["bytes"].as_u64().unwrap();
    assert!((100_000..40 * MB as u64).contains(&bytes), "{left}");
    assert_eq!([answers(&proxy, "left"), answers(&proxy, "cut")], [1, 0]);

    // One that does not even wait for a head.
    mirror.put("/debian/pool/s/slow_1_all.deb", File::new(noise(5, 10)));
    let silence = Fault::StallHead(Duration::from_secs(20));
    mirror.script("/debian/pool/s/slow_1_all.deb", vec![silence]);
    let mut hasty = Connection::open(proxy.addr());
    hasty.send("GET", &proxy.url_for(&mirror, "/debian/pool/s/slow_1_all.deb"), &[]);
    wait_until(PATIENCE, "it is under way", || {
        proxy.count("aptmesh_web_requests{surface=\"proxy\"}") >= 1
    });
    drop(hasty);
    let left = line(&proxy, |line| line["uri"].as_str().unwrap().contains("slow_1"));
    assert_fields(&left, &[("status", Value::Null), ("outcome", "left".into())]);
    assert_fields(&left, &[("bytes", 0.into()), ("end", "left".into())]);
}

fn answers(proxy: &Proxy, class: &str) -> u64 {
    proxy.count(&format!("aptmesh_web_answers_total{{surface=\"proxy\",class=\"{class}\"}}"))
}

/// Where kernels keep little of what is on its way.
fn on_a_narrow_network(what: impl FnOnce() + Send + 'static) {
    on_a_network_of_its_own(|| {
        for name in ["tcp_wmem", "tcp_rmem"] {
            fs::write(format!("/proc/sys/net/ipv4/{name}"), "4096 16384 65536")
                .expect("to be root");
        }
        what();
    });
}

#[test]
fn an_answer_ends_when_its_last_byte_has_gone() {
    on_a_narrow_network(|| {
        let mirror = Mirror::start();
        // One that the proxy has in its hands at once.
        let size = 250_000;
        mirror.put(TOOL, File::new(noise(1, size)));
        let proxy = proxy().start();
        let target = proxy.url_for(&mirror, TOOL);
        assert_eq!(get(proxy.addr(), &target).body.len(), size);
        proxy.wait_landed();
        nth(&proxy, 1);

        let mut slow = Connection::open(proxy.addr());
        slow.send("GET", &target, &[]);
        assert_eq!(slow.read_head().status, 200);
        slow.read_body_some(10_000);
        let open = "aptmesh_web_requests{surface=\"proxy\"}";
        assert_eq!((proxy.count(open), answers(&proxy, "2xx")), (1, 1));
        assert_eq!(slow.read_body_some(size).len(), size - 10_000);
        assert_line(&nth(&proxy, 2), 200, "hit", "store", size, "whole");
        // The next one on its connection, and one that leaves.
        slow.send("GET", &target, &[]);
        assert_eq!(slow.read_head().status, 200);
        drop(slow);
        assert_line(&nth(&proxy, 3), 200, "hit", "store", size, "left");
        assert_eq!(["2xx", "left", "cut"].map(|class| answers(&proxy, class)), [2, 1, 0]);
        assert_eq!(proxy.count(open), 0);
    });
}

#[test]
fn a_file_that_is_cut_short_meanwhile_is_our_failure_and_told_once() {
    on_a_narrow_network(|| {
        let mirror = Mirror::start();
        mirror.put(TOOL, File::new(noise(1, 2 * MB)));
        let proxy = proxy().start();
        let target = proxy.url_for(&mirror, TOOL);
        assert_eq!(get(proxy.addr(), &target).body.len(), 2 * MB);
        proxy.wait_landed();
        let mut client = Connection::open(proxy.addr());
        client.send("GET", &target, &[]);
        assert_eq!(client.read_head().status, 200);
        let blob = proxy.blobs().pop().expect("a blob");
        fs::set_permissions(&blob, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        OpenOptions::new().write(true).open(&blob).unwrap().set_len(1000).unwrap();
        assert!(client.read_body_some(2 * MB).len() < 2 * MB);
        let told = nth(&proxy, 2);
        assert_fields(&told, &[("end", "cut".into()), ("status", 200.into())]);
        assert!(told["reason"].as_str().unwrap().contains("could not be read"), "{told}");
        assert_eq!([answers(&proxy, "left"), answers(&proxy, "cut")], [0, 1]);
        assert!(!proxy.log().contains("WARN"), "{}", proxy.log());
    });
}

#[test]
fn a_body_that_breaks_off_is_told_with_its_reason_once() {
    let mirror = Mirror::start();
    let bytes = noise(6, MB);
    mirror.put(TOOL, File::new(bytes).no_validators());
    mirror.script(TOOL, vec![Fault::Cut { after: 500_000 }; 9]);
    let proxy = proxy().start();
    let cut = get(proxy.addr(), &proxy.url_for(&mirror, TOOL));
    assert!(!cut.complete && cut.status == 200, "{cut:?}");
    let told = nth(&proxy, 1);
    assert_fields(&told, &[("end", "cut".into()), ("status", 200.into())]);
    assert!(told["reason"].as_str().unwrap().contains("the body broke off"), "{told}");
    let warned = |line: &&str| line.contains("WARN") || line.contains("ERROR");
    let log = proxy.log();
    assert_eq!(log.lines().filter(warned).count(), 1, "of the download, once: {log}");
}

#[test]
fn who_may_not_or_can_not_ask_is_told() {
    let proxy = proxy().env("APTMESH_CLIENTS_ALLOW", "127.0.0.1/32").start();
    let mut stranger = Connection::open_from("127.0.0.2", proxy.addr());
    assert_eq!(stranger.get("/m.org/debian/x").status, 403);
    let told = nth(&proxy, 1);
    assert_fields(
        &told,
        &[
            ("client", "127.0.0.2".into()),
            ("status", 403.into()),
            ("outcome", "refused".into()),
            ("source", "none".into()),
            ("reason", "127.0.0.2 is not in clients.allow".into()),
        ],
    );
    for (number, (bytes, status)) in [
        (&b"GET /\x01 HTTP/1.1\r\n\r\n"[..], 400),
        (b"nonsense\r\n\r\n", 400),
        (&[b"GET /".as_slice(), &[b'a'; 40_000], b" HTTP/1.1\r\n\r\n"].concat(), 431),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Connection::open(proxy.addr());
        client.send_raw(bytes);
        assert_eq!(client.read_head().status, status);
        let told = nth(&proxy, number + 2);
        assert_fields(&told, &[("status", status.into()), ("method", Value::Null)]);
        assert!(told["reason"].is_string(), "{told}");
    }
}

#[test]
fn a_tunnel_is_told_when_it_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream.write_all(&[7; 1000]).unwrap();
    });
    let proxy = proxy().env("APTMESH_MIRROR_CONNECT_PORTS", address.port().to_string()).start();
    let mut client = TcpStream::connect(proxy.addr()).unwrap();
    write!(client, "CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_eq!(lines(&proxy), Vec::<Value>::new(), "it is open");
    client.write_all(b"ping").unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    server.join().unwrap();
    drop(client);
    let told = nth(&proxy, 1);
    assert_line(&told, 200, "answered", "none", 1000, "whole");
    assert_fields(&told, &[("method", "CONNECT".into()), ("uri", address.to_string().into())]);
    let carried = |direction: &str| {
        proxy.count(&format!("aptmesh_web_tunnel_bytes_total{{direction=\"{direction}\"}}"))
    };
    assert_eq!([carried("up"), carried("down")], [4, 1000]);
    // Other ports are refused.
    let refused = request(proxy.addr(), "CONNECT", "127.0.0.1:1", &[]);
    assert_eq!(refused.status, 403);
    assert_line(&nth(&proxy, 2), 403, "refused", "none", refused.body.len(), "whole");
    // For how long tunnels are open says nothing of how fast answers are.
    assert_eq!(proxy.count("aptmesh_web_request_seconds_count{surface=\"proxy\"}"), 0);
}

#[test]
fn what_other_sites_give_and_get_is_told() {
    let swarm = Swarm::of(&[("tool", 5 * MB)]);
    let json = [("LOG_FORMAT", "json"), ("LOG_LEVEL", "info,access=debug")];
    let one = swarm.site_with(&[], &json);
    swarm.fetch(&one, "tool");
    let two = swarm.site_with(&[&one], &json);
    swarm.wait_found(&two, "tool", &[&one]);
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));
    swarm.fetch(&two, "tool");
    let tool = |line: &Value| line["uri"].as_str().unwrap().contains("tool_1.0");
    let told = line(&two, tool);
    assert_line(&told, 200, "miss", "peer", swarm.size("tool") as usize, "whole");
    assert_line(&line(&one, tool), 200, "miss", "mirror", swarm.size("tool") as usize, "whole");
    // It gave it in parts.
    let blob = format!("/blob/sha256/{}", swarm.blob("tool"));
    let given = || lines(&one).into_iter().filter(|line| line["uri"] == blob.as_str());
    wait_until(PATIENCE, "what was given is told", || given().count() > 0);
    for line in given() {
        let surface = (&line["surface"], &line["source"], &line["status"]);
        assert_eq!(surface, (&"peer".into(), &"store".into(), &206.into()), "{line}");
    }
    // Filters are no blobs.
    let filters = |level: &str| {
        let of = |line: &Value| line["uri"].as_str().unwrap().starts_with("/filter");
        lines(&one).iter().filter(|line| of(line) && line["level"] == level).count()
    };
    wait_until(PATIENCE, "it looks for news", || filters("DEBUG") > 0);
    let ended = || one.count("aptmesh_web_requests{surface=\"peer\"}") == 0;
    wait_until(PATIENCE, "all was given", ended);
    // The line is written last.
    let given = || given().map(|line| line["bytes"].as_u64().unwrap()).sum::<u64>();
    let counted = format!("{}{{to=\"peer\"}}", crate::swarm::TO_PEERS);
    wait_until(PATIENCE, "what was counted is told", || one.count(&counted) == given());
    // Who looks for news is no news; who may not is.
    assert_eq!(filters("INFO"), 0);
    assert_eq!(request(one.peer(), "GET", "/filter", &[]).status, 403);
    wait_until(PATIENCE, "a stranger's line", || filters("INFO") == 1);
}

#[test]
fn what_a_replica_gives_is_told() {
    volumes::on_time(|| {
        let site = volumes::Site::new();
        let (path, bytes) = site.package(1, 3 * MB);
        let first = site.replica_with(&[("APTMESH_LOG_FORMAT", "json")]);
        site.fetch(&first, &path, &bytes);
        let second = site.replica_with(&[("APTMESH_LOG_FORMAT", "json")]);
        site.fetch(&second, &path, &bytes);
        let told = line(&second, |line| line["surface"] == "proxy");
        assert_fields(&told, &[("source", "replica".into()), ("bytes", bytes.len().into())]);
        let lent = line(&first, |line| line["surface"] == "peer");
        assert_line(&lent, 200, "hit", "store", bytes.len(), "whole");
    });
}

#[test]
fn real_apt_has_a_line_for_each_request_that_the_mirror_saw() {
    let (mirror, archive) = (Mirror::start(), LocalArchive::new("demo").package("tool", "1.0", MB));
    archive.publish(&mirror, "/debian");
    let proxy = proxy().start();
    let apt = Apt::new(Some(format!("http://{}", proxy.addr())));
    apt.sources(&archive.source_line(&format!("http://{}/debian", mirror.host())));
    for run in [apt.update(), apt.download(&["tool"])] {
        assert!(run.ok, "{}", run.output);
    }
    proxy.wait_landed();
    let served = proxy.count("aptmesh_engine_served_total") as usize;
    wait_until(PATIENCE, "a line for each", || lines(&proxy).len() == served);
    let sum: u64 = lines(&proxy).iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    let bodies = proxy.count("aptmesh_engine_served_bytes_total");
    assert!(sum >= bodies && sum < bodies + 1000, "{sum} and {bodies}: but for words of refusals");
    let tool = format!("http://{}/debian/{}", mirror.host(), archive.deb_path("tool"));
    let told = line(&proxy, |line| line["uri"] == tool.as_str());
    assert_line(&told, 200, "miss", "mirror", archive.deb("tool").len(), "whole");
}

#[test]
fn durations_classes_and_what_is_open_are_measured() {
    let mirror = Mirror::start();
    mirror.put(TOOL, File::new(noise(1, MB)));
    let proxy = Proxy::start();
    let count = |metric: &str| proxy.count(metric);
    for _ in 0..3 {
        assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, TOOL)).status, 200);
        proxy.wait_landed();
    }
    get(proxy.addr(), &proxy.url_for(&mirror, "/debian/pool/n/no_1_all.deb"));
    // They are counted last.
    let ended = || count("aptmesh_web_answers_total{surface=\"proxy\"}");
    wait_until(PATIENCE, "all have ended", || ended() == 4);
    for histogram in ["aptmesh_web_request_seconds", "aptmesh_web_first_byte_seconds"] {
        for (source, times) in [("store", 2), ("mirror", 2), ("memory", 0)] {
            let of = format!("{histogram}_count{{surface=\"proxy\",source=\"{source}\"}}");
            assert_eq!(count(&of), times, "{of}");
        }
        assert!(proxy.metric(&format!("{histogram}_sum{{surface=\"proxy\"}}")) > 0.0);
    }
    for (class, times) in [("2xx", 3), ("4xx", 1), ("3xx", 0), ("5xx", 0), ("cut", 0), ("left", 0)]
    {
        let of = format!("aptmesh_web_answers_total{{surface=\"proxy\",class=\"{class}\"}}");
        assert_eq!(count(&of), times, "{of}");
    }
    let bytes =
        "aptmesh_engine_served_bytes_total{resource=\"package\",source=\"store\",outcome=\"hit\"}";
    assert_eq!(count(bytes), 2 * MB as u64);
    let open = |what: &str| count(&format!("aptmesh_web_{what}{{surface=\"proxy\"}}"));
    wait_until(PATIENCE, "all have hung up", || open("connections") == 0);
    let mut slow = Connection::open(proxy.addr());
    mirror.put("/debian/pool/s/slow_1.orig.tar.xz", File::new(noise(2, MB)).rate(100_000));
    slow.send("GET", &proxy.url_for(&mirror, "/debian/pool/s/slow_1.orig.tar.xz"), &[]);
    assert_eq!(slow.read_head().status, 200);
    assert_eq!((open("connections"), open("requests")), (1, 1));
    drop(slow);
    wait_until(PATIENCE, "it has left", || open("connections") + open("requests") == 0);
    // A client may have all of an answer a moment before its account is closed.
    wait_until(PATIENCE, "the one that asks for this", || {
        count("aptmesh_web_requests{surface=\"admin\"}") == 1
    });
}
