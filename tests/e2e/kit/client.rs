//! An HTTP/1.1 client that hides nothing: no redirects, no retries, no pool,
//! and a broken body is reported instead of repaired.

use super::{Headers, find_header, hex};
use rustix::net::{AddressFamily, SocketType};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// Status line and header fields; status 0 when no answer came at all.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub status: u16,
    /// The words after the status, or the reason why there is no answer.
    pub reason: String,
    pub headers: Headers,
    /// From sending the request to the first byte of the answer.
    pub first_byte: Duration,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }
}

/// A whole answer; status 0 when no answer came at all.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub reason: String,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// The body ended where its framing says. A body that only ends with the
    /// connection is never complete: apt could not tell it from a broken one.
    pub complete: bool,
    /// Why the answer is not complete.
    pub trouble: Option<String>,
    /// From sending the request to the first byte of the answer.
    pub first_byte: Duration,
    /// From sending the request to the last byte of the answer.
    pub total: Duration,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }
}

/// GET on a new connection.
pub fn get(addr: SocketAddr, target: &str) -> Reply {
    request(addr, "GET", target, &[])
}

/// One request on a new connection.
pub fn request(addr: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
    match Connection::try_open(addr) {
        Ok(mut connection) => connection.request(method, target, headers),
        Err(trouble) => Reply {
            reason: trouble.to_string(),
            trouble: Some(trouble.to_string()),
            ..Reply::default()
        },
    }
}

/// GET of something big: the reply without its body, the SHA-256 of the body
/// and its length.
pub fn download_hash(
    addr: SocketAddr,
    target: &str,
    headers: &[(&str, &str)],
) -> (Reply, String, u64) {
    let mut connection = Connection::open(addr);
    connection.send("GET", target, headers);
    let mut hash = Sha256::new();
    let mut len = 0;
    let reply = connection.read_reply_into("GET", |bytes| {
        hash.update(bytes);
        len += bytes.len() as u64;
    });
    (reply, hex(&hash.finalize()), len)
}

/// Where the body being read will end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Ended,
    Sized { left: u64 },
    Chunked { left: u64, first: bool },
    UntilClose,
}

/// One connection, on which requests and answers can be taken apart.
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// Method and time of the requests that are not answered yet.
    sent: VecDeque<(String, Instant)>,
    /// When the request being answered was sent.
    asked: Instant,
    body: Body,
}

impl Connection {
    pub fn open(addr: SocketAddr) -> Self {
        Self::try_open(addr).expect("a connection")
    }

