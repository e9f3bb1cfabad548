//! What clients connect to, and which address they see.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::AtomicBool,
    thread,
};

use datapath_abi::DropReason;
use datapath_plan::{BackendId, BackendState, BackendValue, Entry, Op, TableKey};
use nix::errno::Errno;

use super::{LOOPBACK, NODE_PORT, Topology, connect, exchange, node_port, refusals, remotes};
use crate::{
    services::{
        BACKEND_PORT, PORT, VIP, backend, both_protocols,
        echo::{PATIENCE, StopOnDrop, request, serve_echo},
    },
    stage::{Namespace, address, endpoint, gateway, must},
};

#[test]
fn socket_translation_connects_to_backends_and_shows_the_frontend() {
    let Some(topology) = Topology::new() else { return };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        topology.stage.block_on(async || {
            let mut datapath = topology.open().await;
            for (workload, id) in [(&topology.one, 2), (&topology.two, 3)] {
                serve_echo(scope, workload, address(1, id), &stop);
            }
            let backends: BTreeSet<SocketAddr> =
                [2, 3].map(|id| SocketAddr::from((address(1, id), BACKEND_PORT))).into();
            must(&mut datapath, both_protocols(&[backend(1, address(1, 2)), backend(2, address(1, 3))]))
                .await;
            must(&mut datapath, node_port()).await;
            let node = &topology.stage.node;
            let clients = [
                (&topology.client, address(1, 1), (VIP, PORT)),
                (&topology.client, address(1, 1), (gateway(1), NODE_PORT)),
                (node, gateway(1), (VIP, PORT)),
                (node, gateway(1), (gateway(1), NODE_PORT)),
                (node, gateway(1), (LOOPBACK, NODE_PORT)),
            ];
            for (from, seen_as, to) in clients {
                let frontend = SocketAddr::from(to);
                // Each connection gets a random backend: the probability that one of two is missed 64 times is 2^-63.
                let mut seen = BTreeSet::new();
                let mut streams = Vec::new();
                while seen.len() < 2 {
                    assert!(streams.len() < 64, "only {seen:?}");
                    let mut stream = topology.tcp(from, to).expect("connect");
                    let (who, client) = request(&mut stream);
                    assert_eq!(client.ip(), IpAddr::from(seen_as));
                    assert_eq!(stream.peer_addr().expect("a peer"), frontend);
                    seen.insert(SocketAddr::new(who, BACKEND_PORT));
                    streams.push(stream);
                }
                assert_eq!(seen, backends);
                assert_eq!(remotes(from, "tcp"), backends, "no packet goes to the frontend");
                drop(streams);

                let connected = topology.udp(from);
                connect(&connected, to).expect("connect");
                assert_eq!(connected.peer_addr().expect("a peer"), frontend);
                connected.send(b"?").expect("send a request");
                let (length, source) = connected.recv_from(&mut [0; 64]).expect("a response");
                assert!(length > 1);
                assert_eq!(source, frontend);
                assert!(remotes(from, "udp").is_subset(&backends));

                // All datagrams of one socket go to one backend.
                let unconnected = topology.udp(from);
                let first = exchange(&unconnected, to);
                assert_eq!(first.1, frontend);
                for _ in 0..16 {
                    assert_eq!(exchange(&unconnected, to), first);
                }
                // A new socket can reach the backend by its own address.
                let (who, port) = (first.0.0, BACKEND_PORT);
                let IpAddr::V4(who) = who else { panic!("{who}") };
                assert_eq!(exchange(&topology.udp(from), (who, port)).1, SocketAddr::from((who, port)));
            }
            // The node port does not exist at a workload's own loopback address.
            let refused = topology.tcp(&topology.client, (LOOPBACK, NODE_PORT)).expect_err("nobody listens");
            assert_eq!(refused, Errno::ECONNREFUSED);

            // A backend that is its own client connects to itself, from its own address.
            must(&mut datapath, both_protocols(&[backend(1, address(1, 2))])).await;
            let mut own = topology.tcp(&topology.one, (VIP, PORT)).expect("connect");
            let (who, client) = request(&mut own);
            assert_eq!((who, client.ip()), (address(1, 2).into(), IpAddr::from(address(1, 2))));
        });
    });
}

