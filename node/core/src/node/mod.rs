//! The node: one value, one way in (`handle`), and the wiring between its components.
//!
//! `handle` gives an event to the component that it concerns, and then lets each component do what has become possible or
//! due, in the order in which their results depend on each other. `store` routes what the store says, `read` has the
//! accessors.

mod read;
mod store;

use std::{collections::VecDeque, time::Duration};

use datapath_plan::{Observed, PlanOutcome, Prune, TableKey, Tables};
use ipnetwork::IpNetwork;
use node_facts::NodeFacts;
use serde::{Deserialize, Serialize};

use crate::{
    Call, CallErrorKind, CallId, Command, Event, GossipUpdate, NodeConfig, Now, SavedEndpoint, Snapshot,
    audit::Audit,
    context::Context,
    endpoints::{Allocators, Endpoints},
    facts::facts,
    fleet::{Fleet, Own},
    health::Health,
    identities::{Identities, IdentityChange},
    ipam::{BlockEnd, Ipam},
    ipcache::{Ipcache, Sources},
    limits::{ENDPOINT_WAIT, GOSSIP_SETTLED},
    peers::{NewFacts, Peers},
    records::Records,
    routing::Routing,
    services::{self, Services},
    snapshot::Snapshots,
};

/// Everything that one agent knows and wants. One per agent, owned by the task that runs it.
///
/// Each component's state is private to its module. The whole node can be serialised: a node read back goes on exactly as
/// this one would (the agent's log of events begins with it). There is no other use for the bytes: one build cannot read
/// another's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    cx: Context,
    fleet: Fleet,
    routing: Routing,
    ipam: Ipam,
    identities: Identities,
    endpoints: Endpoints,
    records: Records,
    peers: Peers,
    ipcache: Ipcache,
    services: Services,
    health: Health,
    audit: Audit,
    snapshots: Snapshots,
    /// Calls about endpoints that came before this node knew its own, with the deadline of each.
    early_calls: VecDeque<(Duration, CallId, Call)>,
    started_at: Duration,
    wake_at: Option<Duration>,
}

/// Borrows the components that know who has an address.
macro_rules! sources {
    ($node:expr) => {
        Sources {
            fleet: &$node.fleet,
            routing: &$node.routing,
            ipam: &$node.ipam,
            endpoints: &$node.endpoints,
            peers: &$node.peers,
        }
    };
}

/// Borrows the components that endpoints get addresses and identities from.
macro_rules! allocators {
    ($node:expr) => {
        Allocators {
            fleet: &$node.fleet,
            peers: &$node.peers,
            ipam: &mut $node.ipam,
            identities: &mut $node.identities,
        }
    };
}
/// Borrows the addresses that this node announces.
macro_rules! own {
    ($node:expr) => {
        Own {
            underlay: $node.routing.addresses(),
            moves: $node.routing.moves(),
            blocks: $node.ipam.own(),
            gateway: $node.ipam.gateway(),
        }
    };
}
use {allocators, own, sources};

impl Node {
    /// A node that has seen nothing yet; the first event must be `Started`.
    ///
    /// # Panics
    /// If a pattern of `identity_labels` is invalid: the agent checks its configuration before.
    pub fn new(config: NodeConfig) -> Self {
        Self {
            fleet: Fleet::new(&config),
            routing: Routing::new(config.underlay.clone()),
            ipam: Ipam::new(&config),
            identities: Identities::default(),
            endpoints: Endpoints::default(),
            records: Records::default(),
            peers: Peers::default(),
            ipcache: Ipcache::default(),
            services: Services::default(),
            health: Health::new(&config.node),
            audit: Audit::default(),
            snapshots: Snapshots::default(),
            early_calls: VecDeque::new(),
            started_at: Duration::ZERO,
            wake_at: None,
            cx: Context::new(config),
        }
    }

