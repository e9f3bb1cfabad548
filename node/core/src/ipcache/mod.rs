//! The ipcache: for each address one answer (identity, labels, name, node), from an ordered list of sources.
//!
//! `sources` asks the components in order of precedence. This file keeps what is needed to find out which answers a
//! change concerns, and which endpoint records do not count.

mod prefixes;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use datapath_plan::{IpcacheValue, NodeIndex};
use identity::{EndpointName, Identity, LabelDigest, Labels, NodeName};
use ipnetwork::IpNetwork;
use kvstore_schema::record::EndpointRecord;
use serde::{Deserialize, Serialize};

use crate::{IpcacheSource, IpcacheView, RejectedView, context::Context, fleet::Fleet, peers::Peers};
use prefixes::{Prefixes, is_exact};
pub(crate) use sources::Sources;

/// What the answers depend on beside the sources themselves. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ipcache {
    /// Identities whose record came, went or changed, and whose endpoints have not been looked at since.
    changed: BTreeSet<Identity>,
    /// The digest of each identity's labels, as of the last look at them. A digest costs more than finding it here.
    digests: BTreeMap<Identity, LabelDigest>,
    /// Records whose identity is unknown, or stands for other labels: few, or none.
    unproven: BTreeMap<(NodeName, IpAddr), Identity>,
    /// The prefixes wanted in the kernel, beside exact addresses.
    prefixes: Prefixes,
    /// Records that do not count, and why.
    rejected: BTreeMap<(NodeName, IpAddr), String>,
}

impl Ipcache {
    /// An identity's record came, went or changed: its endpoints may have it with other labels.
    pub(crate) fn on_identity(&mut self, identity: Identity) {
        self.changed.insert(identity);
    }

