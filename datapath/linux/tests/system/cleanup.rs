//! `cleanup` removes all our objects and nothing else.

use datapath_linux::{LinuxConfig, cleanup};

use crate::stage::{Namespace, Stage, base_ops, must, node_with_endpoint};

#[test]
fn cleanup_removes_only_our_objects() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    let node = &stage.node;
    node.run("ip", &["link", "add", "wrn7", "type", "veth", "peer", "name", "other"]);
    node.run("ip", &["link", "set", "other", "up"]);
    node.run("ip", &["link", "set", "wrn7", "up"]);
    node.run("ip", &["route", "add", "10.200.0.0/16", "dev", "other", "proto", "113"]);
    let world = || (node.devices(), node.run("ip", &["route", "show"]));
    let before = world();
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, node_with_endpoint(&workload)).await;
        drop(datapath);

        let standing = world();
        let planned = cleanup(&stage.config(), true).await.expect("list");
        assert_eq!(world(), standing, "a dry run touches nothing");
        assert!(stage.pin_root.join("maps").exists());

        let done = cleanup(&stage.config(), false).await.expect("clean up");
        let names = |steps: &[datapath_linux::CleanupStep]| -> Vec<String> {
            steps.iter().map(|step| step.what.clone()).collect()
        };
        assert_eq!(names(&done), names(&planned), "a dry run lists what will be removed");
        assert!(planned.iter().all(|step| !step.done));
        assert!(done.iter().all(|step| step.done && step.error.is_none()), "{done:#?}");
        for what in ["route 10.77.1.0/24", "device warren_host", "device warren_vxlan", "device wrn1"] {
            assert!(names(&done).contains(&what.to_owned()), "{what} in {done:#?}");
        }
        assert_eq!(world(), before, "foreign objects are unchanged");
        assert!(!stage.pin_root.exists());

        assert_eq!(cleanup(&stage.config(), false).await.expect("again"), [], "nothing is left to do");
    });
}

#[test]
fn cleanup_finds_devices_without_pins() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        must(&mut stage.open().await, base_ops(1)).await;
        let elsewhere = LinuxConfig::at(stage.pin_root.with_file_name("warren-test-nowhere"));
        let done = cleanup(&elsewhere, false).await.expect("clean up");
        assert!(done.iter().all(|step| step.done), "{done:#?}");
        assert!(!stage.node.run("ip", &["-o", "link", "show"]).contains("warren_"));
    });
}
