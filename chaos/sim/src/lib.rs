//! A fleet in one value, decided by a seed: nodes, their kernels, one store, gossip, faults, and time by hand.
//!
//! Here are the world, its checkers and its random histories; stories are tests. Nothing here has a clock, a thread or
//! a socket: the same seed gives the same history.

mod agent;
mod bug;
pub mod check;
mod config;
mod fleet;
mod gossip;
mod history;
mod invariant;
mod log;
mod truth;

pub use agent::{Agent, Replies, carry_out};
pub use bug::{ALL, Bug, OF_LIVES};
pub use config::{added, config, name, spec};
pub use fleet::Sim;
pub use gossip::{Gossip, Link};
pub use history::{Course, Failure, run};
pub use invariant::{Invariant, Violation};
pub use log::Log;
