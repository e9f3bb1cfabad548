//! `GET /v1/status`: the state of the node at a glance.

use std::net::IpAddr;

use identity::{FleetName, NodeName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The agent's version.
    pub agent: String,
    /// The API's version.
    pub api: String,
    /// The version of the layouts of maps and events.
    pub abi: u32,
}

/// The node cannot go on as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Halted {
    /// What an operator must correct.
    pub reason: String,
}

/// An unusual condition in which the node still works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// The condition and its remedy.
    pub text: String,
}

/// The last error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastError {
    /// The time, in ms since 1970.
    pub unix_ms: u64,
    /// The error.
    pub text: String,
}

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EtcdMember {
    /// The member's endpoint, as configured.
    pub endpoint: String,
    /// Whether the member answers.
    pub healthy: bool,
    /// The member's version.
    pub version: Option<String>,
    /// Whether the member is the leader.
    pub leader: Option<bool>,
    /// The size of the member's database.
    pub db_bytes: Option<u64>,
    /// Why the member is not healthy.
    pub error: Option<String>,
}

/// The store: etcd, or a store in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// `etcd` or `memory`.
    pub kind: String,
    /// Whether the watch runs.
    pub connected: bool,
    /// Why the watch does not run.
    pub error: Option<String>,
    /// The revision up to which this node knows the store; `null` before the first listing.
    pub revision: Option<i64>,
    /// Milliseconds since the last message of the watch.
    pub silent_ms: Option<u64>,
    /// Whether this node's liveness key has a lease.
    pub lease_held: bool,
    /// Why the liveness key has no lease.
    pub lease_error: Option<String>,
    /// The number of requests without an answer yet.
    pub requests_in_flight: usize,
    /// The members of the etcd cluster.
    pub members: Vec<EtcdMember>,
    /// Records that were rejected: key and reason.
    pub rejected: Vec<String>,
}

/// A peer in gossip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    /// The peer's name.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// The source address of the peer's gossip.
    pub address: String,
    /// Whether gossip considers the peer alive.
    pub alive: bool,
}

/// The state of gossip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GossipStatus {
    /// Whether gossip runs. It does not with `store = "memory"`.
    pub enabled: bool,
    /// All peers, without this node.
    pub peers: Vec<PeerStatus>,
    /// The number of datagrams rejected before they were parsed: wrong key, replay, garbage.
    pub refused_datagrams: u64,
}

/// A pod CIDR of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CidrStatus {
    /// The pod CIDR.
    #[schema(value_type = String)]
    pub cidr: IpNetwork,
    /// The epoch of the claim.
    pub epoch: i64,
    /// Addresses that endpoints and the gateway use.
    pub used: u64,
    /// Released addresses in their cool-down.
    pub cooling: u64,
    /// Free addresses.
    pub free: u64,
}

/// A map's fill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapFill {
    /// The map's name.
    pub name: String,
    /// The number of entries.
    pub entries: u64,
    /// The capacity.
    pub max_entries: u32,
}

/// A program and where it is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgramStatus {
    /// The program's name.
    pub name: String,
    /// The devices that the program is attached to; for a socket program its cgroup.
    pub devices: Vec<String>,
    /// The hook: `tcx`, `clsact`, `cgroup`, `xdp native` or `xdp generic`.
    pub hook: String,
}

/// The last plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApplyStatus {
    /// The generation of the desired state.
    pub wanted_generation: u64,
    /// The generation of the state that was applied last.
    pub applied_generation: u64,
    /// The number of keys that differ between the desired state and the state believed to be in the kernel.
    pub pending: usize,
    /// Steps that failed and will be retried, with their errors.
    pub failing: Vec<String>,
    /// The tables that are full.
    pub full: Vec<String>,
}

/// The last audit: the comparison of the desired state with the whole observed state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditStatus {
    /// The time, in ms since 1970; `null` before the first audit.
    pub unix_ms: Option<u64>,
    /// The differences that the audit found, one line each.
    pub differences: Vec<String>,
    /// The number of differences repaired since the agent's start.
    pub repaired_total: u64,
}

/// The underlay: the network that the tunnel uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnderlayStatus {
    /// The interface.
    pub interface: String,
    /// The tunnel's address on the interface.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The interface's MTU.
    pub mtu_bytes: u32,
    /// The MTU of endpoints: the interface's, less the tunnel's overhead.
    pub pod_mtu_bytes: u32,
    /// Why the interface was chosen.
    pub reason: String,
    /// Why the configured underlay cannot be used, and the remedy; the former one is in use meanwhile.
    pub problem: Option<String>,
    /// The interfaces that were not chosen.
    pub passed_over: Vec<PassedOver>,
}

/// An interface that was not chosen as the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PassedOver {
    /// The interface's name.
    pub interface: String,
    /// Why the interface was not chosen.
    pub reason: String,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// This node's name.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// The fleet's name.
    #[schema(value_type = String)]
    pub fleet: FleetName,
    /// The fleet's id; `null` until it was read from the store.
    pub fleet_id: Option<String>,
    /// The agent's version.
    pub agent_version: String,
    /// Milliseconds since the agent's start.
    pub uptime_ms: u64,
    /// The agent's incarnation: its start, in ms since 1970.
    pub incarnation: u64,
    /// Whether the node serves endpoints: the base devices exist and the node is not halted.
    pub ready: bool,
    /// Set if the node cannot go on as configured.
    pub halted: Option<Halted>,
    /// Unusual conditions in which the node still works.
    pub warnings: Vec<Warning>,
    /// The store.
    pub store: StoreStatus,
    /// Gossip.
    pub gossip: GossipStatus,
    /// Pod CIDRs.
    pub cidrs: Vec<CidrStatus>,
    /// The number of this node's endpoints.
    pub endpoints: usize,
    /// The number of the fleet's nodes, this node included.
    pub nodes: usize,
    /// The number of the fleet's identities.
    pub identities: usize,
    /// Maps with their fill.
    pub maps: Vec<MapFill>,
    /// Programs and where they are attached.
    pub programs: Vec<ProgramStatus>,
    /// The last plan.
    pub apply: ApplyStatus,
    /// The last audit.
    pub audit: AuditStatus,
    /// The underlay.
    pub underlay: UnderlayStatus,
    /// The last error; `null` if there was none.
    pub last_error: Option<LastError>,
}
