//! Services: a record, and the claim on its virtual IP, always written together.
//!
//! Anybody's agent may write them: there is no owner but the record itself. `vips/<address>` changes only in a
//! transaction that also changes `services/<name>` under its modify revision, so that one comparison fences both.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use identity::ServiceName;
use ipnetwork::{IpNetwork, Ipv4Network};
use kvstore_schema::{
    Condition, KeyValue, KvOp, KvRequest, Revision, Schema, Txn, TxnResponse,
    service::{ServiceRecord, ServiceSpec, VipRecord, VirtualIp},
};
use serde::{Deserialize, Serialize};

use crate::{
    ClaimError, Entry, FleetView,
    machine::{Machine, Next, Protocol, decode, got, mix, or_failed, put},
};

/// What must be there before a service is written or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// Whatever there is.
    Any,
    /// This revision of it.
    Revision(Revision),
}

/// What came of writing a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceOutcome {
    /// It is new.
    Created,
    /// It has changed.
    Changed,
    /// It was so already.
    Unchanged,
}

/// A service as it is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceWritten {
    /// What was done.
    pub outcome: ServiceOutcome,
    /// Its record.
    pub record: ServiceRecord,
    /// The record's modify revision.
    pub revision: Revision,
}

/// Writes a service. Ends in [`ClaimError::ServiceChanged`] when another revision is there than expected, and in
/// [`ClaimError::AddressTaken`] when the address that it wants belongs to another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceWrite {
    schema: Schema,
    name: ServiceName,
    spec: ServiceSpec,
    expected: Expected,
    /// Addresses found taken that the view does not know of yet.
    taken: BTreeSet<IpAddr>,
    /// A claim of this service that has lost its record, at this revision.
    orphan: Option<(IpAddr, Revision)>,
    /// What the transaction asked last would write, and what it would make of the service.
    asked: Option<(ServiceRecord, ServiceOutcome)>,
}

impl ServiceWrite {
    /// `spec`: normalised and valid. The answer says whether anything changed: writing the same again does not.
    pub fn start(
        view: &FleetView,
        name: ServiceName,
        spec: ServiceSpec,
        expected: Expected,
    ) -> (Machine<Self>, KvRequest) {
        let mut this = Self {
            schema: view.schema().clone(),
            name,
            spec,
            expected,
            taken: BTreeSet::new(),
            orphan: None,
            asked: None,
        };
        let txn =
            this.guess(view).unwrap_or_else(|| Txn::new().then(KvOp::Get(this.schema.service(&this.name))));
        Machine::begin(this, txn)
    }

