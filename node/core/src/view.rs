//! What a node knows, for reading: plain values, sorted, made on request and owned by the caller.
//!
//! Invariant: nothing here changes anything. Times are since 1970 (`Now::wall`), for humans.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use datapath_plan::{Attachment, BackendState, EndpointId, Generation, NodeIndex, ServiceId};
use identity::{EndpointName, FleetName, Identity, LabelDigest, Labels, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Revision,
    service::{ServiceProtocol, ServiceRecord},
};
use serde::{Deserialize, Serialize};

/// The node at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// This node.
    pub node: NodeName,
    /// Its fleet.
    pub fleet: FleetName,
    /// The fleet's random id, once known.
    pub fleet_id: Option<String>,
    /// The agent's version.
    pub agent_version: String,
    /// The agent's start, in ms since 1970.
    pub incarnation: u64,
    /// When the agent handled its first event.
    pub started_at: Duration,
    /// Why the node cannot go on as configured; the kernel keeps what it has.
    pub halted: Option<String>,
    /// What an operator should look at: one text for each problem.
    pub warnings: Vec<String>,
    /// The store, as far as the core knows it.
    pub store: StoreView,
    /// Underlay addresses, the tunnel's first.
    pub underlay: Vec<IpAddr>,
    /// MTU of endpoints.
    pub pod_mtu_bytes: u32,
    /// The node's own address in the pod network.
    pub gateway: Option<IpAddr>,
    /// The node's claims.
    pub cidrs: Vec<CidrView>,
    /// How far the kernel follows what is wanted.
    pub plan: PlanView,
    /// The last audit.
    pub audit: Option<AuditView>,
    /// The last failure.
    pub last_error: Option<ErrorView>,
    /// Sizes of what is known.
    pub counts: CountsView,
    /// Counted since the start.
    pub counters: Counters,
}

/// The store, seen from the core.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreView {
    /// Whether a complete listing has been seen, and the watch has not been lost since.
    pub connected: bool,
    /// Why it does not answer.
    pub lost: Option<String>,
    /// Up to which revision everything is known: the snapshot's, or 0, before the first listing.
    pub revision: i64,
    /// When it last answered.
    pub heard_at: Option<Duration>,
    /// Requests that wait for an answer.
    pub requests_in_flight: usize,
    /// Writes that wait to be sent.
    pub writes_queued: usize,
    /// Records that were not accepted.
    pub rejected: usize,
}

/// One claim of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CidrView {
    /// The block.
    pub cidr: IpNetwork,
    /// The claim's create revision.
    pub epoch: i64,
    /// Addresses in use, the gateway included.
    pub used: u64,
    /// Released addresses that may not be used again yet.
    pub cooling: u64,
    /// Addresses that can be assigned now.
    pub free: u64,
}

/// How far the kernel follows what is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanView {
    /// Whether the kernel has been read since the start: before, nothing is known of it.
    pub observed: bool,
    /// The generation of the last plan made.
    pub planned: Generation,
    /// The generation of the last plan carried out.
    pub applied: Generation,
    /// Whether a plan is being carried out.
    pub in_flight: bool,
    /// Entries that differ between what is wanted and what the kernel is believed to hold.
    pub dirty: usize,
    /// Steps that failed and will be tried again: key and reason.
    pub failing: Vec<(String, String)>,
    /// Tables that are full.
    pub full: Vec<String>,
}

/// What the last audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// When the kernel had been read.
    pub at: Duration,
    /// What differed, one line each, sorted.
    pub differences: Vec<String>,
    /// Whether the differences were repaired or only shown.
    pub repaired: bool,
}

/// Something that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// When.
    pub at: Duration,
    /// What, with its causes.
    pub text: String,
}

/// Sizes of what is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountsView {
    /// Nodes of the fleet, this one included.
    pub nodes: usize,
    /// Endpoints of this node.
    pub endpoints: usize,
    /// Endpoints of the whole fleet.
    pub fleet_endpoints: usize,
    /// Identities that the fleet has allocated.
    pub identities: usize,
    /// Wanted ipcache entries.
    pub ipcache: usize,
}

/// Counted since the start; only ever rises.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Events handled.
    pub events: u64,
    /// Plans made.
    pub plans: u64,
    /// Steps in them.
    pub ops: u64,
    /// Steps that failed.
    pub op_failures: u64,
    /// Audits done.
    pub audits: u64,
    /// Differences that audits found and repaired, by table.
    pub audit_repaired: BTreeMap<String, u64>,
    /// Requests sent to the store.
    pub kv_requests: u64,
    /// Of these: unavailable, ambiguous or refused.
    pub kv_failures: u64,
    /// Times the store was lost.
    pub store_lost: u64,
    /// Records that were not accepted, each time they came.
    pub records_rejected: u64,
    /// Facts that were not accepted.
    pub gossip_rejected: u64,
    /// Endpoints added.
    pub endpoints_added: u64,
    /// Endpoints deleted.
    pub endpoints_deleted: u64,
}

