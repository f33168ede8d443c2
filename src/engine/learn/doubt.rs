//! Doubt: a mirror sends something else than its archive's lists say. The mirror may be wrong, or
//! what was learnt may be out of date: some archives rebuild a package under its old name, and a
//! client may know newer lists than passed through here. So the lists are fetched and learnt anew;
//! apt tries again after a second, and is judged by what they say then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::archive::list::List;
use crate::engine::duties::{Duties, Duty, OnDuty};
use crate::engine::plan::Freshness;
use crate::engine::{Ask, Engine, without_index};

/// How often one list is doubted.
const PAUSE: Duration = Duration::from_secs(30);
/// Lists of which it is remembered when they were last doubted.
const DOUBTED_MAX: usize = 1024;
/// Files of a list that are tried where no release file tells which there are.
const FILES_TRIED: usize = 3;
/// Lists that are fetched anew because of one resource.
const LISTS_MAX: usize = 4;

/// When lists were last doubted by this process, by key, with the right to: for so long no other process
/// of the site does.
pub(in crate::engine) struct Doubts {
    duties: Arc<Duties>,
    doubted: Mutex<HashMap<String, (Instant, Option<OnDuty>)>>,
}

impl Doubts {
    pub(in crate::engine) fn new(duties: &Arc<Duties>) -> Arc<Self> {
        Arc::new(Self { duties: Arc::clone(duties), doubted: Mutex::default() })
    }

    /// Whether it is time to doubt `list`, and not done by a fellow; then it counts as done.
    async fn is_due(&self, list: &str) -> bool {
        self.end_old();
        {
            let mut doubted = self.doubted();
            if doubted.len() == DOUBTED_MAX || doubted.contains_key(list) {
                return false;
            }
            doubted.insert(list.to_owned(), (Instant::now(), None));
        }
        let Ok(Some(on_duty)) = self.duties.take(Duty::Doubt, list).await else { return false };
        self.doubted().insert(list.to_owned(), (Instant::now(), Some(on_duty)));
        true
    }

    /// What was doubted a while ago may be doubted again, by whomever.
    pub(in crate::engine) fn end_old(&self) {
        self.doubted().retain(|_, (at, _)| at.elapsed() < PAUSE);
    }

    fn doubted(&self) -> MutexGuard<'_, HashMap<String, (Instant, Option<OnDuty>)>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Has the lists that name the resource `key` fetched and learnt anew, in the background.
    pub(in crate::engine) fn doubt(self: &Arc<Self>, key: &str) {
        let (engine, key) = (Arc::clone(self), key.to_owned());
        self.tasks.spawn(async move {
            for list in engine.lists_naming(&key).await.into_iter().take(LISTS_MAX) {
                if engine.doubts.is_due(&list).await {
                    engine.fetch_anew(&list).await;
                }
            }
        });
    }

    async fn lists_naming(&self, key: &str) -> Vec<String> {
        let lists = self.index.lists_naming(key).await;
        lists.unwrap_or_else(|error| without_index(&error).unwrap_or_default())
    }

    /// The release file that names the list, then the list.
    async fn fetch_anew(self: &Arc<Self>, list: &str) {
        let Some(list) = List::at(list) else { return };
        let mut published = Vec::new();
        for file in list.files() {
            for release in self.lists_naming(&file).await {
                if self.doubts.is_due(&release).await
                    && let Some(folder) = release.strip_suffix("Release")
                {
                    self.confirm_now(&format!("{folder}InRelease")).await;
                    self.confirm_now(&release).await;
                }
                published.push(file.clone());
            }
        }
        if published.is_empty() {
            // No release file names it: whichever of its files there is.
            for file in list.files().take(FILES_TRIED) {
                self.confirm_now(&file).await;
            }
        }
        // Of the list's files, the smallest is as good as any: archives compress best with xz.
        let file = published.iter().find(|file| file.rsplit('.').next() == Some("xz"));
        if let Some(file) = file.or_else(|| published.first()) {
            self.confirm_now(file).await;
        }
    }

    /// Asks the mirror for a metadata file as if for a client, and waits until it is there.
    async fn confirm_now(self: &Arc<Self>, url: &str) {
        let Some(ask) = Ask::ours(url) else { return };
        let ask = Ask { freshness: Freshness::Now, ..ask };
        let known = self.known(&ask).await;
        if let Ok((interest, _)) = self.board(&ask, known.as_ref(), None) {
            interest.flight().over().await;
        }
    }
}
