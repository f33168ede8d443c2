//! Request targets: which resource of which archive a client means.
//!
//! Clients write it in three ways: prefix form (`/HOST/path`, `/https/HOST/path`, apt-cacher-ng's
//! `/HTTPS///HOST/path`), absolute form (RFC 9112 §3.2.2) and authority form for tunnels.

use std::fmt;

use thiserror::Error;

/// The longest target that is read, in bytes. The longest in Debian's archives are under 300.
pub const TARGET_MAX: usize = 4096;

/// How a mirror is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// The port that a URL of this scheme means when it names none.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// A host and port, as in a URL: lower-case, IPv6 addresses in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// Name or address literal.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Authority {
    /// Reads `HOST[:PORT]`; without a port it is `default_port`.
    ///
    /// # Errors
    /// When it is not a host name or address with an optional port.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, TargetError> {
        let bad = || TargetError::Host(shorten(text));
        let bracket = text.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match text.get(bracket..).ok_or_else(bad)?.rfind(':') {
            Some(colon) => {
                let (host, port) = text.split_at(bracket + colon);
                (host, port[1..].parse().ok().filter(|&port| port != 0).ok_or_else(bad)?)
            }
            None => (text, default_port),
        };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if is_host(&host) { Ok(Self { host, port }) } else { Err(bad()) }
    }

    /// `HOST`, or `HOST:PORT` where the port is not the scheme's own.
    #[must_use]
    pub fn for_scheme(&self, scheme: Scheme) -> String {
        if self.port == scheme.default_port() {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// One resource of one mirror, named in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How the mirror is spoken to.
    pub scheme: Scheme,
    /// The mirror.
    pub authority: Authority,
    /// The resource's one name: an URL in which spellings that mean the same are the same. No
    /// credentials.
    pub key: String,
    /// The URL to ask the mirror for: the client's own spelling of the path. No credentials.
    pub url: String,
    /// The decoded path, for telling the kind of resource.
    pub path: String,
    /// `user:password` from the URL, still percent-encoded.
    pub userinfo: Option<String>,
    /// Whether there is a query: then the path alone does not name the resource.
    pub has_query: bool,
}

/// Why a target names nothing that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// Longer than [`TARGET_MAX`].
    #[error("the request target is longer than {TARGET_MAX} bytes")]
    TooLong,
    /// No host where one belongs.
    #[error("{0:?} is not the name of a mirror")]
    Host(String),
    /// A path with `..`, an encoded slash, a control character or a broken escape.
    #[error("the path has {0}, which no archive uses")]
    Path(&'static str),
    /// A URL of another scheme than http and https.
    #[error("only http and https are fetched, not {0:?}")]
    Scheme(String),
}

impl Target {
    /// `SCHEME://HOST[:PORT]`: who is asked for it.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority.for_scheme(self.scheme))
    }

    /// Reads a target in prefix form: `/HOST/path`, `/https/HOST/path` or `/HTTPS///HOST/path`.
    ///
    /// # Errors
    /// When it names no resource; the reason is fit for the client.
    pub fn from_prefix(target: &str) -> Result<Self, TargetError> {
        check_length(target)?;
        let rest = target.trim_start_matches('/');
        let (first, after) =
            rest.split_once('/').ok_or_else(|| TargetError::Host(shorten(rest)))?;
        if first.eq_ignore_ascii_case("https") {
            Self::after_scheme(Scheme::Https, after.trim_start_matches('/'))
        } else {
            Self::after_scheme(Scheme::Http, rest)
        }
    }

    /// Reads a target in absolute form, `http://HOST/path`. apt-cacher-ng's users write
    /// `http://HTTPS///HOST/path` for a mirror that is to be asked over TLS.
    ///
    /// # Errors
    /// When it names no resource; the reason is fit for the client.
    pub fn from_absolute(target: &str) -> Result<Self, TargetError> {
        check_length(target)?;
        let (scheme, rest) =
            target.split_once("://").ok_or_else(|| TargetError::Scheme(shorten(target)))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(TargetError::Scheme(shorten(scheme))),
        };
        match rest.split_once("///") {
            Some((marker, rest)) if marker.eq_ignore_ascii_case("https") => {
                Self::after_scheme(Scheme::Https, rest)
            }
            _ => Self::after_scheme(scheme, rest),
        }
    }

    /// `[USERINFO@]HOST[:PORT][/path][?query]`
    fn after_scheme(scheme: Scheme, rest: &str) -> Result<Self, TargetError> {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path_and_query) = rest.split_at(end);
        let (userinfo, authority) = match authority.rsplit_once('@') {
            Some((userinfo, authority)) => (Some(userinfo.to_owned()), authority),
            None => (None, authority),
        };
        let authority = Authority::parse(authority, scheme.default_port())?;
        let path_and_query = path_and_query.split('#').next().unwrap_or_default();
        let (raw_path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let raw_path = if raw_path.is_empty() { "/" } else { raw_path };
        let path = Path::parse(raw_path)?;
        // A key `http://https///m.org` would be read as apt-cacher-ng's way to say `https://m.org`.
        if authority.for_scheme(scheme) == "https" && path.canonical.starts_with("///") {
            return Err(TargetError::Host(authority.host));
        }
        if query.is_some_and(|query| query.bytes().any(is_control)) {
            return Err(TargetError::Path("a control character"));
        }

        let origin = format!("{scheme}://{}", authority.for_scheme(scheme));
        let query_part = query.map(|query| format!("?{query}")).unwrap_or_default();
        Ok(Self {
            scheme,
            key: format!("{origin}{}{query_part}", path.canonical),
            url: format!("{origin}{}{query_part}", path.forwarded),
            path: path.decoded,
            userinfo,
            has_query: query.is_some(),
            authority,
        })
    }

    /// The last segment of the path.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// A path in its three spellings.
