//! What gossip reports to the agent.

use std::sync::Arc;

use identity::NodeName;
use node_facts::{Liveness, NodeFacts};

/// News about another node. Levels, not edges: a reader who was slow sees the latest of each kind and
/// node, not every step in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GossipEvent {
    /// What a node says of itself now; replaces everything it said before.
    Facts {
        /// The node.
        node: NodeName,
        /// Its facts; `facts.node == node` holds.
        facts: Arc<NodeFacts>,
    },
    /// Whether a node seems alive.
    Live {
        /// The node.
        node: NodeName,
        /// Whether heartbeats arrive, of any of its incarnations: a restart is no death.
        liveness: Liveness,
    },
    /// Something a node says does not hold; what else it says is not concerned.
    Rejected {
        /// The node in whose name it was said; the text as received, since it may be no valid name.
        node: String,
        /// What was wrong.
        reason: String,
    },
}
