//! Release files: what is taken for signed is in the file, and what is listed can be asked for.
#![no_main]

use aptmesh::archive::listed::path_below;
use aptmesh::archive::release::{Release, content};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data);
    // The frame is hard to come by: with half of it given, all its rules are reached.
    let mut framed = b"-----BEGIN PGP SIGNED MESSAGE-----\n".to_vec();
    framed.extend_from_slice(data);
    check(&framed);
    framed.extend_from_slice(b"\n-----END PGP SIGNATURE-----\n");
    check(&framed);
});

fn check(file: &[u8]) {
    let Ok(content) = content(file) else { return };
    assert!(content.text.len() <= file.len());
    assert_eq!(content.is_signed, file.starts_with(b"-----BEGIN PGP SIGNED MESSAGE-----"));
    let Ok(release) = Release::parse(&content.text) else { return };
    for pair in release.files.windows(2) {
        assert!(pair[0].path < pair[1].path, "each path once");
    }
    for listed in &release.files {
        assert_eq!(path_below("", &listed.path).as_ref(), Some(&listed.path));
        assert!(listed.size.is_some());
    }
    assert!(release.date.is_none_or(|date| (0..=253_402_300_800).contains(&date)));
}
