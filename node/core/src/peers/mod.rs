//! The other nodes: their addresses, blocks and numbers, from the store and, while the store is away, from gossip.

mod gossip;
mod number;
mod owners;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use datapath_plan::{NodeIndex, NodeValue};
use identity::NodeName;
use ipnetwork::IpNetwork;
use kvstore_schema::record::ClaimEpoch;
use node_facts::{Liveness, NodeFacts, PendingEndpoint};
use serde::{Deserialize, Serialize};

use crate::{context::Context, fleet::Fleet};
use gossip::CidrClaim;
pub(crate) use gossip::NewFacts;

/// Where a node can be reached, as it is used now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Reach {
    /// The underlay address that tunnel packets go to and come from.
    tunnel: Option<IpAddr>,
    /// All addresses that are the node's own: gateway and underlay.
    addresses: BTreeSet<IpAddr>,
    /// Its own address in the pod network.
    gateway: Option<IpAddr>,
    /// Of the agent: the later one wins an address that two nodes claim.
    incarnation: u64,
}

/// One other node. Lives as long as the store or gossip knows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Peer {
    index: Option<NodeIndex>,
    reach: Reach,
    facts: Option<Arc<NodeFacts>>,
    liveness: Option<Liveness>,
    /// The gossip address that the shell was given.
    gossiping: Option<SocketAddr>,
    /// How far it knows the store, while it is cut off from it.
    cut_off: Option<ClaimEpoch>,
    /// Pending changes that the store has since confirmed, by the sequence of the last one.
    confirmed: BTreeMap<IpAddr, u64>,
}

/// All other nodes, and which blocks and addresses belong to whom. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Peers {
    peers: BTreeMap<NodeName, Peer>,
    /// Nodes that an operator removed, with their incarnation: facts of those agents do not count.
    removed: BTreeMap<NodeName, u64>,
    by_index: BTreeMap<NodeIndex, NodeName>,
    /// Numbers that the kernel had at the start, by underlay address.
    adopted: BTreeMap<IpAddr, NodeIndex>,
    last_index: u32,
    /// The nodes that have an own address; more than one for a moment, or by mistake.
    by_address: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    by_tunnel: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    /// Blocks by gossip: the claims on each, by age.
    reported_blocks: BTreeMap<IpNetwork, BTreeSet<(ClaimEpoch, NodeName)>>,
    /// The owner of each block, as it is used now; this node too.
    owners: BTreeMap<IpNetwork, NodeName>,
    /// Endpoint changes that gossip reports and the store has not confirmed.
    pending: BTreeMap<IpAddr, BTreeMap<NodeName, PendingEndpoint>>,
    /// Changes that gossip does not report any more, kept until the store is known up to the revision that has them.
    kept: BTreeSet<(ClaimEpoch, NodeName, IpAddr)>,
    /// The nodes that are cut off from the store, and how far they know it.
    cut_off: BTreeSet<(ClaimEpoch, NodeName)>,
    /// The newest facts of each node from before this node knew its fleet's id: gossip says a thing once.
    early: BTreeMap<NodeName, NodeFacts>,
    /// Facts that were not accepted, and why.
    rejected: BTreeMap<NodeName, String>,
}

impl Peers {
    pub(crate) fn index_of(&self, node: &NodeName) -> Option<NodeIndex> {
        self.peers.get(node)?.index
    }

    pub(crate) fn name_of(&self, index: NodeIndex) -> Option<&NodeName> {
        self.by_index.get(&index)
    }

    /// The number of the node that has an own address. An address in another node's block does not count: a node cannot
    /// take a workload's address by claiming it as its own (P7).
    pub(crate) fn node_at(&self, ip: IpAddr) -> Option<NodeIndex> {
        let names = self.by_address.get(&ip)?;
        let owner = self.owner_of_ip(ip);
        let mut names = names.iter().filter(|node| owner.is_none_or(|owner| owner == *node));
        names.find_map(|node| self.index_of(node))
    }

    fn pending_at(&self, node: &NodeName, ip: IpAddr) -> Option<&PendingEndpoint> {
        self.pending.get(&ip)?.get(node)
    }

    /// The change at an address that the other node which owns the block reports, with that node's number.
    pub(crate) fn pending_of_owner(
        &self,
        own: &NodeName,
        ip: IpAddr,
    ) -> Option<(&PendingEndpoint, NodeIndex)> {
        let changes = self.pending.get(&ip)?;
        let (owner, index) = self.remote_owner(own, ip)?;
        Some((changes.get(owner)?, index))
    }

