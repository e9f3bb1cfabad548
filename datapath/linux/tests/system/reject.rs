//! Operations that cannot be carried out are rejected with a reason, and leave nothing behind.

use std::time::{Duration, Instant};

use datapath_plan::{Entry, Op, OpErrorKind, TableKey};

use crate::{
    repair::observe,
    stage::{Namespace, Stage, apply, base_ops, endpoint, must, run},
};

/// Checks that an endpoint is rejected with this kind and text, and leaves nothing behind.
fn check_endpoint_rejected(prepare: impl FnOnce(&Stage, &Namespace) + Send, kind: OpErrorKind, text: &str) {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, base_ops(1)).await;
        let before = observe(&mut datapath).await;
        prepare(&stage, &workload);
        let (id, value) = endpoint(1, 1, &workload.path());
        let outcome = apply(&mut datapath, vec![Op::Put(Entry::Endpoint(id, value))]).await;
        let [failure] = &outcome.failures[..] else { panic!("{outcome:?}") };
        assert_eq!(failure.error.kind, kind, "{}", failure.error);
        assert!(failure.error.text.contains(text), "{}", failure.error);
        assert_eq!(observe(&mut datapath).await, before, "nothing is left behind");
        must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
    });
}

#[test]
fn endpoint_in_a_deleted_namespace_is_rejected() {
    check_endpoint_rejected(
        |_, workload| drop(run("ip", &["netns", "del", &workload.name])),
        OpErrorKind::NamespaceGone,
        "create it before the endpoint",
    );
}

#[test]
fn endpoint_with_an_interface_name_in_use_is_rejected() {
    check_endpoint_rejected(
        |_, workload| drop(workload.run("ip", &["link", "add", "eth0", "type", "bridge"])),
        OpErrorKind::Conflict,
        "interface eth0 is already in the namespace",
    );
}

#[test]
fn endpoint_with_a_device_name_in_use_is_rejected() {
    check_endpoint_rejected(
        |stage, _| drop(stage.node.run("ip", &["link", "add", "wrn1", "type", "bridge"])),
        OpErrorKind::Conflict,
        "device wrn1 is there and not ours",
    );
}

#[test]
fn endpoint_with_a_path_of_no_workload_is_rejected() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, base_ops(1)).await;
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
fn base_leaves_a_foreign_device_with_our_name_alone() {
    let Some(stage) = Stage::new() else { return };
    stage.node.run("ip", &["link", "add", "warren_vxlan", "type", "bridge"]);
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let outcome = apply(&mut datapath, base_ops(1)).await;
        assert_eq!(outcome.failures[0].error.kind, OpErrorKind::Conflict);
        assert!(
            stage.node.run("ip", &["-d", "link", "show", "warren_vxlan"]).contains("bridge"),
            "the foreign device is left alone"
        );
    });
}

#[test]
fn endpoint_whose_namespace_was_deleted_can_be_deleted() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    let path = workload.path();
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let (id, value) = endpoint(1, 1, &path);
        must(&mut datapath, base_ops(1)).await;
        let before = observe(&mut datapath).await;
        must(&mut datapath, vec![Op::Put(Entry::Endpoint(id, value))]).await;
        drop(workload);
        // The kernel deletes the devices of a namespace asynchronously.
        let deadline = Instant::now() + Duration::from_secs(10);
        while stage.node.run("ip", &["-o", "link", "show"]).contains("wrn1") {
            assert!(Instant::now() < deadline, "the device goes with its peer");
            tokio::task::yield_now().await;
        }
        let observed = observe(&mut datapath).await;
        assert_eq!(observed.endpoint_devices, [id], "the rest of the endpoint is observed");
        assert!(!observed.broken.is_empty());
        must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
        assert_eq!(observe(&mut datapath).await, before);
    });
}

#[test]
fn base_with_a_tunnel_port_in_use_is_rejected() {
    let Some(stage) = Stage::new() else { return };
    stage.node.run("ip", &["link", "add", "other", "type", "vxlan", "external", "dstport", "8472"]);
    stage.node.run("ip", &["link", "set", "other", "up"]);
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let outcome = apply(&mut datapath, base_ops(1)).await;
        assert_eq!(outcome.failures[0].error.kind, OpErrorKind::Conflict);
        assert!(outcome.failures[0].error.text.contains("UDP port 8472"), "{}", outcome.failures[0].error);
    });
}
