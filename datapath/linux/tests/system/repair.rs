//! External modifications are observed, and repaired by applying again.

use datapath_linux::Datapath;
use datapath_plan::{EndpointValue, Entry, Observed, Op, OpErrorKind, Single, TableKey};

use crate::stage::{
    Namespace, Stage, address, apply, base, base_ops, endpoint, endpoint_ops, gateway, identity, must,
    node_with_endpoint, run,
};

/// Creates a node with an endpoint and damages it: the damage is observed, and the same operations repair it.
fn check(damage: impl FnOnce(&Stage) + Send, seen: impl FnOnce(&Observed) -> bool + Send) {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;
        let whole = observe(&mut datapath).await;
        assert!(whole.broken.is_empty(), "{:?}", whole.broken);

        damage(&stage);
        let damaged = observe(&mut datapath).await;
        assert_ne!(damaged, whole, "the damage is observed");
        assert!(seen(&damaged), "{damaged:#?}");

        must(&mut datapath, ops).await;
        assert_eq!(observe(&mut datapath).await, whole, "the damage is repaired");
        assert!(workload.pings(gateway(1)), "the endpoint works");
    });
}

pub async fn observe(datapath: &mut Datapath) -> Observed {
    datapath.observe().await.unwrap_or_else(|error| panic!("{}", error.chain()))
}

fn delete_entry(stage: &Stage, map: &str, key: [u8; 4]) {
    let path = stage.pin_root.join("maps").join(map);
    let path = path.to_str().expect("a plain path");
    let [a, b, c, d] = key.map(|byte| byte.to_string());
    run("bpftool", &["map", "delete", "pinned", path, "key", &a, &b, &c, &d]);
}

#[test]
fn repair_of_a_deleted_ipcache_entry() {
    check(
        |stage| delete_entry(stage, "WARREN_IPC_V4", [10, 77, 1, 11]),
        |observed| observed.broken.is_empty() && observed.tables.ipcache.len() == 2,
    );
}

#[test]
fn repair_of_a_deleted_endpoint_entry() {
    check(
        |stage| delete_entry(stage, "WARREN_EP_V4", [10, 77, 1, 11]),
        |observed| observed.tables.endpoints.is_empty() && observed.endpoint_devices.len() == 1,
    );
}

#[test]
fn repair_of_a_deleted_node_by_address_entry() {
    check(
        |stage| delete_entry(stage, "WARREN_NODE_V4", [192, 0, 2, 1]),
        |observed| observed.broken.len() == 1,
    );
}

#[test]
fn repair_of_a_deleted_endpoint_device() {
    check(
        |stage| drop(stage.node.run("ip", &["link", "del", "wrn1"])),
        |observed| observed.tables.endpoints.is_empty() && observed.endpoint_devices.len() == 1,
    );
}

#[test]
fn repair_of_a_detached_program() {
    check(
        // A kernel without TCX has a filter instead of a link.
        |stage| match std::fs::remove_file(stage.pin_root.join("links/wrn1-from_endpoint")) {
            Ok(()) => (),
            Err(_) => drop(stage.node.run("tc", &["filter", "del", "dev", "wrn1", "ingress"])),
        },
        |observed| observed.tables.endpoints.is_empty() && observed.broken.len() == 1,
    );
}

#[test]
fn repair_of_an_endpoint_device_that_is_down() {
    check(
        |stage| drop(stage.node.run("ip", &["link", "set", "wrn1", "down"])),
        |observed| observed.tables.endpoints.is_empty() && observed.broken.len() == 1,
    );
}

#[test]
fn repair_of_an_endpoint_device_with_another_mtu() {
    check(
        |stage| drop(stage.node.run("ip", &["link", "set", "wrn1", "mtu", "1300"])),
        |observed| observed.tables.endpoints.is_empty() && observed.broken.len() == 1,
    );
}

#[test]
fn repair_of_a_deleted_host_device() {
    // The kernel deletes the device's routes with it.
    check(
        |stage| drop(stage.node.run("ip", &["link", "del", "warren_host"])),
        |observed| observed.tables.base.is_none() && observed.tables.routes.is_empty(),
    );
}

#[test]
fn repair_of_a_deleted_tunnel_device() {
    check(
        |stage| drop(stage.node.run("ip", &["link", "del", "warren_vxlan"])),
        |observed| observed.tables.base.is_none() && observed.broken.len() == 1,
    );
}

