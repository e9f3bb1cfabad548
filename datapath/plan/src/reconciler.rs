//! The one place where what is wanted and what is there are held against one another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    BackendId, BackendValue, Base, Difference, EndpointId, EndpointValue, EpochScope, Frontend,
    FrontendValue, Generation, IpcacheValue, Limits, NodeIndex, NodeValue, Observed, Op, OpError, Plan,
    PlanError, PlanOutcome, Prune, RouteValue, ServiceId, ServiceValue, TableKey, Tables,
    capacity::{Counted, Room},
    difference::differences,
    entry::{Entry, delete, put},
    epochs::Epochs,
};

/// The pause after a step failed for the first time; it doubles with each further failure. Kernel work is
/// local: no herd forms, so it needs no jitter.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause: the kernel's audit comes about as often.
pub const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A plan raises epochs before its endpoints and at its end.
const EPOCH_STEPS: usize = 2;

/// A step that failed and will be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// How often it failed in a row.
    pub attempts: u32,
    /// When it is tried again.
    pub retry_at: Duration,
    /// Why it failed the last time.
    pub error: OpError,
}

/// What a plan has come to, by entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Completed {
    /// The kernel now has, or has no longer, what the plan said.
    pub done: Vec<TableKey>,
    /// The kernel may have it in part.
    pub failed: Vec<(TableKey, OpError)>,
}

/// What a node wants in its kernel, what the kernel is believed to hold, and which entries differ.
///
/// One per agent. Setting an entry costs O(log n); a plan costs O(entries that differ). At most one plan is
/// in flight; what is set meanwhile waits for the next.
///
/// Invariant: an entry differs if and only if its key is in `dirty`, in the plan in flight, or in `kept`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reconciler {
    limits: Limits,
    wanted: Counted,
    applied: Counted,
    dirty: BTreeSet<TableKey>,
    /// Entries that the kernel may hold in part: they differ whatever `applied` says.
    suspect: BTreeSet<TableKey>,
    /// Entries that nobody wants and that stay, since their source is not complete.
    kept: BTreeSet<TableKey>,
    failing: BTreeMap<TableKey, Failing>,
    /// Epochs that a failed step should have raised, and when that is tried again.
    owed: Epochs,
    owed_failing: Option<Failing>,
    in_flight: Option<Plan>,
    planned: Generation,
    completed: Generation,
}

impl Reconciler {
    /// Nothing wanted, nothing known of the kernel.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Wants this base. There is no way to want none: what stands on it would break.
    pub fn set_base(&mut self, base: Base) {
        self.set(TableKey::Base, Some(Entry::Base(base)));
    }

    /// Wants a node so, or not at all.
    pub fn set_node(&mut self, index: NodeIndex, value: Option<NodeValue>) {
        self.set(TableKey::Node(index), value.map(Entry::Node));
    }

    /// Wants an ipcache entry so, or not at all.
    pub fn set_ipcache(&mut self, prefix: IpNetwork, value: Option<IpcacheValue>) {
        self.set(TableKey::Ipcache(prefix), value.map(Entry::Ipcache));
    }

    /// Wants a route so, or not at all.
    pub fn set_route(&mut self, prefix: IpNetwork, value: Option<RouteValue>) {
        self.set(TableKey::Route(prefix), value.map(Entry::Route));
    }

    /// Wants a local endpoint so, or not at all.
    pub fn set_endpoint(&mut self, id: EndpointId, value: Option<EndpointValue>) {
        self.set(TableKey::Endpoint(id), value.map(Entry::Endpoint));
    }

    /// Wants a member of a service port so, or not at all. Before it goes, its service port must not want it as a
    /// member any more.
    pub fn set_backend(&mut self, id: BackendId, value: Option<BackendValue>) {
        self.set(TableKey::Backend(id), value.map(Entry::Backend));
    }

