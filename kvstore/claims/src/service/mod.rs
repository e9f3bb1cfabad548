//! Services: a record, and the claims on its address and ports, always written together.
//!
//! Anybody's agent may write them: there is no owner but the record itself. Claims change only in a transaction that also
//! changes `services/<name>` under its modify revision, so that one comparison fences all. Each such transaction also
//! demands that no member restores: a name or address that is free until then may be that of a service which is still to
//! be written again.

mod batch;
mod pick;

use std::collections::{BTreeMap, BTreeSet};

use identity::ServiceName;
use kvstore_schema::{
    Condition, KeyValue, KvOp, KvRequest, Revision, Schema, Txn, TxnResponse,
    service::{ServiceClaim, ServiceClaimRecord, ServiceRecord, ServiceSpec, VirtualIp},
};
use serde::{Deserialize, Serialize};

pub use batch::{BatchAdded, ServiceBatch};

use crate::{
    ClaimError, Entry, FleetView,
    fleet::SettledFleet,
    machine::{Machine, Next, Protocol, decode, got, or_failed, put},
};

/// The state of a service that its author expects before the service is written or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// Any state.
    Any,
    /// This modify revision.
    Revision(Revision),
}

/// The result of writing a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceOutcome {
    /// The service is new.
    Created,
    /// The service has changed.
    Changed,
    /// The service had this spec already.
    Unchanged,
}

/// A service as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceWritten {
    /// The result.
    pub outcome: ServiceOutcome,
    /// The service's record.
    pub record: ServiceRecord,
    /// The record's modify revision.
    pub revision: Revision,
}

/// Writes a service. Ends in [`ClaimError::ServiceChanged`] when another revision is there than expected, and in
/// [`ClaimError::Taken`] when an address or port that it wants belongs to another, and in [`ClaimError::Restoring`] while
/// members restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceWrite {
    schema: Schema,
    name: ServiceName,
    spec: ServiceSpec,
    expected: Expected,
    /// Claims of others that the view does not know of yet.
    taken: BTreeSet<ServiceClaim>,
    /// Claims of this service that have lost their record, each at this revision.
    orphans: BTreeMap<ServiceClaim, Revision>,
    /// The transaction asked last.
    asked: Option<Asked>,
}

/// The pending transaction's record and result.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Asked {
    record: ServiceRecord,
    outcome: ServiceOutcome,
    /// The claims that must be free. The conflict branch reads them in this order, behind the service and the fleet.
    looked_at: Vec<ServiceClaim>,
}

impl ServiceWrite {
    /// `spec`: normalised and valid. Writing the same spec again changes nothing, and the result says so.
    pub fn start(
        view: &FleetView,
        name: ServiceName,
        spec: ServiceSpec,
        expected: Expected,
    ) -> (Machine<Self>, KvRequest) {
        let mut this = Self::new(view, name, spec, expected);
        let txn = this.guess(view).unwrap_or_else(|| reads(Txn::new(), Txn::then, &this.schema, &this.name));
        Machine::begin(this, txn)
    }

    fn new(view: &FleetView, name: ServiceName, spec: ServiceSpec, expected: Expected) -> Self {
        Self {
            schema: view.schema().clone(),
            name,
            spec,
            expected,
            taken: BTreeSet::new(),
            orphans: BTreeMap::new(),
            asked: None,
        }
    }

    /// The transaction that writes the service if the view is up to date. `None` if by the view nothing is to be done, or
    /// it cannot be done: the view may be behind, so the store is read first.
    fn guess(&mut self, view: &FleetView) -> Option<Txn> {
        let known = view.services().get(&self.name).map(|entry| Entry {
            record: entry.record.as_ref().clone(),
            created: entry.created,
            modified: entry.modified,
        });
        if known.as_ref().is_some_and(|known| known.record.spec == self.spec) {
            return None;
        }
        self.check(known.as_ref().map(|known| known.modified)).ok()?;
        let settled = SettledFleet::known(view).ok()?;
        let record = self.resolve(known.as_ref(), view).ok()?;
        Some(self.write(&settled, known, record))
    }

