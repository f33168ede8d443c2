//! What each value does to a release, and that it does nothing else: `switches.txt` has it, line by line.
//!
//! `= EXAMPLE VALUE…` begins a case: an example of `ci/`, and values that are set in it, as JSON. Those before `=>` are set
//! on both sides of the comparison. The lines below are the differences that it makes.

use super::differences::differences;
use super::documents::values;
use super::helm::{Manifests, render};
use std::collections::HashMap;
use std::thread;

const CASES: &str = include_str!("switches.txt");
/// Changes each alert: `package.rs` has what it does.
const ELSEWHERE: &str = "prometheusRule.handbook";
/// Renderings at a time.
const AT_ONCE: usize = 2;

struct Case<'a> {
    title: &'a str,
    example: &'a str,
    given: Vec<&'a str>,
    set: Vec<&'a str>,
    lines: Vec<&'a str>,
}

impl<'a> Case<'a> {
    fn read(text: &'a str) -> Self {
        let mut lines = text.lines();
        let title = lines.next().expect("a title");
        let (example, values) = title.split_once(' ').expect("values");
        let (given, set) = values.split_once(" => ").unwrap_or(("", values));
        let [given, set] = [given, set].map(|values| values.split_whitespace().collect());
        Self { title, example, given, set, lines: lines.filter(|line| !line.is_empty()).collect() }
    }

    /// What is different, unless it is what it should be. Many begin `with` the same release.
    fn check(&self, with: &mut HashMap<String, Manifests>) -> Option<String> {
        let key = format!("{} {}", self.example, self.given.join(" "));
        let before = with.entry(key).or_insert_with(|| render(self.example, &self.given));
        let after = render(self.example, &[&self.given[..], &self.set].concat());
        let found = differences(before, &after);
        (found != self.lines).then(|| format!("= {}\n{}\n", self.title, found.join("\n")))
    }
}

fn cases() -> Vec<Case<'static>> {
    CASES.split("\n= ").skip(1).map(Case::read).collect()
}

#[test]
fn each_value_does_what_it_says_and_nothing_else() {
    let cases = cases();
    let check = |part: &[Case<'_>]| -> Vec<String> {
        let mut with = HashMap::new();
        part.iter().filter_map(|case| case.check(&mut with)).collect()
    };
    let wrong: Vec<String> = thread::scope(|scope| {
        let parts = cases.chunks(cases.len().div_ceil(AT_ONCE));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || check(part))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "instead of what switches.txt says:\n{}", wrong.join("\n"));
}

#[test]
fn each_value_is_a_case() {
    let set: Vec<_> = cases().into_iter().flat_map(|case| case.set).collect();
    for value in values().into_iter().filter(|value| value.key != ELSEWHERE) {
        let is_set = |other: &&str| {
            let key = other.split('=').next().unwrap();
            key == value.key || key.starts_with(&format!("{}.", value.key))
        };
        assert!(set.iter().any(is_set), "{} is in no case of switches.txt", value.key);
    }
    for case in cases() {
        assert!(!case.lines.is_empty(), "{} does nothing", case.title);
    }
}
