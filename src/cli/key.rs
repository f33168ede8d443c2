//! `aptmesh key`: a new swarm.

use crate::content::swarm_key::SwarmKey;
use crate::dht::fresh_secret;

pub(super) fn print() -> anyhow::Result<()> {
    super::print_out(&format!("{}\n", SwarmKey::new(fresh_secret()).reveal()))
}
