//! Writing and deleting services: the node that is called does it, in the store, for the whole fleet.

use std::collections::VecDeque;

use identity::ServiceName;
use kvstore_claims::{
    BatchAdded, ClaimError, Expected, ServiceBatch, ServiceRemoval, ServiceWrite, ServiceWritten,
};
use kvstore_schema::{
    KvOutcome,
    service::{ServiceRecord, ServiceSpec},
};
use serde::{Deserialize, Serialize};

use super::Services;
use crate::{
    CallErrorKind, CallId, Reply,
    context::Context,
    fleet::Fleet,
    limits::SERVICE_BATCHES,
    requests::{Task, Write, unanswered},
};
use kvstore_claims::Machine;

/// Services to be written. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Writing {
    waiting: VecDeque<Write>,
    /// Batches that wait for their answer.
    in_flight: usize,
}

impl Services {
    /// Writes a service.
    pub(crate) fn put(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        call: CallId,
        name: ServiceName,
        spec: ServiceSpec,
        expected: Expected,
    ) {
        if let Err(error) = spec.validate() {
            return cx.refuse(call, CallErrorKind::Invalid, error.to_string());
        }
        if can_write(cx, fleet, call, "written") {
            let spec = spec.normalised();
            self.writing.waiting.push_back(Write { call, name, spec, expected });
            self.write_waiting(cx, fleet);
        }
    }

    /// Sends what waits, as much as fits into one transaction at a time. Services that come while all batches are in flight
    /// share the next one.
    fn write_waiting(&mut self, cx: &mut Context, fleet: &Fleet) {
        while self.writing.in_flight < SERVICE_BATCHES {
            let (mut batch, mut together) = (ServiceBatch::default(), Vec::new());
            while let Some(write) = self.writing.waiting.pop_front() {
                match batch.add(fleet.view(), &write.name, &write.spec, write.expected) {
                    BatchAdded::Yes => together.push(write),
                    BatchAdded::Alone => write_alone(cx, fleet, write),
                    BatchAdded::Full => {
                        self.writing.waiting.push_front(write);
                        break;
                    }
                }
            }
            if together.is_empty() {
                return;
            }
            self.writing.in_flight += 1;
            let (machine, request) = batch.start();
            cx.ask(request, Task::PutServices(together, Box::new(machine)));
        }
    }

    /// A batch has its answer, or none.
    pub(crate) fn on_batch(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        together: Vec<Write>,
        machine: Machine<ServiceBatch>,
        outcome: KvOutcome,
    ) {
        if let Some(text) = unanswered(&outcome) {
            for write in together {
                cx.refuse(write.call, CallErrorKind::Unavailable, text.clone());
            }
        } else {
            let again = |machine| Task::PutServices(together.clone(), Box::new(machine));
            let Some(end) = cx.step(fleet.view(), machine, outcome, again) else { return };
            match end {
                Ok(Some(written)) => {
                    for (write, written) in together.into_iter().zip(written) {
                        on_written(cx, write.call, Ok(written));
                    }
                }
                // The batch did not hold as a whole, and nothing was written.
                Ok(None) => together.into_iter().for_each(|write| write_alone(cx, fleet, write)),
                Err(error) => {
                    for write in together {
                        on_written(cx, write.call, Err(error.clone()));
                    }
                }
            }
        }
        self.writing.in_flight -= 1;
        self.write_waiting(cx, fleet);
    }

    /// The store has lost its content: nothing that waits is written.
    pub(crate) fn abandon_writes(&mut self, cx: &mut Context) {
        let waiting = std::mem::take(&mut self.writing).waiting;
        cx.refuse_abandoned(waiting.iter().map(|write| write.call).collect());
    }
}

fn write_alone(cx: &mut Context, fleet: &Fleet, Write { call, name, spec, expected }: Write) {
    let (machine, request) = ServiceWrite::start(fleet.view(), name, spec, expected);
    cx.ask(request, Task::PutService(call, Box::new(machine)));
}

/// Deletes a service.
pub(crate) fn delete(cx: &mut Context, fleet: &Fleet, call: CallId, name: ServiceName, expected: Expected) {
    if can_write(cx, fleet, call, "deleted") {
        let (machine, request) = ServiceRemoval::start(fleet.view().schema(), name, expected);
        cx.ask(request, Task::DeleteService(call, machine));
    }
}

/// Services are in the store and nowhere else: without the store nothing is promised. Refuses the call if it is away.
fn can_write(cx: &mut Context, fleet: &Fleet, call: CallId, done: &str) -> bool {
    let ready = fleet.is_connected() && fleet.is_registered();
    if !ready {
        let reason = fleet.lost().or(fleet.suspect()).or(fleet.halted());
        let reason = reason.map_or("this node has not joined its fleet yet", String::as_str);
        let text = format!(
            "services are {done} in etcd, which cannot be done now ({reason}); existing services go on; try again"
        );
        cx.refuse(call, CallErrorKind::Unavailable, text);
    }
    ready
}

pub(crate) fn on_written(cx: &mut Context, call: CallId, end: Result<ServiceWritten, ClaimError>) {
    match end {
        Ok(ServiceWritten { outcome, record, revision }) => {
            let ServiceRecord { virtual_ip, node_ports, .. } = record;
            cx.reply(call, Ok(Reply::ServiceWritten { outcome, virtual_ip, node_ports, revision }));
        }
        Err(error) => cx.refuse(call, kind(&error), error.to_string()),
    }
}

pub(crate) fn on_deleted(cx: &mut Context, call: CallId, end: Result<bool, ClaimError>) {
    match end {
        Ok(existed) => cx.reply(call, Ok(Reply::ServiceDeleted { existed })),
        Err(error) => cx.refuse(call, kind(&error), error.to_string()),
    }
}

fn kind(error: &ClaimError) -> CallErrorKind {
    match error {
        ClaimError::ServiceChanged { .. } | ClaimError::Taken { .. } | ClaimError::BadRecord { .. } => {
            CallErrorKind::Conflict
        }
        ClaimError::AddressOfEndpoints { .. }
        | ClaimError::AddressOfServices { .. }
        | ClaimError::BackendOfServices { .. }
        | ClaimError::AddressOfNode { .. }
        | ClaimError::PortOfAgents { .. } => CallErrorKind::Invalid,
        ClaimError::ServicePoolExhausted { .. } | ClaimError::NodePortsExhausted { .. } => {
            CallErrorKind::Exhausted
        }
        _ => CallErrorKind::Unavailable,
    }
}
