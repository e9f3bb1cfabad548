//! Leases.

use std::time::Duration;

use kvstore_schema::{KvOp, KvOpResult, LeaseId};

use super::{Control, changes, key, keys, prefix, put, put_on, run, txn};
use crate::StoreError;

/// The shortest that etcd gives with its default election timeout; it lengthens shorter ones.
const TTL: Duration = Duration::from_secs(2);

/// A lease lives as long as asked at least, and keeping it alive gives it its whole time again.
pub async fn lease_keeps(control: &dyn Control) {
    let store = control.store();
    let lease = store.lease_grant(Duration::from_millis(59_500)).await.expect("granted");
    assert_eq!(store.lease_keep_alive(lease).await, Ok(Duration::from_secs(60)));
    let answer = run(&*store, txn([put_on("a", lease), KvOp::Get(key("a"))])).await;
    let KvOpResult::Got(Some(kv)) = &answer.results[1] else { panic!("{:?}", answer.results) };
    assert_eq!(kv.lease, Some(lease));
}

/// A lease that runs out takes its keys along, in one revision; then it is gone for every use.
pub async fn lease_lost(control: &dyn Control) {
    let store = control.store();
    let lease = store.lease_grant(TTL).await.expect("granted");
    let base = run(&*store, txn([put_on("a", lease), put_on("b", lease), put_on("c", lease)])).await.revision;
    run(&*store, txn([put("b", "without a lease")])).await;
    let mut watch = store.watch(&prefix(), base.next()).await.expect("created");
    control.run_out(TTL).await;
    assert_eq!(changes(&mut watch, 3, base).await, "+b@1 -a@2 -c@2");
    assert_eq!(store.lease_keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
    let late = txn([put("d", "")]).then(put_on("e", lease));
    assert_eq!(store.txn(late).await, Err(StoreError::LeaseGone(lease)));
    assert_eq!(keys(&*store, None).await, "b");
    // A lease in the branch that does not run is not looked at.
    let other = txn([put("d", "")]).otherwise(put_on("e", lease));
    assert!(run(&*store, other).await.succeeded);
}

/// A revoked lease is gone with its keys; revoking it again, or one that never was, is no error.
pub async fn lease_revoked(control: &dyn Control) {
    let store = control.store();
    let lease = store.lease_grant(Duration::from_secs(60)).await.expect("granted");
    run(&*store, txn([put_on("a", lease)])).await;
    assert_eq!(store.lease_revoke(lease).await, Ok(()));
    assert_eq!(keys(&*store, None).await, "");
    assert_eq!(store.lease_revoke(lease).await, Ok(()));
    assert_eq!(store.lease_revoke(LeaseId(0x7777)).await, Ok(()));
    assert_eq!(store.lease_keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
}
