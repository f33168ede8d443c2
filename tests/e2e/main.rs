//! The real binary, real sockets, real apt: every effect that the product promises, shown.

mod kit;

mod apt;
mod consistency;
mod durability;
mod flights;
mod freshness;
mod groups;
mod guard;
mod http;
mod https;
mod learning;
mod lifecycle;
mod misbehaviour;
mod offline;
mod pipelining;
mod prefetch;
mod quota;
mod signatures;
mod streaming;
mod volume;
