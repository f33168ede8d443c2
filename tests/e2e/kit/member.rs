//! A member of a swarm that says what it likes: the wire of `aptmesh dht`, spoken by hand.

use aptmesh::content::card::Card;
use aptmesh::content::swarm_key::{DhtKey, SwarmKey};
use aptmesh::dht::message::{Answer, Ask};
use libp2p::core::upgrade::Version;
use libp2p::futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _,
};
use libp2p::identity::Keypair;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::request_response::{self, Codec, Event, Message, ProtocolSupport};
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, Transport as _, noise, tcp, yamux};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::runtime::Runtime;

const TALK: StreamProtocol = StreamProtocol::new("/aptmesh/swarm/1");

/// A member, connected to one node.
pub struct Member {
    runtime: Runtime,
    net: Swarm<request_response::Behaviour<Talk>>,
    identity: Keypair,
    node: PeerId,
}

impl Member {
    /// One of the swarm with this key, that knows of the node there and nobody else.
    pub fn of(key: &str, node: SocketAddr) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let identity = Keypair::generate_ed25519();
        let key: SwarmKey = key.parse().expect("a swarm's key");
        let (net, node) = runtime.block_on(async {
            let mut net = network(&identity, &key);
            let dial = DialOpts::unknown_peer_id().address(address(node)).build();
            net.dial(dial).expect("to dial");
            loop {
                match net.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { peer_id, .. } => return (net, peer_id),
                    SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                    _ => {}
                }
            }
        });
        Self { runtime, net, identity, node }
    }

    /// Its card, issued so many milliseconds before now.
    fn card(&self, age: u64) -> Vec<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let public = self.identity.public().try_into_ed25519().expect("of its kind").to_bytes();
        let card = Card {
            node: public,
            issued: u64::try_from(now).unwrap() - age,
            filter: 0,
            site: "by hand".to_owned(),
            urls: vec!["http://127.0.0.1:9".to_owned()],
            addresses: Vec::new(),
        };
        let sign = |message: &[u8]| self.identity.sign(message).unwrap().try_into().unwrap();
        card.sign(sign).as_bytes().to_vec()
    }

    /// Shows the node a card that is so many milliseconds old.
    pub fn show_card(&mut self, age: u64) -> Option<Answer> {
        let card = self.card(age);
        self.ask(&Ask::Meet { card, known: Vec::new() })
    }

    /// Announces these for an hour; how many the node took.
    pub fn announce(&mut self, keys: Vec<DhtKey>) -> u32 {
        match self.ask(&Ask::Announce { seconds: 3600, keys }) {
            Some(Answer::Done { taken, .. }) => taken,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, ask: &Ask) -> Option<Answer> {
        // The node asks, too.
        let own = Answer::Cards(vec![self.card(0)]).to_bytes();
        let Self { runtime, net, node, .. } = self;
        runtime.block_on(async {
            let id = net.behaviour_mut().send_request(node, ask.to_bytes());
            loop {
                let SwarmEvent::Behaviour(event) = net.select_next_some().await else { continue };
                match event {
                    Event::Message { message, .. } => match message {
                        Message::Response { request_id, response } if request_id == id => {
                            return Answer::parse(&response);
                        }
                        Message::Request { channel, .. } => {
                            drop(net.behaviour_mut().send_response(channel, own.clone()));
                        }
                        Message::Response { .. } => {}
                    },
                    Event::OutboundFailure { request_id, .. } if request_id == id => return None,
                    _ => {}
                }
            }
        })
    }
}

fn network(identity: &Keypair, key: &SwarmKey) -> Swarm<request_response::Behaviour<Talk>> {
    let private = PnetConfig::new(PreSharedKey::new(key.pre_shared()));
    let transport = tcp::tokio::Transport::new(tcp::Config::default())
        .and_then(move |socket, _| private.handshake(socket))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(identity).expect("noise"))
        .multiplex(yamux::Config::default())
        .boxed();
    let protocols = [(TALK, ProtocolSupport::Full)];
    let talk = request_response::Behaviour::new(protocols, request_response::Config::default());
    let config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(std::time::Duration::from_secs(600));
    Swarm::new(transport, talk, identity.public().to_peer_id(), config)
}

fn address(of: SocketAddr) -> Multiaddr {
    let IpAddr::V4(ip) = of.ip() else { panic!("{of}") };
    format!("/ip4/{ip}/tcp/{}", of.port()).parse().expect("an address")
}

/// Messages as they are on the wire.
#[derive(Clone, Default)]
struct Talk;

impl Codec for Talk {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        message: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&message).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        message: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&message).await
    }
}

async fn read(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).await?;
    Ok(bytes)
}
