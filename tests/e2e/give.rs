//! What other sites get at the peer port: what is public, as fast as the operator lets them, and nothing
//! else; and strangers get nothing.

use crate::kit::node::swarm_key;
use crate::kit::*;
use aptmesh::content::digest::Sha256;
use aptmesh::content::swarm_key::SwarmKey;
use aptmesh::swarm::token::Secret;
use std::ops::Deref;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(60);
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
const GIVEN: &str = "aptmesh_engine_given_bytes_total{to=\"peer\"}";
const REFUSED: &str = "aptmesh_web_peer_refused_total";
const BUSY: &str = "aptmesh_web_peer_busy_total";
/// Bodies at a time to one peer; to all of them, ten times as many.
const EACH: usize = 16;
const SLOTS_USED: &str = "aptmesh_web_peer_slots_used";
const LARGE: usize = 5_000_000;

/// A site that gives, with a mirror of its own.
pub struct Giver {
    site: Site,
    mirror: Mirror,
    /// `None`: the swarm is open.
    key: Option<SwarmKey>,
}

impl Deref for Giver {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Giver {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With these settings besides.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        let key = swarm_key();
        let build = settings.iter().fold(Site::build(&key), |build, (name, value)| {
            match name.strip_prefix("--") {
                None => build.env(name, *value),
                Some(_) => build.arg(name).arg(value),
            }
        });
        Self { site: build.start(), mirror: Mirror::start(), key: Some(key.parse().unwrap()) }
    }

    fn open() -> Self {
        let build = Site::build("").env("SWARM_OPEN", "true");
        Self { site: build.start(), mirror: Mirror::start(), key: None }
    }

    /// Its clients' lists are those of this archive.
    fn updated(&self, archive: &LocalArchive) {
        archive.publish(&self.mirror, "/debian");
        let before = self.count(LEARNT);
        for path in ["dists/demo/Release".to_owned(), archive.index_path()] {
            assert_eq!(self.fetched(&path).status, 200, "{path}");
        }
        wait_until(PATIENCE, "both lists are learnt", || self.count(LEARNT) >= before + 2);
    }

    /// A client of its own fetches a file of the archive.
    fn fetched(&self, path: &str) -> Reply {
        let reply = get(self.addr(), &self.path(path));
        assert!(reply.complete, "{path}: {:?}", reply.trouble);
        self.wait_landed();
        reply
    }

    fn path(&self, path: &str) -> String {
        self.url_for(&self.mirror, &format!("/debian/{path}"))
    }

    /// With one package of so many bytes, which is stored.
    pub fn with_package(self, size: usize) -> (Self, Vec<u8>) {
        let archive = LocalArchive::new("demo").package("tool", "1.0", size);
        self.updated(&archive);
        self.fetched(&archive.deb_path("tool"));
        (self, archive.deb("tool").to_vec())
    }

    fn token(&self, blob: &str) -> String {
        token(self.key.as_ref().unwrap(), blob, now())
    }

    /// What another site hears that asks for a blob.
    fn asked(&self, method: &str, blob: &str, headers: &[(&str, &str)]) -> Reply {
        self.asked_on(&mut Connection::open(self.peer()), method, blob, headers)
    }

    fn asked_on(
        &self,
        connection: &mut Connection,
        method: &str,
        blob: &str,
        headers: &[(&str, &str)],
    ) -> Reply {
        self.ask_on(connection, method, blob, headers);
        connection.read_reply(method)
    }

    pub fn ask_on(
        &self,
        connection: &mut Connection,
        method: &str,
        blob: &str,
        headers: &[(&str, &str)],
    ) {
        let token = self.key.as_ref().map(|_| self.token(blob));
        let own = token.as_ref().map(|token| ("Authorization", token.as_str()));
        let headers: Vec<_> = own.into_iter().chain(headers.iter().copied()).collect();
        connection.send(method, &format!("/blob/sha256/{blob}"), &headers);
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&get(self.admin(), "/status.json").body).unwrap()
    }

    fn traffic(&self, pointer: &str) -> u64 {
        let status = self.status();
        let bytes = status.pointer(&format!("/traffic/{pointer}"));
        bytes.and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {status}"))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn token(key: &SwarmKey, blob: &str, at: u64) -> String {
    Secret::new(&key.token_secret()).token(&Sha256::from_hex(blob).unwrap(), at)
}

