//! Trouble that lasts is told when it begins and when it ends, not each time that it is met.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether there is such trouble now.
#[derive(Debug, Default)]
pub struct Edge(AtomicBool);

impl Edge {
    /// There is; whether it has just begun.
    pub fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// There is none; whether it has just ended.
    pub fn ends(&self) -> bool {
        // Nearly always there was none before: that costs no write.
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}
