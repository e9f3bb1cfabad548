//! Services: which backend a flow to a frontend goes to, and what keeps it there.
//!
//! While such a flow is being decided, the packet's key is that of what its backend will get; [`settle`] gives it back the
//! one that it came with, under which its flow is known. Clients are of this node: wherever their flows go, they are
//! translated here, in both directions.

pub mod affinity;
pub mod dsr;
pub mod nodeport;
mod socket;
mod socket_choice;

use datapath_abi::{
    BackendEntry, DropReason, FlowEntry, FrontendKey, ServiceEntry, SlotsKey, V4, flow_flags, service_flags,
};
use datapath_packet::{Halves, TCP, flow_hash, opens, slot_of};

use crate::{
    context::{Facts, Packet, Service},
    decide::flow as flows,
    forward::reset,
    lookup,
    maps::{BACKENDS_V4, FLOWS_V4, FRONTENDS_V4, SERVICES, SLOTS},
    nat::rewrite,
    parse::icmp,
    service::nodeport as outside,
};

/// Whether a backend was chosen for the packet's flow.
#[inline(always)]
pub fn is_served(packet: &Packet) -> bool {
    packet.service.backend != 0
}

/// Lets a packet, whose stale entry says that its flow is translated, be decided as if it were one of the other direction
/// of its flow. False if there is no such entry (any more).
#[inline(never)]
pub fn turn(packet: &mut Packet) -> bool {
    // SAFETY: as in `flows::Flow::entry`; read at once.
    let Some(stale) = (unsafe { FLOWS_V4.get(packet.key) }) else { return false };
    if !rewrite::is_rewritten(stale) {
        return false;
    }
    packet.answer = packet.key;
    packet.is_turned = true;
    packet.key = stale.reverse_key(&packet.answer);
    true
}

/// Chooses a backend, if the packet goes to a frontend: its key then leads there, and so does the moment. Without one the
/// packet is refused.
#[inline(always)]
pub fn translate(packet: &mut Packet) {
    find(packet);
    if packet.port_number != 0 {
        translate_to(packet);
    }
}

/// Notes the service port that the packet goes to.
#[inline(never)]
pub fn find(packet: &mut Packet) {
    packet.port_number = frontend_of(packet);
}

/// The service port that a packet goes to; if its frontend is gone, that of the backend that its flow has.
#[inline(never)]
pub fn find_or_keep(packet: &mut Packet) {
    find(packet);
    if packet.port_number == 0
        && let Some(entry) = backend_at(packet.stale.backend)
    {
        packet.port_number = entry.service;
    }
}

/// Chooses a backend of the service port that the packet goes to, as [`translate`].
#[inline(never)]
pub fn translate_to(packet: &mut Packet) {
    let service = packet.port_number;
    packet.asked = packet.key;
    // A table is switched before its members go: where one was chosen that has gone, the second look sees the next table.
    choose(packet, service);
    if !is_served(packet) {
        choose(packet, service);
    }
    if !is_served(packet) {
        packet.refuse(DropReason::NoBackend);
    }
}

#[inline(never)]
fn choose(packet: &mut Packet, service: u32) {
    let backend = backend_of(packet, service);
    match backend_at(backend) {
        Some(entry) if entry.service == service => {
            packet.service.address = entry.address;
            packet.service.port_be = entry.port_be;
        }
        _ => return,
    }
    flows::go_to(packet, packet.service.address);
    // Once more, the epoch being known: user space takes an entry away first, and raises the epoch after.
    if is_at(backend, service, &packet.service) {
        packet.service.backend = backend;
        packet.key.dst = packet.service.address;
        packet.key.dst_port_be = packet.service.port_be;
    }
}

/// Makes what was decided, if it was, a decision about the packet as it came, and gives it back its key.
#[inline(never)]
pub fn settle(packet: &mut Packet) {
    // SAFETY: this CPU's own, as in `flows::decide`.
    let halves = unsafe { &mut *packet.halves() };
    if is_served(packet) {
        let service = &packet.service;
        let frontend = (packet.asked.dst, packet.asked.dst_port_be);
        let place = (service.address, service.port_be);
        if packet.is_direct {
            halves.name(service.backend, place);
        } else {
            halves.serve(service.backend, frontend, place);
        }
        packet.key = packet.asked;
    }
    if packet.is_turned {
        let is_same = halves.forward.reverse_key(&packet.key) == packet.answer;
        packet.key = packet.answer;
        let facts: &mut Facts = packet;
        core::mem::swap(&mut facts.src_identity, &mut facts.dst_identity);
        if is_same {
            halves.turn();
        } else if !packet.is_refused() {
            packet.refuse(DropReason::NoTranslation);
        }
    } else if packet.stale.is_reply && !resume(packet, halves) {
        packet.refuse(DropReason::NoBackend);
    }
}

/// Goes on with what a backend answers: it gets back the frontend as its source. False if the backend is gone, and with it
/// the flow; the client's next packet gets another.
#[inline(always)]
fn resume(packet: &Packet, halves: &mut Halves) -> bool {
    let stale = &packet.stale;
    let service = match backend_at(stale.backend) {
        Some(entry) => entry.service,
        None => 0,
    };
    if service == 0 || !is_at(stale.backend, service, stale) {
        return false;
    }
    halves.turn();
    halves.serve(stale.backend, (stale.frontend, stale.frontend_port_be), (stale.address, stale.port_be));
    halves.turn();
    true
}

