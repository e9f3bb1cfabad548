//! Damage done by others is seen, and mended by applying again.

use datapath_linux::Datapath;
use datapath_plan::{EndpointValue, Entry, Observed, Op, OpErrorKind, Single, TableKey};

use crate::stage::{Namespace, Stage, apply, endpoint, endpoint_ops, foundations, must, node_with_endpoint};

/// Makes a node with an endpoint, does the damage, and expects it to be observed, then mended by the same steps.
fn check(damage: impl FnOnce(&Stage) + Send, seen: impl FnOnce(&Observed) -> bool + Send) {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.play(async || {
        let mut datapath = stage.open().await;
        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;
        let whole = observe(&mut datapath).await;
        assert!(whole.broken.is_empty(), "{:?}", whole.broken);

        damage(&stage);
        let damaged = observe(&mut datapath).await;
        assert_ne!(damaged, whole, "the damage is seen");
        assert!(seen(&damaged), "{damaged:#?}");

        must(&mut datapath, ops).await;
        assert_eq!(observe(&mut datapath).await, whole, "and mended");
        assert!(workload.pings(crate::stage::gateway(1)), "and it works");
    });
}

async fn observe(datapath: &mut Datapath) -> Observed {
    datapath.observe().await.unwrap_or_else(|error| panic!("{}", error.chain()))
}

fn delete_entry(stage: &Stage, map: &str, key: [u8; 4]) {
    let path = stage.pin_root.join("maps").join(map);
    let path = path.to_str().expect("a plain path");
    let [a, b, c, d] = key.map(|byte| byte.to_string());
    crate::stage::run("bpftool", &["map", "delete", "pinned", path, "key", &a, &b, &c, &d]);
}

#[test]
fn a_deleted_ipcache_entry() {
    check(
        |stage| delete_entry(stage, "WARREN_IPC_V4", [10, 77, 1, 11]),
        |observed| observed.broken.is_empty() && observed.tables.ipcache.len() == 2,
    );
}

#[test]
fn a_deleted_endpoint_entry() {
    check(
        |stage| delete_entry(stage, "WARREN_EP_V4", [10, 77, 1, 11]),
        |observed| observed.tables.endpoints.is_empty() && observed.endpoint_devices.len() == 1,
    );
}

#[test]
fn a_deleted_inverse_of_a_node() {
    check(
        |stage| delete_entry(stage, "WARREN_NODE_V4", [192, 0, 2, 1]),
        |observed| observed.broken.len() == 1,
    );
}

#[test]
fn a_deleted_endpoint_device() {
    check(
        |stage| drop(stage.node.run("ip", &["link", "del", "wrn1"])),
        |observed| observed.tables.endpoints.is_empty() && observed.endpoint_devices.len() == 1,
    );
}

#[test]
fn a_detached_program() {
    check(
        // A kernel without TCX has a filter in place of a link.
        |stage| match std::fs::remove_file(stage.pin_root.join("links/wrn1-from_endpoint")) {
            Ok(()) => (),
            Err(_) => drop(stage.node.run("tc", &["filter", "del", "dev", "wrn1", "ingress"])),
        },
        |observed| observed.tables.endpoints.is_empty() && observed.broken.len() == 1,
    );
}

#[test]
fn an_endpoint_device_that_is_down() {
    check(
        |stage| drop(stage.node.run("ip", &["link", "set", "wrn1", "down"])),
        |observed| observed.tables.endpoints.is_empty() && observed.broken.len() == 1,
    );
}

#[test]
fn an_endpoint_device_with_another_mtu() {
    check(
        |stage| drop(stage.node.run("ip", &["link", "set", "wrn1", "mtu", "1300"])),
        |observed| observed.tables.endpoints.is_empty() && observed.broken.len() == 1,
    );
}

#[test]
fn a_deleted_host_device() {
    // Its routes go with it.
    check(
        |stage| drop(stage.node.run("ip", &["link", "del", "warren_host"])),
        |observed| observed.tables.base.is_none() && observed.tables.routes.is_empty(),
    );
}

#[test]
fn a_deleted_tunnel_device() {
    check(
        |stage| drop(stage.node.run("ip", &["link", "del", "warren_vxlan"])),
        |observed| observed.tables.base.is_none() && observed.broken.len() == 1,
    );
}

