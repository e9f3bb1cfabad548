//! The `spec` of a service: what its author wants, in the manifest and in the record.
//!
//! A field that this agent does not know makes it refuse the whole spec: a service that is served without its source
//! ranges, for example, would be open to everybody. Such a record is rejected alone, and the former one stays in force.

mod choice;
mod claim;
mod health;
mod record;
mod rules;

use std::{fmt, net::IpAddr};

use identity::Selector;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use choice::{Affinity, AffinityBy, Algorithm, Mode, NodePort, Topology, TrafficPolicy, VirtualIp};
pub use claim::{EVERY_NODE, ServiceClaim, ServiceClaimRecord};
pub use health::{HealthCheck, Probe, Span};
pub use record::{NodePortGiven, ServiceRecord};
pub use rules::{
    MAX_FIXED_BACKENDS, MAX_FRONTENDS, MAX_SERVICE_PORTS, MAX_SOURCE_RANGES, MAX_WEIGHT, NODE_PORTS,
    SpecError,
};

/// A service as wanted. [`ServiceSpec::normalised`] fills in what was left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// The address that workloads and nodes use.
    #[serde(default)]
    pub virtual_ip: VirtualIp,
    /// What it offers; at least one.
    pub ports: Vec<ServicePort>,
    /// The backends: the fleet's endpoints with these labels (of the labels that count for identities).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Or these addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<FixedBackend>,
    /// How a flow's backend is chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// External IPs: addresses with the same ports for external clients, whose network routes them to the nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<IpAddr>,
    /// Session affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Which backends clients outside the fleet get.
    #[serde(default)]
    pub traffic_policy: TrafficPolicy,
    /// Where clients outside the fleet may come from; anywhere, if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<IpNetwork>,
    /// How answers reach clients outside the fleet.
    #[serde(default)]
    pub mode: Mode,
    /// Health check of the backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<Box<HealthCheck>>,
    /// Which backends are preferred.
    #[serde(default)]
    pub topology: Topology,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// The port's name; required when the service has several ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it carries.
    #[serde(default)]
    pub protocol: ServiceProtocol,
    /// The port that clients use.
    pub port: u16,
    /// The backends' port; by default the same number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// A port of every node's own addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<NodePort>,
    /// A host port: a port of the addresses of nodes that have backends, which leads to the node's own backends only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
}

impl ServicePort {
    /// The backends' port.
    pub fn target(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }
}

/// A backend that is not found by labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FixedBackend {
    /// Its address.
    pub address: IpAddr,
    /// Its port, where it is not the `targetPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The weight: its share of new flows, relative to the weights of the others.
    #[serde(default = "one")]
    pub weight: u16,
}

const fn one() -> u16 {
    1
}

/// What a service's port carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceProtocol {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
    /// SCTP, whose ports cannot be changed on the way.
    Sctp,
}

impl ServiceProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The word, as in manifests and keys.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for ServiceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
