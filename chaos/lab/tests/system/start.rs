//! How long an agent takes, and how much memory, until its kernel knows a large fleet: from its snapshot without
//! etcd, from etcd, and again on the maps that it left.
//!
//! `WARREN_SCALE_KNOWN=100000` (`make test-scale`) is a fleet of 1,000 nodes; every run has a small one. Figures are
//! printed, and have generous limits: machines differ.

use std::{
    fs,
    net::Ipv4Addr,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, ensure};
use chaos_lab::{ask, namespace, wait};
use identity::{Identity, Labels, NodeName};
use ipnetwork::IpNetwork;
use kvstore_etcd::{EtcdConfig, EtcdStore};
use kvstore_schema::{
    Key, KvOp, Revision, Schema, StoreIdentity, Txn,
    record::{
        CidrRecord, ClaimState, EndpointRecord, FleetRecord, IdentityIdRecord, IdentityLabelsRecord,
        IdentityRefRecord, NodeRecord, Record,
    },
};
use kvstore_store::Store;
use nix::sys::signal::Signal;
use node_core::{SavedCidr, SavedIdentity, SavedNode, SavedRecord, Snapshot};

use crate::support::{TestLab, use_scale_programs};

/// Endpoints of each other node.
const PER_NODE: u32 = 100;
/// Known endpoints of an ordinary run.
const KNOWN: u32 = 2_000;
/// Far above what was measured for 100,000, on a machine with other load.
const LIMIT: Duration = Duration::from_secs(120);
const LIMIT_KB: u64 = 1024 * 1024;
/// Identities that the endpoints share.
const IDENTITIES: u32 = 100;

/// A fleet of other nodes, named `m0` and so on.
struct Fleet {
    nodes: u32,
    schema: Schema,
}

impl Fleet {
    fn name(node: u32) -> NodeName {
        format!("m{node}").parse().unwrap()
    }

    /// The first node has `10.0.0.0/24`; the lab's own node claims a block behind the last.
    fn block(node: u32) -> IpNetwork {
        format!("10.{}.{}.0/24", node >> 8, node & 255).parse().unwrap()
    }

    fn address(node: u32, endpoint: u32) -> Ipv4Addr {
        Ipv4Addr::from((10 << 24) + (node << 8) + 2 + endpoint)
    }

