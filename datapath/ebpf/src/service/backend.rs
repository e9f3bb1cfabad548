//! Backends: the choice of one from a service port's table, for packets and for sockets.

use datapath_abi::{BackendEntry, FlowKey, ServiceEntry, V4, service_flags};
use datapath_packet::slot_of;

use crate::{
    context::Backend,
    maps::{BACKENDS_V4, SERVICES, SLOTS},
    service::affinity,
};

/// A backend by number.
#[inline(always)]
pub fn at(id: u32) -> Option<&'static BackendEntry<V4>> {
    BACKENDS_V4.get(id)
}

/// Whether the backend is one of the service port's, and gets new flows.
#[inline(always)]
pub fn takes_new_flows(id: u32, service_id: u32) -> bool {
    match at(id) {
        Some(entry) => entry.service == service_id && entry.flags == 0,
        None => false,
    }
}

/// Whether the backend still is where it was.
#[inline(always)]
pub fn is_in_place(backend: &Backend, service_id: u32) -> bool {
    match at(backend.id) {
        Some(entry) => {
            entry.service == service_id
                && entry.address == backend.address
                && entry.port_be == backend.port_be
        }
        None => false,
    }
}

/// Takes a candidate, if it is a backend of the service port before and after `announce`, by which it becomes known that the
/// backend is used: user space takes the backend's entry away first, and looks for its users after.
#[inline(always)]
pub fn confirm(chosen: &mut Backend, candidate: u32, service_id: u32, announce: impl FnOnce(&Backend)) {
    match at(candidate) {
        Some(entry) if entry.service == service_id => {
            (chosen.address, chosen.port_be) = (entry.address, entry.port_be);
        }
        _ => return,
    }
    announce(chosen);
    if is_in_place(&Backend { id: candidate, ..*chosen }, service_id) {
        chosen.id = candidate;
    }
}

/// The backend that the service port's table has for a new flow of the client in `key` with this hash; 0: none.
#[inline(always)]
pub fn of_table(service_id: u32, key: &FlowKey<V4>, hash: u32) -> u32 {
    let Some(entry) = SERVICES.get(service_id) else { return 0 };
    if entry.flags & service_flags::PRESENT == 0 {
        return 0;
    }
    if entry.affinity_seconds == 0 {
        return in_slot(entry, hash);
    }
    let kept = affinity::backend_of(key, service_id, entry);
    if takes_new_flows(kept, service_id) { kept } else { in_slot(entry, affinity::client_hash(key)) }
}

/// The backend in the slot of a hash; 0: none.
#[inline(never)]
fn in_slot(entry: &ServiceEntry, hash: u32) -> u32 {
    // One word: the number of one table and the size of another would not fit.
    let (table, slots) = entry.table();
    let (block, place) = slot_of(hash, slots);
    // SAFETY: as in `lookup::endpoint_at`; the number is copied. Blocks never change.
    match unsafe { SLOTS.get(datapath_abi::SlotsKey { table, block }) } {
        // The compiler knows that the place is in the block, the verifier does not: let it see the check.
        Some(block) => block.slots.get(core::hint::black_box(place) as usize).copied().unwrap_or(0),
        None => 0,
    }
}
