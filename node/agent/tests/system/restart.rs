//! P5: an agent that stops, dies or starts again changes nothing for what runs.

use std::{collections::BTreeMap, process::Stdio};

use crate::stage::{Stage, text};

fn map_ids(stage: &Stage) -> BTreeMap<String, u32> {
    let client = stage.client();
    stage.ask(client.maps()).items.into_iter().map(|map| (map.name, map.id)).collect()
}

#[test]
fn restart_adopts_everything_and_loses_no_packet() {
    let Some(mut stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    let (added, _) = stage.add_endpoint("web");
    let (before, maps) = (stage.status(), map_ids(&stage));
    let address = added.address.to_string();
    // 300 packets in three seconds: over the stop, the time without an agent, and the start.
    let ping = {
        let mut command = std::process::Command::new("ip");
        command.args([
            "netns",
            "exec",
            stage.node(),
            "ping",
            "-q",
            "-i",
            "0.01",
            "-c",
            "300",
            "-W",
            "2",
            &address,
        ]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    agent.stop();
    let agent = stage.start_ready();
    let report = ping.wait_with_output().unwrap();
    assert!(text(&report).contains(" 0% packet loss"), "{}", text(&report));

    let after = stage.status();
    assert_eq!(map_ids(&stage), maps);
    assert_eq!(after.cidrs[0].cidr, before.cidrs[0].cidr);
    assert_eq!((after.endpoints, after.programs), (before.endpoints, before.programs));
    assert!(after.incarnation > before.incarnation);
    let client = stage.client();
    assert!(
        stage.ask(client.endpoint_delete(&added.name)).existed,
        "the endpoint is still known by its name"
    );
    agent.stop();
}

#[test]
fn killed_agent_does_not_hinder_the_next() {
    let Some(stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    assert!(stage.path("run/warren.sock").exists());
    drop(agent);
    let agent = stage.start_ready();
    agent.stop();
    assert!(!stage.path("run/warren.sock").exists());
}

#[test]
fn cleanup_lists_then_removes_everything_and_nothing_else() {
    let Some(mut stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    stage.add_endpoint("web");
    let refused = stage.warrend(&["cleanup"]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("stop it first"), "{}", text(&refused));
    agent.stop();

    let devices = || text(&stage.output(stage.node(), "ip", &["-o", "link"]));
    let before = devices();
    let told = stage.warrend(&["cleanup", "--dry-run"]).output().unwrap();
    let told_text = text(&told);
    for part in
        ["device warren_host", "device warren_vxlan", "device wrn1", "route 10.42.", "/maps/WARREN_IPC_V4"]
    {
        assert!(told_text.contains(part), "{part} is missing in:\n{told_text}");
    }
    assert_eq!(devices(), before);

    let done = stage.warrend(&["cleanup"]).output().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    let left = devices();
    assert!(!left.contains("warren") && !left.contains("wrn"), "{left}");
    assert!(left.contains("under0"), "{left}");
    assert!(!stage.pin_root().exists());
    let again = stage.warrend(&["cleanup"]).output().unwrap();
    assert_eq!(text(&again), "nothing to remove\n");
}
