//! One flight for all replicas of a site: whoever holds its lease asks the mirror, the others follow
//! what that one stages on the volume they share, and one of them takes over when it dies.
//!
//! Followers believe no more than they have hashed: the holder tells how many bytes there are, and
//! their digest, and only what has that digest here is handed out. So it is no matter how late a
//! network volume shows what another machine wrote.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::archive::kind::Kind;
use crate::content::digest::{Hasher, Sha256};
use crate::engine::fellows::is_lasting;
use crate::engine::flight::ask::Arrival;
use crate::engine::flight::borrowed::Incoming;
use crate::engine::flight::note::{Note, Told};
use crate::engine::flight::transfer::{Arrived, Transfer, held_back};
use crate::engine::flight::{Arriving, By, Flight, Flow, Landing, State};
use crate::engine::leases::{Sight, Tenure};
use crate::engine::memory::{Known, now_seconds};
use crate::engine::plan::Standing;
use crate::index::{Entry, budget};
use crate::store::Store;

/// How often a flight passes from replica to replica before this one goes on alone.
const TURNS_MAX: u32 = 16;
/// For how long clients who have had a part wait for an index that is away. Those who have had nothing
/// do not wait: a second download is better than that.
const BLIND_MAX: Duration = Duration::from_secs(2);
/// For how long a holder's bytes may be told of, and not be seen.
const UNSEEN_MAX: Duration = Duration::from_secs(2);
/// How often it is looked again for bytes that were told of, and not seen.
const UNSEEN_LOOK: Duration = Duration::from_millis(100);
/// For how long a flight that has ended may hold its lease.
const ENDING_MAX: Duration = Duration::from_secs(1);
/// Longer keys name their lease by a digest.
const NAME_MAX: usize = 1024;
/// Bytes that are read at once to be hashed.
const READ_BUFFER: usize = 256 * 1024;
/// Bytes that are hashed in one go, for as long as one may wait for the volume.
const HASHED_AT_ONCE: u64 = 16 * 1024 * 1024;

/// How it stands with a flight of the site.
enum Turn {
    /// It is ours to fly; `None`: alone, since the index or the volume does not let us do it together.
    Ours(Option<Tenure>),
    /// Another flew it, and is not flying it any more.
    Passed,
    /// Another brought it to its end a moment ago.
    Settled,
    /// Another flies it onto a volume of its own, and may give of it.
    Elsewhere(Box<Note>),
}

/// Bytes of a file that are what its holder said.
struct Verified {
    name: Arc<str>,
    file: Arc<File>,
    hasher: Hasher,
    bytes: u64,
    /// Whether it is to be opened anew: a network volume shows by then what another machine wrote.
    is_stale: bool,
}

/// What hashing more of a file came to.
enum Compared {
    /// It is what was said, and what clients have had of it.
    Same(Verified),
    /// It is not, or not yet.
    Not(Verified),
    /// It is what was said, and not what clients have had.
    Other,
}

impl Transfer {
    /// A whole body that is to be kept, and the right to record it, if it was this replica that
    /// brought it.
    pub(super) async fn fly_for_all(
        &mut self,
        flight: &Arc<Flight>,
    ) -> Option<(Arrived, Option<Tenure>)> {
        let deadline = self.deadline();
        // It takes no lease to ask a fellow.
        if let Some(arrival) = self.borrow().await {
            return Some((self.receive(flight, arrival, deadline).await?, None));
        }
        let mut has_missed = false;
        for number in 0..TURNS_MAX {
            let turn = self.turn(flight);
            let turn = match number {
                0 => turn.await,
                // Who held it has died, which took longer than any request may wait for the index.
                _ => budget::for_at_most(budget::of_a_request(), turn).await,
            };
            match turn {
                Turn::Ours(Some(tenure)) => tokio::select! {
                    arrived = self.fly(flight, deadline) => return Some((arrived?, Some(tenure))),
                    // It was as good as dead for a while.
                    () = tenure.lost() => {}
                },
                Turn::Ours(None) => break,
                Turn::Passed => {}
                Turn::Settled => return None,
                // Clients have had a part, and the mirror is asked for the rest of just that.
                Turn::Elsewhere(_) if flight.flow().is_some() => break,
                Turn::Elsewhere(note) => match self.join(&note).await {
                    Some(arrival) => {
                        let arrived = self.receive(flight, arrival, deadline).await;
                        return arrived.map(|arrived| (arrived, None));
                    }
                    // It has just come to its end there, and may be borrowed by now.
                    None if !has_missed && self.has_answered(&note) => {
                        has_missed = true;
                        self.until_free().await;
                    }
                    None => break,
                },
            }
            if flight.is_cut() {
                return None;
            }
        }
        if flight.is_cut() {
            return None;
        }
        Some((self.fly(flight, deadline).await?, None))
    }

