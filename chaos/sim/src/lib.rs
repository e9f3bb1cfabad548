//! A fleet in one value, decided by a seed: nodes, their kernels, one store, gossip, and time by hand.
//!
//! Here are the world and its checkers; stories and random histories are tests. Nothing here has a clock, a thread or
//! a socket: the same seed gives the same history.

mod agent;
pub mod check;
mod fleet;

pub use agent::Agent;
pub use fleet::{Sim, added, config, name, spec};
