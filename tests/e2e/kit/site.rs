//! A whole site of a swarm as one process, `aptmesh serve` with a swarm key, on a loopback address of its
//! own: the ports are those that users have.

use super::lan::{Host, Lan};
use super::node::{Api, own_ip};
use super::proxy::{self, Proxy};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::Path;

/// How a site is to be started.
pub struct Build {
    ip: String,
    proxy: proxy::Build,
}

impl Build {
    /// Bootstraps from there.
    pub fn seeds(self, seeds: &[&Site]) -> Self {
        self.bootstrap(&seeds.iter().map(|seed| seed.dht()).collect::<Vec<_>>())
    }

    /// Bootstraps from nodes of whatever kind.
    pub fn bootstrap(self, seeds: &[SocketAddr]) -> Self {
        let seeds: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        self.env("SWARM_BOOTSTRAP", seeds.join(","))
    }

    /// Others are told that peer port and node are at this address.
    pub fn hidden_at(self, ip: &str) -> Self {
        self.env("LISTEN_PEER", format!("{ip}:9979")).env("LISTEN_DHT", format!("{ip}:9980"))
    }

    /// A setting, without `APTMESH_`. The last one of a name counts.
    pub fn env(self, name: &str, value: impl Into<OsString>) -> Self {
        Self { proxy: self.proxy.env(&format!("APTMESH_{name}"), value), ..self }
    }

    /// Other variables, such as those of a receiver of traces.
    pub fn variables(self, variables: Vec<(&'static str, String)>) -> Self {
        Self { proxy: self.proxy.variables(variables), ..self }
    }

    /// Has a machine's name of its own, which other sites call it by.
    pub fn named(self, name: &str) -> Self {
        let script = "hostname \"$0\" && exec \"$@\"";
        let prefix = ["unshare", "--uts", "sh", "-c", script, name].map(str::to_owned);
        Self { proxy: self.proxy.prefix(prefix.into()), ..self }
    }

    pub fn arg(self, arg: impl Into<OsString>) -> Self {
        Self { proxy: self.proxy.arg(arg), ..self }
    }

    /// See [`proxy::Build::authorities`].
    pub fn authorities(self, file: &Path) -> Self {
        Self { proxy: self.proxy.authorities(file), ..self }
    }

    pub fn start(self) -> Site {
        let api = Api::at(at(&self.ip, 9981));
        Site { ip: self.ip, proxy: self.proxy.start(), api }
    }
}

/// A site under test; all that a [`Proxy`] can be asked, it can. It is killed when it is dropped, and its
/// log is printed when the test fails.
pub struct Site {
    pub ip: String,
    proxy: Proxy,
    api: Api,
}

impl Site {
    /// A site of the swarm with this key.
    pub fn build(key: &str) -> Build {
        Self::build_at(own_ip(), key)
    }

    /// One on a machine of a network of the test's own.
    pub fn build_on(lan: &Lan, host: &Host, key: &str) -> Build {
        let Build { ip, proxy } = Self::build_at(host.ip.clone(), key);
        Build { ip, proxy: proxy.prefix(host.prefix()) }
            .env("SWARM_ALLOW_PRIVATE", lan.network())
            .env("MIRROR_ALLOW_PRIVATE", lan.network())
    }

    fn build_at(ip: String, key: &str) -> Build {
        let listen = |port: u16| at(&ip, port).to_string();
        let proxy = Proxy::build()
            .at(ip.parse::<IpAddr>().expect("an address"))
            .env("APTMESH_LISTEN_PEER", listen(9979))
            .env("APTMESH_LISTEN_DHT", listen(9980))
            .env("APTMESH_LISTEN_SIDECAR", listen(9981))
            .env("APTMESH_SWARM_KEY", key)
            .env("APTMESH_SWARM_ALLOW_PRIVATE", "127.0.0.0/8,::1/128");
        Build { ip, proxy }
    }

    /// Starts one that bootstraps from these.
    pub fn start(key: &str, seeds: &[&Site]) -> Self {
        Self::build(key).seeds(seeds).start()
    }

    /// Where other sites' nodes find its node.
    pub fn dht(&self) -> SocketAddr {
        at(&self.ip, 9980)
    }

    /// Where other sites fetch blobs.
    pub fn peer(&self) -> SocketAddr {
        at(&self.ip, 9979)
    }

    /// The same, as its card should tell.
    pub fn peer_url(&self) -> String {
        format!("http://{}", self.peer())
    }

    /// Where the API of its node is.
    pub fn api(&self) -> SocketAddr {
        self.api.address()
    }

    /// The API of its node.
    pub fn node(&self) -> &Api {
        &self.api
    }

    /// Starts it again, with the same data and addresses.
    pub fn restart(&mut self) {
        self.proxy.restart_in_place();
    }
}

impl Deref for Site {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}
