//! Who may be asked. A cache that fetches what its clients name must not become their way into the
//! networks around it (server-side request forgery).

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::content::special::is_special;

/// A pattern for host names: a name, or `*.name` for all names below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(String);

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let name = text.strip_prefix("*.").unwrap_or(&text);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(format!("{text:?} is no host name, address or *.domain"));
        }
        Ok(Self(text))
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl HostPattern {
    fn matches(&self, host: &str) -> bool {
        match self.0.strip_prefix("*.") {
            Some(domain) => host
                .strip_suffix(domain)
                .is_some_and(|front| front.len() > 1 && front.ends_with('.')),
            None => self.0.trim_matches(['[', ']']) == host.trim_matches(['[', ']']),
        }
    }
}

/// An exception from the ban on special-purpose addresses: a network, or a host whose addresses
/// are all excepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exception {
    /// Addresses in this network.
    Net(IpNet),
    /// Whatever this host's name resolves to.
    Host(HostPattern),
}

impl FromStr for Exception {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.into()));
        }
        text.parse().map(Self::Host)
    }
}

impl std::fmt::Display for Exception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Host(host) => host.fmt(f),
        }
    }
}

/// Decides which hosts and addresses may be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Host names that may be asked; empty: any.
    pub allow: Vec<HostPattern>,
    /// What is excepted from the ban on special-purpose addresses.
    pub allow_private: Vec<Exception>,
}

impl Guard {
    /// Whether a host of this name may be asked at all.
    #[must_use]
    pub fn permits_host(&self, host: &str) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(host))
    }

    /// Whether `address`, to which `host` resolved, may be connected to.
    #[must_use]
    pub fn permits_address(&self, host: &str, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !is_special(address)
            || self.allow_private.iter().any(|exception| match exception {
                Exception::Net(net) => net.contains(&address),
                Exception::Host(pattern) => pattern.matches(host),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allow: &[&str], allow_private: &[&str]) -> Guard {
        Guard {
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
            allow_private: allow_private.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn special_addresses_are_banned() {
        let guard = guard(&[], &[]);
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "203.0.113.9",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
        ] {
            assert!(!guard.permits_address("h", address.parse().unwrap()), "{address}");
        }
        for address in ["151.101.2.132", "2a04:4e42::644", "64:ff9b::9765:284", "1.1.1.1"] {
            assert!(guard.permits_address("h", address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn exceptions_are_networks_or_hosts() {
        let guard =
            guard(&[], &["127.0.0.0/8", "10.0.0.5", "mirror.lan", "*.intra.example.org", "::1"]);
        let permits = |host, address: &str| guard.permits_address(host, address.parse().unwrap());
        assert!(permits("h", "127.9.9.9"));
        assert!(permits("h", "::ffff:127.0.0.1"));
        assert!(permits("h", "10.0.0.5"));
        assert!(!permits("h", "10.0.0.6"));
        assert!(permits("mirror.lan", "192.168.7.7"));
        assert!(!permits("xmirror.lan", "192.168.7.7"));
        assert!(permits("a.intra.example.org", "10.0.0.6"));
        assert!(permits("[::1]", "::1"));
    }

    #[test]
    fn an_allow_list_names_hosts() {
        let open = guard(&[], &[]);
        assert!(open.permits_host("anything.example.org"));
        let listed = guard(&["ftp.debian.org", "*.example.org"], &[]);
        for (host, permitted) in [
            ("ftp.debian.org", true),
            ("a.example.org", true),
            ("a.b.example.org", true),
            ("example.org", false),
            ("evilexample.org", false),
            (".example.org", false),
            ("ftp.debian.org.evil.net", false),
        ] {
            assert_eq!(listed.permits_host(host), permitted, "{host}");
        }
        assert!("".parse::<HostPattern>().is_err());
        assert!("*.".parse::<HostPattern>().is_err());
        assert!("a/b".parse::<HostPattern>().is_err());
    }
}
