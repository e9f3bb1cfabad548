//! The node's liveness key, kept on a lease. A lease means liveness and nothing else.

use std::{sync::Arc, time::Duration};

use backon::BackoffBuilder;
use kvstore_schema::{Condition, Key, KvOp, LeaseId, Txn};
use kvstore_store::{Store, StoreError};
use tokio::sync::watch;
use tracing::{info, warn};

use super::RETRIES;
use crate::metrics::Metrics;

/// The key, its value and its lease's time to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivenessKey {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Arc<[u8]>,
    /// How long the key outlives the agent.
    pub ttl: Duration,
    /// The key is written only while this condition holds: it does not hold in another fleet's store.
    pub fence: Condition,
}

/// The state of the liveness key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseState {
    /// Whether the key is on a live lease, as far as is known.
    pub held: bool,
    /// Why not.
    pub error: Option<String>,
}

/// Keeps the newest key, in a task of its own.
#[derive(Clone)]
pub struct LeaseKeeper {
    wanted: watch::Sender<Option<LivenessKey>>,
    state: watch::Receiver<LeaseState>,
}

impl LeaseKeeper {
    /// The keeper and its task; spawn the task and abort it to stop. The lease then expires by itself, unless a restarted
    /// agent has taken the key over before.
    pub fn new(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (wanted, newest) = watch::channel(None);
        let (report, state) = watch::channel(LeaseState::default());
        (Self { wanted, state }, keep(store, newest, report, metrics))
    }

    /// Keeps this key from now on. Repeating it changes nothing.
    pub fn keep(&self, liveness: LivenessKey) {
        self.wanted.send_if_modified(|current| {
            let new = Some(liveness);
            let changed = *current != new;
            *current = new;
            changed
        });
    }

    /// The current state.
    pub fn state(&self) -> LeaseState {
        self.state.borrow().clone()
    }
}

async fn keep(
    store: Arc<dyn Store>,
    mut newest: watch::Receiver<Option<LivenessKey>>,
    report: watch::Sender<LeaseState>,
    metrics: Arc<Metrics>,
) {
    let mut retries = RETRIES.build();
    let mut lease: Option<LeaseId> = None;
    let mut written = false;
    loop {
        let Some(liveness) = newest.borrow_and_update().clone() else {
            if newest.changed().await.is_err() {
                return;
            }
            continue;
        };
        let pause = match advance(&*store, &liveness, &mut lease, &mut written).await {
            Ok(()) => {
                retries = RETRIES.build();
                if !report.borrow().held {
                    info!(key = %liveness.key, "liveness key is held");
                }
                report.send_replace(LeaseState { held: true, error: None });
                // Two renewals may fail before the lease is gone.
                liveness.ttl / 3
            }
            Err(error) => {
                if let StoreError::LeaseGone(_) = error {
                    metrics.lease_lost.inc();
                    (lease, written) = (None, false);
                }
                if report.borrow().held {
                    warn!(%error, "liveness key is not held; trying again");
                }
                report.send_replace(LeaseState { held: false, error: Some(error.to_string()) });
                retries.next().expect("attempts are not limited")
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = newest.changed() => match changed {
                Ok(()) => written = false,
                Err(_) => return,
            },
        }
    }
}

/// One step: grants a lease if there is none, or renews it; then writes the key if it is not written. An ambiguous write
/// is repeated, since it is idempotent.
async fn advance(
    store: &dyn Store,
    liveness: &LivenessKey,
    lease: &mut Option<LeaseId>,
    written: &mut bool,
) -> Result<(), StoreError> {
    let id = match *lease {
        Some(id) => {
            store.lease_keep_alive(id).await?;
            id
        }
        None => *lease.insert(store.lease_grant(liveness.ttl).await?),
    };
    if !*written {
        let put = KvOp::Put { key: liveness.key.clone(), value: liveness.value.clone(), lease: Some(id) };
        if !store.txn(Txn::new().when(liveness.fence.clone()).then(put)).await?.succeeded {
            return Err(StoreError::Unavailable("this node's record is not the one it wrote".to_owned()));
        }
        *written = true;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kvstore_schema::{Prefix, StoreIdentity};
    use kvstore_store::MemStore;

    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn liveness(value: &str) -> LivenessKey {
        let fence = Condition::Absent(Key::from_raw("/warren/v1/f/nodes/b"));
        LivenessKey {
            key: Key::from_raw("/warren/v1/f/alive/a"),
            value: value.as_bytes().into(),
            ttl: TTL,
            fence,
        }
    }

    async fn value_becomes(store: &dyn Store, expected: &str) {
        let prefix = Prefix::from_raw("/warren/v1/f/alive/");
        let seen = async {
            loop {
                let page = store.list_page(&prefix, None, None, 10).await.unwrap();
                if page.entries.iter().any(|kv| &*kv.value == expected.as_bytes() && kv.lease.is_some()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen).await.expect("the key is written");
    }

    #[tokio::test(start_paused = true)]
    async fn lease_that_is_lost_is_granted_again_and_a_new_value_is_written() {
        let mem = MemStore::new(StoreIdentity(1));
        let store: Arc<dyn Store> = Arc::new(mem.client());
        let metrics = Arc::new(Metrics::new());
        let (keeper, task) = LeaseKeeper::new(store.clone(), metrics.clone());
        let task = tokio::spawn(task);
        keeper.keep(liveness("one"));
        value_becomes(&*store, "one").await;
        mem.advance(TTL * 2);
        let prefix = Prefix::from_raw("/warren/v1/f/alive/");
        assert!(
            store.list_page(&prefix, None, None, 10).await.unwrap().entries.is_empty(),
            "the lease ran out"
        );
        value_becomes(&*store, "one").await;
        assert_eq!(metrics.lease_lost.get(), 1);
        keeper.keep(liveness("two"));
        value_becomes(&*store, "two").await;
        assert!(keeper.state().held);
        task.abort();
    }
}
