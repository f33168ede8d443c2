//! Settings of the swarm.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use url::Url;

use crate::config::bytes::Bytes;
use crate::config::values::Reader;
use crate::content::card::URLS_MAX;
use crate::content::swarm_key::SwarmKey;
use crate::{dht, swarm};

/// Bytes of a URL on a card.
const URL_MAX: usize = 255;

impl Reader<'_> {
    pub(super) fn dht(&mut self, data: &Path) -> dht::Config {
        dht::Config {
            key: self.swarm_key("swarm.key", "swarm.open"),
            listen: self.addresses("listen.dht"),
            data: data.to_owned(),
            seeds: self.list("swarm.bootstrap"),
            allow_private: self.list("swarm.allow_private"),
            lan: self.flag("swarm.lan"),
            announce: self.flag("swarm.announce"),
            announce_min_size: self.size("swarm.announce_min_size"),
            announce_ttl: self.ttl("swarm.announce_ttl"),
            advertise: self.peer_urls("swarm.advertise"),
            peer: None,
            site: host_name(),
        }
    }

    /// The swarm as the proxy sees it: of the same key as its node.
    pub(super) fn swarm(&mut self, dht: &dht::Config) -> Option<swarm::Config> {
        let sidecar = self.api("proxy.sidecar");
        if sidecar.is_some() && dht.key.is_none() {
            self.faults.push("proxy.sidecar: there is no swarm.key".to_owned());
        }
        let (key, allow_private) = (dht.key.clone()?, dht.allow_private.clone());
        Some(swarm::Config { key, sidecar, allow_private })
    }

    fn api(&mut self, key: &str) -> Option<Url> {
        let url: Url = self.optional(key)?;
        let fits = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none();
        if !fits {
            self.fault(key, url.as_str(), "write http://ADDRESS:PORT");
        }
        Some(url)
    }

    fn ttl(&mut self, key: &str) -> Duration {
        let ttl = self.some_time(key);
        if ttl > dht::TTL_MAX {
            let text = self.text(key);
            self.fault(key, &text, format!("at most {:?}", dht::TTL_MAX));
        }
        ttl
    }

    /// A list that must not be empty.
    fn addresses(&mut self, key: &str) -> Vec<SocketAddr> {
        let addresses = self.list(key);
        if self.text(key).split(',').all(|item| item.trim().is_empty()) {
            self.fault(key, "", "must not be empty");
        }
        addresses
    }

    /// The swarm's key, or that of the open swarm.
    fn swarm_key(&mut self, key: &str, open: &str) -> Option<SwarmKey> {
        let secret = self.optional(key);
        if self.flag(open) && !self.text(key).is_empty() {
            self.faults.push(format!("{open}: a swarm with a key ({key}) is not open"));
        }
        if self.text(open) == "true" { Some(SwarmKey::open()) } else { secret }
    }

    /// URLs under which others reach us.
    fn peer_urls(&mut self, key: &str) -> Vec<String> {
        let urls: Vec<Url> = self.list(key);
        let fits = |url: &&Url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.as_str().len() <= URL_MAX
        };
        for url in urls.iter().filter(|url| !fits(url)) {
            self.fault(key, url.as_str(), "write http://ADDRESS:PORT");
        }
        if urls.len() > URLS_MAX {
            let text = self.text(key);
            self.fault(key, &text, format!("{URLS_MAX} at most"));
        }
        urls.iter().map(|url| url.as_str().trim_end_matches('/').to_owned()).collect()
    }

    /// Bytes, with a unit.
    pub(super) fn size(&mut self, key: &str) -> u64 {
        let text = self.text(key);
        let parsed = text.parse().unwrap_or_else(|why| {
            self.fault(key, &text, why);
            Bytes::default()
        });
        parsed.0
    }
}

/// What people call this machine.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
