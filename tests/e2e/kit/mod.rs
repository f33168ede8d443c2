//! What the end-to-end tests are built of: an origin that misbehaves on
//! demand, a link that is far away, a client that hides nothing, the real
//! proxy binary and the real apt.
//!
//! It is written with plain threads and `std::net`, so that it shares no code
//! with the proxy: a mistake in an HTTP library can not cancel itself out.
#![allow(dead_code, unused_imports, reason = "each test uses its own part of the kit")]

pub mod abyss;
pub mod apt;
pub mod balancer;
pub mod ca;
pub mod chromium;
pub mod client;
pub mod door;
pub mod fleet;
pub mod lan;
pub mod link;
pub mod member;
pub mod mirror;
pub mod node;
pub mod otlp;
pub mod postgres;
pub mod prometheus;
pub mod proxy;
pub mod remote;
mod selftest;
pub mod signer;
pub mod site;

pub use abyss::Abyss;
pub use apt::{Apt, HostArchive, LocalArchive, Run};
pub use balancer::Balancer;
pub use ca::Ca;
pub use chromium::Chromium;
pub use client::{Connection, Head, Reply, download_hash, get, request, uninterrupted};
pub use fleet::Fleet;
pub use link::Link;
pub use mirror::{Fault, File, Mirror, Seen};
pub use node::Node;
pub use otlp::Otlp;
pub use postgres::{PgBouncer, Postgres};
pub use proxy::{Proxy, aptmesh};
pub use remote::Remote;
pub use signer::Signer;
pub use site::Site;

use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// Header fields in the order they came.
pub type Headers = Vec<(String, String)>;

/// The value of the first header field called `name`, in any letter case.
pub fn find_header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Bytes that look random, do not compress, and are the same in every run.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let scrambled = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        bytes.extend_from_slice(&scrambled.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The SHA-256 of `bytes` as lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex digits of a finished digest.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until `holds` says yes; panics with `what` when it never does.
pub fn wait_until(timeout: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {timeout:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
