//! What strangers hand us: cards, have-filters and their deltas, messages of nodes. What is read is
//! within its bounds, and is written as it was read.
#![no_main]

use aptmesh::content::card::{self, Signed};
use aptmesh::content::filter::{Delta, Filter};
use aptmesh::dht::message::{Answer, Ask};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(signed) = Signed::parse(data) {
        assert_eq!(signed.as_bytes(), data);
        assert!(data.len() <= card::SIZE_MAX);
        let body = signed.card.clone().sign(|_| [0; 64]);
        assert_eq!(body.as_bytes()[..data.len() - 64], data[..data.len() - 64]);
    }
    if let Some(filter) = Filter::parse(data) {
        filter.has(0);
        filter.has(u64::MAX);
        assert_eq!(filter.to_bytes(), data);
    }
    if let Some(delta) = Delta::parse(data) {
        assert_eq!(delta.to_bytes(), data);
        if let Some(mut filter) = Filter::of(delta.from, vec![1, 2, 3]) {
            filter.apply(&delta);
        }
    }
    if let Some(ask) = Ask::parse(data) {
        assert_eq!(ask.to_bytes(), data);
    }
    if let Some(answer) = Answer::parse(data) {
        assert_eq!(answer.to_bytes(), data);
    }
});
