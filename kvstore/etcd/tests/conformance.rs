//! The conformance suite on a real etcd of one member.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kvstore_etcd::{
    EtcdStore,
    testing::{EtcdCluster, missing},
};
use kvstore_schema::Revision;
use kvstore_store::{Store, conformance::Control, conformance_suite};
use tokio::sync::Mutex;

struct Etcd {
    cluster: Mutex<EtcdCluster>,
    store: EtcdStore,
}

#[async_trait]
impl Control for Etcd {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    async fn compact(&self, at: Revision) {
        self.cluster.lock().await.compact(at).await;
    }

    async fn restart(&self) {
        let mut cluster = self.cluster.lock().await;
        cluster.kill(0);
        cluster.revive(0);
        cluster.wait_ready().await.expect("serves again");
    }

    async fn freeze(&self) {
        self.cluster.lock().await.freeze(0);
    }

    async fn thaw(&self) {
        self.cluster.lock().await.thaw(0);
    }

    async fn run_out(&self, _ttl: Duration) {
        // The server's own clock does it; the check waits for what follows.
    }
}

async fn start() -> Option<Etcd> {
    if missing() {
        return None;
    }
    let cluster = EtcdCluster::start(1).await;
    Some(Etcd { store: cluster.store(), cluster: Mutex::new(cluster) })
}

conformance_suite!(start);
