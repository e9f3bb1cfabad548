//! Packets that a workload sends: whether they are allowed, and where they go.

use datapath_abi::{DropReason, EndpointEntry, NodeEntry, map_name};
use datapath_linux::object::Program::FromEndpoint;

use crate::{
    check::check,
    expected::Expected,
    frame::{Frame, arp},
    populated_kernel,
    wire::{ESP, ETHERNET_BYTES, arp_operation, ethertype, icmp_type, tcp_flag::SYN},
    world::*,
};

const BROADCAST: [u8; 6] = [0xff; 6];
/// The target's Ethernet address in an ARP request.
const UNKNOWN_MAC: [u8; 6] = [0; 6];

/// Checks that a first packet is forwarded as `out` and opens its flow.
#[track_caller]
fn check_redirected(frame: Frame, out: Frame, from: &Peer, to: &Peer) {
    let mut kernel = populated_kernel!();
    let expected = Expected::redirected(&out).new_flow(&frame, from, to);
    check(&mut kernel, FromEndpoint, &frame, expected);
}

#[track_caller]
fn check_dropped(frame: Frame, reason: DropReason, adjust: impl FnOnce(Expected) -> Expected) {
    let mut kernel = populated_kernel!();
    check(&mut kernel, FromEndpoint, &frame, adjust(Expected::dropped(&frame, reason)));
}

#[test]
fn endpoint_reaches_another_endpoint_of_its_node() {
    let frame = Frame::syn(&A, &B);
    check_redirected(frame.clone(), frame.towards(&B).ttl(63), &A, &B);
}

#[test]
fn endpoint_reaches_an_endpoint_of_another_node() {
    let frame = Frame::syn(&A, &R);
    check_redirected(frame.clone(), frame.towards(&R), &A, &R);
}

#[test]
fn endpoint_reaches_an_unknown_address_of_another_node() {
    let frame = Frame::udp(&A, &UNKNOWN_AT_5, 1000, 53);
    check_redirected(frame.clone(), frame.towards(&R), &A, &UNKNOWN_AT_5);
}

#[test]
fn endpoint_reaches_another_node_itself() {
    for node in [&GATEWAY_OF_5, &NODE_5] {
        let frame = Frame::syn(&A, node);
        check_redirected(frame.clone(), frame.towards(node), &A, node);
    }
}

#[test]
fn endpoint_reaches_its_node() {
    for address in [&GATEWAY, &UNDERLAY] {
        let frame = Frame::echo_request(&A, address, 77);
        check_redirected(frame.clone(), frame.towards(&GATEWAY), &A, address);
    }
}

#[test]
fn endpoint_reaches_the_world_by_the_stack() {
    for peer in [&INTERNET, &PARTNER] {
        let frame = Frame::udp(&A, peer, 1000, 53);
        let mut kernel = populated_kernel!();
        check(&mut kernel, FromEndpoint, &frame, Expected::passed(&frame).new_flow(&frame, &A, peer));
    }
}

#[test]
fn endpoint_may_send_options_and_fragments() {
    let frame = Frame::udp(&A, &B, 1000, 53).options(10);
    check_redirected(frame.clone(), frame.towards(&B).ttl(63), &A, &B);
    let first = Frame::udp(&A, &B, 1000, 53).fragment(0, true);
    check_redirected(first.clone(), first.towards(&B).ttl(63), &A, &B);
    // A later fragment has no ports and is a flow of its own.
    let later = Frame::udp(&A, &B, 1000, 53).fragment(185, false);
    assert_eq!(later.key().src_port_be, [0, 0]);
    check_redirected(later.clone(), later.towards(&B).ttl(63), &A, &B);
}

#[test]
fn endpoint_may_send_protocols_without_ports() {
    let esp = Frame::ipv4(&A, &B, ESP, &[9; 24]);
    check_redirected(esp.clone(), esp.towards(&B).ttl(63), &A, &B);
    let unreachable = Frame::icmp(&A, &B, icmp_type::UNREACHABLE, 0xabcd);
    check_redirected(unreachable.clone(), unreachable.towards(&B).ttl(63), &A, &B);
}

