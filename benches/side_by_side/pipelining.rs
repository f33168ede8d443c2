//! A cold install: one apt, 200 small packages, a mirror 50 ms away.

use std::time::Duration;

use crate::kit::{Apt, Link, LocalArchive, Mirror, Proxy};
use crate::table::{Table, median};

const PACKAGES: usize = 200;
const AWAY: Duration = Duration::from_millis(50);
const ROUNDS: usize = 3;

pub fn run() {
    let names: Vec<String> = (0..PACKAGES).map(|number| format!("package{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut direct = Vec::new();
    let mut through = Vec::new();
    for _ in 0..ROUNDS {
        let mirror = Mirror::start();
        let archive = names
            .iter()
            .fold(LocalArchive::new("demo"), |archive, name| archive.package(name, "1.0", 4_000));
        archive.publish(&mirror, "/debian");
        let link = Link::to(mirror.addr(), AWAY);
        let proxy = Proxy::start();
        direct.push(install(&archive, &format!("http://{}/debian", link.host()), &names));
        let prefixed = format!("http://{}/{}/debian", proxy.addr(), link.host());
        through.push(install(&archive, &prefixed, &names));
    }
    let (direct, through) = (median(direct), median(through));
    let head = ["apt-get download of 200 cold packages", "wall s"];
    let mut table = Table::new("Pipelining: a mirror 50 ms away, medians", &head);
    table.row(&["direct".to_owned(), format!("{direct:.2}")]);
    table.row(&["through aptmesh, prefix form".to_owned(), format!("{through:.2}")]);
    table.row(&["ratio".to_owned(), format!("{:.2}", through / direct)]);
    table.print();
}

fn install(archive: &LocalArchive, base: &str, names: &[&str]) -> f64 {
    let apt = Apt::new(None);
    apt.sources(&archive.source_line(base));
    let updated = apt.update();
    assert!(updated.ok, "{}", updated.output);
    let downloaded = apt.install_download_only(names);
    assert!(downloaded.ok, "{}", downloaded.output);
    downloaded.took.as_secs_f64()
}
