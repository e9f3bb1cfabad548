//! Writing and deleting services: whoever is asked does it, in the store, for the whole fleet.

use std::collections::VecDeque;

use identity::ServiceName;
use kvstore_claims::{
    BatchAdded, ClaimError, Expected, ServiceBatch, ServiceRemoval, ServiceWrite, ServiceWritten,
};
use kvstore_schema::service::{ServiceRecord, ServiceSpec};
use serde::{Deserialize, Serialize};

use crate::{CallErrorKind, CallId, Reply, limits::SERVICE_BATCHES, node::Node, tasks::Task};

/// Services to be written. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Writing {
    waiting: VecDeque<Write>,
    /// Batches that wait for their answer.
    in_flight: usize,
}

/// What somebody wants written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Write {
    call: CallId,
    name: ServiceName,
    /// Valid and normalised.
    spec: ServiceSpec,
    expected: Expected,
}

impl Node {
    /// Writes a service.
    pub(crate) fn put_service(
        &mut self,
        call: CallId,
        name: ServiceName,
        spec: ServiceSpec,
        expected: Expected,
    ) {
        if let Err(error) = spec.validate() {
            return self.refuse(call, CallErrorKind::Invalid, error.to_string());
        }
        if self.can_write(call, "written") {
            let spec = spec.normalised();
            self.services.writing.waiting.push_back(Write { call, name, spec, expected });
            self.write_services();
        }
    }

    /// Sends what waits, as much as fits into one transaction at a time: whoever comes while all are under way shares the
    /// next one.
    fn write_services(&mut self) {
        while self.services.writing.in_flight < SERVICE_BATCHES {
            let (mut batch, mut together) = (ServiceBatch::default(), Vec::new());
            while let Some(write) = self.services.writing.waiting.pop_front() {
                match batch.add(&self.view, &write.name, &write.spec, write.expected) {
                    BatchAdded::Yes => together.push(write),
                    BatchAdded::Alone => self.write_alone(write),
                    BatchAdded::Full => {
                        self.services.writing.waiting.push_front(write);
                        break;
                    }
                }
            }
            if together.is_empty() {
                return;
            }
            self.services.writing.in_flight += 1;
            let (machine, request) = batch.start();
            self.ask(request, Task::PutServices(together, Box::new(machine)));
        }
    }

    fn write_alone(&mut self, Write { call, name, spec, expected }: Write) {
        let (machine, request) = ServiceWrite::start(&self.view, name, spec, expected);
        self.ask(request, Task::PutService(call, Box::new(machine)));
    }

    /// A batch has its answer: each service with what became of it, or nothing was written.
    pub(crate) fn on_services_written(
        &mut self,
        together: Vec<Write>,
        end: Result<Option<Vec<ServiceWritten>>, ClaimError>,
    ) {
        self.services.writing.in_flight -= 1;
        match end {
            Ok(Some(written)) => {
                for (write, written) in together.into_iter().zip(written) {
                    self.on_service_written(write.call, Ok(written));
                }
            }
            Ok(None) => together.into_iter().for_each(|write| self.write_alone(write)),
            Err(error) => {
                for write in together {
                    self.on_service_written(write.call, Err(error.clone()));
                }
            }
        }
        self.write_services();
    }

    /// A batch has no answer.
    pub(crate) fn on_services_unanswered(&mut self, together: &[Write], text: &str) {
        self.services.writing.in_flight -= 1;
        self.refuse_writes(together, text);
        self.write_services();
    }

    /// Tells all that wait for a batch.
    pub(crate) fn refuse_writes(&mut self, together: &[Write], text: &str) {
        for write in together {
            self.refuse(write.call, CallErrorKind::Unavailable, text.to_owned());
        }
    }

    /// The store is another: nothing of what waits is written. Returns who waits.
    pub(crate) fn abandon_service_writes(&mut self) -> Vec<CallId> {
        std::mem::take(&mut self.services.writing).waiting.into_iter().map(|write| write.call).collect()
    }

    /// Deletes a service.
    pub(crate) fn delete_service(&mut self, call: CallId, name: ServiceName, expected: Expected) {
        if self.can_write(call, "deleted") {
            let (machine, request) = ServiceRemoval::start(self.view.schema(), name, expected);
            self.ask(request, Task::DeleteService(call, machine));
        }
    }

    /// Services are in the store and nowhere else: without it nothing is promised.
    fn can_write(&mut self, call: CallId, done: &str) -> bool {
        let ready = self.store.connected && self.membership.registered();
        if !ready {
            let reason =
                self.store.lost.as_ref().or(self.store.suspect.as_ref()).or(self.membership.halted.as_ref());
            let reason =
                reason.cloned().unwrap_or_else(|| "this node has not joined its fleet yet".to_owned());
            let text = format!(
                "services are {done} in etcd, which cannot be done now ({reason}); those that are there go on; try again"
            );
            self.refuse(call, CallErrorKind::Unavailable, text);
        }
        ready
    }

    pub(crate) fn on_service_written(&mut self, call: CallId, end: Result<ServiceWritten, ClaimError>) {
        match end {
            Ok(ServiceWritten { outcome, record, revision }) => {
                let ServiceRecord { virtual_ip, node_ports, .. } = record;
                self.reply(call, Ok(Reply::ServiceWritten { outcome, virtual_ip, node_ports, revision }));
            }
            Err(error) => self.refuse(call, kind(&error), error.to_string()),
        }
    }

    pub(crate) fn on_service_deleted(&mut self, call: CallId, end: Result<bool, ClaimError>) {
        match end {
            Ok(existed) => self.reply(call, Ok(Reply::ServiceDeleted { existed })),
            Err(error) => self.refuse(call, kind(&error), error.to_string()),
        }
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
