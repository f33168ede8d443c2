//! What is wrong, in words: what it is, and what it means for apt. Pure, but for the index's and the
//! volume's own words.

use crate::engine::Engine;
use crate::web::status::report::{Archive, Mirror, Report, Trouble};
use crate::web::status::words;

/// Troubles of one kind that are told one by one.
const OF_A_KIND_MAX: usize = 5;
/// For how many seconds a mirror is a trouble that no operator named: one that never answered (its name may be
/// mistyped), and one that did. Then nobody who needs it has asked for that long.
const UNNAMED_FOR: (u64, u64) = (600, 86_400);

/// What is wrong with the volume and the index, in a line.
pub(in crate::web) fn of_store_and_index(engine: &Engine) -> Option<String> {
    let store = engine.store_trouble();
    let index = engine.index_trouble().map(|trouble| format!("without its index: {trouble}"));
    let all: Vec<String> = store.into_iter().chain(index).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// All that is wrong, the worst first.
pub(super) fn all(report: &Report, store: Option<String>, index: Option<&str>) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let mut tell = |what: String, means: &str| {
        troubles.push(Trouble { what, means: means.to_owned() });
    };
    if let Some(why) = store {
        tell(
            words::sentence(&why),
            "apt gets everything, but what is not stored yet comes from the mirrors each time.",
        );
    }
    if let Some(why) = index {
        tell(
            format!("Without its index: {why}"),
            "apt gets everything, but much of what is stored is fetched again. What comes is stored, \
             and recorded when the index is back.",
        );
    }
    if report.offline {
        tell(
            "No mirror is asked: mirror.offline is set".to_owned(),
            "apt gets what is stored, unconfirmed, and an error for the rest.",
        );
    }
    if let Some(trouble) = report.swarm.as_ref().and_then(|swarm| swarm.trouble.as_deref()) {
        tell(
            format!("The swarm: {trouble}"),
            "apt does not notice: files come from the mirrors instead of other sites.",
        );
    }
    let status = report.swarm.as_ref().and_then(|swarm| swarm.status.as_ref());
    if status.is_some_and(|status| status.alone) {
        tell(
            "The swarm: no other site is found yet".to_owned(),
            "apt does not notice: files come from the mirrors. See swarm.bootstrap and swarm.key.",
        );
    }
    let archives = report.archives.iter().flatten();
    troubles.extend(archives.filter_map(of_archive).take(OF_A_KIND_MAX));
    // Whoever may ask the cache may name hosts that are not there: they hide none that matter.
    let (named, others): (Vec<&Mirror>, Vec<&Mirror>) =
        report.mirrors.iter().partition(|mirror| mirror.archive.is_some());
    for mirrors in [named, others] {
        let of_mirror = |mirror| of_mirror(mirror, &report.mirrors);
        troubles.extend(mirrors.into_iter().filter_map(of_mirror).take(OF_A_KIND_MAX));
    }
    let blamed = report.peers.iter().filter(|peer| peer.blamed).take(OF_A_KIND_MAX);
    troubles.extend(blamed.map(|peer| Trouble {
        what: format!("The site {} gave wrong bytes", peer.name()),
        means: "No client got them. The site is not asked for a day.".to_owned(),
    }));
    if report.archives.is_none() {
        troubles.push(Trouble {
            what: "The release files were not looked at in time".to_owned(),
            means: "How old they are and who signed them is missing here; the volume or the index is slow."
                .to_owned(),
        });
    }
    if report.stored.is_none() && index.is_none() {
        troubles.push(Trouble {
            what: "The index did not count in time".to_owned(),
            means: "Some numbers are missing here; apt does not notice.".to_owned(),
        });
    }
    troubles
}

fn of_archive(archive: &Archive) -> Option<Trouble> {
    let name = archive.name();
    if let Some(reason) = &archive.refused {
        let ago = words::ago(archive.refused_ago.unwrap_or_default());
        let means = if archive.served && !archive.expired {
            "apt goes on with the one that was accepted before, whole: it misses updates meanwhile."
        } else {
            "apt-get update fails for this suite until its mirror has a right one."
        };
        let what = format!("A release file of {name} is not admitted ({ago}): its mirror {reason}");
        return Some(Trouble { what, means: means.to_owned() });
    }
    archive.expired.then(|| Trouble {
        what: format!("The release file of {name} has expired"),
        means: "apt-get update fails for this suite until its mirror has a newer one.".to_owned(),
    })
}

