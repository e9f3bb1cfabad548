//! Everything around the node: its shell, its kernel, etcd, and other influences.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use datapath_plan::{Attachment, EndpointId, FakeDatapath, OpErrorKind, Plan, TableKey};
use kvstore_schema::{
    KvFailure, KvOp, KvOpResult, KvOutcome, KvRequest, KvResponse, ListPage, Revision, Schema, StoreIdentity,
    Txn, TxnResponse,
};
use kvstore_store::MemState;
use node_core::{
    Call, CallId, Command, EndpointSpec, Event, GossipUpdate, KvId, KvUpdate, Node, NodeConfig, Now, Probe,
    ProbeId, SavedEndpoint, Snapshot,
};
use node_facts::Liveness;

use super::{node_config, value};
use crate::{draw::Draw, target::sample};

/// A node that is not idle after so many steps never will be.
const MAX_SETTLE_STEPS: usize = 20_000;

pub struct World {
    hostile: bool,
    config: NodeConfig,
    schema: Schema,
    node: Node,
    /// Handles the same events from some moment on: replay equals live.
    twin: Option<Node>,
    kernel: FakeDatapath,
    failing: BTreeSet<TableKey>,
    store: MemState,
    /// How far the watch has delivered; `None`: a listing comes first.
    watched: Option<Revision>,
    now: Duration,
    wake_at: Option<Duration>,
    requests: Vec<(KvId, KvRequest)>,
    plan: Option<Plan>,
    observe: bool,
    probes: Vec<Probe>,
    disk: Option<Box<Snapshot>>,
    disk_endpoints: BTreeMap<EndpointId, SavedEndpoint>,
    calls: u64,
    open_calls: BTreeSet<CallId>,
}

impl World {
    pub fn new(hostile: bool) -> Self {
        let config = node_config();
        let mut world = Self {
            hostile,
            schema: Schema::new(&config.fleet),
            node: Node::new(config.clone()),
            config,
            twin: None,
            kernel: FakeDatapath::new(),
            failing: BTreeSet::new(),
            store: MemState::new(StoreIdentity(1)),
            watched: None,
            now: Duration::ZERO,
            wake_at: None,
            requests: Vec::new(),
            plan: None,
            observe: false,
            probes: Vec::new(),
            disk: None,
            disk_endpoints: BTreeMap::new(),
            calls: 0,
            open_calls: BTreeSet::new(),
        };
        world.handle(Event::Started { snapshot: None, endpoints: Vec::new() });
        world
    }

    fn handle(&mut self, event: Event) {
        let now = Now { monotonic: self.now, wall: self.now };
        if let Some(twin) = &mut self.twin {
            let expected = twin.handle(now, event.clone());
            let commands = self.node.handle(now, event);
            assert_eq!(commands, expected, "the same events give other commands");
            self.take(commands);
        } else {
            let commands = self.node.handle(now, event);
            self.take(commands);
        }
    }

