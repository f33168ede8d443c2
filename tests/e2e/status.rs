//! The status page in a real browser, and `aptmesh status` in a real terminal: what they show of a site that
//! is busy, and of one in trouble.

mod parts;

use crate::kit::node::swarm_key;
use crate::kit::*;
use crate::volume::Volume;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

const PATIENCE: Duration = Duration::from_secs(60);
const MB: usize = 1_000_000;
const LEARNT: &str = "aptmesh_engine_learnt_lists_total{outcome=\"learnt\"}";
/// Small enough to be read over a telephone's line.
const PICTURE_MAX: u64 = 300_000;
/// Such as browsers send.
const BROWSER: (&str, &str) = ("Accept", "text/html,application/xhtml+xml");
/// What the DOM has of the page, by the browser's side of the protocol.
pub const WIDTH: &str = "document.documentElement.scrollWidth";
pub const GROUND: &str = "getComputedStyle(document.body).backgroundColor";

fn status(admin: SocketAddr) -> Value {
    serde_json::from_slice(&get(admin, "/status.json").body).expect("JSON")
}

/// What `aptmesh status` prints.
fn terminal(proxy: &Proxy) -> String {
    let admin = proxy.admin().to_string();
    let told = aptmesh().args(["status", "--admin-listen", &admin]).output().expect("aptmesh");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).expect("text")
}

fn url(admin: SocketAddr) -> String {
    format!("http://{admin}/status")
}

/// Two sites that share an archive, whose mirrors are reached through one parent proxy: so they have names.
struct Scene {
    parent: Mirror,
    archive: LocalArchive,
    one: Site,
    two: Site,
}

impl Scene {
    fn new() -> Self {
        let (parent, signer) = (Mirror::start(), Signer::new("ed25519"));
        let sizes = [("curl", MB), ("linux-image", 30 * MB), ("vim", 3 * MB), ("zsh", 2 * MB)];
        let archive =
            sizes.into_iter().fold(LocalArchive::new("stable"), |archive, (name, size)| {
                archive.package(name, "1.0", size)
            });
        // Made a few hours ago; each package makes it a minute later.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let minutes = (now - FIRST_DATE) / 60 - 200 - sizes.len() as u64;
        let archive = archive.later(minutes).signed_inline(&signer);
        archive.publish(&parent, "/debian");
        let text = format!("Suite: edge\nCodename: edge\nDate: {}\nSHA256:\n", date(3));
        let wrong = String::from_utf8(signer.clearsign(&text)).unwrap().replace("edge", "hedge");
        parent.put("/tools/dists/edge/InRelease", File::new(wrong.into_bytes()));
        let key = swarm_key();
        let site = |name: &str, seeds: &[&Site]| {
            let site = Site::build(&key)
                .named(name)
                .seeds(seeds)
                .env("MIRROR_PROXY", format!("http://{}", parent.host()))
                .env("ARCHIVE_KEYRING", signer.keyring().display().to_string())
                .env("STORE_QUOTA", "200MB")
                .start();
            for path in ["dists/stable/InRelease".to_owned(), archive.index_path()] {
                let reply = get(site.addr(), &format!("/mirror.example.org/debian/{path}"));
                assert_eq!(reply.status, 200, "{path}: {}", reply.reason);
            }
            wait_until(PATIENCE, "both lists are learnt", || site.count(LEARNT) >= 2);
            site
        };
        let one = site("berlin", &[]);
        for name in ["curl", "vim", "zsh"] {
            fetch(&one, &archive, name);
        }
        let two = site("hamburg", &[&one]);
        let found = sha256_hex(archive.deb("vim"));
        wait_until(PATIENCE, "the other is found", || !two.node().look_up(&found).is_empty());
        // A mirror that is not slow may be the sooner one.
        archive.publish_with(&parent, "/debian", |path, file| {
            if path.ends_with(".deb") { file.rate(MB as u64) } else { file }
        });
        for name in ["vim", "curl", "zsh", "curl", "vim", "zsh", "vim"] {
            fetch(&two, &archive, name);
        }
        // One that hardly ever answers, and one that shows what nobody signed.
        parent.script("/debian-security/x", vec![Fault::Status(503); 99]);
        let _ = get(two.addr(), "/security.example.org/debian-security/x");
        let refused = get(two.addr(), "/tools.example.org/tools/dists/edge/InRelease");
        assert_eq!(refused.status, 503);
        Self { parent, archive, one, two }
    }

