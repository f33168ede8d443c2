//! What a correct server answers, before any fault is applied.

use super::asked::Asked;
use super::file::{File, Framing};
use crate::kit::Headers;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// An answer that is ready to be sent.
pub struct Answer {
    pub status: u16,
    pub headers: Headers,
    pub bytes: Arc<[u8]>,
    pub part: Range<usize>,
    pub framing: Framing,
    /// The Content-Length, when it is not the true one.
    pub declared: Option<usize>,
    pub rate: Option<u64>,
    pub http10: bool,
    pub close: bool,
    pub head_delay: Duration,
    /// Body bytes to send at most, and the silence after them.
    pub cut: Option<(usize, Duration)>,
}

impl Answer {
    /// A small page that says what the status means.
    pub fn page(status: u16, kind: &str, text: &str) -> Self {
        let bytes: Arc<[u8]> = text.as_bytes().into();
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), kind.to_owned())],
            part: 0..bytes.len(),
            bytes,
            framing: Framing::Length,
            declared: None,
            rate: None,
            http10: false,
            close: false,
            head_delay: Duration::ZERO,
            cut: None,
        }
    }

    pub fn status(status: u16) -> Self {
        Self::page(status, "text/plain", &format!("{}\n", reason(status)))
    }

    /// The correct answer to a GET or HEAD for `file`.
    pub fn for_file(file: &File, asked: &Asked) -> Self {
        let whole = file.bytes.len();
        let (status, part) = if is_unchanged(file, asked) {
            (304, 0..0)
        } else {
            match wanted_range(file, asked) {
                Wanted::Whole => (200, 0..whole),
                Wanted::Part(part) => (206, part),
                Wanted::Impossible => (416, 0..0),
            }
        };
        let mut answer = Self {
            status,
            headers: Headers::new(),
            bytes: file.bytes.clone(),
            part: part.clone(),
            framing: file.framing,
            declared: None,
            rate: file.rate,
            http10: file.http10,
            close: file.close,
            head_delay: file.head_delay,
            cut: None,
        };
        answer.describe(file);
        match status {
            206 => {
                let (first, last) = (part.start, part.end - 1);
                answer.set("Content-Range", &format!("bytes {first}-{last}/{whole}"));
            }
            416 => answer.set("Content-Range", &format!("bytes */{whole}")),
            _ => {}
        }
        answer
    }

    fn describe(&mut self, file: &File) {
        if let Some(date) = file.modified {
            self.set("Last-Modified", &httpdate::fmt_http_date(date));
        }
        if let Some(etag) = &file.etag {
            self.set("ETag", etag);
        }
        if file.ranges {
            self.set("Accept-Ranges", "bytes");
        }
        self.headers.extend_from_slice(&file.extra);
        if self.status != 304 {
            self.set("Content-Type", &file.content_type);
        }
        if let Some(coding) = &file.content_encoding {
            self.set("Content-Encoding", coding);
        }
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Whether a GET is answered with a body (which may be empty).
    pub fn has_body(&self) -> bool {
        !matches!(self.status, 100..200 | 204 | 304)
    }

    /// Status line and header fields.
    pub fn head(&self, closing: bool) -> String {
        let version = if self.http10 { "1.0" } else { "1.1" };
        let mut head = format!("HTTP/{version} {} {}\r\n", self.status, reason(self.status));
        let mut add = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        add("Date", &httpdate::fmt_http_date(SystemTime::now()));
        for (name, value) in &self.headers {
            add(name, value);
        }
        match self.framing {
            _ if !self.has_body() => {}
            Framing::Length => {
                let length = self.declared.unwrap_or(self.part.len());
                add("Content-Length", &length.to_string());
            }
            Framing::Chunked => add("Transfer-Encoding", "chunked"),
            Framing::UntilClose => {}
        }
        if closing {
            add("Connection", "close");
        }
        head.push_str("\r\n");
        head
    }
}

/// Whether the client already has this very file.
fn is_unchanged(file: &File, asked: &Asked) -> bool {
    if let Some(tags) = asked.header("if-none-match") {
        return file.etag.as_ref().is_some_and(|own| {
            let own = own.trim_start_matches("W/");
            tags.split(',')
                .map(|tag| tag.trim().trim_start_matches("W/"))
                .any(|tag| tag == own || tag == "*")
        });
    }
    let since = asked.header("if-modified-since").and_then(seconds_of);
    match (since, file.modified) {
        (Some(since), Some(modified)) => seconds(modified) <= since,
        _ => false,
    }
}

enum Wanted {
    Whole,
    Part(Range<usize>),
    Impossible,
}

fn wanted_range(file: &File, asked: &Asked) -> Wanted {
    let Some(range) = asked
        .header("range")
        .and_then(|value| value.strip_prefix("bytes="))
        .filter(|_| file.ranges && if_range_matches(file, asked))
    else {
        return Wanted::Whole;
    };
    let len = file.bytes.len();
    let Some((first, last)) = range.split_once('-') else {
        return Wanted::Whole;
    };
    let part = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => first..len.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..len,
        (Err(_), Ok(suffix)) if first.is_empty() => len.saturating_sub(suffix)..len,
        // Several ranges or nonsense: a server may ignore those.
        _ => return Wanted::Whole,
    };
    if part.start < part.end { Wanted::Part(part) } else { Wanted::Impossible }
}

/// If-Range asks for a part only of the file that the client began with.
fn if_range_matches(file: &File, asked: &Asked) -> bool {
    let Some(condition) = asked.header("if-range") else {
        return true;
    };
    if !file.if_ranges {
        return true;
    }
    if condition.starts_with('"') {
        return file.etag.as_deref() == Some(condition);
    }
    let date = seconds_of(condition);
    date.is_some() && date == file.modified.map(seconds)
}

fn seconds(date: SystemTime) -> u64 {
    date.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn seconds_of(date: &str) -> Option<u64> {
    httpdate::parse_http_date(date).ok().map(seconds)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        304 => "Not Modified",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Whatever",
    }
}
