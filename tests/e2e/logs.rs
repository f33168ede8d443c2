//! Logs: for people and for machines, without secrets, to the last line; and who does not read them keeps
//! nobody waiting.

use crate::access::{line, lines, proxy};
use crate::kit::node::swarm_key;
use crate::kit::otlp::{Otlp, Way};
use crate::kit::*;
use crate::swarm::{FROM_PEERS, Swarm};
use crate::volumes;
use serde_json::Value;
use std::fs::{File as Pipe, OpenOptions};
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const TOOL: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";
const LOST: &str = "aptmesh_telemetry_log_lines_lost_total";

/// A mirror with a file of 100 bytes at [`TOOL`].
fn mirror() -> Mirror {
    let mirror = Mirror::start();
    mirror.put(TOOL, File::new(noise(1, 100)));
    mirror
}

#[test]
fn people_get_a_line_that_they_can_read() {
    let mirror = mirror();
    let proxy = Proxy::start();
    let target = proxy.url_for(&mirror, TOOL);
    get(proxy.addr(), &target);
    let text = || proxy.log().lines().find(|line| line.contains(" access: ")).map(str::to_owned);
    wait_until(PATIENCE, "a line", || text().is_some());
    let text = text().unwrap();
    let expected = format!(
        " INFO access: surface=proxy client=127.0.0.1 method=GET uri=\"{target}\" status=200 kind=package \
         outcome=miss source=mirror bytes=100 first_byte_ms="
    );
    assert!(text.contains(&expected) && text.ends_with(" end=whole"), "{text}");
}

#[test]
fn machines_get_an_object_a_line_whatever_they_ask_for() {
    let proxy = proxy().env("APTMESH_LOG_LEVEL", "debug").start();
    let odd: [&[u8]; 6] = [
        b"/m.org/\"quoted\"",
        b"/m.org/back\\slash",
        b"/m.org/\xc3\xa9\xf0\x9f\x92\xa9",
        b"/m.org/\x7f{}",
        b"/m.org/%00%0a%1b[31m",
        b"/m.org/'';--",
    ];
    for target in odd {
        let mut client = Connection::open(proxy.addr());
        client.send_raw(&[b"GET ", target, b" HTTP/1.1\r\nHost: cache\r\n\r\n"].concat());
        assert!(client.read_head().status >= 400);
    }
    // Each of them is one line, though some could not even be read.
    wait_until(PATIENCE, "a line for each", || lines(&proxy).len() == odd.len());
    let long = format!("/m.org/{}", "x".repeat(3000));
    get(proxy.addr(), &long);
    let told = line(&proxy, |line| line["uri"].as_str().is_some_and(|uri| uri.contains("xxx")));
    let shown = told["uri"].as_str().unwrap();
    assert!(shown.len() < 600 && shown.ends_with("..."), "{shown}");
    let all: Vec<Value> =
        proxy.log().lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for object in all {
        let is_flat = object.as_object().unwrap().values().all(|value| !value.is_object());
        let has = |field: &str| object[field].is_string();
        assert!(is_flat && has("timestamp") && has("level") && has("target"), "{object}");
    }
}

#[test]
fn the_access_log_can_be_had_alone_or_not_at_all() {
    let mirror = mirror();
    let told = |level: &str| {
        let proxy = proxy().env("APTMESH_LOG_LEVEL", level).start();
        get(proxy.addr(), &proxy.url_for(&mirror, TOOL));
        get(proxy.admin(), "/livez");
        proxy.signal("TERM");
        proxy.wait_exit(PATIENCE);
        let log = proxy.log();
        let of = |target: &str| log.matches(&format!("\"target\":\"{target}\"")).count();
        (of("access"), of("aptmesh::cli::serve"))
    };
    // A line for the request, and two at the end.
    assert_eq!(told("info"), (1, 2));
    assert_eq!(told("info,access=off"), (0, 2));
    assert_eq!(told("off,access=info"), (1, 0));
    // Whoever asks how things are is seen by who wants to see it.
    assert_eq!(told("info,access=debug"), (2, 2));
}

/// What must not be in any log.
const SECRETS: [&str; 6] = ["hunter2", "hunter%32", "s3cr3t", "aHVudGVyMg", "t0ken", "jane"];

