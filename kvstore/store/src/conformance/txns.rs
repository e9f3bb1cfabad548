//! Transactions.

use std::sync::Arc;

use kvstore_schema::{Condition, KvOp, KvOpResult, Prefix, Revision, Txn};

use super::{Control, key, keys, put, run, txn};
use crate::{MAX_REQUEST_BYTES, StoreError};

/// Only changes raise the revision, each transaction once; a key keeps its create revision until it is deleted.
pub async fn revisions(control: &dyn Control) {
    let store = control.store();
    let base = run(&*store, Txn::new()).await.revision;
    let idle = run(&*store, txn([KvOp::Delete(key("a")), KvOp::Get(key("a"))])).await;
    assert_eq!((idle.revision, idle.results), (base, vec![KvOpResult::Deleted(0), KvOpResult::Got(None)]));

    let first = run(&*store, txn([put("a", "1"), put("b", "1"), KvOp::Get(key("a"))])).await;
    assert_eq!(first.revision, base.next());
    let [KvOpResult::Put, KvOpResult::Put, KvOpResult::Got(Some(seen))] = first.results.as_slice() else {
        panic!("a read sees what was written before it in its transaction: {:?}", first.results);
    };
    assert_eq!((&*seen.value, seen.mod_revision), (&b"1"[..], first.revision));

    let second = run(&*store, txn([put("a", "2"), KvOp::Delete(key("b")), KvOp::Delete(key("b"))])).await;
    assert_eq!(second.results[1..], [KvOpResult::Deleted(1), KvOpResult::Deleted(0)]);
    let read = run(&*store, txn([KvOp::Get(key("a"))])).await;
    let [KvOpResult::Got(Some(kv))] = read.results.as_slice() else { panic!("{:?}", read.results) };
    assert_eq!((kv.create_revision, kv.mod_revision, kv.lease), (first.revision, second.revision, None));

    run(&*store, txn([KvOp::Delete(key("a"))])).await;
    let again = run(&*store, txn([put("a", "3"), KvOp::Get(key("a"))])).await;
    let KvOpResult::Got(Some(kv)) = &again.results[1] else { panic!("{:?}", again.results) };
    assert_eq!(kv.create_revision, again.revision);
}

/// Each condition, where it holds and where it does not.
pub async fn conditions(control: &dyn Control) {
    let store = control.store();
    let first = run(&*store, txn([put("dir/a", "1")])).await.revision;
    let second = run(&*store, txn([put("dir/a", "2")])).await.revision;
    let (there, absent) = (|| key("dir/a"), || key("dir/b"));
    let value = |text: &str| Arc::from(text.as_bytes());
    let under = |text: &str| Prefix::from_raw(format!("/test/{text}/"));
    let cases = [
        (Condition::Absent(absent()), true),
        (Condition::Absent(there()), false),
        (Condition::Present(there()), true),
        (Condition::Present(absent()), false),
        (Condition::RangeEmpty(under("dir")), false),
        (Condition::RangeEmpty(under("di")), true),
        (Condition::ModRevision(there(), second), true),
        (Condition::ModRevision(there(), first), false),
        // etcd compares an absent key as if its revisions were 0; ours says that the key exists.
        (Condition::ModRevision(absent(), Revision(0)), false),
        (Condition::CreateRevision(there(), first), true),
        (Condition::CreateRevision(there(), second), false),
        (Condition::CreateRevision(absent(), Revision(0)), false),
        (Condition::ValueIs(there(), value("2")), true),
        (Condition::ValueIs(there(), value("1")), false),
        (Condition::ValueIs(absent(), value("")), false),
    ];
    for (condition, holds) in cases {
        let branches = Txn::new().when(condition.clone()).then(put("x", "")).otherwise(KvOp::Get(there()));
        let answer = run(&*store, branches).await;
        assert_eq!((answer.succeeded, answer.results.len()), (holds, 1), "{condition:?}");
    }
    let both = Txn::new().when(Condition::Present(there())).when(Condition::Present(absent()));
    assert!(!run(&*store, both).await.succeeded, "all conditions must hold");
    run(&*store, txn([KvOp::Delete(there())])).await;
    let empty = Txn::new().when(Condition::RangeEmpty(under("dir")));
    assert!(run(&*store, empty).await.succeeded, "a deleted key is not in the range");
}

/// What is refused, in whichever branch it stands; nothing of it is carried out.
pub async fn refusals(control: &dyn Control) {
    let store = control.store();
    let many = |count: usize| txn((0..count).map(|n| put(&format!("many/{n}"), "")));
    let large = "x".repeat(MAX_REQUEST_BYTES + 1);
    let cases = [
        ("too many operations", many(Txn::MAX_OPS + 1)),
        ("a key put twice", txn([put("a", "1"), put("a", "2")])),
        ("put, then deleted", txn([put("a", "1"), KvOp::Delete(key("a"))])),
        ("deleted, then put", txn([KvOp::Delete(key("a")), put("a", "1")])),
        ("put twice where it does not run", Txn::new().otherwise(put("a", "1")).otherwise(put("a", "2"))),
        ("too large", txn([put("a", &large)])),
    ];
    for (what, refused) in cases {
        let answer = store.txn(refused).await;
        assert!(matches!(answer, Err(StoreError::Refused(_))), "{what}: {answer:?}");
    }
    assert_eq!(keys(&*store, None).await, "");
    assert_eq!(run(&*store, many(Txn::MAX_OPS)).await.results.len(), Txn::MAX_OPS);
}

/// Of many that create one key at one moment, one wins, and the others see it.
pub async fn one_winner(control: &dyn Control) {
    let claims = (0..16).map(|n: i32| {
        let store = control.store();
        let claim = Txn::new().when(Condition::Absent(key("claim"))).then(put("claim", &n.to_string()));
        tokio::spawn(async move { (n, run(&*store, claim.otherwise(KvOp::Get(key("claim")))).await) })
    });
    let mut winners = Vec::new();
    let mut seen = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        let (n, answer) = claim.await.expect("no panic");
        match answer.results.as_slice() {
            [KvOpResult::Put] => winners.push(n.to_string().into_bytes()),
            [KvOpResult::Got(Some(kv))] => seen.push(kv.value.to_vec()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((winners.len(), seen.len()), (1, 15));
    assert!(seen.iter().all(|value| *value == winners[0]));
}
