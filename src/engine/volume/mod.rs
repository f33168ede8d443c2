//! The volume, kept without anybody looking: within its bounds, sound, in step with the index, and
//! full from the start where a site has packages already.
//!
//! - *Bounds:* `limits` says what is missing to keep to them, `promise` is one download's room, `room` makes
//!   it before it is needed, `evict` frees it, `pins` says what stays, `sharers` what other processes promised,
//!   `moves` keeps what comes and what goes apart, `uses` notes what is of use.
//! - *Soundness:* `inspect` tells good blobs from bad, `proof` does so beside serving, `upkeep` in the
//!   background at a `pace`, `adopt` compares volume and index, `tidy` does what is due every few seconds.
//! - *What lies elsewhere:* `walk` meets files, `import` copies them, `folders` serves them in place.

pub mod adopt;
pub mod evict;
pub mod folders;
pub mod import;
pub mod inspect;
pub mod limits;
pub mod moves;
pub(super) mod pace;
pub mod pins;
pub mod promise;
pub(super) mod proof;
pub mod room;
mod sharers;
pub(super) mod tidy;
pub mod upkeep;
pub(super) mod uses;
pub mod walk;