    /// The write, if what the view knows is all that there is. What says that nothing is to be done, or cannot be, is
    /// looked at first: the view may be behind.
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
        let virtual_ip = self.address(known.as_ref(), view).ok()?;
        Some(self.write(known, virtual_ip))
    }

    fn decide(&mut self, answer: &TxnResponse, view: &FleetView) -> Result<Next<ServiceWritten>, ClaimError> {
        if let (true, Some((record, outcome))) = (answer.succeeded, &self.asked) {
            let (record, outcome) = (record.clone(), *outcome);
            return Ok(Next::Done(ServiceWritten { outcome, record, revision: answer.revision }));
        }
        let found = got(answer, 0)?.map(entry).transpose()?;
        if let Some((asked, outcome)) = &self.asked {
            // It was carried out, though its answer got lost.
            if let Some(there) = found.as_ref().filter(|there| there.record == *asked) {
                let (record, revision) = (asked.clone(), there.modified);
                return Ok(Next::Done(ServiceWritten { outcome: *outcome, record, revision }));
            }
            let address = asked.virtual_ip;
            if let Some(vip) = got(answer, 1)? {
                self.met(vip, address)?;
            }
        }
        self.check(found.as_ref().map(|entry| entry.modified))?;
        if let Some(there) = found.as_ref().filter(|there| there.record.spec == self.spec) {
            let (record, revision) = (there.record.clone(), there.modified);
            return Ok(Next::Done(ServiceWritten { outcome: ServiceOutcome::Unchanged, record, revision }));
        }
        let virtual_ip = self.address(found.as_ref(), view)?;
        Ok(Next::Ask(self.write(found, virtual_ip)))
    }

    /// The address has a claim already.
    fn met(&mut self, vip: &KeyValue, address: IpAddr) -> Result<(), ClaimError> {
        let owner = decode::<VipRecord>(vip)?.service;
        if owner == self.name {
            self.orphan = Some((address, vip.mod_revision));
        } else if let VirtualIp::Address(_) = self.spec.virtual_ip {
            return Err(ClaimError::AddressTaken { address, owner });
        } else {
            self.taken.insert(address);
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

    /// The address that it is to have: the one it wants, else the one it has, else a free one.
    fn address(&self, found: Option<&Entry<ServiceRecord>>, view: &FleetView) -> Result<IpAddr, ClaimError> {
        let pools = view.fleet().map(|fleet| fleet.record.service_pools.as_slice()).unwrap_or_default();
        match (self.spec.virtual_ip, found) {
            (VirtualIp::Address(address), _) => check_address(address, view).map(|()| address),
            (VirtualIp::Auto, Some(there)) => Ok(there.record.virtual_ip),
            (VirtualIp::Auto, None) => self.free(pools, view),
        }
    }

    /// A free address of the pools: the first one behind a place that the name decides, so that a service that is
    /// deleted and made again mostly gets the same.
    fn free(&self, pools: &[IpNetwork], view: &FleetView) -> Result<IpAddr, ClaimError> {
        let ranges: Vec<Ipv4Network> = pools
            .iter()
            .filter_map(|pool| match pool {
                IpNetwork::V4(pool) => Some(*pool),
                IpNetwork::V6(_) => None,
            })
            .collect();
        let total: u64 = ranges.iter().copied().map(usable).sum();
        let name = self.name.as_str().bytes().fold(0, |sum, byte| mix(sum ^ u64::from(byte)));
        let free = (0..total)
            .map(|step| nth(&ranges, (name % total + step) % total))
            .find(|address| !view.vips().contains_key(address) && !self.taken.contains(address));
        free.ok_or_else(|| ClaimError::ServicePoolExhausted {
            pools: pools.to_vec(),
            used: view.vips().len(),
        })
    }

    fn write(&mut self, found: Option<Entry<ServiceRecord>>, virtual_ip: IpAddr) -> Txn {
        let key = self.schema.service(&self.name);
        let vip_key = self.schema.vip(virtual_ip);
        let (unchanged, unknown, before, outcome) = match found {
            Some(there) => (
                Condition::ModRevision(key.clone(), there.modified),
                there.record.unknown,
                Some(there.record.virtual_ip),
                ServiceOutcome::Changed,
            ),
            None => (Condition::Absent(key.clone()), Default::default(), None, ServiceOutcome::Created),
        };
        let record = ServiceRecord { spec: self.spec.clone(), virtual_ip, unknown };
        let mut txn = Txn::new()
            .when(unchanged)
            .then(put(key.clone(), &record))
            .otherwise(KvOp::Get(key))
            .otherwise(KvOp::Get(vip_key.clone()));
        if before != Some(virtual_ip) {
            let vip = VipRecord { service: self.name.clone(), unknown: Default::default() };
            let free = match self.orphan {
                Some((orphan, revision)) if orphan == virtual_ip => {
                    Condition::ModRevision(vip_key.clone(), revision)
                }
                _ => Condition::Absent(vip_key.clone()),
            };
            txn = txn.when(free).then(put(vip_key, &vip));
            if let Some(before) = before {
                txn = txn.then(KvOp::Delete(self.schema.vip(before)));
            }
        }
        self.asked = Some((record, outcome));
        txn
    }
}

impl Protocol for ServiceWrite {
    type Output = ServiceWritten;

    fn on_answer(&mut self, answer: &TxnResponse, view: &FleetView, _draw: u64) -> Next<ServiceWritten> {
        or_failed(self.decide(answer, view))
    }
}

/// Deletes a service and gives its virtual IP back. One that is not there is no error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceRemoval {
    schema: Schema,
    name: ServiceName,
    expected: Expected,
    /// The create revision of what is being deleted.
    asked: Option<Revision>,
}