/// Makes of a packet that goes no further what tells its sender why: a reset where it was for a service without backends,
/// or an ICMP error, which comes from `own`. False if there is nothing to tell.
#[inline(always)]
pub fn refuse(packet: &Packet, own: V4, reason: DropReason) -> bool {
    if matches!(reason, DropReason::NoBackend) && packet.key.protocol == TCP {
        reset::answer(packet)
    } else {
        icmp::refuse(packet, own, reason)
    }
}

/// Keeps what an entry, that holds no more, says of the packet's flow as a service's.
#[inline(always)]
pub fn note(packet: &mut Packet, entry: &FlowEntry) {
    if entry.backend == 0 {
        return;
    }
    let key = packet.key;
    let stale = &mut packet.stale;
    stale.backend = entry.backend;
    stale.is_reply = entry.flags & flow_flags::REPLY != 0;
    stale.is_on_both_sides = rewrite::is_on_both_sides(entry);
    stale.is_from_outside = outside::is_client_of(entry, stale.is_reply);
    stale.is_direct = !rewrite::is_rewritten(entry);
    if !stale.is_reply {
        (stale.frontend, stale.frontend_port_be) = (key.dst, key.dst_port_be);
        (stale.address, stale.port_be) = (entry.rewrite_dst, entry.rewrite_dst_port_be);
    } else {
        (stale.frontend, stale.frontend_port_be) = (entry.rewrite_src, entry.rewrite_src_port_be);
        (stale.address, stale.port_be) = (key.src, key.src_port_be);
    }
}

/// The service port at an address, and the port that the packet goes to; 0: none.
#[inline(always)]
pub fn number_at(packet: &Packet, address: V4) -> u32 {
    let key = &packet.key;
    service_at(&FrontendKey { address, port_be: key.dst_port_be, protocol: key.protocol, pad: 0 })
}

/// The service port that the packet goes to; 0: none.
#[inline(always)]
fn frontend_of(packet: &Packet) -> u32 {
    let key = &packet.key;
    let service = number_at(packet, key.dst);
    if service != 0 {
        return service;
    }
    // A look into the ipcache would cost every flow's first packet some 60 ns.
    match lookup::config() {
        Ok(config) if key.dst == config.gateway_v4 || key.dst == config.underlay_v4 => {
            number_at(packet, [0; 4])
        }
        _ => 0,
    }
}

/// The service port at exactly this address; 0: none.
#[inline(always)]
pub fn service_at(frontend: &FrontendKey<V4>) -> u32 {
    // SAFETY: as in `lookup::endpoint_at`; the number is copied.
    match unsafe { FRONTENDS_V4.get(frontend) } {
        Some(entry) => entry.service,
        None => 0,
    }
}

/// The backend that the flow has, or else that of its slot; 0: none.
#[inline(always)]
fn backend_of(packet: &Packet, service: u32) -> u32 {
    let stale = &packet.stale;
    // A flow goes on with its backend; a connection that begins in its place is new.
    if stale.backend != 0
        && is_at(stale.backend, service, stale)
        && (!opens(packet.tcp_flags) || takes_new(stale.backend, service))
    {
        return stale.backend;
    }
    let Some(entry) = SERVICES.get(service) else { return 0 };
    if entry.flags & service_flags::PRESENT == 0 {
        return 0;
    }
    if entry.affinity_seconds != 0 {
        return affinity::backend_of(&packet.key, service, entry);
    }
    // What opens a flow has the same hash on all nodes and each time: a flow that was forgotten comes to the same backend
    // as long as the table is the same.
    backend_in_slot(entry, flow_hash(&packet.key))
}

/// The backend in the slot of a hash; 0: none.
#[inline(always)]
pub fn backend_in_slot(entry: &ServiceEntry, hash: u32) -> u32 {
    // One word: the number of a table and the count of another would not fit.
    let (table, slots) = entry.table();
    let (block, place) = slot_of(hash, slots);
    // SAFETY: as in `lookup::endpoint_at`; the number is copied. Blocks never change.
    match unsafe { SLOTS.get(SlotsKey { table, block }) } {
        // The compiler knows that the place is in the block, the verifier does not: let it see the check.
        Some(block) => block.slots.get(core::hint::black_box(place) as usize).copied().unwrap_or(0),
        None => 0,
    }
}

/// A backend by number.
#[inline(always)]
pub fn backend_at(backend: u32) -> Option<&'static BackendEntry<V4>> {
    BACKENDS_V4.get(backend)
}

/// Whether the backend is the service port's, and gets new flows.
#[inline(always)]
pub fn takes_new(backend: u32, service: u32) -> bool {
    match backend_at(backend) {
        Some(entry) => entry.service == service && entry.flags == 0,
        None => false,
    }
}

/// Whether the backend still is where it was.
#[inline(always)]
fn is_at(backend: u32, service: u32, place: &Service) -> bool {
    match backend_at(backend) {
        Some(entry) => {
            entry.service == service && entry.address == place.address && entry.port_be == place.port_be
        }
        None => false,
    }
}
