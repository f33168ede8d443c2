//! Debian control data: paragraphs of fields (Debian policy §5.1, deb822(5)), read as a stream.
//!
//! Knows the syntax and no field. Whatever comes, memory stays within the bounds given here.

use std::io;
use std::io::BufRead;

use memchr::memchr;
use thiserror::Error;

/// The longest line, in bytes. The longest in Debian's and Ubuntu's archives (dependencies and
/// binary lists in `Packages` and `Sources`) are under 100 kB.
pub const LINE_MAX: usize = 1 << 20;

/// The most fields in a paragraph. Debian's have up to 40.
pub const FIELDS_MAX: usize = 4096;

/// Why control data was not read to its end. Lines count from 1.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The source of the bytes failed: also when a compressed stream is broken or too big.
    #[error("line {line} could not be read")]
    Read {
        /// Where reading stopped.
        line: u64,
        /// What the source says.
        source: io::Error,
    },
    /// A line longer than [`LINE_MAX`].
    #[error("line {line} is longer than {LINE_MAX} bytes")]
    LineTooLong {
        /// The line.
        line: u64,
    },
    /// A paragraph longer than the reader of it allows.
    #[error("the paragraph around line {line} is longer than {paragraph_max} bytes")]
    ParagraphTooLong {
        /// The line that is too much.
        line: u64,
        /// The bound, in bytes.
        paragraph_max: usize,
    },
    /// More than [`FIELDS_MAX`] fields in a paragraph.
    #[error("the paragraph around line {line} has more than {FIELDS_MAX} fields")]
    TooManyFields {
        /// The line that is too much.
        line: u64,
    },
    /// A line that is neither a field nor the continuation of one.
    #[error("line {line} is not control data")]
    Syntax {
        /// The line.
        line: u64,
    },
    /// A list of more files than any archive has.
    #[error("more than {entries_max} files are listed")]
    TooManyEntries {
        /// The bound.
        entries_max: u64,
    },
}

/// The paragraphs of control data, one by one. Buffers are kept from one to the next, so reading
/// allocates nothing once they have grown to the longest paragraph.
pub struct Paragraphs<R> {
    lines: Lines<R>,
    paragraph_max: usize,
    paragraph: Paragraph,
}

impl<R: BufRead> Paragraphs<R> {
    /// Reads from `reader`; a paragraph of more than `paragraph_max` bytes is an error.
    pub fn new(reader: R, paragraph_max: usize) -> Self {
        Self { lines: Lines::new(reader), paragraph_max, paragraph: Paragraph::default() }
    }

    /// The next paragraph, or `None` at the end. It is never empty.
    ///
    /// # Errors
    /// When the input is no control data, passes a bound or can not be read; then nothing more
    /// is to be asked of this reader.
    #[expect(clippy::should_implement_trait, reason = "an iterator can not lend its buffers")]
    pub fn next(&mut self) -> Result<Option<&Paragraph>, ControlError> {
        self.paragraph.clear();
        loop {
            let start = self.paragraph.text.len();
            if !self.lines.read(&mut self.paragraph.text)? {
                break;
            }
            let ends = self.paragraph.take_line(start, self.lines.number)?;
            if ends && !self.paragraph.fields.is_empty() {
                break;
            }
            if self.paragraph.text.len() > self.paragraph_max {
                let (line, paragraph_max) = (self.lines.number, self.paragraph_max);
                return Err(ControlError::ParagraphTooLong { line, paragraph_max });
            }
        }
        Ok((!self.paragraph.fields.is_empty()).then_some(&self.paragraph))
    }
}

/// One paragraph. Field names are compared without regard to case; of two fields with one name,
/// which policy forbids, the last counts.
#[derive(Default)]
pub struct Paragraph {
    /// The lines without comments and trailing blanks, each ended by `\n`.
    text: Vec<u8>,
    fields: Vec<Field>,
}

/// Where a field is in its paragraph's text.
struct Field {
    start: usize,
    name_end: usize,
    end: usize,
    line: u64,
}

