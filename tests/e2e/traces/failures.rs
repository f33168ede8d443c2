//! What fails is told by the spans of those with whom it failed.

use super::*;
use crate::hostile::{self, Liar};
use crate::volume::Volume;

/// The outcome of those for whom OpenTelemetry has a word.
const ERROR: i32 = 2;

/// The names of the spans of a trace that failed, as soon as its flight is over, and with what.
fn failed(receiver: &Otlp, root: &Span) -> Vec<(String, String)> {
    receiver.wait_path(root, "engine.flight");
    let spans = receiver.trace(root).into_iter().filter(|span| span.status == ERROR);
    let mut failed: Vec<_> =
        spans.map(|span| (span.name.clone(), span.get("error.type").to_owned())).collect();
    failed.sort();
    failed.dedup();
    failed
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect()
}

fn ask(proxy: &Proxy, mirror: &Mirror, path: &str) -> Reply {
    let reply = get(proxy.addr(), &proxy.url_for(mirror, path));
    proxy.wait_landed();
    reply
}

#[test]
fn a_mirror_in_trouble() {
    for (status, by_us, outcome) in [(503, true, "failed"), (404, false, "refused")] {
        let (mirror, receiver, proxy) = scene(Way::Http, &[]);
        mirror.script(TOOL, vec![Fault::Status(status); 20]);
        assert_eq!(ask(&proxy, &mirror, TOOL).status, status);
        let root = receiver.wait_request("proxy", TOOL);
        let kind = status.to_string();
        let mut expected = vec![
            ("engine.flight", outcome),
            ("mirror.ask", kind.as_str()),
            ("mirror.request", kind.as_str()),
        ];
        // What the client asked for in vain is no trouble of ours.
        if by_us {
            expected.push(("web.request", kind.as_str()));
        }
        assert_eq!(failed(&receiver, &root), pairs(&expected));
        let asked = receiver.trace(&root).into_iter().filter(|span| span.name == "mirror.request");
        assert_eq!(asked.count(), mirror.requests(TOOL).len());
    }
}

#[test]
fn a_mirror_that_nobody_reaches() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[]);
    mirror.stop();
    let status = ask(&proxy, &mirror, TOOL).status.to_string();
    let root = receiver.wait_request("proxy", TOOL);
    let expected = [
        ("engine.flight", "failed"),
        ("mirror.ask", "unreachable"),
        ("mirror.request", "unreachable"),
        ("web.request", &*status),
    ];
    assert_eq!(failed(&receiver, &root), pairs(&expected));
}

#[test]
fn the_next_mirror_helps_out() {
    let (mirrors, receiver) = (groups::pair(), Otlp::start(Way::Http));
    groups::stock(&mirrors);
    let proxy = groups::build(&mirrors).variables(receiver.variables()).start();
    let [one, two] = &mirrors;
    let path = groups::file_path(0);
    one.script(&path, vec![Fault::Status(503); 20]);
    assert_eq!(ask(&proxy, one, &path).status, 200);
    let root = receiver.wait_request("proxy", &path);
    assert_eq!(failed(&receiver, &root), pairs(&[("mirror.request", "503")]));
    let spans = receiver.trace(&root);
    let ask = spans.iter().find(|span| span.name == "mirror.ask").unwrap();
    assert!(ask.get("aptmesh.origin").contains(&two.host()), "{ask:#?}");
    let of = |mirror: &Mirror| mirror.addr().port().to_string();
    let mut asked = spans.iter().filter(|span| span.parent == ask.id).collect::<Vec<_>>();
    asked.sort_by_key(|span| span.start);
    let ports: Vec<&str> = asked.iter().map(|span| span.get("server.port")).collect();
    assert_eq!(ports, [of(one), of(two)]);
}

#[test]
fn a_body_that_is_cut() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[]);
    mirror.put(TOOL, File::new(noise(1, MB)).no_validators());
    mirror.script(TOOL, vec![Fault::Cut { after: 300_000 }; 20]);
    assert!(!ask(&proxy, &mirror, TOOL).complete);
    let root = receiver.wait_request("proxy", TOOL);
    assert_eq!(root.get("aptmesh.end"), "cut");
    let expected = [
        ("engine.flight", "cut"),
        ("engine.receive", "cut"),
        ("engine.verify", "cut"),
        ("web.request", "cut"),
    ];
    let failed = failed(&receiver, &root);
    assert!(pairs(&expected).iter().all(|one| failed.contains(one)), "{failed:#?}");
}

#[test]
fn bytes_that_are_wrong() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[]);
    let (right, wrong) = (noise(10, MB), noise(11, MB));
    let path = format!("/debian/dists/sid/main/by-hash/SHA256/{}", sha256_hex(&right));
    mirror.put(&path, File::new(wrong));
    assert!(!ask(&proxy, &mirror, &path).complete);
    let root = receiver.wait_request("proxy", &path);
    let failed = failed(&receiver, &root);
    let expected = [("engine.flight", "cut"), ("engine.verify", "cut"), ("web.request", "cut")];
    assert_eq!(failed, pairs(&expected));
}

