//! Meeting other nodes: cards go both ways, and with each meeting those of others.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::request_response::{Event, Message, OutboundRequestId, ResponseChannel};

use super::{Node, Sent, wall_clock};
use crate::content::card::{Signed, URLS_MAX};
use crate::dht::directory::{self, LIFE, Taken, millis};
use crate::dht::message::{Answer, Ask, Known};
use crate::dht::network::{SENT_MAX, Talk};
use crate::dht::reach::socket_address;

/// How often one of the connected nodes is met again: to hear what is new, and whether it is still there.
const AGAIN: Duration = Duration::from_secs(2);
/// After how long, at least, a card that changed is shown to all again; and how much later for each of them.
const SHOWN_FOR: (Duration, Duration) = (Duration::from_secs(3), Duration::from_millis(200));

/// Messages that wait for one node: what is announced may be withdrawn all at once, four thousand keys in
/// each. What is beyond that is not sent.
const WAITING_MAX: usize = 64;

type TalkEvent = Event<<Talk as libp2p::request_response::Codec>::Request, Answer>;

impl Node {
    pub(super) fn on_talk(&mut self, event: TalkEvent) {
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                let answer = self.answer(peer, request);
                self.reply(channel, answer);
            }
            Event::Message {
                peer, message: Message::Response { request_id, response }, ..
            } => {
                self.on_answer(peer, request_id, response);
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                tracing::debug!(%peer, %error, "a node did not answer");
                if let Some((_, sent)) = self.sent.remove(&request_id) {
                    self.not_sent(sent);
                }
                for (_, sent) in self.waiting.remove(&peer).unwrap_or_default() {
                    self.not_sent(sent);
                }
                // Who can be reached, and does not answer, is no better than one who is gone.
                self.hang_up(peer);
                self.is_away(peer);
            }
            Event::InboundFailure { .. } | Event::ResponseSent { .. } => {}
        }
    }

    fn answer(&mut self, peer: PeerId, ask: Ask) -> Option<Answer> {
        match ask {
            Ask::Meet { card, known } => {
                if !self.take_own_card(peer, &card) {
                    self.hang_up(peer);
                    return None;
                }
                // It has to answer us before it gets into the table.
                if !self.met.contains(&peer) && !self.leaving {
                    self.meet(peer);
                }
                Some(self.cards_for(&known))
            }
            Ask::Announce { seconds, keys } => {
                Some(self.take_records(peer, Duration::from_secs(seconds.into()), &keys))
            }
            Ask::Withdraw { keys } => Some(self.forget_records(peer, &keys)),
        }
    }

    fn on_answer(&mut self, peer: PeerId, id: OutboundRequestId, answer: Answer) {
        match (self.sent.remove(&id), answer) {
            (Some((_, Sent::Card)), Answer::Cards(cards)) => self.take_cards(peer, &cards),
            (Some((_, Sent::Announced(_))), Answer::Done { taken, refused }) => {
                self.announce_done(taken, refused);
            }
            (Some((_, Sent::Withdrawn | Sent::Promised)), Answer::Done { .. }) | (None, _) => {}
            (Some(_), _) => self.hang_up(peer),
        }
        self.send_next(peer);
    }

    /// Shows a node our card, and asks for its own and for those that are new.
    pub(super) fn meet(&mut self, peer: PeerId) {
        let underway =
            self.sent.values().any(|(to, sent)| *to == peer && matches!(sent, Sent::Card));
        if !underway || self.leaving {
            let known = self.directory.known();
            self.send(peer, Ask::Meet { card: self.card.as_bytes().to_vec(), known }, Sent::Card);
        }
    }

    pub(super) fn send(&mut self, peer: PeerId, ask: Ask, sent: Sent) {
        let is_busy = || self.sent.values().filter(|(to, _)| *to == peer).count() >= SENT_MAX;
        if !matches!(sent, Sent::Card) && is_busy() {
            self.send_later(peer, ask, sent);
            return;
        }
        let addresses = self.directory.card(&peer).map(|card| self.reachable(&card.addresses));
        let talk = &mut self.net.behaviour_mut().talk;
        let id = talk.send_request_with_addresses(&peer, ask, addresses.unwrap_or_default());
        self.sent.insert(id, (peer, sent));
    }

    fn send_later(&mut self, peer: PeerId, ask: Ask, sent: Sent) {
        let waiting = self.waiting.entry(peer).or_default();
        if waiting.len() < WAITING_MAX {
            waiting.push_back((ask, sent));
        } else {
            self.not_sent(sent);
        }
    }

    fn send_next(&mut self, peer: PeerId) {
        let Some(waiting) = self.waiting.get_mut(&peer) else { return };
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&peer);
        }
        if let Some((ask, sent)) = next {
            self.send(peer, ask, sent);
        }
    }

    fn not_sent(&mut self, sent: Sent) {
        if let Sent::Announced(keys) = sent {
            self.announce_failed(&keys);
        }
    }

    /// Meets the next of the connected nodes, in turn.
    pub(super) fn meet_next(&mut self, now: Instant) {
        if now.duration_since(self.met_at) < AGAIN {
            return;
        }
        self.met_at = now;
        if self.round.is_empty() {
            self.round.extend(self.net.connected_peers().copied());
        }
        while let Some(peer) = self.round.pop_front() {
            if self.net.is_connected(&peer) {
                self.meet(peer);
                return;
            }
        }
    }

    /// Signs our card anew and shows it to all who are connected.
    pub(super) fn show_card(&mut self) {
        self.sign_card();
        self.shown_at = Instant::now();
        let connected: Vec<PeerId> = self.net.connected_peers().copied().collect();
        for peer in connected {
            self.meet(peer);
        }
    }

    pub(super) fn sign_card(&mut self) {
        self.card_changed = false;
        let issued = wall_clock().max(self.card.card.issued + 1);
        // Who gives nothing names no place to get it from.
        let gives = self.config.announce && !self.leaving;
        let urls = if gives { self.peer_urls() } else { Vec::new() };
        let addresses = if self.leaving { Vec::new() } else { self.own_addresses() };
        let (site, filter) = (&self.config.site, self.filter);
        let card = directory::own_card(&self.identity, issued, site, filter, &urls, addresses);
        self.card = directory::sign(&self.identity, card);
    }

    /// A filter that grows changes the card every few seconds, and nobody shall spend his time on cards.
    pub(super) fn is_to_show_card(&self, now: Instant) -> bool {
        let connected = u32::try_from(self.net.connected_peers().count()).unwrap_or(u32::MAX);
        let (at_least, for_each) = SHOWN_FOR;
        let pause = at_least + for_each.saturating_mul(connected);
        let is_old = wall_clock().saturating_sub(self.card.card.issued) > millis(LIFE / 6);
        is_old || (self.card_changed && now.duration_since(self.shown_at) >= pause)
    }

    /// Where others fetch from this site: as advertised, else from the peer port wherever the node is
    /// found.
    fn peer_urls(&self) -> Vec<String> {
        let Some(peer) = self.config.peer.filter(|_| self.config.advertise.is_empty()) else {
            return self.config.advertise.clone();
        };
        if !peer.ip().is_unspecified() {
            return vec![format!("http://{peer}")];
        }
        let mut hosts: Vec<IpAddr> = Vec::new();
        for ip in self.own_addresses().iter().map(SocketAddr::ip) {
            // Who listens on `[::]` is there over IPv4 too.
            if (ip.is_ipv4() || peer.is_ipv6()) && !hosts.contains(&ip) {
                hosts.push(ip);
            }
        }
        let urls = hosts.iter().map(|ip| format!("http://{}", SocketAddr::new(*ip, peer.port())));
        urls.take(URLS_MAX).collect()
    }

    /// Where we listen, and where we are told to be reached: a card has no room for what is of no use
    /// elsewhere.
    pub(super) fn own_addresses(&self) -> Vec<SocketAddr> {
        let listening: Vec<SocketAddr> = self.net.listeners().filter_map(socket_address).collect();
        let Some(port) = listening.first().map(SocketAddr::port) else { return Vec::new() };
        let advertised = self.config.advertise.iter().filter_map(|url| host_address(url, port));
        let permitted = listening.iter().filter(|address| self.reach.permits(address.ip()));
        let mut addresses: Vec<SocketAddr> = Vec::new();
        // What is advertised comes first: a card may not have room for all.
        for address in advertised.chain(permitted.copied()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        // Better one that is hard to reach than none, but for loopback, which is another machine's own to others, unless
        // it was named.
        let is_told = |first: &&SocketAddr| {
            let is_named = self.config.listen.iter().any(|named| named.ip() == first.ip());
            is_named || !first.ip().is_loopback()
        };
        addresses.extend(listening.first().filter(is_told).filter(|_| addresses.is_empty()));
        addresses
    }

    fn cards_for(&self, known: &[Known]) -> Answer {
        let mut cards = vec![self.card.as_bytes().to_vec()];
        cards.extend(self.directory.lacking(known));
        Answer::Cards(cards)
    }

    /// Takes the cards that a node answered with: its own, and others'.
    fn take_cards(&mut self, peer: PeerId, cards: &[Vec<u8>]) {
        let Some((own, others)) = cards.split_first() else { return };
        if !self.take_own_card(peer, own) {
            self.hang_up(peer);
            return;
        }
        self.has_answered(peer);
        for card in others.iter().filter_map(|card| Signed::parse(card)) {
            self.take_card(card, peer);
        }
        let addresses = self.directory.card(&peer).map(|card| self.reachable(&card.addresses));
        for address in addresses.unwrap_or_default() {
            self.net.behaviour_mut().kad.add_address(&peer, address);
        }
    }

    /// Who answers is there. One that has not since it was connected may have started anew, with no
    /// records: to be connected is not enough, as who never answers can do that again and again.
    fn has_answered(&mut self, peer: PeerId) {
        if self.away.remove(&peer).is_some() {
            self.map = None;
        }
        if self.met.insert(peer) {
            self.announcing.joined(peer, Instant::now());
        }
    }

    /// Takes a node's card from its own hand; whether it is one, and its own. Where there is no room for
    /// it, the node may ask all the same.
    fn take_own_card(&mut self, peer: PeerId, card: &[u8]) -> bool {
        let Some(signed) = Signed::parse(card) else { return false };
        let (whose, taken) = self.take_card(signed, peer);
        whose == Some(peer) && taken != Taken::Refused
    }

    fn take_card(&mut self, signed: Signed, by: PeerId) -> (Option<PeerId>, Taken) {
        let gone = signed.card.addresses.is_empty();
        let (whose, taken) = self.directory.take(signed, by, wall_clock());
        let Some(peer) = whose else { return (whose, taken) };
        match taken {
            Taken::New | Taken::Instead(_) | Taken::Newer => {
                let card = self.directory.card(&peer);
                let addresses =
                    card.map(|card| self.reachable(&card.addresses)).unwrap_or_default();
                let kad = &mut self.net.behaviour_mut().kad;
                kad.store_mut().set_addresses(&peer, &addresses);
                if gone {
                    kad.remove_peer(&peer);
                }
                if let Taken::Instead(gone) = taken {
                    kad.remove_peer(&gone);
                }
                if taken != Taken::Newer {
                    self.announcing.joined(peer, Instant::now());
                }
                self.map = None;
                self.card_came(&peer);
            }
            Taken::Full | Taken::Refused => {
                self.metrics.cards_refused.inc();
                tracing::debug!(%peer, ?taken, "a card was not taken");
            }
            Taken::Known => {}
        }
        (whose, taken)
    }

    fn hang_up(&mut self, peer: PeerId) {
        // It may have done so itself.
        self.net.disconnect_peer_id(peer).ok();
    }

    fn reply(&mut self, channel: ResponseChannel<Answer>, answer: Option<Answer>) {
        let Some(answer) = answer else { return };
        // Who asked may be gone.
        drop(self.net.behaviour_mut().talk.send_response(channel, answer));
    }
}

/// The node is where the site's peer port is, if that is an address.
fn host_address(url: &str, port: u16) -> Option<SocketAddr> {
    match url::Url::parse(url).ok()?.host()? {
        url::Host::Ipv4(ip) => Some((ip, port).into()),
        url::Host::Ipv6(ip) => Some((ip, port).into()),
        url::Host::Domain(_) => None,
    }
}
