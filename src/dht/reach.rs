//! Which addresses are dialled. What others tell may lead anywhere: public addresses are taken on
//! trust, of the special ones only those that are allowed; those of the seeds are the operator's word.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;

use crate::content::special::is_special;

/// Addresses of seeds that are remembered.
const SEEDS_MAX: usize = 4_096;

/// The rule, shared by all who ask.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    allowed: Arc<[IpNet]>,
    seeds: Arc<RwLock<HashSet<IpAddr>>>,
}

impl Reach {
    pub(super) fn new(allowed: &[IpNet]) -> Self {
        Self { allowed: allowed.into(), seeds: Arc::default() }
    }

    /// Whether a node may be there.
    pub(super) fn permits(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        !is_special(ip)
            || self.allowed.iter().any(|network| network.contains(&ip))
            || self.seeds.read().unwrap_or_else(PoisonError::into_inner).contains(&ip)
    }

    /// The operator says that one is there.
    pub(super) fn allow(&self, ip: IpAddr) {
        let mut seeds = self.seeds.write().unwrap_or_else(PoisonError::into_inner);
        if seeds.len() < SEEDS_MAX {
            seeds.insert(ip.to_canonical());
        }
    }
}

/// The address as libp2p writes it.
pub(super) fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// `/ip4/…/tcp/…` or `/ip6/…/tcp/…`, whatever comes after; names are resolved elsewhere.
pub(super) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    Some((ip, port).into())
}

/// A transport that dials only what may be reached.
pub(super) struct Guarded<T> {
    pub(super) inner: T,
    pub(super) reach: Reach,
}

impl<T: Transport + Unpin> Transport for Guarded<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        if socket_address(&address).is_some_and(|address| self.reach.permits(address.ip())) {
            return self.inner.dial(address, options);
        }
        tracing::debug!(%address, "not dialled: nodes are not to be there (swarm.allow_private)");
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_reached_and_special_ones_only_where_allowed() {
        let reach = Reach::new(&["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        for ip in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "10.1.2.3", "fd00::1", "2a00:1450::1"] {
            assert!(reach.permits(ip.parse().unwrap()), "{ip}");
        }
        let special = [
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "192.168.1.1",
            "172.16.0.1",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ];
        for ip in special {
            assert!(!reach.permits(ip.parse().unwrap()), "{ip}");
        }
        assert!(reach.permits("::ffff:10.0.0.1".parse().unwrap()));
        reach.allow("127.0.0.1".parse().unwrap());
        assert!(reach.permits("127.0.0.1".parse().unwrap()));
        assert!(!reach.permits("127.0.0.2".parse().unwrap()));
    }

    #[test]
    fn addresses_are_translated_there_and_back() {
        for text in ["192.0.2.1:9980", "[2001:db8::1]:9980"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(socket_address(&multiaddr(address)), Some(address));
        }
        for other in ["/dns4/example.org/tcp/1", "/ip4/1.2.3.4/udp/1", "/ip4/1.2.3.4"] {
            assert_eq!(socket_address(&other.parse().unwrap()), None, "{other}");
        }
    }
}
