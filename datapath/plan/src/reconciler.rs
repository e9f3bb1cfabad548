//! The one place that compares what is wanted with what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    BackendId, BackendValue, Base, Difference, EndpointValue, Entry, Epochs, Generation, IpcacheValue,
    Limits, Observed, Op, OpError, Plan, PlanError, PlanOutcome, Prune, Row, ServiceValue, TableKey, Tables,
    capacity::{Counted, room, rooms},
    observed::differences,
    row::Change,
    tables::by_row_type,
};

/// The pause after a step failed for the first time; it doubles with each further failure. Kernel work is
/// local: no herd forms, so it needs no jitter.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause: about the interval of audits.
pub const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A plan raises epochs before its endpoints and at its end.
const EPOCH_STEPS: usize = 2;

/// A step that failed and will be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// The number of failures in a row.
    pub attempts: u32,
    /// The time of the next attempt.
    pub retry_at: Duration,
    /// The last failure.
    pub error: OpError,
}

/// The outcome of a plan, by entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Completed {
    /// Entries that the kernel now holds, or no longer holds, as the plan says.
    pub done: Vec<TableKey>,
    /// Entries that the kernel may hold in part.
    pub failed: Vec<(TableKey, OpError)>,
}

/// What a node wants in its kernel, what the kernel is believed to hold, and which entries differ.
///
/// One per agent. Setting an entry costs O(log n); a plan costs O(entries that differ). At most one plan is in flight;
/// changes made meanwhile wait for the next one.
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
    /// Epochs that a failed step should have raised, and the time of the next attempt.
    pending_epoch_bumps: Epochs,
    failing_epoch_bumps: Option<Failing>,
    in_flight: Option<Plan>,
    planned: Generation,
    completed: Generation,
}

impl Reconciler {
    /// Nothing wanted, nothing known of the kernel.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Wants a row so, or not at all. Before a backend goes, its service port must not want it as a member any more. A
    /// base that is not wanted stays: everything depends on it.
    pub fn set<R: Row>(&mut self, key: R::Key, row: Option<R>) {
        let table_key = R::table_key(key);
        let unchanged = self.wanted.tables().row::<R>(&key) == row.as_ref();
        // An entry that was kept because its source was not complete, and is now removed by name, goes.
        let released = row.is_none() && self.kept.remove(&table_key);
        if unchanged && !released {
            return;
        }
        self.wanted.change(&table_key, |tables| tables.set(key, row));
        self.kept.remove(&table_key);
        self.failing.remove(&table_key);
        self.mark(table_key);
    }

