//! A store that was emptied, or replaced by an older copy: founding it anew, and writing again what the fleet knows.
//!
//! Owners write what they own at once. What nobody came to write is written by whoever remembers it, a while later. Until
//! then nothing is removed (P6), and nothing that is free is claimed (P3): it may be somebody's who is away.

use std::time::Duration;

use kvstore_claims::{ChangeKind, Continuity, Restorer};
use kvstore_schema::{
    Condition, KvOp, KvOutcome, KvRequest, KvResponse, ListPage, Revision, Txn,
    key::ParsedKey,
    record::{ClaimEpoch, FleetRecord, Life, Record},
};
use serde::{Deserialize, Serialize};

use crate::{
    limits::{RESTORE_GRACE, RESTORE_RETRY, SETTLE_AFTER},
    node::Node,
    tasks::Task,
};

/// The next life of the store, while this node tries to found it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Founding {
    /// As it is to be.
    pub life: Life,
    /// The revision of the fleet's record in an older copy; `None`: there is none.
    pub copy: Option<Revision>,
}

/// The work of making the store whole again. One per node, for as long as that takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Restoring {
    /// How it showed, for the operator.
    pub reason: Option<String>,
    /// Before this, what others own is left to them.
    next_at: Duration,
    /// When the fleet may go on claiming, if nothing is left by then.
    settle_at: Duration,
    restorer: Restorer,
    asking: bool,
    /// The view has to show what came of the last request.
    answered: Revision,
}

impl Node {
    fn restoring_begins(&mut self, reason: Option<String>) -> Restoring {
        let now = self.now.monotonic;
        Restoring {
            reason,
            // Drawn, so that not everybody writes the same.
            next_at: now + RESTORE_GRACE.mul_f64(1.0 + self.rng.f64() / 2.0),
            settle_at: now + SETTLE_AFTER.mul_f64(1.0 + self.rng.f64() / 2.0),
            restorer: Restorer::default(),
            asking: false,
            answered: Revision::default(),
        }
    }

    /// The store has begun another life: nothing that was asked of the former one counts, and everything that this node
    /// owns has to be said again. Comes before the view follows.
    pub(crate) fn begin_life(&mut self, page: &ListPage, continuity: &Continuity) {
        let reason = match continuity {
            Continuity::Same => return,
            Continuity::Emptied => "the store was emptied".to_owned(),
            Continuity::Older(why) => why.clone(),
            Continuity::FoundedAnew => {
                "the store was emptied or restored, and founded anew by another node".to_owned()
            }
        };
        self.error(format!("{reason}: what this node knows is written again"));
        self.store.founding = (*continuity != Continuity::FoundedAnew).then(|| {
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
        let restoring = self.restoring_begins(Some(reason));
        self.store.restoring = Some(restoring);
        self.started_revision = page.revision;
        self.abandon_tasks();
        self.keep_told(ClaimEpoch { life: u64::MAX, revision: Revision::default() });
        self.rejoin();
        self.claim_blocks_again();
        self.acquire_again();
        self.write_again();
    }

    /// Takes the next step towards a store that is whole.
    pub(crate) fn pursue_restoring(&mut self) {
        let left = self.view.remembered();
        if !self.store.connected || !self.membership.registered() {
            return;
        }
        let life = self.view.life();
        if left == 0 && !life.restoring {
            if self.store.restoring.take().is_some() {
                // What gossip says of blocks counts no more.
                self.touch_all_peers();
                self.keep_told(self.seen());
                self.forget_kept();
                self.name_endpoints();
                self.look_at_own_records();
            }
            return;
        }
        let mut restoring = match self.store.restoring.take() {
            Some(restoring) => restoring,
            None => self.restoring_begins(None),
        };
        let now = self.now.monotonic;
        let ready = !restoring.asking && self.view.revision() >= restoring.answered;
        let mut request = None;
        if ready && left > 0 && now >= restoring.next_at {
            let draw = self.rng.u64(..);
            let (planned, changes) = restoring.restorer.plan(&mut self.view, draw);
            request = planned;
            for change in &changes {
                if let (ParsedKey::Service(name), ChangeKind::Gone) = (&change.key, change.kind) {
                    self.error(format!(
                        "service {name} is lost: its address went to another one while etcd was not whole; apply it again"
                    ));
                }
            }
            self.on_view_changes(changes);
            if request.is_none() {
                restoring.next_at = now + RESTORE_RETRY;
            }
        } else if ready && left == 0 && life.restoring && now >= restoring.settle_at {
            request = self.settle();
        }
        restoring.asking |= request.is_some();
        self.store.restoring = Some(restoring);
        if let Some(request) = request {
            self.ask(request, Task::Restore);
        }
    }

    /// Everything that was known is written: the fleet may claim again what is free.
    fn settle(&self) -> Option<KvRequest> {
        let fleet = self.view.fleet()?;
        let key = self.view.schema().fleet();
        let life = Life { restoring: false, ..fleet.record.life };
        let value = FleetRecord { life, ..fleet.record.clone() }.encode();
        let txn = Txn::new().when(Condition::ModRevision(key.clone(), fleet.modified)).then(KvOp::Put {
            key,
            value,
            lease: None,
        });
        Some(KvRequest::Txn(txn))
    }

    /// What came of it the view shows.
    pub(crate) fn on_restored(&mut self, outcome: &KvOutcome) {
        let retry_at = self.now.monotonic + RESTORE_RETRY;
        let Some(restoring) = &mut self.store.restoring else { return };
        restoring.asking = false;
        match outcome {
            Ok(KvResponse::Txn(answer)) => {
                restoring.restorer.answered(answer.succeeded);
                restoring.answered = answer.revision;
                if !answer.succeeded {
                    restoring.next_at = restoring.next_at.max(retry_at);
                    restoring.settle_at = restoring.settle_at.max(retry_at);
                }
            }
            Ok(KvResponse::List(_)) | Err(_) => {
                restoring.next_at = restoring.next_at.max(retry_at);
                restoring.settle_at = restoring.settle_at.max(retry_at);
            }
        }
    }

    /// What an operator should know of it.
    pub(crate) fn restoring_warning(&self) -> Option<String> {
        let restoring = self.store.restoring.as_ref()?;
        let reason = restoring.reason.as_deref().unwrap_or("the fleet makes its store whole again");
        Some(format!(
            "{reason}: its members write again what they know ({} records to go); nothing is removed meanwhile, and no new block or label set is taken",
            self.view.remembered()
        ))
    }
}

impl Restoring {
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        (!self.asking).then_some(self.next_at.min(self.settle_at))
    }

    pub(crate) fn settle_at(&self) -> Duration {
        self.settle_at
    }
}
