//! Traces: what a request was waited for, from its acceptance to its last byte, across processes and
//! sites; and a receiver that is of no use keeps nobody waiting.

mod beginnings;
mod failures;
mod receiver;

use crate::groups;
use crate::kit::otlp::{Otlp, Span, Way};
use crate::kit::*;
use crate::swarm::Swarm;
use crate::volumes;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// A process that nobody waits for stops in a second or two; one whose last traces nobody takes, two later.
const STOP_MAX: Duration = Duration::from_secs(10);
const MB: usize = 1 << 20;
/// A file of which nobody checks how it begins.
const TOOL: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";
const SPANS: &str = "aptmesh_telemetry_spans_total";
/// A trace that a client has begun, and its span of it.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A mirror with [`TOOL`], a receiver, and a proxy that sends its spans there.
fn scene(way: Way, variables: &[(&str, &str)]) -> (Mirror, Otlp, Proxy) {
    let receiver = Otlp::start(way);
    let mirror = mirror();
    let build = Proxy::build().variables(receiver.variables());
    let proxy = variables.iter().fold(build, |build, (name, value)| build.env(name, *value));
    (mirror, receiver, proxy.start())
}

fn mirror() -> Mirror {
    let mirror = Mirror::start();
    mirror.put(TOOL, File::new(noise(1, MB)));
    mirror
}

fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, path));
    assert_eq!((reply.status, reply.complete), (200, true), "{}", reply.reason);
    proxy.wait_landed();
}

/// As one whose client traces it.
fn fetch_traced(proxy: &Proxy, mirror: &Mirror, path: &str, flags: &str) {
    let traceparent = format!("00-{TRACE}-{PARENT}-{flags}");
    let headers = [("traceparent", traceparent.as_str()), ("tracestate", "vendor=mark")];
    let reply = request(proxy.addr(), "GET", &proxy.url_for(mirror, path), &headers);
    assert_eq!((reply.status, reply.complete), (200, true), "{}", reply.reason);
    proxy.wait_landed();
}

fn requests(receiver: &Otlp, path: &str) -> Vec<Span> {
    let is_it = |span: &Span| span.name == "web.request" && span.get("url.path").ends_with(path);
    receiver.spans().into_iter().filter(is_it).collect()
}

/// Nothing of a trace comes to a mirror: whom we ask for whom is not its matter.
fn assert_untraced(mirror: &Mirror) {
    for seen in mirror.log() {
        for header in ["traceparent", "tracestate", "baggage"] {
            assert_eq!(seen.header(header), None, "{seen:#?}");
        }
    }
}

/// It is told to stop, and does.
fn stop(proxy: &Proxy) {
    let begun = Instant::now();
    proxy.signal("TERM");
    assert!(proxy.wait_exit(PATIENCE).success());
    assert!(begun.elapsed() < STOP_MAX, "it took {:?}", begun.elapsed());
}

