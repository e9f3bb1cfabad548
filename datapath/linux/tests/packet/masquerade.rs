//! Between endpoints and the world: the node's address and a port of ours outside, the endpoint's inside.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use datapath_abi::{
    Direction::{Egress, Ingress},
    DropReason, EndpointEntry, FlowEntry, FlowKey, FragmentKey, FragmentPorts, LpmKey, NodeConfig, V4,
    epoch_shard_v4, flow_flags, map_name, node_flags,
};
use datapath_linux::object::Program::{FromEndpoint, FromNetdev, ToEndpoint, ToNetdev};
use datapath_packet::{TRIES, flow_hash, masquerade_port};

use crate::{
    check::{Verdict::*, *},
    frame::{Frame, ICMP, SCTP, TCP, UDP},
    kernel::Kernel,
    namespace,
    service::frontend,
    world::*,
};

type Entry = (FlowKey<V4>, FlowEntry);

/// INTERNET, to whom packets go past the stack.
const OUTSIDE: Peer = Peer {
    source: (datapath_abi::SourceKind::Underlay, 0),
    action: (datapath_abi::FlowAction::Underlay, namespace::UNDERLAY_IFINDEX),
    ..INTERNET
};

/// A furnished node that masquerades, in a network namespace with routes; else the end of the test.
macro_rules! masquerading {
    () => {
        masquerading!(0)
    };
    ($flags:expr) => {
        match masquerading($flags) {
            Some(kernel) => kernel,
            None => return,
        }
    };
}

fn masquerading(flags: u32) -> Option<Kernel> {
    // First: programs, test runs and routes are then of the same namespace.
    if !namespace::enter() {
        return None;
    }
    let mut kernel = furnished()?;
    configure(&mut kernel, NodeConfig { flags: node_flags::MASQUERADE | flags, ..CONFIG });
    Some(kernel)
}

fn configure(kernel: &mut Kernel, config: NodeConfig) {
    let config = NodeConfig { underlay_ifindex: namespace::UNDERLAY_IFINDEX, ..config };
    kernel.set(map_name::CONFIG, &0u32, &config);
}

/// The port of a flow's `attempt`-th try.
fn port(frame: &Frame, attempt: u32) -> u16 {
    masquerade_port(flow_hash(&frame.key()), CONFIG.masquerade_port_min, CONFIG.masquerade_port_max, attempt)
}

/// The two entries of a flow that goes out by `port`, when `frame` was its first packet.
fn translated(frame: &Frame, to: &Peer, port: u16) -> [Entry; 2] {
    let [(key, forward), (_, reverse)] = pair(frame, &A, to);
    let forward = FlowEntry {
        flags: flow_flags::REWRITE_SRC,
        rewrite_src: UNDERLAY.address,
        rewrite_src_port_be: port.to_be_bytes(),
        ..forward
    };
    let reverse = FlowEntry {
        flags: flow_flags::REPLY | flow_flags::REWRITE_DST,
        source_kind: datapath_abi::SourceKind::Underlay as u8,
        rewrite_dst: key.src,
        rewrite_dst_port_be: key.src_port_be,
        ..reverse
    };
    [(key, forward), (forward.reverse_key(&key), reverse)]
}

/// Sends the first packet of a flow from A past the stack, and expects this port.
#[track_caller]
fn begin(kernel: &mut Kernel, frame: &Frame, port: u16) -> [Entry; 2] {
    begin_to(kernel, frame, &OUTSIDE, port)
}

#[track_caller]
fn begin_to(kernel: &mut Kernel, frame: &Frame, to: &Peer, port: u16) -> [Entry; 2] {
    let out = frame.clone().ttl(63).source(UNDERLAY.address).source_port(port);
    let [forward, reverse] = translated(frame, to, port);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress)
        .flow(forward)
        .flow(reverse)
        .event(new_event(frame, to));
    check(kernel, FromEndpoint, &frame.bytes(), expected);
    [forward, reverse]
}

