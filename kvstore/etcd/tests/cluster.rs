//! Three members: failover, and the errors of calls during which a member stops.

use std::{sync::Arc, time::Duration};

use kvstore_etcd::{
    EtcdConfig, EtcdStore,
    testing::{EtcdCluster, missing, version},
};
use kvstore_schema::{Condition, Key, KvOp, KvOpResult, Prefix, Revision, Txn};
use kvstore_store::{Store, StoreError, Watch, WatchEvent, list_all};
use tokio::time::{Instant, timeout};

/// Long enough for three members and their elections on a busy machine.
const DOWN_WITHIN: Duration = Duration::from_secs(60);
/// The deadline of an attempt on one member, as in `store.rs`.
const ATTEMPT: Duration = Duration::from_millis(1_500);

fn prefix() -> Prefix {
    Prefix::from_raw("/test/")
}

fn key(name: &str) -> Key {
    Key::from_raw(format!("/test/{name}"))
}

fn put(name: &str, value: &str) -> KvOp {
    KvOp::Put { key: key(name), value: Arc::from(value.as_bytes()), lease: None }
}

/// A write that may be repeated until its outcome is known, since only its owner writes `token`.
fn claim(name: &str, token: &str) -> Txn {
    Txn::new().when(Condition::Absent(key(name))).then(put(name, token)).otherwise(KvOp::Get(key(name)))
}

