//! What gossip says of other nodes, and how much of it counts.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use identity::NodeName;
use ipnetwork::IpNetwork;
use kvstore_schema::{Revision, record::ClaimEpoch};
use node_facts::{Liveness, NodeFacts};

use super::Peers;
use crate::{Command, context::Context, fleet::Fleet};

/// A claim on a block, as facts report it.
pub(super) struct CidrClaim {
    pub cidr: IpNetwork,
    pub epoch: ClaimEpoch,
}

/// Facts that were accepted, and those of the same node that they replace.
pub(crate) struct NewFacts {
    pub before: Option<Arc<NodeFacts>>,
    pub now: Arc<NodeFacts>,
}

impl Peers {
    pub(crate) fn on_liveness(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        node: NodeName,
        liveness: Liveness,
    ) {
        if node == *fleet.node() {
            return;
        }
        self.peers.entry(node.clone()).or_default().liveness = Some(liveness);
        self.note_cut_off(cx, &node);
        cx.changes.liveness.insert(node);
    }

    /// The facts that were heard before this node knew its fleet's id: now they can be judged.
    pub(crate) fn take_early(&mut self) -> impl Iterator<Item = NodeFacts> + use<> {
        std::mem::take(&mut self.early).into_values()
    }

    /// Takes facts in. `None`: they are not accepted, or cannot be judged yet.
    pub(crate) fn on_facts(&mut self, cx: &mut Context, fleet: &Fleet, facts: NodeFacts) -> Option<NewFacts> {
        let node = facts.node.clone();
        let Some(fleet_id) = fleet.fleet_id() else {
            self.early.insert(node, facts);
            return None;
        };
        if let Err(reason) = self.check_facts(fleet.node(), fleet_id, &facts) {
            cx.counters.gossip_rejected += 1;
            self.rejected.insert(node, reason);
            return None;
        }
        self.rejected.remove(&node);
        let facts = Arc::new(facts);
        let peer = self.peers.entry(node.clone()).or_default();
        let before = peer.facts.replace(facts.clone());
        peer.confirmed.retain(|ip, _| facts.pending.iter().any(|change| change.ip == *ip));

        for CidrClaim { cidr, epoch } in before.iter().flat_map(|facts| claims(facts)) {
            self.forget_block(cidr, epoch, &node);
            cx.changes.blocks.insert(cidr);
        }
        for CidrClaim { cidr, epoch } in claims(&facts) {
            self.reported_blocks.entry(cidr).or_default().insert((epoch, node.clone()));
            cx.changes.blocks.insert(cidr);
        }
        // A change that is not reported any more is recorded, but perhaps not known here: gossip may be ahead of the watch.
        let recorded = recorded(&facts);
        let seen = fleet.seen();
        for change in before.iter().flat_map(|facts| &facts.pending) {
            if seen >= recorded || facts.pending.iter().any(|again| again.ip == change.ip) {
                self.forget_pending(cx, &node, change.ip);
            } else {
                self.kept.insert((recorded, node.clone(), change.ip));
            }
        }
        for change in &facts.pending {
            let news = match change.recorded {
                None => {
                    let confirmed = self.peers.get(&node).and_then(|peer| peer.confirmed.get(&change.ip));
                    confirmed.is_none_or(|sequence| *sequence < change.sequence)
                }
                Some(at) => {
                    let recorded = ClaimEpoch { life: facts.recorded_life, revision: Revision(at) };
                    let news = seen < recorded;
                    if news {
                        self.kept.insert((recorded, node.clone(), change.ip));
                    }
                    news
                }
            };
            if news {
                cx.changes.addresses.insert(change.ip);
                self.pending.entry(change.ip).or_default().insert(node.clone(), change.clone());
            }
        }
        self.note_cut_off(cx, &node);
        cx.changes.nodes.insert(node);
        Some(NewFacts { before, now: facts })
    }