/// A site's address, one of many.
fn other(number: usize) -> String {
    format!("127.1.0.{}", number + 1)
}

#[test]
fn a_site_of_the_swarm_gets_what_is_public() {
    let (site, bytes) = Giver::new().with_package(LARGE);
    let blob = sha256_hex(&bytes);
    let whole = site.asked("GET", &blob, &[]);
    assert_eq!((whole.status, whole.complete), (200, true), "{whole:?}");
    assert!(whole.body == bytes);
    let etag = format!("\"{blob}\"");
    assert_eq!(whole.header("etag"), Some(etag.as_str()));
    assert_eq!(whole.header("last-modified"), Some("Tue, 02 Jan 2024 00:00:00 GMT"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("aptmesh-have"), None, "all is there");

    let part = site.asked("GET", &blob, &[("Range", "bytes=1000000-1999999")]);
    assert_eq!((part.status, part.complete), (206, true));
    assert!(part.body == bytes[1_000_000..2_000_000]);
    let end = site.asked("GET", &blob, &[("Range", "bytes=4999990-")]);
    assert_eq!((end.status, end.body.as_slice()), (206, &bytes[4_999_990..]));
    let beyond = site.asked("GET", &blob, &[("Range", "bytes=99999999-")]);
    assert_eq!(beyond.status, 416);
    let head = site.asked("HEAD", &blob, &[]);
    let length = bytes.len().to_string();
    assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())));
    let same = site.asked("GET", &blob, &[("If-None-Match", &etag)]);
    assert_eq!((same.status, same.body.len()), (304, 0));
    // On one connection, one after the other, none of them is in another's way.
    let mut connection = Connection::open(site.peer());
    for _ in 0..50 {
        let range = site.asked_on(&mut connection, "GET", &blob, &[("Range", "bytes=0-99999")]);
        assert_eq!(range.status, 206);
    }
    assert_eq!(site.count(BUSY), 0);
    wait_until(PATIENCE, "all slots to be free", || site.count(SLOTS_USED) == 0);
    assert!(site.count(GIVEN) >= bytes.len() as u64 + 1_000_000 + 50 * 100_000);
}

#[test]
fn strangers_hear_nothing() {
    let (site, bytes) = Giver::new().with_package(100_000);
    let (blob, other) = (sha256_hex(&bytes), sha256_hex(b"another"));
    let (key, theirs) = (site.key.clone().unwrap(), swarm_key().parse::<SwarmKey>().unwrap());
    let stored = format!("/blob/sha256/{blob}");
    let absent = format!("/blob/sha256/{other}");
    let good = token(&key, &blob, now());
    let tokens = [
        None,
        Some(token(&theirs, &blob, now())),
        Some(token(&key, &other, now())),
        Some(token(&key, &blob, now() - 400)),
        Some(token(&key, &blob, now() + 400)),
        Some(token(&SwarmKey::open(), &blob, now())),
        Some(good.replace("Aptmesh ", "Basic ")),
        Some(good[..good.len() - 1].to_owned()),
        Some(format!("{good}0")),
        Some("Aptmesh 99999999999999999999999-00".to_owned()),
        Some(String::new()),
    ];
    let mut asked = 0;
    for token in &tokens {
        let headers: Vec<_> = token.iter().map(|it| ("Authorization", it.as_str())).collect();
        for method in ["GET", "HEAD", "POST"] {
            for path in [stored.as_str(), &absent, "/", "/filter", "/status.json", "/blob/sha256/"]
            {
                // A token for another blob is one for that.
                if token.as_ref().is_some_and(|it| *it == tokens[2].clone().unwrap())
                    && path == absent
                {
                    continue;
                }
                let reply = request(site.peer(), method, path, &headers);
                assert_eq!(reply.status, 403, "{method} {path} {token:?}");
                assert!(!reply.body.windows(64).any(|part| part == &bytes[..64]));
                for told in ["etag", "aptmesh-have", "allow", "retry-after", "x-aptmesh-source"] {
                    assert_eq!(reply.header(told), None, "{method} {path}");
                }
                asked += 1;
            }
        }
    }
    assert!(site.count(REFUSED) >= asked, "{} of {asked}", site.count(REFUSED));
    assert_eq!((site.count(GIVEN), site.count(BUSY)), (0, 0));

    // Some minutes either way are borne with; after that, a token that was overheard is of no use.
    for at in [now() - 240, now(), now() + 240] {
        let token = token(&key, &blob, at);
        assert_eq!(request(site.peer(), "GET", &stored, &[("Authorization", &token)]).status, 200);
    }
}

