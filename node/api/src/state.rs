//! The desired state of the kernel, its difference from the observed state, and the lines of the event stream.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use node_observe::FlowEvent;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The base: devices and settings that all other tables depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseRow {
    /// The node's own address in the pod network.
    #[schema(value_type = String)]
    pub gateway: IpAddr,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// MTU of endpoints.
    pub mtu_bytes: u32,
    /// How packets reach other nodes: `tunnel` or `native`.
    pub mode: String,
    /// How packets reach local endpoints: `bpf` or `legacy`.
    pub host_routing: String,
    /// Masquerade; `null` if endpoints reach the world with their own addresses.
    pub masquerade: Option<MasqueradeRow>,
}

/// The settings of masquerade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MasqueradeRow {
    /// The node's underlay address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The first port of the range.
    pub first_port: u16,
    /// The last port of the range.
    pub last_port: u16,
    /// Destinations that are not masqueraded.
    #[schema(value_type = Vec<String>)]
    pub exclude: Vec<IpNetwork>,
}

/// An entry of the nodes map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRow {
    /// The node's index.
    pub index: u32,
    /// The node's end of the tunnel.
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

/// A route to a pod CIDR or to a service pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteRow {
    /// The destination.
    #[schema(value_type = String)]
    pub destination: IpNetwork,
    /// The next hop; `null` for a route to `warren_host`.
    #[schema(value_type = Option<String>)]
    pub via: Option<IpAddr>,
    /// The preferred source.
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// The route's MTU.
    pub mtu_bytes: u32,
}

/// A local endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointRow {
    /// The endpoint's id.
    pub id: u32,
    /// The endpoint's address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The endpoint's identity.
    #[schema(value_type = u32)]
    pub identity: identity::Identity,
    /// The MAC address on the workload's side.
    pub mac: String,
    /// The MAC address on the host side.
    pub host_mac: String,
}

/// `GET /v1/state`: the desired state, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct State {
    /// The base; `null` until the node has a pod CIDR.
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

/// The answer to `POST /v1/state/diff`: the differences between desired and observed state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateDiff {
    /// One line for each difference, sorted.
    pub differences: Vec<String>,
    /// Whether the differences were repaired.
    pub repaired: bool,
}

/// A line of `GET /v1/observe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all lines are events; boxing them would cost an allocation for each"
)]
pub enum ObserveLine {
    /// An event.
    Event(FlowEvent),
    /// The reader was too slow: events are missing here.
    Lagged {
        /// The number of missing events.
        events: u64,
    },
}
