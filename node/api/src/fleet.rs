//! What this node knows of the fleet: nodes, identities, addresses.

use std::net::IpAddr;

use identity::{EndpointName, Labels, NodeName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// Whether it is the one that answers.
    pub this_node: bool,
    /// Its index in this node's `nodes` map, if it has one.
    pub index: Option<u32>,
    /// Its underlay addresses, the tunnel's first.
    #[schema(value_type = Vec<String>)]
    pub underlay: Vec<IpAddr>,
    /// Its own address in the pod network.
    #[schema(value_type = Option<String>)]
    pub gateway: Option<IpAddr>,
    /// Its pod CIDRs.
    #[schema(value_type = Vec<String>)]
    pub cidrs: Vec<IpNetwork>,
    /// Its labels.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// Its agent's version; empty when only gossip tells of the node.
    pub agent_version: String,
    /// Whether etcd holds its sign of life.
    pub alive_in_store: bool,
    /// Whether gossip thinks that it lives; `null` when gossip has never seen it.
    pub alive_in_gossip: Option<bool>,
    /// Whether it is known from gossip only.
    pub gossip_only: bool,
    /// How many endpoints this node knows behind it.
    pub endpoints: usize,
}

/// `DELETE /v1/nodes/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRemoved {
    /// Its name.
    #[schema(value_type = String)]
    pub name: NodeName,
}

/// `DELETE /v1/cidrs/{cidr}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CidrReleased {
    /// The block; in quarantine now.
    #[schema(value_type = String)]
    pub cidr: IpNetwork,
}

/// Whether a number is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityState {
    /// One of 1-255.
    Reserved,
    /// In use.
    Live,
    /// Given back; not to be given out again yet.
    Quarantined,
}

/// An identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Identity {
    /// The number.
    #[schema(value_type = u32)]
    pub id: identity::Identity,
    /// The name of a reserved one.
    pub name: Option<String>,
    /// Its labels; empty for reserved ones.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// Whether it is in use.
    pub state: IdentityState,
    /// Nodes that use it.
    #[schema(value_type = Vec<String>)]
    pub nodes: Vec<NodeName>,
    /// Endpoints of this node that have it.
    pub local_endpoints: usize,
}

/// Why an ipcache entry is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IpSource {
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

/// What the ipcache should say of an address or prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IpEntry {
    /// The address or prefix.
    #[schema(value_type = String)]
    pub prefix: IpNetwork,
    /// Its identity, 0 for unknown.
    #[schema(value_type = u32)]
    pub identity: identity::Identity,
    /// The identity's labels.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// The node behind which it is.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeName>,
    /// The endpoint that has the address, where known.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<EndpointName>,
    /// Why the entry is there.
    pub source: IpSource,
}
