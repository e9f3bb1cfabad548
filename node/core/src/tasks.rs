//! Requests to the store in flight, and the machines that wait for their answers.

use std::{collections::BTreeMap, time::Duration};

use identity::{LabelDigest, NodeName};
use ipnetwork::IpNetwork;
use kvstore_claims::{
    CidrClaim, CidrRelease, ClaimError, EndpointWrites, FleetJoin, IdentityAcquire, IdentityRelease, Machine,
    NodeRegistration, Protocol, ServiceBatch, ServiceRemoval, ServiceWrite, Step,
};
use kvstore_schema::{KvFailure, KvOutcome, KvRequest, KvResponse};
use serde::{Deserialize, Serialize};

use crate::{CallErrorKind, CallId, Command, KvId, limits::RELIST_RETRY, node::Node, services::Write};

/// What an answer is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    Fleet(Machine<FleetJoin>),
    Register(Machine<NodeRegistration>),
    Claim(Machine<CidrClaim>),
    GiveBack(IpNetwork, Option<CallId>, Machine<CidrRelease>),
    Acquire(LabelDigest, Machine<IdentityAcquire>),
    Release(LabelDigest, Machine<IdentityRelease>),
    Write(Machine<EndpointWrites>),
    PutService(CallId, Box<Machine<ServiceWrite>>),
    PutServices(Vec<Write>, Box<Machine<ServiceBatch>>),
    DeleteService(CallId, Machine<ServiceRemoval>),
    /// Nobody waits for it: the view shows what came of it.
    Collect,
    /// A piece of what the store has lost.
    Restore,
    /// The whole prefix.
    Relist,
    /// The store's mark and life; which question.
    Mark(u64),
    Remove(NodeName, CallId),
}

/// All of them. Bounded: one of each kind, except two per label set in use and one per call.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tasks {
    next: u64,
    in_flight: BTreeMap<KvId, Task>,
    waiting: BTreeMap<(Duration, u64), Task>,
}

