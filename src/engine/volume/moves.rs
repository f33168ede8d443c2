//! Blobs that come and go at the same time: one that is being stored is not removed under the hands of
//! who stores it, and one that is being removed is stored only after it is gone, from the volume and
//! from the index.
//!
//! Other processes do not see that: a blob that one of them stores while it is removed here may lie on the
//! volume unknown to the index, or be known and not lie there. The first is looked for whenever something
//! is forgotten; the second is found out by who wants it next.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;

use crate::content::digest::Sha256;
use crate::engine::memory::now_seconds;
use crate::index::{Index, IndexError};
use crate::store::Store;

/// What comes and goes now.
#[derive(Default)]
pub struct Moves(watch::Sender<Moving>);

#[derive(Default)]
struct Moving {
    /// By how many each is being stored.
    arriving: HashMap<Sha256, usize>,
    leaving: HashSet<Sha256>,
}

impl Moves {
    /// Waits until `digest` is not being removed; it will not be while the answer is held.
    pub async fn arrive(self: &Arc<Self>, digest: Sha256) -> Arriving {
        let mut moving = self.0.subscribe();
        loop {
            let arrives = self.0.send_if_modified(|moving| {
                let is_free = !moving.leaving.contains(&digest);
                if is_free {
                    *moving.arriving.entry(digest).or_default() += 1;
                }
                is_free
            });
            if arrives {
                return Arriving { moves: Arc::clone(self), digest };
            }
            // The sender is ours: it can not be gone.
            drop(moving.wait_for(|moving| !moving.leaving.contains(&digest)).await);
        }
    }

    /// Those of `digests` that may be removed while the answer is held.
    #[must_use]
    pub fn leave(self: &Arc<Self>, mut digests: Vec<Sha256>) -> Leaving {
        self.0.send_modify(|moving| {
            digests.retain(|digest| {
                !moving.arriving.contains_key(digest) && moving.leaving.insert(*digest)
            });
        });
        Leaving { moves: Arc::clone(self), digests }
    }
}

/// Forgets blobs that are gone from the volume, but for those that another process stored anew before it
/// was done: they are known as what they are, if not under what name.
pub(super) async fn forget(
    index: &dyn Index,
    store: &Arc<Store>,
    gone: &[Sha256],
) -> Result<(), IndexError> {
    index.forget_blobs(gone).await?;
    let (store, digests) = (Arc::clone(store), gone.to_vec());
    let looking = tokio::task::spawn_blocking(move || {
        let size = |digest: &Sha256| Some(store.read(digest).ok()??.size);
        digests.into_iter().filter_map(|digest| Some((digest, size(&digest)?))).collect::<Vec<_>>()
    });
    for (digest, size) in looking.await.unwrap_or_default() {
        index.add_blob(&digest, size, now_seconds()).await?;
    }
    Ok(())
}

/// A blob that is being stored.
pub struct Arriving {
    moves: Arc<Moves>,
    digest: Sha256,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.moves.0.send_modify(|moving| {
            if let Some(number) = moving.arriving.get_mut(&self.digest) {
                *number -= 1;
                if *number == 0 {
                    moving.arriving.remove(&self.digest);
                }
            }
        });
    }
}

/// Blobs that are being removed.
pub struct Leaving {
    moves: Arc<Moves>,
    /// Which.
    pub digests: Vec<Sha256>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.moves.0.send_modify(|moving| {
            for digest in &self.digests {
                moving.leaving.remove(digest);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::sqlite::{self, SqliteIndex};
    use crate::store;

    #[tokio::test]
    async fn nothing_is_removed_while_it_is_stored() {
        let moves = Arc::new(Moves::default());
        let (a, b) = (Sha256::of(b"a"), Sha256::of(b"b"));
        let (first, second) = (moves.arrive(a).await, moves.arrive(a).await);
        drop(first);
        let leaving = moves.leave(vec![a, b]);
        assert_eq!(leaving.digests, [b], "the second still stores it");
        assert!(moves.leave(vec![b]).digests.is_empty(), "once is enough");
        drop(second);
        assert_eq!(moves.leave(vec![a]).digests, [a]);
    }

    #[tokio::test]
    async fn what_another_process_stored_anew_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&store::Config { dir: folder.path().to_owned() }));
        let index = SqliteIndex::open(&sqlite::Config::Memory).unwrap();
        let (gone, back) = (Sha256::of(b"gone"), Sha256::of(b"back"));
        for digest in [gone, back] {
            index.add_blob(&digest, 4, 1).await.unwrap();
        }
        // Both were removed, and then another process stored one of them.
        let mut stage = store.stage(None).unwrap();
        stage.append(b"back").unwrap();
        store.commit(stage, &back).unwrap();
        forget(&index, &store, &[gone, back]).await.unwrap();
        assert_eq!(index.blob(&gone).await.unwrap(), None);
        assert_eq!(index.blob(&back).await.unwrap().map(|blob| blob.size), Some(4));
        assert_eq!(index.volume().await.unwrap().bytes, 4);
    }

    #[tokio::test]
    async fn nothing_is_stored_while_it_is_removed() {
        let moves = Arc::new(Moves::default());
        let a = Sha256::of(b"a");
        let leaving = moves.leave(vec![a]);
        let arriving = moves.arrive(a);
        tokio::pin!(arriving);
        assert!(futures_util::poll!(&mut arriving).is_pending());
        drop(leaving);
        let arrived = arriving.await;
        assert!(moves.leave(vec![a]).digests.is_empty());
        drop(arrived);
    }
}