#[test]
fn no_log_has_credentials_however_they_come() {
    let mirror = mirror();
    let private = "/private/pool/p/p_1_all.deb";
    mirror.put(private, File::new(noise(2, 100)));
    mirror.script("/moved.deb", vec![Fault::Redirect("/there.deb?sig=s3cr3t".to_owned()); 9]);
    mirror.script("/cut.deb", vec![Fault::Cut { after: 1 }; 99]);
    mirror.script("/ill.deb", vec![Fault::Status(500); 99]);
    let silent = Mirror::start();
    silent.stop();
    // Of everybody else who logs in this process, too.
    let proxy = Proxy::build().env("APTMESH_LOG_LEVEL", "trace").start();
    let mut secret = 0;
    for host in [mirror.host(), silent.host(), "m.invalid".to_owned()] {
        for path in
            [private, "/gone.deb", "/moved.deb", "/cut.deb", "/ill.deb", "/dists/s/InRelease"]
        {
            for target in [
                format!("http://jane:hunter2@{host}{path}"),
                format!("/jane:hunter2@{host}{path}"),
                format!("http://{host}{path}?token=s3cr3t"),
                format!("/{host}{path}?token=s3cr3t&x=jane:hunter2@y"),
                format!("http://jane:hunter%32@{host}{path}"),
            ] {
                let fields = [("Authorization", "Basic aHVudGVyMg"), ("X-Token", "t0ken")];
                request(proxy.addr(), "GET", &target, &fields);
                secret += 1;
            }
        }
    }
    for raw in [
        "CONNECT jane:hunter2@127.0.0.1:9 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://jane:hunter2@[/x HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET ftp://jane:hunter2@m.org/x HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /https/jane:hunter2@m.org:x/y HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://HTTPS///jane:hunter2@m.org/../x?s3cr3t HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /jane%3Ahunter2%40m.org/x HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://jane:hunter2/x HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://u:hunter2#x@m.org/x HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /u:hunter2/x@m.org/x HTTP/1.1\r\nHost: x\r\n\r\n",
        "PUT /?s3cr3t HTTP/1.1\r\nHost: jane:hunter2@x\r\n\r\n",
    ] {
        let mut client = Connection::open(proxy.addr());
        client.send_raw(raw.as_bytes());
        assert!(client.read_head().status >= 400, "{raw}");
        secret += 1;
    }
    let access =
        || proxy.log().lines().filter(|line| line.contains(" access: surface=proxy")).count();
    wait_until(PATIENCE, "a line for each", || access() == secret);
    assert!(proxy.log().contains("private/pool/p"), "the log tells of it");
    for line in proxy.log().lines() {
        for word in SECRETS {
            assert!(!line.contains(word), "{word} in: {line}");
        }
    }
}

#[test]
fn no_log_has_what_we_keep_secret() {
    let (server, parent) = (Postgres::start(), mirror());
    let database = fleet::migrated(&server);
    let (_, password) = database.rsplit_once('@').unwrap().0.rsplit_once(':').unwrap();
    let ask = |proxy: &Proxy| {
        let url = proxy.url_for(&parent, TOOL);
        assert_eq!(get(proxy.addr(), &url).status, 200);
    };
    for way in [Way::Http, Way::Grpc] {
        let receiver = Otlp::start(way);
        let proxy = Proxy::build()
            .env("APTMESH_LOG_LEVEL", "trace")
            .env("APTMESH_INDEX_URL", &database)
            .env("APTMESH_MIRROR_PROXY", format!("http://jane:hunter2@{}", parent.host()))
            .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken")
            .variables(receiver.variables())
            .start();
        ask(&proxy);
        receiver.wait_request("proxy", "tool_1.orig.tar.xz");
        assert!(parent.log().iter().any(|seen| seen.header("proxy-authorization").is_some()));
        proxy.signal("TERM");
        proxy.wait_exit(PATIENCE);
        // Basic, of `jane:hunter2`.
        for word in [password, "open sesame", "hunter2", "amFuZTpodW50ZXIy", "t0ken"] {
            let said = proxy.log().lines().find(|line| line.contains(word)).map(str::to_owned);
            assert_eq!(said, None, "{word}");
        }
    }
}

#[test]
fn no_log_has_what_sites_and_replicas_know_each_other_by() {
    let trace = [("LOG_LEVEL", "trace")];
    let swarm = Swarm::of(&[("tool", 1 << 20)]);
    let one = swarm.site_with(&[], &trace);
    swarm.fetch(&one, "tool");
    let two = swarm.site_with(&[&one], &trace);
    swarm.wait_found(&two, "tool", &[&one]);
    // So it must come from the other site, which asks for a token.
    swarm.mirror.remove(&swarm.path("tool"));
    swarm.fetch(&two, "tool");
    assert!(two.count(FROM_PEERS) >= swarm.size("tool"));
    let site = volumes::Site::new();
    let replicas = [(); 2].map(|()| site.replica_with(&[("APTMESH_LOG_LEVEL", "trace")]));
    let mut numbers = 1..;
    wait_until(PATIENCE, "one is given a file by the other", || {
        let (path, bytes) = site.package(numbers.next().unwrap(), 1 << 20);
        replicas.iter().for_each(|replica| drop(site.fetch(replica, &path, &bytes)));
        replicas[1].count("aptmesh_swarm_replica_requests_total{answer=\"given\"}") > 0
    });
    for log in [one.log(), two.log(), replicas[0].log(), replicas[1].log()] {
        assert!(log.contains(" TRACE "), "it tells more than enough");
        for line in log.lines() {
            // Tokens begin so.
            let says = |word: &str| line.contains(word);
            assert!(!says("Aptmesh ") && !says(&swarm.key), "{line}");
        }
    }
}

