//! What keeps the volume sound while nobody looks: blobs are hashed again and again, slowly; what the
//! index does not know is adopted; what dead processes left goes. Of the processes that share a volume,
//! one does it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::engine::duties::{Duties, Duty};
use crate::engine::leases::Sureness;
use crate::engine::memory::now_seconds;
use crate::engine::volume::adopt::Adopted;
use crate::engine::volume::inspect::{Finding, InspectError, Inspector};
use crate::engine::volume::pace::Pace;

/// Blobs to check that are looked up at once.
const PAGE: usize = 100;
/// When nothing is due, until there is another look, which is one question to the index.
const IDLE: Duration = Duration::from_secs(5);
/// For how long a volume or an index that failed is left alone.
const PAUSE: Duration = Duration::from_mins(1);
/// How often it is looked whether a volume that was not there is.
const MISSING_LOOK: Duration = Duration::from_secs(2);
/// How often the volume is walked over: blobs appear on it when it is restored or moved, seldom.
const ADOPT_EVERY: Duration = Duration::from_hours(24);
/// How fast unknown blobs are hashed, in bytes per second: somebody waits for them, so faster than
/// what is merely checked again, and still half of what a slow disk gives.
pub(in crate::engine) const HASH_RATE: u64 = 50 * 1024 * 1024;

/// How stored blobs are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes read per second; 0: none are.
    pub rate: u64,
    /// After how long a blob is checked again.
    pub interval: Duration,
}

/// Checks what is due, in one of a volume's processes, for ever.
pub(in crate::engine) async fn scrub(
    duties: Arc<Duties>,
    inspector: Arc<Inspector>,
    config: Config,
) {
    if config.rate > 0 {
        duties.carry(Duty::Scrub, "", |sureness| scrub_on(&inspector, config, sureness)).await;
    }
}

/// Only who has the duty tells how far it is.
struct Telling<'a>(&'a Inspector);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.scrubbed_at.set(0);
    }
}

async fn scrub_on(inspector: &Inspector, config: Config, sureness: Sureness) -> Infallible {
    let _telling = Telling(inspector);
    let mut pace = Pace::of(config.rate).under(sureness);
    loop {
        pace.ensure_duty().await;
        match scrub_page(inspector, config.interval, &mut pace).await {
            Ok(Checked { all: 0, .. }) => sleep(IDLE).await,
            // Perhaps it is the volume.
            Ok(Checked { unreadable, .. }) if unreadable > 0 => sleep(PAUSE).await,
            Ok(_) => {}
            // That is said once.
            Err(InspectError::NoVolume) => sleep(PAUSE).await,
            Err(error) => {
                tracing::warn!(%error, "could not check what is stored");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Blobs that were due.
#[derive(Default)]
struct Checked {
    all: usize,
    unreadable: usize,
}

async fn scrub_page(
    inspector: &Inspector,
    interval: Duration,
    pace: &mut Pace,
) -> Result<Checked, InspectError> {
    let due = now_seconds().saturating_sub(i64::try_from(interval.as_secs()).unwrap_or(i64::MAX));
    let mut checked = Checked::default();
    let blobs = inspector.index.blobs_to_check(PAGE).await?;
    // Where there is nothing, nothing is unchecked.
    inspector.scrubbed_at.set(blobs.first().map_or_else(now_seconds, |oldest| oldest.checked_at));
    for blob in blobs {
        if blob.checked_at > due {
            break;
        }
        let finding = inspector.inspect_at(&blob.digest, pace).await?;
        tracing::debug!(digest = %blob.digest, ?finding, "checked a blob");
        checked.all += 1;
        checked.unreadable += usize::from(finding == Finding::Unreadable);
    }
    Ok(checked)
}

/// Looks again at a volume that was found not to be there, for ever.
pub(in crate::engine) async fn look_for_volume(inspector: Arc<Inspector>) -> Infallible {
    loop {
        sleep(MISSING_LOOK).await;
        if inspector.is_volume_missing()
            && let Err(error) = inspector.ensure_volume().await
        {
            tracing::trace!(%error, "the volume is not there yet");
        }
    }
}

/// Adopts what is found on the volume, in one of its processes, for ever.
pub(in crate::engine) async fn adopt(duties: Arc<Duties>, inspector: Arc<Inspector>) {
    duties.carry(Duty::Adopt, "", |sureness| adopt_on(&inspector, sureness)).await;
}

async fn adopt_on(inspector: &Inspector, sureness: Sureness) -> Infallible {
    let _while_on_duty = inspector.unadopted.counting();
    loop {
        match inspector.adopt(&mut Pace::of(HASH_RATE).under(sureness.clone())).await {
            Ok(sum) if sum == Adopted::default() => {}
            Ok(sum) => tracing::info!(
                adopted = sum.adopted,
                bad = sum.bad,
                gone = sum.gone,
                unreadable = sum.unreadable,
                "index and volume agree again"
            ),
            // What is fetched meanwhile lies there too: tomorrow it is looked at again.
            Err(InspectError::NoVolume) => {}
            // It is told of by itself, and what is not adopted takes room.
            Err(InspectError::Index(error)) if inspector.index.trouble().is_some() => {
                tracing::debug!(%error, "comparing index and volume later");
                sleep(IDLE).await;
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "could not compare index and volume");
                sleep_unless_due(inspector, PAUSE).await;
                continue;
            }
        }
        sleep_unless_due(inspector, ADOPT_EVERY).await;
        let store = Arc::clone(&inspector.store);
        // It ends well, or says why itself.
        drop(tokio::task::spawn_blocking(move || store.remove_leftovers()).await);
    }
}

async fn sleep_unless_due(inspector: &Inspector, time: Duration) {
    tokio::select! {
        () = sleep(time) => {}
        () = inspector.unadopted.is_due() => {}
    }
}
