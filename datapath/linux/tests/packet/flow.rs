//! The life of a flow, from its first packet to its end.

use datapath_abi::{
    BUDGET_WINDOW_NS, Direction::Egress, DropReason, EVENT_RING_BYTES, EVENTS_PER_WINDOW, EndpointEntry,
    Event, EventKind, FlowEntry, IpcacheEntry, NodeEntry, V4, counter_slot, flow_flags, map_name,
};
use datapath_linux::object::Program::{FromEndpoint, FromTunnel};

use crate::{
    check::check,
    clock::coarse_ns,
    expected::{Entry, Expected, FORWARDED, LOST_EVENTS, event, pair, used_by},
    frame::Frame,
    kernel::Kernel,
    populated_kernel,
    wire::TTL_EXCEEDED,
    world::*,
};

/// Sends a packet of A's to R, which changes these entries and reports these events.
#[track_caller]
fn send(kernel: &mut Kernel, frame: &Frame, entries: &[Entry], events: &[Event]) {
    let expected = Expected::redirected(&frame.clone().towards(&R));
    check(kernel, FromEndpoint, frame, with_changes(expected, entries, events));
}

/// As [`send`], from R to A through the tunnel.
#[track_caller]
fn receive(kernel: &mut Kernel, frame: &Frame, entries: &[Entry], events: &[Event]) {
    let out = frame.clone().towards(&A).ttl(63).bytes();
    let expected = with_changes(Expected::redirected(&out), entries, events);
    check(kernel, FromTunnel, frame, expected.tunnel(tunnel_from(&R)));
}

fn with_changes(expected: Expected, entries: &[Entry], events: &[Event]) -> Expected {
    let expected = entries.iter().fold(expected, |expected, entry| expected.entry(*entry));
    events.iter().fold(expected, |expected, event| expected.event(*event))
}

/// The flow's first packet, from A to R: it writes both entries.
#[track_caller]
fn open(kernel: &mut Kernel, frame: &Frame) -> [Entry; 2] {
    let expected = Expected::redirected(&frame.clone().towards(&R));
    check(kernel, FromEndpoint, frame, expected.new_flow(frame, &A, &R));
    pair(frame, &A, &R)
}

fn ended((key, entry): Entry) -> Entry {
    (key, FlowEntry { flags: entry.flags | flow_flags::ENDED, ..entry })
}

/// The event when the packet `last` ends the flow from A to R.
fn end_event(first: &Frame, last: &Frame, entries: [&Entry; 2]) -> Event {
    let [(_, one), (_, other)] = entries;
    Event {
        packets: one.packets + other.packets,
        bytes: one.bytes + other.bytes,
        src_identity: A.identity,
        dst_identity: R.identity,
        action: A.action.0 as u8,
        tcp_flags: last.tcp_flags(),
        ..event(first, EventKind::FlowEnd)
    }
}

#[test]
fn flow_entries_serve_both_directions() {
    let mut kernel = populated_kernel!();
    let (syn, syn_ack, ack) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A), Frame::ack(&A, &R));
    let [original, reply] = open(&mut kernel, &syn);
    receive(&mut kernel, &syn_ack, &[used_by(&syn_ack, reply)], &[]);
    send(&mut kernel, &ack, &[used_by(&ack, original)], &[]);
}

#[test]
fn flow_of_an_echo_request_covers_the_reply() {
    let mut kernel = populated_kernel!();
    let (request, response) = (Frame::echo_request(&A, &R, 77), Frame::echo_reply(&R, &A, 77));
    let [_, reply] = open(&mut kernel, &request);
    receive(&mut kernel, &response, &[used_by(&response, reply)], &[]);
}

