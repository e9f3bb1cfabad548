//! A kernel for tests and simulation: carries plans out on tables, fails on request, can be damaged.

use std::collections::BTreeMap;

use crate::{
    Entry, Observed, Op, OpError, OpErrorKind, OpFailure, Plan, PlanOutcome, ServiceValue, TableKey, Tables,
};

/// What a node's kernel would hold. It outlives the agent, as the kernel does.
#[derive(Debug, Clone, Default)]
pub struct FakeDatapath {
    tables: Tables,
    failing: BTreeMap<TableKey, OpErrorKind>,
    /// Steps carried out since the beginning.
    applied_ops: u64,
    /// Steps that changed a table; the rest were done twice.
    changes: u64,
}

impl FakeDatapath {
    /// An empty kernel.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it holds.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// How many steps were carried out, and how many of them changed a table.
    pub fn steps(&self) -> (u64, u64) {
        (self.applied_ops, self.changes)
    }

    /// Lets every step on an entry fail until [`FakeDatapath::heal`].
    pub fn fail(&mut self, key: TableKey, kind: OpErrorKind) {
        self.failing.insert(key, kind);
    }

    /// Lets steps on an entry succeed again.
    pub fn heal(&mut self, key: &TableKey) {
        self.failing.remove(key);
    }

    /// Removes an entry without the reconciler's knowledge.
    pub fn damage(&mut self, key: &TableKey) {
        self.tables.remove(key);
    }

    /// Carries out a step without the reconciler's knowledge.
    pub fn plant(&mut self, op: &Op) {
        self.tables.apply(op);
    }

    /// Carries out a plan; a step that fails does not stop the steps after it.
    pub fn apply(&mut self, plan: &Plan) -> PlanOutcome {
        let fail = |op: &Op, error| OpFailure { op: op.clone(), error };
        let failures = plan.ops.iter().filter_map(|op| Some(fail(op, self.step(plan, op).err()?))).collect();
        PlanOutcome { generation: plan.generation, failures }
    }

    fn step(&mut self, plan: &Plan, op: &Op) -> Result<(), OpError> {
        self.applied_ops += 1;
        let Some(key) = TableKey::of(op) else { return Ok(()) };
        if let Some(kind) = self.failing.get(&key) {
            return Err(OpError { kind: *kind, text: format!("{key}: failed as the test wants") });
        }
        let before = self.tables.get(&key);
        let mut outcome = Ok(());
        match op {
            // As the kernel: without its attachment an endpoint can be repaired, but not made.
            Op::Put(Entry::Endpoint(id, value)) if value.attachment.is_none() && before.is_none() => {
                let text = format!(
                    "endpoint {id}: its network namespace is not known any more: delete it and add it again"
                );
                return Err(OpError { kind: OpErrorKind::NamespaceGone, text });
            }
            // As the kernel: it has the members of the slots.
            Op::Put(Entry::Service(id, value)) => {
                let Some(slots) = plan.slot_tables.get(id) else {
                    return Err(transient(format!("{key}: the plan has no slots for it")));
                };
                let slots = slots.clone().without(|id| !self.tables.backends.contains_key(&id));
                if let Some(id) = slots.missing(value) {
                    outcome = Err(transient(format!("{key}: backend {id} is not there")));
                }
                let members = slots.members().iter().map(|member| member.id).collect();
                self.tables.set(*id, Some(ServiceValue { members, ..value.clone() }));
            }
            op => self.tables.apply(op),
        }
        self.changes += u64::from(self.tables.get(&key) != before);
        outcome
    }

    /// Reads it whole.
    pub fn observe(&self) -> Observed {
        let mut tables = self.tables.clone();
        for endpoint in tables.endpoints.values_mut() {
            endpoint.attachment = None;
        }
        let endpoint_devices = tables.endpoints.keys().copied().collect();
        Observed { tables, broken: Vec::new(), endpoint_devices }
    }
}

fn transient(text: String) -> OpError {
    OpError { kind: OpErrorKind::Transient, text }
}
