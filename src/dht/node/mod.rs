//! The node: one task that owns the network and all that is known, takes orders, and never waits for
//! anybody.

mod announce;
mod look_up;
mod meet;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use libp2p::futures::StreamExt as _;
use libp2p::identity::Keypair;
use libp2p::request_response::OutboundRequestId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, kad, mdns};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use self::announce::Announcing;
use self::look_up::LookUps;
use crate::content::card::Signed;
use crate::content::swarm_key::{DhtKey, SwarmKey};
use crate::dht::directory::{self, Directory};
use crate::dht::home::Home;
use crate::dht::message::Ask;
use crate::dht::metrics::DhtMetrics;
use crate::dht::network::{self, Net, NetEvent};
use crate::dht::place::Map;
use crate::dht::rate::Rates;
use crate::dht::reach::{Reach, multiaddr, socket_address};
use crate::dht::records::{BOUNDS, Records};
use crate::dht::{Announced, Config, Fellow, Found, Peer, Status, seeds};
use crate::telemetry::metrics::Metrics;

/// How often a node looks after what is to be done.
const TICK: Duration = Duration::from_millis(100);
/// How often it sweeps its records, counts, and remembers where others are.
const SWEEP: Duration = Duration::from_secs(5);
/// How often it looks for nodes close to it, and in the far corners of the swarm.
const EXPLORE: Duration = Duration::from_mins(5);
/// For how long an announcement may be due before it is late: a pass over all that a node may announce takes 26
/// seconds.
const LATE: Duration = Duration::from_secs(30);
/// How often it writes down where others are.
const SAVE: Duration = Duration::from_mins(1);
/// For how long it waits for an address to listen on.
const LISTEN_MAX: Duration = Duration::from_secs(5);
/// For how long a machine's addresses are waited for beyond the first, where all of them count.
const SETTLE_MAX: Duration = Duration::from_millis(500);
/// Connections that a node keeps up by itself: in a swarm of fewer nodes, all are connected.
const CONNECTED_MIN: usize = 128;
/// Nodes that it dials at a time for that.
const DIALS_MAX: usize = 16;
/// For how long a node that could not be reached is left alone, at first; then twice as long.
const AWAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(2));
/// Nodes that are remembered as away.
const AWAY_MAX: usize = 4_096;
/// Places that are remembered over a restart.
const PLACES_MAX: usize = 512;
/// For how long others are told goodbye.
const GOODBYE_MAX: Duration = Duration::from_millis(1_500);

/// What a node is asked to do.
pub(super) enum Order {
    LookUp { key: DhtKey, budget: Duration, reply: oneshot::Sender<Found> },
    Announce { keys: Vec<DhtKey>, reply: oneshot::Sender<Announced> },
    AnnounceOnly { keys: BTreeSet<DhtKey>, reply: oneshot::Sender<Announced> },
    Withdraw { keys: Vec<DhtKey>, reply: oneshot::Sender<usize> },
    Promise { keys: Vec<DhtKey>, reply: oneshot::Sender<Announced> },
    TakeBack { keys: Vec<DhtKey>, reply: oneshot::Sender<usize> },
    SetFilter { generation: u64, reply: oneshot::Sender<()> },
    Meet { fellows: Vec<Fellow>, reply: oneshot::Sender<()> },
    Status { reply: oneshot::Sender<Status> },
    Peers { reply: oneshot::Sender<Vec<Peer>> },
    Leave { reply: oneshot::Sender<()> },
}

/// What was sent to a node, until it has answered.
enum Sent {
    Card,
    Announced(Vec<DhtKey>),
    Promised,
    Withdrawn,
}

/// A node that could not be reached.
struct Away {
    until: Instant,
    pause: Duration,
}