impl ServiceRemoval {
    /// The answer: whether it was there.
    pub fn start(schema: &Schema, name: ServiceName, expected: Expected) -> (Machine<Self>, KvRequest) {
        let this = Self { schema: schema.clone(), name, expected, asked: None };
        let txn = Txn::new().then(KvOp::Get(this.schema.service(&this.name)));
        Machine::begin(this, txn)
    }

    fn decide(&mut self, answer: &TxnResponse) -> Result<Next<bool>, ClaimError> {
        if answer.succeeded && self.asked.is_some() {
            return Ok(Next::Done(true));
        }
        let Some(found) = got(answer, 0)? else { return Ok(Next::Done(self.asked.is_some())) };
        if self.asked.is_some_and(|created| created != found.create_revision) {
            // It is gone, and somebody has made another of its name since.
            return Ok(Next::Done(true));
        }
        if let Expected::Revision(wanted) = self.expected
            && wanted != found.mod_revision
        {
            let found = Some(found.mod_revision);
            return Err(ClaimError::ServiceChanged { service: self.name.clone(), wanted, found });
        }
        let key = found.key.clone();
        let mut txn = Txn::new()
            .when(Condition::ModRevision(key.clone(), found.mod_revision))
            .then(KvOp::Delete(key.clone()))
            .otherwise(KvOp::Get(key));
        // A record that cannot be read names no address: the claim stays, and is shown as one without a service.
        if let Ok(record) = decode::<ServiceRecord>(found) {
            txn = txn.then(KvOp::Delete(self.schema.vip(record.virtual_ip)));
        }
        self.asked = Some(found.create_revision);
        Ok(Next::Ask(txn))
    }
}

impl Protocol for ServiceRemoval {
    type Output = bool;

    fn on_answer(&mut self, answer: &TxnResponse, _view: &FleetView, _draw: u64) -> Next<bool> {
        or_failed(self.decide(answer))
    }
}

fn entry(kv: &KeyValue) -> Result<Entry<ServiceRecord>, ClaimError> {
    Ok(Entry { record: decode(kv)?, created: kv.create_revision, modified: kv.mod_revision })
}

/// A virtual IP is nobody's address.
fn check_address(address: IpAddr, view: &FleetView) -> Result<(), ClaimError> {
    let pools = view.fleet().into_iter().flat_map(|fleet| &fleet.record.pools);
    if let Some(pool) = pools.into_iter().find(|pool| pool.contains(address)) {
        return Err(ClaimError::AddressOfEndpoints { address, pool: *pool });
    }
    let node = view.nodes().iter().find(|(_, node)| node.record.underlay.contains(&address));
    node.map_or(Ok(()), |(node, _)| Err(ClaimError::AddressOfNode { address, node: node.clone() }))
}

/// How many addresses of a pool can be given out: not the network's and the broadcast's.
fn usable(pool: Ipv4Network) -> u64 {
    let size = 1_u64 << (32 - u32::from(pool.prefix()));
    if has_edges(pool) { size - 2 } else { size }
}

/// Whether the first and the last address of a pool are none of a machine (RFC 3021).
fn has_edges(pool: Ipv4Network) -> bool {
    pool.prefix() <= 30
}

/// The address of a number, counted through all pools; the number is below the sum of [`usable`].
fn nth(pools: &[Ipv4Network], mut number: u64) -> IpAddr {
    for pool in pools {
        let here = usable(*pool);
        if number < here {
            let bits = u64::from(u32::from(pool.network())) + number + u64::from(has_edges(*pool));
            return Ipv4Addr::from(u32::try_from(bits).expect("a pool lies in the family's range")).into();
        }
        number -= here;
    }
    unreachable!("the number is below the sum of all pools")
}
