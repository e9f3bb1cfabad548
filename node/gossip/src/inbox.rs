//! Events that the agent has not read yet: the newest of each node and kind.
//!
//! A slow reader therefore never blocks gossip, and the queue is bounded by the number of nodes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use identity::NodeName;
use node_facts::{Liveness, NodeFacts};

use crate::GossipEvent;

/// Maximum number of rejections kept; more at once come from a member that floods, and the first ones name it.
const MAX_REJECTED: usize = 256;

/// One kind of news about one node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Facts(NodeName),
    Live(NodeName),
    Rejected(String),
}

/// The queued events, oldest slot first. One per supervisor.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    order: VecDeque<Slot>,
    facts: BTreeMap<NodeName, Arc<NodeFacts>>,
    live: BTreeMap<NodeName, Liveness>,
    rejected: BTreeMap<String, String>,
}

impl Inbox {
    /// Adds an event; returns whether it replaced or dropped an unread one.
    pub fn push(&mut self, event: GossipEvent) -> bool {
        let (slot, replaced) = match event {
            GossipEvent::Facts { node, facts } => {
                let replaced = self.facts.insert(node.clone(), facts).is_some();
                (Slot::Facts(node), replaced)
            }
            GossipEvent::Live { node, liveness } => {
                let replaced = self.live.insert(node.clone(), liveness).is_some();
                (Slot::Live(node), replaced)
            }
            GossipEvent::Rejected { node, reason } => {
                if self.rejected.len() >= MAX_REJECTED && !self.rejected.contains_key(&node) {
                    return true;
                }
                let replaced = self.rejected.insert(node.clone(), reason).is_some();
                (Slot::Rejected(node), replaced)
            }
        };
        if !replaced {
            self.order.push_back(slot);
        }
        replaced
    }

    /// Takes the oldest event.
    pub fn pop(&mut self) -> Option<GossipEvent> {
        let event = match self.order.pop_front()? {
            Slot::Facts(node) => {
                let facts = self.facts.remove(&node).expect("a slot in the order has its facts");
                GossipEvent::Facts { node, facts }
            }
            Slot::Live(node) => {
                let liveness = self.live.remove(&node).expect("a slot in the order has its liveness");
                GossipEvent::Live { node, liveness }
            }
            Slot::Rejected(node) => {
                let reason = self.rejected.remove(&node).expect("a slot in the order has its reason");
                GossipEvent::Rejected { node, reason }
            }
        };
        Some(event)
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(node: &str, liveness: Liveness) -> GossipEvent {
        GossipEvent::Live { node: NodeName::new(node).unwrap(), liveness }
    }

    fn rejected(node: &str, reason: &str) -> GossipEvent {
        GossipEvent::Rejected { node: node.to_owned(), reason: reason.to_owned() }
    }

    fn drain(inbox: &mut Inbox) -> Vec<GossipEvent> {
        std::iter::from_fn(|| inbox.pop()).collect()
    }

    #[test]
    fn inbox_keeps_the_newest_of_each_node_and_kind_in_order() {
        let mut inbox = Inbox::default();
        let pushed = [
            live("a", Liveness::Alive),
            live("b", Liveness::Alive),
            rejected("a", "one"),
            live("a", Liveness::Dead),
            rejected("a", "two"),
        ];
        assert_eq!(pushed.map(|event| inbox.push(event)), [false, false, false, true, true]);
        assert_eq!(
            drain(&mut inbox),
            [live("a", Liveness::Dead), live("b", Liveness::Alive), rejected("a", "two")]
        );
        assert!(!inbox.push(live("a", Liveness::Alive)), "a new slot once the old one was read");
    }

    #[test]
    fn inbox_bounds_rejections() {
        let mut inbox = Inbox::default();
        for number in 0..2 * MAX_REJECTED {
            inbox.push(rejected(&format!("n{number}"), "flood"));
        }
        assert_eq!(drain(&mut inbox).len(), MAX_REJECTED);
    }
}
