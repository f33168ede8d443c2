//! `CONNECT` tunnels (RFC 9110 §9.3.6) for HTTPS sources: carried, never looked into.

use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::archive::target::Authority;
use crate::engine::Engine;
use crate::web::access::Access;
use crate::web::body::Source;
use crate::web::connection::{Passage, Visit};
use crate::web::phase::{self, Phase};
use crate::web::reply;

/// Tunnels open at a time.
const TUNNELS_MAX: usize = 256;
/// For how long nothing may pass through a tunnel, in either direction.
const IDLE_MAX: Duration = Duration::from_mins(2);
/// The same, once the process has been told to stop.
const IDLE_WHEN_STOPPING_MAX: Duration = Duration::from_secs(2);
/// Bytes carried at once, each way.
const BUFFER: usize = 32 * 1024;

/// The tunnels of a surface.
pub(super) struct Tunnels {
    places: Arc<Semaphore>,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(TUNNELS_MAX)) }
    }
}

impl Tunnels {
    /// Connects to what the visit names, then carries whatever follows.
    pub(super) async fn open(&self, engine: &Engine, visit: &Visit) -> warp::reply::Response {
        let named = visit.uri.authority().map(http::uri::Authority::as_str);
        // Port 0 stands for none: a tunnel has no default.
        let authority = match named.map(|named| Authority::parse(named, 0)) {
            Some(Ok(authority)) if authority.port != 0 => authority,
            _ => return reply::refusal(StatusCode::BAD_REQUEST, "CONNECT needs HOST:PORT"),
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return reply::refusal(StatusCode::SERVICE_UNAVAILABLE, "too many tunnels are open");
        };
        let stream = match engine.connect(&authority.host, authority.port).await {
            Ok(stream) => stream,
            Err(failure) => return reply::failed(&failure),
        };
        let Some(Passage { upgrade, mut access }) = visit.take_passage() else {
            return reply::refusal(StatusCode::BAD_REQUEST, "CONNECT needs HTTP/1.1");
        };
        let (head, ()) = Response::new(()).into_parts();
        access.answer(&head);
        let phase = visit.phase.clone();
        visit.tasks.spawn(carry(upgrade, stream, place, phase, access));
        reply::with_payload(Response::from_parts(head, ()), Source::Empty)
    }
}

async fn carry(
    upgrade: OnUpgrade,
    mirror: TcpStream,
    _place: OwnedSemaphorePermit,
    phase: watch::Receiver<Phase>,
    mut access: Access,
) {
    let Ok(upgraded) = upgrade.await else { return };
    let (from_client, to_client) = tokio::io::split(TokioIo::new(upgraded));
    let (from_mirror, to_mirror) = mirror.into_split();
    let activity = watch::Sender::new(());
    let [sent, received] = access.tunnel_bytes();
    let up = one_way(from_client, to_mirror, &activity, |bytes| sent.inc_by(bytes));
    let down = one_way(from_mirror, to_client, &activity, |bytes| {
        received.inc_by(bytes);
        access.send(bytes);
    });
    let idle = |bound: Duration| {
        let mut seen = activity.subscribe();
        async move { while timeout(bound, seen.changed()).await.is_ok() {} }
    };
    let stopped = async {
        phase::closing(phase).await;
        idle(IDLE_WHEN_STOPPING_MAX).await;
    };
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        () = stopped => tracing::debug!("closing a tunnel at the stop"),
        () = idle(IDLE_MAX) => tracing::debug!("closing an idle tunnel"),
    }
    access.complete();
}

async fn one_way(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    activity: &watch::Sender<()>,
    mut carried: impl FnMut(u64),
) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        activity.send_replace(());
        let bytes = buffer.get(..read).unwrap_or_default();
        if to.write_all(bytes).await.is_err() || to.flush().await.is_err() {
            break;
        }
        carried(read as u64);
    }
    // The other side learns of the end; if it is gone too, there is nobody to tell.
    drop(to.shutdown().await);
}