struct Path {
    /// Escapes only where they are needed, in upper case: one spelling per resource.
    canonical: String,
    /// As the client wrote it: some stores tell `+` from `%2B`.
    forwarded: String,
    decoded: String,
}

impl Path {
    fn parse(raw: &str) -> Result<Self, TargetError> {
        let mut canonical = String::with_capacity(raw.len());
        let mut forwarded = String::with_capacity(raw.len());
        let mut decoded = Vec::with_capacity(raw.len());
        for (position, segment) in raw.split('/').enumerate().skip(1) {
            let start = decoded.len();
            let canonical_start = canonical.len();
            canonical.push('/');
            decoded.push(b'/');
            decode_segment(segment, &mut canonical, &mut decoded)?;
            match decoded.get(start + 1..).unwrap_or_default() {
                b".." => return Err(TargetError::Path("\"..\"")),
                // `deb URI ./` makes apt ask for `/URI/./Packages`: the same as `/URI/Packages`.
                b"." if position < raw.matches('/').count() => {
                    decoded.truncate(start);
                    canonical.truncate(canonical_start);
                }
                _ => {
                    forwarded.push('/');
                    forwarded.push_str(segment);
                }
            }
        }
        let decoded = String::from_utf8_lossy(&decoded).into_owned();
        Ok(Self { canonical, forwarded, decoded })
    }
}

fn decode_segment(
    segment: &str,
    canonical: &mut String,
    decoded: &mut Vec<u8>,
) -> Result<(), TargetError> {
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let value = if byte == b'%' {
            let pair = [bytes.next(), bytes.next()];
            unescape(pair).ok_or(TargetError::Path("a broken escape"))?
        } else {
            byte
        };
        match value {
            b'/' | b'\\' => return Err(TargetError::Path("an encoded slash")),
            value if is_control(value) => return Err(TargetError::Path("a control character")),
            value => push_canonical(canonical, value),
        }
        decoded.push(value);
    }
    Ok(())
}

/// The canonical spelling of a decoded path, as it stands in [`Target::key`].
#[must_use]
pub fn canonical_path(decoded: &str) -> String {
    if decoded.bytes().all(|byte| byte == b'/' || is_plain(byte)) {
        return decoded.to_owned();
    }
    let mut canonical = String::with_capacity(decoded.len());
    for byte in decoded.bytes() {
        match byte {
            b'/' => canonical.push('/'),
            byte => push_canonical(&mut canonical, byte),
        }
    }
    canonical
}

fn push_canonical(canonical: &mut String, byte: u8) {
    if is_plain(byte) {
        canonical.push(char::from(byte));
        return;
    }
    canonical.push('%');
    let digits = [byte >> 4, byte & 0xf].map(|digit| char::from_digit(digit.into(), 16));
    canonical.extend(digits.into_iter().flatten().map(|digit| digit.to_ascii_uppercase()));
}

fn unescape(pair: [Option<u8>; 2]) -> Option<u8> {
    let [high, low] = pair.map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
    u8::try_from(high? << 4 | low?).ok()
}

