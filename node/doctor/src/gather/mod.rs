//! Facts, as they are: nothing here judges, and nothing that is missing is an error.

mod agent;
mod clock;
mod device;
mod machine;

pub(crate) use agent::{Agent, Answers, agent};
pub(crate) use clock::{Clock, clock};
pub(crate) use machine::{Machine, machine};
