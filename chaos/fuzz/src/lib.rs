//! Every decoder with arbitrary bytes, and a node with arbitrary events.
//!
//! A target is a function over bytes that panics when something is wrong. Two engines run the same targets:
//! `tests/short.rs` makes a bounded number of seeded mutations, as part of `make test`; `make fuzz` runs libFuzzer,
//! guided by coverage. What either has found is in `corpora/<target>/`, and both replay it.

pub mod corpus;
pub mod draw;
pub mod mutate;
mod target;

pub use target::{TARGETS, Target, find};
