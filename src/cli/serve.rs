//! `aptmesh serve`: the whole cache in one process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::cli::manager;
use crate::cli::surfaces::{self, open};
use crate::cli::wiring::{self, Parts, Places};
use crate::config::{Config, Sources};
use crate::telemetry::{Telemetry, process};
use crate::web::access::{AccessMetrics, Door};
use crate::web::connection::Surface;
use crate::web::listener::Listener;
use crate::web::phase::Phase;

/// For how long answers and flights may go on after the signal to stop: with what is to be told the index
/// then, a little less than Kubernetes waits before it kills.
const DRAIN_MAX: Duration = Duration::from_secs(25);
/// For how long others are told, before, that this process leaves: a node takes 3.5 seconds at most, if it is
/// not stuck.
pub(super) const LEAVE_MAX: Duration = Duration::from_secs(5);
/// The same, after nobody comes in any more, however long an operator has newcomers let in.
const CLOSING_MIN: Duration = Duration::from_secs(10);
/// Who asks seldomer than this whether it is ready is no balancer.
const WATCHED_WITHIN: Duration = Duration::from_mins(1);

pub(super) fn run(config: Config, sources: Sources) -> anyhow::Result<()> {
    let telemetry = observe(&config);
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(config, sources, &telemetry));
    // Threads that wait for a disk or a resolver hold nobody up any more.
    runtime.shutdown_background();
    telemetry.stop();
    served
}

/// Begins to log, and to trace.
pub(super) fn observe(config: &Config) -> Telemetry {
    // The receiver of traces may be spoken to in TLS.
    let is_first = rustls::crypto::ring::default_provider().install_default().is_ok();
    let telemetry = Telemetry::start(&config.log, &config.traces);
    if !is_first {
        tracing::debug!("a TLS provider was there already");
    }
    telemetry
}

async fn serve(config: Config, sources: Sources, telemetry: &Telemetry) -> anyhow::Result<()> {
    let (phase, phases) = watch::channel(Phase::Serving);
    // Operators look on while clients are seen off, and lists are learnt: nobody waits for these.
    let background = TaskTracker::new();
    let connections = TaskTracker::new();
    // The node tells others where we are, and the proxy asks its node.
    let peer = match config.listen.peer {
        Some(address) => Some(surfaces::bind(address, "listen.peer", &config)?),
        None => None,
    };
    let sidecar = match config.own_api() {
        Some(address) => Some(surfaces::bind(address, "listen.sidecar", &config)?),
        None => None,
    };
    let address_of = |door: &Option<Listener>| door.as_ref().map(Listener::address).transpose();
    let places = Places { peer: address_of(&peer)?, sidecar: address_of(&sidecar)? };
    let metrics = process::metrics();
    telemetry.declare(&metrics);
    let parts = wiring::build(&config, metrics, &phases, &background, &places).await?;

    let measured = AccessMetrics::new(&parts.metrics, config.listen.connections_max);
    let proxies = open_proxies(&parts, &config, &measured, &phases, &connections)?;
    let mut greeting = Greeting { proxies, others: Vec::new() };
    if let Some(peer) = peer {
        let surface = Surface {
            balancers: Some(Arc::clone(&parts.balancers)),
            ..Surface::inner(parts.peer.routes(), measured.at(Door::Peer, None), &connections)
        };
        greeting.others.extend(places.peer.map(|address| format!("peer on http://{address}")));
        surfaces::serve(peer, surface, &phases);
    }
    if let Some((node, sidecar)) = parts.node.as_ref().zip(sidecar) {
        let routes = Arc::clone(&node.sidecar).api_routes();
        let api = Surface::inner(routes, measured.at(Door::Sidecar, None), &connections);
        greeting.others.push(format!("dht on {}", node.dht.address()));
        greeting.others.push(format!("sidecar on http://{}", sidecar.address()?));
        surfaces::serve(sidecar, api, &phases);
    }
    let (_stop_admin, admin_phases) = watch::channel(Phase::Serving);
    let routes = Arc::clone(&parts.admin).routes(&greeting.proxies);
    let admin = Surface::inner(routes, measured.at(Door::Admin, None), &background);
    let admin = open(admin, config.listen.admin, "listen.admin", &config, &admin_phases)?;
    greeting.others.push(format!("admin on http://{admin}"));
    parts.engine.meet_fellows(&background).await;

    // Before anybody can know that it runs: until then a signal would just kill it.
    let mut signals = Signals::listen()?;
    super::print_out(&greeting.text(&config))?;
    let running = Running { parts, sources, status: greeting.listening().join(", ") };
    manager::ready(&running.status);
    manager::keep_alive(&background);
    let told = wait_for_stop(&mut signals, &running, &config).await;
    let until = Instant::now() + DRAIN_MAX;
    manager::stopping("seeing clients off");
    phase.send_replace(Phase::Leaving);
    leave(&running.parts).await;
    if told == Told::ToTerminate && running.parts.admin.is_watched(WATCHED_WITHIN) {
        linger(&mut signals, config.listen.drain_delay).await;
    }
    let until = until.max(Instant::now() + CLOSING_MIN);
    let left = until.duration_since(Instant::now()).as_secs();
    tracing::info!("stopping: no new connections, {left} s for what is under way");
    phase.send_replace(Phase::Closing);
    stop(&running.parts, &connections, until).await;
    Ok(())
}

