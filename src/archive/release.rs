//! Release files: which lists a suite has (Debian repository format, "Release files"), and the
//! text that an `InRelease` file signs (RFC 9580 §7).
//!
//! Checks no signature.

use std::borrow::Cow;
use std::collections::BTreeMap;

use thiserror::Error;

use crate::archive::control::ControlError;
use crate::archive::control::Paragraph;
use crate::archive::control::Paragraphs;
use crate::archive::listed::Listed;
use crate::archive::listed::Tally;
use crate::archive::signature::MESSAGE_BEGIN;
use crate::archive::signature::Malformed;
use crate::archive::signature::signed_text;

/// The largest release file, in bytes. Debian's are under 1 MB; those of archives with many
/// architectures and languages reach 10 MB.
pub const TEXT_MAX: usize = 32 << 20;

/// The most files that a release file lists. Debian's list under 10,000.
pub const ENTRIES_MAX: u64 = 200_000;

/// The longest name of a suite, in bytes.
const NAME_MAX: usize = 255;

/// What a release file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// `Suite`, such as `stable`.
    pub suite: Option<String>,
    /// `Codename`, such as `trixie`.
    pub codename: Option<String>,
    /// `Date`: when it was made, in seconds since 1970.
    pub date: Option<i64>,
    /// `Valid-Until`: when it is to be trusted no more, in seconds since 1970.
    pub valid_until: Option<i64>,
    /// `Acquire-By-Hash`: whether the files are also found by their digest.
    pub acquire_by_hash: bool,
    /// The files, by path, each once. Paths are relative to the release file's folder.
    pub files: Vec<Listed>,
    /// How many lines of the checksum sections could not be used.
    pub skipped: u64,
}