fn new_event(frame: &Frame, to: &Peer) -> datapath_abi::Event {
    datapath_abi::Event {
        packets: 1,
        bytes: frame.len(),
        src_identity: A.identity,
        dst_identity: to.identity,
        action: to.action.0 as u8,
        ..event(frame, datapath_abi::EventKind::FlowNew, Egress)
    }
}

/// What the world answers to the port, as it comes in by the underlay interface.
fn answer(frame: Frame, port: u16) -> Frame {
    frame.destination(UNDERLAY.address).destination_port(port).macs([0; 6], [2, 9, 9, 9, 9, 9])
}

/// The same as A gets it.
fn as_delivered(frame: Frame) -> Frame {
    frame.towards(&A).ttl(63)
}

fn forget(kernel: &mut Kernel, key: &FlowKey<V4>) {
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, key);
}

/// That node takes it as from outside: with the services' ports of its own, and its own backends of them.
#[test]
fn a_services_port_of_another_node_is_asked_in_this_nodes_name() {
    let mut kernel = masquerading!();
    frontend(&mut kernel, [0; 4], TCP);
    let node = Peer { address: NODE_5.address, identity: REMOTE_NODE, ..OUTSIDE };
    let request = Frame::syn(&A, &node).checksummed();
    let port = port(&request, 0);
    let [_, reverse] = begin_to(&mut kernel, &request, &node, port);
    let reply = Frame::syn_ack(&node, &A).checksummed();
    let back = answer(reply.clone(), port);
    let expected =
        Expected::forwarded(Redirect, as_delivered(reply).bytes(), Ingress).flow(and_packet(reverse, &back));
    check(&mut kernel, FromNetdev, &back.bytes(), expected);
    // What is at no service's port, or asked by a name that only the tunnel knows, goes by the tunnel.
    for elsewhere in [Frame::syn(&A, &NODE_5).destination_port(22), Frame::syn(&A, &GATEWAY_OF_5)] {
        let to = if elsewhere.key().dst == NODE_5.address { &NODE_5 } else { &GATEWAY_OF_5 };
        let out = elsewhere.clone().towards(to).bytes();
        let expected = Expected::forwarded(Redirect, out, Egress).new_flow(&elsewhere, &A, to);
        check(&mut kernel, FromEndpoint, &elsewhere.bytes(), expected);
    }
}

#[test]
fn requests_and_answers_of_each_protocol() {
    let mut kernel = masquerading!();
    let flows = [
        (Frame::syn(&A, &INTERNET), Frame::syn_ack(&INTERNET, &A)),
        (Frame::udp(&A, &INTERNET, 5000, 53), Frame::udp(&INTERNET, &A, 53, 5000)),
        (Frame::echo_request(&A, &INTERNET, 77), Frame::echo_reply(&INTERNET, &A, 77)),
    ];
    for (request, reply) in flows {
        let (request, reply) = (request.checksummed(), reply.checksummed());
        let port = port(&request, 0);
        let [forward, reverse] = begin(&mut kernel, &request, port);
        let back = answer(reply.clone(), port);
        let expected = Expected::forwarded(Redirect, as_delivered(reply).bytes(), Ingress)
            .flow(and_packet(reverse, &back));
        check(&mut kernel, FromNetdev, &back.bytes(), expected);
        // And once more, the flow being known.
        let out = request.clone().ttl(63).source(UNDERLAY.address).source_port(port);
        let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(forward, &request));
        check(&mut kernel, FromEndpoint, &request.bytes(), expected);
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut kernel = masquerading!();
    // What is expected has none either.
    let request = Frame::udp(&A, &INTERNET, 5000, 53);
    begin(&mut kernel, &request, port(&request, 0));
}

