//! The flow of a body to its writer: no faster than is due, no further than the leash reaches, and resumed
//! where it breaks off.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::archive::kind::Kind;
use crate::engine::flight::borrowed::Incoming;
use crate::engine::flight::gather::leash::Leash;
use crate::engine::flight::pace::Watch;
use crate::engine::flight::transfer::Transfer;
use crate::engine::flight::writer::{Stopped, Writer};
use crate::engine::flight::{Flight, Flow};
use crate::engine::suites::admission::RELEASE_MAX;
use crate::telemetry::traces::{self, span};

/// How often in a row a transfer is resumed without having come further.
const RESUMES_MAX: u32 = 3;
/// Before a transfer is resumed.
const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// How often it is looked whether somebody else wants what is taken slowly.
const PACE_STEP: Duration = Duration::from_millis(100);

const NOT_RESUMED: &str = "the mirror did not go on";
const LEFT: &str = "another replica left it";

/// Where a body begins.
pub(super) enum Beginning {
    /// With these bytes, and this goes on: up to that byte, if it was asked for no more.
    Body(Bytes, Incoming, Option<u64>),
    /// So many bytes are there already.
    Rest(u64),
}

impl Transfer {
    /// Takes the whole body, resuming it when it breaks off; no further than the leash reaches.
    pub(super) async fn flow(
        &self,
        flight: &Flight,
        flow: &Flow,
        writer: &Writer,
        beginning: Beginning,
        leash: &mut Leash,
    ) -> Result<(), String> {
        let span = span!("engine.receive", aptmesh.origin = &*flow.origin);
        let flowed = self.flow_on(flight, flow, writer, beginning, leash);
        let flowed = flowed.instrument(span.clone()).await;
        if let Err(reason) = &flowed {
            traces::fail(&span, "cut", reason);
        }
        flowed
    }

    async fn flow_on(
        &self,
        flight: &Flight,
        flow: &Flow,
        writer: &Writer,
        beginning: Beginning,
        leash: &mut Leash,
    ) -> Result<(), String> {
        let begun = Instant::now();
        let mut pace = Watch::default();
        let mut end = flow.meta.size;
        let mut fruitless = 0;
        // Whether it is worth breaking off, and asking for the rest later.
        let mut is_ranged = true;
        let (mut received, mut next, mut body, mut asked) = match beginning {
            Beginning::Body(first, body, asked) => (0, Ok(Some(first)), Some(body), asked),
            Beginning::Rest(received) => (received, Err(LEFT.to_owned()), None, None),
        };
        loop {
            match next {
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    if end.is_some_and(|end| received > end) {
                        return Err("the mirror sent more than it said".to_owned());
                    }
                    if self.kind == Kind::Release && received > RELEASE_MAX {
                        return Err("the release file is too large".to_owned());
                    }
                    fruitless = 0;
                    self.keep_pace(flight, begun, received).await;
                    if let Err(Stopped) = writer.write(chunk).await {
                        return Ok(());
                    }
                    if asked != Some(received)
                        && end != Some(received)
                        && !leash.reaches(received, is_ranged).await
                    {
                        (asked, body, next) = (Some(received), None, Ok(None));
                        continue;
                    }
                    let waiting = Instant::now();
                    next = next_of(body.as_mut()).await;
                    if let (Some(rate), true) = (pace.saw(&next, waiting), flow.is_from_mirror()) {
                        self.engine.paces.note(&self.target.authority.host, rate);
                    }
                }
                Ok(None) if end.is_none_or(|end| end == received) => return Ok(()),
                // A part may be shorter than what was asked for (RFC 9110 §15.3.7).
                Ok(None) if asked.is_some_and(|asked| received < asked) => {
                    next = Err("the mirror sent a part of what was asked for".to_owned());
                }
                Ok(None) if asked != Some(received) => {
                    return Err("the mirror sent less than it said".to_owned());
                }
                Err(_) if end == Some(received) => return Ok(()),
                Err(reason) if fruitless == RESUMES_MAX => return Err(reason),
                broken => {
                    // It was asked for no more, or it broke off.
                    if let Err(reason) = &broken {
                        fruitless += 1;
                        let url = &self.target.url;
                        tracing::info!(url, received, reason, "resuming a download");
                        tokio::time::sleep(RESUME_PAUSE * fruitless).await;
                    }
                    leash.reaches_beyond(received).await;
                    // A body that broke off is not asked again: it would seem to have ended.
                    next = match self.resume(flight, flow, received, leash.end()).await? {
                        Some(resumed) => {
                            is_ranged = resumed.is_part;
                            asked = resumed.asked;
                            self.engine.metrics.resumed.inc_by(broken.is_err().into());
                            end = resumed.end;
                            next_of(Some(body.insert(resumed.body))).await
                        }
                        None => Err(broken.err().unwrap_or_else(|| NOT_RESUMED.to_owned())),
                    };
                }
            }
        }
    }

    /// Waits until as many bytes are due; not while a client waits for them.
    pub(super) async fn keep_pace(&self, flight: &Flight, begun: Instant, received: u64) {
        let Some(pace) = self.pace else { return };
        let due = begun + Duration::from_millis(received.saturating_mul(1000) / pace.max(1));
        while Instant::now() < due && flight.is_wanted_by_one() {
            tokio::time::sleep_until(due.min(Instant::now() + PACE_STEP)).await;
        }
    }
}

async fn next_of(body: Option<&mut Incoming>) -> Result<Option<Bytes>, String> {
    match body {
        Some(body) => body.chunk().await.map_err(|error| error.to_string()),
        None => Err(LEFT.to_owned()),
    }
}
