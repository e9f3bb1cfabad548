//! Modes other than the default one: native routing and legacy host routing. Two nodes, real traffic, and a machine
//! outside the fleet.

use std::net::{IpAddr, TcpListener, TcpStream};

use chaos_lab::{Endpoint, ask, namespace, probe, process, spec::underlay_address};
use node_api::FlowQuery;

use crate::{
    doctor,
    support::{SOON, TestLab},
};

/// Several TCP windows, so that segments are merged and split.
const TRANSFER_BYTES: u64 = 8 << 20;

/// A mode, and what must be observed in it.
struct Way {
    flags: &'static [&'static str],
    tunnel: bool,
    /// Whether the nodes' netfilter sees packets to endpoints.
    stack: bool,
    pod_mtu_bytes: u32,
}

fn check(test: &str, way: &Way) {
    let flags = way.flags.iter().map(|flag| (*flag).to_owned()).collect();
    let Some(lab) = TestLab::up_with(test, 2, 1, |spec| spec.agent_flags = flags) else { return };
    let outside = lab.external_machine("x1");
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
        // The world sees the node's address.
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
    // The receiver's node knows the sender's identity: from the VXLAN header, or by native routing from the address.
    let flows: Vec<_> = ask(lab.api("n2").flows(&FlowQuery::default())).unwrap().items;
    let flows: Vec<_> = (flows.iter())
        .filter(|flow| flow.source.address == Some(a.address) && flow.destination.address == Some(c.address))
        .collect();
    assert!(!flows.is_empty());
    for flow in flows {
        assert_eq!(flow.source.identity.get(), a.identity);
    }
}

/// Makes a node count the packets that its netfilter forwards to endpoints.
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

/// The source address that a machine outside sees on an endpoint's connection.
fn seen_as(from: &Endpoint, outside: &Endpoint) -> IpAddr {
    let listener =
        namespace::inside(&outside.namespace, || Ok(TcpListener::bind((outside.address, 0))?)).unwrap();
    let to = listener.local_addr().unwrap();
    let _connected =
        namespace::inside(&from.namespace, || Ok(TcpStream::connect_timeout(&to, SOON)?)).unwrap();
    listener.accept().unwrap().1.ip()
}

#[test]
fn native_routing_carries_traffic() {
    check(
        "native",
        &Way { flags: &["--datapath-mode", "native"], tunnel: false, stack: false, pod_mtu_bytes: 1500 },
    );
}

#[test]
fn legacy_host_routing_carries_traffic() {
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
fn native_routing_with_legacy_host_routing_carries_traffic() {
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