#[test]
fn flow_ends_once_after_fin_from_both_sides() {
    let mut kernel = populated_kernel!();
    let (syn, syn_ack, fin) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A), Frame::fin(&A, &R));
    let (fin_from_server, ack) = (Frame::fin_from_server(&R, &A), Frame::ack(&A, &R));

    let [original, reply] = open(&mut kernel, &syn);
    let reply = used_by(&syn_ack, reply);
    receive(&mut kernel, &syn_ack, &[reply], &[]);
    let original = used_by(&fin, original);
    send(&mut kernel, &fin, &[original], &[]);

    let reply = used_by(&fin_from_server, reply);
    let end = end_event(&syn, &fin_from_server, [&original, &reply]);
    let (original, reply) = (ended(original), ended(reply));
    receive(&mut kernel, &fin_from_server, &[original, reply], &[end]);

    // Late packets are forwarded, and the flow does not end again.
    let original = used_by(&ack, original);
    send(&mut kernel, &ack, &[original], &[]);
    receive(&mut kernel, &fin_from_server, &[used_by(&fin_from_server, reply)], &[]);
}

#[test]
fn flow_ends_with_a_reset_and_the_next_syn_opens_another() {
    let mut kernel = populated_kernel!();
    let (syn, rst) = (Frame::syn(&A, &R), Frame::rst_from_server(&R, &A));
    let [original, reply] = open(&mut kernel, &syn);
    let reply = used_by(&rst, reply);
    let end = end_event(&syn, &rst, [&original, &reply]);
    receive(&mut kernel, &rst, &[ended(original), ended(reply)], &[end]);
    open(&mut kernel, &syn);
}

#[test]
fn flow_of_a_connection_older_than_the_table_goes_on() {
    let mut kernel = populated_kernel!();
    open(&mut kernel, &Frame::ack(&A, &R));
}

#[test]
fn flow_is_decided_again_after_an_epoch_bump_and_keeps_its_counts() {
    for changed in [A.address, R.address] {
        let mut kernel = populated_kernel!();
        let (syn, ack) = (Frame::syn(&A, &R), Frame::ack(&A, &R));
        let [original, reply] = open(&mut kernel, &syn);

        // A changed map alone does not affect a known flow: its epoch does.
        kernel.set(map_name::IPCACHE_V4, &R.address, &IpcacheEntry { identity: 555, node: 6 });
        let original = used_by(&ack, original);
        send(&mut kernel, &ack, &[original], &[]);

        bump_epoch(&mut kernel, changed);
        let (key, entry) = used_by(&ack, original);
        let epoch = entry.epoch + 1;
        let original = (key, FlowEntry { epoch, target: 6, dst_identity: 555, ..entry });
        let (key, entry) = reply;
        let reply = (key, FlowEntry { epoch, source: 6, src_identity: 555, ..entry });
        send(&mut kernel, &ack, &[original, reply], &[]);
    }
}

#[test]
fn flow_to_a_deleted_endpoint_is_dropped_at_once() {
    let mut kernel = populated_kernel!();
    let (syn, ack) = (Frame::syn(&A, &B), Frame::ack(&A, &B));
    let expected = Expected::redirected(&syn.clone().towards(&B).ttl(63));
    check(&mut kernel, FromEndpoint, &syn, expected.new_flow(&syn, &A, &B));

    kernel.remove::<V4, EndpointEntry>(map_name::ENDPOINTS_V4, &B.address);
    bump_epoch(&mut kernel, B.address);
    let expected = Expected::dropped(&ack, DropReason::UnknownDestination).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &ack, expected);
}

#[test]
fn flow_to_and_from_a_node_that_left_is_dropped_at_once() {
    let mut kernel = populated_kernel!();
    let (syn, syn_ack) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A));
    open(&mut kernel, &syn);
    kernel.remove::<V4, u32>(map_name::NODE_BY_ADDRESS_V4, &NODE_5.address);
    kernel.set(map_name::NODES, &5u32, &NodeEntry::default());

    let expected = Expected::dropped(&syn_ack, DropReason::UnknownNode)
        .identities(R.identity, 0)
        .tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &syn_ack, expected);
    // Packets to the node are dropped as well; the entry does not count them.
    let expected = Expected::dropped(&syn, DropReason::NoTunnelEndpoint).identities(A.identity, R.identity);
    check(&mut kernel, FromEndpoint, &syn, expected);
}

