//! Real traffic: between endpoints of one node, with the host, and between nodes.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use datapath_abi::EventKind;
use datapath_linux::{CounterKind, Datapath, FlowFilter};
use datapath_plan::{Entry, IpcacheValue, NodeIndex, NodeValue, Op, RouteValue};
use identity::Identity;

use crate::stage::{
    Cluster, MTU_BYTES, Namespace, Stage, address, base_ops, endpoint, endpoint_ops, gateway, must,
};

/// The counters that are not zero.
fn nonzero_counters(datapath: &Datapath) -> BTreeMap<(&'static str, &'static str), u64> {
    let counters = datapath.counters().expect("counters").into_iter();
    counters
        .filter(|(_, count)| count.packets > 0)
        .map(|((kind, direction), count)| ((kind.key(), direction.key()), count.packets))
        .collect()
}

#[test]
fn local_endpoints_and_the_host_reach_each_other() {
    let Some(stage) = Stage::new() else { return };
    let workloads = [Namespace::new("one"), Namespace::new("two")];
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let mut events = datapath.events().expect("the ring").expect("not taken before");
        let mut ops = base_ops(1);
        for (id, workload) in (1..).zip(&workloads) {
            let (id, value) = endpoint(1, id, &workload.path());
            ops.extend(endpoint_ops(id, &value));
        }
        must(&mut datapath, ops).await;

        let [one, two] = &workloads;
        assert!(one.pings(address(1, 2)), "endpoint to endpoint: {:?}", nonzero_counters(&datapath));
        assert!(two.pings(address(1, 1)), "and back: {:?}", nonzero_counters(&datapath));
        assert!(one.pings(gateway(1)), "endpoint to node: {:?}", nonzero_counters(&datapath));
        assert!(stage.node.pings(address(1, 1)), "node to endpoint: {:?}", nonzero_counters(&datapath));
        assert!(stage.node.pings(address(1, 2)), "node to the other: {:?}", nonzero_counters(&datapath));

        let dropped =
            nonzero_counters(&datapath).into_keys().filter(|(kind, _)| *kind != CounterKind::Forwarded.key());
        assert_eq!(dropped.collect::<Vec<_>>(), [], "nothing was dropped");
        assert_eq!(
            datapath.flow_table().expect("a handle").stats().expect("stats").entries,
            10,
            "two entries for each of five pings"
        );
        let flows = datapath
            .flow_table()
            .expect("a handle")
            .list(usize::MAX, &FlowFilter { address: Some(gateway(1).into()), ..Default::default() });
        assert_eq!(flows.expect("flows").len(), 6, "three flows of the host");

        let first =
            tokio::time::timeout(Duration::from_secs(5), events.next()).await.expect("an event comes");
        let first = first.expect("the ring is open");
        assert_eq!(
            (first.kind, first.src_identity, first.dst_identity),
            (EventKind::FlowNew as u8, 301, 302)
        );
    });
}

/// Two nodes with an endpoint each; the agents that set them up are gone.
fn two_nodes() -> Option<(Cluster, [Namespace; 2])> {
    let cluster = Cluster::new(2)?;
    let workloads = [Namespace::new("one"), Namespace::new("two")];
    for (number, workload) in (1..).zip(&workloads) {
        let stage = cluster.node(number);
        stage.block_on(async || {
            let mut datapath = stage.open().await;
            let (id, value) = endpoint(number, 1, &workload.path());
            let mut ops = base_ops(number);
            ops.extend(other_node(3 - number));
            ops.extend(endpoint_ops(id, &value));
            must(&mut datapath, ops).await;
        });
    }
    Some((cluster, workloads))
}

#[test]
fn remote_endpoints_reach_each_other() {
    let Some((cluster, [one, two])) = two_nodes() else { return };
    // Opening adopts the state that the agents left.
    let counters = || -> Vec<_> {
        cluster
            .stages
            .iter()
            .map(|stage| stage.block_on(async || nonzero_counters(&stage.open().await)))
            .collect()
    };
    assert!(one.pings(address(2, 1)), "endpoint to endpoint: {:?}", counters());
    assert!(two.pings(address(1, 1)), "and back: {:?}", counters());
    assert!(cluster.node(1).node.pings(address(2, 1)), "node to endpoint: {:?}", counters());
    assert!(one.pings(gateway(2)), "endpoint to node: {:?}", counters());
}

#[test]
fn tunnel_carries_large_packets() {
    let Some((_cluster, [one, two])) = two_nodes() else { return };

    let listener = two.enter(|| TcpListener::bind((address(2, 1), 7000)).expect("listen"));
    let mut sender = one.enter(|| TcpStream::connect((address(2, 1), 7000)).expect("connect"));
    let (mut receiver, _) = listener.accept().expect("accept");
    let data: Vec<u8> = (0..20_000_000_u32).map(|index| (index % 251) as u8).collect();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&data).expect("send");
            sender.shutdown(Shutdown::Write).expect("end");
        });
        let mut received = Vec::new();
        receiver.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        receiver.read_to_end(&mut received).expect("receive");
        received
    });
    assert!(received == data, "{} of {} bytes, or others", received.len(), data.len());

    // More than the MTU: fragments.
    let receiver = two.enter(|| UdpSocket::bind((address(2, 1), 7001)).expect("bind"));
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let sender = one.enter(|| UdpSocket::bind((address(1, 1), 0)).expect("bind"));
    sender.send_to(&data[..5000], (address(2, 1), 7001)).expect("send");
    let mut datagram = [0; 8192];
    let (length, from) = receiver.recv_from(&mut datagram).expect("receive");
    assert_eq!((&datagram[..length], from.ip()), (&data[..5000], address(1, 1).into()));
}

#[test]
fn restart_loses_no_packet() {
    let Some((cluster, [one, _two])) = two_nodes() else { return };
    assert!(one.pings(address(2, 1)), "the endpoints are connected");
    let target = address(2, 1).to_string();
    let arguments = ["-n", "-q", "-i", "0.002", "-c", "1000", "-W", "2", &target];
    let report = std::thread::scope(|scope| {
        let ping = scope.spawn(|| one.run("ping", &arguments));
        while !ping.is_finished() {
            for stage in &cluster.stages {
                stage.block_on(async || drop(stage.open().await));
            }
        }
        ping.join().expect("ping ends")
    });
    assert!(report.contains("1000 received, 0% packet loss"), "{report}");
}

/// The operations by which a node of two knows the other one.
pub fn other_node(number: u8) -> Vec<Op> {
    let index = NodeIndex(2);
    let cidr = format!("10.77.{number}.0/24").parse().expect("a CIDR");
    vec![
        Op::Put(Entry::Node(index, NodeValue { underlay: Cluster::underlay(number).into() })),
        Op::Put(Entry::Ipcache(cidr, IpcacheValue { identity: Identity::UNKNOWN, node: index })),
        Op::Put(Entry::Ipcache(
            std::net::IpAddr::from(gateway(number)).into(),
            IpcacheValue { identity: Identity::REMOTE_NODE, node: index },
        )),
        Op::Put(Entry::Route(
            cidr,
            RouteValue { next_hop: None, source: gateway(3 - number).into(), mtu_bytes: MTU_BYTES },
        )),
    ]
}
