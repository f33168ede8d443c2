//! An explanation, as it is told: to programs as it is, to people as facts. Times are seconds since 1970,
//! durations seconds. What another version tells, or does not, is no reason to understand nothing.

use serde::{Deserialize, Serialize};

use crate::archive::kind::Kind;
use crate::content::digest::{Expected, to_hex};
use crate::engine::explain::{AsListed, Explanation, Place, Private, Stored as Copy, Suite};
use crate::engine::flight::ended::Ended;
use crate::engine::flight::running::{Giver, Running};
use crate::mirror::Prospect;
use crate::web::explain::would;
use crate::web::status::words;

/// What is known of a resource.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Report {
    /// Its one name, without credentials and query.
    pub url: String,
    /// Its kind.
    pub kind: String,
    /// The archive that the operator says it belongs to.
    pub archive: Option<String>,
    /// Why it is stored for nobody, if it is one client's own: `credentials` or `query`.
    pub private: Option<String>,
    /// What it must be.
    pub expected: Option<Expectation>,
    /// The lists that name it.
    pub lists: Vec<Naming>,
    /// Whether lists that were learnt say different things of it, so that none of them counts.
    pub is_disputed: bool,
    /// What is stored of it.
    pub stored: Option<Stored>,
    /// The download that brings it now.
    pub download: Option<Download>,
    /// How the last one ended.
    pub last_download: Option<LastDownload>,
    /// Sites that say that they have it.
    pub peers: Vec<Peer>,
    /// Who would be asked, in that order.
    pub mirrors: Vec<Mirror>,
    /// Whether the index did not tell in time.
    pub is_index_silent: bool,
    /// How it stands, if it is a release file.
    pub release: Option<Release>,
    /// What it means to clients that were given a release file from here within the last hour, if it is a list.
    pub as_listed: Option<Listed>,
    /// What would be done now: `serve`, `serve_stale`, `revalidate`, `fetch` or `relay`. What has expired is
    /// not served all the same.
    pub plan: String,
    /// The same, in a sentence.
    pub would: String,
    /// The time of all this.
    pub now: i64,
}

/// What keeps clients from a release file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Release {
    /// Whether what is stored has passed its `Valid-Until`, and that counts.
    pub has_expired: bool,
    /// Why what its mirror has is not admitted.
    pub refused: Option<String>,
    /// How long ago that was.
    pub refused_ago: Option<u64>,
    /// Whether its mirror said that it does not have it.
    pub is_absent: bool,
}

/// What a release file makes of a name.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Listed {
    /// The release file.
    pub release: String,
    /// What it names there.
    pub report: Box<Report>,
}

/// What something must be.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Expectation {
    /// Bytes.
    pub size: Option<u64>,
    /// `sha256`, `sha512` or `sha1`.
    pub algorithm: String,
    /// The digest, in hex digits.
    pub digest: String,
}

/// A list that names it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Naming {
    /// Its URL.
    pub list: String,
    /// Whether all of it was learnt.
    pub is_learnt: bool,
    /// The release file that it was learnt under.
    pub release: Option<String>,
}

/// What is stored.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Stored {
    /// Its digest.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// `volume`, `folders`, `replicas`; `nowhere`: the index says that it is stored, and it is not; `unknown`: the
    /// volume does not answer.
    pub place: String,
    /// A path, or URLs of replicas.
    pub at: Vec<String>,
    /// Whether it is what it must be.
    pub is_right: bool,
    /// Whether memory has it.
    pub is_in_memory: bool,
    /// When a mirror last gave or confirmed it.
    pub confirmed_at: Option<i64>,
    /// When it was stored.
    pub stored_at: Option<i64>,
    /// When it was last used, as far as the index was told.
    pub used_at: Option<i64>,
    /// How often.
    pub uses: Option<u64>,
    /// When its bytes were last hashed.
    pub checked_at: Option<i64>,
}

/// A download under way.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Download {
    /// `mirror`, `peers` or `replica`; nobody yet.
    pub from: Option<String>,
    /// Which mirror.
    pub mirror: Option<String>,
    /// Bytes that are there.
    pub bytes: u64,
    /// Of these.
    pub size: Option<u64>,
    /// How many wait for it.
    pub waiting: usize,
    /// For how long it has been under way.
    pub age: u64,
}

