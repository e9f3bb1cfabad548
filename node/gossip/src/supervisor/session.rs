//! One run of the chitchat task: publishes our facts, observes its state, and contacts peers.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use chitchat::ChitchatHandle;
use node_facts::Liveness;
use tokio::{
    sync::Notify,
    time::{interval, sleep_until},
};
use tracing::{debug, info, warn};

use super::{Published, RunEnd, Supervisor};
use crate::{GossipEvent, adapter::sightings, stats::count, transport::lock};

/// Number of peers that get changed facts at once, rather than in the next round; all peers of a small fleet.
const PUSH_PEERS: usize = 8;
/// The minimum time between two such pushes, so that a burst of changes costs one.
const PUSH_GAP: Duration = Duration::from_millis(20);
/// Number of silent wanted peers contacted in a round, as many as chitchat's own choice of peers.
const CONTACT_PEERS: usize = 3;
/// How many times a round the supervisor looks for nodes that fell silent: a death is noticed that much sooner.
const SILENCE_CHECKS: u32 = 4;
/// Number of known incarnations at which the operator is warned: above about 2,570 a handshake panics.
const CROWDED: usize = 2_000;

impl Supervisor {
    /// Serves the task until it ends, this node's address changes, or the handle is gone.
    pub(super) async fn serve(&mut self, handle: &ChitchatHandle) -> RunEnd {
        // The callback runs under chitchat's one mutex: it may do nothing but notify. Deletions do not call it; they
        // are seen because `facts`, written with them, changes too.
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        let _subscription = handle
            .with_chitchat(|chitchat| {
                let notify = notify.clone();
                chitchat.subscribe_event("", move |_| notify.notify_one())
            })
            .await;
        let terminated = handle.termination_watcher();
        tokio::pin!(terminated);
        let mut rounds = interval(self.membership.interval);
        let mut silences = interval(self.membership.interval / SILENCE_CHECKS);
        let mut push_due: Option<tokio::time::Instant> = None;
        let mut last_push = tokio::time::Instant::now();
        let events = self.events.clone();
        let mut reading = true;
        loop {
            tokio::select! {
                result = &mut terminated => {
                    return RunEnd::Died(result.map_or_else(|error| format!("{error:#}"), |()| "stopped by itself".to_owned()));
                }
                changed = self.published.changed() => {
                    if changed.is_err() {
                        return RunEnd::Stopped;
                    }
                    self.publish(handle).await;
                    push_due.get_or_insert(last_push + PUSH_GAP);
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return RunEnd::Stopped;
                    }
                    self.contact_wanted_peers(handle);
                }
                changed = self.address.changed() => {
                    return if changed.is_ok() { RunEnd::Moved } else { RunEnd::Stopped };
                }
                () = changed.notified() => self.observe(handle).await,
                _ = rounds.tick() => {
                    self.observe(handle).await;
                    self.contact_wanted_peers(handle);
                }
                _ = silences.tick() => {
                    let events = lock(&self.table).silences(Instant::now());
                    self.report(events);
                }
                () = sleep_until(push_due.unwrap_or(last_push)), if push_due.is_some() => {
                    push_due = None;
                    last_push = tokio::time::Instant::now();
                    self.push(handle);
                }
                permit = events.reserve(), if reading && !self.inbox.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(event) = self.inbox.pop() {
                            permit.send(event);
                        }
                    }
                    Err(_) => reading = false,
                },
            }
        }
    }

    /// Writes our facts into chitchat's state: only changed values get a new version there.
    async fn publish(&mut self, handle: &ChitchatHandle) {
        let Published { fleet_id, values } = self.published.borrow_and_update().clone();
        lock(&self.table).set_fleet_id(&fleet_id);
        handle
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                let gone: Vec<String> = state
                    .key_values()
                    .filter(|(key, _)| !values.iter().any(|(kept, _)| kept == key))
                    .map(|(key, _)| key.to_owned())
                    .collect();
                for (key, value) in values.iter() {
                    state.set(key, value);
                }
                for key in gone {
                    state.delete(&key);
                }
            })
            .await;
    }

    async fn observe(&mut self, handle: &ChitchatHandle) {
        let table = self.table.clone();
        // chitchat's mutex is held only to copy what changed; decoding happens afterwards.
        let sightings = handle.with_chitchat(|chitchat| sightings(chitchat, &lock(&table))).await;
        self.knows_no_node = sightings.is_empty();
        if self.crowded != (sightings.len() >= CROWDED) {
            self.crowded = !self.crowded;
            if self.crowded {
                warn!(
                    known = sightings.len(),
                    "gossip knows too many nodes and former incarnations: split the fleet"
                );
            }
        }
        let events = lock(&table).observe(Instant::now(), sightings);
        self.report(events);
    }

    fn report(&mut self, events: Vec<GossipEvent>) {
        for event in events {
            match &event {
                // A late round is no death: the agent probes the node.
                GossipEvent::Live { node, liveness: Liveness::Silent } => {
                    debug!(%node, "gossip peer is silent")
                }
                GossipEvent::Live { node, liveness } => info!(%node, ?liveness, "gossip peer"),
                GossipEvent::Rejected { node, reason } => warn!(node, reason, "gossip rejected"),
                GossipEvent::Facts { .. } => {}
            }
            if self.inbox.push(event) {
                count(&self.link.counters.events_coalesced);
            }
        }
    }

    /// Contacts peers from etcd that are not alive here: chitchat never would by itself. A chitchat that knows no
    /// node contacts all of them: after a change of address no peer could contact this node.
    fn contact_wanted_peers(&mut self, handle: &ChitchatHandle) {
        let mut silent = self.wanted.borrow().clone();
        if self.knows_no_node {
            silent.extend(self.live_addresses());
        } else {
            let alive = self.live_addresses();
            silent.retain(|address| !alive.contains(address));
        }
        silent.remove(&self.membership.advertise);
        let silent: Vec<SocketAddr> = silent.into_iter().collect();
        self.handshake(handle, &silent, CONTACT_PEERS);
    }

    /// Sends changed facts to live peers now.
    fn push(&mut self, handle: &ChitchatHandle) {
        let alive = self.live_addresses();
        self.handshake(handle, &alive, PUSH_PEERS);
    }

    fn live_addresses(&self) -> Vec<SocketAddr> {
        let peers = lock(&self.table).status(Instant::now());
        peers.iter().filter(|peer| peer.alive).map(|peer| peer.address).collect()
    }

    fn handshake(&mut self, handle: &ChitchatHandle, addresses: &[SocketAddr], most: usize) {
        for address in
            addresses.iter().cycle().skip(self.turn % addresses.len().max(1)).take(most.min(addresses.len()))
        {
            // An error means that the task has ended, which the watchdog notices by itself.
            let _ = handle.gossip(*address);
        }
        self.turn = self.turn.wrapping_add(most);
    }
}
