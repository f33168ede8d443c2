//! A request as it came over the wire.

use crate::kit::{Headers, find_header};
use std::io::{self, BufRead, Read};

#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// The target as received.
    pub target: String,
    pub http10: bool,
    pub headers: Headers,
}

impl Asked {
    /// The next request of a connection; `None` when there are no more.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(line) = read_line(from)? else {
            return Ok(None);
        };
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some(version)) =
            (words.next(), words.next(), words.next())
        else {
            return Err(io::Error::other(format!("not a request: {line}")));
        };
        let mut asked = Self {
            method: method.to_owned(),
            target: target.to_owned(),
            http10: version == "HTTP/1.0",
            headers: Headers::new(),
        };
        while let Some(line) = read_line(from)?.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            asked.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        asked.skip_body(from)?;
        Ok(Some(asked))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }

    pub fn wants_close(&self) -> bool {
        self.http10
            || self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// No test sends a body that matters, but it must not look like the next
    /// request.
    fn skip_body(&self, from: &mut impl BufRead) -> io::Result<()> {
        let length = self.header("content-length").and_then(|v| v.parse().ok());
        io::copy(&mut from.take(length.unwrap_or(0)), &mut io::sink())?;
        Ok(())
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

/// The path that a target names: without scheme, host and query, decoded.
pub fn path_of(target: &str) -> String {
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let path = target.split('?').next().unwrap_or_default();
    let mut decoded = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    let path = String::from_utf8_lossy(&decoded);
    format!("/{}", path.trim_start_matches('/'))
}
