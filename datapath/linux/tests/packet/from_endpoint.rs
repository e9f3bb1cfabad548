//! What a workload may send, and where it goes.

use datapath_abi::{Direction::Egress, DropReason};
use datapath_linux::object::Program::FromEndpoint;

use crate::{
    check::{Verdict::*, *},
    frame::{Frame, arp},
    furnished,
    world::*,
};

/// A first packet: it is sent on as `out`, and makes its flow.
#[track_caller]
fn check_new(frame: Frame, verdict: Verdict, out: Frame, from: &Peer, to: &Peer) {
    let mut kernel = furnished!();
    let expected = Expected::forwarded(verdict, out.bytes(), Egress).new_flow(&frame, from, to);
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
}

#[track_caller]
fn check_dropped(frame: Frame, reason: DropReason, adjust: impl FnOnce(Expected) -> Expected) {
    let mut kernel = furnished!();
    check(&mut kernel, FromEndpoint, &frame.bytes(), adjust(Expected::dropped(&frame, reason, Egress)));
}

#[test]
fn to_another_endpoint_here() {
    let frame = Frame::syn(&A, &B);
    check_new(frame.clone(), Redirect, frame.towards(&B).ttl(63), &A, &B);
}

#[test]
fn to_another_node() {
    let frame = Frame::syn(&A, &R);
    check_new(frame.clone(), Redirect, frame.towards(&R), &A, &R);
}

#[test]
fn to_an_address_of_another_node_that_nothing_is_known_of() {
    let frame = Frame::udp(&A, &UNKNOWN_AT_5, 1000, 53);
    check_new(frame.clone(), Redirect, frame.towards(&R), &A, &UNKNOWN_AT_5);
}

#[test]
fn to_another_node_itself() {
    for node in [&GATEWAY_OF_5, &NODE_5] {
        let frame = Frame::syn(&A, node);
        check_new(frame.clone(), Redirect, frame.towards(node), &A, node);
    }
}

#[test]
fn to_this_node() {
    for address in [&GATEWAY, &UNDERLAY] {
        let frame = Frame::echo_request(&A, address, 77);
        check_new(frame.clone(), Redirect, frame.towards(&GATEWAY), &A, address);
    }
}

#[test]
fn to_the_world() {
    for peer in [&INTERNET, &PARTNER] {
        let frame = Frame::udp(&A, peer, 1000, 53);
        check_new(frame.clone(), Pass, frame, &A, peer);
    }
}

#[test]
fn options_and_fragments() {
    let frame = Frame::udp(&A, &B, 1000, 53).options(10);
    check_new(frame.clone(), Redirect, frame.towards(&B).ttl(63), &A, &B);
    let first = Frame::udp(&A, &B, 1000, 53).fragment(0, true);
    check_new(first.clone(), Redirect, first.towards(&B).ttl(63), &A, &B);
    // The rest of a datagram has no ports: a flow of its own.
    let rest = Frame::udp(&A, &B, 1000, 53).fragment(185, false);
    assert_eq!(rest.key().src_port_be, [0, 0]);
    check_new(rest.clone(), Redirect, rest.towards(&B).ttl(63), &A, &B);
}

#[test]
fn protocols_without_ports() {
    let esp = Frame::ipv4(&A, &B, 50, &[9; 24]);
    check_new(esp.clone(), Redirect, esp.towards(&B).ttl(63), &A, &B);
    let unreachable = Frame::icmp(&A, &B, 3, 0xabcd);
    check_new(unreachable.clone(), Redirect, unreachable.towards(&B).ttl(63), &A, &B);
}

#[test]
fn the_tunnel_key_names_sender_and_node() {
    let mut kernel = furnished!();
    let key = kernel.run_for_tunnel_key(FromEndpoint, &Frame::syn(&A, &R).bytes());
    assert_eq!((key.identity, key.underlay), (A.identity, NODE_5.address));
}

#[test]
fn another_source_is_spoofed() {
    let frame = Frame::syn(&A, &R).source(B.address);
    check_dropped(frame, DropReason::SourceSpoofed, |expected| expected.identities(A.identity, 0));
}

#[test]
fn another_ethernet_source_is_refused() {
    let frame = Frame::syn(&A, &R).macs(A.src_mac, B.dst_mac);
    check_dropped(frame, DropReason::SourceMac, |expected| expected.identities(A.identity, 0));
}

#[test]
fn tunnel_packets_to_nodes_are_refused() {
    for (node, identity) in
        [(&UNDERLAY, HOST), (&GATEWAY, HOST), (&NODE_5, REMOTE_NODE), (&GATEWAY_OF_5, REMOTE_NODE)]
    {
        let frame = Frame::udp(&A, node, 1000, TUNNEL_PORT);
        check_dropped(frame, DropReason::TunnelPort, |expected| expected.identities(A.identity, identity));
    }
    // A node whose ipcache entry has not come yet, by the nodes map alone.
    let node_6 = Peer { address: [192, 0, 2, 6], ..INTERNET };
    let frame = Frame::udp(&A, &node_6, 1000, TUNNEL_PORT);
    check_dropped(frame, DropReason::TunnelPort, |expected| expected.identities(A.identity, WORLD));
}

