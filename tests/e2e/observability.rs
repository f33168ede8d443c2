//! What operators see, with the programs that they see it with: a real Prometheus that scraped two busy sites
//! has data for every panel of the dashboards, and Chromium shows what they look like with it.

pub mod board;
mod drawing;

use crate::groups;
use crate::kit::fleet::migrated;
use crate::kit::otlp::{Otlp, Way};
use crate::kit::prometheus::Prometheus;
use crate::kit::*;
use crate::swarm::{FROM_PEERS, PATIENCE, Swarm};
use board::{Panel, View};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MB: usize = 1024 * 1024;
const SERVED: &str = "aptmesh_engine_served_bytes_total";
const FROM_MIRRORS: &str = "aptmesh_mirror_received_bytes_total";
const SAVED: &str = "Not fetched from mirrors";
const BOARDS: [&str; 4] = ["fleet", "site", "swarm", "mirrors"];
/// Has the handbook's pictures drawn: `make pictures`.
const WRITE: &str = "APTMESH_WRITE_PICTURES";
/// What the handbook shows of each dashboard: the rows that a reader looks at first.
const SHOWN: [(&str, &str, &[&str]); 4] = [
    ("fleet", ".*", &["Savings", "Health", "Sites and instances"]),
    ("site", "north", &["Savings", "Health", "Requests"]),
    ("swarm", ".*", &["Savings", "Health", "Finding"]),
    ("mirrors", ".*", &["Now", "Answers", "Verification"]),
];
/// Empty when all is well: `alerts.rs` sees it filled.
const EMPTY: [&str; 1] = ["Alerts"];
/// Small enough to be read over a telephone's line.
const PICTURE_MAX: u64 = 300_000;
/// Two looks of Prometheus.
const LOOKS: Duration = Duration::from_secs(2);

/// Two sites, each on an index of another make, with one archive that two mirrors have. The northern one has one more
/// process, a node by itself, under a job of its own, as those of compose.yaml and of the chart.
struct Busy {
    swarm: Swarm,
    other: Mirror,
    north: Site,
    south: Site,
    node: Node,
    names: Vec<String>,
    /// How long each act is.
    act: Duration,
    _server: Postgres,
    _collector: Otlp,
}

impl Busy {
    fn new(act: Duration) -> Self {
        let sizes = (0..48).map(|number| match number % 6 {
            0 => 5 * MB / 2,
            1 => 3 * MB / 2,
            2 => 200_000,
            _ => 9_000 + number * 100,
        });
        let packages: Vec<(String, usize)> =
            sizes.enumerate().map(|(number, size)| (format!("tool{number}"), size)).collect();
        let listed: Vec<(&str, usize)> =
            packages.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let (swarm, other) = (Swarm::of(&listed), Mirror::start_at("127.0.0.2"));
        swarm.archive.publish(&other, "/debian");
        // Mirrors that are not slow may be sooner than other sites.
        swarm.publish(|file| file.rate(4 * MB as u64));
        let mirrors =
            [&swarm.mirror, &other].map(|mirror| format!("http://{}/debian", mirror.host()));
        let group = format!("demo {} {}", mirrors[0], mirrors[1]);
        let server = Postgres::start();
        let url = migrated(&server);
        let settings = [
            ("ARCHIVE_GROUPS", group.as_str()),
            ("MIRROR_TIMEOUT", "2s"),
            ("MIRROR_RECHECK_AFTER", "1s"),
            ("STORE_QUOTA", "1GiB"),
            ("SWARM_UPLOAD_LIMIT", "20MiB"),
            ("PREFETCH_RATE", "20MiB"),
        ];
        let collector = Otlp::start(Way::Http);
        let set = |build: site::Build| {
            settings.iter().fold(build, |build, (name, value)| build.env(name, *value))
        };
        let north = set(Site::build(&swarm.key)).env("INDEX_URL", url).start();
        let south = set(Site::build(&swarm.key)).seeds(&[&north]);
        let south = south.variables(collector.variables()).start();
        let node = Node::build(&swarm.key).env("SWARM_BOOTSTRAP", north.dht().to_string()).start();
        let names = packages.into_iter().map(|(name, _)| name).collect();
        Self {
            swarm,
            other,
            north,
            south,
            node,
            names,
            act,
            _server: server,
            _collector: collector,
        }
    }

    /// Under the names that the handbook is to have.
    fn targets(&self) -> Vec<(std::net::SocketAddr, String)> {
        let target = |site: &Site, name: &str| {
            (site.admin(), format!("site: {name}, instance: cache.{name}.example.org"))
        };
        let node = "site: north, job: aptmesh-dht, instance: node.north.example.org".to_owned();
        vec![target(&self.north, "north"), target(&self.south, "south"), (self.node.admin(), node)]
    }

