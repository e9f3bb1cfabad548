//! A flow from its first packet to its end.

use datapath_abi::{
    Direction::{Egress, Ingress},
    DropReason, EndpointEntry, Event, EventKind, FlowEntry, FlowKey, IpcacheEntry, NodeEntry, V4,
    counter_slot, epoch_shard_v4, flow_flags, map_name,
};
use datapath_linux::object::Program::{FromEndpoint, FromOverlay};

use crate::{
    check::{Verdict::*, *},
    frame::Frame,
    furnished,
    kernel::Kernel,
    world::*,
};

type Entry = (FlowKey<V4>, FlowEntry);

/// Sends from A to R and expects these entries to change, and these events.
#[track_caller]
fn forth(kernel: &mut Kernel, frame: &Frame, entries: &[Entry], events: &[Event]) {
    let expected = Expected::forwarded(Redirect, frame.clone().towards(&R).bytes(), Egress);
    check(kernel, FromEndpoint, &frame.bytes(), changing(expected, entries, events));
}

/// The same from R to A, through the tunnel.
#[track_caller]
fn back(kernel: &mut Kernel, frame: &Frame, entries: &[Entry], events: &[Event]) {
    let out = frame.clone().towards(&A).ttl(63).bytes();
    let expected = changing(Expected::forwarded(Redirect, out, Ingress), entries, events);
    check(kernel, FromOverlay, &frame.bytes(), expected.origin(Some(tunnel_from(&R))));
}

fn changing(expected: Expected, entries: &[Entry], events: &[Event]) -> Expected {
    let expected = entries.iter().fold(expected, |expected, entry| expected.flow(*entry));
    events.iter().fold(expected, |expected, event| expected.event(*event))
}

/// The flow's first packet, from A to R: both entries.
#[track_caller]
fn begin(kernel: &mut Kernel, frame: &Frame) -> [Entry; 2] {
    let expected = Expected::forwarded(Redirect, frame.clone().towards(&R).bytes(), Egress);
    check(kernel, FromEndpoint, &frame.bytes(), expected.new_flow(frame, &A, &R));
    pair(frame, &A, &R)
}

fn ended((key, entry): Entry) -> Entry {
    (key, FlowEntry { flags: entry.flags | flow_flags::ENDED, ..entry })
}

/// What is reported of the flow from A to R when the packet of `last` ends it.
fn end_event(first: &Frame, last: &Frame, direction: datapath_abi::Direction, entries: [&Entry; 2]) -> Event {
    let [(_, one), (_, other)] = entries;
    Event {
        packets: one.packets + other.packets,
        bytes: one.bytes + other.bytes,
        src_identity: A.identity,
        dst_identity: R.identity,
        action: if direction == Egress { R.action.0 } else { A.action.0 } as u8,
        tcp_flags: last.tcp_flags(),
        ..event(first, EventKind::FlowEnd, direction)
    }
}

#[test]
fn both_directions_go_by_their_entries() {
    let mut kernel = furnished!();
    let (syn, syn_ack, ack) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A), Frame::ack(&A, &R));
    let [forward, reverse] = begin(&mut kernel, &syn);
    back(&mut kernel, &syn_ack, &[and_packet(reverse, &syn_ack)], &[]);
    forth(&mut kernel, &ack, &[and_packet(forward, &ack)], &[]);
}

#[test]
fn an_echo_answer_belongs_to_its_request() {
    let mut kernel = furnished!();
    let (request, reply) = (Frame::echo_request(&A, &R, 77), Frame::echo_reply(&R, &A, 77));
    let [_, reverse] = begin(&mut kernel, &request);
    back(&mut kernel, &reply, &[and_packet(reverse, &reply)], &[]);
}

