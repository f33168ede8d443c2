//! Conditional and range requests (RFC 9110 §13, §14) against what is to be sent.

use std::ops::Range;
use std::time::UNIX_EPOCH;

use http::header::{self, HeaderMap, HeaderName};

use crate::content::range::{Selection, select};
use crate::content::validators::http_date;
use crate::engine::outcome::Meta;

/// What of a representation is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Portion {
    /// All of it: 200.
    Whole,
    /// These bytes: 206.
    Part(Range<u64>),
    /// None: the client has it already, 304.
    NotModified,
    /// None: what was asked for is not there, 416.
    Unsatisfiable,
}

/// Decides by the request's header fields, in the order of RFC 9110 §13.2.2.
pub(super) fn portion(headers: &HeaderMap, meta: &Meta) -> Portion {
    if is_held_by_client(headers, meta) {
        return Portion::NotModified;
    }
    let (Some(range), Some(size)) = (text(headers, &header::RANGE), meta.size) else {
        return Portion::Whole;
    };
    if !is_same_version(headers, meta) {
        return Portion::Whole;
    }
    match select(range, size) {
        Selection::Whole => Portion::Whole,
        Selection::Part(range) => Portion::Part(range),
        Selection::Unsatisfiable => Portion::Unsatisfiable,
    }
}

fn is_held_by_client(headers: &HeaderMap, meta: &Meta) -> bool {
    if let Some(tags) = text(headers, &header::IF_NONE_MATCH) {
        let weak = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        return tags.trim() == "*"
            || meta
                .validators
                .etag
                .as_ref()
                .is_some_and(|etag| tags.split(',').any(|tag| weak(tag) == weak(etag)));
    }
    let since = text(headers, &header::IF_MODIFIED_SINCE)
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .and_then(|date| date.duration_since(UNIX_EPOCH).ok())
        .and_then(|since| i64::try_from(since.as_secs()).ok());
    // Exactly: a client with a later date may hold another version, or have a date of its own making.
    meta.validators.last_modified.is_some_and(|modified| since == Some(modified))
}

/// `If-Range` (RFC 9110 §13.1.5): the client's part and ours must be of one version, to the letter.
fn is_same_version(headers: &HeaderMap, meta: &Meta) -> bool {
    let Some(mark) = headers.get(header::IF_RANGE) else { return true };
    let mark = mark.as_bytes();
    if mark.starts_with(b"\"") {
        return meta.validators.etag.as_ref().is_some_and(|etag| etag.as_bytes() == mark);
    }
    meta.validators.last_modified.is_some_and(|at| http_date(at).as_bytes() == mark)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::content::validators::Validators;

    const DATE: &str = "Tue, 02 Jan 2024 03:04:05 GMT";
    const EARLIER: &str = "Mon, 01 Jan 2024 03:04:05 GMT";
    const LATER: &str = "Wed, 03 Jan 2024 03:04:05 GMT";

    fn meta() -> Meta {
        let validators =
            Validators { last_modified: Some(1_704_164_645), etag: Some("\"v1\"".to_owned()) };
        Meta { size: Some(100), validators, content_type: None }
    }

    fn asked(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn conditions_are_judged() {
        use header::{IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE};
        let part = Portion::Part(10..100);
        let table: [(&[(HeaderName, &'static str)], Portion); 18] = [
            (&[], Portion::Whole),
            (&[(IF_MODIFIED_SINCE, DATE)], Portion::NotModified),
            (&[(IF_MODIFIED_SINCE, LATER)], Portion::Whole),
            (&[(IF_MODIFIED_SINCE, EARLIER)], Portion::Whole),
            (&[(IF_MODIFIED_SINCE, "yesterday")], Portion::Whole),
            (&[(IF_NONE_MATCH, "\"v1\"")], Portion::NotModified),
            (&[(IF_NONE_MATCH, "\"v0\", W/\"v1\"")], Portion::NotModified),
            (&[(IF_NONE_MATCH, "*")], Portion::NotModified),
            (&[(IF_NONE_MATCH, "\"v2\""), (IF_MODIFIED_SINCE, LATER)], Portion::Whole),
            (&[(RANGE, "bytes=10-")], part.clone()),
            (&[(RANGE, "bytes=10-"), (IF_RANGE, DATE)], part.clone()),
            (&[(RANGE, "bytes=10-"), (IF_RANGE, "\"v1\"")], part),
            (&[(RANGE, "bytes=10-"), (IF_RANGE, "W/\"v1\"")], Portion::Whole),
            (&[(RANGE, "bytes=10-"), (IF_RANGE, "\"v2\"")], Portion::Whole),
            (&[(RANGE, "bytes=10-"), (IF_RANGE, LATER)], Portion::Whole),
            (&[(RANGE, "bytes=100-")], Portion::Unsatisfiable),
            (&[(RANGE, "bytes=100-"), (IF_RANGE, LATER)], Portion::Whole),
            (&[(RANGE, "bytes=0-1"), (IF_NONE_MATCH, "\"v1\"")], Portion::NotModified),
        ];
        for (fields, expected) in table {
            assert_eq!(portion(&asked(fields), &meta()), expected, "{fields:?}");
        }
    }

    #[test]
    fn without_marks_nothing_is_assumed() {
        let bare = Meta { size: None, validators: Validators::default(), content_type: None };
        let ranged = asked(&[(header::RANGE, "bytes=1-"), (header::IF_RANGE, DATE)]);
        assert_eq!(portion(&ranged, &bare), Portion::Whole);
        assert_eq!(portion(&asked(&[(header::IF_MODIFIED_SINCE, DATE)]), &bare), Portion::Whole);
    }
}
