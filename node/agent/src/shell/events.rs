//! Flow events on their way to observers: decoded, given names, buffered, published.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use datapath_linux::{EndedFlow, Events};
use futures::FutureExt;
use identity::Identity;
use node_core::Node;
use node_observe::{BootTime, DecodeError, EventKind, FlowEvent, Party, Protocol, Verdict, tcp_flags};
use tokio::sync::{broadcast, mpsc};
use tracing::debug;

use super::{Core, Stopping};
use crate::{machine, metrics::Metrics};

/// Events kept for later observers, and the most that an observer may be behind before it misses events and is told so.
/// At some 500 bytes each: 2 MB.
const REMEMBERED: usize = 4_096;
/// Events that get their names in one read of the node.
const BATCH: usize = 256;

/// Publishes events. Cheap to clone.
#[derive(Clone)]
pub struct EventHub {
    live: broadcast::Sender<Arc<FlowEvent>>,
    recent: Arc<Mutex<VecDeque<Arc<FlowEvent>>>>,
}

impl Default for EventHub {
    fn default() -> Self {
        Self { live: broadcast::Sender::new(REMEMBERED), recent: Arc::default() }
    }
}

impl EventHub {
    /// The kept events, the oldest first, and all later ones.
    pub fn subscribe(&self) -> (Vec<Arc<FlowEvent>>, broadcast::Receiver<Arc<FlowEvent>>) {
        // Under the lock of `publish`, so that no event is missed or comes twice.
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        (recent.iter().cloned().collect(), self.live.subscribe())
    }

    fn publish(&self, events: Vec<FlowEvent>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events.into_iter().map(Arc::new) {
            if recent.len() == REMEMBERED {
                recent.pop_front();
            }
            recent.push_back(event.clone());
            // An error means that there is no observer.
            drop(self.live.send(event));
        }
    }
}

/// The sources of events.
pub struct EventSources {
    /// The programs' event ring.
    pub reports: Events,
    /// Flows that ended in silence.
    pub ended: mpsc::Receiver<Vec<EndedFlow>>,
}

/// Decodes events, adds what the node knows of both parties, and publishes them. While the node is busy, events wait in
/// the ring; those that find it full are dropped and counted.
///
/// # Errors
/// [`Stopping`] when the node has ended.
pub async fn pump(
    mut sources: EventSources,
    core: Core,
    hub: EventHub,
    metrics: Arc<Metrics>,
) -> Result<(), Stopping> {
    let mut lost = 0;
    loop {
        let batch = tokio::select! {
            first = sources.reports.next() => {
                let Some(first) = first else { return Ok(()) };
                let mut reports = vec![first];
                while reports.len() < BATCH
                    && let Some(Some(report)) = sources.reports.next().now_or_never()
                {
                    reports.push(report);
                }
                decode_all(&reports, boot_time(), &metrics)
            }
            Some(ended) = sources.ended.recv() => {
                let now_us = machine::wall().as_micros() as u64;
                ended.iter().filter_map(|flow| from_ended(flow, now_us).ok()).collect()
            }
        };
        let now_lost = sources.reports.lost();
        metrics.count_lost_events("reader", now_lost - lost);
        lost = now_lost;
        hub.publish(core.read(move |node| named(node, batch)).await?);
    }
}

fn decode_all(reports: &[datapath_abi::Event], boot: BootTime, metrics: &Metrics) -> Vec<FlowEvent> {
    let mut events = Vec::with_capacity(reports.len());
    for report in reports {
        match FlowEvent::decode(report, boot) {
            Ok(event) => events.push(event),
            Err(error) => {
                metrics.count_lost_events("decode", 1);
                debug!(%error, "event of the programs cannot be decoded");
            }
        }
    }
    events
}

/// Wall clock minus the kernel's monotonic clock. Read for each batch, since the wall clock may be set.
fn boot_time() -> BootTime {
    let since_boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(std::time::Duration::from)
        .unwrap_or_default();
    BootTime { unix_us: machine::wall().saturating_sub(since_boot).as_micros() as u64 }
}

/// The event of a flow that ended in silence.
fn from_ended(ended: &EndedFlow, now_us: u64) -> Result<FlowEvent, DecodeError> {
    let flow = &ended.flow;
    let party = |address, port, number| {
        let identity = Identity::new(number).map_err(|_| DecodeError::Identity(number))?;
        Ok(Party::bare(Some(address), port, identity))
    };
    Ok(FlowEvent {
        unix_us: now_us.saturating_sub(flow.idle_ms * 1_000),
        kind: EventKind::FlowEnd,
        verdict: Verdict::Forwarded,
        direction: if flow.from == "endpoint" { "egress" } else { "ingress" }.to_owned(),
        source: party(flow.source, flow.source_port, flow.source_identity)?,
        destination: party(flow.destination, flow.destination_port, flow.destination_identity)?,
        protocol: Protocol(flow.protocol),
        tcp_flags: tcp_flags(flow.protocol, flow.tcp_flags),
        action: Some(flow.action.to_owned()),
        drop_reason: None,
        tunnel_source: None,
        ifindex: if flow.from == "endpoint" { flow.from_index } else { 0 },
        packets: flow.packets + ended.reply_packets,
        bytes: flow.bytes + ended.reply_bytes,
    })
}

/// Adds what the node knows of both parties.
fn named(node: &Node, mut events: Vec<FlowEvent>) -> Vec<FlowEvent> {
    for event in &mut events {
        name_party(node, &mut event.source);
        name_party(node, &mut event.destination);
    }
    events
}

/// Adds the node, labels and endpoint of a party's address; labels and endpoint only where the packet's identity is the
/// one that the address has now.
pub fn name_party(node: &Node, party: &mut Party) {
    let Some(known) = party.address.and_then(|address: IpAddr| node.lookup(address)) else { return };
    party.node = known.node;
    if known.identity == party.identity {
        party.labels = known.labels;
        party.endpoint = known.endpoint;
    }
}
