//! `aptmesh dht`: a node of the swarm's DHT in a process of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::cli::manager;
use crate::cli::serve::{LEAVE_MAX, Signals, observe, raise_file_limit, read_again};
use crate::cli::surfaces::open;
use crate::cli::wiring;
use crate::config::{Config, Sources};
use crate::telemetry::{Telemetry, process};
use crate::web::access::{AccessMetrics, Door};
use crate::web::connection::Surface;
use crate::web::phase::Phase;

/// For how long requests under way are waited for.
const DRAIN_MAX: Duration = Duration::from_secs(5);

pub(super) fn run(config: Config, sources: &Sources) -> anyhow::Result<()> {
    let telemetry = observe(&config);
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(config, sources, &telemetry));
    // A resolver holds nobody up any more.
    runtime.shutdown_background();
    telemetry.stop();
    served
}

async fn serve(config: Config, sources: &Sources, telemetry: &Telemetry) -> anyhow::Result<()> {
    let (phase, phases) = watch::channel(Phase::Serving);
    let (background, connections) = (TaskTracker::new(), TaskTracker::new());
    let metrics = process::metrics();
    telemetry.declare(&metrics);
    let index = wiring::index_of_site(&config, &metrics).await?;
    // Before other nodes know of this one: until then a signal would just kill it.
    let mut signals = Signals::listen()?;
    let node = wiring::node(config.dht.clone(), index, &metrics, &phases, &background).await?;
    let sidecar = &node.sidecar;
    let measured = AccessMetrics::new(&metrics, config.listen.connections_max);
    let at_sidecar = measured.at(Door::Sidecar, None);
    let api = Surface::inner(Arc::clone(sidecar).api_routes(), at_sidecar, &connections);
    let api = open(api, config.listen.sidecar, "listen.sidecar", &config, &phases)?;
    let at_admin = measured.at(Door::Admin, None);
    let admin = Surface::inner(Arc::clone(sidecar).admin_routes(), at_admin, &connections);
    let admin = open(admin, config.listen.admin, "listen.admin", &config, &phases)?;
    let listening = [
        format!("dht on {}", node.dht.address()),
        format!("sidecar on http://{api}"),
        format!("admin on http://{admin}"),
    ];
    super::print_out(&format!(
        "aptmesh {}\n  {}\n  data in {}\n",
        env!("CARGO_PKG_VERSION"),
        listening.join("\n  "),
        config.dht.data.display(),
    ))?;
    let status = listening.join(", ");
    manager::ready(&status);
    manager::keep_alive(&background);
    wait_for_stop(&mut signals, config, sources, &status).await;
    tracing::info!("stopping: telling the other nodes");
    manager::stopping("telling the other nodes");
    phase.send_replace(Phase::Leaving);
    if timeout(LEAVE_MAX, node.leave()).await.is_err() {
        tracing::debug!("others will notice later that this node has left");
    }
    phase.send_replace(Phase::Closing);
    connections.close();
    if timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        tracing::warn!("stopped with requests under way");
    }
    Ok(())
}

/// SIGTERM or SIGINT. SIGHUP reads the settings again; nothing of a node changes while it runs.
async fn wait_for_stop(signals: &mut Signals, mut config: Config, sources: &Sources, status: &str) {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hang_up.recv() => {
                manager::reloading();
                config = read_again(&config, sources, false).unwrap_or(config);
                manager::ready(status);
            }
        }
    }
}
