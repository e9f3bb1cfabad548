//! What one change costs a node that knows 10,000 services and 100,000 endpoints, and what it costs to learn them.
//!
//! `cargo bench -p node-core --bench services`. No harness: medians of many events.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use chaos_sim::carry_out;
use datapath_plan::FakeDatapath;
use identity::{Identity, Labels};
use kvstore_schema::{
    Key, KeyValue, KvEvent, ListPage, Revision, Schema, StoreIdentity,
    record::{
        CidrRecord, ClaimState, EndpointRecord, FleetRecord, IdentityIdRecord, IdentityLabelsRecord,
        NodeRecord, Record,
    },
    service::{ServiceRecord, ServiceSpec},
};
use node_core::{Command, Event, KvUpdate, Node, Now};

const NODES: u32 = 1_000;
const PER_NODE: u32 = 100;
/// Each of these label sets is an identity, and selected by one service: ten backends each.
const SERVICES: u32 = 10_000;
const CHANGES: u32 = 2_000;

fn kv(key: Key, value: Arc<[u8]>, revision: i64) -> KeyValue {
    let revision = Revision(revision);
    KeyValue { key, value, create_revision: revision, mod_revision: revision, lease: None }
}

fn labels(set: u32) -> Labels {
    format!("app=a{set}").parse().expect("labels")
}

fn identity(set: u32) -> Identity {
    Identity::new(1_000 + set).expect("in range")
}

fn address(base: [u8; 4], number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::from(base)) + number)
}

fn endpoint(schema: &Schema, node: u32, host: u32, set: u32, revision: i64) -> KeyValue {
    let record = EndpointRecord {
        name: format!("e{host}").parse().expect("a name"),
        identity: identity(set),
        labels_digest: labels(set).digest(),
        labels: labels(set),
        terminating: false,
        unknown: Default::default(),
    };
    let ip = address([10, 0, 0, 0], (node << 8) + host);
    kv(schema.endpoint(&format!("m{node}").parse().expect("a name"), ip.into()), record.encode(), revision)
}

