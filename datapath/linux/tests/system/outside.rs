//! A client outside, without any agent, on the underlay of two nodes: node ports, external and virtual IPs over TCP and
//! UDP, to backends on either node.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::AtomicBool,
    thread,
};

use datapath_abi::{Direction, DropReason};
use datapath_linux::{CounterKind, LinuxConfig};
use datapath_plan::{
    BackendId, BackendValue, Base, BaseUnderlay, Entry, Frontend, FrontendKind, FrontendValue, HostRouting,
    IpcacheValue, NodeIndex, Op, Protocol, ServiceId, ServiceMode, ServiceValue, Single,
};
use identity::Identity;

use crate::{
    services::{EndAtLast, PATIENCE, answers, ask, backend, parse, service},
    stage::{Cluster, Namespace, address, base, endpoint, endpoint_ops, foundations, gateway, must},
    traffic::other_node,
};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
pub const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;

/// Two nodes with a backend each, and the client, whose routes lead to node 1.
pub struct Play {
    pub cluster: Cluster,
    pub client: Namespace,
    pub workloads: [Namespace; 2],
    /// How datapaths are opened, but for their pins.
    pub settings: LinuxConfig,
}

impl Play {
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
        let play = Self { cluster, client, workloads, settings };
        for number in [1, 2] {
            let node = &play.cluster.node(number).node;
            let index = node.run("ip", &["-o", "link", "show", "under0"]);
            let ifindex = index.split(':').next().expect("an index").parse().expect("a number");
            let underlay =
                BaseUnderlay { ifindex, address: Cluster::underlay(number).into(), mtu_bytes: 1500 };
            let mut ops = foundations(number);
            ops[0] = Op::Put(Entry::Base(Single, Base { host_routing, underlay, ..base(number) }));
            ops.extend(other_node(3 - number));
            let other = IpcacheValue { identity: Identity::REMOTE_NODE, node: NodeIndex(2) };
            ops.push(Op::Put(Entry::Ipcache(IpAddr::from(Cluster::underlay(3 - number)).into(), other)));
            let (id, value) = endpoint(number, 1, &play.workloads[usize::from(number) - 1].path());
            ops.extend(endpoint_ops(id, &value));
            play.apply(number, ops);
        }
        Some(play)
    }

    pub fn apply(&self, node: u8, ops: Vec<Op>) {
        let stage = self.cluster.node(node);
        let config = LinuxConfig { pin_root: stage.pin_root.clone(), ..self.settings.clone() };
        stage.play(async || must(&mut stage.open_with(config).await, ops).await);
    }

    /// Makes both nodes serve by these backends, over both protocols, at all frontends.
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
        stage.play(async || {
            let counters = stage.open_with(config).await.counters().expect("counters");
            counters[&(kind, Direction::Ingress)].packets
        })
    }
}

pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

pub fn socket(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    socket.connect(to).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket
}

fn ask_by_datagram(to: SocketAddr) -> (IpAddr, SocketAddr) {
    let socket = socket(to);
    socket.send(b"?").expect("ask");
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("an answer");
    parse(&buffer[..length])
}

/// All frontends, and by which node they are reached.
fn frontends() -> [(SocketAddr, u8); 4] {
    [
        ((EXTERNAL, PORT).into(), 1),
        ((VIRTUAL, PORT).into(), 1),
        ((Cluster::underlay(1), NODE_PORT).into(), 1),
        ((Cluster::underlay(2), NODE_PORT).into(), 2),
    ]
}