#[test]
fn an_open_swarm_asks_for_no_token() {
    let (site, bytes) = Giver::open().with_package(100_000);
    let blob = sha256_hex(&bytes);
    let reply = site.asked("GET", &blob, &[]);
    assert!(reply.status == 200 && reply.body == bytes);
    assert_eq!(get(site.peer(), &format!("/blob/sha256/{}", sha256_hex(b"another"))).status, 404);
    assert_eq!(get(site.peer(), "/status.json").status, 404);
    let flight = format!("/flight/{}", sha256_hex(b"any"));
    assert_eq!(get(site.peer(), &flight).status, 404, "that is for replicas");
    assert_eq!(site.count(REFUSED), 0);
}

#[test]
fn who_announces_nothing_gives_nothing() {
    let site = Giver::with(&[("SWARM_ANNOUNCE", "false")]);
    assert_eq!(get(site.peer(), "/").status, 0, "nobody listens there");
}

#[test]
fn what_no_list_names_is_not_given() {
    let site = Giver::new();
    let archive = LocalArchive::new("demo")
        .package("tool", "1.0", 100_000)
        .package("toy", "1.0", 60_000)
        .package("never", "1.0", 50_000);
    site.updated(&archive);
    let unlisted = [b"!<arch>\n".as_slice(), &noise(5, 70_000)].concat();
    site.mirror.put("/debian/pool/unlisted_1_all.deb", File::new(unlisted.clone()));
    site.mirror.put("/debian/tool.txt", File::new(b"a file of another kind".as_slice()));
    assert!(site.fetched("pool/unlisted_1_all.deb").body == unlisted);
    assert_eq!(site.fetched("tool.txt").status, 200);
    let (tool, toy) = (archive.deb("tool").to_vec(), archive.deb("toy").to_vec());
    for name in ["tool", "toy"] {
        site.fetched(&archive.deb_path(name));
    }
    // Somebody's own, as credentials make it.
    let private = [b"!<arch>\n".as_slice(), &noise(6, 80_000)].concat();
    site.mirror.put("/debian/pool/private_1_all.deb", File::new(private.clone()));
    let credentials = [("Authorization", "Basic dTpw")];
    let own = request(site.addr(), "GET", &site.path("pool/private_1_all.deb"), &credentials);
    assert!(own.body == private);

    let status = |bytes: &[u8]| site.asked("GET", &sha256_hex(bytes), &[]).status;
    assert_eq!((status(&tool), status(&toy)), (200, 200));
    assert_eq!(
        (status(&unlisted), status(&private), status(archive.deb("never"))),
        (404, 404, 404)
    );
    assert_eq!(status(b"a file of another kind"), 404);
    // Lists are public, too.
    assert_eq!(status(archive.index().as_bytes()), 200);
    assert_eq!(site.count(BUSY), 0);

    // The next state of the suite has another version of a package, and names the old one no more.
    let rebuilt = LocalArchive::new("demo").package("tool", "1.1", 100_000);
    let next = archive.with_deb("tool", rebuilt.deb("tool").to_vec()).later(9);
    next.publish(&site.mirror, "/debian");
    let again = |path: &str| {
        request(site.addr(), "GET", &site.path(path), &[("Cache-Control", "no-cache")])
    };
    let before = site.count(LEARNT);
    for path in ["dists/demo/Release".to_owned(), next.index_path()] {
        assert_eq!(again(&path).status, 200);
    }
    wait_until(PATIENCE, "the next state to be learnt", || site.count(LEARNT) >= before + 2);
    assert_eq!(get(site.addr(), &site.path(&archive.deb_path("toy"))).status, 200);
    assert_eq!((status(&tool), status(&toy)), (404, 200), "remembered only as long as it is so");
}

