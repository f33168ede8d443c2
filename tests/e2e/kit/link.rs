//! A long way: a TCP relay that adds a round-trip time and nothing else.

use super::client::uninterrupted;
use super::door::Door;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
    rtt: Rtt,
    connections: Arc<AtomicUsize>,
}

/// In milliseconds; it may change on the way.
type Rtt = Arc<AtomicU64>;

fn half_of(rtt: &Rtt) -> Duration {
    Duration::from_millis(rtt.load(Ordering::SeqCst)) / 2
}

impl Link {
    pub fn to(far: SocketAddr, rtt: Duration) -> Self {
        let connections = Arc::new(AtomicUsize::new(0));
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let rtt = Rtt::new(u64::try_from(rtt.as_millis()).expect("a short way").into());
        let door = door(here, far, &rtt, &connections);
        Self { door, far, rtt, connections }
    }

    /// Breaks all connections, and takes no more.
    pub fn cut(&mut self) {
        self.door.close();
    }

    /// After [`Link::cut`]: takes connections again, on the same port.
    pub fn mend(&mut self) {
        self.door = door(self.addr(), self.far, &self.rtt, &self.connections);
    }

    /// From here on it is as far.
    pub fn set_rtt(&self, rtt: Duration) {
        let millis = u64::try_from(rtt.as_millis()).expect("a short way");
        self.rtt.store(millis, Ordering::SeqCst);
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

fn door(here: SocketAddr, far: SocketAddr, rtt: &Rtt, connections: &Arc<AtomicUsize>) -> Door {
    let (count, rtt) = (connections.clone(), rtt.clone());
    Door::open(here, move |near| {
        count.fetch_add(1, Ordering::SeqCst);
        relay(near, far, &rtt);
    })
}

fn relay(near: TcpStream, far: SocketAddr, rtt: &Rtt) {
    // The real handshake takes no time on loopback: nothing that the near
    // side sends may leave before a distant handshake would have ended.
    let handshaken = Instant::now() + half_of(rtt) * 2;
    let Ok(far) = TcpStream::connect(far) else {
        return;
    };
    let _ = far.set_nodelay(true);
    let (Ok(near_copy), Ok(far_copy)) = (near.try_clone(), far.try_clone()) else {
        return;
    };
    let there = thread::spawn({
        let rtt = rtt.clone();
        move || carry(near_copy, far_copy, &rtt, handshaken)
    });
    carry(far, near, rtt, handshaken);
    let _ = there.join();
}

/// Carries one direction until its end, then passes the end on as well.
fn carry(from: TcpStream, to: TcpStream, rtt: &Rtt, not_before: Instant) {
    let (sender, receiver) = sync_channel(IN_FLIGHT);
    let Ok(source) = from.try_clone() else { return };
    let rtt = rtt.clone();
    let collector = thread::spawn(move || collect(source, &sender, &rtt, not_before));
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
    rtt: &Rtt,
    not_before: Instant,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = uninterrupted(|| from.read(&mut buffer)).unwrap_or(0);
        let due = Instant::now().max(not_before) + half_of(rtt);
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
