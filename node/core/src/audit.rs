//! Reading the kernel whole: at the start, after every listing, on a deadline, on request.

use std::{collections::BTreeSet, time::Duration};

use datapath_plan::{Difference, Observed, PlanOutcome, Prune, TableKey, Tables};
use serde::{Deserialize, Serialize};

use crate::{
    AuditView, CallErrorKind, CallId, Command, Reply,
    limits::{DISTURBED_PAUSE, GOSSIP_SETTLED, OBSERVE_RETRY},
    node::Node,
};

/// The audit. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Audit {
    /// Whether the kernel has been read once: before that nothing is done to it.
    pub observed: bool,
    /// Whether the first whole listing may remove what the kernel has; `None` before both are known.
    pub trusted: Option<bool>,
    /// A listing has come since the last audit.
    pub after_listing: bool,
    /// The kernel is being read: no plan meanwhile, or what is read would be older than what is applied.
    observing: bool,
    due_at: Duration,
    /// When the kernel was read last.
    read_at: Duration,
    /// Asked, and not begun.
    calls: Vec<(CallId, bool)>,
    /// Answered by the reading that is under way: it began after they were asked.
    answering: Vec<(CallId, bool)>,
    last: Option<AuditView>,
}

impl Audit {
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        (!self.observing).then_some(self.due_at)
    }

    pub(crate) fn last(&self) -> Option<&AuditView> {
        self.last.as_ref()
    }
}

impl Node {
    pub(crate) fn request_audit(&mut self, call: CallId, repair: bool) {
        self.audit.calls.push((call, repair));
    }

    /// Somebody else changed the stack: if what is wanted is concerned, the kernel is read soon. With a pause between two
    /// such readings, since whoever takes our routes away may do so again and again.
    pub(crate) fn on_disturbed(&mut self, keys: &BTreeSet<TableKey>) {
        if keys.iter().any(|key| self.reconciler.wanted().get(key).is_some()) {
            let soon = self.now.monotonic.max(self.audit.read_at + DISTURBED_PAUSE);
            self.audit.due_at = self.audit.due_at.min(soon);
        }
    }

    /// Reads the kernel when that is due, else carries out what differs.
    pub(crate) fn pursue_kernel(&mut self) {
        if self.audit.observing || self.reconciler.in_flight() {
            return;
        }
        self.finish_detached();
        let due = self.now.monotonic >= self.audit.due_at;
        let settled = self.audit.after_listing && self.ipam.settled();
        if due || settled || !self.audit.calls.is_empty() {
            self.audit.observing = true;
            self.audit.answering = std::mem::take(&mut self.audit.calls);
            self.audit.after_listing &= !settled;
            self.out.push(Command::Observe);
        } else if self.audit.observed {
            self.plan();
        }
    }

    fn plan(&mut self) {
        if let Some(plan) = self.reconciler.plan(self.now.monotonic) {
            self.counters.plans += 1;
            self.counters.ops += plan.ops.len() as u64;
            self.out.push(Command::Apply(plan));
        }
    }

    /// Of which tables everything is known. Blocks and gateway of this node must be settled too, or its own
    /// routes would look like nobody's.
    fn prune(&self) -> Prune {
        let complete = self.view.is_complete() && self.store.suspect.is_none() && self.ipam.settled();
        if complete && self.audit.trusted == Some(true) {
            Prune { ipcache: self.gossip_settled(), services: self.gossip_settled(), ..Prune::ALL }
        } else {
            Prune::NONE
        }
    }

    fn gossip_settled(&self) -> bool {
        self.now.monotonic >= GOSSIP_SETTLED
    }

    pub(crate) fn on_observed(&mut self, result: Result<Observed, String>) {
        self.audit.observing = false;
        self.audit.read_at = self.now.monotonic;
        match result {
            Ok(observed) => {
                // Drawn from half to one and a half, so that a fleet started at once does not audit at once.
                let interval = self.config.audit_interval;
                self.audit.due_at = self.now.monotonic + interval.mul_f64(0.5 + self.rng.f64());
                if !self.gossip_settled() {
                    self.audit.due_at = self.audit.due_at.min(GOSSIP_SETTLED);
                }
                if self.audit.observed { self.compare(observed) } else { self.adopt_kernel(observed) }
            }
            Err(reason) => {
                self.audit.due_at = self.now.monotonic + OBSERVE_RETRY;
                for (call, _) in std::mem::take(&mut self.audit.answering) {
                    let text = format!("the kernel could not be read: {reason}");
                    self.refuse(call, CallErrorKind::Unavailable, text);
                }
                self.error(format!("the kernel could not be read: {reason}"));
            }
        }
    }

    /// The first look: what is there stays, with its numbers (P5).
    fn adopt_kernel(&mut self, mut observed: Observed) {
        self.audit.observed = true;
        // Asked after a first reading that failed: nothing was compared here, the next reading answers.
        self.audit.calls.append(&mut self.audit.answering);
        // The ipcache is all of a large fleet, and nobody else asks for it here.
        let ipcache = std::mem::take(&mut observed.tables.ipcache);
        let tables = Tables { ipcache, ..observed.tables.clone() };
        self.reconciler.adopt(Observed { tables, ..observed.clone() }, Prune::NONE);
        self.adopted_gateway = observed.tables.base.as_ref().map(|base| base.gateway);
        self.peers.adopt(&observed.tables.nodes);
        self.adopt_services(&observed.tables);
        self.adopt_endpoints(&observed);
        self.desired.base = true;
        self.judge_first_listing();
    }

    fn compare(&mut self, observed: Observed) {
        let prune = self.prune();
        if prune.services {
            self.forget_doubtful_members();
        }
        let calls = std::mem::take(&mut self.audit.answering);
        // Somebody who only asks does not repair; without anybody asking the audit is there to repair.
        let repair = calls.is_empty() || calls.iter().any(|(_, repair)| *repair);
        let found = self.reconciler.compare(&observed, prune);
        let mut lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        lines.extend(observed.broken.iter().map(|what| format!("broken: {what}")));
        lines.sort();
        self.counters.audits += 1;
        if repair {
            for Difference { key, .. } in found.iter().filter(|difference| !difference.kept) {
                *self.counters.audit_repaired.entry(key.table().to_owned()).or_default() += 1;
            }
            self.reconciler.adopt(observed, prune);
        }
        let at = self.now.wall;
        self.audit.last = Some(AuditView { at, differences: lines.clone(), repaired: repair });
        for (call, _) in calls {
            self.reply(call, Ok(Reply::Audited { differences: lines.clone() }));
        }
    }

    pub(crate) fn on_applied(&mut self, outcome: &PlanOutcome) {
        self.counters.op_failures += outcome.failures.len() as u64;
        let completed = self.reconciler.complete(self.now.monotonic, outcome);
        for key in &completed.done {
            if let TableKey::Endpoint(id) = key {
                self.endpoint_done(*id);
            }
        }
        for (key, error) in &completed.failed {
            self.error(format!("{key}: {error}"));
            if let TableKey::Endpoint(id) = key {
                self.endpoint_failed(*id, outcome.generation, error);
            }
        }
    }
}