/// One that ended.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct LastDownload {
    /// The word of `aptmesh_engine_flight_seconds`.
    pub outcome: String,
    /// As [`Download::from`].
    pub from: Option<String>,
    /// Which mirror.
    pub mirror: Option<String>,
    /// Bytes that came.
    pub bytes: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How long ago it ended.
    pub ago: u64,
    /// What went wrong.
    pub failure: Option<String>,
}

/// A site that says that it has it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Peer {
    /// Its node.
    pub node: String,
    /// Where it is reached.
    pub urls: Vec<String>,
    /// `filter`: its have-filter says so; `look_up`: it was found just now.
    pub by: String,
}

/// A mirror that would be asked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Mirror {
    /// `SCHEME://HOST[:PORT]`
    pub url: String,
    /// `well`, `benched` or `away`.
    pub state: String,
    /// For how long it is still asked last, or hardly.
    pub benched_for: u64,
    /// Why it may not be asked.
    pub forbidden: Option<String>,
}

impl From<Explanation> for Report {
    fn from(explained: Explanation) -> Self {
        let would = would::of(&explained);
        let has_suite = explained.private.is_none() && explained.kind == Kind::Release;
        let is_learnt = explained.lists.iter().any(|naming| naming.is_learnt);
        Self {
            url: explained.name,
            kind: explained.kind.label().to_owned(),
            archive: explained.archive,
            private: explained.private.map(|private| match private {
                Private::Credentials => "credentials".to_owned(),
                Private::Query => "query".to_owned(),
            }),
            is_disputed: is_learnt && explained.expectation.is_none(),
            expected: explained.expectation.map(|expected| Expectation {
                size: expected.size,
                algorithm: algorithm(&expected.digest).to_owned(),
                digest: to_hex(expected.digest.as_bytes()),
            }),
            lists: explained
                .lists
                .into_iter()
                .map(|naming| Naming {
                    list: naming.list,
                    is_learnt: naming.is_learnt,
                    release: naming.release,
                })
                .collect(),
            stored: explained.stored.map(stored),
            download: explained.running.as_ref().map(download),
            last_download: explained.ended.map(last_download),
            peers: explained
                .claims
                .into_iter()
                .map(|claim| Peer {
                    node: claim.holder.node.to_string(),
                    urls: claim.holder.urls.iter().map(ToString::to_string).collect(),
                    by: if claim.by_filter { "filter" } else { "look_up" }.to_owned(),
                })
                .collect(),
            mirrors: explained.mirrors.into_iter().map(mirror).collect(),
            is_index_silent: explained.is_index_silent,
            release: has_suite.then(|| release(explained.suite)),
            as_listed: explained.as_listed.map(listed),
            plan: explained.plan.label().to_owned(),
            would,
            now: explained.now,
        }
    }
}

fn release(suite: Suite) -> Release {
    let (refused, ago) = suite.refused.unzip();
    Release {
        has_expired: suite.has_expired,
        refused,
        refused_ago: ago.map(|ago| ago.as_secs()),
        is_absent: suite.is_absent,
    }
}

fn listed(listed: AsListed) -> Listed {
    Listed { release: listed.release, report: Box::new((*listed.explanation).into()) }
}

fn stored(copy: Copy) -> Stored {
    let (place, at) = match copy.place {
        Place::Volume(path) => ("volume", vec![path.display().to_string()]),
        Place::Folders(path) => ("folders", vec![path.display().to_string()]),
        Place::Replicas(urls) => ("replicas", urls),
        Place::Nowhere => ("nowhere", Vec::new()),
        Place::Unknown => ("unknown", Vec::new()),
    };
    let known = copy.on_volume.as_ref();
    let time = |at: i64| (at > 0).then_some(at);
    Stored {
        sha256: copy.blob.to_string(),
        size: copy.size,
        place: place.to_owned(),
        at,
        is_right: copy.is_right,
        is_in_memory: copy.is_at_hand,
        confirmed_at: copy.confirmed_at,
        stored_at: known.and_then(|known| time(known.stored_at)),
        used_at: known.and_then(|known| time(known.used_at)),
        uses: known.map(|known| known.uses),
        checked_at: known.and_then(|known| time(known.checked_at)),
    }
}

fn download(running: &Running) -> Download {
    let giver = running.giver.as_ref();
    Download {
        from: giver.map(|giver| giver.label().to_owned()),
        mirror: giver.and_then(Giver::mirror).map(str::to_owned),
        bytes: running.bytes,
        size: running.size,
        waiting: running.waiting,
        age: running.age.as_secs(),
    }
}