fn service(schema: &Schema, number: u32, port: u16, revision: i64) -> KeyValue {
    let spec =
        format!(r#"{{"ports":[{{"port":{port}}}],"selector":{{"matchLabels":{{"app":"a{number}"}}}}}}"#);
    let spec: ServiceSpec = serde_json::from_str(&spec).expect("a spec");
    let record = ServiceRecord {
        spec: spec.normalised(),
        virtual_ip: address([11, 201, 0, 1], number).into(),
        node_ports: Vec::new(),
        unknown: Default::default(),
    };
    kv(schema.service(&format!("s{number}").parse().expect("a name")), record.encode(), revision)
}

fn fleet(schema: &Schema) -> ListPage {
    let record = FleetRecord {
        fleet_id: "f".to_owned(),
        life: Default::default(),
        pools: vec!["10.0.0.0/8".parse().expect("a pool")],
        service_pools: vec!["11.201.0.0/16".parse().expect("a pool")],
        block_prefix_v4: 24,
        block_prefix_v6: 112,
        tunnel_port: 8472,
        unknown: Default::default(),
    };
    let mut entries = vec![kv(schema.fleet(), record.encode(), 2)];
    for set in 0..SERVICES {
        let by_labels =
            IdentityLabelsRecord { id: identity(set), labels: labels(set), unknown: Default::default() };
        let by_number =
            IdentityIdRecord { labels: labels(set), state: ClaimState::Live, unknown: Default::default() };
        entries.push(kv(schema.identity_labels(&labels(set).digest()), by_labels.encode(), 2));
        entries.push(kv(schema.identity_id(identity(set)), by_number.encode(), 2));
        entries.push(service(schema, set, 80, 2));
    }
    for node in 0..NODES {
        let name = format!("m{node}").parse().expect("a name");
        let cidr = format!("10.{}.{}.0/24", node >> 8, node & 255).parse().expect("a block");
        let record = NodeRecord {
            underlay: vec![address([172, 16, 0, 0], node).into()],
            moves: 0,
            datapath_mode: None,
            cidrs: vec![cidr],
            gateway: None,
            gossip_port: 7946,
            labels: Labels::default(),
            boot_id: "boot".to_owned(),
            machine_id: format!("machine-{node}"),
            incarnation: 1,
            agent_version: "bench".to_owned(),
            unknown: Default::default(),
        };
        entries.push(kv(schema.node(&name), record.encode(), 2));
        let claim = CidrRecord {
            node: name,
            state: ClaimState::Live,
            token: "t".to_owned(),
            since: None,
            unknown: Default::default(),
        };
        entries.push(kv(schema.cidr(cidr), claim.encode(), 2));
        let hosts = 0..PER_NODE;
        entries.extend(
            hosts.map(|host| endpoint(schema, node, 2 + host, (node * PER_NODE + host) % SERVICES, 2)),
        );
    }
    ListPage { entries, revision: Revision(2), store: StoreIdentity(1), more: false }
}

struct Bench {
    node: Node,
    kernel: FakeDatapath,
    revision: i64,
}

impl Bench {
    /// What one change costs to be decided, and how many steps it is.
    fn change(&mut self, event: KvEvent) -> (Duration, usize) {
        self.revision += 1;
        let update = KvUpdate::Changed { events: vec![event], revision: Revision(self.revision) };
        let start = Instant::now();
        let commands = self.node.handle(Now::default(), Event::Kv(update));
        let took = start.elapsed();
        let plan = commands.into_iter().find_map(|command| match command {
            Command::Apply(plan) => Some(plan),
            _ => None,
        });
        let plan = plan.expect("a change is a plan");
        let steps = plan.ops.len();
        let outcome = self.kernel.apply(&plan);
        self.node.handle(Now::default(), Event::Applied(outcome));
        (took, steps)
    }

    fn measure(&mut self, what: &str, event: impl Fn(u32, i64) -> KvEvent) {
        let mut took: Vec<(Duration, usize)> =
            (0..CHANGES).map(|index| self.change(event(index, self.revision + 1))).collect();
        took.sort_unstable();
        let (p50, p99) = (took[CHANGES as usize / 2], took[CHANGES as usize * 99 / 100]);
        println!("{what}: p50 {:?}, p99 {:?}, {} steps", p50.0, p99.0, p50.1);
    }
}

fn main() {
    let schema = Schema::new(&"test".parse().expect("a name"));
    let mut node = Node::new(chaos_sim::config(1));
    let mut kernel = FakeDatapath::new();
    carry_out(&mut node, &mut kernel, Event::Started { snapshot: None, endpoints: Vec::new() });
    let page = fleet(&schema);
    let start = Instant::now();
    carry_out(&mut node, &mut kernel, Event::Kv(KvUpdate::Listed(page)));
    let tables = kernel.tables();
    let found = (tables.services.len(), tables.frontends.len(), tables.backends.len());
    println!("listing of {SERVICES} services and {} endpoints: {:?}", NODES * PER_NODE, start.elapsed());
    assert_eq!(found, (10_000, 10_000, 100_000));

    let mut bench = Bench { node, kernel, revision: 2 };
    bench.measure("one endpoint goes to another service", |index, revision| {
        KvEvent::Put(endpoint(
            &schema,
            index * 7 % NODES,
            2 + index % PER_NODE,
            // Never the one that it has: that would be no change.
            (index * 13 + 1) % SERVICES,
            revision,
        ))
    });
    bench.measure("one service gets another port", |index, revision| {
        KvEvent::Put(service(&schema, index * 3 % SERVICES, 81 + (index / SERVICES) as u16, revision))
    });
    bench.measure("one endpoint goes", |index, revision| {
        // Each of them once.
        let (node, host) = (index % NODES, 2 + index / NODES);
        let ip = address([10, 0, 0, 0], (node << 8) + host);
        KvEvent::Delete {
            key: schema.endpoint(&format!("m{node}").parse().expect("a name"), ip.into()),
            mod_revision: Revision(revision),
        }
    });
}
