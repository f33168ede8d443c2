//! The contract of leases.

use std::time::Duration;

use aptmesh::content::digest::Sha256;
use aptmesh::index::{
    Change, Entry, Expectation, Holding, Index, IndexError, Lease, Renewal, Taken,
};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);
/// Over at the next look at it.
const SHORT: Duration = Duration::from_millis(1);

pub(crate) async fn one_holds_a_lease_at_a_time(index: &impl Index) {
    let (first, note) = granted(index.take("flight:a", "one", LONG).await.unwrap());
    assert_eq!(note, None);
    assert_eq!(index.take("flight:a", "two", LONG).await.unwrap(), Taken::Held);
    granted(index.take("flight:b", "two", LONG).await.unwrap());

    index.release(std::slice::from_ref(&first)).await.unwrap();
    let (second, note) = granted(index.take("flight:a", "two", LONG).await.unwrap());
    assert_eq!(note, None, "given up");
    assert!(second.generation > first.generation);
    index.release(std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(index.take("flight:a", "one", LONG).await.unwrap(), Taken::Held, "lost, not ours");
}

pub(crate) async fn a_lease_that_is_not_renewed_passes_on(index: &impl Index) {
    let (first, _) = granted(index.take("flight:a", "one", SHORT).await.unwrap());
    tokio::time::sleep(SHORT * 5).await;
    assert_eq!(holdings(index, "flight:a").await, []);
    assert_eq!(renew(index, &first, Some("half")).await, Some(false), "nobody took it");
    tokio::time::sleep(SHORT * 5).await;
    index.renew(&[Renewal { lease: first.clone(), note: None }], SHORT).await.unwrap();
    tokio::time::sleep(SHORT * 5).await;

    let (second, note) = granted(index.take("flight:a", "two", LONG).await.unwrap());
    assert_eq!(note.as_deref(), Some("half"), "what the dead told is left");
    assert!(second.generation > first.generation);
    assert_eq!(renew(index, &first, Some("more")).await, None, "lost");
    let held = holdings(index, "flight:a").await;
    assert_eq!(held, [Holding { lease: second.clone(), note: Some("half".to_owned()) }]);
    assert_eq!(renew(index, &second, Some("whole")).await, Some(true));
    assert_eq!(holdings(index, "flight:a").await[0].note.as_deref(), Some("whole"));
    let (again, _) = granted(index.take("flight:a", "two", LONG).await.unwrap());
    assert!(again.generation > second.generation, "one owner may begin anew");
}

pub(crate) async fn holders_hear_whether_others_look(index: &impl Index) {
    let (lease, _) = granted(index.take("flight:a", "one", LONG).await.unwrap());
    assert_eq!(renew(index, &lease, None).await, Some(false));
    assert_eq!(holdings(index, "flight:b").await, []);
    assert_eq!(renew(index, &lease, None).await, Some(false));
    assert_eq!(holdings(index, "flight:a").await.len(), 1);
    assert_eq!(renew(index, &lease, None).await, Some(true));
}

pub(crate) async fn who_lost_a_lease_records_nothing_under_it(
    index: &impl Index,
    old: &Entry,
    new: &Entry,
) {
    let key = "http://m/a";
    let (first, _) = granted(index.take("flight:a", "one", SHORT).await.unwrap());
    tokio::time::sleep(SHORT * 5).await;
    assert!(index.record_under(&first, key, old).await.unwrap(), "still ours");
    assert_eq!(index.look_up(key).await.unwrap().as_ref(), Some(old));
    let (second, _) = granted(index.take("flight:a", "two", LONG).await.unwrap());
    assert!(index.record_under(&second, key, new).await.unwrap());
    assert!(!index.record_under(&first, key, old).await.unwrap());
    assert_eq!(index.look_up(key).await.unwrap().as_ref(), Some(new));
    index.release(std::slice::from_ref(&second)).await.unwrap();
    assert!(!index.record_under(&second, key, old).await.unwrap(), "given up");
    assert_eq!(index.look_up(key).await.unwrap().as_ref(), Some(new));
}

fn granted(taken: Taken) -> (Lease, Option<String>) {
    match taken {
        Taken::Granted { lease, note } => (lease, note),
        Taken::Held => panic!("another holds it"),
    }
}

/// Whether it is wanted; `None`: lost.
async fn renew(index: &impl Index, lease: &Lease, note: Option<&str>) -> Option<bool> {
    let renewal = Renewal { lease: lease.clone(), note: note.map(str::to_owned) };
    let renewed = index.renew(&[renewal], LONG).await.unwrap();
    renewed.first().map(|renewed| {
        assert_eq!(renewed.name, lease.name);
        renewed.is_wanted
    })
}

async fn holdings(index: &impl Index, name: &str) -> Vec<Holding> {
    index.holdings(&[name.to_owned()]).await.unwrap()
}

/// As the one who has the lease.
pub(crate) async fn learn(
    index: &impl Index,
    list: &str,
    change: Change,
    now: i64,
) -> Result<(), IndexError> {
    index.learn(&learning(index, list).await?, list, change, now).await
}

pub(crate) async fn finish(
    index: &impl Index,
    list: &str,
    blob: &Sha256,
    now: i64,
) -> Result<(), IndexError> {
    index.finish(&learning(index, list).await?, list, blob, now).await
}

pub(crate) async fn unlearn(
    index: &impl Index,
    list: &str,
    limit: usize,
    now: i64,
) -> Result<bool, IndexError> {
    index.unlearn(&learning(index, list).await?, list, limit, now).await
}

async fn learning(index: &impl Index, list: &str) -> Result<Lease, IndexError> {
    Ok(granted(index.take(&format!("learn:{list}"), "one", LONG).await?).0)
}

pub(crate) async fn who_lost_a_lease_learns_nothing_under_it(
    index: &impl Index,
    said: (String, Expectation),
) {
    let list = "http://m/list";
    let change = || Change { set: vec![said.clone()], unset: Vec::new() };
    let (first, _) = granted(index.take("learn:a", "one", SHORT).await.unwrap());
    index.learn(&first, list, change(), 1).await.unwrap();
    tokio::time::sleep(SHORT * 5).await;
    index.finish(&first, list, &Sha256::of(b"first"), 1).await.expect("nobody took it");

    let (second, _) = granted(index.take("learn:a", "two", LONG).await.unwrap());
    let unset = Change { set: Vec::new(), unset: vec![said.0.clone()] };
    let refused = [
        index.learn(&first, list, unset, 2).await.unwrap_err(),
        index.finish(&first, list, &Sha256::of(b"late"), 2).await.unwrap_err(),
        index.unlearn(&first, list, 9, 2).await.unwrap_err(),
    ];
    assert!(refused.iter().all(IndexError::is_fenced_off), "{refused:?}");
    assert_eq!(index.learnt(list).await.unwrap(), Some(Sha256::of(b"first")));
    assert_eq!(index.expectation(&said.0).await.unwrap(), Some(said.1));
    index.release(&[second]).await.unwrap();
    assert!(index.learn(&first, list, change(), 3).await.unwrap_err().is_fenced_off());
}

pub(crate) async fn tells_what_is_held_of_a_kind(index: &impl Index) {
    for (name, term) in [("room:a", LONG), ("room:b", LONG), ("room:c", SHORT), ("roof:", LONG)] {
        let (lease, _) = granted(index.take(name, "one", term).await.unwrap());
        if term == LONG {
            renew(index, &lease, Some(name)).await;
        }
    }
    tokio::time::sleep(SHORT * 5).await;
    let held = index.holdings_like("room:").await.unwrap();
    let mut told: Vec<String> = held.into_iter().filter_map(|held| held.note).collect();
    told.sort_unstable();
    assert_eq!(told, ["room:a", "room:b"]);
    assert_eq!(index.holdings_like("room:z").await.unwrap(), []);
}
