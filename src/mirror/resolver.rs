//! Names to addresses, without the banned ones: checked here, at each connect, so that a name that
//! resolves to something else the second time (DNS rebinding) gains nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::error::{MirrorError, MirrorErrorKind, SpecialAddress};
use super::guard::Guard;

pub(super) struct GuardedResolver {
    guard: Arc<ArcSwap<Guard>>,
    /// The parent proxy's name: the operator chose it, wherever it is.
    parent: Option<String>,
}

impl GuardedResolver {
    pub(super) fn new(guard: Arc<ArcSwap<Guard>>, parent: Option<String>) -> Self {
        Self { guard, parent }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard.load_full();
        let is_parent = self.parent.as_deref() == Some(name.as_str());
        Box::pin(async move {
            let host = name.as_str();
            let found = tokio::net::lookup_host((host, 0)).await?;
            if is_parent {
                return Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs);
            }
            let permitted = permitted(&guard, host, found);
            if permitted.is_empty() {
                return Err(SpecialAddress.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// The permitted addresses of a name or address literal.
pub(super) async fn resolve(
    guard: &ArcSwap<Guard>,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, MirrorError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = if let Ok(address) = bare.parse::<IpAddr>() {
        vec![SocketAddr::new(address, port)]
    } else {
        tokio::net::lookup_host((bare, port))
            .await
            .map_err(|error| MirrorError::new(MirrorErrorKind::Unreachable, host, error))?
            .collect()
    };
    let permitted = permitted(&guard.load(), host, found.into_iter());
    if permitted.is_empty() { Err(MirrorError::special_address(host)) } else { Ok(permitted) }
}

fn permitted(
    guard: &Guard,
    host: &str,
    found: impl Iterator<Item = SocketAddr>,
) -> Vec<SocketAddr> {
    found.filter(|address| guard.permits_address(host, address.ip())).collect()
}
