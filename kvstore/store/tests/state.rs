//! The synchronous core, where it differs from what one expects of a map.

use std::{sync::Arc, time::Duration};

use kvstore_schema::{Condition, Key, KvEvent, KvOp, LeaseId, Prefix, Revision, StoreIdentity, Txn};
use kvstore_store::{MemState, StoreError};

fn key(text: &str) -> Key {
    Key::from_raw(text)
}

fn put(text: &str, value: &str) -> KvOp {
    KvOp::Put { key: key(text), value: Arc::from(value.as_bytes()), lease: None }
}

fn put_on(text: &str, lease: LeaseId) -> KvOp {
    KvOp::Put { key: key(text), value: Arc::from(&b"x"[..]), lease: Some(lease) }
}

fn state() -> MemState {
    MemState::new(StoreIdentity(7))
}

/// The keys under `/` at a revision, as one text.
fn keys(state: &MemState, at: Option<Revision>) -> String {
    let page = state.list(&Prefix::from_raw("/"), at, None, 100).expect("kept");
    page.entries.iter().map(|kv| kv.key.as_str()).collect::<Vec<_>>().join(" ")
}

/// The changes since a revision, as one text.
fn changes(state: &MemState, from: i64) -> String {
    let show = |event: &KvEvent| match event {
        KvEvent::Put(kv) => format!("+{}@{}", kv.key, kv.mod_revision),
        KvEvent::Delete { key, mod_revision } => format!("-{key}@{mod_revision}"),
    };
    state.events_since(Revision(from)).expect("kept").iter().map(show).collect::<Vec<_>>().join(" ")
}

#[test]
fn revision_rises_with_changes_only() {
    let mut state = state();
    assert_eq!(state.revision(), Revision(1));
    let nothing = Txn::new().then(KvOp::Delete(key("/a"))).then(KvOp::Get(key("/a")));
    assert_eq!(state.txn(&nothing).expect("runs").revision, Revision(1));
    let two = Txn::new().then(put("/a", "1")).then(put("/b", "1"));
    assert_eq!(state.txn(&two).expect("runs").revision, Revision(2));
    assert_eq!(changes(&state, 2), "+/a@2 +/b@2");
}

#[test]
fn create_revision_stays_until_the_key_is_deleted() {
    let mut state = state();
    let claim =
        Txn::new().when(Condition::Absent(key("/a"))).then(put("/a", "1")).otherwise(KvOp::Get(key("/a")));
    assert!(state.txn(&claim).expect("runs").succeeded);
    assert!(!state.txn(&claim).expect("runs").succeeded);
    state.txn(&Txn::new().then(put("/a", "2"))).expect("runs");
    let kv = state.get(&key("/a")).expect("there");
    assert_eq!((kv.create_revision, kv.mod_revision), (Revision(2), Revision(3)));
    state.txn(&Txn::new().then(KvOp::Delete(key("/a")))).expect("runs");
    state.txn(&claim).expect("runs");
    assert_eq!(state.get(&key("/a")).expect("there").create_revision, Revision(5));
}

#[test]
fn history_is_readable_until_compaction() {
    let mut state = state();
    for op in [put("/a", "1"), put("/b", "1"), KvOp::Delete(key("/a")), put("/c", "1")] {
        state.txn(&Txn::new().then(op)).expect("runs");
    }
    assert_eq!(keys(&state, Some(Revision(3))), "/a /b");
    state.compact(Revision(4)).expect("not yet done");
    assert_eq!(keys(&state, Some(Revision(4))), "/b");
    assert_eq!(keys(&state, None), "/b /c");
    assert_eq!(changes(&state, 4), "-/a@4 +/c@5");
    let gone = StoreError::Compacted { requested: Revision(3), oldest: Some(Revision(4)) };
    assert_eq!(state.events_since(Revision(3)), Err(gone.clone()));
    assert_eq!(state.list(&Prefix::from_raw("/"), Some(Revision(3)), None, 9), Err(gone));
    assert!(matches!(state.compact(Revision(4)), Err(StoreError::Compacted { .. })));
    assert!(matches!(state.compact(Revision(6)), Err(StoreError::Replaced(_))));
}

#[test]
fn lease_deletes_its_keys_in_one_revision() {
    let mut state = state();
    let lease = state.lease_grant(Duration::from_millis(1500));
    let ops = ["/a", "/b", "/c"].iter().fold(Txn::new(), |txn, text| txn.then(put_on(text, lease)));
    state.txn(&ops).expect("runs");
    state.txn(&Txn::new().then(put("/b", "free"))).expect("runs");
    state.advance(Duration::from_millis(1900));
    assert_eq!(state.lease_keep_alive(lease), Ok(Duration::from_secs(2)));
    state.advance(Duration::from_millis(1999));
    assert_eq!(keys(&state, None), "/a /b /c");
    state.advance(Duration::from_millis(1));
    assert_eq!(changes(&state, 4), "-/a@4 -/c@4");
    assert_eq!(state.lease_keep_alive(lease), Err(StoreError::LeaseGone(lease)));
    assert_eq!(state.txn(&Txn::new().then(put_on("/d", lease))), Err(StoreError::LeaseGone(lease)));
    assert_eq!(keys(&state, None), "/b");
}

#[test]
fn restore_goes_backwards() {
    let mut state = state();
    state.txn(&Txn::new().then(put("/a", "1"))).expect("runs");
    let snapshot = state.clone();
    state.txn(&Txn::new().then(put("/b", "1"))).expect("runs");
    state.restore(snapshot);
    assert_eq!((state.revision(), keys(&state, None)), (Revision(2), "/a".to_owned()));
    assert!(matches!(
        state.list(&Prefix::from_raw("/"), Some(Revision(3)), None, 9),
        Err(StoreError::Replaced(_))
    ));
}

#[test]
fn listing_is_loaded_without_leased_keys() {
    let mut state = state();
    state.txn(&Txn::new().then(put("/a", "1"))).expect("runs");
    let lease = state.lease_grant(Duration::from_secs(60));
    state.txn(&Txn::new().then(put_on("/b", lease))).expect("runs");
    let everything = state.list(&Prefix::from_raw("/"), None, None, 9).expect("lists");
    let mut loaded = MemState::loaded(everything);
    assert_eq!((loaded.identity(), loaded.revision()), (state.identity(), state.revision()));
    assert_eq!(keys(&loaded, None), "/a");
    assert_eq!(loaded.get(&Key::from_raw("/a")), state.get(&Key::from_raw("/a")));
    loaded.txn(&Txn::new().then(put("/c", "1"))).expect("runs");
    assert_eq!(keys(&loaded, None), "/a /c");
}