    async fn turn(&mut self, flight: &Arc<Flight>) -> Turn {
        let name = lease_name(&self.target.key);
        let told = Told {
            flight: Arc::clone(flight),
            volume: self.engine.leases.volume().to_owned(),
            url: self.engine.fellows.url(),
        };
        let taken = self.engine.leases.take(&name, Some(Arc::new(told))).await;
        match taken {
            Ok(Some((tenure, note))) => {
                if self.is_settled(flight).await {
                    return Turn::Settled;
                }
                self.inherit(flight, note).await;
                Turn::Ours(Some(tenure))
            }
            Ok(None) => self.follow(flight, &name).await,
            Err(error) => {
                if !error.is_old_news() {
                    tracing::warn!(%error, source = %error.source, "fetching without the other replicas");
                }
                Turn::Ours(None)
            }
        }
    }

    /// Whether another replica fetched or confirmed it, as lately as the flight's clients demand. What
    /// it fetched before that is what the mirror is to confirm.
    async fn is_settled(&mut self, flight: &Arc<Flight>) -> bool {
        let Some(entry) = self.engine.recorded(&self.target.key).await else { return false };
        let Some(known) = self.as_recorded(entry).await else {
            self.is_elsewhere = true;
            return false;
        };
        let is_confirmed = known.standing(self.window) == Standing::Confirmed;
        let is_immutable = matches!(self.kind, Kind::Package | Kind::Patch | Kind::ByHash(_));
        if is_confirmed || (is_immutable && self.known.is_none()) {
            settle(&self.engine.store, flight, known).await;
            return true;
        }
        if self.known.is_some() {
            self.known = Some(known);
        }
        false
    }

    /// What the index knows, if it is what it must be and on the volume. What memory has of it hears
    /// when another replica had it confirmed.
    async fn as_recorded(&self, entry: Entry) -> Option<Arc<Known>> {
        if self.expectation.is_some_and(|expected| expected.contradicts(entry.size, &entry.blob)) {
            return None;
        }
        match &self.known {
            Some(known) if known.entry.blob == entry.blob => {
                known.confirm_at(entry.checked_at);
                Some(Arc::clone(known))
            }
            _ => match self.engine.loaded(&self.target.key, Some(entry.clone())).await {
                None if !is_lasting(self.kind) => {
                    self.engine.bring_recorded(&self.target.key, entry).await
                }
                loaded => loaded,
            },
        }
    }

    /// Whether the holder answers, whatever it said.
    fn has_answered(&self, note: &Note) -> bool {
        note.url.as_deref().is_some_and(|url| self.engine.fellows.may_ask(url))
    }

    /// Waits until nobody holds the lease; not for long.
    async fn until_free(&self) {
        let mut watched = self.engine.leases.watch(&lease_name(&self.target.key));
        let free = async { while let Sight::Unseen | Sight::Held(_) = watched.next().await {} };
        // Who is late is met again at the next turn.
        drop(timeout(ENDING_MAX, free).await);
    }

    /// What the last holder left, where nobody here has followed it so far.
    async fn inherit(&self, flight: &Arc<Flight>, note: Option<String>) {
        if let Some(note) = note.and_then(|note| Note::read(&note))
            && flight.flow().is_none()
            && !self.is_for_admission()
            && note.volume == self.engine.leases.volume()
        {
            self.take_in(flight, &note, None).await;
        }
    }