impl Paragraph {
    /// The value of the field `name`: from behind the colon to its end, continuation lines and
    /// the line breaks before them included, without blanks around it.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let field = self.field(name)?;
        self.text.get(field.name_end + 1..field.end).map(<[u8]>::trim_ascii)
    }

    /// The value of a field that is one line of UTF-8. `None` for any other.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        let value = self.value(name)?;
        if memchr(b'\n', value).is_some() {
            return None;
        }
        std::str::from_utf8(value).ok()
    }

    /// The lines of the field `name`, without blanks around each and without empty ones: of
    /// checksum sections, one for each file. None at all when there is no such field.
    pub fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let value = self.value(name).unwrap_or_default();
        value.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
    }

    /// The line that the field `name` begins in, counted from 1 at the start of the input.
    #[must_use]
    pub fn line(&self, name: &str) -> Option<u64> {
        self.field(name).map(|field| field.line)
    }

    fn field(&self, name: &str) -> Option<&Field> {
        let is_named = |field: &&Field| {
            field.name_end - field.start == name.len()
                && self
                    .text
                    .get(field.start..field.name_end)
                    .is_some_and(|bytes| bytes.eq_ignore_ascii_case(name.as_bytes()))
        };
        self.fields.iter().rev().find(is_named)
    }

    fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
    }

    /// Takes the line from `start` to the end of the text. Tells whether it separates paragraphs.
    fn take_line(&mut self, start: usize, line: u64) -> Result<bool, ControlError> {
        let bytes = self.text.get(start..).unwrap_or_default();
        let length = bytes.trim_ascii_end().len();
        match bytes.first() {
            Some(b'#') => {
                self.text.truncate(start);
                return Ok(false);
            }
            _ if length == 0 => {
                self.text.truncate(start);
                return Ok(true);
            }
            Some(b' ' | b'\t') => {
                let field = self.fields.last_mut().ok_or(ControlError::Syntax { line })?;
                field.end = start + length;
            }
            _ => {
                let name_length = name_length(bytes).ok_or(ControlError::Syntax { line })?;
                if self.fields.len() == FIELDS_MAX {
                    return Err(ControlError::TooManyFields { line });
                }
                let (name_end, end) = (start + name_length, start + length);
                self.fields.push(Field { start, name_end, end, line });
            }
        }
        self.text.truncate(start + length);
        self.text.push(b'\n');
        Ok(false)
    }
}

/// The length of the name that `line` begins with. Debian policy §5.1: printable ASCII without
/// blanks and colon, and neither `#` nor `-` first.
fn name_length(line: &[u8]) -> Option<usize> {
    let colon = line.iter().position(|&byte| byte == b':' || !byte.is_ascii_graphic())?;
    let is_name = colon > 0 && line.get(colon) == Some(&b':') && line.first() != Some(&b'-');
    is_name.then_some(colon)
}