    /// What a day may bring, in five acts.
    fn live(&self) {
        let (first, rest) = self.names.split_at(30);
        // A new site learns, and fetches.
        self.swarm.learn(&self.north);
        self.fetch(&self.north, first);
        // What it has it gives, again and again.
        self.serve(&self.north, first, 4);
        // Another site comes, and takes it from the first.
        self.swarm.learn(&self.south);
        self.swarm.wait_found(&self.south, &first[0], &[&self.north]);
        thread::scope(|scope| {
            scope.spawn(|| self.serve(&self.north, first, 3));
            self.fetch(&self.south, first);
        });
        // The first mirror is away; the second one has all, and the sites help each other.
        self.swarm.mirror.stop();
        thread::scope(|scope| {
            scope.spawn(|| self.serve(&self.north, first, 3));
            self.fetch(&self.south, &rest[..9]);
        });
        self.swarm.mirror.restart();
        thread::scope(|scope| {
            scope.spawn(|| self.fetch(&self.north, rest));
            self.serve(&self.south, first, 3);
        });
    }

    /// Clients of a site install what it does not have yet, spread over an act.
    fn fetch(&self, site: &Site, names: &[String]) {
        for (number, name) in names.iter().enumerate() {
            self.install(site, name);
            if number % 4 == 0 {
                self.update(site);
            }
            thread::sleep(self.act / u32::try_from(names.len()).unwrap());
        }
    }

    /// So many clients at a time install what it has, for an act; they come in waves.
    fn serve(&self, site: &Site, names: &[String], clients: usize) {
        let begun = Instant::now();
        let client = |first: usize| {
            for (number, name) in names.iter().cycle().skip(first).enumerate() {
                self.install(site, name);
                if number % 4 == 0 {
                    self.update(site);
                }
                if begun.elapsed() >= self.act {
                    break;
                }
                let wave = (begun.elapsed().as_secs_f64() / 3.0).sin() + 1.3;
                thread::sleep(self.act.div_f64(100.0).mul_f64(wave));
            }
        };
        thread::scope(|scope| {
            for number in 0..clients {
                scope.spawn(move || client(number * 7));
            }
        });
    }

    fn install(&self, site: &Site, name: &str) {
        let url = site.url_for(&self.swarm.mirror, &self.swarm.path(name));
        let reply = get(site.addr(), &url);
        assert!(reply.status == 200 && reply.complete, "{name}: {}", reply.reason);
        assert!(reply.body == self.swarm.archive.deb(name), "other bytes of {name}");
    }

    fn update(&self, site: &Site) {
        let url = site.url_for(&self.swarm.mirror, groups::RELEASE);
        let reply = request(site.addr(), "GET", &url, &[("Cache-Control", "max-age=0")]);
        assert_eq!(reply.status, 200, "{}", reply.reason);
    }

    /// At both sites.
    fn count(&self, metric: &str) -> u64 {
        self.north.count(metric) + self.south.count(metric)
    }