#[test]
fn by_the_stack_the_source_is_written_as_it_leaves() {
    let mut kernel = masquerading!(node_flags::LEGACY_HOST_ROUTING);
    let request = Frame::syn(&A, &INTERNET).checksummed();
    let port = port(&request, 0);
    let [forward, reverse] = translated(&request, &INTERNET, port);
    let expected = Expected::forwarded(Pass, request.bytes(), Egress)
        .flow(forward)
        .flow(reverse)
        .event(new_event(&request, &INTERNET));
    check(&mut kernel, FromEndpoint, &request.bytes(), expected);

    let out = request.clone().source(UNDERLAY.address).source_port(port);
    kernel.ingress_ifindex = HERE;
    let expected = Expected::left(&out.bytes(), Egress);
    check(&mut kernel, ToNetdev, &request.bytes(), expected);
    // The same from elsewhere is not A's.
    for ingress_ifindex in [0, 112, 999] {
        kernel.ingress_ifindex = ingress_ifindex;
        check(&mut kernel, ToNetdev, &request.bytes(), Expected::left(&request.bytes(), Egress));
    }
    kernel.ingress_ifindex = 0;

    let reply = Frame::syn_ack(&INTERNET, &A).checksummed();
    let back = answer(reply.clone(), port);
    let delivered = reply.macs([0; 6], [2, 9, 9, 9, 9, 9]);
    let expected = Expected::forwarded(Pass, delivered.bytes(), Ingress).flow(and_packet(reverse, &back));
    check(&mut kernel, FromNetdev, &back.bytes(), expected);
    // At A's device it belongs to its flow, and makes none of its own.
    check(&mut kernel, ToEndpoint, &delivered.bytes(), Expected::forwarded(Pass, delivered.bytes(), Ingress));
}

#[test]
fn what_is_routed_elsewhere_or_nowhere_goes_to_the_stack() {
    let mut kernel = masquerading!();
    for address in [namespace::BEHIND_ANOTHER_DEVICE, namespace::UNREACHABLE] {
        let peer = Peer { address, ..INTERNET };
        kernel.set(map_name::EPOCHS, &epoch_shard_v4(address), &epoch_of(address));
        let frame = Frame::syn(&A, &peer);
        let [forward, reverse] = translated(&frame, &peer, port(&frame, 0));
        let expected = Expected::forwarded(Pass, frame.bytes(), Egress)
            .flow(forward)
            .flow(reverse)
            .event(new_event(&frame, &peer));
        check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
    }
}

#[test]
fn not_what_is_excluded_or_a_nodes() {
    let mut kernel = masquerading!();
    let key = LpmKey { prefix_len: 24, address: [203, 0, 113, 0] };
    kernel.set(map_name::UNMASQUERADED_LPM_V4, &key, &1u32);
    let node_6 = Peer { address: [192, 0, 2, 6], ..INTERNET };
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(node_6.address), &epoch_of(node_6.address));
    for peer in [&PARTNER, &node_6] {
        let frame = Frame::syn(&A, peer);
        let expected = Expected::forwarded(Pass, frame.bytes(), Egress).new_flow(&frame, &A, peer);
        check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
    }
    for peer in [&R, &NODE_5] {
        let frame = Frame::syn(&A, peer);
        let expected = Expected::forwarded(Redirect, frame.clone().towards(peer).bytes(), Egress)
            .new_flow(&frame, &A, peer);
        check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
    }
}

#[test]
fn an_answer_to_somebody_outside_who_spoke_first_keeps_its_source() {
    let mut kernel = masquerading!();
    let inbound = Frame::syn(&INTERNET, &A);
    let [forward, reverse] = pair(&inbound, &INTERNET, &A);
    let expected = Expected::forwarded(Pass, inbound.bytes(), Ingress).new_flow(&inbound, &INTERNET, &A);
    check(&mut kernel, ToEndpoint, &inbound.bytes(), expected);
    // Also when it is decided anew.
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(A.address), &(epoch_of(A.address) + 1));
    let reply = Frame::syn_ack(&A, &INTERNET);
    let (key, entry) = and_packet(reverse, &reply);
    let epoch = entry.epoch + 1;
    let expected = Expected::forwarded(Pass, reply.bytes(), Egress)
        .flow((key, FlowEntry { epoch, source_kind: A.source.0 as u8, source: HERE, ..entry }))
        .flow((forward.0, FlowEntry { epoch, ..forward.1 }));
    check(&mut kernel, FromEndpoint, &reply.bytes(), expected);
}