#[test]
fn settings_that_are_wrong_are_told_in_a_line_without_their_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("aptmesh.toml");
    std::fs::write(&file, "").unwrap();
    let proxy = Proxy::build().arg("--config").arg(&file).start();
    for (number, text) in [
        "[proxy]\nsidecar = \"http://jane:hunter2@127.0.0.1:9981\"\n\
         advertise = \"ftp://jane:hunter2@h:1\"\n[archive]\n\
         groups = [\"int http://jane:hunter2@m.org/debian\", \"http://jane:hunter2@m.org\"]\n\
         [swarm]\nadvertise = [\"http://jane:hunter2@h:1\"]\n",
        "[index]\nurl = \"postgres://jane:hunter2@h/d\n",
        "[mirror]\nproxy = http://jane:hunter2@h\n",
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(&file, text).unwrap();
        proxy.signal("HUP");
        let told = || proxy.log().matches("the settings are wrong").count();
        wait_until(PATIENCE, "it says so", || told() == number + 1);
    }
    let log = proxy.log();
    assert!(log.contains("advertise") && log.contains("http://…@127.0.0.1:9981/"), "{log}");
    assert!(log.contains("aptmesh.toml: line 2: "), "{log}");
    for line in log.lines() {
        assert!(!SECRETS.iter().any(|word| line.contains(word)), "{line}");
        assert!(line.starts_with("20"), "no line of its own: {line}");
    }
}

#[test]
fn what_is_not_taken_of_the_log_is_counted() {
    let mirror = mirror();
    let prefix = ["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"].map(str::to_owned);
    let proxy = Proxy::build().prefix(prefix.into()).start();
    let target = proxy.url_for(&mirror, TOOL);
    ask(&proxy, &target, 3);
    wait_until(PATIENCE, "each is counted", || proxy.count(LOST) >= 3);
    let lost = proxy.count(LOST);
    ask(&proxy, &target, 3);
    wait_until(PATIENCE, "they too", || proxy.count(LOST) == lost + 3);
}

