//! `GET /v1/status`: how the node is, at a glance.

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
    /// The API's.
    pub api: String,
    /// Of the layouts of maps and events.
    pub abi: u32,
}

/// Why a node cannot go on as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Halted {
    /// What an operator must put right.
    pub reason: String,
}

/// Unusual, but working.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// What is unusual, and what to do.
    pub text: String,
}

/// The last error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastError {
    /// When, in ms since 1970.
    pub unix_ms: u64,
    /// What.
    pub text: String,
}

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EtcdMember {
    /// As configured.
    pub endpoint: String,
    /// Whether it answers.
    pub healthy: bool,
    /// Its version.
    pub version: Option<String>,
    /// Whether it leads.
    pub leader: Option<bool>,
    /// Bytes of its database.
    pub db_bytes: Option<u64>,
    /// Why it is not healthy.
    pub error: Option<String>,
}

/// The store: etcd, or the one in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// `etcd` or `memory`.
    pub kind: String,
    /// Whether the watch runs.
    pub connected: bool,
    /// Why not.
    pub error: Option<String>,
    /// Revision up to which everything is known; `null` before the first listing.
    pub revision: Option<i64>,
    /// Milliseconds since the watch last said anything.
    pub silent_ms: Option<u64>,
    /// Whether this node's sign of life is on a lease now.
    pub lease_held: bool,
    /// Why not.
    pub lease_error: Option<String>,
    /// Requests that wait for an answer.
    pub requests_in_flight: usize,
    /// Members.
    pub members: Vec<EtcdMember>,
    /// Records that are not believed: key and reason.
    pub rejected: Vec<String>,
}

/// A node as gossip sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    /// Its name.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// Where its gossip comes from.
    pub address: String,
    /// Whether it seems alive.
    pub alive: bool,
}

/// Gossip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GossipStatus {
    /// Whether there is any: a fleet of one node has nobody to gossip with.
    pub enabled: bool,
    /// Peers, this node left out.
    pub peers: Vec<PeerStatus>,
    /// Datagrams refused before a byte of them was parsed: wrong key, replay, garbage.
    pub refused_datagrams: u64,
}

/// A pod CIDR of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CidrStatus {
    /// The block.
    #[schema(value_type = String)]
    pub cidr: IpNetwork,
    /// The claim's epoch.
    pub epoch: i64,
    /// Addresses that endpoints and the gateway use.
    pub used: u64,
    /// Addresses that rest before they are given out again.
    pub cooling: u64,
    /// Addresses that can be given out now.
    pub free: u64,
}

/// A map's fill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapFill {
    /// Its name.
    pub name: String,
    /// Entries.
    pub entries: u64,
    /// Entries that it can hold.
    pub max_entries: u32,
}

/// A program and where it is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// The devices that it is attached to; of a program at sockets its cgroup.
    pub devices: Vec<String>,
    /// The hook: `tcx`, `clsact`, `cgroup`, `xdp native` or `xdp generic`.
    pub hook: String,
}

/// The last plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApplyStatus {
    /// Generation of what is wanted.
    pub wanted_generation: u64,
    /// Generation of what the kernel holds.
    pub applied_generation: u64,
    /// Keys that differ between what is wanted and what the kernel is believed to hold.
    pub pending: usize,
    /// Steps that failed and are tried again: what and why.
    pub failing: Vec<String>,
    /// Tables that are full.
    pub full: Vec<String>,
}

/// The last audit: reading the kernel whole and comparing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditStatus {
    /// When, in ms since 1970; `null` before the first.
    pub unix_ms: Option<u64>,
    /// Differences that it found, one line each.
    pub differences: Vec<String>,
    /// Differences repaired since the agent's start.
    pub repaired_total: u64,
}

/// The underlay: what the tunnel runs over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnderlayStatus {
    /// The interface.
    pub interface: String,
    /// The tunnel's address on it.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its MTU.
    pub mtu_bytes: u32,
    /// MTU of endpoints: what the underlay carries, less what the tunnel adds.
    pub pod_mtu_bytes: u32,
    /// Why this one was chosen.
    pub reason: String,
    /// Why it is not as it should be, and what to do; the former one is in use then.
    pub problem: Option<String>,
    /// Other interfaces, and why none of them.
    pub passed_over: Vec<PassedOver>,
}

/// An interface that is not the underlay's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PassedOver {
    /// Its name.
    pub interface: String,
    /// Why not.
    pub reason: String,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// This node.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// The fleet's name.
    #[schema(value_type = String)]
    pub fleet: FleetName,
    /// The fleet's id; `null` until it was read once.
    pub fleet_id: Option<String>,
    /// The agent's version.
    pub agent_version: String,
    /// Milliseconds since the agent's start.
    pub uptime_ms: u64,
    /// The agent's start, in ms since 1970.
    pub incarnation: u64,
    /// Whether the node serves endpoints: base devices are there and it is not halted.
    pub ready: bool,
    /// Why the node cannot go on as configured.
    pub halted: Option<Halted>,
    /// Unusual, but working.
    pub warnings: Vec<Warning>,
    /// The store.
    pub store: StoreStatus,
    /// Gossip.
    pub gossip: GossipStatus,
    /// Pod CIDRs.
    pub cidrs: Vec<CidrStatus>,
    /// Endpoints of this node.
    pub endpoints: usize,
    /// Nodes of the fleet, this one included.
    pub nodes: usize,
    /// Identities of the fleet.
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
    /// The last error with its time; `null` when there was none.
    pub last_error: Option<LastError>,
}