/// Asks at a frontend until both backends have answered (or far too often); whom each of them saw.
#[track_caller]
fn seen(ask_once: impl Fn() -> (IpAddr, SocketAddr)) -> BTreeMap<IpAddr, IpAddr> {
    let mut seen = BTreeMap::new();
    // By chance alone one of two would be missed once in 2^64.
    for _ in 0..64 {
        let (who, from) = ask_once();
        seen.insert(who, from.ip());
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
    let Some(play) = Play::new(host_routing, settings) else { return };
    let backends = [backend(1, address(1, 1)), backend(2, address(2, 1))];
    play.serve(&backends, &snat());
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = EndAtLast(&end);
        answers(scope, &play.workloads[0], address(1, 1), &end);
        answers(scope, &play.workloads[1], address(2, 1), &end);
        play.client.enter(|| {
            for (frontend, node) in frontends() {
                // The backend of that node sees the client, the other one that node.
                let (near, far) = (address(node, 1), address(3 - node, 1));
                let expected: BTreeMap<IpAddr, IpAddr> =
                    [(near.into(), CLIENT.into()), (far.into(), gateway(node).into())].into();
                assert_eq!(seen(|| ask(&mut connect(frontend))), expected, "tcp {frontend}");
                assert_eq!(seen(|| ask_by_datagram(frontend)), expected, "udp {frontend}");
            }
        });

        // Connections go on over a change of the table, and with everything decided anew.
        let mut connections: Vec<TcpStream> = play.client.enter(|| {
            frontends().iter().flat_map(|(frontend, _)| (0..4).map(|_| connect(*frontend))).collect()
        });
        let before: Vec<_> = connections.iter_mut().map(ask).collect();
        play.serve(&backends[..1], &snat());
        let all = datapath_plan::EpochScope::All;
        for node in [1, 2] {
            play.apply(node, vec![Op::BumpEpochs(all.clone())]);
        }
        let after: Vec<_> = connections.iter_mut().map(ask).collect();
        assert_eq!(after, before);
        drop(connections);

        // More than the tunnel carries, and not to be cut: the client is told so.
        play.serve(&backends[1..], &snat());
        play.client.enter(|| {
            let socket = socket((EXTERNAL, PORT).into());
            let probe = libc::IP_PMTUDISC_DO;
            // SAFETY: an integer of the size given.
            let failed = unsafe {
                let value = (&raw const probe).cast();
                libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value, 4)
            };
            assert_eq!(failed, 0);
            socket.send(&[0; 1472]).expect("it fits the client's own link");
            let refused = socket.recv(&mut [0; 64]).expect_err("it cannot arrive");
            assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
            socket.send(b"?").expect("ask");
            assert!(socket.recv(&mut [0; 64]).expect("an answer") > 0);
        });

        // Nobody but others may: silence, and a counter.
        let ranges = vec!["198.51.100.0/24".parse().expect("a range")];
        play.serve(&backends, &ServiceValue { source_ranges: ranges, ..snat() });
        play.client.enter(|| {
            for (frontend, _) in frontends() {
                socket(frontend).send(b"?").expect("send");
            }
        });
        // What was sent through veths has been looked at when `send` returns, but for what waits for a neighbour: none does.
        assert_eq!(
            (play.dropped(1, DropReason::ServiceSource), play.dropped(2, DropReason::ServiceSource)),
            (3, 1)
        );

        // Nobody left: clients are told so at once.
        play.serve(&[], &snat());
        play.client.enter(|| {
            for (frontend, _) in frontends() {
                let refused = TcpStream::connect_timeout(&frontend, PATIENCE).expect_err("nobody is there");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{frontend}");
                let socket = socket(frontend);
                socket.send(b"?").expect("ask");
                let refused = socket.recv(&mut [0; 8]).expect_err("nobody is there");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{frontend}");
            }
        });
    });
}

/// Frames that come to a device in the calling thread's namespace, from now on.
struct Capture(OwnedFd);

impl Capture {
    fn begin() -> Self {
        // SAFETY: no memory is concerned; the descriptor is ours.
        unsafe {
            let protocol = i32::from((libc::ETH_P_IP as u16).to_be());
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            Self(OwnedFd::from_raw_fd(fd))
        }
    }

    /// Source Ethernet addresses of what came from an address.
    fn senders_of(&self, source: Ipv4Addr) -> BTreeSet<[u8; 6]> {
        let mut frame = [0; 2048];
        let mut senders = BTreeSet::new();
        loop {
            // SAFETY: the buffer is of the size given.
            let read = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            if read < 0 {
                return senders;
            }
            if frame[26..30] == source.octets() {
                senders.insert(frame[6..12].try_into().expect("six bytes"));
            }
        }
    }
}

