//! Scenarios: stories of what happens to a fleet, with what must hold meanwhile and after.
//!
//! A scenario is a file of `chaos/scenarios`: title, why, the fleet's size, and a story of one step a line. Steps
//! are what `warren-lab fault` takes, endpoints that come and go, probes, waiting, and expectations. Chance (`pick`,
//! a time from a range) is drawn from the seed when the file is read: from then on a run is a plain list of steps.

mod expect;
mod file;
mod kernel;
mod report;
mod run;
mod step;

pub use file::{Scenario, find};
pub use kernel::{Left, Watch};
pub use report::{Expectation, Moment, ProbeReport, RunReport, TroubleReport};
pub use run::run;
