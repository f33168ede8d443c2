//! Puts the components together: the one place that names concrete backends.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{anyhow, ensure};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::announce::{self, Announcer};
use crate::cli::surfaces;
use crate::config::Config;
use crate::dht::{self, Dht};
use crate::engine::Engine;
use crate::engine::volume::import::Importer;
use crate::engine::volume::inspect::Inspector;
use crate::engine::volume::room::Room;
use crate::index::postgres::schema::SchemaMismatch;
use crate::index::postgres::{self, PostgresIndex};
use crate::index::sqlite::{self, SqliteIndex};
use crate::index::{self, Index, IndexError, budget};
use crate::mirror::Mirror;
use crate::store::{self, Store};
use crate::swarm::Swarm;
use crate::telemetry::metrics::Metrics;
use crate::web::admin::Admin;
use crate::web::balancers::Balancers;
use crate::web::filter::HaveFilter;
use crate::web::peer::Peer;
use crate::web::phase::Phase;
use crate::web::proxy::Proxy;
use crate::web::sidecar::Sidecar;

/// The running parts.
pub(super) struct Parts {
    pub(super) engine: Arc<Engine>,
    pub(super) mirror: Arc<Mirror>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) admin: Arc<Admin>,
    pub(super) peer: Arc<Peer>,
    pub(super) balancers: Arc<Balancers>,
    pub(super) node: Option<Node>,
    pub(super) metrics: Metrics,
}

/// The node of the swarm, and its surfaces.
pub(super) struct Node {
    pub(super) dht: Dht,
    pub(super) sidecar: Arc<Sidecar>,
    announcer: Option<Announcer>,
}

/// Addresses that were taken before the parts that have to know them.
pub(super) struct Places {
    /// Where other sites find us.
    pub(super) peer: Option<SocketAddr>,
    /// Where the API of our own node will be.
    pub(super) sidecar: Option<SocketAddr>,
}

/// What nobody waits for when the process stops runs on `background`.
pub(super) async fn build(
    config: &Config,
    metrics: Metrics,
    phase: &watch::Receiver<Phase>,
    background: &TaskTracker,
    places: &Places,
) -> anyhow::Result<Parts> {
    budget::set(config.patience);
    warn_of_silence(config);
    let store = Arc::new(Store::open(&config.store).observed(&metrics));
    let mirror = Arc::new(Mirror::new(&config.mirror, &metrics)?);
    let index = open_index(config, &metrics).await?;
    let swarm = Arc::new(swarm(config, places.sidecar, &metrics, background)?);
    let way_to_node = swarm.node.clone();
    let engine = Engine::new(
        &config.engine,
        Arc::clone(&index),
        store,
        Arc::clone(&mirror),
        swarm,
        &metrics,
        background,
    )?;
    let proxy = Arc::new(Proxy::new(
        Arc::clone(&engine),
        config.clients.clone(),
        config.groups.clone(),
        config.mirror.pseudonym.clone(),
    ));
    let tells = config.dht.key.is_some() && config.dht.announce;
    let filter = tells.then(|| HaveFilter::new(Arc::clone(&index)));
    let limit = config.upload_limit;
    let peer = Arc::new(Peer::new(Arc::clone(&engine), filter, limit, &metrics, background));
    let node = match places.sidecar {
        Some(_) => {
            let dht = dht::Config { peer: places.peer, ..config.dht.clone() };
            Some(node(dht, Some(index), &metrics, phase, background).await?)
        }
        None => None,
    };
    let balancers = Arc::new(Balancers::new(config.listen.balancers.clone(), &metrics));
    let admin =
        Arc::new(Admin::new(Arc::clone(&engine), way_to_node, metrics.clone(), phase.clone()));
    Ok(Parts { engine, mirror, proxy, admin, peer, balancers, node, metrics })
}

/// A node in a process of its own reads the site's index where that is a database; of a file it tells
/// nobody.
fn warn_of_silence(config: &Config) {
    let is_apart = config.swarm.as_ref().is_some_and(|swarm| swarm.sidecar.is_some());
    if is_apart && config.dht.announce && matches!(config.index, index::Config::Sqlite(_)) {
        tracing::warn!(
            "what is stored is not announced: the node of proxy.sidecar can not read a file (index.url)"
        );
    }
}

/// The other sites, found by the node in a process of its own or by ours, whose API is at `own`.
fn swarm(
    config: &Config,
    own: Option<SocketAddr>,
    metrics: &Metrics,
    background: &TaskTracker,
) -> anyhow::Result<Swarm> {
    let of_swarm = config.swarm.as_ref();
    let own = own.map(|address| Url::parse(&format!("http://{}", surfaces::from_here(address))));
    let sidecar = of_swarm.and_then(|swarm| swarm.sidecar.clone()).or(own.transpose()?);
    Swarm::new(of_swarm.zip(sidecar.as_ref()), metrics, background)
}

