//! `aptmesh status`: asks a running cache how it is doing.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::thread::sleep;
use std::time::Duration;

use anyhow::ensure;

use crate::cli::admin::{self, plain};
use crate::config::Config;
use crate::web::status::report::{
    Archive, Flight, History, Mirror, Peer, Report, Swarm, Trouble, Way,
};
use crate::web::status::words;

/// For how long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a watched cache is asked.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Lines of each list at most.
const LINES_MAX: usize = 12;
/// Clears the screen and begins at its top (ECMA-48). What was scrolled off it is the reader's.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Letters of the history.
const BARS_MAX: usize = 40;
/// From nothing spared to everything.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
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
    ensure!(answer.is_ok, "it tells no status: {}", plain(answer.body.trim()));
    Ok(serde_json::from_str(&answer.body)?)
}

fn render(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    let up = words::time(report.uptime_seconds);
    writeln!(text, "aptmesh {}, up {up}", plain(&report.version))?;
    traffic(&mut text, report)?;
    writeln!(text, "downloads under way:     {}", report.flights)?;
    lines(&mut text, report.flights, report.running.iter().map(flight))?;
    match &report.archives {
        Some(archives) => titled(&mut text, "archives:", archives.iter().map(archive))?,
        None => writeln!(text, "archives:                not told in time")?,
    }
    titled(&mut text, "mirrors:", report.mirrors.iter().map(mirror))?;
    titled(&mut text, "peers:", report.peers.iter().map(peer))?;
    swarm(&mut text, report)?;
    site(&mut text, report)?;
    state(&mut text, &report.troubles)?;
    Ok(text)
}

fn traffic(text: &mut String, report: &Report) -> anyhow::Result<()> {
    let traffic = &report.traffic;
    writeln!(text, "                         since its start  whole site, ever            now")?;
    for (name, way) in WAYS {
        let session = words::bytes(way(&traffic.session));
        let ever = traffic.all_time.as_ref();
        let ever = ever.map_or("unknown".to_owned(), |ever| words::bytes(way(ever)));
        let now = words::rate(way(&traffic.now));
        writeln!(text, "{name:<24} {session:>15} {ever:>17} {now:>14}")?;
    }
    let now = &traffic.now;
    let hit = match now.all() {
        0 => String::new(),
        all => format!(", {} of it from the store", words::share(now.from_store, all)),
    };
    writeln!(text, "at the moment:           {}{hit}", words::rate(now.all()))?;
    if let Some((time, bars)) = history(&report.history) {
        writeln!(text, "spared the mirrors:      {bars} within {time}")?;
    }
    Ok(())
}

/// The share of bytes that no mirror had to give, over time, the newest last.
fn history(history: &History) -> Option<(String, String)> {
    let spans = history.from_mirrors.len();
    let each = spans.div_ceil(BARS_MAX).max(1);
    let sum = |of: &[u64], bar: usize| of.iter().skip(bar).take(each).sum::<u64>();
    let bar = |bar: usize| {
        let spared = sum(&history.from_store, bar)
            .saturating_add(sum(&history.from_peers, bar))
            .saturating_add(sum(&history.from_replicas, bar));
        let all = spared.saturating_add(sum(&history.from_mirrors, bar));
        let level = spared.saturating_mul(7).checked_div(all)?;
        LEVELS.get(usize::try_from(level).ok()?).copied()
    };
    let bars: Vec<Option<char>> = (spans % each..spans).step_by(each).map(bar).collect();
    let time = words::time(history.span_seconds.saturating_mul((bars.len() * each) as u64));
    let is_something = bars.iter().any(Option::is_some);
    is_something.then(|| (time, bars.into_iter().map(|bar| bar.unwrap_or('·')).collect()))
}

fn swarm(text: &mut String, report: &Report) -> anyhow::Result<()> {
    let Some(node) = report.swarm.as_ref().and_then(|swarm| swarm.status.as_ref()) else {
        return Ok(());
    };
    let site = if node.site.is_empty() { "no name" } else { &node.site };
    writeln!(
        text,
        "swarm:                   {} (site {}), {} nodes known, {} connected, {} in the table",
        plain(&node.swarm),
        plain(site),
        node.cards,
        node.connected,
        node.table
    )?;
    writeln!(text, "announced:               {}", Swarm::announced(node))?;
    writeln!(text, "kept for others:         {} records", words::count(node.records as u64))?;
    Ok(())
}

