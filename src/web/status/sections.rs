//! The report as the parts of a page.

use crate::web::explain;
use crate::web::status::html::{Column, Html, list, more, section, table};
use crate::web::status::picture;
use crate::web::status::report::{Archive, Flight, Mirror, Peer, Report, Swarm, Trouble, Way};
use crate::web::status::words;

/// Rows of a table at most.
const ROWS_MAX: usize = 50;
/// Digits of a key's fingerprint by which people tell it.
const KEY_DIGITS: usize = 16;
/// What is whose.
const OF_WHOM: &str = "Stored files, and what is called the whole site’s, are shared by all replicas. \
    All else is of this process alone.";

/// All of it.
pub(super) fn of(report: &Report) -> Html {
    let mut html = Html::default();
    html.raw(
        "<div id=\"top\" data-live>\n<header class=\"top\"><h1>aptmesh</h1><span class=\"quiet\">",
    );
    html.text(&report.version).raw(", up ").text(words::time(report.uptime_seconds));
    html.raw(", process ")
        .text(&report.process)
        .raw("</span></header>\n")
        .add(&state(&report.troubles))
        .add(&tiles(report));
    html.raw("<p class=\"quiet\">").raw(OF_WHOM).raw("</p>\n");
    html.raw("</div>\n<p id=\"lost\" class=\"card trouble\" role=\"status\" hidden>");
    html.raw("The cache does not answer: these are old numbers.</p>\n");
    html.add(&section("traffic", "Traffic", &traffic(report)));
    html.add(&section("history", "Sources over time", &picture::of(&report.history)));
    html.add(&section("flights", "Downloads under way", &flights(report)));
    html.add(&explain::form());
    html.add(&section("archives", "Archives", &archives(report.archives.as_deref())));
    html.add(&section("mirrors", "Mirrors", &mirrors(&report.mirrors)));
    html.add(&section("swarm", "Swarm", &swarm(report)));
    html.add(&section("site", "This process and its site", &site(report)));
    html
}

/// What is wrong, or that nothing is.
pub(in crate::web) fn state(troubles: &[Trouble]) -> Html {
    let mut html = Html::default();
    if troubles.is_empty() {
        html.raw("<p class=\"card well\">All is well.</p>\n");
        return html;
    }
    html.raw("<div class=\"card trouble\">\n<h2>Not all is well</h2>\n<ul>\n");
    for trouble in troubles {
        html.raw("<li>").text(&trouble.what).raw("<small>").text(&trouble.means);
        html.raw("</small></li>\n");
    }
    html.raw("</ul></div>\n");
    html
}

/// A key number, under its name, with a word on it.
pub(in crate::web) fn tile(name: &'static str, number: &str, word: &str) -> Html {
    let mut html = Html::default();
    html.raw("<div><span class=\"quiet\">").raw(name).raw("</span><b>").text(number);
    html.raw("</b><small>").text(word).raw("</small></div>\n");
    html
}

fn tiles(report: &Report) -> Html {
    let traffic = &report.traffic;
    let ever = traffic.all_time.unwrap_or(traffic.session);
    let since =
        if traffic.all_time.is_some() { "whole site, since ever" } else { "since the start" };
    let now = &traffic.now;
    let of_quota = report.stored.and_then(|stored| stored.quota);
    let of_quota = of_quota.map_or_else(
        || report.volume.files(),
        |quota| {
            let share =
                report.volume.bytes.map_or("unknown".to_owned(), |b| words::share(b, quota));
            format!("{share} of {}", words::bytes(quota))
        },
    );
    let hit = words::share(ever.from_store, ever.all());
    let mut html = Html::default();
    html.raw("<div class=\"card tiles\">\n");
    html.add(&tile("Spared the mirrors", &words::bytes(ever.spared()), since));
    html.add(&tile("Hit ratio", &hit, &format!("of bytes, {since}")));
    let peers = words::share(ever.from_peers, ever.not_from_store());
    html.add(&tile("Peer ratio", &peers, "of bytes fetched"));
    html.add(&tile("Now", &words::rate(now.all()), "over ten seconds"));
    html.add(&tile("Stored", &report.volume.size(), &of_quota));
    html.raw("</div>\n");
    html
}