#[test]
fn protocols_that_cannot_be_translated() {
    let mut kernel = masquerading!();
    let esp = Frame::ipv4(&A, &INTERNET, 50, &[9; 24]);
    let sctp = Frame::ipv4(&A, &INTERNET, SCTP, &[0; 24]);
    let timestamp = Frame::icmp(&A, &INTERNET, 13, 5);
    let unasked = Frame::echo_reply(&A, &INTERNET, 5);
    for frame in [esp, sctp, timestamp, unasked] {
        let expected = Expected::dropped(&frame, DropReason::MasqueradeProtocol, Egress)
            .identities(A.identity, INTERNET.identity);
        check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
    }
}

#[test]
fn tunnel_packets_to_the_world_are_refused() {
    let mut kernel = masquerading!();
    let frame = Frame::udp(&A, &INTERNET, 1000, TUNNEL_PORT);
    let expected =
        Expected::dropped(&frame, DropReason::TunnelPort, Egress).identities(A.identity, INTERNET.identity);
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
}

/// Occupies a port towards INTERNET:80 for somebody else.
fn occupy(kernel: &mut Kernel, protocol: u8, port: u16) -> FlowKey<V4> {
    let key = FlowKey {
        src: INTERNET.address,
        dst: UNDERLAY.address,
        src_port_be: 80u16.to_be_bytes(),
        dst_port_be: port.to_be_bytes(),
        protocol,
        pad: [0; 3],
    };
    let entry = FlowEntry {
        flags: flow_flags::REWRITE_DST,
        rewrite_dst: B.address,
        rewrite_dst_port_be: [9, 9],
        ..FlowEntry::default()
    };
    kernel.set(map_name::FLOWS_V4, &key, &entry);
    key
}

#[test]
fn a_port_that_is_taken_is_not_taken_again() {
    let mut kernel = masquerading!();
    let frame = Frame::syn(&A, &INTERNET);
    occupy(&mut kernel, TCP, port(&frame, 0));
    begin(&mut kernel, &frame, port(&frame, 1));
}

#[test]
fn no_port_left_is_counted_and_passes() {
    let mut kernel = masquerading!();
    let frame = Frame::syn(&A, &INTERNET);
    let taken: Vec<_> = (0..TRIES).map(|attempt| occupy(&mut kernel, TCP, port(&frame, attempt))).collect();
    let expected = Expected::dropped(&frame, DropReason::MasqueradePorts, Egress)
        .identities(A.identity, INTERNET.identity);
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
    // Ports are by destination: another one has all of them.
    let elsewhere = Frame::tcp(&A, &INTERNET, 1000, 81, 2);
    begin(&mut kernel, &elsewhere, port(&elsewhere, 0));
    // A flow ends, and its port is free.
    let last = taken[taken.len() - 1];
    forget(&mut kernel, &last);
    begin(&mut kernel, &frame, u16::from_be_bytes(last.dst_port_be));
}

#[test]
fn where_no_port_is_left_that_of_an_ended_connection_is_taken() {
    let mut kernel = masquerading!();
    let frame = Frame::syn(&A, &INTERNET);
    let taken: Vec<_> = (0..TRIES).map(|attempt| occupy(&mut kernel, TCP, port(&frame, attempt))).collect();
    let key = taken[3];
    let entry: FlowEntry = kernel.get(map_name::FLOWS_V4, &key).expect("it was put there");
    let forward = entry.reverse_key(&key);
    let ended =
        |last_seen_ns: u64| FlowEntry { flags: entry.flags | flow_flags::ENDED, last_seen_ns, ..entry };
    let long_ago = coarse_ns() - Duration::from_secs(2).as_nanos() as u64;
    kernel.set(map_name::FLOWS_V4, &forward, &ended(long_ago));

    // Its last packets may still be under way. However slow this machine is, this one was just now.
    kernel.set(map_name::FLOWS_V4, &key, &ended(coarse_ns() + Duration::from_secs(3600).as_nanos() as u64));
    let dropped = Expected::dropped(&frame, DropReason::MasqueradePorts, Egress);
    check(&mut kernel, FromEndpoint, &frame.bytes(), dropped.identities(A.identity, INTERNET.identity));

    kernel.set(map_name::FLOWS_V4, &key, &ended(long_ago));
    // What does not begin a connection ends none.
    let ack = Frame::ack(&A, &INTERNET);
    let dropped = Expected::dropped(&ack, DropReason::MasqueradePorts, Egress);
    check(&mut kernel, FromEndpoint, &ack.bytes(), dropped.identities(A.identity, INTERNET.identity));

    let used = u16::from_be_bytes(key.dst_port_be);
    let output = frame.clone().ttl(63).source(UNDERLAY.address).source_port(used).bytes();
    let [forward_half, answering_half] = translated(&frame, &OUTSIDE, used);
    let expected = Expected::forwarded(Redirect, output, Egress)
        .flow(forward_half)
        .flow(answering_half)
        .without_flow(forward)
        .event(new_event(&frame, &OUTSIDE));
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
}