    /// How the handbook calls what has an address of the test's.
    fn pseudonyms(&self) -> Vec<(String, &'static str)> {
        vec![
            (self.swarm.mirror.host(), "ftp.example.org"),
            (self.other.host(), "mirror.example.net"),
        ]
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64().floor()
}

fn title(board: &str) -> String {
    board::read(board)["title"].as_str().unwrap().to_owned()
}

#[test]
fn prometheus_has_data_for_every_panel_and_people_see_it() {
    let is_written = std::env::var_os(WRITE).is_some();
    let busy = Busy::new(Duration::from_secs(if is_written { 36 } else { 2 }));
    let prometheus = Prometheus::start_with("aptmesh-proxy", &busy.targets());
    wait_until(PATIENCE, "all are scraped", || prometheus.value("sum(up)") == Some(3.0));
    // What counts from nothing is no increase to Prometheus: it must have seen it before.
    thread::sleep(LOOKS);
    let from = now();
    busy.live();
    assert!(busy.south.count(FROM_PEERS) > 4 * MB as u64);
    for metric in [SERVED, FROM_MIRRORS] {
        let sum = format!("sum({metric})");
        let is_seen = || prometheus.value(&sum) == Some(busy.count(metric) as f64);
        wait_until(PATIENCE, "a look at all that went through", is_seen);
    }
    thread::sleep(LOOKS);
    let view = View { prometheus: &prometheus, from, to: now(), site: ".*" };

    for board in BOARDS {
        assert_there(&view, board);
    }
    assert_true(&view);
    assert_savings(&view, &busy);
    assert_variables(&prometheus);
    alerts_have_what_they_look_at(&prometheus);

    let mut chromium = Chromium::start();
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (board, site, rows) in SHOWN {
        let page = drawn(&busy, &view, board, &[]);
        let all = scratch.path().join(format!("{board}.png"));
        shoot(&mut chromium, &page, scratch.path(), &all);
        assert!(page.empty.iter().all(|title| EMPTY.contains(&title.as_str())), "{:?}", page.empty);
        assert_shown(&mut chromium, board, &all);
        if is_written {
            let page = drawn(&busy, &View { site, ..view }, board, rows);
            let picture = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join(format!("docs/pictures/dashboard-{board}.png"));
            shoot(&mut chromium, &page, scratch.path(), &picture);
            let size = fs::metadata(&picture).unwrap().len();
            assert!(size < PICTURE_MAX, "{board}: {size} bytes");
        }
    }
}

/// Each expression has a number, and each panel something to show.
fn assert_there(view: &View, board: &str) {
    for panel in board::panels(board) {
        let is_there = |(_, expression): &(String, String)| {
            let expression = view.filled_in(expression);
            let found = view.prometheus.query_range(&expression, view.from, view.to);
            found.iter().any(|(_, values)| values.iter().any(|(_, value)| value.is_finite()))
        };
        for ask in panel.asks.iter().filter(|_| !EMPTY.contains(&panel.title.as_str())) {
            assert!(
                is_there(ask),
                "{board}, {}: nothing for {}",
                panel.title,
                view.filled_in(&ask.1)
            );
        }
        if panel.kind == "stat" {
            assert!(view.number(&panel).is_some(), "{board}, {}", panel.title);
        }
    }
}

/// They tell what happened.
fn assert_true(view: &View) {
    let number = |board: &str, title: &str| {
        let panel = board::panels(board).into_iter().find(|panel| panel.title == title);
        view.number(&panel.expect(title)).expect(title)
    };
    for board in ["fleet", "site"] {
        assert!(number(board, "Saved ratio") > 0.5, "{board}");
        assert!(number(board, "Not fetched from mirrors") > 10.0 * MB as f64, "{board}");
        let well = [("Targets up", 3.0), ("Targets down", 0.0)];
        for (title, wanted) in well {
            assert_eq!(number(board, title), wanted, "{board}: {title}");
        }
    }
    let saved = number("fleet", "Not fetched from mirrors");
    let worth = number("fleet", "Worth, at $price a GB");
    assert!((worth - saved / 1e9 * 0.05).abs() < 1e-9, "{worth} for {saved} bytes");
    assert!(number("fleet", "From other sites") > 4.0 * MB as f64);
    assert_eq!(number("fleet", "Degraded parts"), 0.0);
    assert_eq!((number("site", "Index"), number("site", "Volume")), (1.0, 1.0));
    assert!(number("swarm", "Share from other sites") > 0.1);
    assert!(number("mirrors", "Failed over") > 0.0);
    assert!(number("mirrors", "Answers without a body") > 0.0);
    let table = |title: &str| {
        let panel = board::panels("fleet").into_iter().find(|panel| panel.title == title);
        view.table(&panel.expect(title))
    };
    let sites = table("Sites");
    assert_eq!(sites.labels, ["site"]);
    let sites: Vec<&str> = sites.lines.iter().map(|(names, _)| names[0].as_str()).collect();
    assert_eq!(sites, ["north", "south"]);
    let lines = table("Instances").lines;
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (names, values) in lines {
        let is_node = names.iter().any(|name| name.starts_with("node."));
        assert!(is_node || values.iter().all(Option::is_some), "{values:?}");
    }
}

/// What was saved is what clients really got, less what mirrors really sent, to the last first time of anything.
fn assert_savings(view: &View, busy: &Busy) {
    let real = busy.count(SERVED) as f64 - busy.count(FROM_MIRRORS) as f64;
    let seen = seen_to_grow(view, SERVED) - seen_to_grow(view, FROM_MIRRORS);
    assert_eq!(seen, real, "something that Prometheus did not see happen");
    // It reckons beyond its first and last look, by about the time between two on either side; on a busy machine
    // that is up to two seconds.
    let beyond = 4.0 / (view.to - view.from);
    for board in ["fleet", "site"] {
        let panel = board::panels(board).into_iter().find(|panel| panel.title == SAVED);
        let told = view.number(&panel.expect(SAVED)).expect("a number");
        assert!((told - real).abs() < real * beyond, "{board}: {told}, not {real}");
        // Nobody is served where there is nobody.
        let nowhere = View { site: "nowhere", ..*view };
        let panel = board::panels(board).into_iter().find(|panel| panel.title == SAVED);
        assert_eq!(nowhere.number(&panel.expect(SAVED)), None, "{board}");
    }
}

/// By how much all series of a counter grew between the first and the last look within that time.
fn seen_to_grow(view: &View, metric: &str) -> f64 {
    let found = view.prometheus.query_range(metric, view.from, view.to);
    found.iter().map(|(_, values)| values.last().unwrap().1 - values[0].1).sum()
}

/// What the variables offer to choose from.
fn assert_variables(prometheus: &Prometheus) {
    let view = View { prometheus, from: 0.0, to: 0.0, site: ".*" };
    for board in BOARDS {
        let json = board::read(board);
        let offered = |name: &str| {
            let mut variables = json["templating"]["list"].as_array().unwrap().iter();
            let found = variables.find(|one| one["name"] == name).expect(name);
            let query = view.filled_in(found["query"].as_str().unwrap());
            let query =
                query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
            let (selector, label) =
                query.and_then(|query| query.rsplit_once(", ")).expect("a query");
            prometheus.label_values(selector, label)
        };
        assert_eq!(offered("site"), ["north", "south"], "{board}");
        let instances =
            ["cache.north", "cache.south", "node.north"].map(|name| format!("{name}.example.org"));
        // A node has nothing to do with mirrors.
        let expected = if board == "mirrors" { &instances[..2] } else { &instances[..] };
        assert_eq!(offered("instance"), expected, "{board}");
        // Which compose.yaml and the chart set.
        let by = &json["templating"]["list"][1];
        assert_eq!(
            (&by["name"], &by["current"]["value"]),
            (&"by".into(), &"site".into()),
            "{board}"
        );
    }
}

/// What alerts look at is there, with the labels by which they choose it.
fn alerts_have_what_they_look_at(prometheus: &Prometheus) {
    let alerts = prometheus.alerts();
    assert!(alerts.len() > 15);
    for (alert, expression) in &alerts {
        for selector in selectors(expression) {
            let there = prometheus.query(&format!("last_over_time({selector}[5m])"));
            assert!(!there.is_empty(), "{alert}: nothing is {selector}");
        }
    }
}

/// The selectors of our metrics within an expression, such as `aptmesh_store_up{job="a"}`.
fn selectors(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in expression.match_indices("aptmesh_") {
        let rest = &expression[at..];
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let name = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let end = match rest[name..].starts_with('{') {
            true => rest.find('}').expect("an end") + 1,
            false => name,
        };
        found.insert(rest[..end].to_owned());
    }
    found
}

fn drawn(busy: &Busy, view: &View, board: &str, rows: &[&str]) -> drawing::Page {
    let panels: Vec<Panel> = board::panels(board);
    drawing::page(&title(board), &panels, rows, view, &busy.pseudonyms())
}

fn shoot(chromium: &mut Chromium, page: &drawing::Page, folder: &Path, picture: &Path) {
    let file = folder.join("page.html");
    fs::write(&file, &page.html).unwrap();
    let (width, height) =
        (u32::try_from(drawing::WIDTH).unwrap(), u32::try_from(page.height).unwrap());
    chromium.open(&format!("file://{}", file.display()), width, height, true);
    chromium.screenshot(picture);
}

/// What Chromium shows has a curve in each chart, of which some go up and down, and names nobody of this machine.
fn assert_shown(chromium: &mut Chromium, board: &str, picture: &Path) {
    let charts = chromium.evaluate("document.querySelectorAll('svg').length").as_u64().unwrap();
    let lively = chromium
        .evaluate(
            "[...document.querySelectorAll('svg')].filter(chart => [...chart.querySelectorAll('.curve')]
                .some(curve => curve.getBBox().width > 100 && curve.getBBox().height > 10)).length",
        )
        .as_u64()
        .unwrap();
    assert!(charts > 5 && lively * 3 > charts, "{board}: {lively} of {charts} charts have curves");
    assert!(fs::metadata(picture).unwrap().len() > 30_000, "{board}: it is empty");
    let text = chromium.text();
    assert!(text.contains("cache.north.example.org") || text.contains("north"), "{board}: {text}");
    assert!(!text.contains("127.0.0"), "{board}: {text}");
    assert!(chromium.complaints().is_empty(), "{:?}", chromium.complaints());
}
