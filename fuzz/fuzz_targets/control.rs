//! Control data: no panic, bounds hold, and how the bytes arrive makes no difference.
#![no_main]

use std::io::{BufRead, BufReader};

use aptmesh::archive::control::Paragraphs;
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 4] = ["A", "Size", "SHA256", "x-y"];

fuzz_target!(|data: &[u8]| {
    let whole = summary(data);
    assert_eq!(summary(BufReader::with_capacity(3, data)), whole);
});

/// How many paragraphs there are, what the fields in them hold, and whether the end was reached.
fn summary(reader: impl BufRead) -> (usize, Vec<u8>, Option<String>) {
    let mut paragraphs = Paragraphs::new(reader, 64);
    let (mut count, mut values) = (0, Vec::new());
    loop {
        match paragraphs.next() {
            Ok(Some(paragraph)) => {
                count += 1;
                for name in NAMES {
                    for line in paragraph.lines(name) {
                        assert!(!line.is_empty() && !line.contains(&b'\n'));
                        values.extend_from_slice(line);
                        values.push(b'\n');
                    }
                    let value = paragraph.value(name).unwrap_or_default();
                    assert!(value.len() <= 64 + 1);
                    assert_eq!(paragraph.line(name), paragraph.line(&name.to_lowercase()));
                }
            }
            Ok(None) => return (count, values, None),
            Err(error) => return (count, values, Some(error.to_string())),
        }
    }
}
