//! Which node owns which block, and what depends on it.

use identity::NodeName;
use ipnetwork::IpNetwork;
use kvstore_schema::record::{ClaimEpoch, ClaimState};

use super::Peers;
use crate::{context::Context, fleet::Fleet, ipam::Ipam};

impl Peers {
    /// Brings the owner of a block up to date. If the owner changes, so may everything with an address in the block.
    pub(crate) fn refresh_owner(&mut self, cx: &mut Context, fleet: &Fleet, ipam: &Ipam, cidr: IpNetwork) {
        let owner = self.find_owner(fleet, ipam, cidr);
        let before = match &owner {
            Some(owner) => self.owners.insert(cidr, owner.clone()),
            None => self.owners.remove(&cidr),
        };
        if before == owner {
            return;
        }
        cx.changes.moved_blocks.insert(cidr);
        let block = cidr.network()..=cidr.broadcast();
        cx.changes.addresses.extend(self.by_address.range(block.clone()).map(|(ip, _)| *ip));
        let tunnels = self.by_tunnel.range(block.clone());
        cx.changes.nodes.extend(tunnels.flat_map(|(_, nodes)| nodes).cloned());
        for node in before.iter().chain(&owner).filter(|node| *node != fleet.node()) {
            let records = fleet.view().endpoints().get(node).into_iter();
            let records = records.flat_map(|records| records.range(block.clone()));
            cx.changes.records.extend(records.map(|(ip, _)| (node.clone(), *ip)));
            cx.changes.addresses.extend(self.reported_addresses(node));
        }
    }

    fn find_owner(&self, fleet: &Fleet, ipam: &Ipam, cidr: IpNetwork) -> Option<NodeName> {
        let view = fleet.view();
        let reported = self.reported_blocks.get(&cidr).and_then(|claims| claims.last());
        // A claim that is only remembered counts no more than a reported one: the later one wins.
        let outbid = |epoch: ClaimEpoch| {
            !view.is_complete() && reported.is_some_and(|(reported, _)| *reported > epoch)
        };
        if let Some(claim) = view.cidrs().get(&cidr).filter(|claim| !outbid(view.epoch_of(claim))) {
            return (claim.record.state == ClaimState::Live).then(|| claim.record.node.clone());
        }
        if ipam.own().iter().any(|(own, epoch)| *own == cidr && !outbid(*epoch)) {
            return Some(fleet.node().clone());
        }
        // A reported claim never overrides one that the store has confirmed, not in part either.
        let overlaps = |ip| view.cidr_of_ip(ip).is_some();
        let taken =
            !view.cidrs().contains_key(&cidr) && (overlaps(cidr.network()) || overlaps(cidr.broadcast()));
        if !fleet.gossip_counts() || taken {
            return None;
        }
        reported.map(|(_, node)| node.clone())
    }

    /// A node has another number: every entry that refers to it changes.
    pub(super) fn touch_entries(&self, cx: &mut Context, fleet: &Fleet, node: &NodeName) {
        cx.changes.blocks.extend(self.owned_by(node));
        cx.changes.addresses.extend(fleet.records(node).map(|(ip, _)| ip));
        cx.changes.addresses.extend(self.reported_addresses(node));
    }

    /// The addresses of the endpoint changes that a node reports.
    fn reported_addresses(&self, node: &NodeName) -> impl Iterator<Item = std::net::IpAddr> + '_ {
        self.facts_of(node).into_iter().flat_map(|facts| &facts.pending).map(|change| change.ip)
    }
}
