//! Masquerade and ICMP with real stacks: an endpoint, its node, a router, and the world.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use datapath_linux::{Datapath, FlowFilter, LinuxConfig};
use datapath_plan::{Base, BaseUnderlay, Entry, HostRouting, Masquerade, Op, Single};

use crate::stage::{Cluster, Namespace, Stage, base, base_ops, endpoint, endpoint_ops, gateway, must};

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// MTU of the link behind the router: smaller than the endpoint's.
const FAR_MTU_BYTES: u32 = 1300;
const PORTS: (u16, u16) = (61_000, 61_099);

struct Topology {
    node: Stage,
    router: Namespace,
    world: Namespace,
    workload: Namespace,
}

impl Topology {
    /// The node's underlay interface is `under0`; the world has no route to its endpoints.
    fn new() -> Option<Self> {
        let node = Stage::new()?;
        let topology = Self {
            node,
            router: Namespace::new("router"),
            world: Namespace::new("world"),
            workload: Namespace::new("one"),
        };
        let ip = |namespace: &Namespace, line: &str| {
            namespace.run("ip", &line.split(' ').collect::<Vec<_>>());
        };
        let Self { node: Stage { node, .. }, router, world, .. } = &topology;
        ip(router, &format!("link add near0 type veth peer name under0 netns {}", node.name));
        ip(router, &format!("link add far0 type veth peer name world0 netns {}", world.name));
        ip(router, &format!("addr add {ROUTER}/24 dev near0"));
        ip(router, "addr add 198.51.100.1/24 dev far0");
        ip(router, "link set near0 up");
        ip(router, &format!("link set far0 mtu {FAR_MTU_BYTES} up"));
        router.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a router"));
        ip(node, &format!("addr add {}/24 dev under0", Cluster::underlay(1)));
        ip(node, "link set under0 up");
        ip(node, &format!("route add default via {ROUTER}"));
        ip(world, &format!("addr add {WORLD}/24 dev world0"));
        ip(world, &format!("link set world0 mtu {FAR_MTU_BYTES} up"));
        ip(world, "route add default via 198.51.100.1");
        Some(topology)
    }

    async fn populate(&self, datapath: &mut Datapath, host_routing: HostRouting) {
        let index = self.node.node.run("ip", &["-o", "link", "show", "under0"]);
        let ifindex = index.split(':').next().expect("an index").parse().expect("a number");
        let base = Base {
            host_routing,
            underlay: BaseUnderlay { ifindex, address: Cluster::underlay(1).into(), mtu_bytes: 1500 },
            masquerade: Some(Masquerade {
                first_port: PORTS.0,
                last_port: PORTS.1,
                exclude: ["10.77.0.0/16".parse().expect("a prefix")].into(),
            }),
            ..base(1)
        };
        let (id, value) = endpoint(1, 1, &self.workload.path());
        let mut ops = base_ops(1);
        ops[0] = Op::Put(Entry::Base(Single, base));
        ops.extend(endpoint_ops(id, &value));
        must(datapath, ops).await;
    }

    /// The output of one ping, whether or not it is answered.
    fn ping(&self, arguments: &str) -> String {
        let mut words = vec!["-n", "-c", "1", "-W", "2"];
        words.extend(arguments.split(' '));
        let target = WORLD.to_string();
        words.push(&target);
        self.workload.enter(|| {
            let output = std::process::Command::new("ping").args(&words).output().expect("run ping");
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        })
    }
}

fn is_masqueraded(peer: SocketAddr) -> bool {
    peer.ip() == Cluster::underlay(1) && (PORTS.0..=PORTS.1).contains(&peer.port())
}

#[track_caller]
fn check(host_routing: HostRouting, force_clsact: bool) {
    let Some(topology) = Topology::new() else { return };
    topology.node.block_on(async || {
        let config = LinuxConfig { force_clsact, ..topology.node.config() };
        let mut datapath = topology.node.open_with(config).await;
        topology.populate(&mut datapath, host_routing).await;
        assert!(topology.workload.pings(WORLD), "a ping is answered: {:?}", datapath.counters());

        // TCP: segments of the endpoint's MTU do not fit the link behind the router, so the sender learns the path MTU.
        let listener = topology.world.enter(|| TcpListener::bind((WORLD, 7000)).expect("listen"));
        let mut sender = topology.workload.enter(|| {
            TcpStream::connect_timeout(&(WORLD, 7000).into(), Duration::from_secs(5)).expect("connect")
        });
        let (mut receiver, peer) = listener.accept().expect("accept");
        assert!(is_masqueraded(peer), "{peer}");
        let data: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
        receiver.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        let mut received = vec![0; data.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| sender.write_all(&data).expect("send"));
            receiver.read_exact(&mut received).expect("receive");
        });
        assert!(received == data);
        receiver.write_all(b"and back").expect("send");
        let mut answer = [0; 8];
        sender.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
        sender.read_exact(&mut answer).expect("a response");
        assert_eq!(&answer, b"and back");

        // UDP, also in fragments.
        let far = topology.world.enter(|| UdpSocket::bind((WORLD, 7001)).expect("bind"));
        let near = topology.workload.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
        for socket in [&far, &near] {
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
        }
        let mut datagram = [0; 8192];
        near.send_to(&data[..500], (WORLD, 7001)).expect("send");
        let (length, peer) = far.recv_from(&mut datagram).expect("a datagram");
        assert!(length == 500 && is_masqueraded(peer), "{length} from {peer}");
        far.send_to(&data[..5000], peer).expect("send");
        let (length, from) = near.recv_from(&mut datagram).expect("a response, in fragments");
        assert!(datagram[..length] == data[..5000], "{length}");
        assert_eq!(from, (WORLD, 7001).into());

        // ICMP errors: those of a traceroute, and one that names the path MTU.
        let first = topology.ping("-t 1");
        assert!(first.contains(&format!("From {}", gateway(1))), "the gateway: {first}");
        let second = topology.ping("-t 2");
        assert!(second.contains(&format!("From {ROUTER}")), "the router: {second}");
        topology.workload.run("ip", &["route", "flush", "cache"]);
        let long = topology.ping("-M do -s 1400");
        assert!(long.contains("mtu = 1300") || long.contains("mtu=1300"), "{long}");

        let flows =
            datapath.flow_table().expect("a handle").list(usize::MAX, &FlowFilter::default()).expect("flows");
        let translated = flows.iter().filter(|flow| flow.new_source.is_some()).count();
        assert_eq!(flows.iter().filter(|flow| flow.new_destination.is_some()).count(), translated);
        assert!(translated >= 3, "{flows:?}");
        let observed = datapath.observe().await.expect("observed");
        assert_eq!(observed.broken, [] as [String; 0]);
    });
}

#[test]
fn masquerade_reaches_the_world() {
    check(HostRouting::Bpf, false);
}

#[test]
fn masquerade_reaches_the_world_with_clsact() {
    check(HostRouting::Bpf, true);
}

#[test]
fn masquerade_reaches_the_world_with_legacy_host_routing() {
    check(HostRouting::Legacy, false);
}