    /// Wants a service port so, or not at all.
    pub fn set_service(&mut self, id: ServiceId, value: Option<ServiceValue>) {
        self.set(TableKey::Service(id), value.map(Entry::Service));
    }

    /// Wants a frontend so, or not at all.
    pub fn set_frontend(&mut self, frontend: Frontend, value: Option<FrontendValue>) {
        self.set(TableKey::Frontend(frontend), value.map(Entry::Frontend));
    }

    fn set(&mut self, key: TableKey, entry: Option<Entry>) {
        let unchanged = self.wanted.tables().get(&key) == entry;
        // An entry that was kept for want of knowledge, and is now removed by name, goes.
        let released = entry.is_none() && self.kept.remove(&key);
        if unchanged && !released {
            return;
        }
        self.wanted.change(&key, |tables| match entry {
            Some(entry) => tables.apply(&put(key, entry)),
            None => tables.remove(&key),
        });
        self.kept.remove(&key);
        self.failing.remove(&key);
        self.mark(key);
    }

    /// Puts a key where it belongs.
    fn mark(&mut self, key: TableKey) {
        let (want, have) = (self.wanted.tables().get(&key), self.applied.tables().get(&key));
        let same = match (&want, &have) {
            (Some(want), Some(have)) => want.same(have),
            (want, have) => want.is_none() && have.is_none(),
        };
        let removable = want.is_some() || delete(key).is_some();
        if removable && (!same || self.suspect.contains(&key)) {
            self.dirty.insert(key);
        } else {
            self.dirty.remove(&key);
            self.failing.remove(&key);
        }
    }

    /// Everything wanted.
    pub fn wanted(&self) -> &Tables {
        self.wanted.tables()
    }

    /// Everything that the kernel is believed to hold.
    pub fn applied(&self) -> &Tables {
        self.applied.tables()
    }

    /// How many entries differ, those of the plan in flight included; kept ones do not count.
    pub fn dirty(&self) -> usize {
        self.dirty.len() + self.in_flight.as_ref().map_or(0, |plan| plan.ops.len())
    }

    /// Whether an entry waits for a plan.
    pub fn waits(&self, key: &TableKey) -> bool {
        self.dirty.contains(key)
    }

    /// Entries whose step failed.
    pub fn failing(&self) -> &BTreeMap<TableKey, Failing> {
        &self.failing
    }

    /// Whether a plan is being carried out.
    pub fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The generations of the last plan made and of the last one carried out.
    pub fn generations(&self) -> (Generation, Generation) {
        (self.planned, self.completed)
    }

    /// When [`Reconciler::plan`] should be asked again even though nothing changes.
    pub fn next_retry(&self) -> Option<Duration> {
        self.failing.values().chain(&self.owed_failing).map(|failing| failing.retry_at).min()
    }

    /// Tables that cannot hold all that is wanted.
    pub fn full(&self) -> Vec<PlanError> {
        (Room::ALL.into_iter())
            .filter_map(|room| {
                let (wanted, max) = (self.wanted.used(room), room.max(&self.limits));
                (wanted > max).then(|| PlanError::Capacity { table: room.name().to_owned(), wanted, max })
            })
            .collect()
    }

    /// Whether one more local endpoint has room.
    ///
    /// # Errors
    /// [`PlanError::Capacity`], for whoever asks for the endpoint.
    pub fn check_endpoint_room(&self) -> Result<(), PlanError> {
        for room in [Room::Endpoints, Room::IpcacheExact] {
            let (wanted, max) = (self.wanted.used(room) + 1, room.max(&self.limits));
            if wanted > max {
                return Err(PlanError::Capacity { table: room.name().to_owned(), wanted, max });
            }
        }
        Ok(())
    }

