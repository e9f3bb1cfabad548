//! Wire types of the local HTTP API (`/run/warren/warren.sock`), and its client.
//!
//! Names in JSON are `snake_case`; enum values `kebab-case`; times `*_unix_ms` or `*_unix_us`, durations
//! `*_ms`. Requests refuse unknown fields; answers may grow fields, so readers must not.

mod client;
mod datapath;
mod endpoint;
mod error;
mod fleet;
mod manifest;
mod needs;
mod query;
mod service;
mod state;
mod status;
#[cfg(feature = "testing")]
pub mod testing;

pub use client::{Client, ClientError, Lines};
pub use datapath::{CounterRow, FlowRow, HookUser, MapDump, MapSummary};
pub use endpoint::{
    AttachmentKind, Endpoint, EndpointAdd, EndpointAdded, EndpointDeleted, EndpointDrained, EndpointState,
};
pub use error::{ApiError, ErrorKind};
pub use fleet::{CidrReleased, Identity, IdentityState, IpEntry, IpSource, Node, NodeRemoved};
pub use kvstore_schema::service::{Mode, ServiceProtocol, TrafficPolicy};
pub use manifest::{ApiVersion, Kind, MAX_MANIFEST_BYTES, Manifest, Manifests, Metadata};
pub use needs::{CAPABILITIES, Capability};
pub use node_observe::{EventFilter, FlowEvent, PartyFilter, Protocol, Verdict};
pub use query::{DiffQuery, FlowQuery, LimitQuery, ObserveQuery, RevisionQuery};
pub use service::{
    BackendState, Service, ServiceBackend, ServiceDeleted, ServiceOutcome, ServicePortStatus, ServicePut,
    ServiceWritten,
};
pub use state::{BaseRow, MasqueradeRow, ObserveLine, State, StateDiff, StateRow, StateTable};
pub use status::{
    ApplyStatus, AuditStatus, CidrStatus, EtcdMember, GossipStatus, Halted, LastError, MapFill, PassedOver,
    PeerStatus, ProgramStatus, Status, StoreStatus, UnderlayStatus, Version, Warning,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The version in every path.
pub const API_VERSION: &str = "v1";
/// Where the agent listens unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/warren/warren.sock";
/// The most bytes of a request's body: an endpoint with 64 of the longest labels takes 24 KiB.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// A listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listing<T> {
    /// What there is, sorted; cut at `limit` where the request has one.
    pub items: Vec<T>,
    /// How many there are in all.
    pub total: usize,
}

impl<T> Listing<T> {
    /// All of them, or the first `limit`.
    pub fn new(mut items: Vec<T>, limit: Option<usize>) -> Self {
        let total = items.len();
        items.truncate(limit.unwrap_or(usize::MAX));
        Self { items, total }
    }
}
