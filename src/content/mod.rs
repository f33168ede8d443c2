//! Bytes and their names: digests, byte ranges, versions. No I/O, no clock.

pub mod digest;
pub mod range;
pub mod validators;
