//! What the settings have to be for a process that is only part of a cache.

use crate::config::{Config, Faults};
use crate::index;

/// A part of a cache, in a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of the proxies of a site.
    Replica,
    /// A node of the swarm.
    Node,
}

impl Config {
    /// Whether a process with these settings can be that.
    ///
    /// # Errors
    /// With everything that it lacks.
    pub fn fits(&self, role: Role) -> Result<(), Faults> {
        let faults = match role {
            Role::Replica => self.faults_of_replica(),
            Role::Node => self.faults_of_node(),
        };
        if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
    }

    fn faults_of_replica(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if matches!(self.index, index::Config::Sqlite(_)) {
            faults.push(
                "index.url: replicas share an index in PostgreSQL: write \
                 postgres://USER@HOST/DATABASE, or run `aptmesh serve`, which needs none"
                    .to_owned(),
            );
        }
        if self.own_api().is_some() {
            faults.push(
                "proxy.sidecar: a replica runs no node of the swarm itself: name the API of the one \
                 that `aptmesh dht` runs, or set neither swarm.key nor swarm.open"
                    .to_owned(),
            );
        }
        faults
    }

    fn faults_of_node(&self) -> Vec<String> {
        let none = self.dht.key.is_none().then(|| {
            "swarm.key: a node is of a swarm: `aptmesh key` makes a key for all its machines; or set \
             swarm.open"
                .to_owned()
        });
        none.into_iter().collect()
    }
}
