//! A dashboard as a page of HTML and SVG, much as Grafana draws it: so that whoever reads the handbook sees
//! what it looks like, and a test that it shows something.

use super::board::{Panel, Series, Table, View};
use serde_json::Value;
use std::fmt::Write as _;

/// Pixels of the grid: its columns, its lines, and what lies between.
const COLUMN: u64 = 48;
const LINE: u64 = 25;
const GAP: u64 = 6;
/// Above the grid.
const HEAD: u64 = 46;
pub const WIDTH: u64 = 24 * COLUMN + 2 * GAP;
/// Below a chart, for the names of its lines, and left of it, for values.
const LEGEND: u64 = 34;
const AXIS: u64 = 58;
/// Lines without a colour of their own.
const PALETTE: [&str; 8] =
    ["#73BF69", "#FADE2A", "#5794F2", "#FF9830", "#B877D9", "#8AB8FF", "#F2495C", "#E0B400"];
const STYLE: &str = "*{box-sizing:border-box;margin:0}\
    body{background:#111217;color:#ccccdc;font:12px 'DejaVu Sans',sans-serif;position:relative}\
    h1{font-size:17px;font-weight:500;padding:12px 14px;position:absolute}\
    .choice{position:absolute;right:14px;top:12px;color:#9a9aa8}\
    .choice b{color:#ccccdc;font-weight:400;border:1px solid #34363d;border-radius:2px;padding:3px 7px;margin:0 10px 0 4px}\
    .panel{position:absolute;background:#181b1f;border:1px solid #25272c;border-radius:2px;overflow:hidden}\
    .panel h2{font-size:12px;font-weight:500;padding:7px 9px 0}\
    .row{position:absolute;font-size:14px;font-weight:500;padding:4px 6px}\
    .stat{display:flex;height:72px;align-items:center;justify-content:center;font-size:28px}\
    .legend{position:absolute;bottom:4px;left:9px;right:6px;height:30px;overflow:hidden;font-size:10px;color:#b4b4c0;line-height:15px}\
    .legend i{display:inline-block;width:11px;height:3px;border-radius:1px;margin:0 4px 3px 0}\
    .legend span{margin-right:11px;white-space:nowrap}\
    svg{position:absolute;left:0;top:26px}\
    svg text{fill:#9a9aa8;font-size:10px}\
    table{width:100%;border-collapse:collapse;margin-top:6px}\
    td,th{text-align:left;font-weight:400;padding:4px 9px;border-top:1px solid #25272c}\
    th{color:#6e9fff;font-size:11px}\
    .none{color:#7b7b88;padding:24px;text-align:center}";

/// A page, and how high it is in pixels.
pub struct Page {
    pub html: String,
    pub height: u64,
    /// What the page says is empty.
    pub empty: Vec<String>,
}

/// Draws the rows of these titles; none: all. What is shown of the test's own addresses has `names`.
pub fn page(
    title: &str,
    panels: &[Panel],
    rows: &[&str],
    view: &View,
    names: &[(String, &str)],
) -> Page {
    let mut page = Page { html: String::new(), height: HEAD, empty: Vec::new() };
    let site = if view.site == ".*" { "All" } else { view.site };
    let choice = format!("Sites by label <b>site</b> Site <b>{site}</b> Instance <b>All</b>");
    write!(
        page.html,
        "<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1><p class=choice>{choice}</p>"
    )
    .unwrap();
    let (mut is_wanted, mut above) = (true, 0);
    for panel in panels {
        let [x, y, width, height] = panel.place;
        let is_row = panel.kind == "row";
        if is_row {
            let was_wanted = std::mem::replace(
                &mut is_wanted,
                rows.is_empty() || rows.contains(&panel.title.as_str()),
            );
            // What is left out takes no room.
            if is_wanted && (!was_wanted || above == 0) {
                above = y * LINE + HEAD - page.height.max(HEAD);
            }
        }
        if !is_wanted {
            continue;
        }
        let top = HEAD + y * LINE - above;
        let size = [width * COLUMN - GAP, height * LINE - GAP];
        let place = format!(
            "left:{}px;top:{top}px;width:{}px;height:{}px",
            GAP + x * COLUMN,
            size[0],
            size[1]
        );
        page.height = page.height.max(top + height * LINE);
        match is_row {
            true => {
                write!(page.html, "<div class=row style='{place}'>{}</div>", escaped(&panel.title))
            }
            false => {
                let heading = escaped(&view.filled_in(&panel.title));
                let inside = drawn(panel, view, size, &mut page.empty);
                write!(
                    page.html,
                    "<div class=panel style='{place}'><h2>{heading}</h2>{inside}</div>"
                )
            }
        }
        .unwrap();
    }
    for (address, name) in names {
        page.html = page.html.replace(address, name);
    }
    page
}

