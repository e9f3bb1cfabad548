//! External clients: a host without an agent on the underlay of two nodes reaches node ports, external and virtual IPs
//! over TCP and UDP, with backends on either node.

mod dsr;
mod host;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::atomic::AtomicBool,
    thread,
};

use datapath_abi::{Direction, DropReason};
use datapath_linux::{CounterKind, LinuxConfig};
use datapath_plan::{
    BackendId, BackendValue, Base, BaseUnderlay, Entry, EpochScope, Frontend, FrontendKind, FrontendValue,
    HostRouting, IpcacheValue, NodeIndex, Op, Protocol, ServiceId, ServiceValue, Single,
};
use identity::Identity;

use crate::{
    services::{
        backend,
        echo::{PATIENCE, StopOnDrop, connect, request, request_by_udp, serve_echo, udp_socket},
        service,
    },
    stage::{Cluster, Namespace, address, base, base_ops, endpoint, endpoint_ops, gateway, must},
    traffic::other_node,
};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
pub const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;

/// Two nodes with a backend each, and the client, which routes the frontends' addresses to node 1.
pub struct Topology {
    pub cluster: Cluster,
    pub client: Namespace,
    pub workloads: [Namespace; 2],
    /// The configuration of both nodes, except their pins.
    pub settings: LinuxConfig,
}

impl Topology {
    pub fn new(host_routing: HostRouting, settings: LinuxConfig) -> Option<Self> {
        let cluster = Cluster::new(2)?;
        let client = Namespace::new("client");
        let bridge = &cluster.bridge;
        let ip = |namespace: &Namespace, line: &str| {
            namespace.run("ip", &line.split(' ').collect::<Vec<_>>());
        };
        ip(bridge, &format!("link add client type veth peer name out0 netns {}", client.name));
        ip(bridge, "link set client master br0 up");
        ip(&client, &format!("addr add {CLIENT}/24 dev out0"));
        ip(&client, "link set out0 up");
        for frontend in [EXTERNAL, VIRTUAL] {
            ip(&client, &format!("route add {frontend} via {}", Cluster::underlay(1)));
        }
        let workloads = ["one", "two"].map(Namespace::new);
        let topology = Self { cluster, client, workloads, settings };
        for number in [1, 2] {
            let node = &topology.cluster.node(number).node;
            let index = node.run("ip", &["-o", "link", "show", "under0"]);
            let ifindex = index.split(':').next().expect("an index").parse().expect("a number");
            let underlay =
                BaseUnderlay { ifindex, address: Cluster::underlay(number).into(), mtu_bytes: 1500 };
            let mut ops = base_ops(number);
            ops[0] = Op::Put(Entry::Base(Single, Base { host_routing, underlay, ..base(number) }));
            ops.extend(other_node(3 - number));
            let other = IpcacheValue { identity: Identity::REMOTE_NODE, node: NodeIndex(2) };
            ops.push(Op::Put(Entry::Ipcache(IpAddr::from(Cluster::underlay(3 - number)).into(), other)));
            let (id, value) = endpoint(number, 1, &topology.workloads[usize::from(number) - 1].path());
            ops.extend(endpoint_ops(id, &value));
            topology.apply(number, ops);
        }
        Some(topology)
    }

    pub fn apply(&self, node: u8, ops: Vec<Op>) {
        let stage = self.cluster.node(node);
        let config = LinuxConfig { pin_root: stage.pin_root.clone(), ..self.settings.clone() };
        stage.block_on(async || must(&mut stage.open_with(config).await, ops).await);
    }

    /// Gives the service these backends on both nodes, over both protocols, at all frontends.
    pub fn serve(&self, backends: &[(BackendId, BackendValue)], value: &ServiceValue) {
        let mut ops = Vec::new();
        for (number, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp)] {
            let service = ServiceId(number);
            let id_of = |id: &BackendId| BackendId(id.0 + 10 * number);
            for (id, value) in backends {
                ops.push(Op::Put(Entry::Backend(id_of(id), BackendValue { service, ..*value })));
            }
            let members = backends.iter().map(|(id, _)| id_of(id)).collect();
            ops.push(Op::Put(Entry::Service(service, ServiceValue { members, ..value.clone() })));
            for (address, port, kind) in [
                (EXTERNAL, PORT, FrontendKind::External),
                (VIRTUAL, PORT, FrontendKind::Virtual),
                (Ipv4Addr::UNSPECIFIED, NODE_PORT, FrontendKind::NodePort),
            ] {
                let frontend = Frontend { address: address.into(), port, protocol };
                ops.push(Op::Put(Entry::Frontend(frontend, FrontendValue { service, kind })));
            }
        }
        for node in [1, 2] {
            self.apply(node, ops.clone());
        }
    }

    fn dropped(&self, node: u8, reason: DropReason) -> u64 {
        self.counted(node, CounterKind::Dropped(reason))
    }

    pub fn counted(&self, node: u8, kind: CounterKind) -> u64 {
        let stage = self.cluster.node(node);
        let config = LinuxConfig { pin_root: stage.pin_root.clone(), ..self.settings.clone() };
        stage.block_on(async || {
            let counters = stage.open_with(config).await.counters().expect("counters");
            counters[&(kind, Direction::Ingress)].packets
        })
    }
}