    /// Whether a member that seems alive has gossiped of a fleet that this node does not know.
    pub(crate) fn heard_early(&self) -> bool {
        self.early
            .keys()
            .any(|node| self.peers.get(node).is_none_or(|peer| peer.liveness != Some(Liveness::Dead)))
    }

    /// All endpoint changes that gossip reports and the store has not confirmed.
    pub(crate) fn pending_endpoints(&self) -> impl Iterator<Item = &PendingEndpoint> {
        self.pending.values().flat_map(BTreeMap::values)
    }

    /// How far the store is known to the node that knows least of it, among those that are cut off from it and seem alive.
    pub(crate) fn cut_off_since(&self) -> Option<ClaimEpoch> {
        self.cut_off.first().map(|(since, _)| *since)
    }

    /// The owner of a block, as it is used now.
    pub(crate) fn owner(&self, cidr: IpNetwork) -> Option<&NodeName> {
        self.owners.get(&cidr)
    }

    /// The owner of the block that an address lies in. Blocks do not overlap (P3), so it is the last block that begins at
    /// or before the address, or none.
    pub(crate) fn owner_of_ip(&self, ip: IpAddr) -> Option<&NodeName> {
        let (cidr, owner) = self.owners.range(..=IpNetwork::from(ip)).next_back()?;
        cidr.contains(ip).then_some(owner)
    }

    /// The other node that owns the block of an address, with its number.
    pub(crate) fn remote_owner(&self, own: &NodeName, ip: IpAddr) -> Option<(&NodeName, NodeIndex)> {
        let owner = self.owner_of_ip(ip).filter(|owner| *owner != own)?;
        Some((owner, self.index_of(owner)?))
    }

    /// The underlay address of a node.
    pub(crate) fn tunnel_of(&self, node: &NodeName) -> Option<IpAddr> {
        self.peers.get(node)?.reach.tunnel
    }

    /// Whether a node seems alive; `None` while gossip has never heard of it.
    pub(crate) fn liveness_of(&self, node: &NodeName) -> Option<Liveness> {
        self.peers.get(node)?.liveness
    }

    /// Whether gossip has heard of any node.
    pub(crate) fn hears_any(&self) -> bool {
        self.peers.values().any(|peer| peer.liveness.is_some())
    }

    /// The last facts of a node.
    pub(crate) fn facts_of(&self, node: &NodeName) -> Option<&NodeFacts> {
        self.peers.get(node)?.facts.as_deref()
    }

    /// A node's own address in the pod network.
    pub(crate) fn gateway_of(&self, node: &NodeName) -> Option<IpAddr> {
        self.peers.get(node)?.reach.gateway
    }

    /// The blocks of a node, this one too.
    pub(crate) fn owned_by(&self, node: &NodeName) -> impl Iterator<Item = IpNetwork> {
        self.owners.iter().filter(move |(_, owner)| *owner == node).map(|(cidr, _)| *cidr)
    }

