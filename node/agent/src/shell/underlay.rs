//! The underlay, for as long as the agent runs: hears changes of the network stack, chooses anew, and tells the node,
//! gossip and `status`.

use std::{net::SocketAddr, time::Duration};

use datapath_linux::{Changes, Underlay, UnderlayChoice, WARREN_ROUTE_PROTOCOL, Watch, underlay};
use datapath_plan::TableKey;
use node_core::Event;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{Core, GossipLink, Stopping};

/// Until something that failed is tried again without anybody having changed anything.
const RETRY: Duration = Duration::from_secs(1);

/// The underlay in use, and what is the matter with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayState {
    /// In use; the former one while none can be chosen.
    pub underlay: Underlay,
    /// Why it is not, or not all, as it should be.
    pub problem: Option<String>,
}

/// Chooses and follows. One per agent.
pub struct UnderlayKeeper {
    /// What the configuration says.
    pub choice: UnderlayChoice,
    /// Where the node is told.
    pub core: Core,
    /// What moves with the address; `None` for a fleet of one node.
    pub gossip: Option<GossipLink>,
    /// Its port.
    pub gossip_port: u16,
    /// Where `status` looks.
    pub state: watch::Sender<UnderlayState>,
}

/// What node-core must know of it.
pub fn known(underlay: &Underlay) -> node_core::Underlay {
    node_core::Underlay {
        addresses: vec![underlay.address],
        network: underlay.network,
        ifindex: underlay.ifindex,
        mtu_bytes: underlay.mtu_bytes,
    }
}

impl UnderlayKeeper {
    /// Follows, from a watch that was opened before the first choice.
    ///
    /// # Errors
    /// [`Stopping`] when the node has ended.
    pub async fn run(self, mut watch: Watch) -> Result<(), Stopping> {
        loop {
            let troubled = self.state.borrow().problem.is_some();
            let changes = tokio::select! {
                changes = watch.next() => changes,
                () = sleep(RETRY), if troubled => Ok(Changes { underlay: true, ..Changes::default() }),
            };
            let changes = match changes {
                Ok(changes) => changes,
                Err(error) => {
                    warn!(
                        error = error.chain(),
                        "changes of the network stack are not heard; listening anew"
                    );
                    sleep(RETRY).await;
                    match Watch::open(WARREN_ROUTE_PROTOCOL).await {
                        Ok(opened) => watch = opened,
                        Err(error) => warn!(error = error.chain(), "cannot listen"),
                    }
                    Changes { lost: true, ..Changes::default() }
                }
            };
            let mut ours = changes.ours;
            if changes.lost {
                // Anything may have changed; the base stands for all of it.
                ours.insert(TableKey::Base);
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
            warn!(problem, "underlay");
        }
        self.state.send_replace(now);
        Ok(())
    }
}
