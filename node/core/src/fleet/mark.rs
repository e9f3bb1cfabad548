//! The store's mark: replacing it after records have changed, and reading it when a watch resumes.
//!
//! `kvstore-claims` compares listings with the mark. A watch that resumes after a break does not show what was there
//! before: an older copy may have replaced the store meanwhile, and its revision may have passed the watch's.

use std::time::Duration;

use kvstore_claims::mark_request;
use kvstore_schema::{
    KeyValue, KvOp, KvOpResult, KvOutcome, KvRequest, KvResponse, Txn,
    record::{FleetRecord, Record},
};
use serde::{Deserialize, Serialize};

use super::Fleet;
use crate::{
    context::Context,
    limits::{MARK_AFTER, RELIST_RETRY},
    requests::Task,
};

/// What is to be done about the mark. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Marking {
    /// When the next mark is due; `None` while no record has changed since the last one.
    due: Option<Duration>,
    /// The watch resumed after a break, and the store has not shown its mark yet.
    doubted: bool,
    /// Readings so far; only the last one's answer counts.
    readings: u64,
}

impl Marking {
    pub(super) fn next_wake(&self) -> Option<Duration> {
        self.due.filter(|_| !self.doubted)
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Whether the answer to a reading is still awaited.
    pub(super) fn is_open(&self, number: u64) -> bool {
        self.doubted && number == self.readings
    }

    /// A listing shows everything, the mark included.
    pub(super) fn doubt_ends(&mut self) {
        self.doubted = false;
    }
}

impl Fleet {
    /// A record other than the mark has changed.
    pub(crate) fn mark_later(&mut self, cx: &mut Context) {
        if self.marking.due.is_none() {
            // Jittered, so that as a rule one node writes the mark and the others see it in time.
            self.marking.due = Some(cx.now.monotonic + MARK_AFTER.mul_f64(1.0 + cx.rng.f64()));
        }
    }

    /// The store has a new mark.
    pub(crate) fn on_mark(&mut self) {
        self.marking.due = None;
    }

    /// Replaces the store's mark when that is due.
    pub(crate) fn pursue_mark(&mut self, cx: &mut Context) {
        let due = self.marking.due.is_some_and(|at| at <= cx.now.monotonic);
        let known = self.store.connected && self.is_registered() && self.view.is_complete();
        if !due || !known || self.marking.doubted {
            return;
        }
        let mark = format!("{:032x}", cx.rng.u128(..));
        // The view shows the result. If there is none, the next attempt is as late as the first one.
        self.marking.due = None;
        self.mark_later(cx);
        cx.ask(mark_request(&self.view, mark), Task::Unattended);
    }

    /// The watch resumes after a break: reads the mark before the store is believed in everything.
    pub(super) fn doubt(&mut self, cx: &mut Context) {
        if self.fleet_id().is_none() {
            return;
        }
        self.marking.doubted = true;
        self.marking.readings += 1;
        cx.ask(self.mark_reading(), Task::ReadMark(self.marking.readings));
    }

    pub(super) fn mark_reading(&self) -> KvRequest {
        let schema = self.view.schema();
        KvRequest::Txn(Txn::new().then(KvOp::Get(schema.mark())).then(KvOp::Get(schema.fleet())))
    }

    /// The answer to a reading of the mark.
    pub(crate) fn on_mark_read(&mut self, cx: &mut Context, number: u64, outcome: KvOutcome) {
        if !self.marking.is_open(number) {
            return;
        }
        let Ok(KvResponse::Txn(answer)) = outcome else {
            return cx.ask_later(RELIST_RETRY, self.mark_reading(), Task::ReadMark(number));
        };
        let got = |index: usize| match answer.results.get(index) {
            Some(KvOpResult::Got(found)) => found.as_ref(),
            _ => None,
        };
        let same_generation = got(1).is_some_and(|fleet| !self.is_other_generation(fleet));
        if same_generation && self.view.is_marked_by(got(0)) {
            self.marking.doubted = false;
        } else {
            self.relist(cx, Vec::new());
        }
    }

    /// Whether the fleet's record is of another generation of the store, or another fleet's, than the view.
    pub(super) fn is_other_generation(&self, fleet: &KeyValue) -> bool {
        let Ok(found) = FleetRecord::decode(&fleet.value) else { return false };
        let life = self.view.life();
        (found.life.number, found.life.founded_on) != (life.number, life.founded_on)
            || self.fleet_id().is_some_and(|known| known != found.fleet_id)
    }
}