fn drawn(panel: &Panel, view: &View, [width, height]: [u64; 2], empty: &mut Vec<String>) -> String {
    let mut nothing = || {
        empty.push(panel.title.clone());
        "<p class=none>No data</p>".to_owned()
    };
    match panel.kind.as_str() {
        "stat" => match view.number(panel) {
            Some(number) => stat(panel, number),
            None => nothing(),
        },
        "table" => match view.table(panel) {
            table if table.lines.is_empty() => nothing(),
            table => self::table(panel, &table),
        },
        kind => match view.series(panel) {
            series if series.is_empty() => nothing(),
            series if kind == "state-timeline" => bands(panel, &series, view, [width, height]),
            series => chart(panel, series, view, [width, height]),
        },
    }
}

fn stat(panel: &Panel, number: f64) -> String {
    let said = panel.field("mappings")[0]["options"][format!("{number}")]["text"].as_str();
    let said = said.map_or_else(
        || amount(panel.field("unit"), number, panel.field("decimals")),
        str::to_owned,
    );
    format!("<div class=stat style='color:{}'>{said}</div>", judged(panel, number))
}

/// By its thresholds.
fn judged(panel: &Panel, number: f64) -> &'static str {
    let steps = panel.field("thresholds")["steps"].as_array().unwrap().iter();
    let mut reached =
        steps.filter(|step| step["value"].as_f64().is_none_or(|value| value <= number));
    match reached.next_back().and_then(|step| step["color"].as_str()) {
        Some("red") => "#F2495C",
        Some("orange") => "#FF9830",
        Some("green") => "#73BF69",
        _ => "#8AB8FF",
    }
}

fn table(panel: &Panel, table: &Table) -> String {
    let columns: Vec<String> = match panel.asks.len() {
        1 => vec!["Value".to_owned()],
        many => ('A'..='Z').take(many).map(|letter| format!("Value #{letter}")).collect(),
    };
    let mut html = "<table><tr>".to_owned();
    let titles =
        columns.iter().map(|column| panel.fixed(column, "displayName").unwrap().as_str().unwrap());
    for title in table.labels.iter().map(String::as_str).chain(titles) {
        write!(html, "<th>{}", escaped(title)).unwrap();
    }
    for (names, values) in &table.lines {
        html.push_str("<tr>");
        for name in names {
            write!(html, "<td>{}", escaped(name)).unwrap();
        }
        for (column, value) in columns.iter().zip(values) {
            let unit = panel.fixed(column, "unit").unwrap();
            let said = value.map(|value| amount(unit, value, &Value::Null)).unwrap_or_default();
            write!(html, "<td>{said}").unwrap();
        }
    }
    html + "</table>"
}

/// Where a time and a value are on a chart.
struct Plane {
    from: f64,
    to: f64,
    low: f64,
    high: f64,
    width: f64,
    height: f64,
}

impl Plane {
    fn x(&self, time: f64) -> f64 {
        AXIS as f64 + (time - self.from) / (self.to - self.from) * (self.width - AXIS as f64 - 8.0)
    }

    fn y(&self, value: f64) -> f64 {
        6.0 + (self.high - value) / (self.high - self.low) * (self.height - 24.0)
    }

