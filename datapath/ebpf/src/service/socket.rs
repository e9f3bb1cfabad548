//! Services at the socket: a socket that connects, or sends a datagram, to a frontend is given a backend, so that its packets
//! need no translation; and a socket that asks for the other end's address is told the frontend.
//!
//! These programs run within system calls, and classifiers may interrupt them on their CPU. Of what is a CPU's own they use
//! only counters; everything else is on the stack.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, generated::bpf_set_retval},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use datapath_abi::{
    BUDGET_EVENTS, Direction, DropReason, EVENTS_PER_WINDOW, FlowKey, FrontendKey, SocketKey, V4,
    counter_slot, identity_number as identity, namespace_kind, socket_kind,
};
use datapath_packet::{TCP, UDP};

use crate::{
    atomic,
    context::Backend,
    lookup,
    maps::{COUNTERS, NAMESPACES, SOCKETS_V4},
    report,
    service::socket_backend::{SocketFlow, choose, service_id_of},
};

/// As in `linux/socket.h`.
const AF_INET: u32 = 2;
/// As in `asm-generic/errno.h`: the error of a client of a service without backends, as by packets.
const ECONNREFUSED: i32 = 111;

/// The system call goes on.
const ALLOW: i32 = 1;
/// The system call fails.
const DENY: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(context: SockAddrContext) -> i32 {
    to_backend(&context, true)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(context: SockAddrContext) -> i32 {
    to_backend(&context, false)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(context: SockAddrContext) -> i32 {
    to_frontend(&context)
}

#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeername4(context: SockAddrContext) -> i32 {
    to_frontend(&context)
}

/// Forgets a connection with its socket: the table keeps only entries of living sockets, and of datagrams.
#[cgroup_sock(sock_release)]
pub fn sock_release(context: SockContext) -> i32 {
    let socket = context.sock;
    // SAFETY: the kernel's own view of the socket, read as a program may: field by field.
    let (family, address, port) = unsafe {
        (
            read_volatile(&raw const (*socket).family),
            read_volatile(&raw const (*socket).dst_ip4),
            read_volatile(&raw const (*socket).dst_port),
        )
    };
    if family == AF_INET && address != 0 {
        // SAFETY: the context is this program's own.
        let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
        forget(cookie, address.to_ne_bytes(), port.to_ne_bytes());
    }
    ALLOW
}

/// The address that a system call is about.
struct Call(*mut bpf_sock_addr);

impl Call {
    #[inline(always)]
    fn address(&self) -> V4 {
        // SAFETY: a field of the context, read whole, as the verifier wants it.
        unsafe { read_volatile(&raw const (*self.0).user_ip4) }.to_ne_bytes()
    }

    #[inline(always)]
    fn port_be(&self) -> [u8; 2] {
        // SAFETY: as above. The upper half is zero.
        (unsafe { read_volatile(&raw const (*self.0).user_port) } as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn protocol(&self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(&raw const (*self.0).protocol) }
    }

    #[inline(always)]
    fn set(&self, address: V4, port_be: [u8; 2]) {
        // SAFETY: as above; these two may be written.
        unsafe {
            write_volatile(&raw mut (*self.0).user_ip4, u32::from_ne_bytes(address));
            write_volatile(&raw mut (*self.0).user_port, u32::from(u16::from_ne_bytes(port_be)));
        }
    }
}

/// Gives a system call to a frontend a backend. What cannot be recorded is left to the classifiers.
#[inline(always)]
fn to_backend(context: &SockAddrContext, connects: bool) -> i32 {
    let call = Call(context.sock_addr);
    let protocol = call.protocol();
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        return ALLOW;
    }
    let frontend =
        FrontendKey { address: call.address(), port_be: call.port_be(), protocol: protocol as u8, pad: 0 };
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    if connects {
        // The socket may be connected anew, and to a backend by the backend's own address: then that is its name.
        forget(cookie, frontend.address, frontend.port_be);
    }
    if !lookup::is_service_port(frontend.protocol, frontend.port_be) {
        return ALLOW;
    }
    // SAFETY: as above.
    let namespace = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    // SAFETY: as in `lookup::endpoint_at`.
    let Some(owner) = (unsafe { NAMESPACES.get(namespace) }) else { return ALLOW };
    let Ok(config) = lookup::config() else { return ALLOW };
    let service_id = service_id_of(&frontend, owner.kind, config);
    if service_id == 0 {
        return ALLOW;
    }
    let client = if owner.kind == namespace_kind::NODE { config.gateway_v4 } else { owner.address_v4 };
    let mut flow = SocketFlow {
        cookie,
        namespace,
        frontend,
        client,
        service_id,
        connects: u32::from(connects),
        backend: Backend { id: 0, address: [0; 4], port_be: [0; 2] },
        is_unrecorded: 0,
    };
    choose(&mut flow);
    if flow.is_unrecorded != 0 {
        return ALLOW;
    }
    if flow.backend.id == 0 {
        report_denied(&flow);
        // SAFETY: a helper without pointers.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return DENY;
    }
    call.set(flow.backend.address, flow.backend.port_be);
    ALLOW
}

/// Replaces a backend by the frontend that the socket named.
#[inline(always)]
fn to_frontend(context: &SockAddrContext) -> i32 {
    let call = Call(context.sock_addr);
    let key = SocketKey {
        // SAFETY: the context is this program's own.
        cookie: unsafe { bpf_get_socket_cookie(context.as_ptr()) },
        address: call.address(),
        port_be: call.port_be(),
        kind: socket_kind::BACKEND,
        pad: 0,
    };
    // SAFETY: as in `lookup::endpoint_at`; the value is copied.
    if let Some(entry) = unsafe { SOCKETS_V4.get(key) } {
        call.set(entry.address, entry.port_be);
    }
    ALLOW
}

/// Forgets that a socket goes to a backend. (Deleting takes a lock, looking up does not.)
#[inline(always)]
fn forget(cookie: u64, address: V4, port_be: [u8; 2]) {
    let key = SocketKey { cookie, address, port_be, kind: socket_kind::BACKEND, pad: 0 };
    // SAFETY: nothing is read.
    if unsafe { SOCKETS_V4.get(key) }.is_some() {
        // Another CPU may have been faster.
        let _ = SOCKETS_V4.remove(key);
    }
}

/// Counts and reports a client of a service without backends, as classifiers do.
#[inline(never)]
fn report_denied(flow: &SocketFlow) {
    const REASON: u8 = DropReason::NoBackend as u8;
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_slot(REASON, Direction::Egress)) {
        // SAFETY: a live map value. Classifiers count in the same place, and may interrupt this program.
        unsafe { atomic::add(&raw mut (*counter).packets, 1) };
    }
    if !report::is_within_budget(BUDGET_EVENTS, EVENTS_PER_WINDOW) {
        return;
    }
    let src_identity = match lookup::endpoint_with(flow.client) {
        Some(endpoint) => endpoint.identity,
        None => identity::HOST,
    };
    let key = FlowKey {
        src: flow.client,
        dst: flow.frontend.address,
        src_port_be: [0; 2],
        dst_port_be: flow.frontend.port_be,
        protocol: flow.frontend.protocol,
        pad: [0; 3],
    };
    report::denied_socket(&key, src_identity, REASON);
}
