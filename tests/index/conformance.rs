//! The contract of `Index`, as tests. A new make calls `run` and `survives`.

use std::future::Future;

use aptmesh::content::digest::{Expected, Sha256};
use aptmesh::content::validators::Validators;
use aptmesh::index::{Change, Entry, Expectation, Index, Totals};

/// Runs every test, each on an index of its own.
pub(crate) fn run<I: Index>(mut open: impl FnMut() -> I) {
    wait(knows_what_was_recorded(&open()));
    wait(keeps_marks_to_the_letter(&open()));
    wait(confirms_only_what_is_still_so(&open()));
    wait(forgets_every_name_of_a_blob(&open()));
    wait(counts_blobs_once(&open()));
    wait(takes_calls_from_many_tasks(&open()));
    wait(finds_a_blob_under_any_name(&open()));
    wait(tells_which_names_are_below_a_folder(&open()));
    wait(knows_what_lists_say(&open()));
    wait(believes_lists_only_where_they_agree(&open()));
    wait(a_list_counts_as_learnt_only_when_finished(&open()));
}

/// The shortest proof that an index works.
pub(crate) fn run_once(index: &impl Index) {
    wait(knows_what_was_recorded(index));
}

/// What was recorded is known to the next process.
pub(crate) fn survives<I: Index>(mut open: impl FnMut() -> I) {
    wait(async { open().record("http://m/a", &entry("a")).await.unwrap() });
    wait(async {
        assert_eq!(open().look_up("http://m/a").await.unwrap(), Some(entry("a")));
    });
    wait(async { learn(&open(), "http://m/list", &[("http://m/a", "a")], 1).await });
    wait(async {
        assert_eq!(open().expectation("http://m/a").await.unwrap(), Some(expectation("a")));
        assert_eq!(open().learnt("http://m/list").await.unwrap(), Some(Sha256::of(b"list 1")));
    });
}

async fn knows_what_was_recorded(index: &impl Index) {
    assert_eq!(index.look_up("http://m/a").await.unwrap(), None);
    index.record("http://m/a", &entry("a")).await.unwrap();
    index.record("http://m/a", &entry("a")).await.unwrap();
    assert_eq!(index.look_up("http://m/a").await.unwrap(), Some(entry("a")));
    assert_eq!(index.look_up("http://m/A").await.unwrap(), None);

    index.record("http://m/a", &entry("newer")).await.unwrap();
    assert_eq!(index.look_up("http://m/a").await.unwrap(), Some(entry("newer")));
}

async fn tells_which_names_are_below_a_folder(index: &impl Index) {
    let names = ["m/d/a", "m/d/b/c", "m/d0", "m/d", "m/D/x", "m/d/by-hash/SHA256/00", "m/d%/y"];
    for name in names {
        index.record(name, &entry(name)).await.unwrap();
    }
    assert_eq!(index.names_below("m/d/", 9).await.unwrap(), ["m/d/a", "m/d/b/c"]);
    assert_eq!(index.names_below("m/d/", 1).await.unwrap(), ["m/d/a"]);
    assert_eq!(index.names_below("m/e/", 9).await.unwrap(), [""; 0]);
}

async fn keeps_marks_to_the_letter(index: &impl Index) {
    let bare = Entry { validators: Validators::default(), content_type: None, ..entry("bare") };
    let odd = Entry {
        validators: Validators {
            last_modified: Some(i64::MAX),
            etag: Some("W/\"it's 100% \u{e4}\"".to_owned()),
        },
        size: 1 << 40,
        ..entry("odd")
    };
    for (key, entry) in [("http://m/bare", bare), ("http://m/odd?'\"%", odd)] {
        index.record(key, &entry).await.unwrap();
        assert_eq!(index.look_up(key).await.unwrap(), Some(entry));
    }
}

async fn confirms_only_what_is_still_so(index: &impl Index) {
    index.record("http://m/a", &entry("a")).await.unwrap();
    index.confirm("http://m/a", &Sha256::of(b"something else"), 77).await.unwrap();
    index.confirm("http://m/unknown", &Sha256::of(b"a"), 77).await.unwrap();
    assert_eq!(index.look_up("http://m/a").await.unwrap(), Some(entry("a")));
    assert_eq!(index.look_up("http://m/unknown").await.unwrap(), None);

    index.confirm("http://m/a", &Sha256::of(b"a"), 77).await.unwrap();
    let confirmed = Entry { checked_at: 77, ..entry("a") };
    assert_eq!(index.look_up("http://m/a").await.unwrap(), Some(confirmed));
}

async fn forgets_every_name_of_a_blob(index: &impl Index) {
    for key in ["http://m/a", "http://n/a"] {
        index.record(key, &entry("a")).await.unwrap();
    }
    index.record("http://m/b", &entry("b")).await.unwrap();
    index.forget_blob(&Sha256::of(b"a")).await.unwrap();
    index.forget_blob(&Sha256::of(b"a")).await.unwrap();
    for key in ["http://m/a", "http://n/a"] {
        assert_eq!(index.look_up(key).await.unwrap(), None);
    }
    assert_eq!(index.look_up("http://m/b").await.unwrap(), Some(entry("b")));
}

async fn counts_blobs_once(index: &impl Index) {
    assert_eq!(index.totals().await.unwrap(), Totals::default());
    for (key, body) in [("http://m/a", "a"), ("http://n/a", "a"), ("http://m/b", "bb")] {
        index.record(key, &entry(body)).await.unwrap();
    }
    let totals = Totals { resources: 3, blobs: 2, bytes: 3, expectations: 0 };
    assert_eq!(index.totals().await.unwrap(), totals);
}

