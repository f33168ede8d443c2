//! Hits: a stored file asked for again and again, by one `wrk` thread over 16 connections.

use std::net::SocketAddr;
use std::process::Command;

use crate::kit::{self, Proxy, proxy};
use crate::rivals::{Server, cpu_seconds, open_to_workers, peak_megabytes};
use crate::table::{Table, median};
use crate::{SIZES, pool_path, write_files};

const ROUNDS: usize = 3;
const SECONDS: u32 = 4;

pub struct Contender {
    name: &'static str,
    address: SocketAddr,
    prefix: String,
    pids: Vec<u32>,
}

pub struct Measured {
    pub requests_per_second: f64,
    pub cpu_per_10k_requests: f64,
    cpu_per_gigabyte: f64,
}

pub fn run() {
    let files = tempfile::tempdir().unwrap();
    open_to_workers(files.path());
    write_files(files.path());
    let origin = Server::origin(files.path());
    let nginx = Server::nginx_cache(origin.address, false);
    let nginx_nopush = Server::nginx_cache(origin.address, true);
    let acng = Server::apt_cacher_ng();
    let (proxy, silent) = (Proxy::start(), without_access_log(Proxy::build()).start());
    let through = format!("/{}", origin.address);
    let contenders = [
        contender("aptmesh", proxy.addr(), &through, vec![proxy.pid()]),
        // As nginx here, which writes none either.
        contender("aptmesh, no access log", silent.addr(), &through, vec![silent.pid()]),
        contender("nginx", nginx.address, "", nginx.pids()),
        contender("nginx, tcp_nopush", nginx_nopush.address, "", nginx_nopush.pids()),
        contender("apt-cacher-ng", acng.address, &through, acng.pids()),
    ];

    let title = format!("Hits: wrk -t1 -c16, {ROUNDS} rounds of {SECONDS} s each, medians");
    let head = [
        "size",
        "cache",
        "requests/s",
        "GB/s",
        "vs best nginx",
        "vs acng",
        "CPU s/10k",
        "CPU s/GB",
    ];
    let mut table = Table::new(&title, &head);
    for (name, size) in SIZES {
        let measured = measure(&contenders, size);
        let rates: Vec<f64> =
            measured.iter().map(|measured| measured.requests_per_second).collect();
        let (nginx, acng) = (rates[2].max(rates[3]), rates[4]);
        for (contender, measured) in contenders.iter().zip(&measured) {
            let rate = measured.requests_per_second;
            table.row(&[
                name.to_owned(),
                contender.name.to_owned(),
                format!("{rate:.0}"),
                format!("{:.2}", rate * size as f64 / 1e9),
                format!("{:.2}", rate / nginx),
                format!("{:.2}", rate / acng),
                format!("{:.3}", measured.cpu_per_10k_requests),
                format!("{:.3}", measured.cpu_per_gigabyte),
            ]);
        }
    }
    table.print();
    for contender in &contenders {
        println!("  peak memory of {}: {:.0} MB", contender.name, peak_megabytes(&contender.pids));
    }
}

/// Of each request a line is formatted, and written by another thread: not so here.
pub fn without_access_log(build: proxy::Build) -> proxy::Build {
    build.env("APTMESH_LOG_LEVEL", "info,access=off")
}

pub fn contender(
    name: &'static str,
    address: SocketAddr,
    prefix: &str,
    pids: Vec<u32>,
) -> Contender {
    let contender = Contender { name, address, prefix: prefix.to_owned(), pids };
    for (_, size) in SIZES {
        let target = contender.target(size);
        for _ in 0..2 {
            let (reply, _, length) = kit::download_hash(address, &target, &[]);
            assert_eq!((reply.status, length), (200, size as u64), "{name} {target}");
        }
    }
    contender
}

impl Contender {
    fn target(&self, size: usize) -> String {
        format!("{}/{}", self.prefix, pool_path(size))
    }
}

/// All contenders in turn, several times, so that what the machine does besides hits all alike.
pub fn measure(contenders: &[Contender], size: usize) -> Vec<Measured> {
    let mut rounds: Vec<Vec<[f64; 2]>> = contenders.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (contender, rounds) in contenders.iter().zip(&mut rounds) {
            let before = cpu_seconds(&contender.pids);
            let url = format!("http://{}{}", contender.address, contender.target(size));
            let rate = wrk(&url);
            let cpu = cpu_seconds(&contender.pids) - before;
            rounds.push([rate, cpu / (rate * f64::from(SECONDS))]);
        }
    }
    rounds
        .into_iter()
        .map(|rounds| {
            let cpu_per_request = median(rounds.iter().map(|round| round[1]).collect());
            Measured {
                requests_per_second: median(rounds.iter().map(|round| round[0]).collect()),
                cpu_per_10k_requests: cpu_per_request * 1e4,
                cpu_per_gigabyte: cpu_per_request * 1e9 / size as f64,
            }
        })
        .collect()
}

pub fn wrk(url: &str) -> f64 {
    let output = Command::new("wrk")
        .args(["-t1", "-c16", &format!("-d{SECONDS}s"), "--timeout", "20s", url])
        .output()
        .expect("wrk is installed (make bench does it)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("Non-2xx"), "{url}: {text}");
    let line = text.lines().find(|line| line.starts_with("Requests/sec:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).expect("wrk's figures")
}
