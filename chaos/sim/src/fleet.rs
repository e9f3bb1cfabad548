//! The whole fleet in one value.
//!
//! Everything that may happen next (a request carried out, an answer, a batch of changes, a fact told) is a
//! pending action; which one happens is drawn from a seed, and after each the checkers look. No thread, no clock.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use kvstore_claims::FleetView;
use kvstore_schema::{Key, KvOp, KvRequest, Revision, Schema, StoreIdentity, Txn};
use kvstore_store::MemState;
use node_core::{Call, CallError, CallId, Event, Node, NodeConfig, ProbeTarget, Reply};

use crate::{
    agent::{Agent, Deed, Replies},
    bug::Bug,
    config::{config, spec},
    gossip::{Gossip, INTERVAL, News},
    invariant::{self, Checked, Invariant, Violation},
    truth::{Me, Subject, Truth},
};

/// The most steps of one `settle`, for each node: a fleet that is not quiet by then will never be.
const MAX_STEPS_PER_NODE: usize = 10_000;
/// The most that anybody can be behind: faults of a history are healed before.
const LAG: Duration = Duration::from_secs(900);
/// After its start, an agent hears of everybody within this, if gossip goes.
const HEARD: Duration = Duration::from_secs(10);
/// Steps that a failure is told with.
const REMEMBERED: usize = 60;

/// The whole fleet.
#[derive(Clone)]
pub struct Sim {
    /// The one store.
    pub store: MemState,
    /// Node `n` is `agents[n - 1]`.
    pub agents: Vec<Agent>,
    /// Since the fleet began.
    pub now: Duration,
    /// Whether gossip reaches anybody.
    pub gossip: bool,
    /// Gossip goes in rounds, by links that have faults; else at once.
    pub rounds: bool,
    /// The ways of gossip.
    pub links: Gossip,
    /// Workloads, and addresses outside the fleet, that answer no check.
    pub sick: BTreeSet<IpAddr>,
    /// Machines (from 1) of which nothing answers: without power. Their agents are stopped.
    pub dark: BTreeSet<usize>,
    /// Answers that nobody has taken yet.
    pub replies: Replies,
    pub(crate) rng: fastrand::Rng,
    pub(crate) truth: Truth,
    /// What happened last, if somebody wants to read it.
    pub(crate) story: Option<VecDeque<String>>,
    bug: Option<Bug>,
    calls: u64,
    asked: Vec<(CallId, usize, Call)>,
    /// Requests whose sender has given up.
    late: Vec<KvRequest>,
    /// The store as the checkers have seen it, and whether it is still the one that the fleet began with.
    view: FleetView,
    pub(crate) whole: bool,
    /// The newest revision that each agent has known in this life.
    revisions: Vec<i64>,
    checked: (Revision, u64),
    steps: u64,
}

impl Sim {
    /// `count` nodes that start at one moment beside an empty store.
    pub fn new(count: u8, seed: u64) -> Self {
        Self::with(seed, (1..=count).map(config).collect())
    }

    /// Nodes with these configurations.
    pub fn with(seed: u64, configs: Vec<NodeConfig>) -> Self {
        let schema = Schema::new(&"test".parse().expect("a name"));
        let mut sim = Self {
            store: MemState::new(StoreIdentity(1)),
            agents: Vec::new(),
            now: Duration::ZERO,
            gossip: true,
            rounds: false,
            links: Gossip::default(),
            sick: BTreeSet::new(),
            dark: BTreeSet::new(),
            replies: Replies::new(),
            rng: fastrand::Rng::with_seed(seed),
            truth: Truth::default(),
            story: None,
            bug: None,
            calls: 0,
            asked: Vec::new(),
            late: Vec::new(),
            view: FleetView::new(schema),
            whole: true,
            revisions: Vec::new(),
            checked: Default::default(),
            steps: 0,
        };
        configs.into_iter().for_each(|config| sim.join(config));
        sim
    }

    /// Plants a bug into every shell, from the next start of each agent on.
    pub fn plant(&mut self, bug: Bug) {
        self.bug = Some(bug);
        for n in 1..=self.agents.len() {
            self.agent(n).bug = Some(bug);
            self.restart(n);
        }
    }

