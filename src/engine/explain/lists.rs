//! What lists say of a resource, and which.

use crate::archive::list::{List, ListKind};
use crate::engine::Engine;
use crate::engine::explain::Naming;
use crate::engine::explain::questions::Questions;
use crate::index::{Entry, Expectation, IndexError};

/// Lists that are told of: more suites than this do not share a package.
const LISTS_MAX: usize = 16;
/// Folders above a list in which its release file is looked for: `main/binary-amd64` is two below it.
pub(super) const ABOVE_MAX: usize = 6;

/// What the index tells of a resource.
#[derive(Default)]
pub(super) struct Told {
    pub(super) entry: Option<Entry>,
    pub(super) expectation: Option<Expectation>,
    pub(super) lists: Vec<Naming>,
}

impl Engine {
    pub(super) async fn told(&self, questions: &Questions, key: &str) -> Option<Told> {
        let telling = async {
            let found = self.index.find(key).await?;
            let mut lists = Vec::new();
            for list in self.index.lists_naming(key).await?.into_iter().take(LISTS_MAX) {
                let is_learnt = self.index.learnt(&list).await?.is_some();
                let release = self.release_of(&list).await?;
                lists.push(Naming { list, is_learnt, release });
            }
            Ok(Told { entry: found.entry, expectation: found.expectation, lists })
        };
        questions.ask(telling).await
    }

    /// The release file by which a list was learnt: that of its own folder, or the nearest above it.
    async fn release_of(&self, list: &str) -> Result<Option<String>, IndexError> {
        if List::at(list).is_some_and(|list| list.kind == ListKind::Release) {
            return Ok(Some(list.to_owned()));
        }
        let mut folder = list;
        for _ in 0..ABOVE_MAX {
            let Some((parent, _)) = folder.rsplit_once('/') else { break };
            let release = format!("{parent}/Release");
            if self.index.learnt(&release).await?.is_some() {
                return Ok(Some(release));
            }
            folder = parent;
        }
        Ok(None)
    }
}