/// Unreserved characters and sub-delimiters (RFC 3986 §3.3), which mean themselves in a path.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']');
        return address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= 253 && host.split('.').all(label)
}

fn check_length(target: &str) -> Result<(), TargetError> {
    if target.len() > TARGET_MAX { Err(TargetError::TooLong) } else { Ok(()) }
}

/// For error messages: what a client sent comes back at most this long.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_names_the_resource() {
        let table = [
            ("/ftp.debian.org/debian/x", "http://ftp.debian.org/debian/x"),
            ("/FTP.Debian.ORG:80/debian/x", "http://ftp.debian.org/debian/x"),
            ("/mirror:8080/debian/x", "http://mirror:8080/debian/x"),
            ("/https/mirror.example.org/debian/x", "https://mirror.example.org/debian/x"),
            ("/https/mirror.example.org:443/x", "https://mirror.example.org/x"),
            ("/HTTPS///mirror.example.org/x", "https://mirror.example.org/x"),
            ("/[::1]:8080/x", "http://[::1]:8080/x"),
            ("/mirror.example.org/flat/./Packages", "http://mirror.example.org/flat/Packages"),
            ("/m.org/g%2b%2B_1%3a2%7e3_all.deb", "http://m.org/g++_1:2~3_all.deb"),
            ("/m.org/a%20b%c3%a4", "http://m.org/a%20b%C3%A4"),
            ("/m.org/x?y=1", "http://m.org/x?y=1"),
            ("/m.org//double//slash", "http://m.org//double//slash"),
            ("/m.org/dir/.", "http://m.org/dir/."),
        ];
        for (target, key) in table {
            assert_eq!(Target::from_prefix(target).unwrap().key, key, "{target}");
        }
        assert_eq!(
            canonical_path("pool/g++_1:2~3_a b\u{e4}.deb"),
            "pool/g++_1:2~3_a%20b%C3%A4.deb"
        );
        let table = [
            ("http://m.org/x", "http://m.org/x"),
            ("HTTP://m.org", "http://m.org/"),
            ("http://m.org?q", "http://m.org/?q"),
            ("https://m.org:8443/x", "https://m.org:8443/x"),
            ("http://HTTPS///m.org/x", "https://m.org/x"),
        ];
        for (target, key) in table {
            assert_eq!(Target::from_absolute(target).unwrap().key, key, "{target}");
        }
    }

    #[test]
    fn the_mirror_is_asked_in_the_clients_spelling() {
        let target = Target::from_prefix("/m.org/./g%2b_1_all.deb").unwrap();
        assert_eq!(target.url, "http://m.org/g%2b_1_all.deb");
        assert_eq!(target.path, "/g+_1_all.deb");
        assert_eq!(target.file_name(), "g+_1_all.deb");
    }

    #[test]
    fn credentials_are_set_apart() {
        let target = Target::from_absolute("http://me:s%40crt@m.org/x").unwrap();
        assert_eq!(target.userinfo.as_deref(), Some("me:s%40crt"));
        assert_eq!(target.url, "http://m.org/x");
        assert!(!target.key.contains("s%40crt"));
    }

    #[test]
    fn hostile_targets_are_refused() {
        for target in [
            "/m.org/../etc/passwd",
            "/m.org/a/%2e%2e/b",
            "/m.org/a%2fb",
            "/m.org/a%5cb",
            "/m.org/a%00b",
            "/m.org/a%0d%0aHost:%20x",
            "/m.org/a%zz",
            "/m.org/a%2",
            "/m.org/..",
            "/no-path",
            "/",
            "//",
            "/bad host/x",
            "/m.org:0/x",
            "/m.org:99999/x",
            "/m.org:/x",
            "/[::1/x",
            "/-/x?\u{1}",
            "/a..b/x",
            "/https:80///m.org/x",
            "/https:80/.///m.org/x",
        ] {
            assert!(Target::from_prefix(target).is_err(), "{target}");
        }
        for target in [
            "ftp://m.org/x",
            "m.org/x",
            "http:///x",
            "http://a b/x",
            "http://https:80///m.org/x",
            "https://user@https///m.org/x",
        ] {
            assert!(Target::from_absolute(target).is_err(), "{target}");
        }
        let long = format!("/m.org/{}", "x".repeat(TARGET_MAX));
        assert_eq!(Target::from_prefix(&long), Err(TargetError::TooLong));
    }
}
