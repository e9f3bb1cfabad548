//! One agent of the world: what it believes, what it wants, the machines that it runs.

use std::collections::{BTreeMap, BTreeSet};

use identity::{Identity, Labels, NodeName};
use ipnetwork::IpNetwork;
use kvstore_claims::{
    CidrClaim, CidrGrant, CidrRelease, ClaimError, Collector, Expected, FleetJoin, FleetView,
    IdentityAcquire, IdentityGrant, IdentityRelease, Machine, NodeRegistration, Protocol, ServiceRemoval,
    ServiceWrite, Step, stray_refs,
};
use kvstore_schema::{
    KvFailure, KvOutcome, KvRequest, LeaseId, ListPage, Schema,
    record::{FleetRecord, NodeRecord},
    service::ServiceSpec,
};

use super::{Random, Services};

/// How many label sets there are, shared by all agents.
const LABEL_SETS: usize = 5;
/// How many blocks an agent may hold.
const MOST_BLOCKS: usize = 2;

pub enum Machinery {
    Fleet(Machine<FleetJoin>),
    Node(Machine<NodeRegistration>, LeaseId),
    Acquire(Labels, Machine<IdentityAcquire>),
    Release(Labels, Machine<IdentityRelease>),
    Claim(Machine<CidrClaim>),
    Free(Machine<CidrRelease>),
    Serve(Box<Machine<ServiceWrite>>),
    Withdraw(Machine<ServiceRemoval>),
}

pub enum Phase {
    /// Asked, not yet carried out.
    Send(KvRequest),
    /// Carried out, the outcome is on its way.
    Sent(KvOutcome),
}

impl Phase {
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Sent(Err(KvFailure::Unavailable("taken".to_owned()))))
    }
}

pub struct Task {
    pub machinery: Machinery,
    pub phase: Phase,
}

pub struct Agent {
    pub name: NodeName,
    pub view: FleetView,
    pub collector: Collector,
    pub down: bool,
    pub tasks: Vec<Task>,
    /// What the node uses, the kernel too: it outlives the agent, but not a lost disk.
    pub identities: BTreeMap<Labels, Identity>,
    pub blocks: BTreeMap<IpNetwork, CidrGrant>,
    /// Held with this agent's own writes.
    grants: BTreeMap<Labels, IdentityGrant>,
    adopted: BTreeSet<IpNetwork>,
    wanted_labels: BTreeSet<usize>,
    wanted_blocks: usize,
    wants_service: bool,
    /// An end of a machine that no agent may meet.
    pub failure: Option<String>,
    /// The generation of the store that the agent works for.
    generation: u64,
    /// The wishes stay as they are.
    settled: bool,
    incarnation: u64,
    tokens: u64,
    registered: Option<LeaseId>,
    joined: bool,
    schema: Schema,
}

fn labels(index: usize) -> Labels {
    format!("app=a{index}").parse().unwrap()
}

impl Agent {
    pub fn new(index: usize, schema: &Schema) -> Self {
        Self {
            name: format!("n{index}").parse().unwrap(),
            view: FleetView::new(schema.clone()),
            collector: Collector::new(super::QUARANTINE),
            down: true,
            tasks: Vec::new(),
            identities: BTreeMap::new(),
            blocks: BTreeMap::new(),
            grants: BTreeMap::new(),
            adopted: BTreeSet::new(),
            wanted_labels: BTreeSet::new(),
            wanted_blocks: 1,
            wants_service: false,
            failure: None,
            generation: 0,
            settled: false,
            incarnation: 0,
            tokens: 0,
            registered: None,
            joined: false,
            schema: schema.clone(),
        }
    }

    /// A new agent of this node begins with a list; on a lost disk with nothing else.
    pub fn start(&mut self, page: &ListPage, lost_disk: bool, collector: Collector) {
        if lost_disk {
            self.wipe();
        }
        self.down = false;
        self.incarnation += 1;
        self.collector = collector;
        self.view = FleetView::new(self.schema.clone());
        self.view.apply_list(page.clone());
        self.generation = self.view.life().number;
    }

    /// The process ends; requests that were on their way, and its lease, remain.
    pub fn crash(&mut self) -> (Vec<KvRequest>, Option<LeaseId>) {
        if self.down {
            return (Vec::new(), None);
        }
        self.down = true;
        self.joined = false;
        self.abandon()
    }