/// All frontends, and the node that requests to each come to.
fn frontends() -> [(SocketAddr, u8); 4] {
    [
        ((EXTERNAL, PORT).into(), 1),
        ((VIRTUAL, PORT).into(), 1),
        ((Cluster::underlay(1), NODE_PORT).into(), 1),
        ((Cluster::underlay(2), NODE_PORT).into(), 2),
    ]
}

/// Sends requests until both backends have responded; returns which client each of them saw.
#[track_caller]
fn clients_seen(send_request: impl Fn() -> (IpAddr, SocketAddr)) -> BTreeMap<IpAddr, IpAddr> {
    let mut seen = BTreeMap::new();
    // The probability that one of two is never chosen is 2^-63.
    for _ in 0..64 {
        let (who, client) = send_request();
        seen.insert(who, client.ip());
        if seen.len() == 2 {
            break;
        }
    }
    seen
}

pub fn snat() -> ServiceValue {
    service(Vec::new())
}

#[track_caller]
fn check(host_routing: HostRouting, force_clsact: bool) {
    let settings = LinuxConfig { force_clsact, ..LinuxConfig::default() };
    let Some(topology) = Topology::new(host_routing, settings) else { return };
    let backends = [backend(1, address(1, 1)), backend(2, address(2, 1))];
    topology.serve(&backends, &snat());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        serve_echo(scope, &topology.workloads[0], address(1, 1), &stop);
        serve_echo(scope, &topology.workloads[1], address(2, 1), &stop);
        topology.client.enter(|| {
            for (frontend, node) in frontends() {
                // A backend on the node sees the client; a remote one sees the node's gateway.
                let (local, remote) = (address(node, 1), address(3 - node, 1));
                let expected: BTreeMap<IpAddr, IpAddr> =
                    [(local.into(), CLIENT.into()), (remote.into(), gateway(node).into())].into();
                assert_eq!(clients_seen(|| request(&mut connect(frontend))), expected, "tcp {frontend}");
                assert_eq!(clients_seen(|| request_by_udp(frontend)), expected, "udp {frontend}");
            }
        });

        // Connections outlast a change of the slots and a bump of all epochs.
        let mut connections: Vec<TcpStream> = topology.client.enter(|| {
            frontends().iter().flat_map(|(frontend, _)| (0..4).map(|_| connect(*frontend))).collect()
        });
        let before: Vec<_> = connections.iter_mut().map(request).collect();
        topology.serve(&backends[..1], &snat());
        for node in [1, 2] {
            topology.apply(node, vec![Op::BumpEpochs(EpochScope::All)]);
        }
        let after: Vec<_> = connections.iter_mut().map(request).collect();
        assert_eq!(after, before);
        drop(connections);

        // The client learns the tunnel's MTU from an ICMP error.
        topology.serve(&backends[1..], &snat());
        topology.client.enter(|| {
            let socket = udp_socket((EXTERNAL, PORT).into());
            let discovery = libc::IP_PMTUDISC_DO;
            // SAFETY: the value is an integer of the size given.
            let failed = unsafe {
                let value = (&raw const discovery).cast();
                libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value, 4)
            };
            assert_eq!(failed, 0);
            socket.send(&[0; 1472]).expect("the datagram fits the client's link");
            let refused = socket.recv(&mut [0; 64]).expect_err("the datagram does not fit the tunnel");
            assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
            socket.send(b"?").expect("send a request");
            assert!(socket.recv(&mut [0; 64]).expect("a response") > 0);
        });

        // The client is not in the source ranges: its packets are dropped and counted.
        let ranges = vec!["198.51.100.0/24".parse().expect("a range")];
        topology.serve(&backends, &ServiceValue { source_ranges: ranges, ..snat() });
        topology.client.enter(|| {
            for (frontend, _) in frontends() {
                udp_socket(frontend).send(b"?").expect("send");
            }
        });
        // The programs have processed a packet over veths when `send` returns, as no packet waits for a neighbour.
        assert_eq!(
            (topology.dropped(1, DropReason::ServiceSource), topology.dropped(2, DropReason::ServiceSource)),
            (3, 1)
        );

        // Without backends, clients are rejected at once.
        topology.serve(&[], &snat());
        topology.client.enter(|| {
            for (frontend, _) in frontends() {
                let refused = TcpStream::connect_timeout(&frontend, PATIENCE).expect_err("no backend");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{frontend}");
                let socket = udp_socket(frontend);
                socket.send(b"?").expect("send a request");
                let refused = socket.recv(&mut [0; 8]).expect_err("no backend");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{frontend}");
            }
        });
    });
}

#[test]
fn nodeport_serves_external_clients() {
    check(HostRouting::Bpf, false);
}

#[test]
fn nodeport_serves_external_clients_with_clsact() {
    check(HostRouting::Bpf, true);
}

#[test]
fn nodeport_serves_external_clients_with_legacy_host_routing() {
    check(HostRouting::Legacy, false);
}
