//! Without a tunnel, and by the node's stack: native routing and legacy host routing; and what may come by the underlay
//! interface where there is a tunnel.

use datapath_abi::{
    Direction::{Egress, Ingress},
    DropReason, FlowAction, NodeConfig, SourceKind, map_name,
    node_flags::{LEGACY_HOST_ROUTING, NATIVE},
};
use datapath_linux::object::Program::{FromEndpoint, FromHost, FromNetdev, FromOverlay, ToEndpoint};

use crate::{
    check::{Verdict::*, *},
    frame::Frame,
    kernel::Kernel,
    namespace,
    world::*,
};

const FROM_OUTSIDE: ([u8; 6], [u8; 6]) = ([0; 6], [2, 9, 9, 9, 9, 9]);

macro_rules! routing {
    ($flags:expr) => {
        match routing($flags) {
            Some(kernel) => kernel,
            None => return,
        }
    };
}

fn routing(flags: u32) -> Option<Kernel> {
    if !namespace::enter() {
        return None;
    }
    let mut kernel = furnished()?;
    let vxlan_ifindex = if flags & NATIVE != 0 { 0 } else { CONFIG.vxlan_ifindex };
    let config = NodeConfig { flags, vxlan_ifindex, underlay_ifindex: namespace::UNDERLAY_IFINDEX, ..CONFIG };
    kernel.set(map_name::CONFIG, &0u32, &config);
    Some(kernel)
}

/// R as it is reached without a tunnel: past the stack.
const R_NATIVE: Peer = Peer {
    source: (SourceKind::Underlay, 0),
    action: (FlowAction::Underlay, namespace::UNDERLAY_IFINDEX),
    dst_mac: GATEWAY.dst_mac,
    src_mac: GATEWAY.src_mac,
    ..R
};
/// And by the stack.
const R_STACK: Peer = Peer { source: (SourceKind::Host, 0), action: (FlowAction::Stack, 0), ..R_NATIVE };

#[test]
fn without_a_tunnel_packets_travel_as_they_are() {
    let mut kernel = routing!(NATIVE);
    let (syn, syn_ack) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A));
    let expected =
        Expected::forwarded(Redirect, syn.clone().ttl(63).bytes(), Egress).new_flow(&syn, &A, &R_NATIVE);
    check(&mut kernel, FromEndpoint, &syn.bytes(), expected);
    let [_, reverse] = pair(&syn, &A, &R_NATIVE);
    let back = syn_ack.clone().macs(FROM_OUTSIDE.0, FROM_OUTSIDE.1);
    let expected = Expected::forwarded(Redirect, syn_ack.towards(&A).ttl(63).bytes(), Ingress)
        .flow(and_packet(reverse, &back));
    check(&mut kernel, FromNetdev, &back.bytes(), expected);
}

#[test]
fn without_a_tunnel_another_nodes_endpoints_are_known_by_their_addresses() {
    let mut kernel = routing!(NATIVE);
    for peer in [R_NATIVE, Peer { address: UNKNOWN_AT_5.address, identity: 0, ..R_NATIVE }] {
        let frame = Frame::syn(&peer, &A).macs(FROM_OUTSIDE.0, FROM_OUTSIDE.1);
        let out = frame.clone().towards(&A).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Ingress).new_flow(&frame, &peer, &A);
        check(&mut kernel, FromNetdev, &frame.bytes(), expected);
    }
    // The node's own are nowhere else.
    let frame = Frame::syn(&B, &A).macs(FROM_OUTSIDE.0, FROM_OUTSIDE.1);
    let expected = Expected::dropped(&frame, DropReason::UnderlaySource, Ingress);
    check(&mut kernel, FromNetdev, &frame.bytes(), expected);
    // The world comes by the stack, and what is for nobody here as well.
    for frame in [Frame::syn(&INTERNET, &A), Frame::syn(&R, &NOBODY)] {
        let frame = frame.macs(FROM_OUTSIDE.0, FROM_OUTSIDE.1);
        check(&mut kernel, FromNetdev, &frame.bytes(), Expected::left(&frame.bytes(), Ingress));
    }
}

#[test]
fn without_a_tunnel_nothing_is_sent_into_one() {
    let mut kernel = routing!(NATIVE);
    let frame = Frame::syn(&GATEWAY, &R);
    let expected =
        Expected::dropped(&frame, DropReason::NoTunnelEndpoint, Egress).identities(HOST, R.identity);
    check(&mut kernel, FromHost, &frame.bytes(), expected);
}

