//! One machine: its kernel, its disk, its agent, and the shell around the agent as values.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use datapath_plan::{EndpointId, FakeDatapath, Plan, TableKey, Tables};
use kvstore_schema::{
    Condition, Key, KvEvent, KvFailure, KvOp, KvOutcome, KvRequest, LeaseId, ListPage, Revision, Schema,
    StoreIdentity, Txn,
};
use kvstore_store::{MemState, WriteFate, WriteFates};
use node_core::{
    CallError, CallId, Command, Event, GossipUpdate, KvId, KvUpdate, Node, NodeConfig, Now, Probe, Reply,
    SavedEndpoint, Snapshot,
};
use node_facts::NodeFacts;
use node_recorder::codec;

use crate::{bug::Bug, log::Log};

/// A call to a store that swallows everything is given up after this long, and a silent watch is.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(5);

/// Answers to calls, by their numbers.
pub type Replies = BTreeMap<CallId, Result<Reply, CallError>>;

#[derive(Clone)]
struct Lease {
    id: Option<LeaseId>,
    key: Key,
    value: Arc<[u8]>,
    ttl: Duration,
    fence: Condition,
}

/// What one step of a machine did, as far as others have to know.
#[derive(Default)]
pub(crate) struct Deed {
    /// In words, if somebody reads them.
    pub words: String,
    /// The node tells this by gossip from now on.
    pub told: Option<NodeFacts>,
    /// The kernel changed: what it held before.
    pub before: Option<Tables>,
    /// A request whose sender has given up and which arrives yet.
    pub late: Option<KvRequest>,
    /// Who is asked, for the world to answer.
    pub probes: Vec<Probe>,
}

/// Gives a node an event and carries out what concerns the kernel, to the end; the store does not answer, and
/// no time passes.
pub fn carry_out(node: &mut Node, kernel: &mut FakeDatapath, event: Event) {
    let mut events = vec![event];
    while let Some(event) = events.pop() {
        for command in node.handle(Now::default(), event) {
            match command {
                Command::Apply(plan) => events.push(Event::Applied(kernel.apply(&plan))),
                Command::Observe => events.push(Event::Observed(Ok(kernel.observe()))),
                _ => {}
            }
        }
    }
}

/// One machine.
#[derive(Clone)]
pub struct Agent {
    /// Its agent's configuration.
    pub config: NodeConfig,
    /// `None` while the agent is stopped.
    pub node: Option<Node>,
    /// Its kernel.
    pub kernel: FakeDatapath,
    /// The last snapshot.
    pub disk: Option<Box<Snapshot>>,
    /// The one before: what is there when the machine dies before the last one is written.
    pub disk_before: Option<Box<Snapshot>>,
    /// What is kept of its endpoints.
    pub disk_endpoints: BTreeMap<EndpointId, SavedEndpoint>,
    /// Whether the store can be reached from here; if not, calls are refused at once.
    pub store_up: bool,
    /// Whether the store swallows everything: calls end unanswered, the watch falls silent.
    pub store_hangs: bool,
    /// What becomes of its writes.
    pub fates: WriteFates,
    /// How far its wall clock was set back.
    pub wall_behind: Duration,
    /// Whether the process stands still: nothing of it runs, and everything waits for it.
    pub paused: bool,
    /// What the node was halted for.
    pub halts: Vec<String>,
    /// The bug that its shell has.
    pub bug: Option<Bug>,
    /// The log of its events, if one is kept.
    pub log: Option<Log>,
    bug_memory: Vec<KvEvent>,
    bug_sent: Vec<Txn>,
    started_at: Duration,
    events: VecDeque<Event>,
    requests: VecDeque<(Duration, KvId, KvRequest)>,
    plan: Option<Plan>,
    observe: bool,
    lease: Option<Lease>,
    wake_at: Option<Duration>,
    /// Up to where the watch has delivered, and of which store; `None`: a listing comes first.
    watched: Option<(StoreIdentity, Revision)>,
    silent_since: Option<Duration>,
    said_lost: bool,
    verbose: bool,
}