    fn path<'a>(&self, points: impl Iterator<Item = &'a (f64, f64)>) -> String {
        let spots: Vec<String> = points
            .map(|(time, value)| format!("{:.1} {:.1}", self.x(*time), self.y(*value)))
            .collect();
        format!("M{}", spots.join("L"))
    }

    /// Times below, and values at the left where there are any.
    fn axes(&self, unit: Option<&Value>) -> String {
        let mut svg = String::new();
        let step = round_step(self.high - self.low);
        let first = (self.low / step).ceil() as i64;
        let steps = (first..).map(|number| number as f64 * step);
        for value in steps.take_while(|value| unit.is_some() && *value <= self.high) {
            let (y, said) = (self.y(value), amount(unit.unwrap(), value, &Value::Null));
            write!(
                svg,
                "<path d='M{AXIS} {y:.1}H{}' stroke='#2a2d33'/>\
                 <text x={} y={:.1} text-anchor=end>{said}</text>",
                self.width - 8.0,
                AXIS - 6,
                y + 3.5
            )
            .unwrap();
        }
        for part in 0..=4 {
            let time = self.from + (self.to - self.from) * f64::from(part) / 4.0;
            let passed = (time - self.from).round() as u64;
            write!(
                svg,
                "<text x={:.1} y={:.1} text-anchor={}>{}:{:02}</text>",
                self.x(time),
                self.height - 4.0,
                if part == 4 { "end" } else { "middle" },
                passed / 60,
                passed % 60
            )
            .unwrap();
        }
        svg
    }
}

