//! Why a claim came to nothing, in words that say what to do.

use std::{fmt, net::IpAddr};

use identity::{Identity, Labels, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Key, Revision,
    service::{EVERY_NODE, NODE_PORTS, ServiceClaim, ServiceProtocol},
};

/// One setting that is different here and in the fleet's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The setting's name.
    pub setting: &'static str,
    /// What this node is configured with.
    pub here: String,
    /// What the fleet has.
    pub fleet: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: here {}, fleet {}", self.setting, self.here, self.fleet)
    }
}

/// Why a machine ended without what it was started for. None of these goes away by asking the same again
/// at once; each text says what would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// This node's settings are not those of the fleet that it wants to join.
    #[error(
        "this node's settings differ from the fleet's: {}; change them in this node's configuration, or give the node another fleet name",
        join(differences)
    )]
    FleetMismatch {
        /// All of them, not only the first.
        differences: Vec<Difference>,
    },
    /// The store is another fleet's by now.
    #[error("the store holds another fleet of this name ({found}, this node's is {known})")]
    OtherFleet {
        /// The id found.
        found: String,
        /// The id of this node's fleet.
        known: String,
    },
    /// There is no fleet record: [`crate::FleetJoin`] comes before everything else.
    #[error("the fleet has no record yet; the agent writes it before it claims anything")]
    NoFleet,
    /// The store was founded anew, and members still write again what they own: what is free there may be somebody's.
    #[error(
        "members of the fleet still restore what the store has lost; nothing free is claimed before they end, which takes a minute or two: try again then"
    )]
    Restoring,
    /// Another machine that is alive has this name.
    #[error(
        "node name {node} belongs to another machine that is alive (machine id {theirs}, this one is {ours}); give this machine another node name, or stop the other agent and wait until its lease has run out"
    )]
    NameTaken {
        /// The name.
        node: NodeName,
        /// The machine id in the record.
        theirs: String,
        /// This machine's.
        ours: String,
    },
    /// The node has no record: it never registered, or an operator removed it.
    #[error(
        "node {node} is not registered in the fleet; it was removed by an operator or never registered: register it again before it claims anything"
    )]
    NotRegistered {
        /// The node.
        node: NodeName,
    },
    /// No block is free in any pool.
    #[error(
        "no pod CIDR is free: pools {} hold {used} claimed and {quarantined} quarantined blocks; remove nodes that are gone (warren node remove), wait for the quarantine to end, or make a fleet with larger pools",
        join(pools)
    )]
    PoolExhausted {
        /// The fleet's pools.
        pools: Vec<IpNetwork>,
        /// Blocks that have an owner.
        used: usize,
        /// Blocks given back but not yet free.
        quarantined: usize,
    },
    /// Every number of the fleet's range is taken.
    #[error(
        "all identity numbers are taken ({used}); use fewer distinct label sets, for example by a label filter"
    )]
    IdentitiesExhausted {
        /// How many there are.
        used: usize,
    },
    /// A record in the way does not decode.
    #[error("record {key} stands in the way and cannot be read: {reason}")]
    BadRecord {
        /// Its key.
        key: Key,
        /// Why.
        reason: String,
    },
    /// A label set points to a number that belongs to other labels.
    #[error(
        "records contradict one another: labels {{{labels}}} point to identity {identity}, which belongs to other labels; somebody edited them by hand: delete {key}"
    )]
    Contradiction {
        /// The labels wanted.
        labels: Labels,
        /// The number they point to.
        identity: Identity,
        /// The record to delete.
        key: Key,
    },
    /// The claim is not this node's any more.
    #[error("pod CIDR {cidr} is not owned by this node any more (wanted {wanted}, found {found})")]
    ClaimLost {
        /// The block.
        cidr: IpNetwork,
        /// What the node believed.
        wanted: String,
        /// What the record says.
        found: String,
    },
    /// An address outside every block that the caller said it owns.
    #[error("address {ip} lies in none of this node's pod CIDRs")]
    AddressOutside {
        /// The address.
        ip: IpAddr,
    },
    /// A service is not as it was when its author looked.
    #[error(
        "service {service} was changed by somebody else (expected revision {wanted}, found {}); read it again, and decide again",
        found.map_or("none".to_owned(), |found| found.to_string())
    )]
    ServiceChanged {
        /// The service.
        service: ServiceName,
        /// The revision that its author knew.
        wanted: Revision,
        /// The one that is there.
        found: Option<Revision>,
    },
    /// An address or port belongs to another service.
    #[error("{claim} belongs to service {owner}; use another one{}", or_auto(claim))]
    Taken {
        /// What is wanted.
        claim: ServiceClaim,
        /// Whose it is.
        owner: ServiceName,
    },
    /// A port of the nodes is one that the agents use themselves.
    #[error("{claim} is the fleet's own, for {what}; use another one")]
    PortOfAgents {
        /// What is wanted.
        claim: ServiceClaim,
        /// What it is for.
        what: &'static str,
    },
    /// No node port is free.
    #[error("no node port is free for {protocol}: services have all {}; delete some", NODE_PORTS.len())]
    NodePortsExhausted {
        /// The protocol.
        protocol: ServiceProtocol,
    },
    /// An external address lies where virtual IPs come from.
    #[error(
        "address {address} lies in service pool {pool}, where virtual IPs come from; name it as the service's virtualIp, or use one outside"
    )]
    AddressOfServices {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: IpNetwork,
    },
    /// A backend is a virtual IP, or could become one: no flow is translated twice.
    #[error(
        "backend {address} lies in service pool {pool}, where virtual IPs come from: services do not lead to services; name the addresses of its backends"
    )]
    BackendOfServices {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: IpNetwork,
    },
    /// An address lies where endpoints get theirs.
    #[error(
        "address {address} lies in pool {pool}, where endpoints get theirs; use one outside the fleet's pools (virtualIp: auto finds one)"
    )]
    AddressOfEndpoints {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: IpNetwork,
    },
    /// An address is a node's.
    #[error(
        "address {address} is node {node}'s; use another one (virtualIp: auto finds one), or nodePort, which every node's addresses have"
    )]
    AddressOfNode {
        /// The address.
        address: IpAddr,
        /// The node.
        node: NodeName,
    },
    /// No virtual IP is free.
    #[error(
        "no virtual IP is free: service pools {} hold {used}; name an address in the manifest (virtualIp), delete services, or give the fleet a service pool (fleet.service_pools)",
        if pools.is_empty() { "(none)".to_owned() } else { join(pools) }
    )]
    ServicePoolExhausted {
        /// The fleet's service pools.
        pools: Vec<IpNetwork>,
        /// How many addresses services have.
        used: usize,
    },
    /// The store refused the request for good.
    #[error("the store refused the request: {0}; check the permissions of this node's store user")]
    Refused(String),
    /// The store answered something else than what was asked: a bug in the carrier.
    #[error("the store's answer does not fit the request: {0}")]
    Protocol(String),
}

/// What finds a free one.
fn or_auto(claim: &ServiceClaim) -> &'static str {
    match claim {
        // Somebody may have wanted it as an external address.
        ServiceClaim::VirtualIp(_) => " (as a virtualIp, auto finds one)",
        ServiceClaim::Frontend { address: EVERY_NODE, port, .. } if NODE_PORTS.contains(port) => {
            ", or nodePort: auto"
        }
        ServiceClaim::Frontend { .. } => "",
    }
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
