//! Groups: several mirrors that the operator says are one archive. A resource of a group has one
//! name, whichever mirror a client wrote, and can be had from any of them.

use std::collections::HashSet;
use std::str::FromStr;

use thiserror::Error;

use crate::archive::target::{Authority, Scheme, Target, TargetError};

/// Mirrors of one archive. More would only make a miss slower.
pub const MIRRORS_MAX: usize = 16;

/// One archive and the mirrors that serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// May stand for the host in prefix form.
    pub name: String,
    /// The URLs of the archive's root, with a slash at the end; the operator's favourite first.
    mirrors: Vec<Target>,
    /// Whose signatures count for it: fingerprints, or paths of keyring files; empty: those of all
    /// known keys.
    pub signed_by: Vec<String>,
}

/// Why a text is no group.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GroupError {
    /// Nothing, or no name where one belongs.
    #[error("begin with a name for the archive: letters, digits and dashes, and not https")]
    Name,
    /// So many words after the name there is something else than the URL of an archive's root. It may hold a
    /// password.
    #[error("word {0} after the name is no URL of a mirror: write http://HOST/PATH")]
    Url(usize),
    /// Neither a URL nor `signed-by=`.
    #[error("no mirror is named: write NAME http://HOST/PATH …")]
    NoMirror,
    /// More than [`MIRRORS_MAX`].
    #[error("more than {MIRRORS_MAX} mirrors")]
    TooMany,
}

impl FromStr for Group {
    type Err = GroupError;

    /// Reads `NAME URL… [signed-by=KEY…]`.
    fn from_str(text: &str) -> Result<Self, GroupError> {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        // A name with a dot, or one that means a scheme, would hide a host.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || !name.bytes().all(plain) || name.eq_ignore_ascii_case("https") {
            return Err(GroupError::Name);
        }
        let (mut mirrors, mut signed_by) = (Vec::new(), Vec::new());
        for (number, word) in (1..).zip(words) {
            match word.strip_prefix("signed-by=").filter(|key| !key.is_empty()) {
                Some(key) => signed_by.push(key.to_owned()),
                None => mirrors.push(root(word).ok_or(GroupError::Url(number))?),
            }
        }
        match mirrors.len() {
            0 => Err(GroupError::NoMirror),
            1..=MIRRORS_MAX => Ok(Self { name: name.to_ascii_lowercase(), mirrors, signed_by }),
            _ => Err(GroupError::TooMany),
        }
    }
}

/// The URL of an archive's root, with a slash at its end.
fn root(url: &str) -> Option<Target> {
    let root = Target::from_absolute(&format!("{}/", url.trim_end_matches('/'))).ok()?;
    (!root.has_query && root.userinfo.is_none()).then_some(root)
}

impl Group {
    /// The canonical URL that the names of the archive's resources begin with.
    #[must_use]
    pub fn base(&self) -> &str {
        self.mirrors.first().map_or("", |mirror| mirror.key.as_str())
    }

    /// `SCHEME://HOST[:PORT]` of each mirror, each once.
    pub fn origins(&self) -> impl Iterator<Item = String> {
        let origin = |mirror: &Target| {
            format!("{}://{}", mirror.scheme, mirror.authority.for_scheme(mirror.scheme))
        };
        let mut origins: Vec<String> = self.mirrors.iter().map(origin).collect();
        let mut seen = HashSet::new();
        origins.retain(|origin| seen.insert(origin.clone()));
        origins.into_iter()
    }

    /// Whether the group's name is where `target` has its host.
    fn is_host_of(&self, target: &Target) -> bool {
        target.scheme == Scheme::Http
            && target.authority.host == self.name
            && target.authority.port == Scheme::Http.default_port()
    }

    /// What `target` names below the archive's root, if it is the archive's: in the client's
    /// spelling, with the query.
    fn path_of<'a>(&self, target: &'a Target) -> Option<&'a str> {
        let folders = if self.is_host_of(target) {
            0
        } else {
            let mirror = self.mirrors.iter().find(|mirror| target.key.starts_with(&mirror.key))?;
            mirror.path.matches('/').count() - 1
        };
        let (_, rest) = target.url.split_once("://")?;
        rest.splitn(folders + 2, '/').nth(folders + 1)
    }

    /// The same resource on its `number`th mirror.
    fn on_mirror(&self, number: usize, path: &str) -> Result<Target, TargetError> {
        let root = self.mirrors.get(number).map_or("", |mirror| mirror.url.as_str());
        Target::from_absolute(&format!("{root}{path}"))
    }
}

/// All groups that the operator named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(Vec<Group>);

impl Groups {
    /// The mirrors of each group, with the group's name.
    pub fn mirrors(&self) -> impl Iterator<Item = (&str, &Target)> {
        self.0
            .iter()
            .flat_map(|group| group.mirrors.iter().map(|mirror| (group.name.as_str(), mirror)))
    }

    /// Takes groups together.
    ///
    /// # Errors
    /// With the name or URL that two of them have.
    pub fn new(groups: Vec<Group>) -> Result<Self, String> {
        let mut seen = HashSet::new();
        for group in &groups {
            let names = std::iter::once(&group.name);
            for name in names.chain(group.mirrors.iter().map(|mirror| &mirror.key)) {
                if !seen.insert(name.clone()) {
                    return Err(name.clone());
                }
            }
        }
        Ok(Self(groups))
    }

