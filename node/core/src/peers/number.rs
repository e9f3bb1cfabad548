//! The numbers that nodes have in this node's kernel.

use std::net::IpAddr;

use datapath_plan::{NodeIndex, NodeValue};
use identity::NodeName;

use super::Reach;
use crate::node::Node;

impl Node {
    /// Gives a node its number, or takes it.
    pub(super) fn number(&mut self, node: &NodeName, reach: &Reach) {
        let tunnel = reach.tunnel.filter(|tunnel| self.wins(node, *tunnel));
        let had = self.peers.index_of(node);
        let index = match (tunnel, had) {
            (Some(_), Some(index)) => Some(index),
            (Some(tunnel), None) => self.free_index(tunnel),
            (None, _) => None,
        };
        if let Some(index) = had.filter(|had| Some(*had) != index) {
            self.peers.by_index.remove(&index);
            self.reconciler.set::<NodeValue>(index, None);
        }
        if let (Some(index), Some(underlay)) = (index, tunnel) {
            self.peers.by_index.insert(index, node.clone());
            self.reconciler.set(index, Some(NodeValue { underlay }));
        }
        if had != index {
            if let Some(peer) = self.peers.peers.get_mut(node) {
                peer.index = index;
                self.desired.addresses.extend(&reach.addresses);
            }
            self.touch_node(node);
        }
    }

    /// Whether a node is the one that an underlay address belongs to: it is not ours, and of those who say
    /// that it is theirs the agent started last. An address in a pod CIDR is no node's: P7.
    fn wins(&self, node: &NodeName, tunnel: IpAddr) -> bool {
        if self.peers.owner_of_ip(tunnel).is_some() {
            return false;
        }
        let rank =
            |node: &NodeName| self.peers.peers.get(node).map(|peer| (peer.reach.incarnation, node.clone()));
        let best = self.peers.by_tunnel.get(&tunnel).into_iter().flatten().filter_map(rank).max();
        !self.underlay.addresses.contains(&tunnel) && best.is_some_and(|(_, best)| best == *node)
    }

    /// The number that the kernel has for an address, or the next one that nothing refers to.
    fn free_index(&mut self, tunnel: IpAddr) -> Option<NodeIndex> {
        // The number may have gone to another node meanwhile.
        let adopted = self.peers.adopted.remove(&tunnel);
        if let Some(index) = adopted.filter(|index| !self.peers.by_index.contains_key(index)) {
            return Some(index);
        }
        let applied = &self.reconciler.applied().nodes;
        let last = NodeIndex::LAST.0;
        let free = (0..last).find_map(|_| {
            let next = self.peers.last_index % last + 1;
            let index = NodeIndex(next.max(NodeIndex::SELF.0 + 1));
            self.peers.last_index = index.0;
            (!applied.contains_key(&index) && !self.peers.by_index.contains_key(&index)).then_some(index)
        });
        if free.is_none() {
            self.error(format!("node at {tunnel} has no room: a fleet has {last} nodes at the most"));
        }
        free
    }
}
