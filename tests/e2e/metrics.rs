//! Metrics: well-formed at every role, each of them moves, none has more series than it may, and what they
//! tell is true.

mod ledger;
mod machine;
mod others;
mod replicas;

use self::ledger::{Ledger, Sample, samples};
use crate::kit::fleet::migrated;
use crate::kit::node::swarm_key;
use crate::kit::*;
use crate::volumes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(60);
/// What does not change in the life of a process; `what_a_process_tells_of_itself_is_true` compares it.
const CONSTANT: [&str; 4] = [
    "aptmesh_build_info",
    "aptmesh_telemetry_runtime_workers",
    "process_max_fds",
    "process_start_time_seconds",
];
/// Gauges of settings: which, what is set in a test of it, and what is to be told then.
const SETTINGS: [(&str, &str, &str, f64); 6] = [
    ("aptmesh_dht_seeds", "SWARM_BOOTSTRAP", "127.0.0.1:9,127.0.0.2:9", 2.0),
    ("aptmesh_engine_prefetch_limit_bytes_per_second", "PREFETCH_RATE", "3kB", 3_000.0),
    ("aptmesh_index_connections_max", "INDEX_POOL", "5", 5.0),
    ("aptmesh_store_quota_bytes", "STORE_QUOTA", "70MB", 70e6),
    ("aptmesh_web_connections_max", "LISTEN_CONNECTIONS", "500", 500.0),
    ("aptmesh_web_peer_upload_limit_bytes_per_second", "SWARM_UPLOAD_LIMIT", "100kB/s", 100e3),
];
/// What has tests of its own, with what it takes to move it: a log that nobody reads, and somebody who takes traces.
const SEEN_ELSEWHERE: [&str; 2] =
    ["aptmesh_telemetry_log_lines_lost_total", "aptmesh_telemetry_spans_total"];
/// Series of one metric at one process: calls to the index are told by what they are for.
const SERIES_OF_A_METRIC_MAX: usize = 260;
/// Series of one process.
const SERIES_MAX: usize = 1_500;
/// Labels whose values are not words of ours: bounds, a version, and what an operator wrote.
const FREE_LABELS: [&str; 4] = ["le", "version", "group", "mirror"];
/// Gauges of what is under way.
const UNDER_WAY: [&str; 4] = [
    "aptmesh_engine_flights",
    "aptmesh_engine_waiters",
    "aptmesh_store_promised_bytes",
    "aptmesh_web_peer_slots_used",
];

