//! Conversions between the types of `kvstore-schema` and those of etcd.

use etcd_client::{Compare, CompareOp, PutOptions, TxnOp, TxnOpResponse};
use kvstore_schema::{
    Condition, Key, KeyValue, KvEvent, KvOp, KvOpResult, LeaseId, Revision, StoreIdentity, Txn, TxnResponse,
};

/// Cluster id and revision of a response's header.
pub(crate) fn header(header: Option<&etcd_client::ResponseHeader>) -> (StoreIdentity, Revision) {
    header.map_or_else(Default::default, |header| {
        (StoreIdentity(header.cluster_id()), Revision(header.revision()))
    })
}

/// `None` for a key that is not UTF-8: no key of Warren is.
pub(crate) fn key_value(kv: &etcd_client::KeyValue) -> Option<KeyValue> {
    Some(KeyValue {
        key: Key::from_raw(kv.key_str().ok()?),
        value: kv.value().into(),
        create_revision: Revision(kv.create_revision()),
        mod_revision: Revision(kv.mod_revision()),
        lease: (kv.lease() != 0).then(|| LeaseId(kv.lease())),
    })
}

pub(crate) fn event(event: &etcd_client::Event) -> Option<KvEvent> {
    let kv = key_value(event.kv()?)?;
    Some(match event.event_type() {
        etcd_client::EventType::Put => KvEvent::Put(kv),
        etcd_client::EventType::Delete => KvEvent::Delete { key: kv.key, mod_revision: kv.mod_revision },
    })
}

pub(crate) fn txn(txn: &Txn) -> etcd_client::Txn {
    let ops = |ops: &[KvOp]| ops.iter().map(op).collect::<Vec<_>>();
    etcd_client::Txn::new()
        .when(txn.conditions.iter().map(condition).collect::<Vec<_>>())
        .and_then(ops(&txn.then))
        .or_else(ops(&txn.otherwise))
}

fn condition(condition: &Condition) -> Compare {
    // etcd compares an absent key as if all its numbers were 0, and a range by each of its keys.
    match condition {
        Condition::Absent(key) => Compare::create_revision(key.as_bytes(), CompareOp::Equal, 0),
        Condition::Present(key) => Compare::create_revision(key.as_bytes(), CompareOp::Greater, 0),
        Condition::RangeEmpty(prefix) => {
            Compare::create_revision(prefix.as_bytes(), CompareOp::Equal, 0).with_range(prefix.range_end())
        }
        Condition::ModRevision(key, revision) => {
            Compare::mod_revision(key.as_bytes(), CompareOp::Equal, existing(*revision))
        }
        Condition::CreateRevision(key, revision) => {
            Compare::create_revision(key.as_bytes(), CompareOp::Equal, existing(*revision))
        }
        Condition::ValueIs(key, value) => Compare::value(key.as_bytes(), CompareOp::Equal, &**value),
    }
}

/// Revision 0 would match an absent key; no key has a negative one.
fn existing(revision: Revision) -> i64 {
    if revision.0 > 0 { revision.0 } else { -1 }
}

fn op(op: &KvOp) -> TxnOp {
    match op {
        KvOp::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key.as_bytes(), &**value, options)
        }
        KvOp::Delete(key) => TxnOp::delete(key.as_bytes(), None),
        KvOp::Get(key) => TxnOp::get(key.as_bytes(), None),
    }
}

/// `None` for a response that matches no request of this crate.
pub(crate) fn txn_response(response: &etcd_client::TxnResponse) -> Option<TxnResponse> {
    let results = response.op_responses().iter().map(op_result).collect::<Option<_>>()?;
    Some(TxnResponse { succeeded: response.succeeded(), revision: header(response.header()).1, results })
}

fn op_result(response: &TxnOpResponse) -> Option<KvOpResult> {
    Some(match response {
        TxnOpResponse::Put(_) => KvOpResult::Put,
        TxnOpResponse::Delete(deleted) => KvOpResult::Deleted(deleted.deleted().unsigned_abs()),
        TxnOpResponse::Get(got) => KvOpResult::Got(got.kvs().first().and_then(key_value)),
        TxnOpResponse::Txn(_) => return None,
    })
}
