//! Endpoint records: written by their node alone, fenced by its CIDR claim, in batches.
//!
//! The fence is the value of the claim's record where the view knows it. Its token tells one claim from every other, also
//! across generations of the store, where another node's claim on the block may have the same create revision.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use identity::{EndpointName, NodeName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Condition, Key, KeyValue, KvOp, KvRequest, Revision, Schema, Txn, TxnResponse,
    record::{CidrRecord, EndpointRecord, Record},
};
use serde::{Deserialize, Serialize};

use crate::{
    ClaimError, FleetView,
    machine::{Machine, Next, Protocol, decode, got, or_failed},
};

/// The most bytes of values in one transaction: etcd takes 1.5 MiB a request, keys and framing included.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// One change to this node's endpoint records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointChange {
    /// Write a record, whatever this node has written there before.
    Put {
        /// The endpoint's address.
        ip: IpAddr,
        /// Its record.
        record: EndpointRecord,
        /// The node's claim that the address lies in.
        cidr: IpNetwork,
        /// The claim's epoch: fences the write.
        epoch: Revision,
    },
    /// Delete a record.
    Delete {
        /// The endpoint's address.
        ip: IpAddr,
        /// The endpoint's name: a successor at the same address is left alone.
        name: EndpointName,
        /// The record's revision, from [`EndpointResult::Written`] or the view.
        revision: Revision,
    },
}

impl EndpointChange {
    fn ip(&self) -> IpAddr {
        match self {
            Self::Put { ip, .. } | Self::Delete { ip, .. } => *ip,
        }
    }

    fn claim(&self) -> Option<(IpNetwork, Revision)> {
        match self {
            Self::Put { cidr, epoch, .. } => Some((*cidr, *epoch)),
            Self::Delete { .. } => None,
        }
    }
}

/// The result of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointResult {
    /// The record is written, at this revision.
    Written(Revision),
    /// Deleted, or gone already.
    Deleted,
    /// Not written: the block is not this node's any more, or was claimed anew.
    Fenced,
    /// Not deleted: another endpoint has the address.
    Superseded,
}

/// Carries out changes to this node's endpoint records, in order, up to 128 a transaction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndpointWrites {
    schema: Schema,
    node: NodeName,
    /// The claims' records as they were seen last.
    claimed: BTreeMap<(IpNetwork, Revision), Arc<[u8]>>,
    waiting: VecDeque<EndpointChange>,
    asked: Vec<EndpointChange>,
    results: Vec<(IpAddr, EndpointResult)>,
}

impl EndpointWrites {
    /// `None` when there are no changes. The output has one result for each change; changes of one address
    /// keep their order, others may be settled in any.
    ///
    /// # Errors
    /// [`ClaimError::AddressOutside`] when a put's address is not in its CIDR.
    pub fn start(
        view: &FleetView,
        node: NodeName,
        changes: Vec<EndpointChange>,
    ) -> Result<Option<(Machine<Self>, KvRequest)>, ClaimError> {
        let mut claimed = BTreeMap::new();
        for change in &changes {
            let Some((cidr, epoch)) = change.claim() else { continue };
            if !cidr.contains(change.ip()) {
                return Err(ClaimError::AddressOutside { ip: change.ip() });
            }
            let known = view.cidrs().get(&cidr);
            if let Some(claim) = known.filter(|claim| claim.created == epoch && claim.record.node == node) {
                claimed.entry((cidr, epoch)).or_insert_with(|| claim.record.encode());
            }
        }
        if changes.is_empty() {
            return Ok(None);
        }
        let waiting = changes.into();
        let schema = view.schema().clone();
        let mut this = Self { schema, node, claimed, waiting, asked: Vec::new(), results: Vec::new() };
        let txn = this.refill();
        Ok(Some(Machine::begin(this, txn)))
    }

    /// Fills the batch up to what one transaction takes: operations, conditions, bytes, each address once.
    fn refill(&mut self) -> Txn {
        let mut addresses: BTreeSet<IpAddr> = self.asked.iter().map(EndpointChange::ip).collect();
        let mut bytes: usize = self.asked.iter().map(size).sum();
        while let Some(next) = self.waiting.front() {
            // Each change may need a condition of its own.
            let full = self.asked.len() == Txn::MAX_OPS
                || (bytes + size(next) > MAX_BATCH_BYTES && !self.asked.is_empty())
                || addresses.contains(&next.ip());
            if full {
                break;
            }
            bytes += size(next);
            addresses.insert(next.ip());
            self.asked.extend(self.waiting.pop_front());
        }
        self.txn()
    }

