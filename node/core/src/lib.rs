//! What one node wants: `Node::handle(now, event) -> commands`, synchronous and pure.
//!
//! Invariant: no clock, socket, file, thread or randomness of its own. The same events at the same times with the same
//! configuration give the same commands, on any machine.
//!
//! A node is made of components, each with private state. A component's method takes the [`Context`](context::Context)
//! (time, configuration, random numbers, and the places where results go), then what it reads of other components. A
//! change that concerns another component is returned, or noted in [`Changes`](changes::Changes); `node` is the wiring
//! between them.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod audit;
mod changes;
mod command;
mod config;
mod context;
mod endpoints;
mod event;
mod facts;
mod fleet;
mod health;
mod identities;
mod ipam;
mod ipcache;
mod limits;
mod node;
mod peers;
mod records;
mod requests;
mod routing;
mod services;
mod snapshot;
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