    /// The owners of all blocks, this node among them.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &NodeName> {
        self.owners.values()
    }

    pub(crate) fn owned_blocks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.owners.keys().copied()
    }

    /// Keeps the numbers that the kernel has.
    pub(crate) fn adopt(&mut self, nodes: &BTreeMap<NodeIndex, NodeValue>) {
        self.adopted = nodes.iter().map(|(index, value)| (value.underlay, *index)).collect();
        self.last_index = nodes.keys().map(|index| index.0).max().unwrap_or(0);
    }

    /// Whether gossip counts, or this node's underlay, changed: all nodes and all blocks that gossip reports are looked at
    /// again.
    pub(crate) fn touch_all(&self, cx: &mut Context) {
        cx.changes.nodes.extend(self.peers.keys().cloned());
        cx.changes.blocks.extend(self.reported_blocks.keys().copied());
    }

    /// A node's record came, changed, or went. Returns the facts of a node that an operator has removed.
    pub(crate) fn on_record(
        &mut self,
        cx: &mut Context,
        node: NodeName,
        gone: bool,
    ) -> Option<Arc<NodeFacts>> {
        cx.changes.nodes.insert(node.clone());
        if !gone {
            self.removed.remove(&node);
            return None;
        }
        let facts = self.peers.get_mut(&node)?.facts.take()?;
        self.removed.insert(node.clone(), facts.incarnation);
        for CidrClaim { cidr, epoch } in gossip::claims(&facts) {
            self.forget_block(cidr, epoch, &node);
            cx.changes.blocks.insert(cidr);
        }
        facts.pending.iter().for_each(|change| self.forget_pending(cx, &node, change.ip));
        for (_, _, ip) in self.kept.extract_if(.., |(_, of, _)| *of == node).collect::<Vec<_>>() {
            self.forget_pending(cx, &node, ip);
        }
        self.note_cut_off(cx, &node);
        Some(facts)
    }

    /// How a node is reached; `None` if neither its record nor facts that count tell.
    fn reach(&self, fleet: &Fleet, own_underlay: &[IpAddr], node: &NodeName) -> Option<Reach> {
        let record = fleet.view().nodes().get(node).map(|entry| &entry.record);
        let facts = self
            .facts_of(node)
            // A member whose address has changed may have lost its connection to the store with it: its newer facts count at
            // once, whether the store answers here or not.
            .filter(|facts| {
                fleet.gossip_counts()
                    || record.is_some_and(|record| age(facts) > (record.incarnation, record.moves))
            });
        let (underlay, gateway, incarnation) = match (record, facts) {
            (Some(record), Some(facts)) if age(facts) >= (record.incarnation, record.moves) => {
                (&facts.underlay, facts.gateway, facts.incarnation)
            }
            (Some(record), _) => (&record.underlay, record.gateway, record.incarnation),
            (None, Some(facts)) => (&facts.underlay, facts.gateway, facts.incarnation),
            (None, None) => return None,
        };
        let ours = own_underlay.first()?;
        let tunnel = underlay.iter().copied().find(|ip| ip.is_ipv4() == ours.is_ipv4());
        let addresses = underlay.iter().copied().chain(gateway).collect();
        Some(Reach { tunnel, addresses, gateway, incarnation })
    }

    /// Brings one node up to date: its number, its tunnel address, its own addresses.
    pub(crate) fn refresh_node(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        own_underlay: &[IpAddr],
        node: &NodeName,
    ) {
        if node == fleet.node() {
            return;
        }
        let reach = self.reach(fleet, own_underlay, node);
        let known = reach.is_some();
        let reach = reach.unwrap_or_default();
        let peer = self.peers.entry(node.clone()).or_default();
        let before = std::mem::replace(&mut peer.reach, reach.clone());
        if before != reach {
            cx.changes.addresses.extend(before.addresses.iter().chain(&reach.addresses));
            move_name(&mut self.by_address, &before.addresses, &reach.addresses, node);
            let tunnels = |reach: &Reach| reach.tunnel.into_iter().collect::<BTreeSet<IpAddr>>();
            move_name(&mut self.by_tunnel, &tunnels(&before), &tunnels(&reach), node);
            // Without a tunnel, routes lead to the node itself.
            if before.tunnel != reach.tunnel {
                cx.changes.blocks.extend(self.owned_by(node));
            }
            // Rivals lose an address to this node, or get it back.
            for tunnel in tunnels(&before).union(&tunnels(&reach)) {
                let rivals = self.by_tunnel.get(tunnel).into_iter().flatten();
                cx.changes.nodes.extend(rivals.filter(|rival| *rival != node).cloned());
            }
        }
        self.number(cx, fleet, own_underlay, node, &reach);
        self.gossip_with(cx, fleet, node);
        let unheard = |peer: &Peer| peer.facts.is_none() && peer.liveness.is_none();
        if !known && self.peers.get(node).is_some_and(unheard) {
            self.peers.remove(node);
        }
        cx.changes.liveness.insert(node.clone());
    }
}

/// Which of two statements of a node about its addresses is newer: the greater one.
fn age(facts: &NodeFacts) -> (u64, u64) {
    (facts.incarnation, facts.moves)
}

/// Moves a name from old addresses to new ones.
fn move_name(
    index: &mut BTreeMap<IpAddr, BTreeSet<NodeName>>,
    from: &BTreeSet<IpAddr>,
    to: &BTreeSet<IpAddr>,
    node: &NodeName,
) {
    for ip in from.difference(to) {
        if let Some(names) = index.get_mut(ip) {
            names.remove(node);
            if names.is_empty() {
                index.remove(ip);
            }
        }
    }
    for ip in to.difference(from) {
        index.entry(*ip).or_default().insert(node.clone());
    }
}
