//! The wire: TCP, encrypted with the swarm's key before a word is said, then with the nodes' own; over it
//! Kademlia under a name of our own, and what nodes say to each other beside that.

use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::upgrade::Version;
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::identity::Keypair;
use libp2p::kad::{self, BucketInserts, Mode, StoreInserts};
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::request_response::{self, Codec, ProtocolSupport};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{self, NetworkBehaviour};
use libp2p::{PeerId, StreamProtocol, Swarm, Transport as _, mdns, noise, tcp, yamux};

use crate::dht::message::{Answer, Ask, SIZE_MAX};
use crate::dht::reach::{Guarded, Reach};
use crate::dht::records::Records;

const KADEMLIA: StreamProtocol = StreamProtocol::new("/aptmesh/kad/1");
const TALK: StreamProtocol = StreamProtocol::new("/aptmesh/swarm/1");

/// Nodes asked at a time in a look-up.
const PARALLELISM: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// Closest nodes that must have answered before a look-up ends in vain: more than keep a record.
const BREADTH: NonZeroUsize = NonZeroUsize::new(12).unwrap();
/// For how long a connection may take to be set up.
const SETUP_MAX: Duration = Duration::from_secs(4);
/// For how long a node may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// For how long any search goes on; those for others' sake end sooner.
const QUERY_MAX: Duration = Duration::from_secs(20);
/// For how long a connection that nobody uses is kept.
const IDLE_MAX: Duration = Duration::from_mins(10);
/// Connections being set up from elsewhere: strangers may be among them.
const PENDING_MAX: u32 = 128;
/// Connections from elsewhere.
const INCOMING_MAX: u32 = 768;
/// Connections being set up by us: to all whom we know, at the most.
const DIALLED_MAX: u32 = 1_024;
/// Connections of one node: both may dial at the same time.
const OF_A_NODE_MAX: u32 = 3;
/// Messages of up to 128 KiB under way at a time over one connection, in both directions together.
const STREAMS_MAX: usize = 32;
/// Of these, those that one side sends: the rest wait for their turn, as libp2p has no place for them.
pub(super) const SENT_MAX: usize = 12;

const _: () = assert!(2 * (SENT_MAX + 1) <= STREAMS_MAX, "each side's, and its card");

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub(super) struct Net {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) kad: kad::Behaviour<Records>,
    pub(super) talk: request_response::Behaviour<Talk>,
    pub(super) lan: Toggle<mdns::tokio::Behaviour>,
}

/// Puts the network together; nothing is dialled or listened on yet.
pub(super) fn build(
    identity: &Keypair,
    pre_shared: [u8; 32],
    reach: &Reach,
    lan: bool,
    records: Records,
) -> anyhow::Result<Swarm<Net>> {
    let me = identity.public().to_peer_id();
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let private = PnetConfig::new(PreSharedKey::new(pre_shared));
    let transport = Guarded { inner: tcp, reach: reach.clone() }
        .and_then(move |socket, _| private.handshake(socket))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(identity)?)
        .multiplex(yamux::Config::default())
        .timeout(SETUP_MAX)
        .boxed();
    let lan = lan.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), me)).transpose()?;
    let net = Net {
        limits: connection_limits::Behaviour::new(limits()),
        kad: kademlia(me, records),
        talk: request_response::Behaviour::new(
            [(TALK, ProtocolSupport::Full)],
            request_response::Config::default()
                .with_request_timeout(ANSWER_MAX)
                .with_max_concurrent_streams(STREAMS_MAX),
        ),
        lan: lan.into(),
    };
    let config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE_MAX);
    Ok(Swarm::new(transport, net, me, config))
}

fn limits() -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_MAX))
        .with_max_pending_outgoing(Some(DIALLED_MAX))
        .with_max_established_incoming(Some(INCOMING_MAX))
        .with_max_established_per_peer(Some(OF_A_NODE_MAX))
}

fn kademlia(me: PeerId, records: Records) -> kad::Behaviour<Records> {
    let mut config = kad::Config::new(KADEMLIA);
    config
        .set_parallelism(PARALLELISM)
        .set_replication_factor(BREADTH)
        .set_query_timeout(QUERY_MAX)
        .set_substreams_timeout(ANSWER_MAX)
        // Who has answered us gets into the table, nobody else.
        .set_kbucket_inserts(BucketInserts::Manual)
        // Records come another way, in bulk, and are confirmed; what comes this way is dropped.
        .set_record_filtering(StoreInserts::FilterBoth)
        // It complains where there is nobody; the node does it by itself.
        .set_periodic_bootstrap_interval(None)
        .set_provider_publication_interval(None)
        .set_publication_interval(None)
        .set_replication_interval(None);
    let mut kad = kad::Behaviour::with_config(me, records, config);
    kad.set_mode(Some(Mode::Server));
    kad
}

/// Messages are framed by the end of the stream.
#[derive(Clone, Default)]
pub(super) struct Talk;

impl Codec for Talk {
    type Protocol = StreamProtocol;
    type Request = Ask;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Ask>
    where
        T: AsyncRead + Unpin + Send,
    {
        Ask::parse(&read(io).await?).ok_or_else(nonsense)
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        Answer::parse(&read(io).await?).ok_or_else(nonsense)
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, ask: Ask) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&ask.to_bytes()).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        answer: Answer,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&answer.to_bytes()).await
    }
}

async fn read(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(u64::try_from(SIZE_MAX).unwrap_or(u64::MAX)).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no message of ours")
}