#[test]
fn machines_are_told_the_end_in_an_object_too() {
    let serve = |settings: &[(&str, &str)], listen: &str| {
        let folder = tempfile::tempdir().unwrap();
        let ended = aptmesh()
            .args(["serve", "--log-format", "json", "--admin-listen", "127.0.0.1:0"])
            .args(["--listen", listen, "--data"])
            .arg(folder.path())
            .envs(settings.iter().copied())
            .output()
            .unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let last = |said: &str| {
        let object = |line| serde_json::from_str::<Value>(line).expect(line);
        let objects: Vec<Value> = said.lines().map(object).collect();
        let last = objects.last().expect("a line");
        assert_eq!(last["level"], "ERROR", "{last}");
        last["message"].as_str().unwrap().to_owned()
    };
    let taken = proxy_address();
    let (code, said) = serve(&[], &taken.1);
    assert_eq!(code, Some(1), "{said}");
    assert!(last(&said).starts_with("could not listen on"), "{said}");
    // Whoever switched the log off is told all the same.
    let (_, said) = serve(&[("APTMESH_LOG_LEVEL", "off")], &taken.1);
    assert!(last(&said).starts_with("could not listen on"), "{said}");
    // A library of ours can not bear this.
    let (code, said) = serve(&[("TOKIO_WORKER_THREADS", "many")], "127.0.0.1:0");
    assert_eq!(code, Some(101), "{said}");
    assert!(last(&said).starts_with("panicked at "), "{said}");
}

#[test]
fn what_lasts_is_told_once() {
    // Too few open files for those who come.
    let prefix = ["sh", "-c", "ulimit -n 100; exec \"$@\"", "sh"].map(str::to_owned);
    let proxy = Proxy::build().prefix(prefix.into()).start();
    let crowd: Vec<_> = (0..120).map(|_| Connection::open(proxy.addr())).collect();
    let told = || proxy.log().matches("could not accept connections").count();
    wait_until(PATIENCE, "it says so", || told() > 0);
    // It tries again ten times a second.
    thread::sleep(Duration::from_secs(1));
    assert_eq!(told(), 1, "{}", proxy.log());
    drop(crowd);
    wait_until(PATIENCE, "it is well again", || get(proxy.addr(), "/").status == 406);
    assert_eq!(told(), 1, "{}", proxy.log());

    // A node that is alone looks for others again after half a second, one, two.
    let node = Node::build(&swarm_key()).env("SWARM_BOOTSTRAP", "no-such-host.invalid").start();
    let told = || node.log().matches("could not resolve the name of a seed").count();
    wait_until(PATIENCE, "it says so", || told() > 0);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(told(), 1, "{}", node.log());
}

/// A proxy whose standard error is a pipe of ours.
fn piped(pipe: &Path) -> Proxy {
    let made = Command::new("mkfifo").arg(pipe).status().unwrap();
    assert!(made.success(), "a pipe");
    let script = format!("exec \"$@\" 2>'{}'", pipe.display());
    let prefix = ["sh", "-c", &script, "sh"].map(str::to_owned);
    Proxy::build().prefix(prefix.into()).start()
}

fn ask(proxy: &Proxy, target: &str, times: usize) {
    let mut client = Connection::open(proxy.addr());
    for _ in 0..times {
        assert_eq!(client.get(target).status, 200);
    }
}

#[test]
fn who_does_not_read_the_log_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("log");
    let mirror = mirror();
    // Open at both ends, so that opening it waits for nobody; nobody reads.
    let opening = pipe.clone();
    let reader = thread::spawn(move || {
        while !opening.exists() {
            thread::sleep(Duration::from_millis(5));
        }
        OpenOptions::new().read(true).write(true).open(&opening).unwrap()
    });
    let proxy = piped(&pipe);
    let mut reader: Pipe = reader.join().unwrap();
    let target = proxy.url_for(&mirror, TOOL);
    // A pipe takes 64 kB, the queue 8192 lines: these are more than both.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ask(&proxy, &target, 2_500));
        }
    });
    wait_until(PATIENCE, "lines are lost, and counted", || proxy.count(LOST) > 100);
    // What is read from now on goes on.
    let lost = proxy.count(LOST);
    let read = thread::spawn(move || {
        let (mut read, mut buffer) = (Vec::new(), vec![0; 65536]);
        while !String::from_utf8_lossy(&read).contains("/livez-of-the-end") {
            let count = reader.read(&mut buffer).unwrap();
            read.extend_from_slice(&buffer[..count]);
        }
        (read, reader)
    });
    wait_until(PATIENCE, "the queue is written", || {
        let before = proxy.count(LOST);
        ask(&proxy, &target, 10);
        proxy.count(LOST) == before
    });
    get(proxy.addr(), "/m.org/livez-of-the-end");
    let (read, reader) = read.join().unwrap();
    let read = String::from_utf8(read).unwrap();
    let written = read.matches(" access: ").count() as u64;
    let asked = proxy.count("aptmesh_engine_served_total");
    assert!(written + proxy.count(LOST) >= asked && lost > 0, "{written}, {lost} of {asked}");

    // Stuck again, it stops in time.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ask(&proxy, &target, 2_500));
        }
    });
    proxy.signal("TERM");
    let told = Instant::now();
    assert!(proxy.wait_exit(PATIENCE).success());
    assert!(told.elapsed() < Duration::from_secs(30), "{:?}", told.elapsed());
    drop(reader);
}

#[test]
fn the_last_words_are_written_on_every_way_out() {
    let mirror = mirror();
    let proxy = Proxy::start();
    for _ in 0..200 {
        get(proxy.addr(), &proxy.url_for(&mirror, TOOL));
    }
    proxy.signal("TERM");
    proxy.wait_exit(PATIENCE);
    let log = proxy.log();
    assert_eq!(log.matches(" access: ").count(), 200, "{log}");
    assert!(log.trim_end().ends_with("stopped"), "{log}");

    // Where it fails at the start, after it has logged something.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("index.sqlite"), b"this is no database at all").unwrap();
    let taken = proxy_address();
    let failed = aptmesh()
        .args(["serve", "--listen", &taken.1, "--admin-listen", "127.0.0.1:0", "--data"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    let (logged, last) = said.trim_end().rsplit_once('\n').expect("two lines");
    assert!(logged.contains("index") && logged.contains("ERROR"), "{said}");
    assert!(last.starts_with("aptmesh: could not listen on"), "{said}");
}

/// An address at which somebody listens.
fn proxy_address() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}
