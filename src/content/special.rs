//! Addresses that are not for everybody. What others tell may lead anywhere: who follows it must not become
//! their way into the networks around (server-side request forgery). Pure.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Whether an address is of the special-purpose registries (RFC 6890 and its updates) or multicast:
/// nobody has one who is there for everybody. An IPv4 address in IPv6 clothing counts as what it is.
#[must_use]
pub fn is_special(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(_) => in_any(&SPECIAL_V4, address.to_canonical()),
        // It reaches what the IPv4 address reaches.
        IpAddr::V6(v6) => {
            in_any(&SPECIAL_V6, address) || embedded_v4(v6).is_some_and(|v4| is_special(v4.into()))
        }
    }
}

fn in_any(nets: &[&str], address: IpAddr) -> bool {
    nets.iter().any(|net| net.parse::<IpNet>().is_ok_and(|net| net.contains(&address)))
}

/// NAT64 (RFC 6052) and 6to4 (RFC 3056) carry an IPv4 address.
fn embedded_v4(address: Ipv6Addr) -> Option<std::net::Ipv4Addr> {
    let ([0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..]) = address.segments()
    else {
        return None;
    };
    Some((u32::from(high) << 16 | u32::from(low)).into())
}

const SPECIAL_V4: [&str; 16] = [
    "0.0.0.0/8",          // this network
    "10.0.0.0/8",         // private
    "100.64.0.0/10",      // carrier-grade NAT; also some clouds' metadata
    "127.0.0.0/8",        // loopback
    "169.254.0.0/16",     // link-local; clouds' metadata
    "172.16.0.0/12",      // private
    "192.0.0.0/24",       // protocol assignments; some clouds' metadata
    "192.0.2.0/24",       // documentation
    "192.88.99.0/24",     // 6to4 relays
    "192.168.0.0/16",     // private
    "198.18.0.0/15",      // benchmarks
    "198.51.100.0/24",    // documentation
    "203.0.113.0/24",     // documentation
    "224.0.0.0/4",        // multicast
    "240.0.0.0/4",        // reserved
    "255.255.255.255/32", // broadcast
];

const SPECIAL_V6: [&str; 12] = [
    "::/96",          // unspecified; IPv4 in its oldest clothing
    "::1/128",        // loopback
    "64:ff9b:1::/48", // local NAT64
    "100::/64",       // discard
    "2001::/23",      // protocol assignments
    "2001:db8::/32",  // documentation
    "3fff::/20",      // documentation
    "fc00::/7",       // unique local; also clouds' metadata
    "fec0::/10",      // site-local, as it once was
    "5f00::/16",      // segment routing
    "fe80::/10",      // link-local
    "ff00::/8",       // multicast
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_told_from_public_ones() {
        let special = [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "203.0.113.9",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ];
        for address in special {
            assert!(is_special(address.parse().unwrap()), "{address}");
        }
        let public = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2a00:1450::1", "64:ff9b::9765:284"];
        for address in public {
            assert!(!is_special(address.parse().unwrap()), "{address}");
        }
    }
}