    /// Takes the node's commands, each of which must be one that a shell can carry out.
    fn take(&mut self, commands: Vec<Command>) {
        let root = self.schema.root();
        for command in commands {
            match command {
                Command::Apply(plan) => {
                    assert!(self.plan.is_none() && !self.observe, "one thing at a time in the kernel");
                    assert!(!plan.ops.is_empty(), "a plan for nothing");
                    self.plan = Some(plan);
                }
                Command::Observe => {
                    assert!(self.plan.is_none() && !self.observe, "one thing at a time in the kernel");
                    self.observe = true;
                }
                Command::Kv(id, request) => {
                    if let KvRequest::Txn(txn) = &request {
                        assert!(txn.then.len() <= Txn::MAX_OPS && txn.otherwise.len() <= Txn::MAX_OPS);
                        for op in txn.then.iter().chain(&txn.otherwise) {
                            let (KvOp::Put { key, .. } | KvOp::Delete(key) | KvOp::Get(key)) = op;
                            assert!(root.contains(key), "{key} is not the fleet's");
                        }
                    }
                    assert!(self.requests.iter().all(|(other, _)| *other != id), "{id:?} is asked twice");
                    self.requests.push((id, request));
                }
                Command::KeepAlive { key, .. } => assert!(root.contains(&key)),
                Command::Publish(facts) => {
                    assert_eq!(facts.node, self.config.node);
                }
                Command::AddPeer(address) => assert_ne!(address.port(), 0, "{address} cannot be reached"),
                Command::ForgetPeer(_) => {}
                Command::Persist(snapshot) => self.disk = Some(snapshot),
                Command::PersistEndpoint(id, Some(saved)) => drop(self.disk_endpoints.insert(id, *saved)),
                Command::PersistEndpoint(id, None) => drop(self.disk_endpoints.remove(&id)),
                Command::Reply(call, _) => {
                    assert!(self.open_calls.remove(&call), "{call:?} is answered twice, or was never made");
                }
                Command::WakeAt(at) => {
                    assert!(at > self.now, "to be woken in the past is a busy loop");
                    self.wake_at = Some(at);
                }
                Command::Halt(text) => assert!(!text.is_empty()),
                Command::Probe(probes) => {
                    for probe in probes {
                        let unique = self.probes.iter().all(|other| other.id != probe.id);
                        assert!(unique && !probe.timeout.is_zero(), "{probe:?}");
                        self.probes.push(probe);
                    }
                }
            }
        }
    }

    /// Lets one thing happen.
    pub fn step(&mut self, draw: &mut Draw) {
        match draw.below(26) {
            0..=3 => self.answer_one(draw),
            4 => self.answer_badly(draw),
            5..=7 => self.apply(),
            8 => self.fail_something(draw),
            9 | 10 => self.read_kernel(draw),
            11 | 12 => self.watch(),
            13 => self.watched = None,
            14 => self.handle(Event::Kv(KvUpdate::Lost("no route to it".to_owned()))),
            15 => self.another_writes(draw),
            16 => self.hostile_watch(draw),
            17 | 18 => self.call(draw),
            19 => self.gossip(draw),
            20 => self.handle(Event::Underlay(value::underlay(draw))),
            21 | 22 => {
                self.now += Duration::from_millis(u64::from(draw.byte()) * 300);
                self.handle(Event::Woke);
            }
            23 => self.wake(),
            24 => self.restart(draw),
            _ => self.twin = Some(self.node.clone()),
        }
    }

    fn answer(&mut self, index: usize, outcome: KvOutcome) {
        let (id, _) = self.requests.swap_remove(index);
        self.handle(Event::KvAnswer(id, outcome));
    }

    fn answer_one(&mut self, draw: &mut Draw) {
        if !self.requests.is_empty() {
            let index = draw.below(self.requests.len());
            let outcome = self.store.execute(&self.requests[index].1);
            self.answer(index, outcome);
        }
    }

    /// Answers not at all, ambiguously, or with an answer of another request's kind.
    fn answer_badly(&mut self, draw: &mut Draw) {
        if self.requests.is_empty() {
            return;
        }
        let index = draw.below(self.requests.len());
        let carried_out = draw.bool();
        let outcome = match draw.below(if self.hostile { 6 } else { 2 }) {
            0 => Err(KvFailure::Unavailable("away".to_owned())),
            1 => {
                if carried_out {
                    drop(self.store.execute(&self.requests[index].1));
                }
                Err(KvFailure::Ambiguous("timed out".to_owned()))
            }
            2 => Err(KvFailure::Refused("no".to_owned())),
            3 => Ok(KvResponse::List(self.page(draw))),
            _ => Ok(KvResponse::Txn(self.txn_response(draw))),
        };
        self.answer(index, outcome);
    }

    fn page(&self, draw: &mut Draw) -> ListPage {
        let entries = (0..draw.below(6)).map(|_| value::key_value(draw, &self.schema)).collect();
        let store = StoreIdentity(1 + u64::from(draw.byte() == 9));
        ListPage { entries, revision: value::revision(draw), store, more: draw.byte() == 9 }
    }

