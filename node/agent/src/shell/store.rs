//! Requests to the store, each in a task of its own.

use std::{sync::Arc, time::Instant};

use kvstore_schema::{KvFailure, KvOutcome, KvRequest, KvResponse};
use kvstore_store::{Store, list_all};
use node_core::{Event, KvId};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::{Core, Stopping};
use crate::metrics::Metrics;

/// Concurrent requests. One etcd member carries out 663 transactions a second for one caller and 3,349 for 64; with more
/// callers, requests would only queue in etcd instead of here.
const MAX_REQUESTS: usize = 64;

/// Carries out the node's requests. Cheap to clone.
#[derive(Clone)]
pub struct StoreCalls {
    store: Arc<dyn Store>,
    core: Core,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
}

impl StoreCalls {
    /// Sends requests to `store` and their outcomes to `core`.
    pub fn new(store: Arc<dyn Store>, core: Core, tasks: TaskTracker, metrics: Arc<Metrics>) -> Self {
        Self { store, core, permits: Arc::new(Semaphore::new(MAX_REQUESTS)), tasks, metrics }
    }

    /// Starts a request and returns at once; its task waits for a permit. The number of tasks is bounded, since the
    /// node bounds its requests in flight.
    pub fn request(&self, id: KvId, request: KvRequest) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let permit = this.permits.acquire().await.expect("the semaphore is never closed");
            let begin = Instant::now();
            let outcome = this.carry_out(request).await;
            drop(permit);
            this.metrics.kv_seconds.observe(begin.elapsed().as_secs_f64());
            this.metrics.count_kv(outcome_word(&outcome));
            if let Err(failure) = &outcome {
                debug!(request = id.0, %failure, "store request failed");
            }
            // The node may have ended meanwhile.
            let _: Result<(), Stopping> = this.core.event(Event::KvAnswer(id, outcome)).await;
        });
    }

    async fn carry_out(&self, request: KvRequest) -> KvOutcome {
        match request {
            KvRequest::Txn(txn) => Ok(KvResponse::Txn(self.store.txn(txn).await?)),
            KvRequest::List(prefix) => Ok(KvResponse::List(list_all(&*self.store, &prefix).await?)),
        }
    }
}

fn outcome_word(outcome: &KvOutcome) -> &'static str {
    match outcome {
        Ok(_) => "answered",
        Err(KvFailure::Unavailable(_)) => "unavailable",
        Err(KvFailure::Ambiguous(_)) => "ambiguous",
        Err(KvFailure::Refused(_)) => "refused",
    }
}