    /// Hands on what the holder of the lease brings, for as long as somebody holds it.
    async fn follow(&self, flight: &Arc<Flight>, name: &str) -> Turn {
        let mut watched = self.engine.leases.watch(name);
        self.engine.metrics.followed.inc();
        let (mut verified, mut unseen_since) = (None::<Verified>, None);
        let mut sight = Sight::Unseen;
        loop {
            let was_blind = sight == Sight::Blind;
            sight = match unseen_since {
                None => watched.next().await,
                // What was told of may be seen by now.
                Some(_) => timeout(UNSEEN_LOOK, watched.next()).await.unwrap_or(sight),
            };
            match sight.clone() {
                Sight::Unseen => {}
                Sight::Free => return Turn::Passed,
                // Nothing new was seen: somebody else watches it under this name.
                Sight::Blind if was_blind => return Turn::Ours(None),
                Sight::Blind => {
                    unseen_since = None;
                    let patience = if flight.flow().is_some() { BLIND_MAX } else { Duration::ZERO };
                    if timeout(patience, watched.changed()).await.is_err() {
                        return Turn::Ours(None);
                    }
                }
                Sight::Held(holding) => {
                    let note = holding.note.and_then(|note| Note::read(&note));
                    let Some(note) = note.filter(|_| !self.is_for_admission()) else { continue };
                    if note.volume != self.engine.leases.volume() {
                        return Turn::Elsewhere(Box::new(note));
                    }
                    verified = self.take_in(flight, &note, verified).await;
                    // A new holder may not have come as far yet as we had.
                    let is_behind = note.written < flight.progress().borrow().written;
                    if is_behind || verified.as_ref().is_some_and(|seen| seen.bytes >= note.written)
                    {
                        unseen_since = None;
                        continue;
                    }
                    let since = unseen_since.get_or_insert_with(Instant::now);
                    if flight.is_cut() {
                        return Turn::Ours(None);
                    }
                    if since.elapsed() > UNSEEN_MAX {
                        return unseen(flight, note);
                    }
                }
            }
        }
    }

    /// Takes in what a holder tells, as far as it is true here.
    async fn take_in(
        &self,
        flight: &Arc<Flight>,
        note: &Note,
        so_far: Option<Verified>,
    ) -> Option<Verified> {
        let prefix = note.prefix()?;
        let held = flight.progress().borrow().clone();
        let verified = match so_far.filter(|verified| *verified.name == *note.file) {
            Some(stale) if stale.is_stale => self.opened_anew(stale).await?,
            Some(verified) => verified,
            None => self.begin_with(&note.file).await?,
        };
        if note.written < held.written || note.written < verified.bytes {
            // A new holder, who has not come as far yet.
            return Some(verified);
        }
        let marks = [(held.written, held.prefix), (note.written, prefix)];
        let verified = match compared(&self.engine.store, verified, marks).await? {
            Compared::Same(verified) => verified,
            Compared::Not(verified) => return Some(Verified { is_stale: true, ..verified }),
            Compared::Other => {
                let reason = "another replica went on with another version of it";
                flight.end(State::Cut(reason.into()));
                return None;
            }
        };
        if note.is_whole && !verified.hasher.clone().finish().as_expected {
            flight.end(State::Cut("another replica took it for something else".into()));
            return None;
        }
        let flow = flight.flow().unwrap_or_else(|| Arc::new(self.told(note)));
        let arriving =
            Arriving { file: Arc::clone(&verified.file), name: Arc::clone(&verified.name) };
        flight.place(arriving, note.written, held_back(&flow), prefix);
        flight.land(Landing::Flowing(flow));
        if note.is_whole {
            flight.complete();
        }
        Some(verified)
    }

    /// The body of a flight that another replica has on its own volume, from its first byte.
    async fn join(&self, note: &Note) -> Option<Arrival> {
        let digest = Sha256::of(self.target.key.as_bytes());
        let joined_at = now_seconds();
        let mut body = self.engine.fellows.join(note.url.as_deref()?, &digest).await?;
        let Flow { meta, stored, source, origin, .. } = self.told(note);
        // It may be fetching another version by now.
        if body.size() != meta.size || meta.validators.contradict(body.validators()) {
            tracing::info!(url = self.target.url, "a fellow gives something else than it told of");
            return None;
        }
        let first = body.chunk().await.ok()??;
        Some(Arrival {
            meta,
            source,
            origin,
            first,
            body: Incoming::Fellow(Box::new(body)),
            asked: None,
            provable: stored,
            borrowed: None,
            by: By::Replica,
            joined_at: Some(joined_at),
        })
    }

    async fn begin_with(&self, name: &str) -> Option<Verified> {
        let (file, hasher) = (self.opened(name).await?, Hasher::new(self.expected()));
        Some(Verified { name: name.into(), file, hasher, bytes: 0, is_stale: false })
    }

    /// With what was hashed so far.
    async fn opened_anew(&self, stale: Verified) -> Option<Verified> {
        let file = self.opened(&stale.name).await?;
        Some(Verified { file, is_stale: false, ..stale })
    }

