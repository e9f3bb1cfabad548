//! `cleanup` takes away everything of ours and nothing else.

use datapath_linux::{LinuxConfig, cleanup};

use crate::stage::{Namespace, Stage, foundations, must, node_with_endpoint};

#[test]
fn cleanup_takes_ours_and_leaves_the_rest() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    let node = &stage.node;
    node.run("ip", &["link", "add", "wrn7", "type", "veth", "peer", "name", "other"]);
    node.run("ip", &["link", "set", "other", "up"]);
    node.run("ip", &["link", "set", "wrn7", "up"]);
    node.run("ip", &["route", "add", "10.200.0.0/16", "dev", "other", "proto", "113"]);
    let world = || (node.devices(), node.run("ip", &["route", "show"]));
    let before = world();
    stage.play(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, node_with_endpoint(&workload)).await;
        drop(datapath);

        let standing = world();
        let would = cleanup(&stage.config(), true).await.expect("list");
        assert_eq!(world(), standing, "a dry run touches nothing");
        assert!(stage.pin_root.join("maps").exists());

        let did = cleanup(&stage.config(), false).await.expect("clean up");
        let names = |steps: &[datapath_linux::CleanupStep]| -> Vec<String> {
            steps.iter().map(|step| step.what.clone()).collect()
        };
        assert_eq!(names(&did), names(&would), "a dry run tells what will go");
        assert!(would.iter().all(|step| !step.done));
        assert!(did.iter().all(|step| step.done && step.error.is_none()), "{did:#?}");
        for what in ["route 10.77.1.0/24", "device warren_host", "device warren_vxlan", "device wrn1"] {
            assert!(names(&did).contains(&what.to_owned()), "{what} in {did:#?}");
        }
        assert_eq!(world(), before, "others' things are as they were");
        assert!(!stage.pin_root.exists());

        assert_eq!(cleanup(&stage.config(), false).await.expect("again"), [], "nothing is left to do");
    });
}

#[test]
fn cleanup_needs_no_pins_to_find_devices() {
    let Some(stage) = Stage::new() else { return };
    stage.play(async || {
        must(&mut stage.open().await, foundations(1)).await;
        let elsewhere = LinuxConfig::at(stage.pin_root.with_file_name("warren-test-nowhere"));
        let did = cleanup(&elsewhere, false).await.expect("clean up");
        assert!(did.iter().all(|step| step.done), "{did:#?}");
        assert!(!stage.node.run("ip", &["-o", "link", "show"]).contains("warren_"));
    });
}
