//! Gossip: publishes this node's facts, and passes events about other nodes on.

use std::{net::SocketAddr, sync::Arc};

use node_core::{Event, GossipUpdate};
use node_facts::NodeFacts;
use node_gossip::{Gossip, GossipError, GossipEvent, GossipStats, PeerStatus};
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::{Core, Stopping};

/// A handle on gossip. Cheap to clone.
#[derive(Clone)]
pub struct GossipLink {
    gossip: Arc<Gossip>,
}

impl GossipLink {
    /// A handle on a running gossip.
    pub fn new(gossip: Gossip) -> Self {
        Self { gossip: Arc::new(gossip) }
    }

    /// Publishes these facts of this node.
    pub fn publish(&self, facts: &NodeFacts) {
        if let Err(error) = self.gossip.set_facts(facts) {
            // The previous facts stay published, and etcd has all records.
            error!(%error, "facts cannot be published");
        }
    }

    /// Adds a peer's address.
    pub fn add_peer(&self, address: SocketAddr) {
        self.gossip.add_peer(address);
    }

    /// Removes a peer's address, unless a live peer is there.
    pub fn forget_peer(&self, address: SocketAddr) {
        self.gossip.forget_peer(address);
    }

    /// Moves to another address of this node.
    ///
    /// # Errors
    /// As [`Gossip::move_to`].
    pub async fn move_to(&self, address: SocketAddr) -> Result<(), GossipError> {
        self.gossip.move_to(address).await
    }

    /// All other nodes that gossip knows, by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.gossip.peers()
    }

    /// The counters of gossip.
    pub fn stats(&self) -> GossipStats {
        self.gossip.stats()
    }

    /// Sends the events of gossip to the node, for as long as both run.
    ///
    /// # Errors
    /// [`Stopping`] when the node has ended.
    pub async fn listen(mut news: mpsc::Receiver<GossipEvent>, core: Core) -> Result<(), Stopping> {
        while let Some(event) = news.recv().await {
            let update = match event {
                GossipEvent::Facts { facts, .. } => {
                    GossipUpdate::Facts(Box::new(Arc::unwrap_or_clone(facts)))
                }
                GossipEvent::Live { node, liveness } => GossipUpdate::Live { node, liveness },
                GossipEvent::Rejected { node, reason } => {
                    warn!(node, reason, "gossip record rejected");
                    continue;
                }
            };
            core.event(Event::Gossip(update)).await?;
        }
        Ok(())
    }
}