impl Agent {
    /// A machine with an empty kernel and disk, whose agent starts now.
    pub fn new(config: NodeConfig) -> Self {
        let mut agent = Self {
            config,
            node: None,
            kernel: FakeDatapath::new(),
            disk: None,
            disk_before: None,
            disk_endpoints: BTreeMap::new(),
            store_up: true,
            store_hangs: false,
            fates: WriteFates::default(),
            wall_behind: Duration::ZERO,
            paused: false,
            halts: Vec::new(),
            bug: None,
            log: None,
            bug_memory: Vec::new(),
            bug_sent: Vec::new(),
            started_at: Duration::ZERO,
            events: VecDeque::new(),
            requests: VecDeque::new(),
            plan: None,
            observe: false,
            lease: None,
            wake_at: None,
            watched: None,
            silent_since: None,
            said_lost: false,
            verbose: false,
        };
        agent.restart(Duration::ZERO);
        agent
    }

    /// Kills the agent and starts it again on the kernel and the disk that it left.
    pub(crate) fn restart(&mut self, now: Duration) {
        self.stop();
        self.config.incarnation += 1;
        self.config.seed[1] += 1;
        self.started_at = now;
        let mut config = self.config.clone();
        if let Some(bug) = self.bug {
            bug.in_config(&mut config);
        }
        let node = Node::new(config);
        if let Some(log) = &mut self.log {
            log.begin(&node);
        }
        self.node = Some(node);
        let endpoints = self.disk_endpoints.values().cloned().collect();
        self.events.push_back(Event::Started { snapshot: self.disk.clone(), endpoints });
    }

    /// Kills the agent; the kernel stays, and the lease until it runs out.
    pub fn stop(&mut self) {
        self.node = None;
        self.paused = false;
        self.events.clear();
        self.requests.clear();
        self.plan = None;
        self.observe = false;
        self.lease = None;
        self.wake_at = None;
        self.watched = None;
        self.silent_since = None;
        self.said_lost = false;
    }

    /// Puts a copy of the node in its place that was written to bytes and read back: nobody should notice.
    pub fn reload(&mut self) {
        let Some(node) = &self.node else { return };
        let bytes = codec::encode(node).expect("a node can be written");
        let copy: Node =
            codec::decode(&bytes).expect("what was written can be read, and no byte is left over");
        assert_eq!(codec::encode(&copy).expect("as before"), bytes);
        self.node = Some(copy);
    }

    /// Whether the agent is there and not standing still.
    pub fn runs(&self) -> bool {
        self.node.is_some() && !self.paused
    }

    /// Since its start.
    pub(crate) fn age(&self, now: Duration) -> Duration {
        now - self.started_at
    }

    /// Has the node told of something.
    pub fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Has the node told what another one says of itself.
    pub fn hear(&mut self, facts: NodeFacts) {
        self.gossip(GossipUpdate::Facts(Box::new(facts)));
    }

    pub(crate) fn gossip(&mut self, update: GossipUpdate) {
        if self.node.is_some() {
            self.events.push_back(Event::Gossip(update));
        }
    }

    /// Makes the watch list again, as after a compaction or when the store was replaced.
    pub fn relist(&mut self) {
        self.watched = None;
    }

    /// Breaks the watch; it goes on from where it was.
    pub fn break_watch(&mut self) {
        if self.node.is_some() {
            self.lose("the connection broke");
        }
    }

    /// Requests that are on their way to the store, to arrive whatever becomes of this machine.
    pub(crate) fn requests(&mut self) -> Vec<KvRequest> {
        let mut requests: Vec<KvRequest> =
            std::mem::take(&mut self.requests).into_iter().map(|(_, _, request)| request).collect();
        if let Some(bug) = self.bug {
            bug.in_queue(&mut requests, &mut self.bug_sent);
        }
        requests
    }

    pub(crate) fn wake_at(&self) -> Option<Duration> {
        self.wake_at.filter(|_| self.runs())
    }

    pub(crate) fn speak(&mut self, verbose: bool) {
        self.verbose = verbose;
    }

