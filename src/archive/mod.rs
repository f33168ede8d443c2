//! What an APT archive says: which resource a request names, of what kind it is, and what lists say of
//! other resources. No I/O, no
//! clock.

pub mod aliases;
pub mod compression;
pub mod control;
pub mod deb;
pub mod groups;
pub mod kind;
pub mod list;
pub mod listed;
pub mod packages;
pub mod release;
pub mod signature;
pub mod target;
pub mod version;