impl Tasks {
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.waiting.keys().next().map(|(at, _)| *at)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Node {
    /// Sends a request; its answer comes to `task`.
    pub(crate) fn ask(&mut self, request: KvRequest, task: Task) {
        let id = KvId(self.tasks.number());
        self.tasks.in_flight.insert(id, task);
        self.counters.kv_requests += 1;
        self.out.push(Command::Kv(id, request));
    }

    /// Has a task asked again after a while.
    pub(crate) fn ask_later(&mut self, after: Duration, task: Task) {
        let key = (self.now.monotonic + after, self.tasks.number());
        self.tasks.waiting.insert(key, task);
    }

    /// Sends again what has waited long enough. Not while the store is away: another one may come back, which only its
    /// listing tells.
    pub(crate) fn resume_due(&mut self) {
        if !self.store.connected {
            return;
        }
        let now = self.now.monotonic;
        while let Some(entry) = self.tasks.waiting.first_entry().filter(|entry| entry.key().0 <= now) {
            let task = entry.remove();
            self.resume(task);
        }
    }

    /// Forgets all that was asked: the store that it was asked of is no more.
    pub(crate) fn abandon_tasks(&mut self) {
        let asked = std::mem::take(&mut self.tasks.in_flight).into_values();
        let waiting = std::mem::take(&mut self.tasks.waiting).into_values();
        let text = "the store was emptied or restored meanwhile; look, and ask again".to_owned();
        for call in self.abandon_service_writes() {
            self.refuse(call, CallErrorKind::Unavailable, text.clone());
        }
        for task in asked.chain(waiting).collect::<Vec<_>>() {
            if let Task::PutServices(together, _) = &task {
                self.refuse_writes(together, &text);
            }
            if let Task::GiveBack(_, Some(call), _)
            | Task::PutService(call, _)
            | Task::DeleteService(call, _)
            | Task::Remove(_, call) = task
            {
                self.refuse(call, CallErrorKind::Unavailable, text.clone());
            }
        }
    }

    /// Sends again all that waits: the store is back.
    pub(crate) fn resume_all(&mut self) {
        for task in std::mem::take(&mut self.tasks.waiting).into_values() {
            self.resume(task);
        }
    }

    fn resume(&mut self, task: Task) {
        fn request<P: Protocol>(machine: &Machine<P>) -> Option<KvRequest> {
            match machine.resume() {
                Step::Ask(request) => Some(request),
                Step::Wait { .. } | Step::Done(_) | Step::Failed(_) => None,
            }
        }
        let request = match &task {
            Task::Fleet(machine) => request(machine),
            Task::Register(machine) => request(machine),
            Task::Claim(machine) => request(machine),
            Task::GiveBack(_, _, machine) => request(machine),
            Task::Acquire(_, machine) => request(machine),
            Task::Release(_, machine) => request(machine),
            Task::Write(machine) => request(machine),
            Task::PutService(_, machine) => request(machine),
            Task::PutServices(_, machine) => request(machine),
            Task::DeleteService(_, machine) => request(machine),
            Task::Relist => Some(KvRequest::List(self.view.schema().root())),
            Task::Mark(number) => self.marking.is_open(*number).then(|| self.mark_reading()),
            Task::Collect | Task::Restore | Task::Remove(..) => None,
        };
        if let Some(request) = request {
            self.ask(request, task);
        }
    }

    pub(crate) fn on_kv_answer(&mut self, id: KvId, outcome: KvOutcome) {
        let Some(task) = self.tasks.in_flight.remove(&id) else { return };
        if outcome.is_err() {
            self.counters.kv_failures += 1;
        }
        match task {
            Task::Fleet(machine) => {
                if let Some(end) = self.step(machine, outcome, Task::Fleet) {
                    self.on_fleet(end);
                }
            }
            Task::Register(machine) => {
                if let Some(end) = self.step(machine, outcome, Task::Register) {
                    self.on_registered(end);
                }
            }
            Task::Claim(machine) => {
                if let Some(end) = self.step(machine, outcome, Task::Claim) {
                    self.on_claimed(end);
                }
            }
            Task::GiveBack(cidr, call, machine) => {
                let again = |machine| Task::GiveBack(cidr, call, machine);
                if let Some(end) = self.step(machine, outcome, again) {
                    self.on_given_back(cidr, call, end);
                }
            }
            Task::Acquire(digest, machine) => {
                let again = |machine| Task::Acquire(digest.clone(), machine);
                if let Some(end) = self.step(machine, outcome, again) {
                    self.on_acquired(&digest, end);
                }
            }
            Task::Release(digest, machine) => {
                let again = |machine| Task::Release(digest.clone(), machine);
                if let Some(end) = self.step(machine, outcome, again) {
                    self.on_released(&digest, end);
                }
            }
            Task::Write(machine) => {
                if let Some(end) = self.step(machine, outcome, Task::Write) {
                    self.on_written(end);
                }
            }
            Task::PutService(call, machine) => {
                let task = |call, machine| Task::PutService(call, Box::new(machine));
                if let Some(end) = self.step_of_call(call, *machine, outcome, task) {
                    self.on_service_written(call, end);
                }
            }
            Task::PutServices(together, machine) => {
                if let Some(text) = unanswered(&outcome) {
                    return self.on_services_unanswered(&together, &text);
                }
                let again = |machine| Task::PutServices(together.clone(), Box::new(machine));
                if let Some(end) = self.step(*machine, outcome, again) {
                    self.on_services_written(together, end);
                }
            }
            Task::DeleteService(call, machine) => {
                if let Some(end) = self.step_of_call(call, machine, outcome, Task::DeleteService) {
                    self.on_service_deleted(call, end);
                }
            }
            Task::Collect => {}
            Task::Restore => self.on_restored(&outcome),
            Task::Relist => match outcome {
                Ok(KvResponse::List(page)) => self.on_relisted(page),
                _ => self.ask_later(RELIST_RETRY, Task::Relist),
            },
            Task::Mark(number) => self.on_mark_read(number, outcome),
            Task::Remove(node, call) => match outcome {
                Ok(KvResponse::Txn(answer)) => self.on_removed(&node, call, Ok(answer.succeeded)),
                Ok(KvResponse::List(_)) => {
                    self.on_removed(&node, call, Err("a listing was answered".to_owned()))
                }
                Err(failure) => self.on_removed(&node, call, Err(failure.to_string())),
            },
        }
    }

    /// Gives the machine its answer. `None`: it goes on, as the task that `again` makes of it.
    fn step<P: Protocol>(
        &mut self,
        mut machine: Machine<P>,
        outcome: KvOutcome,
        again: impl FnOnce(Machine<P>) -> Task,
    ) -> Option<Result<P::Output, ClaimError>> {
        let draw = self.rng.u64(..);
        match machine.on_outcome(outcome, &self.view, draw) {
            Step::Ask(request) => self.ask(request, again(machine)),
            Step::Wait { after, .. } => {
                self.ask_later(after, again(machine));
            }
            Step::Done(output) => return Some(Ok(output)),
            Step::Failed(error) => return Some(Err(error)),
        }
        None
    }

    /// The same for a machine that somebody waits for: when the store does not answer, the caller is told, and asks again.
    fn step_of_call<P: Protocol>(
        &mut self,
        call: CallId,
        machine: Machine<P>,
        outcome: KvOutcome,
        task: fn(CallId, Machine<P>) -> Task,
    ) -> Option<Result<P::Output, ClaimError>> {
        if let Some(text) = unanswered(&outcome) {
            self.refuse(call, CallErrorKind::Unavailable, text);
            return None;
        }
        self.step(machine, outcome, |machine| task(call, machine))
    }
}

/// What a caller is told when the store does not answer.
fn unanswered(outcome: &KvOutcome) -> Option<String> {
    match outcome {
        Err(failure @ (KvFailure::Unavailable(_) | KvFailure::Ambiguous(_))) => {
            Some(format!("{failure}; whether it was carried out is not known: doing it again is safe"))
        }
        _ => None,
    }
}
