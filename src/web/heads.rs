//! Finds the heads of pipelined requests in what a client sends, so that what they need can be
//! begun before their turn. Only looks: what hyper reads is what was sent.

use http::Request;
use memchr::memmem;

use crate::archive::target::TARGET_MAX;

/// The longest head that is looked into, in bytes. A longer one is no fault: it is merely not begun
/// early.
const HEAD_MAX: usize = TARGET_MAX + 4096;
/// Header fields that are looked at; apt sends under ten.
const FIELDS_MAX: usize = 32;

/// The head of a request, as far as it says what the request will need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) target: String,
    pub(super) fields: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// As hyper will read it; `None` if it is none.
    pub(super) fn request(&self) -> Option<Request<()>> {
        let request = Request::get(&*self.target);
        let fields = self.fields.iter();
        let request = fields.fold(request, |request, (name, value)| {
            request.header(name.as_str(), value.as_slice())
        });
        request.body(()).ok()
    }
}

/// Splits a client's bytes into heads.
#[derive(Default)]
pub(super) struct Heads {
    /// The beginning of a head of which the end has not come.
    partial: Vec<u8>,
    /// Set when the stream holds something else than bodiless requests: from then on heads can not
    /// be told from bodies.
    lost: bool,
}

impl Heads {
    /// Takes the next bytes and tells each head that they complete. `None` stands for a head that
    /// is not of interest, so that heads can be counted.
    pub(super) fn take(&mut self, bytes: &[u8], mut found: impl FnMut(Option<Head>)) {
        if self.lost {
            return;
        }
        let joined;
        let mut rest = if self.partial.is_empty() {
            bytes
        } else {
            self.partial.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.partial);
            joined.as_slice()
        };
        while let Some(end) = memmem::find(rest, b"\r\n\r\n") {
            let (head, after) = rest.split_at(end + 4);
            match parse(head) {
                Parsed::Get(head) => found(Some(head)),
                Parsed::Other => found(None),
                Parsed::Lost => {
                    self.lost = true;
                    return;
                }
            }
            rest = after;
        }
        if rest.len() > HEAD_MAX {
            self.lost = true;
        } else {
            self.partial = rest.to_vec();
        }
    }
}

enum Parsed {
    Get(Head),
    Other,
    Lost,
}

fn parse(head: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
        (request.parse(head), request.method, request.path)
    else {
        return Parsed::Lost;
    };
    let has_body = request.headers.iter().any(|field| {
        field.name.eq_ignore_ascii_case("content-length")
            || field.name.eq_ignore_ascii_case("transfer-encoding")
    });
    match method {
        _ if has_body => Parsed::Lost,
        "GET" => Parsed::Get(Head {
            target: target.to_owned(),
            fields: request
                .headers
                .iter()
                .map(|field| (field.name.to_owned(), field.value.to_vec()))
                .collect(),
        }),
        "HEAD" => Parsed::Other,
        _ => Parsed::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(pieces: &[&str]) -> Vec<Option<String>> {
        let mut heads = Heads::default();
        let mut targets = Vec::new();
        for piece in pieces {
            heads.take(piece.as_bytes(), |head| targets.push(head.map(|head| head.target)));
        }
        targets
    }

    #[test]
    fn heads_are_found_however_they_arrive() {
        let stream =
            "GET /a HTTP/1.1\r\nHost: h\r\n\r\nHEAD /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n";
        let all = vec![Some("/a".to_owned()), None, Some("/c".to_owned())];
        assert_eq!(targets(&[stream]), all);
        for cut in 1..stream.len() {
            let (first, second) = stream.split_at(cut);
            assert_eq!(targets(&[first, second]), all, "cut at {cut}");
        }
    }

    #[test]
    fn bodies_and_nonsense_end_the_search() {
        let after = "GET /late HTTP/1.1\r\n\r\n";
        for first in [
            "GET / HTTP/1.1\r\nContent-Length: 30\r\n\r\n",
            "POST / HTTP/1.1\r\n\r\n",
            "\u{0}\u{1}\r\n\r\n",
        ] {
            assert_eq!(targets(&[first, after]), vec![], "{first:?}");
        }
        let flood = "x".repeat(HEAD_MAX + 1);
        assert_eq!(targets(&[&flood, "\r\n\r\n", after]), vec![]);
    }
}