/// Starts the node of the swarm; with an index, it tells what is in there.
pub(super) async fn node(
    config: dht::Config,
    index: Option<Arc<dyn Index>>,
    metrics: &Metrics,
    phase: &watch::Receiver<Phase>,
    background: &TaskTracker,
) -> anyhow::Result<Node> {
    let (key, has_url) =
        (config.key.clone(), config.peer.is_some() || !config.advertise.is_empty());
    if index.is_some() && config.announce && !has_url {
        tracing::warn!(
            "nothing is announced: where others could fetch it is not known (swarm.advertise)"
        );
    }
    let announce = config.announce && has_url;
    // What it announced when it still had a URL is not renewed.
    let dht = Dht::start(dht::Config { announce, ..config }, metrics, background).await?;
    let sidecar = Arc::new(Sidecar::new(dht.clone(), metrics.clone(), phase.clone()));
    let start =
        |(index, key)| Announcer::start(index, dht.clone(), announce::Config { key, announce });
    let announcer = index.zip(key).map(start);
    Ok(Node { dht, sidecar, announcer })
}

impl Node {
    /// Has other nodes take over what is told of the site, and says goodbye to the swarm.
    pub(super) async fn leave(&self) {
        if let Some(announcer) = &self.announcer {
            announcer.leave().await;
        }
        self.dht.leave().await;
    }
}

/// The index of the site that a node in a process of its own belongs to: a database, if one is named; a
/// file is that of another process.
pub(super) async fn index_of_site(
    config: &Config,
    metrics: &Metrics,
) -> anyhow::Result<Option<Arc<dyn Index>>> {
    match &config.index {
        index::Config::Sqlite(_) => Ok(None),
        index::Config::Postgres(_) => open_index(config, metrics).await.map(Some),
    }
}

/// Who tells good blobs from bad, without a cache around.
pub(super) fn inspector(config: &Config) -> anyhow::Result<Inspector> {
    let folder = &config.store.dir;
    ensure!(folder.is_dir(), "there is no folder {}", folder.display());
    ensure_owner(folder)?;
    let store = Arc::new(Store::open(&config.store));
    let (moves, unadopted) = (Arc::default(), Arc::default());
    Ok(Inspector::new(&index_of(config)?, &store, &moves, &unadopted, &Metrics::default()))
}

/// Who imports, without a cache around.
pub(super) fn importer(config: &Config) -> anyhow::Result<Arc<Importer>> {
    ensure_owner(&config.store.dir)?;
    let store = Arc::new(Store::open(&config.store));
    let index = index_of(config)?;
    let room = Room::new(&config.engine.room, &index, &store, &Arc::default(), &Metrics::default());
    Ok(Arc::new(Importer::new(index, store, room, config.engine.folders.clone())))
}

/// Files of another owner than the cache's would be in its way for ever.
fn ensure_owner(folder: &Path) -> anyhow::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let owner = std::fs::metadata(folder).map_or(own, |metadata| metadata.uid());
    let folder = folder.display();
    ensure!(owner == own, "{folder} belongs to user {owner}: run this as that user, not as {own}");
    Ok(())
}

fn index_of(config: &Config) -> anyhow::Result<Arc<dyn Index>> {
    let in_words = |error: IndexError| anyhow!("{error}: {}", error.source);
    Ok(match &config.index {
        index::Config::Sqlite(file) => Arc::new(SqliteIndex::open(file).map_err(in_words)?),
        index::Config::Postgres(server) => {
            let server = on_own_volume(server, config);
            Arc::new(PostgresIndex::new(&server).map_err(in_words)?)
        }
    })
}

/// The bounds of the volume and who keeps them, without a cache around.
pub(super) fn room(config: &Config) -> anyhow::Result<Arc<Room>> {
    if let index::Config::Sqlite(sqlite::Config::File(path)) = &config.index {
        ensure!(path.exists(), "there is no index at {}", path.display());
    }
    ensure_owner(&config.store.dir)?;
    let metrics = Metrics::default();
    let index = index_of(config)?;
    let store = Arc::new(Store::open(&config.store));
    Ok(Room::new(&config.engine.room, &index, &store, &Arc::default(), &metrics))
}

/// What is stored in one folder is told from what other processes store in theirs.
fn on_own_volume(server: &postgres::Config, config: &Config) -> postgres::Config {
    server.clone().on_volume(store::identity(&config.store))
}

async fn open_index(config: &Config, metrics: &Metrics) -> anyhow::Result<Arc<dyn Index>> {
    match &config.index {
        index::Config::Sqlite(file) => Ok(Arc::new(open_sqlite(file)?.observed(metrics))),
        index::Config::Postgres(server) => {
            let server = on_own_volume(server, config);
            let index = PostgresIndex::new(&server).map_err(|error| anyhow!(error.source))?;
            open_postgres(index.observed(metrics)).await
        }
    }
}

/// A server that is away may come back; one with another schema has to be seen to.
async fn open_postgres(index: PostgresIndex) -> anyhow::Result<Arc<dyn Index>> {
    match index.verify().await {
        Err(error) if error.source.is::<SchemaMismatch>() => Err(anyhow!(error.source)),
        Err(error) => {
            let source = &error.source;
            tracing::warn!(%error, %source, "starting without the index, until it is there");
            Ok(Arc::new(index))
        }
        Ok(()) => Ok(Arc::new(index)),
    }
}

/// An index that can not be opened costs what it would have learnt, not the service.
fn open_sqlite(config: &sqlite::Config) -> anyhow::Result<SqliteIndex> {
    match (SqliteIndex::open(config), config) {
        (Ok(index), _) => Ok(index),
        (Err(error), sqlite::Config::File(path)) => {
            let source = &error.source;
            tracing::error!(%error, %source, "going on with a copy of the index in memory");
            Ok(SqliteIndex::copy_of(path)?)
        }
        (Err(error), sqlite::Config::Memory) => Err(error.into()),
    }
}
