//! Settings: read from flags, environment, file and defaults, in that order, and turned into each
//! component's own `Config`. All faults are told at once.

pub mod bytes;
mod keyrings;
mod keys;
mod otel;
pub mod roles;
mod sources;
mod swarm;
mod values;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

pub use self::keys::{KEYS, Key};
pub use self::sources::{Flags, Sources};
use crate::archive::groups::Groups;
use crate::engine::prefetch;
use crate::telemetry::{logs, traces};
use crate::{dht, engine, index, mirror, store};

/// More connections than one process can serve.
const CONNECTIONS_MAX: usize = 1_000_000;
/// More connections to the database than its server is well with.
const POOL_MAX: usize = 1000;

/// Every component's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients and operators connect.
    pub listen: Listen,
    /// How many bytes a second other sites get in all; 0: as many as they can take.
    pub upload_limit: u64,
    /// Who may be a client.
    pub clients: Vec<IpNet>,
    /// Where blobs lie.
    pub store: store::Config,
    /// Which index.
    pub index: index::Config,
    /// For how long a request waits for it in all.
    pub patience: Duration,
    /// How mirrors are asked.
    pub mirror: mirror::Config,
    /// How requests are answered.
    pub engine: engine::Config,
    /// Which mirrors are one archive.
    pub groups: Groups,
    /// Which swarm the proxy is of, if any.
    pub swarm: Option<crate::swarm::Config>,
    /// How the node of the swarm's DHT runs.
    pub dht: dht::Config,
    /// What is logged.
    pub log: logs::Config,
    /// Which requests are traced, by OpenTelemetry's own variables.
    pub traces: traces::Config,
    /// The effective settings, as text by key, in the order of [`KEYS`].
    pub effective: Vec<(&'static Key, String)>,
}

/// Addresses to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// For apt clients.
    pub proxy: Vec<SocketAddr>,
    /// For operators.
    pub admin: SocketAddr,
    /// For other replicas and other sites; `None`: none of them knows of this one.
    pub peer: Option<SocketAddr>,
    /// For the proxy of the node.
    pub sidecar: SocketAddr,
    /// Who may say for whom a connection is.
    pub balancers: Vec<IpNet>,
    /// Connections at a time, per address.
    pub connections_max: usize,
    /// For how long newcomers are served after it says that it is not ready any more.
    pub drain_delay: Duration,
}

/// All that is wrong with the settings.
#[derive(Debug, Error)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.join("\n"))
    }
}

impl Listen {
    /// Others are listened to if it `gives` them anything.
    fn read(reader: &mut values::Reader<'_>, gives: bool) -> Self {
        let peer = reader.value("listen.peer");
        Self {
            proxy: without_covered(reader.list("listen.proxy")),
            admin: reader.value("listen.admin"),
            peer: gives.then_some(peer),
            sidecar: reader.value("listen.sidecar"),
            balancers: reader.list("listen.balancers"),
            connections_max: reader.number("listen.connections", CONNECTIONS_MAX),
            drain_delay: reader.duration("listen.drain_delay"),
        }
    }
}

impl Config {
    /// Where the API of the swarm's node is to be, if the proxy runs one itself.
    #[must_use]
    pub fn own_api(&self) -> Option<SocketAddr> {
        let runs_node = self.swarm.as_ref().is_some_and(|swarm| swarm.sidecar.is_none());
        runs_node.then_some(self.listen.sidecar)
    }

    /// Reads the settings from all their sources.
    ///
    /// # Errors
    /// With every unknown key and every bad value.
    pub fn read(sources: &Sources) -> Result<Self, Faults> {
        let (texts, mut faults) = sources.gather();
        let mut reader = values::Reader { texts: &texts, faults: &mut faults };
        let data: PathBuf = reader.value("data.dir");
        let groups = reader.groups("archive.groups");
        let keyring = reader.keyring("archive.keyring");
        let folders = reader.folders("store.folders", &data);
        let advertise = reader.advertised("proxy.advertise");
        let dht = reader.dht(&data);
        let gives = advertise.is_some() || (dht.key.is_some() && dht.announce);
        let config = Self {
            listen: Listen::read(&mut reader, gives),
            upload_limit: reader.upload_limit("swarm.upload_limit"),
            clients: reader.list("clients.allow"),
            index: reader.index("index.url", &data),
            patience: reader.some_time("index.patience"),
            mirror: mirror_of(&mut reader, &groups),
            groups: groups.clone(),
            engine: engine::Config {
                recheck_after: reader.duration("mirror.recheck_after"),
                judge: engine::suites::judge::Config {
                    verify: reader.verify("archive.verify"),
                    scopes: reader.scopes("archive.groups", &groups, &keyring),
                    keyring,
                },
                room: engine::volume::room::Config {
                    limits: engine::volume::limits::Limits {
                        quota: reader.quota("store.quota"),
                        min_free: reader.min_free("store.min_free"),
                    },
                    pins: reader.list("store.pins"),
                },
                prefetch: prefetch::Config {
                    budget: reader.bytes("prefetch.budget"),
                    rate: reader.bytes("prefetch.rate"),
                    hours: prefetch::Hours::joined(reader.list("prefetch.hours")),
                },
                scrub: engine::volume::upkeep::Config {
                    rate: reader.rate("store.scrub_rate"),
                    interval: reader.duration("store.scrub_interval"),
                },
                folders: engine::volume::folders::Config { roots: folders, own: data.clone() },
                fellows: engine::fellows::Config { advertise },
                announced_from: reader.size("swarm.announce_min_size"),
                give: engine::give::Config {
                    // The port may be open for fellows all the same.
                    swarm_key: dht.key.clone().filter(|_| dht.announce),
                },
            },
            swarm: reader.swarm(&dht),
            dht,
            store: store::Config { dir: data },
            log: logs::Config {
                format: reader.log_format("log.format"),
                level: reader.log_level("log.level"),
            },
            traces: otel::read(&sources.environment),
            effective: KEYS
                .iter()
                .map(|key| (key, texts.get(key.name).cloned().unwrap_or_default()))
                .collect(),
        };
        if faults.is_empty() { Ok(config) } else { Err(Faults(faults)) }
    }
}

/// `[::]` takes IPv4 too: `0.0.0.0` beside it would find the port taken.
fn without_covered(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let all = addresses.clone();
    let is_covered = |address: &SocketAddr| {
        let whole = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        address.ip() == Ipv4Addr::UNSPECIFIED && address.port() != 0 && all.contains(&whole)
    };
    addresses.retain(|address| !is_covered(address));
    addresses
}

fn mirror_of(reader: &mut values::Reader<'_>, groups: &Groups) -> mirror::Config {
    mirror::Config {
        guard: mirror::guard::Guard {
            allow: reader.list("mirror.allow"),
            allow_private: reader.list("mirror.allow_private"),
        },
        ca_file: reader.optional("mirror.ca_file"),
        proxy: reader.proxy("mirror.proxy"),
        timeout: reader.some_time("mirror.timeout"),
        connect_ports: reader.list("mirror.connect_ports"),
        groups: groups.clone(),
        offline: reader.flag("mirror.offline"),
        pseudonym: values::pseudonym(),
    }
}
