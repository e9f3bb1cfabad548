//! The follower against the in-memory store in virtual time, and against etcd.

use kvstore_etcd::testing::{EtcdCluster, missing};
use kvstore_schema::{Key, KvOp, ListPage, Txn};
use kvstore_store::{MemStore, Reach};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::*;
use crate::shell::Input;

/// The longest wait for an event, on a busy machine; virtual time does not count.
const PATIENCE: Duration = Duration::from_secs(60);

struct Followed {
    inputs: mpsc::Receiver<Input>,
    task: JoinHandle<Result<(), Stopping>>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    fn start(store: Arc<dyn Store>) -> Self {
        let (core, inputs) = Core::channel();
        let followed = follow(store, Prefix::from_raw("/ours/"), core, Arc::new(Metrics::new()));
        Self { inputs, task: tokio::spawn(followed) }
    }

    async fn next(&mut self) -> KvUpdate {
        match timeout(PATIENCE, self.inputs.recv()).await.expect("an event in time") {
            Some(Input::Event(Event::Kv(update))) => update,
            _ => panic!("the follower has nothing else to say"),
        }
    }

    async fn listed(&mut self) -> ListPage {
        loop {
            if let KvUpdate::Listed(page) = self.next().await {
                return page;
            }
        }
    }

    /// Takes progress until it reaches a revision.
    async fn reaches(&mut self, wanted: Revision) {
        loop {
            match self.next().await {
                KvUpdate::Changed { events, revision } if events.is_empty() => {
                    if revision >= wanted {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The key of the next change; nothing may be listed before it.
    async fn changed(&mut self) -> Key {
        loop {
            match self.next().await {
                KvUpdate::Changed { events, .. } if events.is_empty() => {}
                KvUpdate::Changed { events, .. } => return events[0].key().clone(),
                KvUpdate::Lost(_) => {}
                KvUpdate::Listed(page) => panic!("listed again at revision {}", page.revision),
            }
        }
    }
}

async fn put(store: &dyn Store, key: &str) -> Revision {
    let put = KvOp::Put { key: Key::from_raw(key), value: [].into(), lease: None };
    loop {
        match store.txn(Txn::new().then(put.clone())).await {
            Ok(answer) => return answer.revision,
            Err(error) => warn!(%error, "put is repeated"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_resumes_a_quiet_watch_of_etcd_behind_a_compaction() {
    if missing() {
        return;
    }
    let mut cluster = EtcdCluster::start(1).await;
    let store = Arc::new(cluster.store());
    put(&*store, "/ours/a").await;
    let mut followed = Followed::start(store.clone());
    followed.listed().await;
    put(&*store, "/others/a").await;
    let newest = put(&*store, "/others/b").await;
    followed.reaches(newest).await;
    cluster.compact(newest).await;
    cluster.kill(0);
    cluster.revive(0);
    cluster.wait_ready().await.expect("serves again");
    put(&*store, "/ours/b").await;
    assert_eq!(followed.changed().await, Key::from_raw("/ours/b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_lists_again_after_etcd_compacted_what_it_missed() {
    if missing() {
        return;
    }
    let mut cluster = EtcdCluster::start(3).await;
    let mut config = cluster.config();
    config.endpoints = vec![config.endpoints[2].clone()];
    let follower = kvstore_etcd::EtcdStore::connect(config.clone()).expect("valid");
    config.endpoints = cluster.config().endpoints[..2].to_vec();
    let writer = kvstore_etcd::EtcdStore::connect(config).expect("valid");
    put(&writer, "/ours/a").await;
    let mut followed = Followed::start(Arc::new(follower));
    assert_eq!(followed.listed().await.entries.len(), 1);
    cluster.kill(2);
    put(&writer, "/ours/b").await;
    let newest = put(&writer, "/others/a").await;
    cluster.compact(newest).await;
    cluster.revive(2);
    cluster.wait_ready().await.expect("a member again");
    assert_eq!(followed.listed().await.entries.len(), 2);
    put(&writer, "/ours/c").await;
    assert_eq!(followed.changed().await, Key::from_raw("/ours/c"));
}

#[tokio::test(start_paused = true)]
async fn follow_pauses_between_compaction_and_listing() {
    let server = MemStore::new(StoreIdentity(1));
    let (client, writer) = (server.client(), server.client());
    let mut followed = Followed::start(Arc::new(client.clone()));
    followed.listed().await;
    client.set_reach(Reach::Refused);
    assert!(matches!(followed.next().await, KvUpdate::Lost(_)));
    put(&writer, "/ours/a").await;
    let newest = put(&writer, "/ours/b").await;
    server.compact(newest).expect("not compacted before");
    client.set_reach(Reach::Up);
    assert!(matches!(followed.next().await, KvUpdate::Changed { .. }), "the watch was resumed");
    let resumed = Instant::now();
    assert_eq!(followed.listed().await.entries.len(), 2);
    let pause = resumed.elapsed();
    assert!((500..=1_001).contains(&pause.as_millis()), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn follow_lists_ever_less_often_while_the_store_is_replaced_again_and_again() {
    let server = MemStore::new(StoreIdentity(1));
    let mut followed = Followed::start(Arc::new(server.client()));
    let start = Instant::now();
    let mut listings = 0;
    while start.elapsed() < Duration::from_secs(60) {
        followed.listed().await;
        server.wipe();
        listings += 1;
    }
    assert!((4..=9).contains(&listings), "{listings} listings in a minute");
}
