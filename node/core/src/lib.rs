//! What one node wants: `Node::handle(now, event) -> commands`, synchronous and pure.
//!
//! Invariant: no clock, socket, file, thread or randomness of its own. The same events at the same times
//! with the same configuration give the same commands, on any machine.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod audit;
mod check;
mod command;
mod config;
mod desired;
mod endpoints;
mod event;
mod health;
mod identities;
mod ipam;
mod limits;
mod mark;
mod membership;
mod node;
mod peers;
mod records;
mod restoring;
mod services;
mod snapshot;
mod store;
mod tasks;
mod view;

pub use command::{CallError, CallErrorKind, Command, Probe, ProbeTarget, Reply};
pub use config::{DatapathConfig, NativeRoutes, NodeConfig, Underlay};
pub use event::{Call, CallId, EndpointSpec, Event, GossipUpdate, KvId, KvUpdate, Now, ProbeId};
pub use kvstore_claims::{Expected, ServiceOutcome};
pub use node::Node;
pub use snapshot::{SavedCidr, SavedEndpoint, SavedIdentity, SavedNode, SavedRecord, Snapshot};
pub use view::{
    AuditView, BackendView, CidrView, Counters, CountsView, EndpointState, EndpointView, ErrorView,
    IdentityView, IpcacheSource, IpcacheView, NodeView, PlanView, RejectedView, ServicePortView, ServiceView,
    StatusView, StoreView,
};
