//! What is known of the other nodes, and what is new about them. Pure: time is an argument.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use identity::NodeName;
use node_facts::{FactsError, Liveness, NodeFacts, decode};

use crate::{
    GossipEvent,
    config::{MIN_SILENT_INTERVALS, SILENT_AFTER_INTERVALS},
};

/// One incarnation of a node, as chitchat knows it.
#[derive(Debug, Clone)]
pub(crate) struct Sighting {
    /// As received, possibly not a valid name.
    pub name: Arc<str>,
    pub generation: u64,
    pub address: SocketAddr,
    /// chitchat's verdict.
    pub alive: bool,
    pub heartbeat: u64,
    /// Rises with every key written.
    pub version: u64,
    /// Keys and values; `None` if [`PeerTable::is_current`] says that they are known.
    pub values: Option<BTreeMap<String, String>>,
}

/// Another node, for `warren status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The node.
    pub node: NodeName,
    /// The newest incarnation: start time of its gossip in ms since the epoch.
    pub incarnation: u64,
    /// The address of its gossip.
    pub address: SocketAddr,
    /// Whether heartbeats arrive.
    pub alive: bool,
    /// Time since its last new heartbeat, direct or through others.
    pub silent_for: Duration,
}

#[derive(Debug)]
struct Peer {
    /// `None` if the name is invalid.
    node: Option<NodeName>,
    generation: u64,
    address: SocketAddr,
    heartbeat: u64,
    heard: Instant,
    /// As reported; `None` while nothing was reported.
    liveness: Option<Liveness>,
    /// Generation and version of the values that were read last.
    read: Option<(u64, u64)>,
    facts: Option<Arc<NodeFacts>>,
}

/// All other nodes, by name. One per supervisor; outlives restarts of the chitchat task, so that such a restart is no
/// news about other nodes.
pub(crate) struct PeerTable {
    own: NodeName,
    own_generation: u64,
    fleet_id: String,
    /// The time without a heartbeat after which a node counts as silent, and the one after which it may count as
    /// dead.
    silent: Duration,
    dead: Duration,
    peers: BTreeMap<Arc<str>, Peer>,
}

impl PeerTable {
    /// An empty table of the node `own`; `interval` is the interval of the rounds.
    pub fn new(own: NodeName, fleet_id: String, interval: Duration) -> Self {
        Self {
            own,
            own_generation: 0,
            fleet_id,
            silent: interval.mul_f64(SILENT_AFTER_INTERVALS),
            dead: interval * MIN_SILENT_INTERVALS,
            peers: BTreeMap::new(),
        }
    }

    /// Sets the generation of this node's gossip.
    pub fn set_own_generation(&mut self, generation: u64) {
        self.own_generation = generation;
    }

    /// Sets the fleet's id. Facts are compared with it when they are read next.
    pub fn set_fleet_id(&mut self, fleet_id: &str) {
        if self.fleet_id != fleet_id {
            fleet_id.clone_into(&mut self.fleet_id);
            for peer in self.peers.values_mut() {
                peer.read = None;
            }
        }
    }

    /// Whether the values of this version were already read.
    pub fn is_current(&self, name: &str, generation: u64, version: u64) -> bool {
        self.peers.get(name).is_some_and(|peer| peer.read == Some((generation, version)))
    }

    /// Compares chitchat's state with what was reported, and returns the difference.
    pub fn observe(&mut self, now: Instant, sightings: Vec<Sighting>) -> Vec<GossipEvent> {
        let mut events = Vec::new();
        let mut alive_names: BTreeMap<Arc<str>, bool> = BTreeMap::new();
        let mut newest: BTreeMap<Arc<str>, Sighting> = BTreeMap::new();
        for sighting in sightings {
            // A node that restarts has two incarnations for a while: it is alive if either is, and the facts are
            // those of the newer one.
            *alive_names.entry(sighting.name.clone()).or_default() |= sighting.alive;
            match newest.get(&sighting.name) {
                Some(other) if other.generation >= sighting.generation => {}
                _ => {
                    newest.insert(sighting.name.clone(), sighting);
                }
            }
        }
        for (name, sighting) in newest {
            let alive = alive_names[&name];
            self.observe_node(now, sighting, alive, &mut events);
        }
        self.bury(now, &alive_names, &mut events);
        events
    }