pub(super) struct Node {
    config: Config,
    identity: Keypair,
    me: PeerId,
    /// The swarm's fingerprint.
    swarm_name: String,
    net: Swarm<Net>,
    reach: Reach,
    home: Option<Home>,
    metrics: DhtMetrics,
    directory: Directory,
    /// Our card as it was last signed.
    card: Signed,
    filter: u64,
    /// The card is to be signed anew, and shown to all.
    card_changed: bool,
    leaving: bool,
    /// Nodes with which cards were exchanged since they were connected.
    met: HashSet<PeerId>,
    /// In the order in which they are to be met again.
    round: VecDeque<PeerId>,
    away: HashMap<PeerId, Away>,
    sent: HashMap<OutboundRequestId, (PeerId, Sent)>,
    /// What is to be sent when a node has answered to what was sent before.
    waiting: HashMap<PeerId, VecDeque<(Ask, Sent)>>,
    announcing: Announcing,
    rates: Rates,
    look_ups: LookUps,
    /// Who could keep records; made anew when somebody came or went.
    map: Option<Map>,
    /// Where seeds are, by their addresses.
    seeds_found: mpsc::Receiver<Vec<SocketAddr>>,
    alone: watch::Sender<bool>,
    /// Nodes of our own site, as far as its index told.
    fellows: HashSet<PeerId>,
    /// Addresses behind which we found ourselves.
    selves: HashSet<SocketAddr>,
    /// Addresses that we are connected to.
    dialled: HashMap<ConnectionId, SocketAddr>,
    /// Seeds there are that are not ourselves, as of late.
    seeds_known: bool,
    met_at: Instant,
    shown_at: Instant,
    swept_at: Instant,
    saved_at: Instant,
    explored_at: Instant,
}

impl Node {
    /// Listens, and begins to look for others.
    pub(super) async fn start(
        config: Config,
        key: &SwarmKey,
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        let now = Instant::now();
        let swarm_name = key.fingerprint();
        let mut home = Home::open(&config.data)
            .inspect_err(|error| {
                let folder = config.data.display();
                tracing::warn!(%folder, %error, "who this node is will not survive a restart");
            })
            .ok();
        let identity = match &home {
            Some(home) => home.identity().context("could not read the node's identity")?,
            None => Keypair::generate_ed25519(),
        };
        let me = identity.public().to_peer_id();
        let reach = Reach::new(&config.allow_private);
        let records = Records::new(BOUNDS, now);
        let mut net = network::build(&identity, key.pre_shared(), &reach, config.lan, records)?;
        let address = listen(&mut net, &config.listen).await?;
        let announced = match &mut home {
            Some(home) if config.announce => home.announced(&swarm_name)?,
            _ => BTreeSet::new(),
        };
        let places = home.as_ref().and_then(|home| home.places().ok()).unwrap_or_default();
        let (alone, is_alone) = watch::channel(true);
        let (found, seeds_found) = mpsc::channel(1);
        if !config.seeds.is_empty() {
            tasks.spawn(seeds::resolve_all(config.seeds.clone(), is_alone, found));
        }
        let card = directory::own_card(&identity, 0, &config.site, 0, &[], Vec::new());
        let mut node = Self {
            card: directory::sign(&identity, card),
            me,
            swarm_name,
            net,
            reach,
            home,
            metrics: DhtMetrics::new(metrics, config.seeds.len()),
            directory: Directory::new(me),
            filter: 0,
            card_changed: false,
            leaving: false,
            met: HashSet::new(),
            round: VecDeque::new(),
            away: HashMap::new(),
            sent: HashMap::new(),
            waiting: HashMap::new(),
            announcing: Announcing::new(config.announce_ttl, announced, now),
            rates: Rates::default(),
            look_ups: LookUps::default(),
            map: None,
            seeds_known: !config.seeds.is_empty(),
            seeds_found,
            alone,
            fellows: HashSet::new(),
            selves: HashSet::new(),
            dialled: HashMap::new(),
            met_at: now,
            shown_at: now,
            swept_at: now,
            saved_at: now,
            explored_at: now,
            config,
            identity,
        };
        node.sign_card();
        for place in places {
            node.dial_place(place);
        }
        Ok((node, address))
    }

    /// Who it is.
    pub(super) fn id(&self) -> String {
        self.me.to_string()
    }

