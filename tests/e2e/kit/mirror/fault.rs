//! The ways in which one answer can go wrong.

use std::time::Duration;

/// What happens to one request instead of the correct answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The correct answer (to let a request pass in a script).
    None,
    /// An error page with this status.
    Status(u16),
    /// The full Content-Length, that many body bytes, then a plain close.
    Cut { after: usize },
    /// That many body bytes, then silence, then a plain close.
    Stall { after: usize, for_: Duration },
    /// Silence before the head; the answer that follows is correct.
    StallHead(Duration),
    /// The correct answer at this speed.
    Trickle { bytes_per_second: u64 },
    /// 302 to this location.
    Redirect(String),
    /// Another status of the 3xx class, to this location.
    RedirectAs(u16, String),
    /// The correct body under a false Content-Length, then a close.
    WrongLength { declared: usize },
    /// 200 with a page in HTML, like the log-in page of a hotel.
    Html,
    /// A close without any answer.
    Refuse,
}
