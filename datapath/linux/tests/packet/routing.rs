//! Native routing (no tunnel) and legacy host routing (packets pass the node's stack); and what may come in by the
//! underlay interface beside the tunnel.

use datapath_abi::{
    DropReason, FlowAction, FlowEntry, NodeConfig, SourceKind,
    node_flags::{LEGACY_HOST_ROUTING, NATIVE},
};
use datapath_linux::object::Program::{FromEndpoint, FromHost, FromNetdev, FromTunnel, ToEndpoint};

use crate::{
    check::{check, populated_kernel},
    expected::{Expected, pair, used_by},
    frame::Frame,
    kernel::Kernel,
    namespace,
    world::*,
};

/// A populated kernel with these node flags, in a network namespace; else the end of the test.
macro_rules! routing_kernel {
    ($flags:expr) => {
        match try_kernel($flags) {
            Some(kernel) => kernel,
            None => return,
        }
    };
}

fn try_kernel(flags: u32) -> Option<Kernel> {
    if !namespace::enter() {
        return None;
    }
    let mut kernel = populated_kernel()?;
    let vxlan_ifindex = if flags & NATIVE != 0 { 0 } else { CONFIG.vxlan_ifindex };
    let config = NodeConfig { flags, vxlan_ifindex, underlay_ifindex: namespace::UNDERLAY_IFINDEX, ..CONFIG };
    configure(&mut kernel, config);
    Some(kernel)
}

/// R without a tunnel: reached by the underlay device.
const R_NATIVE: Peer = Peer {
    source: (SourceKind::Underlay, 0),
    action: (FlowAction::Underlay, namespace::UNDERLAY_IFINDEX),
    dst_mac: GATEWAY.dst_mac,
    src_mac: GATEWAY.src_mac,
    ..R
};
/// R without a tunnel, through the stack.
const R_STACK: Peer = Peer { source: (SourceKind::Host, 0), action: (FlowAction::Stack, 0), ..R_NATIVE };

#[test]
fn native_routing_forwards_packets_unchanged() {
    let mut kernel = routing_kernel!(NATIVE);
    let (syn, syn_ack) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A));
    let expected = Expected::redirected(&syn.clone().ttl(63)).new_flow(&syn, &A, &R_NATIVE);
    check(&mut kernel, FromEndpoint, &syn, expected);
    let [_, reply] = pair(&syn, &A, &R_NATIVE);
    let back = syn_ack.clone().on_underlay();
    let expected = Expected::redirected(&syn_ack.towards(&A).ttl(63)).entry(used_by(&back, reply));
    check(&mut kernel, FromNetdev, &back, expected);
}

#[test]
fn native_routing_knows_remote_endpoints_by_their_addresses() {
    let mut kernel = routing_kernel!(NATIVE);
    for peer in [R_NATIVE, Peer { address: UNKNOWN_AT_5.address, identity: 0, ..R_NATIVE }] {
        let frame = Frame::syn(&peer, &A).on_underlay();
        let out = frame.clone().towards(&A).ttl(63);
        let expected = Expected::redirected(&out).new_flow(&frame, &peer, &A);
        check(&mut kernel, FromNetdev, &frame, expected);
    }
    // The node's own endpoints are not elsewhere.
    let frame = Frame::syn(&B, &A).on_underlay();
    let expected = Expected::dropped(&frame, DropReason::UnderlaySource);
    check(&mut kernel, FromNetdev, &frame, expected);
    // Packets of the world, and those for no endpoint of this node, go to the stack.
    for frame in [Frame::syn(&INTERNET, &A), Frame::syn(&R, &UNASSIGNED)] {
        let frame = frame.on_underlay();
        check(&mut kernel, FromNetdev, &frame, Expected::unspec(&frame));
    }
}