#[test]
fn endpoint_tunnel_key_names_its_identity_and_the_other_node() {
    let mut kernel = populated_kernel!();
    let key = kernel.run_for_tunnel_key(FromEndpoint, &Frame::syn(&A, &R));
    assert_eq!((key.identity, key.underlay), (A.identity, NODE_5.address));
}

#[test]
fn endpoint_with_a_spoofed_source_is_dropped() {
    let frame = Frame::syn(&A, &R).source(B.address);
    check_dropped(frame, DropReason::SourceSpoofed, |expected| expected.identities(A.identity, 0));
}

#[test]
fn endpoint_with_a_spoofed_ethernet_source_is_dropped() {
    let frame = Frame::syn(&A, &R).macs(A.src_mac, B.dst_mac);
    check_dropped(frame, DropReason::SourceMac, |expected| expected.identities(A.identity, 0));
}

#[test]
fn endpoint_may_not_send_tunnel_packets_to_nodes() {
    for (node, identity) in
        [(&UNDERLAY, HOST), (&GATEWAY, HOST), (&NODE_5, REMOTE_NODE), (&GATEWAY_OF_5, REMOTE_NODE)]
    {
        let frame = Frame::udp(&A, node, 1000, TUNNEL_PORT);
        check_dropped(frame, DropReason::TunnelPort, |expected| expected.identities(A.identity, identity));
    }
    // A node that is known by the nodes map only: its ipcache entry has not come yet.
    let node_6 = Peer { address: [192, 0, 2, 6], ..INTERNET };
    let frame = Frame::udp(&A, &node_6, 1000, TUNNEL_PORT);
    check_dropped(frame, DropReason::TunnelPort, |expected| expected.identities(A.identity, WORLD));
}

#[test]
fn endpoint_may_use_the_tunnel_port_elsewhere() {
    let frame = Frame::udp(&A, &B, 1000, TUNNEL_PORT);
    check_redirected(frame.clone(), frame.towards(&B).ttl(63), &A, &B);
    let frame = Frame::tcp(&A, &GATEWAY, 1000, TUNNEL_PORT, SYN);
    check_redirected(frame.clone(), frame.towards(&GATEWAY), &A, &GATEWAY);
}

#[test]
fn endpoint_packets_to_unknown_destinations_are_dropped() {
    let multicast = Peer { address: [224, 0, 0, 22], ..INTERNET };
    let broadcast = Peer { address: [255; 4], ..INTERNET };
    let loopback = Peer { address: [127, 0, 0, 1], ..INTERNET };
    for peer in [&UNASSIGNED, &multicast, &broadcast, &loopback] {
        check_dropped(Frame::udp(&A, peer, 1, 2), DropReason::UnknownDestination, |expected| {
            expected.identities(A.identity, 0)
        });
    }
}

#[test]
fn endpoint_packets_to_a_node_without_underlay_address_are_dropped() {
    let mut kernel = populated_kernel!();
    kernel.set(map_name::NODES, &5u32, &NodeEntry::default());
    let frame = Frame::syn(&A, &R);
    let expected = Expected::dropped(&frame, DropReason::NoTunnelEndpoint).identities(A.identity, R.identity);
    check(&mut kernel, FromEndpoint, &frame, expected);
}

#[test]
fn endpoint_packets_from_unknown_devices_are_dropped() {
    let mut kernel = populated_kernel!();
    kernel.remove::<u32, EndpointEntry>(map_name::ENDPOINTS_BY_IFINDEX, &HERE);
    let frame = Frame::syn(&A, &B);
    let expected = Expected::dropped(&frame, DropReason::UnknownEndpoint);
    check(&mut kernel, FromEndpoint, &frame, expected);
}

