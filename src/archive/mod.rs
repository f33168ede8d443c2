//! What an APT archive says: which resource a request names and of what kind it is. No I/O, no
//! clock.

pub mod kind;
pub mod target;
