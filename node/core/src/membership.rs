//! Belonging to the fleet: its record, this node's record, its sign of life, its removal.

use std::{net::IpAddr, time::Duration};

use identity::NodeName;
use kvstore_claims::{
    ClaimError, FleetJoin, FleetJoined, NodeRegistered, NodeRegistration, node_removal_request,
};
use kvstore_schema::{
    Condition,
    record::{AliveRecord, FleetRecord, Life, NodeRecord, Record},
};
use serde::{Deserialize, Serialize};

use crate::{
    CallErrorKind, CallId, Command, Reply,
    limits::{ALIVE_TTL, JOIN_RETRY},
    node::Node,
    tasks::Task,
};

/// How far this node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Waits for the kernel, the first listing, or the next attempt.
    #[default]
    Outside,
    /// Makes or reads the fleet's record.
    Joining,
    /// Registers for the first time.
    Registering,
    /// Registered.
    Joined,
}

/// This node's membership. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub phase: Phase,
    /// The fleet that this node has joined; never changes afterwards.
    pub fleet_id: Option<String>,
    /// The record as it was written last.
    pub registered: Option<NodeRecord>,
    /// Whether a registration is under way.
    registering: bool,
    /// Why the node cannot go on as configured.
    pub halted: Option<String>,
    /// This agent was registered once: it speaks in its node's name, whatever became of the record since.
    pub member: bool,
    /// Before this the fleet is not asked again.
    pub retry_at: Duration,
}

impl Membership {
    /// Whether the store has this node's record, which everything else that the node owns stands on.
    pub(crate) fn registered(&self) -> bool {
        self.phase == Phase::Joined && self.registered.is_some()
    }
}

impl Node {
    /// Takes the next step towards membership, or rewrites the record when it changed.
    pub(crate) fn pursue_membership(&mut self) {
        if !self.audit.observed || !self.store.connected || self.now.monotonic < self.membership.retry_at {
            return;
        }
        match self.membership.phase {
            Phase::Outside => {
                if self.others_know_the_fleet() {
                    return;
                }
                self.membership.phase = Phase::Joining;
                let mut wanted = self.wanted_fleet();
                let (machine, request) = match &self.store.founding {
                    None => FleetJoin::start(self.view.schema(), wanted),
                    Some(founding) => {
                        wanted.life = founding.life;
                        FleetJoin::found_anew(self.view.schema(), wanted, founding.copy)
                    }
                };
                self.ask(request, Task::Fleet(machine));
            }
            Phase::Joining | Phase::Registering => {}
            Phase::Joined => {
                if !self.membership.registering
                    && self.membership.registered.as_ref() != Some(&self.wanted_record())
                {
                    self.register();
                }
            }
        }
    }

    /// Whether the node may speak in its name: it is registered, or was in its former life. Before that the name may
    /// be another machine's.
    pub(crate) fn is_member(&self) -> bool {
        let before = self.snapshots.restored || self.membership.member;
        self.membership.registered() || (before && self.audit.observed && self.membership.halted.is_none())
    }

    /// Whether there is no record of the fleet, but gossip tells of a member: it is for those who know the fleet to found
    /// it anew.
    fn others_know_the_fleet(&self) -> bool {
        self.membership.fleet_id.is_none() && self.view.fleet().is_none() && self.peers.heard_early()
    }

    /// Joins again: the fleet's record, this node's, its sign of life.
    pub(crate) fn rejoin(&mut self) {
        self.membership.phase = Phase::Outside;
        self.membership.registering = false;
        self.membership.retry_at = self.now.monotonic;
    }

    /// The fleet's record came or changed.
    pub(crate) fn on_fleet_record(&mut self) {
        // Blocks and label sets may wait for the end of a restoration.
        self.ipam.changed = true;
        self.service_pools_changed();
    }

    fn wanted_fleet(&mut self) -> FleetRecord {
        let known = self.membership.fleet_id.clone();
        let mut service_pools = self.config.service_pools.clone();
        if let Some(fleet) = self.view.fleet().filter(|_| service_pools.is_empty()) {
            service_pools.clone_from(&fleet.record.service_pools);
        }
        FleetRecord {
            fleet_id: known.unwrap_or_else(|| format!("{:032x}", self.rng.u128(..))),
            life: Life::default(),
            pools: self.config.pools.clone(),
            service_pools,
            block_prefix_v4: self.config.block_prefix_v4,
            block_prefix_v6: self.config.block_prefix_v6,
            tunnel_port: self.config.tunnel_port,
            unknown: self.view.fleet().map(|fleet| fleet.record.unknown.clone()).unwrap_or_default(),
        }
    }

    /// This node's record as it should be.
    pub(crate) fn wanted_record(&self) -> NodeRecord {
        let registered = self.membership.registered.as_ref();
        NodeRecord {
            underlay: self.underlay.addresses.clone(),
            moves: self.moves,
            datapath_mode: Some(self.config.datapath.mode.word().to_owned()),
            cidrs: self.ipam.own.iter().map(|(cidr, _)| *cidr).collect(),
            gateway: self.gateway(),
            gossip_port: self.config.gossip_port,
            labels: self.config.node_labels.clone(),
            boot_id: self.config.boot_id.clone(),
            machine_id: self.config.machine_id.clone(),
            incarnation: registered.map_or(self.config.incarnation, |record| record.incarnation),
            agent_version: self.config.agent_version.clone(),
            unknown: registered.map(|record| record.unknown.clone()).unwrap_or_default(),
        }
    }