    /// The next plan: every entry that differs and is due. `None` while one is in flight or nothing is due.
    ///
    /// A put without room in its table is left for the plan after the removals have been carried out.
    pub fn plan(&mut self, now: Duration) -> Option<Plan> {
        if self.in_flight.is_some() {
            return None;
        }
        let due = |key: &&TableKey| self.failing.get(key).is_none_or(|failing| failing.retry_at <= now);
        let mut puts = Vec::new();
        let mut removals = Vec::new();
        let mut new_entries: BTreeMap<Room, usize> = BTreeMap::new();
        for key in self.dirty.iter().filter(due) {
            match self.wanted.tables().get(key) {
                Some(_) => {
                    if let (Some(room), None) = (Room::of(key), self.applied.tables().get(key)) {
                        let new = new_entries.entry(room).or_default();
                        if self.applied.used(room) + *new >= room.max(&self.limits) {
                            continue;
                        }
                        *new += 1;
                    }
                    puts.push(*key);
                }
                None => removals.push(*key),
            }
        }
        self.add_tables(&mut puts);
        let owed_is_due = self.owed_failing.as_ref().is_some_and(|failing| failing.retry_at <= now);
        if puts.is_empty() && removals.is_empty() && !owed_is_due {
            return None;
        }
        let ops = self.order(puts, removals);
        for key in ops.iter().filter_map(TableKey::of) {
            self.dirty.remove(&key);
        }
        self.planned.0 += 1;
        let plan = Plan { generation: self.planned, ops: ops.into() };
        self.in_flight = Some(plan.clone());
        Some(plan)
    }

    /// A service port's table says what its members' addresses and weights were: where those are others now, it is
    /// made again, too.
    fn add_tables(&self, puts: &mut Vec<TableKey>) {
        let (wanted, applied) = (self.wanted.tables(), self.applied.tables());
        let mut services = BTreeSet::new();
        for key in puts.iter() {
            let TableKey::Backend(id) = key else { continue };
            let Some(value) = wanted.backends.get(id) else { continue };
            let changed = applied.backends.get(id).is_none_or(|before| !before.same_share(value));
            let is_member = |service: &ServiceValue| service.members.binary_search(id).is_ok();
            if changed && wanted.services.get(&value.service).is_some_and(is_member) {
                services.insert(value.service);
            }
        }
        if services.is_empty() {
            return;
        }
        let planned: BTreeSet<TableKey> = puts.iter().copied().collect();
        let missing = services.into_iter().map(TableKey::Service).filter(|key| {
            // One that has no room waits until it has; one that failed does not wait for its time.
            !planned.contains(key) && (applied.get(key).is_some() || self.failing.contains_key(key))
        });
        puts.extend(missing.filter(|key| wanted.get(key).is_some()));
        puts.sort_unstable();
    }

    /// Make before break: puts upwards, removals downwards, epochs after what they depend on. Only a removal
    /// whose address a put takes over goes first, because the two share a slot in the kernel.
    fn order(&mut self, puts: Vec<TableKey>, removals: Vec<TableKey>) -> Vec<Op> {
        let (wanted, applied) = (self.wanted.tables(), self.applied.tables());
        let taken: BTreeSet<IpAddr> =
            puts.iter().filter_map(|key| wanted.get(key)).filter_map(|entry| slot(&entry)).collect();
        let (first, last): (Vec<TableKey>, Vec<TableKey>) = removals.into_iter().rev().partition(|key| {
            applied.get(key).and_then(|entry| slot(&entry)).is_some_and(|at| taken.contains(&at))
        });

        let mut epochs = std::mem::take(&mut self.owed);
        let mut ops: Vec<Op> = first.iter().filter_map(|key| delete(*key)).collect();
        ops.reserve_exact(puts.len() + last.len() + EPOCH_STEPS);
        let mut before_endpoints = true;
        for key in puts {
            let Some(entry) = self.wanted.tables().get(&key) else { continue };
            if before_endpoints && matches!(key, TableKey::Endpoint(_)) {
                // Making devices takes milliseconds; flows concerned by the ipcache do not wait for it.
                ops.extend(std::mem::take(&mut epochs).into_op());
                before_endpoints = false;
            }
            match &entry {
                // Flows through a backend go on, unless it is another now.
                Entry::Backend(value) if self.stays(&key, value) => {}
                _ => self.concerns(&key, &mut epochs),
            }
            if let Entry::Endpoint(value) = &entry {
                epochs.address(value.address);
            }
            ops.push(put(key, entry));
        }
        for key in first.iter().chain(&last) {
            self.concerns(key, &mut epochs);
        }
        ops.extend(last.into_iter().filter_map(delete));
        ops.extend(epochs.into_op());
        ops
    }

