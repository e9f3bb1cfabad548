//! Translation of requests and responses.

use datapath_abi::{DropReason, FlowEntry, NodeConfig, node_flags};
use datapath_linux::object::Program::{FromEndpoint, FromNetdev, ToEndpoint, ToNetdev};

use super::{
    MASQUERADING, delivered, masquerade_entries, masqueraded, masquerading_kernel, open, open_to, port,
    response,
};
use crate::{
    check::check,
    expected::{Expected, used_by},
    frame::{Frame, UNDERLAY_SENDER},
    masquerade::OUTSIDE,
    namespace,
    service::add_frontend,
    wire::{ESP, SCTP, TCP, icmp_type},
    world::{
        A, B, GATEWAY_OF_5, HERE, INTERNET, NODE_5, Peer, REMOTE_NODE, UNDERLAY, configure, reset_epoch,
    },
};

#[test]
fn masquerade_translates_requests_and_responses_of_each_protocol() {
    let mut kernel = masquerading_kernel!();
    let flows = [
        (Frame::syn(&A, &INTERNET), Frame::syn_ack(&INTERNET, &A)),
        (Frame::udp(&A, &INTERNET, 5000, 53), Frame::udp(&INTERNET, &A, 53, 5000)),
        (Frame::echo_request(&A, &INTERNET, 77), Frame::echo_reply(&INTERNET, &A, 77)),
    ];
    for (request, to_a) in flows {
        let (request, to_a) = (request.checksummed(), to_a.checksummed());
        let port = port(&request, 0);
        let [original, reply] = open(&mut kernel, &request, port);
        let back = response(&to_a, port);
        let expected = Expected::redirected(&delivered(&to_a)).entry(used_by(&back, reply));
        check(&mut kernel, FromNetdev, &back, expected);
        // The established flow.
        let expected = Expected::redirected(&masqueraded(&request, port)).entry(used_by(&request, original));
        check(&mut kernel, FromEndpoint, &request, expected);
    }
}

#[test]
fn masquerade_keeps_udp_without_a_checksum() {
    let mut kernel = masquerading_kernel!();
    // The expected packet has no checksum either.
    let request = Frame::udp(&A, &INTERNET, 5000, 53);
    open(&mut kernel, &request, port(&request, 0));
}

/// The other node takes the request for one of an external client: with its own node ports and backends.
#[test]
fn masquerade_covers_node_ports_of_other_nodes() {
    let mut kernel = masquerading_kernel!();
    add_frontend(&mut kernel, [0; 4], TCP);
    let node = Peer { address: NODE_5.address, identity: REMOTE_NODE, ..OUTSIDE };
    let request = Frame::syn(&A, &node).checksummed();
    let port = port(&request, 0);
    let [_, reply] = open_to(&mut kernel, &request, &node, port);
    let to_a = Frame::syn_ack(&node, &A).checksummed();
    let back = response(&to_a, port);
    let expected = Expected::redirected(&delivered(&to_a)).entry(used_by(&back, reply));
    check(&mut kernel, FromNetdev, &back, expected);
    // Other ports, and the address that only the tunnel knows, are reached through the tunnel.
    for frame in [Frame::syn(&A, &NODE_5).destination_port(22), Frame::syn(&A, &GATEWAY_OF_5)] {
        let to = if frame.key().dst == NODE_5.address { &NODE_5 } else { &GATEWAY_OF_5 };
        let expected = Expected::redirected(&frame.clone().towards(to)).new_flow(&frame, &A, to);
        check(&mut kernel, FromEndpoint, &frame, expected);
    }
}

#[test]
fn masquerade_with_legacy_host_routing_translates_at_the_underlay_device() {
    let mut kernel = masquerading_kernel!();
    let flags = node_flags::MASQUERADE | node_flags::LEGACY_HOST_ROUTING;
    configure(&mut kernel, NodeConfig { flags, ..MASQUERADING });
    let request = Frame::syn(&A, &INTERNET).checksummed();
    let port = port(&request, 0);
    let entries = masquerade_entries(&request, &INTERNET, port);
    check(&mut kernel, FromEndpoint, &request, Expected::passed(&request).opens(&request, entries));

    let out = request.clone().source(UNDERLAY.address).source_port(port);
    kernel.ingress_ifindex = HERE;
    check(&mut kernel, ToNetdev, &request, Expected::unspec(&out));
    // The same packet from another device is not A's.
    for ingress_ifindex in [0, B.action.1, 999] {
        kernel.ingress_ifindex = ingress_ifindex;
        check(&mut kernel, ToNetdev, &request, Expected::unspec(&request));
    }
    kernel.ingress_ifindex = 0;

    let to_a = Frame::syn_ack(&INTERNET, &A).checksummed();
    let back = response(&to_a, port);
    let routed = to_a.macs([0; 6], UNDERLAY_SENDER);
    check(&mut kernel, FromNetdev, &back, Expected::passed(&routed).entry(used_by(&back, entries[1])));
    // At A's device the packet belongs to its flow and makes none of its own.
    check(&mut kernel, ToEndpoint, &routed, Expected::passed(&routed));
}

#[test]
fn masquerade_passes_what_no_underlay_route_leads_to_to_the_stack() {
    let mut kernel = masquerading_kernel!();
    for address in [namespace::BEHIND_ANOTHER_DEVICE, namespace::UNREACHABLE] {
        let peer = Peer { address, ..INTERNET };
        reset_epoch(&mut kernel, address);
        let frame = Frame::syn(&A, &peer);
        let entries = masquerade_entries(&frame, &peer, port(&frame, 0));
        check(&mut kernel, FromEndpoint, &frame, Expected::passed(&frame).opens(&frame, entries));
    }
}

#[test]
fn masquerade_drops_protocols_without_ports() {
    let mut kernel = masquerading_kernel!();
    let esp = Frame::ipv4(&A, &INTERNET, ESP, &[9; 24]);
    let sctp = Frame::ipv4(&A, &INTERNET, SCTP, &[0; 24]);
    let timestamp = Frame::icmp(&A, &INTERNET, icmp_type::TIMESTAMP, 5);
    let unsolicited = Frame::echo_reply(&A, &INTERNET, 5);
    for frame in [esp, sctp, timestamp, unsolicited] {
        let expected = Expected::dropped(&frame, DropReason::MasqueradeProtocol)
            .identities(A.identity, INTERNET.identity);
        check(&mut kernel, FromEndpoint, &frame, expected);
    }
}

#[test]
fn masquerade_moves_to_another_address_of_the_node() {
    let mut kernel = masquerading_kernel!();
    let (syn, ack) = (Frame::syn(&A, &INTERNET), Frame::ack(&A, &INTERNET));
    let port = port(&syn, 0);
    let [original, (_, reply)] = open(&mut kernel, &syn, port);
    let moved = [192, 0, 2, 11];
    configure(&mut kernel, NodeConfig { underlay_v4: moved, ..MASQUERADING });
    crate::world::bump_epoch(&mut kernel, A.address);

    let (key, entry) = used_by(&ack, original);
    let epoch = entry.epoch + 1;
    let entry = FlowEntry { epoch, rewrite_src: moved, ..entry };
    let expected = Expected::redirected(&masqueraded(&ack, port).source(moved))
        .entry((key, entry))
        .entry((entry.reverse_key(&key), FlowEntry { epoch, ..reply }));
    check(&mut kernel, FromEndpoint, &ack, expected);
}
