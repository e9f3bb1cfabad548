//! The numbers of nodes in this node's kernel.

use std::net::IpAddr;

use datapath_plan::{NodeIndex, NodeValue};
use identity::NodeName;

use super::{Peers, Reach};
use crate::{context::Context, fleet::Fleet};

impl Peers {
    /// Gives a node its number, or takes the number away.
    pub(super) fn number(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        own_underlay: &[IpAddr],
        node: &NodeName,
        reach: &Reach,
    ) {
        let tunnel = reach.tunnel.filter(|tunnel| self.wins(own_underlay, node, *tunnel));
        let had = self.index_of(node);
        let index = match (tunnel, had) {
            (Some(_), Some(index)) => Some(index),
            (Some(tunnel), None) => self.free_index(cx, tunnel),
            (None, _) => None,
        };
        if let Some(index) = had.filter(|had| Some(*had) != index) {
            self.by_index.remove(&index);
            cx.kernel.set::<NodeValue>(index, None);
        }
        if let (Some(index), Some(underlay)) = (index, tunnel) {
            self.by_index.insert(index, node.clone());
            cx.kernel.set(index, Some(NodeValue { underlay }));
        }
        if had != index {
            if let Some(peer) = self.peers.get_mut(node) {
                peer.index = index;
                cx.changes.addresses.extend(&reach.addresses);
            }
            self.touch_entries(cx, fleet, node);
        }
    }

    /// Whether an underlay address belongs to a node: it is not this node's, and of the nodes that claim it the agent
    /// started last. An address in a pod CIDR is no node's: P7.
    fn wins(&self, own_underlay: &[IpAddr], node: &NodeName, tunnel: IpAddr) -> bool {
        if self.owner_of_ip(tunnel).is_some() {
            return false;
        }
        let rank = |node: &NodeName| self.peers.get(node).map(|peer| (peer.reach.incarnation, node.clone()));
        let best = self.by_tunnel.get(&tunnel).into_iter().flatten().filter_map(rank).max();
        !own_underlay.contains(&tunnel) && best.is_some_and(|(_, best)| best == *node)
    }

    /// The number that the kernel has for an address, or the next one that nothing refers to.
    fn free_index(&mut self, cx: &mut Context, tunnel: IpAddr) -> Option<NodeIndex> {
        // The adopted number may have been given to another node meanwhile.
        let adopted = self.adopted.remove(&tunnel);
        if let Some(index) = adopted.filter(|index| !self.by_index.contains_key(index)) {
            return Some(index);
        }
        let applied = &cx.kernel.applied().nodes;
        let last = NodeIndex::LAST.0;
        let free = (0..last).find_map(|_| {
            let next = self.last_index % last + 1;
            let index = NodeIndex(next.max(NodeIndex::SELF.0 + 1));
            self.last_index = index.0;
            (!applied.contains_key(&index) && !self.by_index.contains_key(&index)).then_some(index)
        });
        if free.is_none() {
            cx.error(format!("node at {tunnel} has no room: a fleet has {last} nodes at the most"));
        }
        free
    }
}
