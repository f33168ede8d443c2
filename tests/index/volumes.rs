//! Replicas with a volume each, on one database.

use aptmesh::content::digest::{Expected, Sha256};
use aptmesh::index::postgres::PostgresIndex;
use aptmesh::index::{
    Change, Class, Expectation, HashedFile, Holders, Identity, Index, Presence, Use,
};

use crate::kit::postgres::database_of;
use crate::leases;
use crate::postgres::{config, entry, migrated, wait};

fn on(url: &str, volume: u128) -> PostgresIndex {
    PostgresIndex::new(&config(url).on_volume(volume)).unwrap()
}

fn at(url: &str) -> Presence {
    Presence {
        process: format!("process of {url}"),
        url: Some(url.to_owned()),
        new_secret: vec![7; 32],
    }
}

async fn stored(index: &PostgresIndex) -> (u64, u64) {
    let volume = index.volume().await.unwrap();
    (volume.blobs, volume.bytes)
}

#[test]
fn each_volume_is_counted_for_itself() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (a, b) = (on(&url, 1), on(&url, 2));
    wait(async {
        a.record("m/one", &entry("one")).await.unwrap();
        a.record("m/three", &entry("three")).await.unwrap();
        assert_eq!((stored(&a).await, stored(&b).await), ((2, 8), (0, 0)));
        assert_eq!(b.look_up("m/one").await.unwrap(), Some(entry("one")), "facts are the site's");
        assert_eq!(b.blob(&Sha256::of(b"one")).await.unwrap(), None, "bytes are not");
        assert!(b.blobs_after(None, 9).await.unwrap().is_empty());
        assert!(b.blobs_to_check(9).await.unwrap().is_empty());
        assert!(b.victims(Class::Unreferenced, None, 9).await.unwrap().is_empty());

        b.add_blob(&Sha256::of(b"one"), 3, 50).await.unwrap();
        assert_eq!((stored(&a).await, stored(&b).await), ((2, 8), (1, 3)));
        let used = [Use { digest: Sha256::of(b"one"), uses: 5, used_at: 90 }];
        b.touch(&used).await.unwrap();
        b.raise_floor(7.0).await.unwrap();
        b.pin(&[Sha256::of(b"one")]).await.unwrap();
        b.blob_checked(&Sha256::of(b"one"), 80).await.unwrap();
        let seen = async |index: &PostgresIndex| {
            let blob = index.blob(&Sha256::of(b"one")).await.unwrap().unwrap();
            let victims = index.victims(Class::Unreferenced, None, 9).await.unwrap().len();
            (blob.uses, blob.checked_at, index.volume().await.unwrap().floor, victims)
        };
        assert_eq!(seen(&b).await, (6, 80, 7.0, 0));
        assert_eq!(seen(&a).await, (1, 3, 0.0, 2));
        let uses = a.uses_below("m/", "", 9).await.unwrap();
        assert_eq!(uses, [("m/one".to_owned(), 90), ("m/three".to_owned(), 3)], "by anybody");
        assert_eq!((a.totals().await.unwrap().bytes, b.totals().await.unwrap().bytes), (8, 3));
    });
}

#[test]
fn what_one_volume_forgets_is_known_while_another_has_it() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (a, b) = (on(&url, 1), on(&url, 2));
    let one = Sha256::of(b"one");
    wait(async {
        a.record("m/one", &entry("one")).await.unwrap();
        b.add_blob(&one, 3, 5).await.unwrap();
        b.forget_blobs(&[one]).await.unwrap();
        assert_eq!((stored(&a).await, stored(&b).await), ((1, 3), (0, 0)));
        assert_eq!(a.look_up("m/one").await.unwrap(), Some(entry("one")));
        assert_eq!(b.by_blob(&one).await.unwrap(), Some(entry("one")));
        // Not having it, it has nothing to forget.
        b.forget_blobs(&[one]).await.unwrap();
        assert_eq!(a.look_up("m/one").await.unwrap(), Some(entry("one")));
        a.forget_blobs(&[one]).await.unwrap();
        assert_eq!(a.look_up("m/one").await.unwrap(), None);
        assert_eq!((stored(&a).await, stored(&b).await), ((0, 0), (0, 0)));
    });
}

