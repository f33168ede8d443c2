//! Finding other sites: by the node, which may be away, and by their have-filters, which they may make up.

use crate::kit::node::swarm_key;
use crate::kit::*;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// In the archive of a test.
const PACKAGES: usize = 24;
const FETCHES: &str = "aptmesh_swarm_filter_fetches_total";
const LOOK_UPS: &str = "aptmesh_swarm_look_ups_total";
const WAITED: &str = "aptmesh_swarm_look_up_seconds_count";
const AWAY: &str = "aptmesh_swarm_sidecar_away";

/// How often filters came to that.
fn fetches(site: &Proxy, outcome: &str) -> u64 {
    site.count(&format!("{FETCHES}{{outcome=\"{outcome}\"}}"))
}

pub fn wait_fetches(site: &Proxy, outcome: &str, count: u64) {
    wait_until(PATIENCE, outcome, || fetches(site, outcome) >= count);
    assert_eq!(fetches(site, outcome), count, "{outcome}");
}

fn tool(number: usize) -> String {
    format!("tool{number}")
}

/// An archive on a mirror, and the apt that gets its packages through the proxy.
struct Clients {
    mirror: Mirror,
    archive: LocalArchive,
    apt: Apt,
    next: usize,
}

impl Clients {
    /// A package for each time that apt is tried.
    fn of(proxy: &Proxy) -> Self {
        let mirror = Mirror::start();
        let archive = (0..PACKAGES).fold(LocalArchive::new("demo"), |archive, number| {
            archive.package(&tool(number), "1.0", 50_000)
        });
        archive.publish(&mirror, "/debian");
        let apt = Apt::new(None);
        let url = format!("http://{}/{}/debian", proxy.addr(), mirror.host());
        apt.sources(&archive.source_line(&url));
        Self { mirror, archive, apt, next: 0 }
    }

    fn try_apt(&mut self) {
        let update = self.apt.update();
        assert!(update.ok, "{}", update.output);
        let name = tool(self.next);
        self.next += 1;
        let download = self.apt.download(&[&name]);
        assert!(download.ok, "{}", download.output);
        assert_eq!(self.mirror.bodies(&format!("/debian/{}", self.archive.deb_path(&name))), 1);
    }
}

/// A filter without entries but for these, which are ascending.
pub fn filter(generation: u64, came: &[u64]) -> Vec<u8> {
    let mut bytes = b"aptmeshF\x01".to_vec();
    bytes.extend(generation.to_be_bytes());
    bytes.extend(0u64.to_be_bytes());
    // Three segments of eight fingerprints.
    bytes.extend(3u32.to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    bytes.extend([0; 24]);
    bytes.extend(patch(came));
    bytes
}

fn delta(from: u64, to: u64, came: &[u64]) -> Vec<u8> {
    let head = [b"aptmeshD\x01".to_vec(), from.to_be_bytes().to_vec(), to.to_be_bytes().to_vec()];
    [head.concat(), patch(came)].concat()
}

fn patch(came: &[u64]) -> Vec<u8> {
    let count = u32::try_from(came.len()).unwrap().to_be_bytes().to_vec();
    let entries: Vec<u8> = came.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    [count, entries, 0u32.to_be_bytes().to_vec()].concat()
}

/// What stands for a blob in filters: the beginning of `HMAC-SHA1(swarm key, sha256)`.
pub fn entry(key: &str, blob: &[u8]) -> u64 {
    let key: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).unwrap()).collect();
    let mut mac = Hmac::<Sha1>::new_from_slice(&key).unwrap();
    mac.update(&Sha256::digest(blob));
    u64::from_be_bytes(mac.finalize().into_bytes()[..8].try_into().unwrap())
}

/// A site whose node is real, and whose peer port is what the test makes of it.
pub struct Fake {
    port: Mirror,
    node: Node,
}

impl Fake {
    pub fn start(key: &str, seeds: &[&Node]) -> Self {
        let port = Mirror::start();
        let url = format!("http://{}", port.host());
        Self::with_url(key, seeds, port, &url)
    }

    /// Whose card says that its peer port is there.
    fn with_url(key: &str, seeds: &[&Node], port: Mirror, url: &str) -> Self {
        let node = Node::build(key).seeds(seeds).env("SWARM_ADVERTISE", url).start();
        Self { port, node }
    }

    /// Has others told that there is a filter of this generation.
    pub fn tell(&self, generation: u64) {
        self.node.post(&format!("/filter/{generation}"), &json!({}));
    }

