//! The other nodes: their addresses, blocks and numbers, from the store and, while it is away, from gossip.

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
use kvstore_schema::{Revision, record::ClaimEpoch};

use node_facts::{Liveness, NodeFacts, PendingEndpoint};
use serde::{Deserialize, Serialize};

use crate::node::Node;

/// Where a node can be reached, as it is used now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Reach {
    /// Where tunnel packets go to and come from.
    tunnel: Option<IpAddr>,
    /// All addresses that are the node's own: gateway and underlay.
    addresses: BTreeSet<IpAddr>,
    /// Its own address in the pod network.
    gateway: Option<IpAddr>,
    /// Of the agent: the later one wins an address that two nodes say is theirs.
    incarnation: u64,
}

/// One other node. Lives as long as the store or gossip tells of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Peer {
    index: Option<NodeIndex>,
    reach: Reach,
    facts: Option<Arc<NodeFacts>>,
    liveness: Option<Liveness>,
    /// The gossip address that the shell has been told.
    gossiping: Option<SocketAddr>,
    /// How far it knows the store, while it is cut off from it.
    cut_off: Option<ClaimEpoch>,
    /// Unconfirmed changes that the store has since confirmed, by the sequence of the last one.
    confirmed: BTreeMap<IpAddr, u64>,
}

/// All of them, and what belongs to whom. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Peers {
    peers: BTreeMap<NodeName, Peer>,
    /// Nodes that an operator removed: facts of the agents that ran then do not count.
    removed: BTreeMap<NodeName, u64>,
    by_index: BTreeMap<NodeIndex, NodeName>,
    /// Numbers that the kernel had at the start, by underlay address.
    adopted: BTreeMap<IpAddr, NodeIndex>,
    last_index: u32,
    /// Whose own address it is; more than one for a moment, or by mistake.
    by_address: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    by_tunnel: BTreeMap<IpAddr, BTreeSet<NodeName>>,
    /// Blocks by gossip: who claims them, by epoch.
    told_cidrs: BTreeMap<IpNetwork, BTreeSet<(ClaimEpoch, NodeName)>>,
    /// Who owns each block, as it is used now; this node too.
    owners: BTreeMap<IpNetwork, NodeName>,
    /// Unconfirmed endpoint changes by gossip.
    pending: BTreeMap<IpAddr, BTreeMap<NodeName, PendingEndpoint>>,
    /// Changes that gossip tells no more, until the store is known up to the revision that has them.
    kept: BTreeSet<(ClaimEpoch, NodeName, IpAddr)>,
    /// Who is cut off from the store, and how far they know it.
    cut_off: BTreeSet<(ClaimEpoch, NodeName)>,
    /// What nodes said before this one knew its fleet's id, the newest of each: gossip says a thing once.
    early: BTreeMap<NodeName, NodeFacts>,
}

impl Peers {
    pub(crate) fn index_of(&self, node: &NodeName) -> Option<NodeIndex> {
        self.peers.get(node)?.index
    }

    pub(crate) fn name_of(&self, index: NodeIndex) -> Option<&NodeName> {
        self.by_index.get(&index)
    }

    /// The number of the node whose own address this is. One in another's block is not: a node cannot take a
    /// workload's address by saying that it is its own (P7).
    pub(crate) fn node_at(&self, ip: IpAddr) -> Option<NodeIndex> {
        let owner = self.owner_of_ip(ip);
        let names = self.by_address.get(&ip)?.iter();
        names.filter(|node| owner.is_none_or(|owner| owner == *node)).find_map(|node| self.index_of(node))
    }

    pub(crate) fn pending_at(&self, node: &NodeName, ip: IpAddr) -> Option<&PendingEndpoint> {
        self.pending.get(&ip)?.get(node)
    }

    /// Whether a member that seems alive has told of a fleet that this node does not know.
    pub(crate) fn heard_early(&self) -> bool {
        self.early
            .keys()
            .any(|node| self.peers.get(node).is_none_or(|peer| peer.liveness != Some(Liveness::Dead)))
    }

