//! Resuming a transfer that broke off: only ever with the same version of the file.

use std::os::unix::fs::FileExt as _;

use crate::engine::flight::borrowed::Incoming;
use crate::engine::flight::follower::{range_of, resume_headers};
use crate::engine::flight::transfer::Transfer;
use crate::engine::flight::{Arriving, Flight, Flow};
use crate::index::Entry;
use crate::mirror::{Body, Framing, MirrorError, Question};

/// A body that goes on where another broke off, and the whole's size where that is known.
pub(in crate::engine) struct Resumed {
    pub(in crate::engine) body: Incoming,
    pub(in crate::engine) end: Option<u64>,
    /// Whether the mirror gives parts.
    pub(in crate::engine) is_part: bool,
    /// It was asked for up to this byte only.
    pub(in crate::engine) asked: Option<u64>,
}

impl Resumed {
    fn whole(body: Incoming, end: Option<u64>) -> Self {
        Self { body, end, is_part: false, asked: None }
    }
}

impl Transfer {
    /// A body that goes on at byte `received` of the same version, up to byte `until` where peers are to
    /// bring the rest. `None` when the mirror could not be asked.
    ///
    /// # Errors
    /// When the version is gone, or it can not be told whether it is.
    pub(in crate::engine) async fn resume(
        &self,
        flight: &Flight,
        flow: &Flow,
        received: u64,
        until: Option<u64>,
    ) -> Result<Option<Resumed>, String> {
        if let Some(resumed) = self.resume_borrowed(flow, received).await {
            return Ok(Some(resumed));
        }
        let mirror = &self.engine.mirror;
        // Mirrors of one archive mark the same file differently: its digest tells better.
        let is_proven_by_digest = flow.checked
            && (flow.borrowed.is_some()
                || flow.mirrored.is_some()
                || mirror.has_several(&flow.source));
        let headers = if is_proven_by_digest {
            range_of(received, until)
        } else {
            resume_headers(received, &flow.meta).unwrap_or_default()
        };
        let question = Question { headers, is_promised: true, ..Question::default() };
        let answer = match mirror.ask(&flow.source, &question).await {
            Ok(answer) => answer,
            Err(error) => return if error.may_pass() { Ok(None) } else { Err(error.to_string()) },
        };
        let changed = || "the file changed on the mirror in mid-download".to_owned();
        let mut marks = answer.validators();
        if answer.origin != flow.origin {
            // An ETag is one mirror's own.
            marks.etag = None;
        }
        // Some servers do not look at If-Range.
        let is_another = !is_proven_by_digest && flow.meta.validators.contradict(&marks);
        if answer.status.is_success() && is_another {
            return Err(changed());
        }
        let size = flow.meta.size;
        match answer.status.as_u16() {
            206 => match (answer.part(), size) {
                (Some((first, _)), _) if first != received => {
                    Err("the mirror resumed at the wrong place".to_owned())
                }
                (Some((_, Some(total))), Some(size)) if total != size => Err(changed()),
                (Some((_, Some(end))), _) | (Some((_, None)), Some(end)) => {
                    let body = Incoming::Mirror(answer.body.into());
                    Ok(Some(Resumed { body, end: Some(end), is_part: true, asked: until }))
                }
                _ => Err("the mirror resumed without telling where the file ends".to_owned()),
            },
            200 => {
                let end = match (answer.framing(), size) {
                    (Framing::Length(new), Some(size)) if new != size => return Err(changed()),
                    (Framing::Length(end), _) | (_, Some(end)) => Some(end),
                    (Framing::Chunked, None) => None,
                    (Framing::Close, None) if flow.checked || !flow.stored => None,
                    (Framing::Close, None) => {
                        return Err(
                            "the mirror began anew without telling where it ends".to_owned()
                        );
                    }
                };
                match self.skip(flight, received, answer.body).await {
                    Ok(Some(body)) => Ok(Some(Resumed::whole(Incoming::Mirror(body.into()), end))),
                    Ok(None) => Err(changed()),
                    Err(_broke_off) => Ok(None),
                }
            }
            429 | 500.. => Ok(None),
            // One mirror may not have it yet.
            404 if mirror.has_several(&flow.source) => Ok(None),
            status => Err(format!("the mirror answered {status} when asked for the rest")),
        }
    }

    /// What began at a fellow goes on at another one, if there is one.
    async fn resume_borrowed(&self, flow: &Flow, received: u64) -> Option<Resumed> {
        let digest = flow.borrowed.as_ref()?.digest;
        let entry = Entry::nameless(digest, flow.meta.size?);
        let body = self.engine.borrow_rest(&entry, received).await?;
        Some(Resumed::whole(Incoming::Fellow(Box::new(body)), flow.meta.size))
    }

    /// Skips what is there already of a body that began anew; `None` if it is not the same bytes.
    async fn skip(
        &self,
        flight: &Flight,
        received: u64,
        mut body: Body,
    ) -> Result<Option<Body>, MirrorError> {
        let mut progress = flight.progress();
        // An error means that the writer stopped: then the file does not match below.
        drop(progress.wait_for(|progress| progress.written >= received).await);
        let Some(Arriving { file, .. }) = progress.borrow().arriving.clone() else {
            return Ok(None);
        };
        let mut position = 0;
        while position < received {
            let Some(chunk) = body.chunk().await? else { return Ok(None) };
            let known = usize::try_from(received - position).unwrap_or(usize::MAX).min(chunk.len());
            let (old, new) = chunk.split_at(known);
            let mut staged = vec![0; old.len()];
            let same = file.read_exact_at(&mut staged, position).is_ok() && staged == old;
            if !same {
                return Ok(None);
            }
            position += old.len() as u64;
            if !new.is_empty() {
                let new = chunk.slice(known..);
                return Ok(Some(body.preceded_by(new)));
            }
        }
        Ok(Some(body))
    }
}