fn traffic(report: &Report) -> Html {
    let traffic = &report.traffic;
    let columns = [
        Column("", false),
        Column("Now", true),
        Column("Last minute", true),
        Column("Since the start", true),
        Column("All time, whole site", true),
    ];
    let ways: [(&str, Way); 6] = [
        ("From the store, or shared", |bytes| bytes.from_store),
        ("From replicas", |bytes| bytes.from_replicas),
        ("From peers", |bytes| bytes.from_peers),
        ("From mirrors", |bytes| bytes.from_mirrors),
        ("To peers", |bytes| bytes.to_peers),
        ("To replicas", |bytes| bytes.to_replicas),
    ];
    let rows: Vec<Vec<Html>> = ways
        .into_iter()
        .map(|(name, way)| {
            let ever = traffic
                .all_time
                .as_ref()
                .map_or("unknown".to_owned(), |all| words::bytes(way(all)));
            vec![
                Html::of(name),
                Html::of(words::rate(way(&traffic.now))),
                Html::of(words::rate(way(&traffic.minute))),
                Html::of(words::bytes(way(&traffic.session))),
                Html::of(ever),
            ]
        })
        .collect();
    table(&columns, &rows)
}

fn flights(report: &Report) -> Html {
    let mut html = Html::default();
    if report.flights == 0 {
        html.raw("<p class=\"quiet\">None.</p>\n");
        return html;
    }
    html.raw("<ul class=\"flights\">\n");
    for flight in &report.running {
        html.add(&of_flight(flight));
    }
    html.raw("</ul>\n").add(&more(report.running.len(), report.flights));
    html
}

fn of_flight(flight: &Flight) -> Html {
    let mut html = Html::default();
    html.raw("<li><div class=\"row\"><b title=\"").text(&flight.url).raw("\">");
    html.text(flight.name()).raw("</b><span>").text(words::bytes(flight.bytes));
    if let Some(size) = flight.size {
        html.raw(" of ").text(words::bytes(size));
    }
    html.raw("</span></div>\n<progress aria-label=\"").text(flight.name()).raw("\" max=\"");
    html.text(flight.size.unwrap_or(1).max(1));
    if flight.size.is_some() {
        html.raw("\" value=\"").text(flight.bytes);
    }
    let from = match (flight.from.as_deref(), &flight.mirror) {
        (None, _) => "nobody yet: asking".to_owned(),
        (Some(_), Some(mirror)) => mirror.clone(),
        (Some("replica"), None) => "another replica".to_owned(),
        (Some(from), None) => from.to_owned(),
    };
    html.raw("\"></progress>\n<div class=\"row quiet\"><span>").text(kind(&flight.kind));
    html.raw(" from ").text(from).raw("</span><span>").text(words::rate(flight.bytes_per_second));
    html.raw(" on average, begun ").text(words::ago(flight.age)).raw(", ");
    html.text(words::things(flight.waiting as u64, "waits", "wait")).raw("</span></div></li>\n");
    html
}

fn kind(label: &str) -> &str {
    match label {
        "release" => "release file",
        "index" | "by_hash" => "list",
        "other" => "file",
        label => label,
    }
}

fn archives(archives: Option<&[Archive]>) -> Html {
    let mut html = Html::default();
    let Some(archives) = archives else {
        html.raw("<p class=\"bad\">Not told in time.</p>\n");
        return html;
    };
    if archives.is_empty() {
        html.raw("<p class=\"quiet\">No client asked for a release file since the start.</p>\n");
        return html;
    }
    let columns = [
        Column("Release file", false),
        Column("Made", false),
        Column("Valid until", false),
        Column("Signature", false),
        Column("Confirmed", false),
    ];
    let rows: Vec<Vec<Html>> = archives.iter().take(ROWS_MAX).map(of_archive).collect();
    html.add(&table(&columns, &rows)).add(&more(rows.len(), archives.len()));
    html
}

