//! Release files, and what they list: expired, not admitted, absent, and as their clients get it.

use super::*;
use crate::signatures;
use std::time::SystemTime;

#[test]
fn a_release_file_that_has_expired_is_not_said_to_be_served() {
    let mirror = Mirror::start();
    let [often, seldom] = ["0s", "1h"]
        .map(|window| Proxy::build().env("APTMESH_MIRROR_RECHECK_AFTER", window).start());
    // Only now: both must see it while it is good.
    let until = SystemTime::now() + Duration::from_secs(15);
    let until = httpdate::fmt_http_date(until).replace("GMT", "UTC");
    let text = format!("Suite: demo\nValid-Until: {until}\nSHA256:\n");
    mirror.put(groups::RELEASE, File::new(text.into_bytes()));
    for proxy in [&often, &seldom] {
        fetch(proxy, &mirror, groups::RELEASE);
        assert_eq!(
            explained(proxy, &url_of(&mirror, groups::RELEASE))["release"]["has_expired"],
            false
        );
    }
    mirror.stop();
    for proxy in [&often, &seldom] {
        wait_until(PATIENCE, "it has expired", || {
            get(proxy.addr(), &proxy.url_for(&mirror, groups::RELEASE)).status == 503
        });
        let told = explained(proxy, &url_of(&mirror, groups::RELEASE));
        assert_eq!(told["release"]["has_expired"], true, "{told}");
        let (_, words) = would(&told);
        assert!(words.contains("error") && words.contains("has expired (Valid-Until)"), "{told}");
        assert!(!words.contains("would be served"), "{told}");
    }
}

#[test]
fn what_is_not_admitted_is_told_with_the_reason() {
    let (mirror, signer) = (Mirror::start(), Signer::new("ed25519"));
    let proxy = signatures::proxy("auto", &signer);
    let good = signer.clearsign(&signatures::release(3, ""));
    let bad = String::from_utf8(good.clone()).unwrap().replace("Suite: demo", "Suite: dome");
    let put = |bytes: Vec<u8>| mirror.put(signatures::INRELEASE, File::new(bytes).no_validators());
    let ask = || {
        let reply = get(proxy.addr(), &proxy.url_for(&mirror, signatures::INRELEASE));
        proxy.wait_landed();
        reply.status
    };
    let told = || explained(&proxy, &url_of(&mirror, signatures::INRELEASE));

    put(bad.into_bytes());
    assert_eq!(ask(), 503);
    let refused = told();
    assert!(refused["release"]["refused"].as_str().unwrap().contains("signature"), "{refused}");
    assert!(would(&refused).1.contains("was not admitted: it "), "{refused}");
    // It came, and whole: nobody was silent.
    assert_eq!(refused["last_download"]["outcome"], "failed");
    let page = command(&proxy, &[&url_of(&mirror, signatures::INRELEASE)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("nothing that is of use was given: "), "{page}");

    put(good);
    assert_eq!(ask(), 200);
    assert_eq!(told()["release"]["refused"], Value::Null);
    // Back to an older one.
    put(signer.clearsign(&signatures::release(9, "")));
    assert_eq!(ask(), 200);
    let older = told();
    assert!(would(&older).1.contains("went back to an older release file"), "{older}");
    let page = command(&proxy, &[&url_of(&mirror, signatures::INRELEASE)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("the mirror had nothing newer than what is stored"), "{page}");
}

#[test]
fn what_a_mirror_that_is_away_said_it_has_not_is_told() {
    let (mirror, archive) = (Mirror::start(), LocalArchive::new("demo").package("tool", "1", 100));
    archive.publish(&mirror, "/debian");
    let proxy = Proxy::start();
    let inrelease = "/debian/dists/demo/InRelease";
    let ask = || get(proxy.addr(), &proxy.url_for(&mirror, inrelease)).status;
    assert_eq!(ask(), 404);
    fetch(&proxy, &mirror, groups::RELEASE);
    mirror.stop();
    wait_until(PATIENCE, "it is away, and its last word is told", || {
        assert_eq!(ask(), 404);
        let told = explained(&proxy, &url_of(&mirror, inrelease));
        would(&told).1.contains("is away") && told["release"]["is_absent"] == true
    });
    let told = explained(&proxy, &url_of(&mirror, inrelease));
    assert!(would(&told).1.contains("would be told that it is not there (404)"), "{told}");
}

#[test]
fn a_list_is_told_as_clients_of_its_release_file_get_it() {
    let (mirror, archive) = (Mirror::start(), LocalArchive::new("demo").package("tool", "1", 100));
    archive.publish(&mirror, "/debian");
    let proxy = Proxy::start();
    let index = format!("/debian/{}", archive.index_path());
    let nobody = explained(&proxy, &url_of(&mirror, &index));
    assert_eq!(nobody["as_listed"], Value::Null);
    assert!(would(&nobody).1.contains("the file that this one names"), "{nobody}");

    let mut client = Connection::open(proxy.addr());
    for path in [groups::RELEASE, &index] {
        assert_eq!(client.get(&proxy.url_for(&mirror, path)).status, 200, "{path}");
    }
    proxy.wait_landed();
    let told = explained(&proxy, &url_of(&mirror, &index));
    assert_eq!((&told["stored"], &told["last_download"]), (&Value::Null, &Value::Null));
    let listed = &told["as_listed"];
    assert_eq!(listed["release"], url_of(&mirror, groups::RELEASE).as_str());
    let by_hash = url_of(&mirror, &format!("/debian/{}", archive.by_hash_path()));
    assert_eq!(listed["report"]["url"], by_hash.as_str(), "{told}");
    assert_eq!(listed["report"]["plan"], "serve");
    assert_eq!(listed["report"]["last_download"]["outcome"], "whole");
    let words = would(&told).1;
    assert!(words.contains(&format!("it means {by_hash}. It would be served")), "{words}");
    let page = command(&proxy, &[&url_of(&mirror, &index)]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("As listed, stored:") && page.contains("As listed, last:"), "{page}");
}
