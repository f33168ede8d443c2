//! What tells one version of a resource from another (RFC 9110 §8.8).

use std::time::{Duration, UNIX_EPOCH};

/// A version's marks, as the mirror gave them. The one canonical value per resource: what clients
/// hold on to must not differ between two answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// Seconds since 1970.
    pub last_modified: Option<i64>,
    /// With its quotes and, where weak, its `W/`.
    pub etag: Option<String>,
}

impl Validators {
    /// Whether the two can not be marks of one version: where both tell, they tell otherwise.
    #[must_use]
    pub fn contradict(&self, other: &Self) -> bool {
        fn differ<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            one.zip(other).is_some_and(|(one, other)| one != other)
        }
        differ(self.etag.as_ref(), other.etag.as_ref())
            || differ(self.last_modified.as_ref(), other.last_modified.as_ref())
    }

    /// The mark for `If-Range` (RFC 9110 §13.1.5), which must be a strong one or a date.
    #[must_use]
    pub fn for_if_range(&self) -> Option<String> {
        let strong = self.etag.as_ref().filter(|etag| etag.starts_with('"'));
        strong.cloned().or_else(|| self.last_modified.map(http_date))
    }
}

/// The last second of the year 9999: later dates have no IMF-fixdate.
const LAST_DATE: u64 = 253_402_300_799;

/// Seconds since 1970 as an IMF-fixdate (RFC 9110 §5.6.7), the one form that apt reads.
#[must_use]
pub fn http_date(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default().min(LAST_DATE));
    httpdate::fmt_http_date(UNIX_EPOCH + since)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(etag: Option<&str>, last_modified: Option<i64>) -> Validators {
        Validators { etag: etag.map(str::to_owned), last_modified }
    }

    #[test]
    fn only_what_both_tell_can_contradict() {
        let table = [
            (marks(None, None), marks(Some("\"a\""), Some(1)), false),
            (marks(Some("\"a\""), None), marks(None, Some(1)), false),
            (marks(Some("\"a\""), Some(1)), marks(Some("\"a\""), Some(1)), false),
            (marks(Some("\"a\""), Some(1)), marks(Some("\"b\""), Some(1)), true),
            (marks(Some("\"a\""), Some(1)), marks(Some("\"a\""), Some(2)), true),
        ];
        for (one, other, contradict) in table {
            assert_eq!(one.contradict(&other), contradict, "{one:?} {other:?}");
        }
    }

    #[test]
    fn weak_marks_do_not_resume() {
        assert_eq!(marks(Some("W/\"a\""), None).for_if_range(), None);
        assert_eq!(marks(Some("\"a\""), Some(0)).for_if_range().as_deref(), Some("\"a\""));
        let date = marks(Some("W/\"a\""), Some(0)).for_if_range();
        assert_eq!(date.as_deref(), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
        assert_eq!(http_date(i64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
