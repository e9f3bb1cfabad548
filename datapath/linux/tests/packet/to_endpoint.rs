//! Packets that the node's stack delivers to a workload.

use datapath_abi::{DropReason, EndpointEntry, map_name};
use datapath_linux::object::Program::ToEndpoint;

use crate::{
    check::check,
    expected::{Expected, pair, used_by},
    frame::{Frame, arp},
    populated_kernel,
    wire::{arp_operation, ethertype},
    world::*,
};

#[track_caller]
fn check_new(frame: Frame, from: &Peer) {
    let mut kernel = populated_kernel!();
    let expected = Expected::passed(&frame).new_flow(&frame, from, &A);
    check(&mut kernel, ToEndpoint, &frame, expected);
}

#[test]
fn delivery_of_the_host_opens_a_flow() {
    for address in [&GATEWAY, &UNDERLAY] {
        check_new(Frame::echo_request(address, &A, 7), address);
    }
}

#[test]
fn delivery_of_the_world_opens_a_flow() {
    check_new(Frame::syn(&INTERNET, &A), &INTERNET);
    check_new(Frame::syn(&PARTNER, &A), &PARTNER);
}

#[test]
fn delivery_does_not_prove_the_identity_of_an_endpoint() {
    for endpoint in [&B, &R] {
        let without_proof = Peer { identity: UNMANAGED, address: endpoint.address, ..INTERNET };
        check_new(Frame::syn(&without_proof, &A), &without_proof);
    }
}

#[test]
fn delivery_passes_the_last_hop() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&GATEWAY, &A).ttl(1);
    let [original, _] = pair(&frame, &GATEWAY, &A);
    let first = Expected::passed(&frame).new_flow(&frame, &GATEWAY, &A);
    check(&mut kernel, ToEndpoint, &frame, first);
    let second = Expected::passed(&frame).entry(used_by(&frame, original));
    check(&mut kernel, ToEndpoint, &frame, second);
}

#[test]
fn delivery_of_a_packet_for_another_endpoint_is_dropped() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&GATEWAY, &B);
    let expected = Expected::dropped(&frame, DropReason::UnknownDestination);
    check(&mut kernel, ToEndpoint, &frame, expected);
}

#[test]
fn delivery_of_a_known_flow_of_another_endpoint_is_dropped() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&GATEWAY, &B);
    let [(key, entry), _] = pair(&frame, &GATEWAY, &B);
    kernel.set_flow((key, entry));
    let expected = Expected::dropped(&frame, DropReason::UnknownDestination);
    check(&mut kernel, ToEndpoint, &frame, expected);
}

#[test]
fn delivery_to_an_unknown_device_is_dropped() {
    let mut kernel = populated_kernel!();
    kernel.remove::<u32, EndpointEntry>(map_name::ENDPOINTS_BY_IFINDEX, &HERE);
    let frame = Frame::syn(&GATEWAY, &A);
    let expected = Expected::dropped(&frame, DropReason::UnknownEndpoint);
    check(&mut kernel, ToEndpoint, &frame, expected);
}

#[test]
fn delivery_of_arp_replies_passes() {
    let mut kernel = populated_kernel!();
    let reply = arp(
        arp_operation::REPLY,
        (A.dst_mac, A.src_mac),
        (A.src_mac, GATEWAY.address),
        (A.dst_mac, A.address),
    );
    check(&mut kernel, ToEndpoint, &reply, Expected::passed(&reply));
}

#[test]
fn delivery_of_malformed_packets_and_other_ethertypes_is_dropped() {
    let mut kernel = populated_kernel!();
    let cut = Frame::syn(&GATEWAY, &A).payload(&[0; 4]);
    let expected = Expected::dropped(&cut, DropReason::Malformed).without_ports();
    check(&mut kernel, ToEndpoint, &cut, expected);
    let bytes = Frame::syn(&GATEWAY, &A).ethertype(ethertype::IPV6).bytes();
    let expected = Expected::dropped_unreported(&bytes, DropReason::UnsupportedProtocol);
    check(&mut kernel, ToEndpoint, &bytes, expected);
}
