//! Values drawn from bytes: from a small world in which they collide, including the ends of each range.

use std::{net::IpAddr, sync::Arc};

use datapath_plan::{
    Base, BaseUnderlay, EndpointId, EndpointValue, HostRouting, IpcacheValue, Mac, Mode, NodeIndex,
    NodeValue, Observed, RouteValue, Tables,
};
use identity::{Identity, Labels, NodeName, Selector, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Key, KeyValue, KvEvent, LeaseId, Revision, Schema,
    record::{
        AliveRecord, CidrRecord, ClaimState, EndpointRecord, FleetRecord, IdentityIdRecord,
        IdentityLabelsRecord, IdentityRefRecord, NodeRecord, Record,
    },
    service::{
        FixedBackend, HealthCheck, NodePort, NodePortGiven, Probe, ServiceClaim, ServiceClaimRecord,
        ServiceProtocol, ServiceRecord, ServiceSpec, Topology, TrafficPolicy, VirtualIp,
    },
};
use node_core::{Expected, Underlay};
use node_facts::{CidrFact, NodeFacts, NodeHealth, PendingEndpoint, PendingOp};

use crate::{draw::Draw, target::sample};

pub fn node(draw: &mut Draw) -> NodeName {
    sample::node(draw.choose(&["n1", "n2", "n3", "a-very-long-name"]))
}

pub fn labels(draw: &mut Draw) -> Labels {
    sample::labels(draw.choose(&[
        "app=web",
        "app=db",
        "app=web,tier=front",
        "",
        "x=",
        "app.example.org/name=a",
    ]))
}

pub fn identity(draw: &mut Draw) -> Identity {
    let number = match draw.below(12) {
        0 => 0,
        1 => 1,
        2 => 5,
        3 => 6,
        4 => 255,
        5 => (1 << 24) - 1,
        6 => 1 << 24,
        7 => (1 << 25) - 1,
        number => 256 + number as u32 % 4,
    };
    Identity::new(number).expect("below 2^25")
}

pub fn address(draw: &mut Draw) -> IpAddr {
    let texts = [
        "0.0.0.0",
        "255.255.255.255",
        "127.0.0.1",
        "224.0.0.1",
        "192.0.2.1",
        "192.0.2.2",
        "::",
        "::1",
        "::ffff:10.0.0.5",
        "fd00::5",
    ];
    match draw.below(24) {
        index if index < texts.len() => texts[index].parse().expect("an address"),
        index => IpAddr::from([10, 0, u8::from(index == 23), draw.byte() % 64]),
    }
}

pub fn network(draw: &mut Draw) -> IpNetwork {
    let texts = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.0.5/24",
        "10.0.0.5/32",
        "::/0",
        "fd00::/112",
        "fd00::/128",
        "255.255.255.255/32",
    ];
    match draw.below(20) {
        index if index < texts.len() => sample::network(texts[index]),
        _ => IpNetwork::new(IpAddr::from([10, 0, 0, draw.byte() & 0x70]), 28).expect("a network"),
    }
}

pub fn revision(draw: &mut Draw) -> Revision {
    Revision(draw.i64())
}

fn state(draw: &mut Draw) -> ClaimState {
    if draw.one_in(4) { ClaimState::Quarantined } else { ClaimState::Live }
}

/// A key of the fleet and a value for it: mostly a valid record, sometimes one for another key, or none at all.
pub fn record(draw: &mut Draw, schema: &Schema) -> (Key, Arc<[u8]>) {
    let kind = draw.below(12);
    let value_kind = if draw.one_in(8) { draw.below(12) } else { kind };
    let owner = node(draw);
    let key = match kind {
        0 => schema.fleet(),
        1 => schema.node(&owner),
        2 => schema.alive(&owner),
        3 => schema.cidr(network(draw)),
        4 => schema.identity_labels(&labels(draw).digest()),
        5 => schema.identity_id(identity(draw)),
        6 => schema.identity_ref(identity(draw), &owner),
        7 | 8 => schema.endpoint(&owner, address(draw)),
        9 => schema.service(&service_name(draw)),
        10 => schema.service_claim(&service_claim(draw)),
        _ => Key::from_raw(format!("{}{}", schema.root(), String::from_utf8_lossy(draw.bytes()))),
    };
    (key, value(draw, value_kind, owner))
}

