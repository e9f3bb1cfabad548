//! Counters and events.

use aya_ebpf::{helpers::bpf_ktime_get_ns, maps::ring_buf::RingBufEntry};
use datapath_abi::{
    BUDGET_EVENTS, BUDGET_WINDOW_NS, Direction, DropReason, EVENTS_PER_WINDOW, Event, EventKind, FlowEntry,
    FlowKey, V4, V6, counter_slot, flow_flags::REPLY,
};

use crate::{context::Packet, decide::flow as flows, maps};

/// Slot of packets that went on.
pub const FORWARDED: u8 = 0;
/// Slot of events that the ring did not take.
const EVENTS_LOST: u8 = 255;

/// Counts a packet that goes on.
#[inline(always)]
pub fn forwarded(packet: &Packet) {
    count(packet, FORWARDED);
}

/// Counts a packet that goes nowhere, and reports it, unless its CPU has reported enough for now.
#[inline(always)]
pub fn dropped(packet: &mut Packet, reason: DropReason) {
    packet.reason = reason as u8;
    note_drop(packet);
}

#[inline(never)]
fn note_drop(packet: &Packet) {
    count(packet, packet.reason);
    // Neighbour discovery of IPv6 comes by itself on every device, and the event could name no address.
    if packet.reason == DropReason::UnsupportedProtocol as u8 {
        return;
    }
    if !within_budget(BUDGET_EVENTS, EVENTS_PER_WINDOW) {
        return count(packet, EVENTS_LOST);
    }
    let Some(mut slot) = reserve(packet) else { return };
    let event = slot.as_mut_ptr();
    fill(event, packet, &packet.key, EventKind::Drop);
    // SAFETY: reserved memory of this size, written field by field.
    unsafe {
        (*event).packets = 1;
        (*event).bytes = u64::from(packet.bytes());
        (*event).src_identity = packet.src_identity;
        (*event).dst_identity = packet.dst_identity;
        (*event).reason = packet.reason;
        (*event).action = 0;
    }
    slot.submit(0);
}

/// Reports what became of a flow, in the direction of its first packet. `entry` is of the packet's direction;
/// the packets of both directions count.
#[inline(never)]
pub fn flow(packet: &Packet, kind: EventKind, entry: &FlowEntry, reverse: Option<&FlowEntry>) {
    let Some(mut slot) = reserve(packet) else { return };
    let event = slot.as_mut_ptr();
    let is_reply = entry.flags & REPLY != 0;
    let key = if is_reply { entry.reverse_key(&packet.key) } else { packet.key };
    fill(event, packet, &key, kind);
    // SAFETY: reserved memory of this size, written field by field.
    unsafe {
        (*event).packets = entry.packets + reverse.map_or(0, |half| half.packets);
        (*event).bytes = entry.bytes + reverse.map_or(0, |half| half.bytes);
        (*event).src_identity = if is_reply { entry.dst_identity } else { entry.src_identity };
        (*event).dst_identity = if is_reply { entry.src_identity } else { entry.dst_identity };
        (*event).reason = 0;
        (*event).action = entry.action;
    }
    slot.submit(0);
}

#[inline(always)]
fn reserve(packet: &Packet) -> Option<RingBufEntry<Event>> {
    let slot = maps::EVENTS.reserve(0);
    if slot.is_none() {
        count(packet, EVENTS_LOST);
    }
    slot
}

/// Writes what all kinds of events have, straight into the ring: an event on the stack and its copy would be a
/// third of what a program may use.
#[inline(always)]
fn fill(event: *mut Event, packet: &Packet, key: &FlowKey<V4>, kind: EventKind) {
    // SAFETY: by the callers, memory reserved for an event; helpers without pointers.
    unsafe {
        (*event).time_ns = bpf_ktime_get_ns();
        (*event).src = mapped(key.src);
        (*event).dst = mapped(key.dst);
        (*event).ifindex = packet.ifindex();
        (*event).outer_src_v4 = packet.outer_src;
        (*event).src_port_be = key.src_port_be;
        (*event).dst_port_be = key.dst_port_be;
        (*event).kind = kind as u8;
        (*event).direction = packet.direction as u8;
        (*event).protocol = key.protocol;
        (*event).family = packet.family;
        (*event).tcp_flags = packet.tcp_flags;
        (*event).pad = [0; 5];
    }
}

/// The IPv4-mapped form (RFC 4291, 2.5.5.2).
#[inline(always)]
pub fn mapped(address: V4) -> V6 {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[inline(always)]
fn count(packet: &Packet, reason: u8) {
    add(reason, packet.direction, packet.bytes());
}

/// Counts a packet of so many bytes.
#[inline(always)]
pub fn add(reason: u8, direction: Direction, bytes: u32) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(counter_slot(reason, direction)) {
        // SAFETY: this CPU's own; a program is not interrupted by another on its CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

/// Whether this CPU may do something once more in its window, of which it may do `limit`.
#[inline(always)]
pub fn within_budget(index: u32, limit: u32) -> bool {
    let Some(budget) = maps::BUDGETS.get_ptr_mut(index) else {
        return false;
    };
    let now_ns = flows::now_ns();
    // SAFETY: as in `count`.
    unsafe {
        if now_ns - (*budget).window_start_ns >= BUDGET_WINDOW_NS {
            (*budget).window_start_ns = now_ns;
            (*budget).used = 0;
        }
        let within = (*budget).used < limit;
        (*budget).used += u32::from(within);
        within
    }
}
