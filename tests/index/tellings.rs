//! The contract of what other sites are told.

use std::time::Duration;

use aptmesh::content::digest::Sha256;
use aptmesh::index::{CHANGES_MAX, Changes, Index, KeptFilter, NewFilter, Taken};

use crate::conformance::learn;
use crate::leases;

const LIST: &str = "http://m/list";

pub(crate) async fn tells_what_a_list_names(index: &impl Index) {
    let mark = index.changes_since(None).await.unwrap().mark;
    for body in ["named", "unnamed", "named later"] {
        index.add_blob(&of(body), body.len() as u64, 5).await.unwrap();
    }
    assert_eq!(told(index).await, []);
    assert_eq!(index.changes_since(Some(&mark)).await.unwrap().blobs, []);

    learn(index, LIST, &[("http://m/a", "named"), ("http://m/b", "stored later")], 10).await;
    index.add_blob(&of("stored later"), 12, 11).await.unwrap();
    let mut wanted = [(of("named"), 5), (of("stored later"), 12)];
    wanted.sort_unstable_by_key(|(digest, _)| *digest.as_bytes());
    assert_eq!(told(index).await, wanted);
    let changes = index.changes_since(Some(&mark)).await.unwrap();
    assert_eq!(last_of(&changes, "named"), Some(Some(5)));
    assert_eq!(last_of(&changes, "stored later"), Some(Some(12)));
    assert_eq!(last_of(&changes, "unnamed"), None);
    assert!(!changes.are_too_many);

    // What is used and checked is what it was.
    let mark = index.changes_since(None).await.unwrap().mark;
    index.blob_checked(&of("named"), 20).await.unwrap();
    index.pin(&[of("named")]).await.unwrap();
    assert_eq!(index.changes_since(Some(&mark)).await.unwrap().blobs, []);

    index.forget_blobs(&[of("named"), of("unnamed")]).await.unwrap();
    while !leases::unlearn(index, LIST, 10, 30).await.unwrap() {}
    let changes = index.changes_since(Some(&mark)).await.unwrap();
    assert_eq!(last_of(&changes, "named"), Some(None), "not stored any more");
    assert_eq!(last_of(&changes, "stored later"), Some(None), "not named any more");
    assert_eq!(last_of(&changes, "unnamed"), None);
    assert_eq!(told(index).await, []);
}

pub(crate) async fn says_when_there_are_too_many_changes(index: &impl Index) {
    let mark = index.changes_since(None).await.unwrap().mark;
    let bodies: Vec<String> = (0..=CHANGES_MAX).map(|number| number.to_string()).collect();
    let keys: Vec<String> = bodies.iter().map(|body| format!("http://m/{body}")).collect();
    let says: Vec<(&str, &str)> =
        keys.iter().zip(&bodies).map(|(key, body)| (key.as_str(), body.as_str())).collect();
    for says in says.chunks(2_000) {
        learn(index, LIST, says, 1).await;
    }
    let stored = bodies.iter().map(|body| of(body));
    for digests in stored.collect::<Vec<_>>().chunks(500) {
        let added = digests.iter().map(|digest| index.add_blob(digest, 1, 2));
        futures_util::future::try_join_all(added).await.unwrap();
    }
    let changes = index.changes_since(Some(&mark)).await.unwrap();
    assert!(changes.are_too_many);
    assert_eq!(told(index).await.len(), CHANGES_MAX + 1);
    let mark = index.changes_since(None).await.unwrap().mark;
    assert!(!index.changes_since(Some(&mark)).await.unwrap().are_too_many);
}

pub(crate) async fn keeps_the_filter(index: &impl Index) {
    let take = async |owner: &str| match index.take("filter", owner, Duration::ZERO).await.unwrap()
    {
        Taken::Granted { lease, .. } => lease,
        Taken::Held => panic!("another holds it"),
    };
    assert_eq!(
        (index.filter().await.unwrap(), index.filter_generation().await.unwrap()),
        (None, 0)
    );
    let first = take("one").await;
    let keep = async |lease, generation: u64, whole: Option<&[u8]>, delta: Option<&[u8]>| {
        index.keep_filter(lease, NewFilter { generation, whole, delta }).await
    };
    keep(&first, 5, Some(b"five"), None).await.unwrap();
    assert_eq!(index.filter_generation().await.unwrap(), 5);
    keep(&first, 6, None, Some(b"to six")).await.unwrap();
    keep(&first, 7, None, Some(b"to seven")).await.unwrap();
    let kept = index.filter().await.unwrap().unwrap();
    let deltas = vec![b"to six".to_vec(), b"to seven".to_vec()];
    assert_eq!(kept, KeptFilter { whole: b"five".to_vec(), deltas });
    assert_eq!(index.filter_generation().await.unwrap(), 7);

    // Of what came before it was built anew, the last deltas are kept.
    for generation in 8..200 {
        keep(&first, generation, None, Some(&generation.to_be_bytes())).await.unwrap();
    }
    assert_eq!(index.filter().await.unwrap().unwrap().deltas.len(), 194);
    keep(&first, 200, Some(b"two hundred"), Some(b"to 200")).await.unwrap();
    let kept = index.filter().await.unwrap().unwrap();
    assert_eq!((kept.whole, kept.deltas.len()), (b"two hundred".to_vec(), 65));
    assert_eq!(kept.deltas.last().unwrap(), b"to 200");

    tokio::time::sleep(Duration::from_millis(5)).await;
    let second = take("two").await;
    let late = keep(&first, 201, None, Some(b"lost")).await.unwrap_err();
    assert!(late.is_fenced_off());
    assert_eq!(index.filter_generation().await.unwrap(), 200);
    keep(&second, 202, Some(b"anew"), None).await.unwrap();
    assert_eq!(index.filter_generation().await.unwrap(), 202);
}

fn of(body: &str) -> Sha256 {
    Sha256::of(body.as_bytes())
}

/// All, in pages of one; of many, in larger ones.
async fn told(index: &impl Index) -> Vec<(Sha256, u64)> {
    let (mut all, mut limit) = (Vec::new(), 1);
    loop {
        let after = all.last().map(|(digest, _)| *digest);
        let page = index.tellable_after(after, limit).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page.iter().map(|blob| (blob.digest, blob.size)));
        limit = all.len().min(5_000);
    }
}

fn last_of(changes: &Changes, body: &str) -> Option<Option<u64>> {
    changes.blobs.iter().rev().find(|(digest, _)| *digest == of(body)).map(|(_, size)| *size)
}
