//! The fleet as this node knows it: nodes, identities, addresses.

use std::net::IpAddr;

use identity::{EndpointName, Labels, NodeName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// The node's name.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// Whether the node is the one that answers.
    pub this_node: bool,
    /// The node's index in this node's `nodes` map.
    pub index: Option<u32>,
    /// The underlay addresses, the tunnel's first.
    #[schema(value_type = Vec<String>)]
    pub underlay: Vec<IpAddr>,
    /// The node's own address in the pod network.
    #[schema(value_type = Option<String>)]
    pub gateway: Option<IpAddr>,
    /// The node's pod CIDRs.
    #[schema(value_type = Vec<String>)]
    pub cidrs: Vec<IpNetwork>,
    /// The node's labels.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// The agent's version; empty if the node is known from gossip only.
    pub agent_version: String,
    /// Whether etcd has the node's leased liveness key.
    pub alive_in_store: bool,
    /// Whether gossip considers the node alive; `null` if gossip has never seen the node.
    pub alive_in_gossip: Option<bool>,
    /// Whether the node is known from gossip only.
    pub gossip_only: bool,
    /// The number of the node's endpoints that this node knows.
    pub endpoints: usize,
}

/// The answer to `DELETE /v1/nodes/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRemoved {
    /// The node's name.
    #[schema(value_type = String)]
    pub name: NodeName,
}

/// The answer to `DELETE /v1/cidrs/{cidr}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CidrReleased {
    /// The block, now in quarantine.
    #[schema(value_type = String)]
    pub cidr: IpNetwork,
}

/// The state of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityState {
    /// A reserved identity, 1 to 255.
    Reserved,
    /// In use.
    Live,
    /// Released, and not yet to be allocated again.
    Quarantined,
}

/// An identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Identity {
    /// The identity's number.
    #[schema(value_type = u32)]
    pub id: identity::Identity,
    /// The name of a reserved identity.
    pub name: Option<String>,
    /// The identity's labels; empty for a reserved identity.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// The identity's state.
    pub state: IdentityState,
    /// The nodes that use the identity.
    #[schema(value_type = Vec<String>)]
    pub nodes: Vec<NodeName>,
    /// The number of this node's endpoints with the identity.
    pub local_endpoints: usize,
}

/// The source of an ipcache entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IpSource {
    /// This node's own address.
    Host,
    /// Another node's own address.
    RemoteNode,
    /// An endpoint of this node.
    LocalEndpoint,
    /// The record of an endpoint in the store.
    Record,
    /// Gossip about an endpoint whose record is not known yet.
    Gossip,
    /// A node's claim on a pod CIDR.
    Cidr,
}

/// A desired ipcache entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IpEntry {
    /// The address or prefix.
    #[schema(value_type = String)]
    pub prefix: IpNetwork,
    /// The identity; 0 for unknown.
    #[schema(value_type = u32)]
    pub identity: identity::Identity,
    /// The identity's labels.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// The node that has the prefix.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeName>,
    /// The endpoint that has the address, if known.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<EndpointName>,
    /// The source of the entry.
    pub source: IpSource,
}