fn last_download(ended: Ended) -> LastDownload {
    let giver = ended.giver.as_ref();
    LastDownload {
        outcome: ended.outcome.to_owned(),
        from: giver.map(|giver| giver.label().to_owned()),
        mirror: giver.and_then(Giver::mirror).map(str::to_owned),
        bytes: ended.bytes,
        took_ms: u64::try_from(ended.took.as_millis()).unwrap_or(u64::MAX),
        ago: ended.ago.as_secs(),
        failure: ended.failure,
    }
}

fn mirror(prospect: Prospect) -> Mirror {
    Mirror {
        url: prospect.origin,
        state: prospect.state.label().to_owned(),
        benched_for: prospect.benched_for.as_secs(),
        forbidden: prospect.forbidden,
    }
}

fn algorithm(digest: &Expected) -> &'static str {
    match digest {
        Expected::Sha1(_) => "sha1",
        Expected::Sha256(_) => "sha256",
        Expected::Sha512(_) => "sha512",
    }
}

impl Report {
    /// All of it but what would be done, for people: each with its name.
    #[must_use]
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("Kind", kind(&self.kind).to_owned())];
        let mut tell = |name, fact: Option<String>| facts.extend(fact.map(|fact| (name, fact)));
        tell("Archive", self.archive.clone());
        tell("Must be", self.must_be());
        for naming in &self.lists {
            tell("Named by", Some(naming.words()));
        }
        tell("Stored", self.has_copies().then(|| self.copy()));
        if let Some(stored) = &self.stored {
            tell("SHA-256", Some(stored.sha256.clone()));
            for at in &stored.at {
                tell("Where", Some(at.clone()));
            }
            let age = |at: i64| u64::try_from(self.now - at).unwrap_or_default();
            let when = |at: i64| format!("{}, {}", words::ago(age(at)), words::date(at));
            tell(
                "Confirmed by a mirror",
                Some(stored.confirmed_at.map_or("never".to_owned(), when)),
            );
            tell("Stored since", stored.stored_at.map(when));
            tell("Last used", stored.used_at.map(when));
            tell("Uses", stored.uses.map(words::count));
            tell("Last hashed", stored.checked_at.map(when));
        }
        if let Some(release) = &self.release {
            tell(
                "Expired",
                release.has_expired.then(|| "yes: its Valid-Until has passed".to_owned()),
            );
            tell("Not admitted", release.refusal());
            let absent = "the mirror said that it does not have it";
            tell("Absent", release.is_absent.then(|| absent.to_owned()));
        }
        tell("Under way", self.download.as_ref().map(Download::words));
        tell("Last download", self.last_download.as_ref().map(LastDownload::words));
        for peer in &self.peers {
            tell("Claimed by", Some(peer.words()));
        }
        for mirror in &self.mirrors {
            tell("Mirror", Some(mirror.words()));
        }
        if let Some(Listed { release, report }) = &self.as_listed {
            tell("As listed", Some(format!("{}, by {release}", report.url)));
            tell("As listed, stored", Some(report.copy()));
            tell("As listed, under way", report.download.as_ref().map(Download::words));
            let last = report.last_download.as_ref().map(LastDownload::words);
            tell("As listed, last", last);
        }
        let others = "clients that send credentials, or no-store: their requests are handed on, and nothing is stored";
        tell("Does not hold for", self.has_copies().then(|| others.to_owned()));
        let silent = "does not answer: what it knows is missing here";
        tell("Index", self.is_index_silent.then(|| silent.to_owned()));
        facts
    }

    /// Whether there may be any.
    fn has_copies(&self) -> bool {
        self.private.is_none() && self.kind != "other"
    }

    fn must_be(&self) -> Option<String> {
        match &self.expected {
            Some(expected) => Some(expected.words()),
            None if self.is_disputed => {
                Some("unknown: lists disagree, so that none of them counts".to_owned())
            }
            None => self.lists.first().map(|_| "unknown: the list is only half learnt".to_owned()),
        }
    }

    fn copy(&self) -> String {
        let Some(stored) = &self.stored else {
            let answer =
                if self.is_index_silent { "unknown: the index does not answer" } else { "no" };
            return answer.to_owned();
        };
        let size = words::bytes(stored.size);
        let place = match (stored.place.as_str(), stored.is_in_memory) {
            ("volume", true) => "on the volume, and at hand in memory",
            ("volume", false) => "on the volume",
            ("folders", _) => "in a shared folder",
            ("unknown", true) => "at hand in memory, while the volume does not answer",
            ("unknown", false) => "in the index, while the volume does not answer",
            (_, true) => "at hand in memory, but not on the volume",
            ("replicas", false) => "at other replicas",
            (_, false) => "in the index, but not on the volume",
        };
        let wrong = if stored.is_right { "" } else { "; another file than it must be by now" };
        format!("{size} {place}{wrong}")
    }
}

