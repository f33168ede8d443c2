//! HTTP towards clients: listeners, request targets, the proxy and admin surfaces, replies. The
//! only place that knows statuses, and it knows nothing of SQL.

pub mod access;
pub mod admin;
mod ahead;
pub mod balancers;
mod body;
mod conditions;
pub mod connection;
pub mod explain;
pub mod filter;
mod heads;
pub mod listener;
mod page;
pub mod peer;
pub mod phase;
pub mod proxy;
mod reply;
pub mod sidecar;
mod slots;
pub mod status;
mod tunnel;
mod uplink;
mod wire;

/// What this cache calls itself in `Via` and `Cache-Status`.
pub const NAME: &str = "aptmesh";
