//! How the cache is doing, in one struct: `/status` and `aptmesh status` show it, `/status.json` tells it. A
//! reader of another version leaves out what it does not know, and takes what is missing for unknown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dht;
use crate::index;
use crate::web::status::words;

/// How the cache is doing. Times are in seconds, ages how long ago.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The program's.
    pub version: String,
    /// Since its start.
    pub uptime_seconds: u64,
    /// Downloads under way.
    pub flights: usize,
    /// Those of them that have been under way longest.
    pub running: Vec<Flight>,
    /// Bytes of bodies handed to clients since the start, by source.
    pub served_bytes: BTreeMap<String, u64>,
    /// What went through.
    pub traffic: Traffic,
    /// The same over time.
    pub history: History,
    /// What is stored and known; `None`: the index did not tell in time.
    pub stored: Option<Stored>,
    /// What lies on the volume.
    pub volume: Volume,
    /// Release files that clients were given since the start; `None`: they were not told in time.
    pub archives: Option<Vec<Archive>>,
    /// Mirrors that are named in the settings or were asked since the start.
    pub mirrors: Vec<Mirror>,
    /// The site's node of the swarm, in this process or beside it; `None`: there is none.
    pub swarm: Option<Swarm>,
    /// Other sites that were asked, those first that gave most.
    pub peers: Vec<Peer>,
    /// What the site does once, and this process does now.
    pub duties: Vec<String>,
    /// This process, as its fellows know it.
    pub process: String,
    /// Where other replicas of the site are reached.
    pub replicas: Vec<String>,
    /// Whether no mirror is asked, by the operator's word.
    pub offline: bool,
    /// What is wrong with volume and index, in words.
    pub trouble: Option<String>,
    /// All that is wrong, and what that means for apt.
    pub troubles: Vec<Trouble>,
}

/// Bytes, by way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ByWay {
    /// Bodies from mirrors.
    pub from_mirrors: u64,
    /// Bodies from other sites.
    pub from_peers: u64,
    /// Bodies from other replicas.
    pub from_replicas: u64,
    /// What clients got out of the store, or of a download that another client began.
    pub from_store: u64,
    /// Bodies to other sites.
    pub to_peers: u64,
    /// Bodies to other replicas.
    pub to_replicas: u64,
}

/// One of the ways.
pub type Way = fn(&ByWay) -> u64;

/// What went through.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Bytes per second over the last ten seconds.
    pub now: ByWay,
    /// Bytes per second over the last minute.
    pub minute: ByWay,
    /// Bytes since the start.
    pub session: ByWay,
    /// Bytes of the whole site, since ever; `None`: the index did not tell.
    pub all_time: Option<ByWay>,
}

/// What went through in spans of time, the newest last and not over yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// That each took.
    pub span_seconds: u64,
    /// Bytes in each.
    pub from_store: Vec<u64>,
    /// Bytes in each.
    pub from_replicas: Vec<u64>,
    /// Bytes in each.
    pub from_peers: Vec<u64>,
    /// Bytes in each.
    pub from_mirrors: Vec<u64>,
}

/// What is stored and known.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Stored {
    /// Names.
    pub resources: u64,
    /// Files.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What lists name.
    pub expectations: u64,
    /// The most bytes; `None`: no bound.
    pub quota: Option<u64>,
}

/// What lies on the volume.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Volume {
    /// Files; `None`: the index never told.
    pub blobs: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Bytes that are free; `None`: it did not tell.
    pub free: Option<u64>,
    /// Bytes of all of it.
    pub total: Option<u64>,
}

/// A download under way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Flight {
    /// The resource's name.
    pub url: String,
    /// Its kind.
    pub kind: String,
    /// `mirror`, `peers`, `replica`; `None`: nobody gives anything yet.
    pub from: Option<String>,
    /// Which mirror it is.
    pub mirror: Option<String>,
    /// Bytes of the whole; `None`: not known.
    pub size: Option<u64>,
    /// Bytes that are there.
    pub bytes: u64,
    /// On average.
    pub bytes_per_second: u64,
    /// How many wait for it.
    pub waiting: usize,
    /// Since it was begun.
    pub age: u64,
}

/// A release file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Archive {
    /// Its name.
    pub url: String,
    /// `Suite`
    pub suite: Option<String>,
    /// `Codename`
    pub codename: Option<String>,
    /// `Date`, in seconds since 1970.
    pub date: Option<i64>,
    /// `Valid-Until`, in seconds since 1970.
    pub valid_until: Option<i64>,
    /// Since its `Date`; `None` if that is not known, or in the future.
    pub age: Option<u64>,
    /// Whether `Valid-Until` has passed.
    pub expired: bool,
    /// Since a mirror gave or confirmed it.
    pub confirmed: Option<u64>,
    /// What its signature is worth: `good`, `unknown_key`, …
    pub signature: Option<String>,
    /// Fingerprints of keys that signed, or are said to have.
    pub keys: Vec<String>,
    /// Why what its mirror offers is not admitted; completes "HOST …".
    pub refused: Option<String>,
    /// Since that.
    pub refused_ago: Option<u64>,
    /// Whether there is one to be served.
    pub served: bool,
}