    fn txn_response(&self, draw: &mut Draw) -> TxnResponse {
        let results = (0..draw.below(5))
            .map(|_| match draw.below(4) {
                0 => KvOpResult::Put,
                1 => KvOpResult::Deleted(draw.u64()),
                2 => KvOpResult::Got(None),
                _ => KvOpResult::Got(Some(value::key_value(draw, &self.schema))),
            })
            .collect();
        TxnResponse { succeeded: draw.bool(), revision: value::revision(draw), results }
    }

    fn apply(&mut self) {
        if let Some(plan) = self.plan.take() {
            let outcome = self.kernel.apply(&plan);
            self.handle(Event::Applied(outcome));
        }
    }

    fn fail_something(&mut self, draw: &mut Draw) {
        let Some(key) = self.plan.iter().flat_map(|plan| &*plan.ops).filter_map(TableKey::of).next() else {
            return;
        };
        let kind = draw.choose(&[
            &OpErrorKind::Transient,
            &OpErrorKind::NamespaceGone,
            &OpErrorKind::Capacity,
            &OpErrorKind::Conflict,
        ]);
        self.kernel.fail(key, *kind);
        self.failing.insert(key);
    }

    fn read_kernel(&mut self, draw: &mut Draw) {
        if !std::mem::take(&mut self.observe) {
            return;
        }
        let observed = match draw.below(4) {
            0 => Err("cannot be read".to_owned()),
            1 if self.hostile => Ok(value::observed(draw)),
            _ => Ok(self.kernel.observe()),
        };
        self.handle(Event::Observed(observed));
    }

    fn watch(&mut self) {
        let revision = self.store.revision();
        let update = match self.watched.map(|at| self.store.events_since(at.next())) {
            Some(Ok(events)) => KvUpdate::Changed { events, revision },
            _ => {
                let root = self.schema.root();
                KvUpdate::Listed(
                    self.store.list(&root, None, None, usize::MAX).expect("now is never compacted"),
                )
            }
        };
        self.watched = Some(revision);
        self.handle(Event::Kv(update));
    }

    /// Another member's write, right or wrong: a hostile member has the key of the fleet's etcd.
    fn another_writes(&mut self, draw: &mut Draw) {
        if !self.hostile {
            return;
        }
        let (key, value) = value::record(draw, &self.schema);
        let op = if draw.one_in(4) { KvOp::Delete(key) } else { KvOp::Put { key, value, lease: None } };
        drop(self.store.txn(&Txn::new().then(op)));
    }

    fn hostile_watch(&mut self, draw: &mut Draw) {
        if !self.hostile {
            return;
        }
        let update = if draw.one_in(4) {
            KvUpdate::Listed(self.page(draw))
        } else {
            let events = (0..draw.below(6)).map(|_| value::kv_event(draw, &self.schema)).collect();
            KvUpdate::Changed { events, revision: value::revision(draw) }
        };
        self.handle(Event::Kv(update));
    }

    fn call(&mut self, draw: &mut Draw) {
        let what = draw.byte();
        let name = sample::endpoint_name(["e0", "e1", "e2", "e3"][usize::from(what % 4)]);
        let call = match what >> 4 {
            0..=3 => {
                let attachment = Attachment::Netns {
                    path: format!("/run/netns/{name}").into(),
                    interface: "eth0".to_owned(),
                };
                let address = (draw.byte() == 2).then(|| value::address(draw));
                Call::EndpointAdd(EndpointSpec { name, labels: value::labels(draw), attachment, address })
            }
            4..=7 => Call::EndpointDelete(name),
            8 => Call::EndpointDrain(name),
            9 | 10 => Call::NodeRemove(value::node(draw)),
            11 | 12 => Call::CidrRelease(value::network(draw)),
            13 => {
                let (name, expected) = (value::service_name(draw), value::expected(draw));
                Call::ServicePut { name, spec: value::service_spec(draw), expected }
            }
            14 => Call::ServiceDelete { name: value::service_name(draw), expected: value::expected(draw) },
            _ => Call::Audit { repair: draw.bool() },
        };
        self.calls += 1;
        self.open_calls.insert(CallId(self.calls));
        self.handle(Event::Called(CallId(self.calls), call));
    }