    /// One more machine, whose agent starts now.
    pub fn join(&mut self, config: NodeConfig) {
        let mut agent = Agent::new(config);
        agent.bug = self.bug;
        agent.restart(self.now);
        self.agents.push(agent);
        self.revisions.push(0);
        self.links.forget(self.agents.len() - 1);
    }

    /// Where the store's keys lie.
    pub fn schema(&self) -> Schema {
        self.view.schema().clone()
    }

    /// Node `n` (from 1), which must be running.
    pub fn node(&self, n: usize) -> &Node {
        self.agents[n - 1].node.as_ref().expect("the agent runs")
    }

    /// Machine `n` (from 1).
    pub fn agent(&mut self, n: usize) -> &mut Agent {
        &mut self.agents[n - 1]
    }

    /// Calls a node's API; the answer comes to `replies`.
    pub fn call(&mut self, n: usize, call: Call) -> CallId {
        self.calls += 1;
        let id = CallId(self.calls);
        self.tell(|| format!("n{n} is called: {call:?}"));
        self.intend(n, &call);
        self.asked.push((id, n, call.clone()));
        self.agents[n - 1].push(Event::Called(id, call));
        id
    }

    /// Calls and waits until the fleet is quiet.
    pub fn ask(&mut self, n: usize, call: Call) -> Result<Reply, CallError> {
        let id = self.call(n, call);
        self.settle();
        self.replies
            .remove(&id)
            .unwrap_or_else(|| panic!("no answer to {id:?}: {:#?}", self.node(n).status()))
    }

    /// Adds an endpoint to node `n` and waits until the fleet is quiet.
    pub fn add(&mut self, n: usize, endpoint: &str, labels: &str) -> Result<Reply, CallError> {
        self.ask(n, Call::EndpointAdd(spec(endpoint, labels)))
    }

    /// Runs until nothing is left to do at this moment.
    ///
    /// # Panics
    /// When something is not as it always must be.
    pub fn settle(&mut self) {
        if let Err(violation) = self.quiet() {
            self.fail(&violation);
        }
    }

    /// The store as it is, decoded.
    pub fn store_view(&self) -> FleetView {
        let schema = self.schema();
        let mut view = FleetView::new(schema.clone());
        let page = self.store.list(&schema.root(), None, None, usize::MAX).expect("now is never compacted");
        view.apply_list(page);
        view
    }

    /// As [`Sim::settle`], without a panic.
    pub(crate) fn quiet(&mut self) -> Checked {
        for _ in 0..MAX_STEPS_PER_NODE * self.agents.len() {
            if !self.step()? {
                return Ok(());
            }
        }
        Err(Invariant::Converges.broken("the fleet does not come to rest".to_owned()))
    }

    /// Lets time pass, waking agents and keeping leases as it goes.
    ///
    /// # Panics
    /// When something is not as it always must be.
    pub fn advance(&mut self, by: Duration) {
        if let Err(violation) = self.pass(by) {
            self.fail(&violation);
        }
    }

    /// As [`Sim::advance`], without a panic.
    pub(crate) fn pass(&mut self, by: Duration) -> Checked {
        let end = self.now + by;
        // Leases are kept at a sixth of the shortest that there is.
        let pace = if self.rounds { INTERVAL } else { Duration::from_secs(5) };
        while self.now < end {
            let next = self.agents.iter().filter_map(Agent::wake_at).filter(|at| *at > self.now).min();
            let next = next.unwrap_or(end).min(self.now + pace).min(end);
            self.store.advance(next - self.now);
            self.now = next;
            for agent in &mut self.agents {
                agent.tick(&mut self.store, self.now);
            }
            if self.rounds && self.gossip {
                let agents = &self.agents;
                let news = self.links.rounds(self.now, |n| agents[n].runs(), &mut self.rng);
                self.spread(news);
            }
            self.arrive_late();
            self.quiet()?;
        }
        Ok(())
    }

    /// Requests that nobody waits for any more arrive at some time, or never.
    fn arrive_late(&mut self) {
        for request in std::mem::take(&mut self.late) {
            match self.rng.u8(0..20) {
                0 => {
                    self.tell(|| format!("arrives late: {request:?}"));
                    drop(self.store.execute(&request));
                }
                1 => {}
                _ => self.late.push(request),
            }
        }
    }

