//! Addresses and ports that one service owns, and the record of that ownership.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use identity::ServiceName;
use serde::{Deserialize, Serialize};

use super::{NODE_PORTS, ServiceProtocol};
use crate::record::{Record, Unknown};

/// The address of node ports and host ports: it stands for every address of every node.
pub const EVERY_NODE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// An address or port that one service of the fleet owns. Claims are created and deleted in one transaction with the
/// service's record, which names them.
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

/// The owner of a claim.
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
