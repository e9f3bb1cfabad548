//! etcd is killed: flows go on, endpoints are added and deleted, an agent starts without etcd, and once etcd is back
//! it holds what happened meanwhile (P4).

use std::time::Duration;

use anyhow::ensure;
use chaos_lab::{ask, probe, process, wait};
use identity::EndpointName;
use nix::sys::signal::Signal;

use crate::support::{SOON, TestLab};

/// Time for etcd to elect a leader, for the agents' retry pauses to run out, and for the lease to be granted again.
const BACK: Duration = Duration::from_secs(120);

#[test]
fn etcd_outage_keeps_the_fleet_working_and_is_recorded_later() {
    let Some(mut lab) = TestLab::up("away", 2, 3) else { return };
    lab.expect_errors();
    let from = lab.endpoint("n1", "from", "app=from");
    let to = lab.endpoint("n2", "to", "app=to");
    lab.wait_in_ipcache("n1", [&to]);
    lab.wait_in_ipcache("n2", [&from]);

    for member in lab.spec().etcd_names() {
        lab.end(&member, Signal::SIGKILL).unwrap();
    }
    wait::until("n1 to see that the store is away", SOON, || {
        ensure!(!ask(lab.api("n1").status())?.store.connected, "it has not noticed");
        Ok(())
    })
    .unwrap();
    probe::ping(&from.namespace, to.address, 5).unwrap();

    // Labels that n2 already uses: their identity is known, and gossip carries the rest.
    let late = lab.endpoint("n2", "late", "app=to");
    assert_eq!(late.identity, to.identity);
    lab.wait_in_ipcache("n1", [&late]);
    probe::ping(&from.namespace, late.address, 5).unwrap();
    let (code, _, text) =
        lab.warren("n2", &["endpoint", "add", "new", "--netns", "none", "--label", "app=new"]);
    assert_eq!(code, 1);
    assert!(text.contains("label sets that the fleet knows still work"), "{text}");
    // Labels that only another node uses.
    let other = lab.endpoint("n2", "other", "app=from");
    assert_eq!(other.identity, from.identity);

    // An agent that starts now knows its endpoints by name, and attaches new ones.
    lab.end("n2", Signal::SIGKILL).unwrap();
    lab.start_agent("n2").unwrap();
    lab.wait_node_ready("n2").unwrap();
    let known = ask(lab.api("n2").endpoints()).unwrap();
    let names: Vec<String> = known.items.iter().map(|endpoint| endpoint.name.to_string()).collect();
    assert_eq!(names, ["late", "other", "to"]);
    let later = lab.endpoint("n2", "later", "app=to");
    lab.wait_in_ipcache("n1", [&later]);
    probe::ping(&from.namespace, later.address, 5).unwrap();
    assert!(lab.delete_endpoint("n2", "late").unwrap());

    for member in lab.spec().etcd_names() {
        lab.start_etcd(&member).unwrap();
    }
    wait::until("etcd to hold what happened without it", BACK, || {
        let inside = lab.name().machine_namespace("e1");
        let keys = process::run(&inside, "etcdctl", &["get", "--prefix", "--keys-only", "/warren/"])?;
        ensure!(keys.contains(&later.address.to_string()), "no record of {}", later.address);
        ensure!(!keys.contains(&format!("/{}\n", late.address)), "still a record of {}", late.address);
        Ok(())
    })
    .unwrap();
    let later_name = EndpointName::new("later").unwrap();
    wait::until("the endpoint to count as recorded", SOON, || {
        ensure!(ask(lab.api("n2").endpoint(&later_name))?.recorded, "it does not");
        Ok(())
    })
    .unwrap();
    for node in ["n1", "n2"] {
        let (code, text, _) = lab.warren(node, &["state", "diff"]);
        assert_eq!(code, 0, "{node}: {text}");
    }
    for endpoint in [&to, &later] {
        probe::ping(&from.namespace, endpoint.address, 5).unwrap();
    }
}
