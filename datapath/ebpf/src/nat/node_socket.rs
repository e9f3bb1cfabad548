//! Sockets of the node itself, which use the same addresses and ports as translated flows.

use aya_ebpf::{
    bindings::BPF_F_CURRENT_NETNS,
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use datapath_abi::{FlowKey, V4};
use datapath_packet::{TCP, UDP};

use crate::context::Packet;

/// `bpf_sock_tuple` for IPv4.
#[repr(C)]
struct Tuple {
    src: V4,
    dst: V4,
    src_port_be: [u8; 2],
    dst_port_be: [u8; 2],
}

impl Tuple {
    #[inline(always)]
    fn of(key: &FlowKey<V4>) -> Self {
        Self { src: key.src, dst: key.dst, src_port_be: key.src_port_be, dst_port_be: key.dst_port_be }
    }
}

/// The node's own network namespace.
const NAMESPACE: u64 = BPF_F_CURRENT_NETNS as i64 as u64;

const NONE: u32 = 0;
const UNCONNECTED: u32 = 1;
const CONNECTED: u32 = 2;

/// Whether the node has a socket that gets packets with this key.
#[inline(always)]
pub fn exists(packet: &Packet, key: &FlowKey<V4>) -> bool {
    find(packet, key) != NONE
}

/// Whether the node has a socket that is connected to the sender of packets with this key.
#[inline(always)]
pub fn is_connected(packet: &Packet, key: &FlowKey<V4>) -> bool {
    find(packet, key) == CONNECTED
}

/// By a function for each protocol: to the verifier what is found is of another type.
#[inline(always)]
fn find(packet: &Packet, key: &FlowKey<V4>) -> u32 {
    match key.protocol {
        TCP => find_tcp(packet, key),
        UDP => find_udp(packet, key),
        _ => NONE,
    }
}

#[inline(never)]
fn find_tcp(packet: &Packet, key: &FlowKey<V4>) -> u32 {
    let mut tuple = Tuple::of(key);
    let tuple = (&raw mut tuple).cast();
    // SAFETY: the context is the kernel's, the tuple is of the size given; a socket that is found is released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(packet.skb().cast(), tuple, size_of::<Tuple>() as u32, NAMESPACE, 0);
        if socket.is_null() {
            return NONE;
        }
        let found = if (*socket).dst_port == 0 { UNCONNECTED } else { CONNECTED };
        bpf_sk_release(socket.cast());
        found
    }
}

#[inline(never)]
fn find_udp(packet: &Packet, key: &FlowKey<V4>) -> u32 {
    let mut tuple = Tuple::of(key);
    let tuple = (&raw mut tuple).cast();
    // SAFETY: as in `find_tcp`.
    unsafe {
        let socket = bpf_sk_lookup_udp(packet.skb().cast(), tuple, size_of::<Tuple>() as u32, NAMESPACE, 0);
        if socket.is_null() {
            return NONE;
        }
        let found = if (*socket).dst_port == 0 { UNCONNECTED } else { CONNECTED };
        bpf_sk_release(socket.cast());
        found
    }
}