#[test]
fn endpoint_fragments_that_hide_ports_are_dropped() {
    let tiny = Frame::syn(&A, &B).payload(&[3, 232, 0, 80, 0, 0, 0, 0]).fragment(0, true);
    check_dropped(tiny, DropReason::Fragment, Expected::without_ports);
    let overwriting = Frame::syn(&A, &B).fragment(1, false);
    check_dropped(overwriting, DropReason::Fragment, Expected::without_ports);
}

#[test]
fn endpoint_malformed_packets_are_dropped() {
    let cut_tcp = Frame::syn(&A, &B).payload(&[0; 19]);
    check_dropped(cut_tcp, DropReason::Malformed, Expected::without_ports);
    let cut_udp = Frame::udp(&A, &B, 1, 2).payload(&[0; 7]);
    check_dropped(cut_udp, DropReason::Malformed, Expected::without_ports);

    let mut kernel = populated_kernel!();
    let frame = Frame::udp(&A, &B, 1000, 53);
    let damage = |at: usize, byte: u8| {
        let mut bytes = frame.bytes();
        bytes[at] = byte;
        bytes
    };
    let version = damage(ETHERNET_BYTES, 0x65);
    let header_length = damage(ETHERNET_BYTES, 0x44);
    let total_length = damage(ETHERNET_BYTES + 3, 200);
    for bytes in [version, header_length, total_length] {
        let expected =
            Expected::dropped(&frame, DropReason::Malformed).without_ports().sent_as(bytes.clone());
        check(&mut kernel, FromEndpoint, &bytes, expected);
    }
}

#[test]
fn endpoint_other_ethertypes_are_dropped_unreported() {
    let mut kernel = populated_kernel!();
    let bytes = Frame::syn(&A, &B).ethertype(ethertype::IPV6).bytes();
    let expected = Expected::dropped_unreported(&bytes, DropReason::UnsupportedProtocol);
    check(&mut kernel, FromEndpoint, &bytes, expected);
}

#[test]
fn arp_request_for_the_gateway_is_answered() {
    let mut kernel = populated_kernel!();
    let request = arp(
        arp_operation::REQUEST,
        (BROADCAST, A.dst_mac),
        (A.dst_mac, A.address),
        (UNKNOWN_MAC, GATEWAY.address),
    );
    let reply = arp(
        arp_operation::REPLY,
        (A.dst_mac, A.src_mac),
        (A.src_mac, GATEWAY.address),
        (A.dst_mac, A.address),
    );
    check(&mut kernel, FromEndpoint, &request, Expected::redirected(&reply));
}

#[test]
fn arp_request_for_other_addresses_is_dropped() {
    let mut kernel = populated_kernel!();
    let macs = (BROADCAST, A.dst_mac);
    let own = (A.dst_mac, A.address);
    for request in [
        arp(arp_operation::REQUEST, macs, own, (UNKNOWN_MAC, B.address)),
        arp(arp_operation::REPLY, macs, own, (UNKNOWN_MAC, GATEWAY.address)),
        arp(arp_operation::REQUEST, macs, (A.dst_mac, B.address), (UNKNOWN_MAC, GATEWAY.address)),
        arp(arp_operation::REQUEST, macs, (B.dst_mac, A.address), (UNKNOWN_MAC, GATEWAY.address)),
        arp(arp_operation::REQUEST, macs, own, (UNKNOWN_MAC, GATEWAY.address))[..40].to_vec(),
    ] {
        let expected = Expected::dropped_arp(&request, DropReason::ArpRefused).identities(A.identity, 0);
        check(&mut kernel, FromEndpoint, &request, expected);
    }
    let request = arp(arp_operation::REQUEST, (BROADCAST, B.dst_mac), own, (UNKNOWN_MAC, GATEWAY.address));
    let expected = Expected::dropped_arp(&request, DropReason::SourceMac).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &request, expected);
}
