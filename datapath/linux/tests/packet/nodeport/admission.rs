//! Which packets are accepted for a service, and what the others get.

use datapath_abi::{DropReason, LpmKey, SOURCE_SERVICE_BITS, Source, map_name, service_flags};
use datapath_linux::object::Program::{FromEndpoint, FromNetdev};

use super::{CLIENT, conversations, external, install, open_local, tcp_conversation};
use crate::{
    check::check,
    expected::{Expected, next_epoch},
    frame::{CLIENT_PORT, Frame, UNDERLAY_SENDER},
    kernel::{Kernel, TC_ACT_REDIRECT},
    populated_kernel,
    service::{Backend, PORT, SERVICE, VIP, backend, dnat, dnat_entries, set_flags},
    wire::{
        ESP, ICMP, PORT_UNREACHABLE, SCTP, TCP, TTL_EXCEEDED, UDP, ethertype, fragmentation_needed,
        tcp_flag::{RST, SYN},
    },
    world::{
        A, B, GATEWAY, NODE_5, PARTNER, Peer, R, TUNNEL_PORT, UNASSIGNED, UNDERLAY, UNKNOWN_AT_5, WORLD,
        bump_epoch,
    },
};

/// Allows a source range for a service.
fn allow_source(kernel: &mut Kernel, service: u32, address: [u8; 4], prefix_len: u32) {
    let prefix_len = SOURCE_SERVICE_BITS + prefix_len;
    let key = LpmKey { prefix_len, address: Source { service, address } };
    kernel.set(map_name::SOURCES_LPM_V4, &key, &1u32);
}

#[test]
fn nodeport_source_ranges_admit_nodes_and_the_ranges_only() {
    let mut kernel = populated_kernel!();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    // The flow is older than the ranges.
    let (request, _) = tcp_conversation(&a, &CLIENT);
    open_local(&mut kernel, &request, &a);
    allow_source(&mut kernel, SERVICE, [203, 0, 113, 0], 24);
    set_flags(&mut kernel, service_flags::SOURCES);
    // Ranges of another service do not count.
    allow_source(&mut kernel, SERVICE + 1, [0; 4], 0);
    bump_epoch(&mut kernel, A.address);
    for (request, _) in conversations(&a, &CLIENT) {
        let expected = Expected::dropped(&request, DropReason::ServiceSource).identities(CLIENT.identity, 0);
        check(&mut kernel, FromNetdev, &request, expected);
    }
    let node = external(Peer { address: NODE_5.address, identity: WORLD, ..UNDERLAY });
    for client in [external(PARTNER), node] {
        let request = Frame::udp(&client, &VIP, 5000, PORT).on_underlay();
        let entries = dnat_entries(&request, &client, &a).map(next_epoch);
        let out = dnat(&request, &a).towards(&A).ttl(63);
        check(&mut kernel, FromNetdev, &request, Expected::redirected(&out).opens(&request, entries));
    }
    // Source ranges bind external clients; endpoints are subject to policy instead.
    let from_a = Frame::udp(&A, &VIP, 5000, PORT);
    assert_eq!(kernel.run(FromEndpoint, &from_a, None).code, TC_ACT_REDIRECT);
}

#[test]
fn nodeport_without_backends_rejects_the_client() {
    let mut kernel = populated_kernel!();
    install(&mut kernel, &[]);
    let rejected = |frame: &Frame, answer: &Frame| {
        Expected::rejected(frame, answer, DropReason::NoBackend).identities(CLIENT.identity, 0)
    };
    for frontend in [&VIP, &UNDERLAY] {
        let syn = Frame::syn(&CLIENT, frontend).on_underlay();
        check(&mut kernel, FromNetdev, &syn, rejected(&syn, &syn.reset_of_syn()));
        let datagram = Frame::udp(&CLIENT, frontend, 5000, PORT).on_underlay();
        let error = datagram.icmp_reject(PORT_UNREACHABLE, frontend.address);
        check(&mut kernel, FromNetdev, &datagram, rejected(&datagram, &error));
        let rst = Frame::tcp(&CLIENT, frontend, CLIENT_PORT, PORT, RST).on_underlay();
        let expected = Expected::dropped(&rst, DropReason::NoBackend).identities(CLIENT.identity, 0);
        check(&mut kernel, FromNetdev, &rst, expected);
    }
    // The backend's address is one of the node's that no endpoint has.
    install(&mut kernel, &[backend(1, UNASSIGNED)]);
    let syn = Frame::syn(&CLIENT, &VIP).on_underlay();
    check(&mut kernel, FromNetdev, &syn, rejected(&syn, &syn.reset_of_syn()));
}

