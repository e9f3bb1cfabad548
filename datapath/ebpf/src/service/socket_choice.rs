//! Which backend a socket goes to, and what is noted of that. Frontends, tables and backends are those of packets.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use datapath_abi::{
    FlowKey, FrontendKey, NodeConfig, SocketEntry, SocketKey, V4, backend_flags, namespace_kind,
    service_flags, socket_kind,
};

use crate::{
    maps::{SERVICES, SOCKETS_V4},
    service::affinity,
    service::{backend_at, backend_in_slot, service_at},
};

/// What a socket asks for, and what it gets.
pub struct Choice {
    /// Of the socket.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub namespace: u64,
    /// The frontend.
    pub asked: FrontendKey<V4>,
    /// The address of the namespace's endpoint, or of the node among endpoints.
    pub client: V4,
    /// The service port of the frontend.
    pub service: u32,
    /// Not 0: for all that the socket will send; 0: for one datagram.
    pub connects: u32,
    /// The backend; 0: there is none.
    pub backend: u32,
    /// Where it is.
    pub address: V4,
    pub port_be: [u8; 2],
    /// Not 0: it could not be noted.
    pub is_untold: u16,
}

/// The service port that an address leads to, for sockets of this kind of namespace; 0: none.
#[inline(always)]
pub fn service_of(asked: &FrontendKey<V4>, kind: u32, config: &NodeConfig) -> u32 {
    // To connect to nowhere is to connect to oneself.
    let is_own = asked.address[0] == 127 || asked.address == [0; 4];
    if !is_own {
        let service = service_at(asked);
        if service != 0 {
            return service;
        }
    }
    let is_here = if is_own {
        kind == namespace_kind::NODE
    } else {
        asked.address == config.gateway_v4 || asked.address == config.underlay_v4
    };
    if is_here { service_at(&FrontendKey { address: [0; 4], ..*asked }) } else { 0 }
}

/// Chooses a backend, and notes it.
#[inline(never)]
pub fn choose(choice: &mut Choice) {
    // A table is switched before its members go: where one was chosen that has gone, the second look sees the next table.
    attempt(choice);
    if choice.backend == 0 && choice.is_untold == 0 {
        attempt(choice);
    }
}

#[inline(never)]
fn attempt(choice: &mut Choice) {
    let backend = candidate(choice);
    match backend_at(backend) {
        Some(entry) if entry.service == choice.service => {
            choice.address = entry.address;
            choice.port_be = entry.port_be;
        }
        _ => return,
    }
    note(choice, backend);
    // Once more, the note being made: user space takes an entry away first, and reads the notes after.
    if is_at(backend, choice.service, choice.address, choice.port_be) {
        choice.backend = backend;
    }
}

/// The backend that the socket's datagrams have, or one of the table.
#[inline(always)]
fn candidate(choice: &Choice) -> u32 {
    if choice.connects == 0 {
        // SAFETY: as in `lookup::endpoint_at`.
        if let Some(entry) = unsafe { SOCKETS_V4.get(frontend_key(choice)) }
            && keeps(entry, choice.service)
        {
            return entry.backend;
        }
    }
    let Some(entry) = SERVICES.get(choice.service) else { return 0 };
    if entry.flags & service_flags::PRESENT == 0 {
        return 0;
    }
    if entry.affinity_seconds == 0 {
        // SAFETY: a helper without arguments.
        return backend_in_slot(entry, unsafe { bpf_get_prandom_u32() });
    }
    let key = FlowKey {
        src: choice.client,
        dst: choice.asked.address,
        src_port_be: [0; 2],
        dst_port_be: choice.asked.port_be,
        protocol: choice.asked.protocol,
        pad: [0; 3],
    };
    affinity::backend_of(&key, choice.service, entry)
}

/// Whether datagrams go on with the backend that they had. No connection breaks when they leave one that is not well.
#[inline(always)]
fn keeps(entry: &SocketEntry<V4>, service: u32) -> bool {
    is_at(entry.backend, service, entry.address, entry.port_be)
        && match backend_at(entry.backend) {
            Some(backend) => backend.flags & backend_flags::UNHEALTHY == 0,
            None => false,
        }
}

/// Whether the backend still is there.
#[inline(always)]
fn is_at(backend: u32, service: u32, address: V4, port_be: [u8; 2]) -> bool {
    match backend_at(backend) {
        Some(entry) => entry.service == service && entry.address == address && entry.port_be == port_be,
        None => false,
    }
}

#[inline(always)]
fn frontend_key(choice: &Choice) -> SocketKey<V4> {
    SocketKey {
        cookie: choice.cookie,
        address: choice.asked.address,
        port_be: choice.asked.port_be,
        kind: socket_kind::FRONTEND,
        pad: 0,
    }
}

/// Notes who the backend is to the socket's owner, and for datagrams the other way as well.
#[inline(always)]
fn note(choice: &mut Choice, backend: u32) {
    let key = SocketKey {
        cookie: choice.cookie,
        address: choice.address,
        port_be: choice.port_be,
        kind: socket_kind::BACKEND,
        pad: 0,
    };
    let entry = SocketEntry {
        namespace: choice.namespace,
        address: choice.asked.address,
        port_be: choice.asked.port_be,
        protocol: choice.asked.protocol,
        pad: 0,
        service: choice.service,
        backend,
    };
    put(choice, &key, &entry);
    if choice.connects == 0 {
        let entry = SocketEntry { address: choice.address, port_be: choice.port_be, ..entry };
        put(choice, &frontend_key(choice), &entry);
    }
}

/// Writes a note that is not there yet.
#[inline(never)]
fn put(choice: &mut Choice, key: &SocketKey<V4>, entry: &SocketEntry<V4>) {
    // SAFETY: as in `lookup::endpoint_at`.
    let is_there = match unsafe { SOCKETS_V4.get(key) } {
        Some(there) => {
            there.backend == entry.backend
                && there.service == entry.service
                && there.address == entry.address
                && there.port_be == entry.port_be
        }
        None => false,
    };
    if !is_there && SOCKETS_V4.insert(key, entry, 0).is_err() {
        choice.is_untold = 1;
    }
}
