//! The environment of a test: a network namespace as the node, further ones as workloads, and a directory for pins.
//! Everything is removed when the stage is dropped, also after a panic.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use datapath_linux::{Datapath, LinuxConfig};
use datapath_plan::{
    Attachment, Base, BaseUnderlay, EndpointId, EndpointValue, Entry, Generation, HostRouting, IpcacheValue,
    Mac, Mode, NodeIndex, NodeValue, Op, Plan, PlanOutcome, RouteValue, Single, Tables,
};
use identity::Identity;
use nix::sched::{CloneFlags, setns};

pub const MTU_BYTES: u32 = 1450;
pub const TUNNEL_PORT: u16 = 8472;

/// The environment of one node.
pub struct Stage {
    pub node: Namespace,
    pub pin_root: PathBuf,
}

/// A network namespace, deleted when dropped.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wt{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        Self { name }
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs a closure on a thread in the namespace. (`ip netns exec` would hide the BPF file system.)
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let body = || {
                let file = File::open(self.path()).expect("the namespace is there");
                setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                inside()
            };
            scope.spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command in the namespace and returns what it prints; panics if it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.enter(|| run(program, arguments))
    }

    /// Index, name and Ethernet address of each device: the properties that do not change by themselves.
    pub fn devices(&self) -> Vec<String> {
        let listed = self.run("ip", &["-o", "link", "show"]);
        let line = |line: &str| {
            let (name, rest) = line.split_once('<').expect("flags");
            let (_, address) = rest.split_once("link/").expect("an address");
            format!("{name}{address}")
        };
        listed.lines().map(line).collect()
    }

    /// Whether a ping is answered. The time-out is long, as every test expects an answer, and the machine may be busy.
    pub fn pings(&self, address: Ipv4Addr) -> bool {
        self.enter(|| {
            let mut ping = Command::new("ping");
            ping.args(["-n", "-c", "1", "-W", "10", &address.to_string()]);
            ping.output().expect("run ping").status.success()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

impl Stage {
    /// `None`, with the reason printed, if the system does not allow it.
    pub fn new() -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: needs root");
            return None;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            println!("skipped: needs ip (iproute2)");
            return None;
        }
        let node = Namespace::new("node");
        node.run("ip", &["link", "set", "lo", "up"]);
        let pin_root = Path::new("/sys/fs/bpf").join(format!("warren-test-{}", node.name));
        Some(Self { node, pin_root })
    }

    pub fn config(&self) -> LinuxConfig {
        LinuxConfig::at(&self.pin_root)
    }

    /// Runs the future of a test in the node's namespace.
    pub fn block_on<T: Send>(&self, body: impl AsyncFnOnce() -> T + Send) -> T {
        self.node.enter(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(body())
        })
    }

    pub async fn open(&self) -> Datapath {
        self.open_with(self.config()).await
    }

    pub async fn open_with(&self, config: LinuxConfig) -> Datapath {
        Datapath::open(config).await.unwrap_or_else(|error| panic!("{}", error.chain()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for folder in ["links", "programs", "next", "maps"] {
            let folder = self.pin_root.join(folder);
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let _ = std::fs::remove_file(entry.path());
            }
            let _ = std::fs::remove_dir(&folder);
        }
        let _ = std::fs::remove_dir(&self.pin_root);
    }
}

/// Nodes on one underlay: a bridge in its own namespace.
pub struct Cluster {
    pub stages: Vec<Stage>,
    /// The namespace of `br0`, which has a port for each node.
    pub bridge: Namespace,
}

impl Cluster {
    pub fn new(nodes: u8) -> Option<Self> {
        let stages: Option<Vec<_>> = (0..nodes).map(|_| Stage::new()).collect();
        let bridge = Namespace::new("underlay");
        let cluster = Self { stages: stages?, bridge };
        let bridge = &cluster.bridge;
        bridge.run("ip", &["link", "add", "br0", "type", "bridge"]);
        bridge.run("ip", &["link", "set", "br0", "up"]);
        for (number, stage) in (1..).zip(&cluster.stages) {
            let port = format!("port{number}");
            let node = &stage.node;
            bridge.run(
                "ip",
                &["link", "add", &port, "type", "veth", "peer", "name", "under0", "netns", &node.name],
            );
            bridge.run("ip", &["link", "set", &port, "master", "br0", "up"]);
            node.run("ip", &["addr", "add", &format!("{}/24", Self::underlay(number)), "dev", "under0"]);
            node.run("ip", &["link", "set", "under0", "up"]);
        }
        Some(cluster)
    }

    /// The underlay address of a node; numbers start at 1.
    pub const fn underlay(node: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, node)
    }

    pub fn node(&self, number: u8) -> &Stage {
        &self.stages[usize::from(number) - 1]
    }
}