/// Backends answer themselves: they see the client, and the node that it came to sees no answer.
#[track_caller]
fn check_direct(host_routing: HostRouting) {
    let Some(play) = Play::new(host_routing, LinuxConfig::default()) else { return };
    let backends = [backend(1, address(1, 1)), backend(2, address(2, 1))];
    let value = ServiceValue { mode: ServiceMode::Dsr, ..snat() };
    play.serve(&backends, &value);
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = EndAtLast(&end);
        answers(scope, &play.workloads[0], address(1, 1), &end);
        answers(scope, &play.workloads[1], address(2, 1), &end);
        let expected: BTreeMap<IpAddr, IpAddr> =
            [(address(1, 1).into(), CLIENT.into()), (address(2, 1).into(), CLIENT.into())].into();
        play.client.enter(|| {
            for (frontend, _) in frontends() {
                assert_eq!(seen(|| ask(&mut connect(frontend))), expected, "tcp {frontend}");
                assert_eq!(seen(|| ask_by_datagram(frontend)), expected, "udp {frontend}");
            }
        });
        // Only the backend of the node that the client does not come to: all frames of the frontends come from its node.
        play.serve(&backends[1..], &value);
        let link = play.cluster.node(2).node.run("ip", &["-o", "link", "show", "under0"]);
        let (_, mac) = link.split_once("link/ether ").expect("an Ethernet address");
        let mac: Vec<u8> =
            mac[..17].split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
        play.client.enter(|| {
            let capture = Capture::begin();
            let mut stream = connect((EXTERNAL, PORT).into());
            for _ in 0..100 {
                assert_eq!(ask(&mut stream).1.ip(), IpAddr::from(CLIENT));
                ask_by_datagram((EXTERNAL, PORT).into());
            }
            let senders: Vec<Vec<u8>> =
                capture.senders_of(EXTERNAL).into_iter().map(|sender| sender.to_vec()).collect();
            assert_eq!(senders, std::slice::from_ref(&mac));

            // It goes on when both ends decide again.
            for node in [1, 2] {
                play.apply(node, vec![Op::BumpEpochs(datapath_plan::EpochScope::All)]);
            }
            assert_eq!(ask(&mut stream).1.ip(), IpAddr::from(CLIENT));
        });
    });
}

#[test]
fn backends_answer_clients_outside_themselves() {
    check_direct(HostRouting::Bpf);
}

#[test]
fn backends_answer_clients_outside_themselves_by_the_stack() {
    check_direct(HostRouting::Legacy);
}

/// A process of the node's own, beside a workload, as a backend.
#[track_caller]
fn check_the_node(host_routing: HostRouting) {
    let Some(play) = Play::new(host_routing, LinuxConfig::default()) else { return };
    let own = IpcacheValue { identity: Identity::HOST, node: NodeIndex::SELF };
    play.apply(1, vec![Op::Put(Entry::Ipcache(IpAddr::from(Cluster::underlay(1)).into(), own))]);
    let backends = [backend(1, Cluster::underlay(1)), backend(2, address(1, 1))];
    play.serve(&backends, &snat());
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = EndAtLast(&end);
        answers(scope, &play.cluster.node(1).node, Cluster::underlay(1), &end);
        answers(scope, &play.workloads[0], address(1, 1), &end);
        let hidden = Ipv4Addr::new(10, 77, 1, 0);
        let expected: BTreeMap<IpAddr, IpAddr> =
            [(Cluster::underlay(1).into(), hidden.into()), (address(1, 1).into(), CLIENT.into())].into();
        play.client.enter(|| {
            for (frontend, _) in frontends().into_iter().filter(|(_, node)| *node == 1) {
                assert_eq!(seen(|| ask(&mut connect(frontend))), expected, "tcp {frontend}");
                assert_eq!(seen(|| ask_by_datagram(frontend)), expected, "udp {frontend}");
            }
        });
    });
}

#[test]
fn the_node_itself_answers_clients_outside() {
    check_the_node(HostRouting::Bpf);
}

#[test]
fn the_node_itself_answers_clients_outside_by_the_stack() {
    check_the_node(HostRouting::Legacy);
}

#[test]
fn clients_outside_reach_services() {
    check(HostRouting::Bpf, false);
}

#[test]
fn clients_outside_reach_services_by_older_hooks() {
    check(HostRouting::Bpf, true);
}

#[test]
fn clients_outside_reach_services_by_the_stack() {
    check(HostRouting::Legacy, false);
}