    /// A node may have become cut off from the store, or connected again: this node's confirmed changes may have to be
    /// gossiped again.
    pub(super) fn note_cut_off(&mut self, cx: &mut Context, node: &NodeName) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        let facts = peer.facts.as_ref();
        let facts = facts.filter(|facts| facts.cut_off && peer.liveness != Some(Liveness::Dead));
        let now = facts.map(|facts| recorded(facts));
        let before = std::mem::replace(&mut peer.cut_off, now);
        if before == now {
            return;
        }
        let since = self.cut_off_since();
        if let Some(before) = before {
            self.cut_off.remove(&(before, node.clone()));
        }
        if let Some(now) = now {
            self.cut_off.insert((now, node.clone()));
        }
        cx.changes.cut_off |= self.cut_off_since() != since;
    }

    fn check_facts(&self, own: &NodeName, fleet_id: &str, facts: &NodeFacts) -> Result<(), String> {
        if facts.node == *own {
            return Err("another agent gossips in this node's name".to_owned());
        }
        if fleet_id != facts.fleet_id {
            return Err(format!("its fleet is {:?}, this node's is {fleet_id}", facts.fleet_id));
        }
        if self.removed.get(&facts.node).is_some_and(|incarnation| facts.incarnation <= *incarnation) {
            return Err("the node was removed by an operator".to_owned());
        }
        match self.facts_of(&facts.node) {
            Some(known) if known.incarnation > facts.incarnation => {
                Err(format!("incarnation {} is older than {}", facts.incarnation, known.incarnation))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn forget_block(&mut self, cidr: IpNetwork, epoch: ClaimEpoch, node: &NodeName) {
        if let Some(claims) = self.reported_blocks.get_mut(&cidr) {
            claims.remove(&(epoch, node.clone()));
            if claims.is_empty() {
                self.reported_blocks.remove(&cidr);
            }
        }
    }

    pub(super) fn forget_pending(&mut self, cx: &mut Context, node: &NodeName, ip: IpAddr) {
        cx.changes.addresses.insert(ip);
        if let Some(changes) = self.pending.get_mut(&ip) {
            changes.remove(node);
            if changes.is_empty() {
                self.pending.remove(&ip);
            }
        }
    }

    /// The store is known up to this point: changes that were kept until then are recorded, or came to nothing.
    pub(crate) fn forget_kept(&mut self, cx: &mut Context, seen: ClaimEpoch) {
        while self.kept.first().is_some_and(|(at, ..)| *at <= seen) {
            let Some((_, node, ip)) = self.kept.pop_first() else { return };
            let recorded = self.pending_at(&node, ip).is_some_and(|change| change.recorded.is_some());
            let reported =
                self.facts_of(&node).is_some_and(|facts| facts.pending.iter().any(|change| change.ip == ip));
            if recorded || !reported {
                self.forget_pending(cx, &node, ip);
            }
        }
    }

    /// Changes that are kept until more of the store is known are kept until this point instead.
    pub(crate) fn keep_until(&mut self, until: ClaimEpoch) {
        let kept = std::mem::take(&mut self.kept);
        self.kept = kept.into_iter().map(|(_, node, ip)| (until, node, ip)).collect();
    }

    /// The store has said something of an endpoint: what gossip reported before is confirmed, or out of date.
    pub(crate) fn confirm_pending(&mut self, cx: &mut Context, node: &NodeName, ip: IpAddr) {
        let Some(change) = self.pending_at(node, ip) else { return };
        let (sequence, recorded) = (change.sequence, change.recorded);
        self.forget_pending(cx, node, ip);
        // A change that is reported with its revision is recognised by that.
        if recorded.is_none()
            && let Some(peer) = self.peers.get_mut(node)
        {
            peer.confirmed.insert(ip, sequence);
        }
    }

    /// Gives gossip the address of a node that the store knows.
    pub(super) fn gossip_with(&mut self, cx: &mut Context, fleet: &Fleet, node: &NodeName) {
        let Some(record) = fleet.view().nodes().get(node).map(|entry| &entry.record) else { return };
        let address = self.tunnel_of(node).or(record.underlay.first().copied());
        let address = address.map(|ip| SocketAddr::new(ip, record.gossip_port));
        if let Some(peer) = self.peers.get_mut(node)
            && address != peer.gossiping
            && let Some(address) = address
        {
            if let Some(former) = peer.gossiping.replace(address) {
                cx.command(Command::ForgetPeer(former));
            }
            cx.command(Command::AddPeer(address));
        }
    }
}

/// Up to which point of the store everything of a node is recorded, except its pending changes.
fn recorded(facts: &NodeFacts) -> ClaimEpoch {
    ClaimEpoch { life: facts.recorded_life, revision: Revision(facts.recorded_revision) }
}

pub(super) fn claims(facts: &NodeFacts) -> impl Iterator<Item = CidrClaim> + '_ {
    facts.cidrs.iter().map(|fact| CidrClaim {
        cidr: fact.cidr,
        epoch: ClaimEpoch { life: fact.life, revision: Revision(fact.epoch) },
    })
}
