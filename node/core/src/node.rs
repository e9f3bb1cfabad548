//! The node: one value, one way in (`handle`), and accessors that only read.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use datapath_plan::{Limits, Reconciler, Tables};
use identity::LabelFilter;
use kvstore_claims::{Collector, FleetView};
use kvstore_schema::{Revision, Schema};
use serde::{Deserialize, Serialize};

use crate::{
    Call, CallError, CallErrorKind, CallId, Command, Counters, CountsView, ErrorView, Event, NodeConfig, Now,
    PlanView, Reply, StatusView, StoreView, Underlay,
    audit::Audit,
    desired::Desired,
    endpoints::Endpoints,
    health::Health,
    identities::Identities,
    ipam::Ipam,
    limits::ENDPOINT_WAIT,
    mark::Marking,
    membership::{Membership, Phase},
    peers::Peers,
    records::Records,
    restoring::Restoring,
    services::Services,
    snapshot::Snapshots,
    store::StoreState,
    tasks::{Task, Tasks},
};

/// Everything that one agent knows and wants. One per agent, owned by the task that runs it.
///
/// What is serialised is all of it: a node read back goes on exactly as this one would (the agent's log of events
/// begins with it). There is no other use for the bytes: one build's are not another's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) label_filter: LabelFilter,
    #[serde(with = "rng")]
    pub(crate) rng: fastrand::Rng,
    /// The time of the event that is being handled.
    pub(crate) now: Now,
    started_at: Duration,
    /// The store's revision when its records were taken over: references from before are a former agent's.
    pub(crate) started_revision: Revision,
    /// What the event that is being handled asks for.
    pub(crate) out: Vec<Command>,
    pub(crate) view: FleetView,
    pub(crate) store: StoreState,
    pub(crate) tasks: Tasks,
    pub(crate) marking: Marking,
    pub(crate) membership: Membership,
    pub(crate) underlay: Underlay,
    /// How often this node has changed its addresses since the start: tells which of a record and a fact is newer.
    pub(crate) moves: u64,
    /// The gateway that the kernel had at the start; holds until the store tells this node's blocks.
    pub(crate) adopted_gateway: Option<IpAddr>,
    pub(crate) ipam: Ipam,
    pub(crate) identities: Identities,
    pub(crate) endpoints: Endpoints,
    pub(crate) records: Records,
    pub(crate) peers: Peers,
    pub(crate) desired: Desired,
    pub(crate) services: Services,
    pub(crate) health: Health,
    pub(crate) reconciler: Reconciler,
    pub(crate) audit: Audit,
    pub(crate) snapshots: Snapshots,
    /// Calls about endpoints that came before this node knew its own, with the end of their patience.
    early: VecDeque<(Duration, CallId, Call)>,
    collector: Collector,
    collect_at: Duration,
    pub(crate) counters: Counters,
    last_error: Option<ErrorView>,
    wake_at: Option<Duration>,
}

/// The generator is its seed.
mod rng {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(rng: &fastrand::Rng, serializer: S) -> Result<S::Ok, S::Error> {
        rng.get_seed().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<fastrand::Rng, D::Error> {
        Ok(fastrand::Rng::with_seed(u64::deserialize(deserializer)?))
    }
}

impl Node {
    /// A node that has seen nothing yet; the first event must be `Started`.
    ///
    /// # Panics
    /// When a pattern of `identity_labels` is not one: whoever reads the configuration has checked them.
    pub fn new(config: NodeConfig) -> Self {
        let schema = Schema::new(&config.fleet);
        // Both halves of the seed count; fastrand takes 64 bits.
        let patterns = config.identity_labels.iter().map(|pattern| pattern.parse());
        let patterns = patterns.collect::<Result<Vec<_>, _>>().expect("the configuration was checked");
        let seed = config.seed[0] ^ config.seed[1].rotate_left(32);
        Self {
            label_filter: LabelFilter::new(patterns),
            rng: fastrand::Rng::with_seed(seed),
            now: Now::default(),
            started_at: Duration::ZERO,
            started_revision: Revision::default(),
            out: Vec::new(),
            view: FleetView::new(schema),
            store: StoreState::default(),
            tasks: Tasks::default(),
            marking: Marking::default(),
            membership: Membership::default(),
            underlay: config.underlay.clone(),
            moves: 0,
            adopted_gateway: None,
            ipam: Ipam::new(&config),
            identities: Identities::default(),
            endpoints: Endpoints::default(),
            records: Records::default(),
            peers: Peers::default(),
            desired: Desired::default(),
            services: Services::default(),
            health: Health::new(&config.node),
            reconciler: Reconciler::new(Limits::default()),
            audit: Audit::default(),
            snapshots: Snapshots::default(),
            early: VecDeque::new(),
            collector: Collector::new(config.quarantine),
            collect_at: Duration::ZERO,
            counters: Counters::default(),
            last_error: None,
            wake_at: None,
            config,
        }
    }

