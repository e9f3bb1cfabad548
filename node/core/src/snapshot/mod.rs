//! What a node needs from before its restart to serve without store and gossip: plain data, made and read back here,
//! kept on disk by the shell.
//!
//! There is one copy of the logic: a snapshot of the fleet becomes records of the view (`restore`), which is then known but
//! not complete, so nothing is removed because it is missing there. The first listing replaces it record by record, and must
//! continue its store and revision like any later listing (P6).
//!
//! This node's endpoints are saved separately, one by one, and each before its caller is answered: a snapshot is of the
//! whole fleet, which takes longer.

mod restore;
mod save;

use std::{net::IpAddr, sync::Arc, time::Duration};

use datapath_plan::{Attachment, EndpointId, Mac};
use identity::{EndpointName, FleetName, Identity, Labels, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Revision, StoreIdentity,
    record::{ClaimEpoch, ClaimState, Life, MarkRecord},
    service::ServiceRecord,
};
use serde::{Deserialize, Serialize};

pub(crate) use save::Snapshots;

/// What one agent leaves to the next on the same machine. Made for bincode: every field is there, always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The fleet's name.
    pub fleet: FleetName,
    /// The fleet's random id.
    pub fleet_id: String,
    /// This node.
    pub node: NodeName,
    /// The machine that had this node's name.
    pub machine_id: String,
    /// The store that the rest comes from.
    pub store: StoreIdentity,
    /// The generation of that store.
    pub life: Life,
    /// Up to which revision everything in it was known.
    pub revision: Revision,
    /// When the store last answered, since 1970.
    pub heard_at: Duration,
    /// Its mark, and the revision of that.
    pub mark: Option<(MarkRecord, Revision)>,
    /// All nodes of the fleet, this one too.
    pub nodes: Vec<SavedNode>,
    /// All claims on pod CIDRs.
    pub cidrs: Vec<SavedCidr>,
    /// The fleet's live identities.
    pub identities: Vec<SavedIdentity>,
    /// The fleet's endpoints by their records, by node.
    pub records: Vec<(NodeName, Vec<SavedRecord>)>,
    /// The fleet's services by their records.
    pub services: Vec<(ServiceName, Arc<ServiceRecord>)>,
}

/// A node as it was last known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNode {
    /// Its name.
    pub name: NodeName,
    /// Its underlay addresses, the tunnel's first.
    pub underlay: Vec<IpAddr>,
    /// Its own address in the pod network.
    pub gateway: Option<IpAddr>,
    /// UDP port of its gossip.
    pub gossip_port: u16,
    /// Its labels.
    pub labels: Labels,
    /// The id of its machine.
    pub machine_id: String,
    /// Its agent's start in ms since 1970.
    pub incarnation: u64,
    /// Its agent's version.
    pub agent_version: String,
}

/// A claim on a pod CIDR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCidr {
    /// The block.
    pub cidr: IpNetwork,
    /// Who claimed it.
    pub node: NodeName,
    /// Whether it is in use.
    pub state: ClaimState,
    /// The claim's create revision.
    pub epoch: Revision,
    /// When it was claimed, if that was in a former generation of the store.
    pub since: Option<ClaimEpoch>,
}

/// A live identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedIdentity {
    /// The number.
    pub id: Identity,
    /// The labels that determine it.
    pub labels: Labels,
    /// Whether this node has a reference to it, which keeps it from being collected.
    pub referenced: bool,
}

/// An endpoint's record. Its labels are those of its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRecord {
    /// Its address.
    pub address: IpAddr,
    /// Its identity.
    pub identity: Identity,
    /// Its name.
    pub name: EndpointName,
    /// Whether it is drained.
    pub terminating: bool,
}

/// An endpoint of this node as it is in its kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEndpoint {
    /// The number in its device's name.
    pub id: EndpointId,
    /// Its name.
    pub name: EndpointName,
    /// All its labels.
    pub labels: Labels,
    /// How it is attached, where known.
    pub attachment: Option<Attachment>,
    /// Its address.
    pub address: IpAddr,
    /// The workload's Ethernet address.
    pub mac: Mac,
    /// The host side's Ethernet address.
    pub host_mac: Mac,
    /// Whether it was attached: neither being attached nor being detached.
    pub ready: bool,
    /// Whether it is drained.
    pub terminating: bool,
}
