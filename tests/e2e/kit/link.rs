//! A long way: a TCP relay that adds a round-trip time and nothing else.

use super::client::uninterrupted;
use super::door::Door;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How many pieces of 64 kB may be on their way in one direction. More than
/// any test's bandwidth times delay, so it limits memory and not the speed.
const IN_FLIGHT: usize = 1024;

/// Makes what listens at the far end look `rtt` away.
///
/// Connecting to a link always succeeds; when the far end refuses, the
/// connection is closed instead.
pub struct Link {
    door: Door,
    far: SocketAddr,
    rtt: Duration,
    connections: Arc<AtomicUsize>,
}

impl Link {
    pub fn to(far: SocketAddr, rtt: Duration) -> Self {
        let connections = Arc::new(AtomicUsize::new(0));
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let door = door(here, far, rtt, &connections);
        Self { door, far, rtt, connections }
    }

    /// Breaks all connections, and takes no more.
    pub fn cut(&mut self) {
        self.door.close();
    }

    /// After [`Link::cut`]: takes connections again, on the same port.
    pub fn mend(&mut self) {
        self.door = door(self.addr(), self.far, self.rtt, &self.connections);
    }

    pub fn addr(&self) -> SocketAddr {
        self.door.addr()
    }

    /// The address as it is written in a URL.
    pub fn host(&self) -> String {
        self.addr().to_string()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn door(here: SocketAddr, far: SocketAddr, rtt: Duration, connections: &Arc<AtomicUsize>) -> Door {
    let count = connections.clone();
    Door::open(here, move |near| {
        count.fetch_add(1, Ordering::SeqCst);
        relay(near, far, rtt);
    })
}

fn relay(near: TcpStream, far: SocketAddr, rtt: Duration) {
    // The real handshake takes no time on loopback: nothing that the near
    // side sends may leave before a distant handshake would have ended.
    let handshaken = Instant::now() + rtt;
    let Ok(far) = TcpStream::connect(far) else {
        return;
    };
    let _ = far.set_nodelay(true);
    let (Ok(near_copy), Ok(far_copy)) = (near.try_clone(), far.try_clone()) else {
        return;
    };
    let there = thread::spawn(move || carry(near_copy, far_copy, rtt / 2, handshaken));
    carry(far, near, rtt / 2, handshaken);
    let _ = there.join();
}

/// Carries one direction until its end, then passes the end on as well.
fn carry(from: TcpStream, to: TcpStream, delay: Duration, not_before: Instant) {
    let (sender, receiver) = sync_channel(IN_FLIGHT);
    let Ok(source) = from.try_clone() else { return };
    let collector = thread::spawn(move || collect(source, &sender, delay, not_before));
    if deliver(&receiver, &to) {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        // The receiver is gone: the sender must learn that.
        let _ = from.shutdown(Shutdown::Both);
    }
    drop(receiver);
    let _ = collector.join();
}

/// Reads as fast as bytes come and notes when each piece is due.
fn collect(
    mut from: TcpStream,
    sender: &SyncSender<(Instant, Vec<u8>)>,
    delay: Duration,
    not_before: Instant,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = uninterrupted(|| from.read(&mut buffer)).unwrap_or(0);
        let due = Instant::now().max(not_before) + delay;
        // An empty piece is the end, which travels like everything else.
        if sender.send((due, buffer[..count].to_vec())).is_err() || count == 0 {
            return;
        }
    }
}

/// Writes each piece when it is due; false when the other side is gone.
fn deliver(receiver: &Receiver<(Instant, Vec<u8>)>, mut to: &TcpStream) -> bool {
    for (due, piece) in receiver {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if piece.is_empty() {
            return true;
        }
        if to.write_all(&piece).is_err() {
            return false;
        }
    }
    true
}