    /// Time has come: keeps the lease, wakes the node when it asked for that, gives up what hangs.
    pub(crate) fn tick(&mut self, store: &mut MemState, now: Duration) {
        if !self.runs() {
            return;
        }
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            self.events.push_back(Event::Woke);
        }
        if self.store_hangs {
            self.give_up(now);
            return;
        }
        self.silent_since = None;
        if !self.store_up {
            return;
        }
        if let Some(lease) = &mut self.lease {
            let kept = lease.id.is_some_and(|id| store.lease_keep_alive(id).is_ok());
            if !kept {
                let id = store.lease_grant(lease.ttl);
                let put = KvOp::Put { key: lease.key.clone(), value: lease.value.clone(), lease: Some(id) };
                let written =
                    store.txn(&Txn::new().when(lease.fence.clone()).then(put)).expect("a new lease");
                lease.id = written.succeeded.then_some(id);
            }
        }
    }

    fn give_up(&mut self, now: Duration) {
        let since = *self.silent_since.get_or_insert(now);
        while let Some((_, id, _)) = self.requests.pop_front_if(|(at, ..)| *at + GIVEN_UP_AFTER <= now) {
            self.events.push_back(Event::KvAnswer(id, Err(KvFailure::Ambiguous("deadline".to_owned()))));
        }
        if since + GIVEN_UP_AFTER <= now && !self.said_lost {
            self.lose("silent");
        }
    }

    fn lose(&mut self, why: &str) {
        self.said_lost = true;
        self.events.push_back(Event::Kv(KvUpdate::Lost(why.to_owned())));
    }

    fn watch_has_news(&self, store: &MemState) -> bool {
        match (self.store_hangs, self.store_up, self.watched) {
            (true, ..) => false,
            (_, true, None) => true,
            (_, true, Some((of, at))) => self.said_lost || of != store.identity() || at != store.revision(),
            (_, false, _) => !self.said_lost,
        }
    }

    pub(crate) fn has_work(&self, store: &MemState) -> bool {
        self.runs()
            && (!self.events.is_empty()
                || (!self.requests.is_empty() && !self.store_hangs)
                || self.plan.is_some()
                || self.observe
                || self.watch_has_news(store))
    }

    /// Does one thing that is pending.
    pub(crate) fn act(
        &mut self,
        store: &mut MemState,
        now: Duration,
        draw: u64,
        replies: &mut Replies,
    ) -> Deed {
        let choices = [
            !self.events.is_empty(),
            !self.requests.is_empty() && !self.store_hangs,
            self.plan.is_some(),
            self.observe,
            self.watch_has_news(store),
        ];
        let possible: Vec<usize> = (0..choices.len()).filter(|index| choices[*index]).collect();
        let mut deed = Deed::default();
        match possible[(draw % possible.len() as u64) as usize] {
            0 => {
                let event = self.events.pop_front().expect("there is one");
                self.handle(event, now, replies, &mut deed);
            }
            1 => {
                // Requests overtake one another.
                let index = (draw >> 8) as usize % self.requests.len();
                let (_, id, request) = self.requests.remove(index).expect("in range");
                self.say(&mut deed, || format!("store: {request:?}"));
                let outcome = self.request(store, request, &mut deed);
                self.events.push_back(Event::KvAnswer(id, outcome));
            }
            2 => {
                let plan = self.plan.take().expect("there is one");
                self.say(&mut deed, || format!("apply: {plan:?}"));
                deed.before = Some(self.kernel.tables().clone());
                let outcome = self.kernel.apply(&plan);
                self.events.push_back(Event::Applied(outcome));
            }
            3 => {
                assert!(self.plan.is_none(), "read while a plan is carried out");
                self.observe = false;
                self.say(&mut deed, || "observe".to_owned());
                self.events.push_back(Event::Observed(Ok(self.kernel.observe())));
            }
            _ => {
                self.say(&mut deed, || "watch".to_owned());
                self.watch(store, draw >> 8);
            }
        }
        deed
    }

    fn say(&self, deed: &mut Deed, words: impl FnOnce() -> String) {
        if self.verbose {
            deed.words = words();
        }
    }

    fn request(&mut self, store: &mut MemState, mut request: KvRequest, deed: &mut Deed) -> KvOutcome {
        if let (Some(bug), KvRequest::Txn(txn)) = (self.bug, &mut request) {
            bug.in_request(&Schema::new(&self.config.fleet), txn);
            self.bug_sent.push(txn.clone());
        }
        if !self.store_up {
            return Err(KvFailure::Unavailable("no route to it".to_owned()));
        }
        let ambiguous = || Err(KvFailure::Ambiguous("the connection broke".to_owned()));
        let outcome = match self.fates.draw() {
            WriteFate::Answered => store.execute(&request),
            WriteFate::AppliedUnanswered => {
                drop(store.execute(&request));
                ambiguous()
            }
            WriteFate::LostUnanswered => {
                deed.late = Some(request);
                ambiguous()
            }
        };
        match (self.bug, outcome) {
            (Some(Bug::AmbiguousIsDone), Err(failure)) => Bug::done(deed.late.take(), store).ok_or(failure),
            (_, outcome) => outcome,
        }
    }

    /// What the watch brings next: a listing, or some of the changes that are there.
    fn watch(&mut self, store: &MemState, draw: u64) {
        if !self.store_up {
            return self.lose("no route to it");
        }
        let lost = std::mem::take(&mut self.said_lost);
        let goes_on =
            |(of, at): &(StoreIdentity, Revision)| *of == store.identity() && *at <= store.revision();
        let watched = self.watched.filter(goes_on);
        let events = watched.and_then(|(_, at)| Some((at, store.events_since(at.next()).ok()?)));
        let Some((at, events)) = events else {
            let page = self.list(store);
            self.watched = Some((store.identity(), page.revision));
            return self.events.push_back(Event::Kv(KvUpdate::Listed(page)));
        };
        if lost {
            // That it goes on is said at once, whenever something changes.
            let update = KvUpdate::Changed { events: Vec::new(), revision: at };
            return self.events.push_back(Event::Kv(update));
        }
        // Whole revisions, at least one; more often than not all.
        let mut revisions: Vec<Revision> = events.iter().map(|event| event.mod_revision()).collect();
        revisions.dedup();
        let revision = match (draw % 4, revisions.len()) {
            (0, count) if count > 1 => revisions[(draw >> 2) as usize % count],
            _ => store.revision(),
        };
        let events = events.into_iter().filter(|event| event.mod_revision() <= revision).collect();
        self.watched = Some((store.identity(), revision));
        self.events.push_back(Event::Kv(KvUpdate::Changed { events, revision }));
    }

    fn list(&self, store: &MemState) -> ListPage {
        let root = Schema::new(&self.config.fleet).root();
        store.list(&root, None, None, usize::MAX).expect("now is never compacted")
    }

    fn handle(&mut self, event: Event, now: Duration, replies: &mut Replies, deed: &mut Deed) {
        self.say(deed, || format!("event: {event:?}"));
        let events = match self.bug {
            Some(bug) => {
                let node = self.node.as_ref().expect("the agent runs");
                bug.in_event(&self.config, node, &mut self.bug_memory, event)
            }
            None => vec![event],
        };
        let told = Now { monotonic: now - self.started_at, wall: now.saturating_sub(self.wall_behind) };
        for event in events {
            let node = self.node.as_mut().expect("the agent runs");
            let commands = match &mut self.log {
                Some(log) => log.handle(node, told, event),
                None => node.handle(told, event),
            };
            for command in commands {
                self.carry_out(command, now, replies, deed);
            }
        }
    }

    fn carry_out(&mut self, command: Command, now: Duration, replies: &mut Replies, deed: &mut Deed) {
        match command {
            Command::Apply(plan) => {
                assert!(self.plan.is_none() && !self.observe, "one thing at a time in the kernel");
                self.plan = Some(plan);
            }
            Command::Observe => {
                assert!(self.plan.is_none() && !self.observe, "one thing at a time in the kernel");
                self.observe = true;
            }
            Command::Kv(id, request) => self.requests.push_back((now, id, request)),
            Command::KeepAlive { key, value, ttl, fence } => {
                self.lease = Some(Lease { id: None, key, value, ttl, fence });
            }
            Command::Publish(facts) => deed.told = Some(facts),
            Command::Persist(snapshot) => self.disk_before = self.disk.replace(snapshot),
            Command::PersistEndpoint(id, Some(saved)) => drop(self.disk_endpoints.insert(id, *saved)),
            Command::PersistEndpoint(id, None) => drop(self.disk_endpoints.remove(&id)),
            // In this world gossip finds everybody.
            Command::AddPeer(_) | Command::ForgetPeer(_) => {}
            Command::Reply(call, answer) => {
                assert!(replies.insert(call, answer).is_none(), "{call:?} was answered twice");
            }
            Command::Probe(probes) => deed.probes.extend(probes),
            Command::WakeAt(at) => self.wake_at = Some(at + self.started_at),
            Command::Halt(text) => self.halts.push(text),
        }
    }

    /// Whether the kernel has an entry.
    pub fn has(&self, key: &TableKey) -> bool {
        self.kernel.tables().get(key).is_some()
    }
}
