//! Services at the socket on the real kernel: what clients speak to, what they see, and when they are told the end.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::AtomicBool,
    thread,
    time::Instant,
};

use aya::{
    maps::{HashMap, Map, MapData},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use datapath_abi::{Direction, DropReason, NamespaceEntry, map_name};
use datapath_linux::{CounterKind, Datapath, LinuxConfig, SocketConfig, cleanup};
use datapath_plan::{
    BackendId, BackendState, BackendValue, EndpointValue, Entry, Frontend, FrontendKind, FrontendValue, Op,
    Protocol, ServiceId, TableKey,
};
use nix::sys::socket::SockaddrIn;

use crate::{
    cgroup::Cgroup,
    services::{BACKEND_PORT, EndAtLast, PATIENCE, PORT, VIP, answers, backend, of_protocol, parse, web},
    stage::{
        Namespace, Stage, address, endpoint, endpoint_ops, foundations, gateway, must, node_with_endpoint,
    },
};

const NODE_PORT: u16 = 30_080;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A node with a client and two backends, and the cgroup of its processes.
struct Play {
    cgroup: Cgroup,
    stage: Stage,
    client: Namespace,
    one: Namespace,
    two: Namespace,
}

impl Play {
    fn new() -> Option<Self> {
        let stage = Stage::new()?;
        let cgroup = Cgroup::new(&stage.node.name)?;
        let [client, one, two] = ["client", "one", "two"].map(Namespace::new);
        Some(Self { cgroup, stage, client, one, two })
    }

    fn config(&self) -> LinuxConfig {
        let sockets = SocketConfig { cgroup: self.cgroup.path.clone(), ends_tcp: false };
        LinuxConfig { sockets: Some(sockets), ..self.stage.config() }
    }

    /// The node with its endpoints.
    async fn open(&self) -> Datapath {
        let mut datapath = self.stage.open_with(self.config()).await;
        assert!(at_work(&datapath).await, "the programs are attached");
        let mut ops = foundations(1);
        for (id, workload) in [(1, &self.client), (2, &self.one), (3, &self.two)] {
            let (id, value) = endpoint(1, id, &workload.path());
            ops.extend(endpoint_ops(id, &value));
        }
        must(&mut datapath, ops).await;
        datapath
    }

    fn socket(&self, from: &Namespace, kind: libc::c_int) -> OwnedFd {
        self.cgroup.socket(from, kind)
    }

    /// A TCP connection.
    fn tcp(&self, from: &Namespace, to: (Ipv4Addr, u16)) -> nix::Result<TcpStream> {
        let socket = self.socket(from, libc::SOCK_STREAM);
        connect(&socket, to)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Ok(stream)
    }

    fn udp(&self, from: &Namespace) -> UdpSocket {
        let socket = UdpSocket::from(self.socket(from, libc::SOCK_DGRAM));
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket
    }
}

fn connect(socket: &impl AsRawFd, (address, port): (Ipv4Addr, u16)) -> nix::Result<()> {
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))
}

/// Whether the programs at sockets are where they belong.
async fn at_work(datapath: &Datapath) -> bool {
    let programs = datapath.programs().await.expect("programs");
    let at_sockets: Vec<_> = programs.iter().filter(|program| program.hook == "cgroup").collect();
    !at_sockets.is_empty() && at_sockets.iter().all(|program| program.devices.len() == 1)
}

/// The service of these backends over both protocols; numbers over UDP are larger by 10.
fn both(backends: &[(BackendId, BackendValue)]) -> Vec<Op> {
    let over_udp = |(id, value): &(BackendId, BackendValue)| {
        (BackendId(id.0 + 10), BackendValue { service: ServiceId(2), ..*value })
    };
    let over_udp: Vec<_> = backends.iter().map(over_udp).collect();
    [web(backends), of_protocol(ServiceId(2), Protocol::Udp, &over_udp)].concat()
}

