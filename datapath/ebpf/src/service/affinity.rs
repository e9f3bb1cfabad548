//! Clients of services with affinity keep their backends.

use datapath_abi::{AffinityEntry, AffinityKey, FlowKey, ServiceEntry, V4};
use datapath_packet::flow_hash;

use crate::{decide::flow as flows, maps::AFFINITY, service};

const SECOND_NS: u64 = 1_000_000_000;

/// The backend for a new flow with this key (of which the source port does not count), as [`of_client`].
#[inline(always)]
pub fn backend_of(key: &FlowKey<V4>, service: u32, entry: &ServiceEntry) -> u32 {
    // By the client alone: one that was forgotten, or comes by another node, gets the same as long as the table is the same.
    let hash = flow_hash(&FlowKey { src_port_be: [0; 2], ..*key });
    of_client(u64::from(u32::from_be_bytes(key.src)), service, entry, hash)
}

/// The backend for a client's new flow: the one that it has, as long as that takes new flows and the client was not silent
/// for too long; else that of the slot of this hash, which it keeps from now on. 0: none.
#[inline(never)]
pub fn of_client(client: u64, service: u32, entry: &ServiceEntry, hash: u32) -> u32 {
    let key = AffinityKey { client, service, pad: 0 };
    let now_ns = flows::now_ns();
    if let Some(had) = AFFINITY.get_ptr_mut(key) {
        // SAFETY: the table's memory for ever (preallocated). Another client that gets it meanwhile has its time set.
        unsafe {
            // Later than now if another CPU was faster.
            let is_recent =
                now_ns.saturating_sub((*had).last_seen_ns) < u64::from(entry.affinity_seconds) * SECOND_NS;
            let backend = (*had).backend;
            if is_recent && service::takes_new(backend, service) {
                (*had).last_seen_ns = now_ns;
                return backend;
            }
        }
    }
    let backend = service::backend_in_slot(entry, hash);
    if backend != 0 {
        // An LRU makes room. If it does not, the next flow asks the table again.
        let _ = AFFINITY.insert(key, AffinityEntry { last_seen_ns: now_ns, backend, pad: 0 }, 0);
    }
    backend
}
