//! `kind: Service`.

use identity::ObjectName;
use kvstore_schema::service::ServiceSpec;

use super::Kind;
use crate::{BackendState, Service, ServicePortStatus, ServicePut, ServiceWritten};

impl Kind for ServiceSpec {
    const WORD: &'static str = "service";
    const COLLECTION: &'static str = "services";
    const COLUMNS: &'static [&'static str] = &["SERVICE", "FRONTEND", "EXTERNAL", "BACKENDS"];
    type Put = ServicePut;
    type Written = ServiceWritten;
    type Object = Service;

    fn mistakes(&self) -> Vec<String> {
        self.validate().err().map(|error| error.0).unwrap_or_default()
    }

    fn normalise(self) -> Self {
        self.normalised()
    }

    fn put(self) -> ServicePut {
        ServicePut { spec: self, revision: None }
    }

    fn name_and_spec(Service { name, spec, .. }: Service) -> (ObjectName, Self) {
        (name.into(), spec)
    }

    fn describe(written: &ServiceWritten) -> String {
        let ports = written.node_ports.iter();
        let ports: String =
            ports.map(|it| format!(", node port {} for {}/{}", it.node_port, it.port, it.protocol)).collect();
        format!("service {} {}: virtual IP {}{ports}", written.name, written.outcome, written.virtual_ip)
    }

    /// One row for each port.
    fn rows(service: &Service) -> Vec<Vec<String>> {
        let row = |port: &ServicePortStatus| {
            let external = service.external_frontends(port);
            vec![
                service.name.to_string(),
                service.frontend(port),
                if external.is_empty() { "-".to_owned() } else { external },
                port.backend_counts(),
            ]
        };
        service.ports.iter().map(row).collect()
    }
}

impl Service {
    /// `10.201.0.5:80/tcp`, with the port's name if the port has one.
    pub fn frontend(&self, port: &ServicePortStatus) -> String {
        let name = port.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        format!("{}:{}/{}{name}", self.virtual_ip, port.port, port.protocol)
    }

    /// Where external clients reach a port: `node port 30080, host port 80, 198.51.100.7:80`. Empty where they cannot.
    pub fn external_frontends(&self, port: &ServicePortStatus) -> String {
        let wanted = self.spec.ports.iter().find(|it| (it.protocol, it.port) == (port.protocol, port.port));
        let node_port = port.node_port.map(|number| format!("node port {number}"));
        let host_port =
            wanted.and_then(|wanted| wanted.host_port).map(|number| format!("host port {number}"));
        let addresses = self.spec.external_ips.iter().map(|address| format!("{address}:{}", port.port));
        node_port.into_iter().chain(host_port).chain(addresses).collect::<Vec<_>>().join(", ")
    }
}

impl BackendState {
    /// The state in one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Terminating => "terminating",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl ServicePortStatus {
    /// `2 active, 1 unhealthy`, and what happens to clients if none is active.
    fn backend_counts(&self) -> String {
        let count = |state| self.backends.iter().filter(|backend| backend.state == state).count();
        let states = [BackendState::Active, BackendState::Unhealthy, BackendState::Terminating];
        let counts = states.map(|state| (count(state), state.as_str()));
        let some = counts.iter().filter(|(count, _)| *count > 0);
        let words: Vec<String> = some.map(|(count, word)| format!("{count} {word}")).collect();
        let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
        match (counts[0].0, self.all_unhealthy) {
            (0, true) => format!("{words}: none is healthy, so all are used"),
            (0, false) => format!("{words}: clients are rejected"),
            _ => words,
        }
    }
}