    /// A client that takes its time: two minutes and a half.
    fn begin(&self) -> Connection {
        let path = format!("/debian/{}", self.archive.deb_path("linux-image"));
        self.parent.put(&path, File::new(self.archive.deb("linux-image")).rate(200_000));
        let mut client = Connection::open(self.two.addr());
        client.send("GET", &format!("/mirror.example.org{path}"), &[]);
        client
    }
}

/// When the kit's archives are made, at first.
const FIRST_DATE: u64 = 1_704_153_600;

fn date(days_ago: u64) -> String {
    let at = SystemTime::now() - Duration::from_secs(days_ago * 86_400);
    httpdate::fmt_http_date(at).replace("GMT", "UTC")
}

fn fetch(site: &Site, archive: &LocalArchive, name: &str) {
    let path = archive.deb_path(name);
    let reply = get(site.addr(), &format!("/mirror.example.org/debian/{path}"));
    assert!(reply.status == 200 && reply.body == archive.deb(name), "{}", reply.reason);
    site.wait_landed();
}

/// Where pictures go: into `docs/`, if they are wanted there (`make pictures`).
fn pictures(own: &Path) -> PathBuf {
    match std::env::var_os("APTMESH_WRITE_PICTURES") {
        Some(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures"),
        None => own.to_owned(),
    }
}

/// These words are in it.
fn assert_tells(told: &str, parts: &[&str]) {
    for part in parts {
        assert!(told.contains(part), "{part:?} is not in:\n{told}");
    }
}

/// In light and dark, and on a phone, where nothing is cut off.
fn shoot(chromium: &mut Chromium, page: &str, folder: &Path) {
    let shots = [
        ("status-light.png", 1000, 1650, false),
        ("status-dark.png", 1000, 1650, true),
        ("status-phone.png", 360, 1600, false),
    ];
    let mut grounds = Vec::new();
    for (name, width, height, dark) in shots {
        chromium.open(page, width, height, dark);
        assert_eq!(chromium.evaluate(WIDTH), width, "{name}");
        chromium.screenshot(&folder.join(name));
        grounds.push(chromium.evaluate(GROUND));
        assert!(fs::metadata(folder.join(name)).unwrap().len() < PICTURE_MAX, "{name}");
    }
    assert_ne!(grounds[0], grounds[1]);
}

/// While a mirror gives something, after other sites and the store did.
fn assert_amounts(chromium: &mut Chromium, told: &Value) {
    for time in ["now", "minute"] {
        let rate = told["traffic"][time]["from_mirrors"].as_u64();
        assert!(rate > Some(0), "{time}: {}", told["traffic"]);
    }
    for class in ["store", "peer", "mirror"] {
        let bars = format!("document.querySelectorAll('#history rect.{class}').length");
        assert!(chromium.evaluate(&bars).as_u64() > Some(0), "no bar of class {class}");
    }
    let tiles = chromium
        .evaluate("[...document.querySelectorAll('.tiles b')].map(number => number.textContent)");
    let tiles: Vec<&str> = tiles.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let [spared, hits, peers, now, stored] = tiles[..] else { panic!("{tiles:?}") };
    assert!(spared.ends_with(" MB") && stored.ends_with(" MB"), "{tiles:?}");
    assert!([hits, peers].iter().all(|share| share.ends_with(" %") && *share != "0 %"));
    assert!(now.ends_with("B/s") && now != "0 B/s", "{now}");
}

/// As long ago as [`Scene::new`] says, and as the test takes.
fn assert_age(told: &Value, page: &str, printed: &str) {
    let archives = told["archives"].as_array().unwrap();
    let archive = archives.iter().find(|archive| archive["suite"] == "stable").expect("it");
    let age = archive["age"].as_u64().unwrap();
    assert!((200 * 60..215 * 60).contains(&age), "{age} s");
    for told in [page, printed] {
        let is_told = (20..35).any(|minutes| told.contains(&format!("3 h {minutes} min ago")));
        assert!(is_told, "{told}");
    }
}

#[test]
fn the_pictures_of_a_busy_site_are_what_a_browser_shows() {
    let scene = Scene::new();
    let client = scene.begin();
    wait_until(PATIENCE, "a flight with bytes", || {
        status(scene.two.admin())["running"][0]["bytes"].as_u64() > Some(MB as u64)
    });
    let own = tempfile::tempdir().unwrap();
    let folder = pictures(own.path());
    fs::create_dir_all(&folder).unwrap();
    let mut chromium = Chromium::start();
    shoot(&mut chromium, &url(scene.two.admin()), &folder);
    let (told, text) = (status(scene.two.admin()), chromium.text());
    let process = told["process"].as_str().unwrap();
    let parts = [
        "linux-image_1.0_all.deb",
        "http://mirror.example.org",
        "mirror.example.org/debian stable",
        "tools.example.org/tools edge is not admitted",
        "answered 503",
        "berlin",
        "good",
        "Not all is well",
        process,
        "All else is of this process alone",
        "Nodes in the table",
    ];
    assert_tells(&text, &parts);
    assert_amounts(&mut chromium, &told);
    let printed = terminal(&scene.two);
    let parts = [
        "whole site, ever",
        "spared the mirrors:",
        "linux-image_1.0_all.deb: ",
        "tools.example.org/tools edge: none admitted, REFUSED",
        "signature: good (",
        "answered 503",
        "berlin: in use",
        "1 nodes known",
        "kept for others:",
        " of 200.0 MB",
        "free on the volume:",
        "names known:",
        "duties:",
        "other replicas:",
        "this process:",
        process,
        "state:                   A release file of tools.example.org/tools edge is not admitted",
    ];
    assert_tells(&printed, &parts);
    drop(client);
    assert_age(&told, &text, &printed);
    assert_front_page(&scene, &mut chromium, &folder.join("front.png"));
}

/// Clients see it.
fn assert_front_page(scene: &Scene, chromium: &mut Chromium, picture: &Path) {
    chromium.open(&format!("http://{}/", scene.two.addr()), 900, 700, false);
    chromium.screenshot(picture);
    let text = chromium.text();
    for part in ["mirror.example.org", "berlin", "linux-image", &scene.one.ip] {
        assert!(!text.contains(part), "{part}");
    }
    assert_tells(&text, &["Spared the mirrors", "listen.admin"]);
    assert!(chromium.complaints().is_empty(), "{:?}", chromium.complaints());
}

#[test]
fn numbers_move_without_a_reload() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let path = "/debian/pool/main/s/slow/slow_1.0.orig.tar.xz";
    // For minutes: as long as it may take a browser to start.
    mirror.put(path, File::new(noise(1, 20 * MB)).rate(100_000));
    let mut client = Connection::open(proxy.addr());
    client.send("GET", &proxy.url_for(&mirror, path), &[]);
    wait_until(PATIENCE, "a flight", || status(proxy.admin())["flights"] == 1);
    let mut chromium = Chromium::start();
    chromium.open(&format!("http://{}/", proxy.admin()), 1000, 800, false);
    assert_eq!(chromium.evaluate("location.pathname"), "/status");
    chromium.evaluate("void (window.isSame = true)");
    let mut bar = || {
        let value = chromium.evaluate("document.querySelector('#flights progress')?.value ?? 0");
        value.as_f64().unwrap()
    };
    let first = bar();
    wait_until(PATIENCE, "the bar to move", || bar() > first);
    assert_eq!(chromium.evaluate("window.isSame"), true);
    assert_eq!(chromium.evaluate("document.getElementById('lost').hidden"), true);
    assert!(chromium.complaints().is_empty(), "{:?}", chromium.complaints());

    // A cache that is away is told of, and its numbers are not taken for new ones.
    proxy.kill9();
    wait_until(PATIENCE, "the loss is told", || {
        chromium.evaluate("document.getElementById('lost').hidden") == false
    });
}

