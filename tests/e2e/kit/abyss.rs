//! An address where nobody ever answers, nor says no: what is sent there is lost, as behind a firewall.

use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// More connections than wait in the shortest queue that the kernel makes.
const WAITING_MAX: usize = 16;

/// A socket whose queue is full: the kernel drops what comes then.
pub struct Abyss {
    addr: SocketAddr,
    _socket: OwnedFd,
    _waiting: Vec<TcpStream>,
}

impl Abyss {
    pub fn open() -> Self {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listen(&socket, 0).expect("a queue");
        let addr = SocketAddr::try_from(getsockname(&socket).expect("an address")).expect("IPv4");
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(500)) {
            waiting.push(stream);
            assert!(waiting.len() < WAITING_MAX, "the queue does not fill");
        }
        Self { addr, _socket: socket, _waiting: waiting }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}
