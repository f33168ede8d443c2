//! Targets of requests, fit for logs and traces.

use std::borrow::Cow;

/// Bytes of a target that are shown. The longest in Debian's archives are under 300.
const SHOWN_MAX: usize = 512;

/// A target, or its path, fit to be shown: without credentials, without its query, which may hold some, and
/// not too long. In whichever part of it an `@` is, what stands before that may be a password: a path of
/// ours may name another cache's, with a host anywhere in it. Nor is what stands where a host does, and is no
/// port after a colon: a password that has a `/` or `#` in it comes without its `@`.
#[must_use]
pub fn shown(target: &str) -> Cow<'_, str> {
    let (path, query) =
        target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let is_half = |(is_host, segment): (bool, &str)| is_host && has_half_of_some(segment);
    let has_credentials = path.contains('@') || path.contains("%40") || segments(path).any(is_half);
    if query.is_none() && !has_credentials && path.len() <= SHOWN_MAX {
        return Cow::Borrowed(target);
    }
    let segment = |(is_host, segment): (bool, &str)| {
        let after = |mark| segment.rfind(mark).map(|at| at + str::len(mark));
        let from = after("@").max(after("%40")).unwrap_or_default();
        let rest = segment.get(from..).unwrap_or_default();
        if is_half((is_host, rest)) { "...".to_owned() } else { rest.to_owned() }
    };
    let mut shown = segments(path).map(segment).collect::<Vec<_>>().join("/");
    if shown.len() > SHOWN_MAX {
        shown.truncate(shown.floor_char_boundary(SHOWN_MAX));
        shown.push_str("...");
    }
    if query.is_some() {
        shown.push_str("?...");
    }
    shown.into()
}

/// The parts of a target, and whether a host is what each may be: at the beginning, and behind a scheme.
fn segments(path: &str) -> impl Iterator<Item = (bool, &str)> {
    let mut before = "http:";
    path.split('/').map(move |segment| {
        let schemes = ["http:", "https:", "https", "http%3a", "https%3a"];
        let is_host = schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case(before));
        if !segment.is_empty() {
            before = segment;
        }
        (is_host, segment)
    })
}

/// Whether what may be a host has something else than a port behind its first colon.
fn has_half_of_some(host: &str) -> bool {
    let behind = ["%3A", "%3a", ":"].iter().find_map(|colon| host.split_once(colon));
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    behind.is_some_and(|(_, rest)| !is_port(rest)) && !host.starts_with('[')
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
            // The host was forgotten; what is behind a `#` does not come to us; a `/` ends a host.
            ("http://jane:hunter2/x", "http://.../x"),
            ("http://jane%3Ahunter2/x", "http://.../x"),
            ("http://u:pa", "http://..."),
            ("/u:pa/ss@m.org/x", "/.../m.org/x"),
            ("/cache.example/https/jane:hunter2/x", "/cache.example/https/.../x"),
            ("jane:hunter2", "..."),
            ("http://[::1]:80/x", "http://[::1]:80/x"),
            ("/m.org:80/pool/a_1:2-3_all.deb", "/m.org:80/pool/a_1:2-3_all.deb"),
            ("/m.org/pool/a_1%3a2-3_all.deb", "/m.org/pool/a_1%3a2-3_all.deb"),
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