fn of_mirror(mirror: &Mirror, all: &[Mirror]) -> Option<Trouble> {
    if mirror.state == "well" {
        return None;
    }
    let others = |other: &&Mirror| {
        mirror.archive.is_some() && other.archive == mirror.archive && other.state == "well"
    };
    let asked = mirror.asked.unwrap_or_default();
    let has_answered = mirror.requests > mirror.failures;
    let is_old = asked > if has_answered { UNNAMED_FOR.1 } else { UNNAMED_FOR.0 };
    if mirror.archive.is_none() && is_old {
        return None;
    }
    let instead = all.iter().find(others);
    let what = match mirror.state.as_str() {
        "away" => "can not be reached".to_owned(),
        "failed" => format!("failed when it was last asked ({})", words::ago(asked)),
        _ => "failed lately".to_owned(),
    };
    let why = mirror.last_failure.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let means = match (instead, mirror.state.as_str()) {
        (None, _) if mirror.archive.is_none() && !has_answered => {
            "A client asked for it, and it gave nothing since the start: its name may be mistyped. apt gets \
             what is stored of it, and an error for the rest."
        }
        (Some(_), _) => "apt does not notice: other mirrors of the archive are asked first.",
        (None, "away") => {
            "apt gets what is stored, unconfirmed, and an error for the rest. It is asked now and then."
        }
        (None, _) => "It is asked again at the next need; what is stored is served all the same.",
    };
    Some(Trouble {
        what: format!("The mirror {} {what}{why}", mirror.url),
        means: means.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(url: &str, archive: Option<&str>, state: &str) -> Mirror {
        let archive = archive.map(str::to_owned);
        Mirror { url: url.to_owned(), archive, state: state.to_owned(), ..Mirror::default() }
    }

    fn well() -> Report {
        let (stored, archives) = (Some(Default::default()), Some(Vec::new()));
        Report { stored, archives, ..Report::default() }
    }

    #[test]
    fn each_trouble_says_what_it_means() {
        let report = well();
        assert_eq!(all(&report, None, None), []);
        let of_store = all(&report, Some("the volume is full".to_owned()), None);
        assert!(
            of_store[0].what.contains("full") && of_store[0].means.contains("apt gets everything")
        );

        let alone = [Mirror { requests: 1, ..mirror("http://a", None, "away") }];
        assert!(of_mirror(&alone[0], &alone).unwrap().means.contains("what is stored"));
        let two = [mirror("http://a", Some("x"), "away"), mirror("http://b", Some("x"), "well")];
        assert!(of_mirror(&two[0], &two).unwrap().means.contains("does not notice"));
        assert_eq!(of_mirror(&two[1], &two), None);

        let refused = Some("sent nonsense".to_owned());
        let archive = Archive { refused, served: true, ..Archive::default() };
        assert!(of_archive(&archive).unwrap().means.contains("accepted before"));
        let archive = Archive { served: false, ..archive };
        assert!(of_archive(&archive).unwrap().means.contains("update fails"));
    }

    #[test]
    fn many_of_a_kind_are_few_words() {
        let mirrors = (0..100).map(|number| mirror(&format!("http://{number}"), None, "away"));
        let mirrors = mirrors.collect();
        let report = Report { mirrors, ..well() };
        assert_eq!(all(&report, None, None).len(), OF_A_KIND_MAX);
    }

    #[test]
    fn hosts_that_clients_name_hide_no_mirror_that_matters() {
        let mut mirrors: Vec<Mirror> =
            (0..100).map(|number| mirror(&format!("http://{number}"), None, "failed")).collect();
        mirrors.push(mirror("http://named", Some("debian"), "failed"));
        let told = all(&Report { mirrors, ..well() }, None, None);
        assert!(told[0].what.contains("http://named"), "{told:?}");
        assert!(told[1].means.contains("mistyped"), "{told:?}");

        let old = |asked, requests| {
            let mirror =
                Mirror { asked: Some(asked), requests, ..mirror("http://a", None, "failed") };
            all(&Report { mirrors: vec![mirror], ..well() }, None, None)
        };
        assert_eq!(old(601, 0), []);
        assert!(old(601, 1)[0].what.contains("(10 min ago)"));
        assert_eq!(old(86_401, 1), []);
    }
}
