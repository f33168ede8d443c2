//! A download from many peers at once.
//!
//! The mirror's part is the ordinary flow from the file's beginning, but on a leash: `lead.rs` says how far
//! it is to go. Peers bring the rest, from the other end; `board.rs` knows who brings what, `ahead.rs`
//! what is there, and whose it was. None of it leaves before the whole has the right digest. If that turns
//! out to be wrong, the mirror goes on where it is, and what it brings tells whose bytes were wrong.

pub(in crate::engine) mod ahead;
pub(in crate::engine) mod board;
mod givers;
mod lead;
pub(in crate::engine) mod leash;
mod peers;

use std::pin::pin;
use std::sync::Arc;

use tokio::time::Instant;

use crate::content::digest::{Expected, Hasher, Sha256};
use crate::engine::fellows::is_lasting;
use crate::engine::flight::ask::{Arrival, Asked};
use crate::engine::flight::flow::Beginning;
use crate::engine::flight::gather::leash::Leash;
use crate::engine::flight::gather::peers::Gathering;
use crate::engine::flight::transfer::{Arrived, Transfer};
use crate::engine::flight::writer::{TAIL, Writer};
use crate::engine::flight::{By, Flight, Flow, Landing};
use crate::engine::outcome::{Failure, Meta};
use crate::engine::without_index;
use crate::swarm::Swarm;
use crate::swarm::discovery::Holder;

/// What came of it.
pub(in crate::engine::flight) enum Gathered {
    /// All that can be had, which may be nothing.
    Done(Option<Arrived>),
    /// There is nobody to gather it from.
    NotTried,
}

/// Why the mirror does not bring it.
enum Unled {
    /// It has not begun.
    NotBegun(Failure),
    /// It broke off.
    Cut(String),
    /// The volume took no more before there was anything for clients.
    Unstorable,
}

impl Transfer {
    /// Gathers the file from peers, with the mirror's help as far as need be.
    pub(in crate::engine::flight) async fn gather(
        &self,
        flight: &Arc<Flight>,
        deadline: Instant,
    ) -> Gathered {
        let Some((swarm, blob)) = self.gatherable() else { return Gathered::NotTried };
        // What no list names is nobody's to give, and its size would be a peer's word.
        let Some(size) = self.listed_size(&blob).await else { return Gathered::NotTried };
        let claimed = swarm.discovery.claimed(&blob);
        if claimed.is_empty() && size < self.engine.announced_from {
            return Gathered::NotTried;
        }
        let Ok(staged) = self.engine.room.stage(Some(size)).await else {
            flight.land(Landing::Unstorable);
            return Gathered::Done(None);
        };
        let hasher = Hasher::new(Some(Expected::Sha256(blob)));
        let writer = Writer::gather(staged, hasher, TAIL, Arc::clone(flight), size);
        let gathering = Gathering::new(self, swarm, flight, &writer, blob, size);
        let flow = match self.led(flight, &gathering, claimed, &writer, deadline).await {
            Ok(flow) => flow,
            Err(Unled::Unstorable) => {
                flight.land(Landing::Unstorable);
                return Gathered::Done(None);
            }
            Err(Unled::NotBegun(failure)) => {
                gathering.withdraw();
                flight.land(Landing::Failed(failure));
                return Gathered::Done(None);
            }
            Err(Unled::Cut(reason)) => {
                gathering.withdraw();
                drop(gathering);
                let Some(flow) = flight.flow() else { return Gathered::Done(None) };
                return Gathered::Done(self.arrived(flight, flow, Err(reason), writer).await);
            }
        };
        flight.land(Landing::Flowing(Arc::clone(&flow)));
        let givers = gathering.over();
        let arrived = self.arrived(flight, flow, Ok(()), writer).await;
        if let Some(arrived) = &arrived {
            givers.judge(&self.engine, arrived.givers());
        }
        Gathered::Done(arrived)
    }

    /// Whom to ask, and for what.
    fn gatherable(&self) -> Option<(&Swarm, Sha256)> {
        let swarm = &*self.engine.swarm;
        let is_public = self.known.is_none() && self.may_borrow && is_lasting(self.kind);
        let blob = self.named_best().filter(|_| is_public && !swarm.is_alone())?;
        Some((swarm, blob))
    }

    /// Bytes of the whole, as a list says.
    async fn listed_size(&self, blob: &Sha256) -> Option<u64> {
        if let Some(Some(size)) = self.expectation.map(|expected| expected.size) {
            return Some(size);
        }
        // Its own name tells the digest alone.
        let listed = self.engine.index.listed_size(blob).await;
        listed.unwrap_or_else(|error| without_index(&error)).filter(|size| *size > 0)
    }

    /// Both parts, until all is there or nothing more can come.
    async fn led(
        &self,
        flight: &Arc<Flight>,
        gathering: &Gathering<'_>,
        claimed: Vec<Holder>,
        writer: &Writer,
        deadline: Instant,
    ) -> Result<Arc<Flow>, Unled> {
        let (hand, leash) = Leash::held();
        let mut by_mirror = pin!(self.by_mirror(flight, writer, gathering, leash, deadline));
        let mut by_peers = pin!(gathering.run(claimed, hand));
        let mut unled = None;
        loop {
            tokio::select! {
                led = &mut by_mirror, if unled.is_none() => match led {
                    Ok(flow) => return Ok(flow),
                    Err(Unled::Unstorable) => return Err(Unled::Unstorable),
                    Err(why) => {
                        gathering.mirror_is_out();
                        unled = Some(why);
                    }
                },
                is_right = &mut by_peers => {
                    if is_right {
                        return Ok(flight.flow().unwrap_or_else(|| self.gathered(gathering)));
                    }
                    return match unled {
                        Some(why) => Err(why),
                        // The leash went with it.
                        None => by_mirror.await,
                    };
                }
            }
        }
    }

    /// The ordinary flow, as far as the leash reaches.
    async fn by_mirror(
        &self,
        flight: &Arc<Flight>,
        writer: &Writer,
        gathering: &Gathering<'_>,
        mut leash: Leash,
        deadline: Instant,
    ) -> Result<Arc<Flow>, Unled> {
        let size = gathering.size();
        leash.reaches_beyond(0).await;
        let asked = self.ask(deadline, leash.end()).await.map_err(Unled::NotBegun)?;
        let Asked::Bytes(arrival) = asked else {
            return Err(Unled::NotBegun(Failure::internal("an answer to no question")));
        };
        let Arrival { meta, source, origin, first, body, asked, provable, .. } = *arrival;
        if writer.has_stopped() {
            return Err(Unled::Unstorable);
        }
        let meta = Meta { size: Some(size), ..meta };
        let flow = Arc::new(Flow {
            meta,
            stored: provable,
            checked: true,
            digest: None,
            source,
            origin,
            borrowed: None,
            mirrored: Some(gathering.blob()),
            by: By::Mirror,
            joined_at: None,
        });
        flight.land(Landing::Flowing(Arc::clone(&flow)));
        self.engine.leases.tell_now();
        let beginning = Beginning::Body(first, body, asked);
        let flowed = self.flow(flight, &flow, writer, beginning, &mut leash).await;
        flowed.map(|()| flow).map_err(Unled::Cut)
    }

    /// What peers alone have brought, described.
    fn gathered(&self, gathering: &Gathering<'_>) -> Arc<Flow> {
        Arc::new(Flow {
            meta: gathering.meta(),
            stored: true,
            checked: true,
            digest: None,
            source: Arc::clone(&self.target),
            origin: "peers".into(),
            borrowed: None,
            mirrored: None,
            by: By::Peers,
            joined_at: None,
        })
    }
}