    fn spread(&mut self, news: Vec<News>) {
        for News { to, update } in news {
            self.agents[to].gossip(update);
        }
    }

    /// One action of one agent, drawn at random among those that have one. False: there is none.
    ///
    /// # Errors
    /// What is not as it always must be.
    pub fn step(&mut self) -> Result<bool, Violation> {
        let busy: Vec<usize> =
            (0..self.agents.len()).filter(|index| self.agents[*index].has_work(&self.store)).collect();
        let Some(index) = self.rng.choice(&busy).copied() else { return Ok(self.gossip_at_once()) };
        if !self.rounds && self.rng.bool() {
            self.gossip_at_once();
        }
        let draw = self.rng.u64(..);
        let deed = self.agents[index].act(&mut self.store, self.now, draw, &mut self.replies);
        self.steps += 1;
        self.after(index, deed)?;
        Ok(true)
    }

    fn gossip_at_once(&mut self) -> bool {
        if self.rounds || !self.gossip {
            return false;
        }
        let agents = &self.agents;
        let Some((from, to)) = self.links.next_due(|n| agents[n].runs()) else { return false };
        let news = self.links.exchange(from, to, self.now);
        self.spread(news);
        true
    }

    /// What follows from a step for others, and the checks.
    fn after(&mut self, index: usize, deed: Deed) -> Checked {
        if !deed.words.is_empty() {
            self.tell(|| format!("n{} {}", index + 1, deed.words));
        }
        if let Some(facts) = deed.told {
            self.links.publish(index, self.agents[index].config.incarnation, facts, self.now);
            if let Some(late) = self.links.late(self.bug) {
                (0..self.agents.len())
                    .filter(|n| *n != index)
                    .for_each(|n| self.agents[n].hear(late.clone()));
            }
        }
        let answers: Vec<_> =
            deed.probes.into_iter().map(|probe| (probe.id, self.answer(index, &probe.target))).collect();
        if !answers.is_empty() {
            self.agents[index].push(Event::Probed(answers));
        }
        if let Some(request) = deed.late
            && self.rng.bool()
        {
            self.late.push(request);
        }
        self.hear_answers()?;
        if let Some(before) = deed.before {
            let owners: Vec<IpAddr> =
                self.agents.iter().map(|agent| agent.config.underlay.addresses[0]).collect();
            let after = self.agents[index].kernel.tables();
            let me = Me {
                index,
                settled: self.agents[index].age(self.now) >= HEARD,
                life: self.agents[index].config.incarnation,
                unrecorded: &|ip| self.view.endpoint_at(ip).is_none(),
            };
            self.truth.put(&me, &before, after);
            if let Some(text) = self.truth.cut(&me, &before, after, &owners, (self.now, LAG)) {
                return Err(Invariant::NothingCut.broken(format!("n{}: {text}", index + 1)));
            }
            let addresses = |tables: &datapath_plan::Tables| -> BTreeSet<IpAddr> {
                tables.endpoints.values().map(|endpoint| endpoint.address).collect()
            };
            let cooldown = self.agents[index].config.address_cooldown;
            let (before, after) = (addresses(&before), addresses(after));
            self.truth
                .rest(&before, &after, self.now, cooldown)
                .map_err(|text| Invariant::Rest.broken(format!("n{}: {text}", index + 1)))?;
        }
        self.check(index)
    }

    fn check(&mut self, index: usize) -> Checked {
        let changed = (self.store.revision(), self.agents.iter().map(|agent| agent.kernel.steps().1).sum());
        if changed != self.checked {
            self.checked = changed;
            self.look_at_store()?;
        }
        if self.steps.is_multiple_of(8) {
            let given_up = |number| self.truth.is_given_up(number, self.now, LAG);
            invariant::one_owner_among_nodes(&self.agents, given_up)?;
        }
        if let Some(node) = &self.agents[index].node {
            let revision = node.revision().0;
            let before = std::mem::replace(&mut self.revisions[index], revision);
            if revision < before && self.whole {
                let text = format!("n{} went from revision {before} to {revision}", index + 1);
                return Err(Invariant::Monotone.broken(text));
            }
            if self.steps.is_multiple_of(16) {
                invariant::incremental_is_full(node)?;
            }
        }
        Ok(())
    }

