//! What the agent wants of the kernel, where the kernel differs, and the lines of the event stream.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use node_observe::FlowEvent;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Devices and settings that everything stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseRow {
    /// The node's own address in the pod network.
    #[schema(value_type = String)]
    pub gateway: IpAddr,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// MTU of endpoints.
    pub mtu_bytes: u32,
    /// How packets get to other nodes: `tunnel` or `native`.
    pub mode: String,
    /// How they get to local endpoints: `bpf` or `legacy`.
    pub host_routing: String,
    /// How endpoints reach the world; `null`: with their own addresses.
    pub masquerade: Option<MasqueradeRow>,
}

/// How endpoints reach the world with the node's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MasqueradeRow {
    /// The node's underlay address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// First port that is used.
    pub first_port: u16,
    /// Last port that is used.
    pub last_port: u16,
    /// Destinations that see endpoints' own addresses.
    #[schema(value_type = Vec<String>)]
    pub exclude: Vec<IpNetwork>,
}

/// An entry of the nodes map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRow {
    /// Its index.
    pub index: u32,
    /// Where tunnel packets go to and come from.
    #[schema(value_type = String)]
    pub underlay: IpAddr,
}

/// An entry of the ipcache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IpcacheRow {
    /// Address or prefix.
    #[schema(value_type = String)]
    pub prefix: IpNetwork,
    /// Identity.
    #[schema(value_type = u32)]
    pub identity: identity::Identity,
    /// Node index: 0 none, 1 this node.
    pub node: u32,
}

/// A route to a pod CIDR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteRow {
    /// Where to.
    #[schema(value_type = String)]
    pub destination: IpNetwork,
    /// The node that it leads to; `null`: to `warren_host`, and by the programs on.
    #[schema(value_type = Option<String>)]
    pub via: Option<IpAddr>,
    /// Preferred source.
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// MTU of the route.
    pub mtu_bytes: u32,
}

/// A local endpoint in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointRow {
    /// Its number.
    pub id: u32,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its identity.
    #[schema(value_type = u32)]
    pub identity: identity::Identity,
    /// The workload's Ethernet address.
    pub mac: String,
    /// The host side's.
    pub host_mac: String,
}

/// `GET /v1/state`: what the agent wants, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct State {
    /// `null` until the node has a CIDR.
    pub base: Option<BaseRow>,
    /// Nodes.
    pub nodes: Vec<NodeRow>,
    /// The ipcache.
    pub ipcache: Vec<IpcacheRow>,
    /// Routes.
    pub routes: Vec<RouteRow>,
    /// Local endpoints.
    pub endpoints: Vec<EndpointRow>,
}

/// `POST /v1/state/diff`: where the kernel differs from what the agent wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateDiff {
    /// One line for each difference, sorted; empty when there is none.
    pub differences: Vec<String>,
    /// Whether they were repaired.
    pub repaired: bool,
}

/// A line of `GET /v1/observe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all lines are events; boxing them would cost every one"
)]
pub enum ObserveLine {
    /// An event.
    Event(FlowEvent),
    /// The reader was too slow, and this many events are missing here.
    Lagged {
        /// How many.
        events: u64,
    },
}
