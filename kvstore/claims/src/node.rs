//! Node records: one machine per name. The lease decides only whether a stranger may take a name over.

use identity::NodeName;
use kvstore_schema::{
    Condition, KeyValue, KvOp, KvRequest, LeaseId, Revision, Schema, Txn, TxnResponse,
    record::{AliveRecord, MAX_COUNTER, NodeRecord, Record},
};
use serde::{Deserialize, Serialize};

use crate::{
    ClaimError, FleetView,
    machine::{Machine, Next, Protocol, decode, got, or_failed, put},
};

/// Writes this node's record: at the start of an agent, and whenever the record changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeRegistration {
    schema: Schema,
    node: NodeName,
    wanted: NodeRecord,
    lease: Option<LeaseId>,
}

/// This node's record as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRegistered {
    /// The record. Its incarnation may be higher than asked for: it rises with each start, also when the
    /// machine's clock went back.
    pub record: NodeRecord,
    /// The record's revision; [`alive_request`] needs it.
    pub revision: Revision,
}

impl NodeRegistration {
    /// Registers `node` with the record `wanted`, and with a lease also writes `alive/<node>` in the same
    /// transaction, so that no other machine takes the name in between.
    ///
    /// Ends in [`ClaimError::NameTaken`] when another machine id holds the name and is alive; takes a name
    /// over whose machine is not.
    pub fn start(
        schema: &Schema,
        node: NodeName,
        wanted: NodeRecord,
        lease: Option<LeaseId>,
    ) -> (Machine<Self>, KvRequest) {
        let this = Self { schema: schema.clone(), node, wanted, lease };
        let txn = this.write(Condition::Absent(this.schema.node(&this.node)), None);
        Machine::begin(this, txn)
    }

    /// The write under `record_is`; when that does not hold, the two records are read.
    fn write(&self, record_is: Condition, alive_is: Option<Condition>) -> Txn {
        let (node, alive) = (self.schema.node(&self.node), self.schema.alive(&self.node));
        let mut txn = Txn::new()
            .when(record_is)
            .then(put(node.clone(), &self.wanted))
            .otherwise(KvOp::Get(node))
            .otherwise(KvOp::Get(alive.clone()));
        txn.conditions.extend(alive_is);
        if let Some(lease) = self.lease {
            let record = AliveRecord {
                incarnation: self.wanted.incarnation,
                machine_id: self.wanted.machine_id.clone(),
                unknown: Default::default(),
            };
            txn = txn.then(KvOp::Put { key: alive, value: record.encode(), lease: Some(lease) });
        }
        txn
    }

    fn decide(&mut self, answer: &TxnResponse) -> Result<Next<NodeRegistered>, ClaimError> {
        let alive = got(answer, 1)?;
        let Some(found) = got(answer, 0)? else {
            // Removed since we asked: create it.
            return Ok(Next::Ask(self.write(Condition::Absent(self.schema.node(&self.node)), None)));
        };
        let record: NodeRecord = decode(found)?;
        if found.value == self.wanted.encode() && self.alive_is_ours(alive) {
            return Ok(Next::Done(NodeRegistered { record, revision: found.mod_revision }));
        }
        let unchanged = Condition::ModRevision(found.key.clone(), found.mod_revision);
        if record.machine_id == self.wanted.machine_id {
            // A higher number for the same record would make a repeated write look like a new start.
            if record.incarnation > self.wanted.incarnation {
                self.wanted.incarnation = next_incarnation(&record);
            }
            for (field, value) in record.unknown {
                self.wanted.unknown.entry(field).or_insert(value);
            }
            return Ok(Next::Ask(self.write(unchanged, None)));
        }
        match alive {
            Some(_) => Err(ClaimError::NameTaken {
                node: self.node.clone(),
                theirs: record.machine_id,
                ours: self.wanted.machine_id.clone(),
            }),
            None => {
                self.wanted.incarnation = self.wanted.incarnation.max(next_incarnation(&record));
                let silent = Condition::Absent(self.schema.alive(&self.node));
                Ok(Next::Ask(self.write(unchanged, Some(silent))))
            }
        }
    }

    fn alive_is_ours(&self, alive: Option<&KeyValue>) -> bool {
        match self.lease {
            None => true,
            Some(lease) => alive.is_some_and(|kv| kv.lease == Some(lease)),
        }
    }
}

impl Protocol for NodeRegistration {
    type Output = NodeRegistered;

    fn on_answer(&mut self, answer: &TxnResponse, _view: &FleetView, _draw: u64) -> Next<NodeRegistered> {
        if answer.succeeded {
            return Next::Done(NodeRegistered { record: self.wanted.clone(), revision: answer.revision });
        }
        or_failed(self.decide(answer))
    }
}

/// The incarnation after that of a record. At the highest one it stays, so that readers take the record.
fn next_incarnation(record: &NodeRecord) -> u64 {
    (record.incarnation + 1).min(MAX_COUNTER)
}

/// Writes `alive/<node>` on a lease, for example on a new one after the old was lost.
///
/// Its condition is that the node's record is still the one of `registered`; when the transaction fails,
/// another machine has the name or an operator removed the node: register again. Repeating is safe.
pub fn alive_request(
    schema: &Schema,
    node: &NodeName,
    registered: &NodeRegistered,
    lease: LeaseId,
) -> KvRequest {
    let record = AliveRecord {
        incarnation: registered.record.incarnation,
        machine_id: registered.record.machine_id.clone(),
        unknown: Default::default(),
    };
    KvRequest::Txn(
        Txn::new().when(Condition::ModRevision(schema.node(node), registered.revision)).then(KvOp::Put {
            key: schema.alive(node),
            value: record.encode(),
            lease: Some(lease),
        }),
    )
}

/// The request of an operator's `node remove`: deletes the record of a node that is not alive. Everything that
/// the node owned is collected afterwards by whoever comes first, see [`crate::Collector`].
///
/// The transaction fails when the node is alive or has no record. Repeating is safe.
pub fn node_removal_request(schema: &Schema, node: &NodeName) -> KvRequest {
    let key = schema.node(node);
    KvRequest::Txn(
        Txn::new()
            .when(Condition::Present(key.clone()))
            .when(Condition::Absent(schema.alive(node)))
            .then(KvOp::Delete(key)),
    )
}