    /// All endpoint changes that gossip tells of and the store has not confirmed.
    pub(crate) fn told_endpoints(&self) -> impl Iterator<Item = &PendingEndpoint> {
        self.pending.values().flat_map(BTreeMap::values)
    }

    /// How far the one that knows least of the store knows it, of those that are cut off from it and seem alive.
    pub(crate) fn cut_off_since(&self) -> Option<ClaimEpoch> {
        self.cut_off.first().map(|(since, _)| *since)
    }

    /// The owner of a block, as it is used now.
    pub(crate) fn owner(&self, cidr: IpNetwork) -> Option<&NodeName> {
        self.owners.get(&cidr)
    }

    /// The owner of the block that an address lies in. Blocks do not overlap (P3), so it is the last one that
    /// begins at or before the address, or none.
    pub(crate) fn owner_of_ip(&self, ip: IpAddr) -> Option<&NodeName> {
        let (cidr, owner) = self.owners.range(..=IpNetwork::from(ip)).next_back()?;
        cidr.contains(ip).then_some(owner)
    }

    /// Where a node's packets come from and go to.
    pub(crate) fn tunnel_of(&self, node: &NodeName) -> Option<IpAddr> {
        self.peers.get(node)?.reach.tunnel
    }

    /// Whether a node seems alive; `None` while gossip has never heard of it.
    pub(crate) fn liveness_of(&self, node: &NodeName) -> Option<Liveness> {
        self.peers.get(node)?.liveness
    }

    /// Whether gossip has heard of anybody.
    pub(crate) fn hears_anybody(&self) -> bool {
        self.peers.values().any(|peer| peer.liveness.is_some())
    }

    /// What a node has said last.
    pub(crate) fn facts_of(&self, node: &NodeName) -> Option<&NodeFacts> {
        self.peers.get(node)?.facts.as_deref()
    }

    /// A node's own address in the pod network.
    pub(crate) fn gateway_of(&self, node: &NodeName) -> Option<IpAddr> {
        self.peers.get(node)?.reach.gateway
    }

    /// The blocks of a node, this one too.
    pub(crate) fn owned_by(&self, node: &NodeName) -> Vec<IpNetwork> {
        self.owners.iter().filter(|(_, owner)| *owner == node).map(|(cidr, _)| *cidr).collect()
    }

    /// The owners of all blocks, this node among them.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &NodeName> {
        self.owners.values()
    }

    pub(crate) fn owned_cidrs(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.owners.keys().copied()
    }

    /// Keeps the numbers that the kernel has.
    pub(crate) fn adopt(&mut self, nodes: &BTreeMap<NodeIndex, NodeValue>) {
        self.adopted = nodes.iter().map(|(index, value)| (value.underlay, *index)).collect();
        self.last_index = nodes.keys().map(|index| index.0).max().unwrap_or(0);
    }
}

impl Node {
    /// A node's record came, changed, or went.
    pub(crate) fn on_peer_record(&mut self, node: NodeName, gone: bool) {
        if gone {
            if let Some(facts) = self.peers.peers.get_mut(&node).and_then(|peer| peer.facts.take()) {
                self.peers.removed.insert(node.clone(), facts.incarnation);
                for CidrOf(cidr, epoch) in cidrs(&facts) {
                    if let Some(claims) = self.peers.told_cidrs.get_mut(&cidr) {
                        claims.remove(&(epoch, node.clone()));
                    }
                    self.desired.prefixes.insert(cidr);
                }
                facts.pending.iter().for_each(|change| self.forget_pending(&node, change.ip));
                for (_, _, ip) in self.peers.kept.extract_if(.., |(_, of, _)| *of == node).collect::<Vec<_>>()
                {
                    self.forget_pending(&node, ip);
                }
                self.note_cut_off(&node);
                self.forget_told_of_backends(&facts);
            }
        } else {
            self.peers.removed.remove(&node);
        }
        self.note_zone(&node);
        self.desired.nodes.insert(node);
    }

