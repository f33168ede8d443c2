//! `aptmesh evict`: makes room on the volume, or tells what would go.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cli::wiring;
use crate::config::Config;
use crate::config::bytes::Bytes;
use crate::engine::volume::evict::{Mode, Victim};

/// Names of a blob that are told; a package that mirrors share has several.
const NAMES_TOLD: usize = 3;

pub(super) fn run(config: &Config, dry_run: bool, bytes: Option<Bytes>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(evict(config, dry_run, bytes))
}

async fn evict(config: &Config, dry_run: bool, bytes: Option<Bytes>) -> anyhow::Result<()> {
    let room = wiring::room(config)?;
    let wanted = match bytes {
        Some(Bytes(bytes)) => bytes,
        None => room.excess().await?,
    };
    let mode = if dry_run { Mode::Rehearsal } else { Mode::Real };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut blobs, mut printed) = (0, Ok(()));
    let mut tell = |victim: &Victim| {
        blobs += 1;
        if printed.is_ok() {
            printed = super::print_out(&line(victim, now));
        }
    };
    let freed = room.evictor().evict(wanted, mode, Some(&mut tell)).await?;
    printed?;
    let verb = if dry_run { "would go" } else { "gone" };
    let (freed, wanted, stored) = (Bytes(freed), Bytes(wanted), Bytes(room.volume().await.bytes));
    super::print_out(&format!(
        "{verb}: {blobs} files, {freed}, to make room for {wanted}; stored: {stored}\n"
    ))
}

/// Size, reason, use and names.
fn line(victim: &Victim, now: Duration) -> String {
    let size = Bytes(victim.blob.size).to_string();
    let used_at = Duration::from_secs(u64::try_from(victim.blob.used_at).unwrap_or_default());
    let age = humantime::format_duration(coarse(now.saturating_sub(used_at))).to_string();
    let uses = victim.blob.uses;
    let uses = if uses == 1 { "once".to_owned() } else { format!("{uses} times") };
    let reason = victim.reason.label();
    let names = &victim.names.resources;
    let told = match names.as_slice() {
        [] => victim.blob.digest.to_string(),
        names if names.len() <= NAMES_TOLD => names.join(" "),
        names => {
            let told: Vec<&str> = names.iter().take(NAMES_TOLD).map(String::as_str).collect();
            format!("{} and {} more", told.join(" "), names.len() - NAMES_TOLD)
        }
    };
    format!("{size:>10}  {reason:<12}  used {uses}, last {age} ago  {told}\n")
}

/// To the largest unit that people would name.
fn coarse(age: Duration) -> Duration {
    const UNITS: [u64; 3] = [24 * 60 * 60, 60 * 60, 60];
    let seconds = age.as_secs();
    let unit = UNITS.into_iter().find(|unit| seconds >= *unit).unwrap_or(1);
    Duration::from_secs(seconds / unit * unit)
}
