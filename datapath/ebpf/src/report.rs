//! Counters and events.

use aya_ebpf::{helpers::bpf_ktime_get_ns, maps::ring_buf::RingBufEntry};
use datapath_abi::{
    BUDGET_EVENTS, BUDGET_WINDOW_NS, Direction, DropReason, EVENTS_PER_WINDOW, Event, EventKind, FlowEntry,
    FlowKey, V4, V6, counter_slot, flow_flags::REPLY,
};

use crate::{clock::now_ns, context::Packet, maps};

/// Slot of packets that went on.
pub const FORWARDED: u8 = 0;
/// Slot of events that the ring did not take.
const EVENTS_LOST: u8 = 255;

/// Counts a packet that goes on.
#[inline(always)]
pub fn forwarded(packet: &Packet) {
    count(packet, FORWARDED);
}

/// Counts a packet that is dropped, and reports it, unless its CPU has reported enough for now.
#[inline(always)]
pub fn dropped(packet: &mut Packet, reason: DropReason) {
    packet.drop_reason = reason as u8;
    report_drop(packet);
}

#[inline(never)]
fn report_drop(packet: &Packet) {
    count(packet, packet.drop_reason);
    // Neighbour discovery of IPv6 comes by itself on every device, and the event could name no address.
    if packet.drop_reason == DropReason::UnsupportedProtocol as u8 {
        return;
    }
    if !is_within_budget(BUDGET_EVENTS, EVENTS_PER_WINDOW) {
        return count(packet, EVENTS_LOST);
    }
    let Some(mut slot) = reserve(packet) else { return };
    let fields = Fields {
        packets: 1,
        bytes: u64::from(packet.bytes()),
        src_identity: packet.src_identity,
        dst_identity: packet.dst_identity,
        kind: EventKind::Drop,
        reason: packet.drop_reason,
        action: 0,
    };
    fill(slot.as_mut_ptr(), &packet.key, &Place::of(packet), &fields);
    slot.submit(0);
}

/// Reports what became of a flow, in its original direction. `entry` is of the packet's direction; the packets of both
/// directions count.
#[inline(never)]
pub fn flow(packet: &Packet, kind: EventKind, entry: &FlowEntry, reverse: Option<&FlowEntry>) {
    let Some(mut slot) = reserve(packet) else { return };
    let is_reply = entry.flags & REPLY != 0;
    let key = if is_reply { entry.reverse_key(&packet.key) } else { packet.key };
    let fields = Fields {
        packets: entry.packets + reverse.map_or(0, |other| other.packets),
        bytes: entry.bytes + reverse.map_or(0, |other| other.bytes),
        src_identity: if is_reply { entry.dst_identity } else { entry.src_identity },
        dst_identity: if is_reply { entry.src_identity } else { entry.dst_identity },
        kind,
        reason: 0,
        action: entry.action,
    };
    fill(slot.as_mut_ptr(), &key, &Place::of(packet), &fields);
    slot.submit(0);
}

/// Reports a system call of a client that was denied.
#[inline(always)]
pub fn denied_socket(key: &FlowKey<V4>, src_identity: u32, reason: u8) {
    let Some(mut slot) = maps::EVENTS.reserve(0) else { return };
    let place =
        Place { ifindex: 0, outer_src: [0; 4], direction: Direction::Egress, family: 4, tcp_flags: 0 };
    let fields = Fields {
        packets: 1,
        bytes: 0,
        src_identity,
        dst_identity: 0,
        kind: EventKind::Drop,
        reason,
        action: 0,
    };
    fill(slot.as_mut_ptr(), key, &place, &fields);
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

/// Where an event happened.
struct Place {
    ifindex: u32,
    outer_src: V4,
    direction: Direction,
    family: u8,
    tcp_flags: u8,
}

impl Place {
    #[inline(always)]
    fn of(packet: &Packet) -> Self {
        Self {
            ifindex: packet.ifindex(),
            outer_src: packet.outer_src,
            direction: packet.direction,
            family: packet.family,
            tcp_flags: packet.tcp_flags,
        }
    }
}

/// What happened.
struct Fields {
    packets: u64,
    bytes: u64,
    src_identity: u32,
    dst_identity: u32,
    kind: EventKind,
    reason: u8,
    action: u8,
}

/// Writes an event straight into the ring: an event on the stack and its copy would be a third of what a program may use.
#[inline(always)]
fn fill(event: *mut Event, key: &FlowKey<V4>, place: &Place, fields: &Fields) {
    // SAFETY: by the callers, memory reserved for an event; helpers without pointers.
    unsafe {
        (*event).time_ns = bpf_ktime_get_ns();
        (*event).packets = fields.packets;
        (*event).bytes = fields.bytes;
        (*event).src = mapped(key.src);
        (*event).dst = mapped(key.dst);
        (*event).src_identity = fields.src_identity;
        (*event).dst_identity = fields.dst_identity;
        (*event).ifindex = place.ifindex;
        (*event).outer_src_v4 = place.outer_src;
        (*event).src_port_be = key.src_port_be;
        (*event).dst_port_be = key.dst_port_be;
        (*event).kind = fields.kind as u8;
        (*event).reason = fields.reason;
        (*event).direction = place.direction as u8;
        (*event).protocol = key.protocol;
        (*event).family = place.family;
        (*event).tcp_flags = place.tcp_flags;
        (*event).action = fields.action;
        (*event).pad = [0; 5];
    }
}

/// The IPv4-mapped form (RFC 4291, 2.5.5.2).
#[inline(always)]
fn mapped(address: V4) -> V6 {
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
        // SAFETY: this CPU's own; a classifier is not interrupted by another on its CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

/// Whether this CPU may do something once more in its window, of which it may do `limit`.
#[inline(always)]
pub fn is_within_budget(index: u32, limit: u32) -> bool {
    let Some(budget) = maps::BUDGETS.get_ptr_mut(index) else {
        return false;
    };
    let now_ns = now_ns();
    // SAFETY: as in `add`.
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
