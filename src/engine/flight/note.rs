//! What the holder of a flight's lease tells those who follow it in other processes: where its bytes
//! are, and how far they have come.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::content::digest::Sha256;
use crate::content::validators::Validators;
use crate::engine::flight::{Flight, State};
use crate::engine::leases::Telling;
use crate::engine::outcome::Meta;

/// A flight, as told to other processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// On which volume it is.
    pub(super) volume: String,
    /// Where processes with another volume reach its holder; `None`: nowhere.
    pub(super) url: Option<String>,
    /// The staged file's name for other processes.
    pub(super) file: String,
    /// Bytes in it.
    pub(super) written: u64,
    /// Their SHA-256, in hex.
    prefix: String,
    /// Whether these are all, and right.
    pub(super) is_whole: bool,
    /// Bytes in all.
    size: Option<u64>,
    last_modified: Option<i64>,
    etag: Option<String>,
    content_type: Option<String>,
    /// Whether they will be stored.
    pub(super) stored: bool,
    /// Whether a digest is expected of them.
    pub(super) checked: bool,
    /// The key they were asked for as.
    pub(super) source: String,
    /// Which mirror gave them first.
    pub(super) origin: String,
}

impl Note {
    /// `None` if another version of this program wrote it.
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The digest of what is written.
    pub(super) fn prefix(&self) -> Option<Sha256> {
        Sha256::from_hex(&self.prefix)
    }

    pub(super) fn meta(&self) -> Meta {
        let (last_modified, etag) = (self.last_modified, self.etag.clone());
        Meta {
            size: self.size,
            validators: Validators { last_modified, etag },
            content_type: self.content_type.clone(),
        }
    }
}

/// A flight of this process, for others. What is told of it is what its own clients see of it.
pub(super) struct Told {
    pub(super) flight: Arc<Flight>,
    /// The identity of this process's volume.
    pub(super) volume: String,
    /// Where fellows reach this process.
    pub(super) url: Option<String>,
}

impl Telling for Told {
    fn note(&self) -> Option<String> {
        let flow = self.flight.flow()?;
        let progress = self.flight.progress.borrow().clone();
        if matches!(progress.state, State::Cut(_) | State::Spilled) {
            return None;
        }
        let note = Note {
            volume: self.volume.clone(),
            url: self.url.clone(),
            file: progress.arriving?.name.to_string(),
            written: progress.written,
            prefix: progress.prefix.to_string(),
            is_whole: progress.state == State::Whole,
            size: flow.meta.size,
            last_modified: flow.meta.validators.last_modified,
            etag: flow.meta.validators.etag.clone(),
            content_type: flow.meta.content_type.clone(),
            stored: flow.stored,
            checked: flow.checked,
            source: flow.source.key.clone(),
            origin: flow.origin.to_string(),
        };
        serde_json::to_string(&note).ok()
    }

    fn is_wanted(&self, by_others: bool) {
        self.flight.is_wanted_abroad(by_others);
    }
}
