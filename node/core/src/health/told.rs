//! What is told of backends: what this node tells by gossip, and what others do.

use std::net::{IpAddr, Ipv4Addr};

use identity::NodeName;
use ipnetwork::IpNetwork;
use node_facts::{MAX_UNWELL, NodeFacts, Unwell};

use super::CheckKey;
use crate::node::Node;

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

    /// Takes in what a node says now of backends, where it spoke of others before.
    pub(crate) fn hear_of_backends(&mut self, before: Option<&NodeFacts>, facts: &NodeFacts) {
        let node = &facts.node;
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
