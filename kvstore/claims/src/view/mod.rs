//! The picture of the fleet: every record under the fleet's prefix, decoded, fed by lists and events.

mod apply;
mod lookup;
mod remembered;
mod store_generation;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use identity::{Identity, LabelDigest, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Key, KeyValue, Revision, Schema, StoreIdentity,
    key::ParsedKey,
    record::{
        AliveRecord, CidrRecord, EndpointRecord, FleetRecord, IdentityIdRecord, IdentityLabelsRecord,
        IdentityRefRecord, Life, MarkRecord, NodeRecord,
    },
    service::{ServiceClaim, ServiceClaimRecord, ServiceRecord},
};
use serde::{Deserialize, Serialize};

pub use store_generation::{Continuity, OtherFleet};

/// A decoded record with its revisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<R> {
    /// The record.
    pub record: R,
    /// The revision of its creation; of a CIDR claim: its epoch.
    pub created: Revision,
    /// The revision of its last change.
    pub modified: Revision,
}

/// A record that is kept as bytes: its kind belongs to a crate above this one.
pub type RawEntry = Entry<Arc<[u8]>>;

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// The key is new or has a new value, which the view has decoded.
    Put,
    /// The key is gone.
    Gone,
    /// The new value cannot be read. The view keeps the record that it had for the key, if any.
    Rejected,
}

/// One change of the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewChange {
    /// The key.
    pub key: ParsedKey,
    /// The kind of the change.
    pub kind: ChangeKind,
}

/// A key or value that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The revision of the bad value.
    pub modified: Revision,
    /// The reason, in words for an operator.
    pub reason: String,
}

/// Why a list does not continue what the view knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Discontinuity {
    /// Another cluster answers.
    #[error("the store was replaced: cluster id {known:?} before, {now:?} now")]
    OtherStore {
        /// The store that the view was made from.
        known: StoreIdentity,
        /// The store that answered.
        now: StoreIdentity,
    },
    /// The same cluster, at an earlier revision: restored from a backup.
    #[error("the store went back from revision {known} to {now}: restored from a backup?")]
    Backwards {
        /// The revision that the view has seen.
        known: Revision,
        /// The revision of the list.
        now: Revision,
    },
}

/// The decoded picture of a fleet's keys. One per agent, owned by node-core; it lives as long as the agent.
///
/// The view may lag behind the store, so nothing is decided by it alone: transactions carry its revisions as
/// conditions. Applying costs O(log n) a change.
///
/// Invariants: a bad key or value is rejected alone and never panics; the secondary indexes (references by
/// node) say the same as the tables; an event is applied once, however often it comes
/// (etcd 3.4 delivers duplicates).
#[derive(Clone, Serialize, Deserialize)]
pub struct FleetView {
    pub(crate) schema: Schema,
    store: Option<StoreIdentity>,
    revision: Revision,
    /// Whether a whole list has been applied: changes may follow.
    listed: bool,
    /// The generation of the store that the records come from.
    life: Life,
    /// Keys whose record is remembered, each with the record of an older copy that the store has there; `None`: the store
    /// has nothing there.
    pub(crate) remembered: BTreeMap<Key, Option<KeyValue>>,
    /// Records that an older copy has brought back after the fleet had deleted them. The view does not hold them.
    pub(crate) resurrected: BTreeMap<Key, KeyValue>,
    /// Every key under the prefix with the revision of its value, good or bad.
    keys: BTreeMap<Key, Revision>,
    rejected: BTreeMap<Key, Rejected>,
    rejections: u64,
    fleet: Option<Entry<FleetRecord>>,
    nodes: BTreeMap<NodeName, Entry<NodeRecord>>,
    alive: BTreeMap<NodeName, Entry<AliveRecord>>,
    cidrs: BTreeMap<IpNetwork, Entry<CidrRecord>>,
    identity_labels: BTreeMap<LabelDigest, Entry<IdentityLabelsRecord>>,
    identities: BTreeMap<Identity, Entry<IdentityIdRecord>>,
    refs: BTreeMap<Identity, BTreeMap<NodeName, Entry<IdentityRefRecord>>>,
    refs_by_node: BTreeMap<NodeName, BTreeSet<Identity>>,
    endpoints: BTreeMap<NodeName, BTreeMap<IpAddr, Entry<Arc<EndpointRecord>>>>,
    endpoint_count: usize,
    services: BTreeMap<ServiceName, Entry<Arc<ServiceRecord>>>,
    service_claims: BTreeMap<ServiceClaim, Entry<ServiceClaimRecord>>,
    policies: BTreeMap<String, RawEntry>,
    keyring: Option<RawEntry>,
    pub(crate) mark: Option<Entry<MarkRecord>>,
}

impl FleetView {
    /// An empty view of the fleet whose keys `schema` names.
    pub fn new(schema: Schema) -> Self {
        Self {
            schema,
            store: None,
            revision: Revision::default(),
            listed: false,
            life: Life::default(),
            remembered: BTreeMap::new(),
            resurrected: BTreeMap::new(),
            keys: BTreeMap::new(),
            rejected: BTreeMap::new(),
            rejections: 0,
            fleet: None,
            nodes: BTreeMap::new(),
            alive: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            identity_labels: BTreeMap::new(),
            identities: BTreeMap::new(),
            refs: BTreeMap::new(),
            refs_by_node: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            endpoint_count: 0,
            services: BTreeMap::new(),
            service_claims: BTreeMap::new(),
            policies: BTreeMap::new(),
            keyring: None,
            mark: None,
        }
    }
}

impl fmt::Debug for FleetView {
    /// Sizes only: a view may hold 100,000 endpoints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetView")
            .field("revision", &self.revision)
            .field("remembered", &self.remembered())
            .field("keys", &self.keys.len())
            .field("rejected", &self.rejected.len())
            .finish_non_exhaustive()
    }
}
