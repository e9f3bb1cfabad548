//! Services, and what came of manifests.

use node_api::{
    BackendState, Listing, Mode, Service, ServiceOutcome, ServicePortStatus, ServiceWritten, TrafficPolicy,
};

use super::{Style, table::table};
use crate::manifest::{Deleted, Difference};

pub fn applied(listing: &Listing<ServiceWritten>, _: Style) -> String {
    let line = |written: &ServiceWritten| {
        let what = match written.outcome {
            ServiceOutcome::Created => "created",
            ServiceOutcome::Changed => "changed",
            ServiceOutcome::Unchanged => "unchanged",
        };
        let ports = written.node_ports.iter();
        let ports: String =
            ports.map(|it| format!(", node port {} for {}/{}", it.node_port, it.port, it.protocol)).collect();
        format!("service {} {what}: virtual IP {}{ports}\n", written.name, written.virtual_ip)
    };
    listing.items.iter().map(line).collect()
}

pub fn deleted(listing: &Listing<Deleted>, _: Style) -> String {
    let line = |deleted: &Deleted| {
        let what = if deleted.existed { "deleted" } else { "was not there" };
        format!("service {} {what}\n", deleted.name)
    };
    listing.items.iter().map(line).collect()
}

pub fn differences(listing: &Listing<Difference>, style: Style) -> String {
    let mut text = String::new();
    for difference in &listing.items {
        if difference.lines.is_empty() {
            continue;
        }
        text += &format!("service {}\n", difference.name);
        for line in &difference.lines {
            let colour = match (line.as_bytes().first(), style.colour) {
                (Some(b'-'), true) => Some(31),
                (Some(b'+'), true) => Some(32),
                _ => None,
            };
            text += &match colour {
                Some(colour) => format!("\x1b[{colour}m{line}\x1b[0m\n"),
                None => format!("{}\n", line.trim_end()),
            };
        }
    }
    if text.is_empty() { "nothing to change\n".to_owned() } else { text }
}

/// `10.201.0.5:80/tcp`, with its name if it has one.
fn frontend(service: &Service, port: &ServicePortStatus) -> String {
    let name = port.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("{}:{}/{}{name}", service.virtual_ip, port.port, port.protocol)
}

/// Where clients outside the fleet reach it beside the virtual IP: `node port 30080, host port 80, 198.51.100.7`.
fn outside(service: &Service, port: &ServicePortStatus) -> String {
    let wanted = service.spec.ports.iter().find(|it| (it.protocol, it.port) == (port.protocol, port.port));
    let node_port = port.node_port.map(|number| format!("node port {number}"));
    let host_port = wanted.and_then(|wanted| wanted.host_port).map(|number| format!("host port {number}"));
    let external = service.spec.external_ips.iter().map(|address| format!("{address}:{}", port.port));
    let all: Vec<String> = node_port.into_iter().chain(host_port).chain(external).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

/// What clients outside the fleet get of it, where that is not all from everywhere.
fn settings(service: &Service) -> String {
    let mut text = String::new();
    if service.spec.traffic_policy == TrafficPolicy::Local {
        text += "; backends of the node only";
    }
    if service.spec.mode == Mode::Dsr {
        text += "; answered by the backend's node";
    }
    if !service.spec.source_ranges.is_empty() {
        let ranges: Vec<String> = service.spec.source_ranges.iter().map(ToString::to_string).collect();
        text += &format!("; for {} only", ranges.join(", "));
    }
    text
}

const fn state_word(state: BackendState) -> &'static str {
    match state {
        BackendState::Active => "active",
        BackendState::Terminating => "terminating",
        BackendState::Unhealthy => "unhealthy",
    }
}

/// `2 active, 1 unhealthy`, and what becomes of clients where none is active.
fn counts(port: &ServicePortStatus) -> String {
    let count = |state| port.backends.iter().filter(|backend| backend.state == state).count();
    let states = [BackendState::Active, BackendState::Unhealthy, BackendState::Terminating];
    let counts = states.map(|state| (count(state), state_word(state)));
    let some = counts.iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = some.map(|(count, word)| format!("{count} {word}")).collect();
    let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
    match (counts[0].0, port.all_unhealthy) {
        (0, true) => format!("{words}: used all the same"),
        (0, false) => format!("{words}: clients are refused"),
        _ => words,
    }
}

pub fn services(listing: &Listing<Service>, _: Style) -> String {
    let mut rows = Vec::new();
    for service in &listing.items {
        for port in &service.ports {
            rows.push([
                service.name.to_string(),
                frontend(service, port),
                outside(service, port),
                counts(port),
            ]);
        }
    }
    let total = rows.len();
    table(["SERVICE", "FRONTEND", "OUTSIDE", "BACKENDS"], rows, total, "services")
}

pub fn service(service: &Service, _: Style) -> String {
    let mut text = String::new();
    for port in &service.ports {
        text += &format!("{} {}\n", service.name, frontend(service, port));
        let outside = outside(service, port);
        if outside != "-" {
            text += &format!("  outside: {outside}{}\n", settings(service));
        }
        let rows: Vec<[String; 6]> = port
            .backends
            .iter()
            .map(|backend| {
                [
                    format!("  {}:{}", backend.address, backend.port),
                    state_word(backend.state).to_owned(),
                    backend.weight.to_string(),
                    backend.node.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    backend.endpoint.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    backend.reason.clone().unwrap_or_else(|| "-".to_owned()),
                ]
            })
            .collect();
        let total = rows.len();
        text +=
            &table(["  BACKEND", "STATE", "WEIGHT", "NODE", "ENDPOINT", "REASON"], rows, total, "backends");
    }
    text
}
