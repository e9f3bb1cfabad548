//! Whether a node of which gossip hears nothing is dead, or only its agent: backends of a node go on without its agent
//! (P5). A silent node gets echo requests at its gateway, which take the path of flows to its backends: through the
//! tunnel, its programs and its kernel.

use std::time::Duration;

use identity::NodeName;
use node_facts::Liveness;
use serde::{Deserialize, Serialize};

use super::{Health, checks::Due, v4};
use crate::{
    Probe, ProbeId, ProbeTarget, context::Context, fleet::Fleet, limits::GOSSIP_SETTLED, peers::Peers,
};

/// How long a silent node has to answer: longer than any round trip on earth; several requests are sent meanwhile. With
/// the silence before (two rounds and a half, after a last word that may be seen a round late), a death is known within 5 s.
const ECHO_TIMEOUT: Duration = Duration::from_millis(800);
/// Until a silent node that has answered is probed again, or a dead one: long enough to cost nothing, short enough that the
/// death of a node whose agent died before is noticed within seconds too.
const ECHO_PAUSE: Duration = Duration::from_secs(2);

/// The liveness of a silent node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeLiveness {
    /// It did not answer the last probe.
    dead: bool,
    /// It has answered once.
    pub answered: bool,
    due: Option<Duration>,
    asked: Option<ProbeId>,
}

impl Health {
    /// Whether a node neither gossips nor answers.
    pub(super) fn is_dead(&self, node: &NodeName) -> bool {
        self.silent.get(node).is_some_and(|liveness| liveness.dead)
    }

    /// Judges the nodes that came, went, fell silent or speak again. Some time after the start, nodes that were never heard
    /// of count as silent.
    pub(crate) fn judge_nodes(&mut self, cx: &mut Context, fleet: &Fleet, peers: &Peers) {
        if !self.settled && cx.now.monotonic >= GOSSIP_SETTLED {
            self.settled = true;
            cx.changes.liveness.extend(fleet.view().nodes().keys().cloned());
        }
        for node in std::mem::take(&mut cx.changes.liveness) {
            self.judge(cx, fleet, peers, &node);
        }
    }

    fn judge(&mut self, cx: &Context, fleet: &Fleet, peers: &Peers, node: &NodeName) {
        let liveness = peers.liveness_of(node);
        let member = fleet.view().nodes().contains_key(node);
        let eligible = node == fleet.node() || (member && liveness != Some(Liveness::Dead));
        let changed = match eligible {
            true => self.eligible.insert(node.clone()),
            false => self.eligible.remove(node),
        };
        self.choose_again |= changed;
        if node == fleet.node() {
            return;
        }
        let silent = match liveness {
            Some(Liveness::Alive) => false,
            Some(Liveness::Silent | Liveness::Dead) => true,
            // If other nodes were heard for long enough, this one should have been too.
            None => member && self.settled && peers.hears_any(),
        };
        match (silent, self.silent.contains_key(node)) {
            (true, false) => {
                let due = cx.now.monotonic;
                self.silent.insert(node.clone(), NodeLiveness { due: Some(due), ..Default::default() });
                self.due.insert((due, Due::Node(node.clone())));
            }
            (false, true) => self.forget_silence(peers, node),
            (true, true) | (false, false) => {}
        }
    }

    fn forget_silence(&mut self, peers: &Peers, node: &NodeName) {
        let Some(liveness) = self.silent.remove(node) else { return };
        if let Some(due) = liveness.due {
            self.due.remove(&(due, Due::Node(node.clone())));
        }
        if let Some(asked) = liveness.asked {
            self.in_flight.remove(&asked);
        }
        if liveness.dead {
            self.touch_members_of(peers, node);
        }
    }

    /// An echo request to a silent node; none while it has no gateway, and so no endpoints.
    pub(super) fn echo(
        &mut self,
        cx: &Context,
        peers: &Peers,
        node: &NodeName,
        id: ProbeId,
    ) -> Option<Probe> {
        let gateway = peers.gateway_of(node).filter(|gateway| v4(*gateway).is_some());
        let liveness = self.silent.get_mut(node)?;
        let Some(gateway) = gateway else {
            let due = cx.now.monotonic + ECHO_PAUSE;
            liveness.due = Some(due);
            self.due.insert((due, Due::Node(node.clone())));
            return None;
        };
        (liveness.due, liveness.asked) = (None, Some(id));
        Some(Probe { id, target: ProbeTarget::Node(gateway), timeout: ECHO_TIMEOUT })
    }

    pub(super) fn on_echo(&mut self, cx: &Context, peers: &Peers, node: NodeName, answered: bool) {
        let due = cx.now.monotonic + ECHO_PAUSE;
        let Some(liveness) = self.silent.get_mut(&node) else { return };
        (liveness.due, liveness.asked) = (Some(due), None);
        let now = (!answered, liveness.answered | answered);
        let changed = (liveness.dead, liveness.answered) != now;
        (liveness.dead, liveness.answered) = now;
        self.due.insert((due, Due::Node(node.clone())));
        if changed {
            self.touch_members_of(peers, &node);
        }
    }
}
