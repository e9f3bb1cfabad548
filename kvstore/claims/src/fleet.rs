//! The fleet record: created once by whoever comes first, read and compared by everybody else.

use std::sync::Arc;

use ipnetwork::IpNetwork;
use kvstore_schema::{
    Condition, Key, KeyValue, KvOp, KvRequest, Revision, Schema, Txn, TxnResponse,
    record::{FleetRecord, Record},
};
use serde::{Deserialize, Serialize};

use crate::{
    ClaimError, Difference, FleetView,
    machine::{Machine, Next, Protocol, decode, got, or_failed, put},
};

/// The guard of every transaction that claims something free: the fleet's record is as it was read, and no member was
/// restoring then.
///
/// While members restore, what is free in the store may belong to a node that is away. The guard compares the record's
/// value and not its revision, because a revision names a record only within one generation of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SettledFleet(Condition);

impl SettledFleet {
    /// The guard by what the view knows. A view that is behind makes a guard that fails in the store.
    ///
    /// # Errors
    /// [`ClaimError::NoFleet`], [`ClaimError::Restoring`].
    pub(crate) fn known(view: &FleetView) -> Result<Self, ClaimError> {
        let fleet = view.fleet().ok_or(ClaimError::NoFleet)?;
        Self::of(view, &fleet.record, fleet.record.encode())
    }

    /// The guard by the record that a transaction has read.
    ///
    /// # Errors
    /// [`ClaimError::NoFleet`], [`ClaimError::BadRecord`], [`ClaimError::Restoring`].
    pub(crate) fn read(view: &FleetView, found: Option<&KeyValue>) -> Result<Self, ClaimError> {
        let found = found.ok_or(ClaimError::NoFleet)?;
        Self::of(view, &decode(found)?, found.value.clone())
    }

    fn of(view: &FleetView, fleet: &FleetRecord, value: Arc<[u8]>) -> Result<Self, ClaimError> {
        // The view says so earlier than the record: from the loss of the store until its next founding.
        if fleet.life.restoring || view.life().restoring {
            return Err(ClaimError::Restoring);
        }
        Ok(Self(Condition::ValueIs(view.schema().fleet(), value)))
    }

    pub(crate) fn condition(&self) -> Condition {
        self.0.clone()
    }
}

/// Creates the fleet's record, or joins the fleet whose record exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FleetJoin {
    wanted: FleetRecord,
    /// The record that the pending transaction writes.
    asked: FleetRecord,
}

/// The fleet that this node has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetJoined {
    /// The fleet's record.
    pub record: FleetRecord,
    /// The record's revision.
    pub revision: Revision,
    /// Whether the record has the fleet id that this machine drew.
    pub created: bool,
}

impl FleetJoin {
    /// `wanted`: the record to create if there is none: pools, block sizes and port as configured, and a
    /// fleet id drawn at random by the caller. Ends in [`ClaimError::FleetMismatch`] when the fleet has
    /// other settings; pools may be named in any order. A fleet without service pools gets those of the first node that
    /// has some.
    pub fn start(schema: &Schema, wanted: FleetRecord) -> (Machine<Self>, KvRequest) {
        let txn = Self::write(schema.fleet(), &wanted, None);
        Machine::begin(Self { asked: wanted.clone(), wanted }, txn)
    }

    /// Founds a store anew that was emptied (`copy` is `None`) or replaced by an older copy, whose fleet record has the
    /// revision `copy`. `wanted`: the record with the fleet's own id and the next generation. The second member to try
    /// joins the generation of the first. Ends in [`ClaimError::OtherFleet`] when another fleet has taken the store.
    pub fn found_anew(
        schema: &Schema,
        wanted: FleetRecord,
        copy: Option<Revision>,
    ) -> (Machine<Self>, KvRequest) {
        let txn = Self::write(schema.fleet(), &wanted, copy);
        Machine::begin(Self { asked: wanted.clone(), wanted }, txn)
    }

    fn write(key: Key, wanted: &FleetRecord, copy: Option<Revision>) -> Txn {
        let unchanged = match copy {
            None => Condition::Absent(key.clone()),
            Some(revision) => Condition::ModRevision(key.clone(), revision),
        };
        Txn::new().when(unchanged).then(put(key.clone(), wanted)).otherwise(KvOp::Get(key))
    }
}

impl Protocol for FleetJoin {
    type Output = FleetJoined;

    fn on_answer(&mut self, answer: &TxnResponse, _view: &FleetView, _draw: u64) -> Next<FleetJoined> {
        if answer.succeeded {
            let record = self.asked.clone();
            let created = record.fleet_id == self.wanted.fleet_id;
            return Next::Done(FleetJoined { record, revision: answer.revision, created });
        }
        or_failed(self.compare(answer))
    }
}

impl FleetJoin {
    fn compare(&mut self, answer: &TxnResponse) -> Result<Next<FleetJoined>, ClaimError> {
        let found = got(answer, 0)?.ok_or(ClaimError::NoFleet)?;
        let record: FleetRecord = decode(found)?;
        let differences = differences(&self.wanted, &record);
        if !differences.is_empty() {
            return Err(ClaimError::FleetMismatch { differences });
        }
        let created = record.fleet_id == self.wanted.fleet_id;
        if self.wanted.life.number > 0 {
            if !created {
                return Err(ClaimError::OtherFleet {
                    found: record.fleet_id,
                    known: self.wanted.fleet_id.clone(),
                });
            }
            if record.life.number < self.wanted.life.number {
                self.asked = self.wanted.clone();
                if self.asked.service_pools.is_empty() {
                    self.asked.service_pools = record.service_pools;
                }
                return Ok(Next::Ask(Self::write(found.key.clone(), &self.asked, Some(found.mod_revision))));
            }
        }
        if record.service_pools.is_empty() && !self.wanted.service_pools.is_empty() {
            self.asked = FleetRecord { service_pools: self.wanted.service_pools.clone(), ..record };
            return Ok(Next::Ask(Self::write(found.key.clone(), &self.asked, Some(found.mod_revision))));
        }
        Ok(Next::Done(FleetJoined { record, revision: found.mod_revision, created }))
    }
}

/// All settings that differ.
fn differences(here: &FleetRecord, fleet: &FleetRecord) -> Vec<Difference> {
    let text = |pools: &[IpNetwork]| {
        let mut pools = pools.to_vec();
        pools.sort();
        pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    // A node that names no service pools takes the fleet's.
    let service_pools =
        |record: &FleetRecord| match (here.service_pools.is_empty(), fleet.service_pools.is_empty()) {
            (false, false) => text(&record.service_pools),
            _ => String::new(),
        };
    [
        ("pools", text(&here.pools), text(&fleet.pools)),
        ("service_pools", service_pools(here), service_pools(fleet)),
        ("block_prefix_v4", here.block_prefix_v4.to_string(), fleet.block_prefix_v4.to_string()),
        ("block_prefix_v6", here.block_prefix_v6.to_string(), fleet.block_prefix_v6.to_string()),
        ("tunnel_port", here.tunnel_port.to_string(), fleet.tunnel_port.to_string()),
    ]
    .into_iter()
    .filter(|(_, here, fleet)| here != fleet)
    .map(|(setting, here, fleet)| Difference { setting, here, fleet })
    .collect()
}
