//! `aptmesh status`: asks a running cache how it is doing.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::thread::sleep;
use std::time::Duration;

use anyhow::ensure;

use crate::cli::admin;
use crate::config::Config;
use crate::web::status::report::{Archive, Flight, Mirror, Peer, Report, Way};
use crate::web::status::words;

/// For how long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a watched cache is asked.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Lines of each list at most.
const LINES_MAX: usize = 12;
/// Clears the screen, and what was scrolled off it, and begins at its top (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";
/// What went through, by way.
const WAYS: [(&str, Way); 6] = [
    ("fetched from mirrors:", |bytes| bytes.from_mirrors),
    ("fetched from peers:", |bytes| bytes.from_peers),
    ("fetched from replicas:", |bytes| bytes.from_replicas),
    ("served from the store:", |bytes| bytes.from_store),
    ("given to peers:", |bytes| bytes.to_peers),
    ("given to replicas:", |bytes| bytes.to_replicas),
];

pub(super) fn print(config: &Config) -> anyhow::Result<()> {
    super::print_out(&render(&ask(config)?)?)
}

/// Prints it every two seconds, in place where that is a terminal, until nobody reads any more. A cache that
/// can not be reached is told of, and asked again.
pub(super) fn watch(config: &Config) -> anyhow::Result<()> {
    let is_terminal = io::stdout().is_terminal();
    loop {
        let text = match ask(config).and_then(|report| render(&report)) {
            Ok(text) => text,
            Err(error) => format!("{error:#}\nasking again every {WATCH_EVERY:?}\n"),
        };
        let text = if is_terminal { format!("{CLEAR}{text}") } else { format!("{text}\n") };
        let mut out = io::stdout();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        sleep(WATCH_EVERY);
    }
}

fn ask(config: &Config) -> anyhow::Result<Report> {
    let answer = admin::ask(config, "/status.json", PATIENCE)?;
    ensure!(answer.is_ok, "it tells no status: {}", answer.body.trim());
    Ok(serde_json::from_str(&answer.body)?)
}

fn render(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    let up = words::time(report.uptime_seconds);
    writeln!(text, "aptmesh {}, up {up}", plain(&report.version))?;
    writeln!(text, "                         since its start        all time")?;
    for (name, way) in WAYS {
        let session = words::bytes(way(&report.traffic.session));
        let ever = report.traffic.all_time.as_ref();
        let ever = ever.map_or("unknown".to_owned(), |ever| words::bytes(way(ever)));
        writeln!(text, "{name:<24} {session:>15} {ever:>15}")?;
    }
    let now = &report.traffic.now;
    let hit = match now.all() {
        0 => String::new(),
        all => format!(", {} of it from the store", words::share(now.from_store, all)),
    };
    writeln!(text, "at the moment:           {}{hit}", words::rate(now.all()))?;
    let (blobs, bytes) = (report.volume.blobs, words::bytes(report.volume.bytes));
    let quota = report.stored.and_then(|stored| stored.quota);
    let quota = quota.map(|quota| format!(" of {}", words::bytes(quota))).unwrap_or_default();
    writeln!(text, "stored:                  {blobs} files, {bytes}{quota}")?;
    let learnt = report.stored.map(|stored| stored.expectations.to_string());
    writeln!(text, "learnt from lists:       {} files", learnt.as_deref().unwrap_or("unknown"))?;
    if let Some(node) = report.swarm.as_ref().and_then(|swarm| swarm.status.as_ref()) {
        let (sites, nodes, announced) = (node.cards, node.connected, node.announced);
        writeln!(
            text,
            "swarm:                   {sites} sites known, {nodes} nodes connected, {announced} files announced"
        )?;
    }
    writeln!(text, "downloads under way:     {}", report.flights)?;
    lines(&mut text, report.flights, report.running.iter().map(flight))?;
    titled(&mut text, "archives:", report.archives.iter().map(archive))?;
    titled(&mut text, "mirrors:", report.mirrors.iter().map(mirror))?;
    titled(&mut text, "peers:", report.peers.iter().map(peer))?;
    let troubles = report.troubles.iter();
    let mut troubles =
        troubles.map(|trouble| plain(&format!("{}. {}", trouble.what, trouble.means)));
    let state = troubles.next().unwrap_or_else(|| "all is well".to_owned());
    writeln!(text, "state:                   {state}")?;
    for trouble in troubles {
        writeln!(text, "                         {trouble}")?;
    }
    Ok(text)
}

fn titled(
    text: &mut String,
    title: &str,
    each: impl ExactSizeIterator<Item = String>,
) -> anyhow::Result<()> {
    if each.len() == 0 {
        return Ok(());
    }
    writeln!(text, "{title}")?;
    let all = each.len();
    lines(text, all, each)
}