    fn decide(&mut self, answer: &TxnResponse, view: &FleetView) -> Result<Next<ServiceWritten>, ClaimError> {
        let asked = self.asked.take();
        if let (true, Some(Asked { record, outcome, .. })) = (answer.succeeded, &asked) {
            let (record, outcome) = (record.clone(), *outcome);
            return Ok(Next::Done(ServiceWritten { outcome, record, revision: answer.revision }));
        }
        let found = got(answer, 0)?.map(entry).transpose()?;
        if let Some(Asked { record, outcome, looked_at }) = asked {
            // An earlier attempt was carried out, and its answer was lost.
            if let Some(there) = found.as_ref().filter(|there| there.record == record) {
                return Ok(Next::Done(ServiceWritten { outcome, record, revision: there.modified }));
            }
            for (index, claim) in looked_at.into_iter().enumerate() {
                if let Some(there) = got(answer, index + READS)? {
                    self.met(there, claim)?;
                }
            }
        }
        self.check(found.as_ref().map(|entry| entry.modified))?;
        if let Some(there) = found.as_ref().filter(|there| there.record.spec == self.spec) {
            let (record, revision) = (there.record.clone(), there.modified);
            return Ok(Next::Done(ServiceWritten { outcome: ServiceOutcome::Unchanged, record, revision }));
        }
        let settled = SettledFleet::read(view, got(answer, 1)?)?;
        let record = self.resolve(found.as_ref(), view)?;
        Ok(Next::Ask(self.write(&settled, found, record)))
    }

    /// Takes a claim that exists: of this service, or of another.
    fn met(&mut self, there: &KeyValue, claim: ServiceClaim) -> Result<(), ClaimError> {
        let owner = decode::<ServiceClaimRecord>(there)?.service;
        if owner == self.name {
            self.orphans.insert(claim, there.mod_revision);
        } else if self.names(&claim) {
            return Err(ClaimError::Taken { claim, owner });
        } else {
            self.taken.insert(claim);
        }
        Ok(())
    }

    fn check(&self, found: Option<Revision>) -> Result<(), ClaimError> {
        match self.expected {
            Expected::Any => Ok(()),
            Expected::Revision(wanted) if found == Some(wanted) => Ok(()),
            Expected::Revision(wanted) => {
                Err(ClaimError::ServiceChanged { service: self.name.clone(), wanted, found })
            }
        }
    }

    /// The transaction that writes the service: it holds if the service is as it was found, and if all claims that the
    /// service does not have yet are free.
    fn write(
        &mut self,
        settled: &SettledFleet,
        found: Option<Entry<ServiceRecord>>,
        mut record: ServiceRecord,
    ) -> Txn {
        let key = self.schema.service(&self.name);
        let (unchanged, before, outcome) = match found {
            Some(there) => {
                let before = there.record.claims();
                record.unknown = there.record.unknown;
                (Condition::ModRevision(key.clone(), there.modified), before, ServiceOutcome::Changed)
            }
            None => (Condition::Absent(key.clone()), Vec::new(), ServiceOutcome::Created),
        };
        let claims = record.claims();
        let txn = Txn::new().when(settled.condition()).when(unchanged).then(put(key, &record));
        let mut txn = reads(txn, Txn::otherwise, &self.schema, &self.name);
        let mut looked_at = Vec::new();
        let claimed = ServiceClaimRecord { service: self.name.clone(), unknown: Default::default() };
        for claim in claims.iter().filter(|claim| !before.contains(claim)) {
            let key = self.schema.service_claim(claim);
            let free = match self.orphans.get(claim) {
                Some(revision) => Condition::ModRevision(key.clone(), *revision),
                None => Condition::Absent(key.clone()),
            };
            txn = txn.when(free).then(put(key.clone(), &claimed)).otherwise(KvOp::Get(key));
            looked_at.push(*claim);
        }
        // No other service may have a port of an address that this one has as a whole.
        if !before.contains(&ServiceClaim::VirtualIp(record.virtual_ip)) {
            txn = txn.when(Condition::RangeEmpty(self.schema.frontends_of(record.virtual_ip)));
        }
        for address in &record.spec.external_ips {
            let claim = ServiceClaim::VirtualIp(*address);
            let key = self.schema.service_claim(&claim);
            txn = txn.when(Condition::Absent(key.clone())).otherwise(KvOp::Get(key));
            looked_at.push(claim);
        }
        for claim in before.iter().filter(|claim| !claims.contains(claim)) {
            txn = txn.then(KvOp::Delete(self.schema.service_claim(claim)));
        }
        self.asked = Some(Asked { record, outcome, looked_at });
        txn
    }

