//! What the node's stack sends to endpoints, here and elsewhere.

use datapath_abi::{Direction::Egress, DropReason};
use datapath_linux::object::Program::FromHost;

use crate::{
    check::{Verdict::*, *},
    frame::Frame,
    furnished,
    world::*,
};

#[track_caller]
fn check_new(frame: Frame, from: &Peer, to: &Peer) {
    let mut kernel = furnished!();
    let out = frame.clone().towards(to).bytes();
    let expected = Expected::forwarded(Redirect, out, Egress).new_flow(&frame, from, to);
    check(&mut kernel, FromHost, &frame.bytes(), expected);
}

#[track_caller]
fn check_dropped(frame: Frame, reason: DropReason, dst_identity: u32) {
    let mut kernel = furnished!();
    let expected = Expected::dropped(&frame, reason, Egress).identities(0, dst_identity);
    check(&mut kernel, FromHost, &frame.bytes(), expected);
}

#[test]
fn to_another_node() {
    check_new(Frame::syn(&GATEWAY, &R), &GATEWAY, &R);
    check_new(Frame::syn(&UNDERLAY, &UNKNOWN_AT_5), &UNDERLAY, &UNKNOWN_AT_5);
    check_new(Frame::syn(&GATEWAY, &GATEWAY_OF_5), &GATEWAY, &GATEWAY_OF_5);
}

#[test]
fn an_endpoints_address_from_the_stack_is_not_its_identity() {
    let by_the_stack = Peer { address: B.address, identity: UNMANAGED, ..INTERNET };
    check_new(Frame::syn(&by_the_stack, &R), &by_the_stack, &R);
}

#[test]
fn others_know_this_node_as_remote() {
    let mut kernel = furnished!();
    let key = kernel.run_for_tunnel_key(FromHost, &Frame::syn(&GATEWAY, &R).bytes());
    assert_eq!((key.identity, key.underlay), (REMOTE_NODE, NODE_5.address));
}

#[test]
fn to_an_endpoint_here_is_left_to_its_device() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&GATEWAY, &B);
    let out = frame.clone().towards(&B).bytes();
    check(&mut kernel, FromHost, &frame.bytes(), Expected::forwarded(Redirect, out.clone(), Egress));
    // Also when the flow is known, whose packets are counted there.
    for (key, entry) in pair(&frame, &GATEWAY, &B) {
        kernel.set(datapath_abi::map_name::FLOWS_V4, &key, &entry);
    }
    check(&mut kernel, FromHost, &frame.bytes(), Expected::forwarded(Redirect, out, Egress));
}

#[test]
fn a_known_flow() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&GATEWAY, &R);
    let out = frame.clone().towards(&R).bytes();
    let [forward, _] = pair(&frame, &GATEWAY, &R);
    let first = Expected::forwarded(Redirect, out.clone(), Egress).new_flow(&frame, &GATEWAY, &R);
    check(&mut kernel, FromHost, &frame.bytes(), first);
    let second = Expected::forwarded(Redirect, out, Egress).flow(and_packet(forward, &frame));
    check(&mut kernel, FromHost, &frame.bytes(), second);
}

#[test]
fn destinations_that_are_nowhere() {
    for peer in [&NOBODY, &INTERNET, &PARTNER, &GATEWAY] {
        check_dropped(Frame::syn(&GATEWAY, peer), DropReason::UnknownDestination, 0);
    }
}

#[test]
fn sources_that_the_receiver_would_refuse() {
    for peer in [&INTERNET, &PARTNER, &AT_6, &R] {
        check_dropped(Frame::syn(peer, &R), DropReason::InnerSource, R.identity);
    }
}

#[test]
fn a_node_without_underlay_address() {
    let mut kernel = furnished!();
    kernel.set(datapath_abi::map_name::NODES, &5u32, &datapath_abi::NodeEntry::default());
    let frame = Frame::syn(&GATEWAY, &R);
    let expected =
        Expected::dropped(&frame, DropReason::NoTunnelEndpoint, Egress).identities(HOST, R.identity);
    check(&mut kernel, FromHost, &frame.bytes(), expected);
}

#[test]
fn malformed_and_other_protocols() {
    let mut kernel = furnished!();
    let cut = Frame::syn(&GATEWAY, &R).payload(&[0; 4]);
    let expected = Expected::dropped(&cut, DropReason::Malformed, Egress).without_ports();
    check(&mut kernel, FromHost, &cut.bytes(), expected);
    let bytes = Frame::syn(&GATEWAY, &R).ethertype(0x86dd).bytes();
    let expected = Expected::counted(&bytes, DropReason::UnsupportedProtocol, Egress);
    check(&mut kernel, FromHost, &bytes, expected);
}