#[test]
fn a_miss_and_a_hit_are_a_trace_each() {
    for way in [Way::Http, Way::Grpc] {
        let (mirror, receiver, proxy) = scene(way, &[("OTEL_SERVICE_NAME", "cache")]);
        // For a second.
        mirror.put(TOOL, File::new(noise(1, MB)).rate(MB as u64));
        fetch(&proxy, &mirror, TOOL);
        let cold = receiver.wait_request("proxy", TOOL);
        assert_eq!((cold.kind, cold.parent.as_str()), (2, ""));
        assert_eq!(cold.get("http.request.method"), "GET");
        assert_eq!(cold.get("http.response.status_code"), "200");
        assert_eq!((cold.get("aptmesh.source"), cold.get("aptmesh.outcome")), ("mirror", "miss"));
        assert_eq!(cold.get("aptmesh.bytes"), MB.to_string());
        assert!(cold.end - cold.start > 500_000_000, "it lasts until the last byte");
        let line = format!("trace_id={}", cold.trace);
        wait_until(PATIENCE, "its line", || proxy.log().contains(&line));
        for (name, path) in [
            ("index.call", "index.call < engine.plan < web.request"),
            ("mirror.request", "mirror.request < mirror.ask < engine.flight < web.request"),
            ("engine.receive", "engine.receive < engine.flight < web.request"),
            ("engine.verify", "engine.verify < engine.flight < web.request"),
            ("store.commit", "store.commit < engine.flight < web.request"),
        ] {
            assert_eq!(receiver.wait_path(&cold, name), path);
        }
        let asked = receiver.wait_for("the mirror", |span| span.name == "mirror.request");
        assert_eq!(asked.get("http.response.status_code"), "200");
        assert_eq!((asked.get("url.path"), asked.kind), (TOOL, 3));
        assert_eq!(cold.resource["service.name"], "cache");
        assert_eq!(cold.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(!cold.process().is_empty());

        fetch(&proxy, &mirror, TOOL);
        wait_until(PATIENCE, "the hit", || requests(&receiver, TOOL).len() == 2);
        let warm = requests(&receiver, TOOL).into_iter().find(|it| it.id != cold.id).unwrap();
        assert_ne!(warm.trace, cold.trace);
        receiver.wait_path(&warm, "engine.plan");
        let names: Vec<String> = receiver.trace(&warm).into_iter().map(|span| span.name).collect();
        assert!(!names.iter().any(|name| name.starts_with("mirror.")), "{names:?}");
        assert!(proxy.count(&format!("{SPANS}{{outcome=\"exported\"}}")) >= 7);
        assert_untraced(&mirror);
    }
}

#[test]
fn what_is_opened_on_the_volume_is_seen() {
    let (mirror, receiver, mut proxy) = scene(Way::Http, &[]);
    fetch(&proxy, &mirror, TOOL);
    proxy.restart();
    fetch(&proxy, &mirror, TOOL);
    wait_until(PATIENCE, "the hit", || requests(&receiver, TOOL).len() == 2);
    let warm = requests(&receiver, TOOL).remove(1);
    assert_eq!(receiver.wait_path(&warm, "store.open"), "store.open < engine.plan < web.request");
}

#[test]
fn who_joins_a_flight_points_at_it() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[]);
    mirror
        .put(TOOL, File::new(noise(1, MB)).rate(MB as u64).head_delay(Duration::from_millis(500)));
    let url = proxy.url_for(&mirror, TOOL);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(get(proxy.addr(), &url).status, 200));
        }
    });
    let flight = receiver.wait_for("the flight", |span| span.name == "engine.flight");
    let follow = receiver.wait_for("who joined", |span| span.name == "engine.follow");
    assert_eq!(follow.links, [flight.id]);
    assert_ne!(follow.trace, flight.trace);
}

#[test]
fn one_trace_shows_a_download_across_sites() {
    // On a busy machine one of two givers may be found in time alone, but hardly for each of three files.
    let names = ["tool", "tale", "toad"];
    let swarm = Swarm::of(&names.map(|name| (name, 12 * MB)));
    let receiver = Otlp::start(Way::Grpc);
    let site = |seeds: &[&Site]| {
        let build = Site::build(&swarm.key).seeds(seeds).variables(receiver.variables());
        // None is so fast that it brings all before another one is asked.
        let site = build.env("SWARM_UPLOAD_LIMIT", "4MB/s").start();
        swarm.learn(&site);
        site
    };
    let (one, fetch) = (site(&[]), |site: &Site, name| drop(swarm.fetch(site, name)));
    names.iter().for_each(|name| fetch(&one, name));
    let two = site(&[&one]);
    names.iter().for_each(|name| fetch(&two, name));
    let last = site(&[&one, &two]);
    names.iter().for_each(|name| swarm.wait_found(&last, name, &[&one, &two]));
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));

    for name in names {
        fetch_traced(&last, &swarm.mirror, &swarm.path(name), "01");
    }
    let tool = swarm.path("tool");
    let root = receiver.wait_for("the client's request", |span| {
        span.parent == PARENT && span.get("url.path").ends_with(&tool)
    });
    assert_eq!((root.trace.as_str(), root.get("aptmesh.surface")), (TRACE, "proxy"));
    let path = receiver.wait_path(&root, "swarm.fetch");
    assert_eq!(path, "swarm.fetch < engine.flight < web.request");
    assert!(
        receiver.wait_path(&root, "swarm.look_up").starts_with("swarm.look_up < engine.flight")
    );
    assert_both_are_seen(&receiver, &root);
    assert_untraced(&swarm.mirror);
}

