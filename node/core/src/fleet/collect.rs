//! Garbage collection: one piece of it is planned after each jittered pause.

use std::{collections::BTreeSet, time::Duration};

use identity::Identity;
use kvstore_claims::Collector;
use serde::{Deserialize, Serialize};

use super::Fleet;
use crate::{context::Context, requests::Task};

/// The collector and when it runs next. One per node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Collection {
    collector: Collector,
    due_at: Duration,
}

impl Collection {
    pub(super) fn new(quarantine: Duration) -> Self {
        Self { collector: Collector::new(quarantine), due_at: Duration::ZERO }
    }

    pub(super) fn next_wake(&self) -> Duration {
        self.due_at
    }
}

impl Fleet {
    /// Sets the next run of the collector.
    pub(crate) fn schedule_collection(&mut self, cx: &mut Context) {
        let pause = cx.config.collect_interval.mul_f64(0.5 + cx.rng.f64());
        self.collection.due_at = cx.now.monotonic + pause;
    }

    /// Plans one piece of garbage collection when it is due. `in_use`: identities in use that the store may have no
    /// reference to yet.
    pub(crate) fn collect(&mut self, cx: &mut Context, in_use: impl FnOnce() -> BTreeSet<Identity>) {
        if cx.now.monotonic < self.collection.due_at {
            return;
        }
        self.schedule_collection(cx);
        let known = self.store.connected && !self.marking.is_doubted();
        if !self.has_joined() || !known || cx.startup.listing_trusted != Some(true) {
            return;
        }
        let draw = cx.rng.u64(..);
        let planned = self.collection.collector.plan(&self.view, &in_use(), cx.now.monotonic, draw);
        if let Some(request) = planned {
            cx.ask(request, Task::Unattended);
        }
    }
}