    /// The store was founded anew since this agent looked: everything is asked again.
    pub fn begin_generation(&mut self) -> (Vec<KvRequest>, Option<LeaseId>) {
        let now = self.view.life().number;
        if self.down || now == self.generation {
            return (Vec::new(), None);
        }
        self.generation = now;
        self.abandon()
    }

    fn abandon(&mut self) -> (Vec<KvRequest>, Option<LeaseId>) {
        self.grants.clear();
        self.adopted.clear();
        let pending = self.tasks.drain(..).filter_map(|task| match task.phase {
            Phase::Send(request) => Some(request),
            Phase::Sent(_) => None,
        });
        (pending.collect(), self.registered.take())
    }

    /// The node forgets everything.
    pub fn wipe(&mut self) {
        self.identities.clear();
        self.blocks.clear();
    }

    fn begin(&mut self, machinery: Machinery, request: KvRequest) {
        self.tasks.push(Task { machinery, phase: Phase::Send(request) });
    }

    fn is_busy_with(&self, labels: &Labels) -> bool {
        self.tasks.iter().any(|task| match &task.machinery {
            Machinery::Acquire(with, _) | Machinery::Release(with, _) => with == labels,
            _ => false,
        })
    }

    fn is_busy_with_blocks(&self) -> bool {
        self.tasks.iter().any(|task| matches!(task.machinery, Machinery::Claim(_) | Machinery::Free(_)))
    }

    /// Starts what is missing between what the agent wants and what it has.
    pub fn decide(&mut self, random: &mut Random, lease: LeaseId, services: &mut Services) {
        if self.down {
            return;
        }
        if self.registered.is_none() || !self.joined {
            if self.tasks.is_empty() {
                self.join(random, lease);
            }
            return;
        }
        if !self.settled {
            self.change_wishes(random);
        }
        self.decide_identities(random);
        self.decide_blocks();
        self.decide_service(services);
    }

