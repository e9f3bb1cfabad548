//! What Warren keeps in its store: every key, every record, and transactions, revisions and events as data.
//!
//! Invariant: pure. This crate names what may be asked of a store; `kvstore-store` asks it.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod key;
pub mod kv;
pub mod record;
pub mod service;

pub use key::{Key, Prefix, Schema};
pub use kv::{
    Condition, KeyValue, KvEvent, KvFailure, KvOp, KvOpResult, KvOutcome, KvRequest, KvResponse, LeaseId,
    ListPage, Revision, StoreIdentity, Txn, TxnResponse,
};