    pub(crate) fn touch_all_peers(&mut self) {
        self.desired.nodes.extend(self.peers.peers.keys().cloned());
        self.desired.prefixes.extend(self.peers.told_cidrs.keys().copied());
    }

    /// How a node is reached; `None` when nobody who counts tells of it.
    fn reach(&self, node: &NodeName) -> Option<Reach> {
        let record = self.view.nodes().get(node).map(|entry| &entry.record);
        let facts = self
            .peers
            .peers
            .get(node)
            .and_then(|peer| peer.facts.as_deref())
            // A member whose address has changed may have lost its way to the store with it: what it says since counts at
            // once, whether the store answers here or not.
            .filter(|facts| {
                self.gossip_counts()
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
        let ours = self.underlay.addresses.first()?;
        let tunnel = underlay.iter().copied().find(|ip| ip.is_ipv4() == ours.is_ipv4());
        let addresses = underlay.iter().copied().chain(gateway).collect();
        Some(Reach { tunnel, addresses, gateway, incarnation })
    }

    /// Brings one node up to date: its number, its tunnel address, its own addresses.
    pub(crate) fn refresh_node(&mut self, node: &NodeName) {
        if *node == self.config.node {
            return;
        }
        let reach = self.reach(node);
        let known = reach.is_some();
        let reach = reach.unwrap_or_default();
        let peer = self.peers.peers.entry(node.clone()).or_default();
        let before = std::mem::replace(&mut peer.reach, reach.clone());
        if before != reach {
            for ip in before.addresses.iter().chain(&reach.addresses) {
                self.desired.addresses.insert(*ip);
            }
            move_name(&mut self.peers.by_address, &before.addresses, &reach.addresses, node);
            let tunnels = |reach: &Reach| reach.tunnel.into_iter().collect::<BTreeSet<IpAddr>>();
            move_name(&mut self.peers.by_tunnel, &tunnels(&before), &tunnels(&reach), node);
            // Without a tunnel, routes lead to the node itself.
            if before.tunnel != reach.tunnel {
                let cidrs =
                    self.peers.owners.iter().filter(|(_, owner)| *owner == node).map(|(cidr, _)| *cidr);
                self.desired.prefixes.extend(cidrs);
            }
            // Who lost an address to this node, or gets it back now.
            for tunnel in tunnels(&before).union(&tunnels(&reach)) {
                for rival in
                    self.peers.by_tunnel.get(tunnel).into_iter().flatten().filter(|rival| *rival != node)
                {
                    self.desired.nodes.insert(rival.clone());
                }
            }
        }
        self.number(node, &reach);
        self.gossip_with(node);
        if !known
            && self.peers.peers.get(node).is_some_and(|peer| peer.facts.is_none() && peer.liveness.is_none())
        {
            self.peers.peers.remove(node);
        }
        self.judge_node(node);
    }
}

/// Which of two things that a node said of its addresses is newer: the greater one.
fn age(facts: &NodeFacts) -> (u64, u64) {
    (facts.incarnation, facts.moves)
}

struct CidrOf(IpNetwork, ClaimEpoch);

fn cidrs(facts: &NodeFacts) -> impl Iterator<Item = CidrOf> + '_ {
    facts
        .cidrs
        .iter()
        .map(|fact| CidrOf(fact.cidr, ClaimEpoch { life: fact.life, revision: Revision(fact.epoch) }))
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

/// The prefix of a length that an address lies in.
pub(crate) fn network(ip: IpAddr, length: u8) -> IpNetwork {
    let whole = IpNetwork::new(ip, length).expect("the length is one of the family's");
    IpNetwork::new(whole.network(), length).expect("the length is one of the family's")
}
