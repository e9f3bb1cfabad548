//! Endpoints and the host reach a service with backends on two nodes.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::AtomicBool,
    thread,
};

use datapath_plan::{BackendId, BackendState, BackendValue, Entry, EpochScope, Op, RouteValue};

use super::{
    PORT, VIP, backend, both_protocols,
    echo::{
        PATIENCE, StopOnDrop, connect, request, request_by_udp, request_by_udp_from, serve_echo, udp_socket,
    },
};
use crate::{
    stage::{Cluster, MTU_BYTES, Namespace, address, base_ops, endpoint, endpoint_ops, gateway, must},
    traffic::other_node,
};

fn frontend() -> SocketAddr {
    (VIP, PORT).into()
}

/// Sends requests from a namespace over TCP and UDP: both backends respond, and see a client with one of these addresses.
#[track_caller]
fn check_both_respond(namespace: &Namespace, clients: &[Ipv4Addr]) {
    let expected: BTreeSet<IpAddr> = [address(1, 2).into(), address(2, 1).into()].into();
    namespace.enter(|| {
        for send_request in [|| request(&mut connect(frontend())), || request_by_udp(frontend())] {
            let mut seen = BTreeSet::new();
            // The probability that one of two is never chosen is 2^-63.
            for _ in 0..64 {
                let (who, client) = send_request();
                assert!(clients.iter().any(|address| client.ip() == *address), "{client}");
                seen.insert(who);
            }
            assert_eq!(seen, expected);
        }
    });
}

/// Node 1 with a client and a backend, node 2 with another backend; node 1 translates.
struct Topology {
    cluster: Cluster,
    client: Namespace,
    local: Namespace,
    remote: Namespace,
}

impl Topology {
    fn new() -> Option<Self> {
        let cluster = Cluster::new(2)?;
        let [client, local, remote] = ["client", "local", "remote"].map(Namespace::new);
        let pool = RouteValue { next_hop: None, source: gateway(1).into(), mtu_bytes: MTU_BYTES };
        let mut first = base_ops(1);
        first.extend(other_node(2));
        first.push(Op::Put(Entry::Route("10.201.0.0/16".parse().expect("a prefix"), pool)));
        for (id, workload) in [(1, &client), (2, &local)] {
            let (id, value) = endpoint(1, id, &workload.path());
            first.extend(endpoint_ops(id, &value));
        }
        let mut second = base_ops(2);
        second.extend(other_node(1));
        let (id, value) = endpoint(2, 1, &remote.path());
        second.extend(endpoint_ops(id, &value));
        let topology = Self { cluster, client, local, remote };
        for (number, ops) in [(1, first), (2, second)] {
            topology.apply(number, ops);
        }
        Some(topology)
    }

    fn apply(&self, node: u8, ops: Vec<Op>) {
        let stage = self.cluster.node(node);
        stage.block_on(async || must(&mut stage.open().await, ops).await);
    }

    /// Gives the service these backends, over both protocols.
    fn serve(&self, backends: &[(BackendId, BackendValue)]) {
        self.apply(1, both_protocols(backends));
    }
}

#[test]
fn service_is_reached_by_endpoints_and_the_host() {
    let Some(topology) = Topology::new() else { return };
    let (local, remote) = (backend(1, address(1, 2)), backend(2, address(2, 1)));
    topology.serve(&[local, remote]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        serve_echo(scope, &topology.local, address(1, 2), &stop);
        serve_echo(scope, &topology.remote, address(2, 1), &stop);

        // Backends see the client's address.
        check_both_respond(&topology.client, &[address(1, 1)]);
        check_both_respond(&topology.cluster.node(1).node, &[gateway(1)]);
        // A backend that is its own client sees the gateway.
        check_both_respond(&topology.local, &[address(1, 2), gateway(1)]);

        // A connection keeps its backend when the slots change.
        let mut connections: Vec<TcpStream> =
            topology.client.enter(|| (0..16).map(|_| connect(frontend())).collect());
        let before: Vec<_> = connections.iter_mut().map(request).collect();
        let terminating = BackendValue { state: BackendState::Terminating, ..remote.1 };
        topology.serve(&[local, (remote.0, terminating)]);
        topology.apply(1, vec![Op::BumpEpochs(EpochScope::All)]);
        let after: Vec<_> = connections.iter_mut().map(request).collect();
        assert_eq!(after, before);
        topology.client.enter(|| {
            // From unused ports: unlike a SYN, a datagram does not say that it opens a flow.
            for port in 2000..2016 {
                assert_eq!(request(&mut connect(frontend())).0, IpAddr::from(address(1, 2)), "a new flow");
                assert_eq!(request_by_udp_from(port, frontend()).0, IpAddr::from(address(1, 2)));
            }
        });

        // Without backends, clients are rejected at once.
        topology.serve(&[]);
        for namespace in [&topology.client, &topology.cluster.node(1).node] {
            namespace.enter(|| {
                let refused = TcpStream::connect_timeout(&frontend(), PATIENCE).expect_err("no backend");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
                let socket = udp_socket(frontend());
                socket.send(b"?").expect("send a request");
                let refused = socket.recv(&mut [0; 8]).expect_err("no backend");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            });
        }
    });
}
