//! When a translated socket ends, and when its entry is removed.

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, UdpSocket},
    sync::atomic::AtomicBool,
    thread,
    time::Instant,
};

use datapath_linux::{LinuxConfig, SocketConfig};
use datapath_plan::{BackendId, BackendState, BackendValue, Op, TableKey};

use super::{Topology, connect, entries, exchange};
use crate::{
    services::{
        BACKEND_PORT, PORT, VIP, backend, both_protocols,
        echo::{PATIENCE, StopOnDrop, request, serve_echo},
    },
    stage::{address, must},
};

#[test]
fn socket_entry_is_removed_on_close_and_reconnect() {
    let Some(topology) = Topology::new() else { return };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        topology.stage.block_on(async || {
            let mut datapath = topology.open().await;
            serve_echo(scope, &topology.one, address(1, 2), &stop);
            must(&mut datapath, both_protocols(&[backend(1, address(1, 2))])).await;
            let before = entries(&datapath);
            let mut stream = topology.tcp(&topology.client, (VIP, PORT)).expect("connect");
            assert_eq!(request(&mut stream).0, IpAddr::from(address(1, 2)));
            let socket = topology.udp(&topology.client);
            connect(&socket, (VIP, PORT)).expect("connect");
            assert_eq!(entries(&datapath), before + 2);
            // The socket now names the backend itself.
            let backend = (address(1, 2), BACKEND_PORT);
            connect(&socket, backend).expect("connect");
            assert_eq!(socket.peer_addr().expect("a peer"), backend.into());
            assert_eq!(entries(&datapath), before + 1);
            drop((stream, socket));
            // A child process of another test holds copies of all descriptors until it calls exec.
            let deadline = Instant::now() + PATIENCE;
            while entries(&datapath) != before {
                assert!(Instant::now() < deadline, "the entry is not removed");
            }
        });
    });
}

#[test]
fn sockets_to_a_removed_backend_are_closed() {
    for ends_tcp in [false, true] {
        let Some(topology) = Topology::new() else { return };
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _guard = StopOnDrop(&stop);
            topology.stage.block_on(async || {
                drop(topology.open().await);
                let sockets = SocketConfig { cgroup: topology.cgroup.path.clone(), ends_tcp };
                let config = LinuxConfig { sockets: Some(sockets), ..topology.stage.config() };
                let mut datapath = topology.stage.open_with(config).await;
                serve_echo(scope, &topology.one, address(1, 2), &stop);
                serve_echo(scope, &topology.two, address(1, 3), &stop);
                let (stays, goes) = (backend(1, address(1, 2)), backend(2, address(1, 3)));
                must(&mut datapath, both_protocols(&[goes])).await;
                let clients = [&topology.client, &topology.stage.node];
                let connected = |from| {
                    let socket = topology.udp(from);
                    connect(&socket, (VIP, PORT)).expect("connect");
                    socket.send(b"?").expect("send a request");
                    assert!(socket.recv(&mut [0; 64]).expect("a response") > 1);
                    socket
                };
                let old: Vec<UdpSocket> = clients.map(connected).into();
                let mut streams = clients.map(|from| topology.tcp(from, (VIP, PORT)).expect("connect"));
                let datagrams = clients.map(|from| topology.udp(from));
                for socket in &datagrams {
                    assert_eq!(exchange(socket, (VIP, PORT)).0.0, IpAddr::from(address(1, 3)));
                }
                // A socket that names the backend itself is not affected.
                let direct = topology.udp(&topology.client);
                connect(&direct, (address(1, 3), BACKEND_PORT)).expect("connect");

                let terminating = BackendValue { state: BackendState::Terminating, ..goes.1 };
                must(&mut datapath, both_protocols(&[stays, (goes.0, terminating)])).await;
                let new: Vec<UdpSocket> = clients.map(connected).into();
                for socket in old.iter().chain(&new) {
                    socket.send(b"?").expect("the socket works");
                    assert!(socket.recv(&mut [0; 64]).expect("a response") > 1);
                }
                let gone = vec![
                    Op::Delete(TableKey::Backend(BackendId(2))),
                    Op::Delete(TableKey::Backend(BackendId(12))),
                ];
                must(&mut datapath, gone).await;
                for socket in &old {
                    let error = socket.recv(&mut [0; 64]).expect_err("the socket is closed");
                    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
                }
                for socket in new.iter().chain([&direct]) {
                    socket.send(b"?").expect("the socket works");
                    assert!(socket.recv(&mut [0; 64]).expect("a response") > 1);
                }
                for socket in &datagrams {
                    assert_eq!(exchange(socket, (VIP, PORT)).0.0, IpAddr::from(address(1, 2)), "to another");
                }
                for stream in &mut streams {
                    if ends_tcp {
                        let error = stream.read(&mut [0; 8]).expect_err("the socket is closed");
                        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
                    } else {
                        assert_eq!(request(stream).0, IpAddr::from(address(1, 3)));
                    }
                }
            });
        });
    }
}

/// The next agent completes what the last one left half done.
#[test]
fn sockets_to_a_backend_removed_without_an_agent_are_closed() {
    let Some(topology) = Topology::new() else { return };
    topology.stage.block_on(async || {
        let mut datapath = topology.open().await;
        must(&mut datapath, both_protocols(&[backend(2, address(1, 3))])).await;
        let socket = topology.udp(&topology.client);
        connect(&socket, (VIP, PORT)).expect("connect");
        drop(datapath);
        // An agent without socket translation does not look at sockets.
        let mut other = topology.stage.open().await;
        must(&mut other, vec![Op::Delete(TableKey::Backend(BackendId(12)))]).await;
        drop(other);
        let mut next = topology.stage.open_with(topology.config()).await;
        must(&mut next, vec![]).await;
        let error = socket.recv(&mut [0; 64]).expect_err("the socket is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    });
}