fn of_archive(archive: &Archive) -> Vec<Html> {
    let mut name = Html::of(archive.name());
    let mut names = vec![archive.url.rsplit('/').next().unwrap_or_default()];
    names.extend(archive.codename.as_deref().or(archive.suite.as_deref()));
    name.raw("<small>").text(names.join(", ")).raw("</small>");
    let mut made = Html::default();
    let is_odd = archive.age.is_none() && archive.date.is_some();
    made.raw(if is_odd { "<span class=\"bad\">" } else { "<span>" }).text(archive.made());
    made.raw("</span>");
    if let Some(date) = archive.date {
        made.raw("<small>").text(words::date(date)).raw("</small>");
    }
    let mut until = Html::default();
    match archive.valid_until {
        Some(at) if archive.expired => {
            until.raw("<span class=\"bad\">expired</span><small>").text(words::date(at));
            until.raw("</small>")
        }
        Some(at) => until.text(words::date(at)),
        None if archive.served => until.raw("<span class=\"quiet\">not said</span>"),
        None => until.raw("–"),
    };
    let mut confirmed = Html::of(match archive.confirmed {
        Some(ago) => words::ago(ago),
        None if archive.served => "unknown".to_owned(),
        None => "never".to_owned(),
    });
    if let Some(reason) = &archive.refused {
        confirmed.raw("<small class=\"bad\">its mirror ").text(reason).raw("</small>");
    }
    vec![name, made, until, signature(archive), confirmed]
}

fn signature(archive: &Archive) -> Html {
    let mut html = Html::default();
    let (class, words) = archive.signed();
    html.raw("<span class=\"").raw(class).raw("\">").raw(words).raw("</span>");
    for key in archive.keys.iter().take(4) {
        let digits = key.len().saturating_sub(KEY_DIGITS);
        let short = key.get(digits..).unwrap_or(key);
        html.raw("<small title=\"").text(key).raw("\">").text(short).raw("</small>");
    }
    html
}

fn mirrors(mirrors: &[Mirror]) -> Html {
    let mut html = Html::default();
    if mirrors.is_empty() {
        html.raw("<p class=\"quiet\">None was asked since the start.</p>\n");
        return html;
    }
    let columns = [
        Column("Mirror", false),
        Column("State", false),
        Column("Requests", true),
        Column("Failed", true),
        Column("Bytes", true),
        Column("Rate", true),
        Column("Last failure", false),
    ];
    let rows: Vec<Vec<Html>> = mirrors.iter().take(ROWS_MAX).map(of_mirror).collect();
    html.add(&table(&columns, &rows)).add(&more(rows.len(), mirrors.len()));
    html
}

fn of_mirror(mirror: &Mirror) -> Vec<Html> {
    let mut name = Html::of(&mirror.url);
    if let Some(archive) = &mirror.archive {
        name.raw("<small>serves ").text(archive).raw("</small>");
    }
    let mut state = Html::default();
    match (mirror.state.as_str(), mirror.asked) {
        ("well", None) => state.raw("<span class=\"quiet\">not asked yet</span>"),
        ("well", Some(_)) => state.raw("<span class=\"good\">in use</span>"),
        ("failed", _) => state.raw("<span class=\"bad\">failed when last asked</span>"),
        ("away", _) => state.raw("<span class=\"bad\">away</span>"),
        _ => state.raw("<span class=\"bad\">benched</span>"),
    };
    if mirror.state == "failed" {
        state.raw("<small>").text(words::ago(mirror.asked.unwrap_or_default())).raw("</small>");
    } else if mirror.state != "well" {
        state.raw("<small>for ").text(words::time(mirror.benched_for)).raw("</small>");
    }
    let rate = mirror.bytes_per_second.map_or("–".to_owned(), words::rate);
    let mut failure = Html::default();
    match &mirror.last_failure {
        Some(reason) => {
            let ago = words::ago(mirror.failed_ago.unwrap_or_default());
            failure.text(reason).raw("<small>").text(ago).raw("</small>")
        }
        None => failure.raw("<span class=\"quiet\">none</span>"),
    };
    vec![
        name,
        state,
        Html::of(words::count(mirror.requests)),
        Html::of(words::count(mirror.failures)),
        Html::of(words::bytes(mirror.bytes)),
        Html::of(rate),
        failure,
    ]
}