    fn underlay(node: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(192, 168, 0, 0)) + node)
    }

    fn identity(endpoint: u32) -> Identity {
        Identity::new(300 + endpoint % IDENTITIES).unwrap()
    }

    fn labels(endpoint: u32) -> Labels {
        format!("app=a{},tier=front,version=2", endpoint % IDENTITIES).parse().unwrap()
    }

    /// The address that the kernel gets last: plans are in the order of addresses.
    fn last(&self) -> Ipv4Addr {
        Self::address(self.nodes - 1, PER_NODE - 1)
    }

    fn snapshot(&self, lab: &TestLab) -> Snapshot {
        let machine_id = |node: &str| format!("{}-{node}", lab.name().as_str());
        let node = |name: NodeName, underlay: Ipv4Addr| SavedNode {
            underlay: vec![underlay.into()],
            gateway: None,
            gossip_port: 7950,
            labels: Labels::default(),
            machine_id: machine_id(name.as_str()),
            incarnation: 1,
            agent_version: "0".to_owned(),
            name,
        };
        let cidr = |name: NodeName, cidr: IpNetwork| SavedCidr {
            cidr,
            node: name,
            state: ClaimState::Live,
            epoch: Revision(2),
            since: None,
        };
        let own: NodeName = "n1".parse().unwrap();
        let mut nodes = vec![node(own.clone(), chaos_lab::spec::underlay_address("n1"))];
        nodes.extend((0..self.nodes).map(|it| node(Self::name(it), Self::underlay(it))));
        let mut cidrs = vec![cidr(own.clone(), Self::block(self.nodes))];
        cidrs.extend((0..self.nodes).map(|it| cidr(Self::name(it), Self::block(it))));
        let record = |node: u32, endpoint: u32| SavedRecord {
            address: Self::address(node, endpoint).into(),
            identity: Self::identity(endpoint),
            name: format!("e{endpoint}").parse().unwrap(),
            terminating: false,
        };
        Snapshot {
            fleet: lab.name().as_str().parse().unwrap(),
            fleet_id: "f00".to_owned(),
            node: own,
            machine_id: machine_id("n1"),
            store: StoreIdentity(1),
            life: Default::default(),
            revision: Revision(2),
            mark: None,
            heard_at: SystemTime::UNIX_EPOCH.elapsed().unwrap(),
            nodes,
            cidrs,
            identities: (0..IDENTITIES)
                .map(|it| SavedIdentity {
                    id: Self::identity(it),
                    labels: Self::labels(it),
                    referenced: false,
                })
                .collect(),
            records: (0..self.nodes)
                .map(|it| (Self::name(it), (0..PER_NODE).map(|endpoint| record(it, endpoint)).collect()))
                .collect(),
            services: Vec::new(),
        }
    }

    /// Writes the fleet's records into the lab's etcd.
    fn record(&self, lab: &TestLab) {
        let schema = &self.schema;
        let mut ops = Vec::new();
        let mut put = |key: Key, value| ops.push(KvOp::Put { key, value, lease: None });
        let fleet = FleetRecord {
            fleet_id: "f00".to_owned(),
            pools: lab.spec().pools.iter().map(|pool| pool.parse().unwrap()).collect(),
            service_pools: vec!["172.20.0.0/16".parse().expect("a pool")],
            block_prefix_v4: lab.spec().block_prefix_v4,
            block_prefix_v6: 120,
            tunnel_port: 8472,
            life: Default::default(),
            unknown: Default::default(),
        };
        put(schema.fleet(), fleet.encode());
        for it in 0..IDENTITIES {
            let (id, labels, unknown) = (Self::identity(it), Self::labels(it), Default::default());
            let by_id = IdentityIdRecord { labels: labels.clone(), state: ClaimState::Live, unknown };
            put(schema.identity_id(id), by_id.encode());
            let by_labels = IdentityLabelsRecord { id, labels: labels.clone(), unknown: Default::default() };
            put(schema.identity_labels(&labels.digest()), by_labels.encode());
            let reference = IdentityRefRecord { incarnation: 1, unknown: Default::default() };
            put(schema.identity_ref(id, &Self::name(0)), reference.encode());
        }
        for it in 0..self.nodes {
            let name = Self::name(it);
            let node = NodeRecord {
                underlay: vec![Self::underlay(it).into()],
                moves: 0,
                datapath_mode: None,
                cidrs: vec![Self::block(it)],
                gateway: None,
                gossip_port: 7950,
                labels: Labels::default(),
                boot_id: "boot".to_owned(),
                machine_id: format!("machine-{it}"),
                incarnation: 1,
                agent_version: "0".to_owned(),
                unknown: Default::default(),
            };
            put(schema.node(&name), node.encode());
            let (token, state, unknown) = ("t".to_owned(), ClaimState::Live, Default::default());
            put(
                schema.cidr(Self::block(it)),
                CidrRecord { node: name.clone(), state, token, since: None, unknown }.encode(),
            );
            for endpoint in 0..PER_NODE {
                let labels = Self::labels(endpoint);
                let record = EndpointRecord {
                    name: format!("e{endpoint}").parse().unwrap(),
                    identity: Self::identity(endpoint),
                    labels_digest: labels.digest(),
                    labels,
                    terminating: false,
                    unknown: Default::default(),
                };
                put(schema.endpoint(&name, Self::address(it, endpoint).into()), record.encode());
            }
        }
        namespace::inside(&lab.name().machine_namespace("e1"), || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let store = EtcdStore::connect(EtcdConfig::new(["http://127.0.0.1:2379"]))?;
                for chunk in ops.chunks(Txn::MAX_OPS) {
                    store.txn(Txn { then: chunk.to_vec(), ..Txn::default() }).await?;
                }
                Ok(())
            })
        })
        .unwrap();
    }
}

