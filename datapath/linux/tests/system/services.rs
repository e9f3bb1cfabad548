//! Services on the real kernel: made, read again, and in use by endpoints and the node, over TCP and UDP.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use datapath_abi::map_name;
use datapath_plan::{
    Algorithm, BackendId, BackendState, BackendValue, Entry, Frontend, FrontendKind, FrontendValue, Op,
    OpErrorKind, Protocol, RouteValue, ServiceId, ServiceMode, ServiceValue, TableKey, Tables,
};

use crate::{
    stage::{
        Cluster, MTU_BYTES, Namespace, Stage, address, apply, endpoint, endpoint_ops, foundations, gateway,
        must,
    },
    traffic::other_node,
};

/// Where the service is reached.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
pub const PORT: u16 = 80;
/// Where its backends listen.
pub const BACKEND_PORT: u16 = 8080;
/// Longer than any answer takes here, also on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A backend of the service port over TCP (number 1); [`web`] gives that over UDP (number 2) one of its own.
pub fn backend(id: u32, address: Ipv4Addr) -> (BackendId, BackendValue) {
    let value = BackendValue {
        service: ServiceId(1),
        address: address.into(),
        port: BACKEND_PORT,
        weight: 1,
        state: BackendState::Active,
    };
    (BackendId(id), value)
}

pub fn service(members: Vec<BackendId>) -> ServiceValue {
    ServiceValue {
        algorithm: Algorithm::Maglev,
        affinity_seconds: 0,
        mode: ServiceMode::Snat,
        source_ranges: Vec::new(),
        members,
    }
}

/// The steps that make a service of these backends, over TCP.
pub fn web(backends: &[(BackendId, BackendValue)]) -> Vec<Op> {
    of_protocol(ServiceId(1), Protocol::Tcp, backends)
}

pub fn of_protocol(id: ServiceId, protocol: Protocol, backends: &[(BackendId, BackendValue)]) -> Vec<Op> {
    let takes_new = |(_, value): &&(BackendId, BackendValue)| value.state == BackendState::Active;
    let members = backends.iter().filter(takes_new).map(|(id, _)| *id).collect();
    let frontend = Frontend { address: VIP.into(), port: PORT, protocol };
    let mut ops: Vec<Op> = backends.iter().map(|(id, value)| Op::Put(Entry::Backend(*id, *value))).collect();
    ops.push(Op::Put(Entry::Service(id, service(members))));
    ops.push(Op::Put(Entry::Frontend(frontend, FrontendValue { service: id, kind: FrontendKind::Virtual })));
    ops
}

/// The tables that the steps make.
fn tables(ops: &[Op]) -> Tables {
    let mut tables = Tables::default();
    ops.iter().for_each(|op| tables.apply(op));
    tables
}

#[test]
fn services_are_read_as_they_were_made() {
    let Some(stage) = Stage::new() else { return };
    stage.play(async || {
        let mut datapath = stage.open().await;
        // More members than a block of slots has room for.
        let many: Vec<_> = (1..=200).map(|id| backend(id, Ipv4Addr::new(10, 77, 2, id as u8))).collect();
        let mut ops = web(&many);
        let ranges = ["192.0.2.0/24", "198.51.100.7/32"].map(|range| range.parse().expect("a range"));
        let guarded = ServiceValue { affinity_seconds: 60, source_ranges: ranges.into(), ..service(vec![]) };
        ops.push(Op::Put(Entry::Service(ServiceId(2), guarded.clone())));
        must(&mut datapath, ops.clone()).await;
        let observed = datapath.observe().await.expect("observe");
        assert_eq!((observed.tables, observed.broken), (tables(&ops), vec![]));

        // One range less, and what says so.
        let narrowed = ServiceValue { source_ranges: ranges[1..].into(), ..guarded };
        *ops.last_mut().expect("steps") = Op::Put(Entry::Service(ServiceId(2), narrowed));
        must(&mut datapath, ops.clone()).await;
        assert_eq!(datapath.observe().await.expect("observe").tables, tables(&ops));
        assert_eq!(datapath.map_dump(map_name::SOURCES_LPM_V4).expect("rows").len(), 1);
        must(&mut datapath, vec![]).await;

        // What was replaced goes with the next plan.
        let blocks = |datapath: &datapath_linux::Datapath| {
            let maps = datapath.map_list().expect("maps");
            maps.into_iter().find(|map| map.name == map_name::SLOTS).expect("the map").entries
        };
        let before = blocks(&datapath);
        must(&mut datapath, ops.clone()).await;
        must(&mut datapath, vec![]).await;
        assert_eq!(blocks(&datapath), before);
        must(&mut datapath, ops.clone()).await;
        drop(datapath);
        let mut next = stage.open().await;
        assert_eq!(
            next.observe().await.expect("observe").tables,
            tables(&ops),
            "the next agent reads the same"
        );
        must(&mut next, vec![]).await;
        assert_eq!(blocks(&next), before, "and takes away what the last one left");

        // A backend of another weight, and no table after it: as if an agent had died in between.
        let (id, value) = many[0];
        must(&mut next, vec![Op::Put(Entry::Backend(id, BackendValue { weight: 9, ..value }))]).await;
        let observed = next.observe().await.expect("observe");
        assert_eq!(observed.broken, ["service 1: its table is not that of its members"]);
        assert!(!observed.tables.services.contains_key(&ServiceId(1)));

        let removals = ops.iter().rev().filter_map(|op| match op {
            Op::Put(Entry::Backend(id, _)) => Some(Op::Delete(TableKey::Backend(*id))),
            Op::Put(Entry::Service(id, _)) => Some(Op::Delete(TableKey::Service(*id))),
            Op::Put(Entry::Frontend(frontend, _)) => Some(Op::Delete(TableKey::Frontend(*frontend))),
            _ => None,
        });
        must(&mut next, removals.collect()).await;
        must(&mut next, vec![]).await;
        assert_eq!(next.observe().await.expect("observe").tables, Tables::default());
        assert_eq!(blocks(&next), Some(0));
        assert_eq!(next.map_dump(map_name::SOURCES_LPM_V4).expect("rows").len(), 0);
        // Flows may outlive a frontend: what comes to its port is still looked at.
        let ports = next.map_dump(map_name::SERVICE_PORTS).expect("rows");
        assert_eq!(ports.iter().map(|row| &row.key).collect::<Vec<_>>(), ["tcp 80"]);
    });
}

