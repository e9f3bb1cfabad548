//! Sample answers of an agent for the golden tests: of a healthy node, and of one with every problem at once.

use std::collections::BTreeMap;

use identity::{EndpointName, Identity as Number, Labels, NodeName};
use node_api::{
    ApplyStatus, AttachmentKind, CidrStatus, CounterRow, Endpoint, EndpointAdded, EndpointState, EtcdMember,
    FlowEvent, FlowRow, Halted, Identity, IdentityState, IpEntry, IpSource, LastError, Listing, MapDump,
    MapSummary, Node, Protocol, State, StateRow, StateTable, Status, StoreStatus, Verdict, Warning, testing,
};
use node_doctor::{Finding, Report};
use node_observe::{EventKind, Party};
use serde_json::json;

const UNIX_MS: u64 = 1_700_000_000_123;

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("samples are well-formed")
}

fn number(number: u32) -> Number {
    Number::new(number).expect("samples are well-formed")
}

fn node_name(text: &str) -> NodeName {
    NodeName::new(text).expect("samples are well-formed")
}

fn endpoint_name(text: &str) -> EndpointName {
    EndpointName::new(text).expect("samples are well-formed")
}

pub fn troubled() -> Status {
    let mut status = testing::status();
    status.ready = false;
    status.halted = Some(Halted {
        reason: "fleet.pools here is 10.9.0.0/16, the fleet's is 10.200.0.0/16: correct warren.toml"
            .to_owned(),
    });
    status.underlay.problem = Some("underlay address 172.30.1.1 is on no interface of this node".to_owned());
    status.warnings = vec![Warning { text: "pod CIDR claims wait: etcd does not answer".to_owned() }];
    status.store.connected = false;
    status.store.error = Some("no member answered within 1.5 s".to_owned());
    status.store.silent_ms = Some(65_000);
    status.store.lease_held = false;
    status.store.lease_error = Some("no member answered within 1.5 s".to_owned());
    status.store.members[2] = EtcdMember {
        healthy: false,
        version: None,
        leader: None,
        db_bytes: None,
        error: Some("connection refused".to_owned()),
        ..status.store.members[2].clone()
    };
    status.store.rejected = vec!["/warren/v1/demo/nodes/n9: unknown version 7".to_owned()];
    status.gossip.peers[1].alive = false;
    status.gossip.refused_datagrams = 12;
    status.cidrs[0] = CidrStatus { cidr: parse("10.200.7.0/24"), epoch: 12, used: 240, cooling: 14, free: 0 };
    status.maps[0].entries = 16_000;
    status.apply = ApplyStatus {
        wanted_generation: 9,
        applied_generation: 7,
        pending: 2,
        failing: vec!["attach endpoint 3: no such device".to_owned()],
        full: vec!["WARREN_EP_V4".to_owned()],
    };
    status.audit.differences = vec!["ipcache 10.200.8.2/32: missing in the kernel".to_owned()];
    status.audit.repaired_total = 4;
    status.last_error =
        Some(LastError { unix_ms: UNIX_MS, text: "keep the lease alive: deadline exceeded".to_owned() });
    status
}

/// A node that has just begun: nothing is known yet.
pub fn starting() -> Status {
    let mut status = testing::status();
    status.uptime_ms = 340;
    status.ready = false;
    status.fleet_id = None;
    status.store = StoreStatus {
        connected: false,
        error: Some("no member answered within 1.5 s".to_owned()),
        revision: None,
        silent_ms: None,
        lease_held: false,
        members: Vec::new(),
        ..status.store
    };
    status.gossip.peers = Vec::new();
    status.cidrs = Vec::new();
    status.maps = Vec::new();
    status.programs = Vec::new();
    (status.endpoints, status.nodes, status.identities) = (0, 1, 0);
    status.audit.unix_ms = None;
    status
}

/// A machine whose agent does not run.
pub fn report() -> Report {
    let start = "warrend check, then start it: warrend --config /etc/warren/warren.toml";
    Report::new(vec![
        Finding::ok("kernel", "6.12.0-1-amd64: programs attach by TCX"),
        Finding::fail(
            "rp-filter",
            "net.ipv4.conf.all.rp_filter is 1: it overrules the 0 of our devices",
            "sysctl -w net.ipv4.conf.all.rp_filter=0",
        ),
        Finding::warn(
            "systemd-networkd",
            "runs, and may remove our routes",
            "systemctl restart systemd-networkd",
        ),
        Finding::unknown("agent", "the agent does not answer on /run/warren/warren.sock", start),
        Finding::unknown("node", "only the agent knows", start),
        Finding::unknown("lease", "only the agent knows", start),
    ])
}

