//! Following the underlay while the agent runs: watches changes of the network stack, chooses again, and tells the node,
//! gossip and `status`.

use std::{net::SocketAddr, time::Duration};

use datapath_linux::{Changes, Underlay, UnderlayChoice, WARREN_ROUTE_PROTOCOL, Watch, underlay};
use datapath_plan::TableKey;
use node_core::Event;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{Core, GossipLink, Stopping};

/// The pause before a failed step is repeated, if no change of the network stack comes before.
const RETRY: Duration = Duration::from_secs(1);

/// The underlay in use, and its problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayState {
    /// The underlay in use; the previous one while none can be chosen.
    pub underlay: Underlay,
    /// Why the choice failed, or why gossip has not followed.
    pub problem: Option<String>,
}

/// Chooses the underlay and follows its changes. One per agent.
pub struct UnderlayKeeper {
    /// The configured choice.
    pub choice: UnderlayChoice,
    /// The node.
    pub core: Core,
    /// Gossip, which moves with the address; `None` for a fleet of one node.
    pub gossip: Option<GossipLink>,
    /// The port of gossip.
    pub gossip_port: u16,
    /// The state that `status` shows.
    pub state: watch::Sender<UnderlayState>,
}

/// The part of the underlay that node-core uses.
pub fn known(underlay: &Underlay) -> node_core::Underlay {
    node_core::Underlay {
        addresses: vec![underlay.address],
        network: underlay.network,
        ifindex: underlay.ifindex,
        mtu_bytes: underlay.mtu_bytes,
    }
}

impl UnderlayKeeper {
    /// Follows changes, with a watch that was opened before the first choice.
    ///
    /// # Errors
    /// [`Stopping`] when the node has ended.
    pub async fn run(self, mut watch: Watch) -> Result<(), Stopping> {
        loop {
            let has_problem = self.state.borrow().problem.is_some();
            let changes = tokio::select! {
                changes = watch.next() => changes,
                () = sleep(RETRY), if has_problem => Ok(Changes { underlay: true, ..Changes::default() }),
            };
            let changes = match changes {
                Ok(changes) => changes,
                Err(error) => {
                    warn!(error = error.chain(), "watch of the network stack failed; opening another");
                    sleep(RETRY).await;
                    match Watch::open(WARREN_ROUTE_PROTOCOL).await {
                        Ok(opened) => watch = opened,
                        Err(error) => warn!(error = error.chain(), "network stack cannot be watched"),
                    }
                    Changes { lost: true, ..Changes::default() }
                }
            };
            let mut ours = changes.ours;
            if changes.lost {
                // Any entry may have changed; the base stands for all of them.
                ours.insert(TableKey::BASE);
            }
            if !ours.is_empty() {
                self.core.event(Event::ExternallyModified(ours)).await?;
            }
            if changes.underlay || changes.lost {
                self.look().await?;
            }
        }
    }

    async fn look(&self) -> Result<(), Stopping> {
        let former = self.state.borrow().clone();
        let mut now = former.clone();
        match underlay(&self.choice, Some(&former.underlay)).await {
            Ok(chosen) => now = UnderlayState { underlay: chosen, problem: None },
            Err(error) => now.problem = Some(error.chain()),
        }
        if known(&now.underlay) != known(&former.underlay) {
            let Underlay { interface, address, mtu_bytes, reason, .. } = &now.underlay;
            info!(interface, %address, mtu_bytes, reason, "underlay changed");
            self.core.event(Event::Underlay(known(&now.underlay))).await?;
        }
        if let Some(gossip) = &self.gossip
            && let Err(error) = gossip.move_to(SocketAddr::new(now.underlay.address, self.gossip_port)).await
        {
            now.problem.get_or_insert(format!("gossip cannot move to {}: {error}", now.underlay.address));
        }
        if let Some(problem) = now.problem.as_ref().filter(|_| now.problem != former.problem) {
            warn!(problem, "underlay has a problem");
        }
        self.state.send_replace(now);
        Ok(())
    }
}
