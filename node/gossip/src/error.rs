//! Why gossip cannot start, or cannot say something; each text says what to do.

use std::{io, net::SocketAddr};

use node_facts::FactsError;

/// Why gossip cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// The configuration contradicts itself; all mistakes at once.
    #[error("gossip configuration: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The address is not one of this machine's.
    #[error(
        "gossip cannot bind {0}: the address is not on this machine (see `ip address`); correct the gossip bind address, or use 0.0.0.0"
    )]
    NotLocal(SocketAddr),
    /// Somebody has the port.
    #[error("gossip cannot bind {0}: the port is in use (see `ss -lunp`); is another agent running?")]
    InUse(SocketAddr),
    /// The port is not for everybody.
    #[error("gossip cannot bind {0}: not permitted; run as root or use a port above 1023")]
    NotPermitted(SocketAddr),
    /// Any other reason of the kernel's.
    #[error("gossip cannot bind {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The loopback sockets between chitchat and the seal do not work.
    #[error("gossip needs the loopback device of its network namespace: `ip link set lo up`")]
    Loopback(#[source] io::Error),
    /// The operating system gives no randomness for nonces.
    #[error("no randomness for gossip: {0}")]
    Random(String),
}

impl GossipError {
    pub(crate) fn bind(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrNotAvailable => Self::NotLocal(address),
            io::ErrorKind::AddrInUse => Self::InUse(address),
            io::ErrorKind::PermissionDenied => Self::NotPermitted(address),
            _ => Self::Bind { address, source },
        }
    }
}

/// Why facts were not published; what was published before still stands.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// They break a rule or a limit.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// They speak of another node than the one that gossips: peers would reject them.
    #[error("facts of node {given} cannot be published by node {own}")]
    OtherNode {
        /// Whose facts were given.
        given: identity::NodeName,
        /// Who gossips.
        own: identity::NodeName,
    },
}
