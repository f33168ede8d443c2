//! What release files do to a resource: to one of them, and to the lists that they name.

use crate::archive::target::Target;
use crate::content::digest::Sha256;
use crate::engine::Engine;
use crate::engine::explain::lists::ABOVE_MAX;
use crate::engine::explain::questions::Questions;
use crate::engine::explain::{Stored, Suite};

impl Engine {
    /// How a release file stands of which `served` is at hand for clients.
    pub(super) async fn suite(
        &self,
        questions: &Questions,
        key: &str,
        served: Option<&Stored>,
    ) -> Suite {
        let has_expired = match served.filter(|_| self.judge.is_in_session()) {
            Some(release) => self.has_expired(release.blob).await,
            None => false,
        };
        let confirmed_at = served.and_then(|release| release.confirmed_at);
        Suite {
            has_expired,
            refused: self.suites.shown.refused(key, confirmed_at),
            is_absent: questions.ask(self.index.is_absent(key)).await.unwrap_or_default(),
        }
    }

    /// The nearest release file that is stored and names a list, and what it names there: what clients that
    /// were given it get.
    pub(super) async fn listed(
        &self,
        questions: &Questions,
        target: &Target,
    ) -> Option<(String, Target)> {
        let key = target.key.as_str();
        let mut folder = key;
        for _ in 0..ABOVE_MAX {
            folder = folder.rsplit_once('/')?.0;
            let path = key.strip_prefix(folder)?.strip_prefix('/')?;
            for name in ["InRelease", "Release"] {
                let release = format!("{folder}/{name}");
                let Some(blob) = self.stored_release(questions, &release).await else { continue };
                let Some(generation) = self.generation(blob).await else { continue };
                if let Some(listed) = generation.by_hash_target(folder, path) {
                    return Some((release, listed));
                }
            }
        }
        None
    }

    async fn stored_release(&self, questions: &Questions, key: &str) -> Option<Sha256> {
        if let Some(held) = self.memory.peek(key) {
            return Some(held.entry.blob);
        }
        Some(questions.ask(self.index.look_up(key)).await??.blob)
    }
}