#[test]
fn questions_for_what_is_not_here_cost_little() {
    let (site, bytes) = Giver::new().with_package(100_000);
    thread::scope(|scope| {
        for asker in 0..8_usize {
            let site = &site;
            scope.spawn(move || {
                let mut connection = Connection::open_from(&other(asker), site.peer());
                for number in 0..250 {
                    let blob = sha256_hex(format!("{asker} {number}").as_bytes());
                    let reply = site.asked_on(&mut connection, "GET", &blob, &[]);
                    // The machine may be busy with other tests.
                    assert!(matches!(reply.status, 404 | 503), "{reply:?}");
                }
            });
        }
    });
    assert_eq!(site.count(SLOTS_USED), 0);
    assert!(!site.log().contains("the index names a blob"), "nothing was looked for on the disk");
    assert!(site.asked("GET", &sha256_hex(&bytes), &[]).body == bytes);
    assert!(site.fetched("dists/demo/Release").status == 200);
}

#[test]
fn a_flight_is_given_while_it_comes() {
    let site = Giver::new();
    let archive = LocalArchive::new("demo").package("tool", "1.0", 12_000_000);
    site.updated(&archive);
    let (path, bytes) = (archive.deb_path("tool"), archive.deb("tool").to_vec());
    let (blob, at) = (sha256_hex(&bytes), format!("/debian/{path}"));
    site.mirror.put(&at, File::new(bytes.clone()).rate(1_500_000));
    assert_eq!(site.asked("GET", &blob, &[]).status, 404, "nobody fetches it for other sites");

    let mut client = Connection::open(site.addr());
    client.send("GET", &site.path(&path), &[]);
    assert_eq!(client.read_head().status, 200);
    client.read_body_some(300_000);
    let is_coming = || site.mirror.requests(&at).iter().any(|seen| seen.open);

    let mut peer = Connection::open(site.peer());
    site.ask_on(&mut peer, "GET", &blob, &[]);
    let head = peer.read_head();
    let have = |head: Option<&str>| head.and_then(|have| have.parse::<usize>().ok());
    let there = have(head.header("aptmesh-have")).expect("how much is there");
    assert_eq!((head.status, head.header("etag")), (200, Some(format!("\"{blob}\"").as_str())));
    assert!((250_000..bytes.len()).contains(&there), "{there}");
    let begun = peer.read_body_some(there + 100_000);
    assert!(is_coming(), "bytes arrive before the mirror has sent all");

    // A part that is a little ahead streams as it comes; one that is far ahead is for later.
    let mut ahead = Connection::open_from(&other(1), site.peer());
    site.ask_on(&mut ahead, "GET", &blob, &[("Range", "bytes=3000000-4999999")]);
    assert_eq!(ahead.read_head().status, 206);
    let far = site.asked("GET", &blob, &[("Range", "bytes=11900000-")]);
    assert!(is_coming());
    assert_eq!((far.status, far.header("retry-after")), (503, Some("1")));
    assert!(have(far.header("aptmesh-have")).unwrap() >= there);
    let head_only = site.asked("HEAD", &blob, &[]);
    let size = bytes.len().to_string();
    assert_eq!((head_only.status, head_only.header("content-length")), (200, Some(size.as_str())));
    assert!(head_only.header("aptmesh-have").is_some());

    assert!(ahead.read_body_some(2_000_000) == bytes[3_000_000..5_000_000]);
    let rest = peer.read_body_some(bytes.len());
    assert!([begun, rest].concat() == bytes, "the same, to its last byte");
    assert_eq!(client.read_body_some(bytes.len()).len(), bytes.len() - 300_000);
    site.wait_landed();
    let stored = site.asked("GET", &blob, &[("Range", "bytes=11900000-")]);
    assert!(stored.status == 206 && stored.header("aptmesh-have").is_none());
    assert_eq!(site.mirror.bodies(&at), 1);
}

