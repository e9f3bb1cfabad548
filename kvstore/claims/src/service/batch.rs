//! Many services in one transaction: ten thousand of them are not ten thousand requests.
//!
//! A batch rests on what the view knows and has no conflict branch. When the store differs in anything, nothing of the
//! batch is written, and each service is written alone.

use std::collections::BTreeSet;

use identity::ServiceName;
use kvstore_schema::{Condition, Key, KvOp, KvRequest, Txn, TxnResponse, service::ServiceSpec};
use serde::{Deserialize, Serialize};

use super::{Asked, Expected, ServiceOutcome, ServiceWrite, ServiceWritten};
use crate::{
    FleetView,
    machine::{Machine, Next, Protocol},
};

/// The most bytes of keys and values in one transaction: far below etcd's 1.5 MiB a request.
const MAX_BYTES: usize = 512 * 1024;

/// Services that are written together, or not at all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ServiceBatch {
    txn: Txn,
    bytes: usize,
    /// The keys that the transaction writes: none may be written twice.
    written: BTreeSet<Key>,
    services: Vec<Asked>,
    /// The revision of each service that is unchanged.
    revisions: Vec<Option<kvstore_schema::Revision>>,
}

/// The result of adding a service to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchAdded {
    /// The batch holds the service.
    Yes,
    /// The batch has no room: the service belongs into the next one.
    Full,
    /// The service has to be written alone, because its protocol has to read first.
    Alone,
}

impl ServiceBatch {
    /// Adds a service, as [`ServiceWrite::start`] takes it.
    pub fn add(
        &mut self,
        view: &FleetView,
        name: &ServiceName,
        spec: &ServiceSpec,
        expected: Expected,
    ) -> BatchAdded {
        let mut write = ServiceWrite::new(view, name.clone(), spec.clone(), expected);
        let known = view.services().get(name);
        if write.check(known.map(|entry| entry.modified)).is_err() {
            return BatchAdded::Alone;
        }
        let (part, asked, revision) = match known.filter(|entry| entry.record.spec == *spec) {
            Some(entry) => {
                let unchanged = Condition::ModRevision(view.schema().service(name), entry.modified);
                let asked = Asked {
                    record: entry.record.as_ref().clone(),
                    outcome: ServiceOutcome::Unchanged,
                    looked_at: Vec::new(),
                };
                (Txn::new().when(unchanged), asked, Some(entry.modified))
            }
            None => {
                // The claims of the other services of this batch are not free.
                write.taken.extend(self.services.iter().flat_map(|other| other.record.claims()));
                let Some(part) = write.guess(view) else { return BatchAdded::Alone };
                let asked = write.asked.take().expect("a guess is a write");
                (part, asked, None)
            }
        };
        let keys: Vec<&Key> = part.then.iter().map(key_of).collect();
        if keys.iter().any(|key| self.written.contains(*key)) {
            return BatchAdded::Alone;
        }
        let bytes = self.bytes + part.then.iter().map(size_of_op).sum::<usize>();
        // All services share the guard of the fleet.
        let further: Vec<Condition> = part
            .conditions
            .into_iter()
            .filter(|condition| !self.txn.conditions.contains(condition))
            .collect();
        let fits = self.txn.conditions.len() + further.len() <= Txn::MAX_OPS
            && self.txn.then.len() + part.then.len() <= Txn::MAX_OPS
            && bytes <= MAX_BYTES;
        if !fits {
            return if self.services.is_empty() { BatchAdded::Alone } else { BatchAdded::Full };
        }
        self.written.extend(keys.into_iter().cloned());
        self.bytes = bytes;
        self.txn.conditions.extend(further);
        self.txn.then.extend(part.then);
        self.services.push(asked);
        self.revisions.push(revision);
        BatchAdded::Yes
    }

    /// Begins to write. The batch must hold a service.
    pub fn start(self) -> (Machine<Self>, KvRequest) {
        let txn = self.txn.clone();
        Machine::begin(self, txn)
    }
}

fn key_of(op: &KvOp) -> &Key {
    match op {
        KvOp::Put { key, .. } | KvOp::Delete(key) | KvOp::Get(key) => key,
    }
}

fn size_of_op(op: &KvOp) -> usize {
    let value = if let KvOp::Put { value, .. } = op { value.len() } else { 0 };
    key_of(op).as_str().len() + value
}

impl Protocol for ServiceBatch {
    /// Each service in the order in which it was added; `None`: nothing was written, and each is to be written alone.
    type Output = Option<Vec<ServiceWritten>>;

    fn on_answer(&mut self, answer: &TxnResponse, _view: &FleetView, _draw: u64) -> Next<Self::Output> {
        if !answer.succeeded {
            return Next::Done(None);
        }
        let services = std::mem::take(&mut self.services).into_iter().zip(&self.revisions);
        let written = services.map(|(Asked { record, outcome, .. }, revision)| ServiceWritten {
            outcome,
            record,
            revision: revision.unwrap_or(answer.revision),
        });
        Next::Done(Some(written.collect()))
    }
}
