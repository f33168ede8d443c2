//! What a site tells the swarm of itself.

use crate::kit::node::swarm_key;
use crate::kit::{
    LocalArchive, Node, Postgres, Proxy, Reply, Site, aptmesh, fleet, get, request, sha256_hex,
    wait_until,
};
use crate::swarm::Swarm;
use aptmesh::content::digest::Sha256;
use aptmesh::content::filter::{Delta, Filter};
use aptmesh::content::swarm_key::SwarmKey;
use aptmesh::swarm::token::Secret;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LONG: Duration = Duration::from_secs(60);
const MB: usize = 1024 * 1024;
/// What is announced by itself, and what is not.
const PACKAGES: [(&str, usize); 3] = [("large", 2 * MB), ("larger", 3 * MB), ("small", 100_000)];

/// What stands for a blob in a filter.
pub fn entry(key: &str, blob: &str) -> u64 {
    let key: SwarmKey = key.parse().unwrap();
    key.dht_key(&Sha256::from_hex(blob).unwrap()).short()
}

/// Asks a peer port for the filter, as other sites do.
fn ask_filter(key: &str, peer: SocketAddr, query: &str, more: &[(&str, &str)]) -> Reply {
    let secret = Secret::of_swarm(&key.parse().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let token = secret.token(&Sha256::of(b"filter"), now);
    let fields = [&[("Authorization", token.as_str())], more].concat();
    request(peer, "GET", &format!("/filter{query}"), &fields)
}

/// The filter, if there is one.
pub fn filter(key: &str, site: &Site) -> Option<Filter> {
    let reply = ask_filter(key, site.peer(), "", &[]);
    match reply.status {
        200 => Some(Filter::parse(&reply.body).expect("a filter")),
        404 => None,
        status => panic!("{status} {}", reply.reason),
    }
}

fn wait_in_filter(swarm: &Swarm, site: &Site, names: &[&str]) {
    let entries: Vec<u64> = names.iter().map(|name| entry(&swarm.key, &swarm.blob(name))).collect();
    wait_until(LONG, "them in the filter", || {
        filter(&swarm.key, site).is_some_and(|it| entries.iter().all(|entry| it.has(*entry)))
    });
}

/// Whether none of these is in a filter, as far as that can tell: one in 256 seems to be, so three are
/// asked for at least, and one may.
fn lacks(filter: &Filter, key: &str, blobs: &[String]) -> bool {
    assert!(blobs.len() >= 3);
    blobs.iter().filter(|blob| filter.has(entry(key, blob))).count() <= 1
}

fn wait_out_of_filter(swarm: &Swarm, site: &Site, names: &[&str]) {
    let blobs: Vec<String> = names.iter().map(|name| swarm.blob(name)).collect();
    wait_until(LONG, "them out of the filter", || {
        filter(&swarm.key, site).is_some_and(|it| lacks(&it, &swarm.key, &blobs))
    });
}

/// Has a site remove all that it stores, beside it or without it.
fn evict_all(proxy: &Proxy) {
    let run = aptmesh()
        .args(["evict", "--bytes", "100GiB", "--data"])
        .arg(proxy.data())
        .env("APTMESH_STORE_MIN_FREE", "0")
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn two_sites_find_each_other() {
    let key = swarm_key();
    let one = Site::start(&key, &[]);
    let mut other = Site::start(&key, &[&one]);
    let know_each_other = |one: &Site, other: &Site| {
        one.node().peers() == [[other.peer_url()]] && other.node().peers() == [[one.peer_url()]]
    };
    wait_until(LONG, "both to know each other", || know_each_other(&one, &other));
    let status = get(one.admin(), "/status.json");
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    assert_eq!(status["swarm"]["cards"], 1);
    wait_until(LONG, "the metrics of the node", || one.metric("aptmesh_dht_cards") == 1.0);

    // Who stops says so: nobody is sent there any more.
    other.signal("TERM");
    other.wait_exit(LONG);
    wait_until(LONG, "the site to have left", || one.node().peers() == [[""; 0]]);
    other.restart();
    wait_until(LONG, "both to know each other again", || know_each_other(&one, &other));
}

#[test]
fn without_a_key_there_is_no_node() {
    let site = Site::start("", &[]);
    for closed in [site.dht(), site.api(), site.peer()] {
        assert!(TcpStream::connect(closed).is_err(), "{closed}");
    }
    let status = get(site.admin(), "/status.json");
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    assert!(status["swarm"].is_null());
}

#[test]
fn a_node_that_can_not_listen_is_an_error_that_names_the_setting() {
    let site = Site::start(&swarm_key(), &[]);
    for (setting, taken) in [("LISTEN_DHT", site.dht()), ("LISTEN_SIDECAR", site.api())] {
        let data = tempfile::tempdir().unwrap();
        let run = aptmesh()
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .env("APTMESH_LISTEN_PEER", "127.0.0.1:0")
            .env("APTMESH_LISTEN_DHT", "127.0.0.1:0")
            .env("APTMESH_LISTEN_SIDECAR", "127.0.0.1:0")
            .env(format!("APTMESH_{setting}"), taken.to_string())
            .env("APTMESH_SWARM_KEY", swarm_key())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr).to_string();
        let name = setting.to_lowercase().replacen('_', ".", 1);
        assert!(!run.status.success() && said.contains(&name), "{said}");
    }
}

#[test]
fn what_a_list_names_is_told_until_it_is_gone() {
    let swarm = Swarm::of(&PACKAGES);
    let one = swarm.stocked(&[], &["large", "small"]);
    let other = swarm.site(&[&one]);
    swarm.wait_found(&other, "large", &[&one]);
    wait_in_filter(&swarm, &one, &["large", "small"]);
    assert_eq!(other.node().look_up(&swarm.blob("small")), [""; 0], "too small by itself");
    let generation = filter(&swarm.key, &one).unwrap().generation();
    wait_until(LONG, "the card to tell of the filter", || {
        other.node().get("/peers")["peers"][0]["filter"] == generation
    });

    // Of those that are new, others hear within seconds, and what is gone is gone.
    swarm.fetch(&one, "larger");
    swarm.wait_found(&other, "larger", &[&one]);
    // Now, and not only while it was being fetched.
    wait_until(LONG, "both to be announced", || one.node().count("announced") == 2);
    evict_all(&one);
    swarm.wait_found(&other, "larger", &[]);
    swarm.wait_found(&other, "large", &[]);
    wait_out_of_filter(&swarm, &one, &["large", "larger", "small"]);
}

#[test]
fn a_peer_is_given_what_changed_since_it_asked_last() {
    let swarm = Swarm::of(&PACKAGES);
    // More than a delta is worth sending for.
    let many: Vec<(String, usize)> = (0..40).map(|it| (format!("p{it}"), 1_000)).collect();
    let archive = many
        .iter()
        .fold(swarm.archive.clone(), |archive, (name, size)| archive.package(name, "1.0", *size));
    let swarm = Swarm { archive, ..swarm };
    swarm.publish(|file| file);
    let names: Vec<&str> = many.iter().map(|(name, _)| name.as_str()).collect();
    let one = swarm.stocked(&[], &names);
    wait_in_filter(&swarm, &one, &names);
    let mut mine = filter(&swarm.key, &one).unwrap();
    let etag = format!("\"{}\"", mine.generation());
    let same = ask_filter(&swarm.key, one.peer(), "", &[("If-None-Match", &etag)]);
    assert_eq!((same.status, same.body.len()), (304, 0));
    assert_eq!(same.header("etag"), Some(etag.as_str()));
    // It is bound as blobs are, but it is none.
    let given = || one.count("aptmesh_engine_given_bytes_total{to=\"peer\"}");
    let (before, whole) = (given(), ask_filter(&swarm.key, one.peer(), "", &[]));
    assert_eq!(whole.header("content-length"), Some(whole.body.len().to_string().as_str()));
    wait_until(LONG, "it is sent", || one.count("aptmesh_web_requests{surface=\"peer\"}") == 0);
    assert_eq!(given(), before);

    swarm.fetch(&one, "large");
    wait_in_filter(&swarm, &one, &["large"]);
    let query = format!("?since={}", mine.generation());
    let reply = ask_filter(&swarm.key, one.peer(), &query, &[("If-None-Match", &etag)]);
    let delta = Delta::parse(&reply.body).expect("a delta");
    assert!(mine.apply(&delta) && mine.has(entry(&swarm.key, &swarm.blob("large"))));
    assert_eq!(reply.header("etag"), Some(format!("\"{}\"", mine.generation()).as_str()));
    // Who has what nobody knows any more gets all.
    let reply = ask_filter(&swarm.key, one.peer(), "?since=17", &[]);
    assert!(Filter::parse(&reply.body).is_some());

    // Nobody else gets anything.
    assert_eq!(request(one.peer(), "GET", "/filter", &[]).status, 403);
    assert_eq!(ask_filter(&swarm_key(), one.peer(), "", &[]).status, 403);
}

#[test]
fn what_is_private_or_in_no_list_is_not_told() {
    let names = ["one", "two", "three"];
    let sizes = names.map(|name| (name, 2 * MB));
    let swarm = Swarm::of(&[&sizes[..], &[("public", 2 * MB)]].concat());
    let unlisted = names.into_iter().fold(LocalArchive::new("other"), |archive, name| {
        archive.package(name, "unlisted", 2 * MB)
    });
    unlisted.publish(&swarm.mirror, "/other");
    let one = swarm.site(&[]);
    let other = swarm.site(&[&one]);
    let basic = ("Authorization", "Basic bWU6c2VjcmV0");
    for name in names {
        let private = one.url_for(&swarm.mirror, &swarm.path(name));
        assert_eq!(request(one.addr(), "GET", &private, &[basic]).status, 200);
        let path = format!("/other/{}", unlisted.deb_path(name));
        assert_eq!(get(one.addr(), &one.url_for(&swarm.mirror, &path)).status, 200);
    }
    one.wait_landed();
    swarm.fetch(&one, "public");
    swarm.wait_found(&other, "public", &[&one]);
    wait_in_filter(&swarm, &one, &["public"]);
    let told = filter(&swarm.key, &one).unwrap();
    let private = names.map(|name| swarm.blob(name));
    let unlisted = names.map(|name| sha256_hex(unlisted.deb(name)));
    for blobs in [&private, &unlisted] {
        assert!(lacks(&told, &swarm.key, blobs));
        assert!(blobs.iter().all(|blob| other.node().look_up(blob).is_empty()));
    }
    assert!(blob_path(&one, &unlisted[0]).exists(), "it is stored");
}

#[test]
fn a_site_that_announces_nothing_tells_nobody_of_itself() {
    let swarm = Swarm::of(&PACKAGES);
    let silent = swarm.site_with(&[], &[("SWARM_ANNOUNCE", "false")]);
    let other = swarm.site(&[&silent]);
    swarm.fetch(&silent, "large");
    // The other way round all is well: so it had the time.
    swarm.fetch(&other, "larger");
    swarm.wait_found(&silent, "larger", &[&other]);
    assert_eq!(other.node().look_up(&swarm.blob("large")), [""; 0]);
    assert_eq!(other.metric("aptmesh_dht_offered_total"), 0.0);
    assert_eq!(other.node().peers(), [[""; 0]], "a card without a URL");
    assert_eq!(other.node().get("/peers")["peers"][0]["filter"], 0);
    assert!(TcpStream::connect(silent.peer()).is_err());
}

#[test]
fn a_site_that_announces_nothing_gives_others_nothing_though_it_has_replicas() {
    let server = Postgres::start();
    let (url, swarm) = (fleet::migrated(&server), Swarm::of(&PACKAGES));
    let settings = [
        ("SWARM_ANNOUNCE", "false"),
        ("INDEX_URL", url.as_str()),
        ("PROXY_ADVERTISE", "http://127.0.0.1:9979"),
    ];
    let silent = swarm.site_with(&[], &settings);
    swarm.fetch(&silent, "large");
    let secret = Secret::of_swarm(&swarm.key.parse().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let blob = swarm.blob("large");
    let token = secret.token(&Sha256::from_hex(&blob).unwrap(), now);
    let path = format!("/blob/sha256/{blob}");
    let reply = request(silent.peer(), "GET", &path, &[("Authorization", &token)]);
    assert_eq!(reply.status, 403, "that port is for its replicas");
    assert_eq!(ask_filter(&swarm.key, silent.peer(), "", &[]).status, 403);
}

#[test]
fn after_a_restart_it_goes_on_and_what_is_gone_is_withdrawn() {
    let lost = ["one", "two", "three"];
    let sizes = lost.map(|name| (name, 2 * MB));
    let swarm = Swarm::of(&[&sizes[..], &[("kept", 2 * MB)]].concat());
    let mut one = swarm.stocked(&[], &["one", "two", "three", "kept"]);
    let other = swarm.site(&[&one]);
    swarm.wait_found(&other, "kept", &[&one]);
    wait_until(LONG, "all to be announced", || one.node().count("announced") == 4);
    one.kill9();
    for name in lost {
        std::fs::remove_file(blob_path(&one, &swarm.blob(name))).unwrap();
    }
    one.restart();
    // The index is told by the walk over the volume.
    wait_until(LONG, "what is gone to be withdrawn", || one.node().count("announced") == 1);
    for name in lost {
        swarm.wait_found(&other, name, &[]);
    }
    swarm.wait_found(&other, "kept", &[&one]);
    wait_in_filter(&swarm, &one, &["kept"]);
    wait_out_of_filter(&swarm, &one, &lost);
}

fn blob_path(proxy: &Proxy, digest: &str) -> std::path::PathBuf {
    let is_it =
        |path: &&std::path::PathBuf| path.to_string_lossy().replace('/', "").ends_with(digest);
    proxy.blobs().iter().find(is_it).expect("the blob").clone()
}

#[test]
fn a_site_of_two_nodes_is_alone_as_long_as_it_finds_no_other_site() {
    let server = Postgres::start();
    let (url, key) = (fleet::migrated(&server), swarm_key());
    // Nobody is there.
    let seed = "127.0.0.1:9";
    let one = Site::build(&key).env("INDEX_URL", &url).env("SWARM_BOOTSTRAP", seed).start();
    let two = Node::build(&key).env("INDEX_URL", &url).env("SWARM_BOOTSTRAP", seed).start();
    let tells = |connected: f64, others: f64| {
        let of_two =
            ["nodes", "others"].map(|of| two.metric(&format!("aptmesh_dht_connected_{of}")));
        let of_one =
            ["nodes", "others"].map(|of| one.metric(&format!("aptmesh_dht_connected_{of}")));
        (of_one, of_two) == ([connected, others], [connected, others])
    };
    wait_until(LONG, "the nodes to have found each other, and nobody else", || tells(1.0, 0.0));
    let is_trouble = || {
        let status = get(one.admin(), "/status.json");
        String::from_utf8_lossy(&status.body).contains("no other site is found yet")
    };
    assert!(is_trouble());
    // Which is none of a balancer's business.
    assert_eq!(get(two.admin(), "/readyz").status, 200);

    let _other = Site::build(&key).bootstrap(&[one.dht(), two.dht()]).start();
    wait_until(LONG, "both to have found another site", || tells(2.0, 1.0) && !is_trouble());
}

#[test]
fn the_nodes_of_a_site_find_each_other_in_its_database_and_share_the_work() {
    let server = Postgres::start();
    let url = fleet::migrated(&server);
    let packages: Vec<(String, usize)> = (0..40).map(|it| (format!("p{it}"), 1_000)).collect();
    let packages: Vec<(&str, usize)> =
        packages.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let swarm = Swarm::of(&packages);
    let proxy = Proxy::build().env("APTMESH_INDEX_URL", &url).start();
    for path in ["dists/demo/Release".to_owned(), swarm.archive.index_path()] {
        get(proxy.addr(), &proxy.url_for(&swarm.mirror, &format!("/debian/{path}")));
    }
    for (name, _) in &packages {
        get(proxy.addr(), &proxy.url_for(&swarm.mirror, &swarm.path(name)));
    }
    proxy.wait_landed();

    let node = || {
        Node::build(&swarm.key).env("INDEX_URL", &url).env("SWARM_ANNOUNCE_MIN_SIZE", "1").start()
    };
    let (one, mut two) = (node(), node());
    one.wait_connected(1);
    two.wait_connected(1);
    // Nobody could fetch what it announces, so it has no share.
    let mute = Node::build(&swarm.key).env("INDEX_URL", &url).env("SWARM_ADVERTISE", "").start();
    mute.wait_connected(2);
    assert!(mute.log().contains("swarm.advertise"));
    let announced = || (one.count("announced"), two.count("announced"));
    // The packages and the two lists.
    wait_until(LONG, "the work to be shared", || {
        let (by_one, by_two) = announced();
        by_one + by_two == 42 && by_one > 8 && by_two > 8
    });

    assert_eq!(mute.count("announced"), 0);
    drop(mute);

    // Another site finds each at one of them.
    let stranger = Node::start(&swarm.key, &[&one]);
    let (urls, blobs) = ([one.url(), two.url()], packages.iter().map(|it| swarm.blob(it.0)));
    for blob in blobs {
        wait_until(LONG, "it at one of the two", || {
            let found = stranger.look_up(&blob);
            found.len() == 1 && urls.contains(&found[0])
        });
    }
    wait_until(LONG, "one filter of both", || {
        let told = stranger.get("/peers");
        let with_url = |peer: &&serde_json::Value| peer["urls"][0].is_string();
        let peers = told["peers"].as_array().unwrap().iter().filter(with_url);
        let filters: Vec<_> = peers.map(|peer| peer["filter"].clone()).collect();
        filters.len() == 2 && filters[0] == filters[1] && filters[0] != 0
    });

    two.kill9();
    wait_until(2 * LONG, "all to be taken over", || one.count("announced") == 42);
    let blob = swarm.blob("p0");
    wait_until(LONG, "it at the one that is left", || stranger.look_up(&blob).contains(&one.url()));
    two.restart();
    wait_until(2 * LONG, "the work to be shared again", || {
        let (by_one, by_two) = (one.count("announced"), two.count("announced"));
        by_one + by_two == 42 && by_one > 8 && by_two > 8
    });
}
