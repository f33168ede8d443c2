//! The Helm chart: rendered by the real helm, each manifest held against Kubernetes' own schemas.

mod cluster;
mod differences;
mod documents;
mod helm;
mod network;
mod package;
mod pods;
mod releases;
mod switches;

pub use helm::{Manifests, NAMESPACE, Pod, render};
