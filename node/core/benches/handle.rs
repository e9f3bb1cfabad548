//! What one event costs a node that knows 100,000 endpoints, and what it costs to learn them.
//!
//! `cargo bench -p node-core`. No harness: one table, medians of many events.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use chaos_sim::carry_out;
use datapath_plan::FakeDatapath;
use identity::{Identity, Labels};
use kvstore_schema::{
    KeyValue, KvEvent, ListPage, Revision, Schema, StoreIdentity,
    record::{CidrRecord, ClaimState, EndpointRecord, FleetRecord, NodeRecord, Record},
};
use node_core::{
    Command, Event, KvUpdate, Node, NodeConfig, Now, SavedCidr, SavedIdentity, SavedNode, SavedRecord,
    Snapshot,
};

use node_recorder::{Recorder, Sink};

const NODES: u32 = 1_000;
const PER_NODE: u32 = 100;
const EVENTS: usize = 10_000;

fn config() -> NodeConfig {
    NodeConfig { address_reserve: 32, ..chaos_sim::config(1) }
}

fn kv(key: kvstore_schema::Key, value: Arc<[u8]>, revision: i64) -> KeyValue {
    let revision = Revision(revision);
    KeyValue { key, value, create_revision: revision, mod_revision: revision, lease: None }
}

fn endpoint(schema: &Schema, node: u32, host: u32, identity: u32, revision: i64) -> KeyValue {
    let labels: Labels = format!("app=a{identity}").parse().expect("labels");
    let record = EndpointRecord {
        name: format!("e{host}").parse().expect("a name"),
        identity: Identity::new(identity).expect("in range"),
        labels_digest: labels.digest(),
        labels,
        terminating: false,
        unknown: Default::default(),
    };
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (node << 8) + host);
    kv(schema.endpoint(&format!("m{node}").parse().expect("a name"), ip.into()), record.encode(), revision)
}

fn fleet(schema: &Schema) -> ListPage {
    let config = config();
    let record = FleetRecord {
        fleet_id: "f".to_owned(),
        pools: vec!["10.0.0.0/8".parse().expect("a pool")],
        service_pools: vec!["11.201.0.0/16".parse().expect("a pool")],
        block_prefix_v4: 24,
        block_prefix_v6: 112,
        tunnel_port: 8472,
        life: Default::default(),
        unknown: Default::default(),
    };
    let mut entries = vec![kv(schema.fleet(), record.encode(), 2)];
    for node in 0..NODES {
        let name = format!("m{node}").parse().expect("a name");
        let cidr = format!("10.{}.{}.0/24", node >> 8, node & 255).parse().expect("a block");
        let record = NodeRecord {
            underlay: vec![Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + node).into()],
            moves: 0,
            datapath_mode: Some("tunnel".to_owned()),
            cidrs: vec![cidr],
            gateway: None,
            gossip_port: 7946,
            labels: Labels::default(),
            boot_id: config.boot_id.clone(),
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
        entries.extend((2..2 + PER_NODE).map(|host| endpoint(schema, node, host, 300, 2)));
    }
    ListPage { entries, revision: Revision(2), store: StoreIdentity(1), more: false }
}

/// The same fleet as a snapshot.
fn snapshot() -> Snapshot {
    let config = config();
    let name = |node: u32| format!("m{node}").parse().expect("a name");
    let block = |node: u32| format!("10.{}.{}.0/24", node >> 8, node & 255).parse().expect("a block");
    let identity = Identity::new(300).expect("in range");
    let record = |node: u32, host: u32| SavedRecord {
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (node << 8) + host).into(),
        identity,
        name: format!("e{host}").parse().expect("a name"),
        terminating: false,
    };
    let node = |node: u32| SavedNode {
        name: name(node),
        underlay: vec![Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + node).into()],
        gateway: None,
        gossip_port: 7946,
        labels: Labels::default(),
        machine_id: format!("machine-{node}"),
        incarnation: 1,
        agent_version: "bench".to_owned(),
    };
    let cidr = |node: u32| SavedCidr {
        cidr: block(node),
        node: name(node),
        state: ClaimState::Live,
        epoch: Revision(2),
        since: None,
    };
    Snapshot {
        fleet: config.fleet,
        fleet_id: "f".to_owned(),
        node: config.node,
        machine_id: config.machine_id,
        store: StoreIdentity(1),
        revision: Revision(2),
        life: Default::default(),
        mark: None,
        heard_at: Duration::ZERO,
        nodes: (0..NODES).map(node).collect(),
        cidrs: (0..NODES).map(cidr).collect(),
        identities: vec![SavedIdentity {
            id: identity,
            labels: "app=a300".parse().expect("labels"),
            referenced: true,
        }],
        records: (0..NODES)
            .map(|node| (name(node), (2..2 + PER_NODE).map(|host| record(node, host)).collect()))
            .collect(),
        services: Vec::new(),
    }
}

