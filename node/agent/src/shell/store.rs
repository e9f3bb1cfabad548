//! Requests to the store, and the watch that follows the fleet's prefix.

use std::{sync::Arc, time::Instant};

use kvstore_schema::{KvFailure, KvOutcome, KvRequest, KvResponse, Prefix, Revision};
use kvstore_store::{Store, StoreError, WatchEvent, list_all};
use node_core::{Event, KvId, KvUpdate};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::{Core, Stopping, backoff::Backoff};
use crate::metrics::Metrics;

/// Requests on their way at once. One etcd node carries out 663 transactions a second for one caller and 3,349
/// for 64; more callers than that only wait in etcd instead of here.
const MAX_REQUESTS: usize = 64;

/// Carries out the node's requests, each in a task of its own. Cheap to clone.
#[derive(Clone)]
pub struct StoreCalls {
    store: Arc<dyn Store>,
    core: Core,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
}

impl StoreCalls {
    /// Requests go to this store; answers go to the node.
    pub fn new(store: Arc<dyn Store>, core: Core, tasks: TaskTracker, metrics: Arc<Metrics>) -> Self {
        Self { store, core, permits: Arc::new(Semaphore::new(MAX_REQUESTS)), tasks, metrics }
    }

    /// Begins a request. At once: what is too many waits in its task. The node itself has a bounded number of
    /// requests in flight, so these tasks are bounded too.
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
            // A node that has ended needs no answer.
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

/// Why a watch is over, as far as it matters for what comes next.
enum After {
    /// Go on from the last revision.
    Resume(StoreError),
    /// List again.
    Relist(StoreError),
}

/// Follows a prefix for as long as the node lives: lists it at a revision, watches from the next one, resumes
/// a broken watch, lists again after compaction or when the store is another. Never gives up.
///
/// # Errors
/// [`Stopping`] when the node has ended.
pub async fn follow(
    store: Arc<dyn Store>,
    prefix: Prefix,
    core: Core,
    metrics: Arc<Metrics>,
) -> Result<(), Stopping> {
    let mut follower = Follower { store, prefix, core, metrics, backoff: Backoff::new(), lost: false };
    loop {
        let listed = follower.list().await?;
        follower.watch(listed.revision.next(), listed.store).await?;
    }
}

struct Follower {
    store: Arc<dyn Store>,
    prefix: Prefix,
    core: Core,
    metrics: Arc<Metrics>,
    backoff: Backoff,
    lost: bool,
}

struct Listed {
    revision: Revision,
    store: kvstore_schema::StoreIdentity,
}

impl Follower {
    async fn list(&mut self) -> Result<Listed, Stopping> {
        loop {
            match list_all(&*self.store, &self.prefix).await {
                Ok(page) => {
                    self.metrics.kv_resyncs.inc();
                    self.found();
                    info!(revision = page.revision.0, keys = page.entries.len(), "store listed");
                    let listed = Listed { revision: page.revision, store: page.store };
                    self.core.event(Event::Kv(KvUpdate::Listed(page))).await?;
                    return Ok(listed);
                }
                Err(error) => self.lose(&error).await?,
            }
        }
    }

    /// Watches until the prefix must be listed again.
    async fn watch(
        &mut self,
        mut from: Revision,
        listed: kvstore_schema::StoreIdentity,
    ) -> Result<(), Stopping> {
        loop {
            let ended = match self.store.watch(&self.prefix, from).await {
                Err(error) => after(error),
                Ok(watch) if watch.store != listed => {
                    After::Relist(StoreError::Replaced(format!("store {:x} answers", watch.store.0)))
                }
                Ok(mut watch) => {
                    if self.lost {
                        // Nothing may change for long; that the store is back must be known at once.
                        let revision = Revision(from.0 - 1);
                        self.core
                            .event(Event::Kv(KvUpdate::Changed { events: Vec::new(), revision }))
                            .await?;
                        info!(revision = revision.0, "store watch resumed");
                    }
                    self.found();
                    self.read(&mut watch, &mut from).await?
                }
            };
            match ended {
                After::Resume(error) => self.lose(&error).await?,
                After::Relist(error) => {
                    info!(%error, "store is listed again");
                    return Ok(());
                }
            }
        }
    }

    async fn read(
        &mut self,
        watch: &mut kvstore_store::Watch,
        from: &mut Revision,
    ) -> Result<After, Stopping> {
        loop {
            let (events, revision) = match watch.events.recv().await {
                Some(WatchEvent::Changes { events, revision }) => (events, revision),
                Some(WatchEvent::Progress { revision }) => (Vec::new(), revision),
                Some(WatchEvent::Ended(error)) => return Ok(after(error)),
                None => return Ok(After::Resume(StoreError::Unavailable("the watch ended".to_owned()))),
            };
            // Progress may lag behind changes that were delivered meanwhile.
            *from = revision.next().max(*from);
            self.core.event(Event::Kv(KvUpdate::Changed { events, revision })).await?;
        }
    }

    fn found(&mut self) {
        self.lost = false;
        self.backoff.reset();
    }

    /// Tells the node once for each outage, then waits.
    async fn lose(&mut self, error: &StoreError) -> Result<(), Stopping> {
        if !self.lost {
            self.lost = true;
            warn!(%error, "store lost; what runs goes on without it");
            self.core.event(Event::Kv(KvUpdate::Lost(error.to_string()))).await?;
        }
        tokio::time::sleep(self.backoff.step()).await;
        Ok(())
    }
}

fn after(error: StoreError) -> After {
    match error {
        StoreError::Compacted { .. } | StoreError::Replaced(_) => After::Relist(error),
        StoreError::Unavailable(_)
        | StoreError::Ambiguous(_)
        | StoreError::LeaseGone(_)
        | StoreError::Refused(_) => After::Resume(error),
    }
}
