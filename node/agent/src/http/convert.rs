//! Conversions from the types of node, kernel and gossip to those of the API.

use std::time::Duration;

use datapath_linux::{CounterKind, Counters, MapInfo, MapRow};
use datapath_plan::{Attachment, Row, RowVisitor, Tables};
use kvstore_store::MemberStatus;
use node_api as wire;
use node_core as core;
use serde::Serialize;

/// A time since 1970 or a duration, in milliseconds.
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub fn node(view: core::NodeView) -> wire::Node {
    wire::Node {
        name: view.name,
        this_node: view.this,
        index: view.index.map(|index| index.0),
        underlay: view.underlay,
        gateway: view.gateway,
        cidrs: view.cidrs,
        labels: view.labels,
        agent_version: view.agent_version,
        alive_in_store: view.alive,
        alive_in_gossip: view.gossip_alive,
        gossip_only: view.gossip_only,
        endpoints: view.endpoints,
    }
}

pub fn identity(view: core::IdentityView) -> wire::Identity {
    wire::Identity {
        id: view.id,
        state: match (&view.reserved, view.quarantined) {
            (Some(_), _) => wire::IdentityState::Reserved,
            (None, true) => wire::IdentityState::Quarantined,
            (None, false) => wire::IdentityState::Live,
        },
        name: view.reserved,
        labels: view.labels,
        nodes: view.nodes,
        local_endpoints: view.local_endpoints,
    }
}

pub fn ip(view: core::IpcacheView) -> wire::IpEntry {
    wire::IpEntry {
        prefix: view.prefix,
        identity: view.identity,
        labels: view.labels,
        node: view.node,
        endpoint: view.endpoint,
        source: match view.source {
            core::IpcacheSource::Host => wire::IpSource::Host,
            core::IpcacheSource::RemoteNode => wire::IpSource::RemoteNode,
            core::IpcacheSource::LocalEndpoint => wire::IpSource::LocalEndpoint,
            core::IpcacheSource::Record => wire::IpSource::Record,
            core::IpcacheSource::Gossip => wire::IpSource::Gossip,
            core::IpcacheSource::Cidr => wire::IpSource::Cidr,
        },
    }
}

pub fn endpoint(view: core::EndpointView) -> wire::Endpoint {
    wire::Endpoint {
        name: view.name,
        id: view.id.map(|id| id.0),
        device: view.id.map(|id| format!("{}{id}", datapath_linux::ENDPOINT_PREFIX)),
        address: view.address,
        identity: view.identity,
        labels: view.labels,
        state: match view.state {
            core::EndpointState::WaitingForIdentity => wire::EndpointState::WaitingForIdentity,
            core::EndpointState::WaitingForAddress => wire::EndpointState::WaitingForAddress,
            core::EndpointState::Attaching => wire::EndpointState::Attaching,
            core::EndpointState::Ready => wire::EndpointState::Ready,
            core::EndpointState::Detaching => wire::EndpointState::Detaching,
        },
        mac: view.mac,
        attachment: view.attachment.map(|attachment| match attachment {
            Attachment::Netns { path, interface } => wire::AttachmentKind::Netns { path, interface },
        }),
        recorded: view.recorded,
        terminating: view.terminating,
        error: view.error,
    }
}

pub fn endpoint_spec(request: wire::EndpointAdd) -> core::EndpointSpec {
    core::EndpointSpec {
        name: request.name,
        labels: request.labels,
        attachment: match request.attachment {
            wire::AttachmentKind::Netns { path, interface } => Attachment::Netns { path, interface },
        },
        address: request.address,
    }
}

pub fn service(view: core::ServiceView) -> wire::Service {
    wire::Service {
        name: view.name,
        virtual_ip: view.record.virtual_ip,
        revision: view.revision.0,
        spec: view.record.spec.clone(),
        ports: view.ports.into_iter().map(service_port).collect(),
    }
}

fn service_port(view: core::ServicePortView) -> wire::ServicePortStatus {
    let backend = |view: core::BackendView| wire::ServiceBackend {
        address: view.address,
        port: view.port,
        weight: view.weight,
        state: match view.state {
            datapath_plan::BackendState::Active => wire::BackendState::Active,
            datapath_plan::BackendState::Terminating => wire::BackendState::Terminating,
            datapath_plan::BackendState::Unhealthy => wire::BackendState::Unhealthy,
        },
        reason: view.reason,
        node: view.node,
        endpoint: view.endpoint,
    };
    wire::ServicePortStatus {
        name: view.name,
        protocol: view.protocol,
        port: view.port,
        node_port: view.node_port,
        id: view.id.map(|id| id.0),
        all_unhealthy: view.all_unhealthy,
        backends: view.backends.into_iter().map(backend).collect(),
    }
}

pub fn service_outcome(outcome: core::ServiceOutcome) -> wire::Outcome {
    match outcome {
        core::ServiceOutcome::Created => wire::Outcome::Created,
        core::ServiceOutcome::Changed => wire::Outcome::Changed,
        core::ServiceOutcome::Unchanged => wire::Outcome::Unchanged,
    }
}