/// Runs a command and returns what it prints; panics with its error output if it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error: io::Error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The gateway of node `node`: `10.77.<node>.1`.
pub const fn gateway(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, node, 1)
}

/// The address of endpoint `id` on node `node`: `10.77.<node>.<10+id>`.
pub const fn address(node: u8, id: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, node, 10 + id)
}

pub fn base(node: u8) -> Base {
    Base {
        gateway: gateway(node).into(),
        tunnel_port: TUNNEL_PORT,
        mtu_bytes: MTU_BYTES,
        mode: Mode::Tunnel,
        host_routing: HostRouting::Bpf,
        underlay: BaseUnderlay {
            ifindex: 0,
            address: Cluster::underlay(node).into(),
            mtu_bytes: MTU_BYTES + 50,
        },
        masquerade: None,
    }
}

pub fn identity(number: u32) -> Identity {
    Identity::new(number).expect("a number in range")
}

/// Endpoint `id` of node `node` in a namespace, with interface eth0 and identity `<node>0<id>` plus 200.
pub fn endpoint(node: u8, id: u8, namespace: &Path) -> (EndpointId, EndpointValue) {
    let value = EndpointValue {
        address: address(node, id).into(),
        identity: identity(200 + 100 * u32::from(node) + u32::from(id)),
        mac: Mac([2, 0, 0, node, 1, id]),
        host_mac: Mac([2, 0, 0, node, 2, id]),
        attachment: Some(Attachment::Netns { path: namespace.into(), interface: "eth0".into() }),
    };
    (EndpointId(id.into()), value)
}

/// The operations that node `node` needs before it has endpoints.
pub fn base_ops(node: u8) -> Vec<Op> {
    let cidr = format!("10.77.{node}.0/24").parse().expect("a CIDR");
    let host = IpcacheValue { identity: Identity::HOST, node: NodeIndex::SELF };
    vec![
        Op::Put(Entry::Base(Single, base(node))),
        Op::Put(Entry::Node(NodeIndex::SELF, NodeValue { underlay: Cluster::underlay(node).into() })),
        Op::Put(Entry::Ipcache(cidr, IpcacheValue { identity: Identity::UNKNOWN, node: NodeIndex::SELF })),
        Op::Put(Entry::Ipcache(IpAddr::from(gateway(node)).into(), host)),
        Op::Put(Entry::Route(
            cidr,
            RouteValue { next_hop: None, source: gateway(node).into(), mtu_bytes: MTU_BYTES },
        )),
    ]
}

/// The operations of an endpoint and its ipcache entry.
pub fn endpoint_ops(id: EndpointId, value: &EndpointValue) -> Vec<Op> {
    vec![
        Op::Put(Entry::Ipcache(
            value.address.into(),
            IpcacheValue { identity: value.identity, node: NodeIndex::SELF },
        )),
        Op::Put(Entry::Endpoint(id, value.clone())),
    ]
}

/// The operations of node 1 with one endpoint, in this namespace.
pub fn node_with_endpoint(workload: &Namespace) -> Vec<Op> {
    let (id, value) = endpoint(1, 1, &workload.path());
    let mut ops = base_ops(1);
    ops.extend(endpoint_ops(id, &value));
    ops
}

/// Applies steps. The slots of services are those of the backends that the kernel holds, or gets by these steps.
pub async fn apply(datapath: &mut Datapath, ops: Vec<Op>) -> PlanOutcome {
    let mut tables = Tables::default();
    if ops.iter().any(|op| matches!(op, Op::Put(Entry::Service(..)))) {
        tables = datapath.observe().await.expect("observe").tables;
    }
    ops.iter().for_each(|op| tables.apply(op));
    let plan = Plan::new(Generation(1), ops, |id| tables.backends.get(&id).copied());
    datapath.apply(plan).await
}

/// Applies operations, none of which may fail.
pub async fn must(datapath: &mut Datapath, ops: Vec<Op>) {
    let outcome = apply(datapath, ops).await;
    assert_eq!(outcome.failures, [], "no operation may fail");
}
