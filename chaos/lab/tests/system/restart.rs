//! An agent is killed or stopped, and started again, under traffic: no packet is lost, and no map is replaced.

use std::{collections::BTreeMap, time::Instant};

use chaos_lab::{
    ask,
    probe::{Ping, Streams},
};
use nix::sys::signal::Signal;

use crate::support::{SOON, TestLab};

#[test]
fn restart_keeps_flows_and_maps() {
    let Some(lab) = TestLab::up("restart", 2, 1) else { return };
    let from = lab.endpoint("n1", "from", "app=from");
    let to = lab.endpoint("n2", "to", "app=to");
    lab.wait_in_ipcache("n1", [&to]);
    lab.wait_in_ipcache("n2", [&from]);
    let maps = ["n1", "n2"].map(|node| map_ids(&lab, node));

    let origin = Instant::now();
    let probes = [Ping::new(&from.namespace, to.address).start(), Streams::new(&from, &to, 20).start()]
        .map(Result::unwrap);
    let more = || probes.iter().for_each(|probe| probe.wait_for_more(200, SOON).unwrap());
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for node in ["n1", "n2"] {
            more();
            lab.end(node, signal).unwrap();
            more();
            lab.start_agent(node).unwrap();
            lab.wait_node_ready(node).unwrap();
        }
    }
    more();
    for probe in probes {
        let report = probe.stop().unwrap();
        assert_eq!(report.losses().count(), 0, "{:?}", report.describe(origin));
    }

    assert_eq!(["n1", "n2"].map(|node| map_ids(&lab, node)), maps, "maps are adopted, never made again");
    for node in ["n1", "n2"] {
        let (code, text, _) = lab.warren(node, &["state", "diff"]);
        assert_eq!(code, 0, "{node}: {text}");
        let endpoints = ask(lab.api(node).endpoints()).unwrap();
        assert_eq!(endpoints.items.len(), 1, "{node} still has its endpoint");
    }
    // Adopted state can be changed.
    let late = lab.endpoint("n1", "late", "app=late");
    lab.wait_in_ipcache("n2", [&late]);
    chaos_lab::probe::ping(&late.namespace, to.address, 2).unwrap();
}

/// The kernel's ids of a node's maps.
fn map_ids(lab: &TestLab, node: &str) -> BTreeMap<String, u32> {
    let maps = ask(lab.api(node).maps()).unwrap();
    assert!(!maps.items.is_empty());
    maps.items.into_iter().map(|map| (map.name, map.id)).collect()
}