#[test]
fn repair_of_a_gateway_with_another_address() {
    check(
        |stage| drop(stage.node.run("ip", &["addr", "add", "10.9.9.9/24", "dev", "warren_host"])),
        |observed| observed.tables.base.is_none() && observed.broken.len() == 1,
    );
}

#[test]
fn repair_of_a_route_with_another_mtu() {
    let arguments =
        ["route", "replace", "10.77.1.0/24", "dev", "warren_host", "proto", "112", "scope", "link"];
    check(|stage| drop(stage.node.run("ip", &arguments)), |observed| observed.broken.len() == 1);
}

#[test]
fn repair_of_an_interface_that_the_workload_changed() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;

        workload.run("ip", &["addr", "flush", "dev", "eth0"]);
        workload.run("ip", &["addr", "add", "10.9.9.9/24", "dev", "eth0"]);
        workload.run("ip", &["link", "set", "eth0", "mtu", "1300"]);
        must(&mut datapath, ops).await;
        let inside = workload.run("ip", &["-o", "addr", "show", "dev", "eth0"]);
        assert!(inside.contains("10.77.1.11/32") && !inside.contains("10.9.9.9"), "{inside}");
        assert!(workload.pings(gateway(1)));
    });
}

/// The underlay's MTU becomes smaller, then larger.
#[test]
fn base_mtu_change_reaches_both_ends_of_endpoints() {
    let Some(stage) = Stage::new() else { return };
    let (attached, adopted) = (Namespace::new("one"), Namespace::new("two"));
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, base_ops(1)).await;
        let endpoints = [endpoint(1, 1, &attached.path()), endpoint(1, 2, &adopted.path())];
        for (id, value) in endpoints.clone() {
            must(&mut datapath, endpoint_ops(id, &value)).await;
        }
        // The workload has changed its interface as well.
        adopted.run("ip", &["addr", "flush", "dev", "eth0"]);
        for mtu_bytes in [1350, 8950] {
            let base = datapath_plan::Base { mtu_bytes, ..base(1) };
            must(&mut datapath, vec![Op::Put(Entry::Base(Single, base.clone()))]).await;
            let observed = observe(&mut datapath).await;
            assert_eq!(observed.tables.base, Some(base));
            assert_eq!(observed.broken.len(), 2, "{:?}", observed.broken);
            let [(one, value), (two, other)] = endpoints.clone();
            let other = EndpointValue { attachment: None, ..other };
            must(
                &mut datapath,
                vec![Op::Put(Entry::Endpoint(one, value)), Op::Put(Entry::Endpoint(two, other))],
            )
            .await;
            assert_eq!(observe(&mut datapath).await.broken, [] as [String; 0]);
            for (workload, device) in
                [(&attached, "eth0"), (&adopted, "eth0"), (&stage.node, "wrn1"), (&stage.node, "wrn2")]
            {
                let shown = workload.run("ip", &["-o", "link", "show", "dev", device]);
                assert!(shown.contains(&format!(" mtu {mtu_bytes} ")), "{shown}");
            }
            assert!(attached.pings(gateway(1)) && adopted.pings(gateway(1)));
        }
    });
}

/// After a restart of the agent, only the kernel knows the endpoint.
#[test]
fn endpoint_without_attachment_is_repaired_but_not_created() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let (id, value) = endpoint(1, 1, &workload.path());
        must(&mut datapath, node_with_endpoint(&workload)).await;

        let without_attachment = EndpointValue { identity: identity(777), attachment: None, ..value };
        delete_entry(&stage, "WARREN_EP_V4", address(1, 1).octets());
        must(&mut datapath, vec![Op::Put(Entry::Endpoint(id, without_attachment.clone()))]).await;
        let observed = observe(&mut datapath).await;
        assert!(observed.broken.is_empty(), "{:?}", observed.broken);
        assert_eq!(observed.tables.endpoints.get(&id), Some(&without_attachment));
        assert!(workload.pings(gateway(1)));

        must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
        let outcome = apply(&mut datapath, vec![Op::Put(Entry::Endpoint(id, without_attachment))]).await;
        assert_eq!(outcome.failures.len(), 1);
        assert_eq!(outcome.failures[0].error.kind, OpErrorKind::NamespaceGone);
    });
}