pub fn nodes() -> Listing<Node> {
    let node = |number: u8| Node {
        name: node_name(&format!("n{number}")),
        this_node: number == 1,
        index: Some(number.into()),
        underlay: vec![parse(&format!("172.30.1.{number}"))],
        gateway: Some(parse(&format!("10.200.{number}.1"))),
        cidrs: vec![parse(&format!("10.200.{number}.0/24"))],
        labels: parse("zone=b"),
        agent_version: "0.1.0".to_owned(),
        alive_in_store: true,
        alive_in_gossip: Some(true),
        gossip_only: false,
        endpoints: 2,
    };
    let silent = Node { alive_in_store: false, alive_in_gossip: Some(false), ..node(3) };
    let by_gossip = Node {
        alive_in_store: false,
        gossip_only: true,
        agent_version: String::new(),
        labels: Labels::default(),
        cidrs: Vec::new(),
        endpoints: 0,
        ..node(4)
    };
    let half = Node { alive_in_gossip: Some(false), ..node(5) };
    Listing::new(vec![node(1), node(2), silent, by_gossip, half], None)
}

pub fn endpoint() -> Endpoint {
    Endpoint {
        name: endpoint_name("web-1"),
        id: Some(3),
        device: Some("wrn3".to_owned()),
        address: Some(parse("10.200.1.2")),
        identity: Some(number(300)),
        labels: parse("app=web,tier=front"),
        state: EndpointState::Ready,
        mac: Some("02:00:00:00:00:01".to_owned()),
        attachment: Some(AttachmentKind::Netns {
            path: "/run/netns/web".into(),
            interface: "eth0".to_owned(),
        }),
        recorded: true,
        terminating: false,
        error: None,
    }
}

pub fn failing_endpoint() -> Endpoint {
    Endpoint {
        name: endpoint_name("db-1"),
        state: EndpointState::Attaching,
        recorded: false,
        error: Some("network namespace /run/netns/db is gone".to_owned()),
        mac: None,
        ..endpoint()
    }
}

pub fn waiting_endpoint() -> Endpoint {
    Endpoint {
        name: endpoint_name("new-1"),
        id: None,
        device: None,
        address: None,
        identity: None,
        labels: Labels::default(),
        state: EndpointState::WaitingForIdentity,
        mac: None,
        attachment: None,
        recorded: false,
        terminating: false,
        error: None,
    }
}

pub fn endpoint_added(existed: bool) -> EndpointAdded {
    EndpointAdded {
        name: endpoint_name("web-1"),
        id: 3,
        address: parse("10.200.1.2"),
        identity: number(300),
        existed,
    }
}

pub fn identities() -> Listing<Identity> {
    let identity = |id: u32, labels: &str, state, nodes: &[&str]| Identity {
        id: number(id),
        name: number(id).reserved_name().map(str::to_owned),
        labels: parse(labels),
        state,
        nodes: nodes.iter().map(|name| node_name(name)).collect(),
        local_endpoints: 0,
    };
    Listing::new(
        vec![
            identity(1, "", IdentityState::Reserved, &[]),
            identity(300, "app=web,tier=front", IdentityState::Live, &["n1", "n2"]),
            identity(301, "app=old", IdentityState::Quarantined, &[]),
        ],
        None,
    )
}

pub fn ips() -> Listing<IpEntry> {
    let entry = |prefix: &str, identity: u32, node: &str, labels: &str, source| IpEntry {
        prefix: parse(prefix),
        identity: number(identity),
        labels: parse(labels),
        node: Some(node_name(node)),
        endpoint: (!labels.is_empty()).then(|| parse("web-1")),
        source,
    };
    Listing::new(
        vec![
            entry("10.200.1.1/32", 1, "n1", "", IpSource::Host),
            entry("10.200.1.2/32", 300, "n1", "app=web", IpSource::LocalEndpoint),
            entry("10.200.2.0/24", 0, "n2", "", IpSource::Cidr),
            entry("10.200.2.1/32", 6, "n2", "", IpSource::RemoteNode),
            entry("10.200.2.2/32", 300, "n2", "app=web", IpSource::Record),
            entry("10.200.2.3/32", 301, "n2", "app=db", IpSource::Gossip),
        ],
        Some(5),
    )
}