    /// The groups.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.0.iter()
    }

    /// Whether a mirror of that name is in a group.
    #[must_use]
    pub fn have_host(&self, host: &str) -> bool {
        self.authorities().any(|authority| authority.host == host)
    }

    /// Whether that very mirror is in a group: `host` is an address, as in a URL.
    #[must_use]
    pub fn have_address(&self, host: &str, port: Option<u16>) -> bool {
        self.authorities().any(|named| named.host == host && Some(named.port) == port)
    }

    fn authorities(&self) -> impl Iterator<Item = &Authority> {
        self.0.iter().flat_map(|group| &group.mirrors).map(|mirror| &mirror.authority)
    }

    /// The one name of what `target` names. Credentials, and a query that may be one, are for the host
    /// that the client wrote; where that is a group's name, for its first mirror.
    #[must_use]
    pub fn settle(&self, target: Target, has_credentials: bool) -> Target {
        let is_private = has_credentials || target.has_query;
        let may_move = |group: &&Group| !is_private || group.is_host_of(&target);
        let settled = self.0.iter().filter(may_move).find_map(|group| {
            let path = group.path_of(&target)?;
            group.on_mirror(0, path).ok()
        });
        settled.unwrap_or(target)
    }

    /// The group that a settled `target` is in.
    #[must_use]
    pub fn group_of(&self, target: &Target) -> Option<&Group> {
        self.0.iter().find(|group| target.key.starts_with(group.base()))
    }

    /// Where a settled `target` can be had: on each mirror of its group, in the operator's order;
    /// `None` if it is in no group.
    #[must_use]
    pub fn sources(&self, target: &Target) -> Option<Vec<Target>> {
        let group = self.group_of(target).filter(|_| !target.has_query)?;
        let path = group.path_of(target)?;
        let mirrors = 0..group.mirrors.len();
        Some(mirrors.filter_map(|number| group.on_mirror(number, path).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Groups {
        let text =
            "demo http://a.org/debian https://B.org:8443/pub/debian/ signed-by=AB signed-by=/k";
        Groups::new(vec![text.parse().unwrap()]).unwrap()
    }

    #[test]
    fn a_resource_has_one_name_and_several_sources() {
        let groups = groups();
        let spellings = [
            "http://a.org/debian/pool/g%2b%2b_1.deb",
            "http://a.org/%64ebian/pool/g%2b%2b_1.deb",
            "https://b.org:8443/pub/debian/pool/g%2b%2b_1.deb",
            "http://demo/pool/g%2b%2b_1.deb",
        ];
        for spelling in spellings {
            let settled = groups.settle(Target::from_absolute(spelling).unwrap(), false);
            assert_eq!(settled.key, "http://a.org/debian/pool/g++_1.deb", "{spelling}");
            assert_eq!(settled.path, "/debian/pool/g++_1.deb");
            let sources: Vec<String> =
                groups.sources(&settled).unwrap().into_iter().map(|source| source.url).collect();
            assert_eq!(
                sources,
                [
                    "http://a.org/debian/pool/g%2b%2b_1.deb",
                    "https://b.org:8443/pub/debian/pool/g%2b%2b_1.deb"
                ]
            );
        }
        let by_name =
            groups.settle(Target::from_prefix("/demo/dists/sid/InRelease").unwrap(), false);
        assert_eq!(by_name.key, "http://a.org/debian/dists/sid/InRelease");
        for (path, has_credentials) in [("x?token=1", false), ("x", true)] {
            let target = Target::from_absolute(&format!("http://demo/{path}")).unwrap();
            let settled = groups.settle(target, has_credentials);
            assert_eq!(settled.url, format!("http://a.org/debian/{path}"));
        }
    }

    #[test]
    fn what_is_not_the_archives_stays_what_it_is() {
        for url in [
            "http://a.org/debian-security/x",
            "http://a.org/debian",
            "http://b.org/pub/debian/x",
            "http://me:pw@a.org/debian/x",
            "http://b.org:8443/pub/debian/x?token=1",
            "https://demo/x",
        ] {
            let target = Target::from_absolute(url).unwrap();
            let settled = groups().settle(target.clone(), target.userinfo.is_some());
            assert_eq!(settled, target, "{url}");
        }
        assert_eq!(groups().sources(&Target::from_absolute("http://c.org/x").unwrap()), None);
    }

    #[test]
    fn what_is_no_group_is_told() {
        for text in [
            "",
            "demo",
            "demo signed-by=AB",
            "de.mo http://a/",
            "https http://a/",
            "demo ftp://a/",
            "demo http://a/?q",
            "demo http://u:p@a/",
            "demo a.org/debian",
            "demo http://a/ signed-by=",
        ] {
            assert!(text.parse::<Group>().is_err(), "{text}");
        }
        let many = format!("demo{}", " http://a/".repeat(17));
        assert_eq!(many.parse::<Group>(), Err(GroupError::TooMany));
        let twice = ["demo http://a/", "other http://A:80/"].map(|text| text.parse().unwrap());
        assert!(Groups::new(twice.into()).is_err());
    }
}
