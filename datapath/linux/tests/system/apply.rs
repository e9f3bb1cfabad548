//! What is applied is observed; applying it again, or by another agent, changes nothing.

use std::collections::BTreeMap;

use aya::programs::links::{FdLink, PinnedLink};
use datapath_linux::{Datapath, LinuxConfig};
use datapath_plan::{EndpointValue, Entry, EpochScope, Observed, Op, Single, TableKey, Tables};

use crate::stage::{Namespace, Stage, apply, base, endpoint, gateway, must, node_with_endpoint};

/// The tables that the operations produce.
fn wanted(ops: &[Op]) -> Tables {
    let mut tables = Tables::default();
    for op in ops.iter().cloned() {
        match op {
            Op::Put(Entry::Base(Single, base)) => tables.base = Some(base),
            Op::Put(Entry::Node(index, value)) => drop(tables.nodes.insert(index, value)),
            Op::Put(Entry::Ipcache(prefix, value)) => drop(tables.ipcache.insert(prefix, value)),
            Op::Put(Entry::Route(prefix, value)) => drop(tables.routes.insert(prefix, value)),
            Op::Put(Entry::Endpoint(id, value)) => {
                tables.endpoints.insert(id, EndpointValue { attachment: None, ..value });
            }
            other => panic!("{other:?} puts nothing"),
        }
    }
    tables
}

/// The kernel's ids of everything that must outlive an agent.
#[derive(Debug, PartialEq, Eq)]
struct Ids {
    maps: BTreeMap<String, u32>,
    links: BTreeMap<String, u32>,
    devices: Vec<String>,
}

fn ids(stage: &Stage, datapath: &Datapath) -> Ids {
    let links = std::fs::read_dir(stage.pin_root.join("links")).expect("the folder of links");
    let links = links.map(|entry| {
        let entry = entry.expect("an entry");
        let link = FdLink::from(PinnedLink::from_pin(entry.path()).expect("a pinned link"));
        (entry.file_name().to_string_lossy().into_owned(), link.info().expect("its info").id())
    });
    Ids {
        maps: datapath.map_list().expect("maps").into_iter().map(|map| (map.name, map.id)).collect(),
        links: links.collect(),
        devices: stage.node.devices(),
    }
}

#[test]
fn apply_is_observed() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        assert_eq!(datapath.observe().await.expect("observe"), Observed::default());

        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;

        let (id, _) = endpoint(1, 1, &workload.path());
        let expected = Observed { tables: wanted(&ops), broken: vec![], endpoint_devices: vec![id] };
        assert_eq!(datapath.observe().await.expect("observe"), expected);
    });
}

#[test]
fn apply_is_idempotent() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;
        let before = (
            ids(&stage, &datapath),
            addresses_and_routes(&workload),
            datapath.observe().await.expect("observe"),
        );

        must(&mut datapath, ops).await;
        let after = (
            ids(&stage, &datapath),
            addresses_and_routes(&workload),
            datapath.observe().await.expect("observe"),
        );
        assert_eq!(after, before);
    });
}

#[test]
fn restart_adopts_everything() {
    adoption(|stage| stage.config());
}

#[test]
fn restart_adopts_everything_with_clsact() {
    adoption(|stage| LinuxConfig { force_clsact: true, ..stage.config() });
}

fn adoption(config: impl Fn(&Stage) -> LinuxConfig + Sync) {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut first = stage.open_with(config(&stage)).await;
        must(&mut first, node_with_endpoint(&workload)).await;
        let before = (ids(&stage, &first), first.observe().await.expect("observe"));
        assert!(before.1.broken.is_empty(), "{:?}", before.1.broken);
        drop(first);
        assert!(workload.pings(gateway(1)), "without an agent");

        let mut second = stage.open_with(config(&stage)).await;
        let after = (ids(&stage, &second), second.observe().await.expect("observe"));
        assert_eq!(after, before);
        assert!(workload.pings(gateway(1)), "with the next agent");
    });
}

