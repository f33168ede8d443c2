//! `aptmesh health`: whether the process that runs with the same settings is well. A container's
//! health check, which needs neither shell nor client.

use std::time::Duration;

use anyhow::ensure;

use crate::cli::admin;
use crate::config::Config;

/// For how long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether it is ready, or, with `only_alive`, whether it is there at all.
///
/// # Errors
/// With the reason why it is not.
pub(super) fn check(config: &Config, only_alive: bool) -> anyhow::Result<()> {
    // Who checks the process itself sends it no clients, and need not be warned before it stops.
    let path = if only_alive { "/livez" } else { "/readyz?own=true" };
    let answer = admin::ask(config, path, PATIENCE)?;
    ensure!(answer.is_ok, "not ready: {}", answer.body.trim());
    Ok(())
}