    /// The checkers follow the store as a watcher would.
    fn look_at_store(&mut self) -> Checked {
        let (known, now) = (self.view.revision(), self.store.revision());
        let events = self.store.events_since(known.next());
        // Nobody of ours deletes the fleet's record: whoever does wipes the store.
        let fleet = self.view.schema().fleet();
        let wiped = events
            .iter()
            .flatten()
            .any(|event| matches!(event, kvstore_schema::KvEvent::Delete { key, .. } if *key == fleet));
        let same = self.view.store().is_none_or(|store| store == self.store.identity());
        let continues = same && known <= now && !wiped;
        if !continues {
            self.whole = false;
            self.truth.forget_numbers();
        }
        match events {
            Ok(events) if continues && self.view.is_complete() => {
                self.view.apply_events(&events);
                self.view.apply_progress(now);
            }
            _ => self.view = self.store_view(),
        }
        self.truth.learn_numbers(&self.view, self.now);
        if self.whole {
            self.truth.learn(&self.view, self.now);
            let quarantine =
                self.agents.iter().map(|agent| agent.config.quarantine).min().unwrap_or_default();
            self.truth
                .quarantine(&self.view, self.now, quarantine)
                .map_err(|text| Invariant::Rest.broken(text))?;
        }
        invariant::one_owner_in_store(&self.view)
    }

    /// What a call means to be done.
    fn intend(&mut self, n: usize, call: &Call) {
        match call {
            Call::EndpointDelete(name) => self.truth.removed(n - 1, name, self.now),
            Call::NodeRemove(name) => {
                if let Some(other) = self.agents.iter().position(|agent| agent.config.node == *name) {
                    let underlay = self.agents[other].config.underlay.addresses[0];
                    self.truth.left(other, name, underlay, self.now);
                }
            }
            Call::EndpointAdd(_)
            | Call::EndpointDrain(_)
            | Call::CidrRelease(_)
            | Call::ServicePut { .. }
            | Call::ServiceDelete { .. }
            | Call::Audit { .. } => {}
        }
    }

    /// What answers say of what is there now.
    fn hear_answers(&mut self) -> Checked {
        let mut wrong = None;
        let Self { asked, replies, truth, agents, .. } = self;
        asked.retain(|(id, n, _)| match replies.get(id) {
            Some(Ok(Reply::EndpointAdded { name, address, identity, .. })) => {
                let there = agents[n - 1].kernel.tables().endpoints.values();
                if there.into_iter().any(|endpoint| endpoint.address == *address) {
                    truth.added(n - 1, name.clone(), *address, *identity);
                } else {
                    wrong =
                        Some(format!("n{n} says that {name} is there at {address}, and its kernel has none"));
                }
                false
            }
            Some(_) => false,
            None => true,
        });
        // Asked to be deleted before the answer to the add came.
        for (_, n, call) in asked {
            if let Call::EndpointDelete(name) = call {
                truth.removed(*n - 1, name, self.now);
            }
        }
        wrong.map_or(Ok(()), |text| Err(Invariant::Answered.broken(text)))
    }

    /// What somebody answers whom a node (from 0) asks: at once, or it is too late.
    fn answer(&self, by: usize, target: &ProbeTarget) -> Result<(), String> {
        let lit = |n: usize| !self.dark.contains(&(n + 1)) && self.links.passes(by, n);
        match target {
            ProbeTarget::Node(gateway) => {
                let has = |agent: &Agent| {
                    agent.kernel.tables().base.as_ref().is_some_and(|base| base.gateway == *gateway)
                };
                let node = self.agents.iter().position(has).filter(|n| lit(*n));
                node.map(drop).ok_or_else(|| "no answer".to_owned())
            }
            ProbeTarget::Backend { at, .. } => {
                let ip = at.ip();
                let has = |agent: &Agent| agent.kernel.tables().endpoints.values().any(|it| it.address == ip);
                let here = has(&self.agents[by]);
                let elsewhere = self.agents.iter().any(has);
                let refused = self.sick.contains(&ip) || (elsewhere && !here);
                if refused { Err("connection refused".to_owned()) } else { Ok(()) }
            }
        }
    }

