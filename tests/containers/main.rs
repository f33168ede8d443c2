//! Every form in which the product runs in containers, started for real: image, site, pods, package.
//! They need a Docker engine and base images, so `make e2e` runs them, and `cargo test` does not.

#[path = "../e2e/kit/mod.rs"]
mod kit;

mod engine;

mod chart;
mod image;
mod package;
mod pod;
mod site;
