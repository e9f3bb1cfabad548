//! A small world for the ownership protocols: agents, one store, everything between them unreliable, all by
//! seed. Time, delivery, loss, crashes and late writes are the world's; the protocols are the real ones.

pub mod agent;
pub mod bug;
pub mod check;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use identity::ServiceName;
use kvstore_claims::{Collector, node_removal_request};
use kvstore_schema::{
    Condition, Key, KvFailure, KvOp, KvOutcome, KvRequest, KvResponse, LeaseId, ListPage, Revision, Schema,
    StoreIdentity, Txn,
    record::{FleetRecord, Life, Record},
    service::{ServiceClaim, ServiceClaimRecord, ServiceRecord},
};
use kvstore_store::MemState;

use agent::{Agent, Phase};
use bug::Bug;
use check::Checker;

/// The quarantine in the world's time.
pub const QUARANTINE: Duration = Duration::from_secs(600);
/// How many agents there are.
const AGENTS: usize = 4;

/// What the authors of services were answered, and nobody has deleted since.
pub type Services = BTreeMap<ServiceName, ServiceRecord>;

/// Random numbers by seed (SplitMix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound as u64) as usize
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// What a run went through; a property that was never put to the test proves nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub crashes: u32,
    pub removals: u32,
    pub ambiguous: u32,
    pub late: u32,
    pub conflicts: u32,
    pub collected: u32,
    pub foundings: u32,
    pub settled: u32,
}

pub struct World {
    pub store: MemState,
    pub schema: Schema,
    pub now: Duration,
    pub random: Random,
    pub agents: Vec<Agent>,
    pub seen: Seen,
    services: Services,
    checker: Checker,
    /// Writes whose senders gave up: they arrive at any time, or never.
    late: Vec<KvRequest>,
    /// Leases of dead agents that have not run out yet.
    expiring: Vec<LeaseId>,
    bug: Option<Bug>,
    faults: bool,
}

