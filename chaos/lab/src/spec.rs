//! The specification of a lab: numbers of machines, and their addresses.

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// Maximum number of nodes: their last address byte starts at 1.
pub const MAX_NODES: u8 = 100;
/// Maximum number of etcd members: more than seven are of no use.
pub const MAX_ETCD: u8 = 7;

/// The specification of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Nodes, `n1`, `n2`, ….
    pub nodes: u8,
    /// etcd members, `e1`, `e2`, …. With none, each node has its own store in memory.
    pub etcd: u8,
    /// Pools of pod CIDRs.
    pub pools: Vec<String>,
    /// Prefix length of a node's blocks.
    pub block_prefix_v4: u8,
    /// The directory of `warrend` and `warren`.
    pub programs: PathBuf,
    /// Flags of every agent, in addition to its configuration.
    pub agent_flags: Vec<String>,
}

impl Spec {
    /// The lab of `make lab`: with the programs beside the running one.
    ///
    /// # Errors
    /// When `warrend` is not there.
    pub fn new(nodes: u8, etcd: u8) -> Result<Self> {
        Ok(Self {
            nodes,
            etcd,
            pools: vec!["10.200.0.0/16".to_owned()],
            block_prefix_v4: 24,
            programs: programs_folder()?,
            agent_flags: Vec::new(),
        })
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// When a number is out of range; the text names it.
    pub fn check(&self) -> Result<()> {
        if self.nodes == 0 || self.nodes > MAX_NODES {
            bail!("{} nodes: a lab has 1 to {MAX_NODES}", self.nodes);
        }
        if self.etcd > MAX_ETCD {
            bail!("{} etcd members: a lab has at most {MAX_ETCD}", self.etcd);
        }
        if self.etcd == 0 && self.nodes > 1 {
            bail!(
                "{} nodes without etcd would be {} fleets of one node: use --etcd 1 or --nodes 1",
                self.nodes,
                self.nodes
            );
        }
        Ok(())
    }

    /// The names of the nodes.
    pub fn node_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.nodes).map(|number| format!("n{number}"))
    }

    /// The names of the etcd members.
    pub fn etcd_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.etcd).map(|number| format!("e{number}"))
    }

    /// The client URLs of all etcd members.
    pub fn etcd_endpoints(&self) -> Vec<String> {
        self.etcd_names().map(|name| format!("http://{}:2379", underlay_address(&name))).collect()
    }
}

/// The underlay's prefix length.
pub const UNDERLAY_PREFIX: u8 = 16;

/// A machine's underlay address: `n3` has 172.30.1.3, `e2` 172.30.2.2, `x1` (outside the fleet) 172.30.3.1.
pub fn underlay_address(machine: &str) -> Ipv4Addr {
    let (kind, number) = machine.split_at(1);
    let third = match kind {
        "n" => 1,
        "e" => 2,
        _ => 3,
    };
    Ipv4Addr::new(172, 30, third, number.parse().expect("machines are named by a letter and a number"))
}

/// A machine's Ethernet address on the underlay: a reboot keeps it, as with real machines.
pub fn underlay_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

/// The directory of `warrend` and `warren`: that of this program, or for a test the parent.
fn programs_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    for folder in program.ancestors().skip(1).take(2) {
        if folder.join("warrend").is_file() && folder.join("warren").is_file() {
            return Ok(folder.to_owned());
        }
    }
    bail!(
        "warrend and warren are not beside {}: build the whole workspace first (make lab, or cargo build)",
        program.display()
    )
}
