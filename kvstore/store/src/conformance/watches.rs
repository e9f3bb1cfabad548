//! Watches.

use kvstore_schema::{Key, KvOp, Revision};
use tokio::time::Instant;

use super::{Control, PATIENCE, changes, ending, faults::answers_again, key, next, prefix, put, run, txn};
use crate::{StoreError, WATCH_BUFFER, WatchEvent};

/// A watch from the past delivers the past and then the present, of its prefix only.
pub async fn past_watch(control: &dyn Control) {
    let store = control.store();
    let base = run(&*store, txn([put("a", "1")])).await.revision;
    run(&*store, txn([put("b", "1"), KvOp::Delete(key("a"))])).await;
    let mut watch = store.watch(&prefix(), base.next()).await.expect("created");
    let page = store.list_page(&prefix(), None, None, 1).await.expect("listed");
    assert_eq!(watch.store, page.store);
    assert_eq!(changes(&mut watch, 2, base).await, "+b@1 -a@1");
    let elsewhere = KvOp::Put { key: Key::from_raw("/test0"), value: [].into(), lease: None };
    run(&*store, txn([elsewhere])).await;
    run(&*store, txn([put("c", "1")])).await;
    run(&*store, txn([KvOp::Delete(key("absent")), KvOp::Delete(key("c"))])).await;
    assert_eq!(changes(&mut watch, 2, base).await, "+c@3 -c@4");
}

/// The changes of one transaction come in one batch, to a watch that is behind as to one that is not.
pub async fn whole_revisions(control: &dyn Control) {
    let store = control.store();
    let names: Vec<String> = (0..kvstore_schema::Txn::MAX_OPS).map(|n| format!("{n:03}")).collect();
    let value = "x".repeat(8 * 1024);
    let base = run(&*store, txn([put("first", "")])).await.revision;
    let mut live = store.watch(&prefix(), base.next()).await.expect("created");
    for _ in 0..8 {
        run(&*store, txn(names.iter().map(|name| put(name, &value)))).await;
    }
    let mut behind = store.watch(&prefix(), base.next()).await.expect("created");
    for watch in [&mut live, &mut behind] {
        // `changes` checks that no batch continues the revision of the batch before it.
        let seen = changes(watch, 8 * names.len(), base).await;
        let last = format!("+{}@8", names.last().expect("not empty"));
        assert!(seen.ends_with(&last), "ends with {}", &seen[seen.len() - 20..]);
    }
}

/// A watch from a compacted revision ends and says so.
pub async fn compacted_watch(control: &dyn Control) {
    let store = control.store();
    let first = run(&*store, txn([put("a", "1")])).await.revision;
    run(&*store, txn([put("a", "2")])).await;
    let newest = run(&*store, txn([put("a", "3")])).await.revision;
    control.compact(newest).await;
    let mut watch = store.watch(&prefix(), first).await.expect("created");
    match ending(&mut watch).await {
        StoreError::Compacted { requested, oldest } => assert_eq!((requested, oldest), (first, Some(newest))),
        other => panic!("{other}"),
    }
    // After a new list the watch goes on.
    let page = store.list_page(&prefix(), None, None, 10).await.expect("listed");
    let mut watch = store.watch(&prefix(), page.revision.next()).await.expect("created");
    run(&*store, txn([put("a", "4")])).await;
    assert_eq!(changes(&mut watch, 1, newest).await, "+a@1");
}

/// A watch from the next revision waits; from a later one it ends: the store must have gone backwards.
pub async fn future_watch(control: &dyn Control) {
    let store = control.store();
    let newest = run(&*store, txn([put("a", "1")])).await.revision;
    let mut watch = store.watch(&prefix(), Revision(newest.0 + 2)).await.expect("created");
    let reason = ending(&mut watch).await;
    assert!(matches!(reason, StoreError::Replaced(_)), "{reason}");
    let mut watch = store.watch(&prefix(), newest.next()).await.expect("created");
    run(&*store, txn([put("a", "2")])).await;
    assert_eq!(changes(&mut watch, 1, newest).await, "+a@1");
}

/// A silent watch shows that it is alive.
pub async fn progress(control: &dyn Control) {
    let store = control.store();
    let newest = run(&*store, txn([put("a", "1")])).await.revision;
    let mut watch = store.watch(&prefix(), newest).await.expect("created");
    assert_eq!(changes(&mut watch, 1, newest).await, "+a@0");
    assert_eq!(next(&mut watch).await, WatchEvent::Progress { revision: newest });
    assert_eq!(next(&mut watch).await, WatchEvent::Progress { revision: newest });
}

/// While only other prefixes change, the position of a watch moves on: compaction does not end it, and after a cut it is
/// resumed without a gap.
pub async fn quiet_watch(control: &dyn Control) {
    let store = control.store();
    let base = run(&*store, txn([put("a", "1")])).await.revision;
    let mut watch = store.watch(&prefix(), base.next()).await.expect("created");
    let elsewhere = KvOp::Put { key: Key::from_raw("/test0"), value: [].into(), lease: None };
    run(&*store, txn([elsewhere.clone()])).await;
    let newest = run(&*store, txn([elsewhere])).await.revision;
    let begun = Instant::now();
    let position = loop {
        match next(&mut watch).await {
            WatchEvent::Progress { revision } if revision >= newest => break revision,
            WatchEvent::Progress { .. } => assert!(begun.elapsed() < PATIENCE, "the position stays behind"),
            other => panic!("{other:?}"),
        }
    };
    control.compact(newest).await;
    assert_eq!(next(&mut watch).await, WatchEvent::Progress { revision: position }, "the watch goes on");
    control.restart().await;
    let reason = ending(&mut watch).await;
    assert!(matches!(reason, StoreError::Unavailable(_)), "{reason}");
    answers_again(&*store).await;
    let mut resumed = store.watch(&prefix(), position.next()).await.expect("created");
    run(&*store, txn([put("a", "2")])).await;
    assert_eq!(changes(&mut resumed, 1, newest).await, "+a@1");
}

/// A receiver that does not read holds up no other, and misses nothing when it reads again.
pub async fn slow_receiver(control: &dyn Control) {
    let store = control.store();
    let base = run(&*store, txn([put("a", "")])).await.revision;
    let mut slow = store.watch(&prefix(), base.next()).await.expect("created");
    let mut quick = store.watch(&prefix(), base.next()).await.expect("created");
    let count = 4 * WATCH_BUFFER;
    for n in 0..count {
        run(&*store, txn([put("a", &n.to_string())])).await;
    }
    let expected = (1..=count).map(|n| format!("+a@{n}")).collect::<Vec<_>>().join(" ");
    assert_eq!(changes(&mut quick, count, base).await, expected);
    assert_eq!(changes(&mut slow, count, base).await, expected);
}