/// A mirror.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mirror {
    /// `SCHEME://HOST[:PORT]`
    pub url: String,
    /// The archive that it is said to serve.
    pub archive: Option<String>,
    /// `well`; `failed` when it was last asked, and is asked like others all the same; `benched`; `away`
    pub state: String,
    /// Until it is asked like others again.
    pub benched_for: u64,
    /// Questions sent to it.
    pub requests: u64,
    /// Of them and of their bodies, those that came to nothing.
    pub failures: u64,
    /// Bytes of bodies.
    pub bytes: u64,
    /// Of late; `None`: it brought nothing large.
    pub bytes_per_second: Option<u64>,
    /// Since it was asked; `None`: never.
    pub asked: Option<u64>,
    /// In words; completes "HOST …".
    pub last_failure: Option<String>,
    /// Since then.
    pub failed_ago: Option<u64>,
}

/// Another site of the swarm.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// Its node's id.
    pub node: String,
    /// Its name, if its card is known.
    pub site: Option<String>,
    /// Where it is asked.
    pub url: String,
    /// Share of attempts that succeed, of late.
    pub success: f64,
    /// Of late.
    pub bytes_per_second: Option<u64>,
    /// Milliseconds to the first byte, of late.
    pub first_byte_ms: Option<u64>,
    /// Attempts under way.
    pub in_flight: usize,
    /// Bytes that it gave and that were right.
    pub proven_bytes: u64,
    /// For how long it is not asked since it failed.
    pub benched_for: u64,
    /// Whether it gave wrong bytes within a day.
    pub blamed: bool,
}

/// The node of the swarm.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Swarm {
    /// How it is doing.
    #[serde(flatten)]
    pub status: Option<dht::Status>,
    /// Why it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trouble {
    /// What it is.
    pub what: String,
    /// What it means for apt, and for whoever has to see to it.
    pub means: String,
}

impl From<index::Traffic> for ByWay {
    fn from(bytes: index::Traffic) -> Self {
        let index::Traffic {
            from_mirrors,
            from_peers,
            from_replicas,
            from_store,
            to_peers,
            to_replicas,
        } = bytes;
        Self { from_mirrors, from_peers, from_replicas, from_store, to_peers, to_replicas }
    }
}

impl Archive {
    /// `HOST/PATH SUITE`, without what all have in common.
    #[must_use]
    pub fn name(&self) -> String {
        let url = self.url.rsplit_once('/').map_or(self.url.as_str(), |(folder, _)| folder);
        let place = url.split_once("://").map_or(url, |(_, place)| place);
        match place.split_once("/dists/") {
            Some((archive, suite)) => format!("{archive} {suite}"),
            None => place.to_owned(),
        }
    }
}

impl Archive {
    /// What its signature is worth, and whether that is good (`good`), nothing (`quiet`), or `bad`.
    #[must_use]
    pub fn signed(&self) -> (&'static str, &'static str) {
        match self.signature.as_deref() {
            Some("good") => ("good", "good"),
            Some("unknown_key") => ("quiet", "by a key that is not known here"),
            Some("unsigned") => ("bad", "none"),
            Some("expired" | "expired_key") => ("bad", "by a key that has expired"),
            Some("weak") => ("bad", "too weak to prove anything"),
            Some("bad") => ("bad", "wrong"),
            Some(_) => ("bad", "can not be read"),
            None if self.served => ("quiet", "could not be looked at"),
            None => ("quiet", "–"),
        }
    }

    /// How long ago it was made.
    #[must_use]
    pub fn made(&self) -> String {
        match (self.age, self.date) {
            (Some(age), _) => words::ago(age),
            (None, Some(_)) => "in the future".to_owned(),
            (None, None) => "unknown".to_owned(),
        }
    }
}

impl Swarm {
    /// `3 files, 1 due, none late`
    #[must_use]
    pub fn announced(node: &dht::Status) -> String {
        let files = words::things(node.announced as u64, "file", "files");
        let due = words::count(node.announce_due as u64);
        match node.announce_late {
            0 => format!("{files}, {due} due, none late"),
            late => {
                let (late, lag) = (words::count(late as u64), words::time(node.announce_lag));
                format!("{files}, {due} due, {late} late by up to {lag}")
            }
        }
    }
}

impl Volume {
    /// `3 files`
    #[must_use]
    pub fn files(&self) -> String {
        self.blobs.map_or("unknown".to_owned(), |blobs| words::things(blobs, "file", "files"))
    }

    /// `1.5 MB`
    #[must_use]
    pub fn size(&self) -> String {
        self.bytes.map_or("unknown".to_owned(), words::bytes)
    }
}

impl Flight {
    /// Its file's name; of one that is named by its digest, the folder's.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.url.split_once("/by-hash/") {
            Some((folder, _)) => folder.split_once("/dists/").map_or(folder, |(_, list)| list),
            None => self.url.rsplit('/').next().unwrap_or_default(),
        }
    }
}

impl Peer {
    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.site.as_deref().unwrap_or(&self.url)
    }
}

impl ByWay {
    /// All that came, from wherever.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.from_store.saturating_add(self.not_from_store())
    }

    /// What was not there.
    #[must_use]
    pub fn not_from_store(&self) -> u64 {
        self.from_mirrors.saturating_add(self.from_peers).saturating_add(self.from_replicas)
    }

    /// What no mirror had to give.
    #[must_use]
    pub fn spared(&self) -> u64 {
        self.from_store.saturating_add(self.from_peers).saturating_add(self.from_replicas)
    }
}
