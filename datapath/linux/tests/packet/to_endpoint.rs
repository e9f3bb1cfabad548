//! What the node's stack may deliver to a workload.

use datapath_abi::{Direction::Ingress, DropReason};
use datapath_linux::object::Program::ToEndpoint;

use crate::{
    check::{Verdict::*, *},
    frame::{Frame, arp},
    furnished,
    world::*,
};

#[track_caller]
fn check_new(frame: Frame, from: &Peer) {
    let mut kernel = furnished!();
    let expected = Expected::forwarded(Pass, frame.bytes(), Ingress).new_flow(&frame, from, &A);
    check(&mut kernel, ToEndpoint, &frame.bytes(), expected);
}

#[test]
fn from_this_node() {
    for address in [&GATEWAY, &UNDERLAY] {
        check_new(Frame::echo_request(address, &A, 7), address);
    }
}

#[test]
fn from_the_world() {
    check_new(Frame::syn(&INTERNET, &A), &INTERNET);
    check_new(Frame::syn(&PARTNER, &A), &PARTNER);
}

#[test]
fn an_endpoints_address_from_the_stack_goes_back_there_and_is_not_its_identity() {
    for endpoint in [&B, &R] {
        let by_the_stack = Peer { identity: UNMANAGED, address: endpoint.address, ..INTERNET };
        check_new(Frame::syn(&by_the_stack, &A), &by_the_stack);
    }
}

#[test]
fn a_known_flow_passes_with_its_last_hop() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&GATEWAY, &A).ttl(1);
    let [forward, _] = pair(&frame, &GATEWAY, &A);
    let first = Expected::forwarded(Pass, frame.bytes(), Ingress).new_flow(&frame, &GATEWAY, &A);
    check(&mut kernel, ToEndpoint, &frame.bytes(), first);
    let second = Expected::forwarded(Pass, frame.bytes(), Ingress).flow(and_packet(forward, &frame));
    check(&mut kernel, ToEndpoint, &frame.bytes(), second);
}

#[test]
fn another_endpoints_packet() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&GATEWAY, &B);
    let expected = Expected::dropped(&frame, DropReason::UnknownDestination, Ingress);
    check(&mut kernel, ToEndpoint, &frame.bytes(), expected);
}

#[test]
fn another_endpoints_packet_of_a_known_flow() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&GATEWAY, &B);
    let [(key, entry), _] = pair(&frame, &GATEWAY, &B);
    kernel.set(datapath_abi::map_name::FLOWS_V4, &key, &entry);
    let expected = Expected::dropped(&frame, DropReason::UnknownDestination, Ingress);
    check(&mut kernel, ToEndpoint, &frame.bytes(), expected);
}

#[test]
fn interfaces_that_are_no_endpoints() {
    let mut kernel = furnished!();
    kernel.remove::<u32, datapath_abi::EndpointEntry>(datapath_abi::map_name::ENDPOINTS_BY_IFINDEX, &HERE);
    let frame = Frame::syn(&GATEWAY, &A);
    let expected = Expected::dropped(&frame, DropReason::UnknownEndpoint, Ingress);
    check(&mut kernel, ToEndpoint, &frame.bytes(), expected);
}

#[test]
fn our_arp_answers_pass() {
    let mut kernel = furnished!();
    let reply = arp(2, (A.dst_mac, A.src_mac), (A.src_mac, GATEWAY.address), (A.dst_mac, A.address));
    check(&mut kernel, ToEndpoint, &reply, Expected::forwarded(Pass, reply.clone(), Ingress));
}

#[test]
fn malformed_and_other_protocols() {
    let mut kernel = furnished!();
    let cut = Frame::syn(&GATEWAY, &A).payload(&[0; 4]);
    let expected = Expected::dropped(&cut, DropReason::Malformed, Ingress).without_ports();
    check(&mut kernel, ToEndpoint, &cut.bytes(), expected);
    let bytes = Frame::syn(&GATEWAY, &A).ethertype(0x86dd).bytes();
    let expected = Expected::counted(&bytes, DropReason::UnsupportedProtocol, Ingress);
    check(&mut kernel, ToEndpoint, &bytes, expected);
}
