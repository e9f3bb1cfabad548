//! Whether a node of which gossip hears nothing is dead, or only its agent: backends of a node go on without its agent
//! (P5). Who is silent is asked by an echo to its gateway, which comes back by the very way that flows to its backends
//! take: through the tunnel, its programs and its kernel.

use std::time::Duration;

use identity::NodeName;
use node_facts::Liveness;
use serde::{Deserialize, Serialize};

use super::{checks::Due, v4};
use crate::{Probe, ProbeId, ProbeTarget, limits::GOSSIP_SETTLED, node::Node};

/// How long a silent node has to answer: longer than any way around the earth; it is asked several times meanwhile. With
/// the silence before (two rounds and a half, after a last word that may be seen a round late), a death is known within 5 s.
const ECHO_TIMEOUT: Duration = Duration::from_millis(800);
/// Until a silent node that has answered is asked again, or a dead one: long enough to cost nothing, short enough that a
/// node whose agent died before it is missed within seconds too.
const ECHO_PAUSE: Duration = Duration::from_secs(2);

/// A silent node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pulse {
    /// It did not answer when it was asked last.
    dead: bool,
    /// It has answered once.
    pub answered: bool,
    due: Option<Duration>,
    asked: Option<ProbeId>,
}

impl Node {
    /// Whether a node neither gossips nor answers.
    pub(super) fn is_dead(&self, node: &NodeName) -> bool {
        self.health.silent.get(node).is_some_and(|pulse| pulse.dead)
    }

    /// A node came, went, fell silent or speaks again.
    pub(crate) fn judge_node(&mut self, node: &NodeName) {
        let liveness = self.peers.liveness_of(node);
        let member = self.view.nodes().contains_key(node);
        let eligible = *node == self.config.node || (member && liveness != Some(Liveness::Dead));
        let changed = match eligible {
            true => self.health.eligible.insert(node.clone()),
            false => self.health.eligible.remove(node),
        };
        self.health.choose_again |= changed;
        if *node == self.config.node {
            return;
        }
        let silent = match liveness {
            Some(Liveness::Alive) => false,
            Some(Liveness::Silent | Liveness::Dead) => true,
            // Who never spoke is missed when others have, for long enough.
            None => member && self.health.settled && self.peers.hears_anybody(),
        };
        match (silent, self.health.silent.contains_key(node)) {
            (true, false) => {
                let due = self.now.monotonic;
                self.health.silent.insert(node.clone(), Pulse { due: Some(due), ..Pulse::default() });
                self.health.due.insert((due, Due::Node(node.clone())));
            }
            (false, true) => self.forget_pulse(node),
            (true, true) | (false, false) => {}
        }
    }

    fn forget_pulse(&mut self, node: &NodeName) {
        let Some(pulse) = self.health.silent.remove(node) else { return };
        if let Some(due) = pulse.due {
            self.health.due.remove(&(due, Due::Node(node.clone())));
        }
        if let Some(asked) = pulse.asked {
            self.health.in_flight.remove(&asked);
        }
        if pulse.dead {
            self.touch_members_of(node);
        }
    }

    /// Some time after the start, those count as silent of which nothing was heard.
    pub(crate) fn settle_health(&mut self) {
        if self.health.settled || self.now.monotonic < GOSSIP_SETTLED {
            return;
        }
        self.health.settled = true;
        let nodes: Vec<NodeName> = self.view.nodes().keys().cloned().collect();
        nodes.iter().for_each(|node| self.judge_node(node));
    }

    /// An echo request to a silent node; none while it has no gateway, and so no endpoints.
    pub(super) fn echo(&mut self, node: &NodeName, id: ProbeId) -> Option<Probe> {
        let gateway = self.peers.gateway_of(node).filter(|gateway| v4(*gateway).is_some());
        let pulse = self.health.silent.get_mut(node)?;
        let Some(gateway) = gateway else {
            let due = self.now.monotonic + ECHO_PAUSE;
            pulse.due = Some(due);
            self.health.due.insert((due, Due::Node(node.clone())));
            return None;
        };
        (pulse.due, pulse.asked) = (None, Some(id));
        Some(Probe { id, target: ProbeTarget::Node(gateway), timeout: ECHO_TIMEOUT })
    }

    pub(super) fn on_echo(&mut self, node: NodeName, answered: bool) {
        let due = self.now.monotonic + ECHO_PAUSE;
        let Some(pulse) = self.health.silent.get_mut(&node) else { return };
        (pulse.due, pulse.asked) = (Some(due), None);
        let changed = (pulse.dead, pulse.answered) != (!answered, pulse.answered | answered);
        (pulse.dead, pulse.answered) = (!answered, pulse.answered | answered);
        self.health.due.insert((due, Due::Node(node.clone())));
        if changed {
            self.touch_members_of(&node);
        }
    }
}
