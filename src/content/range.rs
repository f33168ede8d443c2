//! Byte ranges of one representation (RFC 9110 §14).

use std::ops::Range;

/// What a `Range` header asks of a body of known size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it: no range, several ranges (RFC 9110 §14.2 lets a server ignore them), another
    /// unit, or a header that is no range at all.
    Whole,
    /// These bytes: not empty, within the body.
    Part(Range<u64>),
    /// Nothing that the body has: 416.
    Unsatisfiable,
}

/// Reads a `Range` header against a body of `size` bytes.
#[must_use]
pub fn select(header: &str, size: u64) -> Selection {
    match parse(header) {
        None => Selection::Whole,
        Some(Spec::From { first, last }) if first < size => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            Selection::Part(first..end)
        }
        Some(Spec::Suffix(length)) if length > 0 && size > 0 => {
            Selection::Part(size.saturating_sub(length)..size)
        }
        Some(_) => Selection::Unsatisfiable,
    }
}

/// Reads `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110 §14.4) into the range and, where it is
/// given, the total. `None` for anything else.
#[must_use]
pub fn parse_content_range(header: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    let within = last >= first && total.is_none_or(|total| last < total);
    within.then(|| (first..last.saturating_add(1), total))
}

enum Spec {
    From { first: u64, last: Option<u64> },
    Suffix(u64),
}

fn parse(header: &str) -> Option<Spec> {
    let (unit, spec) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
    match (first, last) {
        ("", suffix) => Some(Spec::Suffix(number(suffix)?)),
        (first, "") => Some(Spec::From { first: number(first)?, last: None }),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::From { first, last: Some(last) })
        }
    }
}

/// Digits only: `u64::from_str` would take a `+`.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_selected() {
        let table = [
            ("bytes=0-", Selection::Part(0..100)),
            ("bytes=10-19", Selection::Part(10..20)),
            ("bytes=10-1000", Selection::Part(10..100)),
            ("bytes=99-", Selection::Part(99..100)),
            ("bytes=-5", Selection::Part(95..100)),
            ("bytes=-500", Selection::Part(0..100)),
            ("Bytes=0-0", Selection::Part(0..1)),
            ("bytes=100-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=18446744073709551615-", Selection::Unsatisfiable),
            ("bytes=0-18446744073709551615", Selection::Part(0..100)),
            ("bytes=5-4", Selection::Whole),
            ("bytes=0-1,5-6", Selection::Whole),
            ("bytes=+1-", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=99999999999999999999-", Selection::Whole),
            ("items=0-1", Selection::Whole),
            ("bytes", Selection::Whole),
            ("", Selection::Whole),
        ];
        for (header, selection) in table {
            assert_eq!(select(header, 100), selection, "{header}");
        }
        assert_eq!(select("bytes=0-", 0), Selection::Unsatisfiable);
        assert_eq!(select("bytes=-1", 0), Selection::Unsatisfiable);
    }

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5..10, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5..10, None)));
        for bad in
            ["bytes 5-10/10", "bytes 9-5/10", "bytes */10", "bytes 5-/10", "octets 1-2/3", ""]
        {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
