//! PROXY headers: what is decided from a part of one stays so when more comes, it is decided within bounds,
//! and what follows a header has no say in it.
#![no_main]

use aptmesh::web::balancers::{Beginning, HEADER_MAX, beginning};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let decided = (0..=bytes.len()).find_map(|length| match beginning(&bytes[..length]) {
        Ok(Beginning::Unfinished) => None,
        clear => Some((length, clear)),
    });
    let Some((length, clear)) = decided else {
        assert!(bytes.len() < HEADER_MAX, "it waits for more than a header has");
        return;
    };
    assert!(length <= HEADER_MAX, "it takes more than a header has");
    assert_eq!(beginning(bytes), clear, "more bytes change what it is");
    if let Ok(Beginning::Header(taken, client)) = clear {
        assert!(taken == length, "it is known as soon as it is there, and takes no byte more");
        // An address of the fourth version is written as one.
        assert!(client.is_none_or(|client| client.ip() == client.ip().to_canonical()));
    }
});