#[test]
fn nodeport_rejects_by_icmp_in_the_name_of_the_frontend() {
    let mut kernel = populated_kernel!();
    install(&mut kernel, &[backend(1, R)]);
    let long =
        Frame::ipv4(&CLIENT, &VIP, UDP, &[0; 1431]).source_port(5000).destination_port(PORT).on_underlay();
    let error = long.icmp_reject(fragmentation_needed(1450), VIP.address);
    let expected =
        Expected::rejected(&long, &error, DropReason::TooBig).identities(CLIENT.identity, R.identity);
    check(&mut kernel, FromNetdev, &long, expected);
    install(&mut kernel, &[backend(2, A)]);
    let last_hop = Frame::udp(&CLIENT, &VIP, 5001, PORT).on_underlay().ttl(1);
    let error = last_hop.icmp_reject(TTL_EXCEEDED, VIP.address);
    let expected = Expected::rejected(&last_hop, &error, DropReason::TtlExceeded)
        .identities(CLIENT.identity, A.identity);
    check(&mut kernel, FromNetdev, &last_hop, expected);
}

#[test]
fn nodeport_leaves_packets_of_no_service_to_the_stack() {
    let mut kernel = populated_kernel!();
    install(&mut kernel, &[backend(1, A)]);
    let no_frontend = Peer { address: [10, 201, 0, 9], ..VIP };
    let frames = [
        Frame::tcp(&CLIENT, &VIP, CLIENT_PORT, 81, SYN),
        Frame::tcp(&CLIENT, &UNDERLAY, CLIENT_PORT, 22, SYN),
        Frame::udp(&NODE_5, &UNDERLAY, 50_000, TUNNEL_PORT),
        // A service's port without a frontend.
        Frame::syn(&CLIENT, &no_frontend),
        Frame::echo_request(&CLIENT, &VIP, 9),
        Frame::ipv4(&CLIENT, &VIP, ESP, &[0, 80, 0, 80, 0, 0, 0, 0]),
        Frame::ipv4(&CLIENT, &VIP, UDP, &[7; 32]).fragment(2, false),
        Frame::ipv4(&CLIENT, &VIP, TCP, &[3, 232, 0, 80, 0, 0]),
        Frame::ipv4(&CLIENT, &VIP, ICMP, &[3; 4]),
        Frame::syn(&CLIENT, &VIP).ethertype(ethertype::IPV6),
    ];
    for frame in frames.map(Frame::on_underlay) {
        check(&mut kernel, FromNetdev, &frame, Expected::unspec(&frame));
    }
    let mut cut = Frame::syn(&CLIENT, &VIP).on_underlay().bytes();
    cut.truncate(40);
    check(&mut kernel, FromNetdev, &cut, Expected::unspec(&cut));
    let for_another_host = Frame::syn(&CLIENT, &VIP).macs([2, 1, 1, 1, 1, 1], UNDERLAY_SENDER);
    check(&mut kernel, FromNetdev, &for_another_host, Expected::unspec(&for_another_host));
}

#[test]
fn nodeport_drops_external_packets_with_a_source_of_the_fleet() {
    let mut kernel = populated_kernel!();
    install(&mut kernel, &[backend(1, A)]);
    for peer in [&A, &B, &R, &UNKNOWN_AT_5, &UNDERLAY, &GATEWAY] {
        let frame = Frame::udp(peer, &VIP, 5000, PORT).on_underlay();
        check(&mut kernel, FromNetdev, &frame, Expected::dropped(&frame, DropReason::UnderlaySource));
    }
}

/// The SCTP checksum covers the ports: source NAT is impossible.
#[test]
fn nodeport_over_sctp_reaches_local_backends_only() {
    let mut kernel = populated_kernel!();
    let a = Backend { port: PORT, ..backend(1, A) };
    install(&mut kernel, &[a]);
    let request = Frame::ipv4(&CLIENT, &VIP, SCTP, &[3, 232, 0, 80, 0, 0, 0, 1]).on_underlay();
    open_local(&mut kernel, &request, &a);
    install(&mut kernel, &[Backend { port: PORT, ..backend(2, R) }]);
    let request = Frame::ipv4(&CLIENT, &VIP, SCTP, &[3, 233, 0, 80, 0, 0, 0, 1]).on_underlay();
    let expected =
        Expected::dropped(&request, DropReason::MasqueradeProtocol).identities(CLIENT.identity, R.identity);
    check(&mut kernel, FromNetdev, &request, expected);
}