#[test]
fn another_address_of_the_gateway() {
    check(
        |stage| drop(stage.node.run("ip", &["addr", "add", "10.9.9.9/24", "dev", "warren_host"])),
        |observed| observed.tables.base.is_none() && observed.broken.len() == 1,
    );
}

#[test]
fn a_route_with_another_mtu() {
    let arguments =
        ["route", "replace", "10.77.1.0/24", "dev", "warren_host", "proto", "112", "scope", "link"];
    check(|stage| drop(stage.node.run("ip", &arguments)), |observed| observed.broken.len() == 1);
}

#[test]
fn a_workload_that_breaks_its_own_side() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.play(async || {
        let mut datapath = stage.open().await;
        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;

        workload.run("ip", &["addr", "flush", "dev", "eth0"]);
        workload.run("ip", &["addr", "add", "10.9.9.9/24", "dev", "eth0"]);
        workload.run("ip", &["link", "set", "eth0", "mtu", "1300"]);
        must(&mut datapath, ops).await;
        let inside = workload.run("ip", &["-o", "addr", "show", "dev", "eth0"]);
        assert!(inside.contains("10.77.1.11/32") && !inside.contains("10.9.9.9"), "{inside}");
        assert!(workload.pings(crate::stage::gateway(1)));
    });
}

/// A put that must fail with a kind and a text, and leave nothing.
fn check_refused(prepare: impl FnOnce(&Stage, &Namespace) + Send, kind: OpErrorKind, text: &str) {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.play(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, foundations(1)).await;
        let before = observe(&mut datapath).await;
        prepare(&stage, &workload);
        let (id, value) = endpoint(1, 1, &workload.path());
        let outcome = apply(&mut datapath, vec![Op::Put(Entry::Endpoint(id, value))]).await;
        let [failure] = &outcome.failures[..] else { panic!("{outcome:?}") };
        assert_eq!(failure.error.kind, kind, "{}", failure.error);
        assert!(failure.error.text.contains(text), "{}", failure.error);
        assert_eq!(observe(&mut datapath).await, before, "nothing is left of it");
        must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
    });
}

#[test]
fn a_namespace_that_is_gone() {
    check_refused(
        |_, workload| drop(crate::stage::run("ip", &["netns", "del", &workload.name])),
        OpErrorKind::NamespaceGone,
        "create it before the endpoint",
    );
}

#[test]
fn an_interface_name_that_is_taken() {
    check_refused(
        |_, workload| drop(workload.run("ip", &["link", "add", "eth0", "type", "bridge"])),
        OpErrorKind::Conflict,
        "interface eth0 is already in the namespace",
    );
}

#[test]
fn a_device_name_that_is_taken() {
    check_refused(
        |stage, _| drop(stage.node.run("ip", &["link", "add", "wrn1", "type", "bridge"])),
        OpErrorKind::Conflict,
        "device wrn1 is there and not ours",
    );
}

#[test]
fn paths_that_name_no_workload() {
    let Some(stage) = Stage::new() else { return };
    stage.play(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, foundations(1)).await;
        for (path, kind, text) in [
            ("/proc/thread-self/ns/net", OpErrorKind::Conflict, "the node's own"),
            ("/proc/thread-self/ns/uts", OpErrorKind::NamespaceGone, "is no network namespace"),
            ("/etc/passwd", OpErrorKind::NamespaceGone, "is no network namespace"),
            ("/run/netns/nobody", OpErrorKind::NamespaceGone, "No such file"),
        ] {
            let (id, value) = endpoint(1, 1, path.as_ref());
            let outcome = apply(&mut datapath, vec![Op::Put(Entry::Endpoint(id, value))]).await;
            let error = &outcome.failures[0].error;
            assert_eq!(error.kind, kind, "{path}: {error}");
            assert!(error.text.contains(text), "{path}: {error}");
        }
    });
}

#[test]
fn a_foreign_device_with_the_name_of_ours() {
    let Some(stage) = Stage::new() else { return };
    stage.node.run("ip", &["link", "add", "warren_vxlan", "type", "bridge"]);
    stage.play(async || {
        let mut datapath = stage.open().await;
        let outcome = apply(&mut datapath, foundations(1)).await;
        assert_eq!(outcome.failures[0].error.kind, OpErrorKind::Conflict);
        assert!(
            stage.node.run("ip", &["-d", "link", "show", "warren_vxlan"]).contains("bridge"),
            "left alone"
        );
    });
}

