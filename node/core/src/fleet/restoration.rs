//! A store that was emptied, or replaced by an older copy: founding it anew, and writing again what the fleet knows.
//!
//! Owners write what they own at once. What no owner writes is written by any member that remembers it, a while later.
//! Until then nothing is removed (P6), and nothing that is free is claimed (P3), since it may belong to an absent node.

use std::time::Duration;

use kvstore_claims::{ChangeKind, Continuity, Restorer, ViewChange};
use kvstore_schema::{
    Condition, KvOp, KvOutcome, KvRequest, KvResponse, ListPage, Revision, Txn,
    key::ParsedKey,
    record::{FleetRecord, Life, Record},
};
use serde::{Deserialize, Serialize};

use super::Fleet;
use crate::{
    context::Context,
    limits::{RESTORE_GRACE, RESTORE_RETRY, SETTLE_AFTER},
    requests::Task,
};

/// The next generation of the store, while this node tries to found it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Founding {
    pub life: Life,
    /// The revision of the fleet's record in an older copy; `None` if there is no such record.
    pub copy: Option<Revision>,
}

/// The work of restoring the store. One per node, for as long as that takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Restoration {
    /// How the loss showed, for the operator.
    reason: Option<String>,
    /// Before this time only owners write.
    next_at: Duration,
    /// When the fleet may claim again, if nothing is left to be written by then.
    settle_at: Duration,
    restorer: Restorer,
    /// A request is in flight.
    asking: bool,
    /// The revision of the last answer: the view has to reach it before the next request.
    answered: Revision,
}

impl Restoration {
    fn begin(cx: &mut Context, reason: Option<String>) -> Self {
        let now = cx.now.monotonic;
        Self {
            reason,
            // Jittered, so that members do not all write the same records.
            next_at: now + RESTORE_GRACE.mul_f64(1.0 + cx.rng.f64() / 2.0),
            settle_at: now + SETTLE_AFTER.mul_f64(1.0 + cx.rng.f64() / 2.0),
            restorer: Restorer::default(),
            asking: false,
            answered: Revision::default(),
        }
    }

    pub(super) fn next_wake(&self) -> Option<Duration> {
        (!self.asking).then_some(self.next_at.min(self.settle_at))
    }

    pub(super) fn settle_at(&self) -> Duration {
        self.settle_at
    }
}

impl Fleet {
    /// The store begins another generation: requests to the former one do not count, and this node says again
    /// everything that it owns. Called before the view follows the listing.
    pub(crate) fn begin_generation(&mut self, cx: &mut Context, page: &ListPage, continuity: &Continuity) {
        let reason = match continuity {
            Continuity::Same => return,
            Continuity::Emptied => "the store was emptied".to_owned(),
            Continuity::Older(why) => why.clone(),
            Continuity::FoundedAnew => {
                "the store was emptied or restored, and founded anew by another node".to_owned()
            }
        };
        cx.error(format!("{reason}: what this node knows is written again"));
        self.founding = (*continuity != Continuity::FoundedAnew).then(|| {
            let key = self.view.schema().fleet();
            let copy = page.entries.iter().find(|kv| kv.key == key);
            let former = copy.and_then(|kv| Some(FleetRecord::decode(&kv.value).ok()?.life.number));
            Founding {
                life: Life {
                    number: self.view.life().number.max(former.unwrap_or(0)) + 1,
                    founded_on: page.revision,
                    restoring: true,
                },
                copy: copy.map(|kv| kv.mod_revision),
            }
        });
        self.restoration = Some(Restoration::begin(cx, Some(reason)));
        self.started_revision = page.revision;
        self.rejoin(cx.now.monotonic);
    }

    /// Whether the restoration is over and this node has not noticed yet. Ends it.
    pub(crate) fn end_restoration(&mut self) -> bool {
        let over = self.view.remembered() == 0 && !self.view.life().restoring;
        self.can_restore() && over && self.restoration.take().is_some()
    }

    fn can_restore(&self) -> bool {
        self.store.connected && self.is_registered()
    }

    /// Takes the next step of the restoration. Returns records that cannot be restored and are forgotten.
    pub(crate) fn pursue_restoration(&mut self, cx: &mut Context) -> Vec<ViewChange> {
        let (left, settling) = (self.view.remembered(), self.view.life().restoring);
        if !self.can_restore() || (left == 0 && !settling) {
            return Vec::new();
        }
        let mut restoration = match self.restoration.take() {
            Some(restoration) => restoration,
            None => Restoration::begin(cx, None),
        };
        let now = cx.now.monotonic;
        let ready = !restoration.asking && self.view.revision() >= restoration.answered;
        let (mut request, mut changes) = (None, Vec::new());
        if ready && left > 0 && now >= restoration.next_at {
            let draw = cx.rng.u64(..);
            (request, changes) = restoration.restorer.plan(&mut self.view, draw);
            for change in &changes {
                if let (ParsedKey::Service(name), ChangeKind::Gone) = (&change.key, change.kind) {
                    cx.error(format!(
                        "service {name} is lost: its address went to another service before etcd was restored; apply it again"
                    ));
                }
            }
            if request.is_none() {
                restoration.next_at = now + RESTORE_RETRY;
            }
        } else if ready && left == 0 && settling && now >= restoration.settle_at {
            request = self.settling();
        }
        restoration.asking |= request.is_some();
        self.restoration = Some(restoration);
        if let Some(request) = request {
            cx.ask(request, Task::Restore);
        }
        changes
    }

    /// The request that ends the restoration for the whole fleet: all that was known is written.
    fn settling(&self) -> Option<KvRequest> {
        let fleet = self.view.fleet()?;
        let key = self.view.schema().fleet();
        let life = Life { restoring: false, ..fleet.record.life };
        let value = FleetRecord { life, ..fleet.record.clone() }.encode();
        let unchanged = Condition::ModRevision(key.clone(), fleet.modified);
        Some(KvRequest::Txn(Txn::new().when(unchanged).then(KvOp::Put { key, value, lease: None })))
    }

    /// A request of the restoration was answered. The view shows the result.
    pub(crate) fn on_restored(&mut self, cx: &Context, outcome: &KvOutcome) {
        let retry_at = cx.now.monotonic + RESTORE_RETRY;
        let Some(restoration) = &mut self.restoration else { return };
        restoration.asking = false;
        let mut succeeded = false;
        if let Ok(KvResponse::Txn(answer)) = outcome {
            restoration.restorer.answered(answer.succeeded);
            restoration.answered = answer.revision;
            succeeded = answer.succeeded;
        }
        if !succeeded {
            restoration.next_at = restoration.next_at.max(retry_at);
            restoration.settle_at = restoration.settle_at.max(retry_at);
        }
    }

    /// The state of the restoration, for an operator.
    pub(crate) fn restoration_warning(&self) -> Option<String> {
        let restoration = self.restoration.as_ref()?;
        let reason = restoration.reason.as_deref().unwrap_or("the fleet restores its store");
        Some(format!(
            "{reason}: its members write again what they know ({} records to go); nothing is removed meanwhile, and no new block or label set is taken",
            self.view.remembered()
        ))
    }
}