#[test]
fn a_list_names_blobs_wherever_they_lie() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (a, b) = (on(&url, 1), on(&url, 2));
    let one = Sha256::of(b"one");
    wait(async {
        a.record("m/one", &entry("one")).await.unwrap();
        b.add_blob(&one, 3, 5).await.unwrap();
        let says = Expectation { size: Some(3), digest: Expected::Sha256(one) };
        let set = vec![("m/one".to_owned(), says)];
        leases::learn(&a, "m/list", Change { set, unset: vec![] }, 6).await.unwrap();
        let since = async |index: &PostgresIndex| {
            index.blob(&one).await.unwrap().unwrap().unreferenced_since
        };
        assert_eq!((since(&a).await, since(&b).await), (None, None));
        b.pin(&[one]).await.unwrap();
        assert!(b.victims(Class::Referenced, None, 9).await.unwrap().is_empty());
        while !leases::unlearn(&a, "m/list", 9, 70).await.unwrap() {}
        assert_eq!((since(&a).await, since(&b).await), (Some(70), Some(70)));
        assert_eq!(b.victims(Class::Unreferenced, None, 9).await.unwrap().len(), 1, "not pinned");
    });
}

#[test]
fn files_elsewhere_are_those_that_a_volumes_processes_see() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (a, b) = (on(&url, 1), on(&url, 2));
    let file = |body: &[u8]| HashedFile {
        path: "/srv/a.deb".into(),
        identity: Identity { size: 1, modified: 2, changed: 3, inode: 4 },
        digest: Sha256::of(body),
    };
    wait(async {
        a.record_files(&[file(b"a")]).await.unwrap();
        assert_eq!(b.file("/srv/a.deb".as_ref()).await.unwrap(), None);
        b.record_files(&[file(b"b")]).await.unwrap();
        assert_eq!(a.files_below("/srv".as_ref(), None, 9).await.unwrap(), [file(b"a")]);
        assert_eq!(b.files_with(&Sha256::of(b"b"), 9).await.unwrap(), [file(b"b")]);
        a.forget_files(&["/srv/a.deb".into()]).await.unwrap();
        assert_eq!(a.file("/srv/a.deb".as_ref()).await.unwrap(), None);
        assert_eq!(b.file("/srv/a.deb".as_ref()).await.unwrap(), Some(file(b"b")));
    });
}

#[test]
fn fellows_tell_who_holds_a_blob() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (a, b, beside_b) = (on(&url, 1), on(&url, 2), on(&url, 2));
    let one = Sha256::of(b"one");
    wait(async {
        let first = a.meet(&at("http://a")).await.unwrap().unwrap();
        assert!(!first.has_fellows && first.others.is_empty());
        let other = Presence { new_secret: vec![8; 32], ..at("http://b") };
        let second = b.meet(&other).await.unwrap().unwrap();
        assert!(second.has_fellows && second.secret == first.secret && second.now >= first.now);
        let third = beside_b.meet(&at("http://b2")).await.unwrap().unwrap();
        assert_eq!(third.others, ["http://a", "http://b"]);
        let nobody = Holders::default();
        assert_eq!(a.holders(&one).await.unwrap(), nobody);

        b.record("m/one", &entry("one")).await.unwrap();
        let mut told = a.holders(&one).await.unwrap();
        told.urls.sort();
        let urls = vec!["http://b".to_owned(), "http://b2".to_owned()];
        assert_eq!(told, Holders { is_ours: false, is_elsewhere: true, urls, size: Some(3) });
        let ours = Holders { is_ours: true, ..Holders::default() };
        assert_eq!(beside_b.holders(&one).await.unwrap(), ours, "who shares a volume need not ask");
        a.add_blob(&one, 3, 5).await.unwrap();
        assert!(a.holders(&one).await.unwrap().is_ours);

        // Who goes is not asked any more, nor who says nothing for long.
        b.part(&other).await.unwrap();
        assert_eq!(a.holders(&one).await.unwrap().urls, ["http://b2"]);
        let database = database_of(&url);
        server.sql(database, "UPDATE fellows SET seen_at = now() - interval '1 minute'");
        let told = a.holders(&one).await.unwrap();
        assert!(told.urls.is_empty() && told.is_elsewhere);
        // Its successor has the same URL.
        let successor = Presence { process: "next".to_owned(), ..at("http://b") };
        b.meet(&successor).await.unwrap();
        b.part(&other).await.unwrap();
        assert_eq!(a.holders(&one).await.unwrap().urls, ["http://b"]);
        // Without a URL it only takes.
        let silent = Presence { url: None, ..at("http://a") };
        assert!(a.meet(&silent).await.unwrap().unwrap().has_fellows);
    });
}

#[test]
fn what_was_stored_before_lies_on_the_first_volume_that_comes() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let database = database_of(&url);
    server.sql(
        database,
        "INSERT INTO blobs VALUES (sha256('one'), 3, 1, 1, 1, 1, 0, 1, false, 1);
         UPDATE volumes SET blobs = 1, bytes = 3",
    );
    let (first, second) = (on(&url, 5), on(&url, 6));
    wait(async {
        assert_eq!(stored(&first).await, (1, 3));
        assert_eq!(stored(&second).await, (0, 0));
        assert_eq!(stored(&on(&url, 5)).await, (1, 3), "also after a restart");
    });
    assert_eq!(server.sql(database, "SELECT count(*) FROM volumes"), "2");
}