pub fn maps() -> Listing<MapSummary> {
    let map = |name: &str, kind: &str, entries, max_entries| MapSummary {
        name: name.to_owned(),
        id: 77,
        kind: kind.to_owned(),
        key_bytes: 4,
        value_bytes: 8,
        entries,
        max_entries,
    };
    Listing::new(
        vec![map("WARREN_IPC_V4", "hash", Some(5_243), 524_288), map("WARREN_EVENTS", "ring", None, 1 << 20)],
        None,
    )
}

pub fn map_dump() -> MapDump {
    let row = |address: &str, identity: u32| {
        let fields = json!({ "address": address, "identity": identity, "node": 2 });
        serde_json::from_value(fields).expect("samples are well-formed")
    };
    MapDump {
        name: "WARREN_IPC_V4".to_owned(),
        rows: vec![row("10.200.2.1", 6), row("10.200.2.2", 300)],
        total: 3,
    }
}

pub fn state() -> State {
    let table = |name: &str, rows: &[(&str, &str)]| StateTable {
        name: name.to_owned(),
        rows: rows
            .iter()
            .map(|(key, text)| StateRow {
                key: (*key).to_owned(),
                text: (*text).to_owned(),
                fields: BTreeMap::new(),
            })
            .collect(),
    };
    let base = "gateway 10.200.1.1 port 8472 mtu 1450 tunnel bpf underlay 172.30.1.1 at 2 mtu 1500 \
                masquerade 61000-65535 not 10.200.0.0/16";
    State {
        tables: vec![
            table("base", &[("", base)]),
            table("nodes", &[("2", "underlay 172.30.1.2")]),
            table("ipcache", &[("10.200.2.2/32", "identity 300 node 2")]),
            table("routes", &[("10.200.2.0/24", "source 10.200.1.1 mtu 1450")]),
            table("endpoints", &[]),
            table("frontends", &[("tcp 10.201.0.1 80", "service 1 virtual")]),
        ],
    }
}

fn web(port: u16) -> Party {
    Party {
        address: Some(parse("10.200.1.2")),
        port,
        identity: number(300),
        labels: parse("app=web"),
        endpoint: Some(endpoint_name("web-1")),
        node: Some(node_name("n1")),
    }
}

/// A party of which only the kernel's part is known.
fn stranger(address: Option<&str>, port: u16, identity: u32, labels: &str) -> Party {
    Party {
        address: address.map(parse),
        port,
        identity: number(identity),
        labels: parse(labels),
        endpoint: None,
        node: None,
    }
}

pub fn flows() -> Listing<FlowRow> {
    let flow = FlowRow {
        source: web(40_000),
        destination: stranger(Some("10.200.2.2"), 443, 301, "app=db"),
        protocol: Protocol(6),
        action: "tunnel".to_owned(),
        reply_action: Some("local".to_owned()),
        packets: 12,
        bytes: 3_456,
        reply_packets: 10,
        reply_bytes: 5 << 20,
        tcp_flags: "SYN|ACK".to_owned(),
        age_ms: 184_000,
        idle_ms: 40,
    };
    let one_way = FlowRow {
        source: web(9),
        destination: stranger(Some("10.200.2.1"), 0, 6, ""),
        protocol: Protocol(1),
        reply_action: None,
        reply_packets: 0,
        reply_bytes: 0,
        tcp_flags: String::new(),
        ..flow.clone()
    };
    Listing::new(vec![flow, one_way], None)
}

pub fn drops() -> Listing<CounterRow> {
    let row = |reason: &str, direction: &str, packets: u64, bytes: u64, meaning: Option<&str>| CounterRow {
        reason: reason.to_owned(),
        direction: direction.to_owned(),
        packets,
        bytes,
        meaning: meaning.map(str::to_owned),
        remedy: None,
    };
    Listing::new(
        vec![
            row("forwarded", "egress", 120, 98_304, None),
            row(
                "source-spoofed",
                "egress",
                3,
                294,
                Some("a workload sent from an address that is not its own"),
            ),
        ],
        None,
    )
}