    fn decide_service(&mut self, services: &mut Services) {
        let busy = |task: &Task| matches!(task.machinery, Machinery::Serve(_) | Machinery::Withdraw(_));
        let name = self.name.as_str().parse().expect("a node's name is a service's too");
        let answered = services.contains_key(&name);
        if self.tasks.iter().any(busy) || self.wants_service && answered {
            return;
        }
        if self.wants_service {
            let spec: ServiceSpec =
                serde_json::from_str(r#"{"ports":[{"port":80}],"selector":{}}"#).expect("a spec");
            let (machine, request) = ServiceWrite::start(&self.view, name, spec.normalised(), Expected::Any);
            self.begin(Machinery::Serve(Box::new(machine)), request);
        } else if answered || self.view.services().contains_key(&name) {
            // From now on nobody counts on it.
            services.remove(&name);
            let (machine, request) = ServiceRemoval::start(&self.schema, name, Expected::Any);
            self.begin(Machinery::Withdraw(machine), request);
        }
    }

    fn change_wishes(&mut self, random: &mut Random) {
        let index = random.below(LABEL_SETS);
        if !self.wanted_labels.remove(&index) {
            self.wanted_labels.insert(index);
        }
        if random.percent(60) {
            self.wanted_blocks = 1 + random.below(MOST_BLOCKS);
        }
        self.wants_service ^= random.percent(20);
    }

    fn join(&mut self, random: &mut Random, lease: LeaseId) {
        if !self.joined {
            let wanted = FleetRecord {
                fleet_id: random.draw().to_string(),
                // 16 blocks; agents hold at most 8, and as many may be in quarantine.
                pools: vec!["10.0.0.0/25".parse().unwrap(), "10.1.0.0/25".parse().unwrap()],
                // Two addresses for four agents.
                service_pools: vec!["10.201.0.0/30".parse().unwrap()],
                block_prefix_v4: 28,
                block_prefix_v6: 112,
                tunnel_port: 8472,
                life: Default::default(),
                unknown: Default::default(),
            };
            let (machine, request) = FleetJoin::start(&self.schema, wanted);
            return self.begin(Machinery::Fleet(machine), request);
        }
        let record = NodeRecord {
            underlay: vec!["192.0.2.1".parse().unwrap()],
            moves: 0,
            datapath_mode: Some("tunnel".to_owned()),
            cidrs: Vec::new(),
            gateway: None,
            gossip_port: 7946,
            labels: Labels::default(),
            boot_id: self.incarnation.to_string(),
            machine_id: format!("machine of {}", self.name),
            incarnation: self.incarnation,
            agent_version: "test".to_owned(),
            unknown: Default::default(),
        };
        let (machine, request) =
            NodeRegistration::start(&self.schema, self.name.clone(), record, Some(lease));
        self.begin(Machinery::Node(machine, lease), request);
    }

    fn decide_identities(&mut self, random: &mut Random) {
        // What the node uses was acquired by an agent before this one: first of all acquire it again.
        let unconfirmed = self.identities.keys().find(|labels| !self.grants.contains_key(labels)).cloned();
        let wanted = self.wanted_labels.iter().map(|index| labels(*index));
        let missing = wanted.into_iter().find(|labels| !self.grants.contains_key(labels));
        for labels in unconfirmed.into_iter().chain(missing) {
            if !self.is_busy_with(&labels) {
                let (name, draw) = (self.name.clone(), random.draw() % 16);
                let used = self.identities.get(&labels).copied();
                match IdentityAcquire::start(&self.view, name, self.incarnation, labels.clone(), used, draw) {
                    Ok((machine, request)) => self.begin(Machinery::Acquire(labels, machine), request),
                    Err(ClaimError::Restoring) => {}
                    Err(error) => panic!("a stale view must not stop an acquisition: {error}"),
                }
            }
        }
        let kept: BTreeSet<Labels> = self.wanted_labels.iter().map(|index| labels(*index)).collect();
        let extra = self.grants.keys().find(|labels| !kept.contains(labels)).cloned();
        if let Some(labels) = extra {
            // Out of use first, then released.
            let grant = self.grants.remove(&labels).expect("found just now");
            self.identities.remove(&labels);
            self.release(labels, grant.identity, grant.ref_revision);
        }
        let used: BTreeSet<Identity> = self.identities.values().copied().collect();
        for (identity, revision) in stray_refs(&self.view, &self.name, &used) {
            let Some(entry) = self.view.identities().get(&identity) else { continue };
            let labels = entry.record.labels.clone();
            if !self.is_busy_with(&labels) && !self.identities.contains_key(&labels) {
                self.release(labels, identity, revision);
            }
        }
    }

    fn release(&mut self, labels: Labels, identity: Identity, revision: kvstore_schema::Revision) {
        let (machine, request) =
            IdentityRelease::start(&self.schema, self.name.clone(), self.incarnation, identity, revision);
        self.begin(Machinery::Release(labels, machine), request);
    }

    fn token(&mut self) -> String {
        self.tokens += 1;
        format!("{}/{}/{}", self.name, self.incarnation, self.tokens)
    }

    fn decide_blocks(&mut self) {
        if self.is_busy_with_blocks() {
            return;
        }
        let again = self
            .blocks
            .iter()
            .find(|(cidr, _)| !self.adopted.contains(*cidr) && !self.view.cidrs().contains_key(*cidr));
        if let Some((cidr, since)) = again.map(|(cidr, grant)| (*cidr, grant.since)) {
            let token = self.token();
            let (machine, request) = CidrClaim::again(&self.view, self.name.clone(), token, cidr, since);
            return self.begin(Machinery::Claim(machine), request);
        }
        let to_adopt = self.view.cidrs_of(&self.name).any(|(cidr, _)| !self.adopted.contains(&cidr));
        if self.adopted.len() < self.wanted_blocks || to_adopt {
            let token = self.token();
            match CidrClaim::start(&self.view, self.name.clone(), token, &self.adopted) {
                Ok((machine, request)) => self.begin(Machinery::Claim(machine), request),
                // The pool is full of quarantined blocks, or the view has no fleet record yet.
                Err(ClaimError::PoolExhausted { .. } | ClaimError::NoFleet | ClaimError::Restoring) => {}
                Err(error) => panic!("{error}"),
            }
        } else if self.adopted.len() > self.wanted_blocks
            && let Some(cidr) = self.adopted.pop_last()
        {
            let grant = self.blocks.remove(&cidr).expect("adopted blocks are held");
            let (machine, request) = CidrRelease::start(&self.schema, self.name.clone(), grant);
            self.begin(Machinery::Free(machine), request);
        }
    }

    /// An outcome arrives at its machine.
    pub fn outcome(&mut self, task: Task, outcome: KvOutcome, draw: u64, services: &mut Services) {
        let view = &self.view;
        match task.machinery {
            Machinery::Fleet(mut machine) => {
                let step = machine.on_outcome(outcome, view, draw);
                if self.go_on(step, &machine, Machinery::Fleet).is_some() {
                    self.joined = true;
                }
            }
            Machinery::Node(mut machine, lease) => {
                let step = machine.on_outcome(outcome, view, draw);
                if let Some(registered) =
                    self.go_on(step, &machine, |machine| Machinery::Node(machine, lease))
                {
                    self.incarnation = registered.record.incarnation;
                    self.registered = Some(lease);
                }
            }
            Machinery::Acquire(labels, mut machine) => {
                let step = machine.on_outcome(outcome, view, draw);
                let again = labels.clone();
                if let Some(grant) = self.go_on(step, &machine, |machine| Machinery::Acquire(again, machine))
                {
                    self.identities.insert(labels.clone(), grant.identity);
                    self.grants.insert(labels, grant);
                }
            }
            Machinery::Release(labels, mut machine) => {
                let step = machine.on_outcome(outcome, view, draw);
                self.go_on(step, &machine, |machine| Machinery::Release(labels, machine));
            }
            Machinery::Claim(mut machine) => {
                let step = machine.on_outcome(outcome, view, draw);
                if let Some(grant) = self.go_on(step, &machine, Machinery::Claim) {
                    self.adopted.insert(grant.cidr);
                    self.blocks.insert(grant.cidr, grant);
                }
            }
            Machinery::Free(mut machine) => {
                let step = machine.on_outcome(outcome, view, draw);
                self.go_on(step, &machine, Machinery::Free);
            }
            Machinery::Serve(mut machine) => {
                let step = machine.on_outcome(outcome, view, draw);
                if let Some(written) =
                    self.go_on(step, &machine, |machine| Machinery::Serve(Box::new(machine)))
                {
                    let name = self.name.as_str().parse().expect("a node's name is a service's too");
                    services.insert(name, written.record);
                }
            }
            Machinery::Withdraw(mut machine) => {
                let step = machine.on_outcome(outcome, view, draw);
                self.go_on(step, &machine, Machinery::Withdraw);
            }
        }
    }

    fn go_on<P: Protocol + Clone>(
        &mut self,
        step: Step<P::Output>,
        machine: &Machine<P>,
        wrap: impl FnOnce(Machine<P>) -> Machinery,
    ) -> Option<P::Output> {
        let step = if matches!(step, Step::Wait { .. }) { machine.resume() } else { step };
        match step {
            Step::Ask(request) => self.begin(wrap(machine.clone()), request),
            Step::Wait { .. } => unreachable!("a machine resumes by asking"),
            Step::Done(output) => return Some(output),
            // The pool may be full for a while. An operator removes only nodes that are down, but a new
            // agent may have begun with a list from before; it registers again.
            Step::Failed(ClaimError::PoolExhausted { .. } | ClaimError::Restoring) => {}
            // Another has the last one, or the view has not seen the fleet's record yet.
            Step::Failed(ClaimError::ServicePoolExhausted { .. }) => {}
            Step::Failed(ClaimError::NotRegistered { .. }) => self.registered = None,
            Step::Failed(error) => self.failure = Some(format!("{}: {error}", self.name)),
        }
        None
    }

    pub fn want_everything(&mut self) {
        self.settled = true;
        self.wanted_labels = (0..LABEL_SETS).collect();
        self.wanted_blocks = MOST_BLOCKS;
    }

    pub fn want_nothing(&mut self) {
        self.wanted_labels.clear();
        self.wanted_blocks = 0;
        self.wants_service = false;
    }

    pub fn is_satisfied(&self) -> bool {
        !self.down
            && self.tasks.is_empty()
            && self.adopted.len() == self.wanted_blocks
            && self.wanted_labels.iter().all(|index| self.grants.contains_key(&labels(*index)))
    }

    pub fn describe(&self) -> String {
        format!(
            "{} down={} wants {:?}/{} has {:?}/{:?} tasks={}",
            self.name,
            self.down,
            self.wanted_labels,
            self.wanted_blocks,
            self.identities,
            self.blocks.keys(),
            self.tasks.len()
        )
    }
}
