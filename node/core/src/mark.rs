//! The store's mark: giving it another when records have changed, and looking at it when a watch goes on.
//!
//! A list is held against the mark by `kvstore-claims`. A watch that goes on after a break says nothing of what was there
//! before: an older copy may have taken the store's place meanwhile, and have passed the watch's revision.

use std::time::Duration;

use kvstore_claims::mark_request;
use kvstore_schema::{
    KeyValue, KvOp, KvOpResult, KvOutcome, KvRequest, KvResponse, Txn,
    record::{FleetRecord, Record},
};
use serde::{Deserialize, Serialize};

use crate::{
    limits::{MARK_AFTER, RELIST_RETRY},
    node::Node,
    tasks::Task,
};

/// What is to be done about the mark. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Marking {
    /// Records have changed since the last mark; when another one is due.
    due: Option<Duration>,
    /// The watch went on after a break; the store has not shown its mark yet.
    doubted: bool,
    /// Questions for it; only the last one's answer counts.
    asked: u64,
}

impl Marking {
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.due.filter(|_| !self.doubted)
    }

    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Whether a question still waits for its answer.
    pub(crate) fn is_open(&self, number: u64) -> bool {
        self.doubted && number == self.asked
    }
}

impl Node {
    /// A record other than the mark has changed.
    pub(crate) fn mark_later(&mut self) {
        if self.marking.due.is_none() {
            // Drawn, so that one node writes it and the others see it in time.
            self.marking.due = Some(self.now.monotonic + MARK_AFTER.mul_f64(1.0 + self.rng.f64()));
        }
    }

    /// The store has another mark.
    pub(crate) fn on_mark(&mut self) {
        self.marking.due = None;
    }

    /// A list tells all.
    pub(crate) fn doubt_ends(&mut self) {
        self.marking.doubted = false;
    }

    /// Gives the store another mark when that is due.
    pub(crate) fn pursue_mark(&mut self) {
        let due = self.marking.due.is_some_and(|at| at <= self.now.monotonic);
        let known = self.store.connected && self.membership.registered() && self.view.is_complete();
        if !due || !known || self.marking.doubted {
            return;
        }
        let mark = format!("{:032x}", self.rng.u128(..));
        // The view shows what comes of it; until then another attempt waits.
        self.marking.due = None;
        self.mark_later();
        self.ask(mark_request(&self.view, mark), Task::Collect);
    }

    /// The watch goes on after a break.
    pub(crate) fn doubt_store(&mut self) {
        if self.membership.fleet_id.is_none() {
            return;
        }
        self.marking.doubted = true;
        self.marking.asked += 1;
        self.ask(self.mark_reading(), Task::Mark(self.marking.asked));
    }

    pub(crate) fn mark_reading(&self) -> KvRequest {
        let schema = self.view.schema();
        KvRequest::Txn(Txn::new().then(KvOp::Get(schema.mark())).then(KvOp::Get(schema.fleet())))
    }

    /// What the store showed; `number`: of the question.
    pub(crate) fn on_mark_read(&mut self, number: u64, outcome: KvOutcome) {
        if !self.marking.is_open(number) {
            return;
        }
        let Ok(KvResponse::Txn(answer)) = outcome else {
            return self.ask_later(RELIST_RETRY, Task::Mark(number));
        };
        let got = |index: usize| match answer.results.get(index) {
            Some(KvOpResult::Got(found)) => found.as_ref(),
            _ => None,
        };
        let same_life = got(1).is_some_and(|fleet| !self.begins_life(fleet));
        if same_life && self.view.is_marked_by(got(0)) {
            self.marking.doubted = false;
        } else {
            self.relist(Vec::new());
        }
    }

    /// Whether the fleet's record is of another life, or another fleet's, than the view.
    pub(crate) fn begins_life(&self, fleet: &KeyValue) -> bool {
        let Ok(found) = FleetRecord::decode(&fleet.value) else { return false };
        let life = self.view.life();
        (found.life.number, found.life.founded_on) != (life.number, life.founded_on)
            || self.membership.fleet_id.as_ref().is_some_and(|known| *known != found.fleet_id)
    }
}
