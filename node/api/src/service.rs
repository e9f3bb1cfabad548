//! Services: writing them, deleting them, and how they stand on this node.

use std::net::IpAddr;

use identity::{EndpointName, NodeName, ServiceName};
use kvstore_schema::service::{NodePortGiven, ServiceProtocol, ServiceSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `PUT /v1/services/{name}`. The same request again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServicePut {
    /// How it is to be: the `spec` of its manifest.
    #[schema(value_type = Object)]
    pub spec: ServiceSpec,
    /// Only if this revision of it is in etcd; whatever is there if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceOutcome {
    /// It is new.
    Created,
    /// It has changed.
    Changed,
    /// It was so already.
    Unchanged,
}

/// The service is in etcd; the nodes of the fleet follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceWritten {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// What was done.
    pub outcome: ServiceOutcome,
    /// Its address.
    #[schema(value_type = String)]
    pub virtual_ip: IpAddr,
    /// The port of nodes that each port got which wants one.
    #[schema(value_type = Vec<Object>)]
    pub node_ports: Vec<NodePortGiven>,
    /// Its revision in etcd.
    pub revision: i64,
}

/// The service is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceDeleted {
    /// Whether it had been there.
    pub existed: bool,
}

/// A service, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// Its address.
    #[schema(value_type = String)]
    pub virtual_ip: IpAddr,
    /// Its revision in etcd; 0 while it is known from this node's snapshot only.
    pub revision: i64,
    /// How it is to be.
    #[schema(value_type = Object)]
    pub spec: ServiceSpec,
    /// How it stands.
    pub ports: Vec<ServicePortStatus>,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServicePortStatus {
    /// Its name.
    pub name: Option<String>,
    /// What it carries.
    #[schema(value_type = String, example = "tcp")]
    pub protocol: ServiceProtocol,
    /// The port that clients use.
    pub port: u16,
    /// The port of nodes that clients outside the fleet use.
    pub node_port: Option<u16>,
    /// Its number in this node's kernel.
    pub id: Option<u32>,
    /// Whether none of its backends is well, so that all that were not drained are used.
    #[serde(default)]
    pub all_unhealthy: bool,
    /// Who answers.
    pub backends: Vec<ServiceBackend>,
}

/// Whether a backend gets new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// It does.
    Active,
    /// It was drained: flows that run go on, and no new ones come.
    Terminating,
    /// It is not well: flows that run go on, and new ones come only where none of the port's backends is well.
    Unhealthy,
}

/// One backend of a service's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceBackend {
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its share of new flows, beside the others'.
    pub weight: u16,
    /// Whether it gets new flows.
    pub state: BackendState,
    /// Why it does not.
    #[serde(default)]
    pub reason: Option<String>,
    /// The node that it is on, if it is an endpoint of the fleet.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeName>,
    /// Its name there.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<EndpointName>,
}
