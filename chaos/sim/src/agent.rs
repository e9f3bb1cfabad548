//! One machine: its kernel, its agent, and the shell around it as values.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use datapath_plan::{FakeDatapath, Plan};
use kvstore_schema::{Key, KvFailure, KvOp, KvRequest, LeaseId, Revision, Schema, Txn};
use kvstore_store::MemState;
use node_core::{
    CallError, CallId, Command, Event, GossipUpdate, KvId, KvUpdate, Node, NodeConfig, Now, Reply, Snapshot,
};
use node_facts::NodeFacts;

struct Lease {
    id: Option<LeaseId>,
    key: Key,
    value: Arc<[u8]>,
    ttl: Duration,
}

/// One machine.
pub struct Agent {
    pub config: NodeConfig,
    /// `None` while the agent is stopped.
    pub node: Option<Node>,
    pub kernel: FakeDatapath,
    /// The last snapshot.
    pub disk: Option<Box<Snapshot>>,
    /// Whether the store can be reached from here.
    pub store_up: bool,
    /// What the node was halted for.
    pub halts: Vec<String>,
    /// Addresses that gossip was told of.
    pub gossip_peers: Vec<std::net::SocketAddr>,
    started_at: Duration,
    events: VecDeque<Event>,
    requests: VecDeque<(KvId, KvRequest)>,
    plan: Option<Plan>,
    observe: bool,
    told: Option<NodeFacts>,
    telling: bool,
    lease: Option<Lease>,
    wake_at: Option<Duration>,
    /// Up to where the watch has delivered; `None`: a listing comes first.
    watched: Option<Revision>,
    said_lost: bool,
}

impl Agent {
    pub fn new(config: NodeConfig) -> Self {
        let mut agent = Self {
            config,
            node: None,
            kernel: FakeDatapath::new(),
            disk: None,
            store_up: true,
            halts: Vec::new(),
            gossip_peers: Vec::new(),
            started_at: Duration::ZERO,
            events: VecDeque::new(),
            requests: VecDeque::new(),
            plan: None,
            observe: false,
            told: None,
            telling: false,
            lease: None,
            wake_at: None,
            watched: None,
            said_lost: false,
        };
        agent.restart(Duration::ZERO);
        agent
    }

    pub fn restart(&mut self, now: Duration) {
        self.stop();
        self.config.incarnation += 1;
        self.config.seed[1] += 1;
        self.started_at = now;
        self.node = Some(Node::new(self.config.clone()));
        self.events.push_back(Event::Started { snapshot: self.disk.clone() });
    }

    /// Puts a copy of the node in its place that was written to bytes and read back: nobody should notice.
    pub fn reload(&mut self) {
        let Some(node) = &self.node else { return };
        let codec = bincode::config::standard();
        let bytes = bincode::serde::encode_to_vec(node, codec).expect("a node can be written");
        let (copy, used): (Node, usize) =
            bincode::serde::decode_from_slice(&bytes, codec).expect("what was written can be read");
        assert_eq!(used, bytes.len());
        assert_eq!(bincode::serde::encode_to_vec(&copy, codec).expect("as before"), bytes);
        self.node = Some(copy);
    }

    /// Kills the agent; the kernel stays, and the lease until it runs out.
    pub fn stop(&mut self) {
        self.node = None;
        self.events.clear();
        self.requests.clear();
        self.plan = None;
        self.observe = false;
        self.told = None;
        self.telling = false;
        self.lease = None;
        self.wake_at = None;
        self.watched = None;
        self.said_lost = false;
    }

    pub fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub fn hear(&mut self, facts: NodeFacts) {
        if self.node.is_some() {
            self.events.push_back(Event::Gossip(GossipUpdate::Facts(facts)));
        }
    }

    pub fn wake_at(&self) -> Option<Duration> {
        self.wake_at
    }