/// Repeats a claim until it succeeds. Returns the number of ambiguous answers.
async fn settle(store: &EtcdStore, name: &str, token: &str) -> usize {
    let begun = Instant::now();
    let mut ambiguous = 0;
    loop {
        match store.txn(claim(name, token)).await {
            Ok(answer) => {
                match answer.results.as_slice() {
                    [KvOpResult::Put] => {}
                    [KvOpResult::Got(Some(kv))] => assert_eq!(&*kv.value, token.as_bytes()),
                    other => panic!("{other:?}"),
                }
                return ambiguous;
            }
            Err(StoreError::Ambiguous(_)) => ambiguous += 1,
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(begun.elapsed() < DOWN_WITHIN, "{name} is not settled");
    }
}

async fn ending(watch: &mut Watch) -> StoreError {
    loop {
        let event = timeout(DOWN_WITHIN, watch.events.recv()).await.expect("in time");
        if let WatchEvent::Ended(error) = event.expect("ends with a reason") {
            return error;
        }
    }
}

/// Waits for a change of this key, and returns its revision.
async fn until(watch: &mut Watch, wanted: &Key) -> Revision {
    loop {
        let event = timeout(DOWN_WITHIN, watch.events.recv()).await.expect("in time").expect("goes on");
        if let WatchEvent::Changes { events, .. } = event
            && let Some(event) = events.iter().find(|event| event.key() == wanted)
        {
            return event.mod_revision();
        }
    }
}

#[tokio::test]
async fn members_report_their_version() {
    if missing() {
        return;
    }
    let cluster = EtcdCluster::start(1).await;
    let told = cluster.store().members().await.remove(0).health.map(|health| health.version);
    assert_eq!(told, version());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_member_delays_calls_and_fails_none() {
    if missing() {
        return;
    }
    let cluster = EtcdCluster::start(3).await;
    let leader = cluster.leader().await;
    // The store tries the members in this order, the one that will freeze first.
    let frozen = (leader + 1) % 3;
    let mut config = cluster.config();
    config.endpoints.rotate_left(frozen);
    let store = EtcdStore::connect(config).expect("valid");
    let base = store.txn(claim("before", "me")).await.expect("all are there").revision;
    let mut watch = store.watch(&prefix(), base.next()).await.expect("all are there");

    cluster.freeze(frozen);
    list_all(&store, &prefix()).await.expect("another member answers within the call");
    store.txn(claim("during", "me")).await.expect("another member answers within the call");
    // The machine may be busy during some calls, but not during all.
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        let begun = Instant::now();
        store.txn(claim("during", "me")).await.expect("another member answers within the call");
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < ATTEMPT, "the frozen member is still tried first: {fastest:?}");

    let reason = ending(&mut watch).await;
    assert!(matches!(reason, StoreError::Unavailable(_)), "{reason}");
    let mut watch = store.watch(&prefix(), base.next()).await.expect("another member watches");
    until(&mut watch, &key("during")).await;
    let healthy = store.members().await.iter().filter(|member| member.health.is_ok()).count();
    assert_eq!(healthy, 2);
    cluster.thaw(frozen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_is_ambiguous_when_the_leader_freezes_meanwhile() {
    if missing() {
        return;
    }
    let cluster = EtcdCluster::start(3).await;
    let leader = cluster.leader().await;
    let mut config = cluster.config();
    config.endpoints.rotate_left(leader);
    let store = EtcdStore::connect(config).expect("valid");
    settle(&store, "first", "me").await;

    // Concurrent writers, so that some writes are in flight when the leader freezes.
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let (mut ambiguous, mut n) = (0, 0);
                while ambiguous == 0 {
                    ambiguous = settle(&store, &format!("{writer}/{n}"), &format!("{writer}")).await;
                    n += 1;
                }
                n
            })
        })
        .collect();
    let mut watch = store.watch(&prefix(), Revision(2)).await.expect("all are there");
    until(&mut watch, &key("0/1")).await;
    cluster.freeze(leader);
    let mut written = 1;
    for writer in writers {
        written += writer.await.expect("each writer meets an ambiguous answer and settles it");
    }
    cluster.thaw(leader);
    let whole = list_all(&store, &prefix()).await.expect("a majority is there");
    assert_eq!(whole.entries.len(), written, "each claim is there exactly once");
    let once = whole.entries.iter().all(|kv| kv.create_revision == kv.mod_revision);
    assert!(once, "no claim was written a second time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minority_refuses_calls_and_ends_watches() {
    if missing() {
        return;
    }
    let mut cluster = EtcdCluster::start(3).await;
    let leader = cluster.leader().await;
    let survivor = (leader + 1) % 3;
    let url = cluster.config().endpoints[survivor].clone();
    let store = EtcdStore::connect(EtcdConfig::new([url])).expect("valid");
    let base = store.txn(claim("before", "me")).await.expect("all are there").revision;
    let mut watch = store.watch(&prefix(), base.next()).await.expect("all are there");

    for index in (0..3).filter(|index| *index != survivor) {
        cluster.kill(index);
    }
    let reason = ending(&mut watch).await;
    assert!(matches!(reason, StoreError::Unavailable(_)), "{reason}");
    let read = store.list_page(&prefix(), None, None, 1).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    // The member knows that there is no leader, and refuses the write before proposing it.
    let write = store.txn(claim("during", "me")).await;
    assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");

    for index in (0..3).filter(|index| *index != survivor) {
        cluster.revive(index);
    }
    cluster.wait_ready().await.expect("a majority again");
    settle(&store, "after", "me").await;
    let mut watch = store.watch(&prefix(), base.next()).await.expect("all are there");
    assert_eq!(until(&mut watch, &key("after")).await, base.next(), "nothing was written in between");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_without_etcd_fails_at_once() {
    if missing() {
        return;
    }
    let mut cluster = EtcdCluster::start(1).await;
    cluster.kill(0);
    let begun = Instant::now();
    let store = cluster.store();
    // With a refused connection nothing was applied, which is known at once.
    let write = store.txn(claim("early", "me")).await;
    assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");
    assert!(store.watch(&prefix(), Revision(1)).await.is_err());
    assert!(store.lease_grant(DOWN_WITHIN).await.is_err());
    // Three calls take less time than the deadline of one.
    assert!(begun.elapsed() < cluster.config().call_timeout, "took {:?}", begun.elapsed());
    cluster.revive(0);
    cluster.wait_ready().await.expect("there it is");
    settle(&store, "early", "me").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_etcd_is_known_by_its_revision() {
    if missing() {
        return;
    }
    let mut cluster = EtcdCluster::start(1).await;
    let store = cluster.store();
    for name in ["a", "b", "c"] {
        settle(&store, name, "me").await;
    }
    let before = list_all(&store, &prefix()).await.expect("it is there");
    let mut watch = store.watch(&prefix(), before.revision.next()).await.expect("it is there");
    cluster.kill(0);
    cluster.wipe(0);
    cluster.revive(0);
    cluster.wait_ready().await.expect("serves again");
    let reason = ending(&mut watch).await;
    assert!(matches!(reason, StoreError::Unavailable(_)), "{reason}");
    settle(&store, "new", "me").await;

    // The cluster id is derived from names, addresses and token, so it is the same; only the revision differs.
    let mut resumed = store.watch(&prefix(), before.revision.next()).await.expect("it is there");
    assert_eq!(resumed.store, watch.store);
    let reason = ending(&mut resumed).await;
    assert!(matches!(reason, StoreError::Replaced(_)), "{reason}");
    let after = list_all(&store, &prefix()).await.expect("it is there");
    assert!(after.revision < before.revision);
    assert_eq!(after.entries.len(), 1);
}