#[test]
fn a_port_of_the_nodes_own_socket_is_not_taken() {
    let mut kernel = masquerading!();
    let frame = Frame::syn(&A, &INTERNET);
    let taken = port(&frame, 0);
    let listener = TcpListener::bind((Ipv4Addr::from(UNDERLAY.address), taken)).expect("bind");
    begin(&mut kernel, &frame, port(&frame, 1));
    // And what comes to it is the node's.
    let inbound = answer(Frame::syn(&INTERNET, &A), taken);
    check(&mut kernel, FromNetdev, &inbound.bytes(), Expected::left(&inbound.bytes(), Ingress));
    drop(listener);
    let expected = Expected::dropped(&inbound, DropReason::NoTranslation, Ingress);
    check(&mut kernel, FromNetdev, &inbound.bytes(), expected);
}

#[test]
fn either_half_brings_back_the_other_with_the_same_port() {
    let mut kernel = masquerading!();
    let (syn, ack) = (Frame::syn(&A, &INTERNET), Frame::ack(&A, &INTERNET));
    // Not the port of the first try, and that one is free again since: it must be looked for.
    let obstacle = occupy(&mut kernel, TCP, port(&syn, 0));
    let used = port(&syn, 1);
    let [forward, reverse] = begin(&mut kernel, &syn, used);
    forget(&mut kernel, &obstacle);
    let out = ack.clone().ttl(63).source(UNDERLAY.address).source_port(used);

    forget(&mut kernel, &forward.0);
    let (key, entry) = forward;
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress)
        .flow((key, FlowEntry { packets: 1, bytes: ack.len(), tcp_flags: ack.tcp_flags(), ..entry }));
    check(&mut kernel, FromEndpoint, &ack.bytes(), expected);

    // The answering half is gone: what answers is dropped, and does not reset the connection.
    forget(&mut kernel, &reverse.0);
    let back = answer(Frame::syn_ack(&INTERNET, &A), used);
    let expected = Expected::dropped(&back, DropReason::NoTranslation, Ingress);
    check(&mut kernel, FromNetdev, &back.bytes(), expected);
    // Within a second or so the endpoint's next packet finds that it is gone, and makes it again.
    wait_for_the_next_second();
    let expected_entry = FlowEntry { packets: 2, bytes: 2 * ack.len(), tcp_flags: ack.tcp_flags(), ..entry };
    let expected =
        Expected::forwarded(Redirect, out.bytes(), Egress).flow((key, expected_entry)).flow(reverse);
    check(&mut kernel, FromEndpoint, &ack.bytes(), expected);
}

#[test]
fn a_half_whose_other_belongs_to_somebody_else_takes_another_port() {
    let mut kernel = masquerading!();
    let (syn, ack) = (Frame::syn(&A, &INTERNET), Frame::ack(&A, &INTERNET));
    let used = port(&syn, 0);
    let [(key, entry), _] = begin(&mut kernel, &syn, used);
    occupy(&mut kernel, TCP, used);
    wait_for_the_next_second();
    let next = port(&syn, 1);
    let [_, reverse] = translated(&syn, &OUTSIDE, next);
    let (key, entry) = and_packet((key, entry), &ack);
    let expected = Expected::forwarded(
        Redirect,
        ack.clone().ttl(63).source(UNDERLAY.address).source_port(next).bytes(),
        Egress,
    )
    .flow((key, FlowEntry { rewrite_src_port_be: next.to_be_bytes(), ..entry }))
    .flow(reverse);
    check(&mut kernel, FromEndpoint, &ack.bytes(), expected);
}