#[test]
fn a_namespace_that_dies_takes_its_endpoint_along() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    let path = workload.path();
    stage.play(async || {
        let mut datapath = stage.open().await;
        let (id, value) = endpoint(1, 1, &path);
        must(&mut datapath, foundations(1)).await;
        let before = observe(&mut datapath).await;
        must(&mut datapath, vec![Op::Put(Entry::Endpoint(id, value))]).await;
        drop(workload);
        // The kernel takes a namespace's devices down on its own time.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while stage.node.run("ip", &["-o", "link", "show"]).contains("wrn1") {
            assert!(std::time::Instant::now() < deadline, "the device goes with its peer");
            tokio::task::yield_now().await;
        }
        let observed = observe(&mut datapath).await;
        assert_eq!(observed.endpoint_devices, [id], "what is left of it is seen");
        assert!(!observed.broken.is_empty());
        must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
        assert_eq!(observe(&mut datapath).await, before);
    });
}

#[test]
fn a_tunnel_port_that_is_taken() {
    let Some(stage) = Stage::new() else { return };
    stage.node.run("ip", &["link", "add", "other", "type", "vxlan", "external", "dstport", "8472"]);
    stage.node.run("ip", &["link", "set", "other", "up"]);
    stage.play(async || {
        let mut datapath = stage.open().await;
        let outcome = apply(&mut datapath, foundations(1)).await;
        assert_eq!(outcome.failures[0].error.kind, OpErrorKind::Conflict);
        assert!(outcome.failures[0].error.text.contains("UDP port 8472"), "{}", outcome.failures[0].error);
    });
}

/// The underlay carries less, or more, than it did.
#[test]
fn another_mtu_of_the_base_reaches_both_ends_of_endpoints() {
    let Some(stage) = Stage::new() else { return };
    let (known, forgotten) = (Namespace::new("one"), Namespace::new("two"));
    stage.play(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, foundations(1)).await;
        let endpoints = [endpoint(1, 1, &known.path()), endpoint(1, 2, &forgotten.path())];
        for (id, value) in endpoints.clone() {
            must(&mut datapath, endpoint_ops(id, &value)).await;
        }
        // Its own doing, besides.
        forgotten.run("ip", &["addr", "flush", "dev", "eth0"]);
        for mtu_bytes in [1350, 8950] {
            let base = datapath_plan::Base { mtu_bytes, ..crate::stage::base(1) };
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
                [(&known, "eth0"), (&forgotten, "eth0"), (&stage.node, "wrn1"), (&stage.node, "wrn2")]
            {
                let shown = workload.run("ip", &["-o", "link", "show", "dev", device]);
                assert!(shown.contains(&format!(" mtu {mtu_bytes} ")), "{shown}");
            }
            assert!(known.pings(crate::stage::gateway(1)) && forgotten.pings(crate::stage::gateway(1)));
        }
    });
}

/// As after a restart of the agent, when only the kernel tells of the endpoint.
#[test]
fn an_endpoint_whose_attachment_is_forgotten_is_mended_and_not_made() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.play(async || {
        let mut datapath = stage.open().await;
        let (id, value) = endpoint(1, 1, &workload.path());
        must(&mut datapath, node_with_endpoint(&workload)).await;

        let forgotten = EndpointValue { identity: crate::stage::identity(777), attachment: None, ..value };
        delete_entry(&stage, "WARREN_EP_V4", crate::stage::address(1, 1).octets());
        must(&mut datapath, vec![Op::Put(Entry::Endpoint(id, forgotten.clone()))]).await;
        let observed = observe(&mut datapath).await;
        assert!(observed.broken.is_empty(), "{:?}", observed.broken);
        assert_eq!(observed.tables.endpoints.get(&id), Some(&forgotten));
        assert!(workload.pings(crate::stage::gateway(1)));

        must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
        let outcome = apply(&mut datapath, vec![Op::Put(Entry::Endpoint(id, forgotten))]).await;
        assert_eq!(outcome.failures.len(), 1);
        assert_eq!(outcome.failures[0].error.kind, OpErrorKind::NamespaceGone);
    });
}
