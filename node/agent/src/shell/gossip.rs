//! Gossip: facts out, news about others in.

use std::{net::SocketAddr, sync::Arc};

use node_core::{Event, GossipUpdate};
use node_facts::NodeFacts;
use node_gossip::{Gossip, GossipError, GossipEvent, GossipStats, PeerStatus};
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::{Core, Stopping};

/// The way to gossip. Cheap to clone.
#[derive(Clone)]
pub struct GossipLink {
    gossip: Arc<Gossip>,
}

impl GossipLink {
    /// Takes a running gossip over.
    pub fn new(gossip: Gossip) -> Self {
        Self { gossip: Arc::new(gossip) }
    }

    /// Says this of our node from now on.
    pub fn publish(&self, facts: &NodeFacts) {
        if let Err(error) = self.gossip.set_facts(facts) {
            // What was said before still stands; etcd has the whole truth.
            error!(%error, "facts cannot be published");
        }
    }

    /// Gossips with this address too.
    pub fn add_peer(&self, address: SocketAddr) {
        self.gossip.add_peer(address);
    }

    /// Gossips with this address no more, unless somebody there lives.
    pub fn forget_peer(&self, address: SocketAddr) {
        self.gossip.forget_peer(address);
    }

    /// Gossips from another address of this node from now on.
    ///
    /// # Errors
    /// As [`Gossip::move_to`].
    pub async fn move_to(&self, address: SocketAddr) -> Result<(), GossipError> {
        self.gossip.move_to(address).await
    }

    /// All other nodes that gossip remembers, by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.gossip.peers()
    }

    /// Its counters.
    pub fn stats(&self) -> GossipStats {
        self.gossip.stats()
    }

    /// Tells the node what gossip hears, for as long as both live.
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
                    warn!(node, reason, "gossip rejected");
                    continue;
                }
            };
            core.event(Event::Gossip(update)).await?;
        }
        Ok(())
    }
}