/// The first of them, and how many there are besides.
fn lines(
    text: &mut String,
    all: usize,
    each: impl ExactSizeIterator<Item = String>,
) -> anyhow::Result<()> {
    let shown = each.len().min(LINES_MAX);
    for line in each.take(shown) {
        writeln!(text, "  {}", plain(&line))?;
    }
    if all > shown {
        writeln!(text, "  and {} more", all - shown)?;
    }
    Ok(())
}

fn flight(flight: &Flight) -> String {
    let from = flight.mirror.as_deref().or(flight.from.as_deref()).unwrap_or("nobody yet");
    let (bytes, rate) = (words::bytes(flight.bytes), words::rate(flight.bytes_per_second));
    let of = match flight.size {
        Some(size) => {
            format!("{} of {}", words::share(flight.bytes, size), words::bytes(size))
        }
        None => bytes,
    };
    format!("{}: {of}, {rate} from {from}, for {}", flight.name(), flight.waiting)
}

fn archive(archive: &Archive) -> String {
    let made = archive.age.map_or("at an unknown time".to_owned(), words::ago);
    let signature = match archive.signature.as_deref() {
        Some("good") => "signature good",
        Some("unknown_key") => "signed by an unknown key",
        Some("unsigned") => "not signed",
        Some(_) => "signature does not count",
        None => "signature not looked at",
    };
    let expired = if archive.expired { ", EXPIRED" } else { "" };
    let confirmed = archive.confirmed.map_or("never".to_owned(), words::ago);
    let name = archive.name();
    if archive.served {
        format!("{name}: made {made}{expired}, {signature}, confirmed {confirmed}")
    } else {
        format!("{name}: none admitted")
    }
}

fn mirror(mirror: &Mirror) -> String {
    let state = match (mirror.state.as_str(), mirror.asked) {
        ("well", None) => "not asked yet".to_owned(),
        ("well", Some(_)) => "in use".to_owned(),
        (state, _) => format!("{state} for {}", words::time(mirror.benched_for)),
    };
    let (requests, failures) = (mirror.requests, mirror.failures);
    let rate = mirror.bytes_per_second.map(|rate| format!(", {}", words::rate(rate)));
    let failure = mirror.last_failure.as_ref().map(|why| {
        let ago = words::ago(mirror.failed_ago.unwrap_or_default());
        format!(", last failure {ago}: {why}")
    });
    let (rate, failure) = (rate.unwrap_or_default(), failure.unwrap_or_default());
    format!("{}: {state}, {requests} requests, {failures} failed{rate}{failure}", mirror.url)
}

fn peer(peer: &Peer) -> String {
    let state = match (peer.blamed, peer.benched_for) {
        (true, _) => "gave wrong bytes".to_owned(),
        (false, 0) => "in use".to_owned(),
        (false, seconds) => format!("benched for {}", words::time(seconds)),
    };
    let rate = peer.bytes_per_second.map(|rate| format!(", {}", words::rate(rate)));
    let (gave, rate) = (words::bytes(peer.proven_bytes), rate.unwrap_or_default());
    format!("{}: {state}, gave {gave}{rate}", peer.name())
}

/// What others named does nothing to a terminal.
pub(super) fn plain(text: &str) -> String {
    let turns = |letter| matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let inert = |letter: char| letter.is_control() || turns(letter);
    text.chars().map(|letter| if inert(letter) { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(status: serde_json::Value) -> String {
        render(&serde_json::from_value(status).unwrap()).unwrap()
    }

    #[test]
    fn troubles_come_last_and_all() {
        let state = |status| told(status).lines().last().unwrap().to_owned();
        assert!(state(json!({"troubles": [], "swarm": null})).ends_with("all is well"));
        let troubles = json!([{"what": "one", "means": "a"}, {"what": "other", "means": "b"}]);
        let all = told(json!({"troubles": troubles}));
        assert!(all.contains("state:                   one. a\n") && all.ends_with("other. b\n"));
    }

    #[test]
    fn what_others_named_does_nothing_to_a_terminal() {
        let hostile = json!({"url": "http://\u{1b}[2J\u{202e}", "state": "well"});
        let told = told(json!({"mirrors": [hostile]}));
        assert!(!told.contains('\u{1b}') && !told.contains('\u{202e}'), "{told}");
    }

    #[test]
    fn what_another_version_tells_is_left_out() {
        let report = json!({"version": "9", "new": {"a": 1}, "swarm": {"node": "x", "more": 1}});
        assert!(told(report).starts_with("aptmesh 9"));
    }
}