#[test]
fn without_scripts_the_page_is_loaded_again() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let path = "/debian/pool/main/s/small/small_1.0.orig.tar.xz";
    mirror.put(path, File::new(noise(1, MB)));
    let mut chromium = Chromium::start();
    chromium.disable_scripts();
    chromium.open(&url(proxy.admin()), 1000, 800, false);
    assert!(chromium.text().contains("None was asked since the start."), "{}", chromium.text());
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, path)).status, 200);
    wait_until(PATIENCE, "new numbers", || chromium.text().contains(&mirror.host()));
}

#[test]
fn what_others_named_is_text() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let evil = "<img src=x onerror=alert(1)><script>document.title='taken'</script>";
    let text = format!("Suite: {evil}\nCodename: {evil}\nDate: {}\nSHA256:\n", date(1));
    mirror.put("/evil/dists/evil/Release", File::new(text.into_bytes()));
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, "/evil/dists/evil/Release")).status, 200);
    let path = "/evil/pool/%3Cscript%3Ealert(1)%3C/script%3E'&quot;&lt;_1.0.orig.tar.xz";
    mirror.put(path, File::new(noise(2, MB)).rate(20_000));
    let mut client = Connection::open(proxy.addr());
    client.send("GET", &proxy.url_for(&mirror, path), &[]);
    wait_until(PATIENCE, "a flight", || status(proxy.admin())["flights"] == 1);
    let reply = get(proxy.admin(), "/status");
    let page = String::from_utf8(reply.body.clone()).unwrap();
    assert!(page.contains("&lt;img src=x"), "{page}");
    assert!(!page.contains("<img") && page.matches("<script").count() == 1, "{page}");
    let policy = reply.header("content-security-policy").unwrap();
    for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule) && !policy.contains("unsafe"), "{policy}");
    }
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let mut chromium = Chromium::start();
    chromium.open(&url(proxy.admin()), 360, 800, true);
    let live = chromium.evaluate("document.querySelectorAll('img, section script').length");
    assert_eq!(live, 0);
    assert_eq!(chromium.evaluate("document.title"), "aptmesh status");
    assert_eq!(chromium.evaluate(WIDTH), 360);
    assert!(chromium.text().contains("onerror"));
    assert!(chromium.complaints().is_empty(), "{:?}", chromium.complaints());
}