async fn takes_calls_from_many_tasks(index: &impl Index) {
    let calls = (0..200).map(|number| async move {
        let (key, body) = (format!("http://m/{number}"), number.to_string());
        index.record(&key, &entry(&body)).await.unwrap();
        assert_eq!(index.look_up(&key).await.unwrap(), Some(entry(&body)));
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(index.totals().await.unwrap().resources, 200);
}

async fn finds_a_blob_under_any_name(index: &impl Index) {
    assert_eq!(index.by_blob(&Sha256::of(b"a")).await.unwrap(), None);
    let bare = Entry { validators: Validators::default(), ..entry("a") };
    index.record("http://m/a", &bare).await.unwrap();
    assert_eq!(index.by_blob(&Sha256::of(b"a")).await.unwrap(), Some(bare));
    index.record("http://n/a", &entry("a")).await.unwrap();
    assert_eq!(
        index.by_blob(&Sha256::of(b"a")).await.unwrap(),
        Some(entry("a")),
        "with marks first"
    );
}

async fn knows_what_lists_say(index: &impl Index) {
    assert_eq!(index.expectation("http://m/a").await.unwrap(), None);
    assert_eq!(index.said_by("http://m/list", "", 9).await.unwrap(), vec![]);
    let digests =
        [Expected::Sha1([1; 20]), Expected::Sha256(Sha256::of(b"x")), Expected::Sha512([5; 64])];
    let set: Vec<(String, Expectation)> = digests
        .into_iter()
        .zip([None, Some(0), Some(1 << 40)])
        .enumerate()
        .map(|(at, (digest, size))| (format!("http://m/{at}"), Expectation { size, digest }))
        .collect();
    let change = Change { set: set.clone(), unset: vec!["http://m/unknown".to_owned()] };
    index.learn("http://m/list", change).await.unwrap();
    assert_eq!(index.expectation(&set[0].0).await.unwrap(), None, "half learnt");
    index.finish("http://m/list", &Sha256::of(b"list"), 1).await.unwrap();
    for (key, expectation) in &set {
        assert_eq!(index.expectation(key).await.unwrap(), Some(*expectation));
    }
    for (after, limit, said) in [
        ("", 9, &set[..]),
        ("", 2, &set[..2]),
        ("http://m/1", 9, &set[2..]),
        ("http://m/2", 9, &[]),
    ] {
        assert_eq!(index.said_by("http://m/list", after, limit).await.unwrap(), said, "{after}");
    }
    assert_eq!(index.totals().await.unwrap().expectations, 3);

    let change = Change {
        set: vec![("http://m/1".to_owned(), expectation("new"))],
        unset: vec!["http://m/0".to_owned()],
    };
    index.learn("http://m/list", change).await.unwrap();
    index.finish("http://m/list", &Sha256::of(b"newer"), 2).await.unwrap();
    assert_eq!(index.expectation("http://m/0").await.unwrap(), None);
    assert_eq!(index.expectation("http://m/1").await.unwrap(), Some(expectation("new")));
    assert_eq!(index.expectation("http://m/2").await.unwrap(), Some(set[2].1));
}

async fn believes_lists_only_where_they_agree(index: &impl Index) {
    learn(index, "http://m/one", &[("http://m/a", "old"), ("http://m/b", "b")], 1).await;
    learn(index, "http://m/two", &[("http://m/a", "new")], 2).await;
    assert_eq!(index.expectation("http://m/a").await.unwrap(), None);
    assert_eq!(index.expectation("http://m/b").await.unwrap(), Some(expectation("b")));
    let naming = index.lists_naming("http://m/a").await.unwrap();
    assert_eq!(naming, ["http://m/two", "http://m/one"]);
    assert_eq!(index.lists_naming("http://m/c").await.unwrap(), Vec::<String>::new());
    learn(index, "http://m/one", &[("http://m/a", "new")], 3).await;
    assert_eq!(index.expectation("http://m/a").await.unwrap(), Some(expectation("new")));
}

async fn a_list_counts_as_learnt_only_when_finished(index: &impl Index) {
    assert_eq!(index.learnt("http://m/list").await.unwrap(), None);
    learn(index, "http://m/list", &[("http://m/a", "a")], 1).await;
    assert_eq!(index.learnt("http://m/list").await.unwrap(), Some(Sha256::of(b"list 1")));
    index.learn("http://m/list", Change::default()).await.unwrap();
    assert_eq!(index.learnt("http://m/list").await.unwrap(), None);
}

async fn learn(index: &impl Index, list: &str, says: &[(&str, &str)], now: i64) {
    let set = says.iter().map(|(key, body)| ((*key).to_owned(), expectation(body))).collect();
    index.learn(list, Change { set, unset: Vec::new() }).await.unwrap();
    let blob = Sha256::of(format!("list {now}").as_bytes());
    index.finish(list, &blob, now).await.unwrap();
}

fn expectation(body: &str) -> Expectation {
    Expectation {
        size: Some(body.len() as u64),
        digest: Expected::Sha256(Sha256::of(body.as_bytes())),
    }
}

fn entry(body: &str) -> Entry {
    Entry {
        blob: Sha256::of(body.as_bytes()),
        size: body.len() as u64,
        validators: Validators {
            last_modified: Some(1_700_000_000),
            etag: Some("\"e\"".to_owned()),
        },
        content_type: Some("application/x-debian-package".to_owned()),
        checked_at: 1_700_000_001,
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