    fn gossip(&mut self, draw: &mut Draw) {
        if !self.hostile {
            return;
        }
        let update = if draw.one_in(4) {
            let liveness = *draw.choose(&[&Liveness::Alive, &Liveness::Silent, &Liveness::Dead]);
            GossipUpdate::Live { node: value::node(draw), liveness }
        } else {
            let facts = value::facts(draw);
            if facts.validate().is_err() {
                return; // the codec has refused it
            }
            GossipUpdate::Facts(Box::new(facts))
        };
        self.handle(Event::Gossip(update));
    }

    /// Answers every probe, positively or negatively, and one that was not sent.
    fn answer_probes(&mut self) {
        let mut answers: Vec<(ProbeId, Result<(), String>)> = std::mem::take(&mut self.probes)
            .into_iter()
            .map(|probe| (probe.id, if probe.id.0 % 3 == 0 { Ok(()) } else { Err("é\"\n".repeat(40)) }))
            .collect();
        answers.extend(answers.last().cloned());
        self.handle(Event::Probed(answers));
    }

    fn wake(&mut self) {
        self.answer_probes();
        if let Some(at) = self.wake_at.take() {
            self.store.advance(at.saturating_sub(self.now));
            self.now = self.now.max(at);
            self.handle(Event::Woke);
        }
    }

    fn restart(&mut self, draw: &mut Draw) {
        self.config.incarnation += 1;
        self.node = Node::new(self.config.clone());
        self.twin = None;
        self.requests.clear();
        self.probes.clear();
        self.open_calls.clear();
        (self.plan, self.observe, self.wake_at, self.watched) = (None, false, None, None);
        if draw.one_in(8) {
            self.disk = None;
            self.disk_endpoints.clear();
        }
        if draw.one_in(8) {
            self.kernel = FakeDatapath::new();
        }
        let snapshot = self.disk.clone();
        let endpoints = self.disk_endpoints.values().cloned().collect();
        self.handle(Event::Started { snapshot, endpoints });
    }

    /// Makes everything work from now on.
    pub fn heal(&mut self) {
        for key in std::mem::take(&mut self.failing) {
            self.kernel.heal(&key);
        }
        self.watched = None;
    }

    /// Answers every request, and lets time pass until the node is idle.
    pub fn settle(&mut self) {
        let honest = &mut Draw::new(&[2; 1]);
        let mut idle_wakes = 0;
        for _ in 0..MAX_SETTLE_STEPS {
            if !self.requests.is_empty() {
                self.answer_one(honest);
            } else if self.plan.is_some() {
                self.apply();
            } else if self.observe {
                self.read_kernel(&mut Draw::new(&[2]));
            } else if self.watched != Some(self.store.revision()) {
                self.watch();
            } else if idle_wakes < 40 {
                idle_wakes += 1;
                self.wake();
            } else {
                return;
            }
        }
        panic!("the node does not come to rest: {:#?}", self.node.status());
    }

    /// Checks that the kernel has the node's desired state, and every call was answered.
    pub fn check(&self) {
        let status = self.node.status();
        assert!(self.open_calls.is_empty(), "never answered: {:?}", self.open_calls);
        assert_eq!((status.plan.dirty, status.plan.in_flight), (0, false), "{status:#?}");
        let mut wanted = self.node.wanted().clone();
        wanted.endpoints.values_mut().for_each(|endpoint| endpoint.attachment = None);
        let kernel = self.kernel.observe().tables;
        let keys: BTreeSet<TableKey> = kernel.keys().union(&wanted.keys()).copied().collect();
        for key in keys {
            assert_eq!(kernel.get(&key), wanted.get(&key), "{key}: in the kernel, and wanted: {status:#?}");
        }
    }
}