#[test]
fn private_archives_appear_nowhere() {
    let (mirror, proxy) = (Mirror::start_at("127.0.0.77"), Proxy::start());
    let path = "/secret/dists/hush/InRelease";
    mirror.put(path, File::new(&b"Suite: hush\n"[..]));
    let secret = ("Authorization", "Basic c2VjcmV0OnNlY3JldA==");
    let target = proxy.url_for(&mirror, path);
    assert_eq!(request(proxy.addr(), "GET", &target, &[secret]).status, 200);
    assert_eq!(get(proxy.addr(), &format!("{target}?token=secret")).status, 200);
    mirror.stop();
    assert_ne!(request(proxy.addr(), "GET", &target, &[secret]).status, 200);
    for page in ["/status", "/status.json"] {
        let told = String::from_utf8(get(proxy.admin(), page).body).unwrap();
        for part in ["127.0.0.77", "hush", "secret"] {
            assert!(!told.contains(part), "{page}: {part}");
        }
    }
}

#[test]
fn a_watched_cache_is_told_of_again_and_again() {
    let proxy = Proxy::start();
    let admin = proxy.admin().to_string();
    let binary = aptmesh().get_program().to_string_lossy().into_owned();
    let own = tempfile::tempdir().unwrap();
    let typescript = own.path().join("typescript");
    // Whoever runs tests in the background has them ignore it.
    let command =
        format!("env --default-signal=INT {binary} status --watch --admin-listen {admin}");
    let mut watching = Command::new("script")
        .args(["--quiet", "--flush", "--command", &command])
        .arg(&typescript)
        // What is said to the tests is no setting.
        .env_remove("APTMESH_WRITE_PICTURES")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("script");
    let told = || String::from_utf8_lossy(&fs::read(&typescript).unwrap_or_default()).into_owned();
    wait_until(PATIENCE, "a second look", || told().matches("\u{1b}[H\u{1b}[2J").count() >= 2);
    assert!(told().contains("all is well"), "{}", told());
    // What was on the terminal before is its reader's.
    assert!(!told().contains("\u{1b}[3J"));
    proxy.kill9();
    wait_until(PATIENCE, "its loss", || told().contains("no aptmesh answers"));
    // Ctrl-C, as a terminal has it.
    use std::io::Write as _;
    watching.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    wait_until(PATIENCE, "its end", || watching.try_wait().unwrap().is_some());

    // Without a terminal it is plain, and ends with its reader.
    let proxy = Proxy::start();
    let mut plain = aptmesh()
        .args(["status", "--watch", "--admin-listen", &proxy.admin().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(plain.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert!(line.starts_with("aptmesh 0."), "{line:?}");
    thread::sleep(Duration::from_millis(100));
    drop(out);
    wait_until(PATIENCE, "its end", || plain.try_wait().unwrap().is_some());
    assert!(plain.wait().unwrap().success());
}

#[test]
fn what_answers_instead_of_a_cache_is_bounded_and_does_nothing_to_a_terminal() {
    let asked_at = |admin: SocketAddr| {
        let admin = admin.to_string();
        let told = aptmesh().args(["status", "--admin-listen", &admin]).output().unwrap();
        assert_eq!(told.status.code(), Some(1));
        String::from_utf8_lossy(&told.stderr).into_owned()
    };
    let endless = Mirror::start();
    endless.put("/status.json", File::new(noise(7, 9 * MB)));
    let told = asked_at(endless.addr());
    assert!(told.contains("its answer is longer than"), "{told}");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let hostile = thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all("HTTP/1.1 503 no\r\n\r\n\x1b[2Jcleared\u{9b}2J".as_bytes()).unwrap();
    });
    let told = asked_at(address);
    hostile.join().unwrap();
    assert!(told.contains("cleared"), "{told}");
    assert!(!told.contains('\u{1b}') && !told.contains('\u{9b}'), "{told:?}");
}

#[test]
fn a_volume_that_takes_nothing_is_told_in_words() {
    let (mirror, volume) = (Mirror::start(), Volume::of_megabytes(16));
    let index = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", index.path().join("index.sqlite").display());
    let proxy = Proxy::build().data(volume.path()).arg("--index").arg(url).start();
    assert_eq!(status(proxy.admin())["troubles"], serde_json::json!([]));
    let page = request(proxy.addr(), "GET", "/", &[BROWSER]);
    assert!(String::from_utf8_lossy(&page.body).contains("All is well."));
    let _filler = volume.fill();
    let path = "/debian/pool/main/b/big/big_1.0.orig.tar.xz";
    mirror.put(path, File::new(noise(3, MB)));
    assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, path)).body, noise(3, MB));
    wait_until(PATIENCE, "it is told", || {
        status(proxy.admin())["troubles"][0]["what"].to_string().contains("the volume is full")
    });
    let page = String::from_utf8(get(proxy.admin(), "/status").body).unwrap();
    assert!(page.contains("apt gets everything, but what is not stored"), "{page}");
    // Clients are told that, and not where the volume is.
    let page = request(proxy.addr(), "GET", "/", &[BROWSER]).body;
    let page = String::from_utf8(page).unwrap();
    let place = volume.path().display().to_string();
    assert!(page.contains("Not storing") && !page.contains(&place), "{page}");
}

#[test]
fn a_mirror_in_trouble_is_told_of_with_what_that_means() {
    let (mirror, proxy) = (Mirror::start(), Proxy::start());
    let path = "/debian/pool/main/t/tool/tool_1.0.orig.tar.xz";
    mirror.stop();
    assert_ne!(get(proxy.addr(), &proxy.url_for(&mirror, path)).status, 200);
    let told = status(proxy.admin());
    let account = &told["mirrors"][0];
    assert_eq!(account["url"], format!("http://{}", mirror.host()));
    assert_eq!(account["state"], "away", "{account}");
    assert!(account["failures"].as_u64() > Some(0) && account["last_failure"].is_string());
    let page = String::from_utf8(get(proxy.admin(), "/status").body).unwrap();
    assert!(page.contains("can not be reached") && page.contains("apt gets what is stored"));
    // One that is back is in use again.
    mirror.restart();
    mirror.put(path, File::new(noise(4, MB)));
    wait_until(PATIENCE, "it is back", || {
        let reply = get(proxy.addr(), &proxy.url_for(&mirror, path));
        reply.status == 200 && status(proxy.admin())["mirrors"][0]["state"] == "well"
    });
    assert_eq!(status(proxy.admin())["troubles"], serde_json::json!([]));
}
