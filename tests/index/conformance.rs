//! The contract of `Index`, as tests. A new make calls `run` and `survives`.

use std::future::Future;
use std::path::Path;

use aptmesh::content::digest::{Expected, Sha256};
use aptmesh::content::validators::Validators;
use aptmesh::index::{
    Change, Class, ERRAND_TERM, ERRANDS_MAX, Entry, Errand, Expectation, Found, HashedFile,
    Identity, Index, Names, ROUND_TRIP, Stored, Totals, Traffic, Use, Volume,
};

use crate::{leases, tellings};

/// Runs every test, each on an index of its own.
pub(crate) fn run<I: Index>(mut open: impl FnMut() -> I) {
    wait(knows_what_was_recorded(&open()));
    wait(records_late_only_what_is_newer(&open()));
    wait(finds_all_there_is_of_a_resource(&open()));
    wait(keeps_marks_to_the_letter(&open()));
    wait(confirms_only_what_is_still_so(&open()));
    wait(forgets_every_name_of_a_blob(&open()));
    wait(counts_blobs_once(&open()));
    wait(takes_calls_from_many_tasks(&open()));
    wait(finds_a_blob_under_any_name(&open()));
    wait(tells_which_names_are_below_a_folder(&open()));
    wait(tells_when_what_is_below_a_folder_was_used(&open()));
    wait(remembers_what_is_absent(&open()));
    wait(knows_what_lists_say(&open()));
    wait(believes_lists_only_where_they_agree(&open()));
    wait(a_list_counts_as_learnt_only_when_finished(&open()));
    wait(knows_a_blob_without_a_name(&open()));
    wait(sums_up_the_volume(&open()));
    wait(pages_through_blobs(&open()));
    wait(ranks_blobs_by_use_and_size(&open()));
    wait(knows_which_blobs_lists_name(&open()));
    wait(a_blob_stays_referenced_while_one_list_names_it(&open()));
    wait(victims_come_class_by_class(&open()));
    wait(pins_hide_from_victims(&open()));
    wait(tells_who_names_a_blob(&open()));
    wait(unlearns_lists_nobody_asks_for(&open()));
    wait(remembers_files_that_lie_elsewhere(&open()));
    wait(errands_come_in_turn(&open()));
    wait(old_errands_make_place(&open()));
    wait(spends_by_the_day(&open()));
    wait(counts_traffic_since_ever(&open()));
    wait(leases::one_holds_a_lease_at_a_time(&open()));
    wait(leases::a_lease_that_is_not_renewed_passes_on(&open()));
    wait(leases::holders_hear_whether_others_look(&open()));
    wait(leases::who_lost_a_lease_learns_nothing_under_it(
        &open(),
        ("http://m/a".to_owned(), expectation("a")),
    ));
    wait(leases::tells_what_is_held_of_a_kind(&open()));
    wait(leases::who_lost_a_lease_records_nothing_under_it(&open(), &entry("old"), &entry("new")));
    wait(tellings::tells_what_a_list_names(&open()));
    wait(tellings::says_when_there_are_too_many_changes(&open()));
    wait(tellings::keeps_the_filter(&open()));
}

