//! `aptmesh scrub`: hashes all that is stored, now and as fast as it goes; beside a running cache or
//! without one.

use std::num::NonZero;

use anyhow::ensure;
use futures_util::{StreamExt as _, stream};

use crate::cli::progress::Progress;
use crate::cli::wiring;
use crate::config::Config;
use crate::config::bytes::Bytes;
use crate::engine::volume::adopt::Comparison;
use crate::engine::volume::inspect::{Finding, InspectError, Inspector};
use crate::store::{FOLDERS, Lying};

/// What a pass came to.
#[derive(Default)]
struct Sum {
    good: u64,
    bytes: u64,
    adopted: u64,
    gone: u64,
    bad: u64,
    stuck: u64,
    unreadable: u64,
}

pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let sum = runtime.block_on(scrub(config))?;
    super::print_out(&format!(
        "{} files are good, {}; {} of them were not in the index; {} were in the index alone\n",
        sum.good,
        Bytes(sum.bytes),
        sum.adopted,
        sum.gone
    ))?;
    let faults = [
        (sum.bad, "files were bad: they are gone, and fetched anew when asked for"),
        (sum.stuck, "files are bad and can not be removed"),
        (sum.unreadable, "files or folders can not be read"),
    ];
    let told: Vec<String> = faults
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, words)| format!("{number} {words}"))
        .collect();
    ensure!(told.is_empty(), "{}", told.join("; "));
    Ok(())
}

async fn scrub(config: &Config) -> anyhow::Result<Sum> {
    let inspector = wiring::inspector(config)?;
    let mut progress = Progress::start("checked");
    let mut sum = Sum::default();
    for first in FOLDERS {
        let comparison = match inspector.compare(first).await {
            Err(InspectError::Store(error)) => {
                progress.tell(&format!("unreadable: the folder {first:02x}: {}", error.source));
                sum.unreadable += 1;
                continue;
            }
            compared => compared?,
        };
        sum.gone += inspector.forget_missing(&comparison.gone).await?;
        scrub_folder(&inspector, &comparison, &mut sum, &mut progress).await?;
    }
    progress.finish();
    Ok(sum)
}

async fn scrub_folder(
    inspector: &Inspector,
    comparison: &Comparison,
    sum: &mut Sum,
    progress: &mut Progress,
) -> Result<(), InspectError> {
    let all = comparison.known.iter().map(|known| (*known, false));
    let all = all.chain(comparison.unknown.iter().map(|unknown| (*unknown, true)));
    let bytes: u64 = all.clone().map(|(lying, _)| lying.size).sum();
    progress.expect(progress.total() + bytes);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let inspect = async |(lying, is_new): (Lying, bool)| {
        (lying, is_new, inspector.inspect(&lying.digest).await)
    };
    let mut findings = std::pin::pin!(stream::iter(all).map(inspect).buffer_unordered(threads));
    while let Some((lying, is_new, finding)) = findings.next().await {
        progress.advance(lying.size);
        match finding? {
            Finding::Good(bytes) => {
                sum.good += 1;
                sum.bytes += bytes;
                sum.adopted += u64::from(is_new);
            }
            Finding::Bad => {
                sum.bad += 1;
                progress.tell(&format!("bad: {}", lying.digest));
            }
            Finding::Stuck => {
                sum.stuck += 1;
                progress.tell(&format!("bad, and can not be removed: {}", lying.digest));
            }
            Finding::Unreadable => {
                sum.unreadable += 1;
                progress.tell(&format!("unreadable: {}", lying.digest));
            }
            Finding::Gone => sum.gone += 1,
        }
    }
    Ok(())
}
