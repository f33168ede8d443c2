//! Balancers in front: a connection of theirs may begin with a header that says for whom it is, the PROXY
//! protocol of version 1 or 2 (`doc/proxy-protocol.txt` of haproxy). Nobody else's word counts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use ipnet::IpNet;
use prometheus::IntCounter;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::telemetry::metrics::Metrics;

/// How version 1 begins.
const WORD: &[u8] = b"PROXY ";
/// Bytes of version 1, its line's end included (section 2.1).
const LINE_MAX: usize = 107;
/// How version 2 begins (section 2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;
/// Bytes of version 2, with what follows the addresses: balancers send names of certificates there, which take
/// some hundred.
pub const HEADER_MAX: usize = 4096;
/// For how long the first bytes may take to arrive: as long as the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who they are.
pub struct Balancers {
    networks: Vec<IpNet>,
    malformed: IntCounter,
}

/// What a connection begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Beginning {
    /// More bytes are to tell.
    Unfinished,
    /// No header.
    Other,
    /// A header of so many bytes, and for whom it says that the connection is; `None`: for the balancer.
    Header(usize, Option<SocketAddr>),
}

/// What is wrong with a header.
pub type Fault = &'static str;

impl Balancers {
    /// Those in `networks`.
    #[must_use]
    pub fn new(networks: Vec<IpNet>, metrics: &Metrics) -> Self {
        let malformed = metrics.counter(
            "aptmesh_web_malformed_headers_total",
            "Connections of balancers (listen.balancers) that were closed for a PROXY header that was none.",
        );
        Self { networks, malformed }
    }

