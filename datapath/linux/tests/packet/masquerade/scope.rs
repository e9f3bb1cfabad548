//! What is not masqueraded, and what belongs to the node itself.

use datapath_abi::{DropReason, FlowEntry, FlowKey, LpmKey, V4, map_name};
use datapath_linux::object::Program::{FromEndpoint, FromNetdev, ToEndpoint, ToNetdev};

use super::{masquerading_kernel, response};
use crate::{
    check::check,
    expected::{Expected, pair, used_by},
    frame::{Frame, UNDERLAY_SENDER},
    wire::{ESP, ICMP, UDP, ethertype},
    world::{A, HERE, INTERNET, NODE_5, PARTNER, Peer, R, TUNNEL_PORT, UNDERLAY, bump_epoch, reset_epoch},
};

#[test]
fn masquerade_spares_excluded_networks_and_nodes() {
    let mut kernel = masquerading_kernel!();
    let key = LpmKey { prefix_len: 24, address: [203, 0, 113, 0] };
    kernel.set(map_name::UNMASQUERADED_LPM_V4, &key, &1u32);
    let node_6 = Peer { address: [192, 0, 2, 6], ..INTERNET };
    reset_epoch(&mut kernel, node_6.address);
    for peer in [&PARTNER, &node_6] {
        let frame = Frame::syn(&A, peer);
        check(&mut kernel, FromEndpoint, &frame, Expected::passed(&frame).new_flow(&frame, &A, peer));
    }
    for peer in [&R, &NODE_5] {
        let frame = Frame::syn(&A, peer);
        let expected = Expected::redirected(&frame.clone().towards(peer)).new_flow(&frame, &A, peer);
        check(&mut kernel, FromEndpoint, &frame, expected);
    }
}

#[test]
fn masquerade_spares_replies_to_the_world() {
    let mut kernel = masquerading_kernel!();
    let inbound = Frame::syn(&INTERNET, &A);
    let [(key, original), reply] = pair(&inbound, &INTERNET, &A);
    check(&mut kernel, ToEndpoint, &inbound, Expected::passed(&inbound).new_flow(&inbound, &INTERNET, &A));
    // Also when the flow is decided again by a reply.
    bump_epoch(&mut kernel, A.address);
    let syn_ack = Frame::syn_ack(&A, &INTERNET);
    let (reply_key, reply) = used_by(&syn_ack, reply);
    let epoch = reply.epoch + 1;
    let reply = FlowEntry { epoch, source_kind: A.source.0 as u8, source: HERE, ..reply };
    let expected =
        Expected::passed(&syn_ack).entry((reply_key, reply)).entry((key, FlowEntry { epoch, ..original }));
    check(&mut kernel, FromEndpoint, &syn_ack, expected);
}

#[test]
fn masquerade_spares_replies_whose_own_entry_was_evicted() {
    let mut kernel = masquerading_kernel!();
    let inbound = Frame::udp(&INTERNET, &A, 5000, 53);
    let [_, reply] = pair(&inbound, &INTERNET, &A);
    check(&mut kernel, ToEndpoint, &inbound, Expected::passed(&inbound).new_flow(&inbound, &INTERNET, &A));
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &reply.0);
    let response = Frame::udp(&A, &INTERNET, 53, 5000);
    let expected = Expected::passed(&response).entry(used_by(&response, reply));
    check(&mut kernel, FromEndpoint, &response, expected);
}

#[test]
fn masquerade_drops_tunnel_packets_to_the_world() {
    let mut kernel = masquerading_kernel!();
    let frame = Frame::udp(&A, &INTERNET, 1000, TUNNEL_PORT);
    let expected =
        Expected::dropped(&frame, DropReason::TunnelPort).identities(A.identity, INTERNET.identity);
    check(&mut kernel, FromEndpoint, &frame, expected);
}

#[test]
fn masquerade_leaves_packets_of_the_host_alone() {
    let mut kernel = masquerading_kernel!();
    let to_host = |frame: Frame| frame.destination(UNDERLAY.address).on_underlay();
    let frames = [
        to_host(Frame::syn(&INTERNET, &A)),
        to_host(Frame::udp(&NODE_5, &A, 50_000, TUNNEL_PORT)),
        to_host(Frame::echo_request(&INTERNET, &A, 61_500)),
        // An echo reply without a flow may be the host's, although its identifier is in the range of ports.
        to_host(Frame::echo_reply(&INTERNET, &A, 61_500)),
        to_host(Frame::ipv4(&INTERNET, &A, ESP, &[1; 8])),
        to_host(Frame::ipv4(&INTERNET, &A, UDP, &[7; 32]).fragment(2, false)),
        to_host(Frame::ipv4(&INTERNET, &A, ICMP, &[3; 4])),
        to_host(Frame::syn(&INTERNET, &A)).ethertype(ethertype::IPV6),
        // For another host, by its Ethernet address.
        response(&Frame::syn_ack(&INTERNET, &A), 61_500).macs([2, 1, 1, 1, 1, 1], UNDERLAY_SENDER),
    ];
    for frame in frames {
        check(&mut kernel, FromNetdev, &frame, Expected::unspec(&frame));
        check(&mut kernel, ToNetdev, &frame, Expected::unspec(&frame));
    }
    let mut cut = to_host(Frame::syn(&INTERNET, &A)).bytes();
    cut.truncate(40);
    check(&mut kernel, FromNetdev, &cut, Expected::unspec(&cut));
}
