//! The events that gossip reports to the agent.

use std::sync::Arc;

use identity::NodeName;
use node_facts::{Liveness, NodeFacts};

/// News about another node. Events describe states, not transitions: a slow reader gets the latest of each kind and
/// node, not every step in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GossipEvent {
    /// A node's current facts, which replace all earlier ones.
    Facts {
        /// The node.
        node: NodeName,
        /// The facts; `facts.node == node` holds.
        facts: Arc<NodeFacts>,
    },
    /// The liveness of a node.
    Live {
        /// The node.
        node: NodeName,
        /// Whether heartbeats of any of its incarnations arrive: a restart is no death.
        liveness: Liveness,
    },
    /// A part of a node's facts is invalid; the rest is not affected.
    Rejected {
        /// The node in whose name it was sent; the text as received, which may not be a valid name.
        node: String,
        /// What is invalid.
        reason: String,
    },
}
