//! Those who are sent the spans: what they are told, and what it costs when they are away, slow or confused.

use super::*;

#[test]
fn a_receiver_that_is_of_no_use_keeps_nobody_waiting() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let abyss = Abyss::open();
    for address in [nobody, silent.local_addr().unwrap(), abyss.addr()] {
        for protocol in ["grpc", "http/protobuf"] {
            let mirror = mirror();
            let proxy = Proxy::build()
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
                .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
                .env("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
                .env("OTEL_BSP_SCHEDULE_DELAY", "10")
                .env("OTEL_BSP_MAX_QUEUE_SIZE", "20")
                .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
                .start();
            for _ in 0..50 {
                fetch(&proxy, &mirror, TOOL);
            }
            let lost = |outcome| proxy.count(&format!("{SPANS}{{outcome=\"{outcome}\"}}"));
            wait_until(PATIENCE, "what is not taken is counted", || {
                lost("failed") >= 10 && lost("dropped") > 0
            });
            assert_eq!(lost("exported"), 0);
            stop(&proxy);
            let log = proxy.log();
            let told = log.matches("the receiver of traces does not take them").count();
            assert_eq!(told, 1, "{address} {protocol}: {log}");
        }
    }
}

#[test]
fn a_receiver_that_comes_to_its_senses_is_heard_of() {
    for way in [Way::Http, Way::Grpc] {
        let (mirror, receiver, proxy) = scene(way, &[]);
        receiver.talk_nonsense(true);
        fetch(&proxy, &mirror, TOOL);
        let failed = format!("{SPANS}{{outcome=\"failed\"}}");
        wait_until(PATIENCE, "nonsense is noticed", || proxy.count(&failed) > 0);
        receiver.talk_nonsense(false);
        wait_until(PATIENCE, "it is back", || {
            fetch(&proxy, &mirror, TOOL);
            proxy.log().contains("the receiver of traces is back")
        });
    }
}

#[test]
fn a_receiver_may_come_later() {
    for way in [Way::Http, Way::Grpc] {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mirror = mirror();
        let proxy = Proxy::build()
            .variables(way.variables(&format!("http://{address}")))
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", "500")
            .start();
        fetch(&proxy, &mirror, TOOL);
        let failed = format!("{SPANS}{{outcome=\"failed\"}}");
        wait_until(PATIENCE, "that nobody is there", || proxy.count(&failed) > 0);
        let receiver = Otlp::start_at(way, address);
        wait_until(PATIENCE, "that it is there", || {
            fetch(&proxy, &mirror, TOOL);
            !receiver.spans().is_empty()
        });
    }
}

#[test]
fn while_a_receiver_is_slow_clients_get_what_they_ask_for() {
    for way in [Way::Http, Way::Grpc] {
        let settings = [
            ("OTEL_BSP_MAX_QUEUE_SIZE", "20"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5"),
            // It is slow, not lost.
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"),
        ];
        let (mirror, receiver, proxy) = scene(way, &settings);
        receiver.be_slow(true);
        for _ in 0..50 {
            fetch(&proxy, &mirror, TOOL);
        }
        let count = |outcome| proxy.count(&format!("{SPANS}{{outcome=\"{outcome}\"}}"));
        wait_until(PATIENCE, "too many wait", || count("dropped") > 0);
        assert_eq!((count("exported"), receiver.spans().len()), (0, 0));
        receiver.be_slow(false);
        wait_until(PATIENCE, "what waited is taken", || count("exported") >= 20);
        assert_eq!(count("failed"), 0);
    }
}

#[test]
fn why_a_receiver_does_not_take_them_is_said() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ca = Ca::new();
    for way in [Way::Http, Way::Grpc] {
        let untrusted = Otlp::start_tls(way, &ca);
        let address = untrusted.variables().swap_remove(0).1;
        for (endpoint, why) in [
            (format!("http://{nobody}"), "Connection refused"),
            ("http://collector.invalid:4318".to_owned(), "lookup"),
            (address, "certificate"),
        ] {
            let mirror = mirror();
            let proxy = Proxy::build()
                .variables(way.variables(&format!("{endpoint}?api-key=secret")))
                .env("OTEL_EXPORTER_OTLP_TIMEOUT", "2000")
                .start();
            fetch(&proxy, &mirror, TOOL);
            let said = || {
                let log = proxy.log();
                let is_it = |line: &&str| line.contains("does not take them");
                log.lines().find(is_it).map(str::to_owned)
            };
            wait_until(PATIENCE, "it is said", || said().is_some());
            let said = said().unwrap();
            assert!(said.contains(why) && said.contains(&endpoint), "{way:?}: {said}");
            let log = proxy.log();
            assert!(log.contains("requests are traced") && !log.contains("secret"), "{log}");
        }
    }
}

#[test]
fn headers_come_to_the_receiver() {
    for way in [Way::Http, Way::Grpc] {
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20key,x-tenant=site");
        let (mirror, receiver, proxy) = scene(way, &[headers]);
        fetch(&proxy, &mirror, TOOL);
        receiver.wait_request("proxy", TOOL);
        let heard = receiver.headers().remove(0);
        assert_eq!(heard["authorization"], "Bearer key");
        assert_eq!(heard["x-tenant"], "site");
        assert!(!proxy.log().contains("Bearer"), "{}", proxy.log());
    }
}

#[test]
fn a_receiver_may_speak_tls() {
    let ca = Ca::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, ca.pem()).unwrap();
    for way in [Way::Http, Way::Grpc] {
        let (mirror, receiver) = (mirror(), Otlp::start_tls(way, &ca));
        let build = Proxy::build().variables(receiver.variables());
        let proxy = build.env("OTEL_EXPORTER_OTLP_CERTIFICATE", &file).start();
        fetch(&proxy, &mirror, TOOL);
        receiver.wait_request("proxy", TOOL);

        // Whom nobody vouches for gets nothing.
        let heard = receiver.spans().len();
        let wary = Proxy::build().variables(receiver.variables()).start();
        fetch(&wary, &mirror, TOOL);
        let failed = format!("{SPANS}{{outcome=\"failed\"}}");
        wait_until(PATIENCE, "that it is not trusted", || wary.count(&failed) > 0);
        drop(wary);
        let spans = receiver.spans();
        assert!(spans[heard..].iter().all(|span| span.process() == spans[0].process()));
    }
}

#[test]
fn what_is_compressed_is_read() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]);
    fetch(&proxy, &mirror, TOOL);
    receiver.wait_request("proxy", TOOL);
    assert_eq!(receiver.headers()[0]["content-encoding"], "gzip");
}
