//! The record of a service: its spec, and the address and ports that it was given.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{NODE_PORTS, NodePort, ServiceClaim, ServicePort, ServiceProtocol, ServiceSpec, VirtualIp};
use crate::record::{Record, RecordError, Unknown};

/// `services/<name>`: written by whoever applies a manifest, by compare-and-set on its modify revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct ServiceRecord {
    /// The spec, normalised.
    pub spec: ServiceSpec,
    /// The virtual IP that was claimed for the service.
    pub virtual_ip: IpAddr,
    /// The node port of each port that wants one, in the spec's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_ports: Vec<NodePortGiven>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The node port of one port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePortGiven {
    /// What the port carries.
    pub protocol: ServiceProtocol,
    /// The port that clients of the virtual IP use.
    pub port: u16,
    /// The node port that was claimed.
    pub node_port: u16,
}

impl ServiceRecord {
    /// The node port of one of its ports.
    pub fn node_port(&self, of: &ServicePort) -> Option<u16> {
        let given = self.node_ports.iter().find(|it| (it.protocol, it.port) == (of.protocol, of.port));
        given.map(|given| given.node_port)
    }

    /// All claims of the service, the virtual IP first.
    pub fn claims(&self) -> Vec<ServiceClaim> {
        let mut claims = vec![ServiceClaim::VirtualIp(self.virtual_ip)];
        claims.extend(self.node_ports.iter().map(|it| ServiceClaim::of_nodes(it.protocol, it.node_port)));
        for port in &self.spec.ports {
            let protocol = port.protocol;
            claims.extend(port.host_port.map(|host_port| ServiceClaim::of_nodes(protocol, host_port)));
            let external = self.spec.external_ips.iter();
            claims.extend(external.map(|address| ServiceClaim::Frontend {
                address: *address,
                protocol,
                port: port.port,
            }));
        }
        claims
    }

    fn check_node_ports(&self) -> Result<(), String> {
        let wanting = self.spec.ports.iter().filter(|port| port.node_port.is_some());
        let mut given = self.node_ports.iter();
        for port in wanting {
            let text = || format!("node port of {}/{}", port.port, port.protocol);
            let Some(given) = given.next().filter(|it| (it.protocol, it.port) == (port.protocol, port.port))
            else {
                return Err(format!("{}: none is given", text()));
            };
            match port.node_port {
                Some(NodePort::Number(wanted)) if wanted != given.node_port => {
                    return Err(format!("{}: {} is given, {wanted} wanted", text(), given.node_port));
                }
                _ if !NODE_PORTS.contains(&given.node_port) => {
                    return Err(format!("{}: {} is out of range", text(), given.node_port));
                }
                _ => {}
            }
        }
        match given.next() {
            Some(more) => Err(format!("node port {} is given, and not wanted", more.node_port)),
            None => Ok(()),
        }
    }
}

impl Record for ServiceRecord {
    fn validate(&self) -> Result<(), RecordError> {
        self.spec.validate().map_err(|error| RecordError::Invalid(error.to_string()))?;
        self.check_node_ports().map_err(RecordError::Invalid)?;
        match self.spec.virtual_ip {
            VirtualIp::Address(wanted) if wanted != self.virtual_ip => Err(RecordError::Invalid(format!(
                "virtual_ip {} is not the one that the spec wants, {wanted}",
                self.virtual_ip
            ))),
            _ if !self.virtual_ip.is_ipv4() => {
                Err(RecordError::Invalid(format!("virtual_ip {}: not there yet: IPv6", self.virtual_ip)))
            }
            VirtualIp::Auto | VirtualIp::Address(_) => Ok(()),
        }
    }
}
