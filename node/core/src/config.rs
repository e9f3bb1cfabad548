//! The configuration of node-core; it never changes while the agent runs.

use std::{net::IpAddr, time::Duration};

use datapath_plan::{HostRouting, Masquerade, Mode};
use identity::{FleetName, Labels, NodeName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// This node's attachment to the network between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// This node's addresses there; tunnel packets are sent to the first one. Never empty.
    pub addresses: Vec<IpAddr>,
    /// The network of the first address: its nodes are reached without a router.
    pub network: IpNetwork,
    /// Index of the interface.
    pub ifindex: u32,
    /// Its MTU.
    pub mtu_bytes: u32,
}

/// Where routes to other nodes' pods come from when there is no tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NativeRoutes {
    /// From this node, to each node on the same network.
    #[default]
    Direct,
    /// From elsewhere (a router, a routing daemon, a cloud's route table): this node makes none.
    External,
}

/// How packets are forwarded, as far as an operator chooses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathConfig {
    /// Between nodes.
    pub mode: Mode,
    /// To local endpoints.
    pub host_routing: HostRouting,
    /// For the native mode.
    pub native_routes: NativeRoutes,
    /// MTU of endpoints, if it is to be smaller than what fits into the underlay.
    pub pod_mtu_bytes: Option<u32>,
    /// For traffic to the world; the fleet's pools are excluded in addition to its own exclusions.
    pub masquerade: Option<Masquerade>,
    /// Networks whose packets the underlay interface drops.
    pub refused: Vec<IpNetwork>,
}

/// The configuration of one node. The agent has checked it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// The fleet's name.
    pub fleet: FleetName,
    /// This node's name.
    pub node: NodeName,
    /// This node's labels.
    pub node_labels: Labels,
    /// The underlay at the start; changes come as `Event::Underlay`.
    pub underlay: Underlay,
    /// Pools, block sizes and tunnel port: this node creates the fleet's record with them, and compares an existing record
    /// to them.
    pub pools: Vec<IpNetwork>,
    /// Where virtual IPs come from, in a fleet that has no such pools yet.
    pub service_pools: Vec<IpNetwork>,
    /// Prefix length of one claim in an IPv4 pool.
    pub block_prefix_v4: u8,
    /// Prefix length of one claim in an IPv6 pool.
    pub block_prefix_v6: u8,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// How packets are forwarded.
    pub datapath: DatapathConfig,
    /// UDP port of gossip.
    pub gossip_port: u16,
    /// Which labels determine identities: patterns as `identity::LabelFilter` takes them, in order.
    pub identity_labels: Vec<String>,
    /// Start time in ms since the epoch, larger than at any start before.
    pub incarnation: u64,
    /// The machine's id.
    pub machine_id: String,
    /// The machine's boot id.
    pub boot_id: String,
    /// The agent's version.
    pub agent_version: String,
    /// Seed of all random numbers (fleet id, free identities, jitter).
    pub seed: [u64; 2],
    /// How long a released identity or block stays unused.
    pub quarantine: Duration,
    /// How long a released address stays unused.
    pub address_cooldown: Duration,
    /// How many free addresses this node keeps, so that endpoints can be added for a while without the store; at most one
    /// block of them.
    pub address_reserve: u8,
    /// How often the kernel is read completely and compared.
    pub audit_interval: Duration,
    /// How often this node looks for identities and blocks to collect (with jitter of one half).
    pub collect_interval: Duration,
}
