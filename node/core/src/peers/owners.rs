//! Who owns which block, and what depends on it.

use std::collections::BTreeMap;

use identity::NodeName;
use ipnetwork::IpNetwork;
use kvstore_schema::record::{ClaimEpoch, ClaimState};

use crate::node::Node;

impl Node {
    /// Brings the owner of a block up to date, and touches what depends on it.
    pub(crate) fn refresh_owner(&mut self, cidr: IpNetwork) {
        let owner = self.find_owner(cidr);
        let before = self.peers.owners.get(&cidr).cloned();
        if before == owner {
            return;
        }
        match &owner {
            Some(owner) => drop(self.peers.owners.insert(cidr, owner.clone())),
            None => drop(self.peers.owners.remove(&cidr)),
        }
        self.services_of_block_moved(cidr);
        // Whose records count inside has changed, and whose own addresses.
        let last = cidr.broadcast();
        self.touch_members_in(cidr);
        self.desired.addresses.extend(self.peers.by_address.range(cidr.network()..=last).map(|(ip, _)| *ip));
        let tunnels = self.peers.by_tunnel.range(cidr.network()..=last);
        self.desired.nodes.extend(tunnels.flat_map(|(_, nodes)| nodes).cloned());
        for node in before.iter().chain(&owner).filter(|node| **node != self.config.node) {
            for ip in
                self.view.endpoints().get(node).into_iter().flat_map(|ips| ips.range(cidr.network()..=last))
            {
                self.desired.records.insert((node.clone(), *ip.0));
            }
            let facts = self.peers.peers.get(node).and_then(|peer| peer.facts.clone());
            self.desired
                .addresses
                .extend(facts.iter().flat_map(|facts| &facts.pending).map(|change| change.ip));
        }
    }

    fn find_owner(&self, cidr: IpNetwork) -> Option<NodeName> {
        let told = self.peers.told_cidrs.get(&cidr).and_then(|claims| claims.last());
        // A claim that is only remembered is no better than one that gossip tells: the later one wins.
        let outbid =
            |epoch: ClaimEpoch| !self.view.is_complete() && told.is_some_and(|(told, _)| *told > epoch);
        if let Some(claim) = self.view.cidrs().get(&cidr).filter(|claim| !outbid(self.view.epoch_of(claim))) {
            return (claim.record.state == ClaimState::Live).then(|| claim.record.node.clone());
        }
        if self.ipam.own.iter().any(|(own, epoch)| *own == cidr && !outbid(*epoch)) {
            return Some(self.config.node.clone());
        }
        // A fact never overrides a claim that the store has confirmed, not in part either.
        let overlaps = |ip| self.view.cidr_of_ip(ip).is_some();
        let taken = !self.view.cidrs().contains_key(&cidr)
            && (overlaps(cidr.network()) || overlaps(cidr.broadcast()));
        if !self.gossip_counts() || taken {
            return None;
        }
        told.map(|(_, node)| node.clone())
    }

    /// Everything behind a node's number is to be written anew.
    pub(super) fn touch_node(&mut self, node: &NodeName) {
        let cidrs = self.peers.owners.iter().filter(|(_, owner)| *owner == node).map(|(cidr, _)| *cidr);
        self.desired.prefixes.extend(cidrs);
        for ip in self.view.endpoints().get(node).into_iter().flat_map(BTreeMap::keys) {
            self.desired.addresses.insert(*ip);
        }
        let facts = self.peers.peers.get(node).and_then(|peer| peer.facts.clone());
        self.desired.addresses.extend(facts.iter().flat_map(|facts| &facts.pending).map(|change| change.ip));
    }
}