pub fn events() -> Vec<FlowEvent> {
    let new = FlowEvent {
        unix_us: UNIX_MS * 1_000,
        kind: EventKind::FlowNew,
        verdict: Verdict::Forwarded,
        direction: "egress".to_owned(),
        source: web(40_000),
        destination: stranger(Some("10.200.2.2"), 443, 301, "app=db"),
        protocol: Protocol(6),
        tcp_flags: "SYN".to_owned(),
        action: Some("tunnel".to_owned()),
        drop_reason: None,
        tunnel_source: None,
        ifindex: 7,
        packets: 0,
        bytes: 0,
    };
    let end = FlowEvent { kind: EventKind::FlowEnd, action: None, packets: 22, bytes: 9_000, ..new.clone() };
    let spoofed = FlowEvent {
        kind: EventKind::Drop,
        verdict: Verdict::Dropped,
        source: stranger(Some("10.200.1.99"), 7, 0, ""),
        destination: stranger(Some("10.200.2.1"), 0, 6, ""),
        protocol: Protocol(1),
        tcp_flags: String::new(),
        action: None,
        drop_reason: Some("source-spoofed".to_owned()),
        bytes: 98,
        ..new.clone()
    };
    let forged = FlowEvent {
        direction: "ingress".to_owned(),
        source: stranger(Some("2001:db8::1"), 9, 310, ""),
        destination: stranger(Some("10.200.1.2"), 80, 300, "app=web"),
        protocol: Protocol(17),
        drop_reason: Some("unknown-node".to_owned()),
        tunnel_source: Some(parse("172.30.3.1")),
        ..spoofed.clone()
    };
    let no_address = FlowEvent {
        source: stranger(None, 0, 0, ""),
        destination: stranger(None, 0, 0, ""),
        protocol: Protocol(0),
        drop_reason: Some("unsupported-protocol".to_owned()),
        ..spoofed.clone()
    };
    vec![new, end, spoofed, forged, no_address]
}

pub fn services() -> Listing<node_api::Service> {
    let json = r#"{"items":[
        {"name":"dns","virtual_ip":"10.201.0.9","revision":8,
            "spec":{"ports":[{"name":"udp","protocol":"udp","port":53},{"name":"tcp","port":53}],"backends":[{"address":"192.0.2.9"}]},
            "ports":[{"name":"udp","protocol":"udp","port":53,"id":2,"backends":[
                {"address":"192.0.2.9","port":53,"weight":7,"state":"active","node":null,"endpoint":null}]},
                {"name":"tcp","protocol":"tcp","port":53,"id":3,"backends":[]}]},
        {"name":"web","virtual_ip":"10.201.0.5","revision":7,
            "spec":{"ports":[{"port":80,"targetPort":8080,"nodePort":"auto","hostPort":8080}],"selector":{"matchLabels":{"app":"web"}},
                "externalIps":["198.51.100.7"],"trafficPolicy":"local","mode":"dsr","sourceRanges":["203.0.113.0/24","192.0.2.1/32"]},
            "ports":[{"name":null,"protocol":"tcp","port":80,"node_port":30517,"id":1,"backends":[
                {"address":"10.200.1.5","port":8080,"weight":1,"state":"active","node":"n1","endpoint":"web-1"},
                {"address":"10.200.2.7","port":8080,"weight":1,"state":"unhealthy","reason":"status 503","node":"n2","endpoint":"web-2"},
                {"address":"10.200.2.8","port":8080,"weight":1,"state":"terminating","reason":"drained","node":"n2","endpoint":"web-3"}]}]},
        {"name":"worn","virtual_ip":"10.201.0.7","revision":9,"spec":{"ports":[{"port":80}],"selector":{}},
            "ports":[{"name":null,"protocol":"tcp","port":80,"id":4,"all_unhealthy":true,"backends":[
                {"address":"10.200.1.5","port":80,"weight":1,"state":"unhealthy","reason":"connection refused","node":"n1","endpoint":"web-1"}]}]}],"total":3}"#;
    serde_json::from_str(json).expect("services")
}
