//! What is observed of services after they were applied.

use std::net::Ipv4Addr;

use datapath_abi::{BLOCK_SLOTS, map_name};
use datapath_linux::Datapath;
use datapath_plan::{
    BackendId, BackendValue, Entry, Op, OpErrorKind, ServiceId, ServiceValue, TableKey, Tables,
};

use super::{backend, service, tcp_service};
use crate::stage::{Stage, address, apply, base_ops, must, run};

/// The tables that the operations produce.
fn tables(ops: &[Op]) -> Tables {
    let mut tables = Tables::default();
    ops.iter().for_each(|op| tables.apply(op));
    tables
}

/// Writes an entry into a pinned map without the agent's knowledge.
fn plant(stage: &Stage, map: &str, key: &[u8], value: &[u8]) {
    let path = stage.pin_root.join("maps").join(map);
    let bytes = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>();
    let (key, value) = (bytes(key), bytes(value));
    let mut arguments = vec!["map", "update", "pinned", path.to_str().expect("UTF-8"), "key"];
    arguments.extend(key.iter().map(String::as_str));
    arguments.push("value");
    arguments.extend(value.iter().map(String::as_str));
    run("bpftool", &arguments);
}

#[test]
fn map_entries_of_no_row_are_named_and_deleted() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let mut ops = base_ops(1);
        ops.extend(tcp_service(&[backend(1, address(1, 1))]));
        must(&mut datapath, ops.clone()).await;
        assert_eq!(datapath.observe().await.expect("observe").broken, [""; 0]);

        let one = 1u32.to_ne_bytes();
        let network = |length: u32| [length.to_ne_bytes(), [198, 51, 100, 0]].concat();
        let table_77 = [77u32.to_ne_bytes(), [0; 4]].concat();
        plant(&stage, map_name::SLOTS, &table_77, &[0; 4 * BLOCK_SLOTS as usize]);
        let source = [(32u32 + 24).to_ne_bytes(), 9u32.to_ne_bytes(), [192, 0, 2, 0]].concat();
        plant(&stage, map_name::SOURCES_LPM_V4, &source, &one);
        plant(&stage, map_name::DROPPED_LPM_V4, &network(24), &one);
        let mut observed = datapath.observe().await.expect("observe");
        observed.broken.sort();
        let expected = [
            "service 9: there are source ranges of it, and it is not there",
            "slots: table 77 is no service's",
            "xdp: the networks that are dropped are not those of the configuration",
        ];
        assert_eq!(observed.broken, expected);
        assert_eq!(observed.tables.base, None, "the base is put again");
        assert!(
            observed.tables.services.contains_key(&ServiceId(9)),
            "a service that nobody wants is observed, and so deleted"
        );

        must(&mut datapath, vec![ops[0].clone(), Op::Delete(TableKey::Service(ServiceId(9)))]).await;
        let observed = datapath.observe().await.expect("observe");
        assert_eq!((observed.tables, observed.broken), (tables(&ops), vec![]));
    });
}

#[test]
fn service_is_observed_as_applied() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        // More backends than a block of slots has room for.
        let many: Vec<_> = (1..=200).map(|id| backend(id, Ipv4Addr::new(10, 77, 2, id as u8))).collect();
        let mut ops = tcp_service(&many);
        let ranges = ["192.0.2.0/24", "198.51.100.7/32"].map(|range| range.parse().expect("a range"));
        let guarded = ServiceValue { affinity_seconds: 60, source_ranges: ranges.into(), ..service(vec![]) };
        ops.push(Op::Put(Entry::Service(ServiceId(2), guarded.clone())));
        must(&mut datapath, ops.clone()).await;
        let observed = datapath.observe().await.expect("observe");
        assert_eq!((observed.tables, observed.broken), (tables(&ops), vec![]));

        // One source range less.
        let narrowed = ServiceValue { source_ranges: ranges[1..].into(), ..guarded };
        *ops.last_mut().expect("steps") = Op::Put(Entry::Service(ServiceId(2), narrowed));
        must(&mut datapath, ops.clone()).await;
        assert_eq!(datapath.observe().await.expect("observe").tables, tables(&ops));
        assert_eq!(datapath.map_dump(map_name::SOURCES_LPM_V4).expect("rows").len(), 1);
        must(&mut datapath, vec![]).await;

        // The next plan removes the slots that were replaced.
        let blocks = |datapath: &Datapath| {
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
            "the next agent observes the same"
        );
        must(&mut next, vec![]).await;
        assert_eq!(blocks(&next), before, "the next agent removes the replaced slots");

        // A backend with another weight and no slots after it: as if the agent had died in between.
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
        // Flows may outlive a frontend: the programs still examine packets to its port.
        let ports = next.map_dump(map_name::SERVICE_PORTS).expect("rows");
        assert_eq!(ports.iter().map(|row| &row.key).collect::<Vec<_>>(), ["tcp 80"]);
    });
}

#[test]
fn service_with_a_missing_backend_uses_the_others() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
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