/// The state of an endpoint of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Waits for the identity of its labels.
    WaitingForIdentity,
    /// Waits for a free address, which waits for a further block.
    WaitingForAddress,
    /// Being attached.
    Attaching,
    /// Attached.
    Ready,
    /// Being detached.
    Detaching,
}

/// One endpoint of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// Its name; `wrn<id>` for an endpoint found in the kernel that has no record.
    pub name: EndpointName,
    /// Its state.
    pub state: EndpointState,
    /// Its number, in the name of its device; `None` while it waits.
    pub id: Option<EndpointId>,
    /// Its address; `None` while it waits.
    pub address: Option<IpAddr>,
    /// Its identity; `None` while it waits.
    pub identity: Option<Identity>,
    /// All its labels.
    pub labels: Labels,
    /// How it is attached; `None` for an endpoint adopted from a former agent.
    pub attachment: Option<Attachment>,
    /// The workload's Ethernet address.
    pub mac: Option<String>,
    /// Whether the store has its record.
    pub recorded: bool,
    /// Whether it is drained: as a backend it takes no new flows.
    pub terminating: bool,
    /// Why the last attempt on it failed.
    pub error: Option<String>,
}

/// One node of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Whether it is this node.
    pub this: bool,
    /// Its number in this node's kernel; `None` while it has no usable underlay address.
    pub index: Option<NodeIndex>,
    /// Underlay addresses, the tunnel's first.
    pub underlay: Vec<IpAddr>,
    /// Its own address in the pod network.
    pub gateway: Option<IpAddr>,
    /// Its live claims.
    pub cidrs: Vec<IpNetwork>,
    /// Its labels.
    pub labels: Labels,
    /// Its agent's version; empty if the node is known from gossip only.
    pub agent_version: String,
    /// Whether the key `alive/<node>` exists.
    pub alive: bool,
    /// Whether gossip considers it alive; `None` if gossip has never heard of it.
    pub gossip_alive: Option<bool>,
    /// Whether it is known from gossip only.
    pub gossip_only: bool,
    /// Its endpoints.
    pub endpoints: usize,
}

/// One identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityView {
    /// The number.
    pub id: Identity,
    /// Its labels; empty for reserved ones.
    pub labels: Labels,
    /// The name of a reserved identity.
    pub reserved: Option<String>,
    /// Digest of the labels; `None` for reserved ones.
    pub digest: Option<LabelDigest>,
    /// Whether it was released and may not be used again yet.
    pub quarantined: bool,
    /// Nodes that use it.
    pub nodes: Vec<NodeName>,
    /// Endpoints of this node that have it.
    pub local_endpoints: usize,
}

/// One wanted ipcache entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcacheView {
    /// The address or prefix.
    pub prefix: IpNetwork,
    /// Its identity.
    pub identity: Identity,
    /// The identity's labels, where known.
    pub labels: Labels,
    /// The node that the address is on.
    pub node: Option<NodeName>,
    /// The node's number.
    pub index: NodeIndex,
    /// The endpoint that has the address, if known.
    pub endpoint: Option<EndpointName>,
    /// The source of the entry.
    pub source: IpcacheSource,
}

/// The source of an ipcache entry, in order of precedence: the first source that is not silent decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpcacheSource {
    /// An own address of this node.
    Host,
    /// An own address of another node.
    RemoteNode,
    /// An endpoint of this node.
    LocalEndpoint,
    /// An endpoint change that gossip reports and the store has not confirmed.
    Gossip,
    /// An endpoint by its record in the store.
    Record,
    /// A node's block, by longest prefix after all exact addresses.
    Cidr,
}

/// A record or fact that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedView {
    /// Its key, or `gossip:<node>`.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// A service, for reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// Its specification and virtual IP.
    pub record: Arc<ServiceRecord>,
    /// Its modify revision; 0 while it is known from a snapshot only.
    pub revision: Revision,
    /// Its ports, in the order of its author.
    pub ports: Vec<ServicePortView>,
}

/// One port of a service, for reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortView {
    /// Its name.
    pub name: Option<String>,
    /// What it carries.
    pub protocol: ServiceProtocol,
    /// The port that clients use.
    pub port: u16,
    /// The port of nodes that external clients use.
    pub node_port: Option<u16>,
    /// Its number in this node's kernel; `None` before the kernel has been read, or if all numbers are taken.
    pub id: Option<ServiceId>,
    /// Whether all its backends are unhealthy, so that all are used except terminating ones (Envoy: panic mode).
    pub all_unhealthy: bool,
    /// Its backends, by address and port.
    pub backends: Vec<BackendView>,
}

/// One backend of a service port, for reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its share of new flows, relative to the other backends.
    pub weight: u16,
    /// Its state.
    pub state: BackendState,
    /// Why it gets no new flows.
    pub reason: Option<String>,
    /// The node that it is on, if it is an endpoint of the fleet.
    pub node: Option<NodeName>,
    /// Its name there.
    pub endpoint: Option<EndpointName>,
}
