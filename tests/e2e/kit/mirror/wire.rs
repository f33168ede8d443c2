//! One connection of a mirror, plain or encrypted.

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a closing mirror waits for the other side to close as well.
const LINGER: Duration = Duration::from_secs(1);

pub enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Wire {
    pub fn new(stream: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Self {
        match tls {
            None => Self::Plain(stream),
            Some(config) => {
                let session = ServerConnection::new(config.clone()).expect("a TLS session");
                Self::Tls(Box::new(StreamOwned::new(session, stream)))
            }
        }
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => &tls.sock,
        }
    }

    /// Sleeps; false as soon as the other side is seen to have left.
    pub fn pause(&self, duration: Duration) -> bool {
        const LOOK_EVERY: Duration = Duration::from_millis(50);
        let end = Instant::now() + duration;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            thread::sleep(left.min(LOOK_EVERY));
            if left <= LOOK_EVERY {
                return true;
            }
            if self.peer_left() {
                return false;
            }
        }
    }

    fn peer_left(&self) -> bool {
        let socket = self.socket();
        let _ = socket.set_nonblocking(true);
        let seen = socket.peek(&mut [0]);
        let _ = socket.set_nonblocking(false);
        match seen {
            Ok(count) => count == 0,
            Err(trouble) => trouble.kind() != ErrorKind::WouldBlock,
        }
    }

    /// Says goodbye properly: TLS marks the end of the data as intended.
    pub fn finish(&mut self) {
        if let Self::Tls(tls) = self {
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    }

    /// Closes so that everything sent still arrives: unread requests in the
    /// socket would turn the close into a reset, so they are read first.
    pub fn close(&mut self) {
        let mut socket = self.socket();
        let _ = socket.shutdown(Shutdown::Write);
        let _ = socket.set_read_timeout(Some(LINGER));
        let end = Instant::now() + LINGER;
        let mut scrap = [0; 4096];
        while matches!(socket.read(&mut scrap), Ok(1..)) && Instant::now() < end {}
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}
