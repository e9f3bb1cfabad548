//! Services, and what came of manifests.

use node_api::{Listing, Service, ServiceOutcome, ServiceWritten};

use super::{Style, table::table};
use crate::manifest::{Deleted, Difference};

pub fn applied(listing: &Listing<ServiceWritten>, _: Style) -> String {
    let line = |written: &ServiceWritten| {
        let what = match written.outcome {
            ServiceOutcome::Created => "created",
            ServiceOutcome::Changed => "changed",
            ServiceOutcome::Unchanged => "unchanged",
        };
        format!("service {} {what}: virtual IP {}\n", written.name, written.virtual_ip)
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

pub fn services(listing: &Listing<Service>, _: Style) -> String {
    let mut rows = Vec::new();
    for service in &listing.items {
        for port in &service.spec.ports {
            rows.push([
                service.name.to_string(),
                service.virtual_ip.to_string(),
                format!("{}/{}", port.port, port.protocol),
                port.target().to_string(),
            ]);
        }
    }
    let total = rows.len();
    table(["SERVICE", "VIRTUAL IP", "PORT", "TARGET"], rows, total, "services")
}