#[test]
fn a_flight_with_wrong_bytes_is_not_given_to_its_end() {
    let site = Giver::new();
    let archive = LocalArchive::new("demo").package("tool", "1.0", 2_000_000);
    site.updated(&archive);
    let (path, bytes) = (archive.deb_path("tool"), archive.deb("tool").to_vec());
    let mut wrong = bytes.clone();
    wrong[1_000_000] ^= 1;
    site.mirror.put(&format!("/debian/{path}"), File::new(wrong).rate(1_000_000));
    let mut client = Connection::open(site.addr());
    client.send("GET", &site.path(&path), &[]);
    assert_eq!(client.read_head().status, 200);
    let reply = site.asked("GET", &sha256_hex(&bytes), &[]);
    assert!(reply.status == 200 && !reply.complete, "{reply:?}");
    assert!(reply.body.len() < bytes.len());
    assert_eq!(site.asked("GET", &sha256_hex(&bytes), &[]).status, 404);
}

#[test]
fn another_site_keeps_no_flight_going() {
    let site = Giver::new();
    let archive = LocalArchive::new("demo").package("tool", "1.0", LARGE);
    site.updated(&archive);
    let (path, blob) = (archive.deb_path("tool"), sha256_hex(archive.deb("tool")));
    site.mirror.put(&format!("/debian/{path}"), File::new(archive.deb("tool")).rate(100_000));
    let mut client = Connection::open(site.addr());
    client.send("GET", &site.path(&path), &[]);
    assert_eq!(client.read_head().status, 200);
    let mut peer = Connection::open(site.peer());
    peer.set_read_timeout(PATIENCE);
    site.ask_on(&mut peer, "GET", &blob, &[]);
    assert_eq!(peer.read_head().status, 200);
    peer.read_body_some(10_000);
    drop(client);
    let rest = peer.read_body_some(LARGE);
    assert!(rest.len() < LARGE - 10_000, "cut off when the site's own clients had left");
    site.wait_landed();
    assert!(site.blobs().len() < 3, "it was not stored");
}

#[test]
fn slots_are_shared_and_clients_need_none() {
    // So slow that no body ends by itself.
    let (site, bytes) = Giver::with(&[("SWARM_UPLOAD_LIMIT", "100kB/s")]).with_package(LARGE);
    let blob = sha256_hex(&bytes);
    let begin = |ip: &str| {
        let mut connection = Connection::open_from(ip, site.peer());
        site.ask_on(&mut connection, "GET", &blob, &[]);
        let head = connection.read_head();
        (connection, head)
    };
    let mut under_way = Vec::new();
    for peer in 0..10 {
        for _ in 0..EACH {
            let (connection, head) = begin(&other(peer));
            assert_eq!(head.status, 200, "{head:?}");
            under_way.push(connection);
        }
        let (_, third) = begin(&other(peer));
        assert_eq!(third.status, 503, "so many for each");
        let retry_after: u64 = third.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=5).contains(&retry_after));
    }
    assert_eq!(site.count(SLOTS_USED), 10 * EACH as u64);
    let (mut turned_away, head) = begin(&other(10));
    assert_eq!(head.status, 503, "so many in all");
    assert_eq!(turned_away.read_body_some(100), b"busy\n");
    // What costs nothing is answered.
    assert_eq!(site.asked_on(&mut turned_away, "HEAD", &blob, &[]).status, 200);
    let etag = format!("\"{blob}\"");
    let same = site.asked_on(&mut turned_away, "GET", &blob, &[("If-None-Match", &etag)]);
    assert_eq!(same.status, 304);
    assert_eq!(site.asked("GET", &sha256_hex(b"another"), &[]).status, 404);
    assert_eq!(site.count(BUSY), 11);
    // Clients of the site have the whole line.
    let archive = LocalArchive::new("demo").package("tool", "1.0", LARGE);
    assert!(site.fetched(&archive.deb_path("tool")).body == bytes);
    assert!(!site.log().contains("ERROR"));

    under_way.truncate(5 * EACH);
    wait_until(PATIENCE, "slots of those who left", || site.count(SLOTS_USED) == 5 * EACH as u64);
    assert_eq!(begin(&other(10)).1.status, 200);
}

