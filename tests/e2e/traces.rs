//! Traces: what a request was waited for, from its acceptance to its last byte, across processes and
//! sites; and a receiver that is of no use keeps nobody waiting.

use crate::kit::otlp::{Otlp, Way};
use crate::kit::*;

/// A file of which nobody checks how it begins.
const TOOL: &str = "/debian/pool/main/t/tool/tool_1.orig.tar.xz";

/// A mirror with [`TOOL`], a receiver, and a proxy that sends its spans there.
fn scene(way: Way, settings: &[(&str, &str)]) -> (Mirror, Otlp, Proxy) {
    let (mirror, receiver) = (Mirror::start(), Otlp::start(way));
    mirror.put(TOOL, File::new(noise(1, 1 << 20)));
    let build = Proxy::build().variables(receiver.variables());
    let proxy = settings.iter().fold(build, |build, (name, value)| build.env(name, *value)).start();
    (mirror, receiver, proxy)
}

fn fetch(proxy: &Proxy, mirror: &Mirror, path: &str) {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, path));
    assert_eq!(reply.status, 200, "{}", reply.reason);
    proxy.wait_landed();
}

#[test]
fn a_miss_and_a_hit_are_a_trace_each() {
    for way in [Way::Http, Way::Grpc] {
        let (mirror, receiver, proxy) = scene(way, &[]);
        fetch(&proxy, &mirror, TOOL);
        let cold = receiver.wait_request("proxy", TOOL);
        assert_eq!((cold.kind, cold.parent.as_str()), (2, ""));
        assert_eq!(cold.get("http.request.method"), "GET");
        for (name, path) in [
            ("index.call", "index.call < engine.plan < web.request"),
            ("mirror.request", "mirror.request < mirror.ask < engine.flight < web.request"),
            ("engine.receive", "engine.receive < engine.flight < web.request"),
            ("engine.verify", "engine.verify < engine.flight < web.request"),
            ("store.commit", "store.commit < engine.flight < web.request"),
        ] {
            assert_eq!(receiver.wait_path(&cold, name), path);
        }
        fetch(&proxy, &mirror, TOOL);
        wait_until(std::time::Duration::from_secs(20), "the hit", || {
            receiver
                .spans()
                .iter()
                .filter(|span| span.get("url.path").ends_with(TOOL) && span.name == "web.request")
                .count()
                == 2
        });
        eprintln!("{:#?}", receiver.spans());
    }
}
