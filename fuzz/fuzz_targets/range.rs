//! Byte ranges: a selected part is within the body and not empty.
#![no_main]

use aptmesh::content::range::{Selection, parse_content_range, select};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &str)| {
    let (size, header) = input;
    if let Selection::Part(part) = select(header, size) {
        assert!(part.start < part.end && part.end <= size);
    }
    if let Some((range, total)) = parse_content_range(header) {
        assert!(range.start < range.end);
        assert!(total.is_none_or(|total| range.end <= total));
    }
});
