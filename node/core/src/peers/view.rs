//! Nodes for reading.

use std::collections::BTreeSet;

use datapath_plan::NodeIndex;
use identity::NodeName;
use kvstore_schema::record::NodeRecord;
use node_facts::Liveness;

use super::Peers;
use crate::{
    NodeView, RejectedView,
    fleet::{Fleet, Own},
};

impl Peers {
    /// The fleet's nodes, by name. `endpoints`: how many this node has.
    pub(crate) fn views(&self, fleet: &Fleet, own: Own<'_>, endpoints: usize) -> Vec<NodeView> {
        let mut names: BTreeSet<&NodeName> = fleet.view().nodes().keys().collect();
        names.extend(self.peers.keys());
        names.insert(fleet.node());
        names.into_iter().map(|name| self.view(fleet, own, endpoints, name)).collect()
    }

    fn view(&self, fleet: &Fleet, own: Own<'_>, endpoints: usize, name: &NodeName) -> NodeView {
        let this = name == fleet.node();
        let record: Option<&NodeRecord> = fleet.view().nodes().get(name).map(|entry| &entry.record);
        let facts = self.facts_of(name);
        let underlay = match (this, record, facts) {
            (true, _, _) => own.underlay.to_vec(),
            (false, Some(record), _) => record.underlay.clone(),
            (false, None, facts) => facts.map(|facts| facts.underlay.clone()).unwrap_or_default(),
        };
        NodeView {
            name: name.clone(),
            this,
            index: if this { Some(NodeIndex::SELF) } else { self.index_of(name) },
            underlay,
            gateway: if this {
                own.gateway
            } else {
                record.and_then(|record| record.gateway).or(facts.and_then(|facts| facts.gateway))
            },
            cidrs: self.owned_by(name).collect(),
            labels: record.map(|record| record.labels.clone()).unwrap_or_default(),
            agent_version: record.map(|record| record.agent_version.clone()).unwrap_or_default(),
            alive: fleet.view().alive().contains_key(name),
            gossip_alive: if this { None } else { self.liveness_of(name) }
                .map(|liveness| liveness != Liveness::Dead),
            gossip_only: record.is_none() && !this,
            endpoints: if this { endpoints } else { fleet.records(name).count() },
        }
    }

    /// Facts that were not accepted, and nodes that have no number because another node has their underlay address.
    pub(crate) fn rejected(&self, fleet: &Fleet) -> impl Iterator<Item = RejectedView> {
        let facts = self.rejected.iter();
        let facts = facts
            .map(|(node, reason)| RejectedView { key: format!("gossip:{node}"), reason: reason.clone() });
        let schema = fleet.view().schema();
        let rivals = self.peers.iter().filter(|(_, peer)| peer.index.is_none());
        let rivals = rivals.filter_map(move |(node, peer)| {
            let tunnel = peer.reach.tunnel?;
            let reason = match self.owner_of_ip(tunnel) {
                Some(owner) => format!("its underlay address {tunnel} lies in a pod CIDR of node {owner}"),
                None => format!(
                    "its underlay address {tunnel} is also that of a node whose agent started later, or of this node"
                ),
            };
            Some(RejectedView { key: schema.node(node).to_string(), reason })
        });
        facts.chain(rivals)
    }
}