#[test]
fn affinity_is_shared_by_sockets_and_packets() {
    let Some(topology) = Topology::new() else { return };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        topology.stage.block_on(async || {
            let mut datapath = topology.open().await;
            for (workload, id) in [(&topology.one, 2), (&topology.two, 3)] {
                serve_echo(scope, workload, address(1, id), &stop);
            }
            let all = [backend(1, address(1, 2)), backend(2, address(1, 3))];
            let with_affinity = |backends: &[(BackendId, BackendValue)]| {
                let keep = |mut op: Op| {
                    if let Op::Put(Entry::Service(_, value)) = &mut op {
                        value.affinity_seconds = 600;
                    }
                    op
                };
                both_protocols(backends).into_iter().map(keep).collect::<Vec<_>>()
            };
            must(&mut datapath, with_affinity(&all)).await;
            let by_socket = || request(&mut topology.tcp(&topology.client, (VIP, PORT)).expect("connect")).0;
            let by_packets = || {
                // This process is not in the node's cgroup: its connections are translated by packets.
                topology.client.enter(|| {
                    let mut stream = TcpStream::connect((VIP, PORT)).expect("connect");
                    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
                    request(&mut stream).0
                })
            };
            let first = by_socket();
            let keeps = || (0..8).all(|_| by_socket() == first && by_packets() == first);
            assert!(keeps());
            // For a moment the client's backend is the only one; then the other comes back.
            let alone = if first == all[0].1.address { all[0] } else { all[1] };
            must(&mut datapath, with_affinity(&[alone])).await;
            assert!(keeps());
            must(&mut datapath, with_affinity(&all)).await;
            assert!(keeps());
            // A terminating backend loses the client.
            let terminating = BackendValue { state: BackendState::Terminating, ..alone.1 };
            let other = if first == all[0].1.address { all[1] } else { all[0] };
            must(&mut datapath, with_affinity(&[other, (alone.0, terminating)])).await;
            assert!((0..8).all(|_| by_socket() == other.1.address && by_packets() == other.1.address));
        });
    });
}

#[test]
fn socket_translation_without_backends_refuses_and_counts() {
    let Some(topology) = Topology::new() else { return };
    topology.stage.block_on(async || {
        let mut datapath = topology.open().await;
        must(&mut datapath, both_protocols(&[])).await;
        for from in [&topology.client, &topology.stage.node] {
            let before = refusals(&datapath);
            let refused = topology.tcp(from, (VIP, PORT)).expect_err("no backend");
            assert_eq!(refused, Errno::ECONNREFUSED);
            let socket = topology.udp(from);
            assert_eq!(connect(&socket, (VIP, PORT)), Err(Errno::ECONNREFUSED));
            let refused = socket.send_to(b"?", (VIP, PORT)).expect_err("no backend");
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
fn socket_translation_covers_only_the_node_and_its_endpoints() {
    let Some(topology) = Topology::new() else { return };
    let foreign = Namespace::new("foreign");
    foreign.run("ip", &["link", "set", "lo", "up"]);
    topology.stage.block_on(async || {
        let mut datapath = topology.open().await;
        must(&mut datapath, both_protocols(&[])).await;
        let error = topology.tcp(&foreign, (VIP, PORT)).expect_err("the namespace has no route");
        assert_eq!(error, Errno::ENETUNREACH);
        assert_eq!(refusals(&datapath), 0);
        assert_eq!(topology.tcp(&topology.client, (VIP, PORT)).err(), Some(Errno::ECONNREFUSED));
        let (id, _) = endpoint(1, 1, &topology.client.path());
        must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
        assert_eq!(topology.tcp(&topology.client, (VIP, PORT)).err(), Some(Errno::ENETUNREACH));
    });
}
