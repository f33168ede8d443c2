//! Asking the process that runs with the same settings, at its admin address.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::surfaces;
use crate::config::Config;

/// More than any answer has: a status names 1,024 peers, 256 mirrors and 128 archives, each by some
/// kilobytes at most.
const ANSWER_MAX: u64 = 8 * 1024 * 1024;

/// What it said.
pub(super) struct Answer {
    /// Whether that is what was asked for, and not why it is not given.
    pub(super) is_ok: bool,
    pub(super) body: String,
}

/// Asks it for `path`; all in all, that takes `patience` at most.
///
/// # Errors
/// When nobody answers in time, or what answers does not speak HTTP.
pub(super) fn ask(config: &Config, path: &str, patience: Duration) -> anyhow::Result<Answer> {
    let address = surfaces::from_here(config.listen.admin);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answered = runtime.block_on(async { timeout(patience, exchange(address, path)).await });
    answered
        .unwrap_or_else(|_| bail!("silent for {patience:?}"))
        .with_context(|| format!("no aptmesh answers at http://{address} (listen.admin)"))
}

/// One question over one connection: not worth a client with pools and redirects.
async fn exchange(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX + 1).read_to_end(&mut answer).await?;
    ensure!(answer.len() as u64 <= ANSWER_MAX, "its answer is longer than {ANSWER_MAX} bytes");
    let answer = String::from_utf8(answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("not an HTTP answer") };
    let is_ok = head.split(' ').nth(1) == Some("200");
    Ok(Answer { is_ok, body: body.to_owned() })
}

/// What others named does nothing to a terminal.
pub(super) fn plain(text: &str) -> String {
    let turns = |letter| matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let inert = |letter: char| letter.is_control() || turns(letter);
    text.chars().map(|letter| if inert(letter) { '\u{fffd}' } else { letter }).collect()
}
