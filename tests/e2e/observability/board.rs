//! A dashboard as Grafana reads it, with its variables filled in, and what a Prometheus has for it.

use crate::kit::prometheus::Prometheus;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// How a dashboard is looked at.
pub struct View<'a> {
    pub prometheus: &'a Prometheus,
    /// The time shown, in seconds since 1970.
    pub from: f64,
    pub to: f64,
    /// What is chosen, as an expression; `.*`: all.
    pub site: &'a str,
}

/// One of its panels.
pub struct Panel {
    pub title: String,
    /// `timeseries`, `stat`, `table`, `state-timeline` or `row`.
    pub kind: String,
    /// Columns from the left, lines from the top, columns, lines.
    pub place: [u64; 4],
    /// Names and expressions, not filled in.
    pub asks: Vec<(String, String)>,
    /// All that Grafana is told of it.
    pub json: Value,
}

/// A line of a chart: its name, and times with values.
pub type Series = (String, Vec<(f64, f64)>);

/// A line of a table: values of its labels, and of its columns.
pub type Line = (Vec<String>, Vec<Option<f64>>);

pub struct Table {
    pub labels: Vec<String>,
    pub lines: Vec<Line>,
}

type Labels = serde_json::Map<String, Value>;

pub fn read(board: &str) -> Value {
    let path = format!("{}/dashboards/aptmesh-{board}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// From top to bottom, titles of rows among them.
pub fn panels(board: &str) -> Vec<Panel> {
    read(board)["panels"].as_array().unwrap().iter().map(Panel::of).collect()
}

impl Panel {
    fn of(json: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let targets = json["targets"].as_array().into_iter().flatten();
        Self {
            title: text(&json["title"]),
            kind: text(&json["type"]),
            place: ["x", "y", "w", "h"].map(|key| json["gridPos"][key].as_u64().unwrap()),
            asks: targets
                .map(|target| (text(&target["legendFormat"]), text(&target["expr"])))
                .collect(),
            json: json.clone(),
        }
    }

    /// Of how its fields are shown.
    pub fn field(&self, key: &str) -> &Value {
        &self.json["fieldConfig"]["defaults"][key]
    }

    /// What is fixed for a name: of a series, or of a table's column.
    pub fn fixed(&self, name: &str, property: &str) -> Option<&Value> {
        let overrides = self.json["fieldConfig"]["overrides"].as_array()?.iter();
        let mut its = overrides.filter(|one| {
            let wanted = one["matcher"]["options"].as_str().unwrap();
            let words = wanted.strip_prefix("/^(").and_then(|words| words.strip_suffix(")$/"));
            words.map_or(wanted == name, |words| words.split('|').any(|word| word == name))
        });
        let properties = its.next()?["properties"].as_array()?;
        properties.iter().find(|one| one["id"] == property).map(|one| &one["value"])
    }
}

impl View<'_> {
    /// As Grafana fills it in, that sites are told by the label `site`.
    pub fn filled_in(&self, text: &str) -> String {
        let range = format!("{:.0}s", self.to - self.from);
        let variables = [
            // Grafana's is four times that between two looks, at least.
            ("$__rate_interval", "10s"),
            ("$__range", &range),
            ("$by", "site"),
            ("$site", self.site),
            ("$instance", ".*"),
            ("$price", "0.05"),
        ];
        let filled =
            variables.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value));
        assert!(!filled.contains('$'), "{filled}");
        filled
    }

    /// What it has for the lines of a panel; what is no number is left out.
    pub fn series(&self, panel: &Panel) -> Vec<Series> {
        let drawn = panel.asks.iter().flat_map(|(name, expression)| {
            let name = self.filled_in(name);
            let found =
                self.prometheus.query_range(&self.filled_in(expression), self.from, self.to);
            found.into_iter().map(move |(labels, mut values)| {
                values.retain(|(_, value)| value.is_finite());
                (named(&name, &labels), values)
            })
        });
        drawn.filter(|(_, values)| !values.is_empty()).collect()
    }

    /// The number that a panel shows at the end of the time.
    pub fn number(&self, panel: &Panel) -> Option<f64> {
        let expression = self.filled_in(&panel.asks[0].1);
        let found = self.prometheus.query_at(&expression, self.to);
        assert!(found.len() <= 1, "{}: {found:?}", panel.title);
        found.first().map(|(_, value)| *value).filter(|value| value.is_finite())
    }

    /// What it has for a table; what a column says nothing of is left empty there.
    pub fn table(&self, panel: &Panel) -> Table {
        let mut lines: Vec<(Labels, Vec<Option<f64>>)> = Vec::new();
        for (column, (_, expression)) in panel.asks.iter().enumerate() {
            for (labels, value) in self.prometheus.query_at(&self.filled_in(expression), self.to) {
                let labels = labels.as_object().unwrap();
                let found = lines.iter().position(|(others, _)| agree(labels, others));
                let line = found.unwrap_or_else(|| {
                    lines.push((Labels::new(), vec![None; panel.asks.len()]));
                    lines.len() - 1
                });
                lines[line].0.extend(labels.clone());
                lines[line].1[column] = Some(value).filter(|value| value.is_finite());
            }
        }
        let labels: BTreeSet<String> =
            lines.iter().flat_map(|(its, _)| its.keys().cloned()).collect();
        let named = |its: &Labels| {
            labels
                .iter()
                .map(|label| its.get(label).map_or("", |name| name.as_str().unwrap()).to_owned())
                .collect()
        };
        let mut lines: Vec<Line> =
            lines.into_iter().map(|(its, values)| (named(&its), values)).collect();
        lines.sort_by(|one, other| one.0.cmp(&other.0));
        Table { labels: labels.into_iter().collect(), lines }
    }
}

/// Whether they are those of one thing: what both have is the same.
fn agree(labels: &Labels, others: &Labels) -> bool {
    labels.iter().all(|(label, value)| others.get(label).is_none_or(|other| other == value))
}

/// A series' name, such as `from, {{site}}`.
fn named(pattern: &str, labels: &Value) -> String {
    let labels = labels.as_object().unwrap();
    labels.iter().fold(pattern.to_owned(), |name, (label, value)| {
        name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap())
    })
}