    /// Whether a connection from this address may say for whom it is.
    pub(super) fn are_at(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Takes the header off the stream of a balancer at `balancer`: who the client is, and what was read beyond
    /// it. `None` when the connection is to be closed.
    pub(super) async fn client_of(
        &self,
        stream: &mut TcpStream,
        balancer: SocketAddr,
    ) -> Option<(SocketAddr, BytesMut)> {
        let mut bytes = BytesMut::with_capacity(HEADER_MAX);
        let read = match timeout(PATIENCE, read_beginning(stream, &mut bytes)).await {
            Ok(Ok(read)) => read,
            // A check whether the port is open, for one.
            Ok(Err(error)) => {
                tracing::debug!(%balancer, %error, "a balancer left");
                return None;
            }
            // A spare one, which nobody needed.
            Err(_) if bytes.is_empty() => return None,
            Err(_) => Err("it does not end"),
        };
        match read {
            Ok(Beginning::Header(length, client)) => {
                bytes.advance(length);
                Some((client.unwrap_or(balancer), bytes))
            }
            Ok(Beginning::Other | Beginning::Unfinished) => Some((balancer, bytes)),
            Err(fault) => {
                self.malformed.inc();
                tracing::debug!(%balancer, fault, "a balancer's PROXY header is malformed");
                None
            }
        }
    }
}

/// Reads until it is clear what it is.
async fn read_beginning(
    stream: &mut TcpStream,
    bytes: &mut BytesMut,
) -> io::Result<Result<Beginning, Fault>> {
    loop {
        match beginning(bytes) {
            Ok(Beginning::Unfinished) => {}
            clear => return Ok(clear),
        }
        if stream.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// What these bytes are, of which more may come; pure.
///
/// # Errors
/// When they begin like a header, and are none.
pub fn beginning(bytes: &[u8]) -> Result<Beginning, Fault> {
    if bytes.starts_with(SIGNATURE) {
        version_2(bytes)
    } else if bytes.starts_with(WORD) {
        version_1(bytes)
    } else if SIGNATURE.starts_with(bytes) || WORD.starts_with(bytes) {
        Ok(Beginning::Unfinished)
    } else {
        Ok(Beginning::Other)
    }
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 40000 9977`, CR, LF; or `PROXY UNKNOWN` and whatever.
fn version_1(bytes: &[u8]) -> Result<Beginning, Fault> {
    let start = bytes.get(..LINE_MAX).unwrap_or(bytes);
    let Some(length) = memchr::memchr(b'\n', start).map(|end| end + 1) else {
        return if start.len() < LINE_MAX { Ok(Beginning::Unfinished) } else { Err("too long") };
    };
    let line = start.get(..length).and_then(|line| line.strip_suffix(b"\r\n"));
    let line = line.and_then(|line| str::from_utf8(line).ok()).ok_or("no line of text")?;
    let words: Vec<&str> = line.split(' ').collect();
    let client = match *words.as_slice() {
        [_, "UNKNOWN", ..] => None,
        [_, version @ ("TCP4" | "TCP6"), client, _, port, _] => {
            let ip: IpAddr = client.parse().map_err(|_| "no address")?;
            if ip.is_ipv4() != (version == "TCP4") {
                return Err("an address of another version");
            }
            Some(place(ip, port.parse().map_err(|_| "no port")?))
        }
        _ => return Err("unknown words"),
    };
    Ok(Beginning::Header(length, client))
}

/// Signature, version and command, family and transport, length; addresses, ports, and more.
fn version_2(bytes: &[u8]) -> Result<Beginning, Fault> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Beginning::Unfinished);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + length > HEADER_MAX {
        return Err("too long");
    }
    let Some(body) = rest.get(..length) else { return Ok(Beginning::Unfinished) };
    let client = match (command, family) {
        (0x21, 0x11) => Some(client_in::<4>(body)?),
        (0x21, 0x21) => Some(client_in::<16>(body)?),
        // The balancer's own; or for whom is not told, or is no address of a TCP client.
        (0x20 | 0x21, _) => None,
        _ => return Err("of an unknown version or command"),
    };
    Ok(Beginning::Header(FIXED + length, client))
}

/// From source and destination address, source and destination port.
fn client_in<const SIZE: usize>(body: &[u8]) -> Result<SocketAddr, Fault>
where
    IpAddr: From<[u8; SIZE]>,
{
    let parts = body.split_first_chunk::<SIZE>().and_then(|(source, rest)| {
        let (_destination, ports) = rest.split_first_chunk::<SIZE>()?;
        Some((*source, *ports.first_chunk::<4>()?))
    });
    let (source, [high, low, ..]) = parts.ok_or("too short for its addresses")?;
    Ok(place(source.into(), u16::from_be_bytes([high, low])))
}

/// An address of the fourth version is one, however it is written.
fn place(ip: IpAddr, port: u16) -> SocketAddr {
    (ip.to_canonical(), port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &[u8]) -> Result<Beginning, Fault> {
        // However it is cut, nothing is decided too early.
        for cut in 0..text.len() {
            let early = beginning(&text[..cut]);
            assert!(
                early == Ok(Beginning::Unfinished) || early == beginning(text),
                "{cut}: {early:?}"
            );
        }
        beginning(text)
    }

    fn for_whom(length: usize, client: &str) -> Result<Beginning, Fault> {
        Ok(Beginning::Header(length, Some(client.parse().unwrap())))
    }

    #[test]
    fn lines_are_read() {
        let four = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 9977\r\n";
        assert_eq!(header(four), for_whom(four.len(), "192.0.2.1:40000"));
        let six = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n";
        assert_eq!(header(six), for_whom(six.len(), "[2001:db8::1]:1"));
        let mapped = b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n";
        assert_eq!(header(mapped), for_whom(mapped.len(), "192.0.2.1:1"));
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE_MAX - 16));
        assert_eq!(header(longest.as_bytes()), Ok(Beginning::Header(LINE_MAX, None)));
        assert_eq!(header(b"PROXY UNKNOWN\r\n"), Ok(Beginning::Header(15, None)));
        let with_more = [four.as_slice(), b"GET / HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(beginning(&with_more), for_whom(four.len(), "192.0.2.1:40000"));
    }

    #[test]
    fn lines_that_are_none_are_faults() {
        for line in [
            &b"PROXY TCP4 192.0.2.1 192.0.2.2 40000\r\n"[..],
            b"PROXY TCP4 2001:db8::1 192.0.2.2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 2\r\n",
            b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            b"PROXY \xff\xfe\r\n",
            b"PROXY / HTTP/1.1\r\n",
        ] {
            assert!(header(line).is_err(), "{line:?}");
        }
        assert_eq!(beginning(&[WORD, &[b'x'; LINE_MAX]].concat()), Err("too long"));
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, body].concat()
    }

    #[test]
    fn binary_headers_are_read_and_what_follows_the_addresses_is_skipped() {
        let four = [192, 0, 2, 1, 192, 0, 2, 2, 0x9c, 0x40, 0x26, 0xf9];
        let plain = binary(0x21, 0x11, &four);
        assert_eq!(header(&plain), for_whom(28, "192.0.2.1:40000"));
        let with_more = binary(0x21, 0x11, &[&four[..], &[4; 500]].concat());
        assert_eq!(header(&with_more), for_whom(528, "192.0.2.1:40000"));
        let mut mapped = [0; 36];
        mapped[10..16].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(header(&binary(0x21, 0x21, &mapped)), for_whom(52, "192.0.2.1:0"));
        for (command, family) in [(0x20, 0x11), (0x20, 0), (0x21, 0), (0x21, 0x31), (0x21, 0x12)] {
            let nobody = binary(command, family, &four);
            assert_eq!(header(&nobody), Ok(Beginning::Header(28, None)), "{command:x} {family:x}");
        }
    }

    #[test]
    fn binary_headers_that_are_none_are_faults() {
        for wrong in [
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x21, &[0; 35]),
            binary(0x11, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
        ] {
            assert!(header(&wrong).is_err(), "{wrong:?}");
        }
        let longest = binary(0x20, 0, &[0; HEADER_MAX - FIXED]);
        assert_eq!(beginning(&longest), Ok(Beginning::Header(HEADER_MAX, None)));
        assert_eq!(beginning(&binary(0x20, 0, &[0; HEADER_MAX])[..FIXED]), Err("too long"));
    }

    #[test]
    fn requests_are_no_headers() {
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"PUT / HTTP/1.1\r\n", b"\r\n\r\nGET /", b"PROXI"]
        {
            assert_eq!(header(other), Ok(Beginning::Other), "{other:?}");
        }
        for cut in [&b""[..], b"P", b"PROXY", b"\r\n\r\n"] {
            assert_eq!(beginning(cut), Ok(Beginning::Unfinished), "{cut:?}");
        }
    }
}
