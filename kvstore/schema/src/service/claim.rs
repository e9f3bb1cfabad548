//! What a service has for itself alone, and the record that says so.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use identity::ServiceName;
use serde::{Deserialize, Serialize};

use super::{NODE_PORTS, ServiceProtocol};
use crate::record::{Record, Unknown};

/// The address of frontends that are ports of nodes: every address that is a node's own.
pub const EVERY_NODE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Something that one service of the fleet has, and no other. Made and deleted in one transaction with what the service's
/// record says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceClaim {
    /// `vips/<address>`: a whole address.
    VirtualIp(IpAddr),
    /// `frontends/<address>/<protocol>/<port>`: one port of an address that others share; of [`EVERY_NODE`], a node port or
    /// host port.
    Frontend {
        /// The address.
        address: IpAddr,
        /// The protocol.
        protocol: ServiceProtocol,
        /// The port.
        port: u16,
    },
}

impl ServiceClaim {
    /// A port of the nodes' own addresses.
    pub const fn of_nodes(protocol: ServiceProtocol, port: u16) -> Self {
        Self::Frontend { address: EVERY_NODE, protocol, port }
    }

    /// All claims on ports of an address.
    pub fn frontends_of(address: IpAddr) -> RangeInclusive<Self> {
        let at = |protocol, port| Self::Frontend { address, protocol, port };
        at(ServiceProtocol::Tcp, 0)..=at(ServiceProtocol::Sctp, u16::MAX)
    }
}

impl fmt::Display for ServiceClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtualIp(address) => write!(f, "address {address}"),
            Self::Frontend { address, protocol, port } if *address == EVERY_NODE => {
                let kind = if NODE_PORTS.contains(port) { "node" } else { "host" };
                write!(f, "{kind} port {port}/{protocol}")
            }
            Self::Frontend { address, protocol, port } => write!(f, "{address}:{port}/{protocol}"),
        }
    }
}

/// Whose a claim is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct ServiceClaimRecord {
    /// The service.
    pub service: ServiceName,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Record for ServiceClaimRecord {}
