//! Bytes and their names: digests and byte ranges. No I/O, no clock.

pub mod digest;
pub mod range;