fn site(text: &mut String, report: &Report) -> anyhow::Result<()> {
    let unknown = || "unknown".to_owned();
    let volume = &report.volume;
    let quota = report.stored.and_then(|stored| stored.quota);
    let quota = quota.map(|quota| format!(" of {}", words::bytes(quota))).unwrap_or_default();
    let free = volume.free.zip(volume.total).map_or_else(unknown, |(free, total)| {
        format!("{} of {}", words::bytes(free), words::bytes(total))
    });
    let learnt = report
        .stored
        .map_or_else(unknown, |stored| words::things(stored.expectations, "file", "files"));
    let names = report.stored.map_or_else(unknown, |stored| words::count(stored.resources));
    let all = |all: &[String], none: &str| match all {
        [] => none.to_owned(),
        all => plain(&all.join(", ")),
    };
    writeln!(text, "stored:                  {}, {}{quota}", volume.files(), volume.size())?;
    writeln!(text, "free on the volume:      {free}")?;
    writeln!(text, "names known:             {names}")?;
    writeln!(text, "learnt from lists:       {learnt}")?;
    writeln!(text, "duties:                  {}", all(&report.duties, "none at the moment"))?;
    let replicas = all(&report.replicas, "none that others reach");
    writeln!(text, "other replicas:          {replicas}")?;
    writeln!(text, "this process:            {}", plain(&report.process))?;
    Ok(())
}

/// Last: so it is what a terminal shows.
fn state(text: &mut String, troubles: &[Trouble]) -> anyhow::Result<()> {
    let mut troubles =
        troubles.iter().map(|trouble| plain(&format!("{}. {}", trouble.what, trouble.means)));
    let state = troubles.next().unwrap_or_else(|| "all is well".to_owned());
    writeln!(text, "state:                   {state}")?;
    for trouble in troubles {
        writeln!(text, "                         {trouble}")?;
    }
    Ok(())
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
    let name = archive.name();
    let refused = archive.refused.as_ref().map(|why| {
        let ago = words::ago(archive.refused_ago.unwrap_or_default());
        format!(", REFUSED {ago}: its mirror {why}")
    });
    let refused = refused.unwrap_or_default();
    if !archive.served {
        return format!("{name}: none admitted{refused}");
    }
    let valid = match archive.valid_until {
        Some(_) if archive.expired => ", EXPIRED".to_owned(),
        Some(until) => format!(", valid until {}", words::date(until)),
        None => String::new(),
    };
    let keys = match &archive.keys[..] {
        [] => String::new(),
        [key] => format!(" ({key})"),
        [key, others @ ..] => format!(" ({key} and {} more)", others.len()),
    };
    let signature = format!("signature: {}{keys}", archive.signed().1);
    let confirmed = archive.confirmed.map_or("unknown".to_owned(), words::ago);
    format!("{name}: made {}{valid}, {signature}, confirmed: {confirmed}{refused}", archive.made())
}

fn mirror(mirror: &Mirror) -> String {
    let state = match (mirror.state.as_str(), mirror.asked) {
        ("well", None) => "not asked yet".to_owned(),
        ("well", Some(_)) => "in use".to_owned(),
        ("failed", Some(asked)) => format!("failed when last asked, {}", words::ago(asked)),
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
    let success = peer.success.clamp(0.0, 1.0) * 100.0;
    format!("{}: {state}, gave {gave}{rate}, {success:.0} % succeed", peer.name())
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
    fn the_history_is_in_a_line() {
        let spans = |bytes: [u64; 3]| bytes.map(|bytes| vec![bytes; 40]).concat();
        let history = json!({
            "span_seconds": 2,
            "from_store": spans([0, 0, 7]),
            "from_peers": spans([0, 0, 0]),
            "from_replicas": spans([0, 0, 0]),
            "from_mirrors": spans([0, 9, 1]),
        });
        let told = told(json!({ "history": history }));
        let line = told.lines().find(|line| line.starts_with("spared")).unwrap();
        assert!(line.ends_with(" within 4 min") && line.contains("·▁") && line.contains("▂▇"));
    }

    #[test]
    fn what_another_version_tells_is_left_out() {
        let report = json!({"version": "9", "new": {"a": 1}, "swarm": {"node": "x", "more": 1}});
        assert!(told(report).starts_with("aptmesh 9"));
    }
}
