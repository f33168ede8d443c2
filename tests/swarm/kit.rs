//! The parts of the end-to-end kit that are of use here.
#![allow(dead_code, reason = "each test uses its own part of the kit")]

#[path = "../e2e/kit/door.rs"]
pub mod door;