fn value(draw: &mut Draw, kind: usize, owner: NodeName) -> Arc<[u8]> {
    match kind {
        0 => FleetRecord {
            fleet_id: (*draw.choose(&["f00", "f01"])).to_owned(),
            pools: vec![network(draw)],
            block_prefix_v4: draw.choose(&[&28, &24, &30]).to_owned(),
            ..sample::fleet_record()
        }
        .encode(),
        1 => NodeRecord {
            underlay: vec![address(draw), address(draw)],
            cidrs: vec![network(draw)],
            gateway: draw.bool().then(|| address(draw)),
            machine_id: (*draw.choose(&["machine-1", "machine-2"])).to_owned(),
            incarnation: draw.i64() as u64,
            ..sample::node_record()
        }
        .encode(),
        2 => AliveRecord { incarnation: draw.i64() as u64, ..sample::alive_record() }.encode(),
        3 => CidrRecord { node: owner, state: state(draw), ..sample::cidr_record() }.encode(),
        4 => IdentityLabelsRecord {
            id: identity(draw),
            labels: labels(draw),
            ..sample::identity_labels_record()
        }
        .encode(),
        5 => IdentityIdRecord { labels: labels(draw), state: state(draw), ..sample::identity_id_record() }
            .encode(),
        6 => IdentityRefRecord { incarnation: draw.i64() as u64, ..sample::identity_ref_record() }.encode(),
        7 | 8 => {
            let labels = labels(draw);
            let (labels_digest, identity) = (labels.digest(), identity(draw));
            EndpointRecord { labels_digest, labels, identity, ..sample::endpoint_record() }.encode()
        }
        9 => {
            let (spec, virtual_ip) = (service_spec(draw), address(draw));
            let wanting = spec.ports.iter().filter(|port| port.node_port.is_some());
            let node_ports = wanting.map(|port| NodePortGiven {
                protocol: port.protocol,
                port: port.port,
                node_port: 30_000 + port.port,
            });
            let node_ports = node_ports.collect();
            ServiceRecord { spec, virtual_ip, node_ports, ..sample::service_record() }.encode()
        }
        10 => ServiceClaimRecord { service: service_name(draw), ..sample::service_claim_record() }.encode(),
        _ => draw.bytes().into(),
    }
}

pub fn service_name(draw: &mut Draw) -> ServiceName {
    draw.choose(&["web", "db"]).parse().expect("a name")
}

pub fn expected(draw: &mut Draw) -> Expected {
    if draw.one_in(3) { Expected::Revision(revision(draw)) } else { Expected::Any }
}

fn service_claim(draw: &mut Draw) -> ServiceClaim {
    let (address, port) = (address(draw), 30_000 + u16::from(draw.byte()));
    match draw.below(3) {
        0 => ServiceClaim::VirtualIp(address),
        1 => ServiceClaim::of_nodes(ServiceProtocol::Tcp, port),
        _ => ServiceClaim::Frontend { address, protocol: ServiceProtocol::Udp, port },
    }
}

fn http() -> Probe {
    Probe::Http { path: "/healthz".to_owned(), host: None }
}

/// Specs of all kinds, some of them invalid.
pub fn service_spec(draw: &mut Draw) -> ServiceSpec {
    let mut spec = sample::service_spec();
    let port = u16::from(draw.byte());
    spec.ports.truncate(draw.below(3));
    spec.ports.iter_mut().for_each(|one| one.port = port);
    spec.selector = draw.bool().then(|| Selector { match_labels: labels(draw), ..Selector::default() });
    if spec.selector.is_none() {
        spec.backends = vec![FixedBackend { address: address(draw), port: None, weight: port }];
    }
    spec.health_check = (port % 2 == 1).then(|| {
        let check = HealthCheck::new(if port % 5 == 1 { http() } else { Probe::Tcp });
        Box::new(HealthCheck { port: (port % 3 == 1).then_some(port), ..check })
    });
    if draw.one_in(3) {
        spec.virtual_ip = VirtualIp::Address(address(draw));
    }
    spec.external_ips = draw.bool().then(|| address(draw)).into_iter().collect();
    spec.traffic_policy = *draw.choose(&[&TrafficPolicy::Fleet, &TrafficPolicy::Local]);
    spec.topology = *draw.choose(&[&Topology::Any, &Topology::Zone, &Topology::Node]);
    for one in &mut spec.ports {
        one.node_port = *draw.choose(&[&None, &Some(NodePort::Auto), &Some(NodePort::Number(30_080))]);
        one.host_port = draw.bool().then_some(port);
    }
    spec
}

pub fn key_value(draw: &mut Draw, schema: &Schema) -> KeyValue {
    let (key, value) = record(draw, schema);
    let (create_revision, mod_revision) = (revision(draw), revision(draw));
    let lease = (draw.byte() == 1).then_some(LeaseId(1));
    KeyValue { key, value, create_revision, mod_revision, lease }
}

