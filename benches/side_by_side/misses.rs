//! Misses: one client and a file that nobody has asked for. What the cache adds to the way to the
//! mirror.

use std::net::SocketAddr;
use std::time::Duration;

use crate::kit::{Connection, File, Mirror, Proxy};
use crate::table::{Table, median};

const SIZE: usize = 100_000_000;
const ROUNDS: usize = 5;
/// A line of one gigabit a second.
const GIGABIT: u64 = 117_000_000;
const SMALL_FILES: usize = 200;

pub fn run() {
    let mirror = Mirror::start();
    let proxy = Proxy::start();
    let head = ["one client, cold 100 MB file", "direct MB/s", "aptmesh MB/s", "ratio"];
    let mut table = Table::new("Misses: throughput, medians", &head);
    for (name, rate) in [("mirror on a 1 Gbit/s line", Some(GIGABIT)), ("mirror on loopback", None)]
    {
        let mut direct = Vec::new();
        let mut through = Vec::new();
        for round in 0..ROUNDS {
            let path = format!("/pool/{}{round}_1_all.deb", name.replace([' ', '/'], ""));
            let mut file = File::new(crate::package(round as u64, SIZE));
            if let Some(rate) = rate {
                file = file.rate(rate);
            }
            mirror.put(&path, file);
            direct.push(throughput(mirror.addr(), &path));
            through.push(throughput(proxy.addr(), &proxy.url_for(&mirror, &path)));
        }
        let (direct, through) = (median(direct), median(through));
        let ratio = format!("{:.2}", through / direct);
        table.row(&[name.to_owned(), format!("{direct:.0}"), format!("{through:.0}"), ratio]);
    }
    table.print();
    first_bytes(&mirror, &proxy);
}

fn throughput(address: SocketAddr, target: &str) -> f64 {
    let mut connection = Connection::open(address);
    let begun = std::time::Instant::now();
    connection.send("GET", target, &[]);
    assert_eq!(connection.read_head().status, 200);
    let mut read = 0;
    while read < SIZE {
        read += connection.read_body_some((SIZE - read).min(1 << 20)).len();
    }
    read as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

fn first_bytes(mirror: &Mirror, proxy: &Proxy) {
    let head = ["cold 4 kB files, one connection", "median ms", "99th percentile ms"];
    let mut table = Table::new("Misses: time to the first byte", &head);
    for number in 0..SMALL_FILES {
        let file = File::new(crate::package(number as u64, 4_000));
        mirror.put(&format!("/pool/small{number}_1_all.deb"), file);
    }
    let times = |address: SocketAddr, target: &dyn Fn(&str) -> String| {
        let mut connection = Connection::open(address);
        let times = (0..SMALL_FILES).map(|number| {
            connection.send("GET", &target(&format!("/pool/small{number}_1_all.deb")), &[]);
            connection.read_reply("GET").first_byte
        });
        times.collect::<Vec<Duration>>()
    };
    let direct = times(mirror.addr(), &|path| path.to_owned());
    let through = times(proxy.addr(), &|path| proxy.url_for(mirror, path));
    for (name, mut times) in [("direct", direct), ("through aptmesh", through)] {
        times.sort();
        let at = |share: f64| times[(share * times.len() as f64) as usize].as_secs_f64() * 1e3;
        table.row(&[name.to_owned(), format!("{:.2}", at(0.5)), format!("{:.2}", at(0.99))]);
    }
    table.print();
}
