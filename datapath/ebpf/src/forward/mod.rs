//! What is done with a packet once that is decided.

pub mod execute;
pub mod reset;