    /// Whether the kernel's backend is the same one, of whatever state and weight.
    fn stays(&self, key: &TableKey, value: &BackendValue) -> bool {
        matches!(self.applied.tables().get(key), Some(Entry::Backend(before)) if before.same_place(value))
    }

    /// Flows that a change of an entry concerns. Nodes are looked up by index with every packet, routes are the
    /// stack's: neither is in a flow. Of the base it is the Ethernet address, which a device made anew changes. A
    /// service's table decides about new flows only, its source ranges about all. A frontend makes services' flows of those that went to its
    /// address as they were; those that it has made so go on with their backends.
    fn concerns(&self, key: &TableKey, epochs: &mut Epochs) {
        match key {
            TableKey::Base => epochs.scope(&EpochScope::All),
            TableKey::Node(_) | TableKey::Route(_) => {}
            TableKey::Ipcache(prefix) => epochs.prefix(*prefix),
            TableKey::Endpoint(id) => {
                if let Some(endpoint) = self.applied.tables().endpoints.get(id) {
                    epochs.address(endpoint.address);
                }
            }
            TableKey::Backend(id) => {
                if let Some(backend) = self.applied.tables().backends.get(id) {
                    epochs.address(backend.address);
                }
            }
            TableKey::Service(id) => {
                // Who may not come any more does not go on either. Its clients are of any address.
                let ranges = |side: &Counted| {
                    side.tables().services.get(id).map(|service| service.source_ranges.clone())
                };
                if let (Some(had), Some(wanted)) = (ranges(&self.applied), ranges(&self.wanted))
                    && had != wanted
                    && !wanted.is_empty()
                {
                    epochs.scope(&EpochScope::All);
                }
            }
            TableKey::Frontend(frontend) if frontend.address.is_unspecified() => {
                // The addresses of the node that flows from outside its own stack go to.
                for base in
                    [&self.applied, &self.wanted].into_iter().filter_map(|side| side.tables().base.as_ref())
                {
                    epochs.address(base.underlay.address);
                    epochs.address(base.gateway);
                }
            }
            TableKey::Frontend(frontend) => epochs.address(frontend.address),
        }
    }

    /// Takes in what came of the plan in flight. The outcome of any other plan is ignored.
    pub fn complete(&mut self, now: Duration, outcome: &PlanOutcome) -> Completed {
        let Some(plan) = self.in_flight.take_if(|plan| plan.generation == outcome.generation) else {
            return Completed::default();
        };
        let mut errors = BTreeMap::new();
        let mut owed_error = None;
        for failure in &outcome.failures {
            match (TableKey::of(&failure.op), &failure.op) {
                (Some(key), _) => drop(errors.insert(key, failure.error.clone())),
                (None, Op::BumpEpochs(scope)) => {
                    self.owed.scope(scope);
                    owed_error = Some(failure.error.clone());
                }
                (None, _) => {}
            }
        }
        self.owed_failing = owed_error.map(|error| again(now, self.owed_failing.as_ref(), error));
        let mut completed = Completed::default();
        for op in &*plan.ops {
            let Some(key) = TableKey::of(op) else { continue };
            if let Some(error) = errors.remove(&key) {
                self.fail(now, key, error.clone());
                completed.failed.push((key, error));
            } else {
                if let Op::PutBase(base) = op {
                    self.shake(base);
                }
                self.applied.change(&key, |tables| tables.apply(op));
                self.suspect.remove(&key);
                self.failing.remove(&key);
                completed.done.push(key);
            }
            self.mark(key);
        }
        self.completed = plan.generation;
        completed
    }

