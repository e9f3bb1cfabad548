//! What a node believes, for reading: plain values, sorted, made on request and owned by the caller.
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
    /// When the first event came.
    pub started_at: Duration,
    /// Why the node cannot go on as configured; it keeps what the kernel has.
    pub halted: Option<String>,
    /// What an operator should look at, one text each.
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
    /// How far the kernel is.
    pub plan: PlanView,
    /// The last audit.
    pub audit: Option<AuditView>,
    /// The last thing that failed.
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
    /// When it last said something.
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
    /// Addresses that cool down after use.
    pub cooling: u64,
    /// Addresses that can be given out now.
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
    /// Keys that differ between what is wanted and what the kernel is believed to hold.
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
    /// Identities that the fleet has given out.
    pub identities: usize,
    /// Entries of the ipcache wanted.
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
    /// Records not accepted, each time one came.
    pub records_rejected: u64,
    /// Gossiped facts not accepted.
    pub gossip_rejected: u64,
    /// Endpoints added.
    pub endpoints_added: u64,
    /// Endpoints deleted.
    pub endpoints_deleted: u64,
}

/// Where an endpoint of this node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Waits for the number of its labels.
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
    /// Its name; `wrn<id>` for one found in the kernel of which no record tells.
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
    /// How it is attached; `None` for one taken over from a former agent.
    pub attachment: Option<Attachment>,
    /// The workload's Ethernet address.
    pub mac: Option<String>,
    /// Whether the store has its record.
    pub recorded: bool,
    /// Whether it is on its way out: as a backend it takes no new flows.
    pub terminating: bool,
    /// Why the last attempt on it failed.
    pub error: Option<String>,
}

/// One node of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Whether it is this one.
    pub this: bool,
    /// Its number in this node's kernel; `None` while it has no underlay address that we can use.
    pub index: Option<NodeIndex>,
    /// Underlay addresses, the tunnel's first.
    pub underlay: Vec<IpAddr>,
    /// Its own address in the pod network.
    pub gateway: Option<IpAddr>,
    /// Its live claims.
    pub cidrs: Vec<IpNetwork>,
    /// Its labels.
    pub labels: Labels,
    /// Its agent's version; empty when only gossip tells of the node.
    pub agent_version: String,
    /// Whether `alive/<node>` is there.
    pub alive: bool,
    /// Whether gossip hears it; `None` when gossip never has.
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
    /// The name of a reserved one.
    pub reserved: Option<String>,
    /// Digest of the labels; `None` for reserved ones.
    pub digest: Option<LabelDigest>,
    /// Whether it is given back and not to be used now.
    pub quarantined: bool,
    /// Nodes that use it.
    pub nodes: Vec<NodeName>,
    /// Endpoints of this node that have it.
    pub local_endpoints: usize,
}

/// One ipcache entry wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcacheView {
    /// The address or prefix.
    pub prefix: IpNetwork,
    /// Its identity.
    pub identity: Identity,
    /// The identity's labels, where known.
    pub labels: Labels,
    /// Behind which node.
    pub node: Option<NodeName>,
    /// The node's number.
    pub index: NodeIndex,
    /// The endpoint that has the address, where known.
    pub endpoint: Option<EndpointName>,
    /// Why the entry is there.
    pub source: IpcacheSource,
}

/// Why an ipcache entry is there; the first that applies wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpcacheSource {
    /// This node's own address.
    Host,
    /// Another node's own address.
    RemoteNode,
    /// An endpoint of this node.
    LocalEndpoint,
    /// An endpoint by its record in the store.
    Record,
    /// An endpoint by gossip, not recorded yet.
    Gossip,
    /// A node's block.
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
    /// What is wanted of it, and its address.
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
    /// The port of nodes that clients outside the fleet use.
    pub node_port: Option<u16>,
    /// Its number in this node's kernel; none before the kernel has been read, or when all are taken.
    pub id: Option<ServiceId>,
    /// Whether it has backends of which none is well: all are used then, but for those on their way out.
    pub desperate: bool,
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
    /// Its share of new flows, beside the others'.
    pub weight: u16,
    /// What it may get.
    pub state: BackendState,
    /// Why it is not new flows.
    pub reason: Option<String>,
    /// The node that it is on, if it is an endpoint of the fleet.
    pub node: Option<NodeName>,
    /// Its name there.
    pub endpoint: Option<EndpointName>,
}