    /// Runs until it is told to leave, or nobody can tell it anything any more.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let late_at = self.look_ups.next_deadline();
            tokio::select! {
                event = self.net.select_next_some() => self.on_event(event),
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Leave { reply }) => {
                        self.leave().await;
                        reply.send(()).ok();
                        return;
                    }
                    Some(order) => self.on_order(order),
                },
                Some(found) = self.seeds_found.recv() => self.on_seeds(found),
                () = sleep_until(late_at.into()) => self.end_late_look_ups(),
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
        }
    }

    fn on_order(&mut self, order: Order) {
        // Who asked may have left: then nobody needs the answer.
        match order {
            Order::LookUp { key, budget, reply } => self.look_up(key, budget, reply),
            Order::Announce { keys, reply } => drop(reply.send(self.announce(keys))),
            Order::AnnounceOnly { keys, reply } => drop(reply.send(self.announce_only(keys))),
            Order::Withdraw { keys, reply } => drop(reply.send(self.withdraw(&keys))),
            Order::Promise { keys, reply } => drop(reply.send(self.promise(keys))),
            Order::TakeBack { keys, reply } => drop(reply.send(self.take_back(keys))),
            Order::SetFilter { generation, reply } => {
                self.card_changed |= self.filter != generation;
                self.filter = generation;
                reply.send(()).ok();
            }
            Order::Meet { fellows, reply } => {
                self.meet_fellows(fellows);
                reply.send(()).ok();
            }
            Order::Status { reply } => drop(reply.send(self.status())),
            Order::Peers { reply } => drop(reply.send(self.peers())),
            Order::Leave { .. } => {}
        }
    }

    fn on_event(&mut self, event: SwarmEvent<NetEvent>) {
        match event {
            SwarmEvent::Behaviour(NetEvent::Kad(event)) => self.on_kademlia(event),
            SwarmEvent::Behaviour(NetEvent::Talk(event)) => self.on_talk(event),
            SwarmEvent::Behaviour(NetEvent::Lan(mdns::Event::Discovered(nodes))) => {
                for (peer, address) in nodes {
                    self.dial_node(peer, vec![address]);
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                if endpoint.is_dialer() {
                    let address = socket_address(endpoint.get_remote_address());
                    self.dialled.extend(address.map(|address| (connection_id, address)));
                    self.meet(peer_id);
                }
                self.alone.send_if_modified(|alone| std::mem::replace(alone, false));
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                self.dialled.remove(&connection_id);
                if num_established == 0 {
                    self.met.remove(&peer_id);
                    let is_alone = self.net.connected_peers().next().is_none();
                    self.alone
                        .send_if_modified(|alone| std::mem::replace(alone, is_alone) != is_alone);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                self.on_dial_failed(peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.metrics.strangers.inc();
                tracing::debug!(from = %send_back_addr, %error, "somebody did not get in");
            }
            SwarmEvent::NewListenAddr { .. } | SwarmEvent::ExpiredListenAddr { .. } => {
                self.card_changed = true;
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "trouble with listening for nodes");
            }
            _ => {}
        }
    }

    fn on_kademlia(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed {
                id,
                result: kad::QueryResult::GetProviders(result),
                stats,
                step,
            } => self.on_look_up(id, result, &stats, step.last),
            kad::Event::InboundRequest {
                request: kad::InboundRequest::AddProvider { record: Some(_) },
            } => self.metrics.taken.with_label_values(&["refused"]).inc(),
            _ => {}
        }
    }

    fn on_dial_failed(&mut self, peer: Option<PeerId>, error: &DialError) {
        if let DialError::LocalPeerId { address } = error
            && self.selves.len() < PLACES_MAX
        {
            self.selves.extend(socket_address(address));
        }
        let Some(peer) = peer else { return };
        if matches!(error, DialError::DialPeerConditionFalse(_)) || self.net.is_connected(&peer) {
            return;
        }
        tracing::debug!(%peer, %error, "could not reach a node");
        self.is_away(peer);
    }

    /// A node did not answer, or could not be reached: it is left alone for a while, and gets out of
    /// the table, so that no look-up waits for it. It is back when it has answered.
    fn is_away(&mut self, peer: PeerId) {
        let now = Instant::now();
        if self.away.len() >= AWAY_MAX {
            self.away.retain(|_, away| away.until > now);
        }
        let away = self.away.entry(peer).or_insert(Away { until: now, pause: AWAY.0 / 2 });
        away.pause = (2 * away.pause).min(AWAY.1);
        away.until = now + away.pause;
        self.net.behaviour_mut().kad.remove_peer(&peer);
        self.met.remove(&peer);
        self.map = None;
    }

    fn on_seeds(&mut self, found: Vec<SocketAddr>) {
        self.seeds_known = found.is_empty() || found.iter().any(|seed| !self.selves.contains(seed));
        self.find(found);
    }

    /// Looks for them. One that the index does not tell of any more is a fellow for as long as it is connected.
    fn meet_fellows(&mut self, fellows: Vec<Fellow>) {
        self.fellows.retain(|peer| self.net.is_connected(peer));
        for fellow in fellows {
            self.fellows.extend(fellow.node.parse::<PeerId>().ok());
            self.find(fellow.addresses);
        }
    }

    fn find(&mut self, found: Vec<SocketAddr>) {
        for address in &found {
            self.reach.allow(address.ip());
        }
        for address in found {
            self.dial_place(address);
        }
    }

    /// Dials whoever is there, unless we are connected.
    fn dial_place(&mut self, place: SocketAddr) {
        let known = self.selves.contains(&place)
            || self.dialled.values().any(|dialled| *dialled == place)
            || self.net.listeners().any(|own| socket_address(own) == Some(place))
            || self
                .directory
                .iter()
                .any(|(peer, card)| card.addresses.contains(&place) && self.net.is_connected(peer));
        if !known {
            self.dial(DialOpts::unknown_peer_id().address(multiaddr(place)).build());
        }
    }

    fn dial_node(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let condition = PeerCondition::DisconnectedAndNotDialing;
        self.dial(DialOpts::peer_id(peer).condition(condition).addresses(addresses).build());
    }

    fn dial(&mut self, options: DialOpts) {
        if let Err(error) = self.net.dial(options) {
            tracing::trace!(%error, "not dialled");
        }
    }

    fn on_tick(&mut self, now: Instant) {
        if self.is_to_show_card(now) {
            self.show_card();
        }
        self.meet_next(now);
        self.announce_due(now);
        if now.duration_since(self.swept_at) >= SWEEP {
            self.swept_at = now;
            self.sweep(now);
        }
        if now.duration_since(self.explored_at) >= EXPLORE {
            self.explored_at = now;
            // Where there is nobody, there is nothing to explore.
            self.net.behaviour_mut().kad.bootstrap().ok();
        }
        if now.duration_since(self.saved_at) >= SAVE {
            self.saved_at = now;
            self.save_places();
        }
    }

    fn sweep(&mut self, now: Instant) {
        for peer in self.directory.expire(wall_clock()) {
            self.net.behaviour_mut().kad.remove_peer(&peer);
            self.map = None;
        }
        self.net.behaviour_mut().kad.store_mut().sweep(now);
        self.rates.sweep(now);
        self.connect_more(now);
        self.count(now);
    }

    /// Dials nodes of which others told, or that were lost, so that parts of a swarm find each other.
    fn connect_more(&mut self, now: Instant) {
        if self.leaving || self.net.connected_peers().count() >= CONNECTED_MIN {
            return;
        }
        let is_back = |peer: &PeerId| self.away.get(peer).is_none_or(|away| away.until <= now);
        let wanted: Vec<(PeerId, Vec<Multiaddr>)> = self
            .directory
            .iter()
            .filter(|(peer, card)| {
                !card.addresses.is_empty() && !self.net.is_connected(peer) && is_back(peer)
            })
            .take(DIALS_MAX)
            .map(|(peer, card)| (*peer, self.reachable(&card.addresses)))
            .collect();
        for (peer, addresses) in wanted {
            self.dial_node(peer, addresses);
        }
    }

    fn reachable(&self, addresses: &[SocketAddr]) -> Vec<Multiaddr> {
        let permitted = addresses.iter().filter(|address| self.reach.permits(address.ip()));
        permitted.map(|address| multiaddr(*address)).collect()
    }

    fn count(&mut self, now: Instant) {
        let status = self.status_at(now);
        let records = self.net.behaviour_mut().kad.store_mut().evicted();
        let metrics = &self.metrics;
        metrics.connected.set(gauge(status.connected));
        metrics.connected_others.set(gauge(status.connected_others));
        metrics.table.set(gauge(status.table));
        metrics.cards.set(gauge(status.cards));
        metrics.records.set(gauge(status.records));
        metrics.announced.set(gauge(status.announced));
        metrics.records_evicted.inc_by(records.saturating_sub(metrics.records_evicted.get()));
        metrics.due.set(gauge(status.announce_due));
        metrics.late.set(gauge(status.announce_late));
        metrics.announce_lag.set(i64::try_from(status.announce_lag).unwrap_or(i64::MAX));
    }

    fn save_places(&self) {
        let Some(home) = &self.home else { return };
        let reachable = |address: &&SocketAddr| self.reach.permits(address.ip());
        let places: Vec<SocketAddr> = self
            .directory
            .iter()
            .filter_map(|(_, card)| card.addresses.iter().find(reachable).copied())
            .take(PLACES_MAX)
            .collect();
        if !places.is_empty()
            && let Err(error) = home.save_places(&places)
        {
            tracing::warn!(%error, "could not write down where other nodes are");
        }
    }

    fn status(&mut self) -> Status {
        self.status_at(Instant::now())
    }

    fn status_at(&mut self, now: Instant) -> Status {
        let kad = &mut self.net.behaviour_mut().kad;
        let records = kad.store_mut().len();
        let table = kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        let others =
            self.net.connected_peers().filter(|peer| !self.fellows.contains(*peer)).count();
        Status {
            node: self.me.to_string(),
            site: self.config.site.clone(),
            swarm: self.swarm_name.clone(),
            addresses: self.own_addresses(),
            ready: table > 0 || !self.seeds_known,
            alone: others == 0 && self.seeds_known,
            connected: self.net.connected_peers().count(),
            connected_others: others,
            table,
            cards: self.directory.len(),
            records,
            announced: self.announcing.len(),
            filter: self.filter,
            announce_lag: self.announcing.lag(now).as_secs(),
            announce_due: self.announcing.due_for(Duration::ZERO, now),
            announce_late: self.announcing.due_for(LATE, now),
            announce_ttl: self.config.announce_ttl.as_secs(),
        }
    }

    fn peers(&self) -> Vec<Peer> {
        let now = wall_clock();
        let peers = self.directory.iter();
        peers.map(|(peer, _)| self.peer(peer, now)).collect::<Option<_>>().unwrap_or_default()
    }

    fn peer(&self, peer: &PeerId, now: u64) -> Option<Peer> {
        let card = self.directory.card(peer)?;
        Some(Peer {
            node: peer.to_string(),
            site: card.site.clone(),
            urls: card.urls.clone(),
            filter: card.filter,
            addresses: card.addresses.clone(),
            connected: self.net.is_connected(peer),
            card_age: now.saturating_sub(card.issued) / 1_000,
        })
    }

    /// Shows all who are connected a card that says that there is nothing to be had here any more: so
    /// nobody is sent to a site that is down.
    async fn leave(&mut self) {
        self.leaving = true;
        self.save_places();
        self.show_card();
        let shown = async {
            while !self.sent.is_empty() {
                let event = self.net.select_next_some().await;
                self.on_event(event);
            }
        };
        if timeout(GOODBYE_MAX, shown).await.is_err() {
            tracing::debug!("not all nodes have heard the goodbye");
        }
    }
}

