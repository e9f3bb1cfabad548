//! Membership: the fleet's record, this node's record, its liveness key, its removal.

use std::{net::IpAddr, time::Duration};

use identity::NodeName;
use ipnetwork::IpNetwork;
use kvstore_claims::{
    ClaimError, FleetJoin, FleetJoined, NodeRegistered, NodeRegistration, node_removal_request,
};
use kvstore_schema::{
    Condition, KvOutcome, KvResponse,
    record::{AliveRecord, ClaimEpoch, FleetRecord, Life, NodeRecord, Record},
};
use serde::{Deserialize, Serialize};

use super::Fleet;
use crate::{
    CallErrorKind, CallId, Command, NodeConfig, Reply,
    context::{Context, Startup},
    limits::{ALIVE_TTL, JOIN_RETRY},
    requests::Task,
};

/// How far this node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Waits for the kernel, the first listing, or the next attempt.
    #[default]
    Outside,
    /// Creates or reads the fleet's record.
    Joining,
    /// Registers for the first time.
    Registering,
    /// Registered.
    Joined,
}

/// This node's membership. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Membership {
    phase: Phase,
    /// The fleet that this node has joined; never changes afterwards.
    fleet_id: Option<String>,
    /// The record as it was last written.
    registered: Option<NodeRecord>,
    /// Whether a registration is in flight.
    registering: bool,
    /// Why the node cannot go on as configured.
    halted: Option<String>,
    /// This agent was registered once: it acts under its node's name, whatever became of the record since.
    member: bool,
    /// Before this time the fleet is not asked again.
    retry_at: Duration,
}

impl Membership {
    /// A former agent was a member of this fleet.
    pub(super) fn restore(&mut self, fleet_id: String) {
        self.fleet_id = Some(fleet_id);
    }

    pub(super) fn retry_at(&self) -> Duration {
        self.retry_at
    }
}

/// The addresses that this node announces, in its record and by gossip. Borrowed for one call.
#[derive(Clone, Copy)]
pub(crate) struct Own<'a> {
    /// Underlay addresses, the tunnel's first.
    pub underlay: &'a [IpAddr],
    /// How often these changed since the start.
    pub moves: u64,
    /// Live claims, oldest first.
    pub blocks: &'a [(IpNetwork, ClaimEpoch)],
    pub gateway: Option<IpAddr>,
}

/// How an attempt to join ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum JoinEnd {
    /// The fleet's id is known, and this node may register.
    Joined,
    Refused,
}

impl Fleet {
    /// The fleet's random id, once this node has joined it.
    pub(crate) fn fleet_id(&self) -> Option<&str> {
        self.membership.fleet_id.as_deref()
    }

    /// Why the node cannot go on as configured.
    pub(crate) fn halted(&self) -> Option<&String> {
        self.membership.halted.as_ref()
    }

    pub(crate) fn has_joined(&self) -> bool {
        self.membership.phase == Phase::Joined
    }

    /// Whether the store has this node's record, on which everything else that the node owns depends.
    pub(crate) fn is_registered(&self) -> bool {
        self.has_joined() && self.membership.registered.is_some()
    }

    /// The incarnation with which this node is registered, or will be.
    pub(crate) fn incarnation(&self, config: &NodeConfig) -> u64 {
        self.membership.registered.as_ref().map_or(config.incarnation, |own| own.incarnation)
    }

    /// Whether the node may act under its name: it is registered, or was before this agent's start. Otherwise the name
    /// may be another machine's.
    pub(crate) fn is_member(&self, startup: Startup) -> bool {
        let before = startup.snapshot_used || self.membership.member;
        self.is_registered() || (before && startup.kernel_read && self.membership.halted.is_none())
    }

    /// Whether the records under this node's name belong to this machine.
    pub(crate) fn owns_name(&self, config: &NodeConfig) -> bool {
        let record = self.view.nodes().get(&self.node);
        self.is_registered() || record.is_some_and(|own| own.record.machine_id == config.machine_id)
    }

