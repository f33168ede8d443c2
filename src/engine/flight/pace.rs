//! How fast mirrors have been lately: what peers have to beat.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// Hosts of which it is remembered.
const HOSTS_MAX: usize = 256;
/// Bytes by which a rate is measured: less may lie in a buffer.
const SAMPLE: u64 = 512 * 1024;
/// A new measurement counts for one of so many.
const WEIGHT: u64 = 3;

/// Bytes per second, by host.
#[derive(Default)]
pub(in crate::engine) struct Paces(Mutex<HashMap<String, u64>>);

impl Paces {
    pub(super) fn note(&self, host: &str, rate: u64) {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = paces.get_mut(host) {
            *known = (*known * (WEIGHT - 1) + rate) / WEIGHT;
        } else {
            if paces.len() >= HOSTS_MAX {
                paces.clear();
            }
            paces.insert(host.to_owned(), rate);
        }
    }

    pub(in crate::engine) fn of(&self, host: &str) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied()
    }
}

/// Bytes per second.
pub(super) fn per_second(bytes: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    bytes.saturating_mul(1000) / millis.max(1)
}

/// Measures one body.
#[derive(Default)]
pub(super) struct Watch {
    bytes: u64,
    waited: Duration,
}

impl Watch {
    /// Something came that was waited for since `since`; the rate in bytes per second, now and then.
    pub(super) fn saw<E>(
        &mut self,
        next: &Result<Option<Bytes>, E>,
        since: Instant,
    ) -> Option<u64> {
        let Ok(Some(chunk)) = next else { return None };
        self.bytes += chunk.len() as u64;
        self.waited += since.elapsed();
        (self.bytes >= SAMPLE).then(|| {
            let Self { bytes, waited } = std::mem::take(self);
            per_second(bytes, waited)
        })
    }
}