/// The lines of a stream, none longer than [`LINE_MAX`].
pub(super) struct Lines<R> {
    reader: R,
    /// Of the last line read, from 1.
    pub(super) number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    /// Appends the next line to `text`, without its line feed. `false` at the end.
    pub(super) fn read(&mut self, text: &mut Vec<u8>) -> Result<bool, ControlError> {
        self.number += 1;
        let line = self.number;
        let start = text.len();
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ControlError::Read { line, source }),
            };
            if available.is_empty() {
                return Ok(text.len() > start);
            }
            let feed = memchr(b'\n', available);
            let part = available.get(..feed.unwrap_or(available.len())).unwrap_or_default();
            if text.len() - start + part.len() > LINE_MAX {
                return Err(ControlError::LineTooLong { line });
            }
            text.extend_from_slice(part);
            let used = part.len() + usize::from(feed.is_some());
            self.reader.consume(used);
            if feed.is_some() {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read, repeat};

    use super::*;

    type Fields<'a> = &'a [(&'a str, &'a str)];

    /// Reads all paragraphs; small reads put line ends everywhere.
    fn read(input: &[u8], capacity: usize) -> Result<Vec<Vec<(String, String)>>, ControlError> {
        let mut paragraphs = Paragraphs::new(BufReader::with_capacity(capacity, input), 1000);
        let mut all = Vec::new();
        while let Some(paragraph) = paragraphs.next()? {
            let name = |field: &Field| {
                String::from_utf8(paragraph.text[field.start..field.name_end].to_vec()).unwrap()
            };
            let value =
                |name: &str| String::from_utf8(paragraph.value(name).unwrap().to_vec()).unwrap();
            let names = paragraph.fields.iter().map(name);
            all.push(names.map(|name| (name.clone(), value(&name))).collect());
        }
        Ok(all)
    }

    #[test]
    fn paragraphs_are_read() {
        let table: [(&str, &[Fields]); 12] = [
            ("", &[]),
            ("\n\n \n\t\n", &[]),
            ("# only this\n", &[]),
            ("A: 1", &[&[("A", "1")]]),
            ("A: 1\n", &[&[("A", "1")]]),
            ("A: 1\nB:2\n\nC:\n", &[&[("A", "1"), ("B", "2")], &[("C", "")]]),
            ("\n\nA: 1\n\n \n\nB: 2\n\n", &[&[("A", "1")], &[("B", "2")]]),
            ("A: 1\r\n b\r\n\r\nB: 2\r\n", &[&[("A", "1\n b")], &[("B", "2")]]),
            ("A: 1\n# note\n more\n#\nB: 2\n", &[&[("A", "1\n more"), ("B", "2")]]),
            ("A:\n one\n\ttwo  \n .\n", &[&[("A", "one\n\ttwo\n .")]]),
            ("A: b: c\n", &[&[("A", "b: c")]]),
            ("A: 1\n#\n\n#\nB: 2\n", &[&[("A", "1")], &[("B", "2")]]),
        ];
        for (input, wanted) in table {
            for capacity in [1, 2, 3, 7, 100] {
                let got = read(input.as_bytes(), capacity).unwrap();
                let got: Vec<Vec<(&str, &str)>> = got
                    .iter()
                    .map(|fields| fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect())
                    .collect();
                assert_eq!(got, wanted, "{input:?} by {capacity}");
            }
        }
    }

    #[test]
    fn what_is_no_control_data_is_refused_with_its_line() {
        for (input, wanted) in [
            (" continues nothing\n", 1),
            ("A: 1\n\n continues nothing\n", 3),
            ("<html>\n", 1),
            ("A: 1\nno colon\n", 2),
            ("A: 1\nno name: 2\n", 2),
            (": 1\n", 1),
            ("-A: 1\n", 1),
            ("\u{e4}: 1\n", 1),
            ("A: 1\n\nB\u{0}: 1\n", 3),
        ] {
            match read(input.as_bytes(), 100) {
                Err(ControlError::Syntax { line }) => assert_eq!(line, wanted, "{input:?}"),
                other => panic!("{input:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn fields_are_found() {
        let input = b"Name: x\nSUITE: sid\nSuite: trixie\nList:\n a 1\n\n".as_slice();
        let mut paragraphs = Paragraphs::new(input, 1000);
        let paragraph = paragraphs.next().unwrap().unwrap();
        assert_eq!(paragraph.text("name"), Some("x"));
        assert_eq!(paragraph.text("suite"), Some("trixie"));
        assert_eq!(paragraph.line("suite"), Some(3));
        assert_eq!(paragraph.text("Nam"), None);
        assert_eq!(paragraph.lines("list").collect::<Vec<_>>(), [b"a 1"]);
        assert_eq!(paragraph.lines("nothing").count(), 0);
        let mut paragraphs = Paragraphs::new(b"A: 1\n 2\nB: \xff\n".as_slice(), 1000);
        let paragraph = paragraphs.next().unwrap().unwrap();
        assert_eq!((paragraph.text("A"), paragraph.text("B")), (None, None));
        assert_eq!(paragraph.value("B"), Some(b"\xff".as_slice()));
    }

    #[test]
    fn memory_is_bounded() {
        let endless = BufReader::new(repeat(b'a'));
        let error = Paragraphs::new(endless, usize::MAX).next().map(|_| ()).unwrap_err();
        assert!(matches!(error, ControlError::LineTooLong { line: 1 }), "{error}");

        let comment = b"#".chain(repeat(b'a'));
        let error = Paragraphs::new(BufReader::new(comment), 10).next().map(|_| ()).unwrap_err();
        assert!(matches!(error, ControlError::LineTooLong { line: 1 }), "{error}");

        let huge = format!("A: 1\n{}", " 123456789\n".repeat(1000));
        let error = Paragraphs::new(huge.as_bytes(), 1000).next().map(|_| ()).unwrap_err();
        let wanted = ControlError::ParagraphTooLong { line: 92, paragraph_max: 1000 };
        assert_eq!(error.to_string(), wanted.to_string());
        assert!(Paragraphs::new(huge.as_bytes(), huge.len()).next().unwrap().is_some());

        let fields = "a:\n".repeat(FIELDS_MAX + 1);
        let error = Paragraphs::new(fields.as_bytes(), 1 << 20).next().map(|_| ()).unwrap_err();
        assert!(matches!(error, ControlError::TooManyFields { line: 4097 }), "{error}");
    }

    #[test]
    fn a_failing_source_is_told_with_its_line() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::InvalidData.into())
            }
        }
        let input = BufReader::new(b"A: 1\n\nB: 2\n".chain(Broken));
        let mut paragraphs = Paragraphs::new(input, 1000);
        assert!(paragraphs.next().unwrap().is_some());
        let error = paragraphs.next().map(|_| ()).unwrap_err();
        assert!(matches!(error, ControlError::Read { line: 4, .. }), "{error:?}");
    }
}
