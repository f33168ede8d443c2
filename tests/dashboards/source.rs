//! Makes Grafana's JSON of what is in `dashboards/source/`, so that units, colours and sizes are the same
//! everywhere and a panel is three lines: what it is called, what it shows and what it asks Prometheus.

use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;

/// The dashboards, in the order in which a reader goes from one to the next.
pub const BOARDS: [&str; 4] = ["fleet", "site", "swarm", "mirrors"];
/// Grafana's grid.
pub const COLUMNS: u64 = 24;
/// What `$here` of an expression stands for: the sites and instances that are chosen.
pub const HERE: &str = "$by=~\"$site\",instance=~\"$instance\"";
/// By which of its labels a target's site is told. The first is what compose.yaml and the chart set.
const SITE_LABELS: [&str; 5] = ["site", "job", "namespace", "cluster", "instance"];

/// What has the same name has the same colour in all panels: what costs nothing is green, what other sites
/// give is blue, what the mirror had to send is orange, what failed is red.
pub const COLOURS: [(&str, &[&str]); 14] = [
    ("#37872D", &["memory"]),
    (
        "#73BF69",
        &[
            "store", "hit", "2xx", "p50", "good", "answered", "found", "taken", "given", "stored",
            "learnt", "used", "told", "whole",
        ],
    ),
    ("#C8F2C2", &["flight", "revalidated", "confirmed", "304", "3xx"]),
    ("#FADE2A", &["stale", "4xx", "p95", "older", "late", "superseded", "not_stored", "no_room"]),
    ("#8AB8FF", &["replica"]),
    ("#5794F2", &["peer"]),
    ("#FF9830", &["mirror", "miss", "fetched", "p99"]),
    ("#FFCB7D", &["relayed"]),
    ("#B877D9", &["collapsed"]),
    ("#A352CC", &["refused"]),
    ("#8E8E8E", &["none", "idle", "known", "not_asked", "absent", "left", "given_up"]),
    ("#F2495C", &["error", "5xx", "bad", "failed", "lost", "silent", "waiting", "wasted"]),
    ("#C4162A", &["cut", "expired", "unreachable", "broken", "away"]),
    ("#E0B400", &["unsigned", "unknown_key", "expired_key", "weak", "malformed", "unreadable"]),
];
/// Which of those words a label has.
pub const LABELS: [(&str, &[&str]); 9] = [
    ("source", &["memory", "store", "flight", "stale", "replica", "peer", "mirror", "none"]),
    ("from", &["peer", "replica"]),
    (
        "outcome",
        &[
            "hit",
            "revalidated",
            "stale",
            "collapsed",
            "miss",
            "relayed",
            "refused",
            "error",
            "answered",
            "late",
            "not_asked",
            "failed",
            "found",
            "none",
            "learnt",
            "known",
            "superseded",
            "lost",
            "taken",
            "told",
            "whole",
            "confirmed",
            "cut",
            "not_stored",
            "given_up",
            "away",
            "no_room",
        ],
    ),
    ("class", &["2xx", "3xx", "4xx", "5xx", "cut", "left"]),
    (
        "answer",
        &[
            "2xx",
            "3xx",
            "304",
            "4xx",
            "5xx",
            "silent",
            "unreachable",
            "broken",
            "given",
            "absent",
            "failed",
        ],
    ),
    (
        "verdict",
        &[
            "good",
            "bad",
            "expired",
            "older",
            "unsigned",
            "unknown_key",
            "expired_key",
            "weak",
            "malformed",
            "unreadable",
        ],
    ),
    ("result", &["found", "none", "late", "taken", "refused", "failed"]),
    ("fate", &["fetched", "used", "wasted"]),
    ("state", &["idle"]),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Board {
    title: String,
    about: String,
    /// Metrics that each site has which is to be chosen here.
    sites: String,
    /// Whether a gigabyte has a price here.
    #[serde(default)]
    price: bool,
    row: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    title: String,
    panel: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Panel {
    title: String,
    about: String,
    draw: Draw,
    /// Grafana's word for it; `short` if there is none.
    unit: Option<String>,
    /// How wide, of 24.
    width: Option<u64>,
    /// From where on it is how bad.
    judge: Option<Judge>,
    decimals: Option<u64>,
    /// Whether lines may fall below zero.
    #[serde(default)]
    below_zero: bool,
    /// What is shown where there is nothing.
    nothing: Option<String>,
    /// What 0 and 1 mean.
    words: Option<[String; 2]>,
    /// Names of series, or of columns, and their expressions.
    ask: Vec<[String; 2]>,
    /// Units of a table's columns.
    #[serde(default)]
    units: Vec<String>,
    /// The dashboard with more about a table's row, and how that is chosen there.
    more: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Draw {
    /// One number, now.
    Stat,
    Lines,
    /// Lines of which each is added to those below.
    Stack,
    /// Bands whose colour tells how a thing was.
    States,
    Table,
}

impl Draw {
    /// Columns and lines of Grafana's grid.
    fn size(self) -> (u64, u64) {
        match self {
            Self::Stat => (4, 4),
            Self::Lines | Self::Stack | Self::States => (8, 8),
            Self::Table => (COLUMNS, 6),
        }
    }

    fn grafanas_name(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Lines | Self::Stack => "timeseries",
            Self::States => "state-timeline",
            Self::Table => "table",
        }
    }
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Judge {
    /// The more the better.
    Share,
    /// 1 is well, 0 is not.
    Up,
    /// None is well, any is worth a look.
    Few,
    /// None is well, any is bad.
    Never,
    /// Of requests that fail.
    Failing,
    /// Seconds behind.
    Late,
}

impl Judge {
    /// From which values on it is which colour.
    fn steps(self) -> &'static [(Option<f64>, &'static str)] {
        match self {
            Self::Share => &[(None, "red"), (Some(0.3), "orange"), (Some(0.6), "green")],
            Self::Up => &[(None, "red"), (Some(1.0), "green")],
            Self::Few => &[(None, "green"), (Some(1.0), "orange")],
            Self::Never => &[(None, "green"), (Some(0.001), "red")],
            Self::Failing => &[(None, "green"), (Some(0.01), "orange"), (Some(0.05), "red")],
            Self::Late => &[(None, "green"), (Some(60.0), "orange"), (Some(600.0), "red")],
        }
    }
}

/// The file of a dashboard, as it is to be.
pub fn made(name: &str) -> String {
    let path = format!("dashboards/source/{name}.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let board: Board = toml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
    format!("{:#}\n", drawn(name, &board))
}

fn drawn(name: &str, board: &Board) -> Value {
    json!({
        "uid": format!("aptmesh-{name}"),
        "title": board.title,
        "description": board.about,
        "tags": ["aptmesh"],
        "schemaVersion": 41,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "time": { "from": "now-6h", "to": "now" },
        "refresh": "30s",
        "timezone": "browser",
        "links": [{
            "type": "dashboards", "tags": ["aptmesh"], "title": "aptmesh",
            "asDropdown": false, "includeVars": true, "keepTime": true,
        }],
        "templating": { "list": variables(board) },
        "panels": panels(&board.row),
    })
}

fn variables(board: &Board) -> Vec<Value> {
    let labels = SITE_LABELS.map(|label| json!({ "text": label, "value": label }));
    let choose = |name: &str, title: &str, query: String| {
        json!({
            "name": name, "label": title, "type": "query", "query": query, "definition": query,
            "datasource": { "type": "prometheus", "uid": "$datasource" },
            "refresh": 2, "sort": 1, "multi": true, "includeAll": true,
            // A label that a target lacks must not hide it.
            "allValue": ".*", "current": { "text": "All", "value": "$__all" },
        })
    };
    let among = format!("{{__name__=~\"{}\"", board.sites);
    let mut variables = vec![
        json!({ "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus" }),
        json!({
            "name": "by", "label": "Sites by label", "type": "custom", "query": SITE_LABELS.join(","),
            "options": labels, "current": labels[0],
        }),
        choose("site", "Site", format!("label_values({among}}}, $by)")),
        choose("instance", "Instance", format!("label_values({among},$by=~\"$site\"}}, instance)")),
    ];
    if board.price {
        let price = json!({ "text": "0.05", "value": "0.05" });
        variables.push(json!({
            "name": "price", "label": "Price of a GB", "type": "textbox", "query": "0.05",
            "options": [price], "current": price,
        }));
    }
    variables
}

/// From left to right and from top to bottom, each row below its title.
fn panels(rows: &[Row]) -> Vec<Value> {
    let (mut panels, mut y) = (Vec::new(), 0);
    for row in rows {
        panels.push(json!({
            "id": panels.len() + 1, "type": "row", "title": row.title, "collapsed": false, "panels": [],
            "gridPos": { "x": 0, "y": y, "w": COLUMNS, "h": 1 },
        }));
        y += 1;
        let (mut x, mut line) = (0, 0);
        for panel in &row.panel {
            let (width, height) = panel.draw.size();
            let width = panel.width.unwrap_or(width);
            if x + width > COLUMNS {
                (x, y, line) = (0, y + line, 0);
            }
            let mut made = self::panel(panel);
            made["id"] = json!(panels.len() + 1);
            made["gridPos"] = json!({ "x": x, "y": y, "w": width, "h": height });
            panels.push(made);
            (x, line) = (x + width, line.max(height));
        }
        y += line;
    }
    panels
}

fn panel(panel: &Panel) -> Value {
    let mut made = json!({
        "type": panel.draw.grafanas_name(),
        "title": panel.title,
        "description": panel.about,
        "datasource": { "type": "prometheus", "uid": "$datasource" },
        "targets": targets(panel),
        "fieldConfig": { "defaults": defaults(panel), "overrides": overrides(panel) },
        "options": options(panel.draw),
    });
    if panel.draw == Draw::Table {
        made["transformations"] = json!([
            { "id": "merge", "options": {} },
            { "id": "organize", "options": { "excludeByName": { "Time": true } } },
        ]);
    }
    made
}

fn targets(panel: &Panel) -> Vec<Value> {
    let target = |(letter, [name, expression]): (char, &[String; 2])| {
        let mut target = json!({
            "refId": letter.to_string(),
            "datasource": { "type": "prometheus", "uid": "$datasource" },
            "expr": expression.replace("$here", HERE),
        });
        match panel.draw {
            Draw::Stat => target["instant"] = json!(true),
            Draw::Table => {
                target["instant"] = json!(true);
                target["format"] = json!("table");
            }
            _ => target["legendFormat"] = json!(name),
        }
        target
    };
    ('A'..='Z').zip(&panel.ask).map(target).collect()
}

fn defaults(panel: &Panel) -> Value {
    let mut defaults = json!({ "unit": panel.unit.as_deref().unwrap_or("short") });
    let judged = matches!(panel.draw, Draw::Stat | Draw::States) || panel.judge.is_some();
    if judged {
        let plain: &[_] = &[(None, "blue")];
        let steps = panel.judge.map_or(plain, Judge::steps).iter();
        let steps: Vec<Value> =
            steps.map(|(value, color)| json!({ "color": color, "value": value })).collect();
        defaults["thresholds"] = json!({ "mode": "absolute", "steps": steps });
    }
    match panel.draw {
        Draw::Stat | Draw::States => defaults["color"] = json!({ "mode": "thresholds" }),
        Draw::Lines => {
            if !panel.below_zero {
                defaults["min"] = json!(0);
            }
            defaults["custom"] = json!({
                "lineWidth": 1, "fillOpacity": 8, "showPoints": "auto", "spanNulls": false,
            });
        }
        Draw::Stack => {
            defaults["min"] = json!(0);
            defaults["custom"] = json!({
                "lineWidth": 1, "fillOpacity": 40, "showPoints": "auto", "spanNulls": false,
                "stacking": { "mode": "normal", "group": "A" },
            });
        }
        Draw::Table => {}
    }
    if let Some(decimals) = panel.decimals {
        defaults["decimals"] = json!(decimals);
    }
    if let Some(nothing) = &panel.nothing {
        defaults["noValue"] = json!(nothing);
    }
    if let Some([zero, one]) = &panel.words {
        let options = json!({ "0": { "text": zero }, "1": { "text": one } });
        defaults["mappings"] = json!([{ "type": "value", "options": options }]);
    }
    if let Some(more) = &panel.more {
        let url = format!(
            "/d/aptmesh-{more}&var-datasource=${{datasource}}&var-by=${{by}}&${{__url_time_range}}"
        );
        defaults["links"] = json!([{ "title": "More about it", "url": url }]);
    }
    defaults
}

/// The colours of what has a name, and how a table's columns are called and read.
fn overrides(panel: &Panel) -> Vec<Value> {
    let by_name = |name: &str, properties: Value| json!({ "matcher": { "id": "byName", "options": name }, "properties": properties });
    match panel.draw {
        Draw::Stat | Draw::States => Vec::new(),
        Draw::Lines | Draw::Stack => colours(&panel.ask),
        Draw::Table => {
            let units = panel.units.iter().map(String::as_str).chain(std::iter::repeat("short"));
            let columns = ('A'..='Z').zip(&panel.ask).zip(units);
            columns
                .map(|((letter, [name, _]), unit)| {
                    // Of a single answer Grafana does not say which one it is.
                    let column = if panel.ask.len() == 1 {
                        "Value".to_owned()
                    } else {
                        format!("Value #{letter}")
                    };
                    by_name(
                        &column,
                        json!([
                            { "id": "displayName", "value": name }, { "id": "unit", "value": unit },
                        ]),
                    )
                })
                .collect()
        }
    }
}

/// Of the words that series may be called: by a label's value, or as it stands here.
fn colours(ask: &[[String; 2]]) -> Vec<Value> {
    let words: Vec<&str> = ask
        .iter()
        .flat_map(|[name, _]| {
            let label = name.strip_prefix("{{").and_then(|name| name.strip_suffix("}}"));
            let label = LABELS.iter().find(|(known, _)| Some(*known) == label);
            label.map_or_else(|| vec![name.as_str()], |(_, words)| words.to_vec())
        })
        .collect();
    let mut chosen = Vec::new();
    for (colour, its) in COLOURS {
        let named: Vec<&str> = its.iter().copied().filter(|word| words.contains(word)).collect();
        if !named.is_empty() {
            let names = format!("/^({})$/", named.join("|"));
            chosen.push(json!({
                "matcher": { "id": "byRegexp", "options": names },
                "properties": [{ "id": "color", "value": { "mode": "fixed", "fixedColor": colour } }],
            }));
        }
    }
    chosen
}

fn options(draw: Draw) -> Value {
    let legend = json!({ "displayMode": "list", "placement": "bottom", "showLegend": true });
    match draw {
        Draw::Stat => json!({
            "colorMode": "value", "graphMode": "none", "justifyMode": "auto", "textMode": "auto",
            "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
        }),
        Draw::Lines | Draw::Stack => {
            json!({ "legend": legend, "tooltip": { "mode": "multi", "sort": "desc" } })
        }
        Draw::States => json!({
            "showValue": "never", "mergeValues": true, "rowHeight": 0.8, "legend": legend,
            "tooltip": { "mode": "single" },
        }),
        Draw::Table => json!({ "showHeader": true, "cellHeight": "sm" }),
    }
}
