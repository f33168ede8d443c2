//! Puts an answer on the wire: framing, speed, and where it breaks off.

use super::answer::Answer;
use super::file::Framing;
use super::seen::Entry;
use super::wire::Wire;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How much is written at once when there is no speed limit.
const SLICE: usize = 256 * 1024;

/// What all connections of a mirror have to share.
#[derive(Default)]
pub struct Line(Mutex<Option<(u64, Instant)>>);

impl Line {
    pub fn limit(&self, bytes_per_second: u64) {
        *self.0.lock().unwrap() = Some((bytes_per_second, Instant::now()));
    }

    /// How much is sent at once.
    fn slice(&self) -> usize {
        self.0.lock().unwrap().map_or(SLICE, |_| 16 * 1024)
    }

    /// For how long so many bytes have to wait for their turn.
    fn turn(&self, bytes: usize) -> Duration {
        let mut line = self.0.lock().unwrap();
        let Some((rate, free_at)) = line.as_mut() else { return Duration::ZERO };
        let now = Instant::now();
        *free_at = (*free_at).max(now) + Duration::from_secs_f64(bytes as f64 / *rate as f64);
        free_at.saturating_duration_since(now)
    }
}

/// Sends head and body. Says whether the connection may serve further
/// requests; an error means that the other side is gone.
pub fn send(
    wire: &mut Wire,
    answer: &Answer,
    entry: &Entry,
    line: &Line,
    close: bool,
) -> io::Result<bool> {
    let closing = close
        || answer.close
        || answer.http10
        || answer.framing == Framing::UntilClose
        || answer.declared.is_some();
    if !wire.pause(answer.head_delay) {
        return Err(gone());
    }
    entry.begin(answer.status);
    wire.write_all(answer.head(closing).as_bytes())?;
    if entry.method != "HEAD" && answer.has_body() {
        entry.begin_body();
        let cut = send_body(wire, answer, entry, line)?;
        if let Some(silence) = cut {
            wire.flush()?;
            wire.pause(silence);
            return Ok(false);
        }
    }
    wire.flush()?;
    entry.finish();
    if closing {
        wire.finish();
    }
    Ok(!closing)
}

/// Sends the body. Some(silence) when it was broken off on purpose.
fn send_body(
    wire: &mut Wire,
    answer: &Answer,
    entry: &Entry,
    line: &Line,
) -> io::Result<Option<Duration>> {
    let whole = &answer.bytes[answer.part.clone()];
    let chunked = answer.framing == Framing::Chunked;
    let body = match answer.cut {
        Some((after, _)) => &whole[..after.min(whole.len())],
        None => whole,
    };
    let slice = answer.rate.map_or(SLICE, |rate| (rate / 100).clamp(1, SLICE as u64) as usize);
    let slice = slice.min(line.slice());
    let start = Instant::now();
    let mut sent = 0;
    for piece in body.chunks(slice) {
        sent += piece.len();
        if let Some(rate) = answer.rate {
            // Against the schedule, not after the last slice: errors of
            // single sleeps must not add up.
            let due = start + Duration::from_secs_f64(sent as f64 / rate as f64);
            if !wire.pause(due.saturating_duration_since(Instant::now())) {
                return Err(gone());
            }
        }
        if !wire.pause(line.turn(piece.len())) {
            return Err(gone());
        }
        if chunked {
            wire.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
        }
        write_counted(wire, piece, entry)?;
        if chunked {
            wire.write_all(b"\r\n")?;
        }
    }
    if let Some((_, silence)) = answer.cut {
        return Ok(Some(silence));
    }
    if chunked {
        wire.write_all(b"0\r\n\r\n")?;
    }
    Ok(None)
}

fn write_counted(wire: &mut Wire, mut piece: &[u8], entry: &Entry) -> io::Result<()> {
    while !piece.is_empty() {
        let count = wire.write(piece)?;
        if count == 0 {
            return Err(gone());
        }
        entry.wrote(count);
        piece = &piece[count..];
    }
    Ok(())
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
