//! What the kernel of one node should hold, what it holds, and the steps from one to the other.
//!
//! Invariant: pure. `datapath-linux` observes and applies; this crate decides.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod backend;
mod base;
mod capacity;
mod delta;
mod epochs;
mod fake;
mod forwarding;
mod frontend;
pub mod lb;
mod observed;
mod op;
mod prune;
mod reconciler;
mod row;
mod service;
mod tables;

pub use backend::{BackendId, BackendState, BackendValue};
pub use base::{Base, BaseUnderlay, HostRouting, Masquerade, Mode, pod_mtu_bytes};
pub use capacity::{Limits, PlanError};
pub use delta::ObservedDelta;
pub use epochs::Epochs;
pub use fake::FakeDatapath;
pub use forwarding::{
    Attachment, EndpointId, EndpointValue, IpcacheValue, Mac, NextHop, NodeIndex, NodeValue, RouteValue,
};
pub use frontend::{Frontend, FrontendKind, FrontendValue, Protocol};
pub use observed::{Difference, Observed};
pub use op::{EpochScope, Op, OpError, OpErrorKind, OpFailure, Plan, PlanOutcome};
pub use prune::Prune;
pub use reconciler::{Completed, FIRST_RETRY, Failing, LONGEST_RETRY, Reconciler};
pub use row::{Change, Generation, Room, Row};
pub use service::{Algorithm, ServiceId, ServiceMode, ServiceValue};
pub use tables::{Entry, RowVisitor, Rows, Single, Stored, TableKey, Tables};