    /// Takes one event in and says what is to be done about it, in this order.
    ///
    /// `now` never goes back. Commands are not repeated: the shell carries out each one exactly once.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Command> {
        self.now = now;
        self.counters.events += 1;
        match event {
            Event::Started { snapshot, endpoints } => {
                self.started_at = now.wall;
                self.collect_at = now.monotonic + self.collect_pause();
                self.endpoints.remember(endpoints);
                if let Some(snapshot) = snapshot {
                    self.restore(*snapshot);
                }
            }
            Event::Woke => {}
            Event::Kv(update) => self.on_kv_update(update),
            Event::KvAnswer(id, outcome) => self.on_kv_answer(id, outcome),
            Event::Gossip(update) => self.on_gossip(update),
            Event::Observed(result) => self.on_observed(result),
            Event::Applied(outcome) => self.on_applied(&outcome),
            Event::Called(call, request) => self.on_call(call, request),
            Event::Underlay(underlay) => self.on_underlay(underlay),
            Event::Disturbed(keys) => self.on_disturbed(&keys),
            Event::Probed(answers) => self.on_probed(answers),
        }
        self.pursue();
        let mut commands = self.persist_endpoints();
        commands.append(&mut self.out);
        commands
    }

    /// Does what has become possible or due. Costs O(what changed).
    fn pursue(&mut self) {
        self.answer_early();
        self.resume_due();
        self.expire_endpoints();
        self.pursue_membership();
        self.pursue_restoring();
        self.pursue_blocks();
        self.pursue_identities();
        self.collect();
        self.pursue_mark();
        self.settle_health();
        // Before the kernel has been read its numbers are not known, and would be given out anew.
        if self.audit.observed {
            self.refresh_desired();
        }
        self.pursue_health();
        self.pursue_kernel();
        self.pursue_records();
        self.publish();
        self.persist();
        self.wake();
    }

    fn on_call(&mut self, call: CallId, request: Call) {
        match request {
            Call::EndpointAdd(_) | Call::EndpointDelete(_) | Call::EndpointDrain(_)
                if !self.knows_its_endpoints() =>
            {
                self.early.push_back((self.now.monotonic + ENDPOINT_WAIT, call, request));
            }
            Call::EndpointAdd(spec) => self.add_endpoint(call, spec),
            Call::EndpointDelete(name) => self.delete_endpoint(call, &name),
            Call::EndpointDrain(name) => self.drain_endpoint(call, &name),
            Call::NodeRemove(node) => self.remove_node(call, node),
            Call::CidrRelease(cidr) => self.release_cidr(call, cidr),
            Call::ServicePut { name, spec, expected } => self.put_service(call, name, spec, expected),
            Call::ServiceDelete { name, expected } => self.delete_service(call, name, expected),
            Call::Audit { repair } => self.request_audit(call, repair),
        }
    }

    /// Answers calls that came before this node knew its endpoints, once it does or they have waited enough.
    fn answer_early(&mut self) {
        while let Some((deadline, _, _)) = self.early.front() {
            if self.knows_its_endpoints() {
                let (_, call, request) = self.early.pop_front().expect("there is one");
                self.on_call(call, request);
            } else if self.now.monotonic >= *deadline {
                let (_, call, _) = self.early.pop_front().expect("there is one");
                let text = match &self.last_error {
                    Some(error) if !self.audit.observed => error.text.clone(),
                    _ => "the names of the endpoints in the kernel are not known until the store answers"
                        .to_owned(),
                };
                self.refuse(
                    call,
                    CallErrorKind::Unavailable,
                    format!("this node has just started: {text}; try again"),
                );
            } else {
                break;
            }
        }
    }

    fn on_underlay(&mut self, underlay: Underlay) {
        self.desired.addresses.extend(self.underlay.addresses.iter().copied());
        self.moves += u64::from(self.underlay.addresses != underlay.addresses);
        self.underlay = underlay;
        self.desired.base = true;
        // A rival for one of our addresses, or an address family that we have now.
        self.touch_all_peers();
    }

    /// Plans one piece of garbage collection when the jittered pause is over.
    fn collect(&mut self) {
        if self.now.monotonic < self.collect_at {
            return;
        }
        self.collect_at = self.now.monotonic + self.collect_pause();
        let known = self.store.connected && !self.marking.is_doubted();
        if self.membership.phase != Phase::Joined || !known || self.audit.trusted != Some(true) {
            return;
        }
        let draw = self.rng.u64(..);
        if let Some(request) = self.collector.plan(&self.view, &self.used_numbers(), self.now.monotonic, draw)
        {
            self.ask(request, Task::Collect);
        }
    }

    fn collect_pause(&mut self) -> Duration {
        self.config.collect_interval.mul_f64(0.5 + self.rng.f64())
    }

