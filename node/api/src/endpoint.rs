//! Endpoints: adding, showing, draining, deleting.

use std::{net::IpAddr, path::PathBuf};

use identity::{EndpointName, Labels};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a workload is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttachmentKind {
    /// A veth pair into a network namespace.
    Netns {
        /// A path that names the namespace: `/run/netns/NAME`, `/proc/PID/ns/net`.
        #[schema(value_type = String, example = "/run/netns/web")]
        path: PathBuf,
        /// The interface's name inside.
        #[serde(default = "default_interface")]
        interface: String,
    },
}

fn default_interface() -> String {
    "eth0".to_owned()
}

/// `POST /v1/endpoints`. The same request again answers the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointAdd {
    /// Unique on the node.
    #[schema(value_type = String, example = "web-1")]
    pub name: EndpointName,
    /// Decide its identity.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// How it is attached.
    pub attachment: AttachmentKind,
    /// The address wanted, if it matters: a free one of the node's CIDRs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// The endpoint is attached and answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointAdded {
    /// Its name.
    #[schema(value_type = String)]
    pub name: EndpointName,
    /// Its number on this node: its device is `wrn<id>`.
    pub id: u32,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its identity.
    #[schema(value_type = u32)]
    pub identity: identity::Identity,
    /// Whether it was there before.
    pub existed: bool,
}

/// The endpoint is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointDeleted {
    /// Whether it had been there.
    pub existed: bool,
}

/// The endpoint takes no new flows as a backend of services; those that run go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointDrained {
    /// Whether it took none before.
    pub already: bool,
}

/// How far an endpoint has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Waits for the number of its labels.
    WaitingForIdentity,
    /// Waits for a free address, which waits for a further block.
    WaitingForAddress,
    /// Being attached.
    Attaching,
    /// Attached and answering.
    Ready,
    /// Being detached.
    Detaching,
}

/// An endpoint of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    /// Its name.
    #[schema(value_type = String)]
    pub name: EndpointName,
    /// Its number on this node; this and what follows is `null` while it waits.
    pub id: Option<u32>,
    /// Its device on the node's side.
    pub device: Option<String>,
    /// Its address.
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// Its identity.
    #[schema(value_type = Option<u32>)]
    pub identity: Option<identity::Identity>,
    /// All its labels.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// How far it has come.
    pub state: EndpointState,
    /// The workload's Ethernet address.
    pub mac: Option<String>,
    /// How it is attached; unknown for one that was adopted from the kernel alone.
    pub attachment: Option<AttachmentKind>,
    /// Whether etcd holds its record; until then gossip carries it.
    pub recorded: bool,
    /// Whether it was drained: as a backend it takes no new flows.
    #[serde(default)]
    pub terminating: bool,
    /// Why the last attempt on it failed.
    pub error: Option<String>,
}