/// All names that the source declares: they are literals.
fn declared() -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.is_dir() => walk(&path, found),
                path => {
                    let source = fs::read_to_string(path).unwrap();
                    let is_name = |word: &&str| {
                        let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
                        let ours = ["aptmesh_", "process_"];
                        ours.iter().any(|start| word.starts_with(start) && word.len() > start.len())
                            && word.bytes().all(is_letter)
                    };
                    found.extend(source.split('"').filter(is_name).map(str::to_owned));
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// Nothing is under way any more, and what was counted of it all is well-formed.
fn wait_at_rest(proxy: &Proxy) {
    for gauge in UNDER_WAY {
        wait_until(PATIENCE, &format!("{gauge} to be 0 again"), || proxy.count(gauge) == 0);
    }
    assert_well_formed(proxy.admin());
}

#[test]
fn every_metric_moves_and_none_has_too_many_series() {
    let ledger = Ledger::default();
    thread::scope(|scope| {
        let scenes =
            [machine::run, machine::run_full, replicas::run, others::run, others::run_hostile];
        let ledger = &ledger;
        let running = scenes.map(|scene| scope.spawn(move || scene(ledger)));
        for scene in running {
            if let Err(failed) = scene.join() {
                std::panic::resume_unwind(failed);
            }
        }
    });
    let declared = declared();
    assert!(declared.len() > 90, "{declared:?}");
    let undeclared: Vec<String> = ledger.names().difference(&declared).cloned().collect();
    assert!(undeclared.is_empty(), "not found in the source: {undeclared:?}");
    let is_setting = |name: &str| SETTINGS.iter().any(|(setting, ..)| *setting == name);
    let is_excused =
        |name: &str| CONSTANT.contains(&name) || SEEN_ELSEWHERE.contains(&name) || is_setting(name);
    let is_still = |name: &&String| !ledger.has_moved(name) && !is_excused(name);
    let still: Vec<&String> = declared.iter().filter(is_still).collect();
    assert!(still.is_empty(), "these never moved: {still:#?}");
    let counters = ledger.counters();
    let from_the_start = told_from_the_start();
    // Calls to the index are all told from the first one on, and what an operator names is known to the process that
    // has it in its settings alone.
    let is_excused = |series: &&String| {
        let starts = ["aptmesh_index_calls_total{", "aptmesh_mirror_asked_total{"];
        starts.iter().any(|start| series.starts_with(start))
    };
    let late: Vec<&String> =
        counters.difference(&from_the_start).filter(|series| !is_excused(series)).collect();
    assert!(late.is_empty(), "what is first counted is lost to Prometheus: {late:#?}");
    let (of_each, most) = ledger.series();
    for (name, series) in of_each {
        assert!(series <= SERIES_OF_A_METRIC_MAX, "{name} has {series} series");
    }
    assert!(most <= SERIES_MAX, "a process has {most} series");
}

/// What processes tell of which nobody wants anything.
fn told_from_the_start() -> BTreeSet<String> {
    let server = Postgres::start();
    let node = Node::start(&swarm_key(), &[]);
    let whole = Site::build(&swarm_key()).env("INDEX_URL", migrated(&server)).start();
    let replicas = volumes::Site::new();
    let replica = replicas.replica();
    let beside =
        Site::build(&swarm_key()).env("PROXY_SIDECAR", format!("http://{}", node.api())).start();
    let all = [node.admin(), whole.admin(), replica.admin(), beside.admin()];
    all.into_iter().flat_map(series).collect()
}

#[test]
fn settings_are_told_as_they_are_set() {
    let server = Postgres::start();
    let site = Site::build(&swarm_key()).env("INDEX_URL", migrated(&server));
    let site = SETTINGS.iter().fold(site, |site, (_, name, value, _)| site.env(name, *value));
    let site = site.start();
    for (metric, setting, value, told) in SETTINGS {
        // Some are first looked up in the index.
        let what = format!("{metric} to be {told}: {setting} = {value}");
        wait_until(PATIENCE, &what, || (site.metric(metric) - told).abs() < f64::EPSILON);
    }
}

/// Names are `aptmesh_<folder>_<what>_<unit>`, or what all Prometheus clients tell.
#[test]
fn names_say_which_folder_of_the_source_counts() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for name in declared().iter().filter(|name| !name.starts_with("process_")) {
        let folder = name.split('_').nth(1).unwrap();
        assert!(folder == "build" || source.join(folder).is_dir(), "{name}: no folder {folder}");
    }
}

/// Names and labels of what a process tells.
fn series(admin: SocketAddr) -> BTreeSet<String> {
    samples(admin).into_iter().map(|sample| sample.series).collect()
}

/// Hosts, resources, clients and methods, other ones in each round.
fn many_different(site: &Site, mirrors: &[Mirror], round: usize) {
    for number in 0..200 {
        let mirror = &mirrors[number % mirrors.len()];
        let path = format!("/debian/pool/r{round}/p{number}_{round}_all.deb");
        mirror
            .put(&path, File::new([b"!<arch>\n".as_slice(), &noise(number as u64, 500)].concat()));
        let client = format!("127.0.{}.{}", round + 1, number % 20 + 1);
        let mut client = Connection::open_from(&client, site.addr());
        let target = site.url_for(mirror, &path);
        for _ in 0..2 {
            assert_eq!(client.get(&target).status, 200);
        }
        assert_eq!(client.get(&format!("{target}.not-there")).status, 404);
        let method = format!("ODD{round}X{number}");
        client.request(&method, &target, &[]);
    }
    for surface in [site.peer(), site.admin(), site.api()] {
        for number in 0..5 {
            request(surface, "GET", &format!("/r{round}/{number}"), &[]);
            request(surface, &format!("M{round}X{number}"), "/", &[]);
        }
    }
    site.wait_landed();
}

