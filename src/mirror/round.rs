//! Asking all who serve an archive: in which order, how often and for how long, and what their answers
//! come to.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;
use url::Url;

use super::error::{MirrorError, MirrorErrorKind};
use super::health::Standing;
use super::{Answer, HEAD_BUDGET, Mirror, Question, Source};
use crate::archive::target::Target;
use crate::telemetry::traces::{self, span};

/// For how long a mirror that is away is waited for: enough for one that is back and near, and little
/// to lose with each request where it is not.
const GLANCE_BUDGET: Duration = Duration::from_secs(1);
/// How often a question is asked when mirrors fail in ways that pass.
const ATTEMPTS_MAX: u32 = 4;
/// Before the second attempt; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(200);

impl Mirror {
    /// Asks, and asks again when all that serve the archive fail in a way that may pass: they can not
    /// be reached, are silent, or answer 500, 502, 503 or 504. The last such answer is handed on.
    ///
    /// # Errors
    /// When no attempt got an answer within the budget, which is small for one that is away, or when
    /// the host may not be asked.
    pub async fn ask(&self, target: &Target, question: &Question) -> Result<Answer, MirrorError> {
        let span = span!("mirror.ask");
        let answered = self.ask_all(target, question).instrument(span.clone()).await;
        match &answered {
            Ok(answer) => {
                traces::set(&span, "aptmesh.origin", answer.origin.to_string());
                if let Some(refusal) = answer.refusal() {
                    traces::fail(&span, &answer.status.as_u16(), &refusal);
                }
            }
            Err(error) => traces::fail(&span, error.kind.label(), error),
        }
        answered
    }

    async fn ask_all(&self, target: &Target, question: &Question) -> Result<Answer, MirrorError> {
        if self.is_offline() {
            return Err(MirrorError::offline(&target.authority.host));
        }
        let sources = self.in_order(self.sources(target, question)?);
        let is_away = sources.iter().all(|(standing, _)| *standing == Standing::Away);
        let may_probe = |source: &Source| self.health.may_probe(&source.origin, Instant::now());
        let is_probe = is_away && sources.iter().any(|(_, source)| may_probe(source));
        let budget = if is_away && !is_probe { GLANCE_BUDGET } else { HEAD_BUDGET };
        let deadline = Instant::now() + budget;
        let deadline = question.until.map_or(deadline, |until| until.min(deadline));
        let mut attempt = 1;
        loop {
            let round = self.ask_around(&sources, question, deadline, attempt).await;
            let pause = BACKOFF * 2_u32.pow(attempt - 1);
            let out_of_time = Instant::now() + pause >= deadline;
            if is_away || attempt == ATTEMPTS_MAX || out_of_time || !round.may_change() {
                return round.outcome(target, question, is_away);
            }
            tracing::debug!(host = target.authority.host, attempt, "asking the mirror again");
            sleep(pause).await;
            attempt += 1;
        }
    }

    /// Whether the target can be had from more than one mirror.
    #[must_use]
    pub fn has_several(&self, target: &Target) -> bool {
        self.groups.sources(target).is_some_and(|sources| sources.len() > 1)
    }

    /// Whether nobody who has the target can be reached: then there is no use in waiting.
    #[must_use]
    pub fn is_away(&self, target: &Target) -> bool {
        let sources = self.sources(target, &Question::default());
        let now = Instant::now();
        let is_away = |source: &Source| self.health.standing(&source.origin, now) == Standing::Away;
        self.is_offline() || sources.is_ok_and(|sources| sources.iter().all(is_away))
    }

    /// The healthiest first, and of equals the operator's favourite. One that is away is the last
    /// resort.
    pub(super) fn in_order(&self, sources: Vec<Source>) -> Vec<(Standing, Source)> {
        let now = Instant::now();
        let standing = |source: Source| (self.health.standing(&source.origin, now), source);
        let mut sources: Vec<(Standing, Source)> = sources.into_iter().map(standing).collect();
        sources.sort_by_key(|(standing, _)| *standing);
        sources
    }

