//! Services: requests to write them, and their state on this node.

use std::net::IpAddr;

use identity::{EndpointName, NodeName, ServiceName};
use kvstore_schema::service::{NodePortGiven, ServiceProtocol, ServiceSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Outcome;

/// `PUT /v1/services/{name}`. The same request again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServicePut {
    /// The service's wanted state: the `spec` of its manifest.
    #[schema(value_type = Object)]
    pub spec: ServiceSpec,
    /// If set, the write succeeds only if the service has this revision in etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
}

/// The answer to `PUT /v1/services/{name}`: the service is in etcd, and the nodes of the fleet follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceWritten {
    /// The service's name.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// The effect of the write.
    pub outcome: Outcome,
    /// The virtual IP.
    #[schema(value_type = String)]
    pub virtual_ip: IpAddr,
    /// The node ports that were allocated.
    #[schema(value_type = Vec<Object>)]
    pub node_ports: Vec<NodePortGiven>,
    /// The service's revision in etcd.
    pub revision: i64,
}

/// A service as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// The service's name.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// The virtual IP.
    #[schema(value_type = String)]
    pub virtual_ip: IpAddr,
    /// The service's revision in etcd; 0 while only this node's snapshot has the service.
    pub revision: i64,
    /// The wanted state.
    #[schema(value_type = Object)]
    pub spec: ServiceSpec,
    /// The state of each port.
    pub ports: Vec<ServicePortStatus>,
}

/// The state of one port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServicePortStatus {
    /// The port's name.
    pub name: Option<String>,
    /// The transport protocol.
    #[schema(value_type = String, example = "tcp")]
    pub protocol: ServiceProtocol,
    /// The port that clients use.
    pub port: u16,
    /// The node port, for external clients.
    pub node_port: Option<u16>,
    /// The service id in this node's kernel.
    pub id: Option<u32>,
    /// Whether no backend is healthy, so that all backends that are not terminating are used (Envoy: panic mode).
    #[serde(default)]
    pub all_unhealthy: bool,
    /// The backends.
    pub backends: Vec<ServiceBackend>,
}

/// Whether a backend is chosen for new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// The backend is chosen for new flows.
    Active,
    /// The backend was drained: its flows go on, and it is not chosen for new ones.
    Terminating,
    /// The backend is unhealthy: its flows go on, and it is chosen for new ones only if no backend of the port is healthy.
    Unhealthy,
}

/// One backend of a service's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceBackend {
    /// The backend's address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The backend's port.
    pub port: u16,
    /// The backend's share of new flows, relative to the weights of the port's other backends.
    pub weight: u16,
    /// Whether the backend is chosen for new flows.
    pub state: BackendState,
    /// Why the backend is not active.
    #[serde(default)]
    pub reason: Option<String>,
    /// The node of the backend, if the backend is an endpoint of the fleet.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeName>,
    /// The name of that endpoint.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<EndpointName>,
}