#[test]
fn a_balancer_s_peers_have_their_own_slots() {
    let settings = [("SWARM_UPLOAD_LIMIT", "100kB/s"), ("LISTEN_BALANCERS", "127.0.0.1/32")];
    let (site, bytes) = Giver::with(&settings).with_package(LARGE);
    let (balancer, blob) = (Balancer::telling("send-proxy-v2", site.peer()), sha256_hex(&bytes));
    let begin = |ip: &str| {
        let mut connection = Connection::open_from(ip, balancer.addr());
        site.ask_on(&mut connection, "GET", &blob, &[]);
        (connection.read_head().status, connection)
    };
    let under_way: Vec<_> = (0..2 * EACH).map(|number| begin(&other(number / EACH))).collect();
    assert!(under_way.iter().all(|(status, _)| *status == 200), "each has its own");
    for peer in 0..2 {
        assert_eq!(begin(&other(peer)).0, 503, "so many for each");
    }
}

#[test]
fn who_takes_nothing_leaves_the_slot_to_others() {
    let (site, bytes) = Giver::new().with_package(4 * LARGE);
    let blob = sha256_hex(&bytes);
    let begin = |ip: &str| {
        let mut connection = Connection::open_from(ip, site.peer());
        site.ask_on(&mut connection, "GET", &blob, &[]);
        (connection.read_head().status, connection)
    };
    let mut sleepers: Vec<_> = (0..10 * EACH).map(|number| begin(&other(number / EACH))).collect();
    assert!(sleepers.iter().all(|(status, _)| *status == 200));
    assert_eq!(begin(&other(10)).0, 503);
    wait_until(PATIENCE, "a slot", || {
        thread::sleep(Duration::from_secs(1));
        let (status, mut newcomer) = begin(&other(10));
        status == 200 && newcomer.read_body_some(bytes.len()) == bytes
    });
    // One of them lost it for that.
    let rests = sleepers.iter_mut().map(|(_, sleeper)| sleeper.read_body_some(bytes.len()));
    assert!(rests.filter(|rest| rest.len() < bytes.len()).count() > 0);
}

