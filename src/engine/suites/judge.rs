//! Judging release files before anybody gets to see them: who signed them, have they expired, and
//! are they older than what was accepted before. What is decisively wrong is refused; what can not
//! be judged is let through and counted, unless the operator wants it refused too.

use prometheus::IntCounterVec;

use crate::archive::release::{self, Release};
use crate::archive::signature::{BadSignature, Keyring, Verdict};
use crate::content::validators::http_date;
use crate::telemetry::metrics::Metrics;

/// By how much clocks may differ, in seconds.
const DAY: i64 = 24 * 60 * 60;

/// What is asked of release files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Nothing.
    Off,
    /// Not to be proven wrong.
    Auto,
    /// To be proven right.
    Enforce,
}

/// How release files are judged.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is asked of them.
    pub verify: Verify,
    /// Whose signatures count.
    pub keyring: Keyring,
    /// Whose alone count for resources whose names begin so.
    pub scopes: Vec<(String, Keyring)>,
}

/// Who judges.
pub(in crate::engine) struct Judge {
    config: Config,
    judged: IntCounterVec,
}

/// What is to be done with a release file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Judgement {
    /// Served and stored.
    Accepted {
        /// A known key vouches for it.
        is_proven: bool,
    },
    /// Neither; the reason completes "HOST …".
    Refused(String),
    /// Neither, unless it turns out that its signature is only of another state of the archive.
    Torn(String),
    /// The one accepted before is served in its place.
    Older,
}

/// A release file and what belongs to it.
pub(in crate::engine) struct Case<'a> {
    /// The resource's name.
    pub(in crate::engine) key: &'a str,
    /// The file as it came.
    pub(in crate::engine) file: &'a [u8],
    /// `Release.gpg`, for a file without a signature of its own.
    pub(in crate::engine) detached: Option<&'a [u8]>,
    /// What was accepted before under the same name.
    pub(in crate::engine) accepted: Option<&'a [u8]>,
    /// The `Release.gpg` of that.
    pub(in crate::engine) accepted_signature: Option<&'a [u8]>,
    /// Seconds since 1970.
    pub(in crate::engine) now: i64,
}

impl Judge {
    pub(in crate::engine) fn new(config: Config, metrics: &Metrics) -> Self {
        let judged = metrics.counters(
            "aptmesh_engine_release_verdicts_total",
            "Release files that were judged, by verdict, and by whether they were admitted: under archive.verify = \
             \"enforce\" only good ones are. In place of an older one, clients get the newer one that is stored.",
            &["verdict", "admitted"],
        );
        for verdict in [&Verdict::LABELS[..], &["expired", "older", "unreadable"]].concat() {
            for admitted in ["yes", "no"] {
                judged.with_label_values(&[verdict, admitted]);
            }
        }
        Self { config, judged }
    }

    /// Whether what was not judged must not pass.
    pub(in crate::engine) fn demands_proof(&self) -> bool {
        self.config.verify == Verify::Enforce
    }

    /// Whether anything is asked of release files.
    pub(in crate::engine) fn is_in_session(&self) -> bool {
        self.config.verify != Verify::Off
    }

    /// What a file's signature is worth.
    pub(in crate::engine) fn verdict(
        &self,
        key: &str,
        file: &[u8],
        detached: Option<&[u8]>,
        now: i64,
    ) -> Verdict {
        check(self.keyring_for(key), file, detached, now)
    }

    pub(in crate::engine) fn judge(&self, case: &Case<'_>) -> Judgement {
        let (verdict, judgement) = self.examine(case);
        if self.is_in_session() {
            let is_admitted = matches!(judgement, Judgement::Accepted { .. });
            let admitted = if is_admitted { "yes" } else { "no" };
            self.judged.with_label_values(&[verdict, admitted]).inc();
        }
        judgement
    }

    fn examine(&self, case: &Case<'_>) -> (&'static str, Judgement) {
        let keyring = self.keyring_for(case.key);
        let verdict = check(keyring, case.file, case.detached, case.now);
        let reason = || format!("sent a release file that is refused: {verdict}");
        let accepted = Judgement::Accepted { is_proven: verdict.is_good() };
        if !self.is_in_session() {
            return (verdict.label(), accepted);
        }
        let is_wrong = matches!(verdict, Verdict::Bad(BadSignature::Wrong { .. }));
        if is_wrong && case.detached.is_some() {
            return (verdict.label(), Judgement::Torn(reason()));
        }
        let is_enough = verdict.is_good() || !self.demands_proof();
        if verdict.is_decisive() || !is_enough {
            return (verdict.label(), Judgement::Refused(reason()));
        }
        let Some(release) = read(case.file) else {
            // The client is the one to say what it makes of it.
            return ("unreadable", accepted);
        };
        if let Some(until) = release.valid_until.filter(|until| *until < case.now) {
            let reason = format!("sent a release file that expired on {}", http_date(until));
            return ("expired", Judgement::Refused(reason));
        }
        if is_older(&release, verdict.is_good(), case, keyring) {
            return ("older", Judgement::Older);
        }
        (verdict.label(), accepted)
    }

    /// Whose signatures count for a resource.
    fn keyring_for(&self, key: &str) -> &Keyring {
        let scope = self.config.scopes.iter().find(|(base, _)| key.starts_with(base));
        scope.map_or(&self.config.keyring, |(_, keyring)| keyring)
    }
}

fn check(keyring: &Keyring, file: &[u8], detached: Option<&[u8]>, now: i64) -> Verdict {
    match (release::content(file), detached) {
        (Ok(content), Some(signature)) if !content.is_signed => {
            keyring.check_detached(file, signature, now)
        }
        (Ok(content), None) if !content.is_signed => Verdict::Unsigned,
        _ => keyring.check_inline(file, now),
    }
}

fn read(file: &[u8]) -> Option<Release> {
    let content = release::content(file).ok()?;
    Release::parse(&content.text).ok()
}

/// A mirror may lag behind, or be made to: what was accepted once is not gone back on. But what
/// nobody vouched for must not keep out what a known key signed, and no date in the future counts.
fn is_older(release: &Release, is_good: bool, case: &Case<'_>, keyring: &Keyring) -> bool {
    let accepted = || {
        let file = case.accepted?;
        let date = read(file)?.date.filter(|date| *date <= case.now.saturating_add(DAY))?;
        let is_as_good =
            !is_good || check(keyring, file, case.accepted_signature, case.now).is_good();
        is_as_good.then_some(date)
    };
    release.date.zip(accepted()).is_some_and(|(date, accepted)| date < accepted)
}