/// The same services on a port of every address of the node.
fn node_port() -> Vec<Op> {
    let frontend = |protocol, service| {
        Op::Put(Entry::Frontend(
            Frontend { address: Ipv4Addr::UNSPECIFIED.into(), port: NODE_PORT, protocol },
            FrontendValue { service: ServiceId(service), kind: FrontendKind::NodePort },
        ))
    };
    vec![frontend(Protocol::Tcp, 1), frontend(Protocol::Udp, 2)]
}

/// Whom a namespace's sockets speak to in truth, by /proc/net.
fn remotes(namespace: &Namespace, protocol: &str) -> BTreeSet<SocketAddr> {
    let text =
        namespace.enter(|| fs::read_to_string(format!("/proc/thread-self/net/{protocol}"))).expect("read");
    let remote = |line: &str| {
        let (address, port) = line.split_whitespace().nth(2)?.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
        Some(SocketAddr::new(IpAddr::from(address), u16::from_str_radix(port, 16).ok()?))
    };
    text.lines().skip(1).filter_map(remote).filter(|remote| remote.port() != 0).collect()
}

fn ask(stream: &mut TcpStream) -> (IpAddr, SocketAddr) {
    stream.write_all(b"?").expect("ask");
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        line.extend(byte);
    }
    parse(&line)
}

/// Who answers a datagram to an address, and as whom that is seen.
fn exchange(socket: &UdpSocket, to: (Ipv4Addr, u16)) -> ((IpAddr, SocketAddr), SocketAddr) {
    let mut buffer = [0; 64];
    socket.send_to(b"?", to).expect("ask");
    let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
    (parse(&buffer[..length]), from)
}

fn refusals(datapath: &Datapath) -> u64 {
    let kind = CounterKind::Dropped(DropReason::NoBackend);
    datapath.counters().expect("counters")[&(kind, Direction::Egress)].packets
}

fn notes(datapath: &Datapath) -> usize {
    datapath.map_dump(map_name::SOCKETS_V4).expect("dump").len()
}

#[test]
fn clients_speak_to_backends_and_see_the_frontend() {
    let Some(play) = Play::new() else { return };
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = EndAtLast(&end);
        play.stage.play(async || {
            let mut datapath = play.open().await;
            for (workload, id) in [(&play.one, 2), (&play.two, 3)] {
                answers(scope, workload, address(1, id), &end);
            }
            let places: BTreeSet<SocketAddr> =
                [2, 3].map(|id| SocketAddr::from((address(1, id), BACKEND_PORT))).into();
            must(&mut datapath, both(&[backend(1, address(1, 2)), backend(2, address(1, 3))])).await;
            must(&mut datapath, node_port()).await;
            let node = &play.stage.node;
            let clients = [
                (&play.client, address(1, 1), (VIP, PORT)),
                (&play.client, address(1, 1), (gateway(1), NODE_PORT)),
                (node, gateway(1), (VIP, PORT)),
                (node, gateway(1), (gateway(1), NODE_PORT)),
                (node, gateway(1), (LOOPBACK, NODE_PORT)),
            ];
            for (from, seen_as, to) in clients {
                let frontend = SocketAddr::from(to);
                // Each connection gets a backend by chance; that one of two is missed 64 times is out of the question.
                let mut seen = BTreeSet::new();
                let mut streams = Vec::new();
                while seen.len() < 2 {
                    assert!(streams.len() < 64, "only {seen:?}");
                    let mut stream = play.tcp(from, to).expect("connect");
                    let (who, client) = ask(&mut stream);
                    assert_eq!(client.ip(), IpAddr::from(seen_as));
                    assert_eq!(stream.peer_addr().expect("a peer"), frontend);
                    seen.insert(SocketAddr::new(who, BACKEND_PORT));
                    streams.push(stream);
                }
                assert_eq!(seen, places);
                assert_eq!(remotes(from, "tcp"), places, "no packet is to the frontend");
                drop(streams);

                let connected = play.udp(from);
                connect(&connected, to).expect("connect");
                assert_eq!(connected.peer_addr().expect("a peer"), frontend);
                connected.send(b"?").expect("ask");
                let (length, source) = connected.recv_from(&mut [0; 64]).expect("an answer");
                assert!(length > 1);
                assert_eq!(source, frontend);
                assert!(remotes(from, "udp").is_subset(&places));

                // Datagrams of one socket go to one backend, whatever the chances.
                let unconnected = play.udp(from);
                let first = exchange(&unconnected, to);
                assert_eq!(first.1, frontend);
                for _ in 0..16 {
                    assert_eq!(exchange(&unconnected, to), first);
                }
                // And to the backend itself it can speak as well, with a socket of its own.
                let (who, port) = (first.0.0, BACKEND_PORT);
                let IpAddr::V4(who) = who else { panic!("{who}") };
                assert_eq!(exchange(&play.udp(from), (who, port)).1, SocketAddr::from((who, port)));
            }
            // What a pod's loopback has is the pod's.
            let refused = play.tcp(&play.client, (LOOPBACK, NODE_PORT)).expect_err("nobody listens");
            assert_eq!(refused, nix::errno::Errno::ECONNREFUSED);

            // Who is its own backend gets itself, by its own address.
            must(&mut datapath, both(&[backend(1, address(1, 2))])).await;
            let mut own = play.tcp(&play.one, (VIP, PORT)).expect("connect");
            let (who, client) = ask(&mut own);
            assert_eq!((who, client.ip()), (address(1, 2).into(), IpAddr::from(address(1, 2))));
        });
    });
}

