//! Leases: the right to do what a site does once. Whoever holds one renews it; one that is not renewed
//! expires, and the next holder's has a greater generation, which fences the last one off. Time is
//! the index's own, so that clocks of processes need not agree.

use thiserror::Error;

/// A lease that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it is the right to.
    pub name: String,
    /// Greater than that of all who held it before.
    pub generation: u64,
}

/// What came of trying to take a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is ours.
    Granted {
        /// The lease.
        lease: Lease,
        /// What the last holder told, if it never gave the lease up.
        note: Option<String>,
    },
    /// Another holds it.
    Held,
}

/// A lease that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The lease.
    pub lease: Lease,
    /// What its holder tells.
    pub note: Option<String>,
}

/// A lease to be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The lease.
    pub lease: Lease,
    /// What is told from now on; `None`: what was told before.
    pub note: Option<String>,
}

/// A lease that was renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Its name.
    pub name: String,
    /// Whether others looked at it lately: see [`WANTED_SECONDS`].
    pub is_wanted: bool,
}

/// A write under a lease that is lost: nothing was written.
#[derive(Debug, Error)]
#[error("another process took over")]
pub struct FencedOff;

/// For how many seconds a lease counts as wanted by who looked at it; it is noted once a second.
pub const WANTED_SECONDS: f64 = 3.0;