#[test]
fn the_upload_limit_is_kept_and_shared() {
    let (site, bytes) = Giver::with(&[("SWARM_UPLOAD_LIMIT", "400kB/s")]).with_package(LARGE);
    let blob = sha256_hex(&bytes);
    let mut greedy: Vec<_> =
        (0..2).map(|_| Connection::open_from(&other(1), site.peer())).collect();
    for connection in &mut greedy {
        site.ask_on(connection, "GET", &blob, &[]);
        assert_eq!(connection.read_head().status, 200);
    }
    // They read on, as fast as they get something.
    let readers: Vec<_> = greedy
        .into_iter()
        .map(|mut connection| thread::spawn(move || connection.read_body_some(LARGE)))
        .collect();
    wait_until(PATIENCE, "the greedy ones' turns", || site.count(GIVEN) > 300_000);

    let (before, begun) = (site.count(GIVEN), std::time::Instant::now());
    let mut modest = Connection::open_from(&other(2), site.peer());
    let part = site.asked_on(&mut modest, "GET", &blob, &[("Range", "bytes=0-999999")]);
    let (took, given) = (begun.elapsed(), site.count(GIVEN) - before);
    assert_eq!((part.status, part.complete), (206, true));
    assert!(
        took > Duration::from_secs_f64(given as f64 / 400_000.0 * 0.8),
        "{given} B in {took:?}"
    );
    // Half of the line is one peer's, however many bodies the other one has under way; by the bodies
    // it would have been a third.
    assert!((1_500_000..2_500_000).contains(&given), "{given} bytes went out meanwhile");
    assert!(site.count("aptmesh_web_peer_limit_waits_total") > 10);

    // Clients are not held up.
    let archive = LocalArchive::new("demo").package("tool", "1.0", LARGE);
    let (before, reply) = (site.count(GIVEN), site.fetched(&archive.deb_path("tool")));
    assert!(reply.body == bytes);
    assert!(site.count(GIVEN) - before < 4_000_000, "they did not wait behind peers");
    drop(site);
    for reader in readers {
        assert!(reader.join().unwrap().len() < LARGE);
    }
}

#[test]
fn the_upload_limit_is_changed_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("aptmesh.toml");
    std::fs::write(&config, "[swarm]\nupload_limit = \"20kB/s\"\n").unwrap();
    let config_of = config.to_str().unwrap();
    let (site, bytes) = Giver::with(&[("--config", config_of)]).with_package(LARGE);
    let mut peer = Connection::open(site.peer());
    site.ask_on(&mut peer, "GET", &sha256_hex(&bytes), &[]);
    assert_eq!(peer.read_head().status, 200);
    let begun = peer.read_body_some(50_000);
    assert!(site.count(GIVEN) < 1_000_000);
    std::fs::write(&config, "[swarm]\nupload_limit = \"0\"\n").unwrap();
    site.signal("HUP");
    // At the old pace it would take four minutes.
    let rest = peer.read_body_some(LARGE);
    assert!([begun, rest].concat() == bytes);
}

#[test]
fn what_went_through_is_told_since_the_start_and_since_ever() {
    let (mut site, bytes) = Giver::new().with_package(LARGE);
    let (blob, size) = (sha256_hex(&bytes), bytes.len() as u64);
    let archive = LocalArchive::new("demo").package("tool", "1.0", LARGE);
    assert!(site.fetched(&archive.deb_path("tool")).body == bytes);
    assert!(site.asked("GET", &blob, &[]).body == bytes);
    let fetched = site.traffic("session/from_mirrors");
    assert!((size..size + 100_000).contains(&fetched), "{fetched}");
    assert_eq!(site.traffic("session/from_store"), size);
    assert_eq!(site.status()["served_bytes"]["store"], size);
    assert_eq!(site.status()["served_bytes"]["peer"], 0);
    assert_eq!(site.traffic("session/to_peers"), size);
    assert_eq!(site.traffic("session/from_peers") + site.traffic("session/to_replicas"), 0);
    wait_until(PATIENCE, "the sums of all time", || {
        site.status().pointer("/traffic/all_time/to_peers").is_some()
    });
    assert_eq!(site.traffic("all_time/from_mirrors"), fetched);

    site.site.restart();
    wait_until(PATIENCE, "the sums of all time", || {
        site.status().pointer("/traffic/all_time/to_peers").is_some()
    });
    assert_eq!((site.traffic("session/to_peers"), site.traffic("all_time/to_peers")), (0, size));
    assert_eq!(site.traffic("all_time/from_mirrors"), fetched);
    assert!(site.asked("GET", &blob, &[("Range", "bytes=0-999999")]).body == bytes[..1_000_000]);
    assert_eq!(site.traffic("session/to_peers"), 1_000_000);
    assert_eq!(site.traffic("all_time/to_peers"), size + 1_000_000);

    let told = aptmesh()
        .args(["status", "--admin-listen", &site.admin().to_string()])
        .output()
        .expect("the aptmesh binary");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let line = told.lines().find(|line| line.starts_with("given to peers:")).unwrap();
    let columns: Vec<&str> = line.split_whitespace().skip(3).take(4).collect();
    assert_eq!(columns, ["1.0", "MB", "6.0", "MB"], "{told}");
}