/// A start with nothing but a snapshot, and what it costs to make the next one.
fn start_from_snapshot() {
    let mut node = Node::new(config());
    let mut kernel = FakeDatapath::new();
    let started = Event::Started { snapshot: Some(Box::new(snapshot())), endpoints: Vec::new() };
    let start = Instant::now();
    carry_out(&mut node, &mut kernel, started);
    let known = kernel.tables().ipcache.len();
    println!("start from a snapshot: {:?} to the last of {known} ipcache entries", start.elapsed());
    let start = Instant::now();
    let next = node.snapshot().expect("it is a member");
    println!("next snapshot made: {:?}", start.elapsed());
    assert_eq!(next.records.len() as u32, NODES);
}

/// A disk that takes everything and keeps nothing.
#[derive(Default)]
struct Nowhere {
    bytes: usize,
}

impl Sink for Nowhere {
    fn take(&mut self, frame: Vec<u8>) -> bool {
        self.bytes += frame.len();
        true
    }

    fn has_room(&self) -> bool {
        true
    }
}

fn main() {
    let schema = Schema::new(&"test".parse().expect("a name"));
    let page = fleet(&schema);
    let mut node = Node::new(config());
    let mut kernel = FakeDatapath::new();
    carry_out(&mut node, &mut kernel, Event::Started { snapshot: None, endpoints: Vec::new() });

    let start = Instant::now();
    let listing = Event::Kv(KvUpdate::Listed(page));
    let commands = node.handle(Now::default(), listing);
    let handled = start.elapsed();
    for command in commands {
        if let Command::Apply(plan) = command {
            let outcome = kernel.apply(&plan);
            carry_out(&mut node, &mut kernel, Event::Applied(outcome));
        }
    }
    let known = node.wanted().ipcache.len();
    println!(
        "listing of {} endpoints on {NODES} nodes: {handled:?}, {known} ipcache entries",
        NODES * PER_NODE
    );
    assert!(known as u32 >= NODES * PER_NODE, "not everything is known");

    let mut recorder = Recorder::new(Nowhere::default(), u64::MAX);
    let start = Instant::now();
    recorder.checkpoint(&node);
    println!("checkpoint of the log: {:?}, {} kB", start.elapsed(), recorder.sink().bytes / 1000);
    let mut recorded = Vec::with_capacity(EVENTS);
    let mut took: Vec<Duration> = (0..EVENTS)
        .map(|index| {
            let revision = index as i64 + 3;
            let (host, identity) = (2 + index as u32 % PER_NODE, 301 + index as u32 % 7);
            let changed = endpoint(&schema, index as u32 * 7 % NODES, host, identity, revision);
            let update =
                KvUpdate::Changed { events: vec![KvEvent::Put(changed)], revision: Revision(revision) };
            let event = Event::Kv(update);
            let start = Instant::now();
            recorder.before(Now::default(), &event, &node);
            let before = start.elapsed();
            let start = Instant::now();
            let commands = node.handle(Now::default(), event);
            let took = start.elapsed();
            let start = Instant::now();
            recorder.after(&commands, &node);
            recorded.push(before + start.elapsed());
            let plan = commands.into_iter().find_map(|command| match command {
                Command::Apply(plan) => Some(plan),
                _ => None,
            });
            let plan = plan.expect("a changed endpoint is a plan");
            assert_eq!(plan.ops.len(), 2, "one entry and its epoch");
            let outcome = kernel.apply(&plan);
            node.handle(Now::default(), Event::Applied(outcome));
            took
        })
        .collect();
    took.sort_unstable();
    recorded.sort_unstable();
    start_from_snapshot();
    println!("one endpoint changed: p50 {:?}, p99 {:?}", took[EVENTS / 2], took[EVENTS * 99 / 100]);
    println!("  recording it: p50 {:?}, p99 {:?}", recorded[EVENTS / 2], recorded[EVENTS * 99 / 100]);
}