/// Two other sites gave something of them, each of which says so, and is named by who asked.
fn assert_both_are_seen(receiver: &Otlp, root: &Span) {
    let given = || {
        let mut given = receiver.trace(root);
        given.retain(|span| span.get("aptmesh.surface") == "peer");
        given
    };
    let distinct = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>().len();
    wait_until(PATIENCE, "the other sites", || {
        distinct(given().iter().map(|span| span.process().to_owned()).collect()) == 2
    });
    let mut peers = Vec::new();
    for given in given() {
        assert_ne!(given.process(), root.process());
        assert_eq!(given.state, "", "what a client adds is not for other sites");
        let spans = receiver.trace(root);
        let asked = spans.iter().find(|span| span.id == given.parent).expect("its question");
        assert_eq!(asked.name, "swarm.fetch");
        if asked.get("aptmesh.outcome") == "given" {
            peers.push(asked.get("aptmesh.peer").to_owned());
        }
    }
    assert!(!peers.contains(&String::new()), "{peers:?}");
    assert_eq!(distinct(peers), 2, "each is named");
}

#[test]
fn a_node_in_a_process_of_its_own_is_part_of_the_trace() {
    let swarm = Swarm::of(&[("tool", 5 * MB)]);
    let receiver = Otlp::start(Way::Http);
    let node = Node::build(&swarm.key).variables(receiver.variables()).start();
    let proxy = Proxy::build()
        .beside(&swarm.key, format!("http://{}", node.api()))
        .variables(receiver.variables())
        .start();
    swarm.learn(&proxy);
    swarm.fetch(&proxy, "tool");
    let root = receiver.wait_request("proxy", &swarm.path("tool"));
    let path = receiver.wait_path(&root, "dht.look_up");
    assert!(path.starts_with("dht.look_up < web.request < swarm.ask_node < "), "{path}");
    assert!(path.ends_with(" < engine.flight < web.request"), "{path}");
    let looked_up = receiver.wait_for("the look-up", |span| span.name == "dht.look_up");
    assert_ne!(looked_up.process(), root.process());
}

#[test]
fn a_replica_that_lends_is_part_of_the_trace() {
    volumes::on_time(|| {
        let (site, receiver) = (volumes::Site::new(), Otlp::start(Way::Http));
        let variables = receiver.variables();
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (path, bytes) = site.package(1, 2 * MB);
        let first = site.replica_with(&variables);
        site.fetch(&first, &path, &bytes);
        let second = site.replica_with(&variables);
        fetch_traced(&second, site.mirror(), &path, "01");
        let root = receiver.wait_for("the client's request", |span| span.parent == PARENT);
        receiver.wait_path(&root, "index.call");
        let calls = receiver.trace(&root);
        let mut calls = calls.iter().filter(|span| span.name == "index.call");
        assert!(calls.all(|call| call.get("db.system.name") == "postgresql"));
        let path = receiver.wait_path(&root, "swarm.borrow");
        assert_eq!(path, "swarm.borrow < engine.flight < web.request");
        let lent = receiver.wait_for("the lender", |span| {
            span.trace == TRACE && span.get("aptmesh.surface") == "peer"
        });
        assert_ne!(lent.process(), root.process());
        assert_eq!(lent.state, "vendor=mark");
        assert_untraced(site.mirror());
    });
}

