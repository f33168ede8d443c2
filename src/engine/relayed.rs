//! A mirror's answer that is handed on as it is, without being stored: but never to a clean end if
//! it is not what its name promises.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::content::digest::{Expected, Hasher};
use crate::engine::follower::Cut;
use crate::mirror::{Answer, Body, Framing};

/// A mirror's answer on its way to one client.
pub struct Relayed {
    /// The mirror's.
    pub status: StatusCode,
    /// The mirror's.
    pub headers: HeaderMap,
    /// How the mirror marks the body's end.
    pub framing: Framing,
    body: Body,
    hasher: Option<Hasher>,
    /// The last chunk that came: held back where a digest is expected, since it may be the last.
    held: Option<Bytes>,
}

impl Relayed {
    pub(super) fn new(answer: Answer, expected: Option<Expected>) -> Self {
        Self {
            status: answer.status,
            framing: answer.framing(),
            headers: answer.headers,
            body: answer.body,
            hasher: expected.map(|expected| Hasher::new(Some(expected))),
            held: None,
        }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the mirror breaks off, or what it sent is not what was expected.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Cut> {
        loop {
            let chunk = self.body.chunk().await.map_err(|error| Cut(error.to_string().into()))?;
            let Some(chunk) = chunk else { return self.end() };
            let Some(hasher) = &mut self.hasher else { return Ok(Some(chunk)) };
            hasher.update(&chunk);
            if let Some(before) = self.held.replace(chunk) {
                return Ok(Some(before));
            }
        }
    }

    fn end(&mut self) -> Result<Option<Bytes>, Cut> {
        let as_expected = self.hasher.take().is_none_or(|hasher| hasher.finish().as_expected);
        if as_expected {
            return Ok(self.held.take());
        }
        Err(Cut("the mirror sent bytes that are not what the file's name promises".into()))
    }
}
