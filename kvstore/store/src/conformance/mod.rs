//! One suite for every [`Store`]: what Warren relies on, checked in the same words against the
//! in-memory store and against a real etcd.
//!
//! [`conformance_suite!`](crate::conformance_suite) makes a test of every check; each gets a server of its own.

mod faults;
mod leases;
mod lists;
mod txns;
mod watches;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kvstore_schema::{Key, KvEvent, KvOp, LeaseId, Prefix, Revision, Txn, TxnResponse};
use tokio::time::timeout;

use crate::{Store, StoreError, Watch, WatchEvent};

pub use faults::{frozen, restarted};
pub use leases::{lease_keeps, lease_lost, lease_revoked};
pub use lists::{compacted_list, future_list, many_pages, pinned_pages};
pub use txns::{conditions, one_winner, refusals, revisions};
pub use watches::{
    compacted_watch, future_watch, past_watch, progress, quiet_watch, slow_receiver, whole_revisions,
};

/// The longest that anything may take that a check waits for. A black hole counts as down within 10 s, of which 5 are seen;
/// whoever waits for it may be without a processor for a while.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a check may do to the server, beside asking it. Dropping it ends the server.
#[async_trait]
pub trait Control: Send + Sync {
    /// The client under test.
    fn store(&self) -> Arc<dyn Store>;

    /// Forgets what was before a revision.
    async fn compact(&self, at: Revision);

    /// Ends the server and starts it again with all its data; returns when it serves again.
    async fn restart(&self);

    /// The whole server stops answering, without closing a connection.
    async fn freeze(&self);

    /// It answers again.
    async fn thaw(&self);

    /// Brings a lease of that time to its end: lets the time pass, or leaves it to the real clock.
    async fn run_out(&self, ttl: Duration);
}

/// Makes one `#[tokio::test]` of each check. `$start` is an async function that gives
/// `Option<impl Control>`; `None` means that it said why it was skipped.
#[macro_export]
macro_rules! conformance_suite {
    ($start:path) => {
        $crate::conformance_suite!(@each $start:
            revisions conditions refusals one_winner
            pinned_pages many_pages compacted_list future_list
            past_watch whole_revisions compacted_watch future_watch progress quiet_watch slow_receiver
            lease_keeps lease_lost lease_revoked
            restarted frozen);
    };
    (@each $start:path: $($check:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                if let Some(control) = $start().await {
                    $crate::conformance::$check(&control).await;
                }
            }
        )*
    };
}

fn key(text: &str) -> Key {
    Key::from_raw(format!("/test/{text}"))
}

fn prefix() -> Prefix {
    Prefix::from_raw("/test/")
}

fn put(text: &str, value: &str) -> KvOp {
    KvOp::Put { key: key(text), value: Arc::from(value.as_bytes()), lease: None }
}

fn put_on(text: &str, lease: LeaseId) -> KvOp {
    KvOp::Put { key: key(text), value: Arc::from(&b"leased"[..]), lease: Some(lease) }
}

fn txn(ops: impl IntoIterator<Item = KvOp>) -> Txn {
    ops.into_iter().fold(Txn::new(), Txn::then)
}

async fn run(store: &dyn Store, txn: Txn) -> TxnResponse {
    store.txn(txn).await.expect("the server is there")
}

/// The keys under the prefix at a revision, without the prefix, as one text.
async fn keys(store: &dyn Store, at: Option<Revision>) -> String {
    let page = store.list_page(&prefix(), at, None, crate::PAGE_LIMIT).await.expect("the server is there");
    let names = page.entries.iter().map(|kv| kv.key.as_str().trim_start_matches("/test/"));
    names.collect::<Vec<_>>().join(" ")
}

/// One change as text: `+key@revision` or `-key@revision`, revisions counted from `base`.
fn show(event: &KvEvent, base: Revision) -> String {
    let sign = if matches!(event, KvEvent::Put(_)) { '+' } else { '-' };
    let name = event.key().as_str().trim_start_matches("/test/");
    format!("{sign}{name}@{}", event.mod_revision().0 - base.0)
}

async fn next(watch: &mut Watch) -> WatchEvent {
    let event = timeout(PATIENCE, watch.events.recv()).await.expect("the watch says something in time");
    event.expect("a watch says why it ends")
}

/// The next `count` changes, as one text; checks that no batch splits a revision or goes backwards.
async fn changes(watch: &mut Watch, count: usize, base: Revision) -> String {
    let mut seen = Vec::new();
    let mut last = Revision(0);
    while seen.len() < count {
        match next(watch).await {
            WatchEvent::Changes { events, revision } => {
                let first = events.first().expect("a batch holds something").mod_revision();
                assert!(first > last, "revision {first} after a batch up to {last}");
                assert!(events.is_sorted_by_key(KvEvent::mod_revision));
                assert!(events.last().expect("not empty").mod_revision() <= revision);
                last = revision;
                seen.extend(events.iter().map(|event| show(event, base)));
            }
            WatchEvent::Progress { .. } => {}
            WatchEvent::Ended(error) => panic!("watch ended after {seen:?}: {error}"),
        }
    }
    seen.join(" ")
}

/// Why a watch ends; what comes before that is dropped.
async fn ending(watch: &mut Watch) -> StoreError {
    loop {
        if let WatchEvent::Ended(error) = next(watch).await {
            assert_eq!(timeout(PATIENCE, watch.events.recv()).await, Ok(None), "nothing follows the end");
            return error;
        }
    }
}
