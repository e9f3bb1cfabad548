//! Packets through the programs: between endpoints of one node, with the node itself, and across nodes.

use std::{collections::BTreeMap, time::Duration};

use datapath_abi::EventKind;
use datapath_linux::{CounterKind, Datapath, FlowFilter};
use datapath_plan::{IpcacheValue, NodeIndex, NodeValue, Op, RouteValue};
use identity::Identity;

use crate::stage::{
    Cluster, MTU_BYTES, Namespace, Stage, address, endpoint, endpoint_ops, foundations, gateway, must,
};

/// Counters that are not zero, for messages of failed tests.
fn used(datapath: &Datapath) -> BTreeMap<(&'static str, &'static str), u64> {
    let counters = datapath.counters().expect("counters").into_iter();
    counters
        .filter(|(_, count)| count.packets > 0)
        .map(|((kind, direction), count)| ((kind.key(), direction.key()), count.packets))
        .collect()
}

#[test]
fn endpoints_of_one_node_and_the_node_reach_each_other() {
    let Some(stage) = Stage::new() else { return };
    let workloads = [Namespace::new("one"), Namespace::new("two")];
    stage.play(async || {
        let mut datapath = stage.open().await;
        let mut events = datapath.events().expect("the ring").expect("is taken once");
        let mut ops = foundations(1);
        for (id, workload) in (1..).zip(&workloads) {
            let (id, value) = endpoint(1, id, &workload.path());
            ops.extend(endpoint_ops(id, &value));
        }
        must(&mut datapath, ops).await;

        let [one, two] = &workloads;
        assert!(one.pings(address(1, 2)), "endpoint to endpoint: {:?}", used(&datapath));
        assert!(two.pings(address(1, 1)), "and back: {:?}", used(&datapath));
        assert!(one.pings(gateway(1)), "endpoint to node: {:?}", used(&datapath));
        assert!(stage.node.pings(address(1, 1)), "node to endpoint: {:?}", used(&datapath));
        assert!(stage.node.pings(address(1, 2)), "node to the other: {:?}", used(&datapath));

        let dropped = used(&datapath).into_keys().filter(|(kind, _)| *kind != CounterKind::Forwarded.key());
        assert_eq!(dropped.collect::<Vec<_>>(), [], "nothing was dropped");
        assert_eq!(datapath.flow_stats().expect("stats").entries, 10, "two entries for each of five pings");
        let flows = datapath
            .flows(usize::MAX, &FlowFilter { address: Some(gateway(1).into()), ..Default::default() });
        assert_eq!(flows.expect("flows").len(), 6, "three conversations of the node's");

        let first =
            tokio::time::timeout(Duration::from_secs(5), events.next()).await.expect("an event comes");
        let first = first.expect("the ring is open");
        assert_eq!(
            (first.kind, first.src_identity, first.dst_identity),
            (EventKind::FlowNew as u8, 301, 302)
        );
    });
}

#[test]
fn endpoints_of_two_nodes_reach_each_other() {
    let Some(cluster) = Cluster::new(2) else { return };
    let workloads = [Namespace::new("one"), Namespace::new("two")];
    for (number, workload) in (1..).zip(&workloads) {
        let stage = cluster.node(number);
        stage.play(async || {
            let mut datapath = stage.open().await;
            let (id, value) = endpoint(number, 1, &workload.path());
            let mut ops = foundations(number);
            ops.extend(other_node(3 - number));
            ops.extend(endpoint_ops(id, &value));
            must(&mut datapath, ops).await;
        });
    }
    let [one, two] = &workloads;
    // Both agents are gone by now; what they made works on. Opening adopts it.
    let counters = || -> Vec<_> {
        cluster.stages.iter().map(|stage| stage.play(async || used(&stage.open().await))).collect()
    };
    assert!(one.pings(address(2, 1)), "endpoint to endpoint: {:?}", counters());
    assert!(two.pings(address(1, 1)), "and back: {:?}", counters());
    assert!(cluster.node(1).node.pings(address(2, 1)), "node to endpoint: {:?}", counters());
    assert!(one.pings(gateway(2)), "endpoint to node: {:?}", counters());
}

/// What a node knows of another one.
fn other_node(number: u8) -> Vec<Op> {
    let index = NodeIndex(2);
    let cidr = format!("10.77.{number}.0/24").parse().expect("a CIDR");
    vec![
        Op::PutNode(index, NodeValue { underlay: Cluster::underlay(number).into() }),
        Op::PutIpcache(cidr, IpcacheValue { identity: Identity::UNKNOWN, node: index }),
        Op::PutIpcache(
            std::net::IpAddr::from(gateway(number)).into(),
            IpcacheValue { identity: Identity::REMOTE_NODE, node: index },
        ),
        Op::PutRoute(cidr, RouteValue { source: gateway(3 - number).into(), mtu_bytes: MTU_BYTES }),
    ]
}
