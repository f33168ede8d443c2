//! Accepting connections, within a bound, until told to stop.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::web::connection::{self, Surface};
use crate::web::phase::{self, Phase};

/// After an accept that failed, most likely for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// For how long it must have gone well before a failure is told again.
const CALM: Duration = Duration::from_mins(1);
/// Connections that the kernel keeps until they are accepted: as many as it may (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// A connection, its client, and its place among them.
type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

/// A bound address.
pub struct Listener {
    socket: TcpListener,
    /// When a newcomer could not be let in.
    failed_at: Mutex<Option<Instant>>,
    places: Arc<Semaphore>,
}

impl Listener {
    /// Binds `address`, for at most `connections_max` connections at a time. `[::]` stands for all
    /// addresses of either version, whatever the machine has.
    ///
    /// # Errors
    /// When the address can not be had.
    pub fn bind(address: SocketAddr, connections_max: usize) -> io::Result<Self> {
        let socket = match listen(address) {
            Err(error) if lacks_ipv6(address, &error) => {
                let instead = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
                tracing::info!("there is no IPv6 here: listening on {instead}, not {address}");
                listen(instead)?
            }
            bound => bound?,
        };
        Ok(Self {
            socket,
            failed_at: Mutex::default(),
            places: Arc::new(Semaphore::new(connections_max)),
        })
    }

    /// The address, with the port that the system chose where 0 was asked for.
    ///
    /// # Errors
    /// When the system can not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves connections until the process is closing; those open then end by themselves, on
    /// `connections`.
    pub async fn serve(
        self,
        surface: Arc<Surface>,
        phase: watch::Receiver<Phase>,
        connections: TaskTracker,
    ) {
        let mut closing = pin!(phase::closing(phase.clone()));
        let begin = |(stream, client, place): Accepted| {
            let (surface, phase) = (Arc::clone(&surface), phase.clone());
            connections.spawn(async move {
                connection::serve(stream, client, surface, phase).await;
                drop(place);
            });
        };
        loop {
            tokio::select! {
                Some(accepted) = self.next() => begin(accepted),
                () = &mut closing => break,
            }
        }
        // Who has been let in by the kernel must not be thrown out with the socket.
        while let Some(Some(accepted)) = self.next().now_or_never() {
            begin(accepted);
        }
    }

    /// The next connection.
    async fn next(&self) -> Option<Accepted> {
        loop {
            // A full house leaves newcomers in the kernel's queue.
            let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
            let (stream, client) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.failed(&error);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection was gone before it was served");
                continue;
            }
            return Some((stream, client, place));
        }
    }

    /// Between two failures, some may be let in: the trouble is still the same.
    fn failed(&self, error: &io::Error) {
        let now = Instant::now();
        let before = self.failed_at.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        if before.is_none_or(|before| now - before > CALM) {
            tracing::warn!(%error, "could not accept connections: they wait");
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // A machine may have it otherwise (`net.ipv6.bindv6only`).
        set_ipv6_v6only(&socket, false)?;
    }
    // Connections that have ended are no reason not to listen anew.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn lacks_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let is_missing =
        matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL));
    address.is_ipv6() && address.ip().is_unspecified() && is_missing
}
