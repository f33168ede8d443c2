//! How mirrors have been answering, for people: since the start, in memory, and only of those that are
//! asked without credentials: nobody reads here which private archives a site has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::error::MirrorError;
use super::{Answer, Mirror, Question, Source, is_trouble};
use crate::archive::target::Target;
use crate::mirror::health::Standing;

/// Mirrors that have an account; of more, those asked last.
const LINES_MAX: usize = 256;
/// The longest word on a failure, in bytes: some are the mirror's own.
const REASON_MAX: usize = 200;

/// How a mirror is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// `SCHEME://HOST[:PORT]`
    pub origin: String,
    /// Its host, as rates are known by.
    pub host: String,
    /// The archive that the operator says it serves.
    pub archive: Option<String>,
    /// How it stands.
    pub state: AccountState,
    /// Whether it failed when it was last asked, however long ago.
    pub has_failed: bool,
    /// For how long it is still asked last, or hardly.
    pub benched_for: Duration,
    /// Questions sent to it.
    pub requests: u64,
    /// Of them and of their bodies, those that came to nothing.
    pub failures: u64,
    /// Bytes of bodies that it gave.
    pub bytes: u64,
    /// How long ago it was asked; `None`: never.
    pub asked: Option<Duration>,
    /// Its last failure, in words, and how long ago that was.
    pub last_failure: Option<(String, Duration)>,
}

/// How a mirror stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// In use.
    Well,
    /// Failed lately: others are asked first.
    Benched,
    /// Can not be reached: asked now and then.
    Away,
}

impl AccountState {
    /// In a word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Benched => "benched",
            Self::Away => "away",
        }
    }
}

/// All accounts, by origin.
#[derive(Default)]
pub(super) struct Ledger(Mutex<HashMap<Arc<str>, Arc<Line>>>);

/// What is counted of one mirror.
pub(super) struct Line {
    requests: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
    last: Mutex<Last>,
}

struct Last {
    asked: Instant,
    failure: Option<(String, Instant)>,
}

impl Line {
    fn new() -> Self {
        let [requests, failures, bytes] = Default::default();
        let last = Mutex::new(Last { asked: Instant::now(), failure: None });
        Self { requests, failures, bytes, last }
    }

    /// So many bytes came.
    pub(super) fn received(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// It failed; the reason completes "HOST …".
    pub(super) fn failed(&self, reason: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let reason: String = reason.chars().take(REASON_MAX).collect();
        self.last().failure = Some((reason, Instant::now()));
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// The account of whom a question goes to, if it may be kept.
    pub(super) fn line(&self, source: &Source, question: &Question) -> Option<Arc<Line>> {
        let is_private = question.has_credentials() || source.url.query().is_some();
        if is_private {
            return None;
        }
        let mut lines = self.lines();
        if lines.len() >= LINES_MAX && !lines.contains_key(&source.origin) {
            let oldest = lines.iter().min_by_key(|(_, line)| line.last().asked);
            if let Some(origin) = oldest.map(|(origin, _)| Arc::clone(origin)) {
                lines.remove(&origin);
            }
        }
        let line = lines.entry(Arc::clone(&source.origin)).or_insert_with(|| Arc::new(Line::new()));
        Some(Arc::clone(line))
    }

    /// It was asked and came to this.
    pub(super) fn note(line: &Arc<Line>, answered: &mut Result<Answer, MirrorError>) {
        line.requests.fetch_add(1, Ordering::Relaxed);
        line.last().asked = Instant::now();
        let is_failure = is_trouble(answered);
        match answered {
            Ok(answer) => {
                if is_failure {
                    line.failed(&format!("answered {}", answer.status.as_u16()));
                }
                answer.body.line = Some(Arc::clone(line));
            }
            Err(error) => line.failed(&error.reason),
        }
    }

    /// It sent something else than its archive's lists say.
    pub(super) fn sent_wrong_bytes(&self, origin: &str) {
        if let Some(line) = self.lines().get(origin) {
            line.failed("sent bytes that are not what its archive lists");
        }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Line>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mirror {
    /// How those that are named in the settings, and those that were asked, are doing: who is asked most
    /// first.
    #[must_use]
    pub fn accounts(&self) -> Vec<Account> {
        let now = Instant::now();
        let mut accounts: Vec<Account> = self
            .groups
            .iter()
            .flat_map(|group| group.origins().map(|origin| (origin, group.name.clone())))
            .map(|(origin, archive)| Account { archive: Some(archive), ..account(&origin) })
            .collect();
        for (origin, line) in &*self.ledger.lines() {
            let named = accounts.iter_mut().position(|account| account.origin == **origin);
            let named = named.unwrap_or_else(|| {
                accounts.push(account(origin));
                accounts.len() - 1
            });
            if let Some(account) = accounts.get_mut(named) {
                line.fill(account, now);
            }
        }
        for account in &mut accounts {
            let (standing, benched_for) = self.health.bench_of(&account.origin, now);
            account.state = standing.into();
            account.benched_for = benched_for;
            account.has_failed = self.health.has_failed(&account.origin);
        }
        accounts.sort_by(|one, other| {
            (other.requests, &one.origin).cmp(&(one.requests, &other.origin))
        });
        accounts
    }
}

/// A mirror that would be asked for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// `SCHEME://HOST[:PORT]`
    pub origin: String,
    /// How it stands.
    pub state: AccountState,
    /// For how long it is still asked last, or hardly.
    pub benched_for: Duration,
    /// Why it may not be asked at all, as far as its name tells.
    pub forbidden: Option<String>,
}

impl Mirror {
    /// Who would be asked for `target`, in that order. Asks nobody.
    #[must_use]
    pub fn prospects(&self, target: &Target, is_private: bool) -> Vec<Prospect> {
        let sources = self.sources_for(target, is_private).unwrap_or_default();
        let now = Instant::now();
        let prospect = |(_, source): (Standing, Source)| {
            let (standing, benched_for) = self.health.bench_of(&source.origin, now);
            Prospect {
                origin: source.origin.to_string(),
                state: standing.into(),
                benched_for,
                forbidden: self.check_url(&source.url).err().map(|error| error.to_string()),
            }
        };
        self.in_order(sources).into_iter().map(prospect).collect()
    }

    /// The one name of what `target` names.
    #[must_use]
    pub fn settle(&self, target: Target, has_credentials: bool) -> Target {
        self.groups.settle(target, has_credentials)
    }

    /// The archive that the operator says a settled `target` is of.
    #[must_use]
    pub fn archive_of(&self, target: &Target) -> Option<String> {
        self.groups.group_of(target).map(|group| group.name.clone())
    }
}

impl From<Standing> for AccountState {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Well => Self::Well,
            Standing::Benched => Self::Benched,
            Standing::Away => Self::Away,
        }
    }
}

impl Line {
    fn fill(&self, account: &mut Account, now: Instant) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        account.requests = count(&self.requests);
        account.failures = count(&self.failures);
        account.bytes = count(&self.bytes);
        let last = self.last();
        account.asked = Some(now.saturating_duration_since(last.asked));
        account.last_failure = last
            .failure
            .as_ref()
            .map(|(reason, at)| (reason.clone(), now.saturating_duration_since(*at)));
    }
}

/// One of which nothing is known.
fn account(origin: &str) -> Account {
    let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if is_port(port) => host,
        _ => authority,
    };
    Account {
        origin: origin.to_owned(),
        host: host.to_owned(),
        archive: None,
        state: AccountState::Well,
        has_failed: false,
        benched_for: Duration::ZERO,
        requests: 0,
        failures: 0,
        bytes: 0,
        asked: None,
        last_failure: None,
    }
}