    /// Asks to be woken for whatever comes due first, if that has changed.
    fn wake(&mut self) {
        let next = [
            self.early.front().map(|(deadline, _, _)| *deadline),
            self.tasks.next_wake(),
            self.identities.next_wake(),
            self.endpoints.next_wake(),
            self.records.next_wake(),
            self.ipam.next_wake(),
            self.audit.next_wake(),
            self.snapshots.next_wake(),
            self.health.next_wake(),
            self.reconciler.next_retry(),
            Some(self.membership.retry_at),
            self.store.restoring.as_ref().and_then(Restoring::next_wake),
            self.store.restoring.as_ref().map(Restoring::settle_at),
            self.marking.next_wake(),
            Some(self.collect_at),
        ];
        // What is due and was not done waits for something else than time.
        let next = next.into_iter().flatten().filter(|at| *at > self.now.monotonic).min();
        if let Some(at) = next.filter(|_| next != self.wake_at) {
            self.wake_at = next;
            self.out.push(Command::WakeAt(at));
        }
    }

    pub(crate) fn reply(&mut self, call: CallId, answer: Result<Reply, CallError>) {
        self.out.push(Command::Reply(call, answer));
    }

    pub(crate) fn refuse(&mut self, call: CallId, kind: CallErrorKind, text: String) {
        self.reply(call, Err(CallError::new(kind, text)));
    }

    /// Notes something that failed, for `status`.
    pub(crate) fn error(&mut self, text: String) {
        self.last_error = Some(ErrorView { at: self.now.wall, text });
    }

    /// The node at a glance.
    pub fn status(&self) -> StatusView {
        StatusView {
            node: self.config.node.clone(),
            fleet: self.config.fleet.clone(),
            fleet_id: self.membership.fleet_id.clone(),
            agent_version: self.config.agent_version.clone(),
            incarnation: self.config.incarnation,
            started_at: self.started_at,
            halted: self.membership.halted.clone(),
            warnings: self.warnings(),
            store: StoreView {
                connected: self.store.connected,
                lost: self.store.lost.clone(),
                revision: self.view.revision().0,
                heard_at: self.store.heard_at,
                requests_in_flight: self.tasks.in_flight(),
                writes_queued: self.records.queued(),
                rejected: self.rejected().len(),
            },
            underlay: self.underlay.addresses.clone(),
            pod_mtu_bytes: self.pod_mtu_bytes(),
            gateway: self.gateway(),
            cidrs: self.ipam.views(),
            plan: self.plan_view(),
            audit: self.audit.last().cloned(),
            last_error: self.last_error.clone(),
            counts: CountsView {
                nodes: self.nodes().len(),
                endpoints: self.endpoints.len(),
                fleet_endpoints: self.view.endpoint_count(),
                identities: self.view.identities().len(),
                ipcache: self.reconciler.wanted().ipcache.len(),
            },
            counters: self.counters.clone(),
        }
    }

    fn plan_view(&self) -> PlanView {
        let (planned, applied) = self.reconciler.generations();
        let failing = self.reconciler.failing().iter();
        PlanView {
            observed: self.audit.observed,
            planned,
            applied,
            in_flight: self.reconciler.in_flight(),
            dirty: self.reconciler.dirty(),
            failing: failing.map(|(key, failing)| (key.to_string(), failing.error.to_string())).collect(),
            full: self.reconciler.full().iter().map(ToString::to_string).collect(),
        }
    }

    /// What an operator should look at.
    fn warnings(&self) -> Vec<String> {
        let suspect = self.store.suspect.iter().map(|reason| format!("the store is not believed: {reason}"));
        let foreign = (self.audit.trusted == Some(false)).then(|| {
            "the store has never heard of this node, but its kernel holds a fleet: what is there is kept; if the fleet was made anew, run `warrend cleanup` on this node and start the agent again".to_owned()
        });
        let exhausted = self.ipam.shortage(&self.config, self.store.connected);
        let lost = self.ipam.lost.iter().map(|cidr| {
            format!("pod CIDR {cidr} was taken from this node: delete the endpoints in it and add them again")
        });
        let full = self.reconciler.full().into_iter().map(|error| error.to_string());
        let missing = self.endpoints.missing().map(|name| {
            format!("endpoint {name} is not in the kernel since the restart: add it again, or delete it")
        });
        let remembered = (self.snapshots.restored && !self.view.is_complete()).then(|| {
            "the store has not been read since the start: this node serves from its snapshot".to_owned()
        });
        suspect
            .chain(self.restoring_warning())
            .chain(self.routing_warnings())
            .chain(foreign)
            .chain(exhausted)
            .chain(lost)
            .chain(full)
            .chain(missing)
            .chain(remembered)
            .chain(self.health_warnings())
            .collect()
    }

    /// Everything that the kernel should hold.
    pub fn wanted(&self) -> &Tables {
        self.reconciler.wanted()
    }

    /// Everything that the kernel is believed to hold.
    pub fn applied(&self) -> &Tables {
        self.reconciler.applied()
    }

    /// Counters since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
