//! What is traced, and since when.

use super::*;

const NEXT: &str = "/debian/pool/main/t/tool/tool_2.orig.tar.xz";
/// Requests a second that are traced because others say so.
const LED_MAX: u64 = 20;

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn ratio(ratio: &str) -> [(&str, &str); 2] {
    [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", ratio)]
}

#[test]
fn only_what_is_sampled_is_sent() {
    let (mirror, receiver, proxy) = scene(Way::Http, &ratio("0"));
    fetch(&proxy, &mirror, TOOL);
    assert!(!proxy.log().contains("trace_id"), "of what nobody finds: {}", proxy.log());
    // Who sampled it himself has it traced.
    fetch_traced(&proxy, &mirror, TOOL, "01");
    receiver.wait_for("the client's request", |span| span.parent == PARENT);
    wait_until(PATIENCE, "its line", || proxy.log().contains(&format!("trace_id={TRACE}")));
    assert!(receiver.spans().iter().all(|span| span.trace == TRACE), "{:#?}", receiver.spans());

    let (mirror, receiver, proxy) = scene(Way::Http, &ratio("1"));
    fetch_traced(&proxy, &mirror, TOOL, "00");
    fetch(&proxy, &mirror, TOOL);
    receiver.wait_request("proxy", TOOL);
    assert!(receiver.spans().iter().all(|span| span.trace != TRACE), "{:#?}", receiver.spans());
}

#[test]
fn a_request_that_waits_for_its_turn_is_one_trace() {
    let (mirror, receiver, proxy) = scene(Way::Http, &ratio("0"));
    // Slower than what comes behind it.
    mirror.put(TOOL, File::new(noise(1, 1000)).head_delay(Duration::from_secs(5)));
    mirror.put(NEXT, File::new(noise(2, 1000)));
    let mut client = Connection::open(proxy.addr());
    client.send("GET", &proxy.url_for(&mirror, TOOL), &[]);
    let traced = [("traceparent", &*traceparent("01"))];
    client.send("GET", &proxy.url_for(&mirror, NEXT), &traced);
    wait_until(PATIENCE, "both are begun", || {
        [TOOL, NEXT].iter().all(|path| !mirror.requests(path).is_empty())
    });
    assert_eq!(mirror.requests(TOOL)[0].status, 0, "the first is answered already");
    for _ in 0..2 {
        assert_eq!(client.read_reply("GET").status, 200);
    }
    let root = receiver.wait_request("proxy", NEXT);
    assert_eq!((root.trace.as_str(), root.parent.as_str()), (TRACE, PARENT));
    assert_eq!((root.get("aptmesh.outcome"), root.status), ("miss", 0));
    assert_eq!(root.get("client.address"), "127.0.0.1");
    let path = "mirror.request < mirror.ask < engine.flight < web.request";
    assert_eq!(receiver.wait_path(&root, "mirror.request"), path);
    let path = "engine.verify < engine.flight < web.request";
    assert_eq!(receiver.wait_path(&root, "engine.verify"), path);
    stop(&proxy);
    assert!(receiver.spans().iter().all(|span| span.trace == TRACE), "{:#?}", receiver.spans());
    assert_eq!(requests(&receiver, NEXT).len(), 1);
}

#[test]
fn a_client_that_leaves_before_its_turn_is_seen() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[]);
    mirror.put(TOOL, File::new(noise(1, 1000)).head_delay(Duration::from_secs(20)));
    mirror.put(NEXT, File::new(noise(2, 1000)));
    let mut client = Connection::open(proxy.addr());
    for path in [TOOL, NEXT] {
        client.send("GET", &proxy.url_for(&mirror, path), &[]);
    }
    wait_until(PATIENCE, "both are begun", || {
        [TOOL, NEXT].iter().all(|path| !mirror.requests(path).is_empty())
    });
    drop(client);
    let left = receiver.wait_request("proxy", NEXT);
    assert_eq!((left.get("aptmesh.outcome"), left.get("http.response.status_code")), ("left", ""));
}

#[test]
fn every_sampler_leaves_whole_traces() {
    for sampler in [("OTEL_TRACES_SAMPLER", "always_on"), ("OTEL_TRACES_SAMPLER", "traceidratio")] {
        let receiver = Otlp::start(Way::Http);
        let swarm = Swarm::of(&[("tool", MB)]);
        let variables = [receiver.variables(), vec![(sampler.0, sampler.1.to_owned())]].concat();
        let site = Site::build(&swarm.key).variables(variables).start();
        swarm.learn(&site);
        fetch_traced(&site, &swarm.mirror, &swarm.path("tool"), "00");
        let root = receiver.wait_for("the client's request", |span| span.parent == PARENT);
        receiver.wait_path(&root, "engine.verify");
        stop(&site);
        let spans = receiver.spans();
        for span in &spans {
            let is_there = spans.iter().any(|other| other.id == span.parent);
            let begins = ["web.request", "engine.flight"].contains(&&*span.name);
            assert!(is_there || (begins && ["", PARENT].contains(&&*span.parent)), "{span:#?}");
        }
    }
    let (mirror, receiver, proxy) = scene(Way::Http, &[("OTEL_TRACES_SAMPLER", "always_off")]);
    fetch_traced(&proxy, &mirror, TOOL, "01");
    stop(&proxy);
    assert_eq!(receiver.spans().len(), 0);
}

#[test]
fn what_others_say_is_followed_within_a_bound() {
    let (mirror, receiver, proxy) = scene(Way::Http, &ratio("0"));
    fetch(&proxy, &mirror, TOOL);
    let (url, traceparent) = (proxy.url_for(&mirror, TOOL), traceparent("01"));
    let mut client = Connection::open(proxy.addr());
    let begun = Instant::now();
    for _ in 0..400 {
        assert_eq!(client.request("HEAD", &url, &[("traceparent", &traceparent)]).status, 200);
    }
    let seconds = begun.elapsed().as_secs() + 2;
    stop(&proxy);
    let traced = requests(&receiver, TOOL).len() as u64;
    assert!((LED_MAX..=LED_MAX * seconds).contains(&traced), "{traced} in {seconds} s");
}

#[test]
fn what_a_client_adds_is_bounded() {
    let mark = |length| format!("vendor={}", "x".repeat(length));
    let long =
        [("a", 200), ("b", 200), ("c", 200)].map(|(name, length)| name.to_owned() + &mark(length));
    for (state, told) in [(mark(200), mark(200)), (long.join(","), String::new())] {
        let (mirror, receiver, proxy) = scene(Way::Http, &[]);
        let headers = [("traceparent", &*traceparent("01")), ("tracestate", &*state)];
        let reply = request(proxy.addr(), "GET", &proxy.url_for(&mirror, TOOL), &headers);
        assert_eq!(reply.status, 200);
        let root = receiver.wait_request("proxy", TOOL);
        assert_eq!((root.parent.as_str(), root.state), (PARENT, told));
    }
}

#[test]
fn without_a_propagator_nobody_is_followed_nor_told() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[("OTEL_PROPAGATORS", "none")]);
    fetch_traced(&proxy, &mirror, TOOL, "01");
    let root = receiver.wait_request("proxy", TOOL);
    assert_eq!(root.parent, "");
    assert_ne!(root.trace, TRACE);
}