#[test]
fn a_member_that_is_not_there_is_told_and_the_others_serve() {
    let Some(stage) = Stage::new() else { return };
    stage.play(async || {
        let mut datapath = stage.open().await;
        let (one, value) = backend(1, address(1, 1));
        let of_another_family = BackendValue { address: "fd00::1".parse().expect("an address"), ..value };
        let ops = vec![
            Op::Put(Entry::Backend(one, value)),
            Op::Put(Entry::Backend(BackendId(2), of_another_family)),
            Op::Put(Entry::Service(ServiceId(1), service(vec![one, BackendId(2)]))),
        ];
        let failures = apply(&mut datapath, ops).await.failures;
        let texts: Vec<_> = failures.iter().map(|failure| failure.error.text.as_str()).collect();
        assert_eq!(texts, ["IPv6 address fd00::1", "backend 2 is not there"]);
        assert_eq!(failures[1].error.kind, OpErrorKind::Transient);
        let services = datapath.observe().await.expect("observe").tables.services;
        assert_eq!(services[&ServiceId(1)], service(vec![one]));
    });
}

/// Answers in a namespace, over TCP and UDP, with the address that it was asked from; until it is told to end.
pub fn answers<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    workload: &Namespace,
    at: Ipv4Addr,
    end: &'scope AtomicBool,
) {
    let (listener, socket) = workload.enter(|| {
        let listener = TcpListener::bind((at, BACKEND_PORT)).expect("listen");
        (listener, UdpSocket::bind((at, BACKEND_PORT)).expect("bind"))
    });
    listener.set_nonblocking(true).expect("not to wait");
    socket.set_nonblocking(true).expect("not to wait");
    scope.spawn(move || {
        let mut streams: Vec<(TcpStream, SocketAddr)> = Vec::new();
        let mut buffer = [0; 64];
        while !end.load(Ordering::Relaxed) {
            let mut idle = true;
            if let Ok((stream, from)) = listener.accept() {
                stream.set_nonblocking(true).expect("not to wait");
                streams.push((stream, from));
                idle = false;
            }
            for (stream, from) in &mut streams {
                // Each byte is a question.
                if let Ok(1) = stream.read(&mut buffer[..1]) {
                    let _ = stream.write_all(format!("{at} {from}\n").as_bytes());
                    idle = false;
                }
            }
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{at} {from}\n").as_bytes(), from);
                idle = false;
            }
            if idle {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

/// Who answers a question, and from where it came to them.
pub fn ask(stream: &mut (impl Read + Write)) -> (IpAddr, SocketAddr) {
    stream.write_all(b"?").expect("ask");
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        line.extend(byte);
    }
    parse(&line)
}

pub fn parse(line: &[u8]) -> (IpAddr, SocketAddr) {
    let line = std::str::from_utf8(line).expect("text");
    let (who, from) = line.trim().split_once(' ').expect("two words");
    (who.parse().expect("an address"), from.parse().expect("an address and a port"))
}

fn connect() -> TcpStream {
    let stream = TcpStream::connect_timeout(&(VIP, PORT).into(), PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// Who answers a datagram from a socket of its own; what somebody else than the service sends it would not get.
fn ask_by_datagram() -> (IpAddr, SocketAddr) {
    ask_by_datagram_from(0)
}

fn ask_by_datagram_from(port: u16) -> (IpAddr, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind");
    socket.connect((VIP, PORT)).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket.send(b"?").expect("ask");
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("an answer");
    parse(&buffer[..length])
}

/// Asks until both backends have answered (or far too often), over TCP and UDP, from `from`.
#[track_caller]
fn both_answer(namespace: &Namespace, from: &[Ipv4Addr]) {
    let expected: BTreeSet<IpAddr> = [address(1, 2).into(), address(2, 1).into()].into();
    namespace.enter(|| {
        for ask_once in [|| ask(&mut connect()), ask_by_datagram] {
            let mut seen = BTreeSet::new();
            // By chance alone one of two would be missed once in 2^64.
            for _ in 0..64 {
                let (who, seen_from) = ask_once();
                assert!(from.iter().any(|address| seen_from.ip() == *address), "{seen_from}");
                seen.insert(who);
            }
            assert_eq!(seen, expected);
        }
    });
}

/// Node 1 with a client and a backend, node 2 with another backend; the service is node 1's to translate.
struct World {
    cluster: Cluster,
    client: Namespace,
    here: Namespace,
    there: Namespace,
}

impl World {
    fn new() -> Option<Self> {
        let cluster = Cluster::new(2)?;
        let [client, here, there] = ["client", "here", "there"].map(Namespace::new);
        let pool = RouteValue { next_hop: None, source: gateway(1).into(), mtu_bytes: MTU_BYTES };
        let mut first = foundations(1);
        first.extend(other_node(2));
        first.push(Op::Put(Entry::Route("10.201.0.0/16".parse().expect("a prefix"), pool)));
        for (id, workload) in [(1, &client), (2, &here)] {
            let (id, value) = endpoint(1, id, &workload.path());
            first.extend(endpoint_ops(id, &value));
        }
        let mut second = foundations(2);
        second.extend(other_node(1));
        let (id, value) = endpoint(2, 1, &there.path());
        second.extend(endpoint_ops(id, &value));
        let world = Self { cluster, client, here, there };
        for (number, ops) in [(1, first), (2, second)] {
            world.apply(number, ops);
        }
        Some(world)
    }

    fn apply(&self, node: u8, ops: Vec<Op>) {
        let stage = self.cluster.node(node);
        stage.play(async || must(&mut stage.open().await, ops).await);
    }

    /// Makes the service one of these backends, over both protocols.
    fn serve(&self, backends: &[(BackendId, BackendValue)]) {
        let mut ops = web(backends);
        let over_udp = |(id, value): &(BackendId, BackendValue)| {
            (BackendId(id.0 + 10), BackendValue { service: ServiceId(2), ..*value })
        };
        let over_udp: Vec<_> = backends.iter().map(over_udp).collect();
        ops.extend(of_protocol(ServiceId(2), Protocol::Udp, &over_udp));
        self.apply(1, ops);
    }
}

#[test]
fn endpoints_and_the_node_reach_a_service_of_two_nodes() {
    let Some(world) = World::new() else { return };
    let (here, there) = (backend(1, address(1, 2)), backend(2, address(2, 1)));
    world.serve(&[here, there]);
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also when an assertion fails, the threads end.
        let _guard = EndAtLast(&end);
        answers(scope, &world.here, address(1, 2), &end);
        answers(scope, &world.there, address(2, 1), &end);

        // Backends see their clients.
        both_answer(&world.client, &[address(1, 1)]);
        both_answer(&world.cluster.node(1).node, &[gateway(1)]);
        // But one that is its own client sees the gateway.
        both_answer(&world.here, &[address(1, 2), gateway(1)]);

        // A connection goes on with the backend that it has, whatever becomes of the table.
        let mut connections: Vec<TcpStream> = world.client.enter(|| (0..16).map(|_| connect()).collect());
        let before: Vec<_> = connections.iter_mut().map(ask).collect();
        let leaving = BackendValue { state: BackendState::Terminating, ..there.1 };
        world.serve(&[here, (there.0, leaving)]);
        let all = datapath_plan::EpochScope::All;
        world.apply(1, vec![Op::BumpEpochs(all)]);
        let after: Vec<_> = connections.iter_mut().map(ask).collect();
        assert_eq!(after, before);
        world.client.enter(|| {
            // From ports that nothing was sent from before: of datagrams nothing says that they begin a flow.
            for port in 2000..2016 {
                assert_eq!(ask(&mut connect()).0, IpAddr::from(address(1, 2)), "what is new goes elsewhere");
                assert_eq!(ask_by_datagram_from(port).0, IpAddr::from(address(1, 2)));
            }
        });

        // Nobody left: clients are told so at once.
        world.serve(&[]);
        for namespace in [&world.client, &world.cluster.node(1).node] {
            namespace.enter(|| {
                let refused =
                    TcpStream::connect_timeout(&(VIP, PORT).into(), PATIENCE).expect_err("nobody is there");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
                socket.connect((VIP, PORT)).expect("connect");
                socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
                socket.send(b"?").expect("ask");
                let refused = socket.recv(&mut [0; 8]).expect_err("nobody is there");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            });
        }
    });
}

/// Ends what runs beside a test, also when the test fails.
pub struct EndAtLast<'a>(pub &'a AtomicBool);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
