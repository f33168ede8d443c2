//! How a release file gets in: held until it is whole, judged together with its signature, and
//! followed only when its suite is whole. Nobody sees a byte of it before.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use crate::archive::kind::Kind;
use crate::archive::release;
use crate::archive::signature::SIGNATURE_BYTES_MAX;
use crate::archive::target::Target;
use crate::content::digest::Sha256;
use crate::content::validators::Validators;
use crate::engine::flight::transfer::Transfer;
use crate::engine::flight::{Flight, Interest, Landing};
use crate::engine::memory::{Known, now_seconds};
use crate::engine::outcome::Failure;
use crate::engine::suites::judge::{Case, Judgement};
use crate::engine::suites::{Generation, bytes_of, signature_url};
use crate::engine::volume::promise::Staged;
use crate::index::Entry;
use crate::mirror::{Body, Question};
use crate::store::{Blob, StoreError, WRITE_PATIENCE};

/// The most bytes of a release file; apt takes ten million.
pub(in crate::engine) const RELEASE_MAX: u64 = release::TEXT_MAX as u64;
/// For how long a release file may take, with its signature: nobody has a byte of it before it is
/// judged, and apt gives up after 30 s of silence.
pub(in crate::engine) const RELEASE_BUDGET: Duration = Duration::from_secs(20);
/// For how long its signature is waited for, where it is a file of its own.
const SIGNATURE_BUDGET: Duration = Duration::from_secs(5);
/// For how long clients wait while the other files of a suite are fetched, before they get its state
/// as it was.
const MEMBERS_PATIENCE: Duration = Duration::from_secs(2);

/// `Release.gpg`
pub(in crate::engine) struct Signature {
    bytes: Vec<u8>,
    validators: Validators,
    content_type: Option<String>,
}

/// What becomes of a release file.
pub(in crate::engine) enum Admission {
    /// It is served and stored, and its signature with it.
    Admitted(Option<Signature>),
    /// It is not, for this reason, which completes "HOST …".
    Refused(String),
    /// It is not: the one that was accepted before is newer.
    Older(Arc<Known>),
    /// File and signature are of two states of the archive: a second look may find one state.
    Torn(String),
}

impl Admission {
    /// The word for traces.
    pub(in crate::engine) const fn label(&self) -> &'static str {
        match self {
            Self::Admitted(_) => "admitted",
            Self::Refused(_) => "refused",
            Self::Older(_) => "older",
            Self::Torn(_) => "torn",
        }
    }
}

impl Transfer {
    /// Whether what it brings has to be admitted.
    pub(in crate::engine) fn is_for_admission(&self) -> bool {
        self.kind == Kind::Release && matches!(self.target.file_name(), "InRelease" | "Release")
    }

    /// Decides about a release file that has arrived in full.
    pub(in crate::engine) async fn admit(
        &self,
        flight: &Arc<Flight>,
        digest: Sha256,
        deadline: Instant,
    ) -> Admission {
        // What was admitted once is not judged again.
        if self.known.as_ref().is_some_and(|known| known.entry.blob == digest) {
            return Admission::Admitted(None);
        }
        let Some(file) = flight.arrived() else {
            return Admission::Refused("sent no release file".to_owned());
        };
        let reading = self.engine.store.look(move || Ok(bytes_of(&file))).await;
        let Ok(Some(file)) = reading else {
            return Admission::Refused(
                "sent a release file that could not be read back".to_owned(),
            );
        };
        let file = Arc::new(file);
        let signature = match self.target.file_name() {
            "Release" => self.signature(deadline).await,
            _ => None,
        };
        // What belongs to it is fetched while it is judged: the mirror may be about to move on.
        let generation = Generation::read(&file).unwrap_or_default();
        let (judgement, may_follow) = tokio::join!(
            self.judgement(&file, signature.as_ref()),
            self.may_follow(flight, &generation),
        );
        let is_proven = match judgement {
            Judgement::Accepted { is_proven } => is_proven,
            Judgement::Refused(reason) => return Admission::Refused(reason),
            Judgement::Torn(reason) => return Admission::Torn(reason),
            Judgement::Older => match &self.known {
                Some(known) => return Admission::Older(Arc::clone(known)),
                None => return Admission::Refused("sent an old release file".to_owned()),
            },
        };
        if signature.is_some() && !is_proven && !self.is_still(&file, deadline).await {
            let reason = "changed its release file while its signature was fetched";
            return Admission::Torn(reason.to_owned());
        }
        if !may_follow {
            let reason = "is between two states of the suite: its files do not fit together";
            return Admission::Torn(reason.to_owned());
        }
        self.engine.suites.hold(digest, generation);
        Admission::Admitted(signature)
    }

