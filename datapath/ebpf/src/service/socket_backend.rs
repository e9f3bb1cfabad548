//! Which backend a socket goes to, and the record of it. Frontends, tables and backends are those of packets.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use datapath_abi::{
    FlowKey, FrontendKey, NodeConfig, SocketEntry, SocketKey, V4, backend_flags, namespace_kind, socket_kind,
};

use crate::{
    context::Backend,
    maps::SOCKETS_V4,
    service::{affinity, backend, frontend},
};

/// What a socket asks for, and what it gets. It lies on the stack, where the verifier wants whole words.
pub struct SocketFlow {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub namespace: u64,
    /// The frontend that the socket names.
    pub frontend: FrontendKey<V4>,
    /// The address of the namespace's endpoint, or of the node among endpoints.
    pub client: V4,
    /// The service port of the frontend.
    pub service_id: u32,
    /// Not 0: for all that the socket will send; 0: for one datagram.
    pub connects: u32,
    /// The backend that the socket gets.
    pub backend: Backend,
    /// Not 0: it could not be recorded.
    pub is_unrecorded: u32,
}

/// The service port that a frontend leads to, for sockets of this kind of namespace; 0: none.
#[inline(always)]
pub fn service_id_of(asked: &FrontendKey<V4>, kind: u32, config: &NodeConfig) -> u32 {
    // To connect to 0.0.0.0 is to connect to oneself.
    let is_own = asked.address[0] == 127 || asked.address == [0; 4];
    if !is_own {
        let service_id = frontend::service_id_of(asked);
        if service_id != 0 {
            return service_id;
        }
    }
    let is_this_node = if is_own {
        kind == namespace_kind::NODE
    } else {
        asked.address == config.gateway_v4 || asked.address == config.underlay_v4
    };
    if is_this_node { frontend::service_id_of(&FrontendKey { address: [0; 4], ..*asked }) } else { 0 }
}

/// Chooses a backend, and records it.
#[inline(never)]
pub fn choose(flow: &mut SocketFlow) {
    // A table is switched before its members go: where a member was chosen that has gone, the second look sees the next table.
    attempt(flow);
    if flow.backend.id == 0 && flow.is_unrecorded == 0 {
        attempt(flow);
    }
}

#[inline(never)]
fn attempt(flow: &mut SocketFlow) {
    let candidate = candidate(flow);
    let service_id = flow.service_id;
    let mut chosen = flow.backend;
    // User space takes an entry away first, and reads the records after.
    backend::confirm(&mut chosen, candidate, service_id, |chosen| record(flow, candidate, chosen));
    flow.backend = chosen;
    if chosen.id != 0 {
        affinity::remember_client(flow.client, service_id, chosen.id);
    }
}

/// The backend that the socket's datagrams have, or one of the table.
#[inline(always)]
fn candidate(flow: &SocketFlow) -> u32 {
    if flow.connects == 0 {
        // SAFETY: as in `lookup::endpoint_at`.
        if let Some(entry) = unsafe { SOCKETS_V4.get(frontend_key(flow)) }
            && keeps_backend(entry, flow.service_id)
        {
            return entry.backend;
        }
    }
    let key = FlowKey {
        src: flow.client,
        dst: flow.frontend.address,
        src_port_be: [0; 2],
        dst_port_be: flow.frontend.port_be,
        protocol: flow.frontend.protocol,
        pad: [0; 3],
    };
    // SAFETY: a helper without arguments.
    backend::of_table(flow.service_id, &key, unsafe { bpf_get_prandom_u32() })
}

/// Whether datagrams go on with the backend that they had. They leave an unhealthy one: that breaks no connection.
#[inline(always)]
fn keeps_backend(entry: &SocketEntry<V4>, service_id: u32) -> bool {
    let had = Backend { id: entry.backend, address: entry.address, port_be: entry.port_be };
    backend::is_in_place(&had, service_id)
        && match backend::at(entry.backend) {
            Some(backend) => backend.flags & backend_flags::UNHEALTHY == 0,
            None => false,
        }
}

#[inline(always)]
fn frontend_key(flow: &SocketFlow) -> SocketKey<V4> {
    SocketKey {
        cookie: flow.cookie,
        address: flow.frontend.address,
        port_be: flow.frontend.port_be,
        kind: socket_kind::FRONTEND,
        pad: 0,
    }
}

/// Records under the backend which frontend the socket named, and for datagrams the other way round as well.
#[inline(always)]
fn record(flow: &mut SocketFlow, id: u32, backend: &Backend) {
    let key = SocketKey {
        cookie: flow.cookie,
        address: backend.address,
        port_be: backend.port_be,
        kind: socket_kind::BACKEND,
        pad: 0,
    };
    let entry = SocketEntry {
        namespace: flow.namespace,
        address: flow.frontend.address,
        port_be: flow.frontend.port_be,
        protocol: flow.frontend.protocol,
        pad: 0,
        service: flow.service_id,
        backend: id,
    };
    put(flow, &key, &entry);
    if flow.connects == 0 {
        let entry = SocketEntry { address: backend.address, port_be: backend.port_be, ..entry };
        put(flow, &frontend_key(flow), &entry);
    }
}

/// Writes a record that is not there yet.
#[inline(never)]
fn put(flow: &mut SocketFlow, key: &SocketKey<V4>, entry: &SocketEntry<V4>) {
    // SAFETY: as in `lookup::endpoint_at`.
    let is_recorded = match unsafe { SOCKETS_V4.get(key) } {
        Some(old) => {
            old.backend == entry.backend
                && old.service == entry.service
                && old.address == entry.address
                && old.port_be == entry.port_be
        }
        None => false,
    };
    if !is_recorded && SOCKETS_V4.insert(key, entry, 0).is_err() {
        flow.is_unrecorded = 1;
    }
}