pub fn kv_event(draw: &mut Draw, schema: &Schema) -> KvEvent {
    let kv = key_value(draw, schema);
    if draw.one_in(3) {
        KvEvent::Delete { key: kv.key, mod_revision: kv.mod_revision }
    } else {
        KvEvent::Put(kv)
    }
}

pub fn underlay(draw: &mut Draw) -> Underlay {
    let addresses = vec![address(draw), address(draw)];
    Underlay {
        addresses,
        network: network(draw),
        ifindex: draw.byte().into(),
        mtu_bytes: u32::from(draw.byte()) * 40,
    }
}

/// What gossip may deliver: everything that its codec accepts.
pub fn facts(draw: &mut Draw) -> NodeFacts {
    let cidrs: Vec<CidrFact> = (0..draw.below(4))
        .map(|_| {
            let drawn = network(draw);
            let cidr = IpNetwork::new(drawn.network(), drawn.prefix()).expect("the same length");
            CidrFact { cidr, life: draw.u64() % 3, epoch: draw.i64() }
        })
        .collect();
    let pending = (0..draw.below(5))
        .map(|_| {
            let labels = labels(draw);
            PendingEndpoint {
                ip: address(draw),
                identity: identity(draw),
                labels_digest: labels.digest(),
                labels,
                name: sample::endpoint_name(draw.choose(&["e0", "e1", "far"])),
                terminating: false,
                op: if draw.bool() { PendingOp::Added } else { PendingOp::Removed },
                sequence: draw.i64() as u64,
                recorded: draw.bool().then(|| draw.i64()),
            }
        })
        .collect();
    let facts = NodeFacts {
        fleet_id: (*draw.choose(&["f00", "", "f01"])).to_owned(),
        node: node(draw),
        incarnation: draw.i64() as u64,
        underlay: (0..draw.below(3)).map(|_| address(draw)).collect(),
        moves: draw.i64() as u64,
        gateway: draw.bool().then(|| address(draw)),
        cidrs,
        applied_generation: draw.u64(),
        recorded_life: draw.u64(),
        cut_off: draw.below(4) == 0,
        recorded_revision: draw.u64() as i64,
        health: NodeHealth::Ok,
        pending,
        unwell: sample::facts().unwell,
    };
    let valid = |entry: &PendingEndpoint| entry.validate(&facts).is_ok();
    let pending = facts.pending.iter().filter(|entry| valid(entry)).cloned().collect();
    NodeFacts { pending, ..facts }
}

/// What a kernel may hold: entries of ours in any combination, possibly of another agent.
pub fn observed(draw: &mut Draw) -> Observed {
    let mut tables = Tables::default();
    if draw.bool() {
        let underlay = BaseUnderlay { ifindex: 2, address: address(draw), mtu_bytes: 1500 };
        tables.base = Some(Base {
            gateway: address(draw),
            tunnel_port: 8472,
            mtu_bytes: u32::from(draw.byte()),
            mode: if draw.bool() { Mode::Tunnel } else { Mode::Native },
            host_routing: HostRouting::Bpf,
            underlay,
            masquerade: None,
        });
    }
    for _ in 0..draw.below(4) {
        let index = NodeIndex(*draw.choose(&[&0, &1, &2, &3, &8_191, &u32::MAX]));
        tables.nodes.insert(index, NodeValue { underlay: address(draw) });
    }
    for _ in 0..draw.below(6) {
        let node = NodeIndex(u32::from(draw.byte() % 5));
        tables.ipcache.insert(network(draw), IpcacheValue { identity: identity(draw), node });
    }
    for _ in 0..draw.below(4) {
        tables
            .routes
            .insert(network(draw), RouteValue { next_hop: None, source: address(draw), mtu_bytes: 1450 });
    }
    for _ in 0..draw.below(4) {
        let id = EndpointId(*draw.choose(&[&0, &1, &2, &3, &u32::MAX]));
        let value = EndpointValue {
            address: address(draw),
            identity: identity(draw),
            mac: Mac([2, 0, 0, 0, 0, draw.byte()]),
            host_mac: Mac([2, 0, 0, 0, 1, draw.byte()]),
            attachment: None,
        };
        tables.endpoints.insert(id, value);
    }
    let broken = (0..draw.below(3)).map(|_| "something".to_owned()).collect();
    let mut endpoint_devices: Vec<EndpointId> = tables.endpoints.keys().copied().collect();
    if draw.bool() {
        endpoint_devices.push(EndpointId(*draw.choose(&[&0, &4, &u32::MAX])));
    }
    Observed { tables, broken, endpoint_devices }
}