#[test]
fn a_raised_epoch_keeps_the_translation() {
    let mut kernel = masquerading!();
    let (syn, syn_ack) = (Frame::syn(&A, &INTERNET), Frame::syn_ack(&INTERNET, &A));
    let used = port(&syn, 0);
    let [forward, reverse] = begin(&mut kernel, &syn, used);
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(A.address), &(epoch_of(A.address) + 1));
    // The answer comes first.
    let back = answer(syn_ack.clone(), used);
    let raised = |(key, entry): Entry| (key, FlowEntry { epoch: entry.epoch + 1, ..entry });
    let expected = Expected::forwarded(Redirect, as_delivered(syn_ack).bytes(), Ingress)
        .flow(raised(forward))
        .flow(raised(and_packet(reverse, &back)));
    check(&mut kernel, FromNetdev, &back.bytes(), expected);
}

#[test]
fn after_an_endpoint_has_gone_no_answer_passes() {
    let mut kernel = masquerading!();
    let syn = Frame::syn(&A, &INTERNET);
    let used = port(&syn, 0);
    begin(&mut kernel, &syn, used);
    kernel.remove::<V4, EndpointEntry>(map_name::ENDPOINTS_V4, &A.address);
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(A.address), &(epoch_of(A.address) + 1));
    let back = answer(Frame::syn_ack(&INTERNET, &A), used);
    let expected = Expected::dropped(&back, DropReason::UnknownDestination, Ingress);
    check(&mut kernel, FromNetdev, &back.bytes(), expected);
}

#[test]
fn another_address_of_the_node_takes_over() {
    let mut kernel = masquerading!();
    let (syn, ack) = (Frame::syn(&A, &INTERNET), Frame::ack(&A, &INTERNET));
    let used = port(&syn, 0);
    let [forward, _] = begin(&mut kernel, &syn, used);
    let moved = [192, 0, 2, 11];
    configure(&mut kernel, NodeConfig { flags: node_flags::MASQUERADE, underlay_v4: moved, ..CONFIG });
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(A.address), &(epoch_of(A.address) + 1));

    let (key, entry) = and_packet(forward, &ack);
    let epoch = entry.epoch + 1;
    let entry = FlowEntry { epoch, rewrite_src: moved, ..entry };
    let [_, (_, reverse)] = translated(&syn, &OUTSIDE, used);
    let expected =
        Expected::forwarded(Redirect, ack.clone().ttl(63).source(moved).source_port(used).bytes(), Egress)
            .flow((key, entry))
            .flow((entry.reverse_key(&key), FlowEntry { epoch, ..reverse }));
    check(&mut kernel, FromEndpoint, &ack.bytes(), expected);
}

