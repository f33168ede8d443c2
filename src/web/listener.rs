//! Accepting connections, within a bound, until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::web::connection::{self, Surface};

/// After an accept that failed, most likely for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound address.
pub struct Listener {
    socket: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener {
    /// Binds `address`, for at most `connections_max` connections at a time.
    ///
    /// # Errors
    /// When the address can not be had.
    pub async fn bind(address: SocketAddr, connections_max: usize) -> std::io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self { socket, places: Arc::new(Semaphore::new(connections_max)) })
    }

    /// The address, with the port that the system chose where 0 was asked for.
    ///
    /// # Errors
    /// When the system can not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves connections until `draining` turns true; those open then end by themselves, on
    /// `connections`.
    pub async fn serve(
        self,
        surface: Arc<Surface>,
        mut draining: watch::Receiver<bool>,
        connections: TaskTracker,
    ) {
        let stop = draining.clone();
        tokio::select! {
            () = self.accept(surface, stop, connections) => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    }

    async fn accept(
        &self,
        surface: Arc<Surface>,
        draining: watch::Receiver<bool>,
        connections: TaskTracker,
    ) {
        // A full house leaves newcomers in the kernel's queue.
        while let Ok(place) = Arc::clone(&self.places).acquire_owned().await {
            let (stream, client) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection was gone before it was served");
                continue;
            }
            let (surface, draining) = (Arc::clone(&surface), draining.clone());
            connections.spawn(async move {
                connection::serve(stream, client, surface, draining).await;
                drop(place);
            });
        }
    }
}