#[test]
fn what_is_asked_for_and_by_whom_makes_no_series() {
    let server = Postgres::start();
    let mirrors: Vec<Mirror> =
        (1..=40).map(|number| Mirror::start_at(&format!("127.0.3.{number}"))).collect();
    let site = Site::build(&swarm_key()).env("INDEX_URL", migrated(&server)).start();
    many_different(&site, &mirrors[..20], 0);
    // What goes on in the background has its calls to the index.
    thread::sleep(Duration::from_secs(5));
    let before = series(site.admin());
    many_different(&site, &mirrors[20..], 1);
    let new: Vec<String> = series(site.admin()).difference(&before).cloned().collect();
    // It is the operations that are told, some of which are rare: they are constants of the source.
    let of_calls = |series: &&String| series.starts_with("aptmesh_index_calls_total{");
    let others: Vec<&String> = new.iter().filter(|series| !of_calls(series)).collect();
    assert!(others.is_empty(), "{others:#?}");
    for sample in samples(site.admin()) {
        assert_says_nothing(&sample);
    }
    wait_at_rest(&site);
}

/// Neither of hosts nor of paths, digests or addresses.
fn assert_says_nothing(sample: &Sample) {
    for (name, value) in sample.labels() {
        let is_word = |letter: char| letter.is_ascii_lowercase() || "_- '".contains(letter);
        let is_class = matches!(value.as_str(), "2xx" | "3xx" | "4xx" | "5xx" | "304");
        let is_fine =
            FREE_LABELS.contains(&name.as_str()) || is_class || value.chars().all(is_word);
        assert!(is_fine, "{}", sample.series);
    }
}

/// What all roles declare, as lines of a table: name, kind, labels, help.
fn table(processes: &[SocketAddr]) -> String {
    let mut lines = BTreeMap::new();
    for admin in processes {
        let text = String::from_utf8(get(*admin, "/metrics").body).unwrap();
        let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
        let all = samples(*admin);
        for (name, help) in helps {
            let own: Vec<&Sample> = all.iter().filter(|sample| sample.metric == name).collect();
            let labels: BTreeSet<String> = own
                .iter()
                .flat_map(|sample| sample.labels())
                .map(|(label, _)| format!("`{label}`"))
                .filter(|label| label != "`le`")
                .collect();
            let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
            let line = format!("| `{name}` | {} | {labels} | {help} |\n", own[0].kind);
            lines.insert(name.to_owned(), line);
        }
    }
    let undocumented: Vec<String> =
        declared().into_iter().filter(|name| !lines.contains_key(name)).collect();
    assert!(undocumented.is_empty(), "no process tells of {undocumented:?}");
    let head = "# Metrics\n\nWhat `/metrics` on the admin port tells. Written from the program by \
                `make docs/metrics.md`.\n\n| Name | Kind | Labels | What it tells |\n|---|---|---|---|\n";
    head.to_owned() + &lines.into_values().collect::<String>()
}