    pub fn put(&self, etag: u64, bytes: Vec<u8>) {
        self.port.put("/filter", File::new(bytes).no_validators().etag(&format!("\"{etag}\"")));
    }

    fn asked(&self) -> usize {
        self.port.requests("/filter").len()
    }
}

/// A proxy whose node is that one.
pub fn proxy_of(key: &str, node: &Node) -> Proxy {
    proxy_at(key, &format!("http://{}", node.api()))
}

fn proxy_at(key: &str, api: &str) -> Proxy {
    Proxy::build()
        .beside(key, api)
        // All that is fetched is looked up.
        .env("APTMESH_SWARM_ANNOUNCE_MIN_SIZE", "1KiB")
        .start()
}

#[test]
fn a_node_that_dies_hangs_and_comes_back_does_not_disturb_apt() {
    let key = swarm_key();
    let mut node = Node::start(&key, &[]);
    let proxy = proxy_of(&key, &node);
    let mut clients = Clients::of(&proxy);
    clients.try_apt();
    assert_eq!(proxy.count(AWAY), 0);
    let look_ups = |outcome| proxy.count(&format!("{LOOK_UPS}{{outcome=\"{outcome}\"}}"));
    assert_eq!((proxy.count(LOOK_UPS) > 0, look_ups("away")), (true, 0));
    let wait_away = |away| {
        wait_until(PATIENCE, "that it is noticed", || proxy.count(AWAY) == away);
    };

    node.kill9();
    wait_away(1);
    clients.try_apt();
    assert!(look_ups("away") > 0, "nobody waited for it");
    node.restart();
    wait_away(0);
    clients.try_apt();

    node.signal("STOP");
    wait_away(1);
    clients.try_apt();
    node.signal("CONT");
    wait_away(0);
    clients.try_apt();

    let (asked, waited) = (proxy.count(LOOK_UPS), proxy.count(WAITED));
    assert_eq!(asked, waited, "each is timed");
    let said = |what: &str| proxy.log().matches(what).count();
    assert_eq!((said("node is away"), said("node is back")), (2, 2), "{}", proxy.log());
}

#[test]
fn a_node_that_is_none_does_not_disturb_apt() {
    let key = swarm_key();
    let abyss = Abyss::open();
    let stranger = Mirror::start();
    stranger.put("/garbage/peers", File::new(noise(1, 10_000)));
    stranger.put("/endless/peers", File::new(vec![b' '; 300_000_000]).chunked());
    stranger.put("/slow/peers", File::new(b"{\"peers\":[]}".to_vec()).rate(1));
    let urls = [
        format!("http://{}", abyss.addr()),
        format!("http://{}/nothing", stranger.host()),
        format!("http://{}/garbage", stranger.host()),
        format!("http://{}/endless", stranger.host()),
        format!("http://{}/slow", stranger.host()),
    ];
    for url in urls {
        let proxy = proxy_at(&key, &url);
        wait_until(PATIENCE, &url, || proxy.count(AWAY) == 1);
        Clients::of(&proxy).try_apt();
        assert!(proxy.peak_resident_bytes() < 200_000_000, "{url}");
    }
    assert!(stranger.bytes("/endless/peers") < 50_000_000, "it is not read to its end");
}

#[test]
fn a_proxy_whose_node_can_not_read_its_index_says_so() {
    let key = swarm_key();
    let proxy = |announce: &str| {
        Proxy::build()
            .env("APTMESH_SWARM_KEY", &key)
            .env("APTMESH_SWARM_ANNOUNCE", announce)
            .env("APTMESH_LISTEN_PEER", "127.0.0.1:0")
            .env("APTMESH_PROXY_SIDECAR", "http://127.0.0.1:9")
            .start()
    };
    assert!(proxy("true").log().contains("what is stored is not announced"));
    assert!(!proxy("false").log().contains("what is stored is not announced"));
}

#[test]
fn the_settings_of_the_node_are_checked() {
    let key = swarm_key();
    for (name, url, key, why) in [
        ("no key", "http://127.0.0.1:9981", "", "there is no swarm.key"),
        ("no URL", "127.0.0.1:9981", &key, "proxy.sidecar"),
        ("no host", "unix:/run/node", &key, "write http://ADDRESS:PORT"),
        ("a secret", "http://me:secret@127.0.0.1:9981", &key, "write http://ADDRESS:PORT"),
    ] {
        let run = aptmesh()
            .arg("config")
            .env("APTMESH_PROXY_SIDECAR", url)
            .env("APTMESH_SWARM_KEY", key)
            .output()
            .expect("the aptmesh binary");
        let text = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(78), "{name}: {text}");
        assert!(text.contains(why), "{name}: {text}");
        assert!(!text.contains("secret"), "{name}: {text}");
    }
}

