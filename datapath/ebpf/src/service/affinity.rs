//! Affinity: clients of some services keep their backends.

use datapath_abi::{AffinityEntry, AffinityKey, FlowKey, ServiceEntry, V4};
use datapath_packet::flow_hash;

use crate::{
    clock::now_ns,
    context::Packet,
    maps::{AFFINITY, SERVICES},
};

const SECOND_NS: u64 = 1_000_000_000;

/// The backend that the client of `key` has got, if the client was not silent for too long; 0: none. Nothing is changed.
#[inline(never)]
pub fn backend_of(key: &FlowKey<V4>, service_id: u32, entry: &ServiceEntry) -> u32 {
    // SAFETY: an LRU's memory is the table's for ever; another client that gets the entry meanwhile has had a good backend.
    let Some(affinity) = (unsafe { AFFINITY.get(key_of(key.src, service_id)) }) else { return 0 };
    // The time is later than now if another CPU was faster.
    let silent_ns = now_ns().saturating_sub(affinity.last_seen_ns);
    if silent_ns < u64::from(entry.affinity_seconds) * SECOND_NS { affinity.backend } else { 0 }
}

/// The hash of the client alone: a client that was forgotten, or comes by another node, gets the same slot as long as the
/// table is the same.
#[inline(always)]
pub fn client_hash(key: &FlowKey<V4>) -> u32 {
    flow_hash(&FlowKey { src_port_be: [0; 2], ..*key })
}

/// Remembers the backend that the packet's client has got.
#[inline(always)]
pub fn remember(packet: &Packet) {
    remember_client(packet.key.src, packet.service_id, packet.backend.id);
}

/// Remembers a client's backend, if the service has affinity.
#[inline(never)]
pub fn remember_client(client: V4, service_id: u32, backend: u32) {
    if SERVICES.get(service_id).is_none_or(|service| service.affinity_seconds == 0) {
        return;
    }
    // An LRU makes room. If it does not, the client's next flow asks the table again.
    let _ = AFFINITY.insert(
        key_of(client, service_id),
        AffinityEntry { last_seen_ns: now_ns(), backend, pad: 0 },
        0,
    );
}

#[inline(always)]
fn key_of(client: V4, service: u32) -> AffinityKey {
    AffinityKey { client: u64::from(u32::from_be_bytes(client)), service, pad: 0 }
}
