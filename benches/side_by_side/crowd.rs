//! A crowd: 50 clients at once ask for one cold file of 100 MB.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use crate::kit::{Connection, File, Mirror, Proxy};
use crate::rivals::Server;
use crate::table::{Table, median};

const SIZE: usize = 100_000_000;
const CLIENTS: usize = 50;
const ROUNDS: usize = 3;

pub fn run() {
    let mirror = Mirror::start();
    let nginx = Server::nginx_cache(mirror.addr(), false);
    let proxy = Proxy::start();
    let head = ["50 clients, one cold 100 MB file", "wall s", "upstream bytes"];
    let mut table = Table::new("A crowd, medians", &head);
    let mut walls = [Vec::new(), Vec::new()];
    let mut upstream = [0.0, 0.0];
    for round in 0..ROUNDS {
        let path = |who: &str| format!("/pool/{who}{round}_1_all.deb");
        let asked = [("aptmesh", proxy.addr()), ("nginx", nginx.address)];
        for (at, (who, address)) in asked.into_iter().enumerate() {
            mirror.put(&path(who), File::new(crate::package(round as u64, SIZE)));
            let target = match who {
                "aptmesh" => proxy.url_for(&mirror, &path(who)),
                _ => path(who),
            };
            walls[at].push(wall(address, &target));
            upstream[at] += mirror.bytes(&path(who)) as f64 / (SIZE * ROUNDS) as f64;
        }
    }
    for (at, name) in ["aptmesh", "nginx, proxy_cache_lock"].into_iter().enumerate() {
        let wall = format!("{:.2}", median(walls[at].clone()));
        table.row(&[name.to_owned(), wall, format!("{:.2}x", upstream[at])]);
    }
    table.print();
}

fn wall(address: SocketAddr, target: &str) -> f64 {
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = Connection::open(address);
                connection.send("GET", target, &[]);
                assert_eq!(connection.read_head().status, 200);
                let mut read = 0;
                while read < SIZE {
                    read += connection.read_body_some((SIZE - read).min(1 << 18)).len();
                }
            });
        }
    });
    begun.elapsed().as_secs_f64()
}
