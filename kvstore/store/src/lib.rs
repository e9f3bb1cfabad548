//! The Store trait: what Warren asks of etcd, and of anything that stands in for it.
//!
//! Every call has a deadline of its own inside the implementation; no call waits for ever.

use std::time::Duration;

use async_trait::async_trait;
use kvstore_schema::{
    Key, KvEvent, KvFailure, LeaseId, ListPage, Prefix, Revision, StoreIdentity, Txn, TxnResponse,
};
use tokio::sync::mpsc;

mod check;
#[cfg(feature = "conformance")]
pub mod conformance;
mod fault;
mod mem;
mod mem_watch;
mod state;

pub use check::MAX_REQUEST_BYTES;
pub use fault::{Reach, WriteFate, WriteFates};
pub use mem::{MemClient, MemStore};
pub use mem_watch::{GIVE_UP_AFTER, PROGRESS_AFTER, WATCH_BUFFER};
pub use state::MemState;

/// Why a store gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Certainly not carried out: no member answered, or the member said so. Try again.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// A write that may have been carried out. Read again.
    #[error("outcome unknown: {0}")]
    Ambiguous(String),
    /// The revision asked for is compacted away: list again.
    #[error("revision {requested} is compacted (oldest: {oldest:?})")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that is still there, if the store said so.
        oldest: Option<Revision>,
    },
    /// The lease does not exist any more: create a new one and rewrite the keys that were attached to the old one.
    #[error("lease {0:?} is gone")]
    LeaseGone(LeaseId),
    /// The store was restored, wiped or replaced: its revision went backwards, or its cluster id changed. List again, and
    /// prune nothing until the list is confirmed.
    #[error("store was replaced or restored: {0}")]
    Replaced(String),
    /// Refused, and will be again: permission, size, a malformed request.
    #[error("store refused the request: {0}")]
    Refused(String),
}

impl From<StoreError> for KvFailure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(text) => Self::Unavailable(text),
            StoreError::Ambiguous(text) => Self::Ambiguous(text),
            StoreError::Refused(text) => Self::Refused(text),
            other @ (StoreError::Compacted { .. } | StoreError::LeaseGone(_) | StoreError::Replaced(_)) => {
                Self::Unavailable(other.to_string())
            }
        }
    }
}

/// What a watch delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// Changes of one or more whole revisions, in order; a revision is never split over two batches.
    Changes {
        /// The changes.
        events: Vec<KvEvent>,
        /// Everything up to this revision has been delivered.
        revision: Revision,
    },
    /// Nothing changed up to this revision: the watch is alive.
    Progress {
        /// Everything up to this revision has been delivered.
        revision: Revision,
    },
    /// The watch is over; list again (compacted, went backwards, another cluster) or resume after a
    /// pause (unavailable). Nothing follows.
    Ended(StoreError),
}

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    /// Which store answered.
    pub store: StoreIdentity,
    /// The batches, in order of revisions.
    pub events: mpsc::Receiver<WatchEvent>,
}

/// One member of the store, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// The member's endpoint as configured.
    pub endpoint: String,
    /// The member's status, or why there is none.
    pub health: Result<MemberHealth, String>,
}

/// The status of a member that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHealth {
    /// Its software version.
    pub version: String,
    /// Whether it is the leader.
    pub leader: bool,
    /// Its revision.
    pub revision: Revision,
    /// Size of its database in bytes.
    pub db_bytes: u64,
}

/// How many entries a page of a listing has at the most (etcd: 60,000 keys in 0.25 s at this size).
pub const PAGE_LIMIT: usize = 5_000;

/// A key-value store with etcd's semantics.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One page of the keys under a prefix, in byte order.
    ///
    /// `at`: the revision to show, `None` for the newest. `after`: only keys behind this one.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when `at` is gone: start over without it. Repeating is always safe.
    async fn list_page(
        &self,
        prefix: &Prefix,
        at: Option<Revision>,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<ListPage, StoreError>;

    /// Watches a prefix from a revision on (that revision included).
    ///
    /// # Errors
    /// When the watch could not be created; what happens later is [`WatchEvent::Ended`].
    async fn watch(&self, prefix: &Prefix, from: Revision) -> Result<Watch, StoreError>;

    /// Carries out a transaction.
    ///
    /// # Errors
    /// [`StoreError::Ambiguous`] when it may have been carried out.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError>;

    /// Makes a lease of at least `ttl` (whole seconds, at least one).
    ///
    /// # Errors
    /// A lease whose making was ambiguous runs out by itself: ask again.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Prolongs a lease; says how long it lives now. Repeating is always safe, so never ambiguous.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] when it has run out or was revoked.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Ends a lease and deletes what hangs on it. Ending one that is gone is no error, so never ambiguous.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: the lease runs out by itself.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// How each member is. Never fails as a whole.
    async fn members(&self) -> Vec<MemberStatus>;
}

/// Lists a whole prefix at one revision, page by page.
///
/// # Errors
/// Of the first page that fails; a compaction or restore between two pages starts over (twice at the most).
pub async fn list_all(store: &dyn Store, prefix: &Prefix) -> Result<ListPage, StoreError> {
    let mut attempts = 0;
    'again: loop {
        attempts += 1;
        let mut whole = store.list_page(prefix, None, None, PAGE_LIMIT).await?;
        while whole.more {
            let after = whole.entries.last().map(|kv| kv.key.clone());
            match store.list_page(prefix, Some(whole.revision), after.as_ref(), PAGE_LIMIT).await {
                Ok(page) if page.store != whole.store => {
                    return Err(StoreError::Replaced(
                        "another store answered for the second page".to_owned(),
                    ));
                }
                Ok(page) => {
                    whole.more = page.more;
                    whole.entries.extend(page.entries);
                }
                Err(StoreError::Compacted { .. } | StoreError::Replaced(_)) if attempts < 3 => {
                    continue 'again;
                }
                Err(error) => return Err(error),
            }
        }
        return Ok(whole);
    }
}