#[test]
fn the_tunnel_port_of_others_is_a_port_like_any() {
    let frame = Frame::udp(&A, &B, 1000, TUNNEL_PORT);
    check_new(frame.clone(), Redirect, frame.towards(&B).ttl(63), &A, &B);
    let frame = Frame::tcp(&A, &GATEWAY, 1000, TUNNEL_PORT, 2);
    check_new(frame.clone(), Redirect, frame.towards(&GATEWAY), &A, &GATEWAY);
}

#[test]
fn addresses_that_nobody_has() {
    let multicast = Peer { address: [224, 0, 0, 22], ..INTERNET };
    let broadcast = Peer { address: [255; 4], ..INTERNET };
    let loopback = Peer { address: [127, 0, 0, 1], ..INTERNET };
    for peer in [&NOBODY, &multicast, &broadcast, &loopback] {
        check_dropped(Frame::udp(&A, peer, 1, 2), DropReason::UnknownDestination, |expected| {
            expected.identities(A.identity, 0)
        });
    }
}

#[test]
fn a_node_without_underlay_address() {
    let mut kernel = furnished!();
    kernel.set(datapath_abi::map_name::NODES, &5u32, &datapath_abi::NodeEntry::default());
    let frame = Frame::syn(&A, &R);
    let expected =
        Expected::dropped(&frame, DropReason::NoTunnelEndpoint, Egress).identities(A.identity, R.identity);
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
}

#[test]
fn interfaces_that_are_no_endpoints() {
    let mut kernel = furnished!();
    kernel.remove::<u32, datapath_abi::EndpointEntry>(datapath_abi::map_name::ENDPOINTS_BY_IFINDEX, &HERE);
    let frame = Frame::syn(&A, &B);
    let expected = Expected::dropped(&frame, DropReason::UnknownEndpoint, Egress);
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
}

#[test]
fn fragments_made_to_hide() {
    let tiny = Frame::syn(&A, &B).payload(&[3, 232, 0, 80, 0, 0, 0, 0]).fragment(0, true);
    check_dropped(tiny, DropReason::Fragment, Expected::without_ports);
    let overwriting = Frame::syn(&A, &B).fragment(1, false);
    check_dropped(overwriting, DropReason::Fragment, Expected::without_ports);
}

#[test]
fn malformed() {
    let cut_tcp = Frame::syn(&A, &B).payload(&[0; 19]);
    check_dropped(cut_tcp, DropReason::Malformed, Expected::without_ports);
    let cut_udp = Frame::udp(&A, &B, 1, 2).payload(&[0; 7]);
    check_dropped(cut_udp, DropReason::Malformed, Expected::without_ports);

    let mut kernel = furnished!();
    let frame = Frame::udp(&A, &B, 1000, 53);
    let damage = |at: usize, byte: u8| {
        let mut bytes = frame.bytes();
        bytes[at] = byte;
        bytes
    };
    let version = damage(14, 0x65);
    let header_length = damage(14, 0x44);
    let total_length = damage(17, 200);
    for bytes in [version, header_length, total_length] {
        let expected =
            Expected::dropped(&frame, DropReason::Malformed, Egress).without_ports().sent_as(bytes.clone());
        check(&mut kernel, FromEndpoint, &bytes, expected);
    }
}

#[test]
fn other_protocols_are_counted_and_not_reported() {
    let mut kernel = furnished!();
    let bytes = Frame::syn(&A, &B).ethertype(0x86dd).bytes();
    let expected = Expected::counted(&bytes, DropReason::UnsupportedProtocol, Egress);
    check(&mut kernel, FromEndpoint, &bytes, expected);
}

#[test]
fn arp_for_the_gateway() {
    let mut kernel = furnished!();
    let nobody = [0; 6];
    let request = arp(1, ([0xff; 6], A.dst_mac), (A.dst_mac, A.address), (nobody, GATEWAY.address));
    let reply = arp(2, (A.dst_mac, A.src_mac), (A.src_mac, GATEWAY.address), (A.dst_mac, A.address));
    check(&mut kernel, FromEndpoint, &request, Expected::forwarded(Redirect, reply, Egress));
}

#[test]
fn arp_for_others() {
    let mut kernel = furnished!();
    let nobody = [0; 6];
    let macs = ([0xff; 6], A.dst_mac);
    let own = (A.dst_mac, A.address);
    for request in [
        arp(1, macs, own, (nobody, B.address)),
        arp(2, macs, own, (nobody, GATEWAY.address)),
        arp(1, macs, (A.dst_mac, B.address), (nobody, GATEWAY.address)),
        arp(1, macs, (B.dst_mac, A.address), (nobody, GATEWAY.address)),
        arp(1, macs, own, (nobody, GATEWAY.address))[..40].to_vec(),
    ] {
        let expected =
            Expected::dropped_frame(&request, DropReason::ArpRefused, Egress).identities(A.identity, 0);
        check(&mut kernel, FromEndpoint, &request, expected);
    }
    let request = arp(1, ([0xff; 6], B.dst_mac), own, (nobody, GATEWAY.address));
    let expected = Expected::dropped_frame(&request, DropReason::SourceMac, Egress).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &request, expected);
}
