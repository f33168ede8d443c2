//! Opening surfaces.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;

use crate::config::Config;
use crate::web::connection::Surface;
use crate::web::listener::Listener;
use crate::web::phase::Phase;

/// Offers a surface at the address that the setting `key` names, until the process is closing.
pub(super) fn open(
    surface: Surface,
    address: SocketAddr,
    key: &str,
    config: &Config,
    phase: &watch::Receiver<Phase>,
) -> anyhow::Result<SocketAddr> {
    let listener = bind(address, key, config)?;
    let address = listener.address()?;
    serve(listener, surface, phase);
    Ok(address)
}

/// Takes the address that the setting `key` names.
pub(super) fn bind(address: SocketAddr, key: &str, config: &Config) -> anyhow::Result<Listener> {
    Listener::bind(address, config.listen.connections_max)
        .with_context(|| format!("could not listen on {address} ({key})"))
}

/// Offers a surface at an address that was taken before.
pub(super) fn serve(listener: Listener, surface: Surface, phase: &watch::Receiver<Phase>) {
    let tasks = surface.tasks.clone();
    tasks.spawn(listener.serve(Arc::new(surface), phase.clone(), tasks.clone()));
}

/// Where this machine reaches what listens at `address`. Loopback of the fourth version is everywhere, that
/// of the sixth is not, and what listens on all addresses takes both.
pub(super) fn from_here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}
