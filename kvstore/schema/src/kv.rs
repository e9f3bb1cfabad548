//! Transactions, revisions and events as data, in etcd's terms.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Key, Prefix};

/// A revision of the store: one number for the whole key space, raised by every write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub i64);

impl Revision {
    /// The next revision: where a watch continues after a list at this revision.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease: liveness and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub i64);

/// Which store answered: another cluster id means that etcd was replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoreIdentity(pub u64);

/// One key with its value and revisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The whole key.
    pub key: Key,
    /// The value's bytes.
    pub value: Arc<[u8]>,
    /// The revision of its creation: a claim's epoch.
    pub create_revision: Revision,
    /// The revision of its last change.
    pub mod_revision: Revision,
    /// The lease that the key is attached to.
    pub lease: Option<LeaseId>,
}

/// One change seen by a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvEvent {
    /// A key was written.
    Put(KeyValue),
    /// A key was deleted.
    Delete {
        /// The key.
        key: Key,
        /// The revision of the deletion.
        mod_revision: Revision,
    },
}

impl KvEvent {
    /// The key concerned.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn mod_revision(&self) -> Revision {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}

/// What must hold for a transaction's first branch to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The key does not exist.
    Absent(Key),
    /// The key exists.
    Present(Key),
    /// No key exists under the prefix.
    RangeEmpty(Prefix),
    /// The key exists, and its last change was at this revision.
    ModRevision(Key, Revision),
    /// The key exists, and was created at this revision: the same claim as before.
    CreateRevision(Key, Revision),
    /// The key exists with exactly this value.
    ValueIs(Key, Arc<[u8]>),
}

/// One operation in a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvOp {
    /// Writes a value, on a lease or without one.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: Arc<[u8]>,
        /// The lease that the key is attached to.
        lease: Option<LeaseId>,
    },
    /// Deletes one key; deleting an absent key is no error.
    Delete(Key),
    /// Reads one key.
    Get(Key),
}

/// A compare-and-set: if all conditions hold, `then` runs, else `otherwise`, each as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Runs when all conditions hold.
    pub then: Vec<KvOp>,
    /// Runs when a condition does not hold.
    pub otherwise: Vec<KvOp>,
}

impl Txn {
    /// etcd's default limit of operations in one transaction (`--max-txn-ops`).
    pub const MAX_OPS: usize = 128;

    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Adds an operation to the first branch.
    #[must_use]
    pub fn then(mut self, op: KvOp) -> Self {
        self.then.push(op);
        self
    }

    /// Adds an operation to the other branch.
    #[must_use]
    pub fn otherwise(mut self, op: KvOp) -> Self {
        self.otherwise.push(op);
        self
    }
}

/// The answer to one operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvOpResult {
    /// Written.
    Put,
    /// How many keys were deleted: 0 or 1.
    Deleted(u64),
    /// The key, if it exists.
    Got(Option<KeyValue>),
}

/// The answer to a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnResponse {
    /// Whether the conditions held.
    pub succeeded: bool,
    /// The store's revision after the transaction: the create revision of the keys that it created.
    pub revision: Revision,
    /// One answer for each operation of the branch that ran.
    pub results: Vec<KvOpResult>,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPage {
    /// The keys, in byte order.
    pub entries: Vec<KeyValue>,
    /// The revision that the listing shows.
    pub revision: Revision,
    /// Which store answered.
    pub store: StoreIdentity,
    /// Whether more keys follow the last one.
    pub more: bool,
}

/// A request of node-core or a claim machine to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvRequest {
    /// A transaction.
    Txn(Txn),
    /// Everything under a prefix (the carrier pages it at one revision).
    List(Prefix),
}

/// The answer to a [`KvRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvResponse {
    /// To a transaction.
    Txn(TxnResponse),
    /// To a listing: all pages together, `more` is false.
    List(ListPage),
}

/// Why a request has no answer. The variants tell whether the request may have been carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum KvFailure {
    /// The request was certainly not carried out: asking again is safe.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The request may have been carried out: read again, never assume.
    #[error("outcome unknown: {0}")]
    Ambiguous(String),
    /// The store refused the request, and would refuse it again.
    #[error("store refused the request: {0}")]
    Refused(String),
}

/// The outcome of a request.
pub type KvOutcome = Result<KvResponse, KvFailure>;