#[test]
fn fin_from_both_sides_ends_it_once() {
    let mut kernel = furnished!();
    let (syn, syn_ack, fin) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A), Frame::fin(&A, &R));
    let (fin_back, ack) = (Frame::fin_back(&R, &A), Frame::ack(&A, &R));

    let [forward, reverse] = begin(&mut kernel, &syn);
    let reverse = and_packet(reverse, &syn_ack);
    back(&mut kernel, &syn_ack, &[reverse], &[]);
    let forward = and_packet(forward, &fin);
    forth(&mut kernel, &fin, &[forward], &[]);

    let reverse = and_packet(reverse, &fin_back);
    let end = end_event(&syn, &fin_back, Ingress, [&forward, &reverse]);
    let (forward, reverse) = (ended(forward), ended(reverse));
    back(&mut kernel, &fin_back, &[forward, reverse], &[end]);

    // What comes late goes on, and ends nothing a second time.
    let forward = and_packet(forward, &ack);
    forth(&mut kernel, &ack, &[forward], &[]);
    back(&mut kernel, &fin_back, &[and_packet(reverse, &fin_back)], &[]);
}

#[test]
fn a_reset_ends_it_and_the_next_syn_begins_another() {
    let mut kernel = furnished!();
    let (syn, rst) = (Frame::syn(&A, &R), Frame::rst_back(&R, &A));
    let [forward, reverse] = begin(&mut kernel, &syn);
    let reverse = and_packet(reverse, &rst);
    let end = end_event(&syn, &rst, Ingress, [&forward, &reverse]);
    back(&mut kernel, &rst, &[ended(forward), ended(reverse)], &[end]);
    begin(&mut kernel, &syn);
}

#[test]
fn a_connection_older_than_the_table_goes_on() {
    let mut kernel = furnished!();
    begin(&mut kernel, &Frame::ack(&A, &R));
}

#[test]
fn a_raised_epoch_decides_anew_and_keeps_the_counts() {
    for changed in [A.address, R.address] {
        let mut kernel = furnished!();
        let (syn, ack) = (Frame::syn(&A, &R), Frame::ack(&A, &R));
        let [forward, reverse] = begin(&mut kernel, &syn);

        // By itself a changed map says nothing to a known flow: the epoch does.
        kernel.set(map_name::IPCACHE_V4, &R.address, &IpcacheEntry { identity: 555, node: 6 });
        let forward = and_packet(forward, &ack);
        forth(&mut kernel, &ack, &[forward], &[]);

        kernel.set(map_name::EPOCHS, &epoch_shard_v4(changed), &(epoch_of(changed) + 1));
        let (key, entry) = and_packet(forward, &ack);
        let epoch = entry.epoch + 1;
        let forward = (key, FlowEntry { epoch, target: 6, dst_identity: 555, ..entry });
        let (key, entry) = reverse;
        let reverse = (key, FlowEntry { epoch, source: 6, src_identity: 555, ..entry });
        forth(&mut kernel, &ack, &[forward, reverse], &[]);
    }
}

#[test]
fn after_an_endpoint_has_gone_not_one_more_packet_passes() {
    let mut kernel = furnished!();
    let (syn, ack) = (Frame::syn(&A, &B), Frame::ack(&A, &B));
    let expected = Expected::forwarded(Redirect, syn.clone().towards(&B).ttl(63).bytes(), Egress);
    check(&mut kernel, FromEndpoint, &syn.bytes(), expected.new_flow(&syn, &A, &B));

    kernel.remove::<V4, EndpointEntry>(map_name::ENDPOINTS_V4, &B.address);
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(B.address), &(epoch_of(B.address) + 1));
    let expected = Expected::dropped(&ack, DropReason::UnknownDestination, Egress).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &ack.bytes(), expected);
}

#[test]
fn a_node_that_left_is_refused_at_once() {
    let mut kernel = furnished!();
    let (syn, syn_ack) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A));
    begin(&mut kernel, &syn);
    kernel.remove::<V4, u32>(map_name::NODE_BY_ADDRESS_V4, &NODE_5.address);
    kernel.set(map_name::NODES, &5u32, &NodeEntry::default());

    let expected = Expected::dropped(&syn_ack, DropReason::UnknownNode, Ingress)
        .identities(R.identity, 0)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &syn_ack.bytes(), expected);
    // Nobody to send to any more, either; the entry does not count what was not sent.
    let expected =
        Expected::dropped(&syn, DropReason::NoTunnelEndpoint, Egress).identities(A.identity, R.identity);
    check(&mut kernel, FromEndpoint, &syn.bytes(), expected);
}