/// Everything that reads first and then writes, many times.
pub(crate) fn learns(index: &impl Index) {
    wait(async {
        for round in 0..40 {
            let list = "http://m/list";
            learn(index, list, &[("http://m/a", "a"), ("http://m/b", "b")], round).await;
            index.record("http://m/a", &entry("a")).await.unwrap();
            let used = Use { digest: Sha256::of(b"a"), uses: 1, used_at: 9 };
            index.touch(&[used]).await.unwrap();
            while !leases::unlearn(index, list, 1, 5).await.unwrap() {}
        }
    });
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

async fn tells_when_what_is_below_a_folder_was_used(index: &impl Index) {
    for name in ["m/d/a", "m/d/b", "m/d/c", "m/e"] {
        index.record(name, &entry(name)).await.unwrap();
    }
    let used = Use { digest: Sha256::of(b"m/d/b"), uses: 1, used_at: 5_000_000_000 };
    index.touch(&[used]).await.unwrap();
    let below = index.uses_below("m/d/", "", 2).await.unwrap();
    assert_eq!(below.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["m/d/a", "m/d/b"]);
    assert_eq!(below[1].1, 5_000_000_000);
    let rest = index.uses_below("m/d/", "m/d/b", 2).await.unwrap();
    assert_eq!(rest.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["m/d/c"]);
}

async fn remembers_what_is_absent(index: &impl Index) {
    assert!(!index.is_absent("m/a").await.unwrap());
    index.note_absent("m/a").await.unwrap();
    index.note_absent("m/a").await.unwrap();
    assert!(index.is_absent("m/a").await.unwrap());
    assert!(!index.is_absent("m/b").await.unwrap());
}

async fn finds_all_there_is_of_a_resource(index: &impl Index) {
    assert_eq!(index.find("http://m/a").await.unwrap(), Found::default());
    index.record("http://m/a", &entry("a")).await.unwrap();
    let known = Found { entry: Some(entry("a")), expectation: None };
    assert_eq!(index.find("http://m/a").await.unwrap(), known);
    learn(index, "http://m/list", &[("http://m/a", "other"), ("http://m/b", "b")], 1).await;
    let both = Found { expectation: Some(expectation("other")), ..known };
    assert_eq!(index.find("http://m/a").await.unwrap(), both);
    let expected = Found { entry: None, expectation: Some(expectation("b")) };
    assert_eq!(index.find("http://m/b").await.unwrap(), expected);
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

async fn records_late_only_what_is_newer(index: &impl Index) {
    let at = |content: &str, checked_at| Entry { checked_at, ..entry(content) };
    for (late, known) in [
        (at("a", 5), at("a", 5)),
        (at("b", 4), at("a", 5)),
        (at("b", 5), at("a", 5)),
        (at("b", 6), at("b", 6)),
    ] {
        index.record_late("http://m/a", &late).await.unwrap();
        assert_eq!(index.look_up("http://m/a").await.unwrap(), Some(known));
    }
    assert_eq!(index.volume().await.unwrap().blobs, 2);
    index.record("http://m/a", &at("a", 1)).await.unwrap();
    assert_eq!(index.look_up("http://m/a").await.unwrap(), Some(at("a", 1)), "in time, the last");
}

async fn confirms_only_what_is_still_so(index: &impl Index) {
    index.record("http://m/a", &entry("a")).await.unwrap();
    index.confirm("http://m/a", &Sha256::of(b"something else"), 77).await.unwrap();
    index.confirm("http://m/unknown", &Sha256::of(b"a"), 77).await.unwrap();
    assert_eq!(index.look_up("http://m/a").await.unwrap(), Some(entry("a")));
    assert_eq!(index.look_up("http://m/unknown").await.unwrap(), None);

    index.confirm("http://m/a", &Sha256::of(b"a"), 1_800_000_077).await.unwrap();
    let confirmed = Entry { checked_at: 1_800_000_077, ..entry("a") };
    assert_eq!(index.look_up("http://m/a").await.unwrap(), Some(confirmed));
}

async fn forgets_every_name_of_a_blob(index: &impl Index) {
    for key in ["http://m/a", "http://n/a"] {
        index.record(key, &entry("a")).await.unwrap();
    }
    index.record("http://m/b", &entry("b")).await.unwrap();
    index.forget_blobs(&[Sha256::of(b"a")]).await.unwrap();
    index.forget_blobs(&[Sha256::of(b"a")]).await.unwrap();
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
    leases::learn(index, "http://m/list", change, 1).await.unwrap();
    assert_eq!(index.expectation(&set[0].0).await.unwrap(), None, "half learnt");
    leases::finish(index, "http://m/list", &Sha256::of(b"list"), 1).await.unwrap();
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
    leases::learn(index, "http://m/list", change, 1).await.unwrap();
    leases::finish(index, "http://m/list", &Sha256::of(b"newer"), 2).await.unwrap();
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
    let Expectation { size, digest } = expectation("b");
    let Expected::Sha256(digest) = digest else { panic!("a SHA-256: {digest:?}") };
    assert_eq!(index.listed_size(&digest).await.unwrap(), size);
    assert_eq!(index.listed_size(&Sha256::of(b"nobody's")).await.unwrap(), None);
    learn(index, "http://m/one", &[("http://m/a", "new")], 3).await;
    assert_eq!(index.expectation("http://m/a").await.unwrap(), Some(expectation("new")));
}

async fn a_list_counts_as_learnt_only_when_finished(index: &impl Index) {
    assert_eq!(index.learnt("http://m/list").await.unwrap(), None);
    let before = index.knowledge().await.unwrap();
    learn(index, "http://m/list", &[("http://m/a", "a")], 1).await;
    let now = index.knowledge().await.unwrap();
    assert!(now.version > before.version && !now.may_lack(&before) && before.may_lack(&now));
    assert_eq!(index.learnt("http://m/list").await.unwrap(), Some(Sha256::of(b"list 1")));
    leases::learn(index, "http://m/list", Change::default(), 2).await.unwrap();
    assert_eq!(index.learnt("http://m/list").await.unwrap(), None);
}

async fn knows_a_blob_without_a_name(index: &impl Index) {
    index.add_blob(&Sha256::of(b"a"), 1, 50).await.unwrap();
    let nameless = Entry {
        validators: Validators::default(),
        content_type: None,
        checked_at: 0,
        ..entry("a")
    };
    assert_eq!(index.by_blob(&Sha256::of(b"a")).await.unwrap(), Some(nameless));
    index.record("http://m/a", &entry("a")).await.unwrap();
    assert_eq!(index.by_blob(&Sha256::of(b"a")).await.unwrap(), Some(entry("a")));
    let stored = blob(index, "a").await;
    assert_eq!((stored.stored_at, stored.checked_at, stored.uses), (50, 50, 1), "known already");

    index.forget_blobs(&[Sha256::of(b"a"), Sha256::of(b"unknown")]).await.unwrap();
    assert_eq!(index.by_blob(&Sha256::of(b"a")).await.unwrap(), None);
    assert_eq!(index.look_up("http://m/a").await.unwrap(), None);
}

async fn sums_up_the_volume(index: &impl Index) {
    assert_eq!(index.volume().await.unwrap(), Volume::default());
    index.record("http://m/a", &entry("a")).await.unwrap();
    index.record("http://n/a", &entry("a")).await.unwrap();
    for _ in 0..2 {
        index.add_blob(&Sha256::of(b"bbb"), 3, 50).await.unwrap();
    }
    assert_eq!(index.volume().await.unwrap(), Volume { blobs: 2, bytes: 4, floor: 0.0 });
    for _ in 0..2 {
        index.forget_blobs(&[Sha256::of(b"a")]).await.unwrap();
    }
    index.raise_floor(7.0).await.unwrap();
    index.raise_floor(5.0).await.unwrap();
    assert_eq!(index.volume().await.unwrap(), Volume { blobs: 1, bytes: 3, floor: 7.0 });
}

async fn pages_through_blobs(index: &impl Index) {
    let mut digests: Vec<Sha256> =
        ["a", "b", "c"].iter().map(|body| Sha256::of(body.as_bytes())).collect();
    for (at, digest) in (10..).zip(&digests) {
        index.add_blob(digest, 1, at).await.unwrap();
    }
    let page = index.blobs_to_check(2).await.unwrap();
    assert_eq!(of(&page), digests[..2], "the one hashed longest ago comes first");
    index.blob_checked(&digests[0], 99).await.unwrap();
    assert_eq!(of(&index.blobs_to_check(9).await.unwrap()), [digests[1], digests[2], digests[0]]);

    digests.sort_by_key(|digest| *digest.as_bytes());
    let page = index.blobs_after(None, 2).await.unwrap();
    assert_eq!(of(&page), digests[..2]);
    assert_eq!(of(&index.blobs_after(Some(digests[1]), 2).await.unwrap()), digests[2..]);
    assert_eq!(index.blobs_after(Some(digests[2]), 2).await.unwrap(), vec![]);
}

async fn ranks_blobs_by_use_and_size(index: &impl Index) {
    let rank = |floor: f64, uses: f64, size: f64| floor + uses * (1.0 + ROUND_TRIP / (size + 1.0));
    let near = |one: f64, other: f64| (one - other).abs() < 1e-9;
    for (body, size) in [("small", 1000), ("large", 1_000_000), ("empty", 0)] {
        index.add_blob(&Sha256::of(body.as_bytes()), size, 10).await.unwrap();
        let stored = blob(index, body).await;
        assert!(near(stored.rank, rank(0.0, 1.0, size as f64)), "{stored:?}");
    }
    index.raise_floor(3.5).await.unwrap();
    index.touch(&[used("large", 2, 40), used("small", 1, 5), used("gone", 9, 40)]).await.unwrap();
    let large = blob(index, "large").await;
    assert_eq!((large.uses, large.used_at, large.unreferenced_since), (3, 40, Some(40)));
    assert!(near(large.rank, rank(3.5, 3.0, 1e6)), "{large:?}");
    let small = blob(index, "small").await;
    assert_eq!((small.uses, small.used_at), (2, 10), "a time never goes back");
    index.add_blob(&Sha256::of(b"new"), 1_000_000, 50).await.unwrap();
    assert!(near(blob(index, "new").await.rank, rank(3.5, 1.0, 1e6)), "above the floor");
}

async fn knows_which_blobs_lists_name(index: &impl Index) {
    let since = async |body: &str| blob(index, body).await.unreferenced_since;
    for body in ["before", "list 20", "list 30"] {
        index.add_blob(&Sha256::of(body.as_bytes()), 1, 10).await.unwrap();
        assert_eq!(since(body).await, Some(10));
    }
    learn(index, "http://m/l", &[("http://m/b", "before"), ("http://m/c", "after")], 20).await;
    index.record("http://m/elsewhere", &entry("after")).await.unwrap();
    assert_eq!(since("before").await, None);
    assert_eq!(since("after").await, None, "known when it is added");
    assert_eq!(since("list 20").await, None, "the list itself");

    let change = Change {
        set: vec![("http://m/b".to_owned(), expectation("newer"))],
        unset: vec!["http://m/c".to_owned()],
    };
    leases::learn(index, "http://m/l", change, 30).await.unwrap();
    leases::finish(index, "http://m/l", &Sha256::of(b"list 30"), 30).await.unwrap();
    for body in ["before", "after", "list 20"] {
        assert_eq!(since(body).await, Some(30), "{body}");
    }
    assert_eq!(since("list 30").await, None);
    learn(index, "http://m/l", &[("http://m/b", "before")], 40).await;
    assert_eq!(since("before").await, None, "named again");
}

async fn a_blob_stays_referenced_while_one_list_names_it(index: &impl Index) {
    index.add_blob(&Sha256::of(b"a"), 1, 10).await.unwrap();
    learn(index, "http://m/one", &[("http://m/a", "a"), ("http://m/copy", "a")], 20).await;
    learn(index, "http://m/two", &[("http://m/a", "a")], 21).await;
    let unset = |key: &str| Change { set: Vec::new(), unset: vec![key.to_owned()] };
    let steps = [
        ("http://m/one", "http://m/a", None),
        ("http://m/two", "http://m/a", None),
        ("http://m/two", "http://m/a", None),
        ("http://m/one", "http://m/copy", Some(33)),
    ];
    for (at, (list, key, since)) in (30..).zip(steps) {
        leases::learn(index, list, unset(key), at).await.unwrap();
        assert_eq!(blob(index, "a").await.unreferenced_since, since, "{list} {key}");
    }
}

async fn victims_come_class_by_class(index: &impl Index) {
    let bodies = ["old", "older", "late", "late and used", "named", "named and used"];
    let digest = |at: usize| Sha256::of(bodies[at].as_bytes());
    for (at, stored_at) in [20, 10, 60, 50, 5, 5].into_iter().enumerate() {
        index.add_blob(&digest(at), 1000, stored_at).await.unwrap();
    }
    let says = [("http://m/4", bodies[4]), ("http://m/5", bodies[5])];
    learn(index, "http://m/list", &says, 7).await;
    index
        .touch(&[used(bodies[3], 5, 50), used(bodies[5], 5, 50), used(bodies[0], 9, 20)])
        .await
        .unwrap();

    let victims = async |class| of(&index.victims(class, None, 9).await.unwrap());
    assert_eq!(victims(Class::Disused(40)).await, [digest(1), digest(0)], "the oldest first");
    assert_eq!(victims(Class::Disused(10)).await, []);
    let by_rank = victims(Class::Unreferenced).await;
    assert_eq!((by_rank.len(), by_rank[2], by_rank[3]), (4, digest(3), digest(0)));
    assert_eq!(victims(Class::Referenced).await, [digest(4), digest(5)]);
    for (class, number) in
        [(Class::Disused(i64::MAX), 4), (Class::Unreferenced, 4), (Class::Referenced, 2)]
    {
        let all = index.victims(class, None, 9).await.unwrap();
        assert_eq!(all.len(), number);
        let mut paged: Vec<Stored> = Vec::new();
        while let [next] = &index.victims(class, paged.last(), 1).await.unwrap()[..] {
            paged.push(next.clone());
        }
        assert_eq!(paged, all, "{class:?}, page by page");
    }
}

async fn pins_hide_from_victims(index: &impl Index) {
    learn(index, "http://m/list", &[("http://m/a", "a")], 7).await;
    for body in ["a", "b"] {
        index.add_blob(&Sha256::of(body.as_bytes()), 1, 10).await.unwrap();
    }
    let classes = [Class::Disused(99), Class::Unreferenced, Class::Referenced];
    let count = async || {
        let mut count = 0;
        for class in classes {
            count += index.victims(class, None, 9).await.unwrap().len();
        }
        count
    };
    assert_eq!(count().await, 3, "the unreferenced one is of two classes");
    index.pin(&[Sha256::of(b"a"), Sha256::of(b"b")]).await.unwrap();
    assert_eq!(count().await, 0);
    let unset = Change { set: Vec::new(), unset: vec!["http://m/a".to_owned()] };
    leases::learn(index, "http://m/list", unset, 20).await.unwrap();
    assert_eq!(count().await, 2, "the list that may have pinned it does not name it any more");
    index.unpin().await.unwrap();
    assert_eq!(count().await, 4);
}

async fn tells_who_names_a_blob(index: &impl Index) {
    index.record("http://n/a", &entry("a")).await.unwrap();
    learn(index, "http://m/list", &[("http://m/a", "a")], 7).await;
    let blobs = ["a", "unknown", "list 7"].map(|body| Sha256::of(body.as_bytes()));
    let names = index.names(&blobs).await.unwrap();
    assert_eq!(names[0].resources, ["http://m/a", "http://n/a"]);
    assert_eq!(names[0].lists, ["http://m/list"]);
    assert_eq!(names[1], Names::default());
    assert_eq!(names[2].lists, ["http://m/list"]);
}

async fn remembers_files_that_lie_elsewhere(index: &impl Index) {
    let file = |path: &str, body: &str| HashedFile {
        path: path.into(),
        identity: Identity { size: body.len() as u64, modified: 1, changed: -2, inode: 3 },
        digest: Sha256::of(body.as_bytes()),
    };
    let all = [file("/f/a", "a"), file("/f/b/c", "a"), file("/f0", "a"), file("/g/d", "d")];
    index.record_files(&all).await.unwrap();
    index.record_files(&all).await.unwrap();
    assert_eq!(index.file(Path::new("/f/a")).await.unwrap().as_ref(), Some(&all[0]));
    assert_eq!(index.file(Path::new("/f")).await.unwrap(), None);
    let with = async |body: &str, limit| {
        index.files_with(&Sha256::of(body.as_bytes()), limit).await.unwrap()
    };
    assert_eq!(with("a", 9).await.len(), 3);
    assert_eq!(with("a", 2).await.len(), 2);
    assert_eq!(with("x", 9).await, []);
    let below = index.files_below(Path::new("/f"), None, 9).await.unwrap();
    assert_eq!(below, all[..2]);
    let below = index.files_below(Path::new("/f"), Some(Path::new("/f/a")), 9).await.unwrap();
    assert_eq!(below, all[1..2]);
    let below = index.files_below(Path::new(""), None, 9).await.unwrap();
    assert_eq!(below.len(), all.len());

    let other = file("/f/a", "other");
    index.record_files(std::slice::from_ref(&other)).await.unwrap();
    assert_eq!(index.file(&other.path).await.unwrap().as_ref(), Some(&other));
    index.forget_files(&["/f/a".into(), "/unknown".into()]).await.unwrap();
    assert_eq!(index.file(Path::new("/f/a")).await.unwrap(), None);
    assert_eq!(with("a", 9).await.len(), 2);
}

async fn unlearns_lists_nobody_asks_for(index: &impl Index) {
    let suite = "http://m/dists/sid/";
    let (release, packages) = (format!("{suite}Release"), format!("{suite}main/Packages"));
    learn(index, &release, &[("http://m/r", "r")], 10).await;
    learn(index, &packages, &[("http://m/a", "a"), ("http://m/b", "b"), ("http://m/c", "c")], 10)
        .await;
    learn(index, "http://m/dists/sid0/Release", &[], 10).await;
    index.add_blob(&Sha256::of(b"a"), 1, 10).await.unwrap();
    index.asked(&release, Some(suite), 50).await.unwrap();
    index.asked(&release, Some(suite), 40).await.unwrap();
    let disused = async |before| index.disused_lists(before, 9).await.unwrap();
    assert_eq!(disused(50).await, ["http://m/dists/sid0/Release"]);
    assert_eq!(disused(51).await.len(), 3);
    index.asked(&packages, None, 60).await.unwrap();
    assert_eq!(disused(60).await.len(), 2, "one list alone");

    let mut batches = 0;
    while !leases::unlearn(index, &packages, 2, 70).await.unwrap() {
        batches += 1;
        assert!(blob(index, "a").await.unreferenced_since.is_none_or(|since| since == 70));
    }
    assert_eq!(batches, 2);
    assert!(leases::unlearn(index, &packages, 2, 70).await.unwrap(), "nothing is left of it");
    assert_eq!(blob(index, "a").await.unreferenced_since, Some(70));
    assert_eq!(index.expectation("http://m/b").await.unwrap(), None);
    assert_eq!(index.learnt(&packages).await.unwrap(), None);
    assert_eq!(index.expectation("http://m/r").await.unwrap(), Some(expectation("r")));
}

async fn errands_come_in_turn(index: &impl Index) {
    let errand = |package: &str, version: &str| Errand {
        package: package.to_owned(),
        key: format!("http://m/{package}_{version}.deb"),
        size: 7,
        has_failed: false,
    };
    let next = async |since| index.next_errand(since).await.unwrap();
    assert_eq!(next(0).await, None);
    index.add_errands(&[errand("a", "1"), errand("b", "1")], 10).await.unwrap();
    index.add_errands(&[errand("a", "2")], 20).await.unwrap();
    assert_eq!(next(0).await, Some(errand("b", "1")), "the new version of a comes later");
    assert_eq!(next(11).await, Some(errand("a", "2")), "the other one is too old");
    index.end_errand(&errand("b", "1"), true).await.unwrap();
    assert_eq!(next(0).await, Some(errand("a", "2")));
    index.end_errand(&errand("a", "1"), false).await.unwrap();
    assert_eq!(next(0).await, Some(errand("a", "2")), "another version is another errand");
    index.end_errand(&errand("a", "2"), false).await.unwrap();
    assert_eq!(next(0).await, Some(Errand { has_failed: true, ..errand("b", "1") }));
    index.end_errand(&errand("b", "1"), false).await.unwrap();
    assert_eq!(next(0).await, None);
}

async fn old_errands_make_place(index: &impl Index) {
    let errand = |package: String| Errand {
        key: format!("http://m/{package}_1.deb"),
        package,
        size: 7,
        has_failed: false,
    };
    let all: Vec<Errand> = (0..ERRANDS_MAX).map(|number| errand(format!("p{number}"))).collect();
    index.add_errands(&all, 10).await.unwrap();
    let further = [errand("further".to_owned())];
    index.add_errands(&further, 10 + ERRAND_TERM).await.unwrap();
    assert_eq!(index.next_errand(11).await.unwrap(), None, "there are enough");
    index.add_errands(&further, 11 + ERRAND_TERM).await.unwrap();
    assert_eq!(index.next_errand(0).await.unwrap().as_ref(), further.first());
}

async fn spends_by_the_day(index: &impl Index) {
    const DAY: i64 = 24 * 60 * 60;
    let spend = async |bytes, now| index.spend(bytes, now).await.unwrap();
    assert_eq!(spend(5, DAY).await, 5);
    assert_eq!(spend(7, 2 * DAY - 1).await, 12);
    assert_eq!(spend(-4, 2 * DAY - 1).await, 8);
    assert_eq!(spend(1, 2 * DAY).await, 1, "the next day");
    assert_eq!(spend(-3, 2 * DAY).await, 0);
}

async fn counts_traffic_since_ever(index: &impl Index) {
    let none = Traffic::default();
    assert_eq!(index.add_traffic(&none).await.unwrap(), none);
    let some = Traffic::of_parts([1, 2, 3, 4, 5, 6]);
    assert_eq!(index.add_traffic(&some).await.unwrap(), some);
    let more = Traffic { to_peers: 10, ..none };
    assert_eq!(index.add_traffic(&more).await.unwrap(), some.and(&more));
    assert_eq!(index.add_traffic(&none).await.unwrap(), Traffic::of_parts([1, 2, 3, 4, 15, 6]));
}

fn of(blobs: &[Stored]) -> Vec<Sha256> {
    blobs.iter().map(|blob| blob.digest).collect()
}

fn used(body: &str, uses: u64, used_at: i64) -> Use {
    Use { digest: Sha256::of(body.as_bytes()), uses, used_at }
}

async fn blob(index: &impl Index, body: &str) -> Stored {
    index.blob(&Sha256::of(body.as_bytes())).await.unwrap().expect("a known blob")
}

pub(crate) async fn learn(index: &impl Index, list: &str, says: &[(&str, &str)], now: i64) {
    let set = says.iter().map(|(key, body)| ((*key).to_owned(), expectation(body))).collect();
    leases::learn(index, list, Change { set, unset: Vec::new() }, now).await.unwrap();
    let blob = Sha256::of(format!("list {now}").as_bytes());
    leases::finish(index, list, &blob, now).await.unwrap();
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
