//! Scenarios: what happens to a fleet, and what must hold meanwhile and afterwards.
//!
//! A scenario is a file of `chaos/scenarios`: title, reason, the fleet's size, and one step a line. Steps are those
//! of `warren-lab fault`, endpoints that are added and deleted, probes, waits, and expectations. Random choices
//! (`pick`, a time from a range) are made with the seed when the file is read: from then on a run is a plain list of
//! steps.

mod check;
mod expect;
mod file;
mod kernel;
mod reader;
mod report;
mod run;
mod step;

pub use file::{Scenario, find};
pub use kernel::{LostEntry, Watch};
pub use report::{Expectation, ProbeReport, RunReport, TimelineEntry, TroubleReport};
pub use run::run;