#[test]
fn flow_counts_forwarded_packets_only() {
    let mut kernel = populated_kernel!();
    let syn = Frame::syn(&A, &B);
    let expected = Expected::redirected(&syn.clone().towards(&B).ttl(63));
    check(&mut kernel, FromEndpoint, &syn, expected.new_flow(&syn, &A, &B));
    let last_hop = syn.ttl(1);
    let error = last_hop.icmp_reject(TTL_EXCEEDED, GATEWAY.address);
    let expected =
        Expected::rejected(&last_hop, &error, DropReason::TtlExceeded).identities(A.identity, B.identity);
    check(&mut kernel, FromEndpoint, &last_hop, expected);
}

#[test]
fn flow_entry_of_one_direction_is_restored_by_the_next_packet() {
    let mut kernel = populated_kernel!();
    let (syn, syn_ack) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A));
    let [_, reply] = open(&mut kernel, &syn);
    kernel.remove_flow(&reply.0);
    receive(&mut kernel, &syn_ack, &[used_by(&syn_ack, reply)], &[]);
}

#[test]
fn flow_does_not_prove_another_workload() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&B, &R);
    for (key, entry) in pair(&frame, &B, &R) {
        kernel.set_flow((key, entry));
    }
    // A packet of B's flow from A's device, with A's Ethernet address.
    let from_a = frame.macs(A.src_mac, A.dst_mac);
    let expected = Expected::dropped(&from_a, DropReason::SourceSpoofed).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &from_a, expected);
}

#[test]
fn flow_times_are_of_the_coarse_clock() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&A, &R);
    let before = coarse_ns();
    kernel.run(FromEndpoint, &frame, None);
    let after = coarse_ns();
    let [(key, _), (reply_key, _)] = pair(&frame, &A, &R);
    for key in [key, reply_key] {
        let entry = kernel.flow(&key).expect("the flow is known");
        assert!((before..=after).contains(&entry.created_ns), "{before} {} {after}", entry.created_ns);
        assert!((before..=after).contains(&entry.last_seen_ns), "{before} {} {after}", entry.last_seen_ns);
    }
    // The clock ticks every few milliseconds.
    while coarse_ns() == after {
        std::thread::yield_now();
    }
    kernel.run(FromEndpoint, &frame, None);
    let entry = kernel.flow(&key).expect("the flow is known");
    assert!(entry.last_seen_ns > after && entry.created_ns <= after);
}

#[test]
fn events_of_many_drops_are_limited_and_the_rest_is_counted() {
    const PACKETS: u64 = 5_000;
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&A, &R).source(B.address);
    let before = coarse_ns();
    kernel.time(FromEndpoint, &frame.bytes(), None, PACKETS as u32);
    let windows = (coarse_ns() - before) / BUDGET_WINDOW_NS + 2;

    let events = kernel.events().len() as u64;
    let counters = kernel.snapshot().counters;
    let lost = counters.get(&counter_slot(LOST_EVENTS, Egress)).map_or(0, |(packets, _)| *packets);
    assert_eq!(counters[&counter_slot(DropReason::SourceSpoofed as u8, Egress)].0, PACKETS);
    assert_eq!(events + lost, PACKETS);
    assert!(events <= windows * u64::from(EVENTS_PER_WINDOW), "{events} in {windows}");
    assert!(events >= u64::from(EVENTS_PER_WINDOW));
}

#[test]
fn events_lost_to_a_full_ring_are_counted_and_no_packet_is_dropped() {
    // A record has a header of 8 bytes (`BPF_RINGBUF_HDR_SZ`).
    let fit = u64::from(EVENT_RING_BYTES) / (size_of::<Event>() as u64 + 8);
    let flows = fit + 100;
    let mut kernel = populated_kernel!();
    for port in 0..flows {
        kernel.run(FromEndpoint, &Frame::udp(&A, &R, port as u16, 53), None);
    }
    let counters = kernel.snapshot().counters;
    assert_eq!(counters[&counter_slot(FORWARDED, Egress)].0, flows);
    let lost = counters[&counter_slot(LOST_EVENTS, Egress)].0;
    assert_eq!(kernel.events().len() as u64 + lost, flows);
    assert!((100..110).contains(&lost), "{lost}");
}
