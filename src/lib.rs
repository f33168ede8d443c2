//! aptmesh: the APT cache that a whole site shares.
//!
//! The layers, bottom-up: a module uses only what stands before it in this list, and
//! `tests/architecture.rs` keeps it so. ARCHITECTURE.md tells more.

pub mod content;

pub mod archive;

pub mod trust;

pub mod telemetry;

pub mod index;
pub mod mirror;
pub mod store;
pub mod swarm;

pub mod engine;

pub mod dht;

pub mod announce;

pub mod web;

pub mod config;

pub mod cli;
