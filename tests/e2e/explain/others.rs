//! What other sites have, and other replicas.

use super::*;
use crate::hostile::{self, Liar};
use crate::swarm::Swarm;
use crate::volumes;

#[test]
fn sites_that_say_they_have_it_are_named() {
    let swarm = Swarm::of(&[("tool", 5 * MB)]);
    let one = swarm.stocked(&[], &["tool"]);
    let two = swarm.site(&[&one]);
    swarm.wait_found(&two, "tool", &[&one]);
    let told = explained(&two, &url_of(&swarm.mirror, &swarm.path("tool")));
    let claims = told["peers"].as_array().unwrap();
    assert_eq!(claims.len(), 1, "{told}");
    assert_eq!(claims[0]["urls"][0], one.peer_url().as_str());
    assert!(would(&told).1.contains("from the sites that have it"), "{told}");
    assert_eq!(two.blobs().len(), 2, "two lists, and nothing more");
    // Whatever changes under its name comes from the mirror alone.
    for path in [groups::RELEASE, "/debian/dists/demo/main/binary-all/Packages.xz"] {
        let list = explained(&two, &url_of(&swarm.mirror, path));
        assert_eq!(list["peers"], Value::Array(Vec::new()), "{list}");
    }
    let by = || explained(&two, &url_of(&swarm.mirror, &swarm.path("tool")))["peers"].clone();
    wait_until(PATIENCE, "its filter says so, too", || by()[0]["by"] == "filter");
    // The one that has it names nobody else, and not itself.
    let own = explained(&one, &url_of(&swarm.mirror, &swarm.path("tool")));
    assert_eq!((&own["peers"], &own["plan"]), (&Value::Array(Vec::new()), &"serve".into()));
}

#[test]
fn one_that_is_found_by_a_look_up_alone_is_named_too() {
    let swarm = Swarm::of(&[("tool", 5 * MB)]);
    let site = swarm.site(&[]);
    // It announces that, and has no filter.
    let other = Liar::of(&swarm, &site, &["tool"], hostile::wrong);
    other.wait_found(&swarm, &site, "tool");
    let told = explained(&site, &url_of(&swarm.mirror, &swarm.path("tool")));
    let claims = told["peers"].as_array().unwrap();
    assert_eq!((claims.len(), &claims[0]["by"]), (1, &"look_up".into()), "{told}");
    assert_eq!(claims[0]["urls"][0], other.url().as_str());
}

#[test]
fn what_another_replica_has_is_told_as_it_is_taken_over() {
    let site = volumes::Site::new();
    let always = [("APTMESH_MIRROR_RECHECK_AFTER", "0s")];
    let (first, second) = (site.replica_with(&always), site.replica_with(&always));
    let (package, bytes) = site.package(1, MB);
    let mirror = site.mirror();
    mirror.put(groups::RELEASE, File::new(noise(1, 500)));
    for (path, expected) in [(package.as_str(), bytes), (groups::RELEASE, noise(1, 500))] {
        wait_until(PATIENCE, "the first has it", || {
            let reply = get(first.addr(), &first.url_for(mirror, path));
            first.wait_landed();
            reply.body == expected
        });
    }
    let told = |path: &str, words: &str| {
        wait_until(PATIENCE, words, || {
            let told = explained(&second, &url_of(mirror, path));
            told["stored"]["place"] == "replicas" && would(&told).1.contains(words)
        });
        explained(&second, &url_of(mirror, path))
    };
    let lasting = told(&package, "It would be taken over from another replica, and stored here.");
    assert_eq!(would(&lasting).0, "fetch");
    let changing = told(groups::RELEASE, "It would be taken over from another replica first.");
    assert_eq!(would(&changing).0, "revalidate");
    assert!(would(&changing).1.contains("would be asked whether it is still right"), "{changing}");
}
