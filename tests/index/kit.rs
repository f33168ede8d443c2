//! The parts of the end-to-end kit that are of use here.
#![allow(dead_code, reason = "each test uses its own part of the kit")]

#[path = "../e2e/kit/ca.rs"]
pub mod ca;
#[path = "../e2e/kit/postgres.rs"]
pub mod postgres;

pub use ca::Ca;