#[test]
fn native_routing_sends_nothing_into_a_tunnel() {
    let mut kernel = routing_kernel!(NATIVE);
    let frame = Frame::syn(&GATEWAY, &R);
    let expected = Expected::dropped(&frame, DropReason::NoTunnelEndpoint).identities(HOST, R.identity);
    check(&mut kernel, FromHost, &frame, expected);
}

#[test]
fn native_routing_with_legacy_host_routing_passes_the_stack() {
    let mut kernel = routing_kernel!(NATIVE | LEGACY_HOST_ROUTING);
    let syn = Frame::syn(&A, &R);
    let expected = Expected::passed(&syn).new_flow(&syn, &A, &R_STACK);
    check(&mut kernel, FromEndpoint, &syn, expected);
    // A flow that begins elsewhere passes the stack; at A's device its ingress device proves the sender.
    let udp = Frame::udp(&R, &A, 1, 2);
    let came = udp.clone().on_underlay();
    check(&mut kernel, FromNetdev, &came, Expected::unspec(&came));
    kernel.ingress_ifindex = namespace::UNDERLAY_IFINDEX;
    let expected = Expected::passed(&udp).new_flow(&udp, &R_STACK, &A);
    check(&mut kernel, ToEndpoint, &udp, expected);
    // Another ingress device proves nothing.
    kernel.ingress_ifindex = 99;
    let udp = Frame::udp(&R, &A, 3, 4);
    let unmanaged = Peer { identity: UNMANAGED, ..R_STACK };
    let expected = Expected::passed(&udp).new_flow(&udp, &unmanaged, &A);
    check(&mut kernel, ToEndpoint, &udp, expected);
}

#[test]
fn legacy_host_routing_passes_the_stack_between_local_endpoints() {
    let mut kernel = routing_kernel!(LEGACY_HOST_ROUTING);
    // The tests have one device, A's. The ingress device of a packet must be that of the flow's source.
    let frame = Frame::syn(&A, &B);
    let expected = Expected::passed(&frame).new_flow(&frame, &A, &B);
    check(&mut kernel, FromEndpoint, &frame, expected);

    let to_a = Frame::syn(&B, &A);
    for (key, entry) in pair(&to_a, &B, &A) {
        kernel.set_flow((key, entry));
    }
    kernel.ingress_ifindex = B.source.1;
    // The packet was counted at the ingress device.
    check(&mut kernel, ToEndpoint, &to_a, Expected::passed(&to_a));
}

#[test]
fn legacy_host_routing_passes_tunnel_packets_to_the_stack() {
    let mut kernel = routing_kernel!(LEGACY_HOST_ROUTING);
    let frame = Frame::syn(&R, &A);
    let expected = Expected::passed(&frame).new_flow(&frame, &R, &A).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &frame, expected);
    kernel.ingress_ifindex = CONFIG.vxlan_ifindex;
    check(&mut kernel, ToEndpoint, &frame, Expected::passed(&frame));
    // The same packet from another ingress device is not R's.
    kernel.ingress_ifindex = 99;
    let unmanaged = Peer { identity: UNMANAGED, ..R_STACK };
    let [(key, original), (reply_key, reply)] = pair(&frame, &unmanaged, &A);
    let twice = FlowEntry { packets: 2, bytes: 2 * frame.len(), ..original };
    let expected = Expected::passed(&frame).entry((key, twice)).entry((reply_key, reply));
    check(&mut kernel, ToEndpoint, &frame, expected);
}

#[test]
fn tunnel_mode_drops_endpoint_sources_at_the_underlay_device() {
    let mut kernel = routing_kernel!(0);
    for peer in [&R, &UNKNOWN_AT_5, &B] {
        let frame = Frame::syn(peer, &A).on_underlay();
        let expected = Expected::dropped(&frame, DropReason::UnderlaySource);
        check(&mut kernel, FromNetdev, &frame, expected);
    }
    for peer in [&INTERNET, &PARTNER, &NODE_5] {
        let frame = Frame::syn(peer, &A).on_underlay();
        check(&mut kernel, FromNetdev, &frame, Expected::unspec(&frame));
    }
}
