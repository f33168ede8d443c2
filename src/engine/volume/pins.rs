//! Pins: what an operator wants kept whatever comes. Pure.

use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::index::Names;

/// What to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Packages with such a name, in every version: `linux-image-*`.
    Package(String),
    /// What the current lists of a suite name: `suite:trixie`.
    Suite(String),
}

impl FromStr for Pin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.~_".contains(&byte);
        match text.strip_prefix("suite:") {
            Some(suite) if suite.bytes().all(|byte| is_plain(byte) || byte == b'/') => {
                let suite = suite.trim_matches('/');
                if suite.is_empty() { Err(WRITE) } else { Ok(Self::Suite(suite.to_owned())) }
            }
            None if !text.is_empty() && text.bytes().all(|byte| is_plain(byte) || byte == b'*') => {
                Ok(Self::Package(text.to_owned()))
            }
            _ => Err(WRITE),
        }
    }
}

const WRITE: &str = "write a package name such as linux-image-*, or suite:trixie";

impl Pin {
    /// Whether a blob with these names is to be kept.
    #[must_use]
    pub fn holds(&self, names: &Names) -> bool {
        match self {
            Self::Package(pattern) => names
                .resources
                .iter()
                .any(|key| package_of(key).is_some_and(|package| matches(pattern, &package))),
            Self::Suite(suite) => {
                let folder = format!("/dists/{suite}/");
                names.lists.iter().any(|key| key.contains(&folder))
            }
        }
    }
}

/// `NAME` of `…/NAME_VERSION…`, which is how the files of binary and source packages are called.
fn package_of(key: &str) -> Option<String> {
    let (name, _) = key.rsplit('/').next()?.split_once('_')?;
    Some(percent_decode_str(name).decode_utf8_lossy().into_owned())
}

/// Whether `name` is what `pattern` says, a `*` standing for any letters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = name.find(part) else { return false };
        name = name.get(at + part.len()..).unwrap_or_default();
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_packages() {
        let table = [
            ("hello", "hello", true),
            ("hello", "hello2", false),
            ("hello*", "hello2", true),
            ("*", "", true),
            ("linux-image-*", "linux-image-6.1.0-18-amd64", true),
            ("linux-image-*", "linux-headers-6.1", false),
            ("*-dbg", "tool-dbg", true),
            ("*-dbg", "tool-dbgsym", false),
            ("lib*-dev", "libc-dev", true),
            ("lib*-dev", "lib-dev", true),
            ("li*b*", "xlib", false),
            ("a*b*c", "a-b-b-c", true),
            ("ab*ba", "aba", false),
        ];
        for (pattern, name, is_match) in table {
            assert_eq!(matches(pattern, name), is_match, "{pattern} {name}");
        }
    }

    #[test]
    fn pins_hold_what_they_name() {
        let names = Names {
            resources: vec!["http://m/debian/pool/main/g/g%2b%2b_12_amd64.deb".to_owned()],
            lists: vec!["http://m/debian/dists/trixie/main/binary-amd64/Packages".to_owned()],
        };
        for (pin, holds) in [
            ("g++", true),
            ("g*", true),
            ("g", false),
            ("suite:trixie", true),
            ("suite:trixie/", true),
            ("suite:trixie/main", true),
            ("suite:trixie-updates", false),
            ("suite:sid", false),
        ] {
            assert_eq!(pin.parse::<Pin>().unwrap().holds(&names), holds, "{pin}");
        }
        for bad in ["", "suite:", "suite:/", "suite:a b", "a b", "http://m/", "a/b", "suite:*"] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }
}
