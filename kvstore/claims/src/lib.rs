//! Ownership protocols as pure state machines: the fleet record, nodes, identities, pod CIDRs, addresses,
//! services.
//!
//! Why one crate: identities and CIDRs share transactions, the picture of the fleet and the property tests
//! (`docs/decisions/0002-ownership-protocols-in-kvstore-claims.md`).
//!
//! Invariant: pure. Time arrives as a [`std::time::Duration`] since any fixed moment of the caller's own
//! monotone clock, randomness as a `draw: u64`, answers as `KvOutcome`; requests leave as `KvRequest`.
//! No ownership is decided by a lease, and nothing waits for a lock.
//!
//! Every machine survives an unknown outcome ([`kvstore_schema::KvFailure::Ambiguous`]): its transactions are written so
//! that asking again reads back the result. Writes that arrive late, after their sender gave up or died, are fenced by
//! revisions and by the fleet's record, which changes with each generation of the store.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod acquire;
mod address;
mod blocks;
mod cidr;
mod collect;
mod endpoint;
mod error;
mod fleet;
mod machine;
mod mark;
mod node;
mod release;
mod restore;
mod service;
mod view;

pub use acquire::{IdentityAcquire, IdentityGrant};
pub use address::{AddressError, AddressPool, Family, PoolFill};
pub use cidr::{CidrClaim, CidrGrant, CidrRelease};
pub use collect::{Collector, QUARANTINE};
pub use endpoint::{EndpointChange, EndpointResult, EndpointWrites};
pub use error::{ClaimError, Difference};
pub use fleet::{FleetJoin, FleetJoined};
pub use machine::{Machine, Next, Protocol, Step, WaitReason};
pub use mark::mark_request;
pub use node::{NodeRegistered, NodeRegistration, alive_request, node_removal_request};
pub use release::{IdentityRelease, missing_refs, stray_refs};
pub use restore::Restorer;
pub use service::{
    BatchAdded, Expected, ServiceBatch, ServiceOutcome, ServiceRemoval, ServiceWrite, ServiceWritten,
};
pub use view::{ChangeKind, Continuity, Discontinuity, Entry, FleetView, OtherFleet, Rejected, ViewChange};