    /// Takes the next step towards membership, or writes the record again if it changed. `hears_members`: a member that
    /// seems alive has gossiped of a fleet that this node does not know.
    pub(crate) fn pursue_membership(&mut self, cx: &mut Context, own: Own<'_>, hears_members: bool) {
        if std::mem::take(&mut cx.changes.unregistered) {
            self.membership.registered = None;
        }
        if !cx.startup.kernel_read || !self.store.connected || cx.now.monotonic < self.membership.retry_at {
            return;
        }
        match self.membership.phase {
            Phase::Outside => {
                // Without a record of the fleet, the members that know it found it anew.
                if self.membership.fleet_id.is_none() && self.view.fleet().is_none() && hears_members {
                    return;
                }
                self.membership.phase = Phase::Joining;
                let mut wanted = self.wanted_fleet(cx);
                let (machine, request) = match &self.founding {
                    None => FleetJoin::start(self.view.schema(), wanted),
                    Some(founding) => {
                        wanted.life = founding.life;
                        FleetJoin::found_anew(self.view.schema(), wanted, founding.copy)
                    }
                };
                cx.ask(request, Task::Join(machine));
            }
            Phase::Joining | Phase::Registering => {}
            Phase::Joined => {
                let wanted = self.wanted_record(&cx.config, own);
                if !self.membership.registering && self.membership.registered.as_ref() != Some(&wanted) {
                    self.register(cx, wanted);
                }
            }
        }
    }

    /// Joins again: the fleet's record, this node's record, its liveness key.
    pub(super) fn rejoin(&mut self, now: Duration) {
        self.membership.phase = Phase::Outside;
        self.membership.registering = false;
        self.membership.retry_at = now;
    }

    fn wanted_fleet(&self, cx: &mut Context) -> FleetRecord {
        let found = self.view.fleet().map(|fleet| &fleet.record);
        let mut service_pools = cx.config.service_pools.clone();
        if let Some(fleet) = found.filter(|_| service_pools.is_empty()) {
            service_pools.clone_from(&fleet.service_pools);
        }
        let known = self.membership.fleet_id.clone();
        FleetRecord {
            fleet_id: known.unwrap_or_else(|| format!("{:032x}", cx.rng.u128(..))),
            life: Life::default(),
            pools: cx.config.pools.clone(),
            service_pools,
            block_prefix_v4: cx.config.block_prefix_v4,
            block_prefix_v6: cx.config.block_prefix_v6,
            tunnel_port: cx.config.tunnel_port,
            unknown: found.map(|fleet| fleet.unknown.clone()).unwrap_or_default(),
        }
    }

    /// This node's record as it should be.
    pub(crate) fn wanted_record(&self, config: &NodeConfig, own: Own<'_>) -> NodeRecord {
        let registered = self.membership.registered.as_ref();
        NodeRecord {
            underlay: own.underlay.to_vec(),
            moves: own.moves,
            datapath_mode: Some(config.datapath.mode.word().to_owned()),
            cidrs: own.blocks.iter().map(|(cidr, _)| *cidr).collect(),
            gateway: own.gateway,
            gossip_port: config.gossip_port,
            labels: config.node_labels.clone(),
            boot_id: config.boot_id.clone(),
            machine_id: config.machine_id.clone(),
            incarnation: self.incarnation(config),
            agent_version: config.agent_version.clone(),
            unknown: registered.map(|record| record.unknown.clone()).unwrap_or_default(),
        }
    }

    /// Writes this node's record.
    pub(crate) fn register(&mut self, cx: &mut Context, wanted: NodeRecord) {
        self.membership.registering = true;
        let (machine, request) = NodeRegistration::start(self.view.schema(), self.node.clone(), wanted, None);
        cx.ask(request, Task::Register(machine));
    }