#[test]
fn a_release_file_is_admitted_or_not() {
    let (mirror, signer, receiver) =
        (Mirror::start(), Signer::new("ed25519"), Otlp::start(Way::Http));
    let proxy = Proxy::build()
        .env("APTMESH_ARCHIVE_VERIFY", "enforce")
        .env("APTMESH_ARCHIVE_KEYRING", signer.keyring().display().to_string())
        .variables(receiver.variables())
        .start();
    let archive = LocalArchive::new("demo").package("tool", "1.0", 1000);
    archive.signed_inline(&signer).publish(&mirror, "/debian");
    let path = "/debian/dists/demo/InRelease";
    assert_eq!(ask(&proxy, &mirror, path).status, 200);
    let root = receiver.wait_request("proxy", path);
    let admitted = "engine.admit < engine.flight < web.request";
    assert_eq!(receiver.wait_path(&root, "engine.admit"), admitted);

    let path = "/debian/dists/other/InRelease";
    let stranger = Signer::new("ed25519");
    mirror.put(path, File::new(stranger.clearsign(&LocalArchive::new("other").release())));
    assert_eq!(ask(&proxy, &mirror, path).status, 503);
    let root = receiver.wait_request("proxy", path);
    let expected =
        [("engine.admit", "refused"), ("engine.flight", "failed"), ("web.request", "503")];
    assert_eq!(failed(&receiver, &root), pairs(&expected));
}

#[test]
fn a_volume_without_room() {
    let (volume, mirror, receiver) = (Volume::of_megabytes(8), mirror(), Otlp::start(Way::Http));
    let proxy = Proxy::build().data(volume.path()).variables(receiver.variables()).start();
    let _filler = volume.fill();
    let reply = ask(&proxy, &mirror, TOOL);
    assert_eq!((reply.status, reply.complete), (200, true), "clients are served all the same");
    let root = receiver.wait_request("proxy", TOOL);
    assert_eq!(root.status, 0);
    let failed = failed(&receiver, &root);
    assert!(failed.contains(&("engine.flight".to_owned(), "not_stored".to_owned())), "{failed:?}");
}

#[test]
fn peers_that_lie_or_break_off() {
    let (swarm, receiver) =
        (Swarm::of(&[("tool", 3 * MB), ("half", 3 * MB)]), Otlp::start(Way::Http));
    let site = Site::build(&swarm.key).variables(receiver.variables()).start();
    swarm.learn(&site);
    let liar = Liar::of(&swarm, &site, &["tool"], hostile::wrong);
    let half = Liar::of(&swarm, &site, &["half"], |bytes| File::new(bytes[..MB].to_vec()));
    liar.wait_found(&swarm, &site, "tool");
    half.wait_found(&swarm, &site, "half");
    // A mirror that is not slow may be the sooner one.
    swarm.publish(|file| file.rate(MB as u64));

    swarm.fetch(&site, "tool");
    let root = receiver.wait_request("proxy", &swarm.path("tool"));
    assert_eq!((root.get("http.response.status_code"), root.status), ("200", 0));
    assert_eq!(failed(&receiver, &root), pairs(&[("engine.verify", "wrong")]));

    swarm.fetch(&site, "half");
    let root = receiver.wait_request("proxy", &swarm.path("half"));
    assert_eq!(failed(&receiver, &root), pairs(&[("swarm.fetch", "failed")]));
}

#[test]
fn what_is_confirmed_or_only_handed_on() {
    let (mirror, receiver, proxy) = scene(Way::Http, &[]);
    fetch(&proxy, &mirror, TOOL);
    let first = receiver.wait_request("proxy", TOOL);
    let again = |header: (&str, &str)| {
        let seen = requests(&receiver, TOOL);
        let reply = request(proxy.addr(), "GET", &proxy.url_for(&mirror, TOOL), &[header]);
        assert_eq!(reply.status, 200);
        let is_new = |span: &Span| seen.iter().all(|known| known.id != span.id);
        let new = || requests(&receiver, TOOL).into_iter().find(is_new);
        wait_until(PATIENCE, "the request", || new().is_some());
        new().unwrap()
    };
    let root = again(("cache-control", "no-cache"));
    assert_eq!(root.get("aptmesh.outcome"), "revalidated");
    assert_ne!(root.trace, first.trace);
    receiver.wait_path(&root, "mirror.request");
    let spans = receiver.trace(&root);
    let asked = spans.iter().find(|span| span.name == "mirror.request").unwrap();
    assert_eq!((asked.get("http.response.status_code"), asked.status), ("304", 0));
    assert_eq!(failed(&receiver, &root), []);

    let root = again(("authorization", "Basic bWU6bWU="));
    assert_eq!(root.get("aptmesh.outcome"), "relayed");
    let path = "mirror.request < mirror.ask < web.request";
    assert_eq!(receiver.wait_path(&root, "mirror.request"), path);
}

#[test]
fn a_node_that_is_away() {
    let (swarm, receiver) = (Swarm::of(&[("tool", 5 * MB)]), Otlp::start(Way::Http));
    let mut node = Node::build(&swarm.key).start();
    let proxy = Proxy::build()
        .beside(&swarm.key, format!("http://{}", node.api()))
        .variables(receiver.variables())
        .start();
    swarm.learn(&proxy);
    node.stop();
    swarm.fetch(&proxy, "tool");
    let root = receiver.wait_request("proxy", &swarm.path("tool"));
    receiver.wait_path(&root, "swarm.look_up");
    let failed = failed(&receiver, &root);
    assert!(failed.contains(&("swarm.look_up".to_owned(), "away".to_owned())), "{failed:?}");
    // It is not asked where it is known already that it is away.
    let spans = receiver.trace(&root);
    let mut asked = spans.iter().filter(|span| span.name == "swarm.ask_node");
    assert!(asked.all(|span| span.get("error.type") == "failed"), "{spans:#?}");
}