#[test]
fn filters_are_fetched_then_what_changed_and_nothing_when_nothing_did() {
    let key = swarm_key();
    let node = Node::start(&key, &[]);
    let fake = Fake::start(&key, &[&node]);
    let proxy = proxy_of(&key, &node);
    let kept = || (proxy.count("aptmesh_swarm_filters"), proxy.count("aptmesh_swarm_filter_bytes"));

    let whole = filter(5, &[1, 2]);
    fake.put(5, whole.clone());
    fake.tell(5);
    wait_fetches(&proxy, "whole", 1);
    assert_eq!(kept(), (1, whole.len() as u64));
    let asked = fake.port.requests("/filter").pop().unwrap();
    assert_eq!((asked.header("if-none-match"), asked.path.as_str()), (None, "/filter"));
    assert!(asked.header("authorization").unwrap().starts_with("Aptmesh "), "{asked:?}");

    let came = delta(5, 6, &[3]);
    fake.put(6, came.clone());
    fake.tell(6);
    wait_fetches(&proxy, "delta", 1);
    assert_eq!(kept(), (1, (whole.len() + came.len()) as u64));
    let asked = fake.port.requests("/filter").pop().unwrap();
    assert_eq!(
        (asked.header("if-none-match"), asked.path.as_str()),
        (Some("\"5\""), "/filter?since=5")
    );

    fake.tell(7);
    wait_fetches(&proxy, "unchanged", 1);
    assert_eq!(fake.port.requests("/filter").pop().unwrap().status, 304);

    // A delta to something else: then all of it.
    fake.put(8, delta(7, 8, &[4]));
    fake.port.before_each({
        let next = File::new(filter(8, &[1, 2, 3, 4])).no_validators();
        let mut asked = 0;
        move |_| {
            asked += 1;
            if asked == 2 { vec![("/filter".to_owned(), next.clone())] } else { Vec::new() }
        }
    });
    fake.tell(8);
    wait_fetches(&proxy, "whole", 2);
    assert_eq!(fake.asked(), 5, "as often as there was something new");
    assert_eq!(proxy.count("aptmesh_swarm_filter_oldest_seconds"), 0);

    fake.tell(0);
    wait_until(PATIENCE, "the site without a filter", || kept() == (0, 0));
    assert_eq!(fetches(&proxy, "failed"), 0);
}

#[test]
fn hostile_filters_are_bounded_and_their_site_left_alone() {
    let key = swarm_key();
    let node = Node::start(&key, &[]);
    let fakes: Vec<Fake> = (0..6).map(|_| Fake::start(&key, &[&node])).collect();
    let good = Fake::start(&key, &[&node]);
    let [garbage, endless, too_large, trickle, cut, bomb] = &fakes[..] else { panic!("six") };
    garbage.put(1, noise(1, 100_000));
    let huge = vec![7; 100_000_000];
    endless.port.put("/filter", File::new(huge.clone()).chunked());
    too_large.port.put("/filter", File::new(huge));
    trickle.port.put("/filter", File::new(filter(1, &[1])).rate(4));
    cut.put(1, filter(1, &[1, 2, 3])[..60].to_vec());
    // It says that it has four thousand million segments.
    let mut says_much = filter(1, &[]);
    says_much[29..33].fill(0xff);
    bomb.put(1, says_much);
    good.put(1, filter(1, &[1]));
    let proxy = proxy_of(&key, &node);
    fakes.iter().chain([&good]).for_each(|fake| fake.tell(1));

    wait_fetches(&proxy, "whole", 1);
    wait_until(PATIENCE, "all that fails", || fetches(&proxy, "failed") >= 6);
    assert_eq!(proxy.count("aptmesh_swarm_filters"), 1, "the good one");
    // Cards are looked at every five seconds; who fails is asked after ten more, then after twenty.
    std::thread::sleep(Duration::from_secs(20));
    for (fake, name) in
        fakes.iter().zip(["garbage", "endless", "too large", "trickle", "cut", "bomb"])
    {
        assert!((1..=3).contains(&fake.asked()), "{name}: asked {} times", fake.asked());
        assert!(fake.port.bytes("/filter") < 30_000_000, "{name} is not read to its end");
    }
    assert_eq!(good.asked(), 1);
    assert!(proxy.peak_resident_bytes() < 200_000_000);
    Clients::of(&proxy).try_apt();
}

