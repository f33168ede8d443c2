//! Packages, sources, patches and sums: what is listed is counted and can be asked for.
#![no_main]

use aptmesh::archive::listed::{Count, Listed, path_below};
use aptmesh::archive::packages::{packages, patches, sources, sums};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut all = Vec::new();
    let count = packages(data, |listed| all.push(listed)).ok();
    check(&mut all, count, true);
    let count = sources(data, |listed| all.push(listed)).ok();
    check(&mut all, count, true);
    let count = patches(data, |listed| all.push(listed)).ok();
    check(&mut all, count, true);
    let count = sums(data, |listed| all.push(listed)).ok();
    check(&mut all, count, false);
});

fn check(all: &mut Vec<Listed>, count: Option<Count>, has_size: bool) {
    assert!(count.is_none_or(|count| count.listed == all.len() as u64));
    for listed in all.drain(..) {
        assert_eq!(path_below("", &listed.path).as_ref(), Some(&listed.path));
        assert_eq!(listed.size.is_some(), has_size);
    }
}
