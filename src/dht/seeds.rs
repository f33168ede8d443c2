//! Where a node first looks for others: addresses, and names of which all addresses count and which are
//! resolved again and again, as those behind them change.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::telemetry::edge::Edge;

/// The port that is meant when none is named.
const PORT: u16 = 9980;
/// How often names are resolved by a node that has found others.
const AT_REST: Duration = Duration::from_secs(30);
/// By one that has not, at first; then twice as long, up to this.
const ALONE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// For how long a resolver is waited for.
const RESOLVER_MAX: Duration = Duration::from_secs(10);
/// Addresses of one name.
const ADDRESSES_MAX: usize = 256;

/// One place to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    host: String,
    port: u16,
}

impl FromStr for Seed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "write HOST, HOST:PORT, ADDRESS:PORT or [ADDRESS]:PORT";
        let address = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if let Ok(address) = address {
            return Ok(Self { host: address.to_string(), port: PORT });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| WHY)?),
            None => (text, PORT),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || port == 0 || !host.chars().all(is_name) {
            return Err(WHY);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Tells where the seeds are, again and again, more often while the node is `alone`. Ends with who
/// listens.
pub(super) async fn resolve_all(
    seeds: Vec<Seed>,
    mut alone: watch::Receiver<bool>,
    found: mpsc::Sender<Vec<SocketAddr>>,
) {
    let mut pause = ALONE.0;
    let seeds: Vec<_> = seeds.into_iter().map(|seed| (seed, Edge::default())).collect();
    loop {
        let mut addresses = Vec::new();
        for (seed, trouble) in &seeds {
            addresses.extend(resolve(seed, trouble).await);
        }
        if found.send(addresses).await.is_err() {
            return;
        }
        if *alone.borrow_and_update() {
            sleep(pause).await;
            pause = (2 * pause).min(ALONE.1);
        } else {
            pause = ALONE.0;
            tokio::select! {
                () = sleep(AT_REST) => {}
                changed = alone.changed() => if changed.is_err() { return },
            }
        }
    }
}

async fn resolve(seed: &Seed, trouble: &Edge) -> Vec<SocketAddr> {
    let error = match timeout(RESOLVER_MAX, lookup_host((seed.host.as_str(), seed.port))).await {
        Ok(Ok(addresses)) => {
            if trouble.ends() {
                tracing::info!(%seed, "the name of a seed is known again");
            }
            return addresses.take(ADDRESSES_MAX).collect();
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the resolver does not answer".to_owned(),
    };
    if trouble.begins() {
        tracing::warn!(%seed, error, "could not resolve the name of a seed");
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read() {
        let table = [
            ("dht.example.org", "dht.example.org:9980"),
            ("dht.example.org:1", "dht.example.org:1"),
            ("192.0.2.1", "192.0.2.1:9980"),
            ("192.0.2.1:2", "192.0.2.1:2"),
            ("2001:db8::1", "2001:db8::1:9980"),
            ("[2001:db8::1]:3", "2001:db8::1:3"),
        ];
        for (text, seed) in table {
            assert_eq!(text.parse::<Seed>().unwrap().to_string(), seed, "{text}");
        }
        for bad in ["", ":1", "a:b", "a:0", "a/b", "http://a", "a:70000", "a b"] {
            assert!(bad.parse::<Seed>().is_err(), "{bad}");
        }
    }
}