#[test]
fn a_known_flow_counts_only_what_goes_on() {
    let mut kernel = furnished!();
    let syn = Frame::syn(&A, &B);
    let expected = Expected::forwarded(Redirect, syn.clone().towards(&B).ttl(63).bytes(), Egress);
    check(&mut kernel, FromEndpoint, &syn.bytes(), expected.new_flow(&syn, &A, &B));
    let last_hop = syn.ttl(1);
    let told = last_hop.refused(11, 0, 0, GATEWAY.address);
    let expected = Expected::refused(&last_hop, &told, DropReason::TtlExceeded, Egress)
        .identities(A.identity, B.identity);
    check(&mut kernel, FromEndpoint, &last_hop.bytes(), expected);
}

#[test]
fn a_lost_half_comes_back_with_the_next_packet() {
    let mut kernel = furnished!();
    let (syn, syn_ack) = (Frame::syn(&A, &R), Frame::syn_ack(&R, &A));
    let [_, reverse] = begin(&mut kernel, &syn);
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &reverse.0);
    back(&mut kernel, &syn_ack, &[and_packet(reverse, &syn_ack)], &[]);
}

#[test]
fn a_known_flow_proves_nothing_of_another_workload() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&B, &R);
    for (key, entry) in pair(&frame, &B, &R) {
        kernel.set(map_name::FLOWS_V4, &key, &entry);
    }
    // B's flow, from A's device; with A's Ethernet address, too.
    let from_a = frame.macs(A.src_mac, A.dst_mac);
    let expected = Expected::dropped(&from_a, DropReason::SourceSpoofed, Egress).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &from_a.bytes(), expected);
}

#[test]
fn times_are_of_the_coarse_clock() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&A, &R);
    let before = coarse_ns();
    kernel.run(FromEndpoint, &frame.bytes(), None);
    let after = coarse_ns();
    let [(key, _), (reverse_key, _)] = pair(&frame, &A, &R);
    for key in [key, reverse_key] {
        let entry = kernel.flow(&key).expect("the flow is known");
        assert!((before..=after).contains(&entry.created_ns), "{before} {} {after}", entry.created_ns);
        assert!((before..=after).contains(&entry.last_seen_ns), "{before} {} {after}", entry.last_seen_ns);
    }
    // The clock ticks every few milliseconds.
    while coarse_ns() == after {
        std::thread::yield_now();
    }
    kernel.run(FromEndpoint, &frame.bytes(), None);
    let entry = kernel.flow(&key).expect("the flow is known");
    assert!(entry.last_seen_ns > after && entry.created_ns <= after);
}

#[test]
fn a_flood_of_drops_is_counted_and_reported_in_part() {
    const PACKETS: u64 = 5_000;
    let mut kernel = furnished!();
    let frame = Frame::syn(&A, &R).source(B.address);
    let before = coarse_ns();
    kernel.time(FromEndpoint, &frame.bytes(), None, PACKETS as u32);
    let windows = (coarse_ns() - before) / datapath_abi::BUDGET_WINDOW_NS + 2;

    let events = kernel.events().len() as u64;
    let counters = kernel.snapshot().counters;
    let lost = counters.get(&counter_slot(255, Egress)).map_or(0, |(packets, _)| *packets);
    assert_eq!(counters[&counter_slot(DropReason::SourceSpoofed as u8, Egress)].0, PACKETS);
    assert_eq!(events + lost, PACKETS);
    assert!(events <= windows * u64::from(datapath_abi::EVENTS_PER_WINDOW), "{events} in {windows}");
    assert!(events >= u64::from(datapath_abi::EVENTS_PER_WINDOW));
}

#[test]
fn a_ring_that_nobody_reads_costs_events_and_no_packets() {
    // A record has a header of 8 bytes (`BPF_RINGBUF_HDR_SZ`).
    let fit = u64::from(datapath_abi::EVENT_RING_BYTES) / (size_of::<Event>() as u64 + 8);
    let flows = fit + 100;
    let mut kernel = furnished!();
    for port in 0..flows {
        kernel.run(FromEndpoint, &Frame::udp(&A, &R, port as u16, 53).bytes(), None);
    }
    let counters = kernel.snapshot().counters;
    assert_eq!(counters[&counter_slot(0, Egress)].0, flows);
    let lost = counters[&counter_slot(255, Egress)].0;
    assert_eq!(kernel.events().len() as u64 + lost, flows);
    assert!((100..110).contains(&lost), "{lost}");
}
