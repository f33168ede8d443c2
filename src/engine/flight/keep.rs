//! What has come is kept: committed to the volume, recorded in the index, held in memory.

use std::sync::Arc;

use tracing::Instrument as _;

use crate::engine::flight::Flow;
use crate::engine::flight::transfer::{Arrived, Transfer};
use crate::engine::leases::Tenure;
use crate::engine::memory::{Known, now_seconds};
use crate::engine::volume::promise::Staged;
use crate::index::Entry;
use crate::store::{COMMIT_PATIENCE, StoreError};
use crate::telemetry::traces::{self, span};

impl Transfer {
    /// Commits what was written and remembers it. A volume or index that fails costs the storing,
    /// never the clients, who have their bytes.
    pub(super) async fn keep(&self, arrived: Arrived, tenure: Option<&Tenure>) {
        let Arrived { flow, written } = arrived;
        if !flow.stored {
            return;
        }
        let sha256 = written.verdict.sha256;
        let Staged { stage, promise, .. } = written.staged;
        let size = stage.size();
        let vouched_at = flow.borrowed.as_ref().map(|it| it.checked_at).or(flow.joined_at);
        let entry = Entry {
            blob: sha256,
            size,
            validators: flow.meta.validators.clone(),
            content_type: flow.meta.content_type.clone(),
            checked_at: vouched_at.unwrap_or_else(now_seconds),
        };
        let same = self.known.as_ref().filter(|known| known.entry.blob == sha256);
        if let Some(known) = same {
            // What is new are at most their marks, and a release file's signature.
            let known = Arc::new(known.described_anew(entry));
            self.remember(Arc::clone(&known), &flow, tenure).await;
            return self.refresh_signature(&known).await;
        }
        let arriving = self.engine.room.evictor().moves().arrive(sha256).await;
        let engine = Arc::clone(&self.engine);
        // However long the volume takes, it is arriving for as long.
        let committing = move || {
            let blob = engine.store.commit(stage, &sha256)?;
            let known = Known::load_new(entry, blob).map_err(StoreError::interrupted)?;
            Ok((known, arriving, promise))
        };
        let span = span!("store.commit", aptmesh.bytes = traces::number(size));
        let committed = self.engine.store.within(COMMIT_PATIENCE, committing);
        match committed.instrument(span.clone()).await {
            Ok((known, arriving, promise)) => {
                self.engine.metrics.stored_bytes.inc_by(size);
                self.engine.learner.offer(&self.target.key, &known);
                self.remember(Arc::new(known), &flow, tenure).await;
                // It counts as stored from now on, and may be evicted.
                drop((arriving, promise));
            }
            Err(error) => {
                traces::fail(&span, "volume", &format_args!("{error}: {}", error.source));
                tracing::warn!(url = self.target.url, %error, source = %error.source, "fetched, but not stored");
            }
        }
    }

    /// Under its name; and, where it was asked for under another, under that too: so it is known
    /// which files of a suite this site uses. Not if another replica took over: what that one brings
    /// may be newer.
    async fn remember(&self, known: Arc<Known>, flow: &Flow, tenure: Option<&Tenure>) {
        let asked_as = Some(&flow.source.key).filter(|key| **key != self.target.key);
        self.engine.note_absent_beside(&self.target.key).await;
        for key in asked_as.into_iter().chain([&self.target.key]) {
            let is_recorded = if flow.joined_at.is_some() {
                self.engine.record_joined(key, &known.entry).await;
                true
            } else {
                self.engine.record(key, &known.entry, tenure).await
            };
            if is_recorded {
                self.engine.memory.hold(key, Arc::clone(&known));
            } else {
                tracing::warn!(key, "fetched, but another replica has taken over");
            }
        }
    }

    pub(super) async fn confirm(&self, known: &Known) {
        let (key, entry) = (&self.target.key, &known.entry);
        let entry = Entry { checked_at: now_seconds(), ..entry.clone() };
        if let Err(error) = self.engine.index.confirm(key, &entry.blob, entry.checked_at).await {
            self.engine.late.confirm(key, &entry, &error);
        }
    }
}