/// The JSON of a [`wire::State`], without a copy of the tables: a large fleet's ipcache has half a million rows.
pub fn state(tables: &Tables) -> Vec<u8> {
    let mut json = StateJson { bytes: br#"{"tables":["#.to_vec(), is_first_table: true, is_first_row: true };
    tables.visit(&mut json);
    json.bytes.extend_from_slice(if json.is_first_table { b"]}" } else { b"]}]}" });
    json.bytes
}

struct StateJson {
    bytes: Vec<u8>,
    is_first_table: bool,
    is_first_row: bool,
}

impl StateJson {
    fn put(&mut self, value: &impl Serialize) {
        serde_json::to_writer(&mut self.bytes, value)
            .expect("rows are plain values, and memory takes any write");
    }
}

impl RowVisitor for StateJson {
    fn table(&mut self, name: &'static str) {
        if !std::mem::take(&mut self.is_first_table) {
            self.bytes.extend_from_slice(b"]},");
        }
        self.bytes.extend_from_slice(br#"{"name":"#);
        self.put(&name);
        self.bytes.extend_from_slice(br#","rows":["#);
        self.is_first_row = true;
    }

    fn row<R: Row>(&mut self, key: R::Key, row: &R) {
        #[derive(Serialize)]
        struct StateRow<'a, R> {
            key: String,
            text: String,
            fields: &'a R,
        }
        if !std::mem::take(&mut self.is_first_row) {
            self.bytes.push(b',');
        }
        self.put(&StateRow { key: key.to_string(), text: row.to_string(), fields: row });
    }
}

pub fn hook_user(user: datapath_linux::HookUser) -> wire::HookUser {
    wire::HookUser {
        device: user.device,
        direction: user.direction.to_owned(),
        hook: user.hook.to_owned(),
        name: user.name,
        program_id: user.program_id,
        ours: user.ours,
    }
}

pub fn map(info: MapInfo) -> wire::MapSummary {
    wire::MapSummary {
        name: info.name,
        id: info.id,
        kind: info.kind,
        key_bytes: info.key_bytes,
        value_bytes: info.value_bytes,
        entries: info.entries,
        max_entries: info.max_entries,
    }
}

/// Key and value as one flat row; a key or value that is no object is named `key` or `value`.
pub fn map_row(row: MapRow) -> std::collections::BTreeMap<String, serde_json::Value> {
    let mut flat = std::collections::BTreeMap::new();
    for (name, part) in [("key", row.key), ("value", row.value)] {
        match part {
            serde_json::Value::Object(fields) => flat.extend(fields),
            plain => drop(flat.insert(name.to_owned(), plain)),
        }
    }
    flat
}

/// All counters that are not zero, and those of forwarded packets.
pub fn counters(counters: &Counters) -> Vec<wire::CounterRow> {
    let rows =
        counters.iter().filter(|((kind, _), count)| *kind == CounterKind::Forwarded || count.packets > 0);
    rows.map(|((kind, direction), count)| {
        let advice = node_observe::advice_for_key(kind.key());
        wire::CounterRow {
            reason: kind.key().to_owned(),
            direction: direction.key().to_owned(),
            packets: count.packets,
            bytes: count.bytes,
            meaning: advice.map(|advice| advice.meaning.to_owned()),
            remedy: advice.map(|advice| advice.remedy.to_owned()),
        }
    })
    .collect()
}

pub fn member(status: MemberStatus) -> wire::EtcdMember {
    let healthy = status.health.is_ok();
    let (health, error) = match status.health {
        Ok(health) => (Some(health), None),
        Err(error) => (None, Some(error)),
    };
    wire::EtcdMember {
        endpoint: status.endpoint,
        healthy,
        version: health.as_ref().map(|health| health.version.clone()),
        leader: health.as_ref().map(|health| health.leader),
        db_bytes: health.as_ref().map(|health| health.db_bytes),
        error,
    }
}

#[cfg(test)]
mod tests {
    use datapath_plan::{
        Base, BaseUnderlay, EndpointId, EndpointValue, HostRouting, Mac, Masquerade, Mode, NodeIndex,
        NodeValue,
    };
    use identity::Identity;
    use serde_json::json;

    use super::*;

    fn address(last: u8) -> std::net::IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn state_shows_every_table_as_plans_do() {
        let empty: wire::State = serde_json::from_slice(&state(&Tables::default())).expect("a state");
        let names: Vec<&str> = empty.tables.iter().map(|table| table.name.as_str()).collect();
        let expected =
            ["base", "nodes", "ipcache", "routes", "endpoints", "backends", "services", "frontends"];
        assert_eq!(names, expected);
        assert_eq!(empty.base(), None);

        let base = Base {
            gateway: address(1),
            tunnel_port: 8472,
            mtu_bytes: 1450,
            mode: Mode::Tunnel,
            host_routing: HostRouting::Bpf,
            underlay: BaseUnderlay { ifindex: 2, address: address(2), mtu_bytes: 1500 },
            masquerade: Some(Masquerade {
                first_port: 61_000,
                last_port: 65_535,
                exclude: ["10.0.0.0/16".parse().expect("a prefix")].into(),
            }),
        };
        let mut tables = Tables { base: Some(base), ..Tables::default() };
        for index in [2, 3] {
            tables.set(NodeIndex(index), Some(NodeValue { underlay: address(index as u8) }));
        }
        let endpoint = EndpointValue {
            address: address(9),
            identity: Identity::new(300).expect("in range"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            attachment: None,
        };
        tables.set(EndpointId(1), Some(endpoint));
        let state: wire::State = serde_json::from_slice(&state(&tables)).expect("a state");
        let base = state.base().expect("a base");
        assert_eq!((base.gateway, base.mode.as_str()), (address(1), "tunnel"));
        assert_eq!(base.masquerade.expect("there is one").first_port, 61_000);
        let [two, three] = state.rows("nodes") else { panic!("{state:?}") };
        assert_eq!((two.key.as_str(), two.text.as_str()), ("2", "underlay 192.0.2.2"));
        assert_eq!(json!(three.fields), json!({ "underlay": "192.0.2.3" }));
        assert_eq!(state.rows("endpoints")[0].fields["mac"], "02:00:00:00:00:01");
    }
}
