//! Reading the kernel completely: at the start, after every listing, on a deadline, on request.

use std::{collections::BTreeSet, time::Duration};

use datapath_plan::{Difference, Observed, Prune, TableKey};
use serde::{Deserialize, Serialize};

use crate::{
    AuditView, CallErrorKind, CallId, Command, Reply,
    context::Context,
    limits::{EXTERNALLY_MODIFIED_PAUSE, GOSSIP_SETTLED, OBSERVE_RETRY},
};

/// The audit. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Audit {
    /// A listing has come since the last audit.
    after_listing: bool,
    /// The kernel is being read: no plan meanwhile, or the result would be older than what is applied.
    observing: bool,
    due_at: Duration,
    /// When the kernel was last read.
    read_at: Duration,
    /// Calls that wait for an audit to begin, and whether each wants repairs.
    calls: Vec<(CallId, bool)>,
    /// Calls that the reading in flight answers: it began after they came.
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

    pub(crate) fn request(&mut self, call: CallId, repair: bool) {
        self.calls.push((call, repair));
    }

    /// The store was listed: what the listing does not have may be removed from the kernel.
    pub(crate) fn after_listing(&mut self) {
        self.after_listing = true;
    }

    /// Something else changed the network stack: if wanted entries are concerned, the kernel is read soon. With a pause
    /// between two such readings, since whatever removes our routes may do so again and again.
    pub(crate) fn on_externally_modified(&mut self, cx: &Context, keys: &BTreeSet<TableKey>) {
        if keys.iter().any(|key| cx.kernel.wanted().get(key).is_some()) {
            let soon = cx.now.monotonic.max(self.read_at + EXTERNALLY_MODIFIED_PAUSE);
            self.due_at = self.due_at.min(soon);
        }
    }

    /// Whether neither a reading nor a plan is in flight.
    pub(crate) fn is_idle(&self, cx: &Context) -> bool {
        !self.observing && !cx.kernel.in_flight()
    }

    /// Reads the kernel if that is due, else has the differences carried out. Only while idle. `claims_settled`: all of
    /// this node's blocks are held, so that a reading after a listing may remove what nobody wants.
    pub(crate) fn pursue(&mut self, cx: &mut Context, claims_settled: bool) {
        let due = cx.now.monotonic >= self.due_at;
        let listed = self.after_listing && claims_settled;
        if due || listed || !self.calls.is_empty() {
            self.observing = true;
            self.answering = std::mem::take(&mut self.calls);
            self.after_listing &= !listed;
            cx.command(Command::Observe);
        } else if cx.startup.kernel_read
            && let Some(plan) = cx.kernel.plan(cx.now.monotonic)
        {
            cx.counters.plans += 1;
            cx.counters.ops += plan.ops.len() as u64;
            cx.command(Command::Apply(plan));
        }
    }

    /// The reading has ended. Returns what was read.
    pub(crate) fn on_observed(
        &mut self,
        cx: &mut Context,
        result: Result<Observed, String>,
    ) -> Option<Observed> {
        let now = cx.now.monotonic;
        self.observing = false;
        self.read_at = now;
        match result {
            Ok(observed) => {
                // Jittered from half to one and a half, so that a fleet that started at once does not audit at once.
                let interval = cx.config.audit_interval;
                self.due_at = now + interval.mul_f64(0.5 + cx.rng.f64());
                if now < GOSSIP_SETTLED {
                    self.due_at = self.due_at.min(GOSSIP_SETTLED);
                }
                Some(observed)
            }
            Err(reason) => {
                self.due_at = now + OBSERVE_RETRY;
                for (call, _) in std::mem::take(&mut self.answering) {
                    let text = format!("the kernel could not be read: {reason}");
                    cx.refuse(call, CallErrorKind::Unavailable, text);
                }
                cx.error(format!("the kernel could not be read: {reason}"));
                None
            }
        }
    }

    /// The first reading: what is there stays, with its numbers (P5). Calls are answered by the next reading, since nothing
    /// was compared here.
    pub(crate) fn adopt(&mut self, cx: &mut Context, observed: Observed) {
        self.calls.append(&mut self.answering);
        cx.kernel.adopt(observed, Prune::NONE);
    }

    /// Any later reading: finds what differs, and repairs it unless all callers only want to know.
    pub(crate) fn compare(&mut self, cx: &mut Context, observed: Observed, prune: Prune) {
        let calls = std::mem::take(&mut self.answering);
        let repair = calls.is_empty() || calls.iter().any(|(_, repair)| *repair);
        let found = cx.kernel.compare(&observed, prune);
        let mut lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        lines.extend(observed.broken.iter().map(|what| format!("broken: {what}")));
        lines.sort();
        cx.counters.audits += 1;
        if repair {
            for Difference { key, .. } in found.iter().filter(|difference| !difference.kept) {
                *cx.counters.audit_repaired.entry(key.table().to_owned()).or_default() += 1;
            }
            cx.kernel.adopt(observed, prune);
        }
        self.last = Some(AuditView { at: cx.now.wall, differences: lines.clone(), repaired: repair });
        for (call, _) in calls {
            cx.reply(call, Ok(Reply::Audited { differences: lines.clone() }));
        }
    }
}
