//! Faults that are inflicted on a fleet on purpose.
//!
//! A [`Fault`] is active until it is healed; the lab's directory has the list of active faults, so that every
//! `warren-lab` can show and heal them. Inflicting an active fault again changes nothing. What happens once and
//! cannot be healed (a wiped etcd, a rebooted node) is an act: a method of [`Lab`](crate::Lab).

mod acts;
mod command;
mod etcd;
pub mod helper;
mod machine;
mod network;
mod registry;

pub use command::{EtcdCommand, FaultCommand};
pub use registry::ActiveFault;

use std::{fmt, net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};

/// Two sets of machines, and a direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The machines of one side.
    pub from: Vec<String>,
    /// The machines of the other side; a machine on both sides is not cut off from itself.
    pub to: Vec<String>,
    /// Only packets from `from` to `to`; otherwise both directions.
    pub one_way: bool,
}

impl Way {
    /// All ordered pairs of machines.
    fn pairs(&self) -> Vec<(&str, &str)> {
        let mut pairs = Vec::new();
        for from in &self.from {
            for to in self.to.iter().filter(|to| *to != from) {
                pairs.push((from.as_str(), to.as_str()));
                if !self.one_way {
                    pairs.push((to.as_str(), from.as_str()));
                }
            }
        }
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = if self.one_way { "->" } else { "<->" };
        write!(f, "{} {arrow} {}", self.from.join(","), self.to.join(","))
    }
}

/// A fault that is active until it is healed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// Packets are dropped silently: between nodes a partition, to etcd a black hole.
    Cut { way: Way },
    /// A share of the packets is dropped, in thousandths.
    Loss { way: Way, per_mille: u16 },
    /// Packets are delayed, in order.
    Delay { way: Way, delay: Duration },
    /// Cut and whole in turn, each for half the period.
    Flap { way: Way, period: Duration },
    /// The machine's processes are stopped (SIGSTOP): connections stay open, but get no response.
    Paused { machine: String },
    /// The machine's processes have ended.
    Down { machine: String },
    /// The node has another underlay address.
    Address { node: String, address: Ipv4Addr },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut { way } => write!(f, "cut {way}"),
            Self::Loss { way, per_mille } => write!(f, "loss of {}% {way}", f64::from(*per_mille) / 10.0),
            Self::Delay { way, delay } => write!(f, "delay of {delay:?} {way}"),
            Self::Flap { way, period } => write!(f, "flapping every {period:?} {way}"),
            Self::Paused { machine } => write!(f, "{machine} is paused"),
            Self::Down { machine } => write!(f, "{machine} is down"),
            Self::Address { node, address } => write!(f, "{node} has address {address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_directions_are_parsed() {
        let set = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        for (from, to, one_way, expected) in [
            ("n1", "n2", true, "n1>n2"),
            ("n1", "n2", false, "n1>n2 n2>n1"),
            ("n1", "n1,n2,e1", false, "e1>n1 n1>e1 n1>n2 n2>n1"),
            ("n1,n2", "n1,n2", false, "n1>n2 n2>n1"),
            ("n1,n2", "n3", true, "n1>n3 n2>n3"),
        ] {
            let way = Way { from: set(from), to: set(to), one_way };
            let pairs: Vec<String> = way.pairs().iter().map(|(from, to)| format!("{from}>{to}")).collect();
            assert_eq!(pairs.join(" "), expected, "{way}");
        }
    }
}