    fn try_open(addr: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect(addr)?)
    }

    /// As a client that has another loopback address.
    pub fn open_from(ip: &str, addr: SocketAddr) -> Self {
        let ip: IpAddr = ip.parse().expect("an IP address");
        let socket =
            rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&socket, &SocketAddr::from((ip, 0))).expect("a loopback address");
        rustix::net::connect(&socket, &addr).expect("a connection");
        Self::over(socket.into()).expect("a connection")
    }

    fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: BufReader::with_capacity(64 * 1024, stream),
            sent: VecDeque::new(),
            asked: Instant::now(),
            body: Body::Ended,
        })
    }

    /// How long a read may take before it counts as broken.
    pub fn set_read_timeout(&mut self, patience: Duration) {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(patience)).expect("a timeout");
    }

    /// GET, and the answer to it.
    pub fn get(&mut self, target: &str) -> Reply {
        self.request("GET", target, &[])
    }

    /// One request, and the answer to it.
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
        self.send(method, target, headers);
        self.read_reply(method)
    }

    /// Sends a request head; adds `Host: cache` unless a Host is given.
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            head.push_str("Host: cache\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.sent.push_back((method.to_owned(), Instant::now()));
        self.send_raw(head.as_bytes());
    }

    /// Sends anything. That the other side hung up shows when reading.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Reads the head of the next answer, without its body.
    pub fn read_head(&mut self) -> Head {
        let (method, asked) =
            self.sent.pop_front().unwrap_or_else(|| ("GET".to_owned(), Instant::now()));
        self.asked = asked;
        self.read_head_of(&method)
    }

    fn read_head_of(&mut self, method: &str) -> Head {
        self.body = Body::Ended;
        match self.parse_head() {
            Err(trouble) => Head { reason: trouble.to_string(), ..Head::default() },
            // An interim answer: the real one follows.
            Ok(head) if (100..200).contains(&head.status) && head.status != 101 => {
                self.read_head_of(method)
            }
            Ok(head) => {
                self.body = body_of(method, &head);
                head
            }
        }
    }

    fn parse_head(&mut self) -> io::Result<Head> {
        uninterrupted(|| self.stream.fill_buf().map(<[u8]>::len))?;
        let first_byte = self.asked.elapsed();
        let line = self.read_line()?;
        let mut words = line.splitn(3, ' ');
        let status = words
            .next()
            .filter(|version| version.starts_with("HTTP/1."))
            .and_then(|_| words.next()?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not an answer: {line:?}")))?;
        let reason = words.next().unwrap_or_default().to_owned();
        let mut headers = Headers::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| io::Error::other(format!("not a header field: {line:?}")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Head { status, reason, headers, first_byte })
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Reads `count` more bytes of the body, fewer only where it ends.
    pub fn read_body_some(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut have = 0;
        while have < count {
            match self.read_body(&mut bytes[have..]) {
                Ok(0) | Err(_) => break,
                Ok(more) => have += more,
            }
        }
        bytes.truncate(have);
        bytes
    }

    /// Reads the next answer, whole. `method` is that of its request.
    pub fn read_reply(&mut self, method: &str) -> Reply {
        let mut body = Vec::new();
        let mut reply = self.read_reply_into(method, |bytes| body.extend_from_slice(bytes));
        reply.body = body;
        reply
    }

    fn read_reply_into(&mut self, method: &str, mut take: impl FnMut(&[u8])) -> Reply {
        if let Some((_, asked)) = self.sent.pop_front() {
            self.asked = asked;
        }
        let head = self.read_head_of(method);
        let until_close = self.body == Body::UntilClose;
        let mut buffer = vec![0; 64 * 1024];
        let trouble = loop {
            match self.read_body(&mut buffer) {
                Ok(0) if head.status == 0 => break Some(head.reason.clone()),
                Ok(0) if until_close => break Some("the end is not marked".to_owned()),
                Ok(0) => break None,
                Ok(count) => take(&buffer[..count]),
                Err(trouble) => break Some(trouble.to_string()),
            }
        };
        Reply {
            status: head.status,
            reason: head.reason,
            headers: head.headers,
            body: Vec::new(),
            complete: trouble.is_none(),
            trouble,
            first_byte: head.first_byte,
            total: self.asked.elapsed(),
        }
    }

    /// Reads decoded body bytes; 0 at the end, an error where it is broken.
    fn read_body(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.body {
                Body::Ended | Body::Sized { left: 0 } => return Ok(0),
                Body::UntilClose => return uninterrupted(|| self.stream.read(buffer)),
                Body::Sized { left } => {
                    let count = self.read_at_most(buffer, left)?;
                    self.body = Body::Sized { left: left - count as u64 };
                    return Ok(count);
                }
                Body::Chunked { left: 0, first } => self.body = self.next_chunk(first)?,
                Body::Chunked { left, .. } => {
                    let count = self.read_at_most(buffer, left)?;
                    self.body = Body::Chunked { left: left - count as u64, first: false };
                    return Ok(count);
                }
            }
        }
    }

    fn read_at_most(&mut self, buffer: &mut [u8], left: u64) -> io::Result<usize> {
        let most = buffer.len().min(left.try_into().unwrap_or(usize::MAX));
        let count = uninterrupted(|| self.stream.read(&mut buffer[..most]))?;
        if count == 0 && most > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }

    /// Reads what is between two chunks, and the trailer after the last one.
    fn next_chunk(&mut self, first: bool) -> io::Result<Body> {
        if !first && !self.read_line()?.is_empty() {
            return Err(io::Error::other("a chunk is longer than it said"));
        }
        let line = self.read_line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let left = u64::from_str_radix(size, 16)
            .map_err(|_| io::Error::other(format!("not a chunk size: {line:?}")))?;
        if left > 0 {
            return Ok(Body::Chunked { left, first: false });
        }
        while !self.read_line()?.is_empty() {}
        Ok(Body::Ended)
    }
}

fn body_of(method: &str, head: &Head) -> Body {
    let length = head.header("content-length").and_then(|v| v.parse().ok());
    let chunked =
        head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    match length {
        _ if method == "HEAD" || matches!(head.status, 101 | 204 | 304) => Body::Ended,
        _ if chunked => Body::Chunked { left: 0, first: true },
        Some(left) => Body::Sized { left },
        None => Body::UntilClose,
    }
}

/// A machine that was put to sleep and woken interrupts reads that have a time limit.
pub fn uninterrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
