//! What can be read from the kernel: flows and their end, dumps of maps, events.

use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use datapath_abi::{EventKind, map_name};
use datapath_linux::{FlowFilter, MAPS};
use serde_json::json;

use crate::{
    services::{backend, tcp_service},
    stage::{Namespace, Stage, address, base_ops, endpoint, endpoint_ops, gateway, must, node_with_endpoint},
};

/// A time beyond every time-out of a flow.
const FAR_FUTURE_NS: u64 = u64::MAX / 2;

#[test]
fn flows_are_listed_and_collected() {
    let Some(stage) = Stage::new() else { return };
    let workloads = [Namespace::new("one"), Namespace::new("two")];
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let mut ops = base_ops(1);
        for (id, workload) in (1..).zip(&workloads) {
            let (id, value) = endpoint(1, id, &workload.path());
            ops.extend(endpoint_ops(id, &value));
        }
        must(&mut datapath, ops).await;
        let [one, two] = &workloads;

        let listener = two.enter(|| TcpListener::bind((address(1, 2), 7000)).expect("listen"));
        let stream = one.enter(|| TcpStream::connect((address(1, 2), 7000)).expect("connect"));
        let (accepted, _) = listener.accept().expect("accept");
        assert!(one.pings(gateway(1)));

        let filter = FlowFilter { protocol: Some(6), port: Some(7000), ..FlowFilter::default() };
        let table = datapath.flow_table().expect("a handle");
        let mut flows = table.list(10, &filter).expect("flows");
        flows.sort_by_key(|flow| flow.reply);
        let [request, reply] = &flows[..] else { panic!("{flows:?}") };
        assert_eq!((request.source, request.destination), (address(1, 1).into(), address(1, 2).into()));
        assert_eq!((request.source_identity, request.destination_identity), (301, 302));
        assert_eq!((reply.source, reply.destination), (request.destination, request.source));
        assert_eq!(
            (request.reply, request.action, request.from, request.current),
            (false, "local", "endpoint", true)
        );
        assert!(reply.reply);
        assert_eq!(table.list(1, &FlowFilter::default()).expect("flows").len(), 1, "the limit holds");
        table.collect(|ended| panic!("no flow has ended: {ended:?}")).expect("collect");

        drop((stream, accepted));
        let before = table.stats().expect("stats");
        let mut ended = Vec::new();
        table.collect_at(FAR_FUTURE_NS, |batch| ended.extend(batch)).expect("collect");
        let ended: Vec<u8> = ended.iter().map(|ended| ended.flow.protocol).collect();
        assert!(ended.contains(&1), "the ping flow timed out: {ended:?}");
        assert!(before.entries >= 4 && before.tcp >= 2, "{before:?}");
        assert_eq!(table.stats().expect("stats").entries, 0);
    });
}

#[test]
fn dump_covers_every_map() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, node_with_endpoint(&workload)).await;
        must(&mut datapath, tcp_service(&[backend(1, address(1, 1))])).await;
        assert!(workload.pings(gateway(1)));

        let own = [map_name::EVENTS, map_name::BUDGETS, map_name::SCRATCH, map_name::FRAGMENTS_V4];
        let empty = [
            map_name::EPOCHS,
            map_name::SOCKETS_V4,
            map_name::SOURCES_LPM_V4,
            map_name::AFFINITY,
            map_name::DROPPED_LPM_V4,
            map_name::UNMASQUERADED_LPM_V4,
        ];
        let names = MAPS.iter().map(|(name, _)| *name);
        for name in names.filter(|name| !own.contains(name) && !empty.contains(name)) {
            let rows = datapath.map_dump(name).unwrap_or_else(|error| panic!("{}", error.chain()));
            assert!(!rows.is_empty(), "{name}");
        }
        let rows = |name| json!(datapath.map_dump(name).expect("dump"));
        let expected = json!([
            { "key": "10.77.1.1", "value": { "identity": 1, "node": 1 } },
            { "key": "10.77.1.11", "value": { "identity": 301, "node": 1 } },
        ]);
        assert_eq!(rows(map_name::IPCACHE_V4), expected);
        let expected = json!([{ "key": "10.77.1.0/24", "value": { "identity": 0, "node": 1 } }]);
        assert_eq!(rows(map_name::IPCACHE_LPM_V4), expected);
        let expected = json!([{ "key": 1, "value": { "underlay": "192.0.2.1", "family": 4 } }]);
        assert_eq!(rows(map_name::NODES), expected);
        let expected = json!([{ "key": "tcp 10.201.0.1 80", "value": { "service": 1, "kind": "virtual" } }]);
        assert_eq!(rows(map_name::FRONTENDS_V4), expected);
        let active =
            json!({ "service": 1, "address": "10.77.1.11", "port": 8080, "weight": 1, "state": "active" });
        assert_eq!(rows(map_name::BACKENDS_V4), json!([{ "key": 1, "value": active }]));
        assert_eq!(rows(map_name::ENDPOINTS_V4)[0]["value"]["mac"], "02:00:00:01:01:01");
        let unknown = datapath.map_dump("WARREN_NOTHING").expect_err("no such map");
        assert!(unknown.to_string().contains(map_name::IPCACHE_V4), "{unknown}");

        let fill = datapath.map_list().expect("maps").into_iter();
        let fill: Vec<_> =
            fill.filter(|map| map.name == map_name::IPCACHE_V4).map(|map| map.entries).collect();
        assert_eq!(fill, [Some(2)]);
    });
}

#[test]
fn drops_are_counted_and_reported() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let mut events = datapath.events().expect("the ring").expect("not taken before");
        assert!(datapath.events().expect("the ring").is_none(), "the ring is taken once");
        must(&mut datapath, node_with_endpoint(&workload)).await;

        // An address of the node's CIDR that no endpoint has.
        workload.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(b"anybody there?", (address(1, 99), 9)).expect("send");
        });
        let next = tokio::time::timeout(Duration::from_secs(5), events.next());
        let event = next.await.expect("an event comes").expect("the ring is open");
        assert_eq!(event.kind, EventKind::Drop as u8);
        let reason = datapath_abi::DropReason::from_number(event.reason);
        assert_eq!(reason, Some(datapath_abi::DropReason::UnknownDestination));
        let key = (
            datapath_linux::CounterKind::Dropped(datapath_abi::DropReason::UnknownDestination),
            datapath_abi::Direction::Egress,
        );
        assert_eq!(datapath.counters().expect("counters")[&key].packets, 1);
        assert_eq!(events.lost(), 0);
    });
}

/// Prints how long the creation of an endpoint takes. Run it with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn endpoint_creation_time() {
    let Some(stage) = Stage::new() else { return };
    let workloads: Vec<Namespace> = (0..50).map(|_| Namespace::new("many")).collect();
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, base_ops(1)).await;
        let mut times = Vec::new();
        for (id, workload) in (1..).zip(&workloads) {
            let (id, value) = endpoint(1, id, &workload.path());
            let ops = endpoint_ops(id, &value);
            let start = std::time::Instant::now();
            must(&mut datapath, ops).await;
            let created = start.elapsed();
            assert!(workload.pings(gateway(1)));
            times.push((created, start.elapsed()));
        }
        times.sort();
        let (created, pinged) = times[times.len() / 2];
        println!(
            "endpoint, median of {}: created in {created:?}, first ping answered after {pinged:?}",
            times.len()
        );
        println!("slowest: {:?}", times[times.len() - 1]);
    });
}
