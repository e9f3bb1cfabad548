//! The conformance suite on the in-memory store, and the faults that only it has.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kvstore_schema::{Key, KvOp, Prefix, Revision, StoreIdentity, Txn};
use kvstore_store::{
    MemClient, MemStore, Reach, Store, StoreError, Watch, WatchEvent, WriteFate, WriteFates,
    conformance::Control, conformance_suite,
};
use tokio::time::timeout;

struct Memory {
    server: MemStore,
    client: MemClient,
}

#[async_trait]
impl Control for Memory {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.client.clone())
    }

    async fn compact(&self, at: Revision) {
        self.server.compact(at).expect("not compacted before");
    }

    async fn restart(&self) {
        self.client.break_watches();
    }

    async fn freeze(&self) {
        self.client.set_reach(Reach::BlackHole);
    }

    async fn thaw(&self) {
        self.client.set_reach(Reach::Up);
    }

    async fn run_out(&self, ttl: Duration) {
        self.server.advance(ttl);
    }
}

async fn start() -> Option<Memory> {
    let server = MemStore::new(StoreIdentity(1));
    Some(Memory { client: server.client(), server })
}

conformance_suite!(start);

fn prefix() -> Prefix {
    Prefix::from_raw("/")
}

fn put(name: &str) -> Txn {
    Txn::new().then(KvOp::Put { key: Key::from_raw(name), value: [].into(), lease: None })
}

async fn count(store: &dyn Store) -> usize {
    store.list_page(&prefix(), None, None, 100).await.expect("reached").entries.len()
}

async fn ending(watch: &mut Watch) -> StoreError {
    loop {
        let event = timeout(Duration::from_secs(10), watch.events.recv()).await.expect("in time");
        if let WatchEvent::Ended(error) = event.expect("ends with a reason") {
            return error;
        }
    }
}

#[tokio::test]
async fn unanswered_write_is_carried_out_or_not() {
    let server = MemStore::new(StoreIdentity(1));
    let (faulty, other) = (server.client(), server.client());
    faulty.set_write_fates(WriteFates::scripted([WriteFate::AppliedUnanswered, WriteFate::LostUnanswered]));
    for (name, keys) in [("/a", 1), ("/b", 1)] {
        assert!(matches!(faulty.txn(put(name)).await, Err(StoreError::Ambiguous(_))));
        assert_eq!(count(&other).await, keys);
    }
    faulty.txn(put("/c")).await.expect("the script is over");
    assert_eq!(count(&other).await, 2);
}

#[test]
fn write_fates_of_a_seed_are_the_same_every_time() {
    let draw = |seed| {
        let mut fates = WriteFates::seeded(seed, 50);
        (0..1000).map(|_| fates.draw()).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    for fate in [WriteFate::Answered, WriteFate::AppliedUnanswered, WriteFate::LostUnanswered] {
        assert!(draw(1).iter().filter(|drawn| **drawn == fate).count() > 200, "{fate:?}");
    }
}

#[tokio::test]
async fn refused_client_fails_alone() {
    let server = MemStore::new(StoreIdentity(1));
    let (refused, other) = (server.client(), server.client());
    let mut watch = refused.watch(&prefix(), Revision(2)).await.expect("reached");
    refused.set_reach(Reach::Refused);
    assert!(matches!(refused.txn(put("/a")).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(ending(&mut watch).await, StoreError::Unavailable(_)));
    assert_eq!(count(&other).await, 0);
    refused.set_reach(Reach::Up);
    refused.txn(put("/a")).await.expect("reached again");
}

#[tokio::test]
async fn watch_ends_when_history_is_replaced() {
    let server = MemStore::new(StoreIdentity(1));
    let client = server.client();
    client.txn(put("/a")).await.expect("reached");
    let backup = server.snapshot();
    client.txn(put("/b")).await.expect("reached");

    let mut watch = client.watch(&prefix(), Revision(4)).await.expect("reached");
    server.restore(backup);
    // The restored store reaches the old revision again before the watch has looked: it ends all the same.
    client.txn(put("/c")).await.expect("reached");
    assert!(matches!(ending(&mut watch).await, StoreError::Replaced(_)));

    let mut watch = client.watch(&prefix(), Revision(4)).await.expect("reached");
    server.wipe();
    assert!(matches!(ending(&mut watch).await, StoreError::Replaced(_)));
    let page = client.list_page(&prefix(), None, None, 100).await.expect("reached");
    assert_eq!((page.entries.len(), page.revision), (0, Revision(1)));
    assert_ne!(page.store, watch.store);
}

#[tokio::test(start_paused = true)]
async fn clock_ends_leases_and_keeps_the_history_short() {
    let server = MemStore::new(StoreIdentity(1));
    let client = server.client();
    let clock = tokio::spawn(server.clone().run_clock());
    let lease = client.lease_grant(Duration::from_secs(5)).await.expect("reached");
    tokio::time::sleep(Duration::from_secs(4)).await;
    client.lease_keep_alive(lease).await.expect("lives");
    for _ in 0..20_001 {
        client.txn(put("/a")).await.expect("reached");
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(client.lease_keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
    assert_eq!(server.snapshot().history_len(), 10_000);
    assert_eq!(count(&client).await, 1);
    clock.abort();
}