    /// Takes one event in and returns what is to be done because of it, in this order.
    ///
    /// `now` never goes back. Commands are not repeated: the shell carries out each one exactly once.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Command> {
        let cx = &mut self.cx;
        cx.now = now;
        cx.counters.events += 1;
        match event {
            Event::Started { snapshot, endpoints } => self.start(snapshot, endpoints),
            Event::Woke => {}
            Event::Kv(update) => self.on_kv_update(update),
            Event::KvAnswer(id, outcome) => self.on_kv_answer(id, outcome),
            Event::Gossip(GossipUpdate::Facts(facts)) => self.on_facts(*facts),
            Event::Gossip(GossipUpdate::Live { node, liveness }) => {
                self.peers.on_liveness(cx, &self.fleet, node, liveness);
            }
            Event::Observed(result) => match self.audit.on_observed(cx, result) {
                None => {}
                Some(observed) if cx.startup.kernel_read => self.compare_kernel(observed),
                Some(observed) => self.adopt_kernel(observed),
            },
            Event::Applied(outcome) => self.on_applied(&outcome),
            Event::Called(call, request) => self.on_call(call, request),
            Event::Underlay(underlay) => self.routing.on_underlay(cx, underlay),
            Event::ExternallyModified(keys) => self.audit.on_externally_modified(cx, &keys),
            Event::Probed(results) => self.health.on_probed(cx, &self.fleet, &self.peers, results),
        }
        self.pursue();
        // What was saved of endpoints comes before anything else that the event asks for, replies among it.
        let files = std::mem::take(&mut self.cx.changes.endpoint_files).into_iter();
        let files = files.map(|id| Command::PersistEndpoint(id, self.endpoints.saved(id).map(Box::new)));
        let mut commands: Vec<Command> = files.collect();
        commands.append(&mut self.cx.take_commands());
        commands
    }

    /// Does what has become possible or due. Costs O(what changed).
    fn pursue(&mut self) {
        self.answer_early_calls();
        self.fleet.resume_due(&mut self.cx);
        self.endpoints.expire(&mut self.cx, &mut allocators!(self));
        let hears_members = self.peers.heard_early();
        self.fleet.pursue_membership(&mut self.cx, own!(self), hears_members);
        self.pursue_restoration();
        let starved = self.endpoints.wait_for_address();
        let end = self.ipam.pursue(&mut self.cx, &self.fleet, starved);
        self.on_block_end(end);
        let changes = self.identities.pursue(&mut self.cx, &self.fleet);
        self.on_identity_changes(changes);
        self.fleet.collect(&mut self.cx, || self.identities.in_use(&self.peers));
        self.fleet.pursue_mark(&mut self.cx);
        self.health.judge_nodes(&mut self.cx, &self.fleet, &self.peers);
        // Before the kernel has been read its numbers are not known, and would be assigned anew.
        if self.cx.startup.kernel_read {
            self.refresh();
        }
        self.health.pursue(&mut self.cx, &self.fleet, &self.peers);
        if self.audit.is_idle(&self.cx) {
            self.endpoints.finish_detached(&mut self.cx, &mut allocators!(self));
            self.audit.pursue(&mut self.cx, self.ipam.is_settled());
        }
        let cut_off = self.peers.cut_off_since();
        self.records.refresh(&mut self.cx, &self.fleet, &self.endpoints, cut_off);
        self.records.pursue(&mut self.cx, &self.fleet, &self.ipam, &self.endpoints);
        if let Some(facts) = facts(&self.cx, &self.fleet, own!(self), &self.health) {
            self.records.publish(&mut self.cx, &self.ipam, facts);
        }
        self.snapshots.pursue(&mut self.cx, &self.fleet, own!(self), &self.identities);
        self.wake();
    }

    /// Brings the entries wanted in the kernel up to date with all changes. O(changed · log n). Each kind may change those
    /// after it. Nodes may change nodes (rivals for an address), and blocks the nodes whose address lies in them; that ends
    /// because computing something again without a change changes nothing.
    fn refresh(&mut self) {
        let cx = &mut self.cx;
        for identity in self.ipcache.refresh_identities(cx, &self.fleet, &self.peers) {
            if let Some(labels) = self.fleet.labels_of(identity) {
                self.services.forget_other_labels(cx, sources!(self), identity, labels);
            }
        }
        if std::mem::take(&mut cx.changes.all_peers) {
            self.peers.touch_all(cx);
        }
        let gateway = self.ipam.gateway();
        while !cx.changes.nodes.is_empty() || cx.changes.base || !cx.changes.blocks.is_empty() {
            while let Some(node) = cx.changes.nodes.pop_first() {
                self.peers.refresh_node(cx, &self.fleet, self.routing.addresses(), &node);
            }
            if std::mem::take(&mut cx.changes.base) {
                self.routing.refresh_base(cx, gateway);
                self.services.refresh_routes(cx, sources!(self));
                cx.changes.blocks.extend(self.peers.owned_blocks());
            }
            while let Some(block) = cx.changes.blocks.pop_first() {
                self.peers.refresh_owner(cx, &self.fleet, &self.ipam, block);
                let answer = self.ipcache.resolve_block(sources!(self), block);
                self.ipcache.want(cx, &self.fleet, block, answer.map(|answer| answer.value));
                match self.services.need_route(block) {
                    true => self.routing.refresh_service_route(cx, &self.fleet, gateway, block),
                    false => self.routing.refresh_route(cx, &self.fleet, &self.peers, gateway, block),
                }
            }
        }
        while let Some(record) = cx.changes.records.pop_first() {
            self.ipcache.refresh_record(cx, &self.fleet, &self.peers, record);
        }
        while let Some(ip) = cx.changes.addresses.pop_first() {
            let answer = self.ipcache.resolve(sources!(self), ip);
            self.health.set_terminating(ip, answer.is_some_and(|answer| answer.terminating));
            let endpoint = answer.filter(|answer| answer.is_endpoint());
            let identity = endpoint.map(|endpoint| endpoint.value.identity);
            let new = endpoint.filter(|endpoint| !self.services.knows(endpoint.value.identity));
            let labels = new.map(|endpoint| endpoint.identity_labels(cx, &self.fleet)).unwrap_or_default();
            self.services.follow_endpoint(cx, sources!(self), ip, identity, || labels);
            self.ipcache.want(cx, &self.fleet, IpNetwork::from(ip), answer.map(|answer| answer.value));
        }
        let moved = std::mem::take(&mut cx.changes.moved_blocks);
        self.services.on_moved_blocks(cx, &moved);
        self.services.refresh(cx, sources!(self));
        self.health.judge_nodes(cx, &self.fleet, &self.peers);
        let states = self.health.refresh(cx, sources!(self), &moved);
        self.services.set_states(cx, states);
        self.services.refresh_ports(cx, sources!(self));
    }

    fn start(&mut self, snapshot: Option<Box<Snapshot>>, endpoints: Vec<SavedEndpoint>) {
        self.started_at = self.cx.now.wall;
        self.fleet.schedule_collection(&mut self.cx);
        let Some(snapshot) = snapshot else { return self.endpoints.restore(endpoints) };
        if let Err(reason) = snapshot.check(&self.cx.config) {
            // The endpoint files beside it are another node's too.
            return self.cx.error(format!("snapshot not used: {reason}"));
        }
        self.endpoints.restore(endpoints);
        self.cx.startup.snapshot_used = true;
        let changes = self.fleet.restore(self.cx.now, &snapshot);
        self.on_view_changes(changes);
        self.ipam.use_snapshot(&mut self.cx, &self.fleet);
    }

    fn on_call(&mut self, call: CallId, request: Call) {
        let (cx, fleet) = (&mut self.cx, &self.fleet);
        match request {
            Call::EndpointAdd(_) | Call::EndpointDelete(_) | Call::EndpointDrain(_)
                if !self.endpoints.are_known(cx.startup) =>
            {
                self.early_calls.push_back((cx.now.monotonic + ENDPOINT_WAIT, call, request));
            }
            Call::EndpointAdd(spec) => self.endpoints.add(cx, &mut allocators!(self), call, spec),
            Call::EndpointDelete(name) => self.endpoints.delete(cx, &mut allocators!(self), call, &name),
            Call::EndpointDrain(name) => self.endpoints.drain(cx, call, &name),
            Call::NodeRemove(node) => fleet.remove_node(cx, call, node),
            Call::CidrRelease(cidr) => self.ipam.release_cidr(cx, fleet, call, cidr),
            Call::ServicePut { name, spec, expected } => {
                self.services.put(cx, fleet, call, name, spec, expected);
            }
            Call::ServiceDelete { name, expected } => services::call::delete(cx, fleet, call, name, expected),
            Call::Audit { repair } => self.audit.request(call, repair),
        }
    }

    /// Answers calls that came before this node knew its endpoints, once it does or their deadline has passed.
    fn answer_early_calls(&mut self) {
        let known = self.endpoints.are_known(self.cx.startup);
        let now = self.cx.now.monotonic;
        while self.early_calls.front().is_some_and(|(deadline, ..)| known || now >= *deadline) {
            let Some((_, call, request)) = self.early_calls.pop_front() else { return };
            if known {
                self.on_call(call, request);
                continue;
            }
            let text = match self.cx.last_error() {
                Some(error) if !self.cx.startup.kernel_read => error.text.clone(),
                _ => "the names of the endpoints in the kernel are not known until the store answers"
                    .to_owned(),
            };
            let text = format!("this node has just started: {text}; try again");
            self.cx.refuse(call, CallErrorKind::Unavailable, text);
        }
    }

    fn on_facts(&mut self, facts: NodeFacts) {
        if let Some(NewFacts { before, now }) = self.peers.on_facts(&mut self.cx, &self.fleet, facts) {
            self.health.on_reports(&self.fleet, &self.peers, before.as_deref(), &now);
        }
    }

    fn on_identity_changes(&mut self, changes: impl IntoIterator<Item = IdentityChange>) {
        for change in changes {
            self.endpoints.on_identity(&mut self.cx, &mut allocators!(self), change);
        }
    }

    fn on_block_end(&mut self, end: BlockEnd) {
        match end {
            BlockEnd::None => {}
            BlockEnd::Granted(block) => {
                self.endpoints.restore_addresses(&mut self.cx, &mut self.ipam, block);
                self.endpoints.assign_addresses(&mut self.cx, &mut allocators!(self));
            }
            BlockEnd::Exhausted(text) => {
                self.endpoints.refuse_addresses(&mut self.cx, &mut allocators!(self), &text);
            }
        }
    }

    /// The first reading of the kernel: what is there stays, with its numbers (P5).
    fn adopt_kernel(&mut self, mut observed: Observed) {
        let cx = &mut self.cx;
        cx.startup.kernel_read = true;
        // The ipcache of a large fleet is large, and only the reconciler needs it.
        let ipcache = std::mem::take(&mut observed.tables.ipcache);
        let tables = Tables { ipcache, ..observed.tables.clone() };
        self.audit.adopt(cx, Observed { tables, ..observed.clone() });
        self.ipam.adopt_gateway(observed.tables.base.as_ref().map(|base| base.gateway));
        self.peers.adopt(&observed.tables.nodes);
        self.services.adopt(&observed.tables);
        self.endpoints.adopt(cx, &mut allocators!(self), &observed);
        self.endpoints.compare_records(cx, &self.fleet);
        cx.changes.base = true;
        self.judge_first_listing();
    }

    /// A later reading of the kernel. An entry that nobody wants is removed from the tables of which everything is known.
    fn compare_kernel(&mut self, observed: Observed) {
        let fleet = &self.fleet;
        // This node's blocks and gateway must be settled too, or its own routes would seem to be unwanted.
        let complete = fleet.view().is_complete() && fleet.suspect().is_none() && self.ipam.is_settled();
        let prune = if complete && self.cx.startup.listing_trusted == Some(true) {
            let gossip_settled = self.cx.now.monotonic >= GOSSIP_SETTLED;
            Prune { ipcache: gossip_settled, services: gossip_settled, ..Prune::ALL }
        } else {
            Prune::NONE
        };
        if prune.services {
            self.services.forget_unconfirmed(&mut self.cx);
        }
        self.audit.compare(&mut self.cx, observed, prune);
    }

    fn on_applied(&mut self, outcome: &PlanOutcome) {
        let cx = &mut self.cx;
        cx.counters.op_failures += outcome.failures.len() as u64;
        let completed = cx.kernel.complete(cx.now.monotonic, outcome);
        for key in &completed.done {
            if let TableKey::Endpoint(id) = key {
                self.endpoints.on_done(cx, &mut allocators!(self), *id);
            }
        }
        for (key, error) in &completed.failed {
            cx.error(format!("{key}: {error}"));
            if let TableKey::Endpoint(id) = key {
                self.endpoints.on_failed(cx, *id, outcome.generation, error);
            }
        }
    }

    /// Asks to be woken for whatever comes due first, if that has changed.
    fn wake(&mut self) {
        let next = [
            self.early_calls.front().map(|(deadline, ..)| *deadline),
            self.cx.requests.next_wake(),
            self.cx.kernel.next_retry(),
            self.ipam.next_wake(),
            self.identities.next_wake(),
            self.endpoints.next_wake(),
            self.records.next_wake(),
            self.health.next_wake(),
            self.audit.next_wake(),
            self.snapshots.next_wake(&self.cx.changes),
        ];
        // What is due and was not done waits for something other than time.
        let next = next.into_iter().flatten().chain(self.fleet.next_wake());
        let next = next.filter(|at| *at > self.cx.now.monotonic).min();
        if let Some(at) = next.filter(|_| next != self.wake_at) {
            self.wake_at = next;
            self.cx.command(Command::WakeAt(at));
        }
    }
}