/// 1, 2 or 5 of some power of ten, of which four or so make up the range.
fn round_step(range: f64) -> f64 {
    let power = 10_f64.powf((range / 4.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|part| part * power);
    steps.into_iter().find(|step| range / step <= 5.5).unwrap_or(range)
}

fn chart(panel: &Panel, mut series: Vec<Series>, view: &View, [width, height]: [u64; 2]) -> String {
    let is_stacked = panel.field("custom")["stacking"].is_object();
    series.sort_by(|one, other| one.0.cmp(&other.0));
    // Each is added to those below it.
    let mut floor: Vec<(f64, f64)> = Vec::new();
    let mut layers = Vec::new();
    for (name, points) in &series {
        let below = |time: f64| {
            let at = floor.iter().find(|(other, _)| *other == time);
            at.map_or(0.0, |(_, value)| *value)
        };
        let top: Vec<(f64, f64)> = match is_stacked {
            true => points.iter().map(|(time, value)| (*time, value + below(*time))).collect(),
            false => points.clone(),
        };
        let bottom: Vec<(f64, f64)> = match is_stacked {
            true => points.iter().map(|(time, _)| (*time, below(*time))).collect(),
            false => points.iter().map(|(time, _)| (*time, 0.0)).collect(),
        };
        if is_stacked {
            floor.retain(|(time, _)| !top.iter().any(|(other, _)| other == time));
            floor.extend(&top);
        }
        layers.push((name, top, bottom));
    }
    let values = || layers.iter().flat_map(|(_, top, _)| top.iter().map(|(_, value)| *value));
    let high = values().fold(0.0, f64::max);
    let plane = Plane {
        from: view.from,
        to: view.to,
        low: values().fold(0.0, f64::min),
        high: if high > 0.0 { high * 1.05 } else { 1.0 },
        width: width as f64,
        height: (height - 26 - LEGEND) as f64,
    };
    let opacity = panel.field("custom")["fillOpacity"].as_f64().unwrap() / 100.0;
    let mut svg = plane.axes(Some(panel.field("unit")));
    let mut legend = String::new();
    for (number, (name, top, bottom)) in layers.iter().enumerate() {
        let colour = colour(panel, name, number);
        // Where there was nothing for a while, there is no line.
        let pieces = top
            .chunk_by(|one, next| next.0 - one.0 < 1.5)
            .zip(bottom.chunk_by(|one, next| next.0 - one.0 < 1.5));
        // Nothing on top of others is not seen.
        let is_hidden = is_stacked && top.iter().zip(bottom).all(|(one, other)| one.1 == other.1);
        for (top, bottom) in pieces.filter(|_| !is_hidden || number == 0) {
            let line = plane.path(top.iter());
            let back = plane.path(bottom.iter().rev()).replacen('M', "L", 1);
            write!(
                svg,
                "<path d='{line}{back}Z' fill='{colour}' fill-opacity={opacity} />\
                 <path class=curve d='{line}' fill=none stroke='{colour}' stroke-width=1.3 />"
            )
            .unwrap();
        }
        write!(legend, "<span><i style='background:{colour}'></i>{}</span>", escaped(name))
            .unwrap();
    }
    framed(&plane, &svg, &legend)
}

/// A band for each, of the colour of what it was.
fn bands(panel: &Panel, series: &[Series], view: &View, [width, height]: [u64; 2]) -> String {
    let plane = Plane {
        from: view.from,
        to: view.to,
        low: 0.0,
        high: series.len() as f64,
        width: width as f64,
        height: (height - 26 - LEGEND) as f64,
    };
    let mut svg = plane.axes(None);
    for (number, (name, points)) in series.iter().enumerate() {
        let (top, bottom) = (plane.y(number as f64 + 0.62), plane.y(number as f64 + 0.08));
        for while_so in points.chunk_by(|one, next| one.1 == next.1) {
            // Each value holds until the next look.
            let (left, right) = (plane.x(while_so[0].0), plane.x(while_so.last().unwrap().0 + 1.0));
            write!(
                svg,
                "<rect class=curve x={left:.1} y={top:.1} width={:.1} height={:.1} fill='{}' />",
                right - left,
                bottom - top,
                judged(panel, while_so[0].1)
            )
            .unwrap();
        }
        write!(svg, "<text x={AXIS} y={:.1}>{}</text>", top - 5.0, escaped(name)).unwrap();
    }
    let words = &panel.field("mappings")[0]["options"];
    let legend: String = ["0", "1"]
        .iter()
        .map(|value| {
            let colour = judged(panel, value.parse().unwrap());
            let word = words[value]["text"].as_str().unwrap();
            format!("<span><i style='background:{colour}'></i>{word}</span>")
        })
        .collect();
    framed(&plane, &svg, &legend)
}

fn framed(plane: &Plane, svg: &str, legend: &str) -> String {
    format!(
        "<svg width={} height={}>{svg}</svg><p class=legend>{legend}</p>",
        plane.width, plane.height
    )
}

fn colour<'a>(panel: &'a Panel, name: &str, number: usize) -> &'a str {
    let fixed = panel.fixed(name, "color").and_then(|colour| colour["fixedColor"].as_str());
    fixed.unwrap_or(PALETTE[number % PALETTE.len()])
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// A number with Grafana's unit.
fn amount(unit: &Value, number: f64, decimals: &Value) -> String {
    let scaled = |step: f64, words: &[&str]| {
        let mut number = number;
        let mut words = words.iter();
        let mut word = words.next().unwrap();
        while number.abs() >= step {
            let Some(next) = words.next() else { break };
            (number, word) = (number / step, next);
        }
        format!("{}{word}", short(number, decimals))
    };
    match unit.as_str().unwrap() {
        "bytes" => scaled(1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"]),
        "Bps" => scaled(1000.0, &[" B/s", " kB/s", " MB/s", " GB/s"]),
        "percentunit" => format!("{}%", short(number * 100.0, decimals)),
        "reqps" => format!("{} req/s", short(number, decimals)),
        "ops" => format!("{} ops/s", short(number, decimals)),
        "s" if number == 0.0 => "0 s".to_owned(),
        "s" if number.abs() < 1.0 => format!("{} ms", short(number * 1000.0, decimals)),
        "s" if number.abs() < 120.0 => format!("{} s", short(number, decimals)),
        "s" => format!("{} min", short(number / 60.0, decimals)),
        _ => scaled(1000.0, &["", " K", " Mil"]),
    }
}

fn short(number: f64, decimals: &Value) -> String {
    if let Some(decimals) = decimals.as_u64() {
        return format!("{number:.*}", decimals as usize);
    }
    let decimals = match number.abs() {
        large if large >= 100.0 => 0,
        large if large >= 10.0 => 1,
        _ => 2,
    };
    let said = format!("{number:.decimals$}");
    match said.contains('.') {
        true => said.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => said,
    }
}