#[test]
fn with_affinity_a_client_keeps_its_backend_by_whichever_way() {
    let Some(play) = Play::new() else { return };
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = EndAtLast(&end);
        play.stage.play(async || {
            let mut datapath = play.open().await;
            for (workload, id) in [(&play.one, 2), (&play.two, 3)] {
                answers(scope, workload, address(1, id), &end);
            }
            let all = [backend(1, address(1, 2)), backend(2, address(1, 3))];
            let with_affinity = |backends: &[(BackendId, BackendValue)]| {
                let keep = |mut op: Op| {
                    if let Op::Put(Entry::Service(_, value)) = &mut op {
                        value.affinity_seconds = 600;
                    }
                    op
                };
                both(backends).into_iter().map(keep).collect::<Vec<_>>()
            };
            must(&mut datapath, with_affinity(&all)).await;
            let at_the_socket = || ask(&mut play.tcp(&play.client, (VIP, PORT)).expect("connect")).0;
            let by_packets = || {
                // This process is in no cgroup of a node.
                play.client.enter(|| {
                    let mut stream = TcpStream::connect((VIP, PORT)).expect("connect");
                    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
                    ask(&mut stream).0
                })
            };
            let first = at_the_socket();
            let keeps = || (0..8).all(|_| at_the_socket() == first && by_packets() == first);
            assert!(keeps());
            // It was the only one for a moment; the client stays where others come back.
            let alone = if first == all[0].1.address { all[0] } else { all[1] };
            must(&mut datapath, with_affinity(&[alone])).await;
            assert!(keeps());
            must(&mut datapath, with_affinity(&all)).await;
            assert!(keeps());
            // One that takes nothing new is left.
            let leaving = BackendValue { state: BackendState::Terminating, ..alone.1 };
            let other = if first == all[0].1.address { all[1] } else { all[0] };
            must(&mut datapath, with_affinity(&[other, (alone.0, leaving)])).await;
            assert!((0..8).all(|_| at_the_socket() == other.1.address && by_packets() == other.1.address));
        });
    });
}

#[test]
fn a_socket_is_forgotten_with_its_end_and_when_it_goes_elsewhere() {
    let Some(play) = Play::new() else { return };
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = EndAtLast(&end);
        play.stage.play(async || {
            let mut datapath = play.open().await;
            answers(scope, &play.one, address(1, 2), &end);
            must(&mut datapath, both(&[backend(1, address(1, 2))])).await;
            let before = notes(&datapath);
            let mut stream = play.tcp(&play.client, (VIP, PORT)).expect("connect");
            assert_eq!(ask(&mut stream).0, IpAddr::from(address(1, 2)));
            let socket = play.udp(&play.client);
            connect(&socket, (VIP, PORT)).expect("connect");
            assert_eq!(notes(&datapath), before + 2);
            // Now it has named the backend itself.
            let there = (address(1, 2), BACKEND_PORT);
            connect(&socket, there).expect("connect");
            assert_eq!(socket.peer_addr().expect("a peer"), there.into());
            assert_eq!(notes(&datapath), before + 1);
            drop((stream, socket));
            // Another test's child has copies of all descriptors until it becomes a program of its own.
            let deadline = Instant::now() + PATIENCE;
            while notes(&datapath) != before {
                assert!(Instant::now() < deadline, "it is not forgotten");
            }
        });
    });
}