    fn register(&mut self) {
        self.membership.registering = true;
        let (machine, request) =
            NodeRegistration::start(self.view.schema(), self.config.node.clone(), self.wanted_record(), None);
        self.ask(request, Task::Register(machine));
    }

    pub(crate) fn on_fleet(&mut self, end: Result<FleetJoined, ClaimError>) {
        match end {
            Ok(joined) => {
                self.membership.fleet_id = Some(joined.record.fleet_id);
                self.store.founding = None;
                self.membership.phase = Phase::Registering;
                self.refresh_own_claims();
                self.hear_early_facts();
                self.register();
            }
            Err(error) => self.refused(&error),
        }
    }

    pub(crate) fn on_registered(&mut self, end: Result<NodeRegistered, ClaimError>) {
        self.membership.registering = false;
        match end {
            Ok(registered) => {
                self.keep_alive(&registered);
                // It rises with each start, also where the machine's clock went back.
                self.config.incarnation = self.config.incarnation.max(registered.record.incarnation);
                self.membership.member = true;
                self.membership.registered = Some(registered.record);
                self.membership.phase = Phase::Joined;
                self.membership.halted = None;
                self.ipam.changed = true;
            }
            Err(error) => self.refused(&error),
        }
    }

    /// Under the condition that the record is this one: never in a store that does not know this node.
    fn keep_alive(&mut self, NodeRegistered { record, revision }: &NodeRegistered) {
        let alive = AliveRecord {
            incarnation: record.incarnation,
            machine_id: record.machine_id.clone(),
            unknown: Default::default(),
        };
        let key = self.view.schema().alive(&self.config.node);
        let fence = Condition::ModRevision(self.view.schema().node(&self.config.node), *revision);
        self.out.push(Command::KeepAlive { key, value: alive.encode(), ttl: ALIVE_TTL, fence });
    }

    /// The fleet does not take this node as it is. The kernel keeps what it has; an operator has to act.
    fn refused(&mut self, error: &ClaimError) {
        let text = error.to_string();
        self.membership.phase = Phase::Outside;
        self.membership.retry_at = self.now.monotonic + JOIN_RETRY;
        if self.membership.halted.as_ref() != Some(&text) {
            self.error(text.clone());
            self.out.push(Command::Halt(text.clone()));
            self.membership.halted = Some(text);
        }
    }

    /// This node's record changed in the store, by us or by an operator.
    pub(crate) fn on_own_record(&mut self, gone: bool) {
        if gone {
            // The node lives: it registers again, with the same claims.
            self.membership.registered = None;
        }
    }

    /// An operator says that a node will not come back.
    pub(crate) fn remove_node(&mut self, call: CallId, node: NodeName) {
        let known = self.view.nodes().contains_key(&node);
        let problem = if node == self.config.node {
            let text = "a node does not remove itself: stop its agent, then ask another node".to_owned();
            Some((CallErrorKind::Invalid, text))
        } else if !self.store.connected {
            Some((
                CallErrorKind::Unavailable,
                format!("node {node} cannot be removed while the store does not answer; try again"),
            ))
        } else if !known {
            Some((CallErrorKind::NotFound, format!("there is no node {node}")))
        } else if self.view.alive().contains_key(&node) {
            Some((CallErrorKind::Conflict, alive_text(&node)))
        } else {
            None
        };
        match problem {
            Some((kind, text)) => self.refuse(call, kind, text),
            None => {
                let request = node_removal_request(self.view.schema(), &node);
                self.ask(request, Task::Remove(node, call));
            }
        }
    }

    pub(crate) fn on_removed(&mut self, node: &NodeName, call: CallId, outcome: Result<bool, String>) {
        match outcome {
            Ok(true) => self.reply(call, Ok(Reply::NodeRemoved)),
            Ok(false) => self.refuse(call, CallErrorKind::Conflict, alive_text(node)),
            Err(reason) => {
                let text = format!("whether node {node} was removed is not known ({reason}); ask again");
                self.refuse(call, CallErrorKind::Unavailable, text);
            }
        }
    }

    /// Whether what the store has under this node's name belongs to this machine.
    pub(crate) fn name_is_ours(&self) -> bool {
        let record = self.view.nodes().get(&self.config.node);
        self.membership.registered()
            || record.is_some_and(|own| own.record.machine_id == self.config.machine_id)
    }

    /// The first usable address of this node's oldest block.
    pub(crate) fn gateway(&self) -> Option<IpAddr> {
        self.ipam.own.first().map(|(cidr, _)| crate::ipam::first_address(*cidr)).or(self.adopted_gateway)
    }
}

fn alive_text(node: &NodeName) -> String {
    format!(
        "node {node} is alive, or was removed already: stop its agent and wait until its lease has run out ({} s)",
        ALIVE_TTL.as_secs()
    )
}
