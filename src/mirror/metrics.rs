//! What is counted of mirrors.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus::{HistogramVec, IntCounter, IntCounterVec};
use tokio::time::Instant;
use url::Url;

use super::error::{MirrorError, MirrorErrorKind};
use super::health::{Health, Standing};
use super::{Answer, is_trouble};
use crate::archive::groups::Groups;
use crate::archive::target::Target;
use crate::telemetry::metrics::Metrics;

/// Bounds of what answers are waited for, in seconds: from a mirror in the same room to all patience.
const SECONDS: [f64; 11] = [0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 24.0];
/// Classes of answers.
const CLASSES: [&str; 5] = ["2xx", "304", "3xx", "4xx", "5xx"];

pub(super) struct MirrorMetrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    asked: Asked,
    /// Answers of others than the first mirror.
    pub(super) failovers: IntCounter,
    /// Bytes of bodies.
    pub(super) received: IntCounter,
}

impl MirrorMetrics {
    /// Declares them; `health` tells how the mirrors of `groups` are.
    pub(super) fn new(metrics: &Metrics, groups: &Groups, health: &Arc<Health>) -> Self {
        let away = Arc::clone(health);
        let count = move || i64::try_from(away.away(Instant::now())).unwrap_or(i64::MAX);
        metrics.gauge_of("aptmesh_mirror_away", "Mirrors that can not be reached.", count);
        declare_up(metrics, groups, Arc::clone(health));
        let answers = [&CLASSES[..], &MirrorErrorKind::ALL.map(MirrorErrorKind::label)].concat();
        let outcomes = ["given", "refused", "failed"];
        Self {
            asked: Asked::new(metrics, groups, &outcomes),
            requests: metrics.counters_of(
                "aptmesh_mirror_requests_total",
                "Requests for mirrors, by the class of their answer, or by why there was none; what is forbidden is not sent.",
                "answer",
                &answers,
            ),
            seconds: metrics.histograms_of(
                "aptmesh_mirror_request_seconds",
                "For how long mirrors were waited for, in seconds, up to the head of their answer: one that gave \
                 something, or confirmed it (given), that said no (refused), or none of use (failed).",
                "outcome",
                &outcomes,
                &SECONDS,
            ),
            failovers: metrics.counter(
                "aptmesh_mirror_failovers_total",
                "Answers that came from another than the first mirror of the archive.",
            ),
            received: metrics.counter(
                "aptmesh_mirror_received_bytes_total",
                "Bytes of bodies received from mirrors.",
            ),
        }
    }

    /// A request was answered, or not; `took` is for how long the mirror was waited for, if it was asked.
    pub(super) fn count(
        &self,
        url: &Url,
        answered: &Result<Answer, MirrorError>,
        took: Option<Duration>,
    ) {
        let class = match answered {
            Ok(answer) => status_class(answer.status),
            Err(error) => error.kind.label(),
        };
        self.requests.with_label_values(&[class]).inc();
        let outcome = match class {
            "2xx" | "304" => "given",
            _ if is_trouble(answered) || answered.is_err() => "failed",
            _ => "refused",
        };
        if let Some(took) = took {
            self.seconds.with_label_values(&[outcome]).observe(took.as_secs_f64());
        }
        self.asked.count(url, outcome);
    }
}

/// What asking those mirrors came to that the operator named.
struct Asked {
    counters: IntCounterVec,
    /// Groups, their mirrors' URLs, and with what URLs begin that are asked of these.
    named: Vec<(String, String, String)>,
}

impl Asked {
    fn new(metrics: &Metrics, groups: &Groups, outcomes: &[&str]) -> Self {
        let counters = metrics.counters(
            "aptmesh_mirror_asked_total",
            "Requests for mirrors of archives (archive.groups), by what they came to: the mirror gave something, or \
             confirmed it (given), said no (refused), or nothing of use (failed), be it that it may not be asked.",
            &["group", "mirror", "outcome"],
        );
        let of = |(group, mirror): (&str, &Target)| {
            let start = Url::parse(&mirror.url).map_or_else(|_| mirror.url.clone(), String::from);
            let start = format!("{}/", start.trim_end_matches('/'));
            (group.to_owned(), mirror.url.clone(), start)
        };
        let named: Vec<_> = groups.mirrors().map(of).collect();
        for (group, mirror, _) in &named {
            for outcome in outcomes {
                counters.with_label_values(&[group.as_str(), mirror, outcome]);
            }
        }
        Self { counters, named }
    }

    fn count(&self, url: &Url, outcome: &str) {
        let its = self.named.iter().filter(|(_, _, start)| url.as_str().starts_with(start));
        for (group, mirror, _) in its {
            self.counters.with_label_values(&[group.as_str(), mirror, outcome]).inc();
        }
    }
}

/// Only of mirrors that the operator named.
fn declare_up(metrics: &Metrics, groups: &Groups, health: Arc<Health>) {
    let named: Vec<(String, String, String)> = groups
        .mirrors()
        .map(|(group, mirror)| (group.to_owned(), mirror.url.clone(), mirror.origin()))
        .collect();
    metrics.gauges_of(
        "aptmesh_mirror_up",
        "1 if this mirror of an archive (archive.groups) is asked in its turn, 0 while it is asked last, since \
         it failed, or sent wrong bytes.",
        &["group", "mirror"],
        move |up| {
            let now = Instant::now();
            for (group, url, origin) in &named {
                let is_up = health.standing(origin, now) == Standing::Well;
                up.with_label_values(&[group, url]).set(is_up.into());
            }
        },
    );
}

fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        304 => "304",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}
