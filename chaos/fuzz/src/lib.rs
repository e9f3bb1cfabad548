//! Every decoder under arbitrary bytes, and a node under arbitrary events.
//!
//! A target is a function over bytes that panics when something is wrong. Two engines run the same targets:
//! `tests/short.rs` a bounded number of seeded mutations, as a part of `make test`; `make fuzz` libFuzzer, guided
//! by coverage. What either has found lies in `corpora/<target>/` and is replayed by both.

pub mod corpus;
pub mod draw;
pub mod mutate;
mod target;

pub use target::{TARGETS, Target, find};
