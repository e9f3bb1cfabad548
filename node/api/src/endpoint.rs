//! Endpoints of this node: requests to add, show, drain and delete them.

use std::{net::IpAddr, path::PathBuf};

use identity::{EndpointName, Labels};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a workload is attached to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttachmentKind {
    /// A veth pair into a network namespace.
    Netns {
        /// The path of the namespace: `/run/netns/NAME`, `/proc/PID/ns/net`.
        #[schema(value_type = String, example = "/run/netns/web")]
        path: PathBuf,
        /// The interface's name inside the namespace.
        #[serde(default = "default_interface")]
        interface: String,
    },
}

fn default_interface() -> String {
    "eth0".to_owned()
}

/// `POST /v1/endpoints`. Repeating the request is safe, and answers the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointAdd {
    /// The endpoint's name, unique on the node.
    #[schema(value_type = String, example = "web-1")]
    pub name: EndpointName,
    /// The endpoint's labels, which decide its identity.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// How the workload is attached.
    pub attachment: AttachmentKind,
    /// The address to use: a free one of the node's pod CIDRs. If not set, the agent chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// The answer to `POST /v1/endpoints`: the endpoint is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointAdded {
    /// The endpoint's name.
    #[schema(value_type = String)]
    pub name: EndpointName,
    /// The endpoint's id on this node: the endpoint's device is `wrn<id>`.
    pub id: u32,
    /// The endpoint's address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The endpoint's identity.
    #[schema(value_type = u32)]
    pub identity: identity::Identity,
    /// Whether the endpoint existed before.
    pub existed: bool,
}

/// The answer to `POST /v1/endpoints/{name}/drain`: services no longer choose the endpoint for new flows; its flows go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointDrained {
    /// Whether the endpoint was drained before.
    pub already: bool,
}

/// The step that an endpoint has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Waits for the identity of its labels.
    WaitingForIdentity,
    /// Waits for a free address, hence for another block.
    WaitingForAddress,
    /// Being attached.
    Attaching,
    /// Attached.
    Ready,
    /// Being detached.
    Detaching,
}

/// An endpoint of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    /// The endpoint's name.
    #[schema(value_type = String)]
    pub name: EndpointName,
    /// The endpoint's id on this node. Like the device, address and identity, `null` while the endpoint waits for it.
    pub id: Option<u32>,
    /// The endpoint's device on the host side.
    pub device: Option<String>,
    /// The endpoint's address.
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The endpoint's identity.
    #[schema(value_type = Option<u32>)]
    pub identity: Option<identity::Identity>,
    /// All labels of the endpoint.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// The step that the endpoint has reached.
    pub state: EndpointState,
    /// The MAC address on the workload's side.
    pub mac: Option<String>,
    /// How the workload is attached; `null` for an endpoint that was adopted from the kernel alone.
    pub attachment: Option<AttachmentKind>,
    /// Whether etcd has the endpoint's record; until then peers know the endpoint by gossip.
    pub recorded: bool,
    /// Whether the endpoint was drained: services do not choose it for new flows.
    #[serde(default)]
    pub terminating: bool,
    /// Why the last attempt to attach or detach failed.
    pub error: Option<String>,
}
