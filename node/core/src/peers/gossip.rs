//! What gossip says of other nodes, and how much of it counts.

use std::{net::SocketAddr, sync::Arc};

use identity::NodeName;
use kvstore_schema::{Revision, record::ClaimEpoch};
use node_facts::{Liveness, NodeFacts};
use std::net::IpAddr;

use super::{CidrOf, cidrs};
use crate::{Command, GossipUpdate, node::Node};

impl Node {
    pub(crate) fn on_gossip(&mut self, update: GossipUpdate) {
        match update {
            GossipUpdate::Facts(facts) => self.on_facts(*facts),
            GossipUpdate::Live { node, liveness } if node != self.config.node => {
                self.peers.peers.entry(node.clone()).or_default().liveness = Some(liveness);
                self.note_cut_off(&node);
                self.judge_node(&node);
            }
            GossipUpdate::Live { .. } => {}
        }
    }

    /// The fleet's id is known now: what was said before can be judged.
    pub(crate) fn hear_early_facts(&mut self) {
        for facts in std::mem::take(&mut self.peers.early).into_values() {
            self.on_facts(facts);
        }
    }

    fn on_facts(&mut self, facts: NodeFacts) {
        let node = facts.node.clone();
        if self.membership.fleet_id.is_none() {
            self.peers.early.insert(node, facts);
            return;
        }
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
        self.hear_of_backends(before.as_deref(), &facts);

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
        // What is told no more is recorded, but perhaps not to our knowledge: gossip may be ahead of the watch.
        let recorded = ClaimEpoch { life: facts.recorded_life, revision: Revision(facts.recorded_revision) };
        let seen = self.seen() >= recorded;
        for change in before.iter().flat_map(|facts| &facts.pending) {
            if seen || facts.pending.iter().any(|again| again.ip == change.ip) {
                self.forget_pending(&node, change.ip);
            } else {
                self.peers.kept.insert((recorded, node.clone(), change.ip));
            }
        }
        for change in facts.pending {
            let news = match change.recorded {
                None => confirmed.get(&change.ip).is_none_or(|sequence| *sequence < change.sequence),
                Some(at) => {
                    let recorded = ClaimEpoch { life: facts.recorded_life, revision: Revision(at) };
                    let news = self.seen() < recorded;
                    if news {
                        self.peers.kept.insert((recorded, node.clone(), change.ip));
                    }
                    news
                }
            };
            if news {
                self.desired.addresses.insert(change.ip);
                self.peers.pending.entry(change.ip).or_default().insert(node.clone(), change);
            }
        }
        self.note_cut_off(&node);
        self.desired.nodes.insert(node);
    }

    /// A node may be cut off from the store now, or not any more; then there is something to be told again, or not.
    pub(super) fn note_cut_off(&mut self, node: &NodeName) {
        let Some(peer) = self.peers.peers.get_mut(node) else { return };
        let facts =
            peer.facts.as_ref().filter(|facts| facts.cut_off && peer.liveness != Some(Liveness::Dead));
        let now = facts.map(|facts| ClaimEpoch {
            life: facts.recorded_life,
            revision: Revision(facts.recorded_revision),
        });
        let before = std::mem::replace(&mut peer.cut_off, now);
        if before == now {
            return;
        }
        let since = self.peers.cut_off_since();
        if let Some(before) = before {
            self.peers.cut_off.remove(&(before, node.clone()));
        }
        if let Some(now) = now {
            self.peers.cut_off.insert((now, node.clone()));
        }
        if self.peers.cut_off_since() != since {
            self.tell_again();
        }
    }

    fn check_facts(&self, facts: &NodeFacts) -> Result<(), String> {
        if facts.node == self.config.node {
            return Err("another agent gossips in this node's name".to_owned());
        }
        if let Some(ours) = &self.membership.fleet_id
            && *ours != facts.fleet_id
        {
            return Err(format!("its fleet is {:?}, this node's is {ours}", facts.fleet_id));
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

    pub(super) fn forget_pending(&mut self, node: &NodeName, ip: IpAddr) {
        self.desired.addresses.insert(ip);
        if let Some(changes) = self.peers.pending.get_mut(&ip) {
            changes.remove(node);
            if changes.is_empty() {
                self.peers.pending.remove(&ip);
            }
        }
    }

    /// The store is known up to a later revision: what was kept until then is in the records, or came to nothing.
    pub(crate) fn forget_kept(&mut self) {
        let seen = self.seen();
        while self.peers.kept.first().is_some_and(|(at, ..)| *at <= seen) {
            let Some((_, node, ip)) = self.peers.kept.pop_first() else { return };
            let told = self.peers.pending_at(&node, ip);
            let facts = self.peers.peers.get(&node).and_then(|peer| peer.facts.as_ref());
            let recorded = told.and_then(|change| change.recorded).is_some();
            if recorded || !facts.is_some_and(|facts| facts.pending.iter().any(|change| change.ip == ip)) {
                self.forget_pending(&node, ip);
            }
        }
    }

    /// How much of the store this node has seen.
    pub(crate) fn seen(&self) -> ClaimEpoch {
        ClaimEpoch { life: self.view.life().number, revision: self.view.revision() }
    }

    /// What is kept until more of the store is seen is kept until this instead.
    pub(crate) fn keep_told(&mut self, until: ClaimEpoch) {
        let kept = std::mem::take(&mut self.peers.kept);
        self.peers.kept = kept.into_iter().map(|(_, node, ip)| (until, node, ip)).collect();
    }

    /// The store has said something of an endpoint: what gossip said before is confirmed, or out of date.
    pub(crate) fn confirm_pending(&mut self, node: &NodeName, ip: IpAddr) {
        let Some(told) = self.peers.pending_at(node, ip) else { return };
        let (sequence, recorded) = (told.sequence, told.recorded);
        self.forget_pending(node, ip);
        // One that is told with its revision is known by that.
        if recorded.is_none()
            && let Some(peer) = self.peers.peers.get_mut(node)
        {
            peer.confirmed.insert(ip, sequence);
        }
    }

    /// Whether what gossip says of nodes and blocks counts: only while the store says nothing, or not all.
    pub(super) fn gossip_counts(&self) -> bool {
        !self.store.connected || !self.view.is_complete()
    }

    /// Lets gossip find a node that the store knows.
    pub(super) fn gossip_with(&mut self, node: &NodeName) {
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
            let former = peer.gossiping.replace(address);
            self.out.extend(former.map(Command::ForgetPeer));
            self.out.push(Command::AddPeer(address));
        }
    }
}