#[test]
fn a_site_whose_filter_lies_is_not_believed_any_more() {
    let key = swarm_key();
    let node = Node::start(&key, &[]);
    let liar = Fake::start(&key, &[&node]);
    let proxy = proxy_of(&key, &node);
    let mut clients = Clients::of(&proxy);
    let debs = (0..PACKAGES).map(|number| clients.archive.deb(&tool(number)));
    let mut entries: Vec<u64> = debs.map(|deb| entry(&key, deb)).collect();
    entries.sort_unstable();
    liar.put(1, filter(1, &entries));
    liar.tell(1);
    wait_fetches(&proxy, "whole", 1);
    let asked_for_blobs = || liar.port.log().len() - liar.asked();

    // Up to eight may be bad luck. On a busy machine the mirror may be so soon that the liar is not asked.
    let told = || proxy.count("aptmesh_swarm_false_claims_total");
    wait_until(PATIENCE, "nine lies", || {
        if told() < 9 {
            clients.try_apt();
        }
        told() == 9
    });
    assert_eq!(proxy.count("aptmesh_swarm_doubted_sites"), 1);
    let before = asked_for_blobs();
    assert!(before >= 9, "asked {before} times");
    for _ in 0..5 {
        clients.try_apt();
    }
    assert_eq!((asked_for_blobs(), told()), (before, 9));
}

#[test]
fn sites_lead_nowhere_where_sites_are_not_to_be() {
    let key = swarm_key();
    let node = Node::start(&key, &[]);
    let (by_address, by_name) = (Mirror::start(), Mirror::start());
    let urls = [
        format!("http://{}", by_address.host()),
        format!("http://localhost:{}", by_name.addr().port()),
    ];
    let address = Fake::with_url(&key, &[&node], by_address, &urls[0]);
    let name = Fake::with_url(&key, &[&node], by_name, &urls[1]);
    // Where the test's own peer ports are is loopback, but none of these.
    let proxy = Proxy::build()
        .beside(&key, format!("http://{}", node.api()))
        .env("APTMESH_SWARM_ALLOW_PRIVATE", "10.0.0.0/8")
        .start();
    for fake in [&address, &name] {
        fake.put(1, filter(1, &[1]));
        fake.tell(1);
    }
    wait_until(PATIENCE, "both are refused", || fetches(&proxy, "failed") >= 2);
    assert_eq!((address.port.connections(), name.port.connections()), (0, 0));
    // That counts where it is chosen who is asked for blobs.
    assert_eq!(proxy.count("aptmesh_swarm_known_peers"), 2);
    // The same, where they may be.
    let proxy = proxy_of(&key, &node);
    wait_fetches(&proxy, "whole", 2);
}

#[test]
fn what_is_being_fetched_is_announced_for_a_minute_and_no_longer() {
    let key = swarm_key();
    let near = Node::start(&key, &[]);
    let far = Node::start(&key, &[&near]);
    far.wait_connected(1);
    let [fetched, failed, stored] = [1, 2, 3].map(|seed| sha256_hex(&noise(seed, 100)));
    let announce = |blob: &str, how: &str| {
        let blobs = json!({ "blobs": [{ "sha256": blob, "size": 2_000_000 }] });
        near.post(&format!("/announce{how}"), &blobs)
    };
    let withdraw =
        |blob: &str| near.post("/withdraw?provisional=true", &json!({ "blobs": [blob] }));
    for blob in [&fetched, &failed] {
        assert_eq!(announce(blob, "?provisional=true")["new"], 1);
        far.wait_found(blob, &[&near]);
    }
    assert_eq!(near.count("announced"), 0, "nothing of it is kept");

    assert_eq!(withdraw(&failed)["withdrawn"], 1);
    far.wait_found(&failed, &[]);

    assert_eq!(announce(&stored, "")["new"], 1);
    far.wait_found(&stored, &[&near]);
    assert_eq!(announce(&stored, "?provisional=true")["known"], 1);
    assert_eq!(withdraw(&stored)["withdrawn"], 0);

    wait_until(Duration::from_secs(180), "the end of the minute", || {
        far.look_up(&fetched).is_empty()
    });
    assert_eq!(far.look_up(&stored), [near.url()]);
}
