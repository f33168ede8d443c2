//! Fellows: the other replicas of a site. Some share our volume, some have another, and give of that.

/// Fellows that are told of at once.
pub const FELLOWS_MAX: usize = 16;

/// This replica, as it shows itself to its fellows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Which process.
    pub process: String,
    /// Where fellows reach it; `None`: they do not.
    pub url: Option<String>,
    /// The site's secret, if it has none yet.
    pub new_secret: Vec<u8>,
}

/// What a replica knows of its site.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// By which fellows know each other.
    pub secret: Vec<u8>,
    /// What all of them take for the time: seconds since 1970.
    pub now: f64,
    /// Whether there are any with another volume, who can be reached.
    pub has_fellows: bool,
    /// Where other replicas are reached, on whatever volume; at most [`FELLOWS_MAX`]. For people.
    pub others: Vec<String>,
}

/// Where a blob lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// On our volume.
    pub is_ours: bool,
    /// On another one, which is not lost as far as is known.
    pub is_elsewhere: bool,
    /// Where fellows with another volume that has it are reached; at most [`FELLOWS_MAX`].
    pub urls: Vec<String>,
    /// Bytes, as those tell.
    pub size: Option<u64>,
}