    /// Fetching what the suite is made of may take long: meanwhile clients get its last state.
    async fn may_follow(&self, flight: &Arc<Flight>, generation: &Generation) -> bool {
        // What has expired is no state to go on with.
        let Some(known) = &self.known else { return true };
        if self.engine.has_expired(known.entry.blob).await {
            return true;
        }
        // Nobody need wait for it to go on.
        let _interest = Interest::new(flight);
        let mut following = std::pin::pin!(self.engine.may_follow(&self.target.key, generation));
        if let Ok(decided) = timeout(MEMBERS_PATIENCE, &mut following).await {
            return decided;
        }
        flight.land(Landing::Unchanged(Arc::clone(known)));
        following.await
    }

    async fn judgement(&self, file: &Arc<Vec<u8>>, signature: Option<&Signature>) -> Judgement {
        let (engine, known) = (Arc::clone(&self.engine), self.known.clone());
        let (key, file) = (self.target.key.clone(), Arc::clone(file));
        let detached = signature.map(|signature| signature.bytes.clone());
        let accepted_signature = self.accepted_signature().await;
        let judging = tokio::task::spawn_blocking(move || {
            let accepted = known.and_then(|known| bytes_of(&known.blob));
            engine.judge.judge(&Case {
                key: &key,
                file: &file,
                detached: detached.as_deref(),
                accepted: accepted.as_deref(),
                accepted_signature: accepted_signature.as_deref(),
                now: now_seconds(),
            })
        });
        let unjudged =
            |_| Judgement::Refused("sent a release file that stopped its judge".to_owned());
        judging.await.unwrap_or_else(unjudged)
    }

    /// The signature that was stored with the release file that was accepted before.
    async fn accepted_signature(&self) -> Option<Vec<u8>> {
        let known = self.known.as_ref().filter(|_| self.target.file_name() == "Release")?;
        let (folder, _) = self.target.key.rsplit_once('/')?;
        let entry = self.engine.recorded(&signature_url(folder, &known.entry.blob)).await?;
        let store = Arc::clone(&self.engine.store);
        let looking = self.engine.store.look(move || {
            let Some(blob) = store.read(&entry.blob)? else { return Ok(None) };
            // Disks forget.
            Ok(bytes_of(&blob).filter(|bytes| Sha256::of(bytes) == entry.blob))
        });
        looking.await.ok()?
    }

    /// `Release.gpg` beside a `Release`; `None` if there is none to be had.
    async fn signature(&self, deadline: Instant) -> Option<Signature> {
        let beside = Target::from_absolute(&signature_key(&self.target)).ok()?;
        let until = deadline.max(Instant::now() + SIGNATURE_BUDGET / 2);
        let asked = timeout_at(until, timeout(SIGNATURE_BUDGET, self.small_file(&beside))).await;
        asked.ok()?.ok()?
    }

    /// The signature of a release file that the mirror still has may be made anew. Nobody waits.
    pub(in crate::engine) async fn refresh_signature(&self, known: &Arc<Known>) {
        if self.target.file_name() != "Release" {
            return;
        }
        let deadline = Instant::now() + SIGNATURE_BUDGET;
        let Some(signature) = self.signature(deadline).await else { return };
        if self.accepted_signature().await.as_ref() == Some(&signature.bytes) {
            return;
        }
        let file = Blob { file: Arc::clone(&known.blob.file), size: known.blob.size };
        let Ok(Some(file)) = self.engine.store.look(move || Ok(bytes_of(&file))).await else {
            return;
        };
        let file = Arc::new(file);
        let Judgement::Accepted { is_proven } = self.judgement(&file, Some(&signature)).await
        else {
            return;
        };
        if is_proven || self.is_still(&file, Instant::now() + SIGNATURE_BUDGET).await {
            self.keep_signature(&known.entry.blob, signature).await;
        }
    }