#[test]
fn without_backends_clients_are_refused_and_counted() {
    let Some(play) = Play::new() else { return };
    play.stage.play(async || {
        let mut datapath = play.open().await;
        must(&mut datapath, both(&[])).await;
        for from in [&play.client, &play.stage.node] {
            let before = refusals(&datapath);
            let refused = play.tcp(from, (VIP, PORT)).expect_err("nobody is there");
            assert_eq!(refused, nix::errno::Errno::ECONNREFUSED);
            let socket = play.udp(from);
            assert_eq!(connect(&socket, (VIP, PORT)), Err(nix::errno::Errno::ECONNREFUSED));
            let refused = socket.send_to(b"?", (VIP, PORT)).expect_err("nobody is there");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            assert_eq!(refusals(&datapath), before + 3);
        }
        let mut events = datapath.events().expect("the ring").expect("not taken yet");
        let mut event = None;
        while event.is_none() {
            event = events.next().await.filter(|event| event.reason != 0);
        }
        let event = event.expect("found");
        assert_eq!(event.reason, DropReason::NoBackend as u8);
        assert_eq!(event.src[12..], address(1, 1).octets());
        assert_eq!((&event.dst[12..], event.dst_port_be), (&VIP.octets()[..], PORT.to_be_bytes()));
    });
}

#[test]
fn sockets_to_a_backend_that_is_gone_end() {
    for ends_tcp in [false, true] {
        let Some(play) = Play::new() else { return };
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            let _guard = EndAtLast(&end);
            play.stage.play(async || {
                drop(play.open().await);
                let sockets = SocketConfig { cgroup: play.cgroup.path.clone(), ends_tcp };
                let config = LinuxConfig { sockets: Some(sockets), ..play.stage.config() };
                let mut datapath = play.stage.open_with(config).await;
                answers(scope, &play.one, address(1, 2), &end);
                answers(scope, &play.two, address(1, 3), &end);
                let (stays, goes) = (backend(1, address(1, 2)), backend(2, address(1, 3)));
                must(&mut datapath, both(&[goes])).await;
                let clients = [&play.client, &play.stage.node];
                let connected = |from| {
                    let socket = play.udp(from);
                    connect(&socket, (VIP, PORT)).expect("connect");
                    socket.send(b"?").expect("ask");
                    assert!(socket.recv(&mut [0; 64]).expect("an answer") > 1);
                    socket
                };
                let old: Vec<UdpSocket> = clients.map(connected).into();
                let mut streams = clients.map(|from| play.tcp(from, (VIP, PORT)).expect("connect"));
                let datagrams = clients.map(|from| play.udp(from));
                for socket in &datagrams {
                    assert_eq!(exchange(socket, (VIP, PORT)).0.0, IpAddr::from(address(1, 3)));
                }
                // Who speaks to the backend itself does not mind what services do.
                let direct = play.udp(&play.client);
                connect(&direct, (address(1, 3), BACKEND_PORT)).expect("connect");

                let leaving = BackendValue { state: BackendState::Terminating, ..goes.1 };
                must(&mut datapath, both(&[stays, (goes.0, leaving)])).await;
                let new: Vec<UdpSocket> = clients.map(connected).into();
                for socket in old.iter().chain(&new) {
                    socket.send(b"?").expect("it goes on");
                    assert!(socket.recv(&mut [0; 64]).expect("an answer") > 1);
                }
                let gone = vec![
                    Op::Delete(TableKey::Backend(BackendId(2))),
                    Op::Delete(TableKey::Backend(BackendId(12))),
                ];
                must(&mut datapath, gone).await;
                for socket in &old {
                    let error = socket.recv(&mut [0; 64]).expect_err("it has ended");
                    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
                }
                for socket in new.iter().chain([&direct]) {
                    socket.send(b"?").expect("it goes on");
                    assert!(socket.recv(&mut [0; 64]).expect("an answer") > 1);
                }
                for socket in &datagrams {
                    assert_eq!(exchange(socket, (VIP, PORT)).0.0, IpAddr::from(address(1, 2)), "to another");
                }
                for stream in &mut streams {
                    if ends_tcp {
                        let error = stream.read(&mut [0; 8]).expect_err("it has ended");
                        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
                    } else {
                        assert_eq!(ask(stream).0, IpAddr::from(address(1, 3)));
                    }
                }
            });
        });
    }
}