#[test]
fn nonsense_is_answered_or_hung_up_on() {
    let (site, bytes) = Giver::new().with_package(100_000);
    let blob = sha256_hex(&bytes);
    let long = format!("/blob/sha256/{}", "a".repeat(100_000));
    let paths = [
        "/blob/sha256/",
        "/blob/sha256",
        "/blob/sha256/../../etc/passwd",
        "/blob/sha1/00",
        "*",
        "//",
        "/blob/sha256/%2e%2e%2f",
        "/flight/zz",
        "/\u{1}",
        "http://elsewhere.example/",
        &long,
        &format!("/blob/sha256/{}", blob.to_uppercase()),
        &format!("/blob/sha256/{blob}/"),
        &format!("/blob/sha256/{blob}?x"),
        &format!("//blob/sha256/{blob}"),
    ];
    for path in paths {
        let token = site.token(&blob);
        let reply = request(site.peer(), "GET", path, &[("Authorization", &token)]);
        let is_known = path.ends_with("?x") || path.contains(&blob.to_uppercase());
        let expected: &[u16] = if is_known { &[200, 403] } else { &[0, 400, 403, 404, 414, 431] };
        assert!(expected.contains(&reply.status), "{path:?}: {} {}", reply.status, reply.reason);
    }
    let ranges = [
        "bytes=",
        "bytes=-0",
        "bytes=5-1",
        "bytes=0-0,2-3",
        "bytes=18446744073709551616-",
        "lines=1-2",
        "bytes=-18446744073709551615",
        "bytes=0-18446744073709551615",
    ];
    for range in ranges {
        let reply = site.asked("GET", &blob, &[("Range", range)]);
        assert!(matches!(reply.status, 200 | 206 | 416), "{range}: {reply:?}");
        assert!(reply.complete && reply.body.len() <= bytes.len(), "{range}");
    }
    let many: String = (0..500).map(|number| format!("X-{number}: y\r\n")).collect();
    for head in [
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1_000_000)),
        format!("GET / HTTP/1.1\r\n{many}\r\n"),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        "\0\u{16}\u{3}\u{1}".repeat(1000),
        // Those who look for peers elsewhere.
        format!("\u{13}BitTorrent protocol{}", "\0".repeat(48)),
        "\u{13}/multistream/1.0.0\n\u{7}/noise\n".to_owned(),
        format!("GET /blob/sha256/{blob} HTTP/1.1\r\nAuthorization: \u{80}\r\n\r\n"),
    ] {
        let mut connection = Connection::open(site.peer());
        connection.send_raw(head.as_bytes());
        let answer = connection.read_head();
        assert!(matches!(answer.status, 0 | 400 | 403 | 431 | 505), "{answer:?}");
    }
    assert!(site.resident_bytes() < 200 << 20);
    assert!(site.asked("GET", &blob, &[]).body == bytes, "others are served as ever");
}

#[test]
fn who_never_ends_a_request_is_hung_up_on() {
    let (site, bytes) = Giver::new().with_package(100_000);
    let mut slow = Connection::open(site.peer());
    slow.set_read_timeout(PATIENCE);
    slow.send_raw(b"GET /blob/sha256/");
    let dripping = thread::spawn(move || {
        // A byte now and then does not help.
        for _ in 0..40 {
            slow.send_raw(b"0");
            thread::sleep(Duration::from_secs(1));
        }
        slow.read_head().status
    });
    assert!(site.asked("GET", &sha256_hex(&bytes), &[]).body == bytes);
    let status = dripping.join().unwrap();
    assert!(matches!(status, 0 | 408), "{status}");
}
