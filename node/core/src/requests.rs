//! Requests to the store in flight, and what each answer is for.

use std::{collections::BTreeMap, time::Duration};

use identity::{LabelDigest, NodeName};
use ipnetwork::IpNetwork;
use kvstore_claims::{
    CidrClaim, CidrRelease, EndpointWrites, FleetJoin, IdentityAcquire, IdentityRelease, Machine,
    NodeRegistration, ServiceBatch, ServiceRemoval, ServiceWrite,
};
use kvstore_schema::{KvFailure, KvOutcome};
use serde::{Deserialize, Serialize};

use crate::{CallErrorKind, CallId, KvId, context::Context, services::Write};

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

/// All requests. Bounded: one of each kind, except two per label set in use and one per call.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Requests {
    last: u64,
    in_flight: BTreeMap<KvId, Task>,
    waiting: BTreeMap<(Duration, u64), Task>,
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

    /// Keeps a task whose request is to be sent again at a time.
    pub(crate) fn wait(&mut self, at: Duration, task: Task) {
        let key = (at, self.next());
        self.waiting.insert(key, task);
    }

    /// The task that an answer is for; `None` if the request was abandoned.
    pub(crate) fn answered(&mut self, id: KvId) -> Option<Task> {
        self.in_flight.remove(&id)
    }

    /// A task that has waited until `now`.
    pub(crate) fn take_due(&mut self, now: Duration) -> Option<Task> {
        let entry = self.waiting.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// All tasks that wait to be sent again.
    pub(crate) fn take_waiting(&mut self) -> Vec<Task> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl Context {
    /// Forgets all requests, since the store that they were sent to has lost its content. Callers are told.
    pub(crate) fn abandon_requests(&mut self) {
        let asked = std::mem::take(&mut self.requests.in_flight).into_values();
        let tasks: Vec<Task> = asked.chain(self.requests.take_waiting()).collect();
        for task in tasks {
            let calls = match task {
                Task::PutServices(together, _) => together.iter().map(Write::call).collect(),
                Task::ReleaseBlock(_, Some(call), _)
                | Task::PutService(call, _)
                | Task::DeleteService(call, _)
                | Task::RemoveNode(_, call) => vec![call],
                _ => Vec::new(),
            };
            self.refuse_abandoned(calls);
        }
    }

    /// Tells callers that their request was abandoned.
    pub(crate) fn refuse_abandoned(&mut self, calls: Vec<CallId>) {
        for call in calls {
            let text =
                "the store was emptied or restored meanwhile; check the state, then try again".to_owned();
            self.refuse(call, CallErrorKind::Unavailable, text);
        }
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
