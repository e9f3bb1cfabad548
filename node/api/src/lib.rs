//! Wire types of the local HTTP API (`/run/warren/warren.sock`), and its client.
//!
//! Field names in JSON are `snake_case`; enum values `kebab-case`; times `*_unix_ms` or `*_unix_us`, durations
//! `*_ms`. Requests with unknown fields are rejected. Answers may get new fields, which readers must ignore.

mod client;
mod datapath;
mod endpoint;
mod error;
mod fleet;
mod kind;
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
pub use endpoint::{AttachmentKind, Endpoint, EndpointAdd, EndpointAdded, EndpointDrained, EndpointState};
pub use error::{ApiError, ErrorKind};
pub use fleet::{CidrReleased, Identity, IdentityState, IpEntry, IpSource, Node, NodeRemoved};
pub use kind::{Deleted, Kind, KindName, Object, Outcome, Spec, Written};
pub use kvstore_schema::service::{Mode, ServiceProtocol, TrafficPolicy};
pub use manifest::{MAX_MANIFEST_BYTES, Manifest, Manifests};
pub use needs::{CAPABILITIES, Capability};
pub use node_observe::{EventFilter, FlowEvent, PartyFilter, Protocol, Verdict};
pub use query::{DiffQuery, FlowQuery, LimitQuery, ObserveQuery, RevisionQuery};
pub use service::{BackendState, Service, ServiceBackend, ServicePortStatus, ServicePut, ServiceWritten};
pub use state::{BaseRow, MasqueradeRow, ObserveLine, State, StateDiff, StateRow, StateTable};
pub use status::{
    ApplyStatus, AuditStatus, CidrStatus, EtcdMember, GossipStatus, Halted, LastError, MapFill, PassedOver,
    PeerStatus, ProgramStatus, Status, StoreStatus, UnderlayStatus, Version, Warning,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The version of the API, the first part of every path.
pub const API_VERSION: &str = "v1";
/// The agent's default socket.
pub const DEFAULT_SOCKET: &str = "/run/warren/warren.sock";
/// The maximum size of a request's body: an endpoint with 64 of the longest labels takes 24 KiB.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// The rows of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listing<T> {
    /// The items, sorted; at most `limit` of them if the request has one.
    pub items: Vec<T>,
    /// The number of items without the limit.
    pub total: usize,
}

impl<T> Listing<T> {
    /// A listing of all items, or of the first `limit`.
    pub fn new(mut items: Vec<T>, limit: Option<usize>) -> Self {
        let total = items.len();
        items.truncate(limit.unwrap_or(usize::MAX));
        Self { items, total }
    }
}
