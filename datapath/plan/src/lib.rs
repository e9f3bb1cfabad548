//! What the kernel of one node should hold, what it holds, and the steps from one to the other.
//!
//! Invariant: pure. `datapath-linux` observes and applies; this crate decides.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod base;
mod capacity;
mod delta;
mod difference;
mod entry;
mod epochs;
mod fake;
mod key;
pub mod lb;
mod op;
mod reconciler;
mod service;
mod table;

pub use base::{Base, BaseUnderlay, HostRouting, Masquerade, Mode, pod_mtu_bytes};
pub use capacity::{Limits, PlanError};
pub use delta::ObservedDelta;
pub use difference::Difference;
pub use entry::Entry;
pub use fake::FakeDatapath;
pub use key::{Prune, TableKey};
pub use op::{EpochScope, Op, OpError, OpErrorKind, OpFailure, Plan, PlanOutcome};
pub use reconciler::{Completed, FIRST_RETRY, Failing, LONGEST_RETRY, Reconciler};
pub use service::{
    Algorithm, BackendId, BackendState, BackendValue, Frontend, FrontendKind, FrontendValue, Protocol,
    ServiceId, ServiceMode, ServiceValue,
};
pub use table::{
    Attachment, EndpointId, EndpointValue, Generation, IpcacheValue, Mac, NextHop, NodeIndex, NodeValue,
    Observed, RouteValue, Tables,
};
