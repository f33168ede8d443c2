//! A mirror's answer that is handed on as it is, without being stored: but never to a clean end if
//! it is not what its name promises.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::content::digest::{Expected, Hasher};
use crate::engine::flight::follower::Cut;
use crate::engine::taint::Tainted;
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
    /// Where a digest is expected: of what, and who is to know if it is another.
    check: Option<(Hasher, String, Tainted)>,
    /// The last chunk that came: held back where a digest is expected, since it may be the last.
    held: Option<Bytes>,
}

impl Relayed {
    pub(super) fn new(answer: Answer, expected: Option<(Expected, String, Tainted)>) -> Self {
        Self {
            status: answer.status,
            framing: answer.framing(),
            headers: answer.headers,
            body: answer.body,
            check: expected.map(|(digest, key, tainted)| (Hasher::new(Some(digest)), key, tainted)),
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
            let Some((hasher, ..)) = &mut self.check else { return Ok(Some(chunk)) };
            hasher.update(&chunk);
            if let Some(before) = self.held.replace(chunk) {
                return Ok(Some(before));
            }
        }
    }

    fn end(&mut self) -> Result<Option<Bytes>, Cut> {
        if let Some((hasher, key, tainted)) = self.check.take()
            && !hasher.finish().as_expected
        {
            tainted.add(&key);
            return Err(Cut(
                "the mirror sent bytes that are not what the file's name promises".into()
            ));
        }
        Ok(self.held.take())
    }
}
