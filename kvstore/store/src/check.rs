//! What etcd refuses about a transaction before it looks at a single key.
//!
//! The in-memory store asks this in the server's place, so that a transaction that only etcd would
//! refuse is caught by tests that have no etcd.

use std::collections::BTreeSet;

use kvstore_schema::{Condition, Key, KvOp, Txn};

use crate::StoreError;

/// etcd's default limit of one request (`--max-request-bytes`).
pub const MAX_REQUEST_BYTES: usize = 3 * 512 * 1024;

/// Checks a transaction, both branches, whichever would run.
pub(crate) fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    let longest = txn.conditions.len().max(txn.then.len()).max(txn.otherwise.len());
    if longest > Txn::MAX_OPS {
        return Err(refused(format!(
            "too many operations in txn request: {longest}, at most {}",
            Txn::MAX_OPS
        )));
    }
    let bytes = txn.conditions.iter().map(condition_bytes).sum::<usize>()
        + txn.then.iter().chain(&txn.otherwise).map(op_bytes).sum::<usize>();
    if bytes > MAX_REQUEST_BYTES {
        return Err(refused(format!("request of {bytes} bytes is too large, at most {MAX_REQUEST_BYTES}")));
    }
    check_branch(&txn.then)?;
    check_branch(&txn.otherwise)
}

fn check_branch(ops: &[KvOp]) -> Result<(), StoreError> {
    let deleted: BTreeSet<&Key> = ops.iter().filter(|op| matches!(op, KvOp::Delete(_))).map(key_of).collect();
    let mut put = BTreeSet::new();
    for op in ops {
        let key = key_of(op);
        if key.as_bytes().is_empty() {
            return Err(refused("key is not provided".to_owned()));
        }
        // Put and delete of one key is refused in either order; deleting one twice is not.
        if matches!(op, KvOp::Put { .. }) && (deleted.contains(key) || !put.insert(key)) {
            return Err(refused(format!("duplicate key given in txn request: {key}")));
        }
    }
    Ok(())
}

fn key_of(op: &KvOp) -> &Key {
    match op {
        KvOp::Put { key, .. } | KvOp::Delete(key) | KvOp::Get(key) => key,
    }
}

fn op_bytes(op: &KvOp) -> usize {
    let value = if let KvOp::Put { value, .. } = op { value.len() } else { 0 };
    key_of(op).as_bytes().len() + value
}

fn condition_bytes(condition: &Condition) -> usize {
    match condition {
        Condition::Absent(key)
        | Condition::Present(key)
        | Condition::ModRevision(key, _)
        | Condition::CreateRevision(key, _) => key.as_bytes().len(),
        Condition::RangeEmpty(prefix) => prefix.as_bytes().len(),
        Condition::ValueIs(key, value) => key.as_bytes().len() + value.len(),
    }
}

fn refused(text: String) -> StoreError {
    StoreError::Refused(text)
}