/// Why a release file says nothing.
#[derive(Debug, Error)]
pub enum ReleaseError {
    /// Larger than [`TEXT_MAX`].
    #[error("the release file is larger than {TEXT_MAX} bytes")]
    TooLong,
    /// Nothing in it.
    #[error("the release file is empty")]
    Empty,
    /// No control data, or more of it than there may be.
    #[error("the release file is not control data")]
    Control(#[from] ControlError),
    /// A time that can not be read: ignoring it could mean to trust what has expired.
    #[error("line {line}: {field} is not a time in UTC")]
    Time {
        /// Where the field begins, counted from 1.
        line: u64,
        /// The field.
        field: &'static str,
    },
    /// Not framed as RFC 9580 §7 has it, or with something outside of what is signed.
    #[error("the signed message: {0}")]
    Frame(#[from] Malformed),
}

impl Release {
    /// Reads the text of a release file: a `Release` file, or what [`content`] finds in an
    /// `InRelease` file.
    ///
    /// # Errors
    /// When it is no control data, passes a bound, or has a time that can not be read.
    pub fn parse(text: &[u8]) -> Result<Self, ReleaseError> {
        if text.len() > TEXT_MAX {
            return Err(ReleaseError::TooLong);
        }
        let mut paragraphs = Paragraphs::new(text, TEXT_MAX);
        let paragraph = paragraphs.next()?.ok_or(ReleaseError::Empty)?;
        let sections = [("SHA256", "SHA256"), ("SHA512", "SHA512"), ("SHA1", "SHA1")];
        let mut files = BTreeMap::new();
        let mut tally = Tally::new(ENTRIES_MAX, |listed: Listed| {
            files.insert(listed.path.clone(), listed);
        });
        tally.take_sections(paragraph, &sections, "")?;
        let skipped = tally.count().skipped;
        Ok(Self {
            suite: name(paragraph, "Suite"),
            codename: name(paragraph, "Codename"),
            date: time(paragraph, "Date")?,
            valid_until: time(paragraph, "Valid-Until")?,
            acquire_by_hash: paragraph.text("Acquire-By-Hash").is_some_and(is_yes),
            files: files.into_values().collect(),
            skipped,
        })
    }
}

fn name(paragraph: &Paragraph, field: &str) -> Option<String> {
    let is_name = |text: &&str| {
        !text.is_empty() && text.len() <= NAME_MAX && !text.contains(char::is_control)
    };
    paragraph.text(field).filter(is_name).map(str::to_owned)
}

fn is_yes(text: &str) -> bool {
    ["yes", "true", "on", "1"].iter().any(|yes| text.eq_ignore_ascii_case(yes))
}

fn time(paragraph: &Paragraph, field: &'static str) -> Result<Option<i64>, ReleaseError> {
    let Some(line) = paragraph.line(field) else { return Ok(None) };
    match paragraph.text(field).and_then(seconds) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(ReleaseError::Time { line, field }),
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Reads a time as `date -R -u` writes it (RFC 5322 §3.3, always in UTC), with or without the name
/// of the day, into seconds since 1970.
fn seconds(text: &str) -> Option<i64> {
    let mut words = text.split_ascii_whitespace().peekable();
    words.next_if(|word| word.len() == 4 && word.ends_with(','));
    let day = number(words.next()?, 1..=2)?;
    let month = words.next()?;
    let month = (1..).zip(MONTHS).find(|(_, name)| name.eq_ignore_ascii_case(month))?.0;
    let year = number(words.next()?, 4..=4)?;
    let mut clock = words.next()?.split(':');
    let hour = number(clock.next()?, 1..=2)?;
    let minute = number(clock.next()?, 2..=2)?;
    let second = number(clock.next()?, 2..=2)?;
    let zone = words.next()?;
    let is_utc = ["UTC", "GMT", "Z", "+0000", "-0000"].contains(&zone);
    let is_clock = hour < 24 && minute < 60 && second <= 60;
    if !is_utc || !is_clock || clock.next().is_some() || words.next().is_some() {
        return None;
    }
    if year < 1970 || !(1..=days_in(year, month)).contains(&day) {
        return None;
    }
    Some(((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
}

fn number(digits: &str, length: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let is_number =
        length.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970 to the first of the month.
fn days_before(year: i64, month: i64) -> i64 {
    let past = year - 1;
    let leap_days = past / 4 - past / 100 + past / 400 - 477;
    (year - 1970) * 365 + leap_days + (1..month).map(|past| days_in(year, past)).sum::<i64>()
}

/// A release file as it was downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content<'a> {
    /// What it says, for [`Release::parse`].
    pub text: Cow<'a, [u8]>,
    /// Whether it is an `InRelease` file, whose text is what the signature in it covers. The
    /// signature of a plain `Release` file is in `Release.gpg`.
    pub is_signed: bool,
}

/// Takes an `InRelease` or `Release` file apart. The text of a signed message is found by the code
/// that checks signatures, so that nothing is read but what they hold for.
///
/// # Errors
/// When the file is too long, or begins as a signed message and is not exactly one.
pub fn content(file: &[u8]) -> Result<Content<'_>, ReleaseError> {
    if file.len() > TEXT_MAX {
        return Err(ReleaseError::TooLong);
    }
    if !file.starts_with(MESSAGE_BEGIN) {
        return Ok(Content { text: Cow::Borrowed(file), is_signed: false });
    }
    Ok(Content { text: Cow::Owned(signed_text(file)?), is_signed: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::digest::Expected;

    #[test]
    fn a_release_file_is_read() {
        let (a, b, c) = ("a".repeat(64), "b".repeat(128), "c".repeat(40));
        let text = format!(
            "Origin: Debian\nSuite: stable\nCodename: bookworm\nAcquire-By-Hash: yes\n\
             Date: Sat, 09 Nov 2024 10:17:24 UTC\nValid-Until: Sat, 16 Nov 2024 10:17:24 UTC\n\
             MD5Sum:\n {m} 1 md5-only\n {m} 2 main/Packages\n\
             SHA1:\n {c} 3 sha1-only\n {c} 9 main/Packages\n\
             SHA256:\n {a} 2 main/Packages\n {a}        4 ./main/Sources\n {a} 5 ../evil\n \
             {a} five main/x\n {a} 5 a b\n {a} 99999999999999999999 main/y\n short 1 main/z\n\
             SHA512:\n {b} 6 main/Packages\n {b} 7 Contents\n",
            m = "0".repeat(32)
        );
        let release = Release::parse(text.as_bytes()).unwrap();
        assert_eq!(release.suite.as_deref(), Some("stable"));
        assert_eq!(release.codename.as_deref(), Some("bookworm"));
        assert_eq!(release.date, Some(1_731_147_444));
        assert_eq!(release.valid_until, Some(1_731_147_444 + 7 * 86400));
        assert!(release.acquire_by_hash);
        assert_eq!(release.skipped, 5);
        let files: Vec<_> = release.files.iter().map(|f| (f.path.as_str(), f.size)).collect();
        let wanted = [
            ("Contents", Some(7)),
            ("main/Packages", Some(2)),
            ("main/Sources", Some(4)),
            ("sha1-only", Some(3)),
        ];
        assert_eq!(files, wanted);
        let digests = release.files.iter().map(|file| file.digest);
        assert_eq!(
            digests.collect::<Vec<_>>(),
            [("SHA512", &b), ("SHA256", &a), ("SHA256", &a), ("SHA1", &c)]
                .map(|(algorithm, hex)| Expected::from_by_hash(algorithm, hex).unwrap())
        );
    }

    #[test]
    fn little_is_needed() {
        let release = Release::parse(b"Suite: x\n").unwrap();
        assert_eq!((release.date, release.valid_until, release.codename), (None, None, None));
        assert!(!release.acquire_by_hash && release.files.is_empty());
        for (value, by_hash) in [("yes", true), ("YES", true), ("no", false), ("", false)] {
            let text = format!("Acquire-By-Hash: {value}\n");
            assert_eq!(Release::parse(text.as_bytes()).unwrap().acquire_by_hash, by_hash);
        }
        let long = format!("Suite: {}\nCodename: a\tb\n", "x".repeat(256));
        let release = Release::parse(long.as_bytes()).unwrap();
        assert_eq!((release.suite, release.codename), (None, None));
    }

    #[test]
    fn times_are_read() {
        let table = [
            ("Thu, 01 Jan 1970 00:00:00 UTC", Some(0)),
            ("Thu, 1 Jan 1970 0:00:01 GMT", Some(1)),
            ("Sat, 09 Nov 2024 10:17:24 UTC", Some(1_731_147_444)),
            ("Sat, 09 Nov 2024 10:17:24 +0000", Some(1_731_147_444)),
            ("9 nov 2024 10:17:24 Z", Some(1_731_147_444)),
            ("Thu, 29 Feb 2024 23:59:59 UTC", Some(1_709_251_199)),
            ("Tue, 29 Feb 2000 00:00:00 UTC", Some(951_782_400)),
            ("Fri, 31 Dec 9999 23:59:59 UTC", Some(253_402_300_799)),
            ("Sat, 09 Nov 2024 10:17:24 +0100", None),
            ("Sat, 09 Nov 2024 10:17:24 CET", None),
            ("Sat, 09 Nov 2024 10:17:24", None),
            ("Sat, 09 Nov 2024 10:17:24 UTC x", None),
            ("Sat, 09 Nov 2024 10:17:24:00 UTC", None),
            ("Sat, 09 Nov 2024 24:00:00 UTC", None),
            ("Sat, 00 Nov 2024 10:17:24 UTC", None),
            ("Sat, 31 Nov 2024 10:17:24 UTC", None),
            ("Wed, 29 Feb 2023 10:17:24 UTC", None),
            ("Mon, 29 Feb 2100 10:17:24 UTC", None),
            ("Sat, 09 Nov 1969 10:17:24 UTC", None),
            ("Sat, 09 Nov 24 10:17:24 UTC", None),
            ("Sat, 09 Nov 99999 10:17:24 UTC", None),
            ("Sat, 09 Nvm 2024 10:17:24 UTC", None),
            ("2024-11-09T10:17:24Z", None),
            ("", None),
        ];
        for (text, value) in table {
            assert_eq!(seconds(text), value, "{text}");
            let release = Release::parse(format!("Suite: x\nValid-Until: {text}\n").as_bytes());
            match release {
                Ok(release) => assert!(value.is_some() && release.valid_until == value, "{text}"),
                Err(ReleaseError::Time { line: 2, field: "Valid-Until" }) => {
                    assert_eq!(value, None, "{text}");
                }
                Err(other) => panic!("{text}: {other}"),
            }
        }
    }

    #[test]
    fn hostile_release_files_are_refused() {
        assert!(matches!(Release::parse(b""), Err(ReleaseError::Empty)));
        assert!(matches!(Release::parse(b"\n \n#\n"), Err(ReleaseError::Empty)));
        assert!(matches!(Release::parse(b"<html>"), Err(ReleaseError::Control(_))));
        let long = vec![b'\n'; TEXT_MAX + 1];
        assert!(matches!(Release::parse(&long), Err(ReleaseError::TooLong)));
        assert!(matches!(content(&long), Err(ReleaseError::TooLong)));
        let mut many = b"SHA1:\n".to_vec();
        for number in 0..=ENTRIES_MAX {
            many.extend_from_slice(format!(" {} 1 {number}\n", "a".repeat(40)).as_bytes());
        }
        let error = Release::parse(&many).unwrap_err();
        assert!(matches!(error, ReleaseError::Control(ControlError::TooManyEntries { .. })));
    }

    const SIGNATURE: &str =
        "-----BEGIN PGP SIGNATURE-----\n\nabcd\n=efgh\n-----END PGP SIGNATURE-----";

    #[test]
    fn the_signed_text_is_found_where_signatures_find_it() {
        let begin = "-----BEGIN PGP SIGNED MESSAGE-----";
        let good = format!("{begin}\nHash: SHA256\n\nSuite: x\n{SIGNATURE}\n");
        for file in [
            good.clone(),
            good.replace('\n', "\r\n"),
            good.replace("Hash: ", "Hash:"),
            good.replace("Hash: SHA256\n\n", "Hash: SHA256\n \t\n"),
            good.replace("Suite: x", "- Suite: x \t"),
        ] {
            let got = content(file.as_bytes()).unwrap();
            assert_eq!((got.text.as_ref(), got.is_signed), (b"Suite: x\n".as_slice(), true));
        }
        let plain = content(b"Suite: x \n").unwrap();
        assert_eq!((plain.text.as_ref(), plain.is_signed), (b"Suite: x \n".as_slice(), false));
    }

    #[test]
    fn nothing_unsigned_is_taken_for_signed() {
        let begin = "-----BEGIN PGP SIGNED MESSAGE-----";
        let good = format!("{begin}\nHash: SHA256\n\nA: 1\n{SIGNATURE}\n");
        for file in [
            format!("{good}Evil: 1\n"),
            format!("{begin}\nHash: SHA256\nA: 1\n\nB: 1\n{SIGNATURE}\n"),
            format!("{begin}x\n\nB: 1\n{SIGNATURE}\n"),
            format!("{begin}\n\nB: 1\n{good}"),
            format!("{begin}\n\nB: 1\n"),
            begin.to_owned(),
        ] {
            let error = content(file.as_bytes()).unwrap_err();
            assert!(matches!(error, ReleaseError::Frame(_)), "{file}: {error}");
        }
        // What stands before the message makes it none: then it is no control data either.
        let before = format!("Evil: 1\n{good}");
        let text = content(before.as_bytes()).unwrap().text;
        assert!(matches!(Release::parse(&text), Err(ReleaseError::Control(_))));
    }
}