#[test]
fn fragments_follow_their_first() {
    let mut kernel = masquerading!();
    let first = Frame::udp(&A, &INTERNET, 5000, 53).checksummed().fragment(0, true);
    let used = port(&first, 0);
    // Before it, nothing is known of the datagram.
    let rest = Frame::ipv4(&A, &INTERNET, UDP, &[7; 32]).fragment(2, false);
    let expected =
        Expected::dropped(&rest, DropReason::Fragment, Egress).identities(A.identity, INTERNET.identity);
    check(&mut kernel, FromEndpoint, &rest.bytes(), expected);

    let [forward, reverse] = begin(&mut kernel, &first, used);
    let expected =
        Expected::forwarded(Redirect, rest.clone().ttl(63).source(UNDERLAY.address).bytes(), Egress)
            .flow(and_packet(forward, &rest));
    check(&mut kernel, FromEndpoint, &rest.bytes(), expected);

    // And back.
    let first = Frame::udp(&INTERNET, &A, 53, 5000).checksummed().fragment(0, true);
    let back = answer(first.clone(), used);
    let reverse = and_packet(reverse, &back);
    let expected = Expected::forwarded(Redirect, as_delivered(first).bytes(), Ingress).flow(reverse);
    check(&mut kernel, FromNetdev, &back.bytes(), expected);
    let rest = Frame::ipv4(&INTERNET, &A, UDP, &[8; 16]).fragment(2, false);
    let back = answer_rest(rest.clone());
    let expected =
        Expected::forwarded(Redirect, as_delivered(rest).bytes(), Ingress).flow(and_packet(reverse, &back));
    check(&mut kernel, FromNetdev, &back.bytes(), expected);

    let key =
        FragmentKey { src: A.address, dst: INTERNET.address, id_be: [0x12, 0x34], protocol: UDP, pad: 0 };
    let ports = FragmentPorts { src_port_be: 5000u16.to_be_bytes(), dst_port_be: 53u16.to_be_bytes() };
    assert_eq!(kernel.get(map_name::FRAGMENTS_V4, &key), Some(ports));
}

fn answer_rest(frame: Frame) -> Frame {
    frame.destination(UNDERLAY.address).macs([0; 6], [2, 9, 9, 9, 9, 9])
}

#[test]
fn the_nodes_own_packets_are_left_alone() {
    let mut kernel = masquerading!();
    let to_node = |frame: Frame| frame.destination(UNDERLAY.address).macs([0; 6], [2, 9, 9, 9, 9, 9]);
    let frames = [
        to_node(Frame::syn(&INTERNET, &A)),
        to_node(Frame::udp(&NODE_5, &A, 50_000, TUNNEL_PORT)),
        to_node(Frame::echo_request(&INTERNET, &A, 61_500)),
        // An echo reply nobody here asked for, with an identifier in the range, may be the node's.
        to_node(Frame::echo_reply(&INTERNET, &A, 61_500)),
        to_node(Frame::ipv4(&INTERNET, &A, 50, &[1; 8])),
        to_node(Frame::ipv4(&INTERNET, &A, UDP, &[7; 32]).fragment(2, false)),
        to_node(Frame::ipv4(&INTERNET, &A, ICMP, &[3; 4])),
        to_node(Frame::syn(&INTERNET, &A)).ethertype(0x86dd),
        // Addressed to another's Ethernet address.
        answer(Frame::syn_ack(&INTERNET, &A), 61_500).macs([2, 1, 1, 1, 1, 1], [2, 9, 9, 9, 9, 9]),
    ];
    for frame in frames {
        check(&mut kernel, FromNetdev, &frame.bytes(), Expected::left(&frame.bytes(), Ingress));
        check(&mut kernel, ToNetdev, &frame.bytes(), Expected::left(&frame.bytes(), Egress));
    }
    let mut cut = to_node(Frame::syn(&INTERNET, &A)).bytes();
    cut.truncate(40);
    check(&mut kernel, FromNetdev, &cut, Expected::left(&cut, Ingress));
}

#[test]
fn the_end_of_a_translated_connection_is_reported_as_its_endpoint_knows_it() {
    let mut kernel = masquerading!();
    let (syn, rst) = (Frame::syn(&A, &INTERNET), Frame::rst_back(&INTERNET, &A));
    let used = port(&syn, 0);
    let [(key, forward), reverse] = begin(&mut kernel, &syn, used);
    let back = answer(rst.clone(), used);
    let (reverse_key, reverse) = and_packet(reverse, &back);
    let ended = |entry: FlowEntry| FlowEntry { flags: entry.flags | flow_flags::ENDED, ..entry };
    let end = datapath_abi::Event {
        packets: 2,
        bytes: syn.len() + back.len(),
        src_identity: A.identity,
        dst_identity: INTERNET.identity,
        action: datapath_abi::FlowAction::Local as u8,
        tcp_flags: rst.tcp_flags(),
        ..event(&syn, datapath_abi::EventKind::FlowEnd, Ingress)
    };
    let expected = Expected::forwarded(Redirect, as_delivered(rst).bytes(), Ingress)
        .flow((key, ended(forward)))
        .flow((reverse_key, ended(reverse)))
        .event(end);
    check(&mut kernel, FromNetdev, &back.bytes(), expected);
}

