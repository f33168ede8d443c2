//! What was seen of metrics, at whatever process: which there are, which moved, and how many series.

use crate::kit::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// One sample of `/metrics`.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The metric's name, without what a histogram's parts add to it.
    pub metric: String,
    /// Its kind, as it is told: `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Name and labels, as they stand there.
    pub series: String,
    pub value: f64,
}

impl Sample {
    /// Names and values of its labels.
    pub fn labels(&self) -> Vec<(String, String)> {
        let Some((_, labels)) = self.series.split_once('{') else { return Vec::new() };
        let pairs = labels.trim_end_matches('}').split("\",");
        let pair = |text: &str| {
            let (name, value) = text.split_once("=\"").expect("a label");
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        };
        pairs.filter(|text| !text.is_empty()).map(pair).collect()
    }
}

/// What a process tells now.
pub fn samples(admin: SocketAddr) -> Vec<Sample> {
    let reply = get(admin, "/metrics");
    assert_eq!(reply.status, 200, "/metrics: {}", reply.reason);
    read(&String::from_utf8(reply.body).unwrap())
}

fn read(text: &str) -> Vec<Sample> {
    let (mut kinds, mut samples) = (BTreeMap::new(), Vec::new());
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a kind");
            kinds.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().expect("a name");
            let parts = ["_bucket", "_sum", "_count"].into_iter();
            let of = parts.filter_map(|part| name.strip_suffix(part));
            let histogram = of
                .into_iter()
                .find(|base| kinds.get(*base).is_some_and(|kind| kind == "histogram"));
            let metric = histogram.unwrap_or(name).to_owned();
            let kind = kinds.get(&metric).unwrap_or_else(|| panic!("no kind of {series}")).clone();
            let (series, value) = (series.to_owned(), value.parse().expect("a number"));
            samples.push(Sample { metric, kind, series, value });
        }
    }
    samples
}

/// What was seen of one metric.
#[derive(Default)]
struct Page {
    /// It counted something; or, a gauge, had two values.
    has_moved: bool,
    /// `counter`, `gauge` or `histogram`.
    kind: String,
    /// Of a gauge, the first value of each series at each process.
    first: BTreeMap<(SocketAddr, String), f64>,
    /// The most series that one process told.
    series: usize,
    /// All of them, of whatever process.
    all: BTreeSet<String>,
}

/// All that was seen. Counters and histograms begin with nothing, so they moved when they count something; a
/// gauge has moved when some series of it had two values at one process.
#[derive(Default)]
pub struct Ledger {
    pages: Mutex<BTreeMap<String, Page>>,
    /// The most series in all that one process told.
    most: Mutex<usize>,
}

impl Ledger {
    /// Writes down what a process tells now.
    pub fn look(&self, admin: SocketAddr) {
        let samples = samples(admin);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut pages = self.pages.lock().unwrap();
        for sample in &samples {
            let page = pages.entry(sample.metric.clone()).or_default();
            page.kind.clone_from(&sample.kind);
            page.has_moved |= match sample.kind.as_str() {
                "gauge" => {
                    let series = (admin, sample.series.clone());
                    let first = page.first.entry(series).or_insert(sample.value);
                    *first != sample.value
                }
                _ => sample.value > 0.0,
            };
            page.all.insert(sample.series.clone());
            *counts.entry(sample.metric.clone()).or_default() += 1;
        }
        for (metric, count) in counts {
            let page = pages.get_mut(&metric).expect("a page");
            page.series = page.series.max(count);
        }
        let mut most = self.most.lock().unwrap();
        *most = samples.len().max(*most);
    }

    /// Looks until this metric has moved.
    pub fn sees(&self, admin: SocketAddr, metric: &str) {
        wait_until(PATIENCE, &format!("{metric} to move"), || {
            self.look(admin);
            std::thread::sleep(Duration::from_millis(20));
            self.has_moved(metric)
        });
    }

    /// Whether it has moved somewhere.
    pub fn has_moved(&self, metric: &str) -> bool {
        self.pages.lock().unwrap().get(metric).is_some_and(|page| page.has_moved)
    }

    /// The names of all.
    pub fn names(&self) -> BTreeSet<String> {
        self.pages.lock().unwrap().keys().cloned().collect()
    }

    /// All series of all counters.
    pub fn counters(&self) -> BTreeSet<String> {
        let pages = self.pages.lock().unwrap();
        let counters = pages.values().filter(|page| page.kind == "counter");
        counters.flat_map(|page| page.all.iter().cloned()).collect()
    }

    /// The most series that one process told of each, and in all.
    pub fn series(&self) -> (BTreeMap<String, usize>, usize) {
        let pages = self.pages.lock().unwrap();
        let of_each = pages.iter().map(|(name, page)| (name.clone(), page.series)).collect();
        (of_each, *self.most.lock().unwrap())
    }
}
