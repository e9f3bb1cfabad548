//! The steps of a plan, and their outcome.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    BackendId, BackendValue, Entry, Generation, Row, ServiceId, TableKey, lb::SlotTable, tables::Stored,
};

/// One step. Each is idempotent: doing it twice changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes an entry, or changes it, with everything that belongs to it: devices, programs, map entries. What is there
    /// already is adopted.
    Put(Entry),
    /// Deletes an entry, and everything that belongs to it.
    Delete(TableKey),
    /// Raises epochs, so that the flows concerned are decided again.
    BumpEpochs(EpochScope),
}

impl Op {
    /// Makes or changes a row.
    pub fn put<R: Row>(key: R::Key, row: R) -> Self {
        Self::Put(row.entry(key))
    }

    /// Deletes the row of a key.
    pub fn delete<R: Stored>(key: R::Key) -> Self {
        Self::Delete(R::table_key(key))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(entry) => write!(f, "put {entry}"),
            Self::Delete(key) => write!(f, "delete {key}"),
            Self::BumpEpochs(EpochScope::All) => f.write_str("bump all epochs"),
            Self::BumpEpochs(EpochScope::Addresses(addresses)) => {
                f.write_str("bump epochs of")?;
                addresses.iter().try_for_each(|address| write!(f, " {address}"))
            }
        }
    }
}

/// The flows that are to be decided again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EpochScope {
    /// Flows of these addresses, and of addresses in the same shards.
    Addresses(Vec<IpAddr>),
    /// All flows.
    All,
}

/// Steps in order, leaving nothing to choose. Cheap to clone: a large fleet's plan has 100,000 steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The generation of the wanted state that the kernel has when all steps have succeeded.
    pub generation: Generation,
    /// The steps.
    pub ops: Arc<[Op]>,
    /// The slots of each service port that a step puts.
    pub slot_tables: Arc<BTreeMap<ServiceId, SlotTable>>,
}

impl Plan {
    /// A plan of these steps. `backend` is what the kernel holds of a backend when the service ports are put: members
    /// for which it has nothing get no slots.
    pub fn new(
        generation: Generation,
        ops: Vec<Op>,
        backend: impl Fn(BackendId) -> Option<BackendValue>,
    ) -> Self {
        let slot_table = |op: &Op| match op {
            Op::Put(Entry::Service(id, service)) => Some((*id, SlotTable::new(service, &backend))),
            _ => None,
        };
        let slot_tables = Arc::new(ops.iter().filter_map(slot_table).collect());
        Self { generation, ops: ops.into(), slot_tables }
    }
}

/// The cause of a failure, as far as it matters for what is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpErrorKind {
    /// The network namespace or interface of an endpoint is not there.
    NamespaceGone,
    /// A table is full.
    Capacity,
    /// Another owner has the name or address.
    Conflict,
    /// May pass by itself: the step is tried again.
    Transient,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct OpError {
    /// The kind of failure.
    pub kind: OpErrorKind,
    /// The whole chain of causes, and what to do.
    pub text: String,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpFailure {
    /// The step.
    pub op: Op,
    /// The failure.
    pub error: OpError,
}

/// The outcome of a plan. A step that fails does not stop the ones after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanOutcome {
    /// The plan's generation.
    pub generation: Generation,
    /// The steps that failed; all others succeeded.
    pub failures: Vec<OpFailure>,
}
