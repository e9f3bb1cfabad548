//! Writing and deleting services: whoever is asked does it, in the store, for the whole fleet.

use identity::ServiceName;
use kvstore_claims::{ClaimError, Expected, ServiceRemoval, ServiceWrite, ServiceWritten};
use kvstore_schema::service::{ServiceRecord, ServiceSpec};

use crate::{CallErrorKind, CallId, Reply, node::Node, tasks::Task};

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
            let (machine, request) = ServiceWrite::start(&self.view, name, spec.normalised(), expected);
            self.ask(request, Task::PutService(call, Box::new(machine)));
        }
    }

    /// Deletes a service.
    pub(crate) fn delete_service(&mut self, call: CallId, name: ServiceName, expected: Expected) {
        if self.can_write(call, "deleted") {
            let (machine, request) = ServiceRemoval::start(self.view.schema(), name, expected);
            self.ask(request, Task::DeleteService(call, machine));
        }
    }

    /// Services are in the store and nowhere else: without it nothing is promised. While the fleet makes it whole again, a
    /// name or address that is free there may be that of a service which is still to be written.
    fn can_write(&mut self, call: CallId, done: &str) -> bool {
        let restoring = self.view.life().restoring;
        let ready = self.store.connected && self.membership.registered() && !restoring;
        if !ready {
            let reason =
                self.store.lost.as_ref().or(self.store.suspect.as_ref()).or(self.membership.halted.as_ref());
            let reason = reason.cloned().unwrap_or_else(|| {
                if restoring {
                    "the fleet writes again what etcd has lost, which takes a minute or two".to_owned()
                } else {
                    "this node has not joined its fleet yet".to_owned()
                }
            });
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
        | ClaimError::AddressOfNode { .. }
        | ClaimError::PortOfAgents { .. } => CallErrorKind::Invalid,
        ClaimError::ServicePoolExhausted { .. } | ClaimError::NodePortsExhausted { .. } => {
            CallErrorKind::Exhausted
        }
        _ => CallErrorKind::Unavailable,
    }
}