    /// Finds the records and addresses that the changed identities concern, and returns the identities. O(unproven) for
    /// an identity that is new; O(endpoints), for all changed identities together, when one goes or changes its labels.
    pub(crate) fn refresh_identities(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        peers: &Peers,
    ) -> BTreeSet<Identity> {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return changed;
        }
        let mut other_labels = BTreeSet::new();
        for identity in &changed {
            let digest = fleet.labels_of(*identity).map(Labels::digest);
            let before = match digest.clone() {
                Some(digest) => self.digests.insert(*identity, digest),
                None => self.digests.remove(identity),
            };
            if before.is_some() && before != digest {
                other_labels.insert(*identity);
            }
        }
        let unproven = self.unproven.iter().filter(|(_, identity)| changed.contains(identity));
        cx.changes.records.extend(unproven.map(|(key, _)| key.clone()));
        if !other_labels.is_empty() {
            for node in fleet.view().endpoints().keys().filter(|node| *node != fleet.node()) {
                let records = fleet.records(node);
                let records = records.filter(|(_, entry)| other_labels.contains(&entry.record.identity));
                cx.changes.records.extend(records.map(|(ip, _)| (node.clone(), ip)));
            }
        }
        let pending = peers.pending_endpoints().filter(|change| changed.contains(&change.identity));
        cx.changes.addresses.extend(pending.map(|change| change.ip));
        changed
    }

    /// An endpoint's record counts only inside a block that its node has claimed (P7), and only with the identity of its
    /// labels (P3). A record that does not is rejected alone, and shown.
    pub(crate) fn refresh_record(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        peers: &Peers,
        (node, ip): (NodeName, IpAddr),
    ) {
        cx.changes.addresses.insert(ip);
        let record = fleet.record(&node, ip).map(|entry| &entry.record);
        let owner = peers.owner_of_ip(ip);
        let ours = owner == Some(&node);
        let problem = record.and_then(|record| match owner {
            Some(_) if ours && self.has_identity_of_its_labels(fleet, record) => None,
            Some(_) if ours => Some(format!("the identity of {ip} is that of other labels")),
            Some(owner) => Some(format!("{ip} lies in a pod CIDR of node {owner}")),
            None => Some(format!("{ip} lies in no pod CIDR that is claimed")),
        });
        let key = (node, ip);
        let proven =
            |record: &EndpointRecord| self.digests.get(&record.identity) == Some(&record.labels_digest);
        match record.filter(|record| !proven(record)) {
            Some(record) => drop(self.unproven.insert(key.clone(), record.identity)),
            None => drop(self.unproven.remove(&key)),
        }
        match problem {
            None => drop(self.rejected.remove(&key)),
            Some(reason) => {
                cx.counters.records_rejected += u64::from(self.rejected.insert(key, reason).is_none());
            }
        }
    }

    /// Whether the identity of a record is that of its labels, as far as is known (P3).
    fn has_identity_of_its_labels(&self, fleet: &Fleet, record: &EndpointRecord) -> bool {
        let Some(labels) = fleet.labels_of(record.identity) else { return true };
        match self.digests.get(&record.identity) {
            Some(digest) if !self.changed.contains(&record.identity) => *digest == record.labels_digest,
            _ => labels.digest() == record.labels_digest,
        }
    }

    /// Wants an entry in the kernel, or wants it gone. Before everything is known, a missing answer is no reason to remove
    /// an entry that the kernel may have from a former agent that knew more (P6).
    pub(crate) fn want(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        prefix: IpNetwork,
        value: Option<IpcacheValue>,
    ) {
        // The programs have no table for IPv6: only the IPv4 addresses of a node with both families count.
        if prefix.is_ipv6() {
            return;
        }
        let known = fleet.view().is_complete() || cx.kernel.wanted().ipcache.contains_key(&prefix);
        if value.is_some() || known {
            self.prefixes.set(prefix, value.is_some());
            cx.kernel.set(prefix, value);
        }
    }

    /// The node and name of the endpoint at an address.
    pub(crate) fn endpoint_at(&self, sources: Sources<'_>, ip: IpAddr) -> Option<(NodeName, EndpointName)> {
        let answer = self.resolve(sources, ip)?;
        Some((sources.node_name(answer.value.node)?.clone(), answer.name?.clone()))
    }

    /// The wanted entry that decides about an address: its own, else the longest prefix. O(log n).
    pub(crate) fn lookup(&self, cx: &Context, address: IpAddr) -> Option<(IpNetwork, IpcacheValue)> {
        let exact = IpNetwork::from(address);
        let wanted = &cx.kernel.wanted().ipcache;
        let own = wanted.get(&exact).map(|value| (exact, *value));
        own.or_else(|| {
            let prefix = self.prefixes.longest(address)?;
            Some((prefix, *wanted.get(&prefix)?))
        })
    }

    /// A wanted entry, for reading.
    pub(crate) fn view(
        &self,
        sources: Sources<'_>,
        prefix: IpNetwork,
        IpcacheValue { identity, node }: IpcacheValue,
    ) -> IpcacheView {
        let answer = is_exact(prefix).then(|| self.resolve(sources, prefix.ip())).flatten();
        IpcacheView {
            prefix,
            identity,
            labels: sources.fleet.labels_of(identity).cloned().unwrap_or_default(),
            node: sources.node_name(node).cloned(),
            index: node,
            endpoint: answer.and_then(|answer| answer.name.cloned()),
            source: answer.map_or(IpcacheSource::Cidr, |answer| answer.source),
        }
    }

    /// Records that do not count, for reading.
    pub(crate) fn rejected(&self, fleet: &Fleet) -> impl Iterator<Item = RejectedView> {
        let schema = fleet.view().schema();
        self.rejected.iter().map(|((node, ip), reason)| RejectedView {
            key: schema.endpoint(node, *ip).to_string(),
            reason: reason.clone(),
        })
    }
}

/// The programs have no table for IPv6.
pub(crate) fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

impl Sources<'_> {
    /// The node that has a number in this node's kernel.
    fn node_name(&self, index: NodeIndex) -> Option<&NodeName> {
        match index {
            NodeIndex::SELF => Some(self.fleet.node()),
            index => self.peers.name_of(index),
        }
    }
}