#[test]
fn what_is_switched_off_connects_to_nobody() {
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
        let (mirror, receiver, proxy) = scene(Way::Http, &[off]);
        fetch(&proxy, &mirror, TOOL);
        stop(&proxy);
        assert_eq!(receiver.connections(), 0, "{off:?}");
    }
}

#[test]
fn no_credential_is_in_a_span_nor_a_trace_at_a_mirror() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[]);
    let host = mirror.host();
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let targets = [
        format!("http://user:secret@{host}{TOOL}"),
        format!("/user:secret@{host}{TOOL}"),
        format!("/user:p@secret@{host}{TOOL}"),
        format!("/user:secret@p@{host}{TOOL}"),
        format!("/https/user%3Asecret%40{host}{TOOL}"),
        format!("/http%3A//user:secret@{host}{TOOL}"),
        format!("/{host}/https/user:secret@{host}{TOOL}"),
        format!("/{host}{TOOL}?token=secret"),
        format!("/{host}/{}/{TOOL}?token=secret", "x".repeat(9_000)),
    ];
    for target in &targets {
        let headers = [
            ("authorization", "Basic c2VjcmV0"),
            ("traceparent", traceparent.as_str()),
            ("tracestate", "vendor=mark"),
            ("baggage", "of=client"),
        ];
        request(proxy.addr(), "GET", target, &headers);
    }
    wait_until(PATIENCE, "all requests", || requests(&receiver, "").len() == targets.len());
    wait_until(PATIENCE, "the mirror's part", || {
        receiver.spans().iter().any(|span| span.name == "mirror.request")
    });
    stop(&proxy);
    let told = format!("{:?}", receiver.spans());
    assert!(!told.contains("secret") && !told.contains("c2VjcmV0"), "{told}");
    assert!(!told.contains(&"x".repeat(600)), "{told}");
    assert!(!mirror.log().is_empty());
    assert_untraced(&mirror);
}

#[test]
fn the_log_is_as_without_traces() {
    for variables in [true, false] {
        let (mirror, receiver) = (mirror(), Otlp::start(Way::Http));
        let build = Proxy::build().env("APTMESH_LOG_LEVEL", "trace");
        let traced = if variables { receiver.variables() } else { Vec::new() };
        let proxy = build.variables(traced).start();
        fetch(&proxy, &mirror, TOOL);
        if variables {
            receiver.wait_request("proxy", TOOL);
        }
        let log = proxy.log();
        assert!(log.contains("TRACE") && log.contains(" aptmesh::"), "{log}");
        for name in ["web.request", "engine.plan", "engine.flight", "aptmesh::trace"] {
            assert!(!log.contains(name), "{name} in {log}");
        }
    }
}

#[test]
fn the_last_spans_are_sent_before_the_end() {
    let (mirror, receiver, proxy) = scene(Way::Grpc, &[("OTEL_BSP_SCHEDULE_DELAY", "60000")]);
    fetch(&proxy, &mirror, TOOL);
    stop(&proxy);
    assert_eq!(requests(&receiver, TOOL).len(), 1);

    let receiver = Otlp::start(Way::Http);
    let later = vec![("OTEL_BSP_SCHEDULE_DELAY", "60000".to_owned())];
    let build = Node::build(&node::swarm_key()).variables(receiver.variables());
    let mut node = build.variables(later).start();
    node.look_up(&sha256_hex(b"anything"));
    node.stop();
    receiver.wait_for("the look-up", |span| span.name == "dht.look_up");
}

#[test]
fn what_can_not_be_followed_is_said() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[("OTEL_TRACES_SAMPLER", "xray")]);
    fetch(&proxy, &mirror, TOOL);
    receiver.wait_request("proxy", TOOL);
    assert!(proxy.log().contains("OTEL_TRACES_SAMPLER is not followed"), "{}", proxy.log());

    let (_, _, proxy) = scene(Way::Http, &[("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere")]);
    assert!(proxy.log().contains("no traces: could not read /nowhere"), "{}", proxy.log());
}
