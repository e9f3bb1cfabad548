//! Services as the kernel knows them: where they are reached, what stands behind them, how one is chosen.

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// One port of a service on this node. Never 0; two nodes number the fleet's services differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId(pub u32);

impl ServiceId {
    /// The highest.
    pub const LAST: Self = Self(datapath_abi::MAX_SERVICES - 1);
}

/// One member of one service port on this node; members of two are two backends, whatever their address. Never 0.
/// Flows name it: a number is not given to another address and port before its entry has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId(pub u32);

impl BackendId {
    /// The highest.
    pub const LAST: Self = Self(datapath_abi::MAX_BACKENDS - 1);
}

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

/// Where a service port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// The address; unspecified (0.0.0.0): every address of this node.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol; that of all backends, too.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.protocol.word(), self.address, self.port)
    }
}

/// What an address of a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendKind {
    /// Of a service pool: for pods and nodes.
    Virtual,
    /// Of somebody else's network, which sends it here.
    External,
    /// A port of every node.
    NodePort,
    /// A port of the node of its one backend.
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

/// Where a frontend leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendValue {
    /// The service port.
    pub service: ServiceId,
    /// What its address is.
    pub kind: FrontendKind,
}

/// What a backend may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// New flows.
    Active,
    /// No new flows, on the way out; those that run go on.
    Terminating,
    /// No new flows, until it is well again; those that run go on.
    Unhealthy,
}

impl BackendState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Active, Self::Terminating, Self::Unhealthy];

    /// The word, as on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Terminating => "terminating",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A backend in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendValue {
    /// The service port that it is a member of.
    pub service: ServiceId,
    /// Where it is.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its part of the flows, beside the other members' weights; 0: none.
    pub weight: u16,
    /// What it may get.
    pub state: BackendState,
}

impl BackendValue {
    /// Whether flows of the one are flows of the other.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        (self.service, self.address, self.port) == (other.service, other.address, other.port)
    }

    /// Whether the one gets what the other would get from a table.
    pub(crate) fn same_share(&self, other: &Self) -> bool {
        self.same_place(other) && self.weight == other.weight
    }
}

/// How a backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// By the flow's hash; another number of members moves most choices.
    Random,
    /// By the flow's hash; another number of members moves few choices, and all nodes choose alike.
    Maglev,
}

impl Algorithm {
    /// The word, as in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Maglev => "maglev",
        }
    }
}

/// Whose address a backend sees when somebody outside comes by this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceMode {
    /// This node's: answers come back here.
    Snat,
    /// The client's: the backend's node answers the client itself.
    Dsr,
}

impl ServiceMode {
    /// The word, as in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Snat => "snat",
            Self::Dsr => "dsr",
        }
    }
}

/// A service port in the kernel: its settings and its table of members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceValue {
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// How long a client that is silent keeps its backend; 0: not at all.
    pub affinity_seconds: u32,
    /// Whose address backends see.
    pub mode: ServiceMode,
    /// Where clients outside the fleet must be, as networks in ascending order; empty: anywhere.
    pub source_ranges: Vec<IpNetwork>,
    /// The backends that take new flows, without repetition, in ascending order. All of them are wanted in the
    /// backends' table, too.
    pub members: Vec<BackendId>,
}

impl fmt::Display for ServiceValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, affinity_seconds, mode, source_ranges, members } = self;
        write!(f, "{} {}", algorithm.word(), mode.word())?;
        if *affinity_seconds > 0 {
            write!(f, " affinity {affinity_seconds} s")?;
        }
        if !source_ranges.is_empty() {
            f.write_str(" sources")?;
            source_ranges.iter().try_for_each(|range| write!(f, " {range}"))?;
        }
        f.write_str(" members")?;
        members.iter().try_for_each(|member| write!(f, " {}", member.0))
    }
}

impl fmt::Display for BackendValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, address, port, weight, state } = self;
        write!(f, "service {} address {address} port {port} weight {weight} {}", service.0, state.word())
    }
}

impl fmt::Display for FrontendValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {} {}", self.service.0, self.kind.word())
    }
}