/// Listens there, and tells the first address, which may have been left to the system.
async fn listen(net: &mut Swarm<Net>, addresses: &[SocketAddr]) -> anyhow::Result<SocketAddr> {
    for address in addresses {
        ensure_free(*address).await?;
    }
    let mut waits = 0;
    for address in addresses {
        match net.listen_on(multiaddr(*address)) {
            // What stands for all addresses is not heard of as long as there are none.
            Ok(_) if has_none_like(*address).await => {}
            Ok(_) => waits += 1,
            // The default names both families, and a machine may have one.
            Err(error) if address.ip().is_unspecified() && addresses.len() > 1 => {
                tracing::info!(%address, %error, "could not listen there (listen.dht)");
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("could not listen on {address} (listen.dht)"));
            }
        }
    }
    let listening = async {
        let mut heard = std::collections::HashSet::new();
        while heard.len() < waits {
            match net.select_next_some().await {
                SwarmEvent::NewListenAddr { listener_id, .. } => drop(heard.insert(listener_id)),
                SwarmEvent::ListenerClosed { reason: Err(error), .. }
                | SwarmEvent::ListenerError { error, .. } => return Err(error),
                _ => {}
            }
        }
        Ok(())
    };
    timeout(LISTEN_MAX, listening).await.context("no address to listen on (listen.dht)")??;
    if addresses.iter().any(|address| address.ip().is_unspecified()) {
        // Loopback is heard of first, the addresses at which others find us a moment later. A machine that has
        // none does without.
        let only_loopback = |net: &Swarm<Net>| {
            net.listeners().filter_map(socket_address).all(|address| address.ip().is_loopback())
        };
        let settling = async {
            while only_loopback(net) {
                net.select_next_some().await;
            }
        };
        drop(timeout(SETTLE_MAX, settling).await);
    }
    let first = net.listeners().find_map(socket_address);
    first.context("no address to listen on (listen.dht)")
}

/// Whether it stands for all addresses of a family of which the machine has not even loopback, as containers
/// have none of IPv6.
async fn has_none_like(address: SocketAddr) -> bool {
    let loopback: IpAddr = match address.ip() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    address.ip().is_unspecified() && TcpListener::bind((loopback, 0)).await.is_err()
}

/// libp2p shares its port with whoever wants to (`SO_REUSEPORT`, so that it may dial from it): a second
/// node there would take half of the first one's visitors.
async fn ensure_free(address: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(address).await {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(error).with_context(|| format!("could not listen on {address} (listen.dht)"))
        }
        // What else may be in the way is seen when it listens.
        _ => Ok(()),
    }
}

/// Milliseconds since 1970.
fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    directory::millis(since)
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