impl World {
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let schema = Schema::new(&"test".parse().unwrap());
        Self {
            store: MemState::new(StoreIdentity(7)),
            now: Duration::from_secs(1),
            random: Random(seed),
            agents: (0..AGENTS).map(|index| Agent::new(index, &schema)).collect(),
            seen: Seen::default(),
            services: Services::new(),
            checker: Checker::new(schema.clone()),
            late: Vec::new(),
            expiring: Vec::new(),
            bug,
            faults: true,
            schema,
        }
    }

    /// Random steps with faults, then heal: everybody gets what it wants; then everything is given back and
    /// nothing is left.
    pub fn run(mut self, steps: usize) -> Result<Seen, String> {
        for _ in 0..steps {
            self.step();
            self.check()?;
        }
        self.heal()?;
        self.give_back()?;
        Ok(self.seen)
    }

    fn check(&mut self) -> Result<(), String> {
        self.checker.check(&self.store, self.now, &self.agents, &self.services)
    }

    fn step(&mut self) {
        let index = self.random.below(self.agents.len());
        match self.random.below(100) {
            0..15 => self.deliver(index),
            15..60 => self.work(index),
            60..75 => self.decide(index),
            75..86 => self.collect(index),
            86..89 => self.late_arrival(),
            89..92 => self.crash(index),
            92..95 => self.restart(index),
            95..96 => self.remove(index),
            96..97 => self.lease_runs_out(),
            97..98 => self.settle(),
            98 if self.random.percent(25) => self.lose_store(),
            _ => self.now += Duration::from_secs(self.random.below(300) as u64),
        }
    }

    /// Some of the changes that the agent has not seen, whole revisions only.
    fn deliver(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        if agent.down {
            return;
        }
        let events = self.store.events_since(agent.view.revision().next()).expect("nothing is compacted");
        let until = match events.get(self.random.below(events.len().max(1))) {
            Some(event) if self.faults => event.mod_revision(),
            _ => Revision(i64::MAX),
        };
        let count = events.partition_point(|event| event.mod_revision() <= until);
        agent.view.apply_events(&events[..count]);
    }

    /// One of the agent's tasks goes one half step: its request is carried out, or its outcome arrives.
    fn work(&mut self, index: usize) {
        if self.agents[index].down || self.agents[index].tasks.is_empty() {
            return;
        }
        let which = self.random.below(self.agents[index].tasks.len());
        let mut task = self.agents[index].tasks.swap_remove(which);
        match task.phase.take() {
            Phase::Send(request) => {
                task.phase = Phase::Sent(self.carry_out(request));
                self.agents[index].tasks.push(task);
            }
            Phase::Sent(outcome) => {
                // Few distinct numbers, so that random choices collide.
                let draw = self.random.draw() % 16;
                self.agents[index].outcome(task, outcome, draw, &mut self.services);
            }
        }
    }

    /// The store's answer, or what stands for it when the network is bad.
    fn carry_out(&mut self, mut request: KvRequest) -> KvOutcome {
        if let (Some(bug), KvRequest::Txn(txn)) = (self.bug, &mut request) {
            bug.plant(&self.schema, txn);
        }
        let fate = if self.faults { self.random.below(100) } else { 99 };
        let unknown = || Err(KvFailure::Ambiguous("deadline".to_owned()));
        match fate {
            0..5 => Err(KvFailure::Unavailable("no member".to_owned())),
            5..10 => {
                self.seen.ambiguous += 1;
                unknown()
            }
            10..18 => {
                self.seen.ambiguous += 1;
                self.execute(&request).and_then(|_| unknown())
            }
            18..30 => {
                self.late.push(request);
                unknown()
            }
            _ => self.execute(&request),
        }
    }

    fn execute(&mut self, request: &KvRequest) -> KvOutcome {
        let outcome = self.store.execute(request);
        if let Ok(KvResponse::Txn(answer)) = &outcome
            && !answer.succeeded
        {
            self.seen.conflicts += 1;
        }
        outcome
    }

    fn late_arrival(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let request = self.late.swap_remove(self.random.below(self.late.len()));
        // A write on a lease that is gone is refused: that is its fence.
        if self.execute(&request).is_ok() {
            self.seen.late += 1;
        }
    }

    fn decide(&mut self, index: usize) {
        let lease = self.store.lease_grant(Duration::from_secs(1_000_000_000));
        let (pending, former) = self.agents[index].begin_generation();
        self.expiring.extend(former);
        self.may_arrive_late(pending);
        self.agents[index].decide(&mut self.random, lease, &mut self.services);
    }

    fn collect(&mut self, index: usize) {
        let draw = self.random.draw();
        let agent = &mut self.agents[index];
        if agent.down {
            return;
        }
        let Some(mut request) = agent.collector.plan(&agent.view, &BTreeSet::new(), self.now, draw) else {
            return;
        };
        if let (Some(bug), KvRequest::Txn(txn)) = (self.bug, &mut request) {
            bug.plant_in_collector(txn);
        }
        if let Ok(KvResponse::Txn(answer)) = self.carry_out(request) {
            self.seen.collected += u32::from(answer.succeeded);
        }
    }

    fn crash(&mut self, index: usize) {
        let (pending, lease) = self.agents[index].crash();
        self.seen.crashes += u32::from(lease.is_some());
        self.expiring.extend(lease);
        self.may_arrive_late(pending);
    }

    /// Of requests whose sender does not wait for them any more.
    fn may_arrive_late(&mut self, pending: Vec<KvRequest>) {
        for mut request in pending {
            if self.random.percent(50) {
                if let (Some(bug), KvRequest::Txn(txn)) = (self.bug, &mut request) {
                    bug.plant(&self.schema, txn);
                }
                self.late.push(request);
            }
        }
    }

    fn page(&self) -> ListPage {
        self.store.list(&self.schema.root(), None, None, usize::MAX).expect("the newest revision")
    }

    /// The store loses everything, and a member founds it anew. Whoever watches learns it piece by piece.
    fn lose_store(&mut self) {
        let page = self.page();
        let Some(fleet) = page.entries.iter().find(|kv| kv.key == self.schema.fleet()) else { return };
        let fleet = FleetRecord::decode(&fleet.value).expect("ours");
        if fleet.life.restoring {
            return;
        }
        self.seen.foundings += 1;
        let fleet_key = self.schema.fleet();
        for kv in page.entries.into_iter().filter(|kv| kv.key != fleet_key) {
            self.must_execute(Txn::new().then(KvOp::Delete(kv.key)));
        }
        let life = Life { number: fleet.life.number + 1, founded_on: self.store.revision(), restoring: true };
        self.set_life(&FleetRecord { life, ..fleet });
        // Answers of the lost store that are on their way do not arrive.
        for task in self.agents.iter_mut().flat_map(|agent| &mut agent.tasks) {
            if let Phase::Sent(outcome) = &mut task.phase {
                *outcome = Err(KvFailure::Ambiguous("connection lost".to_owned()));
            }
        }
        let page = self.page();
        self.checker.founded_anew(page);
    }

    /// Members write the services that were lost, in whose place nobody else is; once everything is there again one of
    /// them ends the restoration.
    fn settle(&mut self) {
        if !self.checker.is_restoring() {
            return;
        }
        for (name, record) in self.services.clone() {
            let claim = self.schema.service_claim(&ServiceClaim::VirtualIp(record.virtual_ip));
            let key = self.schema.service(&name);
            let claimed = ServiceClaimRecord { service: name, unknown: Default::default() };
            let put = |key: Key, value| KvOp::Put { key, value, lease: None };
            let absent =
                Txn::new().when(Condition::Absent(key.clone())).when(Condition::Absent(claim.clone()));
            let txn = absent.then(put(key, record.encode())).then(put(claim, claimed.encode()));
            self.store.txn(&txn).expect("a transaction");
        }
        if self.checker.is_whole(&self.agents, &self.services) {
            let page = self.page();
            let fleet = page.entries.iter().find(|kv| kv.key == self.schema.fleet()).expect("founded");
            let mut fleet = FleetRecord::decode(&fleet.value).expect("ours");
            fleet.life.restoring = false;
            self.set_life(&fleet);
            self.seen.settled += 1;
        }
    }

    fn set_life(&mut self, fleet: &FleetRecord) {
        let put = KvOp::Put { key: self.schema.fleet(), value: fleet.encode(), lease: None };
        self.must_execute(Txn::new().then(put));
    }

    fn must_execute(&mut self, txn: Txn) {
        assert!(self.store.txn(&txn).expect("a transaction").succeeded);
    }

    fn restart(&mut self, index: usize) {
        if self.agents[index].down {
            let lost_disk = self.random.percent(30);
            self.start(index, lost_disk);
        }
    }

    fn start(&mut self, index: usize, lost_disk: bool) {
        let page = self.page();
        let collector = Collector::new(self.quarantine());
        self.agents[index].start(&page, lost_disk, collector);
    }

    fn quarantine(&self) -> Duration {
        if self.bug == Some(Bug::NoQuarantine) { Duration::ZERO } else { QUARANTINE }
    }

    /// An operator removes a node that is down for good.
    fn remove(&mut self, index: usize) {
        if !self.agents[index].down {
            return;
        }
        let request = node_removal_request(&self.schema, &self.agents[index].name);
        if let Ok(KvResponse::Txn(answer)) = self.execute(&request)
            && answer.succeeded
        {
            self.seen.removals += 1;
            self.agents[index].wipe();
        }
    }

    fn lease_runs_out(&mut self) {
        if !self.expiring.is_empty() {
            let lease = self.expiring.swap_remove(self.random.below(self.expiring.len()));
            self.store.lease_revoke(lease);
        }
    }

    /// One round without faults in which everybody does everything.
    fn calm_round(&mut self) -> Result<(), String> {
        for index in 0..self.agents.len() {
            self.restart(index);
            self.deliver(index);
            self.decide(index);
            for _ in 0..2 * self.agents[index].tasks.len() {
                self.work(index);
            }
            self.collect(index);
            self.check()?;
        }
        self.settle();
        self.check()?;
        self.late_arrival();
        self.lease_runs_out();
        self.now += Duration::from_secs(30);
        Ok(())
    }

    fn rounds_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        for _ in 0..600 {
            if done(self) {
                return Ok(());
            }
            self.calm_round()?;
        }
        let waiting: Vec<_> = self.agents.iter().map(Agent::describe).collect();
        Err(format!("liveness: {what} not reached: {waiting:#?}"))
    }

    fn heal(&mut self) -> Result<(), String> {
        self.faults = false;
        for agent in &mut self.agents {
            agent.want_everything();
        }
        self.rounds_until("everybody has what it wants", |world| {
            world.agents.iter().all(Agent::is_satisfied)
        })?;
        let listed = self.page();
        for agent in &mut self.agents {
            let mut fresh = kvstore_claims::FleetView::new(self.schema.clone());
            fresh.apply_list(listed.clone());
            let events = self.store.events_since(agent.view.revision().next()).expect("nothing is compacted");
            agent.view.apply_events(&events);
            if !check::same(&agent.view, &fresh) {
                return Err(format!("view of {} from events differs from the list", agent.name));
            }
        }
        Ok(())
    }

    fn give_back(&mut self) -> Result<(), String> {
        for agent in &mut self.agents {
            agent.want_nothing();
        }
        self.rounds_until("nothing is left", |world| {
            let kinds: BTreeSet<String> = world
                .page()
                .entries
                .iter()
                .filter_map(|kv| kv.key.as_str().split('/').nth(4).map(str::to_owned))
                .collect();
            kinds == ["alive", "fleet", "nodes"].map(str::to_owned).into()
        })
    }
}
