//! Services, and the answers to manifests.

use identity::ObjectName;
use node_api::{KindName, Listing, Mode, Object, Service, TrafficPolicy, Written};
use serde::Serialize;

use super::{Style, table::table};

/// The effect of a deletion.
#[derive(Debug, Serialize)]
pub struct Deletion {
    /// The kind of the object.
    pub kind: KindName,
    /// The name of the object.
    pub name: ObjectName,
    /// Whether the object existed.
    pub existed: bool,
}

/// The difference between an object and its manifest.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// The kind of the object.
    pub kind: KindName,
    /// The name of the object.
    pub name: ObjectName,
    /// The lines of both manifests: removed ones after `-`, added ones after `+`, common ones after blanks. Empty if the
    /// manifests are equal.
    pub lines: Vec<String>,
}

pub fn applied(listing: &Listing<Written>, _: Style) -> String {
    listing.items.iter().map(|written| written.describe() + "\n").collect()
}

pub fn deleted(listing: &Listing<Deletion>, _: Style) -> String {
    let line = |Deletion { kind, name, existed }: &Deletion| {
        let effect = if *existed { "deleted" } else { "was not there" };
        format!("{} {name} {effect}\n", kind.word())
    };
    listing.items.iter().map(line).collect()
}

pub fn differences(listing: &Listing<Difference>, style: Style) -> String {
    let mut text = String::new();
    for difference in &listing.items {
        if difference.lines.is_empty() {
            continue;
        }
        text += &format!("{} {}\n", difference.kind.word(), difference.name);
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

pub fn objects(kind: KindName, listing: &Listing<Object>) -> String {
    let rows: Vec<Vec<String>> = listing.items.iter().flat_map(Object::rows).collect();
    let total = rows.len();
    table(kind.columns(), rows, total, kind.collection())
}

/// The restrictions on external clients.
fn restrictions(service: &Service) -> String {
    let mut text = String::new();
    if service.spec.traffic_policy == TrafficPolicy::Local {
        text += "; local backends only";
    }
    if service.spec.mode == Mode::Dsr {
        text += "; direct server return";
    }
    if !service.spec.source_ranges.is_empty() {
        let ranges: Vec<String> = service.spec.source_ranges.iter().map(ToString::to_string).collect();
        text += &format!("; for {} only", ranges.join(", "));
    }
    text
}

pub fn service(service: &Service, _: Style) -> String {
    let mut text = String::new();
    for port in &service.ports {
        text += &format!("{} {}\n", service.name, service.frontend(port));
        let external = service.external_frontends(port);
        if !external.is_empty() {
            text += &format!("  external: {external}{}\n", restrictions(service));
        }
        let rows: Vec<[String; 6]> = port
            .backends
            .iter()
            .map(|backend| {
                [
                    format!("  {}:{}", backend.address, backend.port),
                    backend.state.as_str().to_owned(),
                    backend.weight.to_string(),
                    backend.node.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    backend.endpoint.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    backend.reason.clone().unwrap_or_else(|| "-".to_owned()),
                ]
            })
            .collect();
        let total = rows.len();
        text +=
            &table(&["  BACKEND", "STATE", "WEIGHT", "NODE", "ENDPOINT", "REASON"], rows, total, "backends");
    }
    text
}
