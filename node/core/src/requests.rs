//! Requests to the store in flight, and what each answer is for.

use std::{collections::BTreeMap, time::Duration};

use identity::{LabelDigest, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_claims::{
    CidrClaim, CidrRelease, EndpointWrites, Expected, FleetJoin, IdentityAcquire, IdentityRelease, Machine,
    NodeRegistration, ServiceBatch, ServiceRemoval, ServiceWrite,
};
use kvstore_schema::{KvFailure, KvOutcome, KvRequest, service::ServiceSpec};
use serde::{Deserialize, Serialize};

use crate::{CallId, KvId};

/// What an answer is for. A claim protocol is carried along until it ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    Join(Machine<FleetJoin>),
    Register(Machine<NodeRegistration>),
    ClaimBlock(Machine<CidrClaim>),
    ReleaseBlock(IpNetwork, Option<CallId>, Machine<CidrRelease>),
    AcquireIdentity(LabelDigest, Machine<IdentityAcquire>),
    ReleaseIdentity(LabelDigest, Machine<IdentityRelease>),
    WriteRecords(Machine<EndpointWrites>),
    PutService(CallId, Box<Machine<ServiceWrite>>),
    PutServices(Vec<Write>, Box<Machine<ServiceBatch>>),
    DeleteService(CallId, Machine<ServiceRemoval>),
    /// Garbage collection or a new mark. The answer is not used: the view shows the result.
    Unattended,
    /// Records that the store has lost.
    Restore,
    /// A listing of the whole prefix.
    Relist,
    /// A reading of the store's mark and generation, by its number.
    ReadMark(u64),
    RemoveNode(NodeName, CallId),
}

/// A service that a caller wants written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Write {
    pub call: CallId,
    pub name: ServiceName,
    /// Valid and normalised.
    pub spec: ServiceSpec,
    pub expected: Expected,
}

/// All requests. Bounded: one of each kind, except two per label set in use and one per call.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Requests {
    last: u64,
    in_flight: BTreeMap<KvId, Task>,
    /// By the time at which they are to be sent.
    waiting: BTreeMap<(Duration, u64), (KvRequest, Task)>,
}

impl Requests {
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.waiting.keys().next().map(|(at, _)| *at)
    }

    /// Numbers a request that is being sent.
    pub(crate) fn sent(&mut self, task: Task) -> KvId {
        let id = KvId(self.next());
        self.in_flight.insert(id, task);
        id
    }

    /// Keeps a request that is to be sent at a time.
    pub(crate) fn wait(&mut self, at: Duration, request: KvRequest, task: Task) {
        let key = (at, self.next());
        self.waiting.insert(key, (request, task));
    }

    /// The task that an answer is for; `None` if the request was abandoned.
    pub(crate) fn answered(&mut self, id: KvId) -> Option<Task> {
        self.in_flight.remove(&id)
    }

    /// A request that has waited until `now`.
    pub(crate) fn take_due(&mut self, now: Duration) -> Option<(KvRequest, Task)> {
        let entry = self.waiting.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// All requests that wait to be sent.
    pub(crate) fn take_waiting(&mut self) -> Vec<(KvRequest, Task)> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// All tasks, whether their requests are in flight or wait.
    pub(crate) fn take_all(&mut self) -> Vec<Task> {
        let waiting = self.take_waiting().into_iter().map(|(_, task)| task);
        std::mem::take(&mut self.in_flight).into_values().chain(waiting).collect()
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// The text for a caller if the store did not answer.
pub(crate) fn unanswered(outcome: &KvOutcome) -> Option<String> {
    match outcome {
        Err(failure @ (KvFailure::Unavailable(_) | KvFailure::Ambiguous(_))) => {
            Some(format!("{failure}; whether it was carried out is not known: doing it again is safe"))
        }
        _ => None,
    }
}
