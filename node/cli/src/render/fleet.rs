//! Nodes, endpoints, identities, addresses.

use node_api::{
    Endpoint, EndpointAdded, EndpointState, Identity, IdentityState, IpEntry, IpSource, Listing, Node,
};

use super::{Style, table::table};

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn joined<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

fn identity(number: identity::Identity) -> String {
    match number.reserved_name() {
        Some(name) => name.to_owned(),
        None => number.to_string(),
    }
}

pub fn nodes(listing: &Listing<Node>, _: Style) -> String {
    let rows = listing
        .items
        .iter()
        .map(|node| {
            let life = match (node.alive_in_store, node.alive_in_gossip) {
                _ if node.this_node => "this node",
                (true, Some(true)) => "alive",
                (true, None) => "alive (etcd only)",
                (true, Some(false)) => "alive in etcd, silent in gossip",
                (false, Some(true)) => "alive in gossip, silent in etcd",
                (false, _) => "silent",
            };
            [
                node.name.to_string(),
                life.to_owned(),
                joined(&node.underlay),
                joined(&node.cidrs),
                node.endpoints.to_string(),
                joined(node.labels.iter().map(|(key, value)| format!("{key}={value}"))),
                node.agent_version.clone(),
            ]
        })
        .collect();
    table(
        &["NODE", "STATE", "UNDERLAY", "CIDRS", "ENDPOINTS", "LABELS", "VERSION"],
        rows,
        listing.total,
        "nodes",
    )
}

const fn state_word(endpoint: &Endpoint) -> &'static str {
    match endpoint.state {
        EndpointState::Ready if endpoint.terminating => "terminating",
        EndpointState::WaitingForIdentity => "waiting for identity",
        EndpointState::WaitingForAddress => "waiting for address",
        EndpointState::Attaching => "attaching",
        EndpointState::Ready => "ready",
        EndpointState::Detaching => "detaching",
    }
}

pub fn endpoints(listing: &Listing<Endpoint>, _: Style) -> String {
    let rows = listing
        .items
        .iter()
        .map(|endpoint| {
            let failing = if endpoint.error.is_some() { ", failing" } else { "" };
            [
                endpoint.name.to_string(),
                format!("{}{failing}", state_word(endpoint)),
                or_dash(endpoint.address),
                or_dash(endpoint.identity),
                or_dash(endpoint.device.as_ref()),
                joined(endpoint.labels.iter().map(|(key, value)| format!("{key}={value}"))),
            ]
        })
        .collect();
    table(&["ENDPOINT", "STATE", "ADDRESS", "IDENTITY", "DEVICE", "LABELS"], rows, listing.total, "endpoints")
}

pub fn endpoint(endpoint: &Endpoint, _: Style) -> String {
    let attachment =
        endpoint.attachment.as_ref().map(|node_api::AttachmentKind::Netns { path, interface }| {
            format!("{interface} in {}", path.display())
        });
    let recorded = if endpoint.recorded { "yes" } else { "not yet; peers know it by gossip" };
    let mut lines = vec![
        ("name", endpoint.name.to_string()),
        ("state", state_word(endpoint).to_owned()),
        ("address", or_dash(endpoint.address)),
        ("identity", or_dash(endpoint.identity)),
        ("labels", joined(endpoint.labels.iter().map(|(key, value)| format!("{key}={value}")))),
        ("device", or_dash(endpoint.device.as_ref())),
        ("mac", or_dash(endpoint.mac.as_ref())),
        ("attached as", or_dash(attachment)),
        ("in etcd", recorded.to_owned()),
    ];
    lines.extend(endpoint.error.clone().map(|error| ("last error", error)));
    lines.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect()
}

pub fn endpoint_added(added: &EndpointAdded, _: Style) -> String {
    let existed = if added.existed { " (existed already)" } else { "" };
    format!(
        "endpoint {}: address {}, identity {}, device wrn{}{existed}\n",
        added.name, added.address, added.identity, added.id
    )
}

pub fn identities(listing: &Listing<Identity>, _: Style) -> String {
    let rows = listing
        .items
        .iter()
        .map(|entry| {
            let state = match entry.state {
                IdentityState::Reserved => "reserved",
                IdentityState::Live => "live",
                IdentityState::Quarantined => "quarantined",
            };
            let labels = match entry.id.reserved_name() {
                Some(name) => format!("({name})"),
                None => joined(entry.labels.iter().map(|(key, value)| format!("{key}={value}"))),
            };
            [entry.id.to_string(), state.to_owned(), labels, joined(&entry.nodes)]
        })
        .collect();
    table(&["IDENTITY", "STATE", "LABELS", "NODES"], rows, listing.total, "identities")
}

const fn source_word(source: IpSource) -> &'static str {
    match source {
        IpSource::Host => "this node",
        IpSource::RemoteNode => "node record",
        IpSource::LocalEndpoint => "local endpoint",
        IpSource::Record => "endpoint record",
        IpSource::Gossip => "gossip",
        IpSource::Cidr => "CIDR claim",
    }
}

pub fn ips(listing: &Listing<IpEntry>, _: Style) -> String {
    let rows = listing
        .items
        .iter()
        .map(|entry| {
            [
                entry.prefix.to_string(),
                identity(entry.identity),
                or_dash(entry.node.as_ref()),
                or_dash(entry.endpoint.as_ref()),
                source_word(entry.source).to_owned(),
                joined(entry.labels.iter().map(|(key, value)| format!("{key}={value}"))),
            ]
        })
        .collect();
    table(&["ADDRESS", "IDENTITY", "NODE", "ENDPOINT", "FROM", "LABELS"], rows, listing.total, "addresses")
}