#[test]
fn what_others_take_away_at_sockets_is_seen_and_mended() {
    let Some(play) = Play::new() else { return };
    play.stage.play(async || {
        let mut datapath = play.open().await;
        must(&mut datapath, both(&[])).await;
        let whole = datapath.observe().await.expect("observe");
        assert_eq!(whole.broken, [""; 0]);
        fs::remove_file(play.stage.pin_root.join("links/cgroup-sock_sendmsg4")).expect("remove a link");
        let map = MapData::from_pin(play.stage.pin_root.join("maps").join(map_name::NAMESPACES));
        let map = Map::from_map_data(map.expect("the pinned map")).expect("a map");
        let mut map: HashMap<_, u64, [u8; size_of::<NamespaceEntry>()]> = map.try_into().expect("a table");
        let cookies: Vec<u64> = map.keys().map(|cookie| cookie.expect("a cookie")).collect();
        assert_eq!(cookies.len(), 4, "the node and three endpoints");
        cookies.iter().for_each(|cookie| map.remove(cookie).expect("remove it"));

        let damaged = datapath.observe().await.expect("observe");
        let cgroup = play.cgroup.path.display();
        let mut expected = vec![
            format!("{cgroup}: program sock_sendmsg4 is not attached"),
            "the node's network namespace is not in the maps".to_owned(),
        ];
        expected.extend((1..=3).map(|id| format!("endpoint {id}: its network namespace is not in the maps")));
        assert_eq!(damaged.broken, expected);

        // Without a word of where the endpoints are: what is there is found.
        let mut ops = foundations(1);
        for (id, workload) in [(1, &play.client), (2, &play.one), (3, &play.two)] {
            let (id, value) = endpoint(1, id, &workload.path());
            ops.extend(endpoint_ops(id, &EndpointValue { attachment: None, ..value }));
        }
        must(&mut datapath, ops).await;
        assert_eq!(datapath.observe().await.expect("observe"), whole);
        assert!(at_work(&datapath).await);
        assert_eq!(play.tcp(&play.client, (VIP, PORT)).err(), Some(nix::errno::Errno::ECONNREFUSED));
        assert_eq!(refusals(&datapath), 1);
    });
}

/// Somebody else's program at the same hook works beside ours, and stays.
#[test]
fn others_at_the_same_hooks_are_left_alone() {
    let Some(play) = Play::new() else { return };
    let mut other = aya::Ebpf::load(datapath_linux::object::OBJECT).expect("load the object");
    let program: &mut CgroupSockAddr =
        other.program_mut("sock_connect4").expect("in the object").try_into().expect("of that kind");
    program.load().expect("load");
    let id = program.info().expect("it is loaded").id();
    let cgroup = fs::File::open(&play.cgroup.path).expect("open");
    program.attach(&cgroup, CgroupAttachMode::Single).expect("attach");
    play.stage.play(async || {
        let mut datapath = play.open().await;
        must(&mut datapath, both(&[])).await;
        assert_eq!(play.tcp(&play.client, (VIP, PORT)).err(), Some(nix::errno::Errno::ECONNREFUSED));
        assert_eq!(refusals(&datapath), 1);
        drop(datapath);
        cleanup(&play.stage.config(), false).await.expect("clean up");
    });
    assert!(play.cgroup.programs().expect("ask").contains(&id));
}