/// Lets apt clients in, at each of their addresses.
fn open_proxies(
    parts: &Parts,
    config: &Config,
    measured: &AccessMetrics,
    phases: &watch::Receiver<Phase>,
    connections: &TaskTracker,
) -> anyhow::Result<Vec<SocketAddr>> {
    let served_bytes = Arc::clone(&parts.engine.metrics().served_bytes);
    let metrics = measured.at(Door::Proxy, Some(served_bytes));
    let open = |address: &SocketAddr| {
        let surface = Surface {
            proxy: Some(Arc::clone(&parts.proxy)),
            balancers: Some(Arc::clone(&parts.balancers)),
            ..Surface::inner(parts.proxy.routes(), Arc::clone(&metrics), connections)
        };
        open(surface, *address, "listen.proxy", config, phases)
    };
    config.listen.proxy.iter().map(open).collect()
}

/// A process that serves.
struct Running {
    parts: Parts,
    sources: Sources,
    /// What its manager shows of it.
    status: String,
}

/// Tells other replicas and the swarm.
async fn leave(parts: &Parts) {
    let told = async { tokio::join!(parts.engine.leave_fellows(), leave_swarm(parts)) };
    if timeout(LEAVE_MAX, told).await.is_err() {
        tracing::debug!("others will notice later that this process has left");
    }
}

/// Lets newcomers in until balancers have noticed, or somebody is in a hurry.
async fn linger(signals: &mut Signals, delay: Duration) {
    tracing::info!("not ready any more; newcomers are served for another {delay:?}");
    tokio::select! {
        () = sleep(delay) => {}
        () = signals.stop() => {}
    }
}

async fn leave_swarm(parts: &Parts) {
    if let Some(node) = &parts.node {
        node.leave().await;
    }
}

/// What is told when all runs.
struct Greeting {
    proxies: Vec<SocketAddr>,
    others: Vec<String>,
}

impl Greeting {
    fn listening(&self) -> Vec<String> {
        let proxies = self.proxies.iter().map(|address| format!("proxy on http://{address}"));
        proxies.chain(self.others.iter().cloned()).collect()
    }

    fn text(&self, config: &Config) -> String {
        let example = self.proxies.first().map(ToString::to_string).unwrap_or_default();
        format!(
            "aptmesh {}
  {}
  data in {}

Point apt at it:
  echo 'Acquire::http::Proxy \"http://{example}\";' | sudo tee /etc/apt/apt.conf.d/30aptmesh
",
            env!("CARGO_PKG_VERSION"),
            self.listening().join("\n  "),
            config.store.dir.display(),
        )
    }
}

/// The signals that are obeyed.
pub(super) struct Signals {
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
    pub(super) hang_up: Signal,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Another one of those that stop it.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How a process was told to stop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// By who runs it, and others like it.
    ToTerminate,
    /// From a keyboard: somebody waits for it.
    ToBreakOff,
}

/// SIGTERM or SIGINT; SIGHUP reads the settings again.
async fn wait_for_stop(signals: &mut Signals, running: &Running, config: &Config) -> Told {
    let mut current = config.clone();
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Told::ToTerminate,
            _ = signals.interrupt.recv() => return Told::ToBreakOff,
            _ = signals.hang_up.recv() => {
                manager::reloading();
                reload(&running.parts, &mut current, &running.sources).await;
                manager::ready(&running.status);
            }
        }
    }
}

/// Takes over what can change in a running process.
async fn reload(parts: &Parts, current: &mut Config, sources: &Sources) {
    let Some(next) = read_again(current, sources, true) else { return };
    parts.mirror.set_guard(next.mirror.guard.clone());
    parts.mirror.set_offline(next.mirror.offline);
    parts.engine.set_recheck_after(next.engine.recheck_after);
    if let Err(error) = parts.engine.room().change(&next.engine.room).await {
        tracing::warn!(%error, source = %error.source, "what was pinned before may stay so");
    }
    parts.peer.set_upload_limit(next.upload_limit);
    parts.proxy.set_clients(next.clients.clone());
    *current = next;
}

/// The settings as they are now, unless they are wrong; names what has changed, and what of it waits for
/// the next start: all of it, where nothing can change in a running process.
pub(super) fn read_again(current: &Config, sources: &Sources, can_change: bool) -> Option<Config> {
    let wrong = "the settings are wrong: going on with the old ones";
    let next =
        Config::read(sources).inspect_err(|faults| tracing::error!(%faults, "{wrong}")).ok()?;
    for ((key, old), (_, new)) in current.effective.iter().zip(&next.effective) {
        if old != new && key.live && can_change {
            tracing::info!(key = key.name, "changed");
        } else if old != new {
            tracing::warn!(
                key = key.name,
                "changed in the settings: takes effect at the next start"
            );
        }
    }
    Some(next)
}

async fn stop(parts: &Parts, connections: &TaskTracker, until: Instant) {
    connections.close();
    let seen_off = timeout_at(until, connections.wait()).await.is_ok();
    let landed = parts.engine.drain(until).await;
    if seen_off && landed {
        tracing::info!("stopped");
    } else {
        tracing::warn!("stopped with answers or downloads under way");
    }
}

/// Each connection and each file in memory takes a descriptor, and the usual soft limit of 1024 is
/// for programs that use `select(2)`.
pub(super) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}
