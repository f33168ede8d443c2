//! Compressed streams: no panic, and never more plain bytes than allowed.
#![no_main]

use std::io::Read;

use aptmesh::archive::compression::Compression;
use libfuzzer_sys::fuzz_target;

const ALL: [Compression; 6] = [
    Compression::None,
    Compression::Gzip,
    Compression::Xz,
    Compression::Zstd,
    Compression::Bzip2,
    Compression::Lz4,
];

const PLAIN_MAX: u64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let detected = Compression::detect(data);
    let compression = match ALL.get(usize::from(choice)) {
        Some(&compression) => compression,
        None => detected,
    };
    let Ok(mut reader) = compression.reader(data, PLAIN_MAX) else { return };
    let mut plain = Vec::new();
    let _ended_well = reader.read_to_end(&mut plain).is_ok();
    assert!(plain.len() as u64 <= PLAIN_MAX);
});
