//! What is told of backends: what this node tells by gossip, and what others do.

use std::net::{IpAddr, Ipv4Addr};

use identity::{NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::{Revision, record::ClaimEpoch};
use node_facts::{Liveness, MAX_UNWELL, NodeFacts, Unwell};

use super::{CheckKey, checks::Due};
use crate::{limits::MEMBER_HELD, node::Node};

impl Node {
    /// The backends that this node has found not to be well, for gossip; as many as gossip takes.
    pub(crate) fn unwell_facts(&self) -> Vec<Unwell> {
        let unwell = self.health.unwell.iter().take(MAX_UNWELL);
        let fact = |key: &CheckKey| {
            let why = self.health.checks.get(key)?.unwell()?.to_owned();
            Some(Unwell { service: key.service.clone(), address: key.address.into(), port: key.port, why })
        };
        unwell.filter_map(fact).collect()
    }

    /// Whether there is more to tell than gossip takes.
    pub(crate) fn untold_warning(&self) -> Option<String> {
        let count = self.health.unwell.len();
        (count > MAX_UNWELL).then(|| {
            format!(
                "{count} backends that this node checks are not well, of which it can tell the other nodes {MAX_UNWELL}: the others \
                 count as well there"
            )
        })
    }

    /// A member of a checked service is new on another node. Its record may come before the facts that say how it is: it
    /// waits for these, if there is anybody to tell them.
    pub(super) fn hold_member(&mut self, service: &ServiceName, address: Ipv4Addr) {
        let Some(owner) = self.peers.owner_of_ip(address.into()).cloned() else { return };
        let speaks = self.peers.liveness_of(&owner) == Some(Liveness::Alive);
        if owner == self.config.node || !speaks || !self.is_checked(service) || self.tells_of(&owner, address)
        {
            return;
        }
        if self.health.held.insert(address) {
            self.health.due.insert((self.now.monotonic + MEMBER_HELD, Due::Held(address)));
        }
    }

    /// A member is held back no longer.
    pub(super) fn release_member(&mut self, address: Ipv4Addr) {
        if self.health.held.remove(&address) {
            self.health.touch_range(address, address);
        }
    }

    /// Whether a node's facts are as new as what is known of its endpoint.
    fn tells_of(&self, node: &NodeName, address: Ipv4Addr) -> bool {
        let Some(facts) = self.peers.facts_of(node) else { return false };
        let record = self.view.endpoints().get(node).and_then(|records| records.get(&IpAddr::from(address)));
        let recorded = ClaimEpoch { life: facts.recorded_life, revision: Revision(facts.recorded_revision) };
        let modified =
            record.map(|entry| ClaimEpoch { life: self.view.life().number, revision: entry.modified });
        facts.pending.iter().any(|change| change.ip == IpAddr::from(address))
            || modified.is_some_and(|modified| modified <= recorded)
    }

    /// Takes in what a node says now of backends, where it spoke of others before.
    pub(crate) fn hear_of_backends(&mut self, before: Option<&NodeFacts>, facts: &NodeFacts) {
        let node = &facts.node;
        let told: Vec<Ipv4Addr> = self
            .health
            .held
            .iter()
            .filter(|address| self.peers.owner_of_ip(IpAddr::from(**address)) == Some(node))
            .filter(|address| self.tells_of(node, **address))
            .copied()
            .collect();
        told.into_iter().for_each(|address| self.release_member(address));
        if before.is_none() {
            // Until now what was known of its backends before this agent's start stood.
            self.touch_members_of(node);
            let outside = self.health.outside.iter().filter(|(_, outside)| outside.checkers.contains(node));
            let outside = outside.flat_map(|((address, _), outside)| {
                outside.services.iter().map(|service| (service.clone(), *address))
            });
            self.health.touched.extend(outside);
        }
        let before = before.map(|facts| &facts.unwell[..]).unwrap_or_default();
        if before == facts.unwell {
            return;
        }
        for fact in before {
            let Some(key) = key(fact) else { continue };
            if let Some(told) = self.health.told.get_mut(&key) {
                told.remove(node);
                if told.is_empty() {
                    self.health.told.remove(&key);
                }
            }
            self.health.touch(&key.service, key.address);
        }
        for fact in &facts.unwell {
            let Some(key) = key(fact) else { continue };
            self.health.touch(&key.service, key.address);
            self.health.told.entry(key).or_default().insert(node.clone(), fact.why.clone());
        }
    }

    /// An operator has removed a node: what it told counts no more.
    pub(crate) fn forget_told_of_backends(&mut self, facts: &NodeFacts) {
        let silent = NodeFacts { unwell: Vec::new(), ..facts.clone() };
        self.hear_of_backends(Some(facts), &silent);
    }

    /// Looks again at all members on a node.
    pub(super) fn touch_members_of(&mut self, node: &NodeName) {
        self.peers.owned_by(node).into_iter().for_each(|cidr| self.touch_members_in(cidr));
    }

    /// Looks again at all members in a block.
    pub(crate) fn touch_members_in(&mut self, cidr: IpNetwork) {
        if let (IpAddr::V4(first), IpAddr::V4(last)) = (cidr.network(), cidr.broadcast()) {
            self.health.touch_range(first, last);
        }
    }

    /// Whether a node has told or answered anything since this agent's start.
    pub(super) fn has_answered(&self, node: &NodeName) -> bool {
        *node == self.config.node
            || self.peers.facts_of(node).is_some()
            || self.health.silent.get(node).is_some_and(|pulse| pulse.answered)
    }
}

fn key(fact: &Unwell) -> Option<CheckKey> {
    let address: Ipv4Addr = super::v4(fact.address)?;
    Some(CheckKey { service: fact.service.clone(), address, port: fact.port })
}