#[test]
fn without_a_tunnel_and_by_the_stack() {
    let mut kernel = routing!(NATIVE | LEGACY_HOST_ROUTING);
    let syn = Frame::syn(&A, &R);
    let expected = Expected::forwarded(Pass, syn.bytes(), Egress).new_flow(&syn, &A, &R_STACK);
    check(&mut kernel, FromEndpoint, &syn.bytes(), expected);
    // What begins elsewhere is let to the stack, and known at A's device by where it came in.
    let udp = Frame::udp(&R, &A, 1, 2);
    let came = udp.clone().macs(FROM_OUTSIDE.0, FROM_OUTSIDE.1);
    check(&mut kernel, FromNetdev, &came.bytes(), Expected::left(&came.bytes(), Ingress));
    kernel.ingress_ifindex = namespace::UNDERLAY_IFINDEX;
    let expected = Expected::forwarded(Pass, udp.bytes(), Ingress).new_flow(&udp, &R_STACK, &A);
    check(&mut kernel, ToEndpoint, &udp.bytes(), expected);
    // From another interface nobody is believed.
    kernel.ingress_ifindex = 99;
    let udp = Frame::udp(&R, &A, 3, 4);
    let unmanaged = Peer { identity: UNMANAGED, ..R_STACK };
    let expected = Expected::forwarded(Pass, udp.bytes(), Ingress).new_flow(&udp, &unmanaged, &A);
    check(&mut kernel, ToEndpoint, &udp.bytes(), expected);
}

#[test]
fn by_the_stack_between_endpoints_of_a_node() {
    let mut kernel = routing!(LEGACY_HOST_ROUTING);
    // From A to itself, as tests have one device: what counts is that it came in by the device of the flow's source.
    let frame = Frame::syn(&A, &B);
    let expected = Expected::forwarded(Pass, frame.bytes(), Egress).new_flow(&frame, &A, &B);
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);

    let to_a = Frame::syn(&B, &A);
    for (key, entry) in pair(&to_a, &B, &A) {
        kernel.set(map_name::FLOWS_V4, &key, &entry);
    }
    kernel.ingress_ifindex = B.source.1;
    // Its flow has counted it where it came in.
    check(&mut kernel, ToEndpoint, &to_a.bytes(), Expected::forwarded(Pass, to_a.bytes(), Ingress));
}

#[test]
fn by_the_stack_from_the_tunnel() {
    let mut kernel = routing!(LEGACY_HOST_ROUTING);
    let frame = Frame::syn(&R, &A);
    let expected = Expected::forwarded(Pass, frame.bytes(), Ingress)
        .new_flow(&frame, &R, &A)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &frame.bytes(), expected);
    kernel.ingress_ifindex = CONFIG.vxlan_ifindex;
    check(&mut kernel, ToEndpoint, &frame.bytes(), Expected::forwarded(Pass, frame.bytes(), Ingress));
    // The same from another interface is not R's.
    kernel.ingress_ifindex = 99;
    let unmanaged = Peer { identity: UNMANAGED, ..R_STACK };
    let [(key, forward), (reverse_key, reverse)] = pair(&frame, &unmanaged, &A);
    let twice = datapath_abi::FlowEntry { packets: 2, bytes: 2 * frame.len(), ..forward };
    let expected =
        Expected::forwarded(Pass, frame.bytes(), Ingress).flow((key, twice)).flow((reverse_key, reverse));
    check(&mut kernel, ToEndpoint, &frame.bytes(), expected);
}

#[test]
fn beside_the_tunnel_no_endpoint_is_believed() {
    let mut kernel = routing!(0);
    for peer in [&R, &UNKNOWN_AT_5, &B] {
        let frame = Frame::syn(peer, &A).macs(FROM_OUTSIDE.0, FROM_OUTSIDE.1);
        let expected = Expected::dropped(&frame, DropReason::UnderlaySource, Ingress);
        check(&mut kernel, FromNetdev, &frame.bytes(), expected);
    }
    for peer in [&INTERNET, &PARTNER, &NODE_5] {
        let frame = Frame::syn(peer, &A).macs(FROM_OUTSIDE.0, FROM_OUTSIDE.1);
        check(&mut kernel, FromNetdev, &frame.bytes(), Expected::left(&frame.bytes(), Ingress));
    }
}
