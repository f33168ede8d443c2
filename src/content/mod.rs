//! Bytes and their names: digests, byte ranges, versions; what a swarm's sites tell each other about
//! what they have; which addresses are not for everybody. No I/O, no clock.

pub mod card;
pub mod digest;
pub mod filter;
mod fuse;
pub mod range;
mod reading;
pub mod special;
pub mod swarm_key;
pub mod validators;