#[test]
fn delete_leaves_only_the_base() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;

        let removals = |op: &Op| match op {
            Op::Put(Entry::Endpoint(id, _)) => Some(Op::Delete(TableKey::Endpoint(*id))),
            Op::Put(Entry::Route(prefix, _)) => Some(Op::Delete(TableKey::Route(*prefix))),
            Op::Put(Entry::Ipcache(prefix, _)) => Some(Op::Delete(TableKey::Ipcache(*prefix))),
            Op::Put(Entry::Node(index, _)) => Some(Op::Delete(TableKey::Node(*index))),
            _ => None,
        };
        let removals: Vec<Op> = ops.iter().rev().filter_map(removals).collect();
        must(&mut datapath, removals.clone()).await;

        let expected = Tables { base: Some(base(1)), ..Tables::default() };
        let expected = Observed { tables: expected, ..Observed::default() };
        assert_eq!(datapath.observe().await.expect("observe"), expected);
        assert!(!workload.run("ip", &["-o", "link", "show"]).contains("eth0"));

        // Deleting what does not exist succeeds.
        must(&mut datapath, removals).await;
    });
}

#[test]
fn apply_rejects_a_bad_entry_alone() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let unknown = datapath_plan::IpcacheValue {
            identity: identity::Identity::WORLD,
            node: datapath_plan::NodeIndex::NONE,
        };
        let put = |prefix: &str| Op::Put(Entry::Ipcache(prefix.parse().expect("a prefix"), unknown));
        let bad = put("2001:db8::/32");
        let ops = vec![put("10.1.0.0/16"), bad.clone(), put("10.2.0.1/32"), put("10.3.0.0/16")];
        let outcome = apply(&mut datapath, ops).await;
        assert_eq!(outcome.failures.iter().map(|failure| &failure.op).collect::<Vec<_>>(), [&bad]);

        let found = datapath.observe().await.expect("observe").tables.ipcache;
        let found: Vec<String> = found.keys().map(ToString::to_string).collect();
        assert_eq!(found, ["10.1.0.0/16", "10.2.0.1/32", "10.3.0.0/16"]);
    });
}

#[test]
fn apply_writes_large_tables_in_batches() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let value = |number: u32| datapath_plan::IpcacheValue {
            identity: crate::stage::identity(256 + number % 10),
            node: datapath_plan::NodeIndex(number % 7),
        };
        let entries: BTreeMap<ipnetwork::IpNetwork, _> = (0..10_000_u32)
            .map(|number| {
                let address = std::net::Ipv4Addr::from(0x0a00_0000 + number * 256);
                let length = if number % 2 == 0 { 32 } else { 24 };
                (ipnetwork::Ipv4Network::new(address, length).expect("a prefix").into(), value(number))
            })
            .collect();
        must(
            &mut datapath,
            entries.iter().map(|(prefix, value)| Op::Put(Entry::Ipcache(*prefix, *value))).collect(),
        )
        .await;
        assert_eq!(datapath.observe().await.expect("observe").tables.ipcache, entries);

        must(&mut datapath, entries.keys().map(|prefix| Op::Delete(TableKey::Ipcache(*prefix))).collect())
            .await;
        assert_eq!(datapath.observe().await.expect("observe"), Observed::default());
    });
}

#[test]
fn epoch_bump_reaches_the_named_shards_only() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let epochs = |datapath: &Datapath| -> Vec<u64> {
            let rows = datapath.map_dump(datapath_abi::map_name::EPOCHS).expect("dump");
            assert_eq!(rows.len(), datapath_abi::EPOCH_SHARDS as usize);
            rows.iter().map(|row| row.value.as_u64().expect("a number")).collect()
        };
        let mut expected = epochs(&datapath);
        let address = [10, 77, 1, 11];
        let scope =
            EpochScope::Addresses(vec![std::net::Ipv6Addr::LOCALHOST.into(), address.into(), address.into()]);
        must(&mut datapath, vec![Op::BumpEpochs(scope)]).await;
        // A shard is bumped once, however often its addresses are named.
        expected[datapath_abi::epoch_shard_v4(address) as usize] += 1;
        assert_eq!(epochs(&datapath), expected);

        must(&mut datapath, vec![Op::BumpEpochs(EpochScope::All)]).await;
        expected.iter_mut().for_each(|epoch| *epoch += 1);
        assert_eq!(epochs(&datapath), expected);
    });
}

/// The addresses and routes of a workload.
fn addresses_and_routes(workload: &Namespace) -> String {
    workload.run("ip", &["addr", "show"]) + &workload.run("ip", &["route", "show"])
}
