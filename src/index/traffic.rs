//! What went through a site, in sum.

/// Bytes, by where they came from or went to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bodies from mirrors.
    pub from_mirrors: u64,
    /// Bodies from other sites.
    pub from_peers: u64,
    /// Bodies from other replicas.
    pub from_replicas: u64,
    /// What clients got out of the store.
    pub from_store: u64,
    /// Bodies to other sites.
    pub to_peers: u64,
    /// Bodies to other replicas.
    pub to_replicas: u64,
}

impl Traffic {
    /// How many there are of each, in the order of the struct.
    #[must_use]
    pub fn parts(&self) -> [u64; 6] {
        let Self { from_mirrors, from_peers, from_replicas, from_store, to_peers, to_replicas } =
            *self;
        [from_mirrors, from_peers, from_replicas, from_store, to_peers, to_replicas]
    }

    /// The reverse of [`Traffic::parts`].
    #[must_use]
    pub fn of_parts(parts: [u64; 6]) -> Self {
        let [from_mirrors, from_peers, from_replicas, from_store, to_peers, to_replicas] = parts;
        Self { from_mirrors, from_peers, from_replicas, from_store, to_peers, to_replicas }
    }

    /// What came since it was `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    /// With `more`.
    #[must_use]
    pub fn and(&self, more: &Self) -> Self {
        self.with(more, u64::saturating_add)
    }

    fn with(&self, other: &Self, each: fn(u64, u64) -> u64) -> Self {
        let (mut parts, others) = (self.parts(), other.parts());
        parts.iter_mut().zip(others).for_each(|(part, other)| *part = each(*part, other));
        Self::of_parts(parts)
    }
}
