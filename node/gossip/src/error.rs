//! Why gossip cannot start or cannot publish; each text names the remedy.

use std::{io, net::SocketAddr};

use node_facts::FactsError;

/// Why gossip cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// The configuration is invalid; all errors at once.
    #[error("gossip configuration: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The address is not one of this machine's.
    #[error(
        "gossip cannot bind {0}: the address is not on this machine (see `ip address`); correct the gossip bind address, or use 0.0.0.0"
    )]
    NotLocal(SocketAddr),
    /// The port is in use.
    #[error("gossip cannot bind {0}: the port is in use (see `ss -lunp`); is another agent running?")]
    InUse(SocketAddr),
    /// The port is privileged.
    #[error("gossip cannot bind {0}: not permitted; run as root or use a port above 1023")]
    NotPermitted(SocketAddr),
    /// Any other error of the kernel.
    #[error("gossip cannot bind {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The loopback sockets between chitchat and the sealed transport do not work.
    #[error("gossip needs the loopback device of its network namespace: `ip link set lo up`")]
    Loopback(#[source] io::Error),
    /// The operating system provides no randomness for nonces.
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

/// Why facts were not published; the facts published before stay.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The facts break a rule or a limit.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The facts name another node than this one: peers would reject them.
    #[error("facts of node {given} cannot be published by node {own}")]
    OtherNode {
        /// The node in the facts.
        given: identity::NodeName,
        /// This node.
        own: identity::NodeName,
    },
}