    /// Takes a machine's power: its agent and all that answered in its kernel's name are gone.
    pub fn power_off(&mut self, n: usize) {
        self.tell(|| format!("n{n} loses its power"));
        self.halt(n);
        self.dark.insert(n);
    }

    /// Starts an agent again, on the kernel and the disk that it left behind.
    pub fn restart(&mut self, n: usize) {
        self.tell(|| format!("n{n} starts"));
        self.halt(n);
        self.dark.remove(&n);
        let now = self.now;
        let view = &self.view;
        let me = self.agents[n - 1].config.node.clone();
        self.truth.restarted(|ip| view.cidr_of_ip(ip).is_some_and(|(_, claim)| claim.record.node == me));
        if self.bug == Some(Bug::ForeignSnapshot) {
            self.agents[n - 1].disk = self.agents[n % self.agents.len()].disk.clone();
        }
        self.agents[n - 1].restart(now);
        self.revisions[n - 1] = 0;
        self.links.forget(n - 1);
    }

    /// Kills an agent; what it has sent may arrive yet.
    pub fn halt(&mut self, n: usize) {
        let sent = self.agents[n - 1].requests();
        self.late.extend(sent);
        self.asked.retain(|(_, of, _)| *of != n);
        self.agents[n - 1].stop();
    }

    /// Boots a machine: agent and kernel begin anew, the disk stays.
    pub fn reboot(&mut self, n: usize) {
        self.tell(|| format!("n{n} boots"));
        self.truth.lost(n - 1, self.now);
        self.agents[n - 1].kernel = datapath_plan::FakeDatapath::new();
        self.agents[n - 1].config.boot_id += "+";
        self.restart(n);
    }

    /// Puts an older copy in the store's place, which somebody else writes to until its revision has passed what anybody knows.
    pub fn restore_and_pass(&mut self, copy: MemState) {
        self.tell(|| "an older copy is restored, and goes on".to_owned());
        let known = self.store.revision();
        self.store.restore(copy);
        while self.store.revision() <= known {
            let key = Key::from_raw("/elsewhere");
            let put = KvOp::Put { key, value: b"x".as_slice().into(), lease: None };
            self.store.txn(&Txn::new().then(put)).expect("a put");
        }
        self.whole = false;
        self.truth.forget_numbers();
        self.view = self.store_view();
    }

    /// Changes a machine's underlay address.
    pub fn readdress(&mut self, n: usize, address: IpAddr) {
        let agent = &mut self.agents[n - 1];
        self.truth.touch(Subject::Underlay(agent.config.underlay.addresses[0]), self.now);
        self.truth.touch(Subject::Underlay(address), self.now);
        agent.config.underlay.addresses = vec![address];
        if agent.node.is_some() {
            agent.push(Event::Underlay(agent.config.underlay.clone()));
        }
    }

    /// An operator changes a machine's configuration, and starts its agent anew: it may want other routes.
    pub fn reconfigure(&mut self, n: usize, config: NodeConfig) {
        let blocks: Vec<_> = self.truth.blocks.keys().copied().collect();
        blocks.into_iter().for_each(|cidr| self.truth.touch(Subject::Block(cidr), self.now));
        self.agent(n).config = config;
        self.restart(n);
    }

    /// Nobody reaches the store.
    pub fn store_away(&mut self) {
        self.agents.iter_mut().for_each(|agent| agent.store_up = false);
    }

    /// Everybody reaches the store.
    pub fn store_back(&mut self) {
        self.agents.iter_mut().for_each(|agent| (agent.store_up, agent.store_hangs) = (true, false));
    }

    fn fail(&self, violation: &Violation) -> ! {
        for line in self.story.iter().flatten() {
            eprintln!("{line}");
        }
        panic!("{violation}");
    }

    /// Takes down what happens from now on, in words: a failure is told with the last of them.
    pub fn remember(&mut self) {
        self.story = Some(VecDeque::new());
        self.agents.iter_mut().for_each(|agent| agent.speak(true));
    }

    pub(crate) fn tell(&mut self, words: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(story) = &mut self.story {
            if story.len() == REMEMBERED {
                story.pop_front();
            }
            let mut words = words();
            words.truncate(words.floor_char_boundary(400));
            story.push_back(format!("{:>9.3} {words}", now.as_secs_f64()));
        }
    }
}
