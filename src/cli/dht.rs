//! `aptmesh dht`: a node of the swarm's DHT in a process of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::dht::Dht;
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use crate::web::connection::Surface;
use crate::web::listener::Listener;
use crate::web::phase::Phase;
use crate::web::sidecar::Sidecar;

/// For how long requests under way are waited for.
const DRAIN_MAX: Duration = Duration::from_secs(5);

pub(super) fn run(config: Config) -> anyhow::Result<()> {
    logs::start(&config.log);
    super::serve::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(config));
    // A resolver holds nobody up any more.
    runtime.shutdown_background();
    served
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (phase, phases) = watch::channel(Phase::Serving);
    let (background, connections) = (TaskTracker::new(), TaskTracker::new());
    let metrics = Metrics::default();
    let dht = Dht::start(config.dht.clone(), &metrics, &background).await?;
    let sidecar = Arc::new(Sidecar::new(dht.clone(), metrics, phases.clone()));
    let open = async |address, key: &str, routes| -> anyhow::Result<SocketAddr> {
        let surface =
            Surface { routes, proxy: None, served_bytes: None, tasks: connections.clone() };
        let listener = Listener::bind(address, config.listen.connections_max)
            .await
            .with_context(|| format!("could not listen on {address} ({key})"))?;
        let address = listener.address()?;
        connections.spawn(listener.serve(surface.into(), phases.clone(), connections.clone()));
        Ok(address)
    };
    let api = Arc::clone(&sidecar).api_routes();
    let api = open(config.listen.sidecar, "listen.sidecar", api).await?;
    let admin = open(config.listen.admin, "listen.admin", sidecar.admin_routes()).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    super::print_out(&format!(
        "aptmesh {}\n  dht on {}\n  sidecar on http://{api}\n  admin on http://{admin}\n  data in {}\n",
        env!("CARGO_PKG_VERSION"),
        dht.address(),
        config.dht.data.display(),
    ))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: telling the other nodes");
    phase.send_replace(Phase::Leaving);
    dht.leave().await;
    phase.send_replace(Phase::Closing);
    connections.close();
    if timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        tracing::warn!("stopped with requests under way");
    }
    Ok(())
}