    /// Endpoints have the base's MTU: where that is another now, they are to be done again.
    fn shake(&mut self, base: &Base) {
        let before = self.applied.tables().base.as_ref();
        if before.is_some_and(|before| before.mtu_bytes != base.mtu_bytes) {
            let endpoints: Vec<TableKey> =
                self.applied.tables().endpoints.keys().copied().map(TableKey::Endpoint).collect();
            self.suspect.extend(&endpoints);
            endpoints.into_iter().for_each(|key| self.mark(key));
        }
    }

    fn fail(&mut self, now: Duration, key: TableKey, error: OpError) {
        self.suspect.insert(key);
        // A wish that changed while its step was in flight is a new one: it does not wait.
        if self.dirty.contains(&key) {
            return;
        }
        let failing = again(now, self.failing.get(&key), error);
        self.failing.insert(key, failing);
    }

    /// Where the kernel differs from what is wanted beyond what is known to be under way. Changes nothing.
    pub fn compare(&self, observed: &Observed, prune: Prune) -> Vec<Difference> {
        let mut found = differences(self.wanted(), observed, prune);
        found.retain(|difference| !self.dirty.contains(&difference.key));
        found
    }

    /// Believes what was observed, and finds every entry that differs from what is wanted. What nobody wants
    /// goes only where `prune` allows it. O(entries). Must not be called while a plan is in flight: what was
    /// observed would be older than what is applied.
    pub fn adopt(&mut self, observed: Observed, prune: Prune) {
        assert!(self.in_flight.is_none(), "observed while a plan is in flight");
        let parts = observed.endpoint_devices.iter().copied().map(TableKey::Endpoint);
        self.suspect = parts.filter(|key| observed.tables.get(key).is_none()).collect();
        self.applied = Counted::new(observed.tables);
        let mut keys = self.wanted.tables().keys();
        keys.append(&mut self.applied.tables().keys());
        keys.append(&mut self.suspect.clone());
        // What was removed by name, and not carried out yet, goes whatever `prune` says.
        let named: BTreeSet<TableKey> = std::mem::take(&mut self.dirty);
        self.kept.clear();
        self.failing.retain(|key, _| keys.contains(key));
        for key in keys {
            if self.wanted.tables().get(&key).is_none() && !prune.allows(&key) && !named.contains(&key) {
                self.kept.insert(key);
            } else {
                self.mark(key);
            }
        }
    }

    /// Compares, believes, plans: what an audit does.
    pub fn plan_full(
        &mut self,
        now: Duration,
        observed: Observed,
        prune: Prune,
    ) -> (Option<Plan>, Vec<Difference>) {
        let differences = self.compare(&observed, prune);
        self.adopt(observed, prune);
        (self.plan(now), differences)
    }
}

/// One more failure of the same.
fn again(now: Duration, before: Option<&Failing>, error: OpError) -> Failing {
    let attempts = before.map_or(0, |failing| failing.attempts) + 1;
    let pause = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(6)).min(LONGEST_RETRY);
    Failing { attempts, retry_at: now + pause, error }
}

/// The address under which the kernel also finds an entry: no two entries of a table share one.
fn slot(entry: &Entry) -> Option<IpAddr> {
    match entry {
        Entry::Node(node) => Some(node.underlay),
        Entry::Endpoint(endpoint) => Some(endpoint.address),
        Entry::Base(_)
        | Entry::Ipcache(_)
        | Entry::Route(_)
        | Entry::Backend(_)
        | Entry::Service(_)
        | Entry::Frontend(_) => None,
    }
}