    fn key(&self, ip: IpAddr) -> Key {
        self.schema.endpoint(&self.node, ip)
    }

    /// The claims that the batch depends on: never more than its changes.
    fn claims(&self) -> BTreeSet<(IpNetwork, Revision)> {
        self.asked.iter().filter_map(EndpointChange::claim).collect()
    }

    fn txn(&self) -> Txn {
        let mut txn = Txn::new();
        for claim in self.claims() {
            let key = self.schema.cidr(claim.0);
            let unchanged = match self.claimed.get(&claim) {
                Some(value) => Condition::ValueIs(key.clone(), value.clone()),
                None => Condition::CreateRevision(key.clone(), claim.1),
            };
            txn = txn.when(unchanged).otherwise(KvOp::Get(key));
        }
        for change in &self.asked {
            let key = self.key(change.ip());
            txn = match change {
                EndpointChange::Put { record, .. } => {
                    txn.then(KvOp::Put { key, value: record.encode(), lease: None })
                }
                EndpointChange::Delete { revision, .. } => txn
                    .when(Condition::ModRevision(key.clone(), *revision))
                    .then(KvOp::Delete(key.clone()))
                    .otherwise(KvOp::Get(key)),
            };
        }
        txn
    }

    fn accept(&mut self, revision: Revision) {
        for change in self.asked.drain(..) {
            let result = match change {
                EndpointChange::Put { .. } => EndpointResult::Written(revision),
                EndpointChange::Delete { .. } => EndpointResult::Deleted,
            };
            self.results.push((change.ip(), result));
        }
    }

    /// Whether a record is that of this node's claim with this epoch.
    fn is_own(&self, found: &KeyValue, epoch: Revision) -> bool {
        let node = CidrRecord::decode(&found.value).map(|claim| claim.node);
        // A newer version's record may be unreadable: its create revision alone has to tell.
        found.create_revision == epoch && node.map_or(true, |node| node == self.node)
    }

    /// Settles the changes that cannot be made, corrects the others, and leaves those in the batch.
    fn sort_out(&mut self, answer: &TxnResponse) -> Result<(), ClaimError> {
        let mut index = 0;
        let mut lost = BTreeSet::new();
        for claim in self.claims() {
            match got(answer, index)?.filter(|found| self.is_own(found, claim.1)) {
                Some(found) => drop(self.claimed.insert(claim, found.value.clone())),
                None => drop(lost.insert(claim)),
            }
            index += 1;
        }
        for change in std::mem::take(&mut self.asked) {
            let ip = change.ip();
            match change {
                EndpointChange::Put { .. } => {
                    if change.claim().is_some_and(|claim| lost.contains(&claim)) {
                        self.results.push((ip, EndpointResult::Fenced));
                    } else {
                        self.asked.push(change);
                    }
                }
                EndpointChange::Delete { ip, name, .. } => {
                    let found = got(answer, index)?;
                    index += 1;
                    match found.map(|kv| Ok((decode::<EndpointRecord>(kv)?, kv.mod_revision))).transpose()? {
                        None => self.results.push((ip, EndpointResult::Deleted)),
                        Some((record, revision)) if record.name == name => {
                            self.asked.push(EndpointChange::Delete { ip, name, revision });
                        }
                        Some(_) => self.results.push((ip, EndpointResult::Superseded)),
                    }
                }
            }
        }
        Ok(())
    }
}

fn size(change: &EndpointChange) -> usize {
    match change {
        EndpointChange::Put { record, .. } => record.encode().len(),
        EndpointChange::Delete { .. } => 0,
    }
}

impl Protocol for EndpointWrites {
    type Output = Vec<(IpAddr, EndpointResult)>;

    fn on_answer(&mut self, answer: &TxnResponse, _view: &FleetView, _draw: u64) -> Next<Self::Output> {
        let sorted = if answer.succeeded {
            self.accept(answer.revision);
            Ok(())
        } else {
            self.sort_out(answer)
        };
        or_failed(sorted.map(|()| {
            let txn = self.refill();
            if self.asked.is_empty() { Next::Done(std::mem::take(&mut self.results)) } else { Next::Ask(txn) }
        }))
    }
}