/// The next agent finds what the last one left half done.
#[test]
fn sockets_whose_backend_went_while_no_agent_ran_end() {
    let Some(play) = Play::new() else { return };
    play.stage.play(async || {
        let mut datapath = play.open().await;
        must(&mut datapath, both(&[backend(2, address(1, 3))])).await;
        let socket = play.udp(&play.client);
        connect(&socket, (VIP, PORT)).expect("connect");
        drop(datapath);
        // As one that does not know sockets: they are not looked at.
        let mut other = play.stage.open().await;
        must(&mut other, vec![Op::Delete(TableKey::Backend(BackendId(12)))]).await;
        drop(other);
        let mut next = play.stage.open_with(play.config()).await;
        must(&mut next, vec![]).await;
        let error = socket.recv(&mut [0; 64]).expect_err("it has ended");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    });
}

#[test]
fn only_the_nodes_and_its_endpoints_namespaces_are_translated() {
    let Some(play) = Play::new() else { return };
    let foreign = Namespace::new("foreign");
    foreign.run("ip", &["link", "set", "lo", "up"]);
    play.stage.play(async || {
        let mut datapath = play.open().await;
        must(&mut datapath, both(&[])).await;
        let error = play.tcp(&foreign, (VIP, PORT)).expect_err("it has no route there");
        assert_eq!(error, nix::errno::Errno::ENETUNREACH);
        assert_eq!(refusals(&datapath), 0);
        assert_eq!(play.tcp(&play.client, (VIP, PORT)).err(), Some(nix::errno::Errno::ECONNREFUSED));
        let (id, _) = endpoint(1, 1, &play.client.path());
        must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
        assert_eq!(play.tcp(&play.client, (VIP, PORT)).err(), Some(nix::errno::Errno::ENETUNREACH));
    });
}

#[test]
fn programs_at_sockets_are_adopted_moved_and_taken_off() {
    let Some(play) = Play::new() else { return };
    let elsewhere = Cgroup::new(&format!("{}-other", play.stage.node.name)).expect("another");
    play.stage.play(async || {
        let pin = |name: &str| play.stage.pin_root.join("links").join(name);
        let mut first = play.stage.open_with(play.config()).await;
        assert!(at_work(&first).await);
        must(&mut first, node_with_endpoint(&play.client)).await;
        must(&mut first, both(&[])).await;
        // The path of packets would only answer what is sent.
        let refused =
            || connect(&play.udp(&play.client), (VIP, PORT)) == Err(nix::errno::Errno::ECONNREFUSED);
        assert!(refused());
        let before = fs::read_dir(play.stage.pin_root.join("links")).expect("links").count();
        drop(first);
        assert!(refused(), "programs outlive their agent");

        let second = play.stage.open_with(play.config()).await;
        assert!(at_work(&second).await, "the next agent's own programs");
        assert_eq!(fs::read_dir(play.stage.pin_root.join("links")).expect("links").count(), before);
        assert!(refused());
        drop(second);

        // Another cgroup.
        let sockets = SocketConfig { cgroup: elsewhere.path.clone(), ends_tcp: false };
        let config = LinuxConfig { sockets: Some(sockets), ..play.stage.config() };
        let third = play.stage.open_with(config).await;
        assert!(at_work(&third).await);
        drop(third);

        // One that is not there: by packets only, and nothing fails.
        let sockets = SocketConfig { cgroup: "/nonexistent".into(), ends_tcp: false };
        let config = LinuxConfig { sockets: Some(sockets), ..play.stage.config() };
        let fourth = play.stage.open_with(config).await;
        assert!(!at_work(&fourth).await);
        assert!(!pin("cgroup-sock_connect4").exists());
        drop(fourth);

        drop(play.stage.open_with(play.config()).await);
        assert!(pin("cgroup-sock_connect4").exists());
        drop(play.stage.open().await);
        assert!(!pin("cgroup-sock_connect4").exists(), "not wanted any more");

        drop(play.stage.open_with(play.config()).await);
        let did = cleanup(&play.stage.config(), false).await.expect("clean up");
        let taken = pin("cgroup-sock_connect4").display().to_string();
        assert!(did.iter().any(|step| step.done && step.what == format!("pin {taken}")), "{did:#?}");
    });
}
