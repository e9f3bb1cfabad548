//! The other nodes: their addresses, blocks and numbers, from the store and, while it is away, from gossip.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use datapath_abi::MAX_NODES;
use datapath_plan::{NodeIndex, NodeValue};
use identity::NodeName;
use ipnetwork::IpNetwork;
use kvstore_schema::record::{ClaimState, NodeRecord};
use node_facts::{NodeFacts, PendingEndpoint};

use crate::{Command, GossipUpdate, NodeView, node::Node};

/// Where a node can be reached, as it is used now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Reach {
    /// Where tunnel packets go to and come from.
    tunnel: Option<IpAddr>,
    /// All addresses that are the node's own: gateway and underlay.
    addresses: BTreeSet<IpAddr>,
    /// Of the agent: the later one wins an address that two nodes say is theirs.
    incarnation: u64,
}

/// One other node. Lives as long as the store or gossip tells of it.
#[derive(Debug, Default)]
struct Peer {
    index: Option<NodeIndex>,
    reach: Reach,
    facts: Option<Arc<NodeFacts>>,
    alive: Option<bool>,
    /// The gossip address that the shell has been told.
    gossiping: Option<SocketAddr>,
    /// Unconfirmed changes that the store has since confirmed, by the sequence of the last one.
    confirmed: BTreeMap<IpAddr, u64>,
}

/// All of them, and what belongs to whom. One per node.
#[derive(Debug, Default)]
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
    told_cidrs: BTreeMap<IpNetwork, BTreeSet<(i64, NodeName)>>,
    /// Who owns each block, as it is used now; this node too.
    owners: BTreeMap<IpNetwork, NodeName>,
    /// Unconfirmed endpoint changes by gossip.
    pending: BTreeMap<IpAddr, BTreeMap<NodeName, PendingEndpoint>>,
}

impl Peers {
    pub(crate) fn index_of(&self, node: &NodeName) -> Option<NodeIndex> {
        self.peers.get(node)?.index
    }

    pub(crate) fn name_of(&self, index: NodeIndex) -> Option<&NodeName> {
        self.by_index.get(&index)
    }

    /// The number of the node whose own address this is.
    pub(crate) fn node_at(&self, ip: IpAddr) -> Option<NodeIndex> {
        self.by_address.get(&ip)?.iter().find_map(|node| self.index_of(node))
    }