#[test]
fn the_handbook_s_table_is_the_program_s() {
    let (server, mirror) = (Postgres::start(), Mirror::start());
    let receiver = Otlp::start(otlp::Way::Http);
    let node = Node::start(&swarm_key(), &[]);
    let site = Site::build(&swarm_key())
        .variables(receiver.variables())
        .env("INDEX_URL", migrated(&server))
        .env("ARCHIVE_GROUPS", format!("demo http://{}/debian", mirror.host()))
        .start();
    let path = "/debian/pool/f/file_1_all.deb";
    mirror.put(path, File::new(b"!<arch>\n".as_slice()));
    for _ in 0..2 {
        assert_eq!(get(site.addr(), &site.url_for(&mirror, path)).status, 200);
    }
    site.wait_landed();
    let blob = format!("/blob/sha256/{}", sha256_hex(b"any"));
    get(site.peer(), &blob);
    let table = table(&[site.admin(), node.admin()]);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os("APTMESH_WRITE_METRICS").is_some() {
        fs::write(&file, &table).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert!(there == table, "docs/metrics.md is out of date: make docs/metrics.md");
}

/// `promtool check metrics` has nothing to complain of.
fn assert_well_formed(admin: SocketAddr) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Debian's package prometheus");
    promtool.stdin.take().unwrap().write_all(&get(admin, "/metrics").body).unwrap();
    let run = promtool.wait_with_output().unwrap();
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(run.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn promtool_finds_nothing_wrong_with_any_role() {
    let (server, key) = (Postgres::start(), swarm_key());
    let node = Node::start(&key, &[]);
    let site = Site::build(&key).bootstrap(&[node.dht()]).start();
    let replica = Proxy::build()
        .verb("proxy")
        .env("APTMESH_INDEX_URL", migrated(&server))
        .env("APTMESH_SWARM_KEY", &key)
        .env("APTMESH_SWARM_ALLOW_PRIVATE", "127.0.0.0/8")
        .env("APTMESH_LISTEN_PEER", "127.0.0.1:0")
        .env("APTMESH_PROXY_SIDECAR", format!("http://{}", node.api()))
        .start();
    for admin in [site.admin(), replica.admin(), node.admin()] {
        assert_well_formed(admin);
    }
    // What a process tells of itself, whatever it does.
    let of_all = ["aptmesh_build_info", "aptmesh_telemetry_runtime_tasks", "process_open_fds"];
    let all = [samples(site.admin()), samples(replica.admin()), samples(node.admin())];
    for (name, told) in of_all.iter().flat_map(|name| all.iter().map(move |told| (name, told))) {
        assert!(told.iter().any(|sample| sample.metric == *name && sample.value > 0.0), "{name}");
    }
}

/// As near as two looks at a busy process can be.
fn is_near(told: f64, real: f64) -> bool {
    (told - real).abs() <= real / 5.0 + 10.0
}

#[test]
fn what_a_process_tells_of_itself_is_true() {
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let (proxy, mirror) = (Proxy::start(), Mirror::start());
    let of_proc = |what: &str| format!("/proc/{}/{what}", proxy.pid());
    let fds = || fs::read_dir(of_proc("fd")).unwrap().count() as f64;
    let status = || fs::read_to_string(of_proc("status")).unwrap();
    let number = |name: &str| -> f64 {
        let status = status();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let started = proxy.metric("process_start_time_seconds");
    assert!((begun - 1.0..begun + 30.0).contains(&started), "{started}, not {begun}");
    let is_true = || {
        is_near(proxy.metric("process_resident_memory_bytes"), number("VmRSS:") * 1024.0)
            && is_near(proxy.metric("process_virtual_memory_bytes"), number("VmSize:") * 1024.0)
            && is_near(proxy.metric("process_threads"), number("Threads:"))
            && is_near(proxy.metric("process_open_fds"), fds())
    };
    wait_until(PATIENCE, "what it tells to be what the kernel tells", is_true);
    let limits = fs::read_to_string(of_proc("limits")).unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let limit: f64 = limit.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(proxy.metric("process_max_fds"), limit);

    let (before, threads) = (proxy.metric("process_open_fds"), number("Threads:"));
    let crowd: Vec<Connection> = (0..100).map(|_| Connection::open(proxy.addr())).collect();
    // Some of those before may have been open for a moment only.
    wait_until(PATIENCE, "a hundred sockets", || proxy.metric("process_open_fds") >= before + 90.0);
    assert!(proxy.metric("aptmesh_telemetry_runtime_tasks") >= 100.0);
    drop(crowd);
    wait_until(PATIENCE, "them to be gone", || proxy.metric("process_open_fds") < before + 50.0);
    let processors = thread::available_parallelism().unwrap().get() as f64;
    assert_eq!(proxy.metric("aptmesh_telemetry_runtime_workers"), processors);
    assert!(processors <= threads);
    let build = format!("aptmesh_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(proxy.metric(&build), 1.0);

    let path = "/debian/pool/b/busy_1.orig.tar.xz";
    mirror.put(path, File::new(noise(1, 10_000_000)));
    let cpu = || proxy.metric("process_cpu_seconds_total");
    let busy = || proxy.metric("aptmesh_telemetry_runtime_busy_seconds_total");
    let (cpu_before, busy_before, at) = (cpu(), busy(), Instant::now());
    wait_until(PATIENCE, "it to be busy for a while", || {
        assert_eq!(get(proxy.addr(), &proxy.url_for(&mirror, path)).status, 200);
        cpu() > cpu_before + 0.1 && busy() > busy_before + 0.02
    });
    // Not more than all processors have.
    let most = (at.elapsed().as_secs_f64() + 1.0) * processors;
    assert!(cpu() - cpu_before <= most, "{} s", cpu() - cpu_before);
}