/// Starts the agent and prints the time until the kernel knows everything, and until the agent is idle.
fn measure(lab: &TestLab, fleet: &Fleet, how: &str) {
    let known = fleet.nodes * PER_NODE;
    let start = Instant::now();
    lab.start_agent("n1").unwrap();
    while !in_kernel(lab, fleet.last()) {
        assert!(start.elapsed() < LIMIT, "{how}: the last entry is not there: {}", lab.log_end("n1"));
        wait::pause();
    }
    let took = start.elapsed();
    let memory = memory_kb(lab);
    let api = lab.api("n1");
    wait::until("the agent to come to rest", LIMIT, || {
        let status = ask(api.status())?;
        ensure!(status.ready && status.apply.pending == 0, "{:?}", status.apply);
        let maps = ask(api.maps())?.items;
        let entries = maps.iter().find(|map| map.name == "WARREN_IPC_V4").and_then(|map| map.entries);
        ensure!(entries >= Some(known.into()), "{entries:?} entries of {known}");
        Ok(())
    })
    .unwrap();
    let (rest, later) = (start.elapsed(), memory_kb(lab));
    println!(
        "{known} endpoints, {how}: {took:?} to the last entry, {} kB resident, {} kB at most; at rest after {rest:?}, {} kB resident, {} kB at most",
        memory.0, memory.1, later.0, later.1
    );
    assert!(later.1 < LIMIT_KB, "{how}: {} kB", later.1);
}

fn in_kernel(lab: &TestLab, address: Ipv4Addr) -> bool {
    let mut bpftool = Command::new("bpftool");
    bpftool
        .args(["map", "lookup", "pinned"])
        .arg(lab.pin_path("n1").join("maps").join("WARREN_IPC_V4"))
        .arg("key");
    bpftool.args(address.octets().map(|byte| byte.to_string()));
    bpftool.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// Resident memory now, and its maximum since the start.
fn memory_kb(lab: &TestLab) -> (u64, u64) {
    let pid = lab.processes("n1").unwrap()[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    (value("VmRSS:"), value("VmHWM:"))
}

fn lab(test: &str) -> Option<(TestLab, Fleet)> {
    let known = std::env::var("WARREN_SCALE_KNOWN").ok().and_then(|text| text.parse().ok()).unwrap_or(KNOWN);
    let lab = TestLab::made_with(test, 1, 1, |spec| {
        (spec.pools, spec.block_prefix_v4) = (vec!["10.0.0.0/8".to_owned()], 24);
        use_scale_programs(spec);
    })?;
    let schema = Schema::new(&lab.name().as_str().parse().unwrap());
    Some((lab, Fleet { nodes: known / PER_NODE, schema }))
}

#[test]
fn start_from_the_snapshot_alone_covers_a_large_fleet() {
    let Some((lab, fleet)) = lab("start-snapshot") else { return };
    let state = lab.name().folder().join("n1").join("state");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("snapshot"), node_agent::snapshot::FORM.encode(&fleet.snapshot(&lab)).unwrap())
        .unwrap();
    measure(&lab, &fleet, "from the snapshot, without etcd");
}

#[test]
fn start_from_etcd_covers_a_large_fleet() -> Result<()> {
    let Some((lab, fleet)) = lab("start-etcd") else { return Ok(()) };
    lab.start_etcd("e1")?;
    let etcd = lab.name().machine_namespace("e1");
    wait::until("etcd", crate::support::SOON, || {
        chaos_lab::process::run(&etcd, "env", &["ETCDCTL_API=3", "etcdctl", "endpoint", "health"]).map(drop)
    })?;
    fleet.record(&lab);
    measure(&lab, &fleet, "from etcd");
    lab.end("n1", Signal::SIGTERM)?;
    measure(&lab, &fleet, "on the maps that were left, with etcd");
    Ok(())
}