fn kind(label: &str) -> &str {
    match label {
        "release" => "release file",
        "index" => "list",
        "by_hash" => "named by its content",
        "other" => "of no archive, as far as its path tells: passed on, not stored",
        label => label,
    }
}

impl Expectation {
    fn words(&self) -> String {
        let size = self.size.map(|size| format!("{} bytes, ", words::count(size)));
        format!("{}{} {}", size.unwrap_or_default(), self.algorithm, self.digest)
    }
}

impl Naming {
    fn words(&self) -> String {
        let Self { list, release, .. } = self;
        let by = match release {
            Some(release) if release == list => String::new(),
            Some(release) => format!(", by {release}"),
            None => ", whose release file is not known".to_owned(),
        };
        format!("{list}{}{by}", if self.is_learnt { "" } else { " (half learnt: does not count)" })
    }
}

fn giver(from: Option<&str>, mirror: Option<&str>) -> String {
    match (from, mirror) {
        (_, Some(mirror)) => format!(" from {mirror}"),
        (Some("replica"), None) => " from another replica".to_owned(),
        (Some(from), None) => format!(" from {from}"),
        (None, None) => String::new(),
    }
}

impl Download {
    fn words(&self) -> String {
        let size = self.size.map(|size| format!(" of {}", words::bytes(size))).unwrap_or_default();
        let giver = giver(self.from.as_deref(), self.mirror.as_deref());
        let waiting = words::things(self.waiting as u64, "waits for it", "wait for it");
        format!(
            "{}{size}{giver}, begun {}; {waiting}",
            words::bytes(self.bytes),
            words::ago(self.age)
        )
    }
}

impl LastDownload {
    fn words(&self) -> String {
        let giver = giver(self.from.as_deref(), self.mirror.as_deref());
        let what = match self.outcome.as_str() {
            "whole" => format!("{}{giver}", words::bytes(self.bytes)),
            "confirmed" if self.from.as_deref() == Some("replica") => {
                "another replica fetched it, or had it confirmed".to_owned()
            }
            "confirmed" => "the mirror had nothing newer than what is stored".to_owned(),
            "refused" => "the mirror refused it".to_owned(),
            "failed" => "nothing that is of use was given".to_owned(),
            "cut" => format!("broke off after {}{giver}", words::bytes(self.bytes)),
            "not_stored" => "the volume did not take it".to_owned(),
            _ => format!("given up after {}{giver}: nobody wanted it", words::bytes(self.bytes)),
        };
        let rate = self.bytes.saturating_mul(1000).checked_div(self.took_ms);
        let rate = rate.filter(|_| self.outcome == "whole" && self.bytes > 0).map(words::rate);
        let rate = rate.map(|rate| format!(" at {rate}")).unwrap_or_default();
        let failure = self.failure.as_ref().map(|failure| format!(": {failure}"));
        format!("{}, {what}{rate}{}", words::ago(self.ago), failure.unwrap_or_default())
    }
}

impl Release {
    fn refusal(&self) -> Option<String> {
        let ago = words::ago(self.refused_ago.unwrap_or_default());
        self.refused.as_ref().map(|why| format!("what its mirror had {ago}: it {why}"))
    }
}

impl Peer {
    fn words(&self) -> String {
        let by = if self.by == "filter" { "its filter says so" } else { "found just now" };
        format!("{}, {by}", self.urls.first().unwrap_or(&self.node))
    }
}

impl Mirror {
    fn words(&self) -> String {
        let until = || words::time(self.benched_for);
        let state = match (self.forbidden.as_deref(), self.state.as_str()) {
            (Some(why), _) => format!("may not be asked ({why})"),
            (None, "well") => "nothing is known against it".to_owned(),
            (None, "benched") => format!("failed lately: asked last for another {}", until()),
            (None, _) => format!("away: hardly asked for another {}", until()),
        };
        format!("{}: {state}", self.url)
    }
}
