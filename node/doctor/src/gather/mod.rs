//! Collects facts. Nothing here judges, and a missing fact is no error.

mod agent;
mod clock;
mod device;
mod machine;
mod peers;

pub(crate) use agent::{Agent, Answers, Peer, agent, tunnels};
pub(crate) use clock::{Clock, clock};
pub(crate) use machine::{Machine, machine};
#[cfg(test)]
pub(crate) use peers::Heard;