    /// Time has come: keeps the lease, wakes the node when it asked for that.
    pub fn tick(&mut self, store: &mut MemState, now: Duration) {
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            self.events.push_back(Event::Woke);
        }
        // Gossip repeats what it knows.
        self.telling = self.told.is_some();
        if !self.store_up {
            return;
        }
        if let Some(lease) = &mut self.lease {
            let kept = lease.id.is_some_and(|id| store.lease_keep_alive(id).is_ok());
            if !kept {
                let id = store.lease_grant(lease.ttl);
                lease.id = Some(id);
                let put = KvOp::Put { key: lease.key.clone(), value: lease.value.clone(), lease: Some(id) };
                store.txn(&Txn::new().then(put)).expect("a put on a new lease");
            }
        }
    }

    fn watch_has_news(&self, store: &MemState) -> bool {
        match (self.store_up, self.watched) {
            (true, None) => true,
            (true, Some(at)) => self.said_lost || at < store.revision(),
            (false, _) => !self.said_lost,
        }
    }

    pub fn has_work(&self, store: &MemState, _now: Duration) -> bool {
        self.node.is_some()
            && (!self.events.is_empty()
                || !self.requests.is_empty()
                || self.plan.is_some()
                || self.observe
                || self.telling
                || self.watch_has_news(store))
    }

    /// Does one thing that is pending. Returns facts that it tells.
    pub fn act(
        &mut self,
        store: &mut MemState,
        now: Duration,
        draw: u64,
        replies: &mut BTreeMap<CallId, Result<Reply, CallError>>,
    ) -> Option<NodeFacts> {
        let choices = [
            !self.events.is_empty(),
            !self.requests.is_empty(),
            self.plan.is_some(),
            self.observe,
            self.telling,
            self.watch_has_news(store),
        ];
        let possible: Vec<usize> = (0..choices.len()).filter(|index| choices[*index]).collect();
        match possible[(draw % possible.len() as u64) as usize] {
            0 => {
                let event = self.events.pop_front().expect("there is one");
                self.handle(event, now, replies);
            }
            1 => {
                // Requests overtake one another.
                let index = (draw >> 8) as usize % self.requests.len();
                let (id, request) = self.requests.remove(index).expect("in range");
                let outcome = if self.store_up {
                    store.execute(&request)
                } else {
                    Err(KvFailure::Unavailable("no route to it".to_owned()))
                };
                self.events.push_back(Event::KvAnswer(id, outcome));
            }
            2 => {
                let plan = self.plan.take().expect("there is one");
                let outcome = self.kernel.apply(&plan);
                self.events.push_back(Event::Applied(outcome));
            }
            3 => {
                assert!(self.plan.is_none(), "read while a plan is carried out");
                self.observe = false;
                self.events.push_back(Event::Observed(Ok(self.kernel.observe())));
            }
            4 => {
                self.telling = false;
                return self.told.clone();
            }
            _ => self.watch(store),
        }
        None
    }

    fn watch(&mut self, store: &MemState) {
        let update = if !self.store_up {
            self.said_lost = true;
            KvUpdate::Lost("no route to it".to_owned())
        } else if let Some(events) = self.watched.and_then(|at| store.events_since(at.next()).ok()) {
            self.said_lost = false;
            self.watched = Some(store.revision());
            KvUpdate::Changed { events, revision: store.revision() }
        } else {
            self.said_lost = false;
            let root = Schema::new(&self.config.fleet).root();
            let page = store.list(&root, None, None, usize::MAX).expect("now is never compacted");
            self.watched = Some(page.revision);
            KvUpdate::Listed(page)
        };
        self.events.push_back(Event::Kv(update));
    }

    /// Makes the watch list again, as after a compaction or when the store was replaced.
    pub fn relist(&mut self) {
        self.watched = None;
    }

    fn handle(
        &mut self,
        event: Event,
        now: Duration,
        replies: &mut BTreeMap<CallId, Result<Reply, CallError>>,
    ) {
        let monotonic = now - self.started_at;
        let node = self.node.as_mut().expect("the agent runs");
        for command in node.handle(Now { monotonic, wall: now }, event) {
            match command {
                Command::Apply(plan) => {
                    assert!(self.plan.is_none() && !self.observe, "one thing at a time in the kernel");
                    self.plan = Some(plan);
                }
                Command::Observe => {
                    assert!(self.plan.is_none() && !self.observe, "one thing at a time in the kernel");
                    self.observe = true;
                }
                Command::Kv(id, request) => self.requests.push_back((id, request)),
                Command::KeepAlive { key, value, ttl } => {
                    self.lease = Some(Lease { id: None, key, value, ttl });
                }
                Command::Publish(facts) => {
                    self.told = Some(facts);
                    self.telling = true;
                }
                Command::Persist(snapshot) => self.disk = Some(snapshot),
                Command::AddPeer(address) => self.gossip_peers.push(address),
                Command::ForgetPeer(address) => self.gossip_peers.retain(|peer| *peer != address),
                Command::Reply(call, answer) => {
                    assert!(replies.insert(call, answer).is_none(), "{call:?} was answered twice");
                }
                Command::WakeAt(at) => self.wake_at = Some(at + self.started_at),
                Command::Halt(text) => self.halts.push(text),
            }
        }
    }
}