    /// Whether the spec names exactly this address or port.
    fn names(&self, claim: &ServiceClaim) -> bool {
        match claim {
            ServiceClaim::VirtualIp(address) => {
                self.spec.virtual_ip == VirtualIp::Address(*address)
                    || self.spec.external_ips.contains(address)
            }
            ServiceClaim::Frontend { .. } => pick::names_frontend(&self.spec, claim),
        }
    }
}

impl Protocol for ServiceWrite {
    type Output = ServiceWritten;

    fn on_answer(&mut self, answer: &TxnResponse, view: &FleetView, _draw: u64) -> Next<ServiceWritten> {
        or_failed(self.decide(answer, view))
    }
}

/// Reads the service and the fleet's record, in the branch that `add` adds to.
fn reads(txn: Txn, add: fn(Txn, KvOp) -> Txn, schema: &Schema, name: &ServiceName) -> Txn {
    add(add(txn, KvOp::Get(schema.service(name))), KvOp::Get(schema.fleet()))
}

/// How many records [`reads`] reads.
const READS: usize = 2;

/// Deletes a service and its claims. Deleting a service that does not exist is no error. Ends in
/// [`ClaimError::Restoring`] while members restore, when a service that does not exist may still be written again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceRemoval {
    schema: Schema,
    name: ServiceName,
    expected: Expected,
    /// The create revision of the service that is being deleted.
    asked: Option<Revision>,
}

impl ServiceRemoval {
    /// The result: whether the service existed.
    pub fn start(schema: &Schema, name: ServiceName, expected: Expected) -> (Machine<Self>, KvRequest) {
        let this = Self { schema: schema.clone(), name, expected, asked: None };
        let txn = reads(Txn::new(), Txn::then, &this.schema, &this.name);
        Machine::begin(this, txn)
    }

    fn decide(&mut self, answer: &TxnResponse, view: &FleetView) -> Result<Next<bool>, ClaimError> {
        if answer.succeeded && self.asked.is_some() {
            return Ok(Next::Done(true));
        }
        let settled = SettledFleet::read(view, got(answer, 1)?)?;
        let Some(found) = got(answer, 0)? else { return Ok(Next::Done(self.asked.is_some())) };
        if self.asked.is_some_and(|created| created != found.create_revision) {
            // The service is gone, and another of the same name was created since.
            return Ok(Next::Done(true));
        }
        if let Expected::Revision(wanted) = self.expected
            && wanted != found.mod_revision
        {
            let found = Some(found.mod_revision);
            return Err(ClaimError::ServiceChanged { service: self.name.clone(), wanted, found });
        }
        let key = found.key.clone();
        let txn = Txn::new()
            .when(settled.condition())
            .when(Condition::ModRevision(key.clone(), found.mod_revision))
            .then(KvOp::Delete(key));
        let mut txn = reads(txn, Txn::otherwise, &self.schema, &self.name);
        // An unreadable record names no claims: they stay for the next service of that name.
        for claim in decode::<ServiceRecord>(found).iter().flat_map(ServiceRecord::claims) {
            txn = txn.then(KvOp::Delete(self.schema.service_claim(&claim)));
        }
        self.asked = Some(found.create_revision);
        Ok(Next::Ask(txn))
    }
}

impl Protocol for ServiceRemoval {
    type Output = bool;

    fn on_answer(&mut self, answer: &TxnResponse, view: &FleetView, _draw: u64) -> Next<bool> {
        or_failed(self.decide(answer, view))
    }
}

fn entry(kv: &KeyValue) -> Result<Entry<ServiceRecord>, ClaimError> {
    Ok(Entry { record: decode(kv)?, created: kv.create_revision, modified: kv.mod_revision })
}
