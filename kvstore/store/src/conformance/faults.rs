//! A server that goes away, and one that falls silent.

use kvstore_schema::{Condition, KvOp, KvOpResult, Txn};
use tokio::time::{Instant, timeout};

use super::{Control, PATIENCE, changes, ending, key, prefix, put, run, txn};
use crate::{Store, StoreError};

/// Over a restart a watch ends; one from where it was goes on without a gap.
pub async fn restarted(control: &dyn Control) {
    let store = control.store();
    let base = run(&*store, txn([put("a", "1")])).await.revision;
    let mut watch = store.watch(&prefix(), base.next()).await.expect("created");
    run(&*store, txn([put("a", "2")])).await;
    assert_eq!(changes(&mut watch, 1, base).await, "+a@1");
    control.restart().await;
    let reason = ending(&mut watch).await;
    assert!(matches!(reason, StoreError::Unavailable(_)), "{reason}");

    answers_again(&*store).await;
    run(&*store, txn([put("a", "3")])).await;
    let mut resumed = store.watch(&prefix(), base.next().next()).await.expect("created");
    assert_eq!(changes(&mut resumed, 1, base).await, "+a@2");
    assert_eq!(resumed.store, watch.store);
}

/// Nothing waits for ever on a server that is silent; afterwards an idempotent write settles its outcome.
pub async fn frozen(control: &dyn Control) {
    let store = control.store();
    let base = run(&*store, txn([put("a", "1")])).await.revision;
    let mut watch = store.watch(&prefix(), base.next()).await.expect("created");
    let lease = store.lease_grant(PATIENCE * 6).await.expect("granted");
    let claim = Txn::new()
        .when(Condition::Absent(key("claim")))
        .then(put("claim", "token"))
        .otherwise(KvOp::Get(key("claim")));

    let all = prefix();
    control.freeze().await;
    let (write, read, kept, ended) = timeout(PATIENCE, async {
        tokio::join!(
            store.txn(claim.clone()),
            store.list_page(&all, None, None, 1),
            store.lease_keep_alive(lease),
            ending(&mut watch)
        )
    })
    .await
    .expect("every call has a deadline");
    assert!(matches!(write, Err(StoreError::Ambiguous(_))), "{write:?}");
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    assert!(matches!(kept, Err(StoreError::Unavailable(_))), "{kept:?}");
    assert!(matches!(ended, StoreError::Unavailable(_)), "{ended}");
    assert!(store.members().await.iter().all(|member| member.health.is_err()));

    control.thaw().await;
    answers_again(&*store).await;
    let settled = run(&*store, claim).await;
    match settled.results.as_slice() {
        [KvOpResult::Put] => {}
        [KvOpResult::Got(Some(kv))] => assert_eq!(&*kv.value, b"token", "only we wrote it"),
        other => panic!("{other:?}"),
    }
    let members = store.members().await;
    assert!(
        members.iter().any(|member| member.health.as_ref().is_ok_and(|health| health.leader)),
        "{members:?}"
    );
}

/// Reads until the server answers; each attempt has its own deadline.
pub(super) async fn answers_again(store: &dyn Store) {
    let begun = Instant::now();
    while let Err(error) = store.list_page(&prefix(), None, None, 1).await {
        assert!(begun.elapsed() < PATIENCE, "still no answer: {error}");
        tokio::task::yield_now().await;
    }
}
