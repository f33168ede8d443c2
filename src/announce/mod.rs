//! What a site tells the swarm of itself: reads in the index what may be told, and has the node announce
//! it, once for each site and blob however many nodes a site has; and keeps the site's have-filter.

mod filter;
mod known;
mod share;
mod site;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::filter::Builder;
use self::known::{Difference, Known};
use self::share::Share;
use self::site::Nodes;
use crate::content::swarm_key::SwarmKey;
use crate::dht::Dht;
use crate::index::{Index, IndexError};

/// How often it is looked what is new.
const ROUND: Duration = Duration::from_secs(2);
/// How often all is looked through: what a crash or a long sleep made it miss is seen then.
const LOOK_THROUGH: Duration = Duration::from_mins(10);
/// Keys that the node is given at a time: it does other things in between.
const AT_A_TIME: usize = 10_000;
/// For how long it may take to give up what is held.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// What is told, and to whom.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which swarm.
    pub key: SwarmKey,
    /// Whether anything is told.
    pub announce: bool,
}

/// Tells, until it is to leave.
pub struct Announcer {
    over: CancellationToken,
    tasks: TaskTracker,
}

impl Announcer {
    /// Begins to tell the swarm of what is in the index.
    #[must_use]
    pub fn start(index: Arc<dyn Index>, dht: Dht, config: Config) -> Self {
        let (over, tasks) = (CancellationToken::new(), TaskTracker::new());
        let teller = Teller {
            nodes: Nodes::default(),
            builder: Builder::new(config.key),
            announces: config.announce,
            index,
            dht,
            known: Known::default(),
            share: Share::default(),
            mark: None,
            looked_through: None,
            is_troubled: false,
        };
        tasks.spawn(teller.run(over.clone()));
        tasks.close();
        Self { over, tasks }
    }

    /// Has the site's other nodes take over at once.
    pub async fn leave(&self) {
        self.over.cancel();
        if timeout(LEAVE_MAX, self.tasks.wait()).await.is_err() {
            tracing::debug!("other nodes of the site will notice later that this one has left");
        }
    }
}

struct Teller {
    index: Arc<dyn Index>,
    dht: Dht,
    announces: bool,
    nodes: Nodes,
    /// What may be told.
    known: Known,
    /// Which of it is this node's to announce.
    share: Share,
    builder: Builder,
    /// Up to where changes were seen; `None`: all has to be looked through.
    mark: Option<String>,
    looked_through: Option<Instant>,
    is_troubled: bool,
}

impl Teller {
    async fn run(mut self, over: CancellationToken) {
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = over.cancelled() => break,
                _ = rounds.tick() => {}
            }
            tokio::select! {
                () = over.cancelled() => break,
                told = self.round() => self.note(told),
            }
        }
        self.nodes.leave(&*self.index).await;
    }

    /// What could not be done is done in the next round.
    fn note(&mut self, told: Result<(), IndexError>) {
        match told {
            Ok(()) => self.is_troubled = false,
            Err(error) => {
                if !self.is_troubled && !error.is_old_news() {
                    let source = &error.source;
                    tracing::warn!(%error, %source, "the swarm is not told what is new until the index answers");
                }
                self.is_troubled = true;
            }
        }
    }

    async fn round(&mut self) -> Result<(), IndexError> {
        self.nodes.meet(&*self.index, &self.dht, self.announces).await?;
        if !self.announces {
            return Ok(());
        }
        let share = Share::of(self.nodes.me(), self.nodes.announcing());
        let is_other = share != self.share;
        self.share = share;
        let seen_all = self.is_to_look_through();
        let difference = if seen_all { self.look_through().await? } else { self.look().await? };
        self.builder.note(&difference);
        if seen_all || is_other {
            self.announce_all().await;
        } else {
            self.announce(&difference).await;
        }
        let lease = self.nodes.builders_lease();
        let built = self.builder.build(&*self.index, lease, &self.known).await;
        if built.as_ref().is_err_and(IndexError::is_fenced_off) {
            self.nodes.let_go_of_filter();
        }
        self.dht.set_filter(built?).await;
        Ok(())
    }

    fn is_to_look_through(&self) -> bool {
        self.mark.is_none() || self.looked_through.is_none_or(|at| at.elapsed() >= LOOK_THROUGH)
    }

    async fn look_through(&mut self) -> Result<Difference, IndexError> {
        self.mark = None;
        // Before: what changes meanwhile is seen again.
        let mark = self.index.changes_since(None).await?.mark;
        let all = Known::read(&*self.index).await?;
        let difference = self.known.become_of(all);
        self.mark = Some(mark);
        self.looked_through = Some(Instant::now());
        Ok(difference)
    }

    async fn look(&mut self) -> Result<Difference, IndexError> {
        let changes = self.index.changes_since(self.mark.as_deref()).await?;
        if changes.are_too_many {
            return self.look_through().await;
        }
        self.mark = Some(changes.mark);
        Ok(self.known.change(&changes.blobs))
    }

    /// What is announced is our share of what is known, whatever it was before.
    async fn announce_all(&mut self) {
        let ours = self.known.iter().filter(|(digest, _)| self.share.has(digest));
        self.dht.announce_only(ours).await;
    }

    async fn announce(&mut self, difference: &Difference) {
        let came = difference.came.iter().copied();
        let ours: Vec<_> = came.filter(|(digest, _)| self.share.has(digest)).collect();
        for blobs in ours.chunks(AT_A_TIME) {
            self.dht.announce(blobs).await;
        }
        for blobs in difference.went.chunks(AT_A_TIME) {
            self.dht.withdraw(blobs).await;
        }
        for blobs in difference.passed.chunks(AT_A_TIME) {
            self.dht.withdraw_provisional(blobs).await;
        }
    }
}
