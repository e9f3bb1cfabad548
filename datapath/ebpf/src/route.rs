//! What the kernel's routes say.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
    },
    helpers::bpf_fib_lookup,
};
use datapath_abi::{NodeConfig, V4};

use crate::context::Packet;

/// As in `linux/socket.h`.
pub const AF_INET: u8 = 2;

/// Whether this node's routing sends what the endpoint `packet.from` sends out by the underlay interface.
#[inline(never)]
pub fn leaves_by_underlay(packet: &Packet, config: &NodeConfig) -> bool {
    let (answer, ifindex) = ask(packet, packet.from.source, packet.key.src, packet.key.dst);
    // A neighbour that is not known yet will be asked for by the kernel as the packet leaves.
    matches!(answer, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH)
        && ifindex == config.underlay_ifindex
}

/// Whether an address is one of this node's own. (What is broadcast comes in frames that are not for this node alone.)
#[inline(never)]
pub fn is_own_address(packet: &Packet, config: &NodeConfig, address: V4) -> bool {
    let (answer, _) = ask(packet, config.underlay_ifindex, packet.key.src, address);
    answer == BPF_FIB_LKUP_RET_NOT_FWDED
}

/// What becomes of a packet that comes in by an interface, and by which interface it goes.
#[inline(always)]
fn ask(packet: &Packet, ifindex: u32, src: V4, dst: V4) -> (u32, u32) {
    // SAFETY: integers and byte arrays only.
    let mut question: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    question.family = AF_INET;
    question.ifindex = ifindex;
    question.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
    question.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
    // SAFETY: context and structure are of the sizes that the kernel is told.
    let answer = unsafe {
        bpf_fib_lookup(packet.skb().cast(), &raw mut question, size_of::<bpf_fib_lookup>() as i32, 0)
    };
    (answer as u32, question.ifindex)
}
