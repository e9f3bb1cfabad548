//! The configuration of gossip, and the constants of its liveness.

use std::{net::SocketAddr, time::Duration};

use identity::{FleetName, NodeName};

use crate::{GossipError, Keyring};

/// One round a second: 1,000 nodes then cost 150 kB/s a node, and converge in 2 s (FACTS).
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// Faster rounds only burn CPU.
pub const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// With slower rounds, a death is noticed after minutes.
pub const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// Suspicion (phi) at which chitchat considers a node dead. 8, its default, takes 11-15 s; 4.5 takes 5-7 s without
/// many false alarms at 5 % loss (FACTS).
pub const PHI_THRESHOLD: f64 = 4.5;
/// Whatever its phi, a node is not considered dead before this many silent intervals: in a small fleet heartbeats
/// arrive several times an interval, and one late round would be enough for phi.
pub const MIN_SILENT_INTERVALS: u32 = 5;
/// Intervals without a new heartbeat after which a node counts as silent. In a fleet of a thousand, heartbeats arrive
/// every second, and one in a hundred takes two (FACTS): a larger value would delay the detection of a death, a
/// smaller one would make the agent probe nodes that are alive.
pub const SILENT_AFTER_INTERVALS: f64 = 2.5;
/// How long a dead incarnation is remembered. chitchat counts it in every digest for half of this
/// (24 h by default), and above about 2,570 entries a handshake panics.
pub const DEAD_NODE_GRACE: Duration = Duration::from_secs(5 * 60);
/// How long a deleted key is remembered. A peer that was cut off for longer gets the node's whole state again.
pub const TOMBSTONE_GRACE: Duration = Duration::from_secs(60 * 60);
/// Maximum number of seeds in the configuration, and of peers from etcd: chitchat's own limit of nodes.
pub const MAX_PEERS: usize = 2_500;
/// Queue of events for the agent. Further events are coalesced by node and kind.
pub const EVENT_QUEUE: usize = 64;

/// The configuration of gossip. One per agent.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// The fleet; datagrams of other fleets are dropped.
    pub fleet: FleetName,
    /// The fleet's random id, if already known; facts with another one are rejected. Later facts of this node replace
    /// it.
    pub fleet_id: Option<String>,
    /// This node.
    pub node: NodeName,
    /// Start time in ms since the epoch, higher than any value that this node ever used: a repeated value makes peers
    /// diverge silently and for ever. See [`crate::Gossip::incarnation`].
    pub incarnation: u64,
    /// The address and UDP port to bind; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The address that peers use for this node; port 0 means the bound port.
    pub advertise: SocketAddr,
    /// `host:port` of the first contacts, with or without this node. Names are resolved each minute.
    pub seeds: Vec<String>,
    /// Time between rounds.
    pub interval: Duration,
    /// The keys of the fleet. Gossip requires one.
    pub keyring: Keyring,
}

impl GossipConfig {
    /// Checks all fields.
    ///
    /// # Errors
    /// [`GossipError::Config`] with all errors, not only the first.
    pub fn validate(&self) -> Result<(), GossipError> {
        let mut mistakes = Vec::new();
        if self.incarnation == 0 {
            mistakes.push("incarnation 0: give the start time in ms since the epoch".to_owned());
        }
        if self.advertise.ip().is_unspecified() || self.advertise.ip().is_multicast() {
            mistakes.push(format!(
                "advertised address {} is not one that peers can reach: give this node's underlay address",
                self.advertise.ip()
            ));
        }
        if self.advertise.is_ipv4() != self.bind.is_ipv4() {
            mistakes.push(format!(
                "bind address {} and advertised address {} are of different families",
                self.bind, self.advertise
            ));
        }
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&self.interval) {
            mistakes.push(format!(
                "interval {:?} is not between {MIN_INTERVAL:?} and {MAX_INTERVAL:?}",
                self.interval
            ));
        }
        if self.seeds.len() > MAX_PEERS {
            mistakes.push(format!("{} seeds, at most {MAX_PEERS} are allowed", self.seeds.len()));
        }
        for seed in &self.seeds {
            if !is_host_and_port(seed) {
                mistakes.push(format!("seed {seed:?} is not of the form host:port or [v6-address]:port"));
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(GossipError::Config(mistakes)) }
    }
}

/// Whether a seed has the form that the resolver accepts. The name is resolved later.
fn is_host_and_port(seed: &str) -> bool {
    if seed.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return true;
    }
    let Some((host, port)) = seed.rsplit_once(':') else { return false };
    let host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    // A host of digits and dots alone is an address that did not parse.
    let is_name = host.bytes().any(|b| b.is_ascii_alphabetic());
    is_name
        && host.len() <= 253
        && host.bytes().all(host_byte)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_host_and_port() {
        for good in ["10.0.0.1:7946", "[2001:db8::1]:7946", "node-1:7946", "seed.example.net:1"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in
            ["", "10.0.0.1", "10.0.0.1:0", "10.0.0.300:7946", "node-1", "node-1:", "no de:1", "2001:db8::1"]
        {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