#[test]
fn what_lay_on_lost_volumes_is_forgotten() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let database = database_of(&url);
    let (a, lost, rested) = (on(&url, 1), on(&url, 2), on(&url, 3));
    let file = HashedFile {
        path: "/srv/a.deb".into(),
        identity: Identity { size: 1, modified: 2, changed: 3, inode: 4 },
        digest: Sha256::of(b"a"),
    };
    let names = ["m/both", "m/lost1", "m/lost2", "m/lost3", "m/rested"];
    wait(async {
        a.meet(&at("http://a")).await.unwrap();
        a.record("m/both", &entry("both")).await.unwrap();
        for name in &names[..4] {
            lost.record(name, &entry(&name[2..])).await.unwrap();
        }
        lost.record_files(std::slice::from_ref(&file)).await.unwrap();
        rested.record("m/rested", &entry("rested")).await.unwrap();
        assert!(a.forget_lost_volumes(9).await.unwrap());
        let long_ago = |index: &PostgresIndex, days: u32| {
            let identity = index.volume_identity();
            let seen = format!("seen_at = now() - interval '{days} days'");
            server
                .sql(database, &format!("UPDATE volumes SET {seen} WHERE identity = '{identity}'"));
        };
        long_ago(&lost, 31);
        long_ago(&rested, 29);
        long_ago(&a, 31);

        let of_lost = a.holders(&Sha256::of(b"lost1")).await.unwrap();
        assert!(!of_lost.is_elsewhere, "nobody has it any more");
        assert!(a.holders(&Sha256::of(b"rested")).await.unwrap().is_elsewhere);
        assert!(a.holders(&Sha256::of(b"both")).await.unwrap().is_ours);
        assert!(!a.forget_lost_volumes(2).await.unwrap(), "not all at once");
        assert_eq!(stored(&lost).await.0, 2);
        let mut steps = 1;
        while !a.forget_lost_volumes(2).await.unwrap() {
            steps += 1;
            assert!(steps < 9);
        }
        let mut known = Vec::new();
        for name in names {
            if a.look_up(name).await.unwrap().is_some() {
                known.push(name);
            }
        }
        assert_eq!(known, ["m/both", "m/rested"]);
        assert_eq!((stored(&a).await, stored(&rested).await), ((1, 4), (1, 6)));
        let left = "SELECT (SELECT count(*) FROM volumes), (SELECT count(*) FROM files)";
        assert_eq!(server.sql(database, left), "2|0");

        // It comes back: a new process finds again what lies there.
        let back = on(&url, 2);
        back.add_blob(&Sha256::of(b"lost1"), 5, 5).await.unwrap();
        assert_eq!(stored(&back).await, (1, 5));
        assert!(a.forget_lost_volumes(2).await.unwrap());
    });
}

#[test]
fn who_comes_back_is_not_lost() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let (a, b) = (on(&url, 1), on(&url, 2));
    wait(async {
        a.record("m/a", &entry("a")).await.unwrap();
        b.record("m/b", &entry("b")).await.unwrap();
        let past = "UPDATE volumes SET seen_at = now() - interval '40 days'";
        server.sql(database_of(&url), past);
        assert_eq!(stored(&on(&url, 2)).await, (1, 1), "it says that it is there");
        assert!(a.forget_lost_volumes(9).await.unwrap());
        assert_eq!(a.look_up("m/b").await.unwrap(), Some(entry("b")));
    });
}

#[test]
fn what_a_database_took_before_it_knew_the_volume_may_be_lost() {
    let (server, template) = migrated();
    let url = server.copy_of(&template);
    let index = on(&url, 1);
    wait(async {
        let first = index.knowledge().await.unwrap();
        server.sql(database_of(&url), "DELETE FROM volumes");
        index.add_blob(&Sha256::of(b"one"), 3, 50).await.unwrap();
        let second = index.knowledge().await.unwrap();
        index.meet(&at("http://a")).await.unwrap();
        assert_eq!(stored(&index).await, (0, 0), "it was taken by nobody");
        let third = index.knowledge().await.unwrap();
        assert!(second.may_lack(&first) && third.may_lack(&second), "{second:?}, {third:?}");
        index.add_blob(&Sha256::of(b"one"), 3, 50).await.unwrap();
        assert_eq!(stored(&index).await, (1, 3));
        assert!(!index.knowledge().await.unwrap().may_lack(&third));
    });
}