    async fn small_file(&self, target: &Target) -> Option<Signature> {
        let answer = self.engine.mirror.ask(target, &Question::default()).await.ok()?;
        if answer.status == 404 {
            self.engine.suites.refuse(&target.key);
        }
        if answer.status != 200 {
            return None;
        }
        let (validators, content_type) = (answer.validators(), answer.content_type());
        let bytes = read_all(answer.body, SIGNATURE_BYTES_MAX).await?;
        Some(Signature { bytes, validators, content_type })
    }

    /// Whether the mirror still has this release file. A mirror that does not tell counts as yes.
    async fn is_still(&self, file: &[u8], deadline: Instant) -> bool {
        let asked_again = async {
            let answer = self.engine.mirror.ask(&self.target, &Question::default()).await.ok()?;
            let is_whole = answer.status == 200;
            read_all(answer.body, release::TEXT_MAX).await.filter(|_| is_whole)
        };
        match timeout_at(deadline, asked_again).await {
            Ok(Some(bytes)) => bytes == file,
            _ => true,
        }
    }

    /// Stores the signature of `release`: under its own name, and under one for clients that are held
    /// to this release file when another's has taken that name.
    pub(in crate::engine) async fn keep_signature(&self, release: &Sha256, signature: Signature) {
        let digest = Sha256::of(&signature.bytes);
        let entry = Entry {
            blob: digest,
            size: signature.bytes.len() as u64,
            validators: signature.validators,
            content_type: signature.content_type,
            checked_at: now_seconds(),
        };
        let (store, described) = (Arc::clone(&self.engine.store), entry.clone());
        let room = &self.engine.room;
        let Ok(Staged { mut stage, promise, .. }) = room.stage(Some(entry.size)).await else {
            return;
        };
        let arriving = room.evictor().moves().arrive(digest).await;
        let storing = self.engine.store.within(WRITE_PATIENCE, move || {
            stage.append(&signature.bytes)?;
            let blob = store.commit(stage, &digest)?;
            Known::load(described, blob).map_err(StoreError::interrupted)
        });
        let known = match storing.await {
            Ok(known) => Arc::new(known),
            Err(error) => {
                let url = &self.target.url;
                tracing::warn!(url, %error, source = %error.source, "a signature was not stored");
                return;
            }
        };
        let plain = signature_key(&self.target);
        let folder = plain.rsplit_once('/').map_or("", |(folder, _)| folder);
        let keys = [signature_url(folder, release), plain];
        for key in &keys {
            self.engine.memory.hold(key, Arc::clone(&known));
        }
        // Clients wait for its release file: not for an index that is slow.
        let engine = Arc::clone(&self.engine);
        self.engine.tasks.spawn(async move {
            for key in &keys {
                engine.record(key, &entry, None).await;
            }
            drop((arriving, promise));
        });
    }

    /// The mirror has an older release file than the `known` one, which stays.
    pub(in crate::engine) fn note_older(&self, known: &Known) {
        tracing::warn!(url = self.target.url, "the mirror went back: serving the newer one");
        known.confirm();
        let reason = "went back to an older release file";
        let (shown, beside) = (&self.engine.suites.shown, known.entry.blob);
        shown.refuse(&self.target.key, reason, Some(beside));
    }

    /// What clients get when a release file is not admitted.
    pub(in crate::engine) fn turned_away(&self, reason: String) -> Landing {
        tracing::warn!(url = self.target.url, reason, "not admitting a release file");
        self.engine.suites.shown.refuse(&self.target.key, &reason, None);
        Landing::Failed(Failure::Unusable { host: self.target.authority.host.clone(), reason })
    }
}

fn signature_key(release: &Target) -> String {
    format!("{}.gpg", release.key)
}

async fn read_all(mut body: Body, bytes_max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await.ok()? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > bytes_max {
            return None;
        }
    }
    Some(bytes)
}
