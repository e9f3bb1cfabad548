//! Ways of packets other than the usual ones: without a tunnel, and by the node's own stack. Two nodes, real traffic,
//! and a machine outside the fleet.

use std::net::{IpAddr, TcpListener, TcpStream};

use chaos_lab::{Endpoint, ask, namespace, probe, process, spec::underlay_address};
use node_api::FlowQuery;

use crate::{
    doctor,
    support::{SOON, TestLab},
};

/// Several windows of TCP, so that segments are merged and split.
const TRANSFER_BYTES: u64 = 8 << 20;

/// What a fleet is asked to do, and what is to be seen of it.
struct Way {
    flags: &'static [&'static str],
    tunnel: bool,
    /// Whether the nodes' netfilter sees what goes to endpoints.
    stack: bool,
    pod_mtu_bytes: u32,
}

fn check(test: &str, way: &Way) {
    let flags = way.flags.iter().map(|flag| (*flag).to_owned()).collect();
    let Some(lab) = TestLab::up_with(test, 2, 1, |spec| spec.agent_flags = flags) else { return };
    let outside = lab.outside("x1");
    let endpoints = [
        lab.endpoint("n1", "a", "app=a"),
        lab.endpoint("n1", "b", "app=b"),
        lab.endpoint("n2", "c", "app=c"),
    ];
    for node in ["n1", "n2"] {
        lab.wait_in_ipcache(node, &endpoints);
        count_forwarded(&lab, node);
    }
    for (seed, from) in (1..).zip(&endpoints) {
        for to in endpoints.iter().filter(|to| to.address != from.address) {
            probe::ping(&from.namespace, to.address, 3).unwrap();
            probe::transfer(from, to, TRANSFER_BYTES, seed).unwrap();
        }
        for node in ["n1", "n2"] {
            probe::ping(&lab.name().machine_namespace(node), from.address, 1).unwrap();
            probe::ping(&from.namespace, underlay_address(node).into(), 1).unwrap();
        }
        // The world sees the node.
        probe::ping(&from.namespace, outside.address, 3).unwrap();
        probe::transfer(from, &outside, TRANSFER_BYTES, seed).unwrap();
        assert_eq!(seen_as(from, &outside), IpAddr::from(underlay_address(&from.node)), "{}", from.name);
    }

    let [a, _, c] = &endpoints;
    for node in ["n1", "n2"] {
        let inside = lab.name().machine_namespace(node);
        let devices = process::run(&inside, "ip", &["-o", "link"]).unwrap();
        assert_eq!(devices.contains("warren_vxlan"), way.tunnel, "{devices}");
        let forwarded = forwarded(&lab, node);
        assert_eq!(
            forwarded > 0,
            way.stack,
            "{forwarded} packets to endpoints were seen by netfilter of {node}"
        );
        assert_eq!(ask(lab.api(node).status()).unwrap().underlay.pod_mtu_bytes, way.pod_mtu_bytes);
        let (code, text, _) = lab.warren(node, &["state", "diff"]);
        assert_eq!(code, 0, "{node}: {text}");
    }
    for name in ["tunnel", "tunnel-port", "path-mtu", "devices", "mtu", "hooks"] {
        doctor::check(&lab, name, "ok", "");
    }
    // The receiver's node knows who speaks, with a tunnel by its header, without one by the address.
    let flows: Vec<_> = ask(lab.api("n2").flows(&FlowQuery::default())).unwrap().items;
    let flows: Vec<_> = (flows.iter())
        .filter(|flow| flow.source.address == Some(a.address) && flow.destination.address == Some(c.address))
        .collect();
    assert!(!flows.is_empty());
    for flow in flows {
        assert_eq!(flow.source.identity.get(), a.identity);
    }
}

/// Has a node count what its netfilter forwards to endpoints.
fn count_forwarded(lab: &TestLab, node: &str) {
    let script = format!(
        "table ip seen {{ chain forward {{ type filter hook forward priority 0; ip daddr {} counter; }}; }}",
        lab.spec().pools[0]
    );
    process::run(&lab.name().machine_namespace(node), "nft", &[&script]).unwrap();
}

fn forwarded(lab: &TestLab, node: &str) -> u64 {
    let text =
        process::run(&lab.name().machine_namespace(node), "nft", &["list", "table", "ip", "seen"]).unwrap();
    let (_, rest) = text.split_once("counter packets ").expect("the rule has a counter");
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// The address that a machine outside sees an endpoint's connection come from.
fn seen_as(from: &Endpoint, outside: &Endpoint) -> IpAddr {
    let listener =
        namespace::inside(&outside.namespace, || Ok(TcpListener::bind((outside.address, 0))?)).unwrap();
    let to = listener.local_addr().unwrap();
    let _connected =
        namespace::inside(&from.namespace, || Ok(TcpStream::connect_timeout(&to, SOON)?)).unwrap();
    listener.accept().unwrap().1.ip()
}

#[test]
fn without_a_tunnel() {
    check(
        "native",
        &Way { flags: &["--datapath-mode", "native"], tunnel: false, stack: false, pod_mtu_bytes: 1500 },
    );
}

#[test]
fn by_the_nodes_stack() {
    check(
        "legacy",
        &Way {
            flags: &["--datapath-host-routing", "legacy"],
            tunnel: true,
            stack: true,
            pod_mtu_bytes: 1450,
        },
    );
}

#[test]
fn without_a_tunnel_by_the_nodes_stack() {
    check(
        "nativelegacy",
        &Way {
            flags: &["--datapath-mode", "native", "--datapath-host-routing", "legacy"],
            tunnel: false,
            stack: true,
            pod_mtu_bytes: 1500,
        },
    );
}
