//! What other sites are told of this one: which blobs they may hear of, and the have-filter of these.

use crate::content::digest::Sha256;

/// Changes that are told of at once: of more, it is quicker to look through all blobs.
pub const CHANGES_MAX: usize = 20_000;

/// Deltas from before that are kept when the have-filter is built anew: peers that come seldomer take the
/// whole.
pub const DELTAS_KEPT: usize = 64;

/// A blob that other sites may be told of, since a list names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tellable {
    /// Which.
    pub digest: Sha256,
    /// Bytes.
    pub size: u64,
}

/// What came and what went since one looked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// From where to go on the next time, in words of the index's own.
    pub mark: String,
    /// Each blob that changed, and its size; `None`: it is not to be told of any more. Some may not have
    /// changed at all.
    pub blobs: Vec<(Sha256, Option<u64>)>,
    /// Whether there are more than are told, so that all blobs have to be looked through.
    pub are_too_many: bool,
}

/// The site's have-filter, in the bytes that peers are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFilter {
    /// As it was built last.
    pub whole: Vec<u8>,
    /// How it changed before and since, in order.
    pub deltas: Vec<Vec<u8>>,
}

/// A new generation of the have-filter.
#[derive(Clone, Copy, Debug)]
pub struct NewFilter<'a> {
    /// Which.
    pub generation: u64,
    /// All of it, if it was built anew; then no more than the last [`DELTAS_KEPT`] deltas from before
    /// are kept.
    pub whole: Option<&'a [u8]>,
    /// What leads to it from the generation before; `None`: that is not known.
    pub delta: Option<&'a [u8]>,
}
