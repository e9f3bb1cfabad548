//! Listings.

use kvstore_schema::{KvOp, Revision, Txn};

use super::{Control, key, keys, prefix, put, run, txn};
use crate::{PAGE_LIMIT, StoreError, list_all};

/// Pages at one revision show that revision, whatever is written between them.
pub async fn pinned_pages(control: &dyn Control) {
    let store = control.store();
    run(&*store, txn(["a", "b", "c", "d", "e"].map(|name| put(name, "1")))).await;
    let first = store.list_page(&prefix(), None, None, 2).await.expect("listed");
    assert!(first.more);
    run(&*store, txn([KvOp::Delete(key("d")), put("e", "2"), put("f", "1")])).await;
    let (at, mut seen, mut page) = (first.revision, Vec::new(), first);
    loop {
        assert_eq!(page.revision, at);
        seen.extend(page.entries.iter().map(|kv| (kv.key.clone(), kv.value.to_vec())));
        if !page.more {
            break;
        }
        let after = page.entries.last().map(|kv| kv.key.clone());
        page = store.list_page(&prefix(), Some(at), after.as_ref(), 2).await.expect("listed");
    }
    let expected: Vec<_> = ["a", "b", "c", "d", "e"].map(|name| (key(name), b"1".to_vec())).into();
    assert_eq!(seen, expected);
    assert_eq!(keys(&*store, None).await, "a b c e f");
    // A page that ends with the last key says so.
    let exact = store.list_page(&prefix(), None, None, 5).await.expect("listed");
    assert_eq!((exact.entries.len(), exact.more), (5, false));
}

/// More keys than a page holds come whole and in order, and nothing of a neighbouring prefix.
pub async fn many_pages(control: &dyn Control) {
    let store = control.store();
    let total = 2 * PAGE_LIMIT + 1;
    let names: Vec<String> = (0..total).map(|n| format!("{n:06}")).collect();
    for chunk in names.chunks(Txn::MAX_OPS) {
        run(&*store, txn(chunk.iter().map(|name| put(name, "")))).await;
    }
    let neighbours = ["/tes", "/test", "/test0", "/tesu/"].map(|name| KvOp::Put {
        key: kvstore_schema::Key::from_raw(name),
        value: [].into(),
        lease: None,
    });
    run(&*store, txn(neighbours)).await;
    let whole = list_all(&*store, &prefix()).await.expect("listed");
    assert!(!whole.more);
    let seen: Vec<_> = whole.entries.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(seen, names.iter().map(|name| key(name)).collect::<Vec<_>>());
}

/// A compacted revision is refused; the compacted-to revision itself is still there.
pub async fn compacted_list(control: &dyn Control) {
    let store = control.store();
    let first = run(&*store, txn([put("a", "1")])).await.revision;
    let second = run(&*store, txn([KvOp::Delete(key("a")), put("b", "1")])).await.revision;
    assert_eq!(keys(&*store, Some(first)).await, "a");
    control.compact(second).await;
    assert_eq!(keys(&*store, Some(second)).await, "b");
    match store.list_page(&prefix(), Some(first), None, 10).await {
        Err(StoreError::Compacted { requested, .. }) => assert_eq!(requested, first),
        other => panic!("{other:?}"),
    }
}

/// A revision that has not been yet says that the store is not the one that was asked before.
pub async fn future_list(control: &dyn Control) {
    let store = control.store();
    let newest = run(&*store, txn([put("a", "1")])).await.revision;
    let future = Some(Revision(newest.0 + 10));
    let answer = store.list_page(&prefix(), future, None, 10).await;
    assert!(matches!(answer, Err(StoreError::Replaced(_))), "{answer:?}");
}