    pub(crate) fn pending_at(&self, node: &NodeName, ip: IpAddr) -> Option<&PendingEndpoint> {
        self.pending.get(&ip)?.get(node)
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
    pub(crate) fn on_gossip(&mut self, update: GossipUpdate) {
        match update {
            GossipUpdate::Facts(facts) => self.on_facts(facts),
            GossipUpdate::Live { node, alive } if node != self.config.node => {
                self.peers.peers.entry(node).or_default().alive = Some(alive);
            }
            GossipUpdate::Live { .. } => {}
        }
    }

    fn on_facts(&mut self, facts: NodeFacts) {
        let node = facts.node.clone();
        if let Err(reason) = self.check_facts(&facts) {
            self.counters.gossip_rejected += 1;
            self.desired.rejected_facts.insert(node, reason);
            return;
        }
        self.desired.rejected_facts.remove(&node);
        let peer = self.peers.peers.entry(node.clone()).or_default();
        let before = peer.facts.replace(Arc::new(facts.clone()));
        peer.confirmed.retain(|ip, _| facts.pending.iter().any(|change| change.ip == *ip));
        let confirmed = peer.confirmed.clone();

        for CidrOf(cidr, epoch) in before.iter().flat_map(|facts| cidrs(facts)) {
            if let Some(claims) = self.peers.told_cidrs.get_mut(&cidr) {
                claims.remove(&(epoch, node.clone()));
                if claims.is_empty() {
                    self.peers.told_cidrs.remove(&cidr);
                }
            }
            self.desired.prefixes.insert(cidr);
        }
        for CidrOf(cidr, epoch) in cidrs(&facts) {
            self.peers.told_cidrs.entry(cidr).or_default().insert((epoch, node.clone()));
            self.desired.prefixes.insert(cidr);
        }
        for change in before.iter().flat_map(|facts| &facts.pending) {
            self.forget_pending(&node, change.ip);
        }
        for change in facts.pending {
            if confirmed.get(&change.ip).is_none_or(|sequence| *sequence < change.sequence) {
                self.desired.addresses.insert(change.ip);
                self.peers.pending.entry(change.ip).or_default().insert(node.clone(), change);
            }
        }
        self.desired.nodes.insert(node);
    }

    fn check_facts(&self, facts: &NodeFacts) -> Result<(), String> {
        if facts.node == self.config.node {
            return Err("another agent gossips in this node's name".to_owned());
        }
        match &self.membership.fleet_id {
            // Before we know our own, we cannot tell: gossip repeats itself.
            None => return Err("this node does not know its fleet's id yet".to_owned()),
            Some(ours) if *ours != facts.fleet_id => {
                return Err(format!("its fleet is {:?}, this node's is {ours}", facts.fleet_id));
            }
            Some(_) => {}
        }
        if self.peers.removed.get(&facts.node).is_some_and(|incarnation| facts.incarnation <= *incarnation) {
            return Err("the node was removed by an operator".to_owned());
        }
        let known = self.peers.peers.get(&facts.node).and_then(|peer| peer.facts.as_ref());
        match known {
            Some(known) if known.incarnation > facts.incarnation => {
                Err(format!("incarnation {} is older than {}", facts.incarnation, known.incarnation))
            }
            _ => Ok(()),
        }
    }

    fn forget_pending(&mut self, node: &NodeName, ip: IpAddr) {
        self.desired.addresses.insert(ip);
        if let Some(changes) = self.peers.pending.get_mut(&ip) {
            changes.remove(node);
            if changes.is_empty() {
                self.peers.pending.remove(&ip);
            }
        }
    }

    /// The store has said something of an endpoint: what gossip said before is confirmed, or out of date.
    pub(crate) fn confirm_pending(&mut self, node: &NodeName, ip: IpAddr) {
        let Some(sequence) = self.peers.pending_at(node, ip).map(|change| change.sequence) else { return };
        self.forget_pending(node, ip);
        if let Some(peer) = self.peers.peers.get_mut(node) {
            peer.confirmed.insert(ip, sequence);
        }
    }

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
            }
        } else {
            self.peers.removed.remove(&node);
        }
        self.desired.nodes.insert(node);
    }

    /// Whether what gossip says of nodes and blocks counts: only while the store says nothing.
    fn gossip_counts(&self) -> bool {
        !self.store.connected
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
            .filter(|_| self.gossip_counts());
        let (underlay, gateway, incarnation) = match (record, facts) {
            (Some(record), Some(facts)) if facts.incarnation >= record.incarnation => {
                (&facts.underlay, facts.gateway, facts.incarnation)
            }
            (Some(record), _) => (&record.underlay, record.gateway, record.incarnation),
            (None, Some(facts)) => (&facts.underlay, facts.gateway, facts.incarnation),
            (None, None) => return None,
        };
        let ours = self.underlay.addresses.first()?;
        let tunnel = underlay.iter().copied().find(|ip| ip.is_ipv4() == ours.is_ipv4());
        let addresses = underlay.iter().copied().chain(gateway).collect();
        Some(Reach { tunnel, addresses, incarnation })
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
            && self.peers.peers.get(node).is_some_and(|peer| peer.facts.is_none() && peer.alive.is_none())
        {
            self.peers.peers.remove(node);
        }
    }

    /// Gives a node its number, or takes it.
    fn number(&mut self, node: &NodeName, reach: &Reach) {
        let tunnel = reach.tunnel.filter(|tunnel| self.wins(node, *tunnel));
        let had = self.peers.index_of(node);
        let index = match (tunnel, had) {
            (Some(_), Some(index)) => Some(index),
            (Some(tunnel), None) => self.free_index(tunnel),
            (None, _) => None,
        };
        if let Some(index) = had.filter(|had| Some(*had) != index) {
            self.peers.by_index.remove(&index);
            self.reconciler.set_node(index, None);
        }
        if let (Some(index), Some(underlay)) = (index, tunnel) {
            self.peers.by_index.insert(index, node.clone());
            self.reconciler.set_node(index, Some(NodeValue { underlay }));
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
    /// that it is theirs the agent started last.
    fn wins(&self, node: &NodeName, tunnel: IpAddr) -> bool {
        let rank =
            |node: &NodeName| self.peers.peers.get(node).map(|peer| (peer.reach.incarnation, node.clone()));
        let best = self.peers.by_tunnel.get(&tunnel).into_iter().flatten().filter_map(rank).max();
        !self.underlay.addresses.contains(&tunnel) && best.is_some_and(|(_, best)| best == *node)
    }

    /// The number that the kernel has for an address, or the next one that nothing refers to.
    fn free_index(&mut self, tunnel: IpAddr) -> Option<NodeIndex> {
        if let Some(index) = self.peers.adopted.remove(&tunnel) {
            return Some(index);
        }
        let applied = &self.reconciler.applied().nodes;
        let free = (0..MAX_NODES).find_map(|_| {
            self.peers.last_index = self.peers.last_index % (MAX_NODES - 1) + 1;
            let index = NodeIndex(self.peers.last_index.max(NodeIndex::SELF.0 + 1));
            self.peers.last_index = index.0;
            (!applied.contains_key(&index) && !self.peers.by_index.contains_key(&index)).then_some(index)
        });
        if free.is_none() {
            self.error(format!("node at {tunnel} has no room: a fleet has {MAX_NODES} nodes at the most"));
        }
        free
    }

    /// Everything behind a node's number is to be written anew.
    fn touch_node(&mut self, node: &NodeName) {
        let cidrs = self.peers.owners.iter().filter(|(_, owner)| *owner == node).map(|(cidr, _)| *cidr);
        self.desired.prefixes.extend(cidrs);
        for ip in self.view.endpoints().get(node).into_iter().flat_map(BTreeMap::keys) {
            self.desired.addresses.insert(*ip);
        }
        let facts = self.peers.peers.get(node).and_then(|peer| peer.facts.clone());
        self.desired.addresses.extend(facts.iter().flat_map(|facts| &facts.pending).map(|change| change.ip));
    }

    /// Lets gossip find a node that the store knows.
    fn gossip_with(&mut self, node: &NodeName) {
        let Some(record) = self.view.nodes().get(node).map(|entry| &entry.record) else { return };
        let address = self
            .peers
            .peers
            .get(node)
            .and_then(|peer| peer.reach.tunnel)
            .or(record.underlay.first().copied());
        let address = address.map(|ip| SocketAddr::new(ip, record.gossip_port));
        if let Some(peer) = self.peers.peers.get_mut(node)
            && address != peer.gossiping
            && let Some(address) = address
        {
            peer.gossiping = Some(address);
            self.out.push(Command::AddPeer(address));
        }
    }

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
        // Whose records count inside has changed.
        let last = cidr.broadcast();
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
        if let Some(claim) = self.view.cidrs().get(&cidr) {
            return (claim.record.state == ClaimState::Live).then(|| claim.record.node.clone());
        }
        if self.ipam.own.iter().any(|(own, _)| *own == cidr) {
            return Some(self.config.node.clone());
        }
        // A fact never overrides a claim that the store has confirmed, not in part either.
        let overlaps = |ip| self.view.cidr_of_ip(ip).is_some();
        if !self.gossip_counts() || overlaps(cidr.network()) || overlaps(cidr.broadcast()) {
            return None;
        }
        self.peers.told_cidrs.get(&cidr)?.last().map(|(_, node)| node.clone())
    }

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
            gossip_alive: if this { None } else { peer.and_then(|peer| peer.alive) },
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
            Some((node, format!("its underlay address {tunnel} is also that of a node whose agent started later, or of this node")))
        })
    }
}

struct CidrOf(IpNetwork, i64);

fn cidrs(facts: &NodeFacts) -> impl Iterator<Item = CidrOf> + '_ {
    facts.cidrs.iter().map(|fact| CidrOf(fact.cidr, fact.epoch))
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