    /// Puts a key where it belongs.
    fn mark(&mut self, key: TableKey) {
        let (wanted, applied) = (self.wanted.tables(), self.applied.tables());
        let (is_same, is_removable) = by_row_type!(key, |R, key| {
            let (want, have) = (wanted.row::<R>(&key), applied.row::<R>(&key));
            let is_same = match (want, have) {
                (Some(want), Some(have)) => want.is_same(have),
                (want, have) => want.is_none() && have.is_none(),
            };
            (is_same, want.is_some() || R::REMOVABLE)
        });
        if is_removable && (!is_same || self.suspect.contains(&key)) {
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

    /// The number of entries that differ, with those of the plan in flight and without kept ones.
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

    /// The time to call [`Reconciler::plan`] again even though nothing changes.
    pub fn next_retry(&self) -> Option<Duration> {
        self.failing.values().chain(&self.failing_epoch_bumps).map(|failing| failing.retry_at).min()
    }

    /// Tables that cannot hold all rows that are wanted.
    pub fn full(&self) -> Vec<PlanError> {
        let check = |room| self.limits.check(room, self.wanted.used(room)).err();
        rooms().into_iter().filter_map(check).collect()
    }

    /// Whether one more local endpoint has room.
    ///
    /// # Errors
    /// [`PlanError::Capacity`], for the caller who asks for the endpoint.
    pub fn check_endpoint_room(&self) -> Result<(), PlanError> {
        let mut rooms = [EndpointValue::ROOM, IpcacheValue::EXACT].into_iter();
        rooms.try_for_each(|room| self.limits.check(&room, self.wanted.used(&room) + 1))
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
        let mut new_entries: BTreeMap<&str, usize> = BTreeMap::new();
        for key in self.dirty.iter().filter(due) {
            if !self.wanted.tables().contains(key) {
                removals.push(*key);
                continue;
            }
            if let (Some(room), false) = (room(key), self.applied.tables().contains(key)) {
                let new = new_entries.entry(room.name).or_default();
                if self.applied.used(room) + *new >= self.limits.max(room) {
                    continue;
                }
                *new += 1;
            }
            puts.push(*key);
        }
        self.add_services_of_changed_backends(&mut puts);
        let bumps_are_due = self.failing_epoch_bumps.as_ref().is_some_and(|failing| failing.retry_at <= now);
        if puts.is_empty() && removals.is_empty() && !bumps_are_due {
            return None;
        }
        let ops = self.order(puts, removals);
        for key in ops.iter().filter_map(TableKey::of) {
            self.dirty.remove(&key);
        }
        self.planned.0 += 1;
        let plan = self.with_slot_tables(ops);
        self.in_flight = Some(plan.clone());
        Some(plan)
    }

    /// The slots of a service port follow from its members' addresses and weights: a port whose members change is put
    /// again, too.
    fn add_services_of_changed_backends(&self, puts: &mut Vec<TableKey>) {
        let (wanted, applied) = (self.wanted.tables(), self.applied.tables());
        let mut services = BTreeSet::new();
        for key in puts.iter() {
            let TableKey::Backend(id) = key else { continue };
            let Some(value) = wanted.backends.get(id) else { continue };
            let has_changed = applied.backends.get(id).is_none_or(|before| !before.same_share(value));
            let is_member = |service: &ServiceValue| service.members.binary_search(id).is_ok();
            if has_changed && wanted.services.get(&value.service).is_some_and(is_member) {
                services.insert(value.service);
            }
        }
        if services.is_empty() {
            return;
        }
        let planned: BTreeSet<TableKey> = puts.iter().copied().collect();
        let missing = services.into_iter().map(TableKey::Service).filter(|key| {
            // A port without room in the table waits until it has room; a port that failed is put at once.
            !planned.contains(key) && (applied.contains(key) || self.failing.contains_key(key))
        });
        puts.extend(missing);
        puts.sort_unstable();
    }

    /// Completes a plan with the slots of the service ports that it puts: of the backends that the kernel holds by then.
    fn with_slot_tables(&self, ops: Vec<Op>) -> Plan {
        let in_plan = |op: &Op| match op {
            Op::Put(Entry::Backend(id, value)) => Some((*id, *value)),
            _ => None,
        };
        let puts: BTreeMap<BackendId, BackendValue> = ops.iter().filter_map(in_plan).collect();
        let applied = &self.applied.tables().backends;
        Plan::new(self.planned, ops, |id| puts.get(&id).or_else(|| applied.get(&id)).copied())
    }

    /// Make before break: puts downwards in the list of tables, removals upwards, epochs after what they depend on. Only a
    /// removal whose unique address a put takes over goes first.
    fn order(&mut self, puts: Vec<TableKey>, removals: Vec<TableKey>) -> Vec<Op> {
        let (wanted, applied) = (self.wanted.tables(), self.applied.tables());
        let taken: BTreeSet<IpAddr> = puts.iter().filter_map(|key| unique_address(wanted, key)).collect();
        let (first, last): (Vec<TableKey>, Vec<TableKey>) = removals
            .into_iter()
            .rev()
            .partition(|key| unique_address(applied, key).is_some_and(|address| taken.contains(&address)));

        let mut epochs = std::mem::take(&mut self.pending_epoch_bumps);
        let mut ops: Vec<Op> = first.iter().copied().map(Op::Delete).collect();
        ops.reserve_exact(puts.len() + last.len() + EPOCH_STEPS);
        let mut met_slow_table = false;
        for key in puts {
            let Some(entry) = self.wanted.tables().get(&key) else { continue };
            if by_row_type!(key, |R, _key| R::IS_SLOW) && !met_slow_table {
                ops.extend(std::mem::take(&mut epochs).into_op());
                met_slow_table = true;
            }
            self.concerns(&key, &mut epochs);
            ops.push(Op::Put(entry));
        }
        for key in first.iter().chain(&last) {
            self.concerns(key, &mut epochs);
        }
        ops.extend(last.into_iter().map(Op::Delete));
        ops.extend(epochs.into_op());
        ops
    }

    /// The flows that a step on an entry concerns.
    fn concerns(&self, key: &TableKey, epochs: &mut Epochs) {
        let (wanted, applied) = (self.wanted.tables(), self.applied.tables());
        by_row_type!(key, |R, key| {
            let change = Change {
                key: *key,
                had: applied.row::<R>(key),
                wanted: wanted.row::<R>(key),
                bases: [applied.base.as_ref(), wanted.base.as_ref()],
            };
            R::concerns(&change, epochs);
        });
    }

    /// Takes in the outcome of the plan in flight. The outcome of any other plan is ignored.
    pub fn complete(&mut self, now: Duration, outcome: &PlanOutcome) -> Completed {
        let Some(plan) = self.in_flight.take_if(|plan| plan.generation == outcome.generation) else {
            return Completed::default();
        };
        let mut errors = BTreeMap::new();
        let mut bump_error = None;
        for failure in &outcome.failures {
            match (TableKey::of(&failure.op), &failure.op) {
                (Some(key), _) => drop(errors.insert(key, failure.error.clone())),
                (None, Op::BumpEpochs(scope)) => {
                    self.pending_epoch_bumps.scope(scope);
                    bump_error = Some(failure.error.clone());
                }
                (None, _) => {}
            }
        }
        self.failing_epoch_bumps =
            bump_error.map(|error| again(now, self.failing_epoch_bumps.as_ref(), error));
        let mut completed = Completed::default();
        for op in &*plan.ops {
            let Some(key) = TableKey::of(op) else { continue };
            if let Some(error) = errors.remove(&key) {
                self.fail(now, key, error.clone());
                completed.failed.push((key, error));
            } else {
                if let Op::Put(Entry::Base(_, base)) = op {
                    self.requeue_for_mtu(base);
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

    /// Endpoints have the base's MTU: when that changes, every endpoint is put again.
    fn requeue_for_mtu(&mut self, base: &Base) {
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
        // An entry that was set again while its step was in flight does not wait.
        if self.dirty.contains(&key) {
            return;
        }
        let failing = again(now, self.failing.get(&key), error);
        self.failing.insert(key, failing);
    }

    /// The differences between kernel and wanted state that no plan is due to remove. Changes nothing.
    pub fn compare(&self, observed: &Observed, prune: Prune) -> Vec<Difference> {
        let mut found = differences(self.wanted(), observed, prune);
        found.retain(|difference| !self.dirty.contains(&difference.key));
        found
    }

    /// Takes the observed tables for what the kernel holds, and finds every entry that differs from what is wanted. Entries
    /// that nobody wants go only where `prune` allows it. O(entries). Must not be called while a plan is in flight: the
    /// observation would be older than what is applied.
    pub fn adopt(&mut self, observed: Observed, prune: Prune) {
        assert!(self.in_flight.is_none(), "observed while a plan is in flight");
        let parts = observed.endpoint_devices.iter().copied().map(TableKey::Endpoint);
        self.suspect = parts.filter(|key| !observed.tables.contains(key)).collect();
        self.applied = Counted::from(observed.tables);
        let mut keys = self.wanted.tables().keys();
        keys.append(&mut self.applied.tables().keys());
        keys.append(&mut self.suspect.clone());
        // A removal by name that has not been carried out yet goes on whatever `prune` says.
        let named: BTreeSet<TableKey> = std::mem::take(&mut self.dirty);
        self.kept.clear();
        self.failing.retain(|key, _| keys.contains(key));
        for key in keys {
            let is_kept = !self.wanted.tables().contains(&key)
                && !by_row_type!(key, |R, _key| R::may_be_pruned(&prune))
                && !named.contains(&key);
            if is_kept {
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

/// One more failure of the same step.
fn again(now: Duration, before: Option<&Failing>, error: OpError) -> Failing {
    let attempts = before.map_or(0, |failing| failing.attempts) + 1;
    let pause = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(6)).min(LONGEST_RETRY);
    Failing { attempts, retry_at: now + pause, error }
}

fn unique_address(tables: &Tables, key: &TableKey) -> Option<IpAddr> {
    by_row_type!(key, |R, key| tables.row::<R>(key).and_then(R::unique_address))
}
