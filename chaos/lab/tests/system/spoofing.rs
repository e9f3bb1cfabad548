//! Spoofed packets are dropped, counted by reason, and shown by `warren observe`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::ensure;
use chaos_lab::{Endpoint, namespace, probe, process, spec::underlay_address, wait};
use etherparse::PacketBuilder;
use node_api::FlowEvent;

use crate::support::{SOON, TestLab};

const TUNNEL_PORT: u16 = 8472;

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is no IPv4 address"),
    }
}

/// The payload of a VXLAN datagram: the header with this identity, and a UDP packet inside.
fn vxlan(identity: u32, source: Ipv4Addr, destination: IpAddr) -> Vec<u8> {
    let vni = identity.to_be_bytes();
    let mut packet = vec![0x08, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(source.octets(), v4(destination).octets(), 64)
        .udp(4_000, 4_001)
        .write(&mut packet, b"forged")
        .unwrap();
    packet
}

/// Sends spoofed packets to a node: exactly these are counted under the reason, and one of the events matches.
fn check(
    lab: &TestLab,
    node: &str,
    reason: &str,
    forge: impl FnOnce(),
    packets: u64,
    fits: impl Fn(&FlowEvent) -> bool,
) {
    let before = lab.drops(node, reason);
    forge();
    wait::until(&format!("{packets} drops for {reason} on {node}"), SOON, || {
        let dropped = lab.drops(node, reason) - before;
        ensure!(dropped >= packets, "{dropped} are counted");
        Ok(())
    })
    .unwrap();
    assert_eq!(lab.drops(node, reason) - before, packets, "{reason} on {node}");
    lab.wait_observed_drop(node, reason, fits);
    let (code, text, _) = lab.warren(node, &["observe", "--verdict", "dropped", "--reason", reason]);
    assert_eq!(code, 0);
    assert!(text.contains(&format!("DROP {reason}")), "{text}");
}

#[test]
fn spoofed_packets_are_dropped_and_counted() {
    let Some(lab) = TestLab::up("forgery", 2, 1) else { return };
    lab.add_machine("x1").unwrap();
    let workload = lab.endpoint("n1", "workload", "app=workload");
    let neighbour = lab.endpoint("n1", "neighbour", "app=neighbour");
    let victim = lab.endpoint("n2", "victim", "app=victim");
    lab.wait_in_ipcache("n1", [&victim]);
    lab.wait_in_ipcache("n2", [&workload]);

    from_an_address_that_is_no_node(&lab, &workload, &victim);
    from_a_node_with_an_inner_source_outside_its_cidrs(&lab, &workload, &victim);
    a_workload_that_uses_anothers_address(&lab, &workload, &neighbour, &victim);
    a_workload_that_sends_to_the_tunnel_port(&lab, &workload);

    // Legitimate traffic still passes.
    probe::ping(&workload.namespace, victim.address, 3).unwrap();
    let (code, text, _) = lab.warren("n2", &["state", "diff"]);
    assert_eq!(code, 0, "{text}");
}

fn tunnel(node: &str) -> SocketAddr {
    SocketAddr::from((underlay_address(node), TUNNEL_PORT))
}

/// The best forgery that an external sender can make: everything but the outer source is right.
fn from_an_address_that_is_no_node(lab: &TestLab, workload: &Endpoint, victim: &Endpoint) {
    let packet = vxlan(workload.identity, v4(workload.address), victim.address);
    let external = lab.name().machine_namespace("x1");
    check(
        lab,
        "n2",
        "unknown-node",
        || (0..3).for_each(|_| probe::send_datagram(&external, tunnel("n2"), &packet).unwrap()),
        3,
        |event| {
            event.tunnel_source == Some(underlay_address("x1"))
                && event.source.address == Some(workload.address)
                && event.destination.address == Some(victim.address)
        },
    );
}

fn from_a_node_with_an_inner_source_outside_its_cidrs(lab: &TestLab, workload: &Endpoint, victim: &Endpoint) {
    let node = lab.name().machine_namespace("n1");
    // An unused address, and an address of the victim's own node.
    for source in [Ipv4Addr::new(10, 99, 0, 1), v4(victim.address)] {
        let packet = vxlan(workload.identity, source, victim.address);
        check(
            lab,
            "n2",
            "inner-source",
            || probe::send_datagram(&node, tunnel("n2"), &packet).unwrap(),
            1,
            |event| {
                event.tunnel_source == Some(underlay_address("n1"))
                    && event.source.address == Some(source.into())
            },
        );
    }
}

fn a_workload_that_uses_anothers_address(
    lab: &TestLab,
    workload: &Endpoint,
    neighbour: &Endpoint,
    victim: &Endpoint,
) {
    // The workload learns its gateway's Ethernet address now; otherwise its ARP request would be dropped later.
    probe::ping(&workload.namespace, victim.address, 1).unwrap();
    let stolen = neighbour.address.to_string();
    namespace::ip(["-n", &workload.namespace, "address", "add", &format!("{stolen}/32"), "dev", "eth0"])
        .unwrap();
    let to = victim.address.to_string();
    check(
        lab,
        "n1",
        "source-spoofed",
        || {
            let arguments = ["-n", "-c", "2", "-i", "0.02", "-W", "1", "-I", &stolen, &to];
            let error = process::run(&workload.namespace, "ping", &arguments).unwrap_err().to_string();
            assert!(error.contains(" 0 received"), "{error}");
        },
        2,
        |event| {
            event.source.address == Some(neighbour.address)
                && event.destination.address == Some(victim.address)
        },
    );
    namespace::ip(["-n", &workload.namespace, "address", "del", &format!("{stolen}/32"), "dev", "eth0"])
        .unwrap();
}

fn a_workload_that_sends_to_the_tunnel_port(lab: &TestLab, workload: &Endpoint) {
    let packet = vxlan(workload.identity, v4(workload.address), workload.address);
    for node in ["n1", "n2"] {
        check(
            lab,
            "n1",
            "tunnel-port",
            || probe::send_datagram(&workload.namespace, tunnel(node), &packet).unwrap(),
            1,
            |event| {
                event.source.address == Some(workload.address)
                    && event.destination.address == Some(underlay_address(node).into())
                    && event.destination.port == TUNNEL_PORT
            },
        );
    }
}