    pub(crate) fn on_joined(&mut self, cx: &mut Context, end: Result<FleetJoined, ClaimError>) -> JoinEnd {
        match end {
            Ok(joined) => {
                self.membership.fleet_id = Some(joined.record.fleet_id);
                self.membership.phase = Phase::Registering;
                self.founding = None;
                JoinEnd::Joined
            }
            Err(error) => {
                self.refused(cx, &error);
                JoinEnd::Refused
            }
        }
    }

    pub(crate) fn on_registered(&mut self, cx: &mut Context, end: Result<NodeRegistered, ClaimError>) {
        self.membership.registering = false;
        match end {
            Ok(registered) => {
                self.keep_alive(cx, &registered);
                // The incarnation rises with each start, also if the machine's clock went back.
                cx.config.incarnation = cx.config.incarnation.max(registered.record.incarnation);
                self.membership.member = true;
                self.membership.registered = Some(registered.record);
                self.membership.phase = Phase::Joined;
                self.membership.halted = None;
                cx.changes.claims = true;
            }
            Err(error) => self.refused(cx, &error),
        }
    }

    /// Writes the liveness key, on condition that this node's record is unchanged: never into a store that does not know
    /// this node.
    fn keep_alive(&self, cx: &mut Context, NodeRegistered { record, revision }: &NodeRegistered) {
        let alive = AliveRecord {
            incarnation: record.incarnation,
            machine_id: record.machine_id.clone(),
            unknown: Default::default(),
        };
        let key = self.view.schema().alive(&self.node);
        let fence = Condition::ModRevision(self.view.schema().node(&self.node), *revision);
        cx.command(Command::KeepAlive { key, value: alive.encode(), ttl: ALIVE_TTL, fence });
    }

    /// The fleet does not take this node as it is configured. The kernel keeps what it has until an operator acts.
    fn refused(&mut self, cx: &mut Context, error: &ClaimError) {
        let text = error.to_string();
        self.membership.phase = Phase::Outside;
        self.membership.retry_at = cx.now.monotonic + JOIN_RETRY;
        if self.membership.halted.as_ref() != Some(&text) {
            cx.error(text.clone());
            cx.command(Command::Halt(text.clone()));
            self.membership.halted = Some(text);
        }
    }

    /// An operator says that a node will not come back.
    pub(crate) fn remove_node(&self, cx: &mut Context, call: CallId, node: NodeName) {
        let problem = if node == self.node {
            let text = "a node does not remove itself: stop its agent, then ask another node".to_owned();
            Some((CallErrorKind::Invalid, text))
        } else if !self.store.connected {
            let text = format!("node {node} cannot be removed while the store does not answer; try again");
            Some((CallErrorKind::Unavailable, text))
        } else if !self.view.nodes().contains_key(&node) {
            Some((CallErrorKind::NotFound, format!("there is no node {node}")))
        } else if self.view.alive().contains_key(&node) {
            Some((CallErrorKind::Conflict, alive_text(&node)))
        } else {
            None
        };
        match problem {
            Some((kind, text)) => cx.refuse(call, kind, text),
            None => {
                let request = node_removal_request(self.view.schema(), &node);
                cx.ask(request, Task::RemoveNode(node, call));
            }
        }
    }
}

/// Answers the call that asked for a node's removal.
pub(crate) fn on_removed(cx: &mut Context, node: &NodeName, call: CallId, outcome: KvOutcome) {
    let reason = match outcome {
        Ok(KvResponse::Txn(answer)) if answer.succeeded => return cx.reply(call, Ok(Reply::NodeRemoved)),
        Ok(KvResponse::Txn(_)) => return cx.refuse(call, CallErrorKind::Conflict, alive_text(node)),
        Ok(KvResponse::List(_)) => "a listing was answered".to_owned(),
        Err(failure) => failure.to_string(),
    };
    let text = format!("whether node {node} was removed is not known ({reason}); ask again");
    cx.refuse(call, CallErrorKind::Unavailable, text);
}

fn alive_text(node: &NodeName) -> String {
    format!(
        "node {node} is alive, or was removed already: stop its agent and wait until its lease has expired ({} s)",
        ALIVE_TTL.as_secs()
    )
}
