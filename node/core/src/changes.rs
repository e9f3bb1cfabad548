//! Typed changes from one component to another: what has to be computed again, and by whom.
//!
//! A component that changes its state adds to these sets; the wiring (`node`) drains them within the same event, in the
//! order in which the results depend on each other. Adding twice costs nothing, and computing again without a change
//! adds nothing, so that draining ends.

use std::{collections::BTreeSet, net::IpAddr, net::Ipv4Addr};

use datapath_plan::{BackendState, EndpointId};
use identity::{NodeName, ServiceName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// All changes that are not yet drained. One per node. Between events only those of the snapshot remain, once the kernel has
/// been read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Changes {
    /// Gateway, MTU or underlay: `Routing` computes the base again.
    pub base: bool,
    /// Whether gossip counts for nodes and blocks: `Peers` looks at all nodes and blocks again.
    pub all_peers: bool,
    /// Nodes whose record, facts or rivals changed: `Peers`.
    pub nodes: BTreeSet<NodeName>,
    /// Nodes whose liveness or membership changed: `Health`.
    pub liveness: BTreeSet<NodeName>,
    /// Blocks whose owner, ipcache entry or route may change: `Peers`, `Ipcache`, `Routing`.
    pub blocks: BTreeSet<IpNetwork>,
    /// Blocks that have another owner: `Services`, `Health`.
    pub moved_blocks: BTreeSet<IpNetwork>,
    /// Endpoint records of other nodes that came, changed or may count now: `Ipcache`.
    pub records: BTreeSet<(NodeName, IpAddr)>,
    /// Addresses whose ipcache entry may change: `Ipcache`, then `Services` and `Health`.
    pub addresses: BTreeSet<IpAddr>,
    /// Services whose record, or what it depends on, changed: `Services`.
    pub services: BTreeSet<ServiceName>,
    /// Members of services that came, went or changed, in this order: `Health`.
    pub members: Vec<MemberChange>,
    /// Endpoints of this node that can be probed from now on: `Health`.
    pub attached: BTreeSet<IpAddr>,
    /// Claims in this node's name, or whether the fleet may claim: `Ipam`.
    pub claims: bool,
    /// The store does not have this node's record: `Fleet` registers again.
    pub unregistered: bool,
    /// Endpoints of this node whose record or state changed: `Records`.
    pub own_endpoints: BTreeSet<IpAddr>,
    /// Whether a peer is cut off from the store, and since when: `Records` gossips confirmed changes again.
    pub cut_off: bool,
    /// Endpoints of this node whose file is out of date: the shell writes them.
    pub endpoint_files: BTreeSet<EndpointId>,
    /// Endpoints or blocks of this node, or services, changed since the last snapshot: `Snapshots`.
    pub own_state: bool,
    /// Any other record changed since the last snapshot: `Snapshots`.
    pub fleet_state: bool,
}

/// A change of one member (backend) of a service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MemberChange {
    pub service: ServiceName,
    pub address: Ipv4Addr,
    pub port: u16,
    pub kind: MemberChangeKind,
}

/// What happened to the member.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum MemberChangeKind {
    /// It is new. `adopted`: the state in which a former agent left it in the kernel.
    Came { adopted: Option<BackendState> },
    /// The service's check may have changed.
    Touched,
    /// It is gone.
    Went,
}
