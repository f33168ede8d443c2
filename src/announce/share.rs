//! Which of a site's nodes announces a blob: each node has a weight for it, and the heaviest does
//! (rendezvous hashing, Thaler and Ravishankar 1998). When a node comes or goes, only its own share
//! changes hands. Pure.

use crate::content::digest::Sha256;

/// The blobs that are a node's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    me: u64,
    others: Vec<u64>,
}

impl Share {
    /// That of node `me` among these, whether it is one of them or not.
    pub(super) fn of<'a>(me: &str, nodes: impl Iterator<Item = &'a str>) -> Self {
        let mut others: Vec<u64> = nodes.filter(|node| *node != me).map(number).collect();
        others.sort_unstable();
        Self { me: number(me), others }
    }

    pub(super) fn has(&self, blob: &Sha256) -> bool {
        let blob = first(blob);
        let mine = weight(self.me, blob);
        self.others.iter().all(|other| weight(*other, blob) < mine)
    }
}

/// What stands for a node.
fn number(node: &str) -> u64 {
    first(&Sha256::of(node.as_bytes()))
}

fn first(digest: &Sha256) -> u64 {
    digest.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Looks random, and is the same everywhere; `SplitMix64`'s finish.
fn weight(node: u64, blob: u64) -> u64 {
    let mut hash = node ^ blob;
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> impl Iterator<Item = Sha256> {
        (0..3_000u32).map(|number| Sha256::of(&number.to_be_bytes()))
    }

    #[test]
    fn each_blob_is_one_nodes_and_all_have_about_as_many() {
        let nodes = ["a", "b", "c"];
        let shares = nodes.map(|me| Share::of(me, nodes.into_iter()));
        for blob in blobs() {
            assert_eq!(shares.iter().filter(|share| share.has(&blob)).count(), 1);
        }
        for share in &shares {
            let count = blobs().filter(|blob| share.has(blob)).count();
            assert!((800..1_200).contains(&count), "{count} of 3000");
        }
    }

    #[test]
    fn what_a_node_leaves_passes_on_and_nothing_else() {
        let before = Share::of("a", ["a", "b", "c"].into_iter());
        let after = Share::of("a", ["c", "a"].into_iter());
        let left = Share::of("b", ["a", "b", "c"].into_iter());
        for blob in blobs() {
            assert!(after.has(&blob) || !before.has(&blob));
            assert!(before.has(&blob) || !after.has(&blob) || left.has(&blob));
        }
        let alone = Share::of("a", std::iter::empty());
        assert!(blobs().all(|blob| alone.has(&blob)));
    }
}
