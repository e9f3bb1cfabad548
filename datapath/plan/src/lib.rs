//! What the kernel of one node should hold, what it holds, and the steps from one to the other.
//!
//! Invariant: pure. `datapath-linux` observes and applies; this crate decides.

mod op;
mod table;

pub use op::{EpochScope, Op, OpError, OpErrorKind, OpFailure, Plan, PlanOutcome};
pub use table::{
    Attachment, Base, EndpointId, EndpointValue, Generation, IpcacheValue, Mac, NodeIndex, NodeValue, Observed, RouteValue,
    Tables,
};
