//! Nodes for reading.

use std::collections::{BTreeMap, BTreeSet};

use datapath_plan::NodeIndex;
use identity::NodeName;
use kvstore_schema::record::NodeRecord;
use node_facts::Liveness;

use crate::{NodeView, node::Node};

impl Node {
    /// The fleet's nodes, by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        let mut names: BTreeSet<&NodeName> = self.view.nodes().keys().collect();
        names.extend(self.peers.peers.keys());
        names.insert(&self.config.node);
        names.into_iter().map(|name| self.node_view(name)).collect()
    }

    fn node_view(&self, name: &NodeName) -> NodeView {
        let this = *name == self.config.node;
        let record: Option<&NodeRecord> = self.view.nodes().get(name).map(|entry| &entry.record);
        let peer = self.peers.peers.get(name);
        let facts = peer.and_then(|peer| peer.facts.as_deref());
        let underlay = match (this, record, facts) {
            (true, _, _) => self.underlay.addresses.clone(),
            (false, Some(record), _) => record.underlay.clone(),
            (false, None, facts) => facts.map(|facts| facts.underlay.clone()).unwrap_or_default(),
        };
        let owned = self.peers.owners.iter().filter(|(_, owner)| *owner == name);
        NodeView {
            name: name.clone(),
            this,
            index: if this { Some(NodeIndex::SELF) } else { self.peers.index_of(name) },
            underlay,
            gateway: if this {
                self.gateway()
            } else {
                record.and_then(|r| r.gateway).or(facts.and_then(|f| f.gateway))
            },
            cidrs: owned.map(|(cidr, _)| *cidr).collect(),
            labels: record.map(|record| record.labels.clone()).unwrap_or_default(),
            agent_version: record.map(|record| record.agent_version.clone()).unwrap_or_default(),
            alive: self.view.alive().contains_key(name),
            gossip_alive: if this { None } else { peer.and_then(|peer| peer.liveness) }
                .map(|liveness| liveness != Liveness::Dead),
            gossip_only: record.is_none() && !this,
            endpoints: if this {
                self.endpoints.len()
            } else {
                self.view.endpoints().get(name).map_or(0, BTreeMap::len)
            },
        }
    }

    /// Nodes that have no number because another one has their underlay address.
    pub(crate) fn nodes_without_number(&self) -> impl Iterator<Item = (&NodeName, String)> {
        let lost = self.peers.peers.iter().filter(|(_, peer)| peer.index.is_none());
        lost.filter_map(|(node, peer)| {
            let tunnel = peer.reach.tunnel?;
            if let Some(owner) = self.peers.owner_of_ip(tunnel) {
                return Some((node, format!("its underlay address {tunnel} lies in a pod CIDR of node {owner}")));
            }
            Some((node, format!("its underlay address {tunnel} is also that of a node whose agent started later, or of this node")))
        })
    }
}
