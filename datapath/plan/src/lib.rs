//! What the kernel of one node should hold, what it holds, and the steps from one to the other.
//!
//! Invariant: pure. `datapath-linux` observes and applies; this crate decides.
//!
//! A kernel table is one line of [`kernel_tables!`] and one implementation of [`Row`]. No other code names the tables one
//! by one: code that needs all tables (the reconciler, `datapath-linux`, `/v1/state`) expands the list.

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

/// Expands `callback!` with its arguments in parentheses, followed by one line for each kernel table:
/// `Variant field [container] key => row;`.
///
/// The order is that of a plan: an entry depends only on entries of earlier tables, so puts go down the list and
/// removals up.
#[macro_export]
macro_rules! kernel_tables {
    ($callback:ident!($($arguments:tt)*)) => {
        $callback! { ($($arguments)*)
            /// The devices and settings of this node. There is at most one.
            Base base [Option] $crate::Single => $crate::Base;
            /// Nodes of the fleet by their local index, with the inverse by underlay address.
            Node nodes [BTreeMap] $crate::NodeIndex => $crate::NodeValue;
            /// Identity and node of addresses (/32, /128: the hash map) and prefixes (the LPM trie), without host bits.
            Ipcache ipcache [BTreeMap] ::ipnetwork::IpNetwork => $crate::IpcacheValue;
            /// Routes to pod CIDRs and service pools.
            Route routes [BTreeMap] ::ipnetwork::IpNetwork => $crate::RouteValue;
            /// Endpoints of this node.
            Endpoint endpoints [BTreeMap] $crate::EndpointId => $crate::EndpointValue;
            /// Backends of service ports.
            Backend backends [BTreeMap] $crate::BackendId => $crate::BackendValue;
            /// Service ports.
            Service services [BTreeMap] $crate::ServiceId => $crate::ServiceValue;
            /// Addresses and ports at which service ports are reached.
            Frontend frontends [BTreeMap] $crate::Frontend => $crate::FrontendValue;
        }
    };
}