    /// Each of the mirrors once, until one gives what was asked for.
    async fn ask_around(
        &self,
        sources: &[(Standing, Source)],
        question: &Question,
        deadline: Instant,
        attempt: u32,
    ) -> Round {
        let mut round = Round::default();
        for (number, (standing, source)) in sources.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut share = left / u32::try_from(sources.len() - number).unwrap_or(u32::MAX);
            if *standing == Standing::Away && number > 0 {
                share = share.min(GLANCE_BUDGET);
            }
            let answered = self.ask_once(source, question, share.min(self.timeout)).await;
            if let Some(is_silent) = silence(&answered)
                && (attempt > 1 || *standing == Standing::Away)
            {
                self.health.is_gone(&source.origin, is_silent, Instant::now());
            }
            match answered {
                Ok(answer) if answer.status.is_client_error() => round.refused = Some(answer),
                Ok(answer) if !is_passing_failure(answer.status) => {
                    self.metrics.failovers.inc_by(u64::from(!source.is_first));
                    round.given = Some(answer);
                    return round;
                }
                trouble => {
                    round.may_pass |= *standing != Standing::Away && is_trouble(&trouble);
                    round.troubled = Some(trouble);
                }
            }
        }
        round
    }

    /// Where the target can be had, in the operator's order. Credentials are for the host that the
    /// client wrote.
    fn sources(&self, target: &Target, question: &Question) -> Result<Vec<Source>, MirrorError> {
        self.sources_for(target, question.has_credentials())
    }

    pub(super) fn sources_for(
        &self,
        target: &Target,
        has_credentials: bool,
    ) -> Result<Vec<Source>, MirrorError> {
        let group = if has_credentials { None } else { self.groups.sources(target) };
        let targets = group.unwrap_or_else(|| vec![target.clone()]);
        let first = std::iter::once(true).chain(std::iter::repeat(false));
        targets.iter().zip(first).map(|(target, first)| self.source(target, first)).collect()
    }

    fn source(&self, target: &Target, is_first: bool) -> Result<Source, MirrorError> {
        let host = target.authority.host.as_str();
        let url = Url::parse(&target.url)
            .map_err(|error| MirrorError::new(MirrorErrorKind::Forbidden, host, error))?;
        Ok(Source {
            url,
            host: host.into(),
            origin: target.origin().into(),
            is_first,
            health: Arc::clone(&self.health),
        })
    }
}

/// What came of asking each mirror once.
#[derive(Default)]
struct Round {
    given: Option<Answer>,
    refused: Option<Answer>,
    troubled: Option<Result<Answer, MirrorError>>,
    /// One of those in trouble may come out of it soon.
    may_pass: bool,
}

impl Round {
    /// Whether another round may come to something better: what one mirror does not have, one in
    /// trouble may.
    fn may_change(&self) -> bool {
        self.given.is_none() && self.may_pass
    }

    /// What it comes to in the end. The word of a mirror counts, unless the archive is known to have
    /// what was asked for.
    fn outcome(
        self,
        target: &Target,
        question: &Question,
        is_away: bool,
    ) -> Result<Answer, MirrorError> {
        let host = &target.authority.host;
        let trouble = match self.troubled {
            Some(Err(_)) if is_away => Some(Err(MirrorError::away(host))),
            troubled => troubled,
        };
        match (self.given.or(self.refused), trouble) {
            (Some(answer), Some(trouble)) if question.is_promised => {
                if answer.status.is_client_error() { trouble } else { Ok(answer) }
            }
            (Some(answer), _) => Ok(answer),
            (None, trouble) => trouble.unwrap_or_else(|| Err(MirrorError::silent(host))),
        }
    }
}

fn is_passing_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// Whether nobody could be connected to (`false`), or somebody could and was silent (`true`).
fn silence(answered: &Result<Answer, MirrorError>) -> Option<bool> {
    match answered.as_ref().err()?.kind {
        MirrorErrorKind::Unreachable => Some(false),
        MirrorErrorKind::Silent => Some(true),
        _ => None,
    }
}

/// Whether asking again may help.
pub(super) fn is_trouble(answered: &Result<Answer, MirrorError>) -> bool {
    match answered {
        Ok(answer) => is_passing_failure(answer.status),
        Err(error) => error.may_pass(),
    }
}