fn swarm(report: &Report) -> Html {
    let mut html = Html::default();
    match &report.swarm {
        None => {
            html.raw("<p class=\"quiet\">This site is in no swarm (swarm.key).</p>\n");
        }
        Some(swarm) => match &swarm.status {
            None => {
                let why = swarm.trouble.as_deref().unwrap_or("the node does not answer");
                html.raw("<p class=\"bad\">").text(why).raw("</p>\n");
            }
            Some(node) => {
                let number = |number: usize| Html::of(words::count(number as u64));
                html.add(&list(&[
                    ("Site", Html::of(if node.site.is_empty() { "no name" } else { &node.site })),
                    ("Nodes connected", number(node.connected)),
                    ("Nodes in the table", number(node.table)),
                    ("Nodes known", number(node.cards)),
                    ("Records kept for others", number(node.records)),
                    ("Announced", Html::of(Swarm::announced(node))),
                    ("Generation of its filter", Html::of(node.filter)),
                    ("Swarm", Html::of(&node.swarm)),
                ]));
            }
        },
    }
    if !report.peers.is_empty() {
        html.raw("<h2>Peers, by what they gave</h2>\n").add(&peers(&report.peers));
    }
    html
}

fn peers(peers: &[Peer]) -> Html {
    let columns = [
        Column("Peer", false),
        Column("State", false),
        Column("Gave", true),
        Column("Rate", true),
        Column("First byte", true),
        Column("Succeeds", true),
        Column("Asked now", true),
    ];
    let rows: Vec<Vec<Html>> = peers.iter().take(ROWS_MAX).enumerate().map(of_peer).collect();
    let mut html = table(&columns, &rows);
    html.add(&more(rows.len(), peers.len()));
    html
}

fn of_peer((place, peer): (usize, &Peer)) -> Vec<Html> {
    let mut name = Html::of(format!("{}. {}", place + 1, peer.name()));
    name.raw("<small title=\"").text(&peer.node).raw("\">").text(&peer.url).raw("</small>");
    let mut state = Html::default();
    if peer.blamed {
        state.raw("<span class=\"bad\">gave wrong bytes</span><small>not asked for a day</small>");
    } else if peer.benched_for > 0 {
        state.raw("<span class=\"bad\">benched</span><small>for ");
        state.text(words::time(peer.benched_for)).raw("</small>");
    } else {
        state.raw("<span class=\"good\">in use</span>");
    }
    vec![
        name,
        state,
        Html::of(words::bytes(peer.proven_bytes)),
        Html::of(peer.bytes_per_second.map_or("–".to_owned(), words::rate)),
        Html::of(peer.first_byte_ms.map_or("–".to_owned(), |ms| format!("{ms} ms"))),
        Html::of(format!("{:.0} %", peer.success.clamp(0.0, 1.0) * 100.0)),
        Html::of(peer.in_flight),
    ]
}

fn site(report: &Report) -> Html {
    let unknown = || Html::of("unknown");
    let stored = report.stored;
    let count = |number: Option<u64>| number.map_or_else(unknown, |n| Html::of(words::count(n)));
    let volume = &report.volume;
    let quota = stored.map_or_else(unknown, |stored| {
        Html::of(stored.quota.map_or("none".to_owned(), words::bytes))
    });
    let free = volume.free.zip(volume.total).map_or_else(unknown, |(free, total)| {
        Html::of(format!("{} of {}", words::bytes(free), words::bytes(total)))
    });
    let duties = or(&report.duties, "none at the moment");
    let replicas = or(&report.replicas, "none that others reach");
    list(&[
        ("Stored", Html::of(format!("{}, {}", volume.files(), volume.size()))),
        ("Quota", quota),
        ("Free on the volume", free),
        ("Names known", count(stored.map(|stored| stored.resources))),
        ("Learnt from lists", count(stored.map(|stored| stored.expectations))),
        ("Duties of this process", Html::of(duties)),
        ("Other replicas", Html::of(replicas)),
        ("This process", Html::of(&report.process)),
    ])
}

/// All of them, or that there are none.
fn or(all: &[String], none: &str) -> String {
    if all.is_empty() { none.to_owned() } else { all.join(", ") }
}
