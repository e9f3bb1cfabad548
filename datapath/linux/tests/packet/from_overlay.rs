//! What another node may send, and where it goes.

use datapath_abi::{Direction::Ingress, DropReason};
use datapath_linux::object::Program::FromOverlay;

use crate::{
    check::{Verdict::*, *},
    frame::Frame,
    furnished,
    kernel::Tunnel,
    world::*,
};

#[track_caller]
fn check_new(frame: Frame, out: Frame, from: &Peer, to: &Peer) {
    let mut kernel = furnished!();
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .new_flow(&frame, from, to)
        .origin(Some(tunnel_from(from)));
    check(&mut kernel, FromOverlay, &frame.bytes(), expected);
}

#[track_caller]
fn check_dropped(frame: Frame, tunnel: Tunnel, reason: DropReason, dst_identity: u32) {
    let mut kernel = furnished!();
    let expected = Expected::dropped(&frame, reason, Ingress)
        .identities(tunnel.identity, dst_identity)
        .origin(Some(tunnel));
    check(&mut kernel, FromOverlay, &frame.bytes(), expected);
}

#[test]
fn to_an_endpoint() {
    let frame = Frame::syn(&R, &A);
    check_new(frame.clone(), frame.towards(&A).ttl(63), &R, &A);
}

#[test]
fn to_this_node() {
    for address in [&GATEWAY, &UNDERLAY] {
        let frame = Frame::syn(&R, address);
        check_new(frame.clone(), frame.towards(&GATEWAY), &R, address);
    }
}

#[test]
fn from_a_node_itself() {
    for node in [&GATEWAY_OF_5, &NODE_5] {
        let frame = Frame::echo_request(node, &A, 9);
        check_new(frame.clone(), frame.towards(&A).ttl(63), node, &A);
    }
}

#[test]
fn the_sender_knows_its_endpoints_first() {
    let unknown_here = Peer { identity: 777, ..UNKNOWN_AT_5 };
    let relabelled = Peer { identity: 777, ..R };
    let unmanaged = Peer { identity: 3, ..UNKNOWN_AT_5 };
    let health = Peer { identity: 4, ..UNKNOWN_AT_5 };
    let last = Peer { identity: (1 << 24) - 1, ..R };
    for peer in [&unknown_here, &relabelled, &unmanaged, &health, &last] {
        let frame = Frame::syn(peer, &A);
        check_new(frame.clone(), frame.towards(&A).ttl(63), peer, &A);
    }
}

#[test]
fn a_known_flow_with_another_identity_is_decided_anew() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&R, &A);
    let out = frame.clone().towards(&A).ttl(63).bytes();
    let [forward, reverse] = pair(&frame, &R, &A);
    let first = Expected::forwarded(Redirect, out.clone(), Ingress)
        .new_flow(&frame, &R, &A)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &frame.bytes(), first);

    let relabelled = Peer { identity: 777, ..R };
    let (key, entry) = and_packet(forward, &frame);
    let second = Expected::forwarded(Redirect, out, Ingress)
        .flow((key, datapath_abi::FlowEntry { src_identity: 777, ..entry }))
        .flow((reverse.0, datapath_abi::FlowEntry { dst_identity: 777, ..reverse.1 }))
        .origin(Some(tunnel_from(&relabelled)));
    check(&mut kernel, FromOverlay, &frame.bytes(), second);
}

#[test]
fn senders_that_are_no_nodes() {
    for underlay in [[192, 0, 2, 99], UNDERLAY.address] {
        let tunnel = Tunnel { identity: R.identity, underlay };
        check_dropped(Frame::syn(&R, &A), tunnel, DropReason::UnknownNode, 0);
    }
}

#[test]
fn a_known_flow_proves_nothing_of_another_sender() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&R, &A);
    for (key, entry) in pair(&frame, &R, &A) {
        kernel.set(datapath_abi::map_name::FLOWS_V4, &key, &entry);
    }
    for (underlay, reason) in
        [([192, 0, 2, 99], DropReason::UnknownNode), ([192, 0, 2, 6], DropReason::InnerSource)]
    {
        let tunnel = Tunnel { identity: R.identity, underlay };
        let expected =
            Expected::dropped(&frame, reason, Ingress).identities(R.identity, 0).origin(Some(tunnel));
        check(&mut kernel, FromOverlay, &frame.bytes(), expected);
    }
}

#[test]
fn inner_sources_of_others() {
    let from_5 = |identity| Tunnel { identity, underlay: NODE_5.address };
    for peer in [&AT_6, &B, &GATEWAY, &INTERNET, &PARTNER] {
        check_dropped(Frame::syn(peer, &A), from_5(400), DropReason::InnerSource, 0);
    }
}

#[test]
fn identities_that_no_node_may_send() {
    for identity in [0, HOST, WORLD, 5, 255, 1 << 24] {
        let tunnel = Tunnel { identity, underlay: NODE_5.address };
        check_dropped(Frame::syn(&R, &A), tunnel, DropReason::ForgedIdentity, 0);
    }
    // A node's own address with a workload's identity.
    for node in [&NODE_5, &GATEWAY_OF_5] {
        let tunnel = Tunnel { identity: 400, underlay: NODE_5.address };
        check_dropped(Frame::syn(node, &A), tunnel, DropReason::ForgedIdentity, 0);
    }
}

#[test]
fn destinations_that_are_not_here() {
    for peer in [&NOBODY, &AT_6, &INTERNET, &NODE_5] {
        check_dropped(Frame::syn(&R, peer), tunnel_from(&R), DropReason::UnknownDestination, 0);
    }
}

#[test]
fn malformed_and_other_protocols() {
    let mut kernel = furnished!();
    let cut = Frame::syn(&R, &A).payload(&[0; 4]);
    let expected = Expected::dropped(&cut, DropReason::Malformed, Ingress)
        .without_ports()
        .identities(R.identity, 0)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &cut.bytes(), expected);
    let bytes = Frame::syn(&R, &A).ethertype(0x86dd).bytes();
    let expected =
        Expected::counted(&bytes, DropReason::UnsupportedProtocol, Ingress).origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &bytes, expected);
}

#[test]
fn without_a_tunnel_key() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&R, &A);
    let expected = Expected::dropped(&frame, DropReason::HelperFailed, Ingress).without_addresses();
    check(&mut kernel, FromOverlay, &frame.bytes(), expected);
}
