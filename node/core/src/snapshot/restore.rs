//! From a snapshot to the records that the store would show.

use std::collections::BTreeMap;

use identity::NodeName;
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Key, KeyValue, Revision, Schema,
    record::{
        CidrRecord, ClaimState, EndpointRecord, IdentityIdRecord, IdentityLabelsRecord, IdentityRefRecord,
        NodeRecord, Record,
    },
};

use super::{SavedIdentity, SavedNode, Snapshot};
use crate::NodeConfig;

impl Snapshot {
    /// Whether it was made by this node on this machine.
    ///
    /// # Errors
    /// Why it must not be used.
    pub(crate) fn check(&self, config: &NodeConfig) -> Result<(), String> {
        if self.fleet != config.fleet {
            return Err(format!("it is of fleet {}, this agent's is {}", self.fleet, config.fleet));
        }
        if self.node != config.node {
            return Err(format!("it is of node {}, this one is {}", self.node, config.node));
        }
        if self.machine_id != config.machine_id {
            return Err(format!("it is of machine {}, this one is {}", self.machine_id, config.machine_id));
        }
        Ok(())
    }

    /// The records of the fleet. Modify revisions are 0: a snapshot does not have all fields of the records, so a listing
    /// brings each of them again. An iterator, since the records of a large fleet take 30 MB together.
    pub(crate) fn entries(&self, schema: &Schema) -> impl Iterator<Item = KeyValue> {
        let labels: BTreeMap<_, _> = self.identities.iter().map(|saved| (saved.id, &saved.labels)).collect();
        let mut blocks: BTreeMap<&NodeName, Vec<IpNetwork>> = BTreeMap::new();
        for claim in self.cidrs.iter().filter(|claim| claim.state == ClaimState::Live) {
            blocks.entry(&claim.node).or_default().push(claim.cidr);
        }
        let nodes = self.nodes.iter().map(move |saved| {
            let cidrs = blocks.get(&saved.name).cloned().unwrap_or_default();
            node_entry(schema, saved, cidrs)
        });
        let cidrs = self.cidrs.iter().map(|saved| {
            let record = CidrRecord {
                node: saved.node.clone(),
                state: saved.state,
                token: String::new(),
                since: saved.since,
                unknown: Default::default(),
            };
            entry(schema.cidr(saved.cidr), &record, saved.epoch)
        });
        let identities = self.identities.iter().flat_map(|saved| self.identity_entries(schema, saved));
        let records =
            self.records.iter().flat_map(|(node, records)| records.iter().map(move |it| (node, it)));
        let records = records.map(move |(node, saved)| {
            let labels = labels.get(&saved.identity).copied().cloned().unwrap_or_default();
            let record = EndpointRecord {
                name: saved.name.clone(),
                identity: saved.identity,
                labels_digest: labels.digest(),
                labels,
                terminating: saved.terminating,
                unknown: Default::default(),
            };
            entry(schema.endpoint(node, saved.address), &record, Revision::default())
        });
        // Claims on virtual IPs are needed only for writing, which needs the store.
        let services = self
            .services
            .iter()
            .map(|(name, record)| entry(schema.service(name), record.as_ref(), Revision::default()));
        // The mark is complete, unlike the others: its revision counts.
        let mark = self.mark.iter().map(|(record, revision)| KeyValue {
            mod_revision: *revision,
            ..entry(schema.mark(), record, Revision::default())
        });
        nodes.chain(cidrs).chain(identities).chain(records).chain(services).chain(mark)
    }

    fn identity_entries(&self, schema: &Schema, saved: &SavedIdentity) -> impl Iterator<Item = KeyValue> {
        let SavedIdentity { id, labels, referenced } = saved.clone();
        let digest = labels.digest();
        let by_number =
            IdentityIdRecord { labels: labels.clone(), state: ClaimState::Live, unknown: Default::default() };
        let by_labels = IdentityLabelsRecord { id, labels, unknown: Default::default() };
        let reference = IdentityRefRecord { incarnation: 0, unknown: Default::default() };
        let reference =
            referenced.then(|| entry(schema.identity_ref(id, &self.node), &reference, Revision::default()));
        [
            entry(schema.identity_id(id), &by_number, Revision::default()),
            entry(schema.identity_labels(&digest), &by_labels, Revision::default()),
        ]
        .into_iter()
        .chain(reference)
    }
}

fn node_entry(schema: &Schema, saved: &SavedNode, cidrs: Vec<IpNetwork>) -> KeyValue {
    let record = NodeRecord {
        underlay: saved.underlay.clone(),
        moves: 0,
        datapath_mode: None,
        cidrs,
        gateway: saved.gateway,
        gossip_port: saved.gossip_port,
        labels: saved.labels.clone(),
        boot_id: String::new(),
        machine_id: saved.machine_id.clone(),
        incarnation: saved.incarnation,
        agent_version: saved.agent_version.clone(),
        unknown: Default::default(),
    };
    entry(schema.node(&saved.name), &record, Revision::default())
}

fn entry(key: Key, record: &impl Record, create_revision: Revision) -> KeyValue {
    KeyValue { key, value: record.encode(), create_revision, mod_revision: Revision::default(), lease: None }
}
