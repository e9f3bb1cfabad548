//! The node's sign of life: a key kept on a lease. A lease means liveness and nothing else.

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
pub struct Sign {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Arc<[u8]>,
    /// How long it outlives the agent.
    pub ttl: Duration,
    /// Written only while this holds: in another fleet's store it does not.
    pub fence: Condition,
}

/// Whether the sign is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseState {
    /// Whether the key hangs on a living lease, as far as is known.
    pub held: bool,
    /// Why not.
    pub error: Option<String>,
}

/// Keeps the newest sign given, in a task of its own.
#[derive(Clone)]
pub struct LeaseKeeper {
    wanted: watch::Sender<Option<Sign>>,
    state: watch::Receiver<LeaseState>,
}

impl LeaseKeeper {
    /// The keeper and its task; spawn the task and abort it to stop. The lease then runs out by itself: a
    /// restarted agent takes the key over before.
    pub fn new(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (wanted, newest) = watch::channel(None);
        let (report, state) = watch::channel(LeaseState::default());
        (Self { wanted, state }, keep(store, newest, report, metrics))
    }

    /// Keeps this from now on. The same again changes nothing.
    pub fn keep(&self, sign: Sign) {
        self.wanted.send_if_modified(|current| {
            let new = Some(sign);
            let changed = *current != new;
            *current = new;
            changed
        });
    }

    /// How it stands.
    pub fn state(&self) -> LeaseState {
        self.state.borrow().clone()
    }
}

async fn keep(
    store: Arc<dyn Store>,
    mut newest: watch::Receiver<Option<Sign>>,
    report: watch::Sender<LeaseState>,
    metrics: Arc<Metrics>,
) {
    let mut retries = RETRIES.build();
    let mut lease: Option<LeaseId> = None;
    let mut written = false;
    loop {
        let Some(sign) = newest.borrow_and_update().clone() else {
            if newest.changed().await.is_err() {
                return;
            }
            continue;
        };
        let pause = match advance(&*store, &sign, &mut lease, &mut written).await {
            Ok(()) => {
                retries = RETRIES.build();
                if !report.borrow().held {
                    info!(key = %sign.key, "sign of life is held");
                }
                report.send_replace(LeaseState { held: true, error: None });
                // A third: two renewals may fail before the lease is gone.
                sign.ttl / 3
            }
            Err(error) => {
                if let StoreError::LeaseGone(_) = error {
                    metrics.lease_lost.inc();
                    (lease, written) = (None, false);
                }
                if report.borrow().held {
                    warn!(%error, "sign of life is not held; tried again until it is");
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

/// One step: a lease if there is none, the key on it if it is not there, else a renewal. An ambiguous write is
/// repeated: it is the same each time.
async fn advance(
    store: &dyn Store,
    sign: &Sign,
    lease: &mut Option<LeaseId>,
    written: &mut bool,
) -> Result<(), StoreError> {
    let id = match *lease {
        Some(id) => {
            store.lease_keep_alive(id).await?;
            id
        }
        None => *lease.insert(store.lease_grant(sign.ttl).await?),
    };
    if !*written {
        let put = KvOp::Put { key: sign.key.clone(), value: sign.value.clone(), lease: Some(id) };
        if !store.txn(Txn::new().when(sign.fence.clone()).then(put)).await?.succeeded {
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

    fn sign(value: &str) -> Sign {
        let fence = Condition::Absent(Key::from_raw("/warren/v1/f/nodes/b"));
        Sign { key: Key::from_raw("/warren/v1/f/alive/a"), value: value.as_bytes().into(), ttl: TTL, fence }
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
        tokio::time::timeout(Duration::from_secs(10), seen).await.expect("the sign is written");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_is_made_again_and_a_new_value_written() {
        let mem = MemStore::new(StoreIdentity(1));
        let store: Arc<dyn Store> = Arc::new(mem.client());
        let metrics = Arc::new(Metrics::new());
        let (keeper, task) = LeaseKeeper::new(store.clone(), metrics.clone());
        let task = tokio::spawn(task);
        keeper.keep(sign("one"));
        value_becomes(&*store, "one").await;
        mem.advance(TTL * 2);
        let prefix = Prefix::from_raw("/warren/v1/f/alive/");
        assert!(
            store.list_page(&prefix, None, None, 10).await.unwrap().entries.is_empty(),
            "the lease ran out"
        );
        value_becomes(&*store, "one").await;
        assert_eq!(metrics.lease_lost.get(), 1);
        keeper.keep(sign("two"));
        value_becomes(&*store, "two").await;
        assert!(keeper.state().held);
        task.abort();
    }
}
