//! Frontends: the addresses and ports at which service ports are reached.

use std::{fmt, net::IpAddr};

use datapath_abi::MAX_FRONTENDS;
use serde::{Deserialize, Serialize};

use crate::{
    Prune, ServiceId,
    epochs::Epochs,
    row::{Change, Room, Row},
};

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As in IP headers.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of a number, `None` for others.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    /// The word, as in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// An address and port at which a service port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// The address; unspecified (0.0.0.0) for every address of this node.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol, of the frontend and of all backends.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.protocol.word(), self.address, self.port)
    }
}

/// The kind of a service's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendKind {
    /// A virtual IP from a service pool, for endpoints and nodes.
    Virtual,
    /// An address of an external network, which routes it to nodes.
    External,
    /// A port of every node's addresses.
    NodePort,
    /// A port of the addresses of nodes that have a backend.
    HostPort,
}

impl FrontendKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Virtual, Self::External, Self::NodePort, Self::HostPort];

    /// The word, as in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Virtual => "virtual",
            Self::External => "external",
            Self::NodePort => "node-port",
            Self::HostPort => "host-port",
        }
    }
}

/// The service port of a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendValue {
    /// The service port.
    pub service: ServiceId,
    /// The kind of the frontend's address.
    pub kind: FrontendKind,
}

impl Row for FrontendValue {
    const NAME: &'static str = "frontends";
    const ROOMS: &'static [Room] = &[Room { name: "frontends", max: MAX_FRONTENDS as usize }];

    fn may_be_pruned(prune: &Prune) -> bool {
        prune.services
    }

    /// Flows that went to the address while it was no service's. Flows through the service keep their backends.
    fn concerns(change: &Change<'_, Self>, epochs: &mut Epochs) {
        if !change.key.address.is_unspecified() {
            epochs.address(change.key.address);
            return;
        }
        // The addresses of this node that flows from outside its own stack go to.
        for base in change.bases.into_iter().flatten() {
            epochs.address(base.underlay.address);
            epochs.address(base.gateway);
        }
    }
}

impl fmt::Display for FrontendValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {} {}", self.service.0, self.kind.word())
    }
}
