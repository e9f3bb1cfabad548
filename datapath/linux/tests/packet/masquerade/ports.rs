//! Which port a flow gets.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use datapath_abi::{DropReason, FlowEntry, FlowKey, V4, flow_flags};
use datapath_linux::object::Program::{FromEndpoint, FromNetdev};
use datapath_packet::PORT_ATTEMPTS;

use super::{OUTSIDE, masquerade_entries, masqueraded, masquerading_kernel, open, port, response};
use crate::{
    check::check,
    clock::{coarse_ns, wait_for_the_next_second},
    expected::{Expected, used_by},
    frame::{CLIENT_PORT, Frame, SERVER_PORT},
    kernel::Kernel,
    wire::{TCP, tcp_flag::SYN},
    world::{A, B, INTERNET, UNDERLAY},
};

/// Occupies a port towards INTERNET:80 with a flow of B's.
pub(super) fn occupy(kernel: &mut Kernel, port: u16) -> FlowKey<V4> {
    let key = FlowKey {
        src: INTERNET.address,
        dst: UNDERLAY.address,
        src_port_be: SERVER_PORT.to_be_bytes(),
        dst_port_be: port.to_be_bytes(),
        protocol: TCP,
        pad: [0; 3],
    };
    let entry = FlowEntry {
        flags: flow_flags::REWRITE_DST,
        rewrite_dst: B.address,
        rewrite_dst_port_be: [9, 9],
        ..FlowEntry::default()
    };
    kernel.set_flow((key, entry));
    key
}

/// Occupies every port that the flow tries.
fn occupy_all(kernel: &mut Kernel, frame: &Frame) -> Vec<FlowKey<V4>> {
    (0..PORT_ATTEMPTS).map(|attempt| occupy(kernel, port(frame, attempt))).collect()
}

fn without_port(frame: &Frame) -> Expected {
    Expected::dropped(frame, DropReason::MasqueradePorts).identities(A.identity, INTERNET.identity)
}

#[test]
fn masquerade_port_in_use_is_not_taken() {
    let mut kernel = masquerading_kernel!();
    let syn = Frame::syn(&A, &INTERNET);
    occupy(&mut kernel, port(&syn, 0));
    open(&mut kernel, &syn, port(&syn, 1));
}

#[test]
fn masquerade_without_a_free_port_drops_until_one_is_free() {
    let mut kernel = masquerading_kernel!();
    let syn = Frame::syn(&A, &INTERNET);
    let occupied = occupy_all(&mut kernel, &syn);
    check(&mut kernel, FromEndpoint, &syn, without_port(&syn));
    // Ports are counted by destination: towards another one they are all free.
    let elsewhere = Frame::tcp(&A, &INTERNET, CLIENT_PORT, 81, SYN);
    open(&mut kernel, &elsewhere, port(&elsewhere, 0));
    // A flow ends, and its port is free.
    let last = occupied[occupied.len() - 1];
    kernel.remove_flow(&last);
    open(&mut kernel, &syn, u16::from_be_bytes(last.dst_port_be));
}

#[test]
fn masquerade_port_is_reused_after_close_if_none_is_free() {
    let mut kernel = masquerading_kernel!();
    let syn = Frame::syn(&A, &INTERNET);
    let reply_key = occupy_all(&mut kernel, &syn)[3];
    let reply = kernel.flow(&reply_key).expect("the entry of `occupy`");
    let original_key = reply.reverse_key(&reply_key);
    let ended =
        |last_seen_ns: u64| FlowEntry { flags: reply.flags | flow_flags::ENDED, last_seen_ns, ..reply };
    let long_ago = coarse_ns() - Duration::from_secs(2).as_nanos() as u64;
    kernel.set_flow((original_key, ended(long_ago)));

    // The connection's last packets may still be on their way. A time in the future counts as just now, however slow
    // this machine is.
    let just_now = coarse_ns() + Duration::from_secs(3600).as_nanos() as u64;
    kernel.set_flow((reply_key, ended(just_now)));
    check(&mut kernel, FromEndpoint, &syn, without_port(&syn));

    kernel.set_flow((reply_key, ended(long_ago)));
    // Only a SYN takes over the port of an ended connection.
    let ack = Frame::ack(&A, &INTERNET);
    check(&mut kernel, FromEndpoint, &ack, without_port(&ack));

    let reused = u16::from_be_bytes(reply_key.dst_port_be);
    let expected = Expected::redirected(&masqueraded(&syn, reused))
        .opens(&syn, masquerade_entries(&syn, &OUTSIDE, reused))
        .removed(original_key);
    check(&mut kernel, FromEndpoint, &syn, expected);
}

#[test]
fn masquerade_port_of_a_host_socket_is_not_taken() {
    let mut kernel = masquerading_kernel!();
    let syn = Frame::syn(&A, &INTERNET);
    let taken = port(&syn, 0);
    let listener = TcpListener::bind((Ipv4Addr::from(UNDERLAY.address), taken)).expect("bind");
    open(&mut kernel, &syn, port(&syn, 1));
    // Packets to the socket's port are the host's.
    let inbound = response(&Frame::syn(&INTERNET, &A), taken);
    check(&mut kernel, FromNetdev, &inbound, Expected::unspec(&inbound));
    drop(listener);
    check(&mut kernel, FromNetdev, &inbound, Expected::dropped(&inbound, DropReason::NoTranslation));
}

#[test]
fn masquerade_port_taken_by_another_flow_is_replaced() {
    let mut kernel = masquerading_kernel!();
    let (syn, ack) = (Frame::syn(&A, &INTERNET), Frame::ack(&A, &INTERNET));
    let first = port(&syn, 0);
    let [original, _] = open(&mut kernel, &syn, first);
    occupy(&mut kernel, first);
    wait_for_the_next_second();
    let next = port(&syn, 1);
    let [_, reply] = masquerade_entries(&syn, &OUTSIDE, next);
    let (key, original) = used_by(&ack, original);
    let original = FlowEntry { rewrite_src_port_be: next.to_be_bytes(), ..original };
    let expected = Expected::redirected(&masqueraded(&ack, next)).entry((key, original)).entry(reply);
    check(&mut kernel, FromEndpoint, &ack, expected);
}