    fn observe_node(&mut self, now: Instant, sighting: Sighting, alive: bool, events: &mut Vec<GossipEvent>) {
        let Sighting { name, generation, address, heartbeat, version, values, .. } = sighting;
        let own = &*name == self.own.as_str();
        // Our own former incarnations stay until their grace period is over.
        if own && generation <= self.own_generation {
            return;
        }
        let peer = self.peers.entry(name.clone()).or_insert_with(|| Peer {
            node: if own { None } else { NodeName::new(&name).ok() },
            generation,
            address,
            heartbeat,
            heard: now,
            liveness: None,
            read: None,
            facts: None,
        });
        if (generation, heartbeat) != (peer.generation, peer.heartbeat) {
            peer.heard = now;
        }
        (peer.generation, peer.address, peer.heartbeat) = (generation, address, heartbeat);

        if let Some(node) = &peer.node {
            let quiet = now.duration_since(peer.heard);
            let verdict = match (alive, peer.liveness) {
                (false, _) if quiet >= self.dead => Some(Liveness::Dead),
                (_, Some(Liveness::Alive)) if quiet >= self.silent => Some(Liveness::Silent),
                // A reported death is not taken back for a single heartbeat that was relayed by another node.
                (false, Some(Liveness::Silent)) if quiet < self.silent => Some(Liveness::Alive),
                (true, Some(Liveness::Silent | Liveness::Dead)) if quiet >= self.silent => None,
                (true, _) => Some(Liveness::Alive),
                (false, _) => None,
            };
            if let Some(liveness) = verdict.filter(|_| verdict != peer.liveness) {
                peer.liveness = verdict;
                events.push(GossipEvent::Live { node: node.clone(), liveness });
            }
        }
        let Some(values) = values else { return };
        if peer.read.replace((generation, version)) == Some((generation, version)) {
            return;
        }
        let mut reject =
            |reason: String| events.push(GossipEvent::Rejected { node: name.to_string(), reason });
        let Some(node) = &peer.node else {
            let reason = match NodeName::new(&name) {
                Ok(_) => format!("another agent, at {address}, gossips under this node's name"),
                Err(error) => error.to_string(),
            };
            return reject(reason);
        };
        match decode(|key| values.get(key).map(String::as_str)) {
            // The rest is on its way, and raises the version when it arrives.
            Err(FactsError::Absent | FactsError::Incomplete(_)) => {}
            Err(error) => reject(error.to_string()),
            // The key proves that the sender is a member, not which one: the facts must at least be consistent.
            Ok(decoded) if decoded.facts.node != *node => {
                reject(format!("facts of {} under the name of {node}", decoded.facts.node));
            }
            Ok(decoded) if is_foreign(&self.fleet_id, &decoded.facts.fleet_id) => reject(format!(
                "fleet id {} is not ours, {}: is it a node of a fleet that was set up anew?",
                decoded.facts.fleet_id, self.fleet_id
            )),
            Ok(decoded) => {
                if let [first, others @ ..] = &decoded.rejected[..] {
                    let more = if others.is_empty() {
                        String::new()
                    } else {
                        format!(" (and {} more)", others.len())
                    };
                    reject(format!("{}: {}{more}", first.key, first.reason));
                }
                if peer.facts.as_deref() != Some(&decoded.facts) {
                    let facts = Arc::new(decoded.facts);
                    peer.facts = Some(facts.clone());
                    events.push(GossipEvent::Facts { node: node.clone(), facts });
                }
            }
        }
    }

    /// The nodes that fell silent since the last call: cheap enough for several calls a round.
    pub fn silences(&mut self, now: Instant) -> Vec<GossipEvent> {
        let mut events = Vec::new();
        for peer in self.peers.values_mut() {
            if let (Some(node), Some(Liveness::Alive)) = (&peer.node, peer.liveness)
                && now.duration_since(peer.heard) >= self.silent
            {
                peer.liveness = Some(Liveness::Silent);
                events.push(GossipEvent::Live { node: node.clone(), liveness: Liveness::Silent });
            }
        }
        events
    }

    /// Removes nodes that chitchat has forgotten: after their grace period, or because its task was restarted. In the
    /// latter case they come back within two rounds, and get the time for it.
    fn bury(&mut self, now: Instant, known: &BTreeMap<Arc<str>, bool>, events: &mut Vec<GossipEvent>) {
        let dead = self.dead;
        self.peers.retain(|name, peer| {
            if known.contains_key(name) || now.duration_since(peer.heard) < dead {
                return true;
            }
            if let (Some(node), Some(Liveness::Alive | Liveness::Silent)) = (&peer.node, peer.liveness) {
                events.push(GossipEvent::Live { node: node.clone(), liveness: Liveness::Dead });
            }
            false
        });
    }

    /// All nodes, by name.
    pub fn status(&self, now: Instant) -> Vec<PeerStatus> {
        let status = |peer: &Peer| {
            Some(PeerStatus {
                node: peer.node.clone()?,
                incarnation: peer.generation,
                address: peer.address,
                alive: matches!(peer.liveness, Some(Liveness::Alive | Liveness::Silent)),
                silent_for: now.duration_since(peer.heard),
            })
        };
        self.peers.values().filter_map(status).collect()
    }
}

/// A node that has not reached etcd yet knows no fleet id: that is no contradiction.
fn is_foreign(own: &str, other: &str) -> bool {
    !own.is_empty() && !other.is_empty() && own != other
}

#[cfg(test)]
mod tests;
