//! A kernel for tests and simulation: carries plans out on tables, fails on request, can be damaged.

use std::collections::BTreeMap;

use crate::{
    BackendId, Observed, Op, OpError, OpErrorKind, OpFailure, Plan, PlanOutcome, ServiceValue, TableKey,
    Tables,
};

/// What a node's kernel would hold. Outlives the agent, as the real one does.
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

    /// Takes an entry away behind everybody's back.
    pub fn damage(&mut self, key: &TableKey) {
        self.tables.remove(key);
    }

    /// Puts an entry there behind everybody's back.
    pub fn plant(&mut self, op: &Op) {
        self.tables.apply(op);
    }

    /// Carries out a plan; a step that fails does not stop the ones after it.
    pub fn apply(&mut self, plan: &Plan) -> PlanOutcome {
        let failures =
            plan.ops.iter().filter_map(|op| self.step(op).err().map(|error| fail(op, error))).collect();
        PlanOutcome { generation: plan.generation, failures }
    }

    fn step(&mut self, op: &Op) -> Result<(), OpError> {
        self.applied_ops += 1;
        let Some(key) = TableKey::of(op) else { return Ok(()) };
        if let Some(kind) = self.failing.get(&key) {
            return Err(OpError { kind: *kind, text: format!("{key}: failed as the test wants") });
        }
        let before = self.tables.get(&key);
        // As the real one: without its attachment an endpoint can be repaired, but not made.
        if let Op::PutEndpoint(id, value) = op
            && value.attachment.is_none()
            && before.is_none()
        {
            let text = format!(
                "endpoint {id}: its network namespace is not known any more: delete it and add it again"
            );
            return Err(OpError { kind: OpErrorKind::NamespaceGone, text });
        }
        let (op, missing) = self.possible(op);
        self.tables.apply(&op);
        self.changes += u64::from(self.tables.get(&key) != before);
        match missing {
            None => Ok(()),
            Some(BackendId(id)) => {
                let text = format!("{key}: backend {id} is not there");
                Err(OpError { kind: OpErrorKind::Transient, text })
            }
        }
    }

    /// As the real one: members without a backend are left out, and the first of them is told.
    fn possible(&self, op: &Op) -> (Op, Option<BackendId>) {
        let Op::PutService(id, value) = op else { return (op.clone(), None) };
        let is_there = |member: &BackendId| self.tables.backends.contains_key(member);
        let missing = value.members.iter().find(|member| !is_there(member)).copied();
        let members = value.members.iter().copied().filter(is_there).collect();
        (Op::PutService(*id, ServiceValue { members, ..value.clone() }), missing)
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

fn fail(op: &Op, error: OpError) -> OpFailure {
    OpFailure { op: op.clone(), error }
}
