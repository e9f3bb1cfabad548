//! Packets out of the tunnel: what another node may send, and where it goes.

use datapath_abi::{DropReason, FlowEntry, identity_number};
use datapath_linux::object::Program::FromTunnel;

use crate::{
    check::check,
    expected::{Expected, pair, used_by},
    frame::Frame,
    kernel::Tunnel,
    populated_kernel,
    wire::ethertype,
    world::*,
};

#[track_caller]
fn check_new(frame: Frame, out: Frame, from: &Peer, to: &Peer) {
    let mut kernel = populated_kernel!();
    let expected = Expected::redirected(&out).new_flow(&frame, from, to).tunnel(tunnel_from(from));
    check(&mut kernel, FromTunnel, &frame, expected);
}

#[track_caller]
fn check_dropped(frame: Frame, tunnel: Tunnel, reason: DropReason, dst_identity: u32) {
    let mut kernel = populated_kernel!();
    let expected = Expected::dropped(&frame, reason).identities(tunnel.identity, dst_identity).tunnel(tunnel);
    check(&mut kernel, FromTunnel, &frame, expected);
}

#[test]
fn tunnel_packet_reaches_a_local_endpoint() {
    let frame = Frame::syn(&R, &A);
    check_new(frame.clone(), frame.towards(&A).ttl(63), &R, &A);
}

#[test]
fn tunnel_packet_reaches_the_host() {
    for address in [&GATEWAY, &UNDERLAY] {
        let frame = Frame::syn(&R, address);
        check_new(frame.clone(), frame.towards(&GATEWAY), &R, address);
    }
}

#[test]
fn tunnel_packet_of_a_node_itself_reaches_an_endpoint() {
    for node in [&GATEWAY_OF_5, &NODE_5] {
        let frame = Frame::echo_request(node, &A, 9);
        check_new(frame.clone(), frame.towards(&A).ttl(63), node, &A);
    }
}

#[test]
fn tunnel_identity_of_the_sending_node_is_newer_than_the_ipcache() {
    let unknown_here = Peer { identity: 777, ..UNKNOWN_AT_5 };
    let relabelled = Peer { identity: 777, ..R };
    let unmanaged = Peer { identity: UNMANAGED, ..UNKNOWN_AT_5 };
    let health = Peer { identity: identity_number::HEALTH, ..UNKNOWN_AT_5 };
    let last = Peer { identity: identity_number::FLEET_MAX, ..R };
    for peer in [&unknown_here, &relabelled, &unmanaged, &health, &last] {
        let frame = Frame::syn(peer, &A);
        check_new(frame.clone(), frame.towards(&A).ttl(63), peer, &A);
    }
}

#[test]
fn tunnel_flow_with_another_identity_is_decided_again() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&R, &A);
    let out = frame.clone().towards(&A).ttl(63);
    let [original, reply] = pair(&frame, &R, &A);
    let first = Expected::redirected(&out).new_flow(&frame, &R, &A).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &frame, first);

    let relabelled = Peer { identity: 777, ..R };
    let (key, entry) = used_by(&frame, original);
    let second = Expected::redirected(&out)
        .entry((key, FlowEntry { src_identity: 777, ..entry }))
        .entry((reply.0, FlowEntry { dst_identity: 777, ..reply.1 }))
        .tunnel(tunnel_from(&relabelled));
    check(&mut kernel, FromTunnel, &frame, second);
}

#[test]
fn tunnel_packet_of_an_unknown_node_is_dropped() {
    for underlay in [[192, 0, 2, 99], UNDERLAY.address] {
        let tunnel = Tunnel { identity: R.identity, underlay };
        check_dropped(Frame::syn(&R, &A), tunnel, DropReason::UnknownNode, 0);
    }
}

#[test]
fn tunnel_flow_does_not_prove_another_sending_node() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&R, &A);
    for (key, entry) in pair(&frame, &R, &A) {
        kernel.set_flow((key, entry));
    }
    for (underlay, reason) in
        [([192, 0, 2, 99], DropReason::UnknownNode), ([192, 0, 2, 6], DropReason::InnerSource)]
    {
        let tunnel = Tunnel { identity: R.identity, underlay };
        let expected = Expected::dropped(&frame, reason).identities(R.identity, 0).tunnel(tunnel);
        check(&mut kernel, FromTunnel, &frame, expected);
    }
}

#[test]
fn tunnel_packet_with_a_source_of_another_node_is_dropped() {
    let from_5 = |identity| Tunnel { identity, underlay: NODE_5.address };
    for peer in [&AT_6, &B, &GATEWAY, &INTERNET, &PARTNER] {
        check_dropped(Frame::syn(peer, &A), from_5(R.identity), DropReason::InnerSource, 0);
    }
}

#[test]
fn tunnel_packet_with_a_forged_identity_is_dropped() {
    for identity in [identity_number::UNKNOWN, HOST, WORLD, 5, 255, identity_number::FLEET_MAX + 1] {
        let tunnel = Tunnel { identity, underlay: NODE_5.address };
        check_dropped(Frame::syn(&R, &A), tunnel, DropReason::ForgedIdentity, 0);
    }
    // A node's own address with the identity of an endpoint.
    for node in [&NODE_5, &GATEWAY_OF_5] {
        let tunnel = Tunnel { identity: R.identity, underlay: NODE_5.address };
        check_dropped(Frame::syn(node, &A), tunnel, DropReason::ForgedIdentity, 0);
    }
}

#[test]
fn tunnel_packet_to_a_destination_elsewhere_is_dropped() {
    for peer in [&UNASSIGNED, &AT_6, &INTERNET, &NODE_5] {
        check_dropped(Frame::syn(&R, peer), tunnel_from(&R), DropReason::UnknownDestination, 0);
    }
}

#[test]
fn tunnel_malformed_packets_and_other_ethertypes_are_dropped() {
    let mut kernel = populated_kernel!();
    let cut = Frame::syn(&R, &A).payload(&[0; 4]);
    let expected = Expected::dropped(&cut, DropReason::Malformed)
        .without_ports()
        .identities(R.identity, 0)
        .tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &cut, expected);
    let bytes = Frame::syn(&R, &A).ethertype(ethertype::IPV6).bytes();
    let expected =
        Expected::dropped_unreported(&bytes, DropReason::UnsupportedProtocol).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &bytes, expected);
}

#[test]
fn tunnel_packet_without_a_key_is_dropped() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&R, &A);
    let expected = Expected::dropped(&frame, DropReason::HelperFailed).without_addresses();
    check(&mut kernel, FromTunnel, &frame, expected);
}
