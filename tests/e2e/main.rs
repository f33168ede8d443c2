//! The real binary, real sockets, real apt: every effect that the product promises, shown.

mod kit;

mod announce;
mod apt;
mod consistency;
mod database_away;
mod dht;
mod durability;
mod duties;
mod failover;
mod fleet;
mod flights;
mod folders;
mod freshness;
mod groups;
mod guard;
mod heal;
mod http;
mod https;
mod import;
mod learning;
mod lifecycle;
mod misbehaviour;
mod offline;
mod pipelining;
mod postgres;
mod prefetch;
mod quota;
mod replicas;
mod signatures;
mod streaming;
mod swarm;
mod volume;
mod volumes;
