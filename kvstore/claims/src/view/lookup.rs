//! What the view can be asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use identity::{Identity, LabelDigest, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Key, Revision, Schema, StoreIdentity,
    record::{
        AliveRecord, CidrRecord, ClaimState, EndpointRecord, FleetRecord, IdentityIdRecord,
        IdentityLabelsRecord, IdentityRefRecord, NodeRecord,
    },
    service::{ServiceClaim, ServiceClaimRecord, ServiceRecord},
};

use super::{Entry, FleetView, RawEntry, Rejected};

static NO_REFS: BTreeMap<NodeName, Entry<IdentityRefRecord>> = BTreeMap::new();

impl FleetView {
    /// The keys of this fleet.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Which store the view was made from; `None` before the first list.
    pub fn store(&self) -> Option<StoreIdentity> {
        self.store
    }

    /// Everything up to this revision is in the view.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether a whole list has been applied, so that changes may follow.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Whether the view equals the store and all members had time to write there what they own, so that a record which the
    /// view lacks does not exist.
    pub fn is_complete(&self) -> bool {
        self.listed && self.remembered() == 0 && !self.life.restoring
    }

    /// Whether a key exists, readable or not.
    pub fn has_key(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }

    /// Records that cannot be read at present, by key.
    pub fn rejected(&self) -> &BTreeMap<Key, Rejected> {
        &self.rejected
    }

    /// How many bad values have come since the start, repeated ones too.
    pub fn rejections(&self) -> u64 {
        self.rejections
    }

    /// The fleet's own record.
    pub fn fleet(&self) -> Option<&Entry<FleetRecord>> {
        self.fleet.as_ref()
    }

    /// All nodes that an operator has not removed.
    pub fn nodes(&self) -> &BTreeMap<NodeName, Entry<NodeRecord>> {
        &self.nodes
    }

    /// The nodes whose lease runs. A hint: it decides no ownership.
    pub fn alive(&self) -> &BTreeMap<NodeName, Entry<AliveRecord>> {
        &self.alive
    }

    /// All claims on pod CIDRs, quarantined ones too.
    pub fn cidrs(&self) -> &BTreeMap<IpNetwork, Entry<CidrRecord>> {
        &self.cidrs
    }

    /// The claims of a node that are live.
    pub fn cidrs_of<'a>(
        &'a self,
        node: &'a NodeName,
    ) -> impl Iterator<Item = (IpNetwork, &'a Entry<CidrRecord>)> + 'a {
        self.cidrs
            .iter()
            .filter(move |(_, claim)| claim.record.node == *node && claim.record.state == ClaimState::Live)
            .map(|(cidr, claim)| (*cidr, claim))
    }

    /// The live claim that an address lies in. Two never overlap (P3).
    pub fn cidr_of_ip(&self, ip: IpAddr) -> Option<(IpNetwork, &Entry<CidrRecord>)> {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (0..=longest).rev().find_map(|prefix| {
            let cidr = crate::blocks::block_of(ip, prefix);
            let claim = self.cidrs.get(&cidr)?;
            (claim.record.state == ClaimState::Live).then_some((cidr, claim))
        })
    }

    /// Label sets that have a number, by digest.
    pub fn identity_labels(&self) -> &BTreeMap<LabelDigest, Entry<IdentityLabelsRecord>> {
        &self.identity_labels
    }

    /// Numbers that are given out or quarantined.
    pub fn identities(&self) -> &BTreeMap<Identity, Entry<IdentityIdRecord>> {
        &self.identities
    }

    /// The nodes that use a number.
    pub fn refs(&self, identity: Identity) -> &BTreeMap<NodeName, Entry<IdentityRefRecord>> {
        self.refs.get(&identity).unwrap_or(&NO_REFS)
    }

    /// The numbers that each node uses.
    pub fn refs_by_node(&self) -> &BTreeMap<NodeName, BTreeSet<Identity>> {
        &self.refs_by_node
    }

    /// All endpoints, by node and address.
    pub fn endpoints(&self) -> &BTreeMap<NodeName, BTreeMap<IpAddr, Entry<Arc<EndpointRecord>>>> {
        &self.endpoints
    }

    /// How many endpoint records there are.
    pub fn endpoint_count(&self) -> usize {
        self.endpoint_count
    }

    /// The endpoint that has an address: the record of the node that owns the address's CIDR. Records of
    /// former owners that nobody has deleted yet do not count.
    pub fn endpoint_at(&self, ip: IpAddr) -> Option<(&NodeName, &Entry<Arc<EndpointRecord>>)> {
        let (_, claim) = self.cidr_of_ip(ip)?;
        let (node, endpoints) = self.endpoints.get_key_value(&claim.record.node)?;
        Some((node, endpoints.get(&ip)?))
    }

    /// All services.
    pub fn services(&self) -> &BTreeMap<ServiceName, Entry<Arc<ServiceRecord>>> {
        &self.services
    }

    /// Addresses and ports that services have.
    pub fn service_claims(&self) -> &BTreeMap<ServiceClaim, Entry<ServiceClaimRecord>> {
        &self.service_claims
    }

    /// Policies as their manifests' bytes.
    pub fn policies(&self) -> &BTreeMap<String, RawEntry> {
        &self.policies
    }

    /// The sealed gossip key.
    pub fn keyring(&self) -> Option<&RawEntry> {
        self.keyring.as_ref()
    }
}