#[test]
fn errors_about_translated_flows_are_translated_back() {
    let mut kernel = masquerading!();
    let flows = [
        Frame::syn(&A, &INTERNET),
        Frame::udp(&A, &INTERNET, 5000, 53),
        Frame::echo_request(&A, &INTERNET, 77),
    ];
    for request in flows {
        let used = port(&request, 0);
        let [_, reverse] = begin(&mut kernel, &request, used);
        let sent = request.clone().ttl(60).source(UNDERLAY.address).source_port(used);
        let known = request.clone().ttl(60);
        // A router on the way, and the receiver itself.
        let mut reverse = reverse;
        for (from, code, mtu) in [([203, 0, 113, 254], 4, 1400), (INTERNET.address, 3, 0)] {
            let error = sent.error_about(from, 3, code, mtu).macs([0; 6], [2, 9, 9, 9, 9, 9]);
            let inside = known.error_about(from, 3, code, mtu).towards(&A).ttl(63);
            let out = with_transport_checksum_of(inside.bytes(), &error.bytes());
            reverse = and_packet(reverse, &error);
            let expected = Expected::forwarded(Redirect, out, Ingress).flow(reverse);
            check(&mut kernel, FromNetdev, &error.bytes(), expected);
        }
    }
}

/// The quoted transport's own checksum stays as it came, and the error's own is right all the same.
fn with_transport_checksum_of(mut bytes: Vec<u8>, came: &[u8]) -> Vec<u8> {
    let quote = 14 + 20 + 8;
    let at = quote + 20 + if bytes[quote + 9] == TCP { 16 } else { 2 };
    if bytes[quote + 9] != UDP {
        bytes[at..at + 2].copy_from_slice(&came[at..at + 2]);
    }
    bytes[36..38].fill(0);
    let sum = crate::frame::checksum(&bytes[34..]);
    bytes[36..38].copy_from_slice(&sum);
    bytes
}

#[test]
fn errors_that_endpoints_send_about_answers_are_translated() {
    let mut kernel = masquerading!();
    let request = Frame::udp(&A, &INTERNET, 5000, 53);
    let used = port(&request, 0);
    let [forward, _] = begin(&mut kernel, &request, used);
    let reply = Frame::udp(&INTERNET, &A, 53, 5000);
    let error = reply.error_about(A.address, 3, 3, 0).macs(A.src_mac, A.dst_mac);
    let as_came = reply.clone().destination(UNDERLAY.address).destination_port(used);
    let out = as_came.error_about(UNDERLAY.address, 3, 3, 0).macs(A.src_mac, A.dst_mac).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(forward, &error));
    check(&mut kernel, FromEndpoint, &error.bytes(), expected);
}

#[test]
fn errors_about_nothing_of_ours_are_the_nodes_own() {
    let mut kernel = masquerading!();
    let sent = Frame::udp(&UNDERLAY, &INTERNET, 61_500, 53);
    let error = sent.error_about(INTERNET.address, 3, 4, 1400).macs([0; 6], [2, 9, 9, 9, 9, 9]);
    check(&mut kernel, FromNetdev, &error.bytes(), Expected::left(&error.bytes(), Ingress));
    for length in [8, 12, 28, 35] {
        let cut = error.clone().payload(&error.bytes()[34..34 + length]);
        check(&mut kernel, FromNetdev, &cut.bytes(), Expected::left(&cut.bytes(), Ingress));
    }
}

#[test]
fn too_long_for_the_underlay() {
    let mut kernel = masquerading!();
    let long = Frame::ipv4(&A, &INTERNET, UDP, &[0; 1481]).source_port(5000);
    let told = long.refused(3, 4, 1500, GATEWAY.address);
    let expected =
        Expected::refused(&long, &told, DropReason::TooBig, Egress).identities(A.identity, INTERNET.identity);
    check(&mut kernel, FromEndpoint, &long.bytes(), expected);
}
