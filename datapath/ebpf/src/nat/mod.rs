//! Translation of addresses and ports.

pub mod masquerade;
pub mod rewrite;
