//! Packets of the host, from its stack to endpoints of this and other nodes.

use datapath_abi::{DropReason, NodeEntry, map_name};
use datapath_linux::object::Program::FromHost;

use crate::{
    check::check,
    expected::{Expected, pair, used_by},
    frame::Frame,
    populated_kernel,
    wire::ethertype,
    world::*,
};

#[track_caller]
fn check_new(frame: Frame, from: &Peer, to: &Peer) {
    let mut kernel = populated_kernel!();
    let out = frame.clone().towards(to);
    let expected = Expected::redirected(&out).new_flow(&frame, from, to);
    check(&mut kernel, FromHost, &frame, expected);
}

#[track_caller]
fn check_dropped(frame: Frame, reason: DropReason, src_identity: u32) {
    let mut kernel = populated_kernel!();
    let expected = Expected::dropped(&frame, reason).identities(src_identity, 0);
    check(&mut kernel, FromHost, &frame, expected);
}

#[test]
fn host_reaches_other_nodes() {
    check_new(Frame::syn(&GATEWAY, &R), &GATEWAY, &R);
    check_new(Frame::syn(&UNDERLAY, &UNKNOWN_AT_5), &UNDERLAY, &UNKNOWN_AT_5);
    check_new(Frame::syn(&GATEWAY, &GATEWAY_OF_5), &GATEWAY, &GATEWAY_OF_5);
}

#[test]
fn host_stack_does_not_prove_the_identity_of_an_endpoint() {
    let without_proof = Peer { address: B.address, identity: UNMANAGED, ..INTERNET };
    check_new(Frame::syn(&without_proof, &R), &without_proof, &R);
}

#[test]
fn host_is_a_remote_node_to_others() {
    let mut kernel = populated_kernel!();
    let key = kernel.run_for_tunnel_key(FromHost, &Frame::syn(&GATEWAY, &R));
    assert_eq!((key.identity, key.underlay), (REMOTE_NODE, NODE_5.address));
}

#[test]
fn host_flow_to_a_local_endpoint_begins_at_its_device() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&GATEWAY, &B);
    let out = frame.clone().towards(&B);
    check(&mut kernel, FromHost, &frame, Expected::redirected(&out));
    // Also if the flow is known: its packets are counted at the device.
    for (key, entry) in pair(&frame, &GATEWAY, &B) {
        kernel.set_flow((key, entry));
    }
    check(&mut kernel, FromHost, &frame, Expected::redirected(&out));
}

#[test]
fn host_flow_is_counted() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&GATEWAY, &R);
    let out = frame.clone().towards(&R);
    let [original, _] = pair(&frame, &GATEWAY, &R);
    let first = Expected::redirected(&out).new_flow(&frame, &GATEWAY, &R);
    check(&mut kernel, FromHost, &frame, first);
    let second = Expected::redirected(&out).entry(used_by(&frame, original));
    check(&mut kernel, FromHost, &frame, second);
}

#[test]
fn host_packets_to_unknown_destinations_are_dropped() {
    for peer in [&UNASSIGNED, &INTERNET, &PARTNER, &GATEWAY] {
        check_dropped(Frame::syn(&GATEWAY, peer), DropReason::UnknownDestination, HOST);
    }
}

#[test]
fn host_packets_whose_source_the_receiver_would_drop_are_dropped() {
    for peer in [&INTERNET, &PARTNER, &AT_6, &R] {
        check_dropped(Frame::syn(peer, &R), DropReason::InnerSource, 0);
    }
}

#[test]
fn host_packets_to_a_node_without_underlay_address_are_dropped() {
    let mut kernel = populated_kernel!();
    kernel.set(map_name::NODES, &5u32, &NodeEntry::default());
    let frame = Frame::syn(&GATEWAY, &R);
    let expected = Expected::dropped(&frame, DropReason::NoTunnelEndpoint).identities(HOST, R.identity);
    check(&mut kernel, FromHost, &frame, expected);
}

#[test]
fn host_malformed_packets_and_other_ethertypes_are_dropped() {
    let mut kernel = populated_kernel!();
    let cut = Frame::syn(&GATEWAY, &R).payload(&[0; 4]);
    let expected = Expected::dropped(&cut, DropReason::Malformed).without_ports();
    check(&mut kernel, FromHost, &cut, expected);
    let bytes = Frame::syn(&GATEWAY, &R).ethertype(ethertype::IPV6).bytes();
    let expected = Expected::dropped_unreported(&bytes, DropReason::UnsupportedProtocol);
    check(&mut kernel, FromHost, &bytes, expected);
}