    async fn opened(&self, name: &str) -> Option<Arc<File>> {
        let (store, name) = (Arc::clone(&self.engine.store), name.to_owned());
        let opened = self.engine.store.look(move || store.staged(&name)).await;
        opened.ok().flatten().map(Arc::new)
    }

    fn told(&self, note: &Note) -> Flow {
        let source = self.sources.iter().find(|source| source.key == note.source);
        Flow {
            meta: note.meta(),
            stored: note.stored,
            checked: note.checked || self.expectation.is_some(),
            digest: None,
            source: Arc::clone(source.unwrap_or(&self.target)),
            borrowed: None,
            origin: note.origin.as_str().into(),
            mirrored: None,
            by: By::Replica,
            joined_at: None,
        }
    }
}

/// What a holder tells of does not show on the volume: it may give it over the line.
fn unseen(flight: &Flight, note: Note) -> Turn {
    if flight.flow().is_none() && note.url.is_some() {
        Turn::Elsewhere(Box::new(note))
    } else {
        Turn::Ours(None)
    }
}

/// What is stored is what the flight's clients get; those who have had a part go on with that, if it is
/// the same.
async fn settle(store: &Store, flight: &Arc<Flight>, known: Arc<Known>) {
    flight.land(Landing::Settled(Arc::clone(&known)));
    let held = flight.progress().borrow().clone();
    if flight.flow().is_none() {
        return flight.complete();
    }
    if held.state != State::Running {
        return;
    }
    let file = Arc::clone(&known.blob.file);
    let stored =
        Verified { name: "".into(), file, hasher: Hasher::new(None), bytes: 0, is_stale: false };
    let whole = (known.entry.size, known.entry.blob);
    match compared(store, stored, [(held.written, held.prefix), whole]).await {
        Some(Compared::Same(Verified { file, name, .. })) => {
            flight.place(Arriving { file, name }, whole.0, 0, whole.1);
            flight.complete();
        }
        // The volume says nothing.
        None => flight.end(State::Spilled),
        Some(_) => flight.end(State::Cut("another replica stored another version of it".into())),
    }
}

/// Hashes on to each of two marks, of which the first is what clients have had. `None` if the volume
/// says nothing.
async fn compared(
    store: &Store,
    verified: Verified,
    marks: [(u64, Sha256); 2],
) -> Option<Compared> {
    let [(had, had_digest), (told, told_digest)] = marks;
    let file = &verified.file;
    let (mut hasher, mut position) = (verified.hasher.clone(), verified.bytes);
    let mut is_what_they_had = true;
    if had > position && had <= told {
        match hashed(store, file, hasher, position, had).await? {
            Some(further) => hasher = further,
            None => return Some(Compared::Not(verified)),
        }
        is_what_they_had = hasher.so_far() == had_digest;
        position = had;
    }
    let further = hashed(store, file, hasher, position, told).await?;
    let Some(hasher) = further.filter(|hasher| hasher.so_far() == told_digest) else {
        return Some(Compared::Not(verified));
    };
    if !is_what_they_had || had > told {
        return Some(Compared::Other);
    }
    Some(Compared::Same(Verified { hasher, bytes: told, ..verified }))
}

/// The inner is `None` if the bytes are not there, the outer if the volume says nothing.
async fn hashed(
    store: &Store,
    file: &Arc<File>,
    mut hasher: Hasher,
    mut from: u64,
    to: u64,
) -> Option<Option<Hasher>> {
    while from < to {
        let (file, end) = (Arc::clone(file), to.min(from + HASHED_AT_ONCE));
        let hashing = move || Ok(hash(&file, &mut hasher, from, end).is_ok().then_some(hasher));
        match store.look(hashing).await.ok()? {
            Some(further) => hasher = further,
            None => return Some(None),
        }
        from = end;
    }
    Some(Some(hasher))
}

/// Blocks.
fn hash(file: &File, hasher: &mut Hasher, mut from: u64, to: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; READ_BUFFER];
    while from < to {
        let left = usize::try_from(to - from).unwrap_or(usize::MAX).min(READ_BUFFER);
        let part = buffer.get_mut(..left).unwrap_or_default();
        file.read_exact_at(part, from)?;
        hasher.update(part);
        from += part.len() as u64;
    }
    Ok(())
}

/// Keys are as long as clients make them, names of leases are not.
fn lease_name(key: &str) -> String {
    if key.len() <= NAME_MAX {
        format!("flight:{key}")
    } else {
        format!("flight:{}", Sha256::of(key.as_bytes()))
    }
}
