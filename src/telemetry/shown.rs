//! Targets of requests, fit for logs and traces.

use std::borrow::Cow;

/// Bytes of a target that are shown. The longest in Debian's archives are under 300.
const SHOWN_MAX: usize = 512;

/// A target, or its path, fit to be shown: without credentials, without its query, which may hold some, and
/// not too long. In whichever part of it an `@` is, what stands before that may be a password: a path of
/// ours may name another cache's, with a host anywhere in it.
#[must_use]
pub fn shown(target: &str) -> Cow<'_, str> {
    let (path, query) =
        target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let has_credentials = path.contains('@') || path.contains("%40");
    if query.is_none() && !has_credentials && path.len() <= SHOWN_MAX {
        return Cow::Borrowed(target);
    }
    let segment = |segment: &str| {
        let after = |mark| segment.rfind(mark).map(|at| at + str::len(mark));
        let from = after("@").max(after("%40")).unwrap_or_default();
        segment.get(from..).unwrap_or_default().to_owned()
    };
    let mut shown = path.split('/').map(segment).collect::<Vec<_>>().join("/");
    if shown.len() > SHOWN_MAX {
        shown.truncate(shown.floor_char_boundary(SHOWN_MAX));
        shown.push_str("...");
    }
    if query.is_some() {
        shown.push_str("?...");
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_has_no_credentials() {
        let table = [
            (
                "/mirror.example.org/debian/dists/sid/InRelease",
                "/mirror.example.org/debian/dists/sid/InRelease",
            ),
            ("http://user:pass@m.org/x", "http://m.org/x"),
            ("http://user:p%40ss@m.org:80/x", "http://m.org:80/x"),
            ("http://user%3Apass%40m.org/x", "http://m.org/x"),
            ("/user:pass@m.org/x", "/m.org/x"),
            ("/user:p@ss@m.org/x", "/m.org/x"),
            ("//user@m.org/x", "//m.org/x"),
            ("/https/user:pass@m.org/x", "/https/m.org/x"),
            ("/https/user%3Apass%40m.org/x", "/https/m.org/x"),
            ("/http%3A//user:pass@m.org/x", "/http%3A//m.org/x"),
            ("/cache.example/https/user:pass@m.org/x", "/cache.example/https/m.org/x"),
            ("http://HTTPS///user:pass@m.org/x", "http://HTTPS///m.org/x"),
            ("user:pass@m.org:443", "m.org:443"),
            ("/m.org/x?token=secret", "/m.org/x?..."),
            ("/m.org/x?to=a@b&c=d?e", "/m.org/x?..."),
            ("http://user:pass@m.org?token=secret", "http://m.org?..."),
            ("", ""),
        ];
        for (target, expected) in table {
            assert_eq!(shown(target), expected);
        }
        assert_eq!(shown(&"ä".repeat(300)).len(), SHOWN_MAX + 3);
        assert_eq!(shown(&"/a".repeat(256)), "/a".repeat(256));
    }
}
