//! Services at the socket: who connects, or sends a datagram, to a frontend speaks to a backend from then on, without a
//! translation of packets; and who asks for the other's address is told the frontend.
//!
//! These programs run within system calls: others, those of packets among them, may interrupt them on their CPU. Of what
//! is a CPU's own they use only counters, and keep the rest on the stack.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, generated::bpf_set_retval},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use datapath_abi::{
    BUDGET_EVENTS, Direction, DropReason, EVENTS_PER_WINDOW, EventKind, FrontendKey, SocketKey, V4,
    counter_slot, identity_number as identity, namespace_kind, socket_kind,
};
use datapath_packet::{TCP, UDP};

use crate::{
    atomic, lookup,
    maps::{COUNTERS, EVENTS, NAMESPACES, SOCKETS_V4},
    report,
    service::socket_choice::{Choice, choose, service_of},
};

/// As in `linux/socket.h`.
const AF_INET: u32 = 2;
/// As in `asm-generic/errno.h`: what a client gets of a service without backends, as from the path of packets.
const ECONNREFUSED: i32 = 111;

/// The system call goes on.
const ALLOW: i32 = 1;
/// It fails.
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(context: SockAddrContext) -> i32 {
    forward(&context, true)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(context: SockAddrContext) -> i32 {
    forward(&context, false)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(context: SockAddrContext) -> i32 {
    backward(&context)
}

#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeername4(context: SockAddrContext) -> i32 {
    backward(&context)
}

/// Forgets a connection with its socket: what is left in the table is of sockets that live, and of datagrams.
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

/// Leads what goes to a frontend to a backend. What cannot be noted is left to the path of packets.
#[inline(always)]
fn forward(context: &SockAddrContext, connects: bool) -> i32 {
    let call = Call(context.sock_addr);
    let protocol = call.protocol();
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        return ALLOW;
    }
    let asked =
        FrontendKey { address: call.address(), port_be: call.port_be(), protocol: protocol as u8, pad: 0 };
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    if connects {
        // It may be connected anew, and to a backend itself: then that is whom it has named.
        forget(cookie, asked.address, asked.port_be);
    }
    if !lookup::is_service_port(asked.protocol, asked.port_be) {
        return ALLOW;
    }
    // SAFETY: as above.
    let namespace = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    // SAFETY: as in `lookup::endpoint_at`.
    let Some(whose) = (unsafe { NAMESPACES.get(namespace) }) else { return ALLOW };
    let Ok(config) = lookup::config() else { return ALLOW };
    let service = service_of(&asked, whose.kind, config);
    if service == 0 {
        return ALLOW;
    }
    let client = if whose.kind == namespace_kind::NODE { config.gateway_v4 } else { whose.address_v4 };
    let mut choice = Choice {
        cookie,
        namespace,
        asked,
        client,
        service,
        connects: u32::from(connects),
        backend: 0,
        address: [0; 4],
        port_be: [0; 2],
        is_untold: 0,
    };
    choose(&mut choice);
    if choice.is_untold != 0 {
        return ALLOW;
    }
    if choice.backend == 0 {
        refused(&choice);
        // SAFETY: a helper without pointers.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return REFUSE;
    }
    call.set(choice.address, choice.port_be);
    ALLOW
}

/// Names the frontend for the backend.
#[inline(always)]
fn backward(context: &SockAddrContext) -> i32 {
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

/// Forgets that a socket goes to a backend. (Deleting takes a lock, looking does not.)
#[inline(always)]
fn forget(cookie: u64, address: V4, port_be: [u8; 2]) {
    let key = SocketKey { cookie, address, port_be, kind: socket_kind::BACKEND, pad: 0 };
    // SAFETY: nothing is read.
    if unsafe { SOCKETS_V4.get(key) }.is_some() {
        // Somebody may have been faster.
        let _ = SOCKETS_V4.remove(key);
    }
}

/// Counts and reports a client that is refused, as where packets are.
#[inline(never)]
fn refused(choice: &Choice) {
    const REASON: u8 = DropReason::NoBackend as u8;
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_slot(REASON, Direction::Egress)) {
        // SAFETY: a live map value. The programs of packets count in the same place, and may interrupt this one.
        unsafe { atomic::add(&raw mut (*counter).packets, 1) };
    }
    if !report::within_budget(BUDGET_EVENTS, EVENTS_PER_WINDOW) {
        return;
    }
    let src_identity = match lookup::endpoint_of(choice.client) {
        Some(endpoint) => endpoint.identity,
        None => identity::HOST,
    };
    let Some(mut slot) = EVENTS.reserve(0) else { return };
    let event: *mut datapath_abi::Event = slot.as_mut_ptr();
    // SAFETY: reserved memory of this size, written field by field; a helper without pointers.
    unsafe {
        (*event).time_ns = bpf_ktime_get_ns();
        (*event).packets = 1;
        (*event).bytes = 0;
        (*event).src = report::mapped(choice.client);
        (*event).dst = report::mapped(choice.asked.address);
        (*event).src_identity = src_identity;
        (*event).dst_identity = identity::UNKNOWN;
        (*event).ifindex = 0;
        (*event).outer_src_v4 = [0; 4];
        (*event).src_port_be = [0; 2];
        (*event).dst_port_be = choice.asked.port_be;
        (*event).kind = EventKind::Drop as u8;
        (*event).reason = REASON;
        (*event).direction = Direction::Egress as u8;
        (*event).protocol = choice.asked.protocol;
        (*event).family = 4;
        (*event).tcp_flags = 0;
        (*event).action = 0;
        (*event).pad = [0; 5];
    }
    slot.submit(0);
}
